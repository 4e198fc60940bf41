"""Figures of a diagnosis, from its tables."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from torchrl_smore.reports.figures.style import goal_unit, panels
from torchrl_smore.reports.numbers import COSINE, FARTHEST, PREFERENCE, Diagnosis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: How an episode may end, with its colour.
_OUTCOMES = {
    "reached": "#009E73",
    "never moved": "#999999",
    "reached and left": "#56B4E9",
    "farther than at the start": "#D55E00",
    "short of the goal": "#E69F00",
}
_MOST_COLUMNS = 20
_TICKS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def weights_figure(diagnosis: Diagnosis) -> Figure:
    """Shares of rows and of weight by class, and quantiles of the advantage by group."""
    rows = diagnosis.tables["weights"]
    figure, (shares, quantiles) = panels(2, 2, width=5.4, height=max(4.0, 1.2 + 0.18 * len(rows)), legend=False)
    place = np.arange(len(rows))[::-1]
    shares.barh(place + 0.2, _numbers(rows, "rows"), 0.38, color="0.6", label="share of rows")
    shares.barh(place - 0.2, _numbers(rows, "weight_share"), 0.38, color=_COLOURS[0], label="share of weight")
    shares.set_yticks(place, [_class_name(row) for row in rows], fontsize=7)
    shares.set_xlabel("share", fontsize=8)
    # below the panel: in it there may be a bar at any place
    shares.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    shares.set_title("where the weight goes", fontsize=10)
    _quantile_lines(quantiles, diagnosis, "advantage")
    quantiles.axvline(0.0, color="0.4", linewidth=0.8)
    quantiles.set_title("advantage: quantiles by behaviour", fontsize=10)
    return figure


def scores_figure(diagnosis: Diagnosis) -> Figure:
    """Score and value against the steps that remain, and quantiles of the score against its range."""
    drawn = "scores" in diagnosis.tables
    figure, axes = panels(1 + drawn, 2, width=5.2, height=3.6, legend=False)
    if drawn:
        from matplotlib.ticker import MaxNLocator

        rows = diagnosis.tables["scores"]
        steps = _numbers(rows, "remaining")
        for name, label, colour in (("score", "S(s, a, g)", _COLOURS[0]), ("value", "M(s, g)", _COLOURS[1])):
            mean, std = _numbers(rows, f"{name}_mean"), _numbers(rows, f"{name}_std")
            axes[0].plot(steps, mean, color=colour, label=label, marker="o", markersize=3)
            axes[0].fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        axes[0].invert_xaxis()
        axes[0].set_ylabel("S, M (mean, one standard deviation)", fontsize=8)
        axes[0].set_xlabel("steps that remain to the goal", fontsize=8)
        axes[0].legend(fontsize=8, frameon=False)
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_title(f"along trajectories ({diagnosis.about['experts']})", fontsize=10)
    _quantile_lines(axes[-1], diagnosis, "score")
    for bound in ("lower", "upper"):
        if bound in diagnosis.numbers:
            axes[-1].axvline(diagnosis.numbers[bound], color="0.3", linestyle="--", linewidth=1)
    axes[-1].set_title("score: quantiles by behaviour; dashed: its closed-form range", fontsize=9)
    return figure


def phases_figure(diagnosis: Diagnosis) -> Figure:
    """Agreement with the expert, and preference of the score, by phase."""
    rows = diagnosis.tables["phases"]
    scored = "preferred" in rows[0]
    figure, axes = panels(1 + scored, 2, width=4.2, height=3.0, legend=False)
    names = [f"{row['phase'].replace('_', ' ')}\n{int(row['rows']):,} rows" for row in rows]
    bars = [("cosine", "policy's and expert's action: mean cosine", "cosine", COSINE)]
    bars += [("preferred", "states where S prefers the expert to chance", "share of states", PREFERENCE)] * scored
    for axis, (column, title, label, threshold) in zip(axes, bars):
        values = _numbers(rows, column)
        axis.bar(range(len(rows)), values, 0.6, color=_COLOURS[1])
        # at the goal, where any small action will do, nothing is judged
        for place in (i for i, row in enumerate(rows) if row["phase"] != "at_goal"):
            axis.hlines(threshold, place - 0.4, place + 0.4, color=_COLOURS[0], linestyle="--", linewidth=1)
        axis.set_xticks(range(len(rows)), names, fontsize=8)
        axis.set_ylim(min(0.0, float(values.min()) * 1.1), 1.05)
        axis.set_ylabel(label, fontsize=8)
        axis.set_title(title, fontsize=9)
    return figure


def inputs_figure(diagnosis: Diagnosis) -> Figure:
    """The columns that lie farthest out."""
    rows = sorted(diagnosis.tables["inputs"], key=lambda row: -float(row["largest"]))[:_MOST_COLUMNS]
    figure, (axis,) = panels(1, 1, width=7.5, height=0.8 + 0.22 * len(rows), legend=False)
    place = np.arange(len(rows))[::-1]
    axis.barh(place, _numbers(rows, "largest"), 0.65, color=_COLOURS[1])
    for bound, colour in ((5.0, "0.3"), (FARTHEST, _COLOURS[0])):
        axis.axvline(bound, color=colour, linestyle="--", linewidth=1)
    axis.set_yticks(place, [_input_name(row) for row in rows], fontsize=7)
    axis.set_xscale("log")
    axis.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axis.set_xticks([], minor=True)
    axis.set_xlim(1.0, 1.2 * max(FARTHEST, *_numbers(rows, "largest")))
    axis.set_xlabel("|z| [standard deviations of the data]", fontsize=8)
    axis.set_title("largest |z| (share of rows beyond 5)", fontsize=10)
    return figure


def episodes_figure(diagnosis: Diagnosis) -> Figure:
    """Distance to the goal along each episode, and how many end in which way."""
    from matplotlib.ticker import MaxNLocator

    figure, (lines, counts) = panels(2, 2, width=5.2, height=3.4, legend=False)
    outcome = {row["seed"]: row["outcome"] for row in diagnosis.tables["episodes"]}
    distances: dict[str, list[float]] = defaultdict(list)
    for row in diagnosis.tables["distances"]:
        distances[row["seed"]].append(float(row["distance"]))
    for seed, distance in distances.items():
        lines.plot(distance, color=_OUTCOMES[outcome[seed]], linewidth=0.9, alpha=0.7)
    lines.axhline(float(diagnosis.about["threshold"]), color="0.3", linestyle="--", linewidth=1)
    lines.set_title("distance to the goal; dashed: the threshold", fontsize=10)
    lines.set_xlabel("step", fontsize=8)
    columns = [row["column"] for row in diagnosis.tables.get("inputs", ()) if row["input"] == "desired_goal"]
    lines.set_ylabel(f"distance to the goal [{goal_unit(columns)}]", fontsize=8)
    names = list(_OUTCOMES)
    place = np.arange(len(names))[::-1]
    number = [sum(found == name for found in outcome.values()) for name in names]
    counts.barh(place, number, 0.65, color=list(_OUTCOMES.values()))
    counts.set_yticks(place, names, fontsize=8)
    counts.set_xlabel("episodes", fontsize=8)
    counts.xaxis.set_major_locator(MaxNLocator(integer=True))
    counts.set_title("episodes by how they end", fontsize=10)
    return figure


def _quantile_lines(axis: Axes, diagnosis: Diagnosis, quantity: str) -> None:
    """Of each group a line from the 5% to the 95% quantile, thick from 25 to 75%, dots at 1, 50 and 99%."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for row in diagnosis.tables["quantiles"]:
        if row["quantity"] == quantity:
            groups[row["group"]][row["quantile"]] = float(row["value"])
    for place, at in enumerate(groups.values()):
        colour = _COLOURS[place % len(_COLOURS)]
        axis.plot([at["0.05"], at["0.95"]], [-place] * 2, color=colour, linewidth=1.5)
        axis.plot([at["0.25"], at["0.75"]], [-place] * 2, color=colour, linewidth=6, solid_capstyle="butt")
        axis.plot([at["0.01"], at["0.99"]], [-place] * 2, color=colour, marker="|", linestyle="none")
        axis.plot([at["0.5"]], [-place], color="white", marker="o", markersize=4, markeredgecolor=colour)
    axis.set_yticks([-place for place in range(len(groups))], list(groups), fontsize=8)
    axis.set_ylim(-len(groups) + 0.4, 0.6)
    axis.set_xlabel(quantity, fontsize=8)


def _class_name(row: dict[str, str]) -> str:
    place = "there" if row["at_goal"] == "True" else "away"
    movement = "moving" if row["moving"] == "True" else "not moved"
    return f"{row['behaviour']}, {row['goal']} goal, {place}, {movement}"


def _input_name(row: dict[str, str]) -> str:
    prefix = "goal: " if row["input"] == "desired_goal" else ""
    return f"{prefix}{row['column']}  ({float(row['beyond']):.2%})"


def _numbers(rows: list[dict[str, str]], column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in rows])
