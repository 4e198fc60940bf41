"""Episodes of a behaviour policy, run in lockstep; every episode depends on ``(seed, number)`` alone."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchrl_smore.envs.batch import BatchEnv
from torchrl_smore.envs.experts import (
    ActorExpert,
    Expert,
    PlanningExpert,
    begin_episodes,
    is_landing_model,
    read_policy,
)
from torchrl_smore.envs.experts.actor_file import Actor, without_zero_columns
from torchrl_smore.envs.tasks import Task

Array = NDArray[Any]


@dataclass(frozen=True)
class Behaviour:
    """A behaviour policy.

    Attributes:
        kind: the task's expert, a half-trained one, or actions drawn uniformly from ``[-1, 1]``, independent in each
            step.
        noise: standard deviation of Gaussian noise added to the expert's actions, which are then clipped.
        random_prob: probability, in each step, that a uniform action replaces the expert's.
        policy: file of the trained actor that acts, or of a landing model for FetchSlide's memoryless expert;
            ``None``: the scripted expert.
    """

    kind: Literal["expert", "medium", "random"]
    noise: float = 0.0
    random_prob: float = 0.0
    policy: str | None = None

    def controller(self, task: Task) -> Expert | PlanningExpert | None:
        """What acts, or ``None`` for uniform actions.

        Raises:
            ValueError: if the task has no such policy, or ``policy`` is no actor for this task.
        """
        if self.kind == "random":
            return None
        if self.policy is None:
            if self.kind == "medium":
                raise ValueError(
                    f"medium trajectories need medium_policy, a half-trained actor. One is made by "
                    f"python recipes/train_expert.py task={task.name}"
                )
            return task.make_expert()
        if task.make_teacher is not None and is_landing_model(read_policy(self.policy)):
            return task.make_teacher(Path(self.policy))
        return ActorExpert(task_actor(task, self.policy))


def task_actor(task: Task, path: str | Path) -> Actor:
    """The actor of a file, for a task.

    Args:
        task: the task. Of an actor that saw its :attr:`Task.zero_columns` too, they are taken off.
        path: a file of :func:`~torchrl_smore.envs.experts.read_policy`.

    Raises:
        ValueError: if the file is missing, damaged, or holds no actor for this task: of other widths, or trained in an
            environment of other actions than the task's own.
    """
    actor = read_policy(path)
    if actor.observation_dim == task.observation_dim + task.zero_columns:
        actor = without_zero_columns(actor, task.zero_columns)
    found = ActorExpert(actor)
    widths = (found.observation_dim, found.action_dim)
    goals = {found.goal_dim, found.achieved_dim} - {0, task.goal_dim}
    if widths != (task.observation_dim, task.action_dim) or goals:
        raise ValueError(
            f"{path} is no actor for {task.name}: expected {task.observation_dim} observation columns, "
            f"{task.goal_dim} (or no) goal columns and {task.action_dim} action components, found {widths[0]}, "
            f"{min(goals, default=found.goal_dim)} and {widths[1]}."
        )
    if actor.bounds is not None:
        _check_bounds(task, path, actor.bounds)
    return actor


def _check_bounds(task: Task, path: str | Path, bounds: tuple[Array, Array]) -> None:
    """Refuses an actor whose actions are not those of the task's simulator: they would be scaled by another range."""
    with contextlib.closing(task.make_base_env()) as env:
        space: Any = env.unwrapped.action_space
        own = space.low, space.high
    if not all(np.allclose(given, expected, rtol=1e-6, atol=1e-6) for given, expected in zip(bounds, own)):
        given, expected = (f"{low.tolist()} to {high.tolist()}" for low, high in (bounds, own))
        raise ValueError(f"{path} is no actor for {task.name}, whose actions go from {expected}; its go from {given}.")


