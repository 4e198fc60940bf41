"""What a run has learnt, measured on its own data: the numbers that ``diagnose.py`` writes down.

Everything here follows from the data and the task alone. A row is *moving* once the achieved goal has moved since the
start of its trajectory, or moves in this step, by more than a share of the task's threshold; it is *at the goal* where
the goal is reached before its step. Of manipulation, the rows before are those before contact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_smore import TrajectoryStore
from torchrl_smore.data import standardization
from torchrl_smore.envs import EnvPool, Task
from torchrl_smore.functional.baselines.iql import sql_weight
from torchrl_smore.functional.losses import awr_weight
from torchrl_smore.modules import ContaminatedNormal
from torchrl_smore.objectives import GCSQLLoss
from torchrl_smore.reports import effective_sample_size, rank_correlation
from torchrl_smore.trainers import ActorPolicy

PHASES = ("before", "moving", "at_goal")
OUTCOMES = ("reached", "never moved", "reached and left", "farther than at the start", "short of the goal")
BEST_SHARE = 0.1  # of the trajectories that stand in for experts where the data name none
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BEYOND = 5.0  # standard deviations
_MOST_ENVS = 50  # at a time, of which one with a Fetch robot takes 11 MB

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Groups:
    """Whose each trajectory is.

    ``names`` of the groups, ``of`` the number of each trajectory's group ``[K]``, ``expert`` the number of the experts'
    group, ``known`` whether the data say so or the best trajectories by return stand in.
    """

    names: tuple[str, ...]
    of: Tensor
    expert: int
    known: bool


def find_groups(store: TrajectoryStore, gamma: float) -> Groups:
    """Trajectories by behaviour; where no behaviour is named ``expert``, the best tenth by return and the others.

    Args:
        store: the data.
        gamma: discount of the return, in ``[0, 1]``.
    """
    parts = store.meta.get("composition", [])
    labels = [part.get("behaviour", "unknown") for part in parts for _ in range(part["num_trajectories"])]
    if "expert" in labels:
        names = tuple(dict.fromkeys(labels))
        return Groups(names, torch.tensor([names.index(label) for label in labels]), names.index("expert"), True)
    returns = store.discounted_returns(gamma)
    best = returns.argsort(descending=True, stable=True)[: max(1, round(BEST_SHARE * len(returns)))]
    of = torch.ones(len(returns), dtype=torch.long)
    # a trajectory that never reaches its goal is nobody's expert
    of[best[returns[best] > 0.0]] = 0
    return Groups(("best", "others"), of, 0, False)


def moving_mask(data: TensorDictBase, threshold: float, share: float) -> Tensor:
    """Whether the achieved goal has moved since the trajectory's start, or moves in this step.

    Args:
        data: TED layout with ``traj_start``, batch size ``[N]``.
        threshold: of the task, in the unit of the goal.
        share: of the threshold that counts as a movement, not negative.

    Returns:
        Bool, shape ``[N]``.
    """
    here = data["achieved_goal"]
    since = (here - here[data["traj_start"]]).norm(dim=-1)
    now = (data["next", "achieved_goal"] - here).norm(dim=-1)
    return torch.maximum(since, now) > share * threshold


def phase_of(at_goal: Tensor, moving: Tensor) -> Tensor:
    """Position in :data:`PHASES` of each row, int64."""
    return torch.where(at_goal, 2, moving.long())


def steps_to_goal(data: TensorDictBase) -> Tensor:
    """Steps until the stored goal is first reached, int64 ``[N]``: 1 where this one does; 0 afterwards, or never."""
    rows = torch.arange(data.shape[0])
    reached = (data["next", "reward"] > 0).reshape(-1)
    first = torch.full_like(rows, data.shape[0]).scatter_reduce_(0, data["traj_start"][reached], rows[reached], "amin")[
        data["traj_start"]
    ]
    return torch.where((first < data.shape[0]) & (rows <= first), first - rows + 1, 0)


def has_score(loss: Any) -> bool:
    """Whether a loss tells an advantage of the dataset's action over a value."""
    # of WGCSL the name says which target its own has
    return callable(getattr(loss, "advantage", None)) and getattr(loss, "value_target", "dataset") == "dataset"


