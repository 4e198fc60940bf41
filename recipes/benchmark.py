"""Reruns the paper's tables and figures: a grid of tasks, methods, settings and seeds, on Ray.

python recipes/benchmark.py preset=smoke                          a tiny version of every table, in minutes
python recipes/benchmark.py table=1 'tasks=[FetchReach]' seeds=5 preset=quick
python recipes/benchmark.py 'tasks=[PointReach,FetchReach]' 'methods=[smore,gc_iql]' seeds=5 steps=4000
python recipes/benchmark.py table=1 address=HOST:6379             on a cluster
python recipes/benchmark.py manifest=benchmarks/table1.yaml          stage by stage, as a file says
python recipes/benchmark.py manifest=benchmarks/table1.yaml status   what is done, running, missing; how long it takes
python recipes/benchmark.py manifest=benchmarks/table1.yaml earlier=docs/results/table1   goes on where that table ends

The same command again resumes where it was stopped. Then: python recipes/report.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parts import grid
from parts.benchmark_jobs import begun_groups, folder_name, read_result, run_job
from parts.benchmark_ray import run_on_ray
from parts.checks import MOST, check
from parts.cli import check_range, nearest, option, run_recipe
from parts.datasets import check_collected, collect_or_load, dataset_folder, digest
from parts.earlier import read_earlier
from parts.grid import GridCell, Plan, paper_name
from parts.manifest import Manifest, read_manifest
from parts.methods import METHODS
from parts.options import Config as RunConfig
from parts.options import with_defaults
from parts.shared import PACKAGES, commit_of_library, versions_of, write_json
from parts.status import describe_status, status_of
from tqdm import tqdm

from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import get_task, task_names
from torchrl_smore.reports import Result, read_results, write_curves, write_results
from torchrl_smore.trainers import locked, remove_leftovers

DIFFERENT_DATA = (
    "one seed gives other trajectories on another processor. Run their cells again, or say so on the page (differs:)."
)
_PRESETS = ("smoke", "quick", "paper")
_SMOKE = {"steps": 20, "batch_size": 32, "eval_episodes": 2, "eval_interval": 10, "num_trajectories": 60, "seeds": 2}
_EXPERT_NOISE = ("expert_noise", "expert_random_prob")
_DATA_OPTIONS = ("expert_fraction", "num_trajectories", "expert_policy", "medium_policy", *_EXPERT_NOISE)
# what does not change a result, or is told apart by other means
_NOT_IDENTITY = (
    "seed",
    "seeds",
    "dataset",
    "data_dir",
    "run_root",
    "resume",
    "threads",
    "evaluation",
    "logger",
    "rollout",
)
_NOT_IDENTITY += ("expert_policy", "medium_policy", "on_divergence", "clip_actions", "compile_cache", "mapped")
# what a manifest says of its runs, and what the command line may say beside one
_OF_RUNS = ("preset", "steps", "batch_size", "eval_episodes", "eval_interval", "num_trajectories", "data_seed")
_OF_RUNS += ("device", "compile", "precision", "seeds_together")
_BESIDE_A_MANIFEST = ("manifest", "status", "earlier", "expert_policy", "data_dir", "out", "jobs", "address")
_BESIDE_A_MANIFEST += ("gpu_share",)


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    manifest: str | None = option(None, "file that says what is run, in stages; the rest is then its business")
    status: bool = option(False, "says what is done, running and missing, and how long the rest takes; runs nothing")
    earlier: str | None = option(
        None, "folder with the tables of an earlier benchmark: what it finished with equal options is not run again"
    )
    preset: str | None = option(
        None, "smoke (all tables, tiny), quick, paper; default: paper for tables, quick for others"
    )
    table: str | None = option(None, "table of the paper: 1, 2, 6 to 16")
    figure: str | None = option(None, "figure of the paper: 2, 3")
    tasks: list[str] = field(default_factory=list, metadata={"help": "[FetchReach,...]; default: the table's"})
    methods: list[str] = field(
        default_factory=list, metadata={"help": "[smore,gc_iql,...] or [all]; default: the table's, or all"}
    )
    settings: list[str] = field(
        default_factory=list,
        metadata={"help": "['expert=0.05','no_her',...]; default: the table's, or the default setting"},
    )
    seeds: int | None = option(None, "seeds of each cell; default: 10")
    first_seed: int = option(0, "the first of them")
    steps: int | None = option(None, "updates; default: the preset's and task's")
    batch_size: int | None = option(None, "default: the preset's")
    eval_episodes: int | None = option(None, "episodes of an evaluation; default: 50")
    eval_interval: int | None = option(None, "updates between evaluations; default: a tenth of the updates")
    num_trajectories: int | None = option(None, "trajectories in a dataset; default: the preset's and task's")
    expert_policy: list[str] = field(
        default_factory=list,
        metadata={"help": "[runs/NAME,...] of train_expert.py, whose actors the locomotion tasks need"},
    )
    data_seed: int = option(0, "of every dataset: all methods and seeds learn from the same one")
    data_dir: str = option("datasets", "where datasets are kept and found again")
    out: str | None = option(None, "folder of the benchmark; default: runs/benchmark/<what it is>")
    jobs: int | None = option(None, "runs at a time on this machine; default: one for each core; 0: one, without Ray")
    address: str | None = option(None, "of a Ray cluster (HOST:PORT, ray://HOST:PORT, auto); default: this machine")
    device: str = option("cpu", "auto, cpu, cuda")
    compile: str = option("auto", "the update of each run: off, default, max; auto: where it pays")
    precision: str = option("float32", "of hidden layers: float32, or bf16 with float32 parameters")
    seeds_together: int | None = option(None, "seeds trained in one run; default: 1 on a CPU, all on a GPU")
    gpu_share: float = option(0.0, "GPUs that a run takes of a cluster, for example 0.5")


@dataclass(frozen=True)
class Job:
    """Some seeds of one cell."""

    cell: GridCell
    seeds: tuple[int, ...]
    options: dict[str, Any]
    dataset: dict[str, Any]
    cell_folder: Path

    @property
    def folder(self) -> Path:
        """Where everything of it lies."""
        return self.cell_folder / folder_name(self.seeds)

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.cell.words}, seed {', '.join(map(str, self.seeds))}"


@dataclass(frozen=True)
class Stage:
    """What is run before the next stage is begun; a benchmark without a manifest has one."""

    name: str
    plan: Plan
    jobs: list[Job]


def main(config: Config) -> None:
    """Runs the recipe."""
    manifest = None if config.manifest is None else read_manifest(config.manifest, Config, _OF_RUNS)
    if manifest is None:
        config, plan = read_request(config)
        out = Path(config.out or f"runs/benchmark/{name_of(config)}").resolve()
        stages = [Stage("", plan, make_jobs(config, plan, out))]
    else:
        config = of_manifest(config, manifest)
        out = Path(config.out or manifest.out).resolve()
        stages = make_stages(config, manifest, out)
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
    with locked(out / ".lock", f"benchmark folder {out}"):
        remove_leftovers(out)
        before = known_grid(out)
        if earlier is not None:
            print(f"{config.earlier}: {len(earlier.take_over(jobs))} runs taken over", flush=True)
            before["datasets"] = earlier.datasets | before["datasets"]
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
            told = describe_datasets(config, stage.jobs)
            for name in grid.changed_datasets(record["datasets"], told):
                print(
                    f"warning: {name} is not what the runs that are finished learned from: {DIFFERENT_DATA}", flush=True
                )
            record["datasets"] |= told
            write_json(out / "grid.json", record)
            run(config, [job for job in todo if job.folder not in failures], out, commit, (jobs, results, failures))
        summarise(out, jobs, results, failures, time.perf_counter() - started)


def of_manifest(config: Config, manifest: Manifest) -> Config:
    """The options of a manifest, and of the command line those that change no result.

    Raises:
        ValueError: if the command line has others.
    """
    default = dataclasses.asdict(Config())
    given = [name for name, value in dataclasses.asdict(config).items() if value != default[name]]
    others = [name for name in given if name not in _BESIDE_A_MANIFEST]
    if others:
        raise ValueError(
            f"with manifest= the options of the runs are the manifest's: expected {', '.join(_BESIDE_A_MANIFEST)} "
            f"beside it, got {', '.join(others)}."
        )
    return dataclasses.replace(config, **{"preset": "quick", **manifest.options})


def make_stages(config: Config, manifest: Manifest, out: Path) -> list[Stage]:
    """The stages of a manifest; a run that several ask for belongs to the first of them."""
    stages = []
    taken: dict[Path, set[int]] = {}
    for stage in manifest.stages:
        plans, jobs = [], []
        for request in stage.requests:
            asked, plan = read_request(dataclasses.replace(config, **request))
            plans.append(plan)
            jobs += make_jobs(asked, plan, out, manifest.tasks, taken)
        stages.append(Stage(stage.name, grid.merge(plans), sorted(jobs, key=lambda job: job.seeds)))
    tasks = dict.fromkeys(cell.task for stage in stages for cell in stage.plan.cells)
    for name in (*manifest.tasks, *manifest.differs):
        if name not in tasks:
            known = nearest(name, [*tasks])
            raise ValueError(f"{config.manifest} says something of {name}, which is no task of its stages.{known}")
    return stages


def read_request(config: Config) -> tuple[Config, Plan]:
    """The options with the preset's in place of those not given, and the cells that they ask for."""
    check_options(config)
    preset = config.preset
    if preset is None:
        preset = "paper" if config.table or config.figure else "quick"
    if preset == "smoke":
        given = {name: getattr(config, name) for name in _SMOKE if getattr(config, name) is not None}
        config = dataclasses.replace(config, **{**_SMOKE, **given})
    config = dataclasses.replace(
        config, preset=preset, seeds=config.seeds or 10, eval_episodes=config.eval_episodes or 50
    )
    methods = list(METHODS) if config.methods == ["all"] else config.methods
    plans = [grid.table_plan(config.table)] if config.table else []
    plans += [grid.figure_plan(config.figure)] if config.figure else []
    if plans or (preset == "smoke" and not config.tasks):
        whole = grid.merge(plans or [grid.smoke_plan()])
        plan = grid.select(grid.beside(whole, methods), config.tasks, methods, config.settings)
    elif config.tasks:
        plan = grid.free_plan(config.tasks, methods or list(METHODS), config.settings or ["default"])
    else:
        raise ValueError("nothing to run: give table=, figure=, preset=smoke or tasks=, see --help.")
    plan = grid.with_actors(plan, config.expert_policy)
    if not plan.cells:
        missing = f" ({'; '.join(plan.unavailable)})" if plan.unavailable else ""
        raise ValueError(f"the grid has no cell that can be run{missing}: loosen tasks=, methods= or settings=.")
    return config, plan


