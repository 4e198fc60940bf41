from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, lazy_stack
from torchrl.data import TensorDictReplayBuffer

from torchrl_smore.data import _disk
from torchrl_smore.data._ranges import described_outside
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.trajectories import TrajectoryStore

LEAVES = {"include_nested": True, "leaves_only": True}


def equal(left: TrajectoryStore, right: TrajectoryStore) -> bool:
    return all(torch.equal(left.data[key], right.data[key]) for key in left.data.keys(**LEAVES))


# building


def test_two_short_episodes_give_the_rows_written_out_by_hand():
    first = {
        "observation": np.array([[0.0], [1.0], [2.0]]),
        "achieved_goal": np.array([[10.0], [11.0], [12.0]]),
        "action": np.array([[0.1], [0.2]]),
        "desired_goal": np.array([12.0]),
        "reward": np.array([0, 1]),
    }
    second = {
        "observation": np.array([[5.0], [6.0], [7.0], [8.0]]),
        "achieved_goal": np.array([[15.0], [16.0], [17.0], [18.0]]),
        "action": np.array([[0.3], [0.4], [0.5]]),
        "desired_goal": np.array([[90.0], [91.0], [92.0]]),
        "reward": np.array([0.0, 0.0, 0.0]),
        "terminated": np.array([False, False, True]),
    }

    store = TrajectoryStore.from_episodes([first, second], {"task": "Line"})

    expected = {
        "observation": [0, 1, 5, 6, 7],
        ("next", "observation"): [1, 2, 6, 7, 8],
        "achieved_goal": [10, 11, 15, 16, 17],
        ("next", "achieved_goal"): [11, 12, 16, 17, 18],
        "action": [0.1, 0.2, 0.3, 0.4, 0.5],
        "desired_goal": [12, 12, 90, 91, 92],
        ("next", "reward"): [0, 1, 0, 0, 0],
    }
    for key, values in expected.items():
        torch.testing.assert_close(store.data[key], torch.tensor(values, dtype=torch.float32)[:, None])
    flags = {"done": [0, 1, 0, 0, 1], "terminated": [0, 0, 0, 0, 1], "truncated": [0, 1, 0, 0, 0]}
    for key, values in flags.items():
        assert store.data["next", key].squeeze(-1).int().tolist() == values
    assert store.data["traj_start"].tolist() == [0, 0, 2, 2, 2]
    assert store.data["traj_stop"].tolist() == [2, 2, 5, 5, 5]
    assert [bound.tolist() for bound in store.trajectory_bounds] == [[0, 2], [2, 5]]
    assert (store.num_transitions, store.num_trajectories, store.goal_dim) == (5, 2, 1)
    assert store.meta == {"task": "Line"}


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_every_episode_can_be_read_back_from_its_rows(make_episodes, lengths, seed):
    episodes = make_episodes(lengths, seed=seed)
    store = TrajectoryStore.from_episodes(episodes)

    for episode, start, stop in zip(episodes, *(bound.tolist() for bound in store.trajectory_bounds)):
        rows = store.data[start:stop]
        for key in ("observation", "achieved_goal"):
            states = torch.cat([rows[key], rows["next", key][-1:]])
            np.testing.assert_array_equal(states.numpy(), episode[key])
            assert torch.equal(rows[key][1:], rows["next", key][:-1])
        np.testing.assert_array_equal(rows["action"].numpy(), episode["action"])
        np.testing.assert_array_equal(rows["next", "reward"][:, 0].numpy(), episode["reward"])
        assert (rows["desired_goal"].numpy() == episode["desired_goal"]).all()


def without(key):
    return lambda episode: episode.pop(key)


