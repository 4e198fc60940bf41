"""The locomotion tasks: what is observed, what a fall does, and datasets with trained actors."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from torchrl_smore.envs import TASKS, EnvPool, collect, get_task
from torchrl_smore.envs.experts import write_actor
from torchrl_smore.trainers import Evaluator

NAMES = ("CheetahTgtVel-m-e", "CheetahTgtVel-r-e", "AntTgtVel-m-e", "AntTgtVel-r-e")
CHEETAH, ANT = TASKS[NAMES[0]], TASKS[NAMES[2]]


def test_the_numbers_are_the_published_ones():
    assert [(t.observation_dim, t.goal_dim, t.action_dim, t.threshold, t.horizon) for t in (CHEETAH, ANT)] == [
        (17, 1, 6, 0.5, 1000),
        (27, 1, 8, 0.5, 1000),
    ]
    assert [TASKS[name].make_env().reset(seed=0)[0]["desired_goal"].tolist() for name in NAMES] == [
        [11],
        [11],
        [5],
        [5],
    ]
    assert [(TASKS[name].rest, TASKS[name].expert_episodes) for name in NAMES] == [
        ("medium", 30),
        ("random", 30),
        ("medium", 30),
        ("random", 30),
    ]
    assert all(TASKS[name].gammas == (0.98, 0.99, 0.999) for name in NAMES)


@pytest.mark.filterwarnings("ignore:.*Box observation space.*infinity")
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize("task", [CHEETAH, ANT], ids=lambda task: task.name)
def test_the_gymnasium_checker_accepts_the_task(task):
    check_env(task.make_env(), skip_render_check=True)


@pytest.mark.parametrize("task", [CHEETAH, ANT], ids=lambda task: task.name)
def test_columns_mean_what_they_say(task):
    env = task.make_env()
    env.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (5, task.action_dim)).astype(np.float32):
        observation, *_ = env.step(action)
    column = dict(zip(task.observation_columns, observation["observation"], strict=True))
    data, model = env.unwrapped.data, env.unwrapped.model
    assert observation["achieved_goal"][0] == column["x velocity [m/s]"] == np.float32(data.qvel[0])
    height = data.qpos[1] if task is CHEETAH else data.qpos[2]
    assert column["torso height [m]"] == np.float32(height)
    named = {"bthigh": "back thigh", "ffoot": "front foot"} if task is CHEETAH else {}
    named |= {} if task is CHEETAH else {"hip_1": "front left hip", "ankle_3": "back left ankle"}
    for joint, words in named.items():
        assert column[f"{words} angle [rad]"] == np.float32(data.joint(joint).qpos[0])
        assert column[f"{words} angular velocity [rad/s]"] == np.float32(data.joint(joint).qvel[0])
    order = {"bthigh": "back thigh", "bshin": "back shin", "bfoot": "back foot"}
    order |= {"fthigh": "front thigh", "fshin": "front shin", "ffoot": "front foot"}
    for leg, words in enumerate(("front left", "front right", "back left", "back right"), start=1):
        order |= {f"hip_{leg}": f"{words} hip", f"ankle_{leg}": f"{words} ankle"}
    expected = tuple(
        f"{order[model.joint(model.actuator_trnid[number, 0]).name]} torque [{model.actuator_gear[number, 0]:g} N m]"
        for number in range(model.nu)
    )
    assert task.action_columns == expected
    env.close()


def test_the_success_rule_leaves_the_threshold_out():
    achieved = np.array([[10.5], [10.500001], [11.0], [11.4999], [11.5]])
    expected = [False, True, True, True, False]
    assert CHEETAH.reached(achieved, np.array([11.0])).tolist() == expected
    assert CHEETAH.reached(torch.from_numpy(achieved), torch.tensor([11.0])).tolist() == expected
    assert CHEETAH.success_rule.endswith("less than 0.5")
    assert TASKS["PointReach"].success_rule.endswith("at most 1")


def test_an_ant_too_low_or_too_high_has_fallen():
    observation = np.full((5, 27), 0.5)
    observation[:, 0] = [0.19, 0.2, 1.0, 1.01, np.nan]
    expected = [True, False, False, True, True]
    assert ANT.has_fallen(observation).tolist() == expected
    assert ANT.has_fallen(torch.from_numpy(observation)).tolist() == expected
    at_speed = np.full((5, 1), 5.0)
    assert ANT.succeeded(observation, at_speed, np.array([5.0])).tolist() == [not fallen for fallen in expected]


def throw_up(env):
    """Puts the Ant in the air, moving forward at the target velocity."""
    robot = env.unwrapped
    position, velocity = robot.data.qpos.copy(), robot.data.qvel.copy()
    position[2], velocity[0] = 1.5, 5.0
    robot.set_state(position, velocity)


def test_after_a_fall_nothing_changes_and_nothing_is_earned_until_the_reset():
    env = ANT.make_env()
    env.reset(seed=0)
    throw_up(env)
    still = np.zeros(8, dtype=np.float32)
    fallen, reward, terminated, truncated, info = env.step(still)
    assert abs(fallen["achieved_goal"][0] - 5.0) < 0.5  # fast enough, were it not for the fall
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, True, False, False)
    for _ in range(3):
        observation, reward, terminated, _, info = env.step(np.ones(8, dtype=np.float32))
        assert all(np.array_equal(observation[key], fallen[key]) for key in fallen)
        assert (reward, terminated, info["is_success"]) == (0.0, True, False)
    env.reset(seed=0)
    assert not env.step(still)[2]
    env.close()


class FastAnt:
    """Stands still in a pool whose Ants are thrown up at the target velocity before the third step."""

    def __init__(self, pool):
        self.pool, self.steps = pool, 0

    def __call__(self, observation):
        self.steps += 1
        if self.steps == 3:
            for env in self.pool._here["batch"]._envs:
                throw_up(env)
        return np.zeros((len(observation["observation"]), 8))


def test_the_evaluator_counts_nothing_after_a_fall_and_reports_the_discounts_of_the_task():
    task = dataclasses.replace(ANT, threshold=100.0)  # every step that does not end in a fall counts
    with EnvPool(task, 2) as pool:
        result = Evaluator(pool, episodes=2, horizon=6, gammas=task.gammas).run(FastAnt(pool))
    for gamma in (0.98, 0.99, 0.999):
        assert result.metrics[f"discounted_return_{gamma:g}"] == pytest.approx(1.0 + gamma)
    assert result.metrics["return_over_max"] == pytest.approx(1.999 / sum(0.999**step for step in range(6)))
    assert result.metrics["success_last"] == 0.0


@pytest.mark.parametrize("name", ["CheetahTgtVel-r-e", "AntTgtVel-m-e"])
def test_the_same_seeds_give_the_same_episodes_for_any_number_of_workers(name):
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (30, 2, TASKS[name].action_dim))

    def episodes(pool, seeds):
        return [pool.reset(seeds)["observation"]] + [pool.step(action)[0]["observation"] for action in actions]

    with EnvPool(name, 2) as here, EnvPool(name, 2, num_workers=2) as spread:
        episodes(here, [4, 5])  # what ran before must not matter
        np.testing.assert_array_equal(episodes(here, [1, 2]), episodes(spread, [1, 2]))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("CheetahTgtVel-m-e", (1030,), (30, 1000, 0)),
        ("AntTgtVel-r-e", (1030,), (30, 0, 1000)),
        ("AntTgtVel-m-e", (10, 0.2), (2, 8, 0)),
        ("FetchPush", (1000,), (100, 0, 900)),
        ("FetchPush", (1000, 0.05), (50, 0, 950)),
    ],
)
def test_the_composition_is_the_papers(name, arguments, expected):
    counts = TASKS[name].composition(*arguments)
    assert counts == dict(zip(("expert_episodes", "medium_episodes", "random_episodes"), expected, strict=True))


def test_too_few_trajectories_for_the_experts_are_refused():
    with pytest.raises(ValueError, match="30 expert trajectories among num_trajectories=20: raise that"):
        ANT.composition(20)


@pytest.fixture(scope="module")
def actors(tmp_path_factory):
    """A folder as train_expert.py leaves it, of untrained actors."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    for name in ("expert", "medium"):
        layers = [(0.3 * rng.normal(size=(b, a)), 0.3 * rng.normal(size=b)) for a, b in ((17, 8), (8, 6))]
        write_actor(folder / f"{name}.npz", layers)
    return folder