def check_options(config: Config) -> None:
    """Refuses names and numbers that cannot be."""
    if config.preset is not None and config.preset not in _PRESETS:
        raise ValueError(
            f"unknown preset {config.preset!r}: expected {', '.join(_PRESETS)}.{nearest(config.preset, _PRESETS)}"
        )
    papers = {cell.cell.task for number in grid.Paper().tables for cell in grid.Paper().table(number)}
    for task in config.tasks:
        if task not in papers:
            get_task(task)  # raises, naming the nearest
    for method in config.methods:
        if config.methods != ["all"]:
            grid.recipe_name(method)
    for setting in config.settings:
        if setting != "r_gofar_binary":
            grid.setting_options(setting)
    least = {"first_seed": 0, "data_seed": 0, "jobs": 0}
    most = {**MOST, "first_seed": MOST["seed"], "data_seed": MOST["seed"]}
    most |= {"jobs": MOST["env_workers"], "seeds_together": MOST["seeds"]}
    counts = ("seeds", "steps", "batch_size", "eval_episodes", "eval_interval", "num_trajectories", "seeds_together")
    for name in (*least, *counts):
        check_range(name, getattr(config, name), least.get(name, 1), most[name])
    if not 0.0 <= config.gpu_share < float("inf"):
        raise ValueError(f"gpu_share must not be negative, got {config.gpu_share}.")
    if config.address is not None and config.jobs is not None:
        raise ValueError("jobs= is for this machine; a cluster at address= decides by its own CPUs.")


