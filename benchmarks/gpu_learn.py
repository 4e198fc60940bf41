"""The learning of ``gpu.py``: data of a task, then the paper's budget on them, as a run of the benchmark's."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from benchmark import make_datasets, order
from gpu_plan import run_folder, sizes
from parts.benchmark_jobs import has_checkpoint, has_result, read_result, run_job
from parts.benchmark_plan import Config as GridConfig
from parts.benchmark_plan import make_jobs, read_request
from parts.datasets import collect_or_load
from parts.options import Config, with_defaults
from parts.shared import commit_of_library

from torchrl_smore.envs import get_task
from torchrl_smore.reports import Result, write_curves, write_results

METHOD, SETTING, TABLE = "SMORe", "expert=0.1", "1"
#: Options by which a row says what was trained, and a file of a run's folder: seconds of each call that trained it.
CLAIMED, SECONDS = ("task", "method", "steps", "batch_size", "seed", "seeds", "num_trajectories"), "seconds.txt"
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
    names += ("dataset",)  # none, which a resumed run is told again
    job = {
        "session": "gpu",
        "options": {name: getattr(config, name) for name in names},
        "identity": {"table": TABLE, "task": config.task, "method": METHOD, "setting": SETTING}
        | {"commit": commit_of_library()},
    }
    size = {"batch_size": config.batch_size, "seeds": config.seeds}
    return {"task": config.task, "method": METHOD, **size, **_outcome(placed(job, {"folder": folder, **chosen}))}


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
    asked = {"task": task, "method": method, "seed": seed, "steps": steps, "num_trajectories": num_trajectories}
    job = placed(job, {**asked, "folder": folder, "tiny": tiny})
    size = {"batch_size": cell.options["batch_size"], "seeds": 1}
    return {"task": task, "method": job["identity"]["method"], **size, **_outcome(job)}


def placed(job: dict[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """A job in its folder; one of other sizes than the paper's says so in its rows, and is of none of its tables."""
    identity = job["identity"]
    if others := sizes(params):
        identity = {**identity, "table": "", "setting": ";".join([identity["setting"], *others])}
    return {**job, "folder": str(run_folder(params)), "identity": identity}


def _outcome(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job, unless it is done, and reads what it came to."""
    check_begun(job)
    found = _run(job)
    folder = Path(job["folder"])
    write_tables(folder.parent)
    (steps,) = {row["steps"] for row in found["results"]}
    metrics = ("success_last", "discounted_return_0.98", "final_distance")
    told = {metric: _mean(found["results"], metric) for metric in metrics}
    return {"steps": steps, "training_seconds": _seconds(folder), **_updates_per_second(folder), **told}


def check_begun(job: dict[str, Any]) -> None:
    """Refuses to resume, or to read, a run that is not the one asked for.

    Raises:
        ValueError: if the folder of the job holds one; names what differs.
    """
    asked = {name: value for name, value in job["options"].items() if name in CLAIMED}
    for path in Path(job["folder"]).glob("run/*/config.yaml"):
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
        differing = [f"{name} {own.get(name)}, not {value}" for name, value in asked.items() if own.get(name) != value]
        # named after what it is made of, wherever it lies
        names = [Path(options.get("dataset") or "").name for options in (own, job["options"])]
        differing += [f"dataset {names[0]}, not {names[1]}"] if names[0] != names[1] else []
        if differing:
            raise ValueError(f"{job['folder']} holds a run of {'; '.join(differing)}: move it away.")


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job unless it is done, and adds the seconds of this call to those of the calls before."""
    folder = Path(job["folder"])
    if has_result(folder):
        return run_job(job)
    if not has_checkpoint(folder):
        (folder / SECONDS).unlink(missing_ok=True)  # of a run that is lost
    started = time.perf_counter()
    try:
        return run_job(job)
    finally:
        with (folder / SECONDS).open("a", encoding="utf-8") as file:
            file.write(f"{time.perf_counter() - started:.2f}\n")


def _seconds(folder: Path) -> float:
    """Seconds of all calls that trained a run; of one without a record those that it says of its last."""
    record = folder / SECONDS
    if record.is_file():
        return sum(map(float, record.read_text(encoding="utf-8").split()))
    (summary,) = folder.glob("run/*/summary.json")
    return float(json.loads(summary.read_text(encoding="utf-8"))["seconds"])


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
