"""Collects a dataset of scripted-expert and random trajectories, on all cores; resumes after a kill.

python recipes/collect_dataset.py task=FetchPush mixture=expert5 size=paper
python recipes/collect_dataset.py task=FetchReach action_noise=0.5 out=datasets/noisy
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from recipe_cli import option, run_recipe

from torchrl_smore.envs import MIXTURES, Task, collect, get_task, mixture_counts, task_names


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option("FetchReach", ", ".join(task_names()))
    mixture: str = option("expert10", f"of expert and random trajectories, as in the paper: {', '.join(MIXTURES)}")
    size: str = option("small", "small: 4,000 trajectories; paper: 40,000 (hard Fetch tasks and HandReach)")
    num_trajectories: int | None = option(None, "trajectories in all, instead of a size")
    expert_fraction: float | None = option(None, "share of expert trajectories, in [0, 1], instead of a mixture")
    seed: int = option(0, "decides every episode, for any number of workers")
    expert_noise: float = option(0.0, "standard deviation of Gaussian noise on the expert's actions")
    action_noise: float = option(0.0, "of the environment's own noise on executed actions (the paper: 0.5, 1.0, 1.5)")
    workers: int = option(0, "processes; 0: every core")
    out: str | None = option(None, "folder of the store; none: datasets/<what it is>")
    overwrite: bool = option(False, "replace a store that is there")


def _counts(task: Task, config: Config) -> tuple[int, int]:
    """Numbers of expert and random trajectories."""
    if config.num_trajectories is not None and config.num_trajectories < 1:
        raise ValueError(f"num_trajectories must be at least 1, got {config.num_trajectories}.")
    if config.expert_fraction is not None and not 0.0 <= config.expert_fraction <= 1.0:
        raise ValueError(f"expert_fraction must lie in [0, 1], got {config.expert_fraction}.")
    named = mixture_counts(task, config.mixture, config.size)
    total, fraction = config.num_trajectories, config.expert_fraction
    if total is None:
        total = sum(named)
    if fraction is None:
        fraction = MIXTURES[config.mixture]
    experts = round(total * fraction)
    return experts, total - experts


def main(config: Config) -> None:
    """Runs the recipe."""
    task = get_task(config.task)
    experts, rest = _counts(task, config)
    out = config.out or f"datasets/{task.name}_expert{experts}_random{rest}_seed{config.seed}"
    store = collect(
        task,
        expert_episodes=experts,
        random_episodes=rest,
        seed=config.seed,
        workers=config.workers or "auto",
        expert_noise=config.expert_noise,
        action_noise=config.action_noise,
        out=Path(out),
        overwrite=config.overwrite,
        progress=sys.stderr.isatty(),
    )
    print(f"{store.summary()}\nstore: {out}\nsha256: {store.sha256}")


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
