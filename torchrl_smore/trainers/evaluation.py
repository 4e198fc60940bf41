"""Evaluation over fixed-horizon episodes in a pool of environments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from tensordict import NestedKey, TensorDict
from tensordict.utils import unravel_key
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from torchrl_smore._errors import check_whole
from torchrl_smore.objectives._networks import action_bounds
from torchrl_smore.trainers.modes import in_mode

Observation = Mapping[str, np.ndarray]
Policy = Callable[[Observation], np.ndarray]

#: The two discounts that the paper's tables mix; both are always reported.
GAMMAS = (0.98, 0.99)
_DRAWN_AT_ONCE = 1 << 20  # numbers of a bootstrap


class Pool(Protocol):
    """What evaluation needs of an environment pool of n environments; :class:`torchrl_smore.envs.EnvPool` is one."""

    num_envs: int

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Starts one episode in each environment, from n seeds."""

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray]:
        """Steps them by actions ``[n, A]``; returns observations and 0/1 rewards ``[n]``."""


class ActorPolicy:
    """The deterministic policy of a loss module's ``actor_network``, on batches of numpy observations.

    Actions are the distribution's mode, clipped to the range of actions. The network acts in evaluation mode, which is
    given back, and keeps its state. Which of its keys is which observation is read from ``loss.tensor_keys``, whatever
    ``set_keys`` has made of them; a key that is not named there goes by its own name or, nested, by the last part of
    it.

    Args:
        loss: has ``actor_network`` and ``actor_network_params``.
        action_key: key that the actor writes; ``None``: ``loss.tensor_keys.action``, or ``"action"`` where a loss has
            none.
        action_range: smallest and largest action, a number or one for each component; ``None``: the bounds that
            the actor tells, as a :class:`~torchrl_smore.modules.GaussianHead` does, or -1 and 1.
    """

    def __init__(
        self,
        loss: LossModule,
        action_key: NestedKey | None = None,
        action_range: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
    ) -> None:
        self.loss = loss
        self.action_range = action_range_of(loss) if action_range is None else action_range
        self.action_key = action_key or _action_key(loss)

    @torch.no_grad()
    def __call__(self, observation: Observation) -> np.ndarray:
        """Actions ``[n, A]`` for observations ``[n, ...]``: pictures as uint8, everything else becomes float32.

        Raises:
            KeyError: if the actor reads something that no observation is.
        """
        network, params = self.loss.actor_network, self.loss.actor_network_params
        device = next(iter(self.loss.parameters())).device
        names = {key: self._name(key, observation) for key in network.in_keys}
        rows = len(next(iter(observation.values())))
        batch = TensorDict({}, batch_size=[rows])
        for key, name in names.items():
            rows_of_key = np.asarray(observation[name])
            # pictures stay what they are until they are on their device
            dtype = np.uint8 if rows_of_key.dtype == np.uint8 else np.float32
            batch.set(key, torch.as_tensor(np.ascontiguousarray(rows_of_key, dtype=dtype)))
        batch = batch.to(device)
        # an encoder that the actor shares with other networks; one of its own is within it
        encoder = None if getattr(self.loss, "actor_sight", "own") == "own" else self.loss.encoder_network
        with (
            in_mode(False, network, *([] if encoder is None else [encoder])),
            set_exploration_type(ExplorationType.DETERMINISTIC),
        ):
            if encoder is not None:
                batch = self.loss.encoded(batch)
            with params.to_module(network, preserve_module_state=False):
                action = network(batch).get(self.action_key)
        low, high = (torch.as_tensor(bound, dtype=action.dtype, device=device) for bound in self.action_range)
        return action.clamp(low, high).cpu().numpy()

    def _name(self, key: NestedKey, observation: Observation) -> str:
        """The observation that is meant by a key of the network."""
        keys = {name: own for name, own in vars(self.loss.tensor_keys).items() if own is not None}
        named = [name for name, own in keys.items() if unravel_key(own) == unravel_key(key)]
        last = key if isinstance(key, str) else key[-1]
        for name in (*named, key, last):
            if name in observation:
                return str(name)
        raise KeyError(f"actor_network reads {key!r}, and the environments give {', '.join(map(repr, observation))}.")


