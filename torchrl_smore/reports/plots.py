"""Pictures of one run: learning curves and rollouts."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# panel title -> columns of metrics.csv and their labels
_PANELS: dict[str, dict[str, str]] = {
    "return": {
        "eval/discounted_return_0.99": "discount 0.99",
        "eval/discounted_return_0.98": "discount 0.98",
        "eval/discounted_return_0.999": "discount 0.999",
    },
    "success": {"eval/success_last": "at the last step", "eval/success_any": "at any step"},
    "final distance": {"eval/final_distance": "after the last step"},
    "score loss": {"loss_score": "loss_score"},
    "value loss": {"loss_value": "loss_value"},
    "actor loss": {"loss_actor": "loss_actor"},
    "score": {"q_score": "on q", "score": "on rho", "value": "M(s, g)"},
    "residual and advantage": {"residual": "Bellman residual (rms)", "mean_advantage": "advantage (mean)"},
    "fractions": {
        "weight_clipped": "AWR weights clipped",
        "bound_clipped": "bootstrap clipped",
        "score_outside": "scores out of range",
    },
}


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns of a ``metrics.csv`` as ``{name: (steps [n], values [n])}``, without the rows where they are empty."""
    columns: dict[str, list[tuple[float, float]]] = {}
    with Path(path).open(newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name != "step" and text:
                    columns.setdefault(name, []).append((float(row["step"]), float(text)))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in columns.items()}


def plot_curves(
    metrics: str | Path,
    out: str | Path,
    *,
    title: str = "",
    horizon: int = 50,
    panels: Mapping[str, Mapping[str, str]] = _PANELS,
    unit: str = "updates",
) -> Path:
    """Draws a run's returns, losses, and scale of scores and residuals.

    Args:
        metrics: the run's ``metrics.csv``.
        out: PNG file to write, replaced when whole.
        title: above the figure.
        horizon: steps of an episode, for the line at the largest possible return.
        panels: columns of ``metrics`` and their labels, by the title of the panel that shows them.
        unit: what ``metrics`` counts in its column ``step``.

    Returns:
        ``out``.

    Raises:
        ValueError: if no known column has a value.
    """
    # a figure of its own and not pyplot, whose backend and open figures are the user's
    from matplotlib.figure import Figure

    columns = read_metrics(metrics)
    panels = {name: lines for name, lines in panels.items() if any(column in columns for column in lines)}
    if not panels:
        raise ValueError(f"{metrics} has none of the columns that curves are drawn from.")
    width = 3
    rows = math.ceil(len(panels) / width)
    figure = Figure(figsize=(4.2 * width, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, width, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (name, lines) in zip(axes.flat, panels.items()):
        for column, label in lines.items():
            if column in columns:
                marker = "o" if column.startswith("eval/") else None
                axis.plot(*columns[column], label=label, marker=marker, markersize=3, linewidth=1.4)
        if name == "return":
            largest = (1 - 0.99**horizon) / (1 - 0.99)
            axis.axhline(largest, color="0.6", linewidth=1, linestyle="--", label="maximum at 0.99")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    out = Path(out)
    beside = out.with_name(f".{out.name}.partial")
    figure.savefig(beside, dpi=110, format="png")
    os.replace(beside, out)
    return out


def write_gif(frames: np.ndarray, out: str | Path, *, fps: int = 12) -> Path:
    """Writes frames ``[T, H, W, 3]``, uint8, as an endless GIF, replaced when whole."""
    import imageio.v3 as imageio

    out = Path(out)
    beside = out.with_name(f".{out.name}.partial")
    imageio.imwrite(beside, np.asarray(frames, dtype=np.uint8), extension=".gif", duration=1000 / fps, loop=0)
    os.replace(beside, out)
    return out
