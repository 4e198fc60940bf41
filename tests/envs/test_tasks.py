import copy
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from torchrl_smore.envs import TASKS, get_task, task_names

ROBOTICS = ("FetchReach", "FetchPush", "FetchPick", "FetchSlide", "HandReach")
PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()


def test_the_page_of_tasks_lists_them_in_order_with_their_dimensions_horizon_and_threshold():
    # name, dimensions, steps, goal, distance that counts as success
    rows = re.findall(
        r"^\| (\S+) \| (\d+, \d+, \d+) \| ([\d,]+) \| [^|]* \| (less than )?([\d.]+)[^|]* \|$", PAGE, re.M
    )
    assert [name for name, *_ in rows] == list(task_names()) == [task.name for task in TASKS.values()]
    for name, dims, steps, strict, threshold in rows:
        task = TASKS[name]
        assert dims == f"{task.observation_dim}, {task.goal_dim}, {task.action_dim}"
        assert int(steps.replace(",", "")) == task.horizon
        assert (float(threshold), bool(strict)) == (task.threshold, task.strict)


def test_the_page_of_tasks_measures_every_scripted_expert_with_data_of_its_own():
    measured = re.findall(r"^\| (\S+)(?: \| [\d.]+){6} \|$", PAGE, re.M)
    assert measured == [name for name, task in TASKS.items() if task.scripted and task.data_source is task]


def test_a_misspelt_task_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown task 'FetchPusch'.*Did you mean 'FetchPush'"):
        get_task("FetchPusch")


def test_a_task_passes_through_get_task():
    assert get_task(TASKS["PointReach"]) is TASKS["PointReach"]


@pytest.mark.parametrize("name", [name for name in task_names() if TASKS[name].goal_range is not None])
def test_the_goals_of_episodes_fill_the_range_that_is_stated(name):
    task = TASKS[name]
    low, high = map(np.array, task.goal_range)
    env = task.make_env()
    goals = np.stack([env.reset(seed=seed)[0]["desired_goal"] for seed in range(30)])
    assert (goals >= low - 1e-6).all()
    assert (goals <= high + 1e-6).all()
    assert (goals.max(0) - goals.min(0) >= 0.7 * (high - low) - 0.02).all()


@pytest.mark.parametrize("name", task_names())
def test_documented_columns_match_what_the_environment_returns(name):
    task = TASKS[name]
    env = task.make_env()
    observation, _ = env.reset(seed=0)
    assert observation["observation"].shape == (task.observation_dim,)
    assert observation["achieved_goal"].shape == observation["desired_goal"].shape == (task.goal_dim,)
    assert env.action_space.shape == (task.action_dim,)
    assert len(set(task.observation_columns)) == task.observation_dim
    assert all(value.dtype == np.float32 for value in observation.values())
    assert all(space.contains(observation[key]) for key, space in env.observation_space.spaces.items())
    env.close()


def test_the_block_columns_mean_what_they_say():
    env = TASKS["FetchPush"].make_env()
    observation, _ = env.reset(seed=1)
    column = dict(zip(TASKS["FetchPush"].observation_columns, observation["observation"], strict=True))
    for axis, achieved in zip("xyz", observation["achieved_goal"], strict=True):
        assert column[f"block position {axis} [m]"] == achieved
        assert column[f"block position minus gripper position {axis} [m]"] == pytest.approx(
            column[f"block position {axis} [m]"] - column[f"gripper position {axis} [m]"], abs=1e-6
        )
    env.close()


@pytest.mark.parametrize(
    ("name", "dims", "threshold"), [("FetchSlide", (25, 3, 4), 0.05), ("HandReach", (63, 15, 20), 0.01)]
)
def test_dimensions_and_threshold_are_the_published_ones(name, dims, threshold):
    task = TASKS[name]
    assert (task.observation_dim, task.goal_dim, task.action_dim) == dims
    assert task.threshold == threshold == task.make_base_env().distance_threshold


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")  # the wrapped one is what is used
@pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value is")  # the simulators' own bounds
@pytest.mark.parametrize("name", ["FetchSlide", "HandReach"])
def test_the_gymnasium_checker_accepts_the_environment(name):
    env = TASKS[name].make_env()
    # gymnasium would build the simulator from it, without our success rule; exports read that of the simulator
    assert env.spec is None
    assert env.unwrapped.spec.id == TASKS[name].make_base_env().spec.id
    check_env(env, skip_render_check=True)
    env.close()


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize(
    "name",
    ["FetchReach", "HandReach", "PointRooms", "Reacher", "SawyerReach", "SawyerDoor", "AntTgtVel-m-e", "Tabletop-pick"],
)
def test_an_environment_can_be_copied_and_pickled_and_its_double_has_the_same_episodes(name, duplicate):
    env, action = TASKS[name].make_env(), np.full(TASKS[name].action_dim, 0.5, np.float32)
    env.reset(seed=0)
    env.step(action)
    other = duplicate(env)
    if name.startswith(("Sawyer", "Tabletop")):
        # the robots of gymnasium begin anew; these go on in the middle of the episode, each on its own
        ahead = [own.step(action)[0]["observation"] for own in (other, env)]
        np.testing.assert_array_equal(*ahead)
    found = []
    for own in (env, other):
        first = own.reset(seed=3)[0]
        found.append({**first, "after": own.step(action)[0]["observation"]})
        own.close()
    for key, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][key], err_msg=key)


