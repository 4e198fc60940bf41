"""Goal-transition batches out of one packed table, as a function that compiles into the update."""

from __future__ import annotations

import logging
import mmap
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.data._relabel import SparseReward, SuccessFn, reached_mask, where_rows
from torchrl_smore.data._resident import ResidentRows, shuffled_trajectories
from torchrl_smore.data._schema import check_finite, check_is_tensordict, conformed
from torchrl_smore.data._seeded import SeededBatches
from torchrl_smore.data.samplers import (
    ReachedFn,
    anchor_distribution,
    check_away,
    checked_reached,
    rows_away,
    stored_goal_reached,
    stored_stop,
    trajectory_order,
    with_ends,
)
from torchrl_smore.functional.goals import (
    NUM_UNIFORMS,
    Strategy,
    check_goal_gamma,
    check_her_ratio,
    check_strategy,
    first_row,
    goal_offset,
    goal_transition_rows,
)
from torchrl_smore.functional.stitching import (
    NUM_STITCH_UNIFORMS,
    GoalCells,
    check_stitch,
    stitched_goal,
    stitched_rows,
)

_logger = logging.getLogger("torchrl_smore")
_COLUMNS: tuple[NestedKey, ...] = (
    "observation",
    "action",
    ("next", "observation"),
    "desired_goal",
    ("next", "achieved_goal"),
)
_BLOCK = 1 << 16  # rows
#: Entries that only some readers of a batch need.
EXTRAS = ("achieved_goal", "goal_offset", "initial_observation", "row")


