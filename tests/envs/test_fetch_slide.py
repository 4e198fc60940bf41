import dataclasses
import functools

import numpy as np
import pytest

from torchrl_smore.envs import TASKS, begin_episodes, collect
from torchrl_smore.envs._rollout import Behaviour, run_episodes
from torchrl_smore.envs.experts import FetchSlideExpert, fetch_slide
from torchrl_smore.envs.experts.fetch_slide import _corrected, _Strike, _Striker

STRIKE = _Strike(0.3, 0.05, 0.8)
SLIDE = TASKS["FetchSlide"]
QUICK = dataclasses.replace(SLIDE, make_expert=functools.partial(FetchSlideExpert, num_trials=1), horizon=12)


def episode(env, seed, controller):
    """Positions of the puck, ``[50, 3]``, float64, from the simulator itself."""
    observation, _ = env.reset(seed=seed)
    places = []
    for _ in range(50):
        action = controller({"observation": observation["observation"].astype(np.float32)[None]})[0]
        observation, *_ = env.step(action)
        places.append(observation["achieved_goal"])
    return np.stack(places)


@pytest.mark.parametrize("seed", [0, 8])
def test_a_trial_ends_where_the_environment_ends_bit_for_bit(seed, monkeypatch):
    monkeypatch.setattr(fetch_slide, "_AT_REST", 0.0)  # else the trial stops as soon as nothing moves any more
    expert, env = FetchSlideExpert(), SLIDE.make_base_env()
    start = env.reset(seed=seed)[0]["observation"].astype(np.float32)
    for _ in range(2):  # the second time in a copy that has been used
        end = expert._table.end(start, seed, STRIKE)
        expert._table.end(env.reset(seed=99)[0]["observation"].astype(np.float32), 99, STRIKE)
        np.testing.assert_array_equal(end, episode(env, seed, _Striker([STRIKE]))[-1])


def test_the_gripper_goes_round_the_puck_strikes_it_once_and_stands_still():
    env = SLIDE.make_base_env()
    for seed in range(6):
        start = env.reset(seed=seed)[0]["achieved_goal"]
        places = episode(env, seed, striker := _Striker([STRIKE]))
        assert striker.done[0]
        moved = np.linalg.norm(places - start, axis=1)
        assert moved[1] < 1e-3
        assert moved[-1] > 0.2
        before = places[moved < 2e-3]  # until it is struck the puck stays put, but for settling on the table
        assert 2 <= len(before) <= 9
        direction = np.arctan2(*(places[len(before) + 4] - start)[1::-1])
        assert abs(direction - STRIKE.angle) < 0.25
    env.close()


def test_trials_find_a_strike_that_stops_in_the_goal():
    measured = run_episodes(SLIDE, SLIDE.make_batch_env(2), Behaviour("expert"), 0, range(2))["reward"]
    assert measured[:, -1].all()


def test_rows_are_planned_and_struck_independently_of_each_other():
    batch = SLIDE.make_batch_env(2)
    first = batch.reset([3, 4])
    expert = FetchSlideExpert(num_trials=3)
    both = begin_episodes(expert, first, [3, 4])
    alone = [
        begin_episodes(expert, {key: value[row : row + 1] for key, value in first.items()}, [seed])
        for row, seed in enumerate((3, 4))
    ]
    observation = first
    for _ in range(15):
        actions = both(observation)
        assert actions.dtype == np.float32
        assert np.abs(actions).max() <= 1.0
        for row, controller in enumerate(alone):
            one = controller({key: value[row : row + 1] for key, value in observation.items()})
            np.testing.assert_array_equal(one[0], actions[row])
        observation = batch.step(actions)
    batch.close()


def test_random_changes_repeat_with_the_seed_and_set_in_when_corrections_stop_helping(monkeypatch):
    trials = []

    def never_any_better(self, state, seed, strike):
        trials.append(strike)
        return state[3:6] + np.array([0.3, 0.3, 0.0])

    monkeypatch.setattr(fetch_slide._Table, "end", never_any_better)
    env, expert = SLIDE.make_env(), FetchSlideExpert(num_trials=10)
    for seed in (3, 3, 4):
        expert.plan({"observation": env.reset(seed=seed)[0]["observation"][None]}, [seed])
    first, again, other = trials[:10], trials[10:20], trials[20:]
    assert first == again
    assert first[0].run_up == first[1].run_up == 0.05  # as it was, and corrected
    assert len({strike.run_up for strike in first[2:]} | {strike.run_up for strike in other[2:]}) == 16
    env.close()


def test_a_seed_that_does_not_lead_to_the_observation_is_refused():
    batch = SLIDE.make_batch_env(1)
    first = batch.reset([3])
    batch.close()
    with pytest.raises(ValueError, match="not the start of the FetchSlide episode with seed 4"):
        begin_episodes(FetchSlideExpert(), first, [4])


def test_planned_episodes_give_the_same_store_for_any_number_of_workers():
    stores = [
        collect(QUICK, expert_episodes=21, random_episodes=0, seed=0, workers=workers, progress=False)
        for workers in (1, 2)
    ]
    assert stores[0].sha256 == stores[1].sha256
    actions = stores[0].data["action"].reshape(21, 12, 4)
    assert not (actions[0] == actions[1]).all()


@pytest.mark.parametrize(
    ("got", "wish", "angle", "speed"),
    [
        ((0.2, 0.1), (0.4, 0.3), 0.5, 0.5 * 2.0**0.6),
        ((0.4, 3.1), (0.2, -3.1), 0.3 + 2.0 * np.pi - 6.2, 0.5 * 0.5**0.6),  # the short way round
        ((0.2, -1.0), (0.2, 1.0), 0.9, 0.5),  # at most 0.6 at a time
        ((0.1, 0.0), (0.8, 0.0), 0.3, 1.0),  # 1.74 is more than there is
        ((0.01, 2.0), (0.4, 0.3), 0.3, 0.75),  # hardly met: harder, in the same direction
    ],
)
def test_a_strike_is_corrected_by_what_it_missed(got, wish, angle, speed):
    corrected = _corrected(_Strike(0.3, 0.05, 0.5), got, wish)
    assert corrected.angle == pytest.approx(angle)
    assert corrected.speed == pytest.approx(speed)
    assert corrected.run_up == 0.05
