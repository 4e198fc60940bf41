"""Figures: of one run, of all runs, of aggregates over tasks and of a diagnosis."""

from torchrl_smore.reports.figures.aggregates import improvement_figure
from torchrl_smore.reports.figures.plots import plot_curves, plot_goals, read_metrics, write_gif
from torchrl_smore.reports.figures.returns import learning_figure
from torchrl_smore.reports.figures.style import save_figure

__all__ = [
    "improvement_figure",
    "learning_figure",
    "plot_curves",
    "plot_goals",
    "read_metrics",
    "save_figure",
    "write_gif",
]