def effective_temperature(loss: Any) -> float:
    """What multiplies an advantage in the unit of the score, whichever unit the loss measures it in; 0 without any."""
    return float(getattr(loss, "temperature", 0.0)) * loss.advantage_scale


def row_weights(loss: Any, advantage: Tensor) -> Tensor | None:
    """Weights of the regression, shape of ``advantage``; ``None`` for an actor that is not a weighted regression."""
    if isinstance(loss, GCSQLLoss):
        return sql_weight(advantage, loss.weight_clip)
    if getattr(loss, "actor", "awr") != "awr":
        return None
    return awr_weight(advantage, effective_temperature(loss), loss.weight_clip)


@torch.no_grad()
def state_value(loss: Any, batch: TensorDictBase) -> Tensor:
    """The value network at the goals of a batch, shape ``[*B]``."""
    network = loss.value_network
    with loss.value_network_params.to_module(network, preserve_module_state=False):
        return network(batch.select(*network.in_keys))[loss.tensor_keys.value].squeeze(-1)


def weight_classes(classes: dict[str, list[Any]], advantage: Tensor, weight: Tensor, clip: float) -> list[Row]:
    """What the weights of each class of rows add up to.

    Args:
        classes: for each column that tells classes apart, a value for each of the n rows.
        advantage: shape ``[n]``.
        weight: shape ``[n]``, not negative.
        clip: the largest weight.

    Returns:
        For each class, with the columns of ``classes``: ``rows``, its share of all; mean ``advantage``, its standard
        deviation and ``advantage_p95``; ``positive``, the share of rows whose advantage is; mean ``weight``;
        ``weight_share``, its share of the sum of weights; ``effective``, its effective sample size over its rows;
        ``clipped``, the share of its weights at the clip.
    """
    advantage, weight = advantage.double(), weight.double()
    keys, total = list(zip(*classes.values())), float(weight.sum())
    members: dict[tuple[Any, ...], list[int]] = {}
    for position, key in enumerate(keys):
        members.setdefault(key, []).append(position)
    found = []
    for key in sorted(members, key=str):
        chosen = torch.tensor(members[key])
        own, mass = advantage[chosen], weight[chosen]
        numbers = {
            "rows": len(chosen) / len(keys),
            "advantage": float(own.mean()),
            "advantage_std": float(own.std(correction=0)),
            "advantage_p95": float(np.quantile(own, 0.95)),
            "positive": float((own > 0).double().mean()),
            "weight": float(mass.mean()),
            "weight_share": float(mass.sum()) / total if total else 0.0,
            "effective": effective_sample_size(mass.numpy()) / len(chosen) if mass.any() else 0.0,
            "clipped": float((mass >= clip).double().mean()),
        }
        found.append(dict(zip(classes, key)) | numbers)
    return found


def quantile_rows(quantity: str, values: Tensor, groups: Groups, group: Tensor) -> list[Row]:
    """Quantiles of a quantity in each group: rows of ``quantity, group, quantile, value``."""
    found = []
    for number, name in enumerate(groups.names):
        own = values[group == number].double()
        if len(own):
            found += [
                {"quantity": quantity, "group": name, "quantile": level, "value": float(np.quantile(own, level))}
                for level in QUANTILES
            ]
    return found