def run_episodes(
    task: Task, batch: BatchEnv, behaviour: Behaviour, seed: int, episodes: Sequence[int]
) -> dict[str, Array]:
    """Runs the episodes of the given numbers, ``batch.num_envs`` at a time.

    Args:
        task: supplies horizon, expert and success rule.
        batch: environments of that task.
        behaviour: the policy; stored actions are the ones it chose, before any noise of the environment.
        seed: seed of the whole collection.
        episodes: numbers of the episodes, k of them.

    Returns:
        float32 arrays ``observation [k, T+1, ds]``, ``achieved_goal [k, T+1, dg]``, ``desired_goal [k, dg]``,
        ``action [k, T, da]`` and ``reward [k, T]``.

    Raises:
        ValueError: if the expert's actions have another shape or are not finite, observations are not finite, or a goal
            does not stay for its episode.
    """
    width, expert = batch.num_envs, behaviour.controller(task)
    parts = [
        _lockstep(task, batch, expert, behaviour, seed, episodes[first : first + width])
        for first in range(0, len(episodes), width)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _lockstep(
    task: Task,
    batch: BatchEnv,
    expert: Expert | PlanningExpert | None,
    behaviour: Behaviour,
    seed: int,
    episodes: Sequence[int],
) -> dict[str, Array]:
    env_seeds, policy_seeds = zip(*(_episode_seeds(seed, episode) for episode in episodes), strict=True)
    observation = batch.reset(env_seeds)
    controller = None if expert is None else begin_episodes(expert, observation, env_seeds)
    policy = _Policy(task, behaviour, controller, [np.random.default_rng(policy_seed) for policy_seed in policy_seeds])
    states, actions = [observation], []
    for step in range(task.horizon):
        # copies, of which neither a policy nor a simulator changes what is stored
        action = policy({key: values.copy() for key, values in observation.items()}, step)
        observation = batch.step(action.copy())
        actions.append(action)
        states.append(observation)
    out = {key: np.stack([state[key] for state in states], axis=1) for key in ("observation", "achieved_goal")}
    goals = np.stack([state["desired_goal"] for state in states], axis=1)
    _check_episodes(task, episodes, {**out, "desired_goal": goals})
    out["desired_goal"] = goals[:, 0]
    out["action"] = np.stack(actions, axis=1)
    after = (out["observation"][:, 1:], out["achieved_goal"][:, 1:])
    return out | {"reward": task.succeeded(*after, out["desired_goal"][:, None]).astype(np.float32)}


def _check_episodes(task: Task, episodes: Sequence[int], seen: dict[str, Array]) -> None:
    """Refuses what no store can hold, before it is written.

    Raises:
        ValueError: naming the episode and the step after which an entry of ``seen`` ``[k, T+1, *]`` is not finite, or
            in which the goal changes.
    """
    for key, values in seen.items():
        for row, step in np.argwhere(~np.isfinite(values).all(-1))[:1].tolist():
            raise ValueError(f"{task.name}: {key} of episode {episodes[row]} is not finite after step {step}.")
    goals = seen["desired_goal"]
    for row, step in np.argwhere((goals != goals[:, :1]).any(-1))[:1].tolist():
        first, other = goals[row, 0].tolist(), goals[row, step].tolist()
        raise ValueError(
            f"{task.name}: the goal of episode {episodes[row]} changes in step {step}, from {first} to {other}: it "
            "must stay for the episode."
        )


class _Policy:
    """A behaviour with the random numbers of its episodes drawn in advance, each from its own generator."""

    def __init__(
        self, task: Task, behaviour: Behaviour, controller: Expert | None, generators: Sequence[np.random.Generator]
    ) -> None:
        shape = (task.horizon, task.action_dim)
        self._behaviour = behaviour
        self._name = f"the {behaviour.kind}{'' if behaviour.kind == 'expert' else ' policy'} of {task.name}"
        # all are drawn, whatever is used: the random numbers of one option do not shift those of another
        self._uniform = np.stack([g.uniform(-1.0, 1.0, shape) for g in generators]).astype(np.float32)
        self._noise = np.stack([behaviour.noise * g.standard_normal(shape) for g in generators])
        self._replace = np.stack([g.random(task.horizon) for g in generators]) < behaviour.random_prob
        self._controller = controller

    def __call__(self, observation: dict[str, Array], step: int) -> Array:
        if self._controller is None:
            return self._uniform[:, step]
        action = self._chosen(observation)
        if self._behaviour.noise > 0.0:
            action = action + self._noise[:, step]
        if self._behaviour.random_prob > 0.0:
            action = np.where(self._replace[:, step, None], self._uniform[:, step], action)
        # simulators clip: what is stored is what was executed
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _chosen(self, observation: dict[str, Array]) -> Array:
        """The controller's actions, in float64, of the shape of random ones.

        Raises:
            ValueError: if they have another shape or are not finite.
        """
        assert self._controller is not None
        action = np.asarray(self._controller(observation), dtype=np.float64)
        shape = self._uniform[:, 0].shape
        if action.shape != shape:
            raise ValueError(f"{self._name}: expected finite actions {list(shape)}, got {list(action.shape)}.")
        finite = np.isfinite(action).all(-1)
        if not finite.all():
            found = action[~finite][0].tolist()
            raise ValueError(f"{self._name}: expected finite actions {list(shape)}, got {found}.")
        return action


def _episode_seeds(seed: int, episode: int) -> tuple[int, int]:
    """Seeds of the environment and of the policy in an episode."""
    first, second = np.random.SeedSequence(entropy=seed, spawn_key=(episode,)).generate_state(2, np.uint64)
    return int(first), int(second)


def quality(reward: Array, gamma: float = 0.99) -> dict[str, float | None]:
    """What a behaviour achieved.

    Args:
        reward: 0 or 1 after each step of k episodes, ``[k, T]``.
        gamma: discount of the return, in ``(0, 1)``.

    Returns:
        ``success`` (share of episodes at the goal after the last step), ``discounted_return`` (mean),
        ``return_over_max`` (of the return of an episode at the goal from the first step on) and ``first_success``
        (median number of steps to the first success, over the episodes that have one; ``None`` without any).
    """
    discount = gamma ** np.arange(reward.shape[1])
    mean_return = float((reward.astype(np.float64) @ discount).mean())
    ever = reward.any(axis=1)
    return {
        "success": float(reward[:, -1].mean()),
        "discounted_return": mean_return,
        "return_over_max": mean_return / float(discount.sum()),
        "first_success": float(np.median(reward[ever].argmax(axis=1) + 1)) if ever.any() else None,
    }