def action_range_of(loss: LossModule) -> tuple[float | list[float], float | list[float]]:
    """Smallest and largest action of a loss's actor as plain numbers: one for each component, or -1 and 1.

    They are the bounds that losses see: ``low`` and ``high`` of a :class:`~torchrl_smore.modules.GaussianHead`, else of
    its :class:`torchrl.modules.TanhModule`, else of the arguments of its distribution, as of a
    :class:`torchrl.modules.TanhNormal`, else of its spec.
    """
    actor = loss.actor_network
    bounds = None if actor is None else action_bounds(actor, loss.actor_network_params, _action_key(loss))
    return (-1.0, 1.0) if bounds is None else (bounds[0].tolist(), bounds[1].tolist())


def _action_key(loss: LossModule) -> NestedKey:
    """Where the actor of a loss writes actions; some of TorchRL's, such as its DDPG, have no key of that name."""
    key: NestedKey = getattr(loss.tensor_keys, "action", "action")
    return key


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of :meth:`Evaluator.run`: a mean and a 95% interval for each metric, and the episodes behind them.

    Attributes:
        metrics: ``success_last`` and ``success_any`` (rates), ``discounted_return_<gamma>``, ``return_over_max`` (in
            ``[0, 1]``, at the largest gamma), ``final_distance`` (in the unit of the goal).
        intervals: lower and upper end by the same names: Wilson's for the rates, else by bootstrap.
        episodes: how many were played.
        per_episode: the numbers behind them, shape ``[episodes]`` each.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    episodes: int
    per_episode: dict[str, np.ndarray]

    def summary(self) -> dict[str, Any]:
        """Metrics, ``episodes`` and ``intervals`` as plain values for JSON."""
        intervals = {key: list(value) for key, value in self.intervals.items()}
        return {**self.metrics, "episodes": self.episodes, "intervals": intervals}


