"""Pictures of one run: learning curves, rollouts, and where goals lie that it reaches."""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from torchrl_smore._files import replacing
from torchrl_smore.reports.figures.style import goal_unit, needing_plots

#: Goals of more columns are places of many parts, which two axes do not show.
MAX_COLUMNS = 3
_DISTANCE = "final distance"
_RETURN = "eval/discounted_return_"
# panel title -> columns of metrics.csv and their labels
_PANELS: dict[str, dict[str, str]] = {
    "success": {"eval/success_last": "at the last step", "eval/success_any": "at any step"},
    _DISTANCE: {"eval/final_distance": "after the last step"},
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


def read_metrics(path: str | Path, seed: int | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns of a ``metrics.csv`` as ``{name: (steps [n], values [n])}``, without the rows where they are empty.

    Args:
        path: of a run of one seed, or of several, then with a column ``seed``.
        seed: whose values to read from a file of several; ``None`` takes the mean over seeds.

    Raises:
        ValueError: if the file has no row of ``seed``.
    """
    spread = _read_spread(path, seed)
    return {name: (steps, values.mean(0)) for name, (steps, values) in spread.items()}


def _read_spread(path: str | Path, seed: int | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """:func:`read_metrics` before the mean: values ``[K, n]``, up to the last step that every seed has come to."""
    columns: dict[str, dict[str, list[tuple[float, float]]]] = {}
    seeds: set[str] = set()
    with Path(path).open(newline="") as file:
        for row in csv.DictReader(file):
            own = row.pop("seed", "")
            seeds.add(own)
            for name, text in row.items():
                if name != "step" and text and (seed is None or own == str(seed)):
                    columns.setdefault(name, {}).setdefault(own, []).append((float(row["step"]), float(text)))
    if seed is not None and str(seed) not in seeds:
        raise ValueError(f"{path} has no rows of seed {seed}; its seeds: {', '.join(sorted(seeds)) or 'none'}.")
    spread = {}
    for name, by_seed in columns.items():
        # all seeds log at the same steps; a killed run may lack the last rows of some
        length = min(map(len, by_seed.values()))
        pairs = np.array([rows[:length] for rows in by_seed.values()])
        spread[name] = (pairs[0, :, 0], pairs[:, :, 1])
    return spread


def plot_curves(
    metrics: str | Path,
    out: str | Path,
    *,
    title: str = "",
    horizon: int = 50,
    goal_columns: Sequence[str] = (),
    panels: Mapping[str, Mapping[str, str]] | None = None,
    unit: str = "updates",
) -> Path:
    """Draws a run's returns, losses, and scale of scores and residuals; of several seeds the mean, and their range.

    Args:
        metrics: the run's ``metrics.csv``.
        out: PNG file, written atomically.
        title: above the figure.
        horizon: steps of an episode, for the line at the largest possible return.
        goal_columns: meaning and unit of each column of the goal, such as ``"x [m]"``, for the unit of the distance.
        panels: columns of ``metrics`` and their labels, by the title of the panel that shows them; ``None``: those of
            runs of ``OfflineTrainer``, with the returns at every discount that there is.
        unit: what ``metrics`` counts in its column ``step``.

    Returns:
        ``out``.

    Raises:
        ValueError: if no known column has a value.
    """
    # a figure of its own and not pyplot, whose backend and open figures are the user's
    with needing_plots("plot_curves"):
        from matplotlib.figure import Figure

    columns = _read_spread(metrics)
    if panels is None:
        panels = {"return": _returns(columns), **_PANELS}
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
                steps, values = columns[column]
                (line,) = axis.plot(steps, values.mean(0), label=label, marker=marker, markersize=3, linewidth=1.4)
                if len(values) > 1:
                    axis.fill_between(
                        steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0
                    )
        if name == "return" and (first := next(iter(lines))).startswith(_RETURN):
            discount = first[len(_RETURN) :]
            largest = (float(discount) ** np.arange(horizon)).sum()
            axis.axhline(largest, color="0.6", linewidth=1, linestyle="--", label=f"maximum at {discount}")
        axis.set_title(f"{name} [{goal_unit(goal_columns)}]" if name == _DISTANCE else name, fontsize=10)
        axis.set_xlabel(unit, fontsize=8)
        axis.locator_params(axis="x", nbins=5, integer=True)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    with replacing(out) as beside:
        figure.savefig(beside, dpi=110, format="png")
    return Path(out)


def _returns(columns: Iterable[str]) -> dict[str, str]:
    """The columns of returns with their labels, the one at 0.99 first."""
    found = sorted((name for name in columns if name.startswith(_RETURN)), key=lambda name: float(name[len(_RETURN) :]))
    found.sort(key=lambda name: name != f"{_RETURN}0.99")
    return {name: f"discount {name[len(_RETURN) :]}" for name in found}


def write_gif(frames: np.ndarray, out: str | Path, *, fps: int = 12) -> Path:
    """Writes an endless GIF atomically.

    Args:
        frames: uint8, shape ``[T, H, W, 3]``.
        out: the file, which is returned.
        fps: frames per second.
    """
    with needing_plots("write_gif"):
        import imageio.v3 as imageio

    with replacing(out) as beside:
        imageio.imwrite(beside, np.asarray(frames, dtype=np.uint8), extension=".gif", duration=1000 / fps, loop=0)
    return Path(out)


def plot_goals(
    goals: np.ndarray, success: np.ndarray, columns: Sequence[str], out: str | Path, *, title: str = ""
) -> bool:
    """Draws goals over their two columns of largest extent, coloured by how often they were reached.

    Args:
        goals: shape ``[n, G]``.
        success: share of attempts that reached the goal, in ``[0, 1]``, shape ``[n]``.
        columns: meaning of each column of ``goals``.
        out: the PNG file.
        title: of the figure.

    Returns:
        Whether there is something to see, which are goals of at most three columns, two of which vary. If not, nothing
        is written.
    """
    extent = np.ptp(goals, axis=0)
    if goals.shape[1] > MAX_COLUMNS or (extent > 0).sum() < 2:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, y = sorted(np.argsort(extent)[-2:])
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    order = np.argsort(-success, kind="stable")  # failures above the rest
    # lightness tells the share under any colour blindness, and the edge shows the lightest on white
    places, shares = (goals[order, x], goals[order, y]), success[order]
    drawn = axes.scatter(*places, c=shares, cmap="cividis", vmin=0, vmax=1, s=22, edgecolors="0.2", linewidths=0.5)
    axes.set(xlabel=columns[x], ylabel=columns[y])
    # over the whole figure and in lines: a long name would be cut off at both sides
    figure.suptitle("\n".join(textwrap.wrap(title, 60)), fontsize=10)
    figure.colorbar(drawn, ax=axes, label="success at the last step")
    with replacing(out) as beside:
        figure.savefig(beside, format="png", dpi=120)
    return True
