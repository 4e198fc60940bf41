from __future__ import annotations

import os
import pickle

import h5py
import numpy as np
import pytest

from torchrl_smore.data import readers
from torchrl_smore.data.errors import DatasetError


def reached(achieved, goal):
    return np.linalg.norm(achieved - goal, axis=-1) < 1.0


STATES = np.arange(24.0).reshape(2, 6, 2)  # two episodes of five steps
ACTIONS = np.linspace(-1, 1, 10).reshape(2, 5, 1)
GOALS = readers.Goals(slice(None), desired=[1.0, 2.0])


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The same two episodes in every format, and options of the reader."""
    goal = np.broadcast_to([1.0, 2.0], (2, 6, 2))
    padded = np.concatenate([ACTIONS, np.zeros((2, 1, 1))], 1).reshape(12, 1)
    ends = np.tile(np.arange(6) == 5, 2)
    pickled = {"o": STATES, "ag": STATES, "u": ACTIONS, "g": goal[:, :5]}
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(pickled))
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, array in (("observations", STATES.reshape(12, 2)), ("actions", padded), ("timeouts", ends)):
            file[name] = array
        file["terminals"] = np.zeros(12)
    np.savez(tmp_path / "a.npz", observations=STATES.reshape(12, 2), actions=padded, terminals=ends)
    data = tmp_path / "minari" / "set-v0" / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number in range(2):
            group = file.create_group(f"episode_{number}")
            for key, array in (("observation", STATES), ("achieved_goal", STATES), ("desired_goal", goal)):
                group[f"observations/{key}"] = array[number]
            group["actions"], group["terminations"] = ACTIONS[number], np.zeros(5, bool)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    rows = np.concatenate([np.arange(2).repeat(6)[:, None], STATES.reshape(12, 2), padded, goal.reshape(12, 2)], 1)
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="episode,x,y,u,gx,gy", comments="")
    columns = readers.TableColumns(("x", "y"), ("u",), ("x", "y"), "episode", ("gx", "gy"))
    readers.wgcsl.read(tmp_path / "buffer.pkl", reached=reached).save(tmp_path / "store")
    return {
        "store": (tmp_path / "store", {}),
        "wgcsl": (tmp_path / "buffer.pkl", {}),
        "d4rl": (tmp_path / "a.hdf5", {"goals": GOALS}),
        "ogbench": (tmp_path / "a.npz", {"goals": GOALS}),
        "minari": ("set-v0", {}),
        "csv": (tmp_path / "a.csv", {"columns": columns}),
    }


def test_every_format_is_recognised_and_the_same_episodes_give_the_same_columns(datasets):
    assert set(datasets) == set(readers.FORMATS)
    digests = set()
    for name, (path, options) in datasets.items():
        assert readers.recognise(path) == name
        digests.add(readers.read(path, reached=reached, progress=False, **options).sha256)
    assert len(digests) == 1


def test_a_format_by_name_overrides_the_suffix(datasets, tmp_path):
    path, options = datasets["d4rl"]
    renamed = path.rename(tmp_path / "a.data")
    with pytest.raises(DatasetError, match=r"a.data is of no known format.*'d4rl'"):
        readers.read(renamed, reached=reached, **options)
    assert readers.read(renamed, reached=reached, format="d4rl", **options).num_trajectories == 2
    with pytest.raises(ValueError, match=r"unknown format 'd4r'.*d4rl"):
        readers.read(renamed, reached=reached, format="d4r", **options)
    with pytest.raises(DatasetError, match="as npz"):
        readers.read(renamed, reached=reached, format="ogbench")


def test_what_is_not_there_or_of_no_format_is_a_clear_error(datasets, tmp_path):
    for path in ("none-v0", tmp_path / "none.hdf5", tmp_path / "none"):
        with pytest.raises(DatasetError, match=r"none\S* does not exist; expected a trajectory store .*Minari.*\.npz"):
            readers.recognise(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty is of no known format"):
        readers.recognise(tmp_path / "empty")


def test_the_rule_of_a_fall_holds_whatever_the_entry(datasets):
    def fallen(observation):
        return observation[:, 0] == 8.0  # the third step of the first episode ends there

    for path, options in datasets.values():
        plain = readers.read(path, reached=lambda a, g: np.ones(a.shape[:-1], bool), **options).data["next", "reward"]
        store = readers.read(path, reached=lambda a, g: np.ones(a.shape[:-1], bool), fallen=fallen, **options)
        assert plain.sum() == 10
        assert store.data["next", "observation"][store.data["next", "reward"][:, 0] == 0].tolist() == [[8.0, 9.0]]
        # 0, 2, 4, 6, ... are the first columns of the states


def test_rewards_of_a_store_that_contradict_the_rule_are_counted_and_replaced(datasets, caplog):
    path, _ = datasets["store"]
    # the first step of the first episode ends at (2, 3), 1.41 from its goal (1, 2): under a rule of 1.5 it is there
    assert readers.read(path, reached=reached).data["next", "reward"].sum() == 0
    assert not caplog.records
    near = readers.read(path, reached=lambda a, g: np.linalg.norm(a - g, axis=-1) < 1.5)
    assert near.data["next", "reward"][:, 0].tolist() == [1.0] + [0.0] * 9
    assert "1 of 10 rewards contradict the rule of the task, the first in row 0, 0: those of the rule" in caplog.text
    assert readers.read(path, reached=reached).data["next", "reward"].sum() == 0  # the file is as it was


def test_what_falls_only_here_is_no_contradiction(datasets, caplog):
    path, _ = datasets["store"]
    near = readers.read(path, reached=lambda a, g: np.linalg.norm(a - g, axis=-1) < 1.5)
    near.save(path, overwrite=True)
    caplog.clear()
    fallen = readers.read(
        path,
        reached=lambda a, g: np.linalg.norm(a - g, axis=-1) < 1.5,
        fallen=lambda observation: observation[:, 0] == 2.0,
    )
    assert fallen.data["next", "reward"].sum() == 0
    assert not caplog.records


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
@pytest.mark.parametrize("name", ["a.hdf5", "a.npz", "buffer.pkl"])
def test_only_files_are_read(datasets, tmp_path, name):
    path = tmp_path / name
    options = {} if name == "buffer.pkl" else {"goals": GOALS}
    for make, kind in (
        (os.mkfifo, "a pipe"),
        (os.mkdir, "a folder"),
        (lambda path: os.symlink("/dev/zero", path), "a device"),
    ):
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(DatasetError, match=rf"{name}: expected a regular file, found {kind}"):
            readers.read(path, reached=reached, format=dict(zip(_NAMES, _FORMATS))[name], **options)
        if path.is_dir():
            path.rmdir()


@pytest.mark.parametrize("name", ["a.hdf5", "a.npz", "buffer.pkl"])
def test_whatever_a_damaged_file_raises_is_one_error_that_names_it(datasets, tmp_path, monkeypatch, name):
    class Odd(Exception):
        pass

    for error in (Odd("strange"), KeyError("strange"), MemoryError(), RecursionError("strange")):

        def fail(*_, error=error, **__):
            raise error

        for reader in ("d4rl.read_flat", "ogbench.read_flat", "wgcsl._check_shapes"):
            monkeypatch.setattr(f"torchrl_smore.data.readers.{reader}", fail)
        options = {} if name == "buffer.pkl" else {"goals": GOALS}
        with pytest.raises(DatasetError, match=rf"cannot read .*{name} as .*{type(error).__name__}") as caught:
            readers.read(tmp_path / name, reached=reached, **options)
        assert caught.value.__cause__ is error


_NAMES, _FORMATS = ("a.hdf5", "a.npz", "buffer.pkl"), ("d4rl", "ogbench", "wgcsl")
