import hashlib
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from torchrl_smore.envs import TASKS, PlanningExpert, expert_behaviour, task_names
from torchrl_smore.envs._rollout import Behaviour, quality, run_episodes
from torchrl_smore.envs.experts import FetchSlideExpert, HandReachExpert, ReacherExpert
from torchrl_smore.envs.sawyer import HANDLE_TOP

SCRIPTED = [name for name in task_names() if TASKS[name].scripted]
# success at the last step and return at discount 0.99 over 200 episodes, as docs/tasks.md states them
STATED = {
    name: (float(success), float(discounted_return))
    for name, success, discounted_return in re.findall(
        r"^\| (\S+) \| ([\d.]+) \| ([\d.]+)(?: \| [\d.]+){4} \|$",
        (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(),
        re.M,
    )
}
# of these a few episodes have to do
COSTLY = {"FetchSlide": 8, "HandReach": 30}
# 60 episodes without a miss are a success of at least 0.95 with 95% confidence; mean returns scatter by about 0.45
FEWER = {"FetchReach": 60, "FetchPush": 60, "FetchPick": 60}
CHEAP = [name for name in STATED if name not in COSTLY]
MEMORYLESS = [name for name in SCRIPTED if not isinstance(TASKS[name].make_expert(), PlanningExpert)]


def run(name, episodes, seed=0, **behaviour):
    task = TASKS[name]
    batch = task.make_batch_env(2 if task.make_batch is None else episodes)
    out = run_episodes(task, batch, Behaviour("expert", **behaviour), seed, range(episodes))
    batch.close()
    return out


@pytest.mark.parametrize(("name", "least"), [("PointReach", 35.5), ("PointRooms", 35.0)])
def test_point_experts_solve_every_episode_without_a_detour(name, least):
    measured = quality(run(name, 1000)["reward"])
    assert measured["success"] == 1.0
    assert measured["discounted_return"] > least


def test_the_expert_of_the_rooms_arrives_from_everywhere():
    reward = run("PointRooms", 3000, seed=1)["reward"]
    assert reward[:, 25:].all()  # the longest way round is about 12 steps


@pytest.mark.parametrize("name", CHEAP)
def test_simulated_experts_solve_a_handful_of_episodes(name):
    measured = quality(run(name, 12)["reward"])
    assert measured["success"] == 1.0
    assert measured["discounted_return"] > STATED[name][1] - 2.6  # twelve episodes scatter by about 1


@pytest.mark.parametrize(
    ("name", "noise", "random_prob", "least"), [("FetchPush", 0.2, 0.1, 26.5), ("FetchPick", 0.2, 0.05, 25.0)]
)
def test_pushing_and_picking_have_networks_as_experts_that_do_what_their_file_says(name, noise, random_prob, least):
    task = TASKS[name]
    meta = json.loads((task.bundled_actors / "meta.json").read_text())
    path = task.bundled_actors / "expert.npz"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == meta["sha256"]
    assert path.stat().st_size < 310_000
    assert meta["command"].startswith(f"python recipes/distill_expert.py task={name} ")
    assert meta["expert"]["success"] >= 0.98

    behaviour = expert_behaviour(task)
    assert (behaviour.policy, behaviour.noise, behaviour.random_prob) == (str(path), noise, random_prob)
    scripted = expert_behaviour(task, "scripted")
    assert (scripted.policy, scripted.noise, scripted.random_prob) == (None, 0.0, 0.0)
    measured = quality(run(name, 12, policy=behaviour.policy)["reward"])
    assert measured["success"] > 0.9  # it misses a goal in a hundred episodes or two
    assert measured["discounted_return"] > least


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_simulated_experts_are_as_good_as_stated_over_many_episodes(name):
    success, discounted_return = STATED[name]
    measured = quality(run(name, FEWER.get(name, 200), seed=5)["reward"])
    assert measured["success"] >= success - 0.02
    assert measured["discounted_return"] >= discounted_return - 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "episodes"), COSTLY.items())
def test_costly_experts_are_about_as_good_as_stated_over_some_episodes(name, episodes):
    success, discounted_return = STATED[name]
    measured = quality(run(name, episodes, seed=5)["reward"])
    assert measured["success"] >= success - 0.05
    assert measured["discounted_return"] >= discounted_return - 2.35


def test_the_door_expert_goes_to_any_angle_and_finds_back_into_the_slot():
    """From wherever a random walk ends, in the slot or not, with the door open or shut."""
    task = TASKS["SawyerDoor"]
    batch, expert, num = task.make_batch_env(40), task.make_expert(), 40
    batch.reset(range(num))
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (40, num, 3)):
        observation = batch.step(action)
    hand, angle = observation["observation"][:, :3], observation["observation"][:, 3]
    for _ in range(40):
        observation = batch.step(expert(observation))
    batch.close()
    assert task.reached(observation["achieved_goal"], observation["desired_goal"]).all()
    # the walks did end everywhere
    assert min((hand[:, 2] > HANDLE_TOP).sum(), (hand[:, 2] < HANDLE_TOP).sum()) > 5
    opening = angle < observation["desired_goal"][:, 0]
    assert min(opening.sum(), (~opening).sum()) > 5


