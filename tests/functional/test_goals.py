"""Goal index arithmetic: intervals by property, probabilities by enumeration, static graphs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from torchrl_smore.functional import goals
from torchrl_smore.functional.goals import (
    NUM_UNIFORMS,
    STRATEGIES,
    RowWindow,
    check_strategy,
    cumulative_weights,
    first_row,
    first_row_away,
    future_goal_row,
    geometric_goal_row,
    goal_offset,
    goal_row,
    goal_transition_rows,
    trajectory_stop,
    uniform_index,
    weighted_index,
)

LAST = 1.0 - 2.0**-53  # the largest double below 1


def bounds(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """First row and end of the trajectory of every row."""
    ends = torch.tensor(lengths).cumsum(0)
    stop = torch.repeat_interleave(ends, torch.tensor(lengths))
    return torch.repeat_interleave(ends - torch.tensor(lengths), torch.tensor(lengths)), stop


def grid(n: int) -> torch.Tensor:
    """Midpoints of n equal cells of [0, 1): every draw of a uniform over a divisor of n is counted exactly."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


uniforms = st.one_of(st.floats(0.0, LAST), st.sampled_from([0.0, LAST, 1.0 - 2.0**-24]))
datasets = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@given(low=st.integers(-(2**40), 2**40), width=st.integers(1, 2**40), uniform=uniforms)
def test_a_uniform_index_stays_in_its_half_open_interval(low, width, uniform):
    index = uniform_index(torch.tensor(uniform, dtype=torch.float64), low, low + width)
    assert index.dtype == torch.int64
    assert low <= index.item() < low + width