def put(key, value):
    return lambda episode: episode.__setitem__(key, value(episode) if callable(value) else value)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (without("action"), r"episode 1: missing \['action'\]"),
        (put("terminate", np.zeros(3)), r"episode 1: unexpected \['terminate'\]"),
        (put("action", np.zeros((0, 3))), r"episode 1: expected two or more transitions, found .* \[0, 3\]"),
        (put("action", np.zeros((1, 3))), r"episode 1: expected two or more transitions, found .* \[1, 3\]"),
        (put("action", np.zeros((3, 2))), r"episode 1: 'action': expected shape \[3, 3\] .* found \[3, 2\]"),
        (put("observation", np.zeros((3, 4))), r"episode 1: 'observation': expected shape \[4, 4\] .* found \[3, 4\]"),
        (put("desired_goal", np.zeros(5)), r"episode 1: 'desired_goal': expected shape \[3, 2\] .* found \[3, 5\]"),
        (put("desired_goal", np.zeros((4, 2))), r"episode 1: 'desired_goal': expected shape \[3, 2\]"),
        (put("desired_goal", np.float32(1)), r"episode 1: 'desired_goal': expected shape \[3, 2\]"),
        (put("reward", np.zeros((3, 1))), r"episode 1: 'reward': expected shape \[3\], found \[3, 1\]"),
        (put("reward", np.array([0, 1, 2])), r"'reward'\): expected 1 where .* found 2.0 in row 7"),
        (put("reward", np.array([0, -1, 0])), r"'reward'\): expected 1 where .* found -1.0 in row 6"),
        (put("terminated", np.zeros(3)), r"episode 1: 'terminated': expected booleans, found dtype float64"),
        (put("terminated", np.array([False, True, True])), r"episode 1: 'terminated': expected False .* step 1"),
        (put("action", np.full((3, 3), "x")), r"episode 1: 'action': expected real numbers, found dtype <U1"),
        (put("action", np.full((3, 3), np.nan)), r"'action': expected finite numbers, found .*nan.* in row 5"),
        (put("action", np.full((3, 3), 1e300)), r"'action': expected finite numbers, found .*inf.* in row 5"),
        (put("observation", np.array([[0.0] * 4] * 3 + [[np.inf] * 4])), r"\('next', 'observation'\).* in row 7"),
    ],
)
def test_a_fault_in_an_episode_is_named(episodes, break_it, message):
    break_it(episodes[1])
    with pytest.raises(DatasetError, match=message):
        TrajectoryStore.from_episodes(episodes)


def test_tensors_of_an_autograd_graph_are_taken_as_numbers(make_episodes):
    episodes = list(make_episodes())
    held = [
        {key: torch.as_tensor(value, dtype=torch.float32).requires_grad_() for key, value in episode.items()}
        for episode in episodes
    ]
    store = TrajectoryStore.from_episodes(held)
    assert store.sha256 == TrajectoryStore.from_episodes(episodes).sha256
    assert not store.data["observation"].requires_grad


def test_tensors_of_a_type_that_numpy_lacks_are_taken_as_numbers(make_episodes):
    episode = {key: torch.from_numpy(value).to(torch.bfloat16) for key, value in make_episodes([3])[0].items()}
    action = TrajectoryStore.from_episodes([episode]).data["action"]
    assert torch.equal(action, episode["action"].float())


def test_no_episode_is_an_error():
    with pytest.raises(DatasetError, match="at least one episode"):
        TrajectoryStore.from_episodes([])


# rows: 0-4, 5-7, 8-9, 10-16


def poke(key, row, value):
    return lambda data: data[key].__setitem__(row, value)


def one_trajectory_too_short(data):
    # the two rows of the third trajectory become one trajectory each
    data["traj_start"][9], data["traj_stop"][8] = 9, 9
    data["next", "done"][8] = data["next", "truncated"][8] = True


def interleave(data):
    order = torch.arange(17)
    order[4], order[5] = 5, 4
    data.update_(data[order].clone())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda data: data.pop("desired_goal"), r"key 'desired_goal' is missing"),
        (lambda data: data.pop(("next", "done")), r"key \('next', 'done'\) is missing"),
        (lambda data: data.set("extra", torch.zeros(17)), r"unexpected keys \['extra'\]"),
        (
            lambda data: data.set("action", data["action"].cfloat()),
            r"'action': expected dtype torch.float32, .*complex64",
        ),
        (lambda data: data.set("action", data["action"] > 0), r"'action': expected dtype torch.float32, .*bool"),
        (lambda data: data.set("traj_stop", data["traj_stop"].int()), r"'traj_stop': expected dtype torch.int64"),
        (lambda data: data.set("action", data["action"][..., None]), r"'action': expected shape \[N, action_dim\]"),
        (lambda data: data["next"].pop("terminated"), r"key \('next', 'terminated'\) is missing"),
        (lambda data: data.set("action", data["action"][:, :0]), r"'action': expected shape \[17, action_dim > 0\]"),
        (
            lambda data: data.set("desired_goal", torch.zeros(17, 3)),
            r"'desired_goal': expected shape \[17, 2\] .*\[17, 3\]",
        ),
        (lambda data: data.set(("next", "reward"), torch.zeros(17, 2)), r"'reward'\): expected shape \[17, 1\]"),
        (
            poke("observation", (11, 2), float("nan")),
            r"'observation': expected finite numbers, found .*nan.* in row 11",
        ),
        (
            poke(("next", "achieved_goal"), (3, 0), float("-inf")),
            r"'achieved_goal'\): expected finite .*-inf.* in row 3",
        ),
        (poke(("next", "done"), 7, False), r"'done'\): expected True in the last row .* found False in row 7"),
        (poke(("next", "done"), 6, True), r"'done'\): expected False before the last row .* found True in row 6"),
        (
            poke(("next", "truncated"), 4, False),
            r"'done'\): expected terminated or truncated = False, found True in row 4",
        ),
        (
            poke(("next", "terminated"), 2, True),
            r"'done'\): expected terminated or truncated = True, found False in row 2",
        ),
        (poke("traj_start", 0, 1), r"'traj_start': expected 0 in row 0, found 1"),
        (poke("traj_start", 6, 4), r"'traj_start': trajectories must be contiguous .* expected 5 in row 6, found 4"),
        (poke("traj_stop", 16, 18), r"'traj_stop': trajectories must be contiguous .* expected 17 in row 16, found 18"),
        (interleave, r"'traj_start': trajectories must be contiguous"),
        (one_trajectory_too_short, r"trajectory 2 \(row 8\) has a single transition"),
    ],
)
def test_a_fault_in_the_rows_is_named(store, break_it, message):
    break_it(store.data)
    with pytest.raises(DatasetError, match=message):
        TrajectoryStore(store.data)


