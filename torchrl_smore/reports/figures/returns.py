"""Figures of returns: along training, against the share of expert data, and against action noise.

All are of our runs, mean over seeds with a band of one standard deviation; where the paper has numbers they stand
beside ours as hollow points.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchrl_smore.reports.figures.style import draw_legend, method_styles, panels, say_empty
from torchrl_smore.reports.numbers import Cell, Result, RunSet, Sample, canonical_setting, mean_and_std, method_order
from torchrl_smore.reports.paper import (
    BASE_SETTING,
    HORIZONS,
    Paper,
    is_locomotion,
    judged_value,
    main_setting,
    our_sample,
    task_order,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRACTIONS = (0.0, 0.01, 0.025, 0.05, 0.1)
NOISES = (0.0, 0.5, 1.0, 1.5)
_COVERAGE_TASKS = ("Reacher", "SawyerReach", "SawyerDoor", "FetchReach", "FetchPick", "FetchPush", "FetchSlide")
_OVER_MAX = "return / largest possible"

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


def curve_settings(curves: Iterable[Result]) -> list[str]:
    """The canonical settings that curves are of, ``"main"`` for the data of Table 1 first, the others by alphabet."""
    cells = {(r.task, r.setting) for r in curves if judged_value(r.value, r.task, r.metric) is not None}
    found = {_setting_group(*cell) for cell in cells}
    return sorted(found, key=lambda setting: (setting != "main", setting))


def mean_curves(curves: Iterable[Result], setting: str = "main") -> dict[str, dict[str, Curve]]:
    """Return along training: task to method to updates, mean and standard deviation ``[T]``.

    It is over the maximum at 0.99, of locomotion at 0.999. A line has the evaluations that all of its seeds have: a
    mean over fewer would jump where a run has ended. With one seed the deviation is NaN.

    Args:
        curves: rows of curve files.
        setting: one of :func:`curve_settings`.
    """
    values: dict[tuple[str, str], dict[int, dict[int, float]]] = {}
    for row in curves:
        value = judged_value(row.value, row.task, row.metric)
        if value is not None and _setting_group(row.task, row.setting) == setting:
            values.setdefault((row.task, row.method), {}).setdefault(row.seed, {})[row.steps] = value
    found: dict[str, dict[str, Curve]] = {}
    for task in task_order(task for task, _ in values):
        for method in method_order(name for other, name in values if other == task):
            by_seed = values[task, method]
            steps = sorted(set.intersection(*(set(line) for line in by_seed.values())))
            if steps:
                moments = [mean_and_std([line[step] for line in by_seed.values()]) for step in steps]
                found.setdefault(task, {})[method] = (np.array(steps), *np.array(moments).T)
    return found


def learning_figure(curves: Iterable[Result], setting: str = "main") -> Figure:
    """A panel for each task: return over maximum at 0.99, of locomotion return at 0.999, against updates, every method.

    Args:
        curves: rows of curve files.
        setting: whose runs are shown; ``"main"`` is that of the paper's Table 1, task by task.
    """
    lines = mean_curves(curves, setting)
    methods = method_order(name for line in lines.values() for name in line)
    figure, axes = panels(max(1, len(lines)), 4, width=3.3, height=2.6)
    for axis, (task, by_method) in zip(axes, lines.items()):
        axis.set_title(task, fontsize=10)
        for method, style in method_styles(methods).items():
            if method in by_method:
                steps, mean, std = by_method[method]
                spread = np.nan_to_num(std)
                axis.plot(steps, mean, **style.line, marker=style.marker, markersize=4, markevery=_every(len(steps)))
                axis.fill_between(steps, mean - spread, mean + spread, color=style.color, alpha=0.15, linewidth=0)
        axis.set_ylim(*((0.0, None) if is_locomotion(task) else (-0.02, 1.02)))
        axis.set_ylabel("return at 0.999" if is_locomotion(task) else _OVER_MAX, fontsize=9)
    for axis in axes[:-1]:
        axis.set_xlim(left=0)
        axis.locator_params(axis="x", nbins=4, integer=True)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlabel("updates", fontsize=9)
    if not lines:
        say_empty(axes[0], "no learning curves")
    draw_legend(axes[-1], methods)
    return figure


def coverage_figure(results: Iterable[Result]) -> Figure:
    """A panel for each task of Table 2: return over maximum against the share of expert data, ours and the paper's."""
    from matplotlib.lines import Line2D

    runs, paper = RunSet(results), Paper()
    varied = {_fraction_setting(share) for share in FRACTIONS} - {BASE_SETTING}
    methods = method_order([*(r.method for r in runs.results if r.key[2] in varied), *_paper_methods()])
    tasks = [*_COVERAGE_TASKS, *(task for task in _tasks_of(runs, varied) if task not in HORIZONS)]
    figure, axes = panels(len(tasks), 4, width=3.3, height=2.7)
    for axis, task in zip(axes, tasks):
        axis.set_title(task, fontsize=10)
        drawn = False
        for i, (method, style) in enumerate(method_styles(methods).items()):
            cells = [Cell("", task, method, _fraction_setting(share), "discounted_return") for share in FRACTIONS]
            shift = 0.03 * (i - len(methods) / 2)
            ours = [our_sample(cell, runs, "return_over_max") for cell in cells]
            drawn |= _error_line(axis, ours, shift, color=style.color, marker=style.marker, ls=style.linestyle)
            printed = [_printed_over_max(paper, cell) for cell in cells]
            drawn |= _error_line(axis, printed, shift, color=style.color, marker=style.marker, ls=":", hollow=True)
        if not drawn:
            say_empty(axis)
        axis.set_xticks(range(len(FRACTIONS)), [f"{100 * share:g}" for share in FRACTIONS])
        axis.set_xlim(-0.4, len(FRACTIONS) - 0.6)
        axis.set_ylim(-0.02, 1.05)
        axis.set_xlabel("expert trajectories [%]", fontsize=9)
        axis.set_ylabel(_OVER_MAX, fontsize=9)
    hollow = Line2D([], [], color="0.3", linestyle=":", marker="o", markersize=5, markerfacecolor="none")
    filled = Line2D([], [], color="0.3", marker="o", markersize=5, label="filled: ours")
    hollow.set_label("hollow: the paper")
    draw_legend(axes[-1], methods, [filled, hollow])
    return figure


