"""A window of rows in memory that slides through a table in a file."""

from __future__ import annotations

import io
import pickle
from collections import Counter

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.data._resident import shuffled_trajectories

LENGTHS = (5, 3, 2, 7, 2, 4, 6, 3, 5, 2) * 6  # 234 rows, the longest trajectory 7
RESIDENT = 80


@pytest.fixture
def data(make_store):
    return make_store(LENGTHS).data


def make(data, folder, batch_size=4, **options):
    return GoalBatchSampler(data, batch_size, mapped=folder, resident=RESIDENT, extras=("row",), **options)


def equal(a, b):
    return set(a.keys(True, True)) == set(b.keys(True, True)) and bool((a == b).all())


def number_of(data, rows):
    """Numbers of rows, found by their observation."""
    return (rows["observation"][:, None] == data["observation"]).all(-1).int().argmax(-1)


def order_of_file():
    return shuffled_trajectories(torch.tensor(LENGTHS).cumsum(0).repeat_interleave(torch.tensor(LENGTHS)))[0]


def trajectory_of(rows):
    ends = torch.tensor(LENGTHS).cumsum(0)
    return torch.searchsorted(ends, rows, right=True)


@pytest.mark.parametrize("anchors", [None, "weights"])
@pytest.mark.parametrize("her_ratio", [0.5, 1.0])
def test_batches_hold_unaltered_rows_with_goals_of_their_trajectory_lap_after_lap(data, tmp_path, anchors, her_ratio):
    weights = None if anchors is None else 1.0 + torch.arange(len(data)) % 3
    sampler = make(data, tmp_path, anchors=weights, her_ratio=her_ratio)
    reached = (data["next", "reward"] > 0).squeeze(-1)
    for _ in range(120):
        batch = sampler()
        assert torch.equal(batch["row"].squeeze(-1), number_of(data, batch))
        for part in (batch, batch["q"]):
            row = number_of(data, part)
            for key in ("observation", "action", ("next", "observation"), ("next", "achieved_goal")):
                assert torch.equal(part[key], data[key][row])
            stored = (part["desired_goal"] == data["desired_goal"][row]).all(-1)
            goal = (part["desired_goal"][:, None] == data["next", "achieved_goal"]).all(-1).int().argmax(-1)
            assert bool((stored | ((goal >= row) & (trajectory_of(goal) == trajectory_of(row)))).all())
        kept = (batch["q", "desired_goal"] == data["desired_goal"][number_of(data, batch["q"])]).all(-1)
        assert bool(reached[number_of(data, batch["q"])[kept]].all())
        assert her_ratio < 1.0 or not kept.any()