def test_columns_of_other_types_are_converted_and_named(store, caplog):
    data, expected = store.data.copy(), store.data.clone()
    data["action"] = data["action"].double()
    data["desired_goal"] = torch.arange(34).reshape(17, 2) + (1 << 24)
    data["next", "reward"] = data["next", "reward"].to(torch.uint8)
    expected["desired_goal"] = (torch.arange(34).reshape(17, 2) + (1 << 24)).float()
    given = {key: data[key] for key in data.keys(**LEAVES)}

    found = TrajectoryStore(data)

    assert all(torch.equal(found.data[key], expected[key]) for key in expected.keys(**LEAVES))
    (said,) = caplog.messages
    assert "'action' (torch.float64)" in said
    assert "'desired_goal' (torch.int64, rounded beyond 2**24)" in said
    assert "('next', 'reward') (torch.uint8)" in said
    assert all(data[key] is value for key, value in given.items())  # the caller's columns stay as they were
    assert found.data["observation"].data_ptr() == store.data["observation"].data_ptr()


def test_flat_columns_and_missing_truncations_are_taken_as_the_transform_takes_them(make_store, caplog):
    store = make_store(action_dim=1)
    data = store.data.clone()
    for key in ("action", ("next", "reward"), ("next", "done"), ("next", "terminated")):
        data[key] = data[key].squeeze(-1)
    del data["next", "truncated"]
    assert equal(TrajectoryStore(data), store)
    assert not caplog.messages


@pytest.mark.parametrize(("dtype", "said"), [(torch.uint32, True), (torch.uint64, True), (torch.uint16, False)])
def test_unsigned_numbers_are_converted_and_said_to_be_rounded_where_they_are(store, caplog, dtype, said):
    store.data["action"] = torch.full((17, 3), (1 << 24) + 1 if said else 7).to(dtype)
    assert (TrajectoryStore(store.data).data["action"] == (1 << 24 if said else 7)).all()
    assert ("rounded beyond 2**24" in caplog.text) == said


@pytest.mark.parametrize("nested", [False, True])
def test_a_lazy_stack_of_rows_is_stacked_and_can_be_saved(store, tmp_path, nested):
    lazy = lazy_stack(list(store.data.unbind(0)))
    if nested:
        lazy = store.data.copy().set("next", lazy["next"])
    TrajectoryStore(lazy).save(tmp_path / "store")
    assert equal(TrajectoryStore.load(tmp_path / "store"), store)
    assert (TensorDict.load_memmap(tmp_path / "store" / "data", allow_pickle=False) == store.data).all()
    assert {file.name for file in (tmp_path / "store").rglob("*") if file.is_dir()} == {"data", "next"}


def test_a_store_keeps_data_that_fit(store):
    assert TrajectoryStore(store.data).data is store.data


def test_episodes_of_single_actions_and_of_large_whole_numbers(make_episodes, caplog):
    episodes = make_episodes([2, 3], action_dim=1)
    expected = TrajectoryStore.from_episodes(episodes)
    flat = [{**episode, "action": episode["action"][:, 0]} for episode in episodes]
    assert equal(TrajectoryStore.from_episodes(flat), expected)
    with pytest.raises(DatasetError, match=r"'action': expected shape \[2, action\]"):
        TrajectoryStore.from_episodes([{**flat[0], "action": np.array([0, 1])}])
    assert not caplog.messages
    large = np.full((3, 4), -(1 << 24) - 1)
    TrajectoryStore.from_episodes([{**episodes[0], "observation": large}])
    assert caplog.messages == ["'observation': whole numbers beyond 2**24 are rounded, as columns are float32"] * 2


