"""Stitched goals: cells and rows by enumeration, goals by hand."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_smore.functional.stitching import (
    GoalCells,
    check_stitch,
    stitched_goal,
    stitched_goal_row,
    stitched_rows,
)


def test_cells_hold_the_rows_that_achieve_about_the_same():
    # a cell of width 0.5 is [-0.25, 0.25) and so on: the first two rows, the third and fifth, and the fourth
    achieved = torch.tensor([[0.2, 1.0], [-0.2, 0.8], [0.3, 1.0], [0.2, 2.0], [0.7, 1.2]])
    cells = GoalCells.of(achieved, 0.5)
    assert cells.size.tolist() == [2, 2, 2, 1, 2]
    held = [cells.rows[first : first + size].tolist() for first, size in zip(cells.first, cells.size)]
    assert held == [[0, 1], [0, 1], [2, 4], [3], [2, 4]]


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf])
def test_a_width_of_cells_that_makes_none_is_refused(width):
    with pytest.raises(ValueError, match=f"must be positive and finite, got {width}"):
        GoalCells.of(torch.zeros(2, 1), width)


@pytest.mark.parametrize(
    ("goals", "width", "count"),
    [([1.0, 2.0, 3.0], 1e-30, 3), ([1.0, math.nan, math.inf], 0.5, 2), ([0.0, -1e16, 1.0], 1.0, 1)],
    ids=str,
)
def test_goals_in_cells_that_cannot_be_counted_are_refused(goals, width, count):
    with pytest.raises(ValueError, match=f"within 2\\^53 cells of 0, got {count} numbers that do not"):
        GoalCells.of(torch.tensor(goals).unsqueeze(-1), width)


def test_the_cells_farthest_from_0_are_still_told_apart():
    far = 2.0**53
    cells = GoalCells.of(torch.tensor([[far], [far - 1], [-far], [far]], dtype=torch.float64), 1.0)
    assert cells.size.tolist() == [2, 1, 1, 2]


def test_a_stitch_goes_on_from_any_row_of_the_cell_to_any_of_its_future():
    # two trajectories of three rows, which meet in the rows 2 and 3
    stop = torch.tensor([3, 3, 3, 6, 6, 6])
    cells = GoalCells.of(torch.tensor([[0.0], [1.0], [2.0], [2.0], [3.0], [4.0]]), 0.5)
    uniform = torch.rand(6000, 2, dtype=torch.float64)
    met, reached = stitched_rows(torch.full((6000,), 2), cells, stop, uniform)
    counts = torch.zeros(6, 6).index_put_((met, reached), torch.ones(6000), accumulate=True) / 6000
    # half stay in row 2, the last of its trajectory; the others go on evenly
    expected = torch.zeros(6, 6)
    expected[2, 2], expected[3, 3:] = 1 / 2, 1 / 6
    torch.testing.assert_close(counts, expected, atol=0.03, rtol=0.0)
    alone = stitched_rows(
        torch.tensor([0, 5]), cells, stop, torch.full((2, 2), math.nextafter(1.0, 0.0), dtype=torch.float64)
    )
    assert [rows.tolist() for rows in alone] == [[0, 5], [2, 5]]


STITCH = {
    # a door (column 0) and a ball (columns 1 and 2): what is achieved, the goal, where another trajectory is met and to
    # where it leads
    "the second moves the ball": ([0, 1, 1], [9, 1, 1], [9.3, 1.2, 1.2], [9.3, 7, 7], [9, 7, 7]),
    "the second moves the door": ([0, 1, 1], [0, 5, 1], [0.3, 5.2, 1], [9, 5.2, 1], [9, 5, 1]),
    "the second moves both": ([0, 1, 1], [9, 1, 1], [9, 1, 1], [0, 4, 1], [0, 4, 1]),
    "the second moves nothing": ([0, 1, 1], [9, 1, 1], [9.3, 1.2, 1.2], [9.3, 1.5, 1.5], [9, 1, 1]),
    "the first moves nothing": ([0, 1, 1], [0.4, 1.3, 1.3], [0, 1, 1], [9, 7, 7], [0.4, 1.3, 1.3]),
    "the first moves by the threshold": ([0, 1, 1], [0.5, 1, 1], [0, 1, 1], [9, 7, 7], [0.5, 1, 1]),
}


@pytest.mark.parametrize("case", STITCH)
def test_what_the_second_trajectory_moves_is_asked_for_too(case):
    *given, expected = (torch.tensor([row], dtype=torch.float64) for row in STITCH[case])
    achieved, goal, met, reached = given
    options = {"threshold": 0.5, "parts": ((0, 1), (1, 3))}
    before = goal.clone()
    assert torch.equal(stitched_goal(goal, achieved, met, reached, torch.tensor([True]), **options), expected)
    assert torch.equal(stitched_goal(goal, achieved, met, reached, torch.tensor([False]), **options), goal)
    assert torch.equal(goal, before)


def test_a_goal_about_one_thing_is_stitched_as_a_whole_and_what_is_of_no_part_stays():
    rows = torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]], [[3.1, 0.1]], [[3.1, 5.0]]])
    achieved, goal, met, reached = rows
    mask = torch.tensor([True])
    assert torch.equal(stitched_goal(goal, achieved, met, reached, mask, threshold=0.5), reached)
    assert torch.equal(stitched_goal(goal, achieved, met, reached, mask, threshold=0.5, parts=((0, 1),)), goal)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("threshold", [0.5, 1e200])
def test_goals_of_any_dtype_go_on_where_both_trajectories_move_by_more_than_the_threshold(dtype, threshold):
    # two trajectories that meet in the rows 1 and 2; the second moves by 16, whose square wraps to 0 in eight bits
    achieved = torch.tensor([[0], [16], [16], [0]]).to(dtype)
    stop, cells = torch.tensor([2, 2, 4, 4]), GoalCells.of(achieved, 0.5)
    # the second of the rows 1 and 2, and of its own future the second
    uniform = torch.tensor([[0.0, 0.9, 0.9]], dtype=torch.float64)
    rows = (torch.tensor([0]), torch.tensor([1]))
    found = stitched_goal_row(*rows, achieved, cells, stop, uniform, prob=1.0, threshold=threshold)
    assert found.tolist() == [3 if threshold < 1.0 else 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob": 1.5}, r"stitched goals must lie in \[0, 1\], got 1.5"),
        ({"prob": math.nan}, "must lie in"),
        ({"parts": [(0, 2), (1, 3)]}, "of the 3 columns of the goal that do not overlap"),
        ({"parts": [(0, 1), (1, 4)]}, "of the 3 columns"),
        ({"parts": [(-1, 1), (1, 3)]}, "of the 3 columns"),
        ({"parts": [(0, 0), (1, 3)]}, "of the 3 columns"),
        ({"threshold": None}, "need a positive threshold, got None"),
        ({"threshold": 0.0}, "need a positive threshold, got 0.0"),
        ({"threshold": math.nan}, "need a positive threshold, got nan"),
    ],
)
def test_a_stitch_that_cannot_be_done_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_stitch(**{"prob": 0.5, "parts": ((0, 1), (1, 3)), "width": 3, "threshold": 0.1, **change})


def test_what_is_not_stitched_needs_no_threshold():
    check_stitch(0.0, ((0, 9),), 3, None)
    check_stitch(0.5, [(1, 3), (0, 1)], 3, 0.1)
    check_stitch(0.5, (), 3, 0.1)