def along_trajectories(remaining: Tensor, score: Tensor, value: Tensor) -> tuple[list[Row], dict[str, float]]:
    """Score and value against the steps that remain to the goal.

    Args:
        remaining: at least 1, int64 ``[n]``.
        score: shape ``[n]``.
        value: shape ``[n]``.

    Returns:
        Mean and standard deviation by steps that remain; and over all rows the rank correlation of score and value
        with nearness, ``value_slope``, what the value gains with each step nearer (least squares), and ``score_noise``,
        the standard deviation of the score among rows with equally many steps to go.
    """
    steps = remaining.double()
    rows = []
    spread = torch.zeros((), dtype=torch.float64)
    for count in remaining.unique().tolist():
        own = remaining == count
        moments = {}
        for name, numbers in (("score", score[own].double()), ("value", value[own].double())):
            moments |= {f"{name}_mean": float(numbers.mean()), f"{name}_std": float(numbers.std(correction=0))}
        spread += moments["score_std"] ** 2 * int(own.sum())
        rows.append({"remaining": count, "rows": int(own.sum()), **moments})
    away = steps - steps.mean()
    slope = -(away * value.double()).sum() / away.square().sum() if len(rows) > 1 else torch.tensor(float("nan"))
    nearness = (-steps).numpy()
    return rows, {
        "score_rank_correlation": rank_correlation(score.numpy(), nearness),
        "value_rank_correlation": rank_correlation(value.numpy(), nearness),
        "value_slope": float(slope),
        "score_noise": float((spread / len(steps)).sqrt()),
    }


@torch.no_grad()
def noise_shares(loss: Any, batch: TensorDictBase) -> Tensor | None:
    """Probability of each action to be noise by the actor's likelihood, ``[n]``; ``None`` where that knows no noise."""
    actor = loss.actor_network
    with loss.actor_network_params.to_module(actor, preserve_module_state=False):
        policy = actor.get_dist(batch.select(*actor.in_keys))
    return policy.noise_share(batch["action"]) if isinstance(policy, ContaminatedNormal) else None


def phase_rows(
    phase: Tensor, action: Tensor, policy_action: Tensor, gap: Tensor | None = None, noise: Tensor | None = None
) -> list[Row]:
    """Of each phase: how near the policy is to the expert, and whether the score prefers the expert to chance.

    Args:
        phase: position in :data:`PHASES`, int64 ``[n]``.
        action: the expert's, ``[n, A]``.
        policy_action: the policy's in the same states, ``[n, A]``.
        gap: score of the expert's action less that of a random one, ``[n]``; ``None`` where there is no score.
        noise: see :func:`noise_shares`.

    Returns:
        ``phase``, ``rows``, mean ``cosine`` of both actions, ``error`` (root mean square over components), of a
        likelihood with noise its mean ``noise``, and with a score ``preferred`` (the share of positive gaps), mean
        ``gap`` and ``gap_std``. Phases without a row are left out.
    """
    cosine = torch.nn.functional.cosine_similarity(action.double(), policy_action.double(), dim=-1)
    error = (action - policy_action).double().square().mean(-1)
    found = []
    for number, name in enumerate(PHASES):
        own = phase == number
        if not own.any():
            continue
        row: Row = {"phase": name, "rows": int(own.sum()), "cosine": float(cosine[own].mean())}
        row["error"] = float(error[own].mean().sqrt())
        if noise is not None:
            row["noise"] = float(noise[own].double().mean())
        if gap is not None:
            numbers = gap[own].double()
            row["preferred"] = float((numbers > 0).double().mean())
            row |= {"gap": float(numbers.mean()), "gap_std": float(numbers.std(correction=0))}
        found.append(row)
    return found


def input_rows(task: Task, data: TensorDictBase) -> list[Row]:
    """Of each input column: mean, standard deviation, the share of rows beyond 5 of them, and the farthest."""
    statistics = standardization(data)
    # goals are measured on achieved ones, see standardization; those that are pursued are what the networks read
    columns = {"observation": task.observation_columns, "desired_goal": task.goal_columns}
    rows = []
    for key, names in columns.items():
        mean, std = statistics[key]
        for column, name in enumerate(names):
            distance = ((data[key][:, column] - mean[column]) / std[column]).abs()
            rows.append(
                {
                    "input": key,
                    "column": name,
                    "mean": float(mean[column]),
                    "std": float(std[column]),
                    "beyond": float((distance > _BEYOND).double().mean()),
                    "largest": float(distance.max()),
                }
            )
    return rows