def test_an_empty_or_batched_tensordict_is_refused(store):
    for data in (store.data[:0], store.data[:4].reshape(2, 2)):
        with pytest.raises(DatasetError, match=r"batch size \[N\]"):
            TrajectoryStore(data)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"seed": np.int64(3)}, "expressible in JSON"),
        ({"gain": float("nan")}, "expressible in JSON"),
        ({"composition": {"expert": 4}}, "expected a list of"),
        ({"composition": [{"behaviour": "expert"}]}, "expected a list of"),
        ({"composition": [{"num_trajectories": 3}]}, r"add up to 4 trajectories, found 3 = 3"),
    ],
)
def test_meta_data_that_cannot_be_stored_or_true_are_refused(store, meta, message):
    with pytest.raises(DatasetError, match=message):
        TrajectoryStore(store.data, meta)


def test_a_task_of_other_dimensions_is_named(store):
    store.check_task(observation_dim=4, goal_dim=2, action_dim=3, name="Right")
    with pytest.raises(DatasetError, match=r"'Wrong'.*'goal_dim': 3.*found.*'goal_dim': 2"):
        store.check_task(observation_dim=4, goal_dim=3, action_dim=3, name="Wrong")


def test_rows_outside_of_the_spaces_of_a_task_are_reported_and_clipped_on_request(make_store, caplog):
    store = make_store((4, 4), action_dim=2, goal_dim=2)
    widths = {"observation_dim": 4, "goal_dim": 2, "action_dim": 2, "name": "Walk"}
    store.data["desired_goal"][:] = 0.5
    store.check_task(**widths, goal_range=((0.0, 0.0), (1.0, 1.0)))
    assert not caplog.messages
    store.data["action"][5:7] = torch.tensor([7.0, 0.5])
    store.data["action"][7, 1] = -10.0
    store.data["desired_goal"][3, 1] = 2.0
    store.check_task(**widths, goal_range=((0.0, 0.0), (1.0, 1.0)))
    store.check_task(**widths, action_range=(-10.0, 7.0), goal_range=((0.0, 0.0), (1.0, 1.0)), goal_slack=1.5)
    assert caplog.messages == [
        "'action' lies outside of what Walk allows, [-1.0, 1.0], in 3 of 8 rows (37.50%), the first is row 5 with "
        "[7, 0.5]; all lie in [-10, 7]",
        "'desired_goal' lies outside of what Walk allows, [(0.0, 0.0), (1.0, 1.0)], in 1 of 8 rows (12.50%), the first "
        "is row 3 with [0.5, 2]; all lie in [0.5, 2]",
    ]
    with pytest.raises(ValueError, match="range of 2 columns"):
        store.check_task(**widths, goal_range=((0.0,), (1.0,)))
    clipped = store.with_clipped_actions()
    assert clipped.meta["clipped_actions"] == 3
    assert clipped.data["action"][5:, :].tolist()[:2] == [[1.0, 0.5]] * 2
    assert clipped.data["action"][7, 1] == -1.0
    assert store.data["action"][7, 1] == -10.0
    assert clipped.data["observation"].data_ptr() == store.data["observation"].data_ptr()
    with pytest.raises(ValueError, match=r"low below high, got 1\.0 and 1\.0"):
        store.with_clipped_actions(1.0, 1.0)


def test_a_rounding_beyond_the_bound_is_not_reported(make_store, caplog):
    store = make_store((4,), action_dim=2)
    store.data["action"][0, 0] = 1.0 + 2e-7
    store.check_task(observation_dim=4, goal_dim=2, action_dim=2, name="Walk")
    assert not caplog.messages


@pytest.mark.parametrize("bound", [float("inf"), 1e30])
def test_a_bound_far_away_excuses_nothing_beyond_the_other(bound):
    values = torch.tensor([[1.0 + 1e-6], [5.0]])
    assert "1 of 2 rows (50.00%), the first is row 1 with [5]" in described_outside(values, (-bound, 1.0))
    assert "the first is row 1 with [-5]" in described_outside(-values, ((-1.0,), (bound,)))
    assert described_outside(values, (-bound, bound)) is None


# selecting


def test_selected_trajectories_are_those_episodes_in_that_order(episodes, store):
    chosen = store.select_trajectories(torch.tensor([3, 0, 3]))
    assert equal(chosen, TrajectoryStore.from_episodes([episodes[3], episodes[0], episodes[3]]))
    assert chosen.data["observation"].data_ptr() != store.data["observation"].data_ptr()


@pytest.mark.parametrize("index", [[], [4], [-1], [0.0], [True, False, True, True], [[0]]], ids=str)
def test_an_index_that_names_no_trajectories_is_refused(store, index):
    with pytest.raises(DatasetError, match="expected trajectory numbers"):
        store.select_trajectories(torch.tensor(index))