def test_every_row_comes_as_often_as_from_memory_and_the_window_passes_them_in_turn(data, tmp_path):
    sampler = make(data, tmp_path)
    laps, counts, lately = 40, Counter(), []
    for _ in range(laps * len(data) // 8):
        rows = sampler()["row"].squeeze(-1).tolist()
        counts.update(rows)
        lately.append(set(rows))
    # 4 draws a batch, each of 234 rows with the same chance over a lap: 20 of each, sd 4.5 if drawn from memory
    found = torch.tensor([counts[row] for row in range(len(data))], dtype=torch.float64)
    assert abs(float(found.mean()) - laps / 2) < 1e-9
    assert float(found.min()) > 4
    assert float(found.max()) < 45
    # ten batches move the window by 80 rows at most: they come from no more than two windows
    several = [len(set().union(*lately[start : start + 10])) for start in range(0, 400, 10)]
    assert max(several) <= 2 * RESIDENT
    # far more than a window over a lap
    assert len(set().union(*lately[:29])) > RESIDENT


def test_memory_holds_a_window_of_whole_trajectories_and_no_more(data, tmp_path):
    sampler = make(data, tmp_path)
    assert len(sampler) == len(data)
    order = order_of_file()
    windows = set()
    for _ in range(100):
        sampler.draw()
        held = sampler._resident
        assert held.table.shape[0] == RESIDENT
        low, size = int(held.window.low), int(held.window.size)
        assert RESIDENT - 2 * max(LENGTHS) < size <= RESIDENT
        own = order[(low + torch.arange(size)) % len(data)]
        windows.add((low, size))
        counts = Counter(trajectory_of(own).tolist())
        assert all(count == LENGTHS[trajectory] for trajectory, count in counts.items())
        table = held.table[held.slots((low + torch.arange(size)) % len(data))]
        assert torch.equal(table[:, :4], data["observation"][own])
    assert len(windows) > 50
    assert not list(tmp_path.iterdir())


def test_the_order_in_the_file_is_one_of_chance_that_keeps_trajectories_together():
    stop = torch.tensor(LENGTHS).cumsum(0).repeat_interleave(torch.tensor(LENGTHS))
    order, ends = shuffled_trajectories(stop)
    assert sorted(order.tolist()) == list(range(len(stop)))
    assert torch.equal(order, shuffled_trajectories(stop)[0])
    inside = order[1:] == order[:-1] + 1
    places = trajectory_of(order)
    assert torch.equal(places[1:] == places[:-1], inside & (stop[order[:-1]] == stop[order[1:]]))
    # one past the last row of each trajectory, where it lies now
    last = torch.cat([places[1:] != places[:-1], torch.tensor([True])]).nonzero().squeeze(-1) + 1
    assert torch.equal(ends, last[torch.searchsorted(last, torch.arange(len(stop)), right=True)])
    assert not torch.equal(places, places.sort().values)


def test_it_resumes_where_it_was_and_seeds_are_apart(data, tmp_path):
    sampler, other = make(data, tmp_path, seed=3), make(data, tmp_path, seed=5)
    for _ in range(37):
        sampler()
    state = sampler.state_dict()
    expected = [sampler().clone() for _ in range(25)]
    other.load_state_dict(state)
    assert all(equal(other(), batch) for batch in expected)
    first = make(data, tmp_path, seed=7)
    second = sampler.with_seed(7)
    assert all(equal(first(), second()) for _ in range(30))
    # back to where the other one stands
    sampler.load_state_dict(state)
    assert all(equal(sampler(), batch) for batch in expected)


def test_several_seeds_in_step_share_the_window(data, tmp_path):
    sampler = make(data, tmp_path)
    alone = [make(data, tmp_path, seed=seed) for seed in (1, 2)]
    together = [sampler.with_seed(seed) for seed in (1, 2)]
    for _ in range(60):
        draws = [each.draw() for each in together]
        for uniform, single in zip(draws, alone):
            assert equal(together[0].gather(uniform), single())


def test_a_compiled_batch_follows_the_window_without_a_second_graph(data, tmp_path):
    sampler = make(data, tmp_path)
    counter = CompileCounter()
    compiled = torch.compile(sampler.gather, fullgraph=True, backend=counter)
    lows = set()
    for _ in range(40):
        uniform = sampler.draw()
        lows.add(int(sampler._resident.window.low))
        assert equal(compiled(uniform), sampler.gather(uniform))
    assert len(lows) > 20
    assert counter.frame_count == 1


def test_rewards_away_goals_and_first_observations_are_those_of_the_row(data, tmp_path):
    def near(achieved, goal):
        return (achieved - goal).norm(dim=-1) <= 0.5

    options = {"success": near, "strategy": "away", "threshold": 0.5, "her_ratio": 1.0}
    sampler = GoalBatchSampler(
        data, 4, mapped=tmp_path, resident=RESIDENT, extras=("row", "initial_observation", "achieved_goal"), **options
    )
    starts = torch.tensor(LENGTHS).cumsum(0) - torch.tensor(LENGTHS)
    achieved = data["next", "achieved_goal"]
    for _ in range(60):
        batch = sampler()
        row = batch["row"].squeeze(-1)
        assert torch.equal(batch["initial_observation"], data["observation"][starts[trajectory_of(row)]])
        assert torch.equal(batch["achieved_goal"], data["achieved_goal"][row])
        expected = near(batch["next", "achieved_goal"], batch["desired_goal"])
        assert torch.equal(batch["next", "reward"].squeeze(-1), expected.float())
        goal = (batch["desired_goal"][:, None] == achieved).all(-1).int().argmax(-1)
        for i, k in zip(row.tolist(), goal.tolist()):
            later = range(i, int(starts[trajectory_of(torch.tensor(i))]) + LENGTHS[int(trajectory_of(torch.tensor(i)))])
            first = next((j for j in later if (achieved[j] - achieved[i]).norm() > 0.5), i)
            assert first <= k <= later[-1]


def test_rows_of_weight_zero_never_come_and_a_window_of_them_is_refused(data, tmp_path):
    weights = (torch.arange(len(data)) % 2).float()
    sampler = make(data, tmp_path, anchors=weights)
    rows = torch.cat([sampler()["row"] for _ in range(100)])
    assert bool((rows % 2 == 1).all())
    # the last that the file holds: far from the first window
    one = torch.zeros(len(data))
    one[order_of_file()[-1]] = 1.0
    with pytest.raises(ValueError, match=r"no row among the \d+ in memory has a positive anchor weight"):
        make(data, tmp_path, anchors=one)


@pytest.mark.parametrize("resident", [0, 70, 234, 1000])
def test_a_window_too_small_or_larger_than_the_data_is_refused(data, tmp_path, resident):
    # a trajectory of 7, and 8 times 4 rows of rho and 4 of q
    with pytest.raises(ValueError, match=rf"resident= expects from 71 .* to 233 rows .*, got {resident}\."):
        GoalBatchSampler(data, 4, mapped=tmp_path, resident=resident)


def test_other_misuse_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="resident=80: of no use without mapped="):
        GoalBatchSampler(data, 4, resident=80)
    whole, part = GoalBatchSampler(data, 4), make(data, tmp_path)
    with pytest.raises(ValueError, match="draws from a window of rows, and the state is of one that draws from all"):
        part.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match="draws from all rows, and the state is of one that draws from a window"):
        whole.load_state_dict(part.state_dict())


def test_it_cannot_be_sent_and_says_why(data, tmp_path):
    with pytest.raises(TypeError, match=r"a sampler with resident= can be neither pickled .* Make it anew"):
        pickle.dumps(make(data, tmp_path))


def test_a_file_that_ends_early_is_an_error(data, tmp_path):
    sampler = make(data, tmp_path)
    whole = sampler._resident._file
    whole.seek(0)
    sampler._resident._file = io.BytesIO(whole.read()[: 100 * sampler._resident.table.shape[1] * 4])
    with pytest.raises(OSError, match="the file of the table ended early"):
        sampler._resident.move_to(10)
