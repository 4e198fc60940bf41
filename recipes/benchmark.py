"""Reruns the paper's tables and figures: a grid of tasks, methods, settings and seeds, on Ray.

python recipes/benchmark.py preset=smoke                          a tiny version of every table, in minutes
python recipes/benchmark.py table=1 'tasks=[FetchReach]' seeds=5 preset=quick
python recipes/benchmark.py 'tasks=[PointReach,FetchReach]' 'methods=[smore,gc_iql]' seeds=5 steps=4000
python recipes/benchmark.py 'tasks=[FetchReach]' dataset=PATH 'methods=[smore,hindsight_bc]' seeds=3   data of your own
python recipes/benchmark.py table=1 address=HOST:6379             on a cluster
python recipes/benchmark.py manifest=benchmarks/table1.yaml          stage by stage, as a file says
python recipes/benchmark.py manifest=benchmarks/table1.yaml status   what is done, running, missing; how long it takes
python recipes/benchmark.py manifest=benchmarks/table1.yaml earlier=docs/results/table1   goes on where that table ends

The same command again resumes where it was stopped. Then: python recipes/report.py benchmark=FOLDER
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parts import grid
from parts.benchmark_jobs import read_result, run_job
from parts.benchmark_plan import Config, Job, check_folder, read_plan
from parts.benchmark_ray import run_on_ray
from parts.cli import run_recipe
from parts.datasets import check_collected, collect_or_load, dataset_folder
from parts.earlier import read_earlier
from parts.grid import Plan, paper_name
from parts.manifest import Manifest
from parts.metrics import RETURN
from parts.shared import PACKAGES, commit_of_library, ending_on_signals, versions_of, write_json
from parts.status import describe_status, status_of
from tqdm import tqdm

from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import get_task, task_names
from torchrl_smore.reports import Result, write_curves, write_results
from torchrl_smore.trainers import locked, remove_leftovers
from torchrl_smore.trainers.evaluation import shown_return

DIFFERENT_DATA = (
    "one seed can give other trajectories on another processor or with other packages (docs/tasks.md). Run their cells "
    "again, or say so on the page (differs:)."
)


def main(config: Config) -> None:
    """Runs the recipe."""
    config, manifest, out, stages = read_plan(config)
    jobs = [job for stage in stages for job in stage.jobs]
    check_folder(out, jobs)
    earlier = None if config.earlier is None else read_earlier(config.earlier)
    results = {job.folder: found for job in jobs if (found := read_result(job.folder)) is not None}
    if config.status:
        if earlier is not None:
            raise ValueError("status only looks and earlier= writes: give earlier= to a run, and then ask for status.")
        found = [status_of(stage.name, stage.jobs, results) for stage in stages]
        at_a_time = max(sum(len(stage.running) for stage in found), config.jobs or 0, 1)
        print(f"{out}: {describe_status(found, results, at_a_time)}")
        return
    commit = commit_of_library()
    if manifest is not None:
        manifest.check_commit(commit)
    plan = grid.merge([stage.plan for stage in stages])
    advice = "Finished runs are kept; the same command goes on."
    with ending_on_signals(advice), locked(out / ".lock", f"benchmark folder {out}"):
        remove_leftovers(out)
        before = known_grid(out)
        if earlier is not None:
            print(f"{config.earlier}: {len(earlier.take_over(jobs))} runs taken over", flush=True)
            before["datasets"] = earlier.datasets | before["datasets"]
            before["differs"] = earlier.differs | before["differs"]
        # another driver may have worked until now
        results = {job.folder: found for job in jobs if (found := read_result(job.folder)) is not None}
        print(describe(plan, jobs, [job for job in jobs if job.folder not in results], out), flush=True)
        record = grid_record(config, plan, jobs, commit, before, manifest)
        write_json(out / "grid.json", record)
        write_tables(out, jobs, results)
        failures: dict[Path, str] = {}
        started = time.perf_counter()
        for stage in stages:
            todo = [job for job in stage.jobs if job.folder not in results]
            if stage.name and todo:
                print(f"stage {stage.name}: {len(todo)} of {len(stage.jobs)} runs to do", flush=True)
            failures |= make_datasets(config, todo)
            readable = [job for job in stage.jobs if job.folder not in failures]
            told = describe_datasets(config, readable)
            # also of finished runs whose data grid.json does not tell: an earlier version called them otherwise
            told |= describe_own(
                job
                for job in readable
                if job.own_data is not None and (job in todo or job.own_data.name not in record["datasets"])
            )
            for name in grid.changed_datasets(record["datasets"], told):
                print(
                    f"warning: {name} is not what the runs that are finished learned from: {DIFFERENT_DATA}", flush=True
                )
            record["datasets"] |= told
            write_json(out / "grid.json", record)
            run(config, [job for job in todo if job.folder not in failures], out, commit, (jobs, results, failures))
        summarise(out, jobs, results, failures, time.perf_counter() - started)


def describe(plan: Plan, jobs: Sequence[Job], todo: Sequence[Job], out: Path) -> str:
    """What is going to be run."""
    counts = Counter(job.cell_folder for job in jobs for _ in job.seeds)
    seeds = " to ".join(map(str, sorted({min(counts.values()), max(counts.values())})))
    tasks = dict.fromkeys(cell.task for cell in plan.cells)
    names = dict.fromkeys(paper_name(cell.method) for cell in plan.cells)
    lines = [
        f"{len(counts)} cells x {seeds} seeds: {len(jobs)} runs, {len(jobs) - len(todo)} of them finished",
        f"  tasks: {', '.join(tasks)}",
        f"  methods: {', '.join(names)}",
        f"  settings: {', '.join(dict.fromkeys(cell.setting for cell in plan.cells))}",
        f"  folder: {out}",
    ]
    lines += [f"  unavailable: {text}" for text in plan.unavailable]
    return "\n".join(lines)


def grid_record(
    config: Config,
    plan: Plan,
    jobs: Sequence[Job],
    commit: str,
    before: Mapping[str, Any],
    manifest: Manifest | None = None,
) -> dict[str, Any]:
    """What ``grid.json`` holds.

    Args:
        config: the options.
        plan: the cells.
        jobs: their runs.
        commit: of this code.
        before: of :func:`known_grid`; its datasets need not be here any more.
        manifest: what was asked for, if by a manifest.
    """
    cells: dict[Path, list[Job]] = {}
    for job in jobs:
        cells.setdefault(job.cell_folder, []).append(job)
    asked = [
        {
            **{"id": folder.name, "task": own[0].cell.task, "method": paper_name(own[0].cell.method)},
            "setting": own[0].cell.setting,
            "tables": list(dict.fromkeys(table for job in own for table in job.cell.tables)),
            **{name: own[0].options[name] for name in ("steps", "batch_size")},
            **_told_of_data(config, own[0]),
            "seeds": sorted(seed for job in own for seed in job.seeds),
        }
        for folder, own in cells.items()
    ]
    # the tables hold the runs of earlier requests too: what made them stays told
    told = {cell["id"]: cell for cell in before["cells"]}
    for cell in asked:
        old = told.pop(cell["id"], {"tables": [], "seeds": []})
        cell["tables"] = list(dict.fromkeys([*old["tables"], *cell["tables"]]))
        cell["seeds"] = sorted({*old["seeds"], *cell["seeds"]})
    every = [*asked, *told.values()]
    said = {} if manifest is None else {task: manifest.differs.get(task) for task in (cell["task"] for cell in asked)}
    differs = {task: text for task, text in {**before["differs"], **said}.items() if text is not None}
    return {
        "command": " ".join(["python", "recipes/benchmark.py", *sys.argv[1:]]),
        "options": dataclasses.asdict(config),
        "commit": commit,
        "versions": versions_of(PACKAGES),
        "cells": every,
        # the others are filled in as they are collected
        "datasets": {
            name: parts for name, parts in before["datasets"].items() if name in {cell["dataset"] for cell in every}
        },
        "differs": {task: text for task, text in differs.items() if task in {cell["task"] for cell in every}},
        "unavailable": list(plan.unavailable),
        "registry": list(task_names()),
    }


def _told_of_data(config: Config, job: Job) -> dict[str, Any]:
    """What a cell's entry says of what it learns from."""
    if job.own_data is not None:
        read = {key: value for key, value in job.own_data.options.items() if value not in (None, False)}
        return {"dataset": job.own_data.name, "data": {**read, "sha256": job.own_data.sha256}}
    folder = dataset_folder(config.data_dir, **job.dataset)
    return {"num_trajectories": job.dataset["num_trajectories"], "dataset": folder.name}