@pytest.mark.parametrize("width", [1, 3, 5, 2**24 - 1, 2**31 - 1, 2**53 - 1])
def test_the_largest_uniforms_of_both_precisions_give_the_last_index(width):
    assert uniform_index(torch.tensor(LAST, dtype=torch.float64), 0, width).item() == width - 1
    single = torch.tensor(1.0 - 2.0**-24, dtype=torch.float32)
    # the exact product, floored, in integers; a float32 product would round up to the width
    assert uniform_index(single, 0, width).item() == pytest.approx(width * (2**24 - 1) // 2**24, abs=1)
    assert uniform_index(single, 0, width).item() < width


@given(lengths=datasets, data=st.data(), strategy=st.sampled_from(["future", "geometric", "final"]), uniform=uniforms)
def test_goals_are_later_in_state_time_and_in_the_same_trajectory(lengths, data, strategy, uniform):
    _, stop = bounds(lengths)
    row = data.draw(st.integers(0, len(stop) - 1))
    k = goal_row(
        strategy, torch.tensor([row]), stop[[row]], torch.tensor([uniform], dtype=torch.float64), len(stop), 0.9
    )
    # the goal of row k is its *next* achieved goal: k >= i is strictly later than the state of row i
    assert row <= k.item() < stop[row].item()


def test_the_future_strategy_is_exactly_uniform_and_includes_the_last_state():
    n, index, stop = 12 * 5 * 7, 3, 10
    k = future_goal_row(torch.full((n,), index), torch.full((n,), stop), grid(n))
    assert torch.bincount(k, minlength=stop).tolist() == [0, 0, 0] + [n // 7] * 7


def test_the_geometric_strategy_has_its_exact_probabilities_and_is_cut_at_the_last_row():
    n, gamma, index, stop = 100_000, 0.9, 2, 8
    k = geometric_goal_row(torch.full((n,), index), torch.full((n,), stop), grid(n), gamma)
    share = torch.bincount(k, minlength=stop).double() / n
    expected = [0.0, 0.0] + [(1 - gamma) * gamma**j for j in range(5)] + [gamma**5]
    torch.testing.assert_close(share, torch.tensor(expected, dtype=torch.float64), atol=1.01 / n, rtol=0.0)


def test_the_final_strategy_is_the_last_row_and_random_is_uniform_over_the_dataset():
    _start, stop = bounds([3, 1, 4])
    rows = torch.arange(8)
    assert goal_row("final", rows, stop, torch.rand(8), 8).tolist() == [2, 2, 2, 3, 7, 7, 7, 7]
    k = goal_row("random", torch.zeros(80, dtype=torch.int64), stop[:1].expand(80), grid(80), 8)
    assert torch.bincount(k).tolist() == [10] * 8


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=datasets, her_ratio=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_every_row_of_a_batch_keeps_the_invariants(strategy, lengths, her_ratio, seed):
    _start, stop = bounds(lengths)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(64, NUM_UNIFORMS, generator=generator)
    reached = (torch.rand(len(stop), generator=generator) < 0.3).nonzero().squeeze(-1)
    away = torch.minimum(torch.arange(len(stop)) + 2, stop)
    rows = goal_transition_rows(uniform, stop, reached, her_ratio=her_ratio, strategy=strategy, away=away)
    n = len(stop)
    for field in (rows.index, rows.goal_index, rows.q_index):
        assert field.dtype == torch.int64
        assert field.shape == (64,)
        assert ((field >= 0) & (field < n)).all()
    if strategy != "random":
        assert ((rows.index <= rows.goal_index) & (rows.goal_index < stop[rows.index])).all()
    if her_ratio in (0.0, 1.0):
        assert (rows.relabel_mask == bool(her_ratio)).all()
    if len(reached) == 0:
        assert rows.q_relabel_mask.all()
    else:
        if her_ratio in (0.0, 1.0):
            assert (rows.q_relabel_mask == bool(her_ratio)).all()
        # what is not relabelled pursues its stored goal, and reaches it
        assert torch.isin(rows.q_index[~rows.q_relabel_mask], reached).all()


def exact_goal_distribution(stop: torch.Tensor) -> torch.Tensor:
    """P(m) of the future goal of a uniform anchor: the sum of 1/N 1/(stop - a) over its anchors a <= m."""
    n = len(stop)
    out = torch.zeros(n, dtype=torch.float64)
    for a in range(n):
        out[a : stop[a]] += 1.0 / n / (stop[a].item() - a)
    return out


def chi_square(rows: torch.Tensor, probability: torch.Tensor) -> float:
    expected = probability * len(rows)
    return ((torch.bincount(rows, minlength=len(probability)) - expected) ** 2 / expected).sum().item()


def test_rho_is_uniform_and_q_is_distributed_as_the_goals_are_and_independent_of_rho():
    _, stop = bounds([4, 1, 5])
    rows = goal_transition_rows(
        torch.rand(100_000, NUM_UNIFORMS), stop, torch.arange(0), her_ratio=1.0, strategy="future"
    )
    probability = exact_goal_distribution(stop)
    # chi-square with 9 degrees of freedom: 27.9 has probability 0.001
    assert chi_square(rows.index, torch.full((10,), 0.1, dtype=torch.float64)) < 27.9
    assert chi_square(rows.goal_index, probability) < 27.9
    assert chi_square(rows.q_index, probability) < 27.9
    # 99 degrees of freedom: 148.2 has probability 0.001
    joint = (probability[:, None] * probability).flatten()
    assert chi_square(rows.goal_index * 10 + rows.q_index, joint) < 148.2


def test_her_ratio_is_the_relabelled_share_of_rho_and_of_q_independently():
    _, stop = bounds([10])
    rows = goal_transition_rows(torch.rand(40_000, NUM_UNIFORMS), stop, torch.tensor([3, 7]), her_ratio=0.8)
    joint = torch.bincount(2 * rows.relabel_mask.long() + rows.q_relabel_mask.long(), minlength=4) / 40_000
    torch.testing.assert_close(joint, torch.tensor([0.04, 0.16, 0.16, 0.64]), atol=0.01, rtol=0.0)
    kept = rows.q_index[~rows.q_relabel_mask]
    assert (kept == 3).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_a_given_index_is_kept_and_the_draw_is_a_function_of_the_uniforms():
    _, stop = bounds([4, 6])
    uniform, index = torch.rand(32, NUM_UNIFORMS), torch.randint(10, (32,))
    first = goal_transition_rows(uniform, stop, torch.tensor([9]), her_ratio=0.5, index=index)
    again = goal_transition_rows(uniform.clone(), stop, torch.tensor([9]), her_ratio=0.5, index=index)
    assert torch.equal(first.index, index)
    for name in ("index", "goal_index", "relabel_mask", "q_index", "q_relabel_mask"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    # q does not depend on which rows a sampler gave
    other = goal_transition_rows(uniform, stop, torch.tensor([9]), her_ratio=0.5, index=index.flip(0))
    assert torch.equal(first.q_index, other.q_index)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [0.0, LAST])
def test_the_ends_of_the_unit_interval_are_safe_everywhere(strategy, value):
    _, stop = bounds([1, 3, 2])
    uniform = torch.full((6, NUM_UNIFORMS), value, dtype=torch.float64)
    rows = goal_transition_rows(uniform, stop, torch.tensor([4]), her_ratio=0.5, strategy=strategy, away=stop)
    assert rows.index.tolist() == [0 if value == 0.0 else 5] * 6
    assert ((rows.goal_index >= 0) & (rows.goal_index < 6)).all()
    assert ((rows.q_index >= 0) & (rows.q_index < 6)).all()


def test_a_gamma_next_to_one_reaches_the_end_without_overflow():
    k = geometric_goal_row(
        torch.tensor([0]), torch.tensor([50]), torch.tensor([LAST], dtype=torch.float64), 1.0 - 1e-16
    )
    assert k.item() == 49


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"her_ratio": 1.5}, r"her_ratio must lie in \[0, 1\], got 1.5"),
        ({"her_ratio": -0.1}, "her_ratio must lie"),
        ({"her_ratio": math.nan}, "her_ratio must lie"),
        ({"uniform": torch.rand(4, 3)}, r"shape \[B, 8\], got \(4, 3\)"),
        ({"uniform": torch.rand(NUM_UNIFORMS)}, r"shape \[B, 8\], got \(8,\)"),
        ({"stop": torch.zeros(0, dtype=torch.int64)}, "empty dataset"),
        ({"strategy": "futrue"}, "unknown goal strategy 'futrue'.*Did you mean 'future'"),
        ({"strategy": "geometric", "gamma": 1.0}, r"gamma must lie in \(0, 1\) for .*'geometric', got 1.0"),
        ({"index": torch.zeros(3, dtype=torch.int64)}, r"one index for each of the 4 rows, got \(3,\)"),
    ],
    # not str: that of a random tensor differs from one test process to the next
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused_with_what_was_expected(change, message):
    arguments = {
        "uniform": torch.rand(4, NUM_UNIFORMS),
        "stop": torch.full((5,), 5),
        "reached": torch.arange(0),
        "her_ratio": 0.8,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        goal_transition_rows(**arguments)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_goal_transition_rows_is_one_static_graph_that_is_not_compiled_twice(strategy):
    _, stop = bounds([4, 6])
    reached = torch.tensor([2, 9])
    counter = CompileCounter()
    torch._dynamo.reset()

    def draw(uniform: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = goal_transition_rows(uniform, stop, reached, her_ratio=0.8, strategy=strategy, away=stop)
        return rows.index, rows.goal_index, rows.relabel_mask, rows.q_index, rows.q_relabel_mask

    compiled = torch.compile(draw, backend=counter, fullgraph=True)
    for _ in range(3):
        uniform = torch.rand(16, NUM_UNIFORMS)
        for ours, eager in zip(compiled(uniform), draw(uniform)):
            assert torch.equal(ours, eager)
    assert counter.frame_count == 1


@given(lengths=datasets)
def test_trajectory_stop_inverts_the_flags_that_close_trajectories(lengths):
    _, stop = bounds(lengths)
    done = torch.zeros(len(stop), dtype=torch.bool)
    done[stop.unique() - 1] = True
    assert torch.equal(trajectory_stop(done), stop)


@pytest.mark.parametrize("done", [[], [True, False]], ids=["empty", "open"])
def test_an_open_last_trajectory_is_refused(done):
    with pytest.raises(ValueError, match="must be done"):
        trajectory_stop(torch.tensor(done, dtype=torch.bool))


@pytest.mark.parametrize("open_end", [False, True])
def test_flags_in_a_column_are_refused_by_their_shape(open_end):
    with pytest.raises(ValueError, match=r"expected done of shape \[N\], got \[2, 1\]"):
        trajectory_stop(torch.tensor([[False], [True]]), open_end=open_end)


def test_the_last_trajectory_may_be_open_on_request():
    done = torch.tensor([False, True, False, False])
    assert trajectory_stop(done, open_end=True).tolist() == [2, 2, 4, 4]


@given(lengths=datasets)
def test_the_first_row_is_that_of_the_row_s_own_trajectory(lengths):
    start, stop = bounds(lengths)
    rows = torch.arange(len(stop)).flip(0)
    assert torch.equal(first_row(rows, stop), start.flip(0))


def test_a_goal_lies_as_many_steps_away_as_rows_and_a_kept_one_none():
    index, goal_index = torch.tensor([3, 3, 3]), torch.tensor([7, 3, 5])
    assert goal_offset(index, goal_index, torch.tensor([True, True, False])).tolist() == [[4], [0], [-1]]


def test_rows_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    cumulative = cumulative_weights(weights)
    assert cumulative.tolist() == [0.0, 0.25, 0.25, 1.0, 1.0]
    uniform = torch.tensor([0.0, 0.249, 0.25, 0.9, LAST], dtype=torch.float64)
    assert weighted_index(uniform, cumulative).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -2.0], "not negative, got -2.0 in row 1"),
        ([1.0, math.nan], "finite and not negative, got nan in row 1"),
        ([math.inf, 1.0], "finite and not negative, got inf in row 0"),
        ([0.0, 0.0], "at least one weight must be positive"),
        ([], "at least one weight must be positive"),
        ([[1.0]], r"expected weights of shape \[N\], got \[1, 1\]"),
        ([1e308, 1e308, 1.0], r"sum of the weights must be finite, got inf: their largest is 1e\+308"),
    ],
)
def test_weights_that_cannot_be_drawn_from_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        cumulative_weights(torch.tensor(weights, dtype=torch.float64))


