"""What a benchmark keeps of an evaluation."""

from __future__ import annotations

#: What the name of a discounted return begins with, before its discount.
RETURN = "discounted_return_"
_OTHERS = ("return_over_max", "success_last", "success_any", "final_distance")


def is_kept(metric: str) -> bool:
    """Whether a metric is kept: the returns at all discounts that a task reports, and what every task has."""
    return metric in _OTHERS or metric.startswith(RETURN)
