import numpy as np
import pytest

from torchrl_smore.envs import TASKS, task_names
from torchrl_smore.envs._rollout import Behaviour, quality, run_episodes

FETCH = ("FetchReach", "FetchPush", "FetchPick")
SCRIPTED = [name for name in task_names() if "TgtVel" not in name]
# bars for success at the last step and for the return at discount 0.99, of 39.5 at most
BARS = {
    "FetchReach": (0.98, 37.0),
    "FetchPush": (0.98, 29.0),
    "FetchPick": (0.98, 28.0),
}


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
    assert reward[:, 25:].all()  # the longest way round is some 12 steps


@pytest.mark.parametrize("name", FETCH)
def test_fetch_experts_solve_a_handful_of_episodes(name):
    measured = quality(run(name, 12)["reward"])
    assert measured["success"] == 1.0
    assert measured["discounted_return"] > BARS[name][1] - 2.0  # twelve episodes scatter by about 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FETCH)
def test_fetch_experts_reach_their_bars_over_200_episodes(name):
    success, discounted_return = BARS[name]
    measured = quality(run(name, 200, seed=5)["reward"])
    assert measured["success"] >= success
    assert measured["discounted_return"] >= discounted_return


@pytest.mark.parametrize("name", SCRIPTED)
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


@pytest.mark.parametrize("name", SCRIPTED)
def test_an_expert_at_its_goal_stays_finite(name):
    task = TASKS[name]
    zeros = {
        "observation": np.zeros((2, task.observation_dim), dtype=np.float32),
        "achieved_goal": np.zeros((2, task.goal_dim), dtype=np.float32),
        "desired_goal": np.zeros((2, task.goal_dim), dtype=np.float32),
    }
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(task.make_expert()(zeros)).all()


def test_quality_matches_numbers_worked_by_hand():
    reward = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    measured = quality(reward, gamma=0.5)
    assert measured["success"] == 0.5
    assert measured["discounted_return"] == pytest.approx((0.5 + 0.25) / 2)
    assert measured["return_over_max"] == pytest.approx(0.375 / 1.75)
    assert measured["first_success"] == 2.0
    assert quality(np.zeros((3, 4)))["first_success"] is None
