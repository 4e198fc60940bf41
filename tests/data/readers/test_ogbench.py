"""Files are written with NumPy in each of the three layouts of the same trajectories."""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchrl_smore.data import readers
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers import Goals, ogbench

LENGTHS = (4, 3, 2)  # transitions
POSITION = Goals(slice(0, 2), array="qpos")


def equal(achieved, goal):
    return (achieved == goal).all(-1)


def trajectories():
    """States, actions and simulator positions; as published, with an action and a position beside the last state."""
    rng = np.random.default_rng(0)
    return [tuple(rng.normal(size=(n + 1, width)).astype("f4") for width in (5, 2, 3)) for n in LENGTHS]


def arrays(layout):
    names = ("observations", "actions", "qpos")
    parts = dict(zip(names, (list(part) for part in zip(*trajectories()))))
    if layout == "full":
        parts["next_observations"] = [states[1:] for states in parts["observations"]]
        parts |= {name: [part[:-1] for part in parts[name]] for name in names}
    held = {name: np.concatenate(part) for name, part in parts.items()}
    rows = [len(part) for part in parts["actions"]]
    held["terminals"] = np.concatenate([np.arange(n) == n - 1 for n in rows])
    if layout == "compact":
        held["valids"] = 1.0 - held["terminals"]
        held["terminals"] = np.concatenate([np.arange(n) >= n - 2 for n in rows]).astype("f4")
    return held


@pytest.fixture
def write(tmp_path):
    def write(content, save=np.savez):
        path = tmp_path / "a.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save(path, **content)
        return path

    return write


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", ["published", "compact", "full"])
def test_every_layout_gives_the_same_transitions(write, layout, save):
    store = ogbench.read(write(arrays(layout), save), reached=equal, meta={"task": "A"})
    assert store.meta == {"task": "A", "source": "a.npz", "format": "ogbench", "layout": layout, "dropped_rows": 0}
    assert store.num_trajectories == 3
    for start, stop, (states, actions, _) in zip(*map(list, store.trajectory_bounds), trajectories()):
        rows, steps = store.data[start:stop], len(states) - 1
        for key, expected in {
            "observation": states[:-1],
            ("next", "observation"): states[1:],
            "achieved_goal": states[:-1],
            ("next", "achieved_goal"): states[1:],
            "action": actions[:-1],
            "desired_goal": np.repeat(states[-1:], steps, 0),
        }.items():
            np.testing.assert_array_equal(rows[key].numpy(), expected)
        last = [[False]] * (steps - 1) + [[True]]
        assert rows["next", "reward"].bool().tolist() == last
        assert rows["next", "done"].tolist() == rows["next", "truncated"].tolist() == last
        assert not rows["next", "terminated"].any()


@pytest.mark.parametrize(("layout", "lost"), [("published", 0), ("compact", 0), ("full", 1)])
def test_goals_of_another_array(write, layout, lost):
    goals = Goals(slice(0, 2), desired=[0.5, 1.0], array="qpos")
    store = ogbench.read(write(arrays(layout)), reached=equal, goals=goals)
    # in the full layout a trajectory of two transitions keeps a single one with a known next position: left out
    kept = [(states, qpos) for states, _, qpos in trajectories() if len(states) - 1 - lost >= 2]
    assert store.num_trajectories == len(kept)
    for start, stop, (states, qpos) in zip(*map(list, store.trajectory_bounds), kept):
        end = len(states) - 1 - lost
        rows = store.data[start:stop]
        np.testing.assert_array_equal(rows["achieved_goal"].numpy(), qpos[:end, :2])
        np.testing.assert_array_equal(rows["next", "achieved_goal"].numpy(), qpos[1 : end + 1, :2])
        np.testing.assert_array_equal(rows["next", "observation"].numpy(), states[1 : end + 1])
        assert rows["desired_goal"].tolist() == [[0.5, 1.0]] * end


def test_in_the_full_layout_goals_of_another_array_need_rows_that_follow_each_other_or_one_after_the_step(write):
    held = arrays("full")
    held["next_qpos"] = held["qpos"] + 1.0
    held["next_observations"][1] += 1.0
    goals = Goals(slice(0, 2), desired=[0.5, 1.0], array="qpos")
    with pytest.raises(DatasetError, match=r"'next_observations': expected in row 1 .* of row 2, found another one"):
        ogbench.read(write(held), reached=equal, goals=goals)
    store = ogbench.read(write(held), reached=equal, goals=replace(goals, after="next_qpos"))
    assert (store.num_transitions, store.meta["dropped_rows"]) == (9, 0)
    for key, name in {"observation": "observations", "action": "actions"}.items():
        np.testing.assert_array_equal(store.data[key], held[name])
    np.testing.assert_array_equal(store.data["next", "observation"], held["next_observations"])
    np.testing.assert_array_equal(store.data["achieved_goal"], held["qpos"][:, :2])
    np.testing.assert_array_equal(store.data["next", "achieved_goal"], held["next_qpos"][:, :2])


