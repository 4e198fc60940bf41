"""The trajectory store: one dataset of goal-conditioned trajectories, in memory or on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_smore.data import _disk
from torchrl_smore.data._composition import check_composition, select_meta
from torchrl_smore.data._episodes import stack_episodes
from torchrl_smore.data._files import reading
from torchrl_smore.data._ranges import Range, described_outside
from torchrl_smore.data._schema import (
    SCHEMA,
    check_frames,
    check_structure,
    check_trajectories,
    check_values,
    conformed,
    stacked,
)
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.storages import RowStorage

_logger = logging.getLogger("torchrl_smore")


class TrajectoryStore:
    """Transitions of many trajectories, flat and contiguous, in TED layout.

    Columns of ``data``, batch size ``[N]``, float32 unless said otherwise:

    - ``observation [N, ds]``, ``action [N, da]``, ``achieved_goal [N, dg]``, ``desired_goal [N, dg]``;
    - ``("next", "observation") [N, ds]``, ``("next", "achieved_goal") [N, dg]``;
    - ``("next", "reward") [N, 1]``: 1 where the goal is reached after the step, else 0;
    - ``("next", "done" | "terminated" | "truncated")``, bool ``[N, 1]``: done in the last row of each trajectory only;
    - ``traj_start``, ``traj_stop``, int64 ``[N]``: half-open interval of rows of the row's trajectory.

    Args:
        data: a TensorDict with exactly these columns; kept, not copied, unless it is a lazy stack. Numbers of
            another type become float32, with a warning that names their columns; columns ``[N]`` become ``[N, 1]``;
            without ``("next", "truncated")``, what is done and not terminated is truncated. What is changed is changed
            in a copy.
        meta: what is known about the data (task, seed, versions, ...), expressible in JSON; copied.
            ``"composition"``, if given, lists ``{"behaviour": str, "num_trajectories": int, ...}`` in the order of the
            trajectories.
        frames: pictures of the states, uint8 ``[N + K, height, width, 3]``, each once: the ``T + 1`` of a trajectory
            one after the other; see :attr:`frame_index`. Kept, not copied. ``None``: there are none.

    Raises:
        DatasetError: at the first fault, naming the key, what was expected and what was found.
    """

    data: TensorDictBase
    meta: dict[str, Any]
    frames: Tensor | None

    def __init__(
        self, data: TensorDictBase, meta: Mapping[str, Any] | None = None, *, frames: Tensor | None = None
    ) -> None:
        data = conformed(data)
        check_structure(data)
        data = stacked(data)
        check_values(data)
        self._set(data, meta, frames)

    def _set(self, data: TensorDictBase, meta: Mapping[str, Any] | None, frames: Tensor | None) -> None:
        self._start, self._stop = check_trajectories(data)
        self.data, self.meta, self.frames = data, _json_copy(meta or {}), frames
        check_composition(self.meta, self.num_trajectories)
        if frames is not None:
            check_frames(frames, self.num_transitions + self.num_trajectories)

    @classmethod
    def _of_valid(cls, data: TensorDictBase, meta: Mapping[str, Any], frames: Tensor | None = None) -> TrajectoryStore:
        """Makes a store of columns whose values need not be read again."""
        store = cls.__new__(cls)
        check_structure(data)
        store._set(data, meta, frames)
        return store

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Mapping[str, Any]], meta: Mapping[str, Any] | None = None
    ) -> TrajectoryStore:
        """Builds a store from episodes of ``T >= 2`` steps each; ``T`` may differ between episodes.

        Args:
            episodes: mappings of arrays: ``observation [T+1, ds]``, ``achieved_goal [T+1, dg]``, ``action [T, da]``
                (or, of floating point, ``[T]``), ``desired_goal [dg]`` or ``[T, dg]``, ``reward [T]`` of 0 and 1, and
                optionally ``terminated [T]`` (bool, True in the last step at most). An episode that did not terminate
                is marked truncated. Numbers become float32; whole ones that this rounds are warned of.
            meta: see the class.

        Raises:
            DatasetError: naming the episode or row, the key, what was expected and what was found.
        """
        return cls(stack_episodes(episodes), meta)

    @property
    def num_transitions(self) -> int:
        """Number of rows, ``N``."""
        return int(self.data.shape[0])

    @property
    def num_trajectories(self) -> int:
        """Number of trajectories, ``K``."""
        return int(self._start.shape[0])

    @property
    def observation_dim(self) -> int:
        """Width of an observation, ``ds``."""
        return int(self.data.get("observation").shape[-1])

    @property
    def action_dim(self) -> int:
        """Width of an action, ``da``."""
        return int(self.data.get("action").shape[-1])

    @property
    def goal_dim(self) -> int:
        """Width of a goal, ``dg``."""
        return int(self.data.get("desired_goal").shape[-1])

    @property
    def trajectory_bounds(self) -> tuple[Tensor, Tensor]:
        """First row and one past the last row of each trajectory, int64, shape ``[K]`` each."""
        return self._start, self._stop

    @property
    def frame_index(self) -> Tensor:
        """Frame of the observation of each row, int64 ``[N]``; that of its next observation is the one after it."""
        rows = torch.arange(self.num_transitions, device=self._start.device)
        return rows + torch.bucketize(rows, self._start, right=True) - 1

    def with_frames(self, frames: Tensor | None) -> TrajectoryStore:
        """The same columns, not copied, with other frames or with none.

        Raises:
            DatasetError: if they are no pictures of all the states.
        """
        return self._of_valid(self.data, self.meta, frames)

    @property
    def sha256(self) -> str:
        """Digest of keys, dtypes, shapes and bytes of ``data`` and frames, the same in memory and on disk.

        ``meta`` does not count.
        """
        return _disk.content_digest(self.data, self.frames)

    def __len__(self) -> int:
        return self.num_transitions

    def __repr__(self) -> str:
        return (
            f"TrajectoryStore(num_trajectories={self.num_trajectories}, num_transitions={self.num_transitions}, "
            f"observation_dim={self.observation_dim}, goal_dim={self.goal_dim}, action_dim={self.action_dim})"
        )

    def select_trajectories(self, index: Tensor) -> TrajectoryStore:
        """Copies the given trajectories, in the given order, into a store of their own, with their frames.

        ``meta["composition"]`` follows the selection where the order of its parts survives, and is dropped otherwise.
        ``"clipped_actions"`` and ``"dropped_rows"`` are dropped: they count rows of this store.

        Args:
            index: numbers of trajectories in ``[0, K)``, integer, shape ``[M]`` with ``M > 0``; may repeat.

        Raises:
            DatasetError: if ``index`` is empty, of another shape or dtype, or out of range.
        """
        index = self._checked_index(index)
        start, length = self._start[index], (self._stop - self._start)[index]
        stop = length.cumsum(0)
        rows = (start - (stop - length)).repeat_interleave(length) + torch.arange(int(stop[-1]), device=index.device)
        data = self.data.select(*(key for key in SCHEMA if key not in ("traj_start", "traj_stop")))[rows]
        data.set("traj_start", (stop - length).repeat_interleave(length))
        data.set("traj_stop", stop.repeat_interleave(length))
        frames = None
        if self.frames is not None:
            # a trajectory has one state more than transitions
            states, first = length + 1, start + index
            last = states.cumsum(0)
            chosen = (first - (last - states)).repeat_interleave(states) + torch.arange(
                int(last[-1]), device=index.device
            )
            frames = self.frames[chosen.to(self.frames.device)]
        return self._of_valid(data, select_meta(self.meta, index), frames)

    def _checked_index(self, index: Tensor) -> Tensor:
        index = torch.as_tensor(index, device=self._start.device)
        if index.ndim != 1 or index.numel() == 0 or index.dtype.is_floating_point or index.dtype == torch.bool:
            raise DatasetError(
                f"expected trajectory numbers as integers of shape [M], M > 0, found {index.dtype} {list(index.shape)}."
            )
        if index.min() < 0 or index.max() >= self.num_trajectories:
            raise DatasetError(
                f"expected trajectory numbers in [0, {self.num_trajectories}), found {index.min()} to {index.max()}."
            )
        return index.long()

    def check_task(
        self,
        *,
        observation_dim: int,
        goal_dim: int,
        action_dim: int,
        name: str,
        action_range: Range = (-1.0, 1.0),
        goal_range: Range | None = None,
        goal_slack: float = 0.0,
    ) -> None:
        """Checks that the columns are as wide as a task's spaces, and warns of rows that lie outside of them.

        The warnings (logger ``torchrl_smore``) say how many rows there are, which is the first and what it holds; such
        rows stay as they are, see :meth:`with_clipped_actions`.

        Args:
            observation_dim: width of the task's observation.
            goal_dim: width of the task's goal.
            action_dim: width of the task's action.
            name: the task's name, for the message.
            action_range: smallest and largest action, one number for all components or one for each.
            goal_range: the same of the goals that the task asks for; ``None``: not known.
            goal_slack: how far beyond ``goal_range`` a desired goal may lie, in the unit of the goal, not negative.

        Raises:
            DatasetError: if a width differs.
            ValueError: if a range is not as wide as its column.
        """
        expected = {"observation_dim": observation_dim, "goal_dim": goal_dim, "action_dim": action_dim}
        found = {key: getattr(self, key) for key in expected}
        if found != expected:
            raise DatasetError(f"the dataset does not fit the task {name!r}: expected {expected}, found {found}.")
        for key, allowed, slack in (("action", action_range, 0.0), ("desired_goal", goal_range, goal_slack)):
            said = None if allowed is None else described_outside(self.data.get(key), allowed, slack)
            if allowed is not None and said is not None:
                _logger.warning("%r lies outside of what %s allows, %s, in %s", key, name, list(allowed), said)

    def with_clipped_actions(self, low: float = -1.0, high: float = 1.0) -> TrajectoryStore:
        """The same columns, not copied, with actions clipped to a range; ``meta`` says how many rows that changed.

        Args:
            low: smallest action.
            high: largest action, above ``low``.

        Raises:
            ValueError: if ``low`` is not below ``high``.
        """
        if not low < high:
            raise ValueError(f"expected low below high, got {low} and {high}.")
        action = self.data.get("action")
        clipped = action.clamp(low, high)
        data = self.data.copy().set("action", clipped)
        changed = int((clipped != action).any(-1).sum())
        return self._of_valid(data, {**self.meta, "clipped_actions": changed}, self.frames)

    def discounted_returns(self, gamma: float) -> Tensor:
        """Discounted return of each trajectory under its stored goal, float64, shape ``[K]``.

        Args:
            gamma: discount, dimensionless, in ``[0, 1]``; the first step's reward is not discounted.
        """
        length = self._stop - self._start
        step = torch.arange(self.num_transitions, device=length.device) - self.data.get("traj_start")
        reward = self.data.get(("next", "reward")).squeeze(-1).double()
        number = torch.arange(self.num_trajectories, device=length.device).repeat_interleave(length)
        found = torch.zeros(self.num_trajectories, dtype=torch.float64, device=length.device)
        # a power of whole numbers would be float32
        return found.index_add_(0, number, reward * gamma ** step.double())

    def summary(self, gamma: float = 0.99) -> str:
        """A few lines for people: counts, share of successful trajectories, mean discounted return.

        Args:
            gamma: discount of the return, dimensionless, in ``[0, 1]``.
        """
        length = self._stop - self._start
        last = self.data.get(("next", "reward")).squeeze(-1).double()[self._stop - 1]
        reached = self.discounted_returns(1.0) > 0
        lines = [
            f"trajectories {self.num_trajectories:,} of {int(length.min())} to {int(length.max())} transitions, "
            f"{self.num_transitions:,} in all",
            f"observation {self.observation_dim}, goal {self.goal_dim}, action {self.action_dim}",
            f"at the goal in some step: {reached.double().mean():.1%} of trajectories, "
            f"in the last step: {last.mean():.1%}",
            f"mean discounted return at {gamma}: {self.discounted_returns(gamma).mean():.2f}",
        ]
        if self.meta.get("dropped_rows"):
            lines += [f"{self.meta['dropped_rows']:,} transitions of {self.meta.get('source', 'the file')} left out"]
        if self.frames is not None:
            lines += [f"frames of {self.frames.shape[1]} x {self.frames.shape[2]} pixels, one for each state"]
        lines += [
            f"  {part.get('behaviour', 'part')}: {part['num_trajectories']:,} trajectories"
            for part in self.meta.get("composition", [])
        ]
        return "\n".join(lines)

    def to_storage(self, device: torch.device | str | None = None, *, step_count: bool = False) -> RowStorage:
        """A full TorchRL storage of the ``N`` rows, for a ``ReplayBuffer`` or ``TensorDictReplayBuffer``.

        On the store's own device it shares memory with the store, so extending the buffer would overwrite ``data``.

        Args:
            device: where the rows shall lie; where they are by default.
            step_count: whether rows have ``"step_count"`` as those of TorchRL's ``StepCounter``, the number of the row
                in its trajectory, int64 ``[N, 1]``.
        """
        data = self.data if device is None else self.data.to(device)
        if step_count:
            start = data.get("traj_start")
            steps = torch.arange(len(start), device=start.device) - start
            data = data.copy().set("step_count", steps.unsqueeze(-1))
        return RowStorage(data, device=data.get("action").device)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the store to a folder, atomically.

        The columns form a TensorDict memmap folder, ``path/data``; ``path/meta.json`` holds ``meta``, the SHA-256 of
        each file and that of its own content; frames are in ``path/frames.memmap``. Everything is written to a hidden
        folder beside ``path`` and renamed when whole. On an error nothing is left behind and a store that was there
        stays as it was; a killed process may leave the hidden folder, which the next ``save`` to ``path`` removes.
        Replacing takes two renames: killed between them, ``path`` is missing, :meth:`load` names the hidden folder with
        the previous store, and the next ``save`` to ``path`` first puts it back.

        Args:
            path: the folder; its parents are made.
            overwrite: whether a store at ``path`` may be replaced.

        Raises:
            FileExistsError: if ``path`` exists and ``overwrite`` is False.
            DatasetError: if ``path`` holds something else than a trajectory store, or ``meta`` is too large to be read.
            OSError: if the disk is full or refuses the write.
        """
        _disk.write(Path(path), self.data, _json_copy(self.meta), overwrite=overwrite, frames=self.frames)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> TrajectoryStore:
        """Maps a saved store into memory; what is then written to ``data`` stays in memory. Unpickles nothing.

        Stores that were saved before ``meta.json`` had a checksum are loaded, with a warning, once for each.

        Args:
            path: the folder.
            verify: whether to read everything once, for checksums and values. Without it, only files, sizes, shapes
                and trajectory bounds are checked.

        Raises:
            DatasetError: if the folder is no store, of another format version, incomplete, damaged or altered.
        """
        with reading(path, "a trajectory store"):
            data, meta, frames = _disk.read(Path(path), verify=verify)
            return cls(data, meta, frames=frames) if verify else cls._of_valid(data, meta, frames)


def _json_copy(meta: Mapping[str, Any]) -> dict[str, Any]:
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(meta), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"meta must be expressible in JSON: {error}.") from error
    return copied