class GoalBatchSampler(SeededBatches):
    """Samples offline and goal transitions from a dataset held as one contiguous table.

    Does what a replay buffer with :class:`GoalTransition` and :class:`HindsightGoalTransform` does, on the same
    functional core, in two gathers of whole rows. ``draw`` makes random numbers from this object's own generator,
    :meth:`gather` is a pure function of them: no host synchronisation, static shapes, no graph break, so a trainer
    compiles it together with the loss.

    Args:
        data: TED layout, batch size ``[N]``, as in :class:`~torchrl_smore.data.TrajectoryStore`, whose numbers become
            float32 as they do there, with a warning that names their columns. Of the flags one is enough.
        batch_size: offline rows, and goal-transition rows, of a batch.
        her_ratio: probability of relabelling, in ``[0, 1]``.
        strategy: of the goals of offline and goal transitions, see :func:`~torchrl_smore.functional.goals.goal_row`:
            a name, or shares of several.
        actor_strategy: of the goals of the actor's regression, written to ``"actor_goal"``; ``None``: it has the goals
            of the offline transitions, and the batch no such entry.
        gamma: used by the ``"geometric"`` strategy.
        anchors: weight of each row, by which anchors of offline and goal transitions are drawn, not negative, shape
            ``[N]``; see :func:`~torchrl_smore.data.anchor_weights`. ``None``: uniform.
        threshold: distance that counts as away, in the unit of the goal; for the strategy ``"away"`` and ``stitch``.
        stitch: probability, in ``[0, 1]``, with which a hindsight goal to which something changes goes on as another
            trajectory does that achieves about the same, see :func:`~torchrl_smore.functional.stitching.stitched_goal`;
            goals of the actor's own in the same way, with the same numbers. Goals of goal transitions stay what they
            are: what a stitched goal is worth is learnt by bootstrapping alone. It takes 24 bytes per row in memory,
            also with ``mapped``, and while the sampler is made about 14 times what the goals take.
        goal_parts: columns (first, one past the last) of each thing that goals are about, for ``stitch``; empty if all
            columns are one.
        stitch_width: how far goals may differ that are about the same, along each column, in the unit of the goal;
            ``None``: three thresholds.
        success: ``success(achieved_goal, goal) -> bool``; when given, 0/1 rewards and ``terminated`` are added, for
            losses that read them. What the data say is terminated stays so under any goal.
        reward_values: see :class:`HindsightGoalTransform`.
        terminate_at_goal: see :class:`HindsightGoalTransform`.
        reached: rows of ``data`` that reach their stored goal, bool ``[N]``, of which goal transitions are that keep
            theirs; see :class:`GoalTransition`.
        q: whether to sample goal transitions at all.
        extras: entries for baselines and diagnosis: ``"achieved_goal"`` ``[B, G]``; ``"goal_offset"``, int64
            ``[B, 1]``, steps from the transition to the row whose goal it was given (0: it enters that goal itself;
            -1: it kept its stored goal); ``"initial_observation"`` ``[B, O]``, the first of its trajectory;
            ``"row"``, int64 ``[B, 1]``, the transition's row in ``data``.
        trajectory_key: see :class:`GoalTransition`.
        seed: seed of the generator.
        device: where the table lies.
        mapped: an existing folder in which to write the table to a file without a name, which is gone with the last
            sampler that reads it. Of the table, the system then keeps in memory what it has room for; goals and the
            ends of trajectories, ``4 dg + 8`` bytes per row, stay there. Batches are the same. The rows of a trajectory
            must lie together, on a CPU. ``None``: the table lies in memory.
        resident: rows of a ``mapped`` table that are in memory, and then read in order instead of page by page. Batches
            come from a window of whole trajectories; they lie in the file in an order of chance and pass through the
            window as fast as rows are drawn. Weights of ``anchors`` count within it, goals of the strategy ``"random"``
            are of all rows. Samplers that :meth:`with_seed` gives share the window: they are to draw in step, as
            :class:`~torchrl_smore.trainers.FusedUpdate` does. They cannot be pickled: other processes make their own.
            ``None``: batches come from all rows.

    Raises:
        OSError: if there is no such folder or no room in it.
        ValueError: if ``batch_size`` is not positive, ``her_ratio`` lies outside ``[0, 1]``, the strategy is unknown,
            ``gamma`` lies outside ``(0, 1)`` with ``"geometric"``, ``stitch`` comes with ``"goal_offset"`` or cannot be
            done (:func:`~torchrl_smore.functional.stitching.check_stitch`), the last trajectory of the data is open
            where no ids of trajectories say that it ends there, a column is no vector of numbers in each row or holds
            one that is not finite or too large for float32, or ``resident`` comes without ``mapped``, is too small for
            a window, or is no less than the rows that there are.
        KeyError: if the data lack a column; names it.
        TypeError: if ``data`` or ``anchors`` are of another type.
    """

    num_uniforms = NUM_UNIFORMS

    def __init__(
        self,
        data: TensorDictBase,
        batch_size: int,
        *,
        her_ratio: float = 0.8,
        strategy: Strategy = "future",
        actor_strategy: Strategy | None = None,
        gamma: float = 0.99,
        anchors: Tensor | None = None,
        threshold: float | None = None,
        stitch: float = 0.0,
        goal_parts: Sequence[tuple[int, int]] = (),
        stitch_width: float | None = None,
        success: SuccessFn | None = None,
        reward_values: tuple[float, float] = (0.0, 1.0),
        terminate_at_goal: bool = False,
        reached: ReachedFn = stored_goal_reached,
        q: bool = True,
        extras: Collection[str] = (),
        trajectory_key: NestedKey | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        mapped: str | Path | None = None,
        resident: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        check_her_ratio(her_ratio)
        used = {*check_strategy(strategy), *check_strategy(actor_strategy or strategy)}
        check_away(used, threshold)
        check_goal_gamma(used, gamma)
        for name in extras:
            if name not in EXTRAS:
                raise unknown_name("extra", name, EXTRAS)
        if "goal_offset" in extras and "random" in check_strategy(strategy):
            raise ValueError("goal_offset counts steps within a trajectory: it needs another strategy than 'random'.")
        if "goal_offset" in extras and stitch:
            raise ValueError(f"goal_offset counts steps within a trajectory: not with stitched goals, got {stitch=}.")
        data = _packable(data, *(["achieved_goal"] if "achieved_goal" in extras else []))
        device = torch.device(device or data.get("action").device)
        order = trajectory_order(data, trajectory_key)
        places = {str(device), str(data.get("action").device)}
        if mapped is not None and (order is not None or places != {"cpu"}):
            found = "rows of several trajectories that lie among each other"
            if order is None:
                found = f"rows on {data.get('action').device} for a table on {device}"
            raise ValueError(f"mapped= expects rows on a CPU in the order of their trajectories, got {found}.")
        if resident is not None and mapped is None:
            raise ValueError(f"resident={resident}: of no use without mapped=, a folder for the rest of the rows.")
        data = with_ends(data if order is None else data[order], trajectory_key)
        self.batch_size = batch_size
        self.her_ratio = her_ratio
        self.strategy = strategy
        self.actor_strategy = actor_strategy
        self.gamma = gamma
        self._reward = None if success is None else SparseReward(success, reward_values, terminate_at_goal)
        self.q = q
        self.extras = tuple(extras)
        self.generator = torch.Generator(device).manual_seed(seed)
        check_stitch(stitch, goal_parts, data.get("desired_goal").shape[-1], threshold)
        self.stitch = stitch
        self.goal_parts = tuple(goal_parts)
        self.threshold = threshold
        self._widths = [data.get(key).shape[-1] for key in _COLUMNS]
        columns = [data.get(key) for key in _COLUMNS]
        if success is not None:
            # a user's rule is checked on two rows, before anything is trained
            reached_mask(
                success, *(data.get(key)[:2].to(device) for key in (("next", "achieved_goal"), "desired_goal"))
            )
        stop = stored_stop(data)
        away = rows_away(used, data, stop, threshold)
        reaches = checked_reached(reached, data)
        if resident is not None:
            order, stop = shuffled_trajectories(stop)
            reaches = reaches[order]
            data = data.exclude("observation", "action", ("next", "observation"), "desired_goal")[order]
            if away is not None:
                away = away[order] - order + torch.arange(len(order))
        self._order = None if order is None else order.to(device)
        self._stop = stop.to(device)
        self._anchors = None
        if anchors is not None:
            # by rows of the data as given, so they go the way of the rows
            self._anchors = anchor_distribution(anchors, stop.shape[0], device, order)
        self._away = None if away is None else away.to(device)
        # data that say nothing but that a trajectory is done do not say that it was terminated
        time_up = "done" if data.get(("next", "truncated"), None) is None else "truncated"
        ends = ("terminated", time_up) if success is not None else ()
        self._ends = [_flag(data, ("next", name)).to(device) for name in ends]
        self._reached = reaches.nonzero().squeeze(-1).to(device)
        self._resident, self._drawn = None, 0
        if resident is not None:
            assert order is not None
            assert mapped is not None
            self._resident = ResidentRows(
                columns,
                order,
                stop,
                self._reached,
                self._anchors,
                mapped,
                resident=resident,
                renewed=batch_size * (1 + q),
            )
        # in memory where the table is not, lest a goal take a page of the file
        if mapped is None:
            self._table = torch.cat(columns, -1).contiguous().to(device)
            self._entered = self._table[:, -self._widths[-1] :]
        else:
            self._table = _mapped(columns, mapped) if self._resident is None else self._resident.table
            self._entered = data.get(("next", "achieved_goal")).clone()
        self._cells: GoalCells | None = None
        if stitch:
            assert threshold is not None
            self._cells = GoalCells.of(self._entered, 3.0 * threshold if stitch_width is None else stitch_width)
            self.num_uniforms = NUM_UNIFORMS + NUM_STITCH_UNIFORMS
        self._achieved = data.get("achieved_goal").contiguous().to(device) if "achieved_goal" in self.extras else None
        if q and her_ratio < 1.0 and self._reached.numel() == 0:
            _logger.warning("no transition reaches its stored goal: every goal transition is a relabelled one")

    def __len__(self) -> int:
        return self._stop.shape[0]

    def draw(self) -> Tensor:
        """Uniform numbers for one batch, ``[B, num_uniforms]``, float64; moves the window of ``resident`` rows on."""
        if self._resident is not None:
            self._resident.move_to(self._drawn)
            self._drawn += 1
        return super().draw()

    def with_seed(self, seed: int) -> GoalBatchSampler:
        """The same data, not copied, under a generator of its own; equal to a sampler made with that seed."""
        other = super().with_seed(seed)
        other._drawn = 0
        return other

    def state_dict(self) -> dict[str, Any]:
        """State of the generator; with ``resident`` also how many batches were drawn."""
        return super().state_dict() | ({} if self._resident is None else {"drawn": self._drawn})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gives.

        Raises:
            ValueError: if this sampler has ``resident`` rows, and the state is of one without, or the other way round.
        """
        if ("drawn" in state) != (self._resident is not None):
            has = ("all rows", "a window of them") if self._resident is None else ("a window of rows", "all of them")
            raise ValueError(f"this sampler draws from {has[0]}, and the state is of one that draws from {has[1]}.")
        super().load_state_dict(state)
        self._drawn = state.get("drawn", 0)

    def gather(self, uniform: Tensor) -> TensorDict:
        """The batch that belongs to ``uniform``; deterministic, with ``resident`` in the window of the last draw.

        Returns:
            With batch size ``[B]``, ``observation``, ``action``, ``desired_goal``, ``actor_goal`` if it is of its own,
            ``("next", "observation" | "achieved_goal" | "desired_goal")``, with ``success`` also
            ``("next", "reward" | "terminated" | "done")``, and the same under ``"q"``; at the root also the extras.
        """
        rows = goal_transition_rows(
            uniform[:, :NUM_UNIFORMS],
            self._stop,
            self._reached,
            her_ratio=self.her_ratio,
            strategy=self.strategy,
            actor_strategy=self.actor_strategy,
            gamma=self.gamma,
            anchors=self._anchors,
            away=self._away,
            window=None if self._resident is None else self._resident.window,
        )
        further = uniform[:, NUM_UNIFORMS:]
        batch = self._rows(rows.index, self._goals(rows.index, rows.goal_index, further), rows.relabel_mask)
        if self.actor_strategy is not None:
            entered = self._goals(rows.index, rows.actor_goal_index, further)
            batch.set("actor_goal", where_rows(rows.relabel_mask, entered, batch["desired_goal"]))
        if self.q:
            batch.set("q", self._rows(rows.q_index, None, rows.q_relabel_mask))
        if self._achieved is not None:
            batch.set("achieved_goal", self._achieved[rows.index])
        if "goal_offset" in self.extras:
            batch.set("goal_offset", goal_offset(rows.index, rows.goal_index, rows.relabel_mask))
        if "row" in self.extras:
            row = rows.index if self._order is None else self._order[rows.index]
            batch.set("row", row.unsqueeze(-1))
        if "initial_observation" in self.extras:
            begun = self._slots(first_row(rows.index, self._stop))
            batch.set("initial_observation", self._table[begun, : self._widths[0]])
        return batch

    def _goals(self, index: Tensor, goal_index: Tensor, uniform: Tensor) -> Tensor:
        """Hindsight goals of rows, ``[B, G]``."""
        goal = self._entered[goal_index]
        if self._cells is None:
            return goal
        assert self.threshold is not None
        met, reached = (
            self._entered[row] for row in stitched_rows(goal_index, self._cells, self._stop, uniform[:, 1:])
        )
        options: dict[str, Any] = {"threshold": self.threshold, "parts": self.goal_parts}
        return stitched_goal(goal, self._entered[index], met, reached, uniform[:, 0] < self.stitch, **options)

    def _slots(self, index: Tensor) -> Tensor:
        """Where rows stand in the table."""
        return index if self._resident is None else self._resident.slots(index)

    def _rows(self, index: Tensor, goal: Tensor | None, relabel_mask: Tensor) -> TensorDict:
        observation, action, next_observation, stored, entered = self._table[self._slots(index)].split(self._widths, -1)
        goal = where_rows(relabel_mask, entered if goal is None else goal, stored)
        after: dict[str, Any] = {"observation": next_observation, "achieved_goal": entered, "desired_goal": goal}
        if self._reward is not None:
            after |= self._reward(entered, goal, *(flag[index] for flag in self._ends))
        size = index.shape
        return TensorDict(
            {
                "observation": observation,
                "action": action,
                "desired_goal": goal,
                "next": TensorDict(after, batch_size=size),
            },
            batch_size=size,
        )


def _packable(data: TensorDictBase, *more: NestedKey) -> TensorDictBase:
    """Data whose columns are float32 vectors that can lie in one row.

    Raises:
        ValueError: for another batch size than ``[N]``, a column of another shape or type, or a number that float32
            does not hold.
        KeyError: for a missing column; says what to do.
        TypeError: if they are no TensorDict.
    """
    check_is_tensordict(data)
    if data.batch_dims != 1 or not len(data):
        raise ValueError(f"expected data of batch size [N] with N > 0, got {list(data.batch_size)}.")
    data = conformed(data)
    for key in (*_COLUMNS, *more):
        column = data.get(key, None)
        if column is None:
            advice = (
                "where no goal is stored, any will do with her_ratio=1, such as those of ('next', 'achieved_goal')"
                if key == "desired_goal"
                else f"rename the entry that holds it, one of {', '.join(sorted(map(str, data.keys(True, True))))}"
            )
            raise KeyError(f"GoalBatchSampler reads {key!r}, which the data do not have: {advice}.")
        if column.ndim != 2 or column.dtype != torch.float32:
            raise ValueError(
                f"{key!r}: expected numbers of shape [{len(data)}, width], got {column.dtype} {list(column.shape)}. "
                "For pictures there is PixelBatchSampler; for any other shape, a replay buffer with GoalTransition and "
                "HindsightGoalTransform."
            )
        check_finite(key, column)
    for key, other in (("desired_goal", ("next", "achieved_goal")), ("observation", ("next", "observation"))):
        first, second = data.get(key).shape[-1], data.get(other).shape[-1]
        if first != second:
            raise ValueError(f"expected {key!r} and {other!r} to be equally wide, got {first} and {second}.")
    return data


def _mapped(columns: Sequence[Tensor], folder: str | Path) -> Tensor:
    """Columns ``[N, *]`` side by side, ``[N, width]``, in a file without a name; writes to it stay in memory."""
    rows, width = columns[0].shape[0], sum(column.shape[1] for column in columns)
    with tempfile.TemporaryFile(dir=folder) as file:
        # a full disk turns a write to a mapped page into SIGBUS, and a plain write into an OSError
        for start in range(0, rows, _BLOCK):
            block = torch.cat([column[start : start + _BLOCK] for column in columns], -1)
            file.write(block.contiguous().numpy().data)
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_RANDOM"):
        # nothing is gained by what lies beside a row
        pages.madvise(mmap.MADV_RANDOM)
    return torch.frombuffer(pages, dtype=torch.float32).view(rows, width)


def _flag(data: TensorDictBase, key: NestedKey) -> Tensor:
    """A flag of the rows, bool ``[N, 1]``; false where the data do not have it."""
    flag = data.get(key, None)
    if flag is None:
        return torch.zeros(data.shape[0], 1, dtype=torch.bool, device=data.device)
    return flag.reshape(data.shape[0], 1).bool()
