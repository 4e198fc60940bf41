"""Pictures of every task, for the documentation: its expert at the start, on the way and at the end of an episode.

python recipes/render_tasks.py                                     every task, as PNG files in docs/images
python recipes/render_tasks.py task=SawyerDoor gif=true out=here   one task, and its whole episode as a GIF
python recipes/render_tasks.py task=Tabletop-pick pictures=true    what a policy of pictures sees, each beside the goal
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from parts import OPENGL
from parts.cli import check_range, option, run_recipe
from parts.films import seed_of_farthest_goal
from PIL import Image
from tqdm import tqdm

from torchrl_smore.envs import EnvPool, Task, begin_episodes, get_task, render_episode, task_names
from torchrl_smore.envs.experts import ActorExpert
from torchrl_smore.reports import write_gif
from torchrl_smore.trainers import replacing

_DRAWN = tuple(name for name in task_names() if get_task(name).scripted or get_task(name).bundled_actors)
_COLOURS = 192  # of a palette that keeps a strip under 60 kB


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    out: str = option("docs/images", "folder of the pictures")
    task: str = option("all", f"all, {', '.join(_DRAWN)}")
    seed: int = option(3, "of the first episode that is tried; the one of eight whose goal is farthest is shown")
    steps: int = option(50, "longest film, in steps")
    size: int = option(240, "height and width of a frame, in pixels")
    gif: bool = option(False, "the whole episode, too, as an animated GIF")
    pictures: bool = option(False, "what a policy of pictures sees, each beside its goal, of one task that has them")


def main(config: Config) -> None:
    """Runs the recipe."""
    tasks = [get_task(name) for name in (_DRAWN if config.task == "all" else (config.task,))]
    if not all(task.scripted or task.bundled_actors for task in tasks):
        raise ValueError(f"task={config.task} cannot be drawn: expected all, {', '.join(_DRAWN)}.")
    if config.pictures and (config.task == "all" or tasks[0].make_painter is None):
        seen = [name for name in _DRAWN if get_task(name).make_painter is not None]
        raise ValueError(f"pictures=true goes with one task that has pictures: {', '.join(seen)}; got {config.task}.")
    for name, least, most in (("seed", 0, 2**31 - 1001), ("steps", 1, 10**4), ("size", 16, 4096)):
        check_range(name, getattr(config, name), least, most)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for task in tqdm(tasks, unit="task", disable=not sys.stderr.isatty()):
        seed = seed_of_farthest_goal(task, config.seed)
        actions, arrival = expert_episode(task, seed, min(config.steps, task.horizon))
        options: dict[str, Any] = {"opengl": OPENGL, "own_process": True, "goal_beside": config.pictures}
        frames = render_episode(task, seed, actions, size=config.size, **options)
        name = f"{task.name}_pictures" if config.pictures else task.name
        write_strip(frames[[0, max(1, arrival // 2), -1]], out / f"{name}.png")
        if config.gif:
            write_gif(frames, out / f"{name}.gif")
    print(f"{len(tasks)} tasks: {out}")


def expert_episode(task: Task, seed: int, steps: int) -> tuple[NDArray[Any], int]:
    """Actions ``[steps, da]`` of the task's expert, and the number of steps to its first success, or all of them."""
    actions, rewards = [], []
    with EnvPool(task, 1) as pool:
        observation = pool.reset([seed])
        actors = task.bundled_actors
        expert = begin_episodes(
            task.make_expert() if actors is None else ActorExpert(actors / "expert.npz"), observation, [seed]
        )
        for _ in range(steps):
            actions.append(expert(observation)[0])
            observation, reward = pool.step(actions[-1][None])
            rewards.append(reward[0])
    return np.stack(actions), int(np.argmax(rewards)) + 1 if any(rewards) else steps


def write_strip(frames: NDArray[np.uint8], path: Path) -> None:
    """Writes frames ``[k, H, W, 3]`` side by side as a PNG file, atomically."""
    picture = Image.fromarray(np.concatenate(list(frames), axis=1))
    with replacing(path) as beside:
        picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(beside, format="PNG", optimize=True)


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
