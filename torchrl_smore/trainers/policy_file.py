"""``policy.json`` of a run: how its networks are built, and what they read."""

from __future__ import annotations

import json
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule, TensorDictSequential
from tensordict.utils import unravel_key
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
#: Inputs that there are for each network; an encoder is given whatever is a picture.
_INPUTS = {"actor": _KEYS[:2], "value": _KEYS[:2], "score": _KEYS}
_LARGEST = torch.finfo(torch.float32).max


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
        ValueError: if ``columns`` are others, or more or fewer than what the actor reads and writes; if a network reads
            a key that is none of them, whatever ``loss.set_keys`` has made of these; or for a ``goal_range`` of another
            width.
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
    path = Path(run_dir) / POLICY_FILE
    _check(path, written)
    write_text(path, json.dumps(written, indent=2, allow_nan=False) + "\n")


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
        last = actor[-1] if isinstance(actor, TensorDictSequential) else actor
        distribution = getattr(last, "distribution_class", None)
        # the action is the location, which is the mode of these distributions alone
        if distribution in (IndependentNormal, ContaminatedNormal):
            found["actor"] = _described(loss, "actor", "actor_network", actor[0], "module.0.module.")
        else:
            found["actor"] = {"unknown": getattr(distribution, "__name__", type(last).__name__)}
    scores = [name for name in _SCORES if getattr(loss, name, None) is not None]
    for role, names in (("value", ["value_network"]), ("score", scores[:1])):
        for name in names:
            network = getattr(loss, name, None)
            if network is not None:
                described = _described(loss, role, name, network, "module.")
                found[role] = {**described, "energy": getattr(loss, "energy", None)}
    encoder = getattr(loss, "encoder_network", None)
    if encoder is not None:
        found["encoder"] = _described(loss, "encoder", "encoder_network", encoder, "module.")
    return found


def _described(loss: LossModule, role: str, name: str, module: TensorDictModule, prefix: str) -> dict[str, Any]:
    try:
        network = describe_network(module.module)
    except TypeError:
        return {"unknown": type(module.module).__name__}
    described = {"state": f"{name}_params.{prefix}", "network": network}
    if role in _INPUTS:
        described["in_keys"] = [_input(loss, name, key, _INPUTS[role]) for key in module.in_keys]
    return described


def _input(loss: LossModule, name: str, key: NestedKey, inputs: Sequence[str]) -> str:
    """The input that is meant by a key of a network, found as :class:`ActorPolicy` finds it."""
    keys = {own: renamed for own, renamed in vars(loss.tensor_keys).items() if renamed is not None}
    named = [own for own, renamed in keys.items() if unravel_key(renamed) == unravel_key(key)]
    for found in (*named, _last(key)):
        if found in inputs:
            return found
    raise ValueError(
        f"{name} reads {key!r}, which is none of {', '.join(inputs)}: a key of another name is told by loss.set_keys."
    )


def _last(key: NestedKey) -> str:
    return key if isinstance(key, str) else str(key[-1])


def inputs_of(path: Path, networks: Mapping[str, Any], role: str) -> list[str]:
    """The inputs of a network, in the order in which it takes them.

    Older files hold the network's own keys, which may have other names: these are the inputs that are left, in the
    order of :func:`~torchrl_smore.modules.make_networks`.

    Args:
        path: of the file.
        networks: its descriptions.
        role: ``"actor"``, ``"value"`` or ``"score"``.

    Raises:
        CheckpointError: if there are more keys than inputs.
    """
    in_keys, inputs = networks[role]["in_keys"], _INPUTS[role]
    names = [_last(key) for key in in_keys]
    left = [key for key in inputs if key not in names]
    other = [name for name in names if name not in inputs]
    _expect(len(other) <= len(left), path, f"networks.{role}.in_keys", f"keys of {', '.join(inputs)}", in_keys)
    rest = iter(left)
    return [name if name in inputs else next(rest) for name in names]


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
            hint = (
                f"smore_offline.py resume={run_dir} adds it to a run of its own of an earlier version, and "
                "record_policy to one of another script"
            )
        raise CheckpointError(f"{run_dir} has no {POLICY_FILE}: {hint}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not isinstance(about, dict) or about.get("format_version") != POLICY_FORMAT:
        found = about.get("format_version") if isinstance(about, dict) else type(about).__name__
        raise CheckpointError(f"{path} has format {reprlib.repr(found)}; this version reads {POLICY_FORMAT}.")
    missing = {"columns", "action_range", "goal_range", "networks"} - set(about)
    if missing:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(sorted(missing))}.")
    _check(path, about)
    return about


def _check(path: Path, about: Mapping[str, Any]) -> None:
    """Raises :class:`CheckpointError` unless the parts that loading reads are such as :func:`record_policy` writes."""
    columns, pixels, networks = about["columns"], about.get("pixels"), about["networks"]
    whole = isinstance(columns, dict) and set(_KEYS) <= set(columns)
    _expect(whole, path, "columns", f"an object of {', '.join(_KEYS)}", columns)
    for key in _KEYS:
        _expect(_is_names(columns[key]), path, f"columns.{key}", "a list of names", columns[key])
    _expect(pixels is None or (type(pixels) is int and pixels > 0), path, "pixels", "null or a positive number", pixels)
    width, bounds = len(columns["action"]), about["action_range"]
    expected = f"two numbers or two lists of {width}, as there are columns"
    _expect(_is_numbers(bounds, 2) or _is_bounds(bounds, width), path, "action_range", expected, bounds)
    width, bounds = len(columns["desired_goal"]), about["goal_range"]
    expected = f"null or two lists of {width} numbers, as there are columns"
    _expect(bounds is None or _is_bounds(bounds, width), path, "goal_range", expected, bounds)
    _expect(isinstance(networks, dict), path, "networks", "an object of networks", networks)
    for role, described in networks.items():
        _check_network(path, role, described)


def _check_network(path: Path, role: str, described: Any) -> None:
    where, of_value = f"networks.{role}", role in ("value", "score")
    needed = ["state", "network", *(["in_keys"] if role in _INPUTS else []), *(["energy"] if of_value else [])]
    whole = isinstance(described, dict) and ("unknown" in described or set(needed) <= set(described))
    _expect(whole, path, where, f"an object of {', '.join(needed)}", described)
    if "unknown" in described:
        return
    _expect(isinstance(described["state"], str), path, f"{where}.state", "a string", described["state"])
    if role in _INPUTS:
        keys = described["in_keys"]
        named = isinstance(keys, list) and all(isinstance(key, str) or (key and _is_names(key)) for key in keys)
        _expect(named and keys, path, f"{where}.in_keys", "a list of keys", keys)


def _expect(holds: object, path: Path, what: str, expected: str, found: object) -> None:
    if not holds:
        # shortened, since it may be nested too deeply to be written out
        raise CheckpointError(f"{path}: {what}: expected {expected}, found {reprlib.repr(found)}.")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_numbers(value: Any, count: int) -> bool:
    """Whether a value is a list of so many numbers, each finite in float32."""
    numbers = isinstance(value, list) and all(type(number) in (int, float) for number in value)
    return numbers and len(value) == count and all(abs(number) <= _LARGEST for number in value)


def _is_bounds(value: Any, width: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_numbers(bound, width) for bound in value)
