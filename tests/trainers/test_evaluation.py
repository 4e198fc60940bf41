"""Metrics of hand-made episodes, intervals against published numbers, and the policy that is evaluated."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.modules import IndependentNormal, ProbabilisticActor, TanhNormal

from torchrl_smore.envs import EnvPool
from torchrl_smore.objectives import AWRActorLoss
from torchrl_smore.trainers import ActorPolicy, BackgroundEvaluator, Evaluator, mean_interval, mean_metrics
from torchrl_smore.trainers.evaluation import wilson_interval


class ScriptedPool:
    """Episode of seed s: reward 1 after the steps ``script[s]``; the achieved goal is (steps done, 0), the goal (0, s).
    Strict as :class:`EnvPool` is: it wants one seed and one action for each environment."""

    def __init__(self, num_envs, script):
        self.num_envs, self.script = num_envs, script
        self.resets, self.actions = [], []

    def reset(self, seeds):
        assert len(seeds) == self.num_envs
        self.resets.append(list(seeds))
        self.steps = 0
        return self.observe()

    def step(self, actions):
        assert actions.shape == (self.num_envs, 1)
        self.actions.append(actions)
        self.steps += 1
        reward = np.array([float(self.steps in self.script[seed]) for seed in self.resets[-1]], dtype=np.float32)
        return self.observe(), reward

    def observe(self):
        seeds = np.array(self.resets[-1], dtype=np.float32)
        zero = np.zeros_like(seeds)
        return {
            "observation": np.stack([zero + self.steps], -1),
            "achieved_goal": np.stack([zero + self.steps, zero], -1),
            "desired_goal": np.stack([zero, seeds], -1),
        }


def still(observation):
    return np.zeros((len(observation["observation"]), 1), dtype=np.float32)


def test_episodes_of_a_policy_whose_actions_are_not_finite_have_no_numbers_and_others_theirs():
    def broken(observation):
        # from the second step on, towards the first goal
        lost = (observation["desired_goal"][:, 1:] == 4) & (observation["observation"] > 0)
        return np.where(lost, np.nan, 0.0)

    pool = ScriptedPool(4, {4: (1, 2, 3), 5: (3,)})
    whole, lost = Evaluator(pool, episodes=2, horizon=3, first_seed=4).run_all([still, broken])
    assert all(np.isfinite(actions).all() for actions in pool.actions)
    assert whole.metrics["success_last"] == 1.0
    for name, values in lost.per_episode.items():
        assert np.isnan(values).tolist() == [True, False], name
        assert np.isnan(lost.metrics[name])


def test_every_metric_equals_the_numbers_worked_by_hand():
    # horizon 3, seeds 4 to 7: never, first step only, last step only, always
    pool = ScriptedPool(4, {4: (), 5: (1,), 6: (3,), 7: (1, 2, 3)})
    result = Evaluator(pool, episodes=4, horizon=3, first_seed=4).run(still)
    episodes = result.per_episode
    np.testing.assert_allclose(episodes["success_last"], [0, 0, 1, 1])
    np.testing.assert_allclose(episodes["success_any"], [0, 1, 1, 1])
    np.testing.assert_allclose(episodes["discounted_return_0.98"], [0, 1, 0.9604, 2.9404])
    np.testing.assert_allclose(episodes["discounted_return_0.99"], [0, 1, 0.9801, 2.9701])
    np.testing.assert_allclose(episodes["return_over_max"], [0, 1 / 2.9701, 0.9801 / 2.9701, 1])
    # after three steps the achieved goal is (3, 0) and the goal (0, seed)
    np.testing.assert_allclose(episodes["final_distance"], np.hypot(3, [4, 5, 6, 7]))
    assert result.metrics["success_last"] == 0.5
    assert result.metrics["success_any"] == 0.75
    assert result.metrics["discounted_return_0.99"] == pytest.approx((1 + 0.9801 + 2.9701) / 4)
    assert result.metrics["final_distance"] == pytest.approx(np.hypot(3, [4, 5, 6, 7]).mean())
    assert result.intervals["success_last"] == wilson_interval(2, 4)
    assert result.intervals["success_any"] == wilson_interval(3, 4)
    assert result.intervals["final_distance"] == mean_interval(episodes["final_distance"])
    assert result.episodes == 4
    assert pool.steps == 3


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5, 7, 11])
def test_the_result_does_not_depend_on_the_number_of_environments(num_envs):
    script = {seed: tuple(step for step in range(1, 5) if (seed * step) % 3 == 0) for seed in range(7)}
    expected = Evaluator(ScriptedPool(7, script), episodes=7, horizon=4, first_seed=0).run(still)
    pool = ScriptedPool(num_envs, script)
    result = Evaluator(pool, episodes=7, horizon=4, first_seed=0).run(still)
    for key, values in expected.per_episode.items():
        np.testing.assert_array_equal(result.per_episode[key], values)
    assert result.metrics == expected.metrics
    assert len(pool.resets) == -(-7 // num_envs)


@pytest.mark.parametrize("num_envs", [1, 3, 4, 8, 13])
def test_policies_side_by_side_get_what_each_gets_alone(num_envs):
    # the sign of an action tells the policy, its size the episode whose observation it answers
    class TwoWays(ScriptedPool):
        def step(self, actions):
            np.testing.assert_array_equal(np.abs(actions[:, 0]), np.array(self.resets[-1]) + 1)
            observation, reward = super().step(actions)
            return observation, reward * (actions[:, 0] > 0)

    script = {seed: tuple(range(1, seed + 1)) for seed in range(4)}
    forward, backward = (lambda obs, sign=sign: sign * (obs["desired_goal"][:, 1:] + 1) for sign in (1.0, -1.0))
    pool = TwoWays(num_envs, script)
    evaluator = Evaluator(pool, episodes=4, horizon=3, first_seed=0)
    first, second, third = evaluator.run_all([forward, backward, forward])
    np.testing.assert_array_equal(first.per_episode["success_any"], [0, 1, 1, 1])
    np.testing.assert_array_equal(first.per_episode["success_last"], [0, 0, 0, 1])
    assert second.metrics["success_any"] == 0.0
    assert third.metrics == first.metrics == evaluator.run(forward).metrics
    assert len(pool.resets) == -(-12 // num_envs) + -(-4 // num_envs)
    assert mean_metrics([first, second, third])["success_last"] == pytest.approx(1 / 6)


def test_the_policy_sees_the_observation_that_its_action_follows():
    pool = ScriptedPool(2, {0: (), 1: ()})
    Evaluator(pool, episodes=2, horizon=3, first_seed=0).run(lambda obs: obs["observation"])
    assert [actions[0, 0] for actions in pool.actions] == [0.0, 1.0, 2.0]


def test_a_real_pool_takes_episodes_that_do_not_divide_evenly():
    def run(num_envs):
        with EnvPool("PointReach", num_envs) as pool:
            evaluator = Evaluator(pool, episodes=5, horizon=4)
            return evaluator.run(lambda obs: obs["desired_goal"] - obs["achieved_goal"]).per_episode

    one, three = run(1), run(3)
    for key in one:
        np.testing.assert_array_equal(one[key], three[key])
    assert len(one["final_distance"]) == 5


def test_the_summary_is_plain_json():
    result = Evaluator(ScriptedPool(2, {0: (1,), 1: ()}), episodes=2, horizon=2, first_seed=0).run(still)
    summary = json.loads(json.dumps(result.summary()))
    assert summary["success_any"] == 0.5
    assert summary["episodes"] == 2
    assert summary["intervals"].keys() == result.metrics.keys()


def test_horizon_and_discounts_are_those_of_the_task_unless_others_are_given():
    with EnvPool("Reacher", 1) as pool:
        evaluator = Evaluator(pool)
        assert (evaluator.horizon, evaluator.gammas) == (pool.task.horizon, tuple(pool.task.gammas))
        assert pool.task.horizon == 50
        own = dataclasses.replace(pool.task, horizon=7, gammas=(0.5, 1.0))
        pool.task = own
        assert Evaluator(pool, episodes=1).run(lambda seen: np.zeros((1, 2))).metrics.keys() >= {
            "discounted_return_0.5",
            "discounted_return_1",
        }
        assert Evaluator(pool, horizon=3, gammas=(0.9,)).horizon == 3

    class WithoutTask:
        num_envs = 1

    assert (Evaluator(WithoutTask()).horizon, Evaluator(WithoutTask()).gammas) == (50, (0.98, 0.99))


@pytest.mark.parametrize(
    ("actions", "found"),
    [
        (lambda rows: np.zeros((rows + 1, 2)), r"got \[4, 2\] of float64"),
        (lambda rows: np.zeros((rows - 1, 2)), r"got \[2, 2\] of float64"),
        (lambda rows: np.float64(1.0), r"got \[\] of float64"),
        (lambda rows: np.zeros(rows), r"got \[3\] of float64"),
        (lambda rows: np.zeros((rows, 2), dtype=complex), r"got \[3, 2\] of complex128"),
        (lambda rows: np.full((rows, 2), None), r"got \[3, 2\] of object"),
    ],
)
def test_actions_that_are_not_one_row_for_each_observation_are_refused(actions, found):
    def still(seen):
        return np.zeros((len(seen["observation"]), 2))

    def wrong(seen):
        return actions(len(seen["observation"]))

    with EnvPool("PointReach", 6) as pool:
        evaluator = Evaluator(pool, episodes=3, horizon=2)
        # of two, each with a row too many or too few, none would be missing
        for policies in ([wrong, still], [still, wrong]):
            with pytest.raises(ValueError, match=rf"expected actions \[3, A\], .* {found} from .*wrong"):
                evaluator.run_all(policies)
        with pytest.raises(ValueError, match="at least one policy to evaluate"):
            evaluator.run_all([])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"episodes": 2.5}, TypeError, "episodes must be a whole number, got 2.5"),
        ({"horizon": 2.5}, TypeError, "horizon must be a whole number, got 2.5"),
        ({"first_seed": 1.5}, TypeError, "first_seed must be a whole number, got 1.5"),
        ({"first_seed": -1}, ValueError, "first_seed must be at least 0, got -1"),
        ({"gammas": (1.5,)}, ValueError, r"gammas must be one or more discounts in \(0, 1\], got \(1.5,\)"),
        ({"gammas": (float("nan"),)}, ValueError, r"gammas must be one or more discounts in \(0, 1\]"),
        ({"gammas": (0.0, 0.5)}, ValueError, r"gammas must be one or more discounts in \(0, 1\]"),
        ({"gammas": (0.9999999, 1.0)}, ValueError, "gammas must differ in their first 6 digits"),
    ],
)
def test_numbers_that_no_evaluation_can_have_are_refused(options, error, message):
    with EnvPool("PointReach", 1) as pool, pytest.raises(error, match=message):
        Evaluator(pool, **options)
    with pytest.raises(error, match=message):
        BackgroundEvaluator(partial(EnvPool, "PointReach", 1), **options)


@pytest.mark.parametrize("counts", [{"episodes": 0}, {"horizon": 0}])
def test_counts_that_are_not_positive_are_refused(counts):
    with pytest.raises(ValueError, match="must be positive"):
        Evaluator(ScriptedPool(1, {}), **counts)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), Table I, method 3 (score, no continuity correction), but for 10/10
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_intervals_equal_published_ones(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_what_is_not_known_has_no_interval():
    assert np.isnan(wilson_interval(float("nan"), 50)).all()


def test_wilson_intervals_mirror_each_other_and_stay_in_range():
    for trials in (1, 7, 50):
        for successes in range(trials + 1):
            low, high = wilson_interval(successes, trials)
            assert 0.0 <= low <= successes / trials + 1e-12
            assert successes / trials - 1e-12 <= high <= 1.0
            assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_intervals_of_a_mean_are_reproducible_contain_the_mean_and_shrink_with_the_root_of_the_count():
    rng = np.random.default_rng(1)
    small, large = rng.normal(size=100), rng.normal(size=10_000)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state must stay as it is
    low, high = mean_interval(small)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert (low, high) == mean_interval(small)
    assert low < small.mean() < high
    # the normal interval of a mean: 2 * 1.96 * std / sqrt(n)
    assert high - low == pytest.approx(3.92 * small.std() / 10, rel=0.1)
    wide = np.diff(mean_interval(large, resamples=500))[0]
    assert wide == pytest.approx(3.92 * large.std() / 100, rel=0.15)


def test_an_interval_of_very_many_episodes_takes_little_memory():
    values = (np.arange(50_000) % 2).astype(np.float64)
    tracemalloc.start()
    low, high = mean_interval(values, resamples=200)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 200 resamples at once are 160 MB, in indices and in values again
    assert most < 50e6
    # 3.92 standard deviations of 0.5 / sqrt(50,000)
    assert high - low == pytest.approx(0.00877, rel=0.2)
    # the very resamples that are drawn at once
    drawn = values[np.random.default_rng(0).integers(0, 50_000, (200, 50_000))].mean(1)
    assert (low, high) == tuple(np.quantile(drawn, [0.025, 0.975]))


def test_intervals_of_a_mean_move_and_scale_with_their_values_and_grow_with_the_level():
    values = np.random.default_rng(2).exponential(size=30)
    low, high = mean_interval(values)
    assert mean_interval(10 * values + 3) == pytest.approx((10 * low + 3, 10 * high + 3))
    assert mean_interval(np.full(5, 2.0)) == (2.0, 2.0)
    wider = mean_interval(values, level=0.99)
    assert wider[0] < low < high < wider[1]


def observations(n):
    rng = np.random.default_rng(0)
    return {"observation": rng.normal(size=(n, 3)), "achieved_goal": np.zeros((n, 2)), "desired_goal": np.ones((n, 2))}


def test_the_policy_is_the_mode_and_draws_nothing(make_loss):
    loss = make_loss()
    state = torch.get_rng_state()
    policy, seen = ActorPolicy(loss), observations(5)
    actions = policy(seen)
    np.testing.assert_array_equal(policy(seen), actions)
    torch.testing.assert_close(torch.get_rng_state(), state)
    assert actions.shape == (5, 2)
    assert actions.dtype == np.float32
    inputs = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in seen.items()}
    params = loss.actor_network_params
    with params.to_module(loss.actor_network, preserve_module_state=False), torch.no_grad():
        loc, _ = loss.actor_network[0].module(inputs["observation"], inputs["desired_goal"])
    np.testing.assert_allclose(actions, loc.numpy(), rtol=1e-6)


def test_the_policy_follows_the_parameters_as_they_are_trained(make_loss):
    loss = make_loss()
    policy, seen = ActorPolicy(loss), observations(3)
    before = policy(seen)
    with torch.no_grad():
        for parameter in loss.actor_network_params.parameters():
            parameter.add_(0.5)
    assert np.abs(policy(seen) - before).min() > 0


class Head(torch.nn.Module):
    """A constant location; the scale is 1."""

    def __init__(self, loc):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(loc))

    def forward(self, observation, desired_goal):
        loc = self.loc.expand(len(observation), -1)
        return loc, torch.ones_like(loc)


def actor_only(loc, distribution_class, key="action"):
    actor = ProbabilisticActor(
        TensorDictModule(Head(loc), ["observation", "desired_goal"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[key],
        distribution_class=distribution_class,
    )
    return AWRActorLoss(actor)


def test_actions_are_clipped():
    policy = ActorPolicy(actor_only([7.0, -3.0, 0.5], IndependentNormal))
    np.testing.assert_array_equal(policy(observations(2)), [[1.0, -1.0, 0.5]] * 2)


def test_a_squashed_distribution_and_another_action_key_work_too():
    policy = ActorPolicy(actor_only([0.0, 1.0], TanhNormal, "act"), action_key="act")
    np.testing.assert_allclose(policy(observations(4)), [[0.0, np.tanh(1.0)]] * 4, atol=1e-6)


def test_actions_are_clipped_to_the_bounds_of_the_actor_or_to_a_range_that_is_given():
    from torchrl.data import Bounded

    from torchrl_smore.modules import goal_specs, make_networks

    observation, _ = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)
    low, high = torch.tensor([-2.0, 1.0]), torch.tensor([2.0, 5.0])
    actor = make_networks(observation, Bounded(low, high, (2,)), hidden=(4,)).actor
    trunk = actor.module[0].module.trunk
    with torch.no_grad():
        trunk.layers[-1].weight.zero_()
        trunk.layers[-1].bias.copy_(torch.tensor([-50.0, 50.0]))
    policy = ActorPolicy(AWRActorLoss(actor))
    np.testing.assert_allclose(policy(observations(2)), [[-2.0, 5.0]] * 2)
    wide = ActorPolicy(actor_only([7.0, -3.0], IndependentNormal), action_range=((-2.0, -1.0), (6.0, 1.0)))
    np.testing.assert_array_equal(wide(observations(2)), [[6.0, -1.0]] * 2)
