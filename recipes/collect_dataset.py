"""Collects a dataset of expert and random or medium trajectories, on all cores; resumes after a kill.

python recipes/collect_dataset.py task=FetchPush mixture=expert5 size=paper
python recipes/collect_dataset.py task=FetchReach action_noise=0.5 out=datasets/noisy
python recipes/collect_dataset.py task=CheetahTgtVel-m-e num_trajectories=1030 expert_policy=runs/NAME
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.cli import check_range, option, run_recipe
from parts.datasets import SCRIPTED, check_experts, dataset_folder, note_experts
from parts.defaults import of_every_preset

from torchrl_smore.envs import MIXTURES, Task, collect, get_task, mixture_counts, task_names


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option("FetchReach", f"{', '.join(task_names())}, or one of your own as MODULE:NAME")
    mixture: str | None = option(
        None,
        f"share of experts, by name: {', '.join(MIXTURES)}; default: expert10, or as in training 30 experts for "
        "locomotion and experts alone for Tabletop",
    )
    size: str | None = option(
        None, "small: 4,000 trajectories; paper: 40,000 (hard Fetch tasks and HandReach); default: small"
    )
    num_trajectories: int | None = option(None, "trajectories in all, instead of a size")
    expert_fraction: float | None = option(None, "share of expert trajectories, in [0, 1], instead of a mixture")
    expert_policy: str | None = option(
        None, "actor file, run folder of train_expert.py or distill_expert.py, or scripted; default: the task's"
    )
    medium_policy: str | None = option(None, "the same for the medium trajectories; default: the folder expert_policy")
    seed: int = option(0, "decides every episode, for any number of workers")
    expert_noise: float | None = option(
        None, "standard deviation of Gaussian noise on the expert's actions; default: the task's, of its own expert"
    )
    expert_random_prob: float | None = option(
        None, "probability in each step that a uniform action replaces the expert's; default: likewise"
    )
    action_noise: float = option(0.0, "of the environment's own noise on executed actions (the paper: 0.5, 1.0, 1.5)")
    workers: int = option(0, "processes; 0: every core")
    out: str | None = option(None, "folder of the store; default: datasets/<what it is>")
    overwrite: bool = option(False, "replace a store that is there")


def _with_defaults(config: Config) -> Config:
    """With what training collects of the task whatever its preset, where nothing is asked for."""
    # the noise is of the task's own expert
    names = ["expert_noise"] if config.expert_policy in (None, SCRIPTED) else []
    names += [] if config.mixture else ["expert_fraction"]
    of_task = of_every_preset(config.task, names)
    missing = {name: value for name, value in of_task.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def _composition(task: Task, config: Config) -> dict[str, Any]:
    """Number of trajectories and share of the experts, as options of :meth:`Task.composition`."""
    check_range("num_trajectories", config.num_trajectories, 1, 10**7)
    check_range("seed", config.seed, 0, 2**31 - 1001)
    check_range("workers", config.workers, 0, 1000)
    if config.expert_fraction is not None and not 0.0 <= config.expert_fraction <= 1.0:
        raise ValueError(f"expert_fraction must lie in [0, 1], got {config.expert_fraction}.")
    given = [name for name in ("mixture", "expert_fraction") if getattr(config, name) is not None]
    if len(given) > 1:
        raise ValueError("mixture and expert_fraction both say how many are an expert's: give one of them.")
    given = [name for name in ("size", "num_trajectories") if getattr(config, name) is not None]
    if len(given) > 1:
        raise ValueError("size and num_trajectories both say how many trajectories: give one of them.")
    named = mixture_counts(task, config.mixture or "expert10", config.size or "small")
    fraction = MIXTURES[config.mixture] if config.mixture is not None else config.expert_fraction
    return {"num_trajectories": config.num_trajectories or sum(named), "expert_fraction": fraction}


def main(config: Config) -> None:
    """Runs the recipe."""
    task = get_task(config.task)
    asked, config = config, _with_defaults(config)
    composition = _composition(task, config)
    names = ("expert_policy", "medium_policy", "expert_noise", "expert_random_prob", "action_noise")
    given: dict[str, Any] = {name: getattr(config, name) for name in names}
    check_experts(task, task.composition(**composition), {name: getattr(asked, name) for name in names})
    note_experts(task, **composition)
    out = config.out or dataset_folder("datasets", task, seed=config.seed, **composition, **given)
    store = collect(
        task,
        **task.composition(**composition),
        **given,
        seed=config.seed,
        workers=config.workers or "auto",
        out=Path(out),
        overwrite=config.overwrite,
        progress=sys.stderr.isatty(),
    )
    print(f"{store.summary()}\nstore: {out}\nsha256: {store.sha256}")


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
