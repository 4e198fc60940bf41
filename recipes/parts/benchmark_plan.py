"""What a benchmark is asked for: its options, and the runs that they come to, stage by stage."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from parts import grid
from parts.benchmark_jobs import begun_groups, begun_options, folder_name
from parts.checks import MOST, check
from parts.cli import check_range, nearest, option
from parts.datasets import dataset_folder, digest
from parts.grid import GridCell, Plan
from parts.manifest import Manifest, read_manifest
from parts.manifest import Stage as Asked
from parts.methods import METHODS
from parts.options import OF_COLLECTION, with_defaults
from parts.options import Config as RunConfig
from parts.own_data import OF_DATA, OwnData, data_name, read_own_data
from torchrl_smore.envs import get_task
from torchrl_smore.reports import ResultsError, read_results

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
_OF_RUNS += ("device", "compile", "precision", "seeds_together", *OF_DATA)
_BESIDE_A_MANIFEST = ("manifest", "status", "earlier", "expert_policy", "data_dir", "out", "jobs", "address")
_BESIDE_A_MANIFEST += ("gpu_share",)


class NoCellsError(ValueError):
    """What is asked for has no cell that can be run."""


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
        metadata={"help": "[runs/NAME,...] of train_expert.py, one for each robot; default: the actors of the package"},
    )
    data_seed: int = option(0, "of every dataset: all methods and seeds learn from the same one")
    dataset: str | None = option(
        None,
        "of your own, for the one task of tasks=: a store, buffer.pkl (WGCSL), .hdf5 (D4RL), .npz (OGBench), table, "
        "Minari folder or id; several tasks: a manifest; default: collected",
    )
    dataset_format: str | None = option(None, "as smore_offline.py has it, and so are the four that follow")
    goal_columns: tuple[int, ...] | None = option(None, "of dataset=, for one without goals")
    desired_goal: tuple[float, ...] | None = option(None, "of dataset=, with goal_columns")
    columns: Any = option(None, "of dataset=, a table")  # noqa: RUF009 - nobody changes it
    clip_actions: bool = option(False, "of dataset=, to [-1, 1]")
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
    """Some seeds of one cell.

    ``dataset`` says what is collected for it, which is nothing where it has ``own_data``.
    """

    cell: GridCell
    seeds: tuple[int, ...]
    options: dict[str, Any]
    dataset: dict[str, Any]
    cell_folder: Path
    own_data: OwnData | None = None

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


def read_plan(config: Config) -> tuple[Config, Manifest | None, Path, list[Stage]]:
    """What a command asks for: its options with the manifest's and the preset's, the folder, and what is run in it."""
    if config.manifest is None:
        config, plan = read_request(config)
        grid.check_selected(plan, config.tasks, config.settings)
        check_one_dataset(config, [plan], {})
        out = Path(config.out or f"runs/benchmark/{name_of(config)}").resolve()
        return config, None, out, [Stage("", plan, make_jobs(config, plan, out))]
    manifest = read_manifest(config.manifest, Config, _OF_RUNS)
    config = of_manifest(config, manifest)
    out = Path(config.out or manifest.out).resolve()
    return config, manifest, out, make_stages(config, manifest, out)


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
    of_tasks = {task: own_sizes(options) for task, options in manifest.tasks.items()}
    check_options(config)
    for task, options in of_tasks.items():
        _check_of_task(config, task, options)
    requests = [_of_stage(config, stage, of_tasks) for stage in manifest.stages]
    check_one_dataset(config, [plan for asked in requests for _, plan in asked], of_tasks)
    stages = []
    taken: dict[Path, set[int]] = {}
    data: dict[str, OwnData] = {}
    for stage, asked in zip(manifest.stages, requests):
        try:
            grid.check_selected(grid.merge([plan for _, plan in asked]), stage.tasks, stage.settings)
        except ValueError as error:
            raise ValueError(f"{config.manifest}: stage {stage.name}: {error}") from error
        jobs = [job for own, plan in asked for job in make_jobs(own, plan, out, of_tasks, taken, data)]
        plans = [plan for _, plan in asked]
        stages.append(Stage(stage.name, grid.merge(plans), sorted(jobs, key=lambda job: job.seeds)))
    tasks = dict.fromkeys(cell.task for stage in stages for cell in stage.plan.cells)
    for name in (*manifest.tasks, *manifest.differs):
        if name not in tasks:
            known = nearest(name, [*tasks])
            raise ValueError(f"{config.manifest} says something of {name}, which is no task of its stages.{known}")
    return stages


def _of_stage(config: Config, stage: Asked, of_tasks: Mapping[str, Mapping[str, Any]]) -> list[tuple[Config, Plan]]:
    """What a stage asks for: of its tables those that have its tasks, methods and settings."""
    found, empty = [], None
    for request in stage.requests:
        try:
            found.append(read_request(dataclasses.replace(config, **request), of_tasks))
        except NoCellsError as error:
            empty = error
    if not found and empty is not None:
        raise empty
    return found


def _check_of_task(config: Config, task: str, options: Mapping[str, Any]) -> None:
    """Refuses what the options that a manifest has for a task cannot be; an error says where they were named."""
    try:
        check_options(dataclasses.replace(config, **options))
    except ValueError as error:
        raise ValueError(f"{config.manifest}: tasks: {task}: {error}") from error
    if options.get("preset") == "smoke":
        raise ValueError(f"{config.manifest}: tasks: {task}: preset smoke is of a whole benchmark, not of a task.")


def own_sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a task: where one is its dataset, the number of trajectories that others collect is not meant."""
    sizes = {} if options.get("dataset") is None else {"num_trajectories": None}
    return {**sizes, **options}


