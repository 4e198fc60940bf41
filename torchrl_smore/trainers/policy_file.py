"""``policy.json`` of a run: how its networks are built, and what they read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.modules import IndependentNormal
from torchrl.objectives import LossModule

from torchrl_smore._files import write_text
from torchrl_smore.modules import ContaminatedNormal, PixelEncoder, describe_network
from torchrl_smore.trainers.checkpoint import CheckpointError
from torchrl_smore.trainers.evaluation import ActorPolicy, action_range_of

#: Name of the file in a run folder that says how its networks are built.
POLICY_FILE = "policy.json"
#: Version of the layout of :data:`POLICY_FILE`; another one is refused.
POLICY_FORMAT = 1
_SCORES = ("score_network", "qvalue_network", "critic_network")
_KEYS = ("observation", "desired_goal", "action")


def record_policy(
    run_dir: str | Path,
    loss: LossModule,
    *,
    columns: Mapping[str, Sequence[str]],
    goal_range: tuple[Tensor, Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``policy.json``, which :func:`load_policy` and :func:`load_value` need beside the checkpoints of a run.

    Args:
        run_dir: the run's folder.
        loss: has ``actor_network`` and perhaps networks of score and value. Networks of other classes than this
            package's are named, and cannot be loaded, which is warned of if it is the actor's.
        columns: meaning of each column of ``observation``, ``desired_goal`` and ``action``; where the networks see
            pictures, of the states that are painted.
        goal_range: smallest and largest value of each column of the goals that the data hold, each ``[G]``.
        about: further entries (JSON), for example task and method.

    Raises:
        ValueError: if ``columns`` are others, or more or fewer than what the actor reads and writes.
    """
    if set(columns) != set(_KEYS):
        raise ValueError(f"expected columns of {', '.join(_KEYS)}, got {sorted(columns)}.")
    pixels, networks = _pixels(loss), _networks(loss)
    if "unknown" in networks.get("actor", {}):
        warnings.warn(
            f"the actor is a {networks['actor']['unknown']}, which is not of this package: load_policy will not be "
            "able to build it.",
            stacklevel=2,
        )
    if pixels is None:
        _check_widths(loss, {key: len(columns[key]) for key in _KEYS})
    written = {
        "format_version": POLICY_FORMAT,
        **(about or {}),
        "columns": {key: list(columns[key]) for key in _KEYS},
        "action_range": list(action_range_of(loss)),
        "goal_range": None if goal_range is None else [bound.tolist() for bound in goal_range],
        "pixels": pixels,
        "networks": networks,
    }
    write_text(Path(run_dir) / POLICY_FILE, json.dumps(written, indent=2, allow_nan=False) + "\n")


def _check_widths(loss: LossModule, widths: Mapping[str, int]) -> None:
    """Lets the actor act once on as many columns as are said to be there."""
    rows = {key: np.zeros((1, widths[key]), np.float32) for key in ("observation", "desired_goal")}
    said = ", ".join(f"{number} of {key}" for key, number in widths.items())
    try:
        action = ActorPolicy(loss)(rows)
    except KeyError:
        return  # it reads something else as well
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"columns: {said} are not what the actor reads: {str(error).splitlines()[0]}") from error
    if action.shape[-1] != widths["action"]:
        raise ValueError(f"columns: {said}, but the actor's actions have {action.shape[-1]}.")


def _pixels(loss: LossModule) -> int | None:
    """Height and width of the pictures that the networks see, or ``None`` where they see states."""
    networks = (getattr(loss, "encoder_network", None), loss.actor_network)
    encoders = [part for network in networks if network is not None for part in network.modules()]
    return next((part.pixels for part in encoders if isinstance(part, PixelEncoder)), None)


def _networks(loss: LossModule) -> dict[str, Any]:
    """Descriptions of actor, value and score, by what they are for, and of the encoder that they share."""
    found: dict[str, Any] = {}
    actor = loss.actor_network
    if actor is not None:
        head, last = actor[0], actor[-1]
        found["actor"] = _described("actor_network", head, "module.0.module.")
        if last.distribution_class not in (IndependentNormal, ContaminatedNormal):
            # the action is the location, which is the mode of these distributions alone
            found["actor"] = {"unknown": last.distribution_class.__name__}
    scores = [name for name in _SCORES if getattr(loss, name, None) is not None]
    for role, names in (("value", ["value_network"]), ("score", scores[:1])):
        for name in names:
            network = getattr(loss, name, None)
            if network is not None:
                found[role] = {**_described(name, network, "module."), "energy": getattr(loss, "energy", None)}
    encoder = getattr(loss, "encoder_network", None)
    if encoder is not None:
        found["encoder"] = _described("encoder_network", encoder, "module.")
    return found


def _described(name: str, module: TensorDictModule, prefix: str) -> dict[str, Any]:
    try:
        network = describe_network(module.module)
    except TypeError:
        return {"unknown": type(module.module).__name__}
    return {"state": f"{name}_params.{prefix}", "in_keys": list(module.in_keys), "network": network}


def read_policy_file(run_dir: Path) -> dict[str, Any]:
    """What a run's file says.

    Raises:
        CheckpointError: if there is none, or it is damaged, incomplete or of another format.
    """
    path = run_dir / POLICY_FILE
    try:
        about = json.loads(path.read_text())
    except FileNotFoundError as error:
        hint = "it is no run folder"
        if (run_dir / "config.yaml").is_file():
            hint = f"of version 0.1.0 or of another recipe; smore_offline.py resume={run_dir} adds it to such a run"
        raise CheckpointError(f"{run_dir} has no {POLICY_FILE}: {hint}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not isinstance(about, dict) or about.get("format_version") != POLICY_FORMAT:
        found = about.get("format_version") if isinstance(about, dict) else type(about).__name__
        raise CheckpointError(f"{path} has format {found!r}; this version reads {POLICY_FORMAT}.")
    missing = {"columns", "action_range", "goal_range", "networks"} - set(about)
    if missing:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(sorted(missing))}.")
    return about
