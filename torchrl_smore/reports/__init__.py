"""Plots and tables from result files."""

from torchrl_smore.reports.plots import plot_curves, read_metrics, write_gif

__all__ = ["plot_curves", "read_metrics", "write_gif"]