class Evaluator:
    """Runs a policy for a fixed number of episodes with fixed seeds.

    Every episode runs exactly ``horizon`` steps and never stops on success. Success is judged after each step; the
    return is ``sum_t gamma^t r_t`` with ``r_t = 1`` where step t ends at the goal; the final distance is Euclidean,
    between achieved goal and goal after the last step, in the task's unit. An episode in which an action was not finite
    is NaN in every number, and so is their mean.

    Args:
        pool: environments.
        episodes: number of episodes, positive.
        horizon: steps of an episode, positive; ``None``: those of ``pool.task``, or 50 for a pool that has no task.
        first_seed: episode e is reset with ``first_seed + e``; at least 0.
        gammas: discounts to report, at least one, in ``(0, 1]``, that differ in their first 6 digits; ``None``: those
            of ``pool.task``, or 0.98 and 0.99.

    Raises:
        ValueError: for a number out of its range.
        TypeError: for a count that is no whole number.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        episodes: int = 50,
        horizon: int | None = None,
        first_seed: int = 10_000,
        gammas: Sequence[float] | None = None,
    ) -> None:
        task = getattr(pool, "task", None)
        self.pool = pool
        self.episodes = episodes
        self.horizon: int = getattr(task, "horizon", 50) if horizon is None else horizon
        self.first_seed = first_seed
        self.gammas = tuple(getattr(task, "gammas", GAMMAS) if gammas is None else gammas)
        check_plan(episodes, self.horizon, first_seed, self.gammas)

    def run(self, policy: Policy) -> Evaluation:
        """Evaluates ``policy``: a function of a batch of observations that returns actions in ``[-1, 1]``."""
        return self.run_all([policy])[0]

    def run_all(self, policies: Sequence[Policy]) -> list[Evaluation]:
        """Evaluates several policies side by side in the pool, each on the same episodes.

        Policies that are modules act in evaluation mode, which is given back.

        Raises:
            ValueError: without a policy, or for actions that are not one row of numbers for each observation.
        """
        if not policies:
            raise ValueError("expected at least one policy to evaluate, got none.")
        with in_mode(False, *[policy for policy in policies if isinstance(policy, nn.Module)]):
            return self._run_all(policies)

    def _run_all(self, policies: Sequence[Policy]) -> list[Evaluation]:
        # (policy, seed of the episode), policy by policy, so that a policy's share of a batch is one slice
        seeds = range(self.first_seed, self.first_seed + self.episodes)
        runs = [(number, seed) for number in range(len(policies)) for seed in seeds]
        parts = [
            self._batch(policies, runs[start : start + self.pool.num_envs])
            for start in range(0, len(runs), self.pool.num_envs)
        ]
        reward = np.concatenate([part[0] for part in parts]).reshape(len(policies), self.episodes, -1)
        distance = np.concatenate([part[1] for part in parts]).reshape(len(policies), self.episodes)
        return [self._describe(*own) for own in zip(reward, distance)]

    def _batch(self, policies: Sequence[Policy], runs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Rewards ``[k, horizon]`` and final distances ``[k]`` of k episodes, at most ``num_envs``."""
        # a pool steps all of its environments: the spare ones repeat the last episode and are not counted
        padded = [*runs, *[runs[-1]] * (self.pool.num_envs - len(runs))]
        counts = Counter(number for number, _ in padded)
        stops = list(accumulate(counts.values()))
        shares = [(policies[n], slice(stop - counts[n], stop)) for n, stop in zip(counts, stops)]
        observation = self.pool.reset([seed for _, seed in padded])
        rewards, lost = [], np.zeros(len(padded), dtype=bool)
        for _ in range(self.horizon):
            parts = [
                _acted(policy, {key: rows[share] for key, rows in observation.items()}) for policy, share in shares
            ]
            actions = np.concatenate(parts)
            broken = ~np.isfinite(actions).all(-1)
            if broken.any():
                # a pool takes no such action, and other policies go on
                lost, actions = lost | broken, np.where(broken[:, None], np.zeros_like(actions), actions)
            observation, reward = self.pool.step(actions)
            rewards.append(np.asarray(reward, dtype=np.float64).reshape(-1))
        distance = np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"], axis=-1)
        distance = np.where(lost, np.nan, distance)
        return np.where(lost[:, None], np.nan, np.stack(rewards, 1))[: len(runs)], distance[: len(runs)]

    def _describe(self, reward: np.ndarray, distance: np.ndarray) -> Evaluation:
        discounts = {gamma: gamma ** np.arange(self.horizon) for gamma in self.gammas}
        largest = max(self.gammas)
        per_episode = {
            "success_last": reward[:, -1],
            "success_any": reward.max(1),
            **{f"discounted_return_{gamma:g}": reward @ discount for gamma, discount in discounts.items()},
            "return_over_max": reward @ discounts[largest] / discounts[largest].sum(),
            "final_distance": distance,
        }
        metrics = {key: float(values.mean()) for key, values in per_episode.items()}
        intervals = {
            key: wilson_interval(values.sum(), len(values)) if key.startswith("success") else mean_interval(values)
            for key, values in per_episode.items()
        }
        return Evaluation(metrics, intervals, len(distance), per_episode)


def _acted(policy: Policy, observation: Observation) -> np.ndarray:
    """Actions of a policy, one row for each observation: of several policies one's would go to another's episodes."""
    actions = np.asarray(policy(observation))
    rows = len(next(iter(observation.values())))
    if actions.ndim != 2 or len(actions) != rows or actions.dtype.kind not in "fiu":
        raise ValueError(
            f"expected actions [{rows}, A], one row of real numbers for each observation, got {list(actions.shape)} of "
            f"{actions.dtype} from {policy!r}."
        )
    return actions


