"""The recipe that trains running experts, on a few hundred steps of tiny networks."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import get_task
from torchrl_smore.envs.experts import ActorExpert
from torchrl_smore.trainers import latest_checkpoint, load_checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))
import recipe_utils  # noqa: E402
import sac  # noqa: E402
import train_expert  # noqa: E402

sys.path.remove(str(RECIPES))


def tiny(root, **changes):
    """Options of a run of some seconds, within this process."""
    options = {"task": "CheetahTgtVel-m-e", "steps": 160, "random_steps": 40, "hidden": 8, "batch_size": 8, "seed": 3}
    options |= {"eval_interval": 80, "save_interval": 80, "log_interval": 40, "eval_episodes": 1, "measure_episodes": 1}
    return train_expert.Config(**(options | {"run_root": str(root)} | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run folder of one uninterrupted run."""
    root = tmp_path_factory.mktemp("finished")
    train_expert.main(tiny(root))
    (run_dir,) = root.iterdir()
    return run_dir


def metrics(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "steps_per_second"} for row in csv.DictReader(file)]


def test_a_run_leaves_expert_medium_and_what_they_achieved(finished):
    run_dir = finished
    assert {path.name for path in run_dir.iterdir()} == {
        *("config.yaml", "metrics.csv", "curves.png", "meta.json", "checkpoint", "actors", "expert.npz", "medium.npz")
    }
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((run_dir / "actors").iterdir())] == [
        f"step_{step:09d}.npz" for step in (80, 160)
    ]
    meta = json.loads((run_dir / "meta.json").read_text())
    assert meta["command"].startswith("python recipes/train_expert.py task=CheetahTgtVel-m-e steps=160 seed=3 ")
    assert {"torch", "torchrl", "mujoco", "gymnasium"} <= set(meta["versions"])
    returns = {int(row["step"]): float(row["return"]) for row in metrics(run_dir) if row["return"]}
    best = max(returns, key=returns.get)
    assert meta["expert"]["step"] == best
    for name in ("expert", "medium"):
        path = run_dir / f"{name}.npz"
        assert meta[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.read_bytes() == (run_dir / "actors" / f"step_{meta[name]['step']:09d}.npz").read_bytes()
        assert meta[name]["episodes"] == 1


def test_the_measured_return_is_the_robots_own(finished):
    run_dir = finished
    task, policy = get_task("CheetahTgtVel-m-e"), ActorExpert(run_dir / "expert.npz")
    robot = task.make_base_env().env  # without the goal
    observation, total = robot.reset(seed=20_000)[0], 0.0
    for _ in range(1000):
        observation, reward, *_ = robot.step(policy({"observation": observation[None]})[0])
        total += reward
    meta = json.loads((run_dir / "meta.json").read_text())
    assert meta["expert"]["return"] == pytest.approx(total, rel=1e-3)


def test_a_resumed_run_takes_up_step_and_random_generator(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    config = tiny(tmp_path)
    torch.manual_seed(99)
    agent = sac.Sac(17, 6, hidden=8, capacity=160, batch_size=8)
    training = train_expert.Training(config, get_task(config.task), agent, tmp_path / "run")
    state, _ = load_checkpoint(latest_checkpoint(finished / "checkpoint"))
    assert torch.equal(torch.get_rng_state(), state["rng"]["torch"])
    assert (training.step, agent.updates) == (160, 120)
    with pytest.raises(ValueError, match="task='CheetahTgtVel-m-e'; expected 'AntTgtVel-m-e'"):
        train_expert.Training(tiny(tmp_path, task="AntTgtVel-m-e"), get_task("AntTgtVel-m-e"), agent, tmp_path / "run")


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_and_is_repeatable(
    finished, tmp_path, monkeypatch, capsys
):
    interact = train_expert.Training._interact

    def until_120(self, *args):
        if self.step == 120:
            raise Killed
        return interact(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train_expert.Training, "_interact", until_120)
        with pytest.raises(Killed):
            train_expert.main(tiny(tmp_path / "runs"))
    (killed,) = (tmp_path / "runs").iterdir()
    assert [row["step"] for row in metrics(killed)] == ["0", "80", "120"]
    outcomes = []
    for name in ("first", "second"):
        shutil.copytree(killed, tmp_path / name)
        train_expert.main(train_expert.Config(resume=str(tmp_path / name)))
        assert "resuming at step 80 of 160" in capsys.readouterr().out
        outcomes.append((metrics(tmp_path / name), (tmp_path / name / "expert.npz").read_bytes()))
    assert outcomes[0] == outcomes[1]
    assert [row["step"] for row in outcomes[0][0]] == ["0", "80", "120", "160"]
    # up to the checkpoint it is the uninterrupted run
    assert outcomes[0][0][:2] == metrics(finished)[:2]


def test_a_checkpoint_gives_back_everything_that_updates_depend_on(finished):
    run_dir = finished
    state, _ = load_checkpoint(latest_checkpoint(run_dir / "checkpoint"))
    agents = []
    for _ in range(2):
        agents.append(sac.Sac(17, 6, hidden=8, capacity=160, batch_size=8))
        # read anew: an optimiser goes on in the very tensors that it is given
        agents[-1].load_state_dict(load_checkpoint(latest_checkpoint(run_dir / "checkpoint"))[0]["agent"])
    assert len(agents[0].buffer) == 160
    assert agents[0].updates == 160 - 40
    restored = agents[0].state_dict()
    for key, value in state["agent"]["loss"].items():
        assert torch.equal(torch.as_tensor(restored["loss"][key]), torch.as_tensor(value)), key
    for key, value in state["agent"]["buffer"].items():
        if key != "next":
            assert torch.equal(restored["buffer"][key], value), key
    moments = state["agent"]["optimizer"]["state"]
    assert len(moments) == len(list(agents[0].loss.parameters()))
    for number, moment in moments.items():
        assert torch.equal(restored["optimizer"]["state"][number]["exp_avg_sq"], moment["exp_avg_sq"])
        assert restored["optimizer"]["state"][number]["step"] == 160 - 40
    losses = []
    for agent in agents:
        torch.manual_seed(5)
        losses.append([agent.update()["loss_qvalue"].item() for _ in range(5)])
    assert losses[0] == losses[1]


def test_a_restored_buffer_replaces_its_oldest_rows_first():
    def row(number):
        state = np.full((1, 1), number, dtype=np.float32)
        return state, state, np.zeros(1), state, np.zeros(1, dtype=bool)

    for written in (3, 6):  # of 4 places: not yet full, and gone round
        agents = [sac.Sac(1, 1, hidden=4, capacity=4, batch_size=2) for _ in range(2)]
        for number in range(written):
            agents[0].remember(*row(number))
        agents[1].load_state_dict(agents[0].state_dict())
        agents[1].remember(*row(written))
        held = sorted(agents[1].buffer[:]["observation"].flatten().tolist())
        assert held == list(range(max(0, written - 3), written + 1))


@pytest.mark.parametrize("workers", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["here", "workers"])
def test_transitions_lead_to_the_end_of_an_episode_and_not_to_the_start_of_the_next(tmp_path, workers):
    task = dataclasses.replace(get_task("AntTgtVel-m-e"), horizon=4)
    config = tiny(tmp_path, task=task.name, num_envs=2)
    training = train_expert.Training(config, task, sac.Sac(27, 8, hidden=4, capacity=100, batch_size=2), tmp_path)
    envs = train_expert.make_envs(task, 2, workers)
    observation = envs.reset(seed=0)[0]["observation"]
    for step in range(6):
        if step == 1 and not workers:
            robot = envs.envs[1].unwrapped
            position = robot.data.qpos.copy()
            position[2] = 1.5  # in the air: it counts as fallen
            robot.set_state(position, robot.data.qvel)
        observation = training._interact(envs, observation)
    envs.close()
    rows = training.agent.buffer[:].exclude("index").reshape(6, 2)
    ends = {(3, 0), (3, 1)} if workers else {(3, 0), (1, 1)}  # step and robot
    falls = set() if workers else {(1, 1)}
    for step in range(5):
        for robot in range(2):
            goes_on = torch.equal(rows["next", "observation"][step, robot], rows["observation"][step + 1, robot])
            assert goes_on == ((step, robot) not in ends)
            assert bool(rows["next", "terminated"][step, robot]) == ((step, robot) in falls)
            assert bool(task.has_fallen(rows["next", "observation"][step, robot])) == ((step, robot) in falls)


def test_the_actor_file_holds_the_mode_of_the_policy(finished):
    run_dir = finished
    state, _ = load_checkpoint(latest_checkpoint(run_dir / "checkpoint"))
    agent = sac.Sac(17, 6, hidden=8, capacity=160, batch_size=8)
    agent.load_state_dict(state["agent"])
    observation = np.random.default_rng(0).normal(size=(20, 17)).astype(np.float32)
    expected = agent.act(observation, explore=False)
    actions = ActorExpert(run_dir / "actors" / "step_000000160.npz")({"observation": observation})
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    assert np.abs(agent.act(observation, explore=True) - expected).max() > 0.01


def test_critics_learn_the_value_of_a_problem_solved_by_hand():
    torch.manual_seed(0)
    agent = sac.Sac(1, 1, hidden=16, capacity=64, batch_size=64, gamma=0.5, target_rate=0.5, learning_rate=1e-2)
    agent.loss.log_alpha.data.fill_(-20.0)  # without entropy
    state = np.array([[0.0], [1.0]], dtype=np.float32).repeat(32, 0)
    action = np.random.default_rng(0).uniform(-1.0, 1.0, (64, 1)).astype(np.float32)
    # from state 0 to state 1 for nothing; there a reward of 1, and then the end: values 0.5 and 1
    agent.remember(state, action, state[:, 0], np.ones_like(state), state[:, 0] > 0.5)
    for _ in range(150):
        agent.update()
    batch = TensorDict({"observation": torch.from_numpy(state), "action": torch.from_numpy(action)}, [64])
    for number in range(2):
        with agent.loss.qvalue_network_params[number].to_module(agent.loss.qvalue_network):
            values = agent.loss.qvalue_network(batch.clone())["state_action_value"]
        np.testing.assert_allclose(values.detach()[:32].mean(), 0.5, atol=0.05)
        np.testing.assert_allclose(values.detach()[32:].mean(), 1.0, atol=0.05)


@pytest.mark.parametrize(
    ("returns", "expert", "medium"),
    [
        ([0.0, 10.0, 40.0, 55.0, 90.0, 100.0, 95.0], 5, 3),
        ([0.0, 100.0, 50.0], 1, 0),  # medium is earlier than the expert
        ([7.0], 0, 0),
    ],
)
def test_the_best_is_expert_and_medium_is_nearest_to_its_half(returns, expert, medium):
    steps = 100 * np.arange(len(returns), dtype=np.float64)
    assert train_expert.choose(steps, np.array(returns)) == {"expert": 100 * expert, "medium": 100 * medium}


def test_a_run_folder_is_all_that_the_collection_recipe_needs(recipe, finished, tmp_path):
    options = ("task=CheetahTgtVel-m-e", "num_trajectories=3", "expert_fraction=0.34", "workers=1")
    done = recipe("collect_dataset.py", *options, f"expert_policy={finished}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    (path,) = (tmp_path / "datasets").iterdir()
    assert path.name.startswith("CheetahTgtVel-m-e_expert1_medium2_seed0_policy")
    store = TrajectoryStore.load(path)
    meta = json.loads((finished / "meta.json").read_text())
    assert [part["policy_sha256"] for part in store.meta["composition"]] == [
        meta[name]["sha256"] for name in ("expert", "medium")
    ]


def test_the_offline_recipe_collects_the_composition_and_reports_the_discount(recipe, finished, tmp_path):
    options = (
        *("task=CheetahTgtVel-m-e", "num_trajectories=3", "expert_fraction=0.34", f"expert_policy={finished}"),
        *("steps=2", "batch_size=8", "eval_episodes=1", "threads=1", "device=cpu"),
    )
    done = recipe("smore_offline.py", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    found = json.loads((run / "summary.json").read_text())["eval"]
    assert {f"discounted_return_{gamma}" for gamma in ("0.98", "0.99", "0.999")} <= set(found)
    assert done.stdout.splitlines()[-1].startswith("no rollout.gif: CheetahTgtVel-m-e cannot be drawn")
    (dataset,) = (tmp_path / "datasets").iterdir()
    assert dataset.name.startswith("CheetahTgtVel-m-e_expert1_medium2_seed0_policy")


@pytest.mark.parametrize("name", ["collect_dataset.py", "smore_offline.py"])
def test_without_an_actor_the_command_that_makes_one_is_named_and_nothing_written(recipe, tmp_path, name):
    done = recipe(name, "task=AntTgtVel-m-e", cwd=tmp_path)
    assert done.status == 2, done.stdout + done.stderr
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ValueError: AntTgtVel-m-e has no scripted expert")
    assert "python recipes/train_expert.py task=AntTgtVel-m-e" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"expert_policy": "nowhere.npz", "num_trajectories": 40}, r"nowhere\.npz: .*train_expert\.py"),
        ({"num_trajectories": 20}, "30 expert trajectories among num_trajectories=20"),
        ({"expert_fraction": 1.5, "num_trajectories": 40}, r"expert_fraction must lie in \[0, 1\], got 1\.5"),
    ],
    ids=["missing", "few", "share"],
)
def test_a_dataset_that_cannot_be_collected_is_refused_with_the_reason(tmp_path, options, said):
    options = {"expert_fraction": None} | options
    with pytest.raises(ValueError, match=said):
        recipe_utils.collect_or_load(get_task("AntTgtVel-m-e"), str(tmp_path), seed=0, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "FetchReach"}, "FetchReach has a scripted expert; .* CheetahTgtVel-m-e"),
        ({"task": "CheetahTgtVel"}, "unknown task 'CheetahTgtVel'.*Did you mean"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 161}, "steps must be a multiple of num_envs=4, got 161"),
        ({"capacity": 4}, "capacity must be at least batch_size=8, got 4"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"resume": "nowhere", "run_root": "runs"}, "resume=nowhere is no run folder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_option_is_refused_before_anything_is_written(tmp_path, change, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        train_expert.main(tiny(tmp_path, **{"run_root": str(tmp_path)} | change))
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_keeps_its_options(finished):
    with pytest.raises(ValueError, match=r"a resumed run keeps its own options; drop steps\."):
        train_expert.main(train_expert.Config(resume=str(finished), steps=400))


def test_the_command_line_names_its_options_and_refuses_others(recipe, tmp_path):
    shown = recipe("train_expert.py", "--help", cwd=tmp_path)
    assert shown.status == 0
    assert all(f"  {name}=" in shown.stdout for name in ("task", "steps", "seed", "threads", "resume"))
    done = recipe("train_expert.py", "stpes=3", cwd=tmp_path)
    assert (done.status, done.stderr.count("\n")) == (2, 1)
    assert "Did you mean steps?" in done.stderr