def name_of(config: Config) -> str:
    """Name of the benchmark's folder."""
    what = [f"table{config.table}"] if config.table else []
    what += [f"figure{config.figure}"] if config.figure else []
    if not what:
        return "smoke" if config.preset == "smoke" and not config.tasks else f"grid_{config.preset}"
    return "_".join([*what, *([] if config.preset == "paper" else [str(config.preset)])])


def make_jobs(
    config: Config,
    plan: Plan,
    out: Path,
    of_tasks: Mapping[str, Mapping[str, Any]] | None = None,
    taken: dict[Path, set[int]] | None = None,
) -> list[Job]:
    """The runs of a plan, options checked; nothing is begun if one of them cannot be.

    Seeds that a run of the folder has, finished or begun, stay together as they are there, with others if need be.

    Args:
        config: the options.
        plan: the cells.
        out: folder of the benchmark.
        of_tasks: by task the options that its cells have in place of those of ``config``.
        taken: by folder of a cell the seeds that other jobs run, which these join.
    """
    assert config.seeds is not None
    jobs, checked, taken = [], set(), {} if taken is None else taken
    configs = {task: dataclasses.replace(config, **options) for task, options in (of_tasks or {}).items()}
    for cell in plan.cells:
        own = configs.get(cell.task, config)
        together = own.seeds_together or (1 if own.device == "cpu" else config.seeds)
        run_config = run_options(own, cell)
        if (cell.method, cell.options) not in checked:
            check(run_config)
            checked.add((cell.method, cell.options))
        dataset = {
            "task": cell.task,
            "num_trajectories": run_config.num_trajectories,
            "expert_fraction": run_config.expert_fraction,
            "seed": own.data_seed,
            "action_noise": run_config.action_noise,
        }
        noise = {name: getattr(run_config, name) for name in _EXPERT_NOISE}
        dataset |= {name: value for name, value in noise.items() if value is not None}
        options = dataclasses.asdict(run_config)
        # without what is not given: an option that comes with a later version leaves the folders of older cells
        identity = {key: value for key, value in options.items() if key not in _NOT_IDENTITY and value is not None}
        actors = [] if run_config.expert_policy is None else [digest(run_config.expert_policy)]
        text = json.dumps([identity, dataset, *actors], sort_keys=True)
        dataset |= {"expert_policy": run_config.expert_policy} if actors else {}
        dataset_folder(config.data_dir, **dataset)  # raises if there is no such composition
        words = re.sub(r"[^\w.=-]+", "_", f"{cell.task}_{cell.method}_{cell.setting}")
        folder = out / "cells" / f"{words}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        options = {key: value for key, value in options.items() if key not in _DATA_OPTIONS}
        others = taken.setdefault(folder, set())
        asked = set(range(config.first_seed, config.first_seed + config.seeds)) - others
        groups = [group for group in begun_groups(folder) if asked & set(group) and not others & set(group)]
        groups += split(sorted(asked.difference(*groups)), together)
        others.update(*groups)
        jobs += [Job(cell, group, options, dataset, folder) for group in groups]
    # the first seeds of all cells before the second ones: an early stop leaves a whole table
    return sorted(jobs, key=lambda job: job.seeds)


