"""The learning of ``gpu.py``: data of a task, then the paper's budget on them, as a run of the benchmark's."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from benchmark import make_datasets, order
from parts.benchmark_jobs import read_result, run_job
from parts.benchmark_plan import Config as GridConfig
from parts.benchmark_plan import make_jobs, read_request
from parts.datasets import collect_or_load
from parts.options import Config, with_defaults
from parts.shared import commit_of_library

from torchrl_smore.envs import get_task
from torchrl_smore.reports import Result, write_curves, write_results

METHOD, SETTING, TABLE = "SMORe", "expert=0.1", "1"
_DRY_RUN = {"batch_size": 8, "eval_episodes": 2, "eval_interval": 2, "log_interval": 2, "save_interval": 2}


def options_of(
    device: str, task: str, seeds: int, steps: int | None, num_trajectories: int | None, data_dir: str, tiny: bool
) -> Config:
    """The run as options of ``smore_offline.py``: the paper's budget where none is given, evaluation on every core."""
    return with_defaults(
        Config(
            task=task,
            method="smore",
            preset="paper",
            steps=steps,
            seeds=seeds,
            num_trajectories=num_trajectories,
            data_dir=data_dir,
            device=device,
            # in a dry run nothing is compiled, and nothing else may have a core
            compile="off" if tiny else "default",
            env_workers=0 if tiny else max(1, (os.cpu_count() or 2) - 1),
            rollout=False,
            **(_DRY_RUN if tiny else {}),
        )
    )


def data(device: str, folder: str, **chosen: Any) -> dict[str, Any]:
    """Collects a task's dataset on all cores, or finds the one that was brought along."""
    config = options_of(device, **chosen)
    store = collect_or_load(
        get_task(config.task),
        config.data_dir,
        num_trajectories=config.num_trajectories,
        expert_fraction=config.expert_fraction,
        seed=config.seed,
    )
    return {"trajectories": store.num_trajectories, "transitions": len(store.data), "sha256": store.sha256}


def learn(device: str, folder: str, **chosen: Any) -> dict[str, Any]:
    """Trains and evaluates; resumes where an earlier call was stopped. Leaves ``results.csv`` and ``curves.csv``."""
    config = options_of(device, **chosen)
    names = ("task", "method", "preset", "steps", "batch_size", "seeds", "device", "num_trajectories", "data_dir")
    names += ("compile", "env_workers", "rollout", "eval_episodes", "eval_interval", "log_interval", "save_interval")
    job = {
        "folder": str(Path(folder) / f"{config.task}_{config.seeds}"),
        "session": "gpu",
        "options": {name: getattr(config, name) for name in names},
        "identity": {"table": TABLE, "task": config.task, "method": METHOD, "setting": SETTING}
        | {"commit": commit_of_library()},
    }
    size = {"steps": config.steps, "batch_size": config.batch_size, "seeds": config.seeds}
    return {"task": config.task, "method": METHOD, **size, **_outcome(job)}


def learn_pictures(
    device: str,
    folder: str,
    task: str,
    method: str,
    seed: int,
    steps: int | None,
    num_trajectories: int | None,
    data_dir: str,
    tiny: bool,
) -> dict[str, Any]:
    """One seed of a cell of Figure 3, with its dataset where it is not there yet; resumes as :func:`learn` does."""
    small = {"batch_size": 8, "eval_episodes": 1, "eval_interval": steps, "compile": "off"} if tiny else {}
    config, plan = read_request(
        GridConfig(
            figure="3",
            tasks=[task],
            methods=[method],
            preset="paper",
            seeds=1,
            first_seed=seed,
            steps=steps,
            num_trajectories=num_trajectories,
            data_dir=data_dir,
            device=device,
            **{"compile": "default", "precision": "bf16", **small},
        )
    )
    (cell,) = make_jobs(config, plan, Path(folder))
    for reason in make_datasets(config, [cell]).values():
        raise RuntimeError(reason)
    job = order(config, cell, commit_of_library(), "gpu")
    job["folder"] = str(Path(folder) / f"{task}_{method}_seed{seed}")
    size = {"steps": cell.options["steps"], "batch_size": cell.options["batch_size"], "seeds": 1}
    return {"task": task, "method": job["identity"]["method"], **size, **_outcome(job)}


def _outcome(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job, unless it is done, and reads what it came to."""
    found = run_job(job)
    folder = Path(job["folder"])
    write_tables(folder.parent)
    metrics = ("success_last", "discounted_return_0.98", "final_distance")
    return {**_updates_per_second(folder), **{metric: _mean(found["results"], metric) for metric in metrics}}


def write_tables(folder: Path) -> None:
    """The rows of every finished run in ``folder`` as the benchmark's result and curve files."""
    found = [result for path in sorted(folder.glob("*/result.json")) if (result := read_result(path.parent))]
    for kind, write in (("results", write_results), ("curves", write_curves)):
        write(folder / f"{kind}.csv", [Result(**row) for result in found for row in result[kind]])


def _mean(rows: list[dict[str, Any]], metric: str) -> float | None:
    values = [row["value"] for row in rows if row["metric"] == metric]
    return sum(values) / len(values) if values else None


def _updates_per_second(folder: Path) -> dict[str, Any]:
    (metrics,) = folder.glob("run/*/metrics.csv")
    with metrics.open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {name: float(text) for name, text in last.items() if "updates_per_second" in name and text}
