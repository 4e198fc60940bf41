import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from torchrl_smore.envs import TASKS
from torchrl_smore.envs.reacher import make_reacher_env

TASK = TASKS["Reacher"]


@pytest.fixture(scope="module")
def env():
    return make_reacher_env()


def states(env, seed, num_steps=30):
    observation, _ = env.reset(seed=seed)
    seen = [observation]
    for action in np.random.default_rng(seed).uniform(-1.0, 1.0, (num_steps, 2)).astype(np.float32):
        seen.append(env.step(action)[0])
    return seen


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_the_gymnasium_checker_accepts_the_task():
    check_env(TASK.make_env(), skip_render_check=True)


def test_the_columns_are_those_of_a_two_link_arm(env):
    for seen in states(env, 0):
        state, (x, y) = seen["observation"], seen["achieved_goal"]
        shoulder, elbow = np.arctan2(state[2:4], state[:2])
        # forward kinematics of links of 0.1 and 0.11 m; the simulator gives the fingertip of its last Runge-Kutta stage
        assert x == pytest.approx(0.1 * np.cos(shoulder) + 0.11 * np.cos(shoulder + elbow), abs=1e-4)
        assert y == pytest.approx(0.1 * np.sin(shoulder) + 0.11 * np.sin(shoulder + elbow), abs=1e-4)
        np.testing.assert_array_equal(state[8:10], seen["achieved_goal"])
    np.testing.assert_allclose(state[6:8], env.unwrapped.data.qvel[:2])


def test_no_column_tells_the_goal(env):
    """The state of an arm is the same whatever the goal, so that a relabelled goal contradicts nothing."""
    first = states(env, 1)
    again, _ = env.reset(seed=1)
    # the target of the simulator, moved elsewhere
    env.unwrapped.data.qpos[2:4] = (-0.05, 0.12)
    env.unwrapped.set_state(env.unwrapped.data.qpos, env.unwrapped.data.qvel)
    for expected, action in zip(
        first[1:], np.random.default_rng(1).uniform(-1.0, 1.0, (30, 2)).astype(np.float32), strict=True
    ):
        again = env.step(action)[0]
        np.testing.assert_allclose(again["observation"], expected["observation"], atol=1e-12)
    np.testing.assert_allclose(again["desired_goal"], (-0.05, 0.12), atol=1e-12)
    assert not np.allclose(first[-1]["desired_goal"], (-0.05, 0.12))


def test_blank_columns_are_named_and_hold_zero(env):
    seen = np.stack([state["observation"] for state in states(env, 2)])
    constant = np.flatnonzero((seen == 0.0).all(0))
    assert tuple(constant) == TASK.blank_columns
    assert all(TASK.observation_columns[column].startswith("0 (") for column in constant)


def test_goals_are_uniform_in_a_disc(env):
    goals = np.stack([env.reset(seed=seed)[0]["desired_goal"] for seed in range(300)])
    radius = np.linalg.norm(goals, axis=-1)
    assert radius.max() < 0.2
    # half the area lies within 0.2 / sqrt(2); the standard error of a share of 300 is 0.029
    assert (radius < 0.2 / np.sqrt(2.0)).mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(goals.mean(0), 0.0, atol=0.025)


def test_episodes_of_a_seed_do_not_depend_on_what_was_simulated_before(env):
    states(env, 3)
    for used, fresh in zip(states(env, 4), states(make_reacher_env(), 4), strict=True):
        for key, value in used.items():
            np.testing.assert_array_equal(value, fresh[key])


def test_a_missing_simulator_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mujoco", None)
    with pytest.raises(ImportError, match=r'Reacher needs mujoco.*pip install "torchrl-smore\[envs\]"'):
        make_reacher_env()
