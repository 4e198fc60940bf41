import numpy as np
import pytest

from torchrl_smore.envs import TASKS
from torchrl_smore.envs._rollout import Behaviour, quality, run_episodes
from torchrl_smore.envs.experts import HandReachExpert
from torchrl_smore.envs.experts.hand_reach import _bounded_step, _Hand

STEP = 1e-6  # rad, of the finite differences


@pytest.fixture(scope="module")
def hand():
    return _Hand()


@pytest.fixture(scope="module")
def pose(hand):
    """Driven angles inside the limits and the slack of the tendons."""
    rng = np.random.default_rng(0)
    slack = np.zeros(24)
    slack[[5, 9, 13, 18]] = rng.uniform(-0.1, 0.1, 4)
    return rng.uniform(hand.low, hand.high), slack


def differences(function, angle):
    """Derivatives of a function ``[k]`` by the driven joints, ``[k, 20]``, by central differences."""
    shift = STEP * np.eye(20)
    return np.stack([(function(angle + d) - function(angle - d)) / (2.0 * STEP) for d in shift], axis=-1)


def test_the_jacobian_is_the_derivative_of_the_fingertips(hand, pose):
    angle, slack = pose

    def tips(driven):
        hand.place(hand.whole(driven, slack))
        return hand.tips()

    expected = differences(tips, angle)
    hand.place(hand.whole(angle, slack))
    np.testing.assert_allclose(hand.tips_jacobian(), expected, atol=1e-8)


def test_the_weight_is_the_derivative_of_the_potential_energy(hand, pose):
    angle, slack = pose

    def energy(driven):
        hand.place(hand.whole(driven, slack))
        return np.array([9.81 * hand._model.body_mass @ hand._data.xipos[:, 2]])

    expected = differences(energy, angle)[0]
    hand.place(hand.whole(angle, slack))
    np.testing.assert_allclose(hand.weight(), expected, atol=1e-7)
    assert np.abs(expected).max() > 0.01


def test_gaps_are_distances_between_fingers_with_their_derivative(hand):
    rng, slack, met = np.random.default_rng(0), np.zeros(24), 0

    def distances(driven):
        hand.place(hand.whole(driven, slack))
        return hand.gaps()[0]

    for _ in range(20):
        angle = rng.uniform(hand.low, hand.high)
        hand.place(hand.whole(angle, slack))
        gap, jacobian = hand.gaps()
        pairs = hand._data.contact.geom.tolist()
        if len(gap) != 1 or gap[0] < -0.008:
            continue  # a box has contacts at several corners; deep inside, the nearest points jump
        met += 1
        np.testing.assert_allclose(jacobian, differences(distances, angle), atol=1e-5, err_msg=str(pairs))
    assert met >= 3


def test_last_joints_follow_the_one_before_them_within_the_slack(hand):
    env = TASKS["HandReach"].make_env()
    for action in (-0.5, 0.5):
        env.reset(seed=0)
        for _ in range(30):
            state = env.step(np.full(20, action, dtype=np.float32))[0]["observation"]
        angles = state[:24].astype(np.float64)
        # the tendon's bound is soft, and gives way by less than that at rest
        np.testing.assert_allclose(hand.whole(angles[hand.driven], hand.slack(angles)), angles, atol=0.005)
    env.close()
    np.testing.assert_allclose(hand._play, 0.001 / 0.00705)
    np.testing.assert_allclose(hand._coupling[[5, 9, 13, 18], [4, 7, 10, 14]], 0.00805 / 0.00705)


@pytest.mark.parametrize(
    ("jacobian", "error", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [0.3, -0.4], [0.3, -0.4]),
        ([[1.0, 0.0], [0.0, 1.0]], [3.0, 0.2], [0.5, 0.2]),
        ([[1.0, 4.0]], [1.7], [0.1, 0.4]),  # the shortest of many
        ([[1.0, 1.0]], [0.8], [0.4, 0.4]),
        ([[2.0, 1.0]], [1.2], [0.48, 0.24]),
        ([[4.0, 1.0]], [2.4], [0.5, 0.4]),  # 0.565 and 0.141, but for the limit: the other makes up for it
    ],
)
def test_a_step_within_limits_matches_numbers_worked_by_hand(jacobian, error, expected):
    low, high = np.full(2, -0.5), np.full(2, 0.5)
    angle = _bounded_step(np.zeros(2), np.array(jacobian), np.array(error), low, high, 1e-4)
    np.testing.assert_allclose(angle, expected, atol=1e-6)  # but for the damping


def test_fingers_hold_their_place_against_gravity():
    # without the weight fed forward they sag by 27 mm
    env, expert = TASKS["HandReach"].make_env(), HandReachExpert()
    observation, _ = env.reset(seed=0)
    goal = observation["achieved_goal"].copy()
    for _ in range(30):
        batch = {"observation": observation["observation"][None], "desired_goal": goal[None]}
        observation, *_ = env.step(expert(batch)[0])
    env.close()
    assert np.linalg.norm(observation["achieved_goal"] - goal) < 0.002


def test_most_goals_are_reached_within_a_few_steps():
    task = TASKS["HandReach"]
    measured = quality(run_episodes(task, task.make_batch_env(2), Behaviour("expert"), 0, range(8))["reward"])
    assert measured["success"] >= 0.75  # about one in ten is out of reach
    assert measured["first_success"] <= 7.0
