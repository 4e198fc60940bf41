"""Figures of aggregates over tasks: interquartile means, performance profiles, probabilities of improvement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchrl_smore.reports.figures.style import draw_legend, method_styles, panels, say_empty
from torchrl_smore.reports.numbers import Estimate, method_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EMPTY = "no task that every method has"


def iqm_figure(estimates: Mapping[str, Estimate]) -> Figure:
    """Interquartile mean of each method with its 95% interval."""
    figure, axis = _interval_panel(estimates)
    axis.set_xlabel("interquartile mean of return / largest possible at 0.99", fontsize=9)
    if not estimates:
        say_empty(axis, _EMPTY)
    return figure


def improvement_figure(method: str, estimates: Mapping[str, Estimate]) -> Figure:
    """Probability that ``method`` is above each rival, with its 95% interval.

    Args:
        method: ours.
        estimates: by rival.
    """
    figure, axis = _interval_panel(estimates)
    axis.axvline(0.5, color="0.4", linewidth=1, linestyle="--")
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(f"P({method} > the method on the left)", fontsize=9)
    if not estimates:
        say_empty(axis, f"no task that {method} and another method have")
    return figure


def profile_figure(thresholds: Sequence[float] | np.ndarray, estimates: Mapping[str, Estimate]) -> Figure:
    """Share of runs above each threshold, with 95% bands.

    Args:
        thresholds: shape ``[T]``, return over maximum at 0.99.
        estimates: by method, each of shape ``[T]``.
    """
    figure, (axis, key) = panels(1, 2, width=4.8, height=3.4)
    for method, style in method_styles(list(estimates)).items():
        estimate = estimates[method]
        marks = max(1, len(thresholds) // 8)
        axis.plot(thresholds, estimate.value, **style.line, marker=style.marker, markersize=4, markevery=marks)
        axis.fill_between(thresholds, estimate.low, estimate.high, color=style.color, alpha=0.12, linewidth=0)
    axis.set_xlim(0.0, 1.0)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("threshold t: return / largest possible at 0.99", fontsize=9)
    axis.set_ylabel("share of runs above t", fontsize=9)
    if not estimates:
        say_empty(axis, _EMPTY)
    draw_legend(key, list(estimates))
    return figure


def _interval_panel(estimates: Mapping[str, Estimate]) -> tuple[Figure, Axes]:
    """One line for each method, the first at the top."""
    figure, (axis,) = panels(1, 1, width=6.2, height=1.2 + 0.28 * max(3, len(estimates)), legend=False)
    styles = method_styles(list(estimates))
    for place, (method, style) in enumerate(styles.items()):
        estimate = estimates[method]
        axis.hlines(place, estimate.low, estimate.high, color=style.color, linewidth=7, alpha=0.35)
        axis.plot([estimate.value], [place], color=style.color, marker=style.marker, markersize=7)
    axis.set_yticks(range(len(styles)), [method_label(method) for method in styles], fontsize=9)
    axis.set_ylim(max(len(styles), 1) - 0.4, -0.6)
    return figure, axis
