"""Aggregates over tasks with stratified bootstrap intervals, by rliable where it can.

rliable (Agarwal et al. 2021, arXiv:2108.13264; extra ``[statistics]``) gives values and intervals. What it evaluates on
each resample are the functions of ``statistics.py`` beside this: they equal its own, which run a test or check for NaN
each time and take 10 to 50 times as long. It takes as many seeds of every task. For unequal numbers of seeds, and where
it is not installed, ``statistics.py`` computes the same quantities; :attr:`Estimate.source` says which it was. It gives
no exact Mann-Whitney test, which is always our own.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from torchrl_smore.reports.numbers.statistics import (
    bootstrap_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

CONFIDENCE = 0.95
#: Resamples of a bootstrap.
RESAMPLES = 2000

Groups = Sequence[ArrayLike]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic with its 95% interval of percentiles, each of shape ``[]`` or ``[T]``.

    Attributes:
        value: of all runs.
        low: lower end.
        high: upper end.
        source: ``"rliable 1.2.0"``, or ``"own code, as ..."`` with the reason.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    source: str


def estimate_iqm(groups: Groups, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Interquartile mean; see :func:`~torchrl_smore.reports.interquartile_mean`.

    Args:
        groups: values ``[n_k]`` of one method for each task, in one unit.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    found = _estimate(
        [groups],
        value=lambda metrics, _, scores: metrics.aggregate_iqm(scores),
        resampled=lambda scores: interquartile_mean([scores.ravel()])[None],
        by_us=lambda drawn: interquartile_mean(drawn[0]),
        resamples=resamples,
        seed=seed,
    )
    return _scalar(found)


def estimate_improvement(groups: Groups, rivals: Groups, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Probability that a run of ours is above one of the rival's, averaged over tasks.

    See :func:`~torchrl_smore.reports.probability_of_improvement`.

    Args:
        groups: ours, ``[n_k]`` for each task.
        rivals: the rival's for the same tasks in the same order.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    if len(groups) != len(rivals):
        raise ValueError(f"expected as many tasks of both methods, got {len(groups)} and {len(rivals)}.")

    found = _estimate(
        [groups, rivals],
        value=lambda metrics, _, ours, theirs: metrics.probability_of_improvement(ours, theirs),
        # tasks as a leading axis of one group
        resampled=lambda ours, theirs: probability_of_improvement([ours.T], [theirs.T]).mean(keepdims=True),
        by_us=lambda drawn: probability_of_improvement(*drawn),
        resamples=resamples,
        seed=seed,
    )
    return _scalar(found)


def estimate_profile(groups: Groups, thresholds: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Share of runs above each threshold; see :func:`~torchrl_smore.reports.performance_profile`.

    Args:
        groups: values ``[n_k]`` of one method for each task.
        thresholds: shape ``[T]``.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    levels = np.asarray(thresholds, dtype=float)

    return _estimate(
        [groups],
        value=lambda _, library, scores: library.score_distributions(scores, levels),
        resampled=lambda scores: performance_profile([scores.T], levels).mean(0),
        by_us=lambda drawn: performance_profile(drawn[0], levels),
        resamples=resamples,
        seed=seed,
    )


def _estimate(
    methods: Sequence[Groups],
    *,
    value: Callable[..., Any],
    resampled: Callable[..., np.ndarray],
    by_us: Callable[[list[list[np.ndarray]]], np.ndarray],
    resamples: int,
    seed: int,
) -> Estimate:
    """One statistic of one or two methods.

    ``value`` takes rliable's two modules and a matrix ``[seeds, tasks]`` for each method, ``resampled`` the matrices
    alone and returns ``[T]``; ``by_us`` takes the methods' groups.
    """
    arrays = [[np.asarray(group, dtype=float) for group in groups] for groups in methods]
    reason = _why_not_rliable(arrays)
    if reason:
        return _own_estimate(arrays, by_us, resamples, seed, reason)
    from rliable import library, metrics

    matrices = [np.stack(groups, axis=-1) for groups in arrays]
    scores = {"": matrices[0] if len(matrices) == 1 else matrices}
    with _numpy_seeded(seed):
        _, intervals = library.get_interval_estimates(
            scores, resampled, reps=resamples, confidence_interval_size=CONFIDENCE
        )
    low, high = intervals[""]
    source = f"rliable {importlib.metadata.version('rliable')}"
    return Estimate(np.asarray(value(metrics, library, *matrices)), low, high, source)


def _own_estimate(
    arrays: list[list[np.ndarray]],
    by_us: Callable[[list[list[np.ndarray]]], np.ndarray],
    resamples: int,
    seed: int,
    reason: str,
) -> Estimate:
    split = len(arrays[0])

    def statistic(drawn: Sequence[np.ndarray]) -> np.ndarray:
        parts = [list(drawn[:split]), list(drawn[split:])]
        return by_us(parts[: len(arrays)])

    flat = [group for groups in arrays for group in groups]
    low, high = bootstrap_interval(flat, statistic, confidence=CONFIDENCE, resamples=resamples, seed=seed)
    return Estimate(statistic(flat), low, high, f"own code, as {reason}")


def _why_not_rliable(arrays: list[list[np.ndarray]]) -> str:
    if importlib.util.find_spec("rliable") is None:
        return "rliable is not installed"
    if any(len({len(group) for group in groups}) > 1 for groups in arrays):
        return "tasks differ in their number of seeds, which rliable does not take"
    return ""


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seeds NumPy's global generator and puts it back: rliable 1.2 draws from it, whatever ``random_state`` it gets."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _scalar(estimate: Estimate) -> Estimate:
    value, low, high = (np.asarray(part).reshape(()) for part in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, low, high, estimate.source)
