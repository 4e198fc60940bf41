"""Goal-transition sampling for any TorchRL replay buffer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import RandomSampler
from torchrl.data.replay_buffers import SampleUnit, Storage

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.goals import (
    NUM_UNIFORMS,
    STRATEGIES,
    goal_transition_rows,
    trajectory_stop,
    uniform_index,
)

ReachedFn = Callable[[TensorDictBase], Tensor]
_Cache = tuple["weakref.ref[Storage]", tuple[int, int], Tensor, Tensor]


def stored_goal_reached(data: TensorDictBase, reward_key: NestedKey = ("next", "reward")) -> Tensor:
    """Rows whose stored reward is positive, bool, shape ``[N]``: the goal is reached after the step (0/1 rewards)."""
    return (data.get(reward_key) > 0).reshape(data.shape[0], -1).any(-1)


def stored_stop(data: TensorDictBase) -> Tensor:
    """End of the trajectory of every row, int64, shape ``[N]``: from ``("next", "done")``, else from ``traj_stop``.

    The flags come first because row numbers are wrong once rows were appended to others, and flags are not.

    Raises:
        ValueError: if the last row is not done.
    """
    done = data.get(("next", "done"), None)
    if done is None:
        return data.get("traj_stop").reshape(-1)
    return trajectory_stop(done.reshape(-1))


class GoalTransition(SampleUnit):
    """Expands each anchor into the rows of one SMORe sample.

    An index ``[B]`` becomes ``[B, 4]``, the columns being: the transition i; the row k whose goal it may be given; a
    goal transition m, which enters its own goal; and a row that reaches its *stored* goal (m again if the dataset has
    none). So a buffer with this unit samples a ``[B, 4]`` batch, which
    :class:`~torchrl_smore.data.HindsightGoalTransform` turns into the nested batch of
    :class:`~torchrl_smore.objectives.SMORELoss`. The rows follow
    :func:`~torchrl_smore.functional.goals.goal_transition_rows`; random numbers come from the buffer's generator.

    Trajectories end where ``("next", "done")`` says (data without that key: ``traj_stop``), read once for each state of
    the storage. One-dimensional storages only.

    Args:
        strategy: ``"future"``, ``"geometric"``, ``"final"`` or ``"random"``.
        gamma: used by ``"geometric"``.
        coupled: let goal transitions share anchor and goal with the offline transitions.
        reached: maps the stored data to the rows that reach their stored goal, bool ``[N]``; by default those with a
            positive reward.

    Raises:
        ValueError: for an unknown strategy.
    """

    def __init__(
        self,
        strategy: str = "future",
        *,
        gamma: float = 0.99,
        coupled: bool = False,
        reached: ReachedFn = stored_goal_reached,
    ) -> None:
        if strategy not in STRATEGIES:
            raise unknown_name("goal strategy", strategy, STRATEGIES)
        self.strategy = strategy
        self.gamma = gamma
        self.coupled = coupled
        self.reached = reached
        self._cache: _Cache | None = None

    def __getstate__(self) -> dict[str, Any]:
        # the cache belongs to a storage of this process
        return {**self.__dict__, "_cache": None}

    def expand(
        self, index: Tensor | tuple[Tensor, ...], info: dict[str, Any], storage: Storage
    ) -> tuple[Tensor, dict[str, Any]]:
        """See :class:`~torchrl.data.replay_buffers.SampleUnit`.

        Raises:
            NotImplementedError: for a storage of more than one dimension.
            ValueError: if the last row of the storage, or the one written last, does not end its trajectory.
        """
        if isinstance(index, tuple) or index.ndim != 1:
            raise NotImplementedError("GoalTransition works on one-dimensional storages with a flat index.")
        stop, reached = self._bounds(storage)
        index = index.to(stop.device)
        uniform = torch.rand(
            index.shape[0], NUM_UNIFORMS, dtype=torch.float64, device=stop.device, generator=_generator(storage)
        )
        rows = goal_transition_rows(
            uniform,
            stop,
            reached,
            her_ratio=1.0,
            strategy=self.strategy,
            gamma=self.gamma,
            coupled=self.coupled,
            index=index,
        )
        arriving = rows.q_index
        if reached.shape[0] > 0:
            arriving = reached[uniform_index(uniform[:, -1], 0, reached.shape[0])]
        return torch.stack([rows.index, rows.goal_index, rows.q_index, arriving], -1), info

    def _bounds(self, storage: Storage) -> tuple[Tensor, Tensor]:
        """Trajectory ends ``[N]`` and rows that reach their stored goal ``[R]``, cached until the storage changes."""
        state = (len(storage), int(storage._mutation_revision))
        # by reference and not by id, which a later storage may be given again
        if self._cache is None or self._cache[0]() is not storage or self._cache[1] != state:
            data = storage[: len(storage)]
            _check_closed(data, storage)
            reached = self.reached(data).nonzero().squeeze(-1)
            self._cache = (weakref.ref(storage), state, stored_stop(data), reached)
        return self._cache[2], self._cache[3]


class GoalTransitionSampler(RandomSampler):
    """:class:`GoalTransition` as a sampler, for dataset classes that take ``sampler=`` and no ``sample_unit=``.

    Args:
        unit: the expansion; a default :class:`GoalTransition` if ``None``.
    """

    def __init__(self, unit: GoalTransition | None = None) -> None:
        super().__init__()
        self.unit = unit or GoalTransition()

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Uniform anchors, expanded to an index ``[batch_size, 4]``."""
        index, info = super().sample(storage, batch_size)
        return self.unit.expand(index, info, storage)


def _check_closed(data: TensorDictBase, storage: Storage) -> None:
    """Refuses a full storage that is being overwritten in the middle of a trajectory."""
    last, done = storage._last_cursor_index, data.get(("next", "done"), None)
    if last is not None and done is not None and not bool(done.reshape(-1)[int(last)]):
        raise ValueError(f"row {int(last)}, written last, must be done: its trajectory would run into older rows.")


def _generator(storage: Storage) -> torch.Generator | None:
    return getattr(storage, "_rng", None)