def test_the_hands_columns_mean_what_they_say():
    task = TASKS["HandReach"]
    env = task.make_env()
    env.reset(seed=1)
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (5, 20)).astype(np.float32):
        observation, *_ = env.step(action)
    column = dict(zip(task.observation_columns, observation["observation"], strict=True))
    model, data = env.unwrapped.model, env.unwrapped.data
    for number in range(model.njnt):
        joint = model.joint(number).name.removeprefix("robot0:")
        assert column[f"{joint} angle [rad]"] == np.float32(data.joint(number).qpos[0])
        assert column[f"{joint} velocity [rad/s]"] == np.float32(data.joint(number).qvel[0])
    sites = {"forefinger": "ff", "middle finger": "mf", "ring finger": "rf", "little finger": "lf", "thumb": "th"}
    for finger, short in sites.items():
        for axis, position in zip("xyz", data.site(f"robot0:S_{short}tip").xpos, strict=True):
            assert column[f"{finger} tip position {axis} [m]"] == np.float32(position)
    assert task.goal_columns == task.observation_columns[48:]
    np.testing.assert_array_equal(observation["observation"][48:], observation["achieved_goal"])
    driven = [model.actuator(number).name.removeprefix("robot0:A_") for number in range(model.nu)]
    assert [name.split()[0] for name in task.action_columns] == driven
    env.close()


@pytest.mark.parametrize("name", ROBOTICS)
def test_the_reward_is_the_simulators_plus_one_and_agrees_with_is_success(name):
    task = TASKS[name]
    env, inner = task.make_env(), task.make_base_env()
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (30, task.action_dim)).astype(np.float32)
    inner.reset(seed=2)
    passed = [inner.step(action)[0]["achieved_goal"] for action in actions][9]
    env.reset(seed=2)
    inner.reset(seed=2)
    # a goal that this episode passes by, so that both outcomes occur
    env.unwrapped.goal = inner.goal = passed + 0.8 * task.threshold * np.eye(task.goal_dim)[0]
    rewards = []
    for action in actions:
        _, reward, terminated, truncated, info = env.step(action)
        _, sparse, _, _, inner_info = inner.step(action)
        assert reward == sparse + 1.0
        assert info["is_success"] is bool(reward) is bool(inner_info["is_success"])
        assert not terminated
        assert not truncated
        rewards.append(reward)
    assert name not in ("FetchReach", "HandReach") or 0.0 < np.mean(rewards) < 1.0
    env.close()
    inner.close()


def test_the_success_rule_includes_the_threshold_and_holds_for_numpy_and_torch():
    task = TASKS["PointReach"]  # threshold 1
    achieved = np.array([[3.0, 4.0], [0.6, 0.8], [0.0, 1.0], [0.0, 1.001]])
    goal = np.zeros((1, 2))
    expected = [False, True, True, False]
    assert task.reached(achieved, goal).tolist() == expected
    reached = task.reached(torch.from_numpy(achieved), torch.from_numpy(goal))
    assert reached.dtype == torch.bool
    assert reached.tolist() == expected
    assert task.reached(np.zeros((7, 5, 2)), np.zeros(2)).shape == (7, 5)


@pytest.mark.parametrize("name", ["FetchPick", "FetchSlide", "HandReach"])
def test_episodes_of_a_seed_do_not_depend_on_what_was_simulated_before(name):
    task = TASKS[name]
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (12, task.action_dim)).astype(np.float32)

    def episode(env, seed):
        states = [env.reset(seed=seed)[0]["observation"]]
        return np.stack(states + [env.step(action)[0]["observation"] for action in actions])

    used, fresh = task.make_env(), task.make_env()
    for seed in (5, 6):
        episode(used, seed)
    np.testing.assert_array_equal(episode(used, 7), episode(fresh, 7))
    used.close()
    fresh.close()


def test_a_missing_simulator_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    TASKS["PointRooms"].make_env().reset(seed=0)
    with pytest.raises(ImportError, match=r"FetchReach-v4 needs gymnasium-robotics.*\n?.*torchrl-smore\[envs\]"):
        TASKS["FetchReach"].make_env()


def test_building_a_fetch_environment_prints_nothing(python):
    # as Python is by default; the processes of the tests show them
    quiet = "import warnings; warnings.simplefilter('ignore', DeprecationWarning); "
    imported = "import sys; assert 'gymnasium_robotics' not in sys.modules; "
    make = "from torchrl_smore.envs import TASKS; TASKS['FetchReach'].make_env().reset(seed=0)"
    done = python("-c", quiet + imported + make)
    assert (done.status, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("count", "fraction", "message"),
    [
        (-5, 0.1, "num_trajectories must be at least 0, got -5"),
        (10, float("nan"), r"expert_fraction in \[0, 1\], got nan"),
    ],
)
def test_a_composition_of_numbers_that_cannot_be_is_refused(count, fraction, message):
    with pytest.raises(ValueError, match=message):
        get_task("FetchReach").composition(count, fraction)
    with pytest.raises(TypeError):
        get_task("FetchReach").composition(100.5, 0.1)
