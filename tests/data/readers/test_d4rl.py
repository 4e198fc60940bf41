"""Files are written with h5py and laid out by hand; what the reader must return is worked out step by step."""

from __future__ import annotations

import builtins
import re
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers import Goals, _rows, d4rl
from torchrl_smore.data.readers._goals import columns_of

VELOCITY = Goals(achieved=2, desired=5.0)


def reached(achieved, goal):
    return np.abs(achieved - goal)[..., 0] < 0.5


def flat(episodes=((4, "timeout"), (3, "terminal"), (5, "timeout"), (2, None)), width=4, seed=0):
    """Rows of episodes of so many steps, end to end. The state after each step is known here, if not in every file."""
    rng = np.random.default_rng(seed)
    parts = {name: [] for name in ("observations", "actions", "next_observations", "terminals", "timeouts")}
    for steps, end in episodes:
        states = rng.normal(size=(steps + 1, width))
        last = np.arange(steps) == steps - 1
        parts["observations"].append(states[:-1])
        parts["next_observations"].append(states[1:])
        parts["actions"].append(rng.uniform(-1, 1, size=(steps, 2)))
        parts["terminals"].append(last & (end == "terminal"))
        parts["timeouts"].append(last & (end == "timeout"))
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    arrays["rewards"] = rng.normal(size=len(arrays["actions"]))
    return {name: array.astype("f4") if array.dtype.kind == "f" else array for name, array in arrays.items()}


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.fixture
def write(tmp_path):
    def write(arrays, **options):
        path = tmp_path / "a.hdf5"
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, **options)
            file["metadata/algorithm"] = "SAC"
        return path

    return write


def transitions(store):
    """The rows of each trajectory, key by key."""
    data = store.data
    keys = ("observation", "action", "achieved_goal", "desired_goal", ("next", "observation"))
    keys += tuple(("next", name) for name in ("achieved_goal", "reward", "done", "terminated", "truncated"))
    return [
        {key: data[key][start:stop].numpy() for key in keys} for start, stop in zip(*map(list, store.trajectory_bounds))
    ]


def assert_trajectory(found, arrays, rows, *, terminated, next_rows=None):
    """``rows``: of the file, one for each transition; ``next_rows``: rows of ``observations`` that hold next states."""
    after = arrays["next_observations"][rows] if next_rows is None else arrays["observations"][next_rows]
    np.testing.assert_array_equal(found["observation"], arrays["observations"][rows])
    np.testing.assert_array_equal(found["action"], arrays["actions"][rows])
    np.testing.assert_array_equal(found["next", "observation"], after)
    np.testing.assert_array_equal(found["achieved_goal"][:, 0], arrays["observations"][rows, 2])
    np.testing.assert_array_equal(found["next", "achieved_goal"][:, 0], after[:, 2])
    last = np.arange(len(rows)) == len(rows) - 1
    for name, expected in (("done", last), ("terminated", last & terminated), ("truncated", last & (not terminated))):
        np.testing.assert_array_equal(found["next", name][:, 0], expected)


@pytest.mark.parametrize("options", [{}, {"chunks": True}, {"chunks": True, "compression": "gzip"}], ids=str)
def test_episodes_end_at_terminals_timeouts_and_the_end_of_the_file(write, options):
    arrays = flat()
    store = d4rl.read(write(arrays, **options), reached=reached, goals=VELOCITY, meta={"task": "A"})
    expected = [([0, 1, 2, 3], False), ([4, 5, 6], True), ([7, 8, 9, 10, 11], False), ([12, 13], False)]
    assert store.num_trajectories == len(expected)
    for found, (rows, terminated) in zip(transitions(store), expected):
        assert_trajectory(found, arrays, rows, terminated=terminated)
    assert store.meta == {"task": "A", "source": "a.hdf5", "format": "d4rl", "dropped_rows": 0}


def test_without_next_observations_the_last_row_of_an_episode_is_only_a_state(write):
    arrays = flat()
    store = d4rl.read(write(without(arrays, "next_observations")), reached=reached, goals=VELOCITY)
    # the last episode has a single known transition and is left out
    expected = [([0, 1, 2], [1, 2, 3]), ([4, 5], [5, 6]), ([7, 8, 9, 10], [8, 9, 10, 11])]
    assert store.num_trajectories == len(expected)
    for found, (rows, next_rows) in zip(transitions(store), expected):
        assert_trajectory(found, arrays, rows, terminated=False, next_rows=next_rows)
    # the last row of each kept episode, and both of the last
    assert store.meta["dropped_rows"] == 5