def test_the_composition_follows_a_selection_or_is_dropped(make_store):
    composition = [{"behaviour": "expert", "num_trajectories": 1}, {"behaviour": "random", "num_trajectories": 3}]
    store = make_store(meta={"task": "A", "composition": composition})

    assert store.select_trajectories(torch.tensor([0, 2, 3])).meta["composition"] == [
        {"behaviour": "expert", "num_trajectories": 1},
        {"behaviour": "random", "num_trajectories": 2},
    ]
    assert store.select_trajectories(torch.tensor([2])).meta["composition"] == [
        {"behaviour": "random", "num_trajectories": 1}
    ]
    assert store.select_trajectories(torch.tensor([2, 0])).meta == {"task": "A"}


def test_counts_of_rows_do_not_outlive_the_rows_that_they_count(make_store):
    store = make_store(meta={"task": "A", "clipped_actions": 2, "dropped_rows": 3})
    assert store.select_trajectories(torch.tensor([1])).meta == {"task": "A"}


def test_the_summary_reports_success_and_return(make_episodes):
    first, second = make_episodes([2, 3])
    first["reward"], second["reward"] = np.array([0, 1]), np.array([0, 0, 0])
    # 0.5 ** 1 in the first, nothing in the second: a mean of 0.25
    text = TrajectoryStore.from_episodes([first, second]).summary(gamma=0.5)
    assert "some step: 50.0% of trajectories, in the last step: 50.0%" in text
    assert "mean discounted return at 0.5: 0.25" in text