def split(seeds: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Ascending seeds in groups of at most ``most`` that follow each other: a run counts on from its first one."""
    groups: list[tuple[int, ...]] = []
    for seed in seeds:
        if groups and seed == groups[-1][-1] + 1 and len(groups[-1]) < most:
            groups[-1] += (seed,)
        else:
            groups.append((seed,))
    return groups


def run_options(config: Config, cell: GridCell) -> RunConfig:
    """The options of ``smore_offline.py`` for a cell, defaults filled in."""
    given = {name: getattr(config, name) for name in ("steps", "batch_size", "num_trajectories", "eval_episodes")}
    base = RunConfig(
        task=cell.task,
        method=cell.method,
        preset="paper" if config.preset == "paper" else "quick",
        device=config.device,
        compile=config.compile,
        precision=config.precision,
        threads=1 if config.device == "cpu" else 0,
        evaluation="here",  # the other cores have runs of their own
        rollout=False,
        **given,
    )
    run_config = with_defaults(dataclasses.replace(base, **dict(cell.options)))
    steps = run_config.steps or 1
    interval = config.eval_interval or max(steps // 10, 1)
    log_interval = min(run_config.log_interval or 1, interval)
    return dataclasses.replace(run_config, eval_interval=interval, save_interval=interval, log_interval=log_interval)


def check_folder(out: Path, jobs: Sequence[Job]) -> None:
    """Refuses a folder with other results for the same cells, before anything is written there.

    Raises:
        ValueError: if a cell is there with other options, or the result file is of another schema.
    """
    if (out / "results.csv").is_file():
        read_results(out / "results.csv")
    for folder in sorted({job.cell_folder for job in jobs}):
        stem = folder.name.rpartition("_")[0]
        others = [path for path in (out / "cells").glob(f"{stem}_????????") if path != folder]
        if others:
            raise ValueError(
                f"{out} holds {others[0].name} with other steps or options than are asked for now: "
                "give the same options as before, or another out=."
            )


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
            "num_trajectories": own[0].dataset["num_trajectories"],
            "dataset": dataset_folder(config.data_dir, **own[0].dataset).name,
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
    """Collects what the jobs learn from, each dataset once; returns why a job's failed, by its folder."""
    failures: dict[Path, str] = {}
    wanted: dict[str, list[Job]] = {}
    for job in jobs:
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


def describe_datasets(config: Config, jobs: Sequence[Job]) -> dict[str, list[dict[str, Any]]]:
    """By name of each dataset of the jobs that is there, its parts: whose, how many, and what they return.

    The discount of a return is the largest that the task is evaluated at.
    """
    found = {}
    for request in {json.dumps(job.dataset): job.dataset for job in jobs}.values():
        folder = dataset_folder(config.data_dir, **request)
        if folder.exists():
            # each run checks the data that it learns from
            parts = TrajectoryStore.load(folder, verify=False).meta.get("composition", [])
            kept = ("behaviour", "num_trajectories", "discounted_return", "return_over_max")
            found[folder.name] = [{name: part[name] for name in kept if name in part} for part in parts]
    return found


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
    started, show = time.perf_counter(), sys.stderr.isatty()
    with contextlib.closing(ended), tqdm(total=total, unit=" updates", unit_scale=True, disable=not show) as bar:
        for count, (number, outcome) in enumerate(ended, 1):
            job = jobs[number]
            bar.update(job.options["steps"] * len(job.seeds))
            if isinstance(outcome, Exception):
                failures[job.folder] = f"{type(outcome).__name__}: {(str(outcome).splitlines() or [''])[0]}"
                text = failures[job.folder]
            else:
                results[job.folder] = outcome
                write_tables(out, everything, results)
                lost = outcome["starts"].count(session) - 1
                again = f", begun again {lost} times after a lost worker" if lost else ""
                text = f"return at 0.99 {mean_return(outcome):.2f}{again}"
            left = (time.perf_counter() - started) / count * (len(jobs) - count)
            rest = f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"
            tqdm.write(f"[{count} of {len(jobs)}] {job.words}: {text} ({rest})")
            sys.stdout.flush()


def order(config: Config, job: Job, commit: str, session: str) -> dict[str, Any]:
    """What a worker is told of a job: plain values."""
    dataset = dataset_folder(config.data_dir, **job.dataset).resolve()
    options = {**job.options, "seed": job.seeds[0], "seeds": len(job.seeds), "dataset": str(dataset)}
    # where pictures of the dataset are kept
    options["data_dir"] = str(Path(config.data_dir).resolve())
    options = {key: value for key, value in options.items() if key not in ("run_root", "resume")}
    identity = {
        **{"table": " ".join(job.cell.tables), "task": job.cell.task, "method": paper_name(job.cell.method)},
        **{"setting": job.cell.setting, "commit": commit},
    }
    return {"folder": str(job.folder), "session": session, "options": options, "identity": identity}


def run_here(orders: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """One after another in this process; as :func:`parts.benchmark_ray.run_on_ray`."""
    for number, job in enumerate(orders):
        try:
            yield number, run_job(job)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
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


def mean_return(result: dict[str, Any]) -> float:
    """Discounted return at 0.99, mean over the seeds of a run."""
    values = [row["value"] for row in result["results"] if row["metric"] == "discounted_return_0.99"]
    return sum(values) / len(values)


def summarise(
    out: Path, jobs: Sequence[Job], results: dict[Path, Any], failures: dict[Path, str], seconds: float
) -> None:
    """Prints what came out.

    Raises:
        RuntimeError: if a run failed; what is finished stays.
    """
    finished = sum(job.folder in results for job in jobs)
    print(f"\n{finished} of {len(jobs)} runs finished; {seconds:.0f} s in this call")
    print(f"results: {out / 'results.csv'}\nnext: python recipes/report.py")
    if failures:
        for job in jobs:
            if job.folder in failures:
                print(f"failed: {job.words}: {failures[job.folder]}", file=sys.stderr)
        raise RuntimeError(f"{len(failures)} of {len(jobs)} runs failed; the same command tries them again.")


if __name__ == "__main__":
    sys.argv[1:] = ["status=true" if argument == "status" else argument for argument in sys.argv[1:]]
    run_recipe(Config, main, __doc__ or "")
