import dataclasses
import pickle

import numpy as np
import pytest

from torchrl_smore.envs import TASKS, EnvPool, collect
from torchrl_smore.envs.experts import (
    Actor,
    FetchSlideReactiveExpert,
    LandingModel,
    puck_velocity,
    strike_inputs,
    write_actor,
)

SLIDE = TASKS["FetchSlide"]


def write_model(path, displacement, log_std=-3.5):
    """A model in which a strike ``a`` moves the puck by ``displacement * a`` in m, whatever the state."""
    split = np.zeros((4, 19), np.float32)
    split[:2, 17:], split[2:, 17:] = np.eye(2), -np.eye(2)
    joined = np.zeros((5, 4), np.float32)
    joined[:2, :2], joined[:2, 2:] = displacement * np.eye(2), -displacement * np.eye(2)
    bias = np.array([0, 0, log_std / 8, log_std / 8, 0], np.float32)
    scale = {"mean": np.zeros(19, np.float32), "std": np.ones(19, np.float32), "clip": 5.0}
    write_actor(path, Actor(((split, np.zeros(4, np.float32)), (joined, bias)), "relu", "clip", **scale))
    return path


def observation(gripper, puck, goal, velocity=(0.0, 0.0)):
    state = np.zeros((1, 25), np.float32)
    state[0, :3], state[0, 3:6] = (*gripper, 0.42), (*puck, 0.414)
    state[0, 6:9] = state[0, 3:6] - state[0, :3]
    state[0, 14:16] = velocity
    achieved, desired = np.array([[*puck, 0.414]], np.float32), np.array([[*goal, 0.414]], np.float32)
    return {"observation": state, "achieved_goal": achieved, "desired_goal": desired}


def test_a_strike_is_described_by_positions_velocities_turning_and_the_action():
    state = np.arange(25.0)[None]
    # the puck's velocity is relative to the gripper's in columns 14 and 15
    np.testing.assert_array_equal(puck_velocity(state), [[14 + 20, 15 + 21]])
    expected = [0, 1, 2, 6, 7, 8, 34, 36, 20, 21, 22, 17, 18, 19, 11, 12, 13, 0.5, -0.5]
    np.testing.assert_array_equal(strike_inputs(state, np.array([[0.5, -0.5]])), [expected])


@pytest.mark.parametrize("spread", [0.03, 0.06])
def test_the_probability_of_success_is_that_of_a_normal_distribution_in_the_disc(spread, tmp_path):
    model = LandingModel(write_model(tmp_path / "model.npz", 0.5, np.log(spread)))
    chance, rest = model.success(np.zeros(25), np.array([[0.8, 0.0], [0.0, 0.0]]), np.array([0.4, 0.0]))
    np.testing.assert_allclose(rest, [[0.4, 0.0], [0.0, 0.0]], atol=1e-6)
    # at the centre of a disc of radius r the probability is 1 - exp(-r^2 / (2 sigma^2))
    assert chance[0] == pytest.approx(1.0 - np.exp(-(0.05**2) / (2.0 * spread**2)), rel=0.05)
    assert chance[1] < 1e-4
    points = np.random.default_rng(0).normal((0.36, 0.03), spread, (100_000, 2))
    inside = (np.hypot(*(points - (0.4, 0.0)).T) < 0.05).mean()
    off_centre = model.success(np.zeros(25), np.array([[0.72, 0.06]]), np.array([0.4, 0.0]))[0][0]
    assert off_centre == pytest.approx(inside, rel=0.1)


@pytest.mark.parametrize("goal", [(1.6, 0.8), (1.7, 0.7)])
def test_the_strike_is_the_one_that_most_probably_ends_in_the_goal(goal, tmp_path):
    expert = FetchSlideReactiveExpert(write_model(tmp_path / "model.npz", 0.5))
    puck = np.array([1.3, 0.75])
    way = np.array(goal) - puck
    behind = puck - 0.05 * way / np.hypot(*way)
    seen = observation(behind, puck, goal)
    assert expert.striking(seen)[0]
    action = expert(seen)[0]
    assert np.abs(0.5 * action[:2] - way).max() < 0.03  # the grid of strikes is about 5 cm wide there
    assert action.dtype == np.float32
    assert action[3] == 0.0