def test_returns_of_trajectories_of_unequal_length_are_those_worked_by_hand(make_episodes):
    first, second, third = make_episodes([4, 2, 3])
    for episode, reward in zip((first, second, third), ([0.0, 1.0, 1.0, 0.0], [1.0, 1.0], [0.0] * 3)):
        episode["reward"] = np.array(reward)
    store = TrajectoryStore.from_episodes([first, second, third])
    expected = torch.tensor([0.5 + 0.25, 1.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(store.discounted_returns(0.5), expected, rtol=0, atol=0)
    torch.testing.assert_close(store.discounted_returns(0.0), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def test_a_success_late_in_a_long_trajectory_counts_whatever_the_discount(make_episodes):
    (episode,) = make_episodes([1000])
    episode["reward"] = np.eye(1000)[-1]
    store = TrajectoryStore.from_episodes([episode])
    for gamma in (0.99, 0.9):
        assert store.discounted_returns(gamma).item() == pytest.approx(gamma**999, rel=1e-12, abs=0.0)
    for gamma in (0.9, 0.0):
        assert "at the goal in some step: 100.0% of trajectories" in store.summary(gamma)


def test_a_replay_buffer_samples_rows_of_the_store(store):
    storage = store.to_storage()
    assert len(storage) == store.num_transitions
    batch = TensorDictReplayBuffer(storage=storage, batch_size=64).sample()
    rows = store.data[batch["index"]]
    for key in store.data.keys(**LEAVES):
        assert torch.equal(batch[key], rows[key])


def test_a_storage_counts_the_steps_of_each_trajectory_on_request(make_store):
    store = make_store(lengths=(3, 2))
    stored = store.to_storage(step_count=True)[:]
    assert stored["step_count"].tolist() == [[0], [1], [2], [0], [1]]
    assert "step_count" not in store.data
    assert "step_count" not in store.to_storage()[:]


# on disk


def test_a_saved_store_is_equal_when_loaded_and_keeps_its_digest(store, tmp_path):
    store = TrajectoryStore(store.data, {"task": "A", "nested": {"seeds": [1, 2]}})
    store.save(tmp_path / "deep" / "store")
    loaded = TrajectoryStore.load(tmp_path / "deep" / "store")
    unverified = TrajectoryStore.load(str(tmp_path / "deep" / "store"), verify=False)

    assert equal(store, loaded)
    assert equal(store, unverified)
    assert loaded.meta == unverified.meta == store.meta
    assert loaded.sha256 == store.sha256 == json.loads((tmp_path / "deep/store/meta.json").read_text())["sha256"]
    assert os.listdir(tmp_path / "deep") == ["store"]


def test_every_file_is_on_the_disk_before_the_store_is_in_its_place(store, tmp_path, monkeypatch):
    synced, before = set(), set()
    fsync, put_in_place = os.fsync, _disk.put_in_place

    def noted_sync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def noted_place(*paths):
        before.update(synced)
        put_in_place(*paths)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(_disk, "put_in_place", noted_place)
    store.save(tmp_path / "store")
    assert [str(file) for file in (tmp_path / "store").rglob("*") if file.stat().st_ino not in before] == []


def test_meta_data_that_could_not_be_read_again_are_refused_before_anything_is_written(store, tmp_path, monkeypatch):
    monkeypatch.setattr(_disk, "_MAX_META", 1000)
    with pytest.raises(DatasetError, match=r"meta: expected at most 1000 bytes of JSON, found 10\d\d\."):
        TrajectoryStore(store.data, {"x": "a" * 1000}).save(tmp_path / "deep" / "store")
    assert os.listdir(tmp_path) == []
    TrajectoryStore(store.data, {"x": "a" * 900}).save(tmp_path / "store")


def test_the_largest_meta_data_leave_room_for_the_rest_of_the_manifest(store, tmp_path):
    store.save(tmp_path / "store")
    assert (tmp_path / "store" / "meta.json").stat().st_size < _disk._MAX_MANIFEST - _disk._MAX_META


def test_the_digest_depends_on_every_value_and_on_nothing_else(store, make_store):
    digest = store.sha256
    assert make_store(meta={"task": "A"}).sha256 == digest
    store.data["action"][3, 1] += 1e-6
    assert store.sha256 != digest


def test_the_data_folder_is_an_ordinary_tensordict_memmap(store, tmp_path):
    store.save(tmp_path / "store")
    data = TensorDict.load_memmap(tmp_path / "store" / "data", allow_pickle=False)
    assert (data == store.data).all()


def test_writing_to_loaded_data_leaves_the_file_alone(store, tmp_path):
    store.save(tmp_path / "store")
    loaded = TrajectoryStore.load(tmp_path / "store")
    loaded.data["observation"].zero_()
    assert equal(TrajectoryStore.load(tmp_path / "store"), store)


def test_a_store_is_replaced_only_when_asked_and_only_by_name(store, make_store, tmp_path):
    store.save(tmp_path / "store")
    other = make_store(seed=1)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        other.save(tmp_path / "store")
    assert equal(TrajectoryStore.load(tmp_path / "store"), store)

    loaded = TrajectoryStore.load(tmp_path / "store")
    other.save(tmp_path / "store", overwrite=True)
    assert equal(TrajectoryStore.load(tmp_path / "store"), other)
    assert equal(loaded, store)  # what was mapped before stays readable
    assert os.listdir(tmp_path) == ["store"]


def test_a_folder_that_holds_something_else_is_never_replaced(store, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(DatasetError, match="not a trajectory store"):
        store.save(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years"
    assert os.listdir(tmp_path) == ["home"]


class DiskFull(OSError):
    pass


@pytest.mark.parametrize("name", ["action.memmap", "truncated.memmap", "meta.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_nothing_behind_and_the_old_store_whole(
    store, make_store, tmp_path, monkeypatch, name, overwrite
):
    if overwrite:
        store.save(tmp_path / "store")
    write_file = _disk._write_file

    def fail_halfway(file, content):
        if file.name == name:
            write_file(file, bytes(content)[: len(content) // 2])
            raise DiskFull("no space left on device")
        write_file(file, content)

    monkeypatch.setattr(_disk, "_write_file", fail_halfway)
    with pytest.raises(DiskFull):
        make_store(seed=1).save(tmp_path / "store", overwrite=overwrite)
    assert os.listdir(tmp_path) == (["store"] if overwrite else [])
    if overwrite:
        assert equal(TrajectoryStore.load(tmp_path / "store"), store)


def test_a_rename_that_fails_puts_the_old_store_back(store, make_store, tmp_path, monkeypatch):
    store.save(tmp_path / "store")
    replace = os.replace

    def fail_to_publish(source, target):
        if ".partial-" in str(source):
            raise OSError("refused")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_to_publish)
    with pytest.raises(OSError, match="refused"):
        make_store(seed=1).save(tmp_path / "store", overwrite=True)
    assert os.listdir(tmp_path) == ["store"]
    assert equal(TrajectoryStore.load(tmp_path / "store"), store)


KILLED = """
    import os, signal, sys, torch
    from torchrl_smore.data import _disk
    from torchrl_smore.data.trajectories import TrajectoryStore

    store = TrajectoryStore.load(sys.argv[1])
    store.data["action"].zero_()
    publish, replace = _disk._write_file, os.replace

    def write_file(file, content):
        if file.name == "desired_goal.memmap" and sys.argv[2] == "writing":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(file, content)

    def replace_and_die(source, target):
        replace(source, target)
        if sys.argv[2] == "renaming":
            os.kill(os.getpid(), signal.SIGKILL)

    _disk._write_file, os.replace = write_file, replace_and_die
    store.save(sys.argv[1], overwrite=True)
"""


def run_killed(python, path, moment):
    done = python("-c", textwrap.dedent(KILLED), path, moment)
    assert done.status == -signal.SIGKILL, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_process_killed_while_writing_leaves_the_old_store_whole(python, store, tmp_path):
    store.save(tmp_path / "store")
    run_killed(python, tmp_path / "store", "writing")
    assert equal(TrajectoryStore.load(tmp_path / "store"), store)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_process_killed_between_the_renames_leaves_both_stores_whole_and_load_says_where(python, store, tmp_path):
    store.save(tmp_path / "store")
    run_killed(python, tmp_path / "store", "renaming")
    with pytest.raises(DatasetError, match=r"interrupted overwrite left .*\.store\.replaced-") as error:
        TrajectoryStore.load(tmp_path / "store")
    previous = next(tmp_path.glob(".store.replaced-*"))
    assert str(previous) in str(error.value)
    assert equal(TrajectoryStore.load(previous), store)
    assert (TrajectoryStore.load(next(tmp_path.glob(".store.partial-*"))).data["action"] == 0).all()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_the_next_save_removes_what_a_killed_process_left(python, store, make_store, tmp_path, moment):
    store.save(tmp_path / "store")
    run_killed(python, tmp_path / "store", moment)
    (tmp_path / ".store.partial-notes").write_text("somebody's own")
    (tmp_path / ".other.partial-0123456789ab").mkdir()
    assert list(tmp_path.glob(".store.partial-" + "[0-9a-f]" * 12))
    other = make_store(seed=1)
    other.save(tmp_path / "store", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [".other.partial-0123456789ab", ".store.partial-notes", "store"]
    assert equal(TrajectoryStore.load(tmp_path / "store"), other)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_the_next_save_puts_back_what_an_overwrite_was_killed_over_and_asks_before_it_replaces_it(
    python, store, make_store, tmp_path
):
    store.save(tmp_path / "store")
    run_killed(python, tmp_path / "store", "renaming")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        make_store(seed=1).save(tmp_path / "store")
    assert os.listdir(tmp_path) == ["store"]
    assert equal(TrajectoryStore.load(tmp_path / "store"), store)


@pytest.mark.skipif(os.name != "posix", reason="needs file locks")
def test_what_a_living_process_has_moved_aside_is_neither_put_back_nor_removed(
    store, make_store, tmp_path, monkeypatch
):
    store.save(tmp_path / "store")
    other, replace, between = make_store(seed=1), os.replace, []

    def recover_between(source, target):
        if ".partial-" in str(source):
            _disk.recover(tmp_path / "store")
            between.extend(sorted(path.name.split("-")[0] for path in tmp_path.iterdir()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", recover_between)
    other.save(tmp_path / "store", overwrite=True)
    assert between == [".store.partial", ".store.replaced"]
    assert os.listdir(tmp_path) == ["store"]
    assert equal(TrajectoryStore.load(tmp_path / "store"), other)


@pytest.mark.skipif(os.name != "posix", reason="needs file locks")
def test_what_a_living_process_writes_is_not_taken_for_a_leftover(store, make_store, tmp_path, monkeypatch):
    other, write_file, inner = make_store(seed=1), _disk._write_file, []

    def save_meanwhile(file, content):
        write_file(file, content)
        if file.name == "meta.json" and not inner:
            inner.append(file)
            other.save(tmp_path / "store")
            other.save(tmp_path / "store", overwrite=True)
            assert file.exists()

    monkeypatch.setattr(_disk, "_write_file", save_meanwhile)
    store.save(tmp_path / "store")
    assert equal(TrajectoryStore.load(tmp_path / "store"), store)
    assert os.listdir(tmp_path) == ["store"]


ALL_FILES = [
    "data/meta.json",
    "data/observation.memmap",
    "data/next/meta.json",
    "data/next/done.memmap",
    "data/traj_start.memmap",
]


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_flipped_bit_a_truncated_and_a_missing_file_are_named(store, tmp_path, name):
    store.save(tmp_path / "store")
    file = tmp_path / "store" / name
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(DatasetError, match=f"{name} is altered: expected SHA-256"):
        TrajectoryStore.load(tmp_path / "store")
    file.write_bytes(content[:-1])
    for verify in (True, False):
        with pytest.raises(
            DatasetError, match=f"{name} is truncated .* {len(content)} bytes, found {len(content) - 1}"
        ):
            TrajectoryStore.load(tmp_path / "store", verify=verify)
    file.unlink()
    for verify in (True, False):
        with pytest.raises(DatasetError, match=f"{name} is missing"):
            TrajectoryStore.load(tmp_path / "store", verify=verify)


def sign(manifest):
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return content | {"manifest_sha256": digest}


def edit_manifest(**changes):
    """An edit whose author knows the checksum."""

    def edit(path):
        path.write_text(json.dumps(sign(json.loads(path.read_text()) | changes)))

    return edit


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.unlink(), "not a trajectory store: it has no meta.json"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "meta.json is damaged: expected JSON"),
        (lambda path: path.write_text("[1]"), "does not name the format"),
        (edit_manifest(format="something"), "does not name the format"),
        (edit_manifest(format_version=3), "expected format version 1, or 2 with frames, found 3"),
        (edit_manifest(format_version=2), "expected size and digest of frames.memmap, found None"),
        (edit_manifest(sha256=None), "expected 'sha256' of type str"),
        (edit_manifest(sha256="0" * 64), "'sha256'"),
        (edit_manifest(files={}), "expected size and digest of data/meta.json, found None"),
        (edit_manifest(columns={}), "expected a shape of positive numbers"),
        (edit_manifest(num_transitions=10**9), "found shape"),
        (edit_manifest(columns={"data/observation.memmap": [17, 4] * 9}), "expected a shape of positive numbers"),
        (edit_manifest(columns={"data/observation.memmap": [10**400, 4]}), "expected a shape of positive numbers"),
        (edit_manifest(more=1), r"unexpected \['more'\]"),
        (lambda path: path.write_text("[" * 10**6), "meta.json is damaged: expected JSON"),
    ],
)
def test_a_damaged_manifest_is_a_clear_error(store, tmp_path, break_it, message):
    store.save(tmp_path / "store")
    break_it(tmp_path / "store" / "meta.json")
    with pytest.raises(DatasetError, match=message):
        TrajectoryStore.load(tmp_path / "store")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"Pick"', '"Push"'),
        ('"seed": 3', '"seed": 8'),
        ("manifest_sha256", "manifest_sha255"),
        ('"num_transitions": 17', '"num_transitions": 18'),
        ('"manifest_sha256": "', '"manifest_sha256": "0'),
    ],
)
def test_what_is_said_of_the_data_is_protected_too(store, tmp_path, before, after, verify):
    TrajectoryStore(store.data, {"task": "Pick", "seed": 3}).save(tmp_path / "store")
    file = tmp_path / "store" / "meta.json"
    content = file.read_text()
    assert before in content
    file.write_text(content.replace(before, after))
    with pytest.raises(DatasetError, match=r"meta.json is (altered|damaged): .*(manifest_sha25|unexpected)"):
        TrajectoryStore.load(tmp_path / "store", verify=verify)
    # what is laid out anew says the same
    file.write_text(json.dumps(json.loads(content), sort_keys=True))
    assert TrajectoryStore.load(tmp_path / "store", verify=verify).meta == {"task": "Pick", "seed": 3}


def test_a_store_of_an_earlier_version_loads_and_that_is_said_once(store, tmp_path, caplog):
    for name in ("first", "second"):
        store.save(tmp_path / name)
        file = tmp_path / name / "meta.json"
        manifest = json.loads(file.read_text())
        del manifest["manifest_sha256"]
        file.write_text(json.dumps(manifest))
        for _ in range(3):
            assert equal(TrajectoryStore.load(tmp_path / name), store)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "first/meta.json has no checksum of its own" in said[0]
    assert "second/meta.json" in said[1]


def test_a_damaged_store_may_be_replaced(store, make_store, tmp_path):
    store.save(tmp_path / "store")
    file = tmp_path / "store" / "meta.json"
    file.write_text(file.read_text().replace('"num_transitions": 17', '"num_transitions": 18'))
    other = make_store(seed=1)
    other.save(tmp_path / "store", overwrite=True)
    assert equal(TrajectoryStore.load(tmp_path / "store"), other)


def test_a_larger_shape_in_the_manifest_never_grows_the_file(store, tmp_path):
    store.save(tmp_path / "store")
    manifest = json.loads((tmp_path / "store" / "meta.json").read_text())
    manifest["columns"]["data/action.memmap"] = [17, 4]
    (tmp_path / "store" / "meta.json").write_text(json.dumps(sign(manifest)))
    with pytest.raises(DatasetError, match=r"expected 204 bytes in 17 rows, found shape \[17, 4\]"):
        TrajectoryStore.load(tmp_path / "store", verify=False)
    assert (tmp_path / "store" / "data" / "action.memmap").stat().st_size == 17 * 3 * 4


def test_loading_checks_values_that_a_consistent_store_should_not_hold(store, tmp_path):
    store.data["observation"][4, 0] = float("nan")
    store.save(tmp_path / "store")
    with pytest.raises(DatasetError, match="'observation': expected finite numbers"):
        TrajectoryStore.load(tmp_path / "store")


def test_no_pickle_in_the_folder_is_ever_read(store, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    store.save(tmp_path / "store")
    for folder in ("", "data", "data/next"):
        for name in ("other.pickle", "pickle.pkl"):
            (tmp_path / "store" / folder / name).write_bytes(pickle.dumps(Bomb()))
    assert equal(TrajectoryStore.load(tmp_path / "store"), store)
    assert not (tmp_path / "exploded").exists()