@pytest.mark.parametrize("block_bytes", [1, 50, 1 << 24], ids=["row by row", "three rows", "at once"])
def test_the_size_of_a_block_changes_nothing(write, monkeypatch, block_bytes):
    path = write(without(flat(), "next_observations"))
    expected = d4rl.read(path, reached=reached, goals=VELOCITY, horizon=6, pad=True).sha256
    monkeypatch.setattr("torchrl_smore.data.readers._hdf5.BLOCK_BYTES", block_bytes)
    assert d4rl.read(path, reached=reached, goals=VELOCITY, horizon=6, pad=True).sha256 == expected
    assert _rows.BLOCK_BYTES == 1 << 24


@pytest.mark.parametrize("next_held", [True, False])
def test_terminated_episodes_repeat_their_last_transition_up_to_the_horizon(write, next_held):
    arrays = flat()
    path = write(arrays if next_held else without(arrays, "next_observations"))
    store = d4rl.read(path, reached=reached, goals=VELOCITY, horizon=6, pad=True)
    found = transitions(store)
    if next_held:
        assert [len(part["action"]) for part in found] == [4, 6, 5, 2]  # what a timeout cut keeps its length
        assert_trajectory(found[1], arrays, [4, 5, 6, 6, 6, 6], terminated=False)
    else:
        assert [len(part["action"]) for part in found] == [3, 6, 4]
        assert_trajectory(found[1], arrays, [4, 5, 5, 5, 5, 5], terminated=False, next_rows=[5, 6, 6, 6, 6, 6])


def test_an_episode_that_falls_in_its_first_step_can_be_padded(write):
    arrays = flat([(1, "terminal"), (3, "timeout"), (1, "timeout")])
    found = transitions(d4rl.read(write(arrays), reached=reached, goals=VELOCITY, horizon=4, pad=True))
    assert len(found) == 2
    assert_trajectory(found[0], arrays, [0, 0, 0, 0], terminated=False)


def test_a_horizon_cuts_files_without_timeouts(write):
    arrays = flat([(3, None), (3, None), (2, "terminal"), (3, None)])
    path = write(without(arrays, "timeouts", "next_observations"))
    with pytest.raises(DatasetError, match=r"'timeouts'.* pass the horizon"):
        d4rl.read(path, reached=reached, goals=VELOCITY)
    store = d4rl.read(path, reached=reached, goals=VELOCITY, horizon=3)
    expected = [([0, 1], [1, 2]), ([3, 4], [4, 5]), ([8, 9], [9, 10])]
    for found, (rows, next_rows) in zip(transitions(store), expected):
        assert_trajectory(found, arrays, rows, terminated=False, next_rows=next_rows)
    assert store.num_trajectories == 3


@pytest.mark.parametrize(
    ("limits", "lengths"),
    [
        ({"max_trajectories": 2}, [4, 3]),
        ({"max_transitions": 7}, [4, 3]),
        ({"max_transitions": 11}, [4, 3]),
        ({"max_transitions": 12}, [4, 3, 5]),
        ({"max_transitions": 12, "max_trajectories": 1}, [4]),
    ],
)
def test_limits_keep_the_first_whole_trajectories(write, limits, lengths):
    store = d4rl.read(write(flat()), reached=reached, goals=VELOCITY, **limits)
    assert [len(part["action"]) for part in transitions(store)] == lengths
    assert store.meta["dropped_rows"] == 14 - sum(lengths)


