"""Datasets are written with h5py alone, in the layout that minari 0.5.4 writes; one test uses minari itself."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest
import torch

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers import Goals, minari

LENGTHS = (5, 3, 2)


def reached(achieved, goal):
    return np.linalg.norm(achieved - goal, axis=-1) < 1.0


def box(width):
    return {"type": "Box", "dtype": "float32", "shape": [width], "low": [-9.0] * width, "high": [9.0] * width}


def space_of(observations):
    if isinstance(observations, dict):
        return {"type": "Dict", "subspaces": {key: space_of(value) for key, value in observations.items()}}
    return box(observations.shape[1])


def episodes(kind="goals", lengths=LENGTHS):
    rng = np.random.default_rng(0)

    def states(steps, width):
        return rng.normal(size=(steps + 1, width)).astype("f4")

    made = []
    for number, steps in enumerate(lengths):
        if kind == "goals":
            observations = {"observation": states(steps, 4)}
            observations |= {key: states(steps, 2) for key in ("achieved_goal", "desired_goal")}
        elif kind == "kitchen":
            observations = {"observation": states(steps, 4)}
            for key in ("achieved_goal", "desired_goal"):
                observations[key] = {"microwave": states(steps, 1), "kettle": states(steps, 2)}
        else:
            observations = states(steps, 4)
        last = np.arange(steps) == steps - 1
        made.append(
            {
                "observations": observations,
                "actions": rng.uniform(-1, 1, size=(steps, 3)).astype("f4"),
                "rewards": rng.normal(size=steps),
                "terminations": last & (number == 1),
                "truncations": last & (number != 1),
                "infos": {"qpos": states(steps, 6)},
            }
        )
    return made


def put(group, value, **options):
    for key, item in value.items():
        if isinstance(item, dict):
            put(group.create_group(key), item, **options)
        else:
            group.create_dataset(key, data=item, **options)


@pytest.fixture
def write(tmp_path):
    def write(made, folder="set", metadata=None, **options):
        data = tmp_path / folder / "data"
        data.mkdir(parents=True)
        with h5py.File(data / "main_data.hdf5", "w") as file:
            for number, episode in enumerate(made):
                put(file.create_group(f"episode_{number}"), episode, **options)
        described = {
            "total_episodes": len(made),
            "total_steps": sum(len(episode["actions"]) for episode in made),
            "data_format": "hdf5",
            "observation_space": json.dumps(space_of(made[0]["observations"])),
        }
        (data / "metadata.json").write_text(json.dumps(described | (metadata or {})))
        return tmp_path / folder

    return write


def assert_holds(store, made, columns):
    """``columns``: observation, achieved and desired goals ``[T+1, *]`` of an episode."""
    assert store.num_trajectories == len(made)
    for number, (start, stop) in enumerate(zip(*map(list, store.trajectory_bounds))):
        rows, (observation, achieved, desired) = store.data[start:stop], columns(made[number])
        for key, expected in {
            "observation": observation[:-1],
            ("next", "observation"): observation[1:],
            "achieved_goal": achieved[:-1],
            ("next", "achieved_goal"): achieved[1:],
            "desired_goal": desired[:-1],
            "action": made[number]["actions"],
            ("next", "reward"): (np.linalg.norm(achieved[1:] - desired[:-1], axis=-1) < 1.0)[:, None],
            ("next", "terminated"): made[number]["terminations"][:, None],
            ("next", "truncated"): made[number]["truncations"][:, None],
            ("next", "done"): (np.arange(len(achieved) - 1) == len(achieved) - 2)[:, None],
        }.items():
            np.testing.assert_array_equal(rows[key].numpy(), expected)


def stored_goals(episode):
    return [episode["observations"][key] for key in ("observation", "achieved_goal", "desired_goal")]


@pytest.mark.parametrize("options", [{}, {"chunks": True}, {"compression": "gzip"}], ids=str)
def test_goals_of_a_dict_observation(write, options):
    made = episodes()
    path = write(made, **options)
    store = minari.read(path, reached=reached, meta={"task": "A"})
    assert_holds(store, made, stored_goals)
    assert store.meta == {"task": "A", "source": str(path), "format": "minari", "dropped_rows": 0}


def test_nested_goals_become_vectors_in_alphabetical_order(write):
    made = episodes("kitchen")

    def flattened(episode):
        parts = [episode["observations"][key] for key in ("achieved_goal", "desired_goal")]
        return [
            episode["observations"]["observation"],
            *(np.concatenate([part["kettle"], part["microwave"]], 1) for part in parts),
        ]

    store = minari.read(write(made), reached=reached)
    assert_holds(store, made, flattened)
    names = ["observations/achieved_goal/kettle", "observations/achieved_goal/microwave"]
    assert store.meta["flattened"]["achieved_goal"] == names


def test_goals_of_plain_observations_are_functions_of_them(write):
    made = episodes("plain")
    path = write(made)
    with pytest.raises(DatasetError, match=r"expected observations with .*'achieved_goal'.*pass goals"):
        minari.read(path, reached=reached)

    def end(episode):
        goal = episode["observations"][:, 1:3]
        return episode["observations"][:, [0, 3]], goal, np.repeat(goal[-1:], len(goal), 0)

    assert_holds(minari.read(path, reached=reached, goals=Goals([1, 2]), observation_columns=[0, 3]), made, end)

    def constant(episode):
        goal = episode["observations"][:, 1:3]
        return episode["observations"], goal, np.full_like(goal, 0.5)

    goals = Goals(lambda rows: rows[:, 1:3], desired=[0.5, 0.5])
    assert_holds(minari.read(path, reached=reached, goals=goals), made, constant)


def test_given_goals_replace_stored_ones(write):
    made = episodes()

    def columns(episode):
        observation = episode["observations"]["observation"]
        return observation, observation[:, :2], np.repeat(observation[-1:, :2], len(observation), 0)

    assert_holds(minari.read(write(made), reached=reached, goals=Goals(slice(0, 2))), made, columns)


def test_a_dataset_is_found_by_folder_file_and_id(write, tmp_path, monkeypatch):
    made = episodes()
    path = write(made, "root/D4RL/point/test-v0")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    for given in (path, path / "data", path / "data" / "main_data.hdf5", "D4RL/point/test-v0"):
        assert_holds(minari.read(given, reached=reached), made, stored_goals)
    with pytest.raises(DatasetError, match=r"found none in .*root/D4RL/point/other-v0/data.*minari download D4RL"):
        minari.read("D4RL/point/other-v0", reached=reached)
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DatasetError, match=r"\.minari/datasets/D4RL"):
        minari.read("D4RL/point/test-v0", reached=reached)


def test_episodes_are_ordered_by_number_and_short_ones_left_out(write):
    made = episodes(lengths=[2] * 10 + [1, 3])
    store = minari.read(write(made), reached=reached)
    assert_holds(store, made[:10] + made[11:], stored_goals)
    assert store.meta["dropped_rows"] == 1
    assert minari.read(write(made, "other"), reached=reached, max_trajectories=4).num_trajectories == 4


def test_old_datasets_keep_episodes_in_further_files_and_describe_them_in_attributes(write):
    made = episodes()
    data = write(made) / "data"
    (data / "metadata.json").unlink()
    with h5py.File(data / "main_data.hdf5", "a") as file, h5py.File(data / "additional_data_0.hdf5", "w") as more:
        file.attrs["total_episodes"] = 3
        file.copy("episode_1", more, "episode_0")
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink("additional_data_0.hdf5", "/episode_0")
    assert_holds(minari.read(data, reached=reached), made, stored_goals)
    with h5py.File(data / "main_data.hdf5", "a") as file:
        file.attrs["total_episodes"] = 4
    with pytest.raises(DatasetError, match=r"expected 4 episodes by the metadata, found 3: the dataset is incomplete"):
        minari.read(data, reached=reached)


@pytest.mark.parametrize("target", ["../secret.hdf5", "/etc/passwd", "secret.hdf5", "x/additional_data_0.hdf5"])
def test_links_to_any_other_file_are_refused(write, target):
    data = write(episodes()) / "data"
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink(target, "/episode_1")
    with pytest.raises(DatasetError, match=r"'episode_1': expected it in this file, refused a link"):
        minari.read(data, reached=reached)


def replace(key, value):
    def change(made):
        target = made[1]
        *parents, name = key.split("/")
        for parent in parents:
            target = target[parent]
        target[name] = value(target[name]) if callable(value) else value
        return made

    return change


def poke(value):
    def change(array):
        array = array.astype("f8")
        array[2, 0] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            replace("actions", lambda a: a[:, 0].astype(np.int64)),
            r"'episode_1/actions': expected shape \[rows, width\].*discrete",
        ),
        (replace("actions", lambda a: a[:, :2]), r"'episode_1': expected 3 columns of 'action'.* found 2"),
        (replace("actions", poke(np.nan)), r"'episode_1/actions': expected finite numbers, found \[nan.* in row 2"),
        (replace("actions", poke(1e300)), r"'episode_1/actions': expected finite numbers, found \[inf"),
        (
            replace("observations/observation", lambda a: a[:-1]),
            r"'episode_1/observations/observation': expected 4 rows",
        ),
        (
            replace("observations/achieved_goal", lambda a: a.astype(str).astype("S")),
            "achieved_goal': expected real numb",
        ),
        (replace("observations", lambda o: {"observation": o["observation"]}), "expected 'episode_1/observations/achi"),
        (replace("terminations", lambda a: a[:-1]), r"'episode_1/terminations': expected 3 rows"),
        (replace("terminations", np.array([True, False, False])), r"found True in step 0 of 3"),
    ],
)
def test_an_episode_that_does_not_fit_is_a_clear_error(write, change, message):
    path = write(change(episodes()), metadata={"total_steps": 10})
    with pytest.raises(DatasetError, match=message) as error:
        minari.read(path, reached=reached)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"data_format": "arrow"}, "'data_format': expected 'hdf5', found 'arrow'"),
        ({"total_episodes": 4}, "expected 4 episodes by the metadata, found 3"),
        ({"total_steps": 11}, "expected 11 steps by the metadata, found 10"),
        ({"observation_space": "{"}, "'observation_space' of the metadata"),
        ({"observation_space": "[" * 10**5}, "'observation_space' of the metadata"),
        ({"total_steps": None}, "'total_steps' of the metadata: expected an integer, found None"),
        ({"total_steps": True}, "'total_steps' of the metadata: expected an integer, found True"),
        ({"total_steps": [10]}, r"'total_steps' of the metadata: expected an integer, found \[10\]"),
        ({"total_episodes": "3"}, "'total_episodes' of the metadata: expected an integer, found '3'"),
        ({"observation_space": json.dumps(box(4))}, "'observation_space' of the metadata"),
    ],
)
def test_metadata_that_contradict_the_file_are_a_clear_error(write, metadata, message):
    with pytest.raises(DatasetError, match=message):
        minari.read(write(episodes(), metadata=metadata), reached=reached)


def test_images_encoded_as_bytes_do_not_pass_for_vectors(write):
    made = episodes("plain")
    for episode in made:
        episode["observations"] = np.zeros((len(episode["actions"]) + 1, 400), "u1")
    space = {"type": "Box", "dtype": "uint8", "shape": [64, 64, 3], "low": 0, "high": 255}
    path = write(made, metadata={"observation_space": json.dumps(space)})
    with pytest.raises(DatasetError, match=r"'observations': expected a Box of vectors.*\[64, 64, 3\]"):
        minari.read(path, reached=reached, goals=Goals(0))


def test_tuple_spaces_and_endless_groups_are_refused(write):
    made = episodes("plain")
    for episode in made:
        episode["observations"] = {"_index_0": episode["observations"]}
    with pytest.raises(DatasetError, match=r"expected an array or a Dict space.*_index_0"):
        minari.read(write(made), reached=reached, goals=Goals(0))
    data = write(episodes("kitchen"), "cycle") / "data"
    with h5py.File(data / "main_data.hdf5", "a") as file:
        group = file["episode_0/observations/achieved_goal"]
        group["again"] = group
    with pytest.raises(DatasetError, match="a group that contains itself"):
        minari.read(data, reached=reached)


def test_damaged_files_are_clear_errors(write):
    data = write(episodes()) / "data"
    (data / "metadata.json").write_text("[1")
    with pytest.raises(DatasetError, match=r"metadata.json as JSON"):
        minari.read(data, reached=reached)
    (data / "metadata.json").write_text("[1]")
    with pytest.raises(DatasetError, match="expected an object, found list"):
        minari.read(data, reached=reached)
    (data / "metadata.json").write_text("{}")
    main = data / "main_data.hdf5"
    content = main.read_bytes()
    main.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"cannot read .*main_data.hdf5 as HDF5"):
        minari.read(data, reached=reached)
    with h5py.File(main, "w") as file:
        file["observations"] = np.zeros(3)
    with pytest.raises(DatasetError, match="expected groups 'episode_N'"):
        minari.read(data, reached=reached)
    with h5py.File(main, "w") as file:
        file["episode_0"] = np.zeros(3)
    with pytest.raises(DatasetError, match="'episode_0': expected a group"):
        minari.read(data, reached=reached)
    main.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        minari.read(data, reached=reached)


@pytest.mark.parametrize("goals", [Goals(0, array="infos/qpos"), Goals(0, desired=("array", "infos/qpos"))])
def test_goals_of_other_arrays_are_refused(write, goals):
    with pytest.raises(ValueError, match="functions of its observations"):
        minari.read(write(episodes()), reached=reached, goals=goals)


def test_totals_in_attributes_may_be_anything(write):
    data = write(episodes()) / "data"
    (data / "metadata.json").unlink()
    for value in (np.arange(3), "3", np.float64(3), h5py.Empty("f4")):
        with h5py.File(data / "main_data.hdf5", "a") as file:
            file.attrs["total_episodes"] = value
        with pytest.raises(DatasetError, match="'total_episodes' of the metadata: expected an integer"):
            minari.read(data, reached=reached)


def test_metadata_of_any_depth_and_size_are_clear_errors(write, monkeypatch):
    data = write(episodes()) / "data"
    (data / "metadata.json").write_text("[" * 10**6)
    with pytest.raises(DatasetError, match=r"cannot read .*metadata.json as JSON: RecursionError"):
        minari.read(data, reached=reached)
    monkeypatch.setattr("torchrl_smore.data.readers.minari._MAX_METADATA", 100)
    with pytest.raises(DatasetError, match=r"metadata.json: expected at most 100 bytes"):
        minari.read(data, reached=reached)


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_a_pipe_or_a_device_is_no_file(write, name):
    path = write(episodes()) / "data" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DatasetError, match=rf"{name}: expected a regular file, found a pipe"):
        minari.read(path.parent, reached=reached)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DatasetError, match=rf"{name}: expected a regular file, found a device"):
        minari.read(path.parent, reached=reached)


def test_hard_links_make_no_endless_dataset(write):
    data = write(episodes("plain")) / "data"
    with h5py.File(data / "main_data.hdf5", "a") as file:
        file["episode_7"] = file["episode_1"]
    with pytest.raises(DatasetError, match="expected episodes of their own, found 'episode_1' again as 'episode_7'"):
        minari.read(data, reached=reached, goals=Goals(0))
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_7"]
        below = file.create_dataset("leaf", data=np.zeros((6, 1), "f4"))
        for level in range(4):  # 10 ** 4 leaves
            group = file.create_group(f"level_{level}")
            for part in range(10):
                group[f"part_{part}"] = below
            below = group
        del file["episode_0/observations"]
        file["episode_0/observations"] = below
    with pytest.raises(DatasetError, match="observations of at most 256 parts, found more"):
        minari.read(data, reached=reached, goals=Goals(0))


def test_a_fall_earns_nothing(write):
    made = episodes("plain", lengths=[4, 3])
    for episode in made:
        episode["observations"][:] = 0.0
    made[1]["observations"][2, 3] = 7.0  # after the second step
    goals = Goals(0, desired=0.0)
    columns = {"observation_columns": [3], "fallen": lambda rows: rows[:, 0] > 5}
    store = minari.read(write(made), reached=reached, goals=goals, **columns)
    assert store.data["next", "reward"][:, 0].tolist() == [1, 1, 1, 1, 1, 0, 1]


def test_what_minari_writes_is_read(tmp_path):
    storage = pytest.importorskip("minari.dataset.minari_storage", exc_type=ImportError)
    buffers = pytest.importorskip("minari.data_collector.episode_buffer", exc_type=ImportError)
    from gymnasium import spaces

    made, data = episodes(), tmp_path / "set" / "data"
    data.mkdir(parents=True)
    parts = {"observation": 4, "achieved_goal": 2, "desired_goal": 2}
    dict_space = spaces.Dict({key: spaces.Box(-9, 9, (width,), np.float32) for key, width in parts.items()})
    written = storage.MinariStorage.new(data, dict_space, spaces.Box(-1, 1, (3,), np.float32), data_format="hdf5")
    keys = ("observations", "actions", "rewards", "terminations", "truncations", "infos")
    written.update_episodes(
        buffers.EpisodeBuffer(id=number, seed=number, options=None, **{key: episode[key] for key in keys})
        for number, episode in enumerate(made)
    )
    assert_holds(minari.read(tmp_path / "set", reached=reached), made, stored_goals)


def with_pictures(made, where, size=(4, 5)):
    """Episodes with random pictures as a part of their observations, or in their place."""
    rng = np.random.default_rng(1)
    for episode in made:
        seen = rng.integers(0, 256, (len(episode["actions"]) + 1, *size, 3), dtype="u1")
        if where is None:
            episode["observations"] = seen
        else:
            episode["observations"] |= {where: seen}
    return made


def picture_space(shape):
    return {"type": "Box", "dtype": "uint8", "shape": list(shape), "low": 0, "high": 255}


def declared(made, shape=(4, 5, 3)):
    observations = made[0]["observations"]
    if not isinstance(observations, dict):
        return {"observation_space": json.dumps(picture_space(shape))}
    vectors = {key: value for key, value in observations.items() if key != "camera"}
    space = space_of(vectors)
    space["subspaces"]["camera"] = picture_space(shape)
    return {"observation_space": json.dumps(space)}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}], ids=str)
def test_pictures_beside_vectors_become_frames(write, tmp_path, options, mapped):
    made = with_pictures(episodes(), "camera")
    folder = tmp_path / "frames"
    folder.mkdir()
    path = write(made, metadata=declared(made), **options)
    store = minari.read(path, reached=reached, frames_folder=folder if mapped else None)
    assert_holds(store, made, stored_goals)
    frames = np.concatenate([episode["observations"]["camera"] for episode in made])
    assert torch.equal(store.frames, torch.from_numpy(frames))
    assert "flattened" not in store.meta
    assert len(list(folder.iterdir())) == int(mapped)


def test_pictures_alone_are_known_by_their_numbers(write):
    made = with_pictures(episodes("plain"), None)
    store = minari.read(write(made, metadata=declared(made)), reached=reached)
    assert store.meta["states"] == "frame numbers"
    assert store.data["observation"].flatten().tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 10, 11]
    assert store.data["desired_goal"].flatten().tolist() == [5] * 5 + [9] * 3 + [12] * 2
    # not where the numbers are near, as the rule of the task would have it
    assert store.data["next", "reward"].flatten().tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 0, 1]
    assert store.frames.shape == (13, 4, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda made: made[1]["observations"].update(camera=np.zeros((4, 6, 5, 3), "u1")),
            r"4 pictures of \[4, 5, 3\]",
        ),
        (lambda made: made[1]["observations"].update(camera=np.zeros((3, 4, 5, 3), "u1")), r"found \[3, 4, 5, 3\]"),
        (lambda made: made[0]["observations"].update(camera=np.zeros((6, 4, 5, 3), "f4")), "of uint8.*found float32"),
        (lambda made: made[2]["observations"].update(camera=np.zeros((3, 4, 5, 3), "f4")), "of uint8.*found float32"),
        (
            lambda made: made[0]["observations"].update(camera=np.zeros((6, 4, 5, 1), "u1")),
            r"found uint8 \[6, 4, 5, 1\]",
        ),
        (
            lambda made: made[0]["observations"].update(camera=np.zeros((6, 5, 4, 3), "u1")),
            r"declared .*found \[5, 4, 3",
        ),
    ],
)
def test_wrong_pictures_are_clear_errors_and_leave_nothing_behind(write, tmp_path, change, message):
    made = with_pictures(episodes(), "camera")
    change(made)
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(DatasetError, match=message):
        minari.read(write(made, metadata=declared(made)), reached=reached, frames_folder=folder)
    assert not list(folder.iterdir())


def test_two_pictures_of_a_state_are_refused(write):
    made = with_pictures(with_pictures(episodes(), "camera"), "depth")
    with pytest.raises(DatasetError, match=r"expected one picture of each state, found .*camera.*depth"):
        minari.read(write(made, metadata={"observation_space": None}), reached=reached)


def test_actions_of_one_floating_number_are_a_column(write):
    made = episodes()
    for episode in made:
        episode["actions"] = episode["actions"][:, 0]
    store = minari.read(write(made), reached=reached)
    expected = np.concatenate([episode["actions"] for episode in made])[:, None]
    np.testing.assert_array_equal(store.data["action"].numpy(), expected)
