"""Statistics over seeds and tasks: aggregates, bootstrap intervals and rank tests; weights and ranks of rows.

A *group* holds the values of one task over its seeds, shape ``[n]``, finite, ``n >= 1``; groups may differ in ``n``.
The aggregates also take groups with leading axes, shape ``[*B, n]``, and then return ``[*B]``: this is how
:func:`bootstrap_interval` evaluates all its resamples at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from torchrl_smore._errors import unknown_name

Alternative = Literal["two-sided", "greater", "less"]
Correction = Literal["holm", "bonferroni", "none"]


def mean_and_std(values: ArrayLike) -> tuple[float, float]:
    """Mean and sample standard deviation (``ddof=1``) over seeds; the latter is NaN for one seed.

    The paper prints "mean and standard deviation" without saying which; at 10 seeds ``ddof=0`` is 5% smaller.
    """
    (group,) = _groups([values])
    return float(group.mean()), float(group.std(ddof=1)) if group.shape[-1] > 1 else math.nan


def effective_sample_size(weights: ArrayLike) -> float:
    r"""How many equal weights would vary as little in their mean as these do: :math:`(\sum w)^2 / \sum w^2`.

    Source: Kish (1965), "Survey Sampling", Sec. 11.7.

    Args:
        weights: not negative, finite, not all zero, shape ``[n]``.

    Returns:
        Between 1 and n.

    Raises:
        ValueError: for weights that are something else.
    """
    array = np.asarray(weights, dtype=np.float64).ravel()
    if array.size == 0 or not np.isfinite(array).all() or (array < 0.0).any() or not array.any():
        raise ValueError(f"expected weights that are finite, not negative and not all zero, got {weights!r}.")
    array = array / array.max()
    return float(array.sum() ** 2 / np.square(array).sum())


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's: the correlation of the ranks, ties at their mean rank; NaN if either does not vary.

    Args:
        x: finite, shape ``[n]``.
        y: finite, shape ``[n]``.

    Raises:
        ValueError: if the lengths differ or are 0.
    """
    left, right = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if left.size != right.size or left.size == 0:
        raise ValueError(f"expected as many numbers of both, at least one, got {left.size} and {right.size}.")
    ranks = [_midranks(values) - (left.size - 1) / 2 for values in (left, right)]
    norm = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / norm if norm else math.nan


def _midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on, the mean rank where values tie, ``[n]``."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(count) - (count + 1) / 2)[place.ravel()]
    return ranks


def interquartile_mean(groups: Sequence[ArrayLike]) -> np.ndarray:
    """Mean of the middle half of all runs of all tasks together, shape ``[*B]``.

    The lowest and highest ``floor(N / 4)`` of the ``N`` runs are left out. Source: Agarwal et al. (2021),
    arXiv:2108.13264, Sec. 4.3; ``aggregate_iqm`` of rliable, which takes as many runs of every task. Where their
    numbers differ every task counts alike: a run weighs ``1 / n_k``, and the lowest and highest quarter of the weight
    are left out, the runs at its edges in part. So more runs of a task on which a method is good do not raise it.

    Args:
        groups: one array ``[*B, n_k]`` for each task, in one unit for all (return / max, say).
    """
    arrays = _groups(groups)
    values = np.concatenate(arrays, axis=-1)
    sizes = [array.shape[-1] for array in arrays]
    if len(set(sizes)) == 1:
        values, cut = np.sort(values, axis=-1), values.shape[-1] // 4
        return values[..., cut : values.shape[-1] - cut].mean(-1)
    order = np.argsort(values, axis=-1)
    weight = np.repeat([1.0 / size for size in sizes], sizes)[order] / len(sizes)
    above = np.cumsum(weight, axis=-1)
    kept = np.clip(np.minimum(above, 0.75) - np.maximum(above - weight, 0.25), 0.0, None)
    inner: np.ndarray = (kept * np.take_along_axis(values, order, axis=-1)).sum(-1) / kept.sum(-1)
    return inner


def probability_of_improvement(groups: Sequence[ArrayLike], rivals: Sequence[ArrayLike]) -> np.ndarray:
    """Mean over tasks of ``P(X > Y) + P(X = Y) / 2`` for a run ``X`` of ours and ``Y`` of the rival, shape ``[*B]``.

    Source: Agarwal et al. (2021), arXiv:2108.13264, Sec. 4.3 and A.

    Args:
        groups: ours, one array ``[*B, n_k]`` for each task.
        rivals: the rival's, for the same tasks in the same order.
    """
    ours, theirs = _groups(groups), _groups(rivals)
    if len(ours) != len(theirs):
        raise ValueError(f"expected as many tasks of both methods, got {len(ours)} and {len(theirs)}.")
    difference = [x[..., :, None] - y[..., None, :] for x, y in zip(ours, theirs)]
    return np.mean([((np.sign(d) + 1) / 2).mean((-2, -1)) for d in difference], axis=0)


