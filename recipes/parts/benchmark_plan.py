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

from parts import grid
from parts.benchmark_jobs import begun_groups, folder_name
from parts.checks import MOST, check
from parts.cli import check_range, nearest, option
from parts.datasets import dataset_folder, digest
from parts.grid import GridCell, Plan
from parts.manifest import Manifest, read_manifest
from parts.methods import METHODS
from parts.options import Config as RunConfig
from parts.options import with_defaults
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
        metadata={"help": "[runs/NAME,...] of train_expert.py, one for each robot; default: the actors of the package"},
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


def read_plan(config: Config) -> tuple[Config, Manifest | None, Path, list[Stage]]:
    """What a command asks for: its options with the manifest's and the preset's, the folder, and what is run in it."""
    if config.manifest is None:
        config, plan = read_request(config)
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
        try:
            read_results(out / "results.csv")
        except ResultsError as error:
            raise ValueError(
                f"{error} It is made of the runs below {out / 'cells'}: remove it, and the same command writes it anew."
            ) from error
    for folder in sorted({job.cell_folder for job in jobs}):
        stem = folder.name.rpartition("_")[0]
        others = [path for path in (out / "cells").glob(f"{stem}_????????") if path != folder]
        if others:
            raise ValueError(
                f"{out} holds {others[0].name} with other steps or options than are asked for now: "
                "give the same options as before, or another out=."
            )
