"""Writers of other people's formats, read back by their own libraries where these are here."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from torchrl_smore.data import DatasetError, TrajectoryStore, readers, writers

LENGTHS = (4, 2, 5)


def reached(achieved, goal):
    return ((achieved - goal) ** 2).sum(-1) <= 0.25


def make_store(lengths=LENGTHS, terminated=(False, True, False)):
    """Random walks in the plane; observation: place and one more column."""
    rng = np.random.default_rng(0)
    episodes = []
    for steps, ends in zip(lengths, terminated):
        place = rng.normal(size=(steps + 1, 2)).cumsum(0).astype(np.float32)
        goal = place[-1] if ends else rng.normal(size=(steps, 2)).astype(np.float32)
        desired = np.broadcast_to(goal, (steps, 2))
        flags = np.zeros(steps, dtype=bool)
        flags[-1] = ends
        episodes.append(
            {
                "observation": np.concatenate([place, rng.normal(size=(steps + 1, 1))], 1).astype(np.float32),
                "achieved_goal": place,
                "action": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
                "desired_goal": desired,
                "reward": reached(place[1:], desired).astype(np.float32),
                "terminated": flags,
            }
        )
    return TrajectoryStore.from_episodes(episodes, {"task": "walk", "seed": 3})


@pytest.fixture
def store():
    return make_store()


def different(first, second):
    return [key for key in first.data.keys(True, True) if not torch.equal(first.data[key], second.data[key])]


def test_minari_holds_every_number(store, tmp_path):
    assert writers.minari.write(store, tmp_path, "walk/test-v0") == tmp_path / "walk" / "test-v0"
    found = readers.minari.read(tmp_path / "walk" / "test-v0", reached=reached)
    assert different(store, found) == []
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-1.0, 3.0), (-3.0, 1.0)])
def test_minari_declares_a_space_that_holds_the_actions(tmp_path, low, high):
    pytest.importorskip("h5py")
    data = make_store().data
    data["action"] *= 3.0
    data["action"][4, 1], data["action"][7, 0] = -2.7, 2.7
    store = TrajectoryStore(data)
    with pytest.raises(DatasetError, match=rf"'action': expected .* in \[{low:g}, {high:g}\], .* found .* in row \d"):
        writers.minari.write(store, tmp_path, "walk-v0", action_low=low, action_high=high)
    assert not list(tmp_path.iterdir())
    # 2.7 is none of float32: the space is rounded as the actions are
    data["action"].clamp_(-2.7, 2.7)
    writers.minari.write(store, tmp_path, "walk-v0", action_low=-2.7, action_high=2.7)
    metadata = json.loads((tmp_path / "walk-v0" / "data" / "metadata.json").read_text())
    space = json.loads(metadata["action_space"])
    assert (space["low"], space["high"]) == ([-2.7] * 2, [2.7] * 2)


def test_d4rl_holds_every_number_and_rows_that_are_no_sequence(store, tmp_path):
    h5py = pytest.importorskip("h5py")
    data = store.data.clone()
    data["next", "observation"][0] += 1.0
    odd = TrajectoryStore(data, store.meta)
    writers.d4rl.write(odd, tmp_path / "walk.hdf5")
    with h5py.File(tmp_path / "walk.hdf5") as file:
        for name, key in {
            "observations": "observation",
            "actions": "action",
            "next_observations": ("next", "observation"),
            "infos/goal": "desired_goal",
            "infos/achieved_goal": "achieved_goal",
            "infos/next_achieved_goal": ("next", "achieved_goal"),
        }.items():
            assert file[name].dtype == np.float32
            np.testing.assert_array_equal(file[name][:], data[key].numpy())
        for name, key in {"rewards": "reward", "terminals": "terminated", "timeouts": "truncated"}.items():
            np.testing.assert_array_equal(file[name][:], data["next", key][:, 0].numpy())
        assert json.loads(file["metadata/store"][()]) == {"task": "walk", "seed": 3}
    goals = readers.Goals([0, 1], ("array", "infos/goal"))
    writers.d4rl.write(store, tmp_path / "same.hdf5")
    assert different(store, readers.d4rl.read(tmp_path / "same.hdf5", reached=reached, goals=goals)) == []


@pytest.mark.parametrize("key", ["observation", "achieved_goal"])
def test_d4rl_rows_that_are_no_sequence_are_read_again_by_the_names_that_the_writer_gives(store, tmp_path, key):
    pytest.importorskip("h5py")
    data = store.data.clone()
    data["next", key][[0, 3, 5]] += 1.0
    achieved, desired = data["next", "achieved_goal"].numpy(), data["desired_goal"].numpy()
    data["next", "reward"] = torch.from_numpy(reached(achieved, desired)).float()[:, None]
    odd = TrajectoryStore(data)
    writers.d4rl.write(odd, tmp_path / "walk.hdf5")
    names = (slice(None), ("array", "infos/goal"), "infos/achieved_goal")
    goals = readers.Goals(*names, after="infos/next_achieved_goal")
    found = readers.d4rl.read(tmp_path / "walk.hdf5", reached=reached, goals=goals)
    assert different(odd, found) == []
    assert found.meta["dropped_rows"] == 0
    if key == "observation":
        goals = readers.Goals(*names)
        with pytest.raises(DatasetError, match=r"'next_observations': expected in row 0 .* of row 1, .*Goals\(after="):
            readers.d4rl.read(tmp_path / "walk.hdf5", reached=reached, goals=goals)


def test_ogbench_holds_every_number_but_no_terminal_states(tmp_path):
    store = make_store(terminated=(False, False, False))
    writers.ogbench.write(store, tmp_path / "walk.npz")
    goals = readers.Goals(slice(None), ("array", "desired_goals"), "achieved_goals", 0)
    assert different(store, readers.ogbench.read(tmp_path / "walk.npz", reached=reached, goals=goals)) == []
    with np.load(tmp_path / "walk.npz") as file:
        assert file["terminals"].tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_wgcsl_holds_every_number_of_trajectories_of_one_length(store, tmp_path):
    own = make_store((3, 3), (False, False))
    writers.wgcsl.write(own, tmp_path / "buffer.pkl")
    assert different(own, readers.wgcsl.read(tmp_path / "buffer.pkl", reached=reached, clip=None)) == []
    content = pickle.loads((tmp_path / "buffer.pkl").read_bytes())
    assert {key: value.shape for key, value in content.items()} == {
        **{"o": (2, 4, 3), "ag": (2, 4, 2), "u": (2, 3, 2), "g": (2, 3, 2)}
    }
    with pytest.raises(DatasetError, match="holds trajectories of one length, found 2 to 5"):
        writers.wgcsl.write(store, tmp_path / "other.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["buffer.pkl"]


WRITE = {
    "minari": lambda store, path: writers.minari.write(store, path.parent, f"{path.name}-v0"),
    "ogbench": writers.ogbench.write,
    "wgcsl": writers.wgcsl.write,
    "d4rl": writers.d4rl.write,
}


@pytest.mark.parametrize("format", ["minari", "ogbench", "wgcsl"])
@pytest.mark.parametrize("key", ["observation", "achieved_goal"])
def test_rows_that_are_no_sequence_of_states_are_refused_and_nothing_is_left(tmp_path, format, key):
    data = make_store((3, 3), (False, False)).data
    data["next", key][4] += 1.0  # of the second trajectory
    with pytest.raises(DatasetError, match=f"'{key}': trajectory 1 goes on in row 5 elsewhere than where row 4 ended"):
        WRITE[format](TrajectoryStore(data), tmp_path / "walk")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", WRITE)
def test_what_is_there_stays(tmp_path, format):
    own = make_store((3, 3), (False, False))
    there = tmp_path / ("walk-v0" if format == "minari" else "walk")
    there.write_text("mine")
    with pytest.raises(FileExistsError, match="exists; move it"):
        WRITE[format](own, tmp_path / "walk")
    assert there.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [there.name]


FULL = """
import os, resource, sys
from pathlib import Path
from torchrl_smore.data import TrajectoryStore, writers
store, path = TrajectoryStore.load(sys.argv[1]), Path(sys.argv[2]) / "new" / "walk"
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
for format in ("d4rl", "minari", "ogbench", "wgcsl"):
    try:
        if format == "minari":
            writers.minari.write(store, path.parent, "walk/test-v0")
        else:
            getattr(writers, format).write(store, path)
    except OSError as error:
        print(format, error.errno, os.path.dirname(error.filename))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store of more than 200 kB in every format."""
    path = tmp_path_factory.mktemp("large") / "store"
    make_store((150,) * 100, (False,) * 100).save(path)
    return path


def test_a_full_disk_is_an_error_and_nothing_is_left(large, tmp_path):
    pytest.importorskip("resource")
    pytest.importorskip("h5py")
    # a process of its own to its very end: HDF5 crashes where it closes what it could not write
    command = [sys.executable, "-c", FULL, str(large), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    place = dict.fromkeys(WRITE, tmp_path / "new") | {"minari": tmp_path / "new" / "walk"}
    assert done.stdout.splitlines() == [f"{format} {errno.EFBIG} {place[format]}" for format in sorted(WRITE)]
    assert not list(tmp_path.iterdir())


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from torchrl_smore.data import TrajectoryStore, writers
from torchrl_smore.data.writers import _hdf5

class Output(_hdf5._Output):
    calls = 0

    def write(self, content):
        Output.calls += 1
        if Output.calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(content)

_hdf5._Output = Output
# a session without a terminal may have it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
store, path = TrajectoryStore.load(sys.argv[1]), Path(sys.argv[2])
for write in (lambda: writers.d4rl.write(store, path / "walk"), lambda: writers.minari.write(store, path, "walk-v0")):
    Output.calls = 0
    try:
        write()
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_an_interrupt_while_hdf5_is_written_ends_it_and_nothing_is_left(python, large, tmp_path):
    pytest.importorskip("h5py")
    done = python("-c", INTERRUPTED, large, tmp_path)
    assert (done.status, done.stdout, done.stderr) == (0, "interrupted\n" * 2, "")
    assert not list(tmp_path.iterdir())


def test_an_id_that_minari_does_not_take_is_refused(store, tmp_path):
    for name in ("walk", "../walk-v0", "a b-v0", "/walk-v0", "walk-v0/", ""):
        with pytest.raises(ValueError, match="expected the id of a Minari dataset"):
            writers.minari.write(store, tmp_path, name)
    assert not list(tmp_path.iterdir())


MINARI = """
import sys, minari, numpy as np
dataset = minari.load_dataset("walk/test-v0")
print(dataset.total_episodes, dataset.total_steps, dataset.action_space, sorted(dataset.observation_space))
episodes = {}
for number, e in enumerate(dataset.iterate_episodes()):
    assert dataset.action_space.contains(e.actions[0]) and e.id == number
    assert dataset.observation_space.contains({key: value[0] for key, value in e.observations.items()})
    episodes |= {f"{number}/{key}": value for key, value in e.observations.items()}
    episodes |= {f"{number}/{key}": getattr(e, key) for key in ("actions", "rewards", "terminations", "truncations")}