def expert_batch(data: TensorDictBase, rows: Tensor) -> TensorDict:
    """Rows with their stored goals, as a loss reads them."""
    batch = {key: data[key][rows] for key in ("observation", "action", "desired_goal")}
    empty = TensorDict({}, batch_size=[len(rows)])
    return TensorDict({**batch, "actor_goal": batch["desired_goal"], "q": empty}, batch_size=[len(rows)])


def policy_actions(loss: Any, batch: TensorDictBase) -> Tensor:
    """The policy's actions in the states of a batch, ``[n, A]``."""
    return torch.from_numpy(ActorPolicy(loss)({key: batch[key].numpy() for key in ("observation", "desired_goal")}))


def run_episodes(
    task: Task, policy: ActorPolicy, seeds: range, *, action_noise: float, share: float
) -> tuple[list[Row], list[Row]]:
    """Runs one episode of each seed and says where it ends.

    Args:
        task: the task.
        policy: acts.
        seeds: of the episodes.
        action_noise: of the environment, as in training.
        share: of the threshold that counts as a movement.

    Returns:
        Of each episode ``seed``, ``outcome`` (one of :data:`OUTCOMES`), ``moved`` (the largest distance of the achieved
        goal from where it began), and the distance to the goal at the ``start``, at its ``closest`` and at the
        ``final`` step; and of each step the ``seed``, ``step`` and ``distance``.
    """
    episodes, steps = [], []
    with EnvPool(task, min(len(seeds), _MOST_ENVS), action_noise=action_noise) as pool:
        parts = [_run(pool, policy, seeds[i : i + pool.num_envs]) for i in range(0, len(seeds), pool.num_envs)]
    distance, success, moved = map(np.concatenate, zip(*parts))
    for seed, own, met, movement in zip(seeds, distance, success, moved):
        place = {"start": float(own[0]), "closest": float(own.min()), "final": float(own[-1])}
        outcome = outcome_of(met, float(movement) > share * task.threshold, place["start"], place["final"])
        episodes.append({"seed": seed, "outcome": outcome, "moved": float(movement), **place})
        steps += [{"seed": seed, "step": step, "distance": float(value)} for step, value in enumerate(own)]
    return episodes, steps


def _run(pool: EnvPool, policy: ActorPolicy, seeds: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances ``[k, T+1]``, successes ``[k, T]`` and movements ``[k]`` of k episodes, at most ``num_envs``."""
    # a pool steps all of its environments: the spare ones repeat the last episode and are not counted
    observation = pool.reset([*seeds, *[seeds[-1]] * (pool.num_envs - len(seeds))])
    begun = observation["achieved_goal"].copy()
    distances, moved, reached = [], np.zeros(pool.num_envs), []
    for step in range(pool.task.horizon + 1):
        if step:
            observation, reward = pool.step(policy(observation))
            reached.append(reward > 0)
        distances.append(np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"], axis=-1))
        moved = np.maximum(moved, np.linalg.norm(observation["achieved_goal"] - begun, axis=-1))
    kept = len(seeds)
    return np.stack(distances, 1)[:kept], np.stack(reached, 1)[:kept], moved[:kept]


def outcome_of(reached: Iterable[bool], moved: bool, start: float, final: float) -> str:
    """One of :data:`OUTCOMES` for an episode.

    Args:
        reached: of each step, whether the goal is reached after it.
        moved: whether the achieved goal moved at all.
        start: distance to the goal at the start.
        final: distance to the goal at the end.
    """
    met = list(reached)
    cases = (met[-1], not moved, any(met), final > start, True)
    return next(outcome for outcome, holds in zip(OUTCOMES, cases) if holds)
