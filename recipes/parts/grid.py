"""What a benchmark runs: cells of task, method and setting, in the words of the paper's tables.

A setting says what differs from the method's defaults on 10% expert data, ``;`` between its parts, see
:mod:`torchrl_smore.reports.results`: ``expert=0.05``, ``noise=0.5``, ``no_her``, ``beta=0.7``, or any option of
``smore_offline.py`` as ``name=value``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from parts.cli import nearest, typed
from parts.methods import METHODS
from parts.options import FREE_OPTIONS, method_options
from parts.options import Config as RunConfig
from parts.own_data import DATA_PART, on_own_data
from torchrl_smore.envs import ACTION_NOISES, get_task, task_names
from torchrl_smore.envs.experts import ActorExpert
from torchrl_smore.reports import IMAGE_SETTING, IMAGE_TASKS, Paper, Result, canonical_setting

PAPER_METHODS = ("SMORe", "GoFAR", "WGCSL", "GCSL", "CRL", "AM", "GC-IQL")
#: Those of Figure 3 that learn from pictures.
IMAGE_METHODS = ("SMORe", "CRL", "GC-IQL", "hindsight_bc")
#: Parts of a setting that are no option of the recipe.
VARIANTS: dict[str, dict[str, Any]] = {
    "no_her": {"her_ratio": 0.0},
    "no_awr": {"actor": "score"},
    "no_awr_no_expectile": {"actor": "score", "value_target": "policy", "expectile": 0.5},
    "gofar_binary": {"reward": "binary"},
    "gofar_expectile_awr": {"actor_weight": "expectile_awr"},
    "images": {"pixels": 48},
}
#: Options of the recipe that the benchmark decides itself: a setting says what is trained, not where and how.
_NO_SETTINGS = frozenset(
    [
        *FREE_OPTIONS,
        *("task", "method", "preset", "seed", "seeds", "goal_columns", "desired_goal", "columns", "clip_actions"),
        *("expert_policy", "medium_policy", "eval_interval", "log_interval", "save_interval"),
    ]
)
#: The paper's second attempt at a variant of which there is one here.
_ALIASES = {"r_gofar_binary": "gofar_binary"}
#: Of each table the smoke test takes the first of these that the table and the registry have.
_SMOKE_TASKS = ("FetchReach", "Reacher", "SawyerReach", "FetchPush")


@dataclass(frozen=True)
class GridCell:
    """One cell: what is trained, on how many seeds is not its business.

    ``method`` is the name that ``method=`` of the recipe takes, ``options`` are the setting as options of the recipe.
    """

    task: str
    method: str
    setting: str
    tables: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.task}, {paper_name(self.method)}, {self.setting}"


@dataclass(frozen=True)
class Plan:
    """The cells to run, and in words those that cannot be."""

    cells: tuple[GridCell, ...]
    unavailable: tuple[str, ...] = field(default=())


def paper_name(method: str) -> str:
    """A method as result files name it: ``gc_iql`` is ``GC-IQL``."""
    return Result("", "-", method, "default", 0, "-", 0.0, 0, 0, "", "").method


def recipe_name(method: str) -> str:
    """A method as the recipe names it, from either name.

    Raises:
        ValueError: for a name that is neither; proposes the nearest.
    """
    name = method.lower().replace("-", "_")
    if name not in METHODS:
        raise ValueError(f"unknown method {method!r}: expected {', '.join(METHODS)}.{nearest(name, list(METHODS))}")
    return name


def setting_options(setting: str) -> dict[str, Any]:
    """A setting as options of ``smore_offline.py``.

    Raises:
        ValueError: for a part that says nothing known; proposes the nearest.
    """
    names = [f.name for f in dataclasses.fields(RunConfig)]
    options: dict[str, Any] = {}
    for part in canonical_setting(setting).split(";"):
        name, equals, text = part.partition("=")
        if not equals and name in VARIANTS:
            options |= VARIANTS[name]
            continue
        if part in _compositions(setting):
            options["expert_fraction"] = None
            continue
        if name == DATA_PART:
            continue
        name = {"expert": "expert_fraction", "noise": "action_noise"}.get(name, name)
        if not equals or name not in names:
            known = [*VARIANTS, "expert", "noise", *names]
            raise ValueError(
                f"setting {setting!r}: {part!r} is neither a variant ({', '.join(VARIANTS)}) nor an option as "
                f"name=value.{nearest(part.partition('=')[0], known)}"
            )
        if name in _NO_SETTINGS:
            raise ValueError(f"setting {setting!r}: {name} is no part of a setting, the benchmark itself decides it.")
        options[name] = typed(RunConfig, name, _value(text), f"setting {setting!r}")
    return options


def _value(text: str) -> Any:
    # before YAML, to which 1e-05 and inf are texts
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return yaml.safe_load(text)


def _compositions(setting: str) -> set[str]:
    """The parts that name what a locomotion task's dataset is made of, which is no option: ``mix=m-e``."""
    return {part for part in setting.split(";") if part.startswith("mix=") or part.endswith("_episodes")}