def test_rewards_follow_from_the_goals_and_not_from_the_file(write):
    arrays = flat([(4, "timeout")])
    arrays["next_observations"][:, 2] = [4.6, 4.4, 5.4, 5.6]  # closer than 0.5 to 5: the first and the third
    (found,) = transitions(d4rl.read(write(arrays), reached=reached, goals=VELOCITY))
    assert found["next", "reward"][:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert found["desired_goal"].tolist() == [[5.0]] * 4


def test_goals_are_columns_functions_the_end_of_the_trajectory_or_an_array(write):
    arrays = flat()
    arrays["infos/goal"] = np.arange(28, dtype="f8").reshape(14, 2)
    arrays["infos/qpos"] = np.arange(42, dtype="f8").reshape(14, 3)
    path = write(arrays)

    def read(goals):
        return transitions(d4rl.read(path, reached=lambda a, g: (a == g).all(-1), goals=goals))

    by_columns, by_function = read(Goals([0, 3])), read(Goals(lambda rows: rows[:, ::3]))
    for found, other, last in zip(by_columns, by_function, (3, 6, 11, 13)):
        np.testing.assert_array_equal(found["achieved_goal"], found["observation"][:, [0, 3]])
        np.testing.assert_array_equal(found["next", "achieved_goal"], found["next", "observation"][:, [0, 3]])
        np.testing.assert_array_equal(found["next", "achieved_goal"], other["next", "achieved_goal"])
        assert (found["desired_goal"] == arrays["next_observations"][last, [0, 3]]).all()
        assert found["next", "reward"][-1] == 1.0

    # goals of another array than the observations: its row after the last one belongs to another episode
    found = read(Goals(slice(0, 2), desired=("array", "infos/goal"), array="infos/qpos"))
    assert [len(part["action"]) for part in found] == [3, 2, 4]
    assert found[1]["achieved_goal"].tolist() == [[12, 13], [15, 16]]
    assert found[1]["next", "achieved_goal"].tolist() == [[15, 16], [18, 19]]
    assert found[1]["desired_goal"].tolist() == [[8, 9], [10, 11]]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (np.int64(1), [1]),
        (slice(1, None), [1, 2, 3]),
        (slice(-3, 4, 2), [1, 3]),
        (slice(3, -5, -1), [3, 2, 1, 0]),
        (slice(0, 6, 4), None),
        (slice(-6, 2), None),
        (slice(5, 1, -1), None),
        (slice(2, 2), None),
    ],
    ids=str,
)
def test_columns_are_those_that_are_named_or_it_is_said_that_they_are_not_there(columns, expected):
    pick, rows = columns_of("rows", columns), np.arange(8).reshape(2, 4)
    if expected is not None:
        np.testing.assert_array_equal(pick(rows), rows[:, expected])
        return
    with pytest.raises(DatasetError, match=f"rows: expected columns {re.escape(str(columns))}, found 4 columns"):
        pick(rows)


def test_robots_of_the_paper(write):
    rng = np.random.default_rng(0)
    for robot, width, kept, column, goal in (("halfcheetah", 17, 17, 8, 11), ("ant", 111, 27, 13, 5)):
        arrays = flat([(5, "terminal"), (4, "timeout")], width)
        arrays["observations"][:, 27:] = rng.normal(size=arrays["observations"][:, 27:].shape)
        store = d4rl.read(write(arrays), reached=reached, **d4rl.ROBOTS[robot])
        assert store.observation_dim == kept
        assert [len(part["action"]) for part in transitions(store)] == [1000, 4]
        np.testing.assert_array_equal(store.data["observation"][:5], arrays["observations"][:5, :kept])
        np.testing.assert_array_equal(store.data["achieved_goal"][:5, 0], arrays["observations"][:5, column])
        assert store.data["desired_goal"].unique().tolist() == [goal]
    with pytest.raises(DatasetError, match=r"'observations': expected columns .* found 26 columns"):
        d4rl.read(write(flat(width=26)), reached=reached, **d4rl.ROBOTS["ant"])


def test_flags_come_as_columns_and_numbers_too_and_numbers_as_float64(write):
    arrays = flat()
    changed = {name: array.astype("f8") for name, array in arrays.items()}
    changed["terminals"] = changed["terminals"][:, None]
    changed["timeouts"] = changed["timeouts"].astype("u1")
    stores = [d4rl.read(write(each), reached=reached, goals=VELOCITY) for each in (arrays, changed)]
    assert stores[0].sha256 == stores[1].sha256


