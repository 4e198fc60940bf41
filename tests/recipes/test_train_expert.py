"""The recipe that trains locomotion experts, on a few hundred steps of tiny networks."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from tensordict import TensorDict
from torch._dynamo.testing import CompileCounterWithBackend

from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import get_task
from torchrl_smore.envs.experts import ActorExpert
from torchrl_smore.trainers import DivergedError, latest_checkpoint, load_checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))
import train_expert  # noqa: E402
from parts import datasets, sac  # noqa: E402

sys.path.remove(str(RECIPES))


def tiny(root, **changes):
    """Options of a run of some seconds, within this process."""
    options = {"task": "CheetahTgtVel-m-e", "steps": 160, "random_steps": 40, "hidden": 8, "batch_size": 8, "seed": 3}
    options |= {"eval_interval": 80, "save_interval": 80, "log_interval": 40, "eval_episodes": 1, "measure_episodes": 1}
    options |= {"num_envs": 4, "updates_per_step": 1.0, "compile": "off"}
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
    assert meta["command"].startswith(
        "python recipes/train_expert.py task=CheetahTgtVel-m-e steps=160 updates_per_step=1.0 seed=3 "
    )
    assert {"torch", "torchrl", "mujoco", "gymnasium"} <= set(meta["versions"])
    returns = {int(row["step"]): float(row["return"]) for row in metrics(run_dir) if row["return"]}
    best = max(returns, key=returns.get)
    assert meta["expert"]["step"] == best
    for name in ("expert", "medium"):
        path = run_dir / f"{name}.npz"
        assert meta[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.read_bytes() == (run_dir / "actors" / f"step_{meta[name]['step']:09d}.npz").read_bytes()
        assert meta[name]["episodes"] == 1


def test_what_is_measured_is_what_the_robot_says(finished):
    task, policy = get_task("CheetahTgtVel-m-e"), ActorExpert(finished / "expert.npz")
    robot = task.make_base_env().env  # without the goal
    observation, own, target, velocities = robot.reset(seed=20_000)[0], 0.0, 0.0, []
    for _ in range(1000):
        observation, reward, *_, info = robot.step(policy({"observation": observation[None].astype(np.float32)})[0])
        velocities.append(observation[8])
        own += reward
        target += 11.0 - abs(11.0 - observation[8]) + info["reward_ctrl"]
    meta = json.loads((finished / "meta.json").read_text())
    assert meta["reward"] == "target"
    assert meta["expert"]["return"] == pytest.approx(target, rel=1e-3)
    assert meta["expert"]["velocity"] == pytest.approx(np.mean(velocities), rel=1e-3)
    found = train_expert.measure(task, policy, 1, 20_000, "own")
    assert found["return"] == pytest.approx([own], rel=1e-3)


@pytest.mark.parametrize(("velocity", "forward"), [(-2.0, -2.0), (4.0, 4.0), (5.0, 5.0), (7.0, 3.0)])
def test_the_forward_reward_is_largest_at_the_goal(velocity, forward):
    class Robot(gymnasium.Env):
        fallen = False

        def step(self, action):
            goal = {"achieved_goal": np.array([velocity]), "desired_goal": np.array([5.0])}
            if self.fallen:
                return goal, 0.0, True, False, {}
            return goal, 1.25 + 9.0, False, False, {"reward_forward": 9.0}

    robot = train_expert.TargetReward(Robot())
    assert robot.step(None)[1] == 1.25 + forward
    robot.env.fallen = True
    assert robot.step(None)[1] == 0.0


def test_steps_at_the_goal_are_counted_until_a_fall():
    steps = iter([4.4, 4.6, 5.4, 5.2])

    class Robot(gymnasium.Env):
        def reset(self, seed=None):
            return self.at(0.0), {}

        def at(self, velocity):
            return {"achieved_goal": np.array([velocity]), "desired_goal": np.array([5.0]), "observation": np.zeros(27)}

        def step(self, action):
            velocity = next(steps)
            return self.at(velocity), 1.0, velocity == 5.2, False, {}

    task = dataclasses.replace(get_task("AntTgtVel-m-e"), make_base_env=Robot, horizon=8)
    found = train_expert.measure(task, None, 1, 0, "own")
    assert found["reached"] == [2 / 8]  # not the step of the fall
    assert found["velocity"] == pytest.approx([4.8])
    assert found["return"] == [4.0]


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


def test_a_run_that_diverges_keeps_its_last_good_checkpoint_and_says_so(tmp_path, monkeypatch):
    interact = train_expert.Training._interact

    def spoil(self, *args):
        if self.step == 100:
            with torch.no_grad():
                self.agent.loss.log_alpha.fill_(float("nan"))
        return interact(self, *args)

    monkeypatch.setattr(train_expert.Training, "_interact", spoil)
    monkeypatch.chdir(tmp_path)  # where MuJoCo logs actions that are not finite
    # the last step is evaluated before its checkpoint, the one at 120 has no evaluation
    for name, changes in (("saved", {"save_interval": 40}), ("evaluated", {})):
        with pytest.raises(DivergedError, match=r"the last good checkpoint is .*step_000000080") as found:
            train_expert.main(tiny(tmp_path / name, **changes))
        assert found.value.checkpoint.is_dir()
        assert found.value.step == (80 if name == "saved" else 120)  # updates: those steps less 40 random ones
        state, _ = load_checkpoint(latest_checkpoint(found.value.checkpoint.parent))
        assert state["step"] == 80


def test_a_checkpoint_gives_back_everything_that_updates_depend_on(finished):
    run_dir = finished
    state, _ = load_checkpoint(latest_checkpoint(run_dir / "checkpoint"))
    agents = []
    for _ in range(2):
        agents.append(sac.Sac(17, 6, hidden=8, capacity=160, batch_size=8))
        # read anew: an optimiser goes on in the very tensors that it is given
        agents[-1].load_state_dict(load_checkpoint(latest_checkpoint(run_dir / "checkpoint"))[0]["agent"])
    assert len(agents[0].table) == 160
    assert agents[0].updates == 160 - 40
    restored = agents[0].state_dict()
    for key, value in state["agent"]["losses"][0].items():
        assert torch.equal(torch.as_tensor(restored["losses"][0][key]), torch.as_tensor(value)), key
    assert torch.equal(restored["samplers"][0]["rows"], state["agent"]["samplers"][0]["rows"])
    for moment in ("exp_avg", "exp_avg_sq"):
        assert set(state["agent"][moment]) == {"actor_network", "qvalue_network", "log_alpha"}
        for network, value in state["agent"][moment].items():
            assert value.abs().sum() > 0.0
            assert torch.equal(restored[moment][network], value)
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
        held = sorted(agents[1].table.rows()[:, 0].tolist())
        assert held == list(range(max(0, written - 3), written + 1))


@pytest.mark.parametrize("workers", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["here", "workers"])
def test_transitions_lead_to_the_end_of_an_episode_and_not_to_the_start_of_the_next(tmp_path, workers, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))  # which processes of their own are told
    task = dataclasses.replace(get_task("AntTgtVel-m-e"), horizon=4)
    config = tiny(tmp_path, task=task.name, num_envs=2)
    training = train_expert.Training(config, task, sac.Sac(27, 8, hidden=4, capacity=100, batch_size=2), tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    envs = train_expert.make_envs(task, 2, workers)
    assert signal.getsignal(signal.SIGINT) is handler
    observation = envs.reset(seed=0)[0]["observation"]
    for step in range(6):
        if step == 2 and workers:
            # Ctrl-C reaches these too: the step in progress is to end
            for process in envs.processes:
                os.kill(process.pid, signal.SIGINT)
        if step == 1 and not workers:
            robot = envs.envs[1].unwrapped
            position = robot.data.qpos.copy()
            position[2] = 1.5  # in the air: it counts as fallen
            robot.set_state(position, robot.data.qvel)
        observation = training._interact(envs, observation)
    envs.close()
    rows = training.agent.table.rows().reshape(6, 2, -1)
    state, _, following, _, ended = rows.split([27, 8, 27, 1, 1], -1)
    ends = {(3, 0), (3, 1)} if workers else {(3, 0), (1, 1)}  # step and robot
    falls = set() if workers else {(1, 1)}
    for step in range(5):
        for robot in range(2):
            assert torch.equal(following[step, robot], state[step + 1, robot]) == ((step, robot) not in ends)
            assert bool(ended[step, robot]) == ((step, robot) in falls)
            assert bool(task.has_fallen(following[step, robot])) == ((step, robot) in falls)


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


def test_the_batch_is_of_rows_held_and_each_is_drawn():
    agent = sac.Sac(1, 1, hidden=4, capacity=8, batch_size=64)
    number = np.arange(5, dtype=np.float32)[:, None]
    agent.remember(number, number / 10.0, number[:, 0] * 100.0, number + 1.0, number[:, 0] == 4.0)
    batch = agent.table.gather(agent.table.draw())
    drawn = batch["observation"]
    assert set(drawn.flatten().tolist()) == set(range(5))
    torch.testing.assert_close(batch["action"], drawn / 10.0)
    torch.testing.assert_close(batch["next", "observation"], drawn + 1.0)
    torch.testing.assert_close(batch["next", "reward"], drawn * 100.0)
    assert torch.equal(batch["next", "terminated"], drawn == 4.0)


def test_the_loss_is_torchrls():
    torch.manual_seed(0)
    agent = sac.Sac(3, 2, hidden=8, capacity=64, batch_size=32)
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(64, size)).astype(np.float32) for size in (3, 2, 3)]
    agent.remember(rows[0], np.tanh(rows[1]), rng.normal(size=64), rows[2], rng.random(64) < 0.3)
    batch = agent.table.gather(agent.table.draw())
    outs, gradients = [], []
    for each in (agent.loss._each_critic, None):
        if each is None:
            sac.SACLoss._make_vmap(agent.loss)  # TorchRL's own way to run both critics
        torch.manual_seed(1)
        out = agent.loss(batch.clone())
        agent.loss.zero_grad()
        sum(out[name] for name in ("loss_actor", "loss_qvalue", "loss_alpha")).backward()
        outs.append(out.detach())
        gradients.append([p.grad.clone() for p in agent.loss.parameters()])
    torch.testing.assert_close(outs[0].to_dict(), outs[1].to_dict())
    torch.testing.assert_close(*gradients)


def test_a_run_with_a_share_of_updates_does_that_many(tmp_path):
    train_expert.main(tiny(tmp_path, updates_per_step=0.25, steps=120, random_steps=40, eval_interval=120))
    (run_dir,) = tmp_path.iterdir()
    state, _ = load_checkpoint(latest_checkpoint(run_dir / "checkpoint"))
    assert int(state["agent"]["step"]) == 20  # of 80 steps


def test_a_compiled_update_is_the_eager_one(monkeypatch):
    # the graph for real; what becomes of one is PyTorch's own
    counter, compiled = CompileCounterWithBackend("eager"), torch.compile

    def compile(function, *, fullgraph, options):
        guards = {"guard_filter_fn": options["guard_filter_fn"]}
        return compiled(function, fullgraph=fullgraph, backend=counter, options=guards)

    monkeypatch.setattr(torch, "compile", compile)
    agents = []
    for mode in ("off", "default"):
        torch.manual_seed(0)
        agent = sac.Sac(3, 2, hidden=8, capacity=64, batch_size=16, compile=mode)
        rng = np.random.default_rng(0)
        rows = [rng.normal(size=(64, size)).astype(np.float32) for size in (3, 2, 3)]
        agent.remember(rows[0], np.tanh(rows[1]), rng.normal(size=64), rows[2], rng.random(64) < 0.3)
        torch.manual_seed(1)
        agent.losses = [agent.update() for _ in range(3)]
        agents.append(agent)
    assert counter.frame_count == 1
    for eager, other in zip(*(agent.losses for agent in agents)):
        torch.testing.assert_close(other.to_dict(), eager.to_dict(), rtol=1e-4, atol=1e-4)


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
    assert "cannot be drawn" not in done.stdout  # its first 100 steps are filmed where there is OpenGL
    (dataset,) = (tmp_path / "datasets").iterdir()
    assert dataset.name.startswith("CheetahTgtVel-m-e_expert1_medium2_seed0_policy")


def test_an_ant_that_has_fallen_at_the_goal_s_speed_has_no_reward_in_a_file_of_d4rl(tmp_path):
    h5py = pytest.importorskip("h5py")
    observations = np.zeros((6, 111), dtype=np.float32)
    observations[:, 0] = [0.5, 0.5, 0.5, 0.1, 0.5, 0.5]  # heights; the fourth is a fall
    observations[:, 13] = [0.0, 5.0, 4.0, 5.0, 4.8, 5.0]  # velocities
    with h5py.File(tmp_path / "ant.hdf5", "w") as file:
        file["observations"] = observations
        file["next_observations"] = np.roll(observations, -1, axis=0)
        file["actions"] = np.zeros((6, 8), dtype=np.float32)
        file["rewards"] = np.zeros(6, dtype=np.float32)
        file["terminals"] = np.array([0, 0, 1, 0, 0, 0], dtype=bool)
        file["timeouts"] = np.array([0, 0, 0, 0, 0, 1], dtype=bool)
    store = datasets.load_dataset(str(tmp_path / "ant.hdf5"), get_task("AntTgtVel-m-e"))
    reward = store.data["next", "reward"].flatten()
    assert reward[:2].tolist() == [1.0, 0.0]
    assert store.data["next", "achieved_goal"][2].item() == 5.0
    assert not reward[2:1000].any()
    # the second episode starts with the fourth row
    assert reward[1000:].tolist() == [1.0, 1.0, 0.0][: len(reward) - 1000]


def test_without_an_actor_the_command_that_makes_one_is_named_and_nothing_written(tmp_path):
    bare = dataclasses.replace(get_task("AntTgtVel-m-e"), actors=None)
    with pytest.raises(ValueError, match=r"AntTgtVel-m-e has no scripted expert.*train_expert.py task=AntTgt"):
        datasets.collect_or_load(bare, str(tmp_path), seed=0, num_trajectories=40, expert_fraction=None)
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
        datasets.collect_or_load(get_task("AntTgtVel-m-e"), str(tmp_path), seed=0, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "FetchReach"}, "FetchReach has a scripted expert; .* CheetahTgtVel-m-e"),
        ({"task": "CheetahTgtVel"}, "unknown task 'CheetahTgtVel'.*Did you mean"),
        ({"steps": 0}, "steps must be at least 1 and at most 1,000,000,000, got 0"),
        ({"steps": 40}, r"steps must leave an update after random_steps=40, at updates_per_step=1, got 40\.$"),
        ({"updates_per_step": 0.008}, r"after random_steps=40, at updates_per_step=0\.008, got 160\.$"),
        ({"steps": 161}, "steps must be a multiple of num_envs=4, got 161"),
        ({"capacity": 4}, "capacity must be at least batch_size=8, got 4"),
        ({"capacity": 2**24 + 1}, "capacity must be at least 1 and at most 16,777,216"),
        ({"seed": -1}, "seed must be at least 0 and at most 2,147,482,647, got -1"),
        ({"reward": "speed"}, "reward must be one of target, own, got 'speed'"),
        ({"compile": "on"}, "unknown compile mode 'on'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"updates_per_step": 0.0}, "updates_per_step must lie in .0, 100., got 0.0"),
        ({"resume": "nowhere", "run_root": "runs"}, "resume=nowhere is no run folder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_bad_option_is_refused_before_anything_is_written(tmp_path, change, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        train_expert.main(tiny(tmp_path, **{"run_root": str(tmp_path)} | change))
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_keeps_its_options_but_for_its_steps(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(ValueError, match=r"a resumed run keeps its own options; drop hidden\."):
        train_expert.main(train_expert.Config(resume=str(tmp_path / "run"), steps=240, hidden=16))
    with pytest.raises(ValueError, match="steps must be at least the 160 that the run has, got 80"):
        train_expert.main(train_expert.Config(resume=str(tmp_path / "run"), steps=80))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["steps"] == 160
    train_expert.main(train_expert.Config(resume=str(tmp_path / "run"), steps=240))
    assert "resuming at step 160 of 240" in capsys.readouterr().out
    assert [row["step"] for row in metrics(tmp_path / "run")][-2:] == ["200", "240"]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["steps"] == 240
    assert " steps=240 " in json.loads((tmp_path / "run" / "meta.json").read_text())["command"]


def test_the_steps_of_a_run_have_a_default():
    assert train_expert.Config().length == 2_000_000
    assert "steps=2000000" in train_expert.command(train_expert.Config())


def test_the_command_line_names_its_options_and_refuses_others(recipe, tmp_path):
    shown = recipe("train_expert.py", "--help", cwd=tmp_path)
    assert shown.status == 0
    assert all(f"  {name}=" in shown.stdout for name in ("task", "steps", "seed", "threads", "resume"))
    done = recipe("train_expert.py", "stpes=3", cwd=tmp_path)
    assert (done.status, done.stderr.count("\n")) == (2, 1)
    assert "Did you mean steps?" in done.stderr


def test_episodes_are_measured_in_groups_that_change_no_number(monkeypatch, finished):
    task = dataclasses.replace(get_task("CheetahTgtVel-m-e"), horizon=3)
    made = []

    def robot(*args):
        made.append(args)
        return make(*args)

    make = train_expert.make_robot
    monkeypatch.setattr(train_expert, "make_robot", robot)
    whole = {}
    for together, simulators in ((50, 5), (2, 2)):
        monkeypatch.setattr(train_expert, "_TOGETHER", together)
        for policy in (None, ActorExpert(finished / "expert.npz")):
            made.clear()
            found = train_expert.measure(task, policy, 5, 7, "own")
            assert len(made) == simulators
            for name, values in found.items():
                assert values.tolist() == whole.setdefault((name, policy is None), values).tolist()
    # each of another seed
    assert len(set(whole["velocity", True])) == 5


def test_uniform_actions_are_rows_of_those_of_all_episodes():
    every = np.random.default_rng(3)
    expected = np.stack([every.uniform(-1.0, 1.0, (5, 2)) for _ in range(3)]).astype(np.float32)
    for group in (range(0, 2), range(2, 4), range(4, 5)):
        rng = np.random.default_rng(3)
        found = [train_expert.uniform_actions(rng, 5, group, 2) for _ in range(3)]
        assert np.array_equal(np.stack(found), expected[:, group.start : group.stop])


def test_a_resumed_run_may_be_measured_otherwise(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    train_expert.main(train_expert.Config(resume=str(tmp_path / "run"), measure_episodes=2, threads=2))
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["expert"]["episodes"] == 2
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (kept["measure_episodes"], kept["threads"], kept["steps"]) == (2, 2, 160)
