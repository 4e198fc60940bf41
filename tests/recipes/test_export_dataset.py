"""Datasets for others, and datasets from tables."""

from __future__ import annotations

import csv
import errno
import json
import os

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from torchrl_smore import TrajectoryStore
from torchrl_smore.data import readers
from torchrl_smore.envs import TASKS, get_task, register_task

PLACES = {
    "minari": ("PointReach/smore-v0", "PointReach/smore-v0/README.md"),
    "d4rl": ("PointReach.hdf5", "PointReach.hdf5.md"),
    "ogbench": ("PointReach.npz", "PointReach.npz.md"),
    "wgcsl": ("PointReach.pkl", "PointReach.pkl.md"),
}


@pytest.mark.parametrize("format", PLACES)
def test_an_exported_dataset_has_every_number_and_a_card(recipe, store_path, tmp_path, format):
    done = recipe("export_dataset.py", f"dataset={store_path}", f"format={format}", "author=N. N.", cwd=tmp_path)
    assert done.status == 0, done.stderr
    place, card = (tmp_path / "exports" / name for name in PLACES[format])
    own, task = TrajectoryStore.load(store_path), get_task("PointReach")
    options = {"d4rl": {"goals": readers.Goals([0, 1], ("array", "infos/goal"))}, "wgcsl": {"clip": None}}
    options["ogbench"] = {"goals": readers.Goals(slice(None), ("array", "desired_goals"), "achieved_goals", 0)}
    found = readers.read(place, reached=task.reached, **options.get(format, {}))
    assert all(torch.equal(own.data[key], found.data[key]) for key in own.data.keys(True, True))
    text = card.read_text()
    for said in (
        *("20 trajectories of 50 to 50 transitions, 1,000 in all", own.sha256, "position x [1]; position y [1]"),
        *("4 of expert", "16 of random", "- seed: 0", "- Author: N. N.", task.success_rule, task.paper_note),
    ):
        assert said in text
    again = recipe("export_dataset.py", f"dataset={store_path}", f"format={format}", cwd=tmp_path)
    assert (again.status, len(again.stderr.splitlines())) == (2, 1)
    assert "exists; move it" in again.stderr


@pytest.mark.parametrize("format", PLACES)
def test_data_are_never_there_without_their_card(import_recipe, store_path, tmp_path, monkeypatch, format):
    export, replace = import_recipe("export_dataset"), os.replace
    data, card = (tmp_path / "out" / name for name in PLACES[format])
    seen = []

    def watched(source, target):
        # what a process killed here would leave
        replace(source, target)
        seen.append((data.exists(), card.exists()))

    monkeypatch.setattr(os, "replace", watched)
    export.main(export.Config(dataset=str(store_path), format=format, out=str(tmp_path / "out")))
    assert (True, False) not in seen
    assert (True, True) in seen


def test_a_card_that_a_killed_export_left_is_no_obstacle_and_another_file_is(import_recipe, store_path, tmp_path):
    export = import_recipe("export_dataset")
    config = export.Config(dataset=str(store_path), format="wgcsl", out=str(tmp_path), author="N. N.")
    data, card = (tmp_path / name for name in PLACES["wgcsl"])
    export.main(config)
    text = card.read_text()
    for held in (text.replace("N. N.", "M. M."), "# PointReach.pkl\n\nmy notes\n", ""):
        data.unlink()
        card.write_text(held)
        if "M. M." in held:
            export.main(config)
            assert (card.read_text(), data.exists()) == (text, True)
        else:
            with pytest.raises(FileExistsError, match=r"PointReach\.pkl\.md exists; move it"):
                export.main(config)
            assert (card.read_text(), data.exists()) == (held, False)
            data.touch()


def test_an_export_that_fails_leaves_neither_card_nor_folder(import_recipe, store_path, tmp_path, monkeypatch):
    export = import_recipe("export_dataset")

    def full(store, place):
        assert place.with_name("PointReach.pkl.md").exists()
        raise OSError(errno.ENOSPC, "No space left on device", str(place))

    monkeypatch.setitem(export.FILES, "wgcsl", ("pkl", full))
    with pytest.raises(OSError, match="No space left"):
        export.main(export.Config(dataset=str(store_path), format="wgcsl", out=str(tmp_path / "a" / "b")))
    assert not list(tmp_path.iterdir())