def test_the_first_row_away_is_that_of_a_search_row_by_row(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 7, 30, 2]
    stop = torch.repeat_interleave(torch.tensor(lengths).cumsum(0), torch.tensor(lengths))
    goal = torch.randn(sum(lengths), 2, generator=generator).cumsum(0)
    expected = [
        next((k for k in range(i + 1, int(stop[i])) if float((goal[k] - goal[i]).norm()) > 1.5), int(stop[i]))
        for i in range(len(stop))
    ]
    assert first_row_away(goal, stop, 1.5).tolist() == expected
    assert first_row_away(goal.reshape(-1, 2, 1), stop, 1.5).tolist() == expected
    monkeypatch.setattr(goals, "_AT_A_TIME", 7)  # three rows
    assert first_row_away(goal, stop, 1.5).tolist() == expected
    with pytest.raises(ValueError, match="distance must not be negative, got nan"):
        first_row_away(goal, stop, math.nan)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64, torch.float32], ids=str)
def test_whole_goals_of_any_size_lie_as_far_apart_as_they_do(dtype):
    # 16^2 wraps to 0 in eight bits; and so does 3 - 19, below 0, in unsigned ones
    goal = torch.tensor([[3, 0], [19, 0], [3, 0], [3, 1], [3, 0]], dtype=dtype)
    stop = torch.full((5,), 5)
    assert first_row_away(goal, stop, 15.5).tolist() == [1, 2, 5, 5, 5]
    assert first_row_away(goal, stop, 16.0).tolist() == [5, 3, 5, 5, 5]  # 16^2 + 1 is more than 16^2
    if dtype == torch.int16:
        # 256^2 wraps to 0 in sixteen bits
        assert first_row_away(torch.tensor([0, 256], dtype=dtype), torch.tensor([2, 2]), 1.0).tolist() == [1, 2]