def known_grid(out: Path) -> dict[str, Any]:
    """What the folder's ``grid.json`` tells of cells that still have runs, of datasets, and of what differs.

    Nothing of each where there is none that can be read. The seeds of a cell are those that have a result.
    """
    cells, told = [], _read_grid(out / "grid.json")
    for cell in told["cells"]:
        found = [read_result(path.parent) for path in sorted((out / "cells" / cell["id"]).glob("*/result.json"))]
        seeds = {row["seed"] for result in found if result is not None for row in result["results"]}
        cells += [{**cell, "seeds": sorted(seeds)}] if seeds else []
    return {**told, "cells": cells}


def _read_grid(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        grid = json.loads(path.read_text(encoding="utf-8"))
        needed = {"id", "task", "tables", "dataset"}
        cells = [dict(cell) for cell in grid["cells"] if needed <= set(cell)]
        return {"cells": cells, "datasets": dict(grid["datasets"]), "differs": dict(grid["differs"])}
    return {"cells": [], "datasets": {}, "differs": {}}


def make_datasets(config: Config, jobs: Sequence[Job]) -> dict[Path, str]:
    """Collects or reads what the jobs learn from, each dataset once; returns why a job's failed, by its folder."""
    failures = read_datasets(jobs)
    wanted: dict[str, list[Job]] = {}
    for job in jobs:
        if job.own_data is None:
            wanted.setdefault(json.dumps(job.dataset), []).append(job)
    missing = []
    for users in wanted.values():
        folder = dataset_folder(config.data_dir, **users[0].dataset)
        if not folder.exists():
            missing.append(users)
            continue
        try:
            # each run checks the data that it learns from
            store = TrajectoryStore.load(folder, verify=False)
            check_collected(store, get_task(users[0].dataset["task"]).data_source, folder)
        except ValueError as error:
            failures |= {job.folder: f"no dataset: {error}" for job in users}
    for number, users in enumerate(missing, 1):
        request = dict(users[0].dataset)
        folder = dataset_folder(config.data_dir, **request)
        print(f"dataset {number} of {len(missing)}: {folder}", flush=True)
        try:
            collect_or_load(get_task(request.pop("task")), config.data_dir, **request)
        except (ValueError, RuntimeError, ImportError) as error:
            failures |= {job.folder: f"no dataset: {error}" for job in users}
    return failures


def read_datasets(jobs: Sequence[Job]) -> dict[Path, str]:
    """Reads the datasets of one's own once, as the runs will; returns why that failed, by the folder of a job."""
    failures: dict[Path, str] = {}
    wanted: dict[tuple[str, float | None], list[Job]] = {}
    for job in jobs:
        if job.own_data is not None:
            wanted.setdefault((job.cell.task, job.options["expert_fraction"]), []).append(job)
    for (task, fraction), users in wanted.items():
        data = users[0].own_data
        assert data is not None
        share = "" if fraction is None else f", {fraction:.0%} experts of it"
        print(f"dataset of {task}: {data.path} ({data.format}{share})", flush=True)
        try:
            parts = data.parts
            if fraction is not None:
                data.load(fraction)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            failures |= {job.folder: f"no dataset: {error}" for job in users}
            continue
        for part in parts if fraction is None else ():
            print(
                f"  {part['behaviour']}: {part['num_trajectories']:,} trajectories, "
                f"{part['return_over_max']:.1%} of the largest return",
                flush=True,
            )
    return failures


def describe_datasets(config: Config, jobs: Sequence[Job]) -> dict[str, list[dict[str, Any]]]:
    """By name of each dataset collected for the jobs that is there, its parts: whose, how many, and what they return.

    The discount of a return is the largest that the task is evaluated at.
    """
    found = {}
    for request in {json.dumps(job.dataset): job.dataset for job in jobs if job.own_data is None}.values():
        folder = dataset_folder(config.data_dir, **request)
        if folder.exists():
            with _warning_of(folder.name):
                # each run checks the data that it learns from
                parts = TrajectoryStore.load(folder, verify=False).meta.get("composition", [])
                kept = ("behaviour", "num_trajectories", "discounted_return", "return_over_max")
                found[folder.name] = [{name: part[name] for name in kept if name in part} for part in parts]
    return found


def describe_own(jobs: Iterable[Job]) -> dict[str, list[dict[str, Any]]]:
    """The same of the datasets of one's own that the jobs read."""
    found = {}
    for data in {job.own_data.name: job.own_data for job in jobs if job.own_data is not None}.values():
        with _warning_of(data.name):
            found[data.name] = data.parts
    return found


@contextlib.contextmanager
def _warning_of(dataset: str) -> Iterator[None]:
    """A dataset that cannot be read stops nothing: finished runs do not need it, and others fail by it one by one."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"warning: {dataset} cannot be read, finished runs that learned from it are kept: {error}", flush=True)


def run(
    config: Config,
    jobs: Sequence[Job],
    out: Path,
    commit: str,
    books: tuple[Sequence[Job], dict[Path, dict[str, Any]], dict[Path, str]],
) -> None:
    """Runs the jobs; enters what comes of them in ``books`` (all jobs, results, failures) and in the tables."""
    everything, results, failures = books
    if not jobs:
        return
    session = uuid.uuid4().hex
    orders = [order(config, job, commit, session) for job in jobs]
    if config.jobs == 0:
        ended = run_here(orders)
    else:
        ended = run_on_ray(orders, address=config.address, num_jobs=config.jobs or 0, gpu_share=config.gpu_share)
    total = sum(job.options["steps"] * len(job.seeds) for job in jobs)
    done, started, show = 0, time.perf_counter(), sys.stderr.isatty()
    where = "" if config.manifest is None else " of this stage"
    with contextlib.closing(ended), tqdm(total=total, unit=" updates", unit_scale=True, disable=not show) as bar:
        for count, (number, outcome) in enumerate(ended, 1):
            job = jobs[number]
            own = job.options["steps"] * len(job.seeds)
            done += own
            bar.update(own)
            if isinstance(outcome, Exception):
                failures[job.folder] = f"{type(outcome).__name__}: {(str(outcome).splitlines() or [''])[0]}"
                text = failures[job.folder]
            else:
                results[job.folder] = outcome
                write_tables(out, everything, results)
                # none of this session's, where another driver's last worker has ended it meanwhile
                lost = outcome["starts"].count(session) - 1
                again = f", begun again {lost} times after a lost worker" if lost > 0 else ""
                text = f"{mean_return(outcome)}{again}"
            # by updates, which jobs differ in
            left = (time.perf_counter() - started) / done * (total - done)
            rest = f"about {left / 60:.0f} min" if left >= 90 else f"about {left:.0f} s"
            tqdm.write(f"[{count} of {len(jobs)}] {job.words}: {text} ({rest} left{where})")
            sys.stdout.flush()


def order(config: Config, job: Job, commit: str, session: str) -> dict[str, Any]:
    """What a worker is told of a job: plain values, and the dataset of one's own."""
    options = {**job.options, "seed": job.seeds[0], "seeds": len(job.seeds)}
    if job.own_data is None:
        options["dataset"] = str(dataset_folder(config.data_dir, **job.dataset).resolve())
    # where pictures of the dataset are kept
    options["data_dir"] = str(Path(config.data_dir).resolve())
    options = {key: value for key, value in options.items() if key not in ("run_root", "resume")}
    identity = {
        **{"table": " ".join(job.cell.tables), "task": job.cell.task, "method": paper_name(job.cell.method)},
        **{"setting": job.cell.setting, "commit": commit},
    }
    told = {"folder": str(job.folder), "session": session, "options": options, "identity": identity}
    return told if job.own_data is None else {**told, "own_data": job.own_data}


def run_here(orders: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """One after another in this process; as :func:`parts.benchmark_ray.run_on_ray`."""
    for number, job in enumerate(orders):
        try:
            yield number, run_job(job)
        except Exception as error:  # whatever ends one run, the others go on, as on Ray
            yield number, error


def write_tables(out: Path, jobs: Sequence[Job], results: dict[Path, dict[str, Any]]) -> None:
    """``results.csv`` and ``curves.csv`` of all finished runs, in the order of the grid whatever ended first."""
    own = [results[job.folder] for job in jobs if job.folder in results]
    known = {job.folder for job in jobs}
    # runs of an earlier, larger grid in the same folder stay in
    paths = [path.parent for path in sorted((out / "cells").glob("*/*/result.json")) if path.parent not in known]
    own += [found for path in paths if (found := read_result(path)) is not None]
    for kind, write in (("results", write_results), ("curves", write_curves)):
        rows = [Result(**row) for found in own for row in found[kind]]
        rows.sort(key=lambda row: (row.task, row.method, row.setting, row.seed, row.metric, row.steps))
        write(out / f"{kind}.csv", rows)


def mean_return(result: dict[str, Any]) -> str:
    """Discounted return, mean over the seeds of a run, in words."""
    name = shown_return(row["metric"] for row in result["results"])
    if name is None:
        return "no return kept"  # by an earlier version, of a task whose discounts it did not know
    values = [row["value"] for row in result["results"] if row["metric"] == name]
    return f"return at {name[len(RETURN) :]} {sum(values) / len(values):.2f}"


def summarise(
    out: Path, jobs: Sequence[Job], results: dict[Path, Any], failures: dict[Path, str], seconds: float
) -> None:
    """Prints what came out.

    Raises:
        RuntimeError: if a run failed; what is finished stays.
    """
    finished = sum(job.folder in results for job in jobs)
    print(f"\n{finished} of {len(jobs)} runs finished; {seconds:.0f} s in this call")
    print(f"results: {out / 'results.csv'}\nnext: {shlex.join(['python', 'recipes/report.py', f'benchmark={out}'])}")
    if failures:
        for job in jobs:
            if job.folder in failures:
                print(f"failed: {job.words}: {failures[job.folder]}", file=sys.stderr)
        raise RuntimeError(f"{len(failures)} of {len(jobs)} runs failed; the same command tries them again.")


if __name__ == "__main__":
    sys.argv[1:] = ["status=true" if argument == "status" else argument for argument in sys.argv[1:]]
    run_recipe(Config, main, __doc__ or "")
