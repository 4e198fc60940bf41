"""Policies and values of finished or running runs, without the recipe, dataset or simulator that made them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.baselines.contrastive import Energy, pair_energy
from torchrl_smore.modules import (
    Encoded,
    PairEmbedding,
    PixelEncoder,
    Standardize,
    build_network,
)
from torchrl_smore.trainers.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint
from torchrl_smore.trainers.policy_file import POLICY_FILE, inputs_of, read_policy_file
from torchrl_smore.trainers.run_record import Array, RunRecord

Which = Literal["best", "last"]

#: Folder of a run with the networks of each seed's best evaluation; see :class:`~torchrl_smore.trainers.KeepBest`.
BEST_FOLDER = "best"


class _Mean(nn.Module):
    """The mode of a Gaussian head, clipped to the range of actions; ``reads`` are its inputs in the head's order."""

    low: Tensor
    high: Tensor

    def __init__(self, head: nn.Module, reads: Sequence[str], low: Any, high: Any) -> None:
        super().__init__()
        self.head, self.reads = head, tuple(reads)
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32))

    def forward(self, observation: Tensor, goal: Tensor) -> Tensor:
        given = {"observation": observation, "desired_goal": goal}
        loc, _ = self.head(*_as_seen(self.head, *(given[key] for key in self.reads)))
        return cast("Tensor", loc.clamp(self.low, self.high))