def applies(method: str, options: dict[str, Any]) -> bool:
    """Whether a method has all options of the loss that a setting sets."""
    of_losses = {name for known in METHODS for name in method_options(known)}
    return of_losses & set(options) <= set(method_options(method))


def table_plan(number: str) -> Plan:
    """The cells of one of the paper's tables.

    Raises:
        ValueError: if there is no such table.
    """
    entries = [entry.cell for entry in Paper().table(number) if entry.mean is not None]
    return _plan([(cell.task, cell.method, cell.setting, f"{number}") for cell in entries])


def figure_plan(number: str) -> Plan:
    """The cells of Figure 2, FetchReach with noise on the executed actions, or of Figure 3, tasks seen as pictures.

    Beside SMORe the paper names two methods of Figure 3, stable contrastive RL and GC-IQL; here SMORe's control,
    cloning of hindsight goals, is run as well.

    Raises:
        ValueError: for another figure.
    """
    if number == "3":
        return _plan([(task, method, IMAGE_SETTING, "figure 3") for method in IMAGE_METHODS for task in IMAGE_TASKS])
    if number != "2":
        raise ValueError(f"figure={number} cannot be run: expected 2 or 3 (Figure 1 is a sketch).")
    settings = [f"expert=0.1;noise={noise:g}" for noise in ACTION_NOISES]
    return _plan([("FetchReach", method, setting, "figure 2") for method in PAPER_METHODS for setting in settings])


def smoke_plan() -> Plan:
    """Every table and figure, each on one cheap task."""
    wanted = []
    for number in Paper().tables:
        cells = [entry.cell for entry in Paper().table(number) if entry.mean is not None]
        tasks = {cell.task for cell in cells} & set(task_names())
        chosen = next((task for task in _SMOKE_TASKS if task in tasks), None)
        wanted += [(cell.task, cell.method, cell.setting, number) for cell in cells if cell.task == chosen]
    return merge([_plan(wanted), figure_plan("2")])


def free_plan(
    tasks: Sequence[str], methods: Sequence[str], settings: Sequence[str], data: Mapping[str, str] | None = None
) -> Plan:
    """All of some tasks by some methods by some settings, less what a method has no option for.

    Args:
        tasks: their names.
        methods: their names.
        settings: what differs from a method's defaults.
        data: by task the name of a dataset of one's own, which becomes a part of its settings.

    Raises:
        ValueError: for an unknown name, or a setting that none of the methods has.
    """
    wanted = []
    for setting in settings:
        if on_own_data(setting):
            raise ValueError(f"setting {setting!r}: the dataset is no part of a setting, give dataset=.")
        options = setting_options(_ALIASES.get(setting, setting))
        takers = [method for method in methods if applies(recipe_name(method), options)]
        if not takers:
            raise ValueError(f"no cell: setting {setting!r} applies to none of the methods {', '.join(methods)}.")
        named = {task: f"{setting};{DATA_PART}={name}" for task, name in (data or {}).items()}
        wanted += [(task, method, named.get(task, setting), "") for task in tasks for method in takers]
    return _plan(wanted)


def merge(plans: Iterable[Plan]) -> Plan:
    """Cells of several plans, each once, with all the tables that it is for."""
    cells: dict[tuple[str, str, str], GridCell] = {}
    unavailable: dict[str, None] = {}
    for plan in plans:
        unavailable |= dict.fromkeys(plan.unavailable)
        for cell in plan.cells:
            key = cell.task, cell.method, cell.setting
            tables = (*cells[key].tables, *cell.tables) if key in cells else cell.tables
            cells[key] = dataclasses.replace(cell, tables=tuple(dict.fromkeys(tables)))
    return Plan(tuple(cells.values()), tuple(unavailable))


def select(plan: Plan, tasks: Sequence[str], methods: Sequence[str], settings: Sequence[str]) -> Plan:
    """The cells on given tasks, of given methods, in given settings; an empty list lets all pass."""
    names = [recipe_name(method) for method in methods]
    wanted = [canonical_setting(_ALIASES.get(setting, setting)) for setting in settings]
    cells = [
        cell
        for cell in plan.cells
        if (not tasks or cell.task in tasks)
        and (not names or cell.method in names)
        and (not wanted or cell.setting in wanted)
    ]
    missing = [text for text in plan.unavailable if not tasks or text.split(",")[0] in tasks]
    return Plan(tuple(cells), tuple(missing))


