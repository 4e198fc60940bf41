import csv
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from torchrl_smore.envs import EnvPool, get_task
from torchrl_smore.envs.experts import ActorExpert, PointExpert
from torchrl_smore.envs.point import PointWorld

SMALL = ("rounds=3", "first_episodes=20", "episodes=20", "updates=150", "final_updates=600", "num_envs=20")


@pytest.fixture(scope="module")
def distilled(recipe, tmp_path_factory):
    """The run folder of a student of PointReach's expert."""
    root = tmp_path_factory.mktemp("distilled")
    done = recipe("distill_expert.py", "task=PointReach", *SMALL, "seed=1", "threads=1", cwd=root)
    assert done.status == 0, done.stderr
    (folder,) = (root / "runs").iterdir()
    return folder


def test_a_student_solves_what_its_expert_solves(distilled):
    meta = json.loads((distilled / "meta.json").read_text())
    assert meta["scripted"]["success"] == 1.0
    assert meta["expert"]["success"] >= 0.98
    assert meta["expert"]["discounted_return"] >= 0.97 * meta["scripted"]["discounted_return"]
    assert meta["command"] == (
        "python recipes/distill_expert.py task=PointReach rounds=3 first_episodes=20 episodes=20 updates=150 "
        "final_updates=600 num_envs=20 seed=1"
    )
    assert meta["sha256"] == hashlib.sha256((distilled / "expert.npz").read_bytes()).hexdigest()
    assert (distilled / "curves.png").read_bytes().startswith(b"\x89PNG")
    labels = np.genfromtxt(distilled / "metrics.csv", delimiter=",", names=True)["labels"]
    assert labels.tolist() == [1000, 2000, 3000, 4000]


