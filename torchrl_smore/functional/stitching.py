"""Goals of one trajectory that goes on as another: temporal data augmentation, by parts of the goal.

Temporal data augmentation is of Ghugare et al., "Closing the gap between TD learning and supervised learning", ICLR
2024, arXiv 2401.11237. As in :mod:`~torchrl_smore.functional.goals` rows are transitions, the goal of a row is what it
enters, and nothing here draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_smore.functional.goals import future_goal_row, uniform_index

#: Uniform numbers of a goal that may be stitched: whether it is, and those of :func:`stitched_rows`.
NUM_STITCH_UNIFORMS = 3


@dataclass(frozen=True, eq=False)
class GoalCells:
    """Which rows of a dataset achieve about the same: those that :func:`stitched_rows` goes on from.

    Attributes:
        rows: all rows, those of one cell side by side, int64, shape ``[N]``.
        first: place in ``rows`` at which the cell of a row begins, int64, shape ``[N]``.
        size: rows in the cell of a row, itself among them, int64, shape ``[N]``.
    """

    rows: Tensor
    first: Tensor
    size: Tensor

    @classmethod
    def of(cls, achieved_goal: Tensor, width: float) -> GoalCells:
        """Cells of a grid.

        Args:
            achieved_goal: after the step of each row, shape ``[N, G]``.
            width: of a cell, whose middle is at a multiple of it, in the unit of the goal.

        Raises:
            ValueError: if ``width`` is not positive and finite, or goals are not finite or more than 2^53 cells from 0.
        """
        check_cell_width(width)
        places = (achieved_goal / width).round()
        # more than int64 holds would all end up in one cell
        counted = places.double().abs() <= 2.0**53
        if not bool(counted.all()):
            raise ValueError(
                f"goals must be finite and lie within 2^53 cells of 0, got {int((~counted).sum())} numbers that do "
                f"not with cells of width {width}."
            )
        _, cell, count = torch.unique(places.long(), dim=0, return_inverse=True, return_counts=True)
        return cls(cell.argsort(stable=True), (count.cumsum(0) - count)[cell], count[cell])


def check_cell_width(width: float) -> None:
    """Raises ``ValueError`` for a width that is not positive and finite."""
    if not 0.0 < width < math.inf:
        raise ValueError(f"the width of goal cells must be positive and finite, got {width}.")


def stitched_rows(goal_index: Tensor, cells: GoalCells, stop: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """From where each goal is gone on, and to where: a row of the same cell, and one of its future.

    Args:
        goal_index: rows whose goals are gone on from, int64, shape ``[B]``.
        cells: of the dataset.
        stop: end of the trajectory of every row of the dataset, int64, shape ``[N]``.
        uniform: in ``[0, 1)``, shape ``[B, 2]``.

    Returns:
        Row numbers, int64, shape ``[B]`` each.
    """
    first, size = cells.first[goal_index], cells.size[goal_index]
    met = cells.rows[uniform_index(uniform[:, 0], first, first + size)]
    return met, future_goal_row(met, stop[met], uniform[:, 1])


def stitched_goal(
    goal: Tensor,
    achieved_goal: Tensor,
    met: Tensor,
    reached: Tensor,
    mask: Tensor,
    *,
    threshold: float,
    parts: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Goals of one trajectory that goes on as another: what the second changes is asked for too.

    The goal of a row becomes one that another trajectory reaches from about where the first has its goal, so that what
    no single trajectory does is asked for, in an order in which it can be done. By parts: what the second leaves alone
    stays where the first has brought it. Rows whose own trajectory changes nothing until its goal keep that: what they
    do is no beginning of anything.

    Args:
        goal: hindsight goals, shape ``[B, G]``.
        achieved_goal: after the steps that are given them, shape ``[B, G]``.
        met: achieved where the second trajectory is met, shape ``[B, G]``; see :func:`stitched_rows`.
        reached: achieved to where that is followed, shape ``[B, G]``.
        mask: which goals are to go on, bool, shape ``[B]``.
        threshold: distance over which a part counts as changed, in the unit of the goal.
        parts: columns (first, one past the last) of each thing that goals are about; empty if all columns are one.

    Returns:
        Goals ``[B, G]``, which no row need enter.
    """
    parts = parts or ((0, goal.shape[1]),)

    def changed(before: Tensor, after: Tensor) -> list[Tensor]:
        # not norm, which under torch.compile of torch 2.11 keeps a dimension of one column
        squared = (after - before).square()
        return [squared[:, first:stop].sum(-1).sqrt() > threshold for first, stop in parts]

    mask = mask & torch.stack(changed(achieved_goal, goal)).any(0)
    goal = goal.clone()
    for further, (first, stop) in zip(changed(met, reached), parts):
        goal[:, first:stop] = torch.where((mask & further).unsqueeze(-1), reached[:, first:stop], goal[:, first:stop])
    return goal


def stitched_goal_row(
    index: Tensor,
    goal_index: Tensor,
    achieved_goal: Tensor,
    cells: GoalCells,
    stop: Tensor,
    uniform: Tensor,
    *,
    prob: float,
    threshold: float,
) -> Tensor:
    """The row whose goal :func:`stitched_goal` gives where goals are about one thing: that, or what it was.

    Args:
        index: rows that are given a goal, int64, shape ``[B]``.
        goal_index: those whose goals they are given, int64, shape ``[B]``.
        achieved_goal: after the step of every row of the dataset, shape ``[N, G]``; whole numbers and flags are taken
            as float64.
        cells: of the dataset.
        stop: end of the trajectory of every row of the dataset, int64, shape ``[N]``.
        uniform: in ``[0, 1)``, shape ``[B, NUM_STITCH_UNIFORMS]``.
        prob: with which a goal to which something changes goes on, in ``[0, 1]``.
        threshold: distance over which a goal counts as changed, in its unit.

    Returns:
        Row numbers, int64, shape ``[B]``.
    """
    met, reached = stitched_rows(goal_index, cells, stop, uniform[:, 1:])

    def changed(before: Tensor, after: Tensor) -> Tensor:
        goal_after, goal_before = achieved_goal[after], achieved_goal[before]
        if not achieved_goal.is_floating_point():
            # differences and squares of small integer types wrap around; of these rows only, not of all
            goal_after, goal_before = goal_after.double(), goal_before.double()
        return (goal_after - goal_before).square().sum(-1) > threshold * threshold

    goes_on = (uniform[:, 0] < prob) & changed(index, goal_index) & changed(met, reached)
    return torch.where(goes_on, reached, goal_index)


def check_stitch(prob: float, parts: Sequence[tuple[int, int]], width: int, threshold: float | None) -> None:
    """Checks what :func:`stitched_goal` is given.

    Args:
        prob: of a goal that goes on.
        parts: columns (first, one past the last).
        width: of the goal.
        threshold: distance over which a part counts as changed.

    Raises:
        ValueError: for a probability outside ``[0, 1]``, or, if it is not 0, parts that overlap or lie outside the
            goal, or no positive threshold.
    """
    if not 0.0 <= prob <= 1.0:
        raise ValueError(f"the probability of stitched goals must lie in [0, 1], got {prob}.")
    if prob == 0.0:
        return
    ends = [0, *(column for part in sorted(parts) for column in part), width]
    if any(first >= stop for first, stop in parts) or ends != sorted(ends):
        raise ValueError(
            f"expected parts (first, one past the last) of the {width} columns of the goal that do not overlap, got "
            f"{list(parts)}."
        )
    if threshold is None or not threshold > 0.0:
        raise ValueError(f"stitched goals need a positive threshold, got {threshold}.")