def poke(name, value, index=(9, 1)):
    def change(arrays):
        arrays[name] = arrays[name].astype(type(value))
        arrays[name][index[: arrays[name].ndim]] = value
        return arrays

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: without(arrays, "actions"), r"expected 'actions', found .*'observations'"),
        (lambda arrays: without(arrays, "terminals"), "expected 'terminals'"),
        (lambda arrays: arrays | {"actions": arrays["actions"][:13]}, r"equally many rows, found .*'actions': \[13, 2"),
        (lambda arrays: arrays | {"timeouts": arrays["timeouts"][:13]}, r"equally many rows"),
        (lambda arrays: arrays | {"next_observations": arrays["observations"][:, :2]}, "the shape of 'observations'"),
        (lambda arrays: arrays | {"actions": np.arange(14)}, r"'actions': expected shape \[rows, width\].*discrete"),
        (lambda arrays: arrays | {"observations": np.zeros((14, 8, 8, 3), "u1")}, "next_observations.*shape"),
        (
            lambda arrays: without(arrays, "next_observations") | {"observations": np.zeros((14, 8, 8, 3), "u1")},
            r"'observations': expected shape \[rows, width\].*images",
        ),
        (lambda arrays: arrays | {"actions": arrays["actions"] + 1j}, r"'actions': expected real numbers.*complex"),
        (lambda arrays: arrays | {"terminals": np.array([b"no"] * 14)}, "'terminals': expected real numbers"),
        (lambda arrays: arrays | {"actions": 3.0}, "'actions': expected an array"),
        (lambda arrays: arrays | {"actions": arrays["actions"][:, :0]}, "'actions': expected at least one column"),
        (lambda arrays: {name: array[:0] for name, array in arrays.items()}, "expected transitions, found none"),
        (lambda arrays: {name: array[:1] for name, array in arrays.items()}, "two or more transitions"),
        (poke("observations", np.float64(np.nan)), r"'observations': expected finite.*nan.* in row 9 "),
        (poke("next_observations", np.float64(np.inf)), r"'next_observations': expected finite.*inf.* in row 9 "),
        (poke("actions", np.float64(1e300)), r"'actions': expected finite.*inf.* in row 9 "),
        (poke("terminals", np.float32(0.5)), r"'terminals': expected 0 or 1, found 0.5 in row 9"),
        (poke("timeouts", np.int64(2)), r"'timeouts': expected 0 or 1, found 2 in row 9"),
    ],
)
def test_a_file_that_does_not_hold_such_a_dataset_is_a_clear_error(write, change, message):
    path = write(change(flat()))
    with pytest.raises(DatasetError, match=message) as error:
        d4rl.read(path, reached=reached, goals=VELOCITY)
    assert str(path) in str(error.value)


def test_numbers_that_are_not_used_are_not_checked(write):
    arrays = without(flat(), "next_observations")
    arrays["actions"][3] = np.nan  # beside the last state of the first episode
    assert d4rl.read(write(arrays), reached=reached, goals=VELOCITY).num_trajectories == 3


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_file_is_a_clear_error_with_its_cause(write, kept):
    path = write(flat([(1000, "timeout")]))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match=r"cannot read .*a.hdf5 as HDF5") as error:
        d4rl.read(path, reached=reached, goals=VELOCITY)
    assert error.value.__cause__ is not None


def test_a_missing_file_text_and_damaged_compression_are_clear_errors(write, tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read .*none.hdf5 as HDF5.*No such file"):
        d4rl.read(tmp_path / "none.hdf5", reached=reached, goals=VELOCITY)
    text = tmp_path / "text.hdf5"
    text.write_text("not HDF5" * 100)
    with pytest.raises(DatasetError, match="cannot read"):
        d4rl.read(text, reached=reached, goals=VELOCITY)
    path = write(flat([(1000, "timeout")]), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 20 : chunk.byte_offset + 200] = bytes(180)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="'observations': expected a chunk compressed by gzip"):
        d4rl.read(path, reached=reached, goals=VELOCITY)


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 4)}, {"chunks": (4, 4), "compression": "gzip"}], ids=str)
def test_numbers_that_were_never_written_do_not_pass_for_zeros(write, options):
    path = write(without(flat(), "observations"))
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset("observations", (14, 4), "f4", **options)
        if options:
            dataset[:8] = 1.0
    with pytest.raises(DatasetError, match=r"'observations': expected \d+ (bytes|chunks), found \d+: it is incomplete"):
        d4rl.read(path, reached=reached, goals=VELOCITY)


def test_a_declared_size_of_terabytes_is_refused_before_memory_is_asked_for(tmp_path):
    path = tmp_path / "huge.hdf5"
    with h5py.File(path, "w") as file:
        for name, shape in (("observations", (10**12, 17)), ("actions", (10**12, 6)), ("terminals", (10**12,))):
            file.create_dataset(name, shape, "f4", chunks=(1000, *shape[1:]))
    with pytest.raises(DatasetError, match=r"'observations': expected 1000000000 chunks of 68000 bytes in a file"):
        d4rl.read(path, reached=reached, goals=VELOCITY, horizon=1000)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual dataset", "group"])