def test_expert_and_medium_episodes_come_from_the_actors_of_a_folder(actors):
    counts = {"expert_episodes": 1, "medium_episodes": 2, "random_episodes": 1}
    task = dataclasses.replace(CHEETAH, horizon=20)
    stores = [collect(task, **counts, seed=0, expert_policy=actors, workers=n, progress=False) for n in (1, 2)]
    assert stores[0].sha256 == stores[1].sha256
    assert stores[0].meta == stores[1].meta
    meta = stores[0].meta
    assert [(part["behaviour"], part["num_trajectories"]) for part in meta["composition"]] == [
        ("expert", 1),
        ("medium", 2),
        ("random", 1),
    ]
    assert meta["gamma"] == 0.999
    assert str(actors) not in str(meta)
    digests = [part.get("policy_sha256") for part in meta["composition"]]
    assert len(set(digests)) == 3
    assert digests[2] is None
    # the actions in the store are those of the right file
    data = stores[0].data
    for rows, name in ((slice(0, 20), "expert"), (slice(20, 60), "medium")):
        with np.load(actors / f"{name}.npz") as file:
            hidden = np.maximum(data["observation"][rows].numpy() @ file["weight_0"].T + file["bias_0"], 0.0)
            expected = np.tanh(hidden @ file["weight_1"].T + file["bias_1"])
        np.testing.assert_allclose(data["action"][rows].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("robot", ["Cheetah", "Ant"])
def test_the_actors_of_the_package_are_what_their_file_says(robot):
    folder = get_task(f"{robot}TgtVel-m-e").bundled_actors
    assert get_task(f"{robot}TgtVel-r-e").bundled_actors == folder
    meta = json.loads((folder / "meta.json").read_text())
    for name in ("expert", "medium"):
        converted = (robot, name) == ("Ant", "expert")
        recipe = "convert_expert" if converted else "train_expert"
        command = (meta if "command" in meta else meta[name])["command"]
        assert command.startswith(f"python recipes/{recipe}.py task={robot}TgtVel-m-e ")
        path = folder / f"{name}.npz"
        assert path.stat().st_size < 2e6
        assert hashlib.sha256(path.read_bytes()).hexdigest() == meta[name]["sha256"]


def test_the_ants_expert_runs_at_the_goal_and_its_licence_comes_with_it():
    meta = json.loads((ANT.bundled_actors / "meta.json").read_text())["expert"]
    assert meta["velocity"] >= 4.5
    assert meta["reached"] >= 0.4
    assert "cd35bde610f4045bf2e0731c8f4c88d22df8fc85" in meta["source"]
    assert meta["license"].startswith("MIT, Copyright (c) 2020 Antonin RAFFIN")
    licence = (ANT.bundled_actors / "LICENSE").read_text()
    assert licence.startswith("MIT License\n\nCopyright (c) 2020 Antonin RAFFIN\n")
    assert "The above copyright notice and this permission notice shall be included" in licence


@pytest.mark.parametrize("task", [CHEETAH, ANT], ids=lambda task: task.name)
def test_without_a_policy_the_actors_of_the_package_are_collected(task):
    store = collect(task, expert_episodes=2, medium_episodes=2, random_episodes=0, seed=5, progress=False)
    meta = json.loads((task.bundled_actors / "meta.json").read_text())
    velocity = store.data["next", "achieved_goal"].reshape(4, 1000).mean(1)
    for part, rows, name in zip(store.meta["composition"], (slice(0, 2), slice(2, 4)), ("expert", "medium")):
        assert part["policy_sha256"] == meta[name]["sha256"]
        # the spread between episodes of the twenty that were measured, of which some of the Ant's medium actor fall
        spread = meta[name]["return_std"] / meta[name]["return"]
        assert velocity[rows].mean() == pytest.approx(meta[name]["velocity"], rel=max(spread, 0.05))


def test_an_ant_that_falls_repeats_the_transition_that_led_there():
    store = collect(ANT, expert_episodes=0, random_episodes=3, seed=0, workers=1, progress=False)
    assert (store.num_trajectories, store.num_transitions) == (3, 3000)
    fallen = ANT.has_fallen(store.data["next", "observation"]).reshape(3, 1000)
    length = 1000 - fallen.sum(1) + fallen.any(1)
    assert (length < 1000).any()
    assert store.meta["composition"][0]["fallen"] == pytest.approx(fallen.any(1).double().mean())
    data = store.data.reshape(3, 1000)
    for trajectory, last in zip(data, length - 1):
        assert not ANT.has_fallen(trajectory["observation"][: last + 1]).any()
        torch.testing.assert_close(trajectory["observation"][1:last], trajectory["next", "observation"][: last - 1])
        for key in ("observation", "action", "achieved_goal", ("next", "observation"), ("next", "achieved_goal")):
            rest = trajectory[key][last:]
            assert torch.equal(rest, rest[:1].expand_as(rest))
    assert store.data["next", "truncated"].sum() == 3
    assert not store.data["next", "terminated"].any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"expert_episodes": 1}, r"AntTgtVel-m-e has no scripted expert.*train_expert.py task=AntTgtVel-m-e"),
        ({"medium_episodes": 1}, r"medium_policy.*train_expert.py task=AntTgtVel-m-e"),
        ({"expert_episodes": 1, "expert_policy": "absent.npz"}, r"absent.npz: expected the file .*train_expert.py"),
        ({"medium_episodes": 1, "medium_policy": "actors"}, r"medium.npz is no actor for AntTgtVel-m-e: expected 27"),
        ({"medium_episodes": -1}, "medium_episodes must be at least 0, got -1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_missing_or_wrong_policy_is_refused_before_anything_is_written(tmp_path, actors, arguments, said):
    arguments = {key: actors if value == "actors" else value for key, value in arguments.items()}
    with pytest.raises(ValueError, match=said):
        collect(
            dataclasses.replace(ANT, actors=None),
            **({"expert_episodes": 0, "random_episodes": 1} | arguments),
            seed=0,
            out=tmp_path / "store",
        )
    assert list(tmp_path.iterdir()) == []
