"""Collects a dataset of expert and random or medium trajectories, on all cores; resumes after a kill.

python recipes/collect_dataset.py task=FetchPush num_trajectories=4000
python recipes/collect_dataset.py task=FetchReach action_noise=0.5 out=datasets/noisy
python recipes/collect_dataset.py task=CheetahTgtVel-m-e num_trajectories=1030 expert_policy=runs/NAME
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from recipe_cli import option, run_recipe

from torchrl_smore.envs import collect, get_task


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option("FetchReach", "FetchReach, FetchPush, FetchPick, PointReach, PointRooms")
    num_trajectories: int = option(4000, "trajectories in all (the paper: 40,000 for the hard tasks)")
    expert_fraction: float | None = option(
        None, "share of expert trajectories, in [0, 1]; none: 0.1, or 30 trajectories for the running tasks"
    )
    expert_policy: str | None = option(None, "actor file, or run folder of train_expert.py, of the running tasks")
    medium_policy: str | None = option(None, "the same for the medium trajectories; none: the folder expert_policy")
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
    if config.expert_fraction is not None and not 0.0 <= config.expert_fraction <= 1.0:
        raise ValueError(f"expert_fraction must lie in [0, 1], got {config.expert_fraction}.")
    counts = task.composition(config.num_trajectories, config.expert_fraction)
    out = config.out or (
        f"datasets/{task.name}_expert{counts['expert_episodes']}_{task.rest}{counts[f'{task.rest}_episodes']}"
        f"_seed{config.seed}"
    )
    store = collect(
        task,
        **counts,
        expert_policy=config.expert_policy,
        medium_policy=config.medium_policy,
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
