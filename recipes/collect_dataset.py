"""Collects a dataset of scripted-expert and random trajectories, on all cores; resumes after a kill.

python recipes/collect_dataset.py task=FetchPush num_trajectories=4000
python recipes/collect_dataset.py task=FetchReach action_noise=0.5 out=datasets/noisy
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from recipe_cli import option, run_recipe

from torchrl_smore.envs import collect, get_task, task_names


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option("FetchReach", ", ".join(task_names()))
    num_trajectories: int = option(4000, "trajectories in all (the paper: 40,000 for the hard tasks)")
    expert_fraction: float = option(0.1, "share of expert trajectories, in [0, 1]")
    seed: int = option(0, "decides every episode, for any number of workers")
    expert_noise: float = option(0.0, "standard deviation of Gaussian noise on the expert's actions")
    action_noise: float = option(0.0, "of the environment's own noise on executed actions (the paper: 0.5, 1.0, 1.5)")
    workers: int = option(0, "processes; 0: every core")
    out: str | None = option(None, "folder of the store; none: datasets/<what it is>")
    overwrite: bool = option(False, "replace a store that is there")


def main(config: Config) -> None:
    """Runs the recipe."""
    task = get_task(config.task)
    if config.num_trajectories < 1:
        raise ValueError(f"num_trajectories must be at least 1, got {config.num_trajectories}.")
    if not 0.0 <= config.expert_fraction <= 1.0:
        raise ValueError(f"expert_fraction must lie in [0, 1], got {config.expert_fraction}.")
    experts = round(config.num_trajectories * config.expert_fraction)
    rest = config.num_trajectories - experts
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