@pytest.mark.parametrize("goal", [0.0, 0.4, 0.83])
def test_the_door_expert_settles_at_the_goal_and_not_at_its_edge(goal):
    env, expert = TASKS["SawyerDoor"].make_base_env(), TASKS["SawyerDoor"].make_expert()
    env.reset(seed=0)
    for _ in range(6):  # along the slot to the end of the hand's box, from where the nearest way would leave it
        observation, *_ = env.step(np.array([1.0, 0.0, 0.0]))
    for _ in range(20):
        aimed = {**observation, "desired_goal": np.array([goal])}
        observation, *_ = env.step(expert({key: value[None] for key, value in aimed.items()})[0])
    # 1 mm of play between hook and bars, at least 0.075 from the hinge
    assert observation["achieved_goal"][0] == pytest.approx(goal, abs=0.015)


def test_the_reacher_expert_bends_the_elbow_the_way_it_is_bent():
    expert, state = ReacherExpert(), np.zeros((2, 11))
    joints = np.array([[0.2, 1.3], [0.2, -1.3]])
    state[:, :2], state[:, 2:4] = np.cos(joints), np.sin(joints)
    # fingertips of arms bent by 0.1 more: only the elbow has to move
    elbow = joints[:, 1] + 0.1 * np.sign(joints[:, 1])
    angles = 0.2 + np.stack([np.zeros(2), elbow], axis=-1)
    goal = np.stack([np.cos(angles), np.sin(angles)], axis=-1).transpose(0, 2, 1) @ (0.1, 0.11)
    action = expert({"observation": state, "desired_goal": goal})
    np.testing.assert_allclose(action, [[0.0, 0.4], [0.0, -0.4]], atol=1e-6)


def test_the_reacher_expert_takes_the_shorter_way_round():
    joints = np.array([3.0, 0.0])  # the shoulder just short of half a turn, the arm stretched
    goal = 0.21 * np.array([np.cos(-3.0), np.sin(-3.0)])  # stretched again, 0.28 rad further on
    state = np.zeros((1, 11), dtype=np.float32)
    state[0, :2], state[0, 2:4] = np.cos(joints), np.sin(joints)
    action = ReacherExpert()({"observation": state, "desired_goal": goal[None].astype(np.float32)})
    # 4 x (2 pi - 6) = 1.13, which is more than there is
    np.testing.assert_allclose(action, [[1.0, 0.0]], atol=5e-3)
    state[0, 6:8] = 3.0, -1.0
    action = ReacherExpert()({"observation": state, "desired_goal": goal[None].astype(np.float32)})
    np.testing.assert_allclose(action, [[4.0 * (2.0 * np.pi - 6.0) - 0.66, 0.22]], atol=5e-3)


@pytest.mark.parametrize("name", MEMORYLESS)
def test_actions_are_bounded_float32_and_do_not_depend_on_the_rest_of_the_batch(name):
    task, rng = TASKS[name], np.random.default_rng(0)
    expert = task.make_expert()
    batch = task.make_batch_env(1)
    start = batch.reset([0])
    batch.close()
    # around a real state, so that every branch of the controllers is met
    many = {
        key: (value + 0.05 * rng.standard_normal((500, value.shape[1]))).astype(np.float32)
        for key, value in start.items()
    }
    actions = expert(many)
    assert actions.shape == (500, task.action_dim)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0
    for row in (0, 17, 499):
        alone = expert({key: value[row : row + 1] for key, value in many.items()})
        np.testing.assert_allclose(alone[0], actions[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MEMORYLESS)
def test_an_expert_at_its_goal_stays_finite(name):
    task = TASKS[name]
    zeros = {
        "observation": np.zeros((2, task.observation_dim), dtype=np.float32),
        "achieved_goal": np.zeros((2, task.goal_dim), dtype=np.float32),
        "desired_goal": np.zeros((2, task.goal_dim), dtype=np.float32),
    }
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(task.make_expert()(zeros)).all()


@pytest.mark.parametrize(
    ("expert", "simulator"), [(FetchSlideExpert(num_trials=3), "_table"), (HandReachExpert(overdrive=1.5), "_hand")]
)
def test_an_expert_builds_its_simulator_once_and_leaves_it_behind_when_it_is_pickled(expert, simulator):
    assert getattr(expert, simulator) is getattr(expert, simulator)
    packed = pickle.dumps(expert)
    assert len(packed) < 500
    assert pickle.loads(packed) == expert


def test_quality_matches_numbers_worked_by_hand():
    reward = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    measured = quality(reward, gamma=0.5)
    assert measured["success"] == 0.5
    assert measured["discounted_return"] == pytest.approx((0.5 + 0.25) / 2)
    assert measured["return_over_max"] == pytest.approx(0.375 / 1.75)
    assert measured["first_success"] == 2.0
    assert quality(np.zeros((3, 4)))["first_success"] is None