def test_nothing_outside_the_file_is_read(write, tmp_path, kind):
    arrays = flat()
    secret = tmp_path / "secret.hdf5"
    with h5py.File(secret, "w") as file:
        file["observations"] = arrays["observations"]
    raw = tmp_path / "secret.raw"
    raw.write_bytes(arrays["observations"].tobytes())
    path = write(without(arrays, "observations"))
    with h5py.File(path, "a") as file:
        if kind == "external link":
            file["observations"] = h5py.ExternalLink(str(secret), "observations")
        elif kind == "soft link":
            file["observations"] = h5py.SoftLink("/next_observations")
        elif kind == "external storage":
            file.create_dataset("observations", (14, 4), "f4", external=[(str(raw), 0, raw.stat().st_size)])
        elif kind == "virtual dataset":
            layout = h5py.VirtualLayout((14, 4), "f4")
            layout[:] = h5py.VirtualSource(str(secret), "observations", (14, 4))
            file.create_virtual_dataset("observations", layout)
        else:
            file.create_group("observations")
    with pytest.raises(DatasetError, match=r"'observations': expected (it in this file|numbers in this|an array)"):
        d4rl.read(path, reached=reached, goals=VELOCITY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 1}, "horizon must be at least 2"),
        ({"pad": True}, "pad needs a horizon"),
        ({"max_trajectories": 0}, "max_trajectories"),
        ({"max_transitions": 0}, "max_transitions"),
        ({"goals": Goals(2, desired="last")}, "desired must be 'final'"),
        ({"goals": Goals(2, offset=2)}, "offset must be 'auto', 0 or 1, got 2"),
        ({"goals": Goals(2, offset=1)}, "observations are not late"),
        ({"fallen": lambda rows: rows}, r"fallen: expected booleans of shape \[14\], found float32 \[14, 4\]"),
        ({"fallen": lambda rows: rows[:, 9] > 0}, r"fallen: .*\[14, 4\], failed with IndexError"),
        ({"reached": lambda a, g: a[:, 9] > 0}, r"reached: expected booleans for goals .*failed with IndexError"),
        (
            {"goals": Goals(lambda rows: rows[:, 9:10] / rows[9])},
            r"goal function to take rows \[14, 4\], failed with Val",
        ),
        ({"goals": Goals(2, desired=[np.nan])}, "desired must be 'final'"),
        ({"goals": Goals(2, desired=[1.0, 2.0])}, "expected a desired goal as wide as the achieved one, 1, found 2"),
        ({"goals": Goals(4)}, r"'observations': expected columns \[4\], found 4 columns"),
        ({"goals": Goals([-1])}, r"'observations': expected columns \[-1\]"),
        (
            {"goals": Goals(lambda rows: rows[:, 2])},
            r"expected the goal function to return numbers of shape \[14, dg\]",
        ),
        ({"goals": Goals(0, array="infos/none")}, "expected 'infos/none', found"),
        ({"goals": Goals(0, desired=("array", "infos/none"))}, "expected 'infos/none', found"),
        ({"reached": lambda a, g: a - g}, "reached: expected booleans"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(write, options, message):
    path = write(flat())
    with pytest.raises(ValueError, match=message):
        d4rl.read(path, **{"reached": reached, "goals": VELOCITY, **options})


def test_without_h5py_the_error_says_what_to_install(write, monkeypatch):
    path, known = write(flat()), builtins.__import__

    def refuse(name, *args, **kwargs):
        if name in ("h5py", "tqdm"):
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install \"torchrl-smore\[hdf5\]\""):
        d4rl.read(path, reached=reached, goals=VELOCITY)


def test_progress_is_shown_on_demand(write, capsys):
    path = write(flat())
    d4rl.read(path, reached=reached, goals=VELOCITY)
    assert capsys.readouterr().err == ""
    d4rl.read(path, reached=reached, goals=VELOCITY, progress=True)
    assert "reading a.hdf5: 100%" in capsys.readouterr().err


# files as other people's generators write them