def noise_figure(results: Iterable[Result]) -> Figure:
    """Return at 0.99 against the standard deviation of the noise on actions, for FetchReach and tasks of our own."""
    runs = RunSet(results)
    settings = [_noise_setting(noise) for noise in NOISES]
    tasks = ["FetchReach", *(task for task in _tasks_of(runs, set(settings[1:])) if task != "FetchReach")]
    noisy = set(settings[1:])
    methods = method_order(r.method for r in runs.results if r.key[2] in noisy)
    figure, axes = panels(len(tasks), 3, width=4.2, height=3.2)
    for axis, task in zip(axes, tasks):
        axis.set_title(task, fontsize=10)
        drawn = False
        for i, (method, style) in enumerate(method_styles(methods).items()):
            shift = 0.02 * (i - len(methods) / 2)
            samples = [runs.sample(Cell("", task, method, setting, "discounted_return")) for setting in settings]
            drawn |= _error_line(axis, samples, shift, color=style.color, marker=style.marker, ls=style.linestyle)
        if not drawn:
            say_empty(axis)
        axis.set_xticks(range(len(NOISES)), [f"{noise:g}" for noise in NOISES])
        axis.set_xlim(-0.3, len(NOISES) - 0.7)
        axis.set_ylim(bottom=0.0)
        axis.set_xlabel("std of action noise [actions range from -1 to 1]", fontsize=9)
        axis.set_ylabel("discounted return at 0.99", fontsize=9)
    draw_legend(axes[-1], methods)
    return figure


def slug(setting: str) -> str:
    """A setting as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", setting).strip("_") or "setting"


@functools.cache
def _setting_group(task: str, setting: str) -> str:
    setting = canonical_setting(setting)
    return "main" if setting == main_setting(task) else setting


def _fraction_setting(share: float) -> str:
    return canonical_setting(f"expert={share:g}")


def _noise_setting(noise: float) -> str:
    return canonical_setting(f"{BASE_SETTING};noise={noise:g}" if noise else BASE_SETTING)


def _tasks_of(runs: RunSet, settings: set[str]) -> list[str]:
    return task_order(result.task for result in runs.results if result.key[2] in settings)


def _paper_methods() -> list[str]:
    return [entry.cell.method for number in (2, 6, 7, 8, 14) for entry in Paper().table(number)]


def _printed_over_max(paper: Paper, cell: Cell) -> Sample | None:
    entry = paper.find(cell)
    return None if entry is None else entry.return_over_max


def _every(count: int) -> int:
    """At most some twelve markers on a line."""
    return max(1, count // 12)


def _error_line(
    axis: Axes,
    samples: Sequence[Sample | None],
    shift: float,
    *,
    color: str,
    marker: str,
    ls: str,
    hollow: bool = False,
) -> bool:
    """Draws means with bars of one standard deviation at ``0, 1, ...``; says whether there was any."""
    places = [i for i, sample in enumerate(samples) if sample is not None]
    known = [sample for sample in samples if sample is not None]
    if not known:
        return False
    axis.errorbar(
        np.array(places) + shift,
        [sample.mean for sample in known],
        # of one seed there is no deviation: a bar of length 0 is not drawn
        yerr=np.nan_to_num([sample.std for sample in known]),
        color=color,
        marker=marker,
        linestyle=ls,
        markerfacecolor="white" if hollow else color,
        markersize=5,
        linewidth=1.0 if hollow else 1.5,
        elinewidth=0.9,
        alpha=0.75 if hollow else 1.0,
    )
    return True