def read_request(config: Config, of_tasks: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[Config, Plan]:
    """The options with the preset's in place of those not given, and the cells that they ask for.

    Args:
        config: the options.
        of_tasks: by task the options that its cells have in place of those of ``config``.
    """
    of_tasks = of_tasks or {}
    check_options(config)
    preset = config.preset
    if preset is None:
        preset = "paper" if config.table or config.figure else "quick"
    if preset == "smoke":
        given = {name: getattr(config, name) for name in _SMOKE if getattr(config, name) is not None}
        given |= {} if config.dataset is None else {"num_trajectories": config.num_trajectories}
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
        read = [cell.task for cell in plan.cells if dataset_of(cell.task, config, of_tasks) is not None]
        if read:
            raise ValueError(
                f"dataset= of {read[0]}: the paper's tables and figures are of data that it names. Give tasks=, and "
                "methods= if not all, instead of table= or figure=."
            )
    elif config.tasks:
        paths = {task: dataset_of(task, config, of_tasks) for task in config.tasks}
        names = {task: data_name(path) for task, path in paths.items() if path is not None}
        plan = grid.free_plan(config.tasks, methods or list(METHODS), config.settings or ["default"], names)
    else:
        raise ValueError("nothing to run: give table=, figure=, preset=smoke or tasks=, see --help.")
    plan = grid.with_actors(plan, config.expert_policy)
    if not plan.cells:
        missing = f" ({'; '.join(plan.unavailable)})" if plan.unavailable else ""
        raise NoCellsError(f"the grid has no cell that can be run{missing}: loosen tasks=, methods= or settings=.")
    return config, plan


def dataset_of(task: str, config: Config, of_tasks: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The dataset that the options name for a task, if they name one."""
    return of_tasks.get(task, {}).get("dataset", config.dataset)


def check_one_dataset(config: Config, plans: Sequence[Plan], of_tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a dataset that is to be that of several tasks.

    Raises:
        ValueError: naming them.
    """
    tasks = dict.fromkeys(cell.task for plan in plans for cell in plan.cells)
    readers = [task for task in tasks if "dataset" not in of_tasks.get(task, {})]
    if config.dataset is not None and len(readers) > 1:
        raise ValueError(
            f"dataset={config.dataset} is of one task, and the grid has {', '.join(readers)}: give one of them, or "
            f"a manifest with a dataset for each, 'tasks: {{{readers[0]}: {{dataset: PATH}}, ...}}'."
        )


def check_options(config: Config) -> None:
    """Refuses names and numbers that cannot be."""
    idle = [name for name in (*OF_COLLECTION, "data_seed") if getattr(config, name, None)]
    if config.dataset is not None and config.manifest is None and idle:
        raise ValueError(f"{', '.join(idle)}: of no use with dataset=, which is read and not collected.")
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
        raise ValueError(f"gpu_share must be a finite number from 0, got {config.gpu_share}.")
    if config.gpu_share and config.jobs == 0:
        raise ValueError(f"gpu_share={config.gpu_share:g}: of no use with jobs=0, which runs without Ray.")
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
    data: dict[str, OwnData] | None = None,
) -> list[Job]:
    """The runs of a plan, options checked; nothing is begun if one of them cannot be.

    Seeds that a run of the folder has, finished or begun, stay together as they are there, with others if need be.

    Args:
        config: the options.
        plan: the cells.
        out: folder of the benchmark.
        of_tasks: by task the options that its cells have in place of those of ``config``.
        taken: by folder of a cell the seeds that other jobs run, which these join.
        data: by task the datasets of one's own that were looked at, which these join.

    Raises:
        ValueError: for an option that cannot be, or a dataset that is not there.
    """
    assert config.seeds is not None
    jobs, checked, taken, data = [], set(), {} if taken is None else taken, {} if data is None else data
    configs = {task: dataclasses.replace(config, **options) for task, options in (of_tasks or {}).items()}
    for cell in plan.cells:
        own = configs.get(cell.task, config)
        together = own.seeds_together or (1 if on_cpu(own) else config.seeds)
        own_data = None
        if own.dataset is not None:
            if cell.task not in data:
                data[cell.task] = _look_at(own, cell.task, (of_tasks or {}).get(cell.task, {}))
            own_data = data[cell.task]
        run_config = run_options(own, cell)
        # tasks share a check, of 30 ms, unless their options in a manifest, or having pictures, differ
        of_task = json.dumps((of_tasks or {}).get(cell.task, {}), sort_keys=True, default=str)
        pictures = get_task(cell.task).make_painter is not None
        checking = (cell.method, cell.options, own_data, of_task, pictures)
        if checking not in checked:
            # who only looks at what is done need not have the device that runs have
            check(run_config, elsewhere=config.address is not None or config.status)
            checked.add(checking)
        dataset = {} if own_data is not None else _collected(own, cell, run_config)
        options = dataclasses.asdict(run_config)
        # without what is not given: an option that comes with a later version leaves the folders of older cells
        identity = {key: value for key, value in options.items() if key not in _NOT_IDENTITY and value is not None}
        actors = [] if run_config.expert_policy is None else [digest(run_config.expert_policy)]
        source = get_task(cell.task).data_source.name
        told = [identity, dataset if source == cell.task else {**dataset, "data_task": source}, *actors]
        if own_data is not None:
            of_run = {key: value for key, value in identity.items() if key not in ("num_trajectories", *OF_DATA)}
            told = [of_run, own_data.identity]
        text = json.dumps(told, sort_keys=True)
        dataset |= {"expert_policy": run_config.expert_policy} if actors else {}
        if own_data is None:
            dataset_folder(config.data_dir, **dataset)  # raises if there is no such composition
        words = re.sub(r"[^\w.=-]+", "_", f"{cell.task}_{cell.method}_{cell.setting}")
        folder = out / "cells" / f"{words}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        options = {key: value for key, value in options.items() if key not in _DATA_OPTIONS}
        if own_data is not None:
            options |= {**own_data.options, "expert_fraction": run_config.expert_fraction}
        others = taken.setdefault(folder, set())
        asked = set(range(config.first_seed, config.first_seed + config.seeds)) - others
        groups = [group for group in begun_groups(folder) if asked & set(group) and not others & set(group)]
        groups += split(sorted(asked.difference(*groups)), together)
        others.update(*groups)
        jobs += [Job(cell, group, options, dataset, folder, own_data) for group in groups]
    # the first seeds of all cells before the second ones: an early stop leaves a whole table
    return sorted(jobs, key=lambda job: job.seeds)


def _look_at(config: Config, task: str, of_task: Mapping[str, Any]) -> OwnData:
    """The dataset of a task; an error says where it was named."""
    try:
        return read_own_data(config, task)
    except ValueError as error:
        if config.manifest is None:
            raise
        place = f"tasks: {task}" if "dataset" in of_task else "options"
        raise ValueError(f"{config.manifest}: {place}: {error} Paths are from the working directory.") from error


def _collected(config: Config, cell: GridCell, run_config: RunConfig) -> dict[str, Any]:
    """What is collected for a cell, as :func:`parts.datasets.dataset_folder` takes it, but for the expert's file."""
    dataset = {
        "task": cell.task,
        "num_trajectories": run_config.num_trajectories,
        "expert_fraction": run_config.expert_fraction,
        "seed": config.data_seed,
        "action_noise": run_config.action_noise,
    }
    noise = {name: getattr(run_config, name) for name in _EXPERT_NOISE}
    return dataset | {name: value for name, value in noise.items() if value is not None}


def split(seeds: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Ascending seeds in groups of at most ``most`` that follow each other: a run counts on from its first one."""
    groups: list[tuple[int, ...]] = []
    for seed in seeds:
        if groups and seed == groups[-1][-1] + 1 and len(groups[-1]) < most:
            groups[-1] += (seed,)
        else:
            groups.append((seed,))
    return groups


def on_cpu(config: Config) -> bool:
    """Whether runs train on a CPU; ``auto`` on a cluster counts as GPUs."""
    none_here = config.device == "auto" and config.address is None and not torch.cuda.is_available()
    return config.device == "cpu" or none_here


def run_options(config: Config, cell: GridCell) -> RunConfig:
    """The options of ``smore_offline.py`` for a cell, defaults filled in."""
    sizes = ("steps", "batch_size", "num_trajectories", "eval_episodes")
    given = {name: getattr(config, name) for name in (*sizes, *OF_DATA)}
    base = RunConfig(
        task=cell.task,
        method=cell.method,
        preset="paper" if config.preset == "paper" else "quick",
        device=config.device,
        compile=config.compile,
        precision=config.precision,
        threads=1 if on_cpu(config) else 0,
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
        try:
            read_results(out / "results.csv")
        except ResultsError as error:
            raise ValueError(
                f"{error} It is made of the runs below {out / 'cells'}: remove it, and the same command writes it anew."
            ) from error
    for folder, job in sorted({job.cell_folder: job for job in jobs}.items()):
        stem = folder.name.rpartition("_")[0]
        others = [path for path in (out / "cells").glob(f"{stem}_????????") if path != folder]
        if others:
            known = begun_options(others[0])
            differing = [
                f"{name} {known[name]}, now {value}"
                for name, value in job.options.items()
                if name not in _NOT_IDENTITY and name in known and known[name] != value
            ]
            what = "steps or options, or another dataset," if job.own_data is not None else "steps or options"
            told = f" ({'; '.join(differing[:3])})" if differing else ""
            raise ValueError(
                f"{out} holds {others[0].name} with other {what} than are asked for now{told}: "
                "give the same options as before, or another out=."
            )