def maze(lengths=(6, 8), ends="terminals", written="before", speed=0.5):
    """A point that moves by ``speed`` in each step and is at its goal, x = 3, in the last state of each episode.

    As D4RL's mazes are laid out: one row for each state but the last, no ``next_observations``. ``infos/qpos`` is
    written before the step, as in maze2d, or after it, as in antmaze.
    """
    parts = {name: [] for name in ("observations", "actions", "terminals", "timeouts", "infos/qpos")}
    for steps in lengths:
        x = np.float32(3.0) - np.float32(speed) * np.arange(steps, -1, -1, dtype="f4")
        states = np.stack([x, np.sin(np.arange(steps + 1, dtype="f4") + steps)], 1)
        last = np.arange(steps) == steps - 1
        parts["observations"].append(np.concatenate([states, states[:, ::-1] ** 2], 1)[:-1])
        parts["infos/qpos"].append(states[:-1].astype("f8") if written == "before" else states[1:].astype("f8"))
        parts["actions"].append(np.zeros((steps, 2), "f4"))
        for name in ("terminals", "timeouts"):
            parts[name].append(last & (name == ends))
    return {name: np.concatenate(part) for name, part in parts.items()}


def at_three(achieved, goal):
    return np.abs(achieved - goal)[..., 0] < 0.1


def test_rows_whose_next_state_is_not_in_the_file_are_counted_and_a_lost_success_is_said(write, caplog):
    goals = Goals(0, desired=3.0)
    store = d4rl.read(write(maze()), reached=at_three, goals=goals)
    # the state x = 3 follows the last row of each episode and is nowhere in the file
    assert [len(part["action"]) for part in transitions(store)] == [5, 7]
    assert store.meta["dropped_rows"] == 2
    assert not store.data["next", "reward"].any()
    (said,) = caplog.messages
    assert "2 rows are terminal, yet no transition is rewarded" in said
    caplog.clear()
    # no fall is expected to be rewarded, and where a goal was reached nothing is lost without a word
    d4rl.read(write(maze(ends="timeouts")), reached=at_three, goals=goals)
    d4rl.read(write(maze()), reached=at_three, goals=Goals(0, desired=2.5))
    assert not caplog.messages


@pytest.mark.parametrize("offset", ["auto", 1])
def test_goals_that_were_written_after_the_step_are_those_of_the_state_that_follows(write, caplog, offset):
    arrays = maze(written="after")
    path = write(arrays)
    store = d4rl.read(path, reached=at_three, goals=Goals(0, desired=3.0, array="infos/qpos", offset=offset))
    assert (store.meta["goal_offset"], store.meta["dropped_rows"]) == (1, 4)
    late = [said for said in caplog.messages if "was written after the step" in said]
    assert len(late) == (offset == "auto")
    for found, first, stop in zip(transitions(store), (0, 6), (6, 14)):
        rows = list(range(first + 1, stop - 1))
        np.testing.assert_array_equal(found["observation"], arrays["observations"][rows])
        np.testing.assert_array_equal(found["next", "observation"], arrays["observations"][first + 2 : stop])
        # the goal of a state is a part of it
        np.testing.assert_array_equal(found["achieved_goal"], found["observation"][:, :1])
        np.testing.assert_array_equal(found["next", "achieved_goal"], found["next", "observation"][:, :1])

    taken = d4rl.read(path, reached=at_three, goals=Goals(0, desired=3.0, array="infos/qpos", offset=0))
    assert (taken.meta["goal_offset"], taken.meta["dropped_rows"]) == (0, 2)
    assert (taken.data["achieved_goal"] - taken.data["observation"][:, :1] == 0.5).all()


def test_late_goals_with_next_observations_keep_the_last_row_and_its_success(write):
    arrays = maze(written="after")
    states = [np.concatenate([arrays["infos/qpos"], arrays["infos/qpos"][:, ::-1] ** 2], 1).astype("f4")]
    path = write(arrays | {"next_observations": states[0]})
    store = d4rl.read(path, reached=at_three, goals=Goals(0, desired=3.0, array="infos/qpos"))
    found = transitions(store)
    assert [len(part["action"]) for part in found] == [5, 7]
    assert store.meta["dropped_rows"] == 2
    assert [part["next", "reward"][:, 0].tolist() for part in found] == [[0.0] * 4 + [1.0], [0.0] * 6 + [1.0]]
    assert all(part["next", "terminated"][-1] for part in found)
    np.testing.assert_array_equal(store.data["achieved_goal"], store.data["observation"][:, :1])


