import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from torchrl_smore.envs import TASKS
from torchrl_smore.envs.wrappers import ActionNoiseWrapper, GoalTaskWrapper


class Recorder(gymnasium.Env):
    """Remembers the actions it is given."""

    action_space = spaces.Box(-1.0, 1.0, (4000,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.executed = []
        return None, {}

    def step(self, action):
        self.executed.append(action)
        return None, 0.0, False, False, {}


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_noise_has_the_given_spread_and_the_executed_action_stays_in_bounds(sigma):
    recorder = Recorder()
    env = ActionNoiseWrapper(recorder, sigma)
    env.reset(seed=0)
    env.step(np.zeros(4000))
    env.step(np.ones(4000))
    free, clipped = recorder.executed
    # clipping at 1 cuts 4.6% of the tails at 0.5: the standard deviation is then 0.480 (by the truncated moments)
    expected = {0.1: 0.1, 0.5: 0.480}[sigma]
    assert free.std() == pytest.approx(expected, rel=0.05)
    assert abs(free.mean()) < 4.0 * sigma / np.sqrt(4000)
    assert np.abs(clipped).max() <= 1.0
    assert (clipped == 1.0).mean() == pytest.approx(0.5, abs=0.05)


def test_noise_repeats_with_the_seed_and_differs_between_steps_and_seeds():
    recorder = Recorder()
    env = ActionNoiseWrapper(recorder, 0.5)

    def noise(seed):
        env.reset(seed=seed)
        env.step(np.zeros(4000))
        env.step(np.zeros(4000))
        return recorder.executed

    first, again, other = noise(1), noise(1), noise(2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def test_noise_leaves_start_and_goal_of_a_seed_alone():
    quiet, noisy = TASKS["PointRooms"].make_env(), ActionNoiseWrapper(TASKS["PointRooms"].make_env(), 1.0)
    for key, value in quiet.reset(seed=4)[0].items():
        np.testing.assert_array_equal(noisy.reset(seed=4)[0][key], value)


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_a_noise_that_is_no_standard_deviation_is_refused(sigma):
    with pytest.raises(ValueError, match="action_noise must be a finite number of at least 0"):
        ActionNoiseWrapper(Recorder(), sigma)


def test_an_environment_without_goals_is_refused():
    env = Recorder()
    env.observation_space = spaces.Box(-1.0, 1.0, (3,))
    with pytest.raises(ValueError, match="expected a Dict observation space with keys observation, achieved_goal"):
        GoalTaskWrapper(env, lambda achieved, goal: True)


def test_rewards_of_other_goals_can_be_computed_in_batches():
    env = TASKS["PointReach"].make_env()
    achieved = np.array([[0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(env.compute_reward(achieved, np.array([[0.5, 0.5], [2.0, 0.0]]), {}), [1.0, 0.0])
