"""Where goals lie that are reached, and those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from torchrl_smore.reports.files import replacing

#: Goals of more columns are places of many parts, which two axes do not show.
MAX_COLUMNS = 3


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
    drawn = axes.scatter(goals[order, x], goals[order, y], c=success[order], cmap="RdYlGn", vmin=0, vmax=1, s=18)
    axes.set(xlabel=columns[x], ylabel=columns[y], title=title)
    figure.colorbar(drawn, ax=axes, label="success at the last step")
    with replacing(out) as beside:
        figure.savefig(beside, format="png", dpi=120)
    return True