np.savez(sys.argv[1], **episodes)
"""


def test_minari_itself_reads_every_number(store, tmp_path):
    pytest.importorskip("minari")
    writers.minari.write(store, tmp_path, "walk/test-v0", metadata={"author": "A. N. Other"})
    env = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path)}
    command = [sys.executable, "-c", MINARI, str(tmp_path / "found.npz")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout == "3 11 Box(-1.0, 1.0, (2,), float32) ['achieved_goal', 'desired_goal', 'observation']\n"
    found = np.load(tmp_path / "found.npz")
    for number, (start, stop) in enumerate(zip(*store.trajectory_bounds)):
        rows = store.data[start:stop]
        for key in ("observation", "achieved_goal"):
            np.testing.assert_array_equal(found[f"{number}/{key}"][:-1], rows[key])
            np.testing.assert_array_equal(found[f"{number}/{key}"][1:], rows["next", key])
        np.testing.assert_array_equal(found[f"{number}/desired_goal"][:-1], rows["desired_goal"])
        np.testing.assert_array_equal(found[f"{number}/actions"], rows["action"])
        for name, key in {"rewards": "reward", "terminations": "terminated", "truncations": "truncated"}.items():
            np.testing.assert_array_equal(found[f"{number}/{name}"], rows["next", key][:, 0])


def test_ogbench_itself_reads_every_number(store, tmp_path):
    utils = pytest.importorskip("ogbench.utils")
    writers.ogbench.write(store, tmp_path / "walk.npz")
    found = utils.load_dataset(tmp_path / "walk.npz")
    np.testing.assert_array_equal(found["observations"], store.data["observation"])
    np.testing.assert_array_equal(found["next_observations"], store.data["next", "observation"])
    np.testing.assert_array_equal(found["actions"], store.data["action"])
    np.testing.assert_array_equal(found["terminals"], store.data["next", "done"][:, 0])
