"""Plots and tables from result files."""

from torchrl_smore.reports.claims import Outcome, claims_to_markdown, evaluate_claim, evaluate_claims
from torchrl_smore.reports.paper import Paper, PaperCell, max_return
from torchrl_smore.reports.plots import plot_curves, read_metrics, write_gif
from torchrl_smore.reports.results import (
    Cell,
    Result,
    ResultsError,
    RunSet,
    Sample,
    canonical_setting,
    merge_results,
    read_results,
    write_results,
)
from torchrl_smore.reports.statistics import (
    Comparison,
    SignificanceTest,
    adjust_p_values,
    bootstrap_interval,
    interquartile_mean,
    mann_whitney,
    mean_and_std,
    performance_profile,
    probability_of_improvement,
    smallest_p,
)
from torchrl_smore.reports.tables import Table, build_table, render_table, to_latex, to_markdown, views

__all__ = [
    "Cell",
    "Comparison",
    "Outcome",
    "Paper",
    "PaperCell",
    "Result",
    "ResultsError",
    "RunSet",
    "Sample",
    "SignificanceTest",
    "Table",
    "adjust_p_values",
    "bootstrap_interval",
    "build_table",
    "canonical_setting",
    "claims_to_markdown",
    "evaluate_claim",
    "evaluate_claims",
    "interquartile_mean",
    "mann_whitney",
    "max_return",
    "mean_and_std",
    "merge_results",
    "performance_profile",
    "plot_curves",
    "probability_of_improvement",
    "read_metrics",
    "read_results",
    "render_table",
    "smallest_p",
    "to_latex",
    "to_markdown",
    "views",
    "write_gif",
    "write_results",
]