def test_minari_can_build_the_environment_of_a_fetch_dataset(recipe, tmp_path):
    options = ("task=FetchReach", "num_trajectories=2", "expert_fraction=0.5", "workers=1", "out=store")
    assert recipe("collect_dataset.py", *options, cwd=tmp_path).status == 0
    done = recipe("export_dataset.py", "dataset=store", "format=minari", "name=fetch/reach-v3", cwd=tmp_path)
    assert done.status == 0, done.stderr
    metadata = json.loads((tmp_path / "exports" / "fetch" / "reach-v3" / "data" / "metadata.json").read_text())
    spec = gymnasium.envs.registration.EnvSpec.from_json(metadata["env_spec"])
    assert (spec.id, spec.max_episode_steps) == ("FetchReach-v4", 50)


class Cart(gymnasium.Env):
    """A place on a line with goals."""

    observation_space = spaces.Dict(
        {key: spaces.Box(-np.inf, np.inf, (1,)) for key in ("observation", "achieved_goal", "desired_goal")}
    )
    action_space = spaces.Box(np.float32(-1), np.float32(1), (1,))

    def __init__(self, start=None):
        self.place = start

    def seen(self):
        return {
            **{key: np.array([self.place], np.float32) for key in ("observation", "achieved_goal")},
            "desired_goal": np.ones(1, np.float32),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1)
        return self.seen(), {}

    def step(self, action):
        self.place += float(action[0])
        return self.seen(), 0.0, False, False, {}


@pytest.fixture
def own_envs():
    """Environments that Gymnasium knows by the name of a class, by the class, and with an object as argument."""
    gymnasium.register("NamedCart-v0", entry_point=f"{__name__}:Cart")
    gymnasium.register("ClassCart-v0", entry_point=Cart)
    gymnasium.register("ObjectCart-v0", entry_point=f"{__name__}:Cart", kwargs={"start": object()})
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)
    for kind in ("Named", "Class", "Object"):
        del gymnasium.registry[f"{kind}Cart-v0"]


PENDULUM = {"goal_columns": [0, 1], "goals": ([-1.0, -1.0], [1.0, 1.0])}


@pytest.mark.parametrize(
    ("env", "options", "largest", "found"),
    [
        ("FetchReach-v4", {}, 1.0, {"env_spec", "requirements"}),
        ("FetchReach-v4", {}, 1.5, set()),  # it clips such actions
        ("Pendulum-v1", PENDULUM, 1.0, set()),  # it has other observations, and actions in [-2, 2]
        ("NamedCart-v0", {}, 1.0, {"env_spec"}),
        ("ClassCart-v0", {}, 1.0, set()),
        ("ObjectCart-v0", {}, 1.0, set()),
    ],
)
def test_minari_is_told_of_the_environment_of_the_dataset_and_of_no_other(
    import_recipe, own_envs, env, options, largest, found
):
    if env.startswith("Fetch"):
        pytest.importorskip("gymnasium_robotics")
    # first, as its help lists the tasks of the moment at which it is imported
    export = import_recipe("export_dataset")
    task = register_task("Own", env, threshold=0.2, horizon=30, **options)
    widths = {"observation": task.observation_dim, "achieved_goal": task.goal_dim}
    episode = {key: np.zeros((4, width), np.float32) for key, width in widths.items()}
    episode |= {"action": np.full((3, task.action_dim), largest, np.float32), "reward": np.ones(3, np.float32)}
    store = TrajectoryStore.from_episodes([episode | {"desired_goal": np.zeros(task.goal_dim, np.float32)}])
    metadata = export.minari_metadata(export.Config(author="N. N."), store, task)
    assert set(metadata) == {"description", "author"} | found
    if "env_spec" in found:
        assert gymnasium.envs.registration.EnvSpec.from_json(metadata["env_spec"]).id == env