class _Smallest(nn.Module):
    """The smallest output of the members of an ensemble, shape ``[*B, 1]``."""

    def __init__(self, members: Sequence[nn.Module], energy: str | None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.energy = energy if _is_pair(members[0]) else None

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs = [member(*_as_seen(member, *inputs)) for member in self.members]
        if self.energy is not None:
            pairs = [output.unbind(-2) for output in outputs]
            outputs = [pair_energy(phi, psi, cast("Energy", self.energy)).unsqueeze(-1) for phi, psi in pairs]
        return torch.stack(outputs).amin(0)


def _as_seen(network: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Inputs as float32, but for the pictures of a network that encodes them."""
    encodes = isinstance(network, Encoded)
    return [x if encodes and x.dtype == torch.uint8 else x.to(torch.float32) for x in inputs]


def _is_pair(network: nn.Module) -> bool:
    return isinstance(network.network if isinstance(network, (Encoded, Standardize)) else network, PairEmbedding)


class TrainedPolicy:
    """The deterministic policy of a run: ``policy(observation, goal) -> action``; :func:`load_policy` makes it.

    Attributes:
        module: reads ``observation`` and ``desired_goal`` and writes ``action``; standardisation and range are inside.
        record: where it comes from.
        device: where it computes.
    """

    def __init__(self, module: TensorDictModule, record: RunRecord, device: torch.device) -> None:
        self.module, self.record, self.device = module, record, device

    @torch.no_grad()
    def __call__(self, observation: Array, goal: Array) -> Array:
        """Actions ``[*B, A]`` in the task's range, float32, of the type of ``observation``.

        Args:
            observation: shape ``[*B, O]`` or ``[O]``, a numpy array or a torch tensor of real numbers; of a run from
                pictures uint8, ``[*B, H, W, 3]`` or ``[H, W, 3]``.
            goal: shape ``[*B, G]`` or ``[G]``; of a run from pictures as the observation.

        Raises:
            TypeError: see :meth:`RunRecord.checked`.
            ValueError: see :meth:`RunRecord.checked`.
        """
        inputs, kind = self.record.checked(observation=observation, desired_goal=goal)
        action = self.module.module(*(x.to(self.device) for x in inputs))
        return _as(kind, action, inputs[0])

    def __repr__(self) -> str:
        return _repr(self, self.record)


class TrainedValue:
    """Value and score of a run; :func:`load_value` makes it.

    ``value(observation, goal)`` is the state value, ``value.score(observation, goal, action)`` the score or Q-value, of
    an ensemble the smallest, and of contrastive methods the energy.

    Attributes:
        module: reads ``observation`` and ``desired_goal`` and writes ``state_value``; ``None`` for methods without one.
        score_module: reads ``action`` as well and writes ``score``; ``None`` for methods without one.
        record: where they come from.
        device: where they compute.
    """

    def __init__(
        self,
        module: TensorDictModule | None,
        score_module: TensorDictModule | None,
        record: RunRecord,
        device: torch.device,
    ) -> None:
        self.module, self.score_module, self.record, self.device = module, score_module, record, device

    def __call__(self, observation: Array, goal: Array) -> Array:
        """State values ``[*B]``, float32, of the type of ``observation``; arguments as of :class:`TrainedPolicy`.

        Raises:
            TypeError: see :meth:`RunRecord.checked`.
            ValueError: see :meth:`RunRecord.checked`; also if the method has no state value.
        """
        return self._of(self.module, "state value", observation=observation, desired_goal=goal)

    def score(self, observation: Array, goal: Array, action: Array) -> Array:
        """Scores ``[*B]``, float32, of the type of ``observation``; ``action`` is ``[*B, A]`` or ``[A]``.

        Raises:
            TypeError: see :meth:`RunRecord.checked`.
            ValueError: see :meth:`RunRecord.checked`; also if the method has no score.
        """
        return self._of(self.score_module, "score", observation=observation, desired_goal=goal, action=action)

    @torch.no_grad()
    def _of(self, module: TensorDictModule | None, what: str, **values: Any) -> Any:
        if module is None:
            raise ValueError(f"method {self.record.about.get('method')!r} of {self.record.path} has no {what}.")
        inputs, kind = self.record.checked(**values)
        by_key = dict(zip(values, inputs))
        out = module.module(*(by_key[key].to(self.device) for key in module.in_keys))
        return _as(kind, out.squeeze(-1), inputs[0])

    def __repr__(self) -> str:
        return _repr(self, self.record)


def _as(kind: type, out: Tensor, like: Tensor) -> Any:
    return out.to(like.device) if kind is Tensor else out.cpu().numpy()


def _repr(loaded: object, record: RunRecord) -> str:
    about = ", ".join(f"{key}={record.about[key]!r}" for key in ("task", "method") if key in record.about)
    return f"{type(loaded).__name__}({about}, seed={record.seed}, step={record.step})"


def load_policy(
    path: str | Path,
    which: Which = "last",
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    goal_margin: float | None = 1.0,
) -> TrainedPolicy:
    """Loads the deterministic policy of a run.

    Args:
        path: a run folder, or a checkpoint folder within one.
        which: of a run folder, ``"last"``: the newest checkpoint; ``"best"``: the networks of the seed's best
            evaluation. (Chosen by its evaluation episodes, it looks better on these than it is.) Of a checkpoint
            there is no choice: ``"best"`` refuses one that is not that of a best evaluation.
        seed: of a run of several seeds, which; by default the first of the run, or of those with a best evaluation.
        device: where to compute.
        goal_margin: goals farther outside those of the data than so many times their extent are refused: mostly they
            have another unit. ``None`` takes any.

    Returns:
        The policy, in evaluation mode and without gradient.

    Raises:
        CheckpointError: if there is no such run or checkpoint, it is half written, damaged, of another version, or its
            networks are not this package's.
        ValueError: for another ``which``, ``"best"`` of a checkpoint, a seed that the run does not have, or a negative
            ``goal_margin``.
    """
    record, networks, state = _read(path, which, seed, goal_margin)
    head = _loaded(record, networks, "actor", state)[0]
    low, high = record.about["action_range"]
    mean = _Mean(head, inputs_of(record.path / POLICY_FILE, networks, "actor"), low, high)
    module = TensorDictModule(mean, ["observation", "desired_goal"], ["action"])
    return TrainedPolicy(_ready(module, device), record, torch.device(device))


def load_value(
    path: str | Path,
    which: Which = "last",
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    goal_margin: float | None = 1.0,
) -> TrainedValue:
    """Loads value and score of a run.

    Args:
        path: see :func:`load_policy`.
        which: see :func:`load_policy`.
        seed: see :func:`load_policy`.
        device: see :func:`load_policy`.
        goal_margin: see :func:`load_policy`.

    Returns:
        The networks that the run's method has; a call of one that it has not raises ``ValueError``.

    Raises:
        CheckpointError: see :func:`load_policy`.
        ValueError: see :func:`load_policy`; also if the run's method has neither.
    """
    record, networks, state = _read(path, which, seed, goal_margin)
    modules: dict[str, TensorDictModule | None] = {}
    for role, key in (("value", "state_value"), ("score", "score")):
        modules[role] = None
        if role in networks:
            members = _loaded(record, networks, role, state)
            energy, inputs = networks[role]["energy"], inputs_of(record.path / POLICY_FILE, networks, role)
            if _is_pair(members[0]) and energy not in get_args(Energy):
                raise CheckpointError(
                    f"{record.path / POLICY_FILE}: networks.{role}.energy: expected one of "
                    f"{', '.join(get_args(Energy))}, found {energy!r}."
                )
            modules[role] = _ready(TensorDictModule(_Smallest(members, energy), inputs, [key]), device)
    if modules["value"] is None and modules["score"] is None:
        raise ValueError(f"method {record.about.get('method')!r} of {record.path} has neither value nor score.")
    return TrainedValue(modules["value"], modules["score"], record, torch.device(device))


def run_seeds(path: str | Path, which: Which = "last") -> tuple[int, ...]:
    """The seeds whose networks a run holds.

    Args:
        path: see :func:`load_policy`.
        which: see :func:`load_policy`.

    Returns:
        The seeds in the order of the run.

    Raises:
        CheckpointError: see :func:`load_policy`.
        ValueError: see :func:`load_policy`.
    """
    if which not in get_args(Which):
        raise unknown_name("which", which, get_args(Which))
    run_dir, checkpoint = _find(Path(path), which)
    read_policy_file(run_dir)  # without one it is no run folder
    if checkpoint is None and which == "best":
        return tuple(int(folder.name[5:]) for folder in _best_folders(run_dir))
    state, _ = load_checkpoint(checkpoint or _newest(run_dir, which, None))
    return tuple(_losses(state))


def _ready(module: TensorDictModule, device: torch.device | str) -> TensorDictModule:
    return module.to(device).eval().requires_grad_(False)


def _read(
    path: str | Path, which: Which, seed: int | None, goal_margin: float | None
) -> tuple[RunRecord, dict[str, Any], dict[str, Tensor]]:
    """Record, descriptions of networks, and the state of the seed's loss."""
    if which not in get_args(Which):
        raise unknown_name("which", which, get_args(Which))
    if goal_margin is not None and not goal_margin >= 0.0:
        raise ValueError(f"goal_margin must not be negative, got {goal_margin}.")
    run_dir, checkpoint = _find(Path(path), which)
    about = read_policy_file(run_dir)
    if checkpoint is None:
        checkpoint = _newest(run_dir, which, seed)
    state, meta = load_checkpoint(checkpoint)
    losses = _losses(state)
    chosen = next(iter(losses)) if seed is None else seed
    if chosen not in losses:
        raise ValueError(f"{checkpoint} has no seed {chosen!r}; it has {', '.join(map(str, losses))}.")
    for key in ("task", "method"):
        if key in meta and key in about and meta[key] != about[key]:
            raise CheckpointError(f"{checkpoint} is of {key} {meta[key]}, its {POLICY_FILE} of {about[key]}.")
    record = RunRecord(run_dir, checkpoint, int(meta["step"]), int(chosen), about, goal_margin)
    return record, about["networks"], losses[chosen]


def _losses(state: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
    """The state of the loss of each seed; one that was trained alone is seed 0."""
    update = state["update"]
    return dict(zip(update["seeds"], update["losses"])) if "losses" in update else {0: update["loss"]}


def _find(path: Path, which: Which) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint if ``path`` is one; with ``which="best"`` that must be a best one."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; expected that of a run or of a checkpoint.")
    if not (path / "meta.json").is_file():
        return path, None
    for parent in path.resolve().parents[:3]:
        if (parent / POLICY_FILE).is_file():
            if which == "best" and path.resolve().parts[len(parent.parts)] != BEST_FOLDER:
                raise ValueError(
                    f"which=best chooses among what a run has kept, and {path} is one checkpoint of it: give the run's "
                    f"folder, {parent}, for its best, or leave which out for this checkpoint."
                )
            return parent, path
    raise CheckpointError(f"no {POLICY_FILE} above the checkpoint {path}: it belongs into the run's folder.")


def _newest(run_dir: Path, which: Which, seed: int | None) -> Path:
    if which == "last":
        return latest_checkpoint(run_dir / "checkpoint")
    folders = _best_folders(run_dir)
    if seed is None:
        return latest_checkpoint(folders[0])
    names = [folder.name[5:] for folder in folders]
    if str(seed) not in names:
        raise ValueError(f"{run_dir} has no seed {seed}; it has {', '.join(names)}.")
    return latest_checkpoint(folders[names.index(str(seed))])


def _best_folders(run_dir: Path) -> list[Path]:
    """Folders ``seed_<seed>`` of a run, in the order of its seeds; at least one."""
    found = [folder for folder in (run_dir / BEST_FOLDER).glob("seed_*") if folder.name[5:].isdecimal()]
    if not found:
        raise CheckpointError(f"{run_dir} has no networks of a best evaluation: it has not been evaluated so far.")
    by_seed = {int(folder.name[5:]): folder for folder in found}
    order = sorted(by_seed)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, CheckpointError):
        own = json.loads((latest_checkpoint(by_seed[order[0]]) / "meta.json").read_text())["seeds"]
        # of a version that did not write it, by number
        order.sort(key=own.index)
    return [by_seed[seed] for seed in order]


def _loaded(record: RunRecord, networks: Mapping[str, Any], role: str, state: Mapping[str, Tensor]) -> list[nn.Module]:
    """The members of a network (one where it is no ensemble) with their weights, behind the encoder that they share."""
    described = networks.get(role)
    if described is None:
        raise CheckpointError(f"{record.path / POLICY_FILE} describes no {role}.")
    if "unknown" in described:
        raise CheckpointError(
            f"the {role} of {record.path} is a {described['unknown']}, which is not of this package: it cannot be "
            f"built from {POLICY_FILE}."
        )
    prefix = described["state"]
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        network = build_network(described["network"])
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        if set(shapes) != set(own):
            raise ValueError(f"expected {sorted(shapes)}, found {sorted(own)}")
        key, shape = next(iter(shapes.items()))
        count = len(own[key]) if own[key].ndim > len(shape) else 1
        members = [network, *(build_network(described["network"]) for _ in range(count - 1))]
        for number, member in enumerate(members):
            rows = {key: value[number] if value.ndim > len(shapes[key]) else value for key, value in own.items()}
            member.load_state_dict(rows)
    except Exception as error:  # what a damaged description makes a constructor raise depends on where it is damaged
        raise CheckpointError(f"{record.checkpoint}: its {role} does not fit {POLICY_FILE}: {error}.") from error
    sees = isinstance(network, Encoded)  # an actor that has an encoder of its own beside the shared one
    if role == "encoder" or "encoder" not in networks or sees:
        return members
    (encoder,) = _loaded(record, networks, "encoder", state)
    if not isinstance(encoder, PixelEncoder):
        raise CheckpointError(f"{record.path / POLICY_FILE} describes a {type(encoder).__name__} as encoder.")
    return [Encoded(encoder, member) for member in members]