def test_a_goal_out_of_reach_is_struck_at_with_full_strength(tmp_path):
    expert = FetchSlideReactiveExpert(write_model(tmp_path / "model.npz", 0.2))
    action = expert(observation((1.25, 0.75), (1.3, 0.75), (2.0, 0.75)))[0]
    np.testing.assert_allclose(action[:2], [1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("gripper", "velocity", "striking"),
    [
        ((1.25, 0.75), (0.0, 0.0), True),  # behind a puck that rests
        ((1.25, 0.757), (0.0, 0.0), False),  # beside the line
        ((1.243, 0.75), (0.0, 0.0), False),  # too far behind
        ((1.263, 0.75), (0.0, 0.0), False),  # too near
        ((1.25, 0.757), (0.03, 0.0), True),  # close to a puck that moves
        ((1.24, 0.75), (0.03, 0.0), False),  # which is left alone further away
    ],
)
def test_it_strikes_from_behind_or_follows_closely(gripper, velocity, striking, tmp_path):
    expert = FetchSlideReactiveExpert(write_model(tmp_path / "model.npz", 0.5))
    seen = observation(gripper, (1.3, 0.75), (1.7, 0.75), velocity)
    assert expert.striking(seen)[0] == striking
    if velocity[0] and not striking:
        assert not expert(seen)[0, :2].any()


def test_a_puck_that_already_goes_to_the_goal_is_not_struck_again(tmp_path):
    # a puck left alone ends where it is in this model
    expert = FetchSlideReactiveExpert(write_model(tmp_path / "model.npz", 0.5))
    seen = observation((1.25, 0.75), (1.3, 0.75), (1.31, 0.75), (0.03, 0.0))
    assert expert.striking(seen)[0]
    assert not expert(seen)[0, :2].any()
    seen = observation((1.25, 0.75), (1.3, 0.75), (1.31, 0.75))
    assert not expert.striking(seen)[0]
    assert not expert(seen)[0, :2].any()


def test_it_drives_behind_the_puck_and_strikes_it_there(tmp_path):
    expert = FetchSlideReactiveExpert(write_model(tmp_path / "model.npz", 0.8))
    batch = SLIDE.make_batch_env(4)
    seen = batch.reset(range(4))
    start, struck = seen["achieved_goal"], np.zeros(4, bool)
    for _ in range(25):
        struck |= expert.striking(seen)
        before = ~struck
        assert (np.linalg.norm(seen["achieved_goal"] - start, axis=-1)[before] < 3e-3).all()
        seen = batch.step(expert(seen))
    batch.close()
    assert struck.all()
    assert (np.linalg.norm(seen["achieved_goal"] - start, axis=-1) > 0.1).all()


def test_rows_do_not_depend_on_each_other_and_the_expert_reaches_other_processes(tmp_path):
    expert = FetchSlideReactiveExpert(write_model(tmp_path / "model.npz", 0.5))
    rows = [observation((1.25, 0.75), (1.3, 0.75), goal) for goal in ((1.6, 0.8), (1.7, 0.7), (1.45, 0.75))]
    rows.append(observation((1.4, 0.6), (1.3, 0.75), (1.7, 0.75)))
    together = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    actions = expert(together)
    for copy in (expert, pickle.loads(pickle.dumps(expert))):
        for number, row in enumerate(rows):
            np.testing.assert_array_equal(copy(row)[0], actions[number])


def test_a_file_that_is_no_landing_model_is_refused(tmp_path):
    path = tmp_path / "actor.npz"
    write_actor(path, [(np.zeros((4, 19), np.float32), np.zeros(4, np.float32))])
    with pytest.raises(
        ValueError, match=r"no landing model: expected .* \(19, 5, 'relu', 'clip'\).*found \(19, 4.*not standardised"
    ):
        LandingModel(path)
    with pytest.raises(ValueError, match=r"expected the file of a trained actor, found none"):
        dataclasses.replace(FetchSlideReactiveExpert(), model=tmp_path / "none.npz")(
            observation((1.25, 0.75), (1.3, 0.75), (1.7, 0.75))
        )


def test_a_landing_model_is_an_expert_policy(tmp_path):
    path = write_model(tmp_path / "model.npz", 0.8)
    task = dataclasses.replace(SLIDE, horizon=12)
    store = collect(task, expert_episodes=2, random_episodes=0, seed=0, expert_policy=path, workers=1, progress=False)
    expert, states = FetchSlideReactiveExpert(path), store.data["observation"].reshape(2, -1, 25)
    actions, goals = store.data["action"].reshape(2, 12, 4), store.data["desired_goal"].reshape(2, -1, 3)
    for episode in range(2):
        seen = {"observation": states[episode, :12].numpy(), "desired_goal": goals[episode, :1].numpy().repeat(12, 0)}
        np.testing.assert_array_equal(expert(seen), actions[episode].numpy())


def test_the_model_of_the_package_slides_pucks_into_goals():
    with EnvPool(SLIDE, 8) as pool:
        seen, expert = pool.reset(range(10_000_000, 10_000_008)), SLIDE.teacher()
        for _ in range(SLIDE.horizon):
            seen, reward = pool.step(expert(seen))
    assert reward.sum() >= 3  # of 8, where 5 are expected