def test_actions_beyond_one_widen_the_action_space_that_minari_is_told(recipe, store_path, tmp_path):
    data = TrajectoryStore.load(store_path).data.clone()
    data["action"][3] = torch.tensor([2.5, -1.25])
    TrajectoryStore(data, {"task": "PointReach"}).save(tmp_path / "wide")
    done = recipe("export_dataset.py", "dataset=wide", "format=minari", cwd=tmp_path)
    assert done.status == 0, done.stderr
    metadata = json.loads((tmp_path / "exports" / "PointReach" / "smore-v0" / "data" / "metadata.json").read_text())
    space = json.loads(metadata["action_space"])
    assert (space["low"], space["high"]) == ([-1.25] * 2, [2.5] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give the dataset as dataset="),
        (("dataset={store}",), "give format as one of minari, d4rl, ogbench, wgcsl, got None.\n"),
        (("dataset={store}", "format=minary"), "got minary. Did you mean minari"),
        (("dataset=none", "format=minari"), "none does not exist"),
        (("dataset={store}", "format=minari", "name=bad"), "expected the id of a Minari dataset"),
        (("dataset={store}", "format=d4rl", "task=FetchReach"), "does not fit the task 'FetchReach'"),
    ],
)
def test_an_export_that_cannot_be_is_refused_and_leaves_nothing(recipe, store_path, tmp_path, options, message):
    done = recipe("export_dataset.py", *(text.format(store=store_path) for text in options), cwd=tmp_path)
    assert (done.status, len(done.stderr.splitlines())) == (2, 1)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


NAMES = "columns={observation: [x, y], action: [u, v], achieved_goal: [x, y], desired_goal: [gx, gy], episode: run}"
TINY = (
    "task=PointReach",
    "batch_size=8",
    "steps=2",
    "eval_interval=2",
    "eval_episodes=1",
    "rollout=false",
    "threads=1",
)


@pytest.fixture
def table(store_path, tmp_path):
    """The store's trajectories as a CSV file."""
    data = TrajectoryStore.load(store_path).data
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "x", "y", "u", "v", "gx", "gy"])
        for start, stop in {(int(a), int(b)) for a, b in zip(data["traj_start"], data["traj_stop"])}:
            for row in range(start, stop):
                numbers = [*data["observation"][row], *data["action"][row], *data["desired_goal"][row]]
                writer.writerow([start, *map(float, numbers)])
            last = [*data["next", "observation"][stop - 1], "", "", *data["desired_goal"][stop - 1]]
            writer.writerow([start, *(x if x == "" else float(x) for x in last)])
    return tmp_path / "log.csv"


def test_a_run_is_trained_from_a_table_and_resumed(recipe, table, tmp_path, store_path):
    done = recipe("smore_offline.py", *TINY, "dataset=log.csv", NAMES, cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert "20 of 50 to 50 transitions, 1,000 in all" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    again = recipe("smore_offline.py", f"resume=runs/{run.name}", cwd=tmp_path)
    assert again.status == 0, again.stderr
    done = recipe("export_dataset.py", *TINY[:1], "dataset=log.csv", NAMES, "format=d4rl", cwd=tmp_path)
    assert done.status == 0, done.stderr
    goals = readers.Goals([0, 1], ("array", "infos/goal"))
    found = readers.read(tmp_path / "exports/PointReach.hdf5", reached=get_task("PointReach").reached, goals=goals)
    own = TrajectoryStore.load(store_path)
    for key in ("observation", "action", "desired_goal"):
        assert torch.equal(found.data[key].sort(0).values, own.data[key].sort(0).values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("dataset=log.csv",), "tables, and they alone, need columns="),
        (("dataset={store}", NAMES), "tables, and they alone, need columns="),
        (("dataset=log.csv", NAMES.replace("[x, y]", "[X, y]", 1)), "expected a column 'X'"),
        (("dataset=log.csv", NAMES.replace("[x, y]", "[x]", 1)), "does not fit the task 'PointReach'"),
        (("dataset=log.csv", NAMES.replace("action", "acton")), "got ['acton']"),
        (("dataset=log.csv", NAMES, "goal_columns=[0,1]"), "has goals of its own"),
        ((NAMES,), "columns"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(recipe, table, store_path, tmp_path, options, message):
    done = recipe(
        "smore_offline.py", *TINY, *(text.replace("{store}", str(store_path)) for text in options), cwd=tmp_path
    )
    assert (done.status, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()