def check_plan(episodes: int, horizon: int | None, first_seed: int, gammas: Sequence[float] | None) -> None:
    """Refuses what an evaluator cannot do.

    Args:
        episodes: of each policy.
        horizon: steps of an episode; ``None``: those of a task.
        first_seed: of the first episode.
        gammas: discounts of the returns; ``None``: those of a task.

    Raises:
        ValueError: if a count is not positive, a seed negative, there is no discount, one outside ``(0, 1]``, or two
            with one name.
        TypeError: for a count that is no whole number.
    """
    steps = 1 if horizon is None else check_whole("horizon", horizon)
    if check_whole("episodes", episodes) < 1 or steps < 1:
        raise ValueError(f"episodes and horizon must be positive, got {episodes} and {horizon}.")
    if check_whole("first_seed", first_seed) < 0:
        raise ValueError(f"first_seed must be at least 0, got {first_seed}.")
    if gammas is None:
        return
    if not gammas or not all(0.0 < gamma <= 1.0 for gamma in gammas):
        raise ValueError(f"gammas must be one or more discounts in (0, 1], got {tuple(gammas) or 'none'}.")
    if len({f"{gamma:g}" for gamma in gammas}) < len(gammas):
        raise ValueError(f"gammas must differ in their first 6 digits, which name their returns, got {tuple(gammas)}.")


def mean_metrics(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Mean of each metric over evaluations, of which there is at least one; they have the same metrics."""
    return {key: float(np.mean([own.metrics[key] for own in evaluations])) for key in evaluations[0].metrics}


def shown_return(metrics: Iterable[str]) -> str | None:
    """Which of some metrics is the return that people are shown: at 0.99, or else at the largest discount there is."""
    returns = {name.rpartition("_")[2]: name for name in metrics if "discounted_return_" in name}
    return returns.get("0.99") or max(returns.items(), key=lambda item: float(item[0]), default=(None, None))[1]


def wilson_interval(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a rate (Wilson 1927); stays inside ``[0, 1]``.

    Args:
        successes: how many trials succeeded, in ``[0, trials]``; or NaN, where that is not known of all.
        trials: positive.
        z: quantile of the standard normal; by default that of a 95% interval.

    Returns:
        Lower and upper end; NaN for NaN.
    """
    if math.isnan(successes):
        # max() and min() would drop it
        return math.nan, math.nan
    rate, z2 = successes / trials, z * z
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
    # the ends are exactly 0 and 1 where no or every trial succeeds, which rounding would miss by an ulp
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == trials else min(1.0, centre + half)


def mean_interval(values: np.ndarray, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; always the same resamples, so that it is reproducible.

    Args:
        values: shape ``[n]``, n at least 1.
        level: of the interval, in ``(0, 1)``.
        resamples: how many means are drawn.

    Returns:
        Lower and upper end, in the unit of ``values``.
    """
    return bootstrap_interval(values, np.mean, level, resamples)


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[..., np.ndarray], level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic, as :func:`mean_interval` is of the mean.

    Args:
        values: shape ``[n]``, n at least 1.
        statistic: ``statistic(rows, axis=1)`` of resamples ``[k, n]`` is ``[k]``, such as ``numpy.median``.
        level: of the interval, in ``(0, 1)``.
        resamples: how many are drawn.

    Returns:
        Lower and upper end.
    """
    rng = np.random.default_rng(0)
    # some at a time: all of 100,000 episodes at once would be 3 GB
    rows = max(1, _DRAWN_AT_ONCE // len(values))
    drawn = (rng.integers(0, len(values), (min(rows, resamples - i), len(values))) for i in range(0, resamples, rows))
    found = np.concatenate([statistic(values[chosen], axis=1) for chosen in drawn])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