@pytest.mark.parametrize("block_bytes", [1, 50])
def test_the_size_of_a_block_changes_nothing(write, monkeypatch, block_bytes):
    path = write(arrays("published"))
    expected = ogbench.read(path, reached=equal, goals=POSITION).sha256
    monkeypatch.setattr("torchrl_smore.data.readers._npz.BLOCK_BYTES", block_bytes)
    assert ogbench.read(path, reached=equal, goals=POSITION).sha256 == expected


def test_only_the_first_trajectories_are_kept_on_demand(write):
    store = ogbench.read(write(arrays("published")), reached=equal, max_trajectories=1)
    assert (store.num_trajectories, store.num_transitions) == (1, 4)


def test_numbers_beside_the_last_state_do_not_matter(write):
    held = arrays("published")
    held["actions"][4] = np.nan
    assert ogbench.read(write(held), reached=equal).num_trajectories == 3


def poke(name, value, index=(7, 0)):
    def change(held):
        held[name] = held[name].astype(np.float64)
        held[name][index[: held[name].ndim]] = value
        return held

    return change


def drop(name):
    return lambda held: {key: array for key, array in held.items() if key != name}


def picture(shape, dtype, next=False):
    """Observations that are pictures, or nearly."""
    names = ["observations", "next_observations"] if next else ["observations"]
    return lambda held: held | {name: np.zeros(shape, dtype) for name in names}


def pictures(held):
    """Observations of random pictures, of 4 by 5 pixels, in the place of the vectors."""
    rng = np.random.default_rng(1)
    return held | {"observations": rng.integers(0, 256, (len(held["observations"]), 4, 5, 3), dtype="u1")}


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("published", drop("terminals"), r"expected an array 'terminals', found \['observations', 'actions', 'qpos'\]"),
        ("published", drop("qpos"), "expected an array 'qpos'"),
        (
            "published",
            lambda held: held | {"actions": held["actions"][:-1]},
            r"equally many rows.*'actions': \[11, 2\]",
        ),
        ("published", lambda held: held | {"qpos": held["qpos"][:-1]}, "equally many rows"),
        ("full", lambda held: held | {"next_observations": held["qpos"]}, "'next_observations': expected the shape"),
        ("published", lambda held: {k: v[:-1] for k, v in held.items()}, "'terminals': expected the last row to end"),
        ("published", lambda held: {k: v[:0] for k, v in held.items()}, "'terminals': expected the last row to end"),
        ("compact", lambda held: {k: v[:-1] for k, v in held.items()}, "'valids': expected the last row to end"),
        ("compact", poke("terminals", 0, (4,)), "'terminals': expected 1 where 'valids' is 0, found 0 in row 4"),
        ("published", poke("terminals", 2, (7,)), "'terminals': expected 0 or 1, found 2.0 in row 7"),
        ("published", poke("observations", np.nan), "'observations': expected finite numbers, found .* in row 7 "),
        ("published", poke("actions", 1e300), "'actions': expected finite numbers, found .* in row 7 "),
        *(
            ("published", picture(shape, kind), f"'observations': expected pictures of uint8.*found {kind}")
            for shape, kind in (((12, 64, 64, 3), "float32"), ((12, 64, 64, 1), "uint8"), ((12, 64, 192), "uint8"))
        ),
        ("published", lambda held: drop("qpos")(picture((12, 8, 8, 3), "uint8")(held)), "expected an array 'qpos'"),
        ("full", picture((9, 8, 8, 3), "uint8", next=True), "found 'next_observations': write the file without"),
        ("published", lambda held: held | {"actions": np.arange(12)}, r"'actions': expected shape .*discrete"),
        (
            "published",
            lambda held: held | {"actions": held["actions"].astype(object)},
            "'actions': expected real numbers, refused dtype object",
        ),
        ("published", lambda held: held | {"actions": np.array(["a"] * 12)}, "'actions': expected real numbers"),
        ("published", lambda held: held | {"actions": np.float32(1)}, "'actions': expected rows"),
        ("published", lambda held: held | {"actions": np.asfortranarray(held["actions"])}, "'actions': .*C order"),
    ],
)
def test_a_file_that_does_not_hold_such_a_dataset_is_a_clear_error(write, layout, change, message):
    path = write(change(arrays(layout)))
    with pytest.raises(DatasetError, match=message) as error:
        ogbench.read(path, reached=equal, goals=POSITION)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_a_clear_error(write, kept):
    path = write(arrays("published"))
    content = path.read_bytes()
    with pytest.raises(DatasetError, match=r"cannot read .*a.npz as npz") as error:
        ogbench.read(write(content[: int(kept * len(content))]), reached=equal)
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_altered_byte_is_found_by_the_checksum(write, save):
    path = write(arrays("published"), save)
    content = bytearray(path.read_bytes())
    at = zipfile.ZipFile(path).getinfo("observations.npy").header_offset + 250
    content[at] ^= 64
    with pytest.raises(DatasetError, match=r"cannot read|expected"):
        ogbench.read(write(bytes(content)), reached=equal)


