"""Names of what an evaluation measures: which of them are kept, and which return people are shown."""

from __future__ import annotations

from collections.abc import Iterable

#: What the name of a discounted return begins with, before its discount.
RETURN = "discounted_return_"
_OTHERS = ("return_over_max", "success_last", "success_any", "final_distance")


def is_kept(metric: str) -> bool:
    """Whether a benchmark keeps it: the returns at all discounts that a task reports, and what every task has."""
    return metric in _OTHERS or metric.startswith(RETURN)


def shown_return(metrics: Iterable[str]) -> str:
    """Which of some metrics is the return that people are shown: at 0.99, or else at the task's largest discount."""
    returns = [name for name in metrics if name.startswith(RETURN)]
    return f"{RETURN}0.99" if f"{RETURN}0.99" in returns else max(returns, key=lambda name: float(name[len(RETURN) :]))
