"""Goal-transition sampling for any TorchRL replay buffer."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import RandomSampler
from torchrl.data.replay_buffers import SampleUnit, Storage, TensorStorage

from torchrl_smore.functional.goals import (
    NUM_UNIFORMS,
    Strategy,
    check_strategy,
    cumulative_weights,
    first_row_away,
    goal_transition_rows,
    trajectory_stop,
)

ReachedFn = Callable[[TensorDictBase], Tensor]
#: From the stored data, in the order of its trajectories, to a weight for each row, ``[N]``; ``None``: all alike.
WeightsFn = Callable[[TensorDictBase], Tensor | None]
#: Where collectors of TorchRL write which trajectory a row belongs to.
TRAJECTORY_KEY: NestedKey = ("collector", "traj_ids")
_FLAGS = ("done", "terminated", "truncated")
_logger = logging.getLogger("torchrl_smore")


def stored_goal_reached(data: TensorDictBase, reward_key: NestedKey = ("next", "reward")) -> Tensor:
    """Rows whose stored reward is positive, bool, shape ``[N]``: the goal is reached after the step (0/1 rewards).

    Data without rewards have no such row; that is logged, as are rewards none of which is positive, which another
    convention (-1 and 0) may be the reason of.
    """
    reward = data.get(reward_key, None)
    if reward is None:
        _logger.warning("no %s in the data: no row counts as one that reaches its stored goal", reward_key)
        return torch.zeros(data.shape[0], dtype=torch.bool, device=data.device)
    mask = (reward > 0).reshape(data.shape[0], -1).any(-1)
    if not bool(mask.any()) and bool((reward < 0).any()):
        _logger.warning(
            "no reward is positive (they lie in [%g, %g]), so no row counts as one that reaches its stored goal. If 0 "
            "is the reward at the goal, pass reached=lambda data: data['next', 'reward'].squeeze(-1) >= 0.",
            float(reward.min()),
            float(reward.max()),
        )
    return mask


def stored_stop(data: TensorDictBase, *, open_end: bool = False) -> Tensor:
    """End of the trajectory of every row, int64, shape ``[N]``: from the flags of the data, else from ``traj_stop``.

    A trajectory ends where ``("next", done | terminated | truncated)`` holds. The flags come first because row numbers
    are wrong once rows were appended to others, and flags are not.

    Raises:
        ValueError: if the last row does not end its trajectory and ``open_end`` is false, or there are neither flags
            nor ``traj_stop``.
    """
    end = _end_flags(data)
    if end is not None:
        return trajectory_stop(end, open_end=open_end)
    stop = data.get("traj_stop", None)
    if stop is None:
        raise ValueError(
            "expected ('next', 'done'), ('next', 'terminated'), ('next', 'truncated') or traj_stop, found none."
        )
    return stop.reshape(-1)


def _end_flags(data: TensorDictBase) -> Tensor | None:
    flags = [data.get(("next", name), None) for name in _FLAGS]
    found = [flag.reshape(data.shape[0], -1).any(-1) for flag in flags if flag is not None]
    return None if not found else torch.stack(found).any(0)


def trajectory_order(data: TensorDictBase, key: NestedKey | None = None) -> Tensor | None:
    """Row numbers, int64, shape ``[N]``, that put the rows of each trajectory together; ``None`` if they lie so.

    Args:
        data: batch size ``[N]``, the rows of one trajectory in the order of time.
        key: says which trajectory a row belongs to, integer, ``[N]`` or ``[N, 1]``; ``None``: ``("collector",
            "traj_ids")`` where the data have it.

    Raises:
        KeyError: if a given key is not there.
    """
    ids = data.get(TRAJECTORY_KEY if key is None else key, None)
    if ids is None:
        if key is not None:
            raise KeyError(f"the data have no {key}, which was to say which trajectory a row belongs to.")
        return None
    ids = ids.reshape(data.shape[0])
    if bool((ids[1:] >= ids[:-1]).all()):
        return None
    order = ids.argsort(stable=True)
    starts = torch.cat([ids.new_ones(1, dtype=torch.bool), ids[1:] != ids[:-1]])
    return None if int(starts.sum()) == ids.unique().shape[0] else order


def with_ends(data: TensorDictBase, key: NestedKey | None = None) -> TensorDictBase:
    """Data, shallowly copied, whose ``("next", "done")`` holds also where the trajectory named by ``key`` changes."""
    ids = data.get(TRAJECTORY_KEY if key is None else key, None)
    if ids is None:
        return data
    ids = ids.reshape(-1)
    changes = torch.cat([ids[1:] != ids[:-1], ids.new_ones(1, dtype=torch.bool)])
    end = _end_flags(data)
    data = data.copy()
    data.set(("next", "done"), (changes if end is None else changes | end).unsqueeze(-1))
    return data


class GoalTransition(SampleUnit):
    """Expands each anchor into the rows of one SMORe sample.

    An index ``[B]`` becomes ``[B, 4]``, the columns being: the transition i; the row k whose goal it may be given; a
    goal transition m, which enters its own goal; and a row that reaches its *stored* goal (m again if the dataset has
    none). So a buffer with this unit samples a ``[B, 4]`` batch, which
    :class:`~torchrl_smore.data.HindsightGoalTransform` turns into the nested batch of
    :class:`~torchrl_smore.objectives.SMORELoss`. The rows follow
    :func:`~torchrl_smore.functional.goals.goal_transition_rows`; random numbers come from the buffer's generator.

    Trajectories end where ``("next", done | terminated | truncated)`` says, or where the trajectory named by
    ``trajectory_key`` changes (data without flags: ``traj_stop``), read once for each state of the storage. Rows of
    several trajectories may be interleaved if that key is there. A trajectory that still grows, or whose beginning a
    full storage has overwritten, is relabelled within what is there. One-dimensional tensor storages only.

    Args:
        strategy: see :func:`~torchrl_smore.functional.goals.goal_row`: a name, or shares of several. ``"away"`` needs
            ``threshold``.
        gamma: used by ``"geometric"``.
        reached: maps the stored data to the rows that reach their stored goal, bool ``[N]``; by default those with a
            positive reward.
        anchors: maps the stored data to weights of rows (``functools.partial(anchor_weights, "moving", threshold=...)``
            is one such); anchors of offline and goal transitions are then drawn by these weights, whatever rows the
            buffer's sampler chose. ``None``: the sampler's rows, and uniform ones for goal transitions.
        threshold: distance that counts as away, in the unit of the goal.
        trajectory_key: says which trajectory a row belongs to; ``None``: ``("collector", "traj_ids")``, if it is there.

    Raises:
        ValueError: for an unknown strategy, or ``"away"`` without a threshold.
    """

    def __init__(
        self,
        strategy: Strategy = "future",
        *,
        gamma: float = 0.99,
        reached: ReachedFn = stored_goal_reached,
        anchors: WeightsFn | None = None,
        threshold: float | None = None,
        trajectory_key: NestedKey | None = None,
    ) -> None:
        check_away(check_strategy(strategy), threshold)
        self.strategy = strategy
        self.gamma = gamma
        self.reached = reached
        self.anchors = anchors
        self.threshold = threshold
        self.trajectory_key = trajectory_key
        self._cache: _Cache | None = None

    def __getstate__(self) -> dict[str, Any]:
        # the cache belongs to a storage of this process
        return {**self.__dict__, "_cache": None}

    def expand(
        self, index: Tensor | tuple[Tensor, ...], info: dict[str, Any], storage: Storage
    ) -> tuple[Tensor, dict[str, Any]]:
        """See :class:`~torchrl.data.replay_buffers.SampleUnit`.

        Raises:
            NotImplementedError: for a storage of more than one dimension, or one that holds no tensors.
            ValueError: for weights or data that cannot be sampled from.
        """
        if isinstance(index, tuple) or index.ndim != 1:
            raise NotImplementedError("GoalTransition works on one-dimensional storages with a flat index.")
        known = self._rows(storage)
        index = index.to(known.stop.device)
        uniform = torch.rand(
            index.shape[0], NUM_UNIFORMS, dtype=torch.float64, device=index.device, generator=_generator(storage)
        )
        rows = goal_transition_rows(
            uniform,
            known.stop,
            known.reached,
            her_ratio=1.0,
            strategy=self.strategy,
            gamma=self.gamma,
            index=known.position(index) if known.anchors is None else None,
            anchors=known.anchors,
            away=known.away,
        )
        positions = torch.stack([rows.index, rows.goal_index, rows.q_index, rows.reached_index], -1)
        return positions if known.order is None else known.order[positions], info

    def _rows(self, storage: Storage) -> _Rows:
        """What sampling needs to know of the stored rows, cached until the storage changes."""
        if not isinstance(storage, TensorStorage):
            raise NotImplementedError(
                f"GoalTransition needs a storage of tensors such as LazyTensorStorage, got {type(storage).__name__}."
            )
        size, revision = len(storage), int(storage._mutation_revision)
        cache = self._cache
        # by reference and not by id, which a later storage may be given again
        known = cache is not None and cache.storage() is storage
        if cache is None or not known or (cache.size, cache.revision) != (size, revision):
            if cache is None or not known or not self._append(cache, storage, size, revision):
                cache = self._cache = self._read(storage)
            cache.size, cache.revision = size, revision
        return cache.rows

    def _append(self, cache: _Cache, storage: TensorStorage, size: int, revision: int) -> bool:
        """Reads the rows that one write has added behind those known; ``False`` if that is not all that happened."""
        rows = cache.rows
        if self.anchors is not None or rows.away is not None or rows.order is not None:
            return False
        # a single write that has made the storage longer, and not filled it, has left the rows before alone
        if revision != cache.revision + 1 or not cache.size < size < storage.max_size:
            return False
        if storage._last_cursor_index != size - 1:
            return False
        # the trajectory that was the last one may go on
        first = int(torch.searchsorted(rows.stop, cache.size))
        tail = storage[first:size]
        if tail.get(self.trajectory_key or TRAJECTORY_KEY, None) is not None or _end_flags(tail) is None:
            return False
        stop = cache.stop.replaced(first, stored_stop(tail, open_end=True) + first)
        new = checked_reached(self.reached, tail[cache.size - first :]).nonzero().squeeze(-1) + cache.size
        reached = cache.reached.replaced(rows.reached.shape[0], new)
        cache.rows = _Rows(stop, reached, None, None, None, None)
        return True

    def _read(self, storage: TensorStorage) -> _Cache:
        """Reads all rows."""
        stored, size = storage[: len(storage)], len(storage)
        reached = checked_reached(self.reached, stored)
        names = ("traj_stop", *(("next", name) for name in _FLAGS))
        data = stored.select(self.trajectory_key or TRAJECTORY_KEY, *names, strict=False)
        order, last = None, storage._last_cursor_index
        if last is not None and int(last) != size - 1:
            # a full storage goes on at its beginning: its oldest row follows the one written last
            order = torch.arange(size, device=reached.device).roll(-int(last) - 1)
            data = torch.cat([data[int(last) + 1 :], data[: int(last) + 1]])
        together = trajectory_order(data, self.trajectory_key)
        if together is not None:
            order, data = (together if order is None else order[together]), data[together]
        stop = stored_stop(with_ends(data, self.trajectory_key), open_end=True)
        place = None
        if order is not None:
            reached, place = reached[order], torch.empty_like(order)
            if self.anchors is not None or "away" in check_strategy(self.strategy):
                stored = stored[order]
            place[order] = torch.arange(size, device=order.device)
        weights = None if self.anchors is None else self.anchors(with_ends(stored, self.trajectory_key))
        anchors = None if weights is None else anchor_distribution(weights, size, stop.device)
        away = rows_away(check_strategy(self.strategy), stored, stop, self.threshold)
        rows = _Rows(stop, reached.nonzero().squeeze(-1), order, place, anchors, away)
        return _Cache(weakref.ref(storage), rows, _Growing(rows.stop), _Growing(rows.reached))


@dataclass(frozen=True)
class _Rows:
    """Stored rows in the order of their trajectories.

    ``order`` are their places in the storage and ``place`` is its inverse, if they lie in another one.
    """

    stop: Tensor
    reached: Tensor
    order: Tensor | None
    place: Tensor | None
    anchors: Tensor | None
    away: Tensor | None

    def position(self, index: Tensor) -> Tensor:
        """Positions in the order of trajectories of rows of the storage."""
        return index if self.place is None else self.place[index]


class _Growing:
    """Row numbers, int64, ``[n]``, that grow at their end without being copied each time."""

    def __init__(self, numbers: Tensor) -> None:
        self._held = numbers

    def replaced(self, start: int, numbers: Tensor) -> Tensor:
        """The first ``start`` of them, followed by ``numbers``; valid until the next call."""
        size = start + numbers.shape[0]
        if size > self._held.shape[0]:
            larger = numbers.new_empty(max(size, 2 * self._held.shape[0]))
            larger[:start] = self._held[:start]
            self._held = larger
        self._held[start:size] = numbers
        return self._held[:size]


@dataclass
class _Cache:
    """What is known of a storage as it was at a size and a revision."""

    storage: weakref.ref[Storage]
    rows: _Rows
    stop: _Growing
    reached: _Growing
    size: int = 0
    revision: int = -1


def check_away(used: Collection[str], threshold: float | None) -> None:
    """Checks that there is a threshold for the goal strategy ``"away"`` if it is used.

    Raises:
        ValueError: if there is none.
    """
    if "away" in used and threshold is None:
        raise ValueError("the goal strategy 'away' needs a threshold.")


def rows_away(used: Collection[str], data: TensorDictBase, stop: Tensor, threshold: float | None) -> Tensor | None:
    """:func:`~torchrl_smore.functional.goals.first_row_away` of the data, int64 ``[N]``, if ``"away"`` is used."""
    if "away" not in used:
        return None
    assert threshold is not None
    return first_row_away(data.get(("next", "achieved_goal")), stop, threshold)


def anchor_distribution(weights: Tensor, num_rows: int, device: torch.device | str) -> Tensor:
    """Weights of all rows as :func:`~torchrl_smore.functional.goals.cumulative_weights`, on a device.

    Raises:
        ValueError: for another length than ``num_rows``, and see there.
    """
    if weights.shape != (num_rows,):
        raise ValueError(f"expected one anchor weight for each of {num_rows} rows, got shape {list(weights.shape)}.")
    return cumulative_weights(weights).to(device)


def checked_reached(reached: ReachedFn, data: TensorDictBase) -> Tensor:
    """``reached(data)``, bool ``[N]``.

    Raises:
        ValueError: for another shape than ``[N]`` or ``[N, 1]``.
        TypeError: for anything but booleans.
    """
    mask = reached(data)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"reached must return a bool tensor, got {found}.")
    size = data.shape[0]
    if mask.shape not in ((size,), (size, 1)):
        raise ValueError(f"reached must return shape {[size]} or {[size, 1]}, got {list(mask.shape)}.")
    return mask.reshape(size)


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


def _generator(storage: Storage) -> torch.Generator | None:
    return getattr(storage, "_rng", None)