@pytest.mark.parametrize("offset", [0, 1])
def test_goals_of_other_rows_need_rows_that_follow_each_other(write, offset):
    arrays = flat()
    arrays["infos/qpos"] = np.arange(42, dtype="f4").reshape(14, 3)
    goals = Goals(0, desired=3.0, array="infos/qpos", offset=offset)
    # no other state: rounded, or between two episodes
    arrays["next_observations"][8] *= np.float32(1 + 1e-6)
    arrays["next_observations"][3] += 1.0
    assert d4rl.read(write(arrays), reached=reached, goals=goals).num_trajectories == 3
    arrays["next_observations"][8, 3] += 0.01
    with pytest.raises(DatasetError, match="'next_observations': expected in row 8 the observation of row 9, found"):
        d4rl.read(write(arrays), reached=reached, goals=goals)
    # columns that are left out and episodes beyond a limit do not matter
    for options in ({"observation_columns": slice(0, 3)}, {"max_trajectories": 2}):
        d4rl.read(write(arrays), reached=reached, goals=goals, **options)


def test_goals_achieved_after_the_step_come_from_the_array_that_is_named(write):
    arrays = flat()
    arrays["infos/qpos"] = np.arange(42, dtype="f4").reshape(14, 3)
    arrays["infos/next"] = 100 + arrays["infos/qpos"]
    goals = Goals([0, 2], array="infos/qpos", after="infos/next")
    for held, length, dropped in ((True, [4, 3, 5, 2], 0), (False, [3, 2, 4], 5)):
        store = d4rl.read(write(arrays if held else without(arrays, "next_observations")), reached=reached, goals=goals)
        rows = store.data["achieved_goal"][:, 0].numpy() / 3
        assert [len(part["action"]) for part in transitions(store)] == length
        np.testing.assert_array_equal(store.data["achieved_goal"], arrays["infos/qpos"][rows.astype(int)][:, [0, 2]])
        np.testing.assert_array_equal(store.data["next", "achieved_goal"], store.data["achieved_goal"] + 100)
        np.testing.assert_array_equal(store.data["observation"], arrays["observations"][rows.astype(int)])
        np.testing.assert_array_equal(store.data["next", "observation"], arrays["next_observations"][rows.astype(int)])
        assert store.meta["dropped_rows"] == dropped
    with pytest.raises(DatasetError, match=r"'infos/next': expected columns \[5\], found 3 columns"):
        d4rl.read(
            write(arrays | {"infos/qpos": np.zeros((14, 6), "f4")}), reached=reached, goals=replace(goals, achieved=5)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": "infos/next"}, r"after='infos/next' needs another array .* got array='observations'"),
        ({"after": "infos/next", "array": "infos/next"}, "got array='infos/next'"),
        ({"after": "infos/next", "array": "infos/qpos", "offset": 1}, "an array is not late, got offset=1"),
    ],
)
def test_an_array_of_goals_after_the_step_that_cannot_be_is_refused(write, options, message):
    with pytest.raises(ValueError, match=message):
        d4rl.read(write(flat()), reached=reached, goals=Goals(0, **options))


def test_goals_that_were_written_before_the_step_stay_where_they_are(write, caplog):
    path = write(maze(ends="timeouts"))
    store = d4rl.read(path, reached=at_three, goals=Goals(0, desired=3.0, array="infos/qpos"))
    assert (store.meta["goal_offset"], store.meta["dropped_rows"]) == (0, 2)
    np.testing.assert_array_equal(store.data["achieved_goal"], store.data["observation"][:, :1])
    assert not caplog.messages


def test_an_array_of_goals_of_one_number_in_each_row_is_a_column(write):
    arrays = maze(ends="timeouts")
    column = d4rl.read(write(arrays), reached=at_three, goals=Goals(0, desired=3.0, array="infos/qpos"))
    arrays["infos/qpos"] = arrays["infos/qpos"][:, 0].astype(np.float64)
    single = d4rl.read(write(arrays), reached=at_three, goals=Goals(slice(None), desired=3.0, array="infos/qpos"))
    assert torch.equal(single.data["achieved_goal"], column.data["achieved_goal"])


def test_episodes_that_end_rows_too_late_are_noticed_by_their_jumps(write, caplog):
    arrays = maze(lengths=(40, 50, 60), ends="timeouts", speed=0.4)
    d4rl.read(write(arrays), reached=at_three, goals=Goals(0))
    assert not caplog.messages
    arrays["timeouts"] = np.roll(arrays["timeouts"], 2)
    arrays["timeouts"][:2] = False
    store = d4rl.read(write(arrays), reached=at_three, goals=Goals(0))
    (said,) = caplog.messages
    # row 39 is at 2.6; in row 40, two rows before the first episode is said to end, the second begins at 3 - 50 * 0.4
    assert "2 of " in said
    assert "the first is step 39 of trajectory 0" in said
    step = store.data["next", "observation"][:, 0] - store.data["observation"][:, 0]
    assert float(step[39]) == pytest.approx(-19.6)