def test_a_missing_file_and_a_file_of_another_kind_are_clear_errors(write, tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read .*No such file"):
        ogbench.read(tmp_path / "none.npz", reached=equal)
    with pytest.raises(DatasetError, match="cannot read"):
        ogbench.read(write(pickle.dumps(arrays("published"))), reached=equal)


def header(shape, dtype="<f4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**13, 5)) + bytes(240), r"expected 200000000000000 bytes for \[10000000000000, 5\], found 240"),
        (header((12, 4)) + bytes(240), r"expected 192 bytes for \[12, 4\], found 240"),
        (header((12, 5), "|O") + bytes(480), "refused dtype object"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')" + bytes(240), "expected an npy array"),
        (b"\x93NUMPY\x09\x00" + bytes(240), "unknown version"),
        (b"text", "expected an npy array"),
    ],
)
def test_hand_made_arrays_are_refused_before_memory_is_asked_for(write, content, message):
    path = write({name: array for name, array in arrays("published").items() if name != "observations"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("observations.npy", content)
    with pytest.raises(DatasetError, match=f"'observations': .*{message}"):
        ogbench.read(path, reached=equal)


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("exploded",)


def test_nothing_is_unpickled(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = np.empty(12, dtype=object)
    bomb[:] = Evil()
    with pytest.raises(DatasetError, match="refused dtype object"):
        ogbench.read(write(arrays("published") | {"terminals": bomb}), reached=equal)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", ["published", "compact"])
def test_pictures_become_frames_and_their_states_observations(write, tmp_path, monkeypatch, layout, save, mapped):
    monkeypatch.setattr("torchrl_smore.data.readers._npz.BLOCK_BYTES", 150)  # several blocks, of two pictures
    held = pictures(arrays(layout))
    folder = tmp_path / "frames"
    folder.mkdir()
    store = ogbench.read(write(held, save), reached=equal, frames_folder=folder if mapped else None)
    assert store.meta["states"] == "qpos"
    assert torch.equal(store.frames, torch.from_numpy(held["observations"]))
    for start, stop, (_, actions, qpos) in zip(*map(list, store.trajectory_bounds), trajectories()):
        rows = store.data[start:stop]
        np.testing.assert_array_equal(rows["observation"].numpy(), qpos[:-1])
        np.testing.assert_array_equal(rows["next", "achieved_goal"].numpy(), qpos[1:])
        np.testing.assert_array_equal(rows["action"].numpy(), actions[:-1])
    assert len(list(folder.iterdir())) == int(mapped)
    first = ogbench.read(write(held, save), reached=equal, max_trajectories=2)
    assert torch.equal(first.frames, store.frames[: 5 + 4])


def test_a_folder_for_frames_that_is_not_there_is_what_the_error_is_about(write, tmp_path):
    with pytest.raises(DatasetError, match=rf"folder .* to keep frames in, found none at {tmp_path}/none\.$") as caught:
        ogbench.read(write(pictures(arrays("published"))), reached=equal, frames_folder=tmp_path / "none")
    # the file itself can be read
    assert "cannot read" not in str(caught.value)


def test_a_picture_without_states_is_known_by_its_number_and_its_goal_is_reached_in_its_own_frame_alone(
    write, tmp_path
):
    held = drop("qpos")(pictures(arrays("published")))
    store = ogbench.read(write(held), reached=lambda achieved, goal: np.ones(len(goal), bool), states=None)
    assert store.meta["states"] == "frame numbers"
    assert store.data["observation"].flatten().tolist() == [0, 1, 2, 3, 5, 6, 7, 9, 10]
    assert store.data["desired_goal"].flatten().tolist() == [4] * 4 + [8] * 3 + [11] * 2
    assert store.data["next", "reward"].flatten().tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 1]
    store.save(tmp_path / "kept")
    again = readers.read(tmp_path / "kept", reached=lambda achieved, goal: np.ones(len(goal), bool))
    assert torch.equal(again.data["next", "reward"], store.data["next", "reward"])


def test_a_truncated_file_of_pictures_is_a_clear_error_and_leaves_no_frames_behind(write, tmp_path):
    path = write(pictures(arrays("published")))
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 300] ^= 255  # in the data of the first array, the pictures
    folder = tmp_path / "frames"
    folder.mkdir()
    for damaged in (bytes(content), bytes(content[: len(content) // 2])):
        with pytest.raises(DatasetError, match=r"a\.npz"):
            ogbench.read(write(damaged), reached=equal, frames_folder=folder)
        assert not list(folder.iterdir())