def performance_profile(groups: Sequence[ArrayLike], thresholds: ArrayLike) -> np.ndarray:
    """Share of runs strictly above each threshold, averaged over tasks, shape ``[*B, T]``.

    Source: Agarwal et al. (2021), arXiv:2108.13264, Sec. 4.2 (run-score distribution).

    Args:
        groups: one array ``[*B, n_k]`` for each task.
        thresholds: shape ``[T]``, in the unit of the groups.
    """
    levels = np.asarray(thresholds, dtype=float)
    return np.mean([(group[..., None] > levels).mean(-2) for group in _groups(groups)], axis=0)


def bootstrap_interval(
    groups: Sequence[ArrayLike],
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Stratified bootstrap: seeds are drawn with replacement within each task, the interval is of percentiles.

    Source: Agarwal et al. (2021), arXiv:2108.13264, Sec. 4.1; ``get_interval_estimates`` of rliable with its defaults
    but for the number of resamples (there 50,000).

    Args:
        groups: one array ``[n_k]`` for each task.
        statistic: maps groups ``[R, n_k]`` to ``[R]`` or ``[R, T]``, as the aggregates of this module do. For two
            methods give the groups of both and split them again in here.
        confidence: share of resamples inside, in ``(0, 1)``.
        resamples: ``R``, at least 1.
        seed: of the resampling.

    Returns:
        Lower and upper end, each of shape ``[]`` or ``[T]``.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    rng = np.random.default_rng(seed)
    arrays = _groups(groups)
    if any(array.ndim != 1 for array in arrays):
        raise ValueError(f"expected groups of shape [n], got {[array.shape for array in arrays]}.")
    drawn = [array[rng.integers(len(array), size=(resamples, len(array)))] for array in arrays]
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(statistic(drawn), [tail, 1.0 - tail], axis=0)
    return low, high


def mann_whitney(values: ArrayLike, rival: ArrayLike, *, alternative: Alternative) -> tuple[float, float]:
    """Mann-Whitney U of two independent samples, with its exact p-value, also under ties.

    U counts the pairs in which ``values`` is larger, ties as one half. Its distribution under exchangeability is
    counted over all splits of the pooled midranks, which equals ``scipy.stats.mannwhitneyu(method="exact")`` without
    ties. Saturated returns tie often, and there the normal approximation is too bold: three seeds of 1 against three
    of 0 have p = 0.05, which it takes for 0.023. Source: Mann and Whitney (1947); Lehmann, "Nonparametrics", Sec. 1.4.

    Args:
        values: shape ``[n]``.
        rival: shape ``[m]``.
        alternative: ``"greater"`` if ``values`` tend to be larger than the rival's; ``"two-sided"`` doubles the smaller
            of both tails.

    Returns:
        ``U`` in ``[0, n m]`` and the p-value in ``(0, 1]``.
    """
    _check_choice("alternative", alternative, Alternative)
    x, y = _groups([values, rival])
    # twice the midranks from 1 on, which are whole numbers
    ranks = (2 * _midranks(np.concatenate([x, y])) + 2).astype(int)
    splits = np.zeros((len(x) + 1, int(ranks.sum()) + 1))
    splits[0, 0] = 1.0
    for rank in ranks.tolist():
        splits[1:, rank:] += splits[:-1, :-rank]
    share = splits[-1] / splits[-1].sum()
    rank_sum = int(ranks[: len(x)].sum())
    less, greater = float(share[: rank_sum + 1].sum()), float(share[rank_sum:].sum())
    tails = {"less": less, "greater": greater, "two-sided": 2 * min(less, greater)}
    return rank_sum / 2 - len(x) * (len(x) + 1) / 2, min(1.0, tails[alternative])


def smallest_p(num_values: int, num_rival: int, *, alternative: Alternative) -> float:
    """The smallest p-value that :func:`mann_whitney` can give for samples of two sizes: no overlap, no ties.

    Args:
        num_values: size of one.
        num_rival: size of the other.
        alternative: ``"two-sided"``, ``"greater"`` or ``"less"``.

    Raises:
        ValueError: for an unknown alternative.
    """
    _check_choice("alternative", alternative, Alternative)
    tails = 2 if alternative == "two-sided" else 1
    return min(1.0, tails / math.comb(num_values + num_rival, num_values))


def adjust_p_values(p_values: ArrayLike, correction: Correction) -> np.ndarray:
    """P-values corrected for testing all of them at once, shape ``[n]``, in ``[0, 1]``.

    ``"bonferroni"`` multiplies by ``n``; ``"holm"`` (Holm 1979) the k-th smallest by ``n - k + 1``, kept monotone. Both
    bound the probability of any false rejection; Holm rejects whatever Bonferroni does.

    Args:
        p_values: shape ``[n]``.
        correction: one of the two, or ``"none"``.

    Raises:
        ValueError: for an unknown correction.
    """
    _check_choice("correction", correction, Correction)
    p = np.asarray(p_values, dtype=float)
    if correction == "none" or p.size == 0:
        return p.copy()
    if correction == "bonferroni":
        return np.minimum(1.0, p * p.size)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return np.minimum(1.0, adjusted)


@dataclass(frozen=True)
class Comparison:
    """One method against its best rival on one task.

    Args:
        group: the task.
        rival: the other method of the best mean.
        num_seeds: of the method and of the rival.
        p: p-value of the test, in ``[0, 1]``.
        p_adjusted: the same, corrected for the number of comparisons.
        p_attainable: the smallest adjusted p-value that these numbers of seeds can give.
        better: whether the method's mean is the better one.
        level: below or at which ``p_adjusted`` is significant, in ``(0, 1)``.
    """

    group: str
    rival: str
    num_seeds: tuple[int, int]
    p: float
    p_adjusted: float
    p_attainable: float
    better: bool
    level: float

    @property
    def too_few_seeds(self) -> bool:
        """Whether no outcome at all could have been significant."""
        return self.p_attainable > self.level

    @property
    def star(self) -> bool:
        """Whether the method is better, and significantly so."""
        return self.better and not self.too_few_seeds and self.p_adjusted <= self.level


@dataclass(frozen=True)
class SignificanceTest:
    """The paper's test (App. C.1): Mann-Whitney U of a method against the second best one on each task.

    The paper states the level, 0.05, but neither sidedness nor correction: ours are the cautious ones.

    Args:
        alternative: ``"two-sided"`` or ``"greater"``; see :func:`mann_whitney`. A star says that a method is above, of
            which ``"less"`` is no test.
        correction: ``"holm"``, ``"bonferroni"`` or ``"none"``; see :func:`adjust_p_values`.
        level: of significance, in ``(0, 1)``.

    Raises:
        ValueError: for an unknown name, or a level outside its range.
    """

    alternative: Literal["two-sided", "greater"] = "two-sided"
    correction: Correction = "holm"
    level: float = 0.05

    def __post_init__(self) -> None:
        _check_choice("alternative", self.alternative, Literal["two-sided", "greater"])
        _check_choice("correction", self.correction, Correction)
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"level must lie in (0, 1), got {self.level}.")

    def compare(
        self, samples: Mapping[str, Mapping[str, ArrayLike]], method: str, *, larger_is_better: bool = True
    ) -> list[Comparison]:
        """Tests ``method`` against the rival of the best mean, in every group that has both.

        Args:
            samples: group (task) to method to values ``[n]``.
            method: the one that a star would go to.
            larger_is_better: ``False`` for distances.
        """
        sign = 1.0 if larger_is_better else -1.0
        found, p, smallest = [], [], []
        for group, methods in samples.items():
            values = {name: sign * np.asarray(sample, dtype=float) for name, sample in methods.items()}
            if method not in values or len(values) < 2:
                continue
            ours = values.pop(method)
            rival = max(values, key=lambda name: values[name].mean())
            sizes = (len(ours), len(values[rival]))
            p.append(mann_whitney(ours, values[rival], alternative=self.alternative)[1])
            smallest.append(smallest_p(*sizes, alternative=self.alternative))
            found.append((group, rival, sizes, bool(ours.mean() > values[rival].mean())))
        # adjusting is monotone in every p-value, so adjusting the smallest ones gives the smallest adjusted ones
        rows = zip(found, p, adjust_p_values(p, self.correction), adjust_p_values(smallest, self.correction))
        return [
            Comparison(group, rival, sizes, raw, float(adjusted), float(attainable), better, self.level)
            for (group, rival, sizes, better), raw, adjusted, attainable in rows
        ]

    def describe(self, comparisons: Sequence[Comparison], method: str) -> str:
        """Says what was tested, how, and which tests could not have come out significant.

        Args:
            comparisons: what :meth:`compare` gave.
            method: the one that was compared.
        """
        family = {"holm": "Holm's correction", "bonferroni": "Bonferroni's correction", "none": "no correction"}
        sided = "two-sided" if self.alternative == "two-sided" else f"one-sided ({self.alternative})"
        text = (
            f"Star: {method} above the second best method by a {sided} exact Mann-Whitney U test at level "
            f"{self.level:g}, {family[self.correction]} over {len(comparisons)} comparisons."
        )
        few = [c for c in comparisons if c.too_few_seeds]
        if few:
            sizes = ", ".join(f"{c.group} ({c.num_seeds[0]} against {c.num_seeds[1]})" for c in few)
            text += f" Too few seeds for a star, whatever the values: {sizes}."
        return text


def _groups(groups: Iterable[ArrayLike]) -> list[np.ndarray]:
    arrays = [np.asarray(group, dtype=float) for group in groups]
    if not arrays:
        raise ValueError("expected at least one group of values, got none.")
    for array in arrays:
        if array.ndim == 0 or array.shape[-1] == 0 or not np.isfinite(array).all():
            raise ValueError(f"expected groups of at least one finite value each, got {array!r}.")
    return arrays


def _check_choice(kind: str, name: str, choices: object) -> None:
    if name not in get_args(choices):
        raise unknown_name(kind, name, get_args(choices))