def test_goals_that_are_flags_or_single_numbers_have_distances_too():
    flags = torch.tensor([[True, False], [True, False], [True, True]])
    assert first_row_away(flags, torch.tensor([3, 3, 3]), 0.5).tolist() == [2, 2, 3]
    assert first_row_away(torch.tensor([0.0, 0.25, 1.0]), torch.tensor([3, 3, 3]), 0.5).tolist() == [2, 2, 3]
    assert first_row_away(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 0.5).tolist() == []


def test_a_distance_whose_square_overflows_is_one_that_no_goal_exceeds():
    goal = torch.tensor([[0.0], [1e300]], dtype=torch.float64)
    assert first_row_away(goal, torch.tensor([2, 2]), 1e200).tolist() == [2, 2]


def test_away_goals_lie_away_where_any_does():
    stop = torch.full((6,), 6)
    away = torch.tensor([3, 4, 6, 6, 6, 6])
    uniform = torch.rand(4000, NUM_UNIFORMS)
    rows = goal_transition_rows(uniform, stop, torch.arange(0), her_ratio=1.0, strategy="away", away=away)
    for row, expected in ((0, {3, 4, 5}), (1, {4, 5}), (2, {2, 3, 4, 5}), (5, {5})):
        assert set(rows.goal_index[rows.index == row].tolist()) == expected
    with pytest.raises(ValueError, match="needs the first row away"):
        goal_transition_rows(uniform, stop, torch.arange(0), her_ratio=1.0, strategy="away")