def check_selected(plan: Plan, tasks: Iterable[str], settings: Iterable[str]) -> None:
    """Refuses a task or a setting that a plan, which was made for it, has no cell of.

    Raises:
        ValueError: naming it, and those that the plan has.
    """
    told = "; ".join(plan.unavailable)
    for task in tasks:
        if all(cell.task != task for cell in plan.cells) and task not in told:
            known = ", ".join(dict.fromkeys(cell.task for cell in plan.cells)) or "no task at all"
            raise ValueError(f"no cell of {task} is in what is asked for, which has {known}.")
    for setting in settings:
        own = canonical_setting(_ALIASES.get(setting, setting))
        if all(own != _without_data(cell.setting) for cell in plan.cells) and own not in told:
            known = ", ".join(dict.fromkeys(cell.setting for cell in plan.cells)) or "none at all"
            raise ValueError(f"no cell of the setting {setting!r} is in what is asked for, which has {known}.")


def _without_data(setting: str) -> str:
    """A setting without the name of a dataset of one's own."""
    rest = [part for part in setting.split(";") if part.partition("=")[0] != DATA_PART]
    return canonical_setting(";".join(rest) or "default")


def beside(plan: Plan, methods: Sequence[str]) -> Plan:
    """A plan with further methods on its tasks and settings, as far as they have options for these."""
    there = {cell.method for cell in plan.cells}
    settings = dict.fromkeys((cell.task, cell.setting, cell.tables) for cell in plan.cells)
    more = [
        GridCell(task, name, setting, tables, tuple(setting_options(setting).items()))
        for name in map(recipe_name, methods)
        if name not in there
        for task, setting, tables in settings
        if applies(name, setting_options(setting))
    ]
    return merge([plan, Plan(tuple(more))])


def with_actors(plan: Plan, folders: Sequence[str]) -> Plan:
    """Gives tasks without a scripted expert a trained one, or that of the package; else a cell is unavailable.

    Args:
        plan: the cells.
        folders: run folders of ``train_expert.py``.

    Raises:
        ValueError: if a folder holds no actor.
    """
    actors = [(ActorExpert(Path(folder) / "expert.npz"), str(Path(folder).resolve())) for folder in folders]
    plans = [Plan((), plan.unavailable)]
    for cell in plan.cells:
        task = get_task(cell.task)
        widths = task.observation_dim, task.action_dim
        fitting = [folder for actor, folder in actors if (actor.observation_dim, actor.action_dim) == widths]
        if on_own_data(cell.setting) or task.scripted or (not fitting and task.bundled_actors is not None):
            plans.append(Plan((cell,)))
        elif fitting:
            options = (*cell.options, ("expert_policy", fitting[0]))
            plans.append(Plan((dataclasses.replace(cell, options=options),)))
        else:
            reason = f"no expert: train one, python recipes/train_expert.py task={task.name}, and give expert_policy="
            plans.append(Plan((), (f"{task.name}, every method: {reason}[ITS RUN FOLDER]",)))
    return merge(plans)


def _own_composition(name: str) -> set[str]:
    """What the paper's setting says of the dataset that a locomotion task's name stands for."""
    task = get_task(name)
    return set() if task.scripted else {f"expert={task.expert_episodes}_episodes", f"mix={task.rest[0]}-e"}


def _plan(wanted: Iterable[tuple[str, str, str, str]]) -> Plan:
    plans = []
    for task, method, setting, table in wanted:
        setting = canonical_setting(_ALIASES.get(setting, setting))
        words = f"{task}, {paper_name(method)}, {setting}"
        own_data = on_own_data(setting)
        # a task of one's own is MODULE:NAME
        if ":" not in task and task not in task_names():
            plans.append(Plan((), (f"{task}, every method: no such task in this version",)))
        elif _compositions(setting) not in (set(), set() if own_data else _own_composition(task)):
            plans.append(Plan((), (f"{words}: no dataset of this composition can be collected",)))
        else:
            options = tuple(setting_options(setting).items())
            tables = (table,) if table else ()
            plans.append(Plan((GridCell(task, recipe_name(method), setting, tables, options),)))
    return merge(plans)


def changed_datasets(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the datasets of ``now`` of which ``before`` tells other parts or other returns."""

    def differ(name: str) -> bool:
        old, new = before[name], now[name]
        same = [part["behaviour"] for part in old] == [part["behaviour"] for part in new]
        # a file holds all digits of a return; sums of one machine may differ in the last ones
        return not same or any(
            abs(a.get("discounted_return", 0.0) - b.get("discounted_return", 0.0)) > 1e-6 for a, b in zip(old, new)
        )

    return [name for name in now if name in before and differ(name)]