def test_a_fallen_ant_earns_nothing(write):
    arrays = flat([(6, "timeout"), (4, "terminal")], 111)
    for name in ("observations", "next_observations"):
        arrays[name][:, 0], arrays[name][:, 13] = 0.5, 5.0
    arrays["next_observations"][[2, 9], 0] = 0.1, 1.2  # below 0.2 m, above 1 m
    arrays["next_observations"][4, 13] = 9.0
    store = d4rl.read(write(arrays), reached=reached, **{**d4rl.ROBOTS["ant"], "pad": False})
    assert store.data["next", "reward"][:, 0].tolist() == [1, 1, 0, 1, 0, 1, 1, 1, 1, 0]
    plain = {key: value for key, value in d4rl.ROBOTS["ant"].items() if key != "fallen"} | {"pad": False}
    assert d4rl.read(write(arrays), reached=reached, **plain).data["next", "reward"].sum() == 9


def test_one_number_in_each_row_is_a_column_and_large_whole_numbers_are_named(write, caplog):
    arrays = flat([(4, "timeout")])
    arrays["actions"] = arrays["actions"][:, 0]
    store = d4rl.read(write(arrays), reached=reached, goals=VELOCITY)
    np.testing.assert_array_equal(store.data["action"][:, 0], arrays["actions"])
    assert not caplog.messages
    arrays["actions"] = np.array([[1], [2], [1 << 24], [(1 << 24) + 1]])
    d4rl.read(write(arrays), reached=reached, goals=VELOCITY)
    (said,) = caplog.messages
    assert "'actions': whole numbers beyond 2**24 are rounded" in said


# chunks


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("chunks", [(4, 4), (5, 3), (14, 1), (20, 7), (1, 4)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip"},
        {"shuffle": True},
        {"fletcher32": True},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
    ],
    ids=str,
)
def test_every_layout_of_chunks_gives_the_same_numbers(write, tmp_path, libver, chunks, options):
    arrays = flat()
    arrays["observations"] = arrays["observations"].astype(">f8")
    expected = d4rl.read(write(arrays), reached=reached, goals=VELOCITY).sha256
    path = tmp_path / "b.hdf5"
    with h5py.File(path, "w", libver=libver, userblock_size=512) as file:
        for name, array in arrays.items():
            size = chunks[: array.ndim]
            limits = tuple(map(max, size, array.shape))
            file.create_dataset(name, data=array, chunks=size, maxshape=limits, **options)
    assert d4rl.read(path, reached=reached, goals=VELOCITY).sha256 == expected


def test_a_chunk_that_gzip_would_enlarge_is_kept_as_it_is(write):
    arrays = flat()
    path = write(without(arrays, "observations"))
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset("observations", (14, 4), "f4", chunks=(14, 4), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), arrays["observations"].tobytes(), filter_mask=1)
    store = d4rl.read(path, reached=reached, goals=VELOCITY)
    np.testing.assert_array_equal(store.data["observation"].numpy(), arrays["observations"])


@pytest.mark.parametrize("kept", [0, 100, 223])
def test_a_chunk_that_inflates_to_less_than_it_must_is_refused(write, kept):
    arrays = flat()
    path = write(without(arrays, "observations"))
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset("observations", (14, 4), "f4", chunks=(14, 4), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), zlib.compress(arrays["observations"].tobytes()[:kept]))
    with pytest.raises(DatasetError, match=rf"'observations': expected 224 bytes in a chunk, found {kept}"):
        d4rl.read(path, reached=reached, goals=VELOCITY)


def test_a_filter_that_is_not_read_is_named(write):
    with pytest.raises(DatasetError, match=r"compressed by gzip, found the filter 'lzf': 'h5repack -f GZIP=4"):
        d4rl.read(write(flat(), compression="lzf"), reached=reached, goals=VELOCITY)


def test_rules_that_keep_a_dimension_are_squeezed(write):
    arrays = flat([(4, "timeout")])
    arrays["next_observations"][:, 2] = [4.6, 4.4, 5.4, 5.6]
    arrays["next_observations"][:, 0] = [0.0, 0.0, 9.0, 0.0]
    store = d4rl.read(
        write(arrays), reached=lambda a, g: np.abs(a - g) < 0.5, fallen=lambda rows: rows[:, :1] > 5.0, goals=VELOCITY
    )
    assert store.data["next", "reward"][:, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
