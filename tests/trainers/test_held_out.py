"""Distances on held-out trajectories, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_smore.data import TrajectoryStore
from torchrl_smore.trainers import held_out_distance


def reached(achieved, goal):
    return np.abs(achieved - goal).max(-1) < 0.5


def episode(start, end, goal, actions):
    """A walk on a line from ``start`` to ``end`` whose observations are its places and whose actions are 2-d."""
    places = np.linspace(start, end, len(actions) + 1, dtype=np.float32)[:, None]
    return {
        "observation": places,
        "achieved_goal": places,
        "action": np.array(actions, dtype=np.float32),
        "desired_goal": np.array([goal], dtype=np.float32),
        "reward": np.zeros(len(actions), dtype=np.float32),
    }


@pytest.fixture
def store():
    """Three trajectories that reach their goal, one that does not, one that begins there."""
    return TrajectoryStore.from_episodes(
        [
            episode(0.0, 4.0, 4.0, [[0.2, 0.0], [0.4, 0.0]]),
            episode(0.0, 4.0, 9.0, [[1.0, 1.0], [1.0, 1.0]]),
            episode(0.0, 3.0, 3.0, [[-0.6, 0.2], [-0.6, 0.2]]),
            episode(5.0, 5.0, 5.0, [[1.0, 1.0], [1.0, 1.0]]),
            episode(1.0, 2.0, 2.0, [[0.0, 0.1], [0.0, 0.1], [0.0, 0.1]]),
        ]
    )


def test_the_distance_is_the_median_over_trajectories_that_reach_their_goals_of_their_mean(store):
    found = held_out_distance(lambda observation, goal: np.zeros((len(observation), 2)), store, reached)
    # means over steps and components of 0.2, 0, 0.4, 0, then 0.6 and 0.2, then 0 and 0.1
    np.testing.assert_allclose(found.per_trajectory, [0.15, 0.4, 0.05], rtol=1e-6)
    assert found.distance == pytest.approx(0.15)
    # any of the three may be the median of a resample
    assert found.interval == pytest.approx((0.05, 0.4))


def test_the_policy_sees_each_trajectory_under_its_own_goal(store):
    seen = []

    def policy(observation, goal):
        seen.append((observation[:, 0].tolist(), goal[:, 0].tolist()))
        return np.zeros((len(observation), 2))

    held_out_distance(policy, store, reached)
    assert [goals for _, goals in seen] == [[4.0, 4.0], [3.0, 3.0], [2.0, 2.0, 2.0]]
    np.testing.assert_allclose(
        np.concatenate([places for places, _ in seen]), [0, 2, 0, 1.5, 1, 4 / 3, 5 / 3], rtol=1e-6
    )


def test_the_policy_that_acted_has_a_distance_of_0(store):
    only = store.select_trajectories([0])
    rows = dict(zip(only.data["observation"][:, 0].tolist(), only.data["action"]))
    found = held_out_distance(lambda o, g: np.stack([rows[place] for place in o[:, 0].tolist()]), only, reached)
    assert (found.distance, found.interval) == (0.0, (0.0, 0.0))


def test_data_that_reach_nothing_and_rules_of_another_shape_are_refused(store):
    def policy(observation, goal):
        return np.zeros((len(observation), 2))

    with pytest.raises(ValueError, match="do not begin there, got none among 2"):
        held_out_distance(policy, store.select_trajectories([1, 3]), reached)
    with pytest.raises(ValueError, match=r"one bool per row, shape \[5\], got \[5, 1\]"):
        held_out_distance(policy, store, lambda achieved, goal: np.abs(achieved - goal) < 0.5)
