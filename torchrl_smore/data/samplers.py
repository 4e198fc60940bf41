"""Goal-transition sampling for any TorchRL replay buffer."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import RandomSampler, RoundRobinWriter
from torchrl.data.replay_buffers import SampleUnit, Storage, TensorStorage

from torchrl_smore.functional.goals import (
    NUM_UNIFORMS,
    Strategy,
    check_goal_gamma,
    check_strategy,
    cumulative_weights,
    first_row,
    first_row_away,
    goal_transition_rows,
    trajectory_stop,
)
from torchrl_smore.functional.stitching import (
    NUM_STITCH_UNIFORMS,
    GoalCells,
    check_cell_width,
    check_stitch,
    stitched_goal_row,
)

ReachedFn = Callable[[TensorDictBase], Tensor]
#: From the stored data, in the order of its trajectories, to a weight for each row, ``[N]``; ``None``: all alike.
WeightsFn = Callable[[TensorDictBase], Tensor | None]
#: Where collectors of TorchRL write which trajectory a row belongs to.
TRAJECTORY_KEY: NestedKey = ("collector", "traj_ids")
_FLAGS = ("done", "terminated", "truncated")
_END_KEYS = tuple(("next", name) for name in _FLAGS)
_logger = logging.getLogger("torchrl_smore")


def stored_goal_reached(data: TensorDictBase, reward_key: NestedKey = ("next", "reward")) -> Tensor:
    """Rows whose stored reward is positive, bool, shape ``[N]``: the goal is reached after the step (0/1 rewards).

    Data without rewards have no such row; that is logged, as are rewards none of which is positive, which another
    convention (-1 and 0) may be the reason of.

    Args:
        data: rows ``[N]``.
        reward_key: where their reward is, ``[N]`` or ``[N, 1]``; it may be missing.
    """
    mask, reward = _stored_goal_reached(data, reward_key), data.get(reward_key, None)
    if reward is None:
        _logger.warning("no %s in the data: no row counts as one that reaches its stored goal", reward_key)
    elif not bool(mask.any()) and bool((reward < 0).any()):
        _logger.warning(
            "no reward is positive (they lie in [%g, %g]), so no row counts as one that reaches its stored goal. If 0 "
            "is the reward at the goal, pass reached=lambda data: data['next', 'reward'].squeeze(-1) >= 0.",
            float(reward.min()),
            float(reward.max()),
        )
    return mask


def _stored_goal_reached(data: TensorDictBase, reward_key: NestedKey = ("next", "reward")) -> Tensor:
    """:func:`stored_goal_reached` without a word."""
    reward = data.get(reward_key, None)
    if reward is None:
        return torch.zeros(data.shape[0], dtype=torch.bool, device=data.device)
    return positive(reward)


def positive(reward: Tensor) -> Tensor:
    """Rows whose reward ``[N]`` or ``[N, 1]`` is positive, bool, shape ``[N]``."""
    return (reward > 0).reshape(reward.shape[0], -1).any(-1)


def stored_stop(data: TensorDictBase, *, open_end: bool = False) -> Tensor:
    """End of the trajectory of every row, int64, shape ``[N]``: from the flags of the data, else from ``traj_stop``.

    A trajectory ends where ``("next", done | terminated | truncated)`` holds. The flags come first because row numbers
    are wrong once rows were appended to others, and flags are not.

    Raises:
        ValueError: if the last row does not end its trajectory and ``open_end`` is false, there are neither flags nor
            ``traj_stop``, or that is not of these rows.
    """
    end = _end_flags(data)
    if end is not None:
        return trajectory_stop(end, open_end=open_end)
    stop = data.get("traj_stop", None)
    if stop is None:
        raise ValueError(
            "expected ('next', 'done'), ('next', 'terminated'), ('next', 'truncated') or traj_stop, found none."
        )
    stop, number = stop.reshape(-1), data.shape[0]
    if open_end:
        # of a trajectory whose last rows are still to come
        stop = stop.clamp(max=number)
    rows = torch.arange(number, device=stop.device)
    wrong = stop != trajectory_stop(stop == rows + 1, open_end=True)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"traj_stop of row {row} is {int(stop[row])}, where no trajectory of these {number} rows ends: rows that "
            "were put behind others, or taken out of them, need ('next', 'done') or ('next', 'truncated') to say "
            "where trajectories end."
        )
    return stop


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
        ValueError: if it holds more than one number for each row.
    """
    ids = data.get(TRAJECTORY_KEY if key is None else key, None)
    if ids is None:
        if key is not None:
            raise KeyError(f"the data have no {key}, which was to say which trajectory a row belongs to.")
        return None
    if ids.numel() != data.shape[0]:
        raise ValueError(
            f"{key or TRAJECTORY_KEY} was to say which trajectory a row belongs to: expected shape "
            f"[{data.shape[0]}] or [{data.shape[0]}, 1], got {list(ids.shape)}."
        )
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
    none). With ``initial`` it becomes ``[B, 5]``, the last column being the first row of the trajectory of i, which
    :class:`~torchrl_smore.objectives.GoFARLoss` needs. With ``actor_strategy`` it becomes ``[B, 6]``, the fifth column
    being that row, too, and the last the row whose goal the actor may be given, where it is not to be that of score and
    value. So a buffer with this unit samples a batch of that size, which
    :class:`~torchrl_smore.data.HindsightGoalTransform` turns into the nested batch of
    :class:`~torchrl_smore.objectives.SMORELoss`. The rows follow
    :func:`~torchrl_smore.functional.goals.goal_transition_rows`; random numbers come from the buffer's generator.

    Trajectories end where ``("next", done | terminated | truncated)`` says, or where the trajectory named by
    ``trajectory_key`` changes (data without flags: ``traj_stop``). They are read once for each state of the storage;
    between two samples of a storage that is extended once, growing or full, only the new rows are read, unless rows of
    several trajectories are interleaved, which they may be if that key is there, or ``anchors``, ``"away"`` or
    ``stitch`` look at all of them. A trajectory that still grows, or whose beginning a full storage has overwritten, is
    relabelled within what is there.

    One-dimensional storages of tensors only (``LazyTensorStorage``, ``LazyMemmapStorage``, ``TensorStorage``). Any
    other, a ``ListStorage`` for example, is refused at the first sample and not when the buffer is made: TorchRL hands
    a unit the storage with each call of :meth:`expand` and never before (a buffer keeps its unit and its transform
    without telling either of its storage). A list cannot be made to work here either: it is indexed by one flat list of
    rows, so that the four rows of a sample would come back as four samples.

    With ``prefetch=`` of the buffer several threads draw from one generator in an order of their own: such batches are
    not the same from run to run.

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
        initial: whether a sample has a fifth row, the first that is there of the trajectory of its transition.
        actor_strategy: of goals of the actor's own, for losses with ``set_keys(actor_goal="actor_goal")``.
        stitch: probability, in ``[0, 1]``, with which the goal of a transition, and of the actor, to which something
            changes goes on as another trajectory does that achieves about the same, see
            :func:`~torchrl_smore.functional.stitching.stitched_goal_row`; needs ``threshold`` and goals of one
            dimension. The row k may then be of another trajectory, so that this is not for WGCSL and contrastive RL,
            which need goals that the transition's own trajectory reaches; what such a goal is worth others learn by
            bootstrapping. Goals about several things are stitched by parts in :class:`GoalBatchSampler` alone. All rows
            are sorted by what they achieve whenever the storage has changed.
        stitch_width: how far goals may differ that are about the same, along each column, in the unit of the goal;
            ``None``: three thresholds.

    Raises:
        ValueError: for an unknown strategy, ``"away"`` without a threshold, ``"geometric"`` with a ``gamma`` outside
            ``(0, 1)``, or a ``stitch`` that is no probability or has no positive threshold or width.
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
        initial: bool = False,
        actor_strategy: Strategy | None = None,
        stitch: float = 0.0,
        stitch_width: float | None = None,
    ) -> None:
        self._used = {*check_strategy(strategy), *check_strategy(actor_strategy or strategy)}
        check_away(self._used, threshold)
        check_goal_gamma(self._used, gamma)
        check_stitch(stitch, (), 0, threshold)
        if stitch_width is not None:
            check_cell_width(stitch_width)
        self.strategy = strategy
        self.actor_strategy = actor_strategy
        self.gamma = gamma
        self.reached = reached
        self.anchors = anchors
        self.threshold = threshold
        self.trajectory_key = trajectory_key
        self.initial = initial
        self.stitch = stitch
        self.stitch_width = stitch_width
        self._cache: _Cache | None = None

    def __getstate__(self) -> dict[str, Any]:
        # the cache belongs to a storage of this process
        return {**self.__dict__, "_cache": None}

    def expand(
        self, index: Tensor | tuple[Tensor, ...], info: dict[str, Any], storage: Storage
    ) -> tuple[Tensor, dict[str, Any]]:
        """See :class:`~torchrl.data.replay_buffers.SampleUnit`.

        Raises:
            NotImplementedError: for a storage of more than one dimension, or one that holds no tensors, whose name it
                gives.
            TypeError: for weights that are no tensor.
            ValueError: for weights or data that cannot be sampled from, or rows of several transitions each.
        """
        if isinstance(index, tuple) or index.ndim != 1:
            raise NotImplementedError(
                "GoalTransition takes a flat index of single rows: of a one-dimensional storage, and of a sampler that "
                "draws them, such as RandomSampler, and not slices."
            )
        if self.anchors is not None and any(_is_weight(key) for key in info):
            raise ValueError(
                "the sampler weighs the rows that it has drawn (priority_weight), and with anchors= others are drawn "
                "in their place: take a sampler without weights, or leave anchors= out."
            )
        known = self._rows(storage)
        index = index.to(known.stop.device)
        size = NUM_UNIFORMS + (NUM_STITCH_UNIFORMS if self.stitch else 0)
        uniform = torch.rand(
            index.shape[0], size, dtype=torch.float64, device=index.device, generator=_generator(storage)
        )
        rows = goal_transition_rows(
            uniform[:, :NUM_UNIFORMS],
            known.stop,
            known.reached,
            her_ratio=1.0,
            strategy=self.strategy,
            actor_strategy=self.actor_strategy,
            gamma=self.gamma,
            index=known.position(index) if known.anchors is None else None,
            anchors=known.anchors,
            away=known.away,
        )
        further = uniform[:, NUM_UNIFORMS:]
        goal_index = self._stitched(rows.index, rows.goal_index, known, further)
        columns = [rows.index, goal_index, rows.q_index, rows.reached_index]
        if self.initial or self.actor_strategy is not None:
            columns.append(first_row(rows.index, known.stop))
        if self.actor_strategy is not None:
            columns.append(self._stitched(rows.index, rows.actor_goal_index, known, further))
        return known.places(torch.stack(columns, -1)), info

    def _stitched(self, index: Tensor, goal_index: Tensor, known: _Rows, uniform: Tensor) -> Tensor:
        """Rows whose goals are given to others, ``[B]``."""
        if known.cells is None:
            return goal_index
        assert known.achieved_goal is not None
        assert self.threshold is not None
        return stitched_goal_row(
            *(index, goal_index, known.achieved_goal, known.cells, known.stop, uniform),
            prob=self.stitch,
            threshold=self.threshold,
        )

    def _rows(self, storage: Storage) -> _Rows:
        """What sampling needs to know of the stored rows, cached until the storage changes."""
        if not isinstance(storage, TensorStorage):
            raise NotImplementedError(
                "GoalTransition needs a storage of tensors such as LazyTensorStorage or LazyMemmapStorage, got "
                f"{type(storage).__name__}: make the buffer with storage=LazyTensorStorage(max_size)."
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
        """Reads the rows that one write has put behind those known; ``False`` if that is not all that happened."""
        rows, number = cache.rows, _num_written(storage, cache.size)
        if self.anchors is not None or rows.away is not None or rows.cells is not None or rows.order is not None:
            return False
        if revision != cache.revision + 1 or number == 0 or cache.last is None:
            return False
        last = (cache.last + number) % storage.max_size
        # what a full storage has written over is gone from the beginning
        dropped = cache.size + number - size
        in_turn = rows.start == 0 or cache.size == storage.max_size
        if storage._last_cursor_index != last or not in_turn or not 0 <= dropped < cache.size:
            return False
        start = (last + 1) % size
        # the trajectory that was the last one may go on
        first = max(int(torch.searchsorted(rows.stop, cache.size)), dropped)
        place = (torch.arange(first - dropped, size, device=rows.stop.device) + start) % size
        stored = storage[:size]
        tail = stored.select(self.trajectory_key or TRAJECTORY_KEY, *_END_KEYS, strict=False)[place]
        ids = tail.get(self.trajectory_key or TRAJECTORY_KEY, None)
        if ids is not None:
            ids = ids.reshape(-1)
            # none of them may be one of a trajectory further back
            if cache.newest is None or int(ids[0]) < cache.newest or bool((ids[1:] < ids[:-1]).any()):
                return False
        tail = with_ends(tail, self.trajectory_key)
        if _end_flags(tail) is None:
            return False
        # of few rows none may well reach its goal: what is worth a warning was told of all of them
        rule = _stored_goal_reached if self.reached is stored_goal_reached else self.reached
        new = checked_reached(rule, stored[place[-number:]]).nonzero().squeeze(-1) + size - number
        gone = int(torch.searchsorted(rows.reached, dropped))
        stop = cache.stop.replaced(first, stored_stop(tail, open_end=True) + first - dropped, dropped, by=dropped)
        reached = cache.reached.replaced(rows.reached.shape[0], new, gone, by=dropped)
        cache.rows, cache.last = _Rows(stop, reached, start), last
        cache.newest = None if ids is None else int(ids[-1])
        return True

    def _read(self, storage: TensorStorage) -> _Cache:
        """Reads all rows."""
        stored, size = storage[: len(storage)], len(storage)
        if stored.ndim != 1:
            raise ValueError(
                "GoalTransition reads one transition in each row of the storage, found rows of batch size "
                f"{list(stored.shape[1:])}: extend the buffer with data.reshape(-1)."
            )
        reached = checked_reached(self.reached, stored)
        key = self.trajectory_key or TRAJECTORY_KEY
        data = stored.select(key, "traj_stop", *_END_KEYS, strict=False)
        last = _last_written(storage)
        # a full storage goes on at its beginning: its oldest row follows the one written last
        start = 0 if last is None else (last + 1) % size
        if start:
            data = torch.cat([data[start:], data[:start]])
        ids, order, place = data.get(key, None), trajectory_order(data, self.trajectory_key), None
        if order is not None:
            data, order, start = data[order], (order + start) % size, 0
            reached, place = reached[order], torch.empty_like(order)
            place[order] = torch.arange(size, device=order.device)
        stop = stored_stop(with_ends(data, self.trajectory_key), open_end=True)
        reached = reached.roll(-start)
        if self.anchors is not None or "away" in self._used or self.stitch:
            if self.anchors is None:
                achieved_goals(stored)  # says what is there, where they are not
                stored = stored.select(("next", "achieved_goal"))
            if order is not None:
                stored = stored[order]
            elif start:
                stored = torch.cat([stored[start:], stored[:start]])
        weights = None
        if self.anchors is not None:
            # a rule shall see the ends that goals see, also of a trajectory that still grows
            stored = stored.copy()
            stored.set(("next", "done"), (stop == torch.arange(1, size + 1, device=stop.device)).unsqueeze(-1))
            weights = self.anchors(stored)
        anchors = None if weights is None else anchor_distribution(weights, size, stop.device)
        away = rows_away(self._used, stored, stop, self.threshold)
        cells, achieved = self._cells(stored) if self.stitch else (None, None)
        rows = _Rows(stop, reached.nonzero().squeeze(-1), start, order, place, anchors, away, cells, achieved)
        newest = None if ids is None or ids.reshape(-1)[-1] < ids.max() else int(ids.reshape(-1)[-1])
        grown = (_Growing(rows.stop), _Growing(rows.reached))
        return _Cache(weakref.ref(storage), rows, *grown, last, newest)

    def _cells(self, stored: TensorDictBase) -> tuple[GoalCells, Tensor]:
        """Which rows achieve about the same, and what."""
        achieved = achieved_goals(stored)
        if achieved.ndim != 2:
            raise ValueError(
                f"stitched goals need goals of one dimension, got shape {list(achieved.shape[1:])} in each row."
            )
        assert self.threshold is not None
        width = 3.0 * self.threshold if self.stitch_width is None else self.stitch_width
        return GoalCells.of(achieved, width), achieved


def _is_weight(key: NestedKey) -> bool:
    return (key if isinstance(key, str) else key[-1]) in ("priority_weight", "_weight")


def _last_written(storage: TensorStorage) -> int | None:
    """The row that was written last; ``None`` if that is not known."""
    if len(storage) < storage.max_size:
        return len(storage) - 1
    # a buffer that loads a state restores the cursor of its writer, and leaves that of the storage as it was
    writers = [getattr(buffer, "_writer", None) for buffer in storage._attached_entities]
    cursors = {
        (writer._cursor - 1) % storage.max_size
        for writer in writers
        if isinstance(writer, RoundRobinWriter) and writer._write_count
    }
    own = storage._last_cursor_index
    return cursors.pop() if len(cursors) == 1 else None if own is None else int(own)


def _num_written(storage: TensorStorage, known: int) -> int:
    """Rows of the last write if it put them one behind the other; 0 if that cannot be told.

    Args:
        storage: where they are.
        known: how many rows it had before.
    """
    if len(storage) < storage.max_size:
        return max(len(storage) - known, 0)
    cursor = storage._last_cursor
    if isinstance(cursor, slice):
        cursor = range(*cursor.indices(storage.max_size))
    if not isinstance(cursor, (int, range, Tensor)):
        return 0
    places = torch.as_tensor(cursor).reshape(-1)
    in_turn = ((places[1:] - places[:-1]) % storage.max_size == 1).all()
    # what another process wrote last is not known here
    return len(places) if len(places) and in_turn and int(places[-1]) == storage._last_cursor_index else 0


@dataclass(frozen=True, eq=False)
class _Rows:
    """Stored rows in the order of their trajectories.

    ``start`` is the place in the storage of the first of them, after which the others follow in a ring; where they lie
    in another order, ``order`` are their places and ``place`` is its inverse.
    """

    stop: Tensor
    reached: Tensor
    start: int = 0
    order: Tensor | None = None
    place: Tensor | None = None
    anchors: Tensor | None = None
    away: Tensor | None = None
    cells: GoalCells | None = None
    achieved_goal: Tensor | None = None

    def position(self, index: Tensor) -> Tensor:
        """Positions in the order of trajectories of rows of the storage."""
        if self.place is not None:
            return self.place[index]
        return (index - self.start) % self.stop.shape[0] if self.start else index

    def places(self, position: Tensor) -> Tensor:
        """The inverse of :meth:`position`."""
        if self.order is not None:
            return self.order[position]
        return (position + self.start) % self.stop.shape[0] if self.start else position


class _Growing:
    """Row numbers, int64, ``[n]``, that grow at their end without being copied each time."""

    def __init__(self, numbers: Tensor) -> None:
        self._held = numbers
        self._spare: Tensor | None = None

    def replaced(self, stop: int, numbers: Tensor, start: int = 0, *, by: int = 0) -> Tensor:
        """Those from ``start`` to ``stop``, less ``by``, followed by ``numbers``; valid until the next call."""
        size = stop - start + numbers.shape[0]
        if start or by:
            # into the place of the last but one, since new memory of some megabytes takes longer than the numbers
            spare = self._spare
            moved = numbers.new_empty(size) if spare is None or spare.shape[0] < size else spare
            torch.sub(self._held[start:stop], by, out=moved[: stop - start])
            moved[stop - start : size] = numbers
            self._held, self._spare = moved, self._held
            return moved[:size]
        if size > self._held.shape[0]:
            larger = numbers.new_empty(max(size, 2 * self._held.shape[0]))
            larger[:stop] = self._held[:stop]
            self._held = larger
        self._held[stop:size] = numbers
        return self._held[:size]


@dataclass
class _Cache:
    """What is known of a storage as it was at a size and a revision.

    ``last`` is the row that was written last, ``newest`` its trajectory's number if none of the others is larger.
    """

    storage: weakref.ref[Storage]
    rows: _Rows
    stop: _Growing
    reached: _Growing
    last: int | None
    newest: int | None
    size: int = 0
    revision: int = -1


def check_away(used: Collection[str], threshold: float | None) -> None:
    """Checks the threshold of goals, and that there is one for the goal strategy ``"away"`` if that is used.

    Raises:
        ValueError: if there is none, or it is negative or not finite.
    """
    if threshold is not None and not 0.0 <= threshold < math.inf:
        raise ValueError(f"threshold must be a finite distance of at least 0, got {threshold}.")
    if "away" in used and threshold is None:
        raise ValueError("the goal strategy 'away' needs a threshold.")


def rows_away(used: Collection[str], data: TensorDictBase, stop: Tensor, threshold: float | None) -> Tensor | None:
    """:func:`~torchrl_smore.functional.goals.first_row_away` of the data, int64 ``[N]``, if ``"away"`` is used."""
    if "away" not in used:
        return None
    assert threshold is not None
    return first_row_away(achieved_goals(data), stop, threshold)


def achieved_goals(data: TensorDictBase) -> Tensor:
    """Goals achieved after each step.

    Raises:
        KeyError: if the data have none; says what to do.
    """
    goals = data.get(("next", "achieved_goal"), None)
    if goals is None:
        found = ", ".join(sorted(map(str, data.keys(True, True))))
        raise KeyError(
            "the data have no ('next', 'achieved_goal'), which the goal strategy 'away', the anchor rule 'moving' and "
            f"stitched goals read: rename the entry that holds it, one of {found}."
        )
    return goals


def anchor_distribution(
    weights: Tensor, num_rows: int, device: torch.device | str, order: Tensor | None = None
) -> Tensor:
    """Weights of all rows as :func:`~torchrl_smore.functional.goals.cumulative_weights`, on a device, in an order.

    Raises:
        TypeError: for anything but a tensor.
        ValueError: for another length than ``num_rows``, and see there.
    """
    if not isinstance(weights, Tensor):
        raise TypeError(f"expected anchor weights as a tensor of shape [{num_rows}], got {type(weights).__name__}.")
    if weights.shape != (num_rows,):
        raise ValueError(f"expected one anchor weight for each of {num_rows} rows, got shape {list(weights.shape)}.")
    return cumulative_weights(weights if order is None else weights[order.to(weights.device)]).to(device)


def checked_reached(reached: ReachedFn, data: TensorDictBase) -> Tensor:
    """``reached(data)``, bool ``[N]``.

    Raises:
        ValueError: for another shape than ``[N]`` or ``[N, 1]``, or another device.
        TypeError: for anything but booleans.
    """
    mask = reached(data)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"reached must return a bool tensor, got {found}.")
    size = data.shape[0]
    if mask.shape not in ((size,), (size, 1)):
        raise ValueError(f"reached must return shape {[size]} or {[size, 1]}, got {list(mask.shape)}.")
    if data.device is not None and mask.device != data.device:
        raise ValueError(f"reached must return a tensor on {data.device}, as the data are, got {mask.device}.")
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
        """Uniform anchors, expanded by ``unit``; see :meth:`torchrl.data.replay_buffers.Sampler.sample`.

        Returns:
            An index, int64 ``[batch_size, 4]`` (or 5 or 6, see there), and what the sampler says beside it.
        """
        index, info = super().sample(storage, batch_size)
        return self.unit.expand(index, info, storage)


def _generator(storage: Storage) -> torch.Generator | None:
    return getattr(storage, "_rng", None)
