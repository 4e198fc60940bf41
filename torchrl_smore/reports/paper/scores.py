"""Our runs in the units that tables and figures show."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from torchrl_smore.reports.numbers import Cell, RunSet, Sample, canonical_setting, method_order
from torchrl_smore.reports.paper.published import HORIZONS, Paper, max_return

View = Literal["discounted_return_0.98", "discounted_return_0.99", "return_over_max", "success_rate", "final_distance"]
Scores = dict[str, dict[str, np.ndarray]]
Method = TypeVar("Method", bound=Hashable)

#: The setting that most of the paper's tables have: a tenth of the data are an expert's.
BASE_SETTING = "expert=0.1"
# of Table 13: the authors ran it twice, and one run of ours stands beside both
_SECOND_ATTEMPT = "r_gofar_binary"
#: What the part of a setting begins with that names data of one's own.
OWN_DATA = "data="
#: The setting of Figure 3: observations and goals are pictures, and all of the data are primitives of a script.
IMAGE_SETTING = "expert=1;images"
#: The evaluation tasks of Figure 3, in its order of two single primitives and two stitched ones.
IMAGE_TASKS = ("Tabletop-drawer", "Tabletop-pick", "Tabletop-pick-close", "Tabletop-push-open")


def our_sample(cell: Cell, runs: RunSet, view: View) -> Sample | None:
    """What our runs say of a cell, in the unit of a view, or ``None``.

    ``return_over_max`` divides the return at 0.99 by :func:`~torchrl_smore.reports.max_return`; of tasks that are
    not the paper's it is the metric of that name, which is at the largest discount that they are evaluated at.

    Args:
        cell: of one of the paper's tables.
        runs: our results.
        view: what to say of it; see :func:`~torchrl_smore.reports.views`.
    """
    task = without_data(cell.task)
    if view == "return_over_max" and task not in HORIZONS:
        return runs.sample(cell._replace(metric=view))
    if cell.setting == _SECOND_ATTEMPT:
        cell = cell._replace(setting="gofar_binary")
    sample = runs.sample(cell, discount=0.98 if view == "discounted_return_0.98" else 0.99)
    if sample is None or sample.values is None or view != "return_over_max":
        return sample
    most = max_return(task, 0.99)
    return Sample(sample.mean / most, sample.std / most, sample.num_seeds, sample.values / most)


def is_locomotion(task: str) -> bool:
    """Whether a task is one of the paper's of locomotion, on any data: these are judged by the return at 0.999."""
    return HORIZONS.get(without_data(task), 0) > 50


def judged_sample(cell: Cell, runs: RunSet) -> Sample | None:
    """What our runs say of a cell in the unit that its task is judged by: return over maximum, of locomotion at 0.999.

    Args:
        cell: of one of the paper's tables.
        runs: our results.
    """
    if is_locomotion(cell.task):
        return runs.sample(cell, discount=0.999)
    return our_sample(cell, runs, "return_over_max")


def over_max(result_value: float, task: str, metric: str) -> float | None:
    """A row's value as a share of the largest return at 0.99, or ``None`` for a row that says something else.

    Args:
        result_value: of the row.
        task: of the row.
        metric: of the row: ``discounted_return_0.99``, or, of tasks that are not the paper's, ``return_over_max``.
    """
    if without_data(task) in HORIZONS:
        return result_value / max_return(without_data(task), 0.99) if metric == "discounted_return_0.99" else None
    return result_value if metric == "return_over_max" else None


def judged_value(result_value: float, task: str, metric: str) -> float | None:
    """A row's value in the unit that its task is judged by, or ``None`` for a row that says something else.

    Args:
        result_value: of the row.
        task: of the row.
        metric: of the row; see :func:`over_max`, of locomotion ``discounted_return_0.999``.
    """
    if is_locomotion(task):
        return result_value if metric == "discounted_return_0.999" else None
    return over_max(result_value, task, metric)


def task_order(names: Iterable[str]) -> list[str]:
    """Each name once: the paper's tasks in the order of its Table 1, then others by alphabet."""
    found = set(names)
    return [name for name in HORIZONS if name in found] + sorted(found - set(HORIZONS))


def is_own(task: str) -> bool:
    """Whether the name of a task says that the data are one's own: ``FetchReach, data=NAME``."""
    return f", {OWN_DATA}" in task


def without_data(task: str) -> str:
    """The task itself, where its name says that the data are one's own; see :func:`is_own`."""
    return task.partition(f", {OWN_DATA}")[0]


def data_words(tasks: Iterable[str]) -> str:
    """Of which data the runs on some tasks are that are not set apart, in words."""
    own = [is_own(task) for task in tasks]
    if not any(own):
        return "data of Table 1"
    return "data of one's own" if all(own) else "data of Table 1, or of one's own where a task's name says so"


def main_setting(task: str) -> str:
    """The data of Table 1: of tasks that it has not, 10% expert data."""
    return _main_settings().get(task, BASE_SETTING)


def main_scores(runs: RunSet, *, judged: bool = False) -> Scores:
    """Return over maximum at 0.99 on the data of Table 1: method to task to values ``[n]`` in the order of seeds.

    Methods and tasks come in the order of :func:`method_order` and :func:`task_order`.

    Args:
        runs: our results.
        judged: whether values are in the unit of :func:`judged_sample`, which differs between tasks.
    """
    keys = {(r.method, r.task) for r in runs.results if r.key[2] == main_setting(r.task)}
    scores: Scores = {}
    for method in method_order(method for method, _ in keys):
        for task in task_order(task for name, task in keys if name == method):
            cell = Cell("1", task, method, main_setting(task), "discounted_return")
            sample = judged_sample(cell, runs) if judged else our_sample(cell, runs, "return_over_max")
            if sample is not None and sample.values is not None:
                scores.setdefault(method, {})[task] = sample.values
    return scores


def shared_tasks(scores: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """The tasks that every method has, in order."""
    return [
        task
        for task in task_order(t for line in scores.values() for t in line)
        if all(task in line for line in scores.values())
    ]


def widely_run(tasks_of: Mapping[Method, Collection[Any]]) -> list[Method]:
    """Those methods that have at least half as many tasks as the one that has most, in their order.

    A comparison over the tasks that all of these have says more than one over the single task of a method just begun.
    """
    most = max(map(len, tasks_of.values()), default=0)
    return [method for method, tasks in tasks_of.items() if 2 * len(tasks) >= most]


def groups_of(scores: Mapping[str, Mapping[str, np.ndarray]], method: str, tasks: Sequence[str]) -> list[np.ndarray]:
    """Values of one method, one array ``[n_k]`` for each task."""
    return [scores[method][task] for task in tasks]


@functools.cache
def _main_settings() -> dict[str, str]:
    return {entry.cell.task: canonical_setting(entry.cell.setting) for entry in Paper().table(1)}