def test_shares_of_strategies_are_drawn_as_often_as_they_say_and_each_as_it_would_alone():
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    zeros, stop = torch.zeros(10_000, dtype=torch.int64), torch.full((10_000,), 4)
    shares = {"current": 0.25, "final": 0.0, "future": 0.5, "random": 0.25}
    rows = goal_row(shares, zeros, stop, uniform, 100)
    # a quarter at row 0, half spread over 0 to 3, a quarter over 0 to 99
    counts = torch.bincount(rows, minlength=100) / 10_000
    expected = torch.full((100,), 0.0025)
    expected[:4] += 0.125
    expected[0] += 0.25
    torch.testing.assert_close(counts, expected, atol=2e-4, rtol=0.0)


def test_the_largest_number_of_a_share_stays_in_the_trajectory_in_single_precision():
    # 0.05 is where the second share ends: in float32 the number below it is stretched to 1
    just_below = torch.nextafter(torch.tensor([0.05]), torch.tensor([0.0]))
    zero, stop = torch.tensor([0]), torch.tensor([10])
    for second in ("future", "geometric"):
        shares = {"current": 0.01, second: 0.04, "final": 0.95}
        assert 0 <= goal_row(shares, zero, stop, just_below, 1000).item() < 10
    below_one = torch.nextafter(torch.ones(1), torch.zeros(1))
    for percent in range(1, 100):
        shares = {"current": percent / 100, "random": 1 - percent / 100}
        assert 0 <= goal_row(shares, zero, stop, below_one, 1000).item() < 1000


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"future": 0.5}, "add up to 1, got {'future': 0.5}"),
        ({"future": 1.5, "final": -0.5}, "must not be negative"),
        ({"futrue": 1.0}, "Did you mean 'future'"),
    ],
)
def test_shares_that_are_none_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        check_strategy(shares)


def test_the_actor_may_have_goals_of_its_own():
    stop = torch.full((8,), 8)
    rows = goal_transition_rows(
        torch.rand(500, NUM_UNIFORMS), stop, torch.arange(0), her_ratio=1.0, strategy="current", actor_strategy="final"
    )
    assert torch.equal(rows.goal_index, rows.index)
    assert bool((rows.actor_goal_index == 7).all())


def window_of(low, size, reached=(0, 0), weight=(0.0, 1.0)):
    counts = (torch.tensor(number) for number in (low, size, *reached))
    return RowWindow(*counts, *(torch.tensor(number, dtype=torch.float64) for number in weight))


def test_anchors_of_a_window_lie_in_it_also_where_it_begins_anew():
    uniform = torch.linspace(0.0, 1.0, 13, dtype=torch.float64)[:-1]
    # rows 8, 9, 0 of ten: four of twelve numbers each
    assert window_of(8, 3).anchor_row(uniform, 10, None).tolist() == [8] * 4 + [9] * 4 + [0] * 4


def test_anchors_of_a_window_follow_its_own_weights():
    # of weights 1, 1, 2, 4 the rows 3, 0, 1: weight 6 of 8, from 4 of 8 on
    cumulative = cumulative_weights(torch.tensor([1.0, 1.0, 2.0, 4.0]))
    uniform = torch.linspace(0.0, 1.0, 13, dtype=torch.float64)[:-1] + 0.01
    window = window_of(3, 3, weight=(4 / 8, 6 / 8))
    assert window.anchor_row(uniform, 4, cumulative).tolist() == [3] * 8 + [0] * 2 + [1] * 2
    # a number that rounding puts past the window's weight stays in it
    assert window.anchor_row(torch.ones(1, dtype=torch.float64), 4, cumulative).tolist() == [1]


def test_a_window_without_a_row_that_reaches_its_goal_relabels_all_goal_transitions():
    stop, reached = torch.tensor([3, 3, 3, 6, 6, 6]), torch.tensor([1, 2])
    uniform = torch.rand(50, NUM_UNIFORMS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    without = goal_transition_rows(uniform, stop, reached, her_ratio=0.0, window=window_of(3, 3))
    assert bool(without.q_relabel_mask.all())
    assert bool((without.q_index >= 3).all())
    assert torch.equal(without.reached_index, without.q_index)
    # the second and the first of those that reach, in this order
    having = goal_transition_rows(uniform, stop, reached, her_ratio=0.0, window=window_of(2, 5, reached=(1, 2)))
    assert not having.q_relabel_mask.any()
    assert torch.equal(having.q_index, torch.where(uniform[:, 6] < 0.5, 2, 1))