def rows_of(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + 15)])
def test_a_killed_run_resumes_and_makes_the_same_expert_bit_for_bit(recipe, distilled, tmp_path, signum, status):
    with recipe.started("distill_expert.py", "task=PointReach", *SMALL, "seed=1", "threads=1", cwd=tmp_path) as run:
        for _ in range(6000):
            if "round 1 of 3" in run.stdout or run.status() is not None:
                break
            time.sleep(0.01)
        os.kill(run.pid, signum)
        assert run.wait().status == status
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "expert.npz").exists()
    (saved,) = (folder / "checkpoint").iterdir()
    assert saved.name in ("step_000000002", "step_000000003")
    done = recipe("distill_expert.py", f"resume={folder}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert f"resuming after {saved.name[-1]} of 4 rounds" in done.stdout
    assert "round 1 of 3" not in done.stdout
    assert (folder / "expert.npz").read_bytes() == (distilled / "expert.npz").read_bytes()
    assert rows_of(folder) == rows_of(distilled)
    ours, theirs = (json.loads((each / "meta.json").read_text()) for each in (folder, distilled))
    assert ours == theirs
    assert [path.name for path in folder.glob(".*")] == []


def test_a_run_whose_options_were_edited_is_not_resumed(recipe, distilled, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(distilled, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("updates: 150", "updates: 151", 1))
    done = recipe("distill_expert.py", f"resume={copy}", cwd=tmp_path)
    assert done.status != 0
    assert "is a checkpoint with updates=150; expected 151" in done.stderr
    done = recipe("distill_expert.py", f"resume={copy}", "seed=2", cwd=tmp_path)
    assert "a resumed run keeps its own options; drop seed." in done.stderr


def test_the_file_holds_a_network_that_sees_the_goal_and_acts_like_the_expert(distilled):
    actor, expert = ActorExpert(distilled / "expert.npz"), PointExpert(PointWorld())
    assert (actor.observation_dim, actor.goal_dim, actor.action_dim) == (2, 2, 2)
    assert actor.actor.clip == 5.0
    rng = np.random.default_rng(0)
    position, goal = rng.uniform(-4, 4, (2, 500, 2)).astype(np.float32)
    seen = {"observation": position, "achieved_goal": position, "desired_goal": goal}
    # two different inputs, so that agreement is no accident of a constant
    assert np.mean((actor(seen) - expert(seen)) ** 2) < 0.05 * np.var(expert(seen))


def test_the_recipes_learn_from_it(recipe, distilled, tmp_path):
    done = recipe(
        "collect_dataset.py",
        *("task=PointReach", "num_trajectories=10", "expert_fraction=0.5", f"expert_policy={distilled}"),
        *("expert_noise=0.1", "expert_random_prob=0.05"),
        cwd=tmp_path,
    )
    assert done.status == 0, done.stderr
    (folder,) = (tmp_path / "datasets").iterdir()
    assert "_expertnoise0.1_expertrandom0.05_policy" in folder.name


@pytest.mark.parametrize("num_envs", [1, 2, 3, 6])
def test_noise_is_on_every_other_episode_however_many_run_at_a_time(import_recipe, num_envs):
    module = import_recipe("distill_expert")
    task = dataclasses.replace(get_task("PointReach"), horizon=2)
    shaken = []

    class Pool(EnvPool):
        def step(self, actions):
            shaken.extend((np.asarray(actions) != 0.0).any(-1))
            return super().step(actions)

    def still(observation):
        return np.zeros((len(observation["observation"]), 2))

    with Pool(task, num_envs) as pool:
        labels = module.Labels(task, 5.0)
        config = module.Config(noise=0.2, random_prob=0.0)
        labels.collect(pool, still, None, range(10, 16), np.random.default_rng(0), config)
    by_episode = np.array(shaken).reshape(6 // num_envs, 2, num_envs).any(1).ravel()
    assert by_episode.tolist() == [False, True] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "AntTgtVel-m-e"}, "AntTgtVel-m-e has no scripted expert to distil"),
        ({"clip": 0.0}, "clip must be positive, got 0"),
        ({"noise": -1.0}, r"noise must be in \[0, 1000\], got -1"),
        ({"learning_rate": 1e30}, r"learning_rate must be in \(0, 1\], got 1e\+30"),
        ({"episodes": 10**14}, "episodes must be at least 1 and at most 1,000,000, got 100000000000000"),
        ({"random_prob": 1.5}, r"random_prob must be in \[0, 1\], got 1.5"),
        ({"first_episodes": 3, "num_envs": 50}, "first_episodes must be a multiple of num_envs=50, got 3"),
        ({"episodes": 60, "num_envs": 50}, "episodes must be a multiple of num_envs=50, got 60"),
        ({"episodes": 0}, "episodes must be at least 1 and at most 1,000,000, got 0"),
        ({"task": "FetchSlide", "landing": "nowhere.npz"}, r"^landing=nowhere\.npz: "),
        ({"rounds": -1}, "rounds must be at least 0 and at most 1,000,000, got -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_distilled_is_refused_before_a_folder_is_made(import_recipe, tmp_path, options, said):
    module = import_recipe("distill_expert")
    with pytest.raises(ValueError, match=said):
        module.distill(module.Config(**{"task": "PointReach", "run_root": str(tmp_path), **options}))
    assert list(tmp_path.iterdir()) == []


def test_two_compositions_never_share_a_folder(import_recipe, distilled, tmp_path):
    name = import_recipe("parts.datasets").dataset_folder
    other = tmp_path / "other.npz"
    other.write_bytes((distilled / "expert.npz").read_bytes() + b"0")
    agent = tmp_path / "agent.zip"
    agent.write_bytes(b"1")
    common = {"num_trajectories": 100, "expert_fraction": 0.1, "seed": 0}
    names = [
        name("data", "FetchPush", **common, **options)
        for options in (
            {},
            {"expert_policy": "scripted"},
            {"expert_policy": "scripted", "expert_noise": 0.2},
            {"expert_policy": "scripted", "expert_random_prob": 0.2},
            {"expert_noise": 0.0},
            {"expert_random_prob": 0.0},
            {"expert_policy": str(distilled)},
            {"expert_policy": str(distilled), "expert_random_prob": 0.2},
            {"expert_policy": str(other)},
            {"expert_policy": str(agent)},
        )
    ]
    (tmp_path / "vecnormalize.pkl").write_bytes(b"2")
    names.append(name("data", "FetchPush", **common, expert_policy=str(agent)))
    ant = [
        name("data", "AntTgtVel-m-e", **{**common, "expert_policy": str(agent), **options})
        for options in ({}, {"medium_policy": str(other)})
    ]
    assert len(set(names + ant)) == 13
