"""The packed table: contents, generator, warnings, and one static graph."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from torchrl_smore.data import GoalBatchSampler, packed
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.functional.goals import NUM_UNIFORMS
from torchrl_smore.functional.stitching import NUM_STITCH_UNIFORMS


def near(achieved_goal, goal):
    return (achieved_goal - goal).norm(dim=-1) <= 0.5


def rows_of(data, batch):
    """Numbers of the rows of a batch, found by their observation."""
    return (batch["observation"][:, None] == data["observation"]).all(-1).int().argmax(-1)


def equal(a, b):
    return set(a.keys(True, True)) == set(b.keys(True, True)) and bool((a == b).all())


def test_a_batch_holds_unaltered_rows_under_the_names_that_losses_read(store):
    sampler = GoalBatchSampler(store.data, 64)
    batch = sampler()
    expected = {"observation", "action", "desired_goal"}
    after = {"observation", "achieved_goal", "desired_goal"}
    assert set(batch.keys()) == expected | {"next", "q"}
    for rows in (batch, batch["q"]):
        number = rows_of(store.data, rows)
        for key in ("observation", "action", ("next", "observation"), ("next", "achieved_goal")):
            torch.testing.assert_close(rows[key], store.data[key][number])
        torch.testing.assert_close(rows["next", "desired_goal"], rows["desired_goal"])
        assert set(rows["next"].keys()) == after
        assert rows.batch_size == rows["next"].batch_size == (64,)
    assert len(sampler) == 17


def test_what_is_only_said_to_be_done_is_done_and_not_terminated(store):
    last = store.data["next", "done"]
    data = store.data.exclude(("next", "terminated"), ("next", "truncated"))
    batch = GoalBatchSampler(data, 200, success=near, extras=["row"])()
    assert bool(batch["next", "done"].any())
    assert torch.equal(batch["next", "done"], last[batch["row"].squeeze(-1)])
    assert not bool(batch["next", "terminated"].any())


def test_rewards_are_added_with_a_success_rule_worked_by_hand(make_store):
    data = make_store((3,)).data
    data["next", "achieved_goal"] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    data["desired_goal"] = torch.tensor([[3.25, 0.0]] * 3)
    data["next", "reward"] = torch.tensor([[0.0], [0.0], [1.0]])
    # u0 -> row; u1 -> goal row; u2, u5 -> relabel; u3 -> anchor; u4 -> its goal row; u6 -> reached row
    uniform = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # row 0, goal row 0; q enters row 0
            [0.0, 0.9, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0],  # row 0, goal row 2; q enters row 1
            [0.4, 0.0, 0.9, 0.0, 0.0, 0.9, 0.0, 0.0],  # row 1, stored goal; q reaches the stored goal in row 2
            [0.9, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0],  # row 2, stored goal, which it reaches; q enters row 0
        ],
        dtype=torch.float64,
    )
    sampler = GoalBatchSampler(data, 4, her_ratio=0.8, success=near, reward_values=(-1.0, 0.0), terminate_at_goal=True)
    batch = sampler.gather(uniform)
    q = batch["q"]
    assert batch["desired_goal"][:, 0].tolist() == [1.0, 3.0, 3.25, 3.25]
    assert batch["next", "reward"].squeeze(-1).tolist() == [0.0, -1.0, -1.0, 0.0]
    assert batch["next", "terminated"].squeeze(-1).tolist() == [True, False, False, True]
    assert batch["next", "done"].squeeze(-1).tolist() == [True, False, False, True]
    assert q["desired_goal"][:, 0].tolist() == [1.0, 2.0, 3.25, 1.0]
    assert q["next", "achieved_goal"][:, 0].tolist() == [1.0, 2.0, 3.0, 1.0]
    assert q["next", "reward"].squeeze(-1).tolist() == [0.0] * 4
    without = GoalBatchSampler(data, 4, success=lambda a, g: near(a, g) & False).gather(uniform)
    # the last row stays truncated whatever its goal
    assert without["next", "done"].squeeze(-1).tolist() == [False, False, False, True]
    assert without["next", "terminated"].any().item() is False


def test_q_is_left_out_on_request(store):
    assert GoalBatchSampler(store.data, 8, q=False)().get("q", None) is None


def test_equal_seeds_give_equal_batches_whatever_the_global_seed(store):
    first = GoalBatchSampler(store.data, 32, seed=5)
    torch.manual_seed(77)
    second, third = GoalBatchSampler(store.data, 32, seed=5), GoalBatchSampler(store.data, 32, seed=6)
    for _ in range(3):
        batch = first()
        assert equal(batch, second())
        assert not equal(batch, third())


def test_with_another_seed_the_table_is_shared_and_the_stream_is_that_of_the_seed(store):
    first = GoalBatchSampler(store.data, 16, seed=1)
    second = first.with_seed(2)
    assert second._table is first._table
    assert equal(second(), GoalBatchSampler(store.data, 16, seed=2)())
    # drawing from one has not moved the other
    assert equal(first(), GoalBatchSampler(store.data, 16, seed=1)())


def test_the_state_of_the_generator_may_lie_on_another_device(store, monkeypatch):
    sampler = GoalBatchSampler(store.data, 4)
    state = sampler.state_dict()["generator"]
    expected = sampler()
    moved = torch.empty_like(state, device="meta")
    monkeypatch.setattr(type(moved), "cpu", lambda self: state)
    sampler.load_state_dict({"generator": moved})
    assert equal(sampler(), expected)


def test_the_state_of_the_generator_goes_round(store):
    sampler = GoalBatchSampler(store.data, 32, seed=5)
    sampler()
    state = sampler.state_dict()
    expected = [sampler() for _ in range(2)]
    other = GoalBatchSampler(store.data, 32, seed=0)
    other.load_state_dict(state)
    assert all(equal(batch, other()) for batch in expected)


def test_gather_is_a_pure_function_of_its_uniforms(store):
    sampler = GoalBatchSampler(store.data, 16)
    uniform = sampler.draw()
    assert uniform.shape == (16, NUM_UNIFORMS)
    assert uniform.dtype == torch.float64
    before = sampler.generator.get_state()
    assert equal(sampler.gather(uniform), sampler.gather(uniform))
    torch.testing.assert_close(sampler.generator.get_state(), before)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"success": near},
        {"strategy": "geometric"},
        {"strategy": "away", "threshold": 0.1, "actor_strategy": {"final": 0.5, "future": 0.5}},
        {"stitch": 0.5, "goal_parts": ((0, 1), (1, 2)), "threshold": 1.0, "actor_strategy": "final"},
    ],
    ids=["plain", "success", "geometric", "of_the_actor_own", "stitch"],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_gather_is_one_static_graph_and_equals_eager(store, options, weighted):
    torch._dynamo.reset()
    anchors = torch.arange(len(store.data), dtype=torch.float64) if weighted else None
    sampler = GoalBatchSampler(store.data, 16, anchors=anchors, **options)
    counter = CompileCounter()
    compiled = torch.compile(sampler.gather, backend=counter, fullgraph=True)
    for _ in range(3):
        uniform = sampler.draw()
        assert equal(compiled(uniform), sampler.gather(uniform))
    assert counter.frame_count == 1


def two_things(make_store):
    """Three trajectories: the first moves a thing from 0 to 3, the second, from there, another one from 0 to 4.

    What the third does begins elsewhere.
    """
    data = make_store((3, 4, 2)).data
    first = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    second = [[3.0, 1.0], [3.0, 2.0], [3.0, 3.0], [3.0, 4.0]]
    data["next", "achieved_goal"] = torch.tensor([*first, *second, [9.0, 9.0], [8.0, 9.0]])
    data["desired_goal"] = torch.full((9, 2), 50.0)
    return data


@pytest.mark.parametrize("actor", [False, True])
def test_a_stitched_goal_asks_for_what_another_trajectory_does_from_there(make_store, actor):
    data = two_things(make_store)
    options = {"success": lambda achieved, goal: (achieved == goal).all(-1), "extras": ["row"], "her_ratio": 0.7}
    options |= {"strategy": "current", "actor_strategy": "future"} if actor else {}
    # the cell of 3 and 0 is that of 3 and 1 as well
    stitch = {"stitch": 0.5, "threshold": 0.5, "goal_parts": ((0, 1), (1, 2)), "stitch_width": 3.0}
    plain, sampler = (GoalBatchSampler(data, 20_000, **options, **more) for more in ({}, stitch))
    assert sampler.num_uniforms == plain.num_uniforms + NUM_STITCH_UNIFORMS
    uniform = sampler.draw()
    before, after = plain.gather(uniform[:, :NUM_UNIFORMS]), sampler.gather(uniform)
    assert equal(before["q"], after["q"])
    row, goal, own = after["row"].squeeze(-1), *(b["actor_goal" if actor else "desired_goal"] for b in (after, before))
    found = {tuple(pair) for pair in torch.cat([row.unsqueeze(-1).float(), goal], -1)[goal[:, 0] < 50].tolist()}
    entered = data["next", "achieved_goal"]
    within = {(i, *entered[k].tolist()) for i in range(9) for k in range(i, (3, 3, 3, 7, 7, 7, 7, 9, 9)[i])}
    # rows that move the first thing, which stays where they have it, are asked for the second in each of its places
    # over the threshold from where it may be met, at 0 or 1: (2, 0), (3, 0) and (3, 1) are of one cell
    stitched = {(i, x, y) for i in (0, 1) for x in (2.0, 3.0) for y in (2.0, 3.0, 4.0) if not (i == 1 and x == 2.0)}
    assert found == within | stitched
    if actor:
        assert torch.equal(after["desired_goal"], before["desired_goal"])
    else:
        assert torch.equal(after["next", "reward"].squeeze(-1) > 0, (entered[row] == goal).all(-1))
        assert torch.equal(after["next", "desired_goal"], goal)
    always = GoalBatchSampler(data, 20_000, **options, **stitch | {"stitch": 1.0}).gather(uniform)
    all_goals = always["actor_goal" if actor else "desired_goal"]
    changed, changeable = ((goals != own).any(-1) for goals in (goal, all_goals))
    assert not (changed & ~changeable).any()
    assert changed.sum() / changeable.sum() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stitch": 1.5, "threshold": 0.1}, "must lie in"),
        ({"stitch": 0.5}, "need a positive threshold, got None"),
        ({"stitch": 0.5, "threshold": 0.1, "goal_parts": ((0, 3),)}, "of the 2 columns"),
        ({"stitch": 0.5, "threshold": 0.1, "stitch_width": 0.0}, "must be positive and finite, got 0.0"),
        ({"stitch": 0.5, "threshold": 0.1, "extras": ["goal_offset"]}, "not with stitched goals, got stitch=0.5"),
    ],
)
def test_a_stitch_that_cannot_be_done_is_refused(make_store, options, message):
    with pytest.raises(ValueError, match=message):
        GoalBatchSampler(make_store().data, 8, **options)


def test_rows_at_their_goal_are_those_of_the_rule_that_is_given(make_store, caplog):
    data = make_store().data
    truth = data["next", "reward"].squeeze(-1) > 0
    assert 0 < truth.sum() < len(data)
    uniform = torch.rand(512, GoalBatchSampler.num_uniforms, dtype=torch.float64)
    expected = GoalBatchSampler(data, 512, her_ratio=0.0).gather(uniform)
    data["next", "reward"] -= 1.0  # -1, and 0 at the goal
    sampler = GoalBatchSampler(data, 512, her_ratio=0.0, reached=lambda rows: rows["next", "reward"].squeeze(-1) >= 0.0)
    assert not caplog.records
    assert equal(sampler.gather(uniform), expected)
    with pytest.raises(TypeError, match="reached must return a bool tensor"):
        GoalBatchSampler(data, 2, reached=lambda rows: rows["next", "reward"])


def test_a_sampler_that_was_sent_goes_on_from_the_same_state(store):
    sampler = GoalBatchSampler(store.data, 16, seed=3)
    sampler()
    other = pickle.loads(pickle.dumps(sampler))
    assert equal(other(), sampler())
    assert equal(other.with_seed(5)(), GoalBatchSampler(store.data, 16, seed=5)())


def test_data_that_never_reaches_its_goal_is_said_once_and_only_where_it_matters(make_episodes, caplog):
    from torchrl_smore.data import TrajectoryStore

    episodes = [{**episode, "reward": 0 * episode["reward"]} for episode in make_episodes()]
    data = TrajectoryStore.from_episodes(episodes).data
    with caplog.at_level(logging.WARNING, "torchrl_smore"):
        GoalBatchSampler(data, 4, her_ratio=1.0)()
        GoalBatchSampler(data, 4, q=False)()
        assert not caplog.records
        sampler = GoalBatchSampler(data, 400, her_ratio=0.0)
        batches = [sampler() for _ in range(3)]
    assert len(caplog.records) == 1
    assert "no transition reaches its stored goal" in caplog.text
    for batch in batches:
        torch.testing.assert_close(batch["q", "desired_goal"], batch["q", "next", "achieved_goal"])
        torch.testing.assert_close(batch["desired_goal"], data["desired_goal"][rows_of(data, batch)])


def test_stores_that_were_put_after_each_other_do_not_mix_their_trajectories(make_store):
    first, second = make_store((3, 4), seed=1).data, make_store((5, 2), seed=2).data
    data = torch.cat([first, second])
    batch = GoalBatchSampler(data, 2000, her_ratio=1.0)()
    ends = torch.tensor([2, 6, 11, 13])
    row = rows_of(data, batch)
    goal = (batch["desired_goal"][:, None] == data["next", "achieved_goal"]).all(-1).int().argmax(-1)
    assert bool((goal >= row).all())
    assert torch.equal(torch.searchsorted(ends, goal), torch.searchsorted(ends, row))


def test_the_data_is_copied(store):
    sampler = GoalBatchSampler(store.data, 8)
    uniform = sampler.draw()
    before = sampler.gather(uniform)
    store.data["observation"].zero_()
    assert equal(sampler.gather(uniform), before)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_that_is_not_positive_is_refused(store, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be positive, got {batch_size}"):
        GoalBatchSampler(store.data, batch_size)


@pytest.mark.parametrize("her_ratio", [-0.1, 1.5])
def test_a_her_ratio_outside_its_range_is_refused(store, her_ratio):
    with pytest.raises(ValueError, match=r"her_ratio must lie in \[0, 1\]"):
        GoalBatchSampler(store.data, 8, her_ratio=her_ratio)


def test_extras_say_how_far_the_goal_is_where_the_trajectory_began_and_what_is_achieved(make_store):
    store = make_store(lengths=(4, 2, 6))
    sampler = GoalBatchSampler(
        store.data, 400, her_ratio=0.5, extras=("achieved_goal", "goal_offset", "initial_observation", "row"), seed=3
    )
    batch = sampler()
    data = store.data
    # every observation of the fixture is its own, so a row is found again by it
    row = (batch["observation"][:, None] == data["observation"]).all(-1).int().argmax(1)
    torch.testing.assert_close(batch["row"].squeeze(-1), row)
    torch.testing.assert_close(batch["achieved_goal"], data["achieved_goal"][row])
    torch.testing.assert_close(batch["initial_observation"], data["observation"][data["traj_start"][row]])
    offset = batch["goal_offset"].squeeze(-1)
    kept = offset == -1
    assert 120 < kept.sum() < 280
    torch.testing.assert_close(batch["desired_goal"][kept], data["desired_goal"][row[kept]])
    source = row[~kept] + offset[~kept]
    torch.testing.assert_close(batch["desired_goal"][~kept], data["next", "achieved_goal"][source])
    assert (source < data["traj_stop"][row[~kept]]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extras": ("goal_ofset",)}, "unknown extra 'goal_ofset'.*'goal_offset'"),
        ({"extras": ("goal_offset",), "strategy": "random"}, "goal_offset counts steps within a trajectory"),
    ],
)
def test_extras_that_make_no_sense_are_refused(make_store, options, message):
    with pytest.raises(ValueError, match=message):
        GoalBatchSampler(make_store().data, 4, **options)


def test_columns_of_other_types_become_float32_and_are_named(make_store, caplog):
    data = make_store(action_dim=1).data
    expected = GoalBatchSampler(data, 64, success=near, seed=1)()
    other = data.clone()
    other["observation"] = other["observation"].double()
    other["action"] = other["action"].squeeze(-1)
    other["next", "done"] = other["next", "done"].squeeze(-1)
    del other["next", "truncated"]
    with caplog.at_level(logging.WARNING, "torchrl_smore"):
        batch = GoalBatchSampler(other, 64, success=near, seed=1)()
    assert equal(batch, expected)
    assert {value.dtype for value in batch.values(True, True)} == {torch.float32, torch.bool}
    (said,) = caplog.messages
    assert "'observation' (torch.float64)" in said
    assert other["observation"].dtype == torch.float64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named(store, value):
    store.data["action"][2, 1] = value
    with pytest.raises(DatasetError, match=rf"'action': expected finite numbers, found \[.*, {value}.*\] in row 2"):
        GoalBatchSampler(store.data, 4)


def test_row_numbers_of_other_rows_are_refused_where_no_flags_say_where_trajectories_end(make_store):
    first, second = (make_store(lengths, seed=1).data for lengths in ((3, 4), (5, 2)))
    bare = [part.exclude(*[("next", name) for name in ("done", "terminated", "truncated")]) for part in (first, second)]
    assert torch.equal(GoalBatchSampler(bare[0], 64)()["action"], GoalBatchSampler(first, 64)()["action"])
    for wrong, row, stop in ((torch.cat(bare), 7, 5), (bare[0][:5], 3, 7), (bare[0][1:], 0, 3)):
        with pytest.raises(ValueError, match=rf"traj_stop of row {row} is {stop}, where no trajectory of these"):
            GoalBatchSampler(wrong, 4)


def test_a_number_too_large_for_float32_is_named(store):
    store.data["next", "achieved_goal"] = store.data["next", "achieved_goal"].double()
    store.data["next", "achieved_goal"][3, 1] = 1e39
    with pytest.raises(DatasetError, match=r"'achieved_goal'\): expected finite numbers, found \[.*, inf\] in row 3"):
        GoalBatchSampler(store.data, 4)


def test_whole_numbers_that_float32_does_not_hold_are_named(store, caplog):
    store.data["desired_goal"] = torch.full((17, 2), (1 << 24) + 1)
    with caplog.at_level(logging.WARNING, "torchrl_smore"):
        GoalBatchSampler(store.data, 4)
    assert "'desired_goal' (torch.int64, rounded beyond 2**24)" in caplog.text


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("action", "rename the entry that holds it, one of .*observation"),
        ("desired_goal", "where no goal is stored, any will do with her_ratio=1"),
        (("next", "achieved_goal"), "rename"),
        (("next", "observation"), "rename"),
        ("achieved_goal", "rename"),
    ],
    ids=str,
)
def test_a_missing_column_is_named_with_what_to_do(store, key, advice):
    with pytest.raises(KeyError, match=rf"reads {re.escape(repr(key))}, which the data do not have: {advice}"):
        GoalBatchSampler(store.data.exclude(key), 4, extras=("achieved_goal",))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("desired_goal", torch.zeros(17, 3, 8, 8), r"'desired_goal': expected numbers of shape \[17, width\].*Pixel"),
        ("action", torch.zeros(17, 3, dtype=torch.complex64), "'action': expected numbers .*complex64"),
        ("action", torch.zeros(17, 3, dtype=torch.bool), "'action': expected numbers .*bool"),
        ("desired_goal", torch.zeros(17, 3), "equally wide, got 3 and 2"),
        (("next", "observation"), torch.zeros(17, 1), "equally wide, got 4 and 1"),
    ],
)
def test_a_column_that_is_no_vector_of_numbers_is_named(store, key, value, message):
    store.data[key] = value
    with pytest.raises(ValueError, match=message):
        GoalBatchSampler(store.data, 4)


def test_data_of_several_dimensions_are_refused(store):
    with pytest.raises(ValueError, match=r"batch size \[N\] with N > 0, got \[2, 4\]"):
        GoalBatchSampler(store.data[:8].reshape(2, 4), 4)


def test_interleaved_trajectories_are_told_apart_by_a_key_of_ones_own(make_store):
    data = make_store((8,)).data
    data["next", "done"] = torch.zeros(8, 1, dtype=torch.bool)
    data["episode"] = torch.tensor([0, 1] * 4)
    batch = GoalBatchSampler(data, 400, her_ratio=1.0, trajectory_key="episode", extras=("row",))()
    row = batch["row"].squeeze(-1)
    goal = (batch["desired_goal"][:, None] == data["next", "achieved_goal"]).all(-1).int().argmax(-1)
    assert torch.equal(row % 2, goal % 2)
    assert bool((goal >= row).all())
    assert {tuple(pair) for pair in zip(row.tolist(), goal.tolist())} == {
        (i, k) for i in range(8) for k in range(i, 8, 2)
    }
    with pytest.raises(KeyError, match="have no lap"):
        GoalBatchSampler(data, 4, trajectory_key="lap")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"q": False, "her_ratio": 1.0},
        {"success": near, "actor_strategy": "geometric", "strategy": {"future": 0.5, "away": 0.5}, "threshold": 0.1},
        {"extras": ("achieved_goal", "goal_offset", "initial_observation", "row")},
        {"stitch": 0.5, "threshold": 1.0, "stitch_width": 20.0},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_batches_from_a_file_are_those_from_memory(options, store, tmp_path, monkeypatch):
    # more than one block, and the last one not whole
    monkeypatch.setattr(packed, "_BLOCK", 5)
    memory, mapped = (
        GoalBatchSampler(store.data, 64, **options),
        GoalBatchSampler(store.data, 64, mapped=tmp_path, **options),
    )
    assert not list(tmp_path.iterdir())
    for _ in range(3):
        assert equal(mapped(), memory())
    other = mapped.with_seed(3)
    del mapped
    assert equal(other(), memory.with_seed(3)())


def test_a_mapped_table_is_in_no_memory_of_the_process(store, tmp_path):
    sampler = GoalBatchSampler(store.data, 4, mapped=tmp_path)
    address = sampler._table.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < last:
            break
    # the file that had no name from the beginning
    assert str(tmp_path) in line
    assert line.endswith("(deleted)")


def test_a_batch_that_is_written_to_leaves_the_file_alone(store, tmp_path):
    sampler = GoalBatchSampler(store.data, 16, mapped=tmp_path)
    uniform = sampler.draw()
    before = sampler.gather(uniform)
    sampler.gather(uniform)["observation"].zero_()
    assert equal(sampler.gather(uniform), before)


def test_what_cannot_be_mapped_is_refused(store, tmp_path):
    data = store.data.clone().set(("collector", "traj_ids"), torch.arange(len(store.data)) % 2)
    with pytest.raises(
        ValueError, match=r"mapped= expects rows .* got rows of several trajectories that lie among each"
    ):
        GoalBatchSampler(data, 4, mapped=tmp_path)
    with pytest.raises(ValueError, match="got rows on cpu for a table on meta"):
        GoalBatchSampler(store.data, 4, mapped=tmp_path, device="meta")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        GoalBatchSampler(store.data, 4, mapped=tmp_path / "nowhere")


def test_a_full_disk_is_an_error_and_leaves_nothing(store, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packed.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(OSError, match="No space left"):
        GoalBatchSampler(store.data, 4, mapped=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_update_from_a_file_compiles_into_the_graph_of_one_from_memory(store, tmp_path):
    memory, mapped = GoalBatchSampler(store.data, 8), GoalBatchSampler(store.data, 8, mapped=tmp_path)
    counter = CompileCounter()
    compiled = torch.compile(mapped.gather, fullgraph=True, backend=counter)
    for _ in range(2):
        uniform = memory.draw()
        assert equal(compiled(uniform), memory.gather(uniform))
    assert counter.frame_count == 1
