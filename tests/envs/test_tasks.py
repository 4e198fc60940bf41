import subprocess
import sys

import numpy as np
import pytest
import torch

from torchrl_smore.envs import TASKS, get_task, task_names

FETCH = ("FetchReach", "FetchPush", "FetchPick")


RUNNING = ("CheetahTgtVel-m-e", "CheetahTgtVel-r-e", "AntTgtVel-m-e", "AntTgtVel-r-e")


def test_the_registry_holds_the_tasks_in_order():
    assert task_names() == ("FetchReach", "FetchPush", "FetchPick", "PointReach", "PointRooms", *RUNNING)
    assert all(TASKS[name].name == name for name in task_names())
    assert all(TASKS[name].horizon == (1000 if name in RUNNING else 50) for name in task_names())


def test_a_misspelt_task_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown task 'FetchPusch'.*Did you mean 'FetchPush'"):
        get_task("FetchPusch")


def test_a_task_passes_through_get_task():
    assert get_task(TASKS["PointReach"]) is TASKS["PointReach"]


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


@pytest.mark.parametrize("name", FETCH)
def test_the_reward_is_the_simulators_plus_one_and_agrees_with_is_success(name):
    task = TASKS[name]
    env, inner = task.make_env(), task.make_base_env()
    observation, _ = env.reset(seed=2)
    inner.reset(seed=2)
    # goals that this episode passes through, so that both outcomes occur
    env.unwrapped.goal = inner.goal = observation["achieved_goal"].astype(np.float64) + np.array([0.04, 0.0, 0.0])
    rewards = []
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (30, 4)).astype(np.float32):
        _, reward, terminated, truncated, info = env.step(action)
        _, sparse, _, _, inner_info = inner.step(action)
        assert reward == sparse + 1.0
        assert info["is_success"] is bool(reward) is bool(inner_info["is_success"])
        assert not terminated
        assert not truncated
        rewards.append(reward)
    assert name != "FetchReach" or 0.0 < np.mean(rewards) < 1.0
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


def test_episodes_of_a_seed_do_not_depend_on_what_was_simulated_before():
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (12, 4)).astype(np.float32)

    def episode(env, seed):
        states = [env.reset(seed=seed)[0]["observation"]]
        return np.stack(states + [env.step(action)[0]["observation"] for action in actions])

    used, fresh = TASKS["FetchPick"].make_env(), TASKS["FetchPick"].make_env()
    for seed in (5, 6):
        episode(used, seed)
    np.testing.assert_array_equal(episode(used, 7), episode(fresh, 7))
    used.close()
    fresh.close()


def test_importing_the_package_needs_no_simulator_and_a_missing_one_is_named():
    code = (
        "import sys; sys.modules['gymnasium_robotics'] = None\n"
        "from torchrl_smore.envs import TASKS\n"
        "TASKS['PointRooms'].make_env().reset(seed=0)\n"
        "try:\n    TASKS['FetchReach'].make_env()\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "FetchReach-v4 needs gymnasium-robotics" in done.stdout
    assert 'pip install "torchrl-smore[envs]"' in done.stdout


def test_building_a_fetch_environment_prints_nothing():
    code = "from torchrl_smore.envs import TASKS; TASKS['FetchReach'].make_env().reset(seed=0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
