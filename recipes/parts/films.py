"""Films of episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parts import OPENGL
from torchrl_smore.envs import EnvPool, Task, render_episode
from torchrl_smore.envs.wrappers import disturb, noise_generator
from torchrl_smore.reports import write_gif

_FILM_STEPS = 100  # longest film, in steps


def seed_of_farthest_goal(task: Task, first_seed: int) -> int:
    """Of eight seeds the one whose goal is farthest at the start: there is most to see."""
    with EnvPool(task, 8) as pool:
        start = pool.reset(range(first_seed, first_seed + 8))
    return first_seed + int(np.linalg.norm(start["achieved_goal"] - start["desired_goal"], axis=-1).argmax())


def record_rollout(
    task: Task, policy: Callable[[Any], np.ndarray], first_seed: int, out: Path, *, goal_beside: bool = False
) -> str:
    """Films the episode of :func:`seed_of_farthest_goal`; see :func:`film_episode`."""
    return film_episode(task, policy, seed_of_farthest_goal(task, first_seed), out, goal_beside=goal_beside)


def film_episode(
    task: Task,
    policy: Callable[[Any], np.ndarray],
    seed: int,
    out: Path,
    action_noise: float = 0.0,
    *,
    goal_beside: bool = False,
) -> str:
    """Films the first 100 steps of an episode to a GIF in a process of its own, where no OpenGL can harm the run.

    Args:
        task: the task.
        policy: from observations of one row to actions of one row.
        seed: of the episode.
        out: the file.
        action_noise: of the environment, the same as that of a pool with this seed.
        goal_beside: what a policy of pictures sees, the scene and the goal side by side, in the place of goal marks.

    Returns:
        One line that says what came of it.
    """
    try:
        film = render_episode(
            task,
            seed,
            _actions(task, policy, seed, action_noise),
            opengl=OPENGL,  # type: ignore[arg-type]
            own_process=True,
            goal_beside=goal_beside,
        )
        write_gif(film, out)
    except (RuntimeError, ValueError) as error:
        return f"no {out.name}: {error}"
    return f"rollout: {out}"


def _actions(task: Task, policy: Callable[[Any], np.ndarray], seed: int, action_noise: float) -> np.ndarray:
    """The executed actions ``[T, da]`` of the episode that is filmed."""
    noise = noise_generator(seed)
    with EnvPool(task, 1) as pool:
        observation = pool.reset([seed])
        actions = []
        for _ in range(min(task.horizon, _FILM_STEPS)):
            action = policy(observation)[0]
            actions.append(disturb(action, action_noise, noise) if action_noise > 0 else action)
            observation, _ = pool.step(actions[-1][None])
    return np.stack(actions)
