"""Statistics against numbers worked by hand, scipy, and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from torchrl_smore.reports import (
    SignificanceTest,
    adjust_p_values,
    bootstrap_interval,
    effective_sample_size,
    interquartile_mean,
    mann_whitney,
    mean_and_std,
    performance_profile,
    probability_of_improvement,
    rank_correlation,
    smallest_p,
)

finite = st.floats(-100, 100, allow_nan=False, width=32)
samples = st.lists(finite, min_size=1, max_size=12)
few_values = st.lists(st.integers(0, 3), min_size=1, max_size=4)
alternatives = st.sampled_from(["two-sided", "greater", "less"])


def test_the_standard_deviation_divides_by_n_minus_one_and_is_unknown_for_one_seed():
    mean, std = mean_and_std([1.0, 2.0, 3.0, 6.0])
    assert (mean, std) == (3.0, pytest.approx(math.sqrt(14 / 3)))
    mean, std = mean_and_std([5.0])
    assert mean == 5.0
    assert math.isnan(std)


def test_the_interquartile_mean_leaves_out_the_outer_quarters_of_all_tasks_together():
    # 1 2 | 3 4 5 6 | 7 100
    assert interquartile_mean([[100.0, 1.0, 3.0, 5.0], [2.0, 7.0, 6.0, 4.0]]) == 4.5
    # of 5 runs floor(5 / 4) = 1 is left out at each end
    assert interquartile_mean([[9.0, 0.0, 1.0, 2.0, 3.0]]) == 2.0


def test_every_task_counts_alike_in_the_interquartile_mean_however_many_its_runs():
    # of weight 1/6 each 0 0 0, of 1/4 each 1 2: the first quarter is half of the zeros, the last is the 2
    assert interquartile_mean([[0.0, 0.0, 0.0], [1.0, 2.0]]) == pytest.approx((0.25 * 0.0 + 0.25 * 1.0) / 0.5)
    few, many = [[0.0, 0.2], [0.6, 0.9], [1.0, 1.0]], [[0.0, 0.2], [0.6, 0.9], [1.0] * 50]
    assert interquartile_mean(many) == pytest.approx(interquartile_mean([*few[:2], few[2] * 2]), abs=1e-12)


@given(st.lists(samples, min_size=1, max_size=4))
def test_the_interquartile_mean_is_scipys_trimmed_mean_of_as_many_runs_of_each_task(groups):
    # each run as often as makes all tasks equally long, and a quarter of all whole
    length = 4 * math.lcm(*map(len, groups))
    alike = [np.repeat(group, length // len(group)) for group in groups]
    np.testing.assert_allclose(interquartile_mean(alike), stats.trim_mean(np.concatenate(alike), 0.25), atol=1e-9)
    if len(set(map(len, groups))) > 1:
        np.testing.assert_allclose(interquartile_mean(groups), interquartile_mean(alike), atol=1e-9)


@given(samples, finite)
def test_the_interquartile_mean_of_symmetric_values_is_their_centre(values, centre):
    mirrored = [*(centre + np.array(values)), *(centre - np.array(values))]
    assert interquartile_mean([mirrored]) == pytest.approx(centre, abs=1e-9)


def test_probability_of_improvement_counts_pairs_and_halves_ties():
    # task 1: 2 beats 1, ties 2, 0 loses to both: 1.5 of 4; task 2: 1 of 1
    assert probability_of_improvement([[2.0, 0.0], [5.0]], [[1.0, 2.0], [4.0]]) == pytest.approx((1.5 / 4 + 1) / 2)


@given(samples, samples)
def test_probability_of_improvement_is_u_over_pairs_and_complementary(x, y):
    u, _ = mann_whitney(x, y, alternative="greater")
    assert probability_of_improvement([x], [y]) == pytest.approx(u / (len(x) * len(y)))
    assert probability_of_improvement([x], [y]) + probability_of_improvement([y], [x]) == pytest.approx(1.0)


def test_a_performance_profile_is_the_share_strictly_above_averaged_over_tasks():
    profile = performance_profile([[0.0, 1.0], [1.0, 1.0, 1.0, 3.0]], [-1.0, 0.0, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(profile, [1.0, 0.75, 0.125, 0.125, 0.0])


@given(st.lists(samples, min_size=1, max_size=3), st.lists(finite, min_size=2, max_size=9))
def test_a_performance_profile_falls_from_one_to_zero(groups, thresholds):
    profile = performance_profile(groups, [-1e3, *sorted(thresholds), 1e3])
    assert profile[0] == 1.0
    assert profile[-1] == 0.0
    assert (np.diff(profile) <= 0).all()


@settings(max_examples=30)
@given(st.lists(finite, min_size=4, max_size=8), st.integers(0, 5))
def test_the_bootstrap_interval_holds_the_estimate_and_shrinks_with_more_seeds(values, seed):
    def mean(groups):
        return np.concatenate(groups, -1).mean(-1)

    low, high = bootstrap_interval([values], mean, resamples=500, seed=seed)
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9
    more_low, more_high = bootstrap_interval([values * 16], mean, resamples=500, seed=seed)
    assert more_high - more_low <= high - low + 1e-9


def test_the_bootstrap_of_a_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval([values], lambda groups: groups[0].mean(-1), resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_the_bootstrap_draws_within_each_task():
    # tasks differ, seeds within a task do not: stratified resamples are all alike, pooled ones would not be
    low, high = bootstrap_interval([[0.0] * 5, [10.0] * 5], interquartile_mean)
    assert low == high == 5.0


def test_the_bootstrap_takes_statistics_that_return_a_curve_and_repeats_itself():
    def profile(groups):
        return performance_profile(groups, [0.2, 0.8])

    groups = [[0.0, 0.5, 1.0], [0.3, 0.9]]
    low, high = bootstrap_interval(groups, profile, resamples=200, seed=3)
    assert low.shape == high.shape == (2,)
    assert (low <= high).all()
    np.testing.assert_array_equal(bootstrap_interval(groups, profile, resamples=200, seed=3), (low, high))


def test_mann_whitney_by_hand():
    # three against three without overlap: one split of 20 is as extreme
    assert mann_whitney([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], alternative="greater") == (9.0, pytest.approx(1 / 20))
    assert mann_whitney([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], alternative="two-sided") == (9.0, pytest.approx(1 / 10))
    assert mann_whitney([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], alternative="less") == (9.0, pytest.approx(1.0))
    # all tied: nothing is known
    assert mann_whitney([1.0, 1.0], [1.0], alternative="two-sided") == (1.0, 1.0)


def test_ties_within_the_groups_do_not_make_three_seeds_significant():
    p = mann_whitney([1.0] * 3, [0.0] * 3, alternative="greater")[1]
    assert p == pytest.approx(0.05)
    assert stats.mannwhitneyu([1.0] * 3, [0.0] * 3, alternative="greater", method="asymptotic").pvalue < 0.024


@given(st.permutations(range(14)), st.integers(1, 13), alternatives)
def test_without_ties_mann_whitney_is_scipys_exact_test(order, n, alternative):
    ours = mann_whitney(order[:n], order[n:], alternative=alternative)
    theirs = stats.mannwhitneyu(order[:n], order[n:], alternative=alternative, method="exact")
    np.testing.assert_allclose(ours, theirs)


@given(few_values, few_values, alternatives)
def test_with_ties_mann_whitney_counts_every_split(x, y, alternative):
    def u(a, b):
        return sum((i > j) + (i == j) / 2 for i in a for j in b)

    pooled = x + y
    splits = [set(chosen) for chosen in itertools.combinations(range(len(pooled)), len(x))]
    every = [u([pooled[i] for i in s], [pooled[i] for i in range(len(pooled)) if i not in s]) for s in splits]
    greater, less = np.mean(np.array(every) >= u(x, y)), np.mean(np.array(every) <= u(x, y))
    expected = {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}[alternative]
    assert mann_whitney(x, y, alternative=alternative) == (u(x, y), pytest.approx(expected))


@given(st.integers(1, 9), st.integers(1, 9), alternatives)
def test_the_smallest_p_is_that_of_samples_without_overlap(n, m, alternative):
    high, low = list(range(m, m + n)), list(range(m))
    p = min(mann_whitney(a, b, alternative=alternative)[1] for a, b in ((high, low), (low, high)))
    assert smallest_p(n, m, alternative=alternative) == pytest.approx(p)


def test_large_samples_keep_their_p_value():
    x, y = np.arange(80.0), np.arange(80.0) + 20.5
    expected = stats.mannwhitneyu(x, y, alternative="two-sided", method="exact").pvalue
    assert mann_whitney(x, y, alternative="two-sided")[1] == pytest.approx(expected, rel=1e-9)


def test_corrections_by_hand():
    p = [0.01, 0.04, 0.03, 0.5]
    # Holm, in order .01 .03 .04 .5: 4 * .01, 3 * .03, max(.09, 2 * .04), .5
    np.testing.assert_allclose(adjust_p_values(p, "holm"), [0.04, 0.09, 0.09, 0.5])
    np.testing.assert_allclose(adjust_p_values(p, "bonferroni"), [0.04, 0.16, 0.12, 1.0])
    np.testing.assert_allclose(adjust_p_values(p, "none"), p)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(p):
    holm = adjust_p_values(p, "holm")
    assert (holm >= np.array(p)).all()
    assert (holm <= adjust_p_values(p, "bonferroni")).all()
    assert (np.diff(holm[np.argsort(p, kind="stable")]) >= 0).all()


def apart(seeds, names=("SMORe", "GoFAR")):
    """Samples without overlap, the first name's the largest."""
    return {name: [10.0 * (len(names) - i) + s for s in range(seeds)] for i, name in enumerate(names)}


def test_smore_is_compared_with_the_second_best_and_a_clear_win_gets_a_star():
    samples = {"FetchReach": apart(5, ("SMORe", "AM", "GoFAR"))}
    (comparison,) = SignificanceTest().compare(samples, "SMORe")
    assert (comparison.rival, comparison.num_seeds) == ("AM", (5, 5))
    assert comparison.p == pytest.approx(2 / math.comb(10, 5))
    assert comparison.star
    (comparison,) = SignificanceTest().compare(samples, "GoFAR")
    assert comparison.rival == "SMORe"
    assert comparison.p_adjusted == pytest.approx(2 / math.comb(10, 5))
    assert not comparison.star  # significantly worse


def test_a_better_mean_alone_is_no_star():
    (comparison,) = SignificanceTest().compare({"a": {"SMORe": [1, 2, 3, 4, 9], "AM": [0, 2.5, 3.5, 4.5, 5]}}, "SMORe")
    assert comparison.better
    assert not comparison.too_few_seeds
    assert comparison.p_adjusted > 0.05
    assert not comparison.star


def test_smaller_distances_win_when_asked_for():
    samples = {"FetchReach": {"SMORe": [1.0, 2.0, 3.0, 4.0], "AM": [5.0, 6.0, 7.0, 8.0], "CRL": [9.0] * 4}}
    (comparison,) = SignificanceTest().compare(samples, "SMORe", larger_is_better=False)
    assert comparison.rival == "AM"
    assert comparison.star
    assert not SignificanceTest().compare(samples, "SMORe")[0].star


def test_too_few_seeds_get_no_star_and_are_named():
    test = SignificanceTest()
    comparisons = test.compare({"FetchReach": apart(3)}, "SMORe")
    assert comparisons[0].p_attainable == pytest.approx(0.1)
    assert comparisons[0].too_few_seeds
    assert not comparisons[0].star
    assert test.describe(comparisons, "SMORe").endswith(
        "Too few seeds for a star, whatever the values: FetchReach (3 against 3)."
    )
    # one-sided and alone, 1 / 20 is attainable
    assert SignificanceTest(alternative="greater").compare({"FetchReach": apart(3)}, "SMORe")[0].star


def test_the_correction_decides_how_many_seeds_are_enough():
    # 2 / C(8, 4) = 0.0286 alone, but not twelve times that; 12 * 2 / C(10, 5) = 0.095 neither; with 6 seeds 0.026
    for seeds, stars in ((4, 0), (5, 0), (6, 12)):
        found = SignificanceTest().compare({str(i): apart(seeds) for i in range(12)}, "SMORe")
        assert [c.star for c in found].count(True) == stars
        assert [c.too_few_seeds for c in found].count(True) == 12 - stars
    uncorrected = SignificanceTest(correction="none").compare({str(i): apart(4) for i in range(12)}, "SMORe")
    assert all(c.star for c in uncorrected)


def test_under_holm_a_task_with_few_seeds_profits_from_tasks_with_many():
    many = {str(i): apart(10) for i in range(3)}
    found = SignificanceTest().compare({**many, "few": apart(4)}, "SMORe")
    assert found[-1].p_attainable == found[-1].p_adjusted == pytest.approx(2 / 70)
    assert found[-1].star
    assert SignificanceTest(correction="bonferroni").compare({**many, "few": apart(4)}, "SMORe")[-1].too_few_seeds


def test_the_description_states_sidedness_correction_level_and_family():
    comparisons = SignificanceTest().compare({"a": apart(9), "b": apart(9), "none": {"GoFAR": [1.0]}}, "SMORe")
    assert SignificanceTest().describe(comparisons, "SMORe") == (
        "Star: SMORe above the second best method by a two-sided exact Mann-Whitney U test at level 0.05, Holm's "
        "correction over 2 comparisons."
    )
    test = SignificanceTest("greater", "none", 0.01)
    assert "a greater exact" not in test.describe([], "SMORe")
    assert "one-sided" in test.describe([], "SMORe")
    assert "level 0.01, no correction" in test.describe([], "SMORe")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([]), "at least one group"),
        (lambda: interquartile_mean([[]]), "at least one finite value"),
        (lambda: interquartile_mean([[1.0, math.nan]]), "at least one finite value"),
        (lambda: interquartile_mean([1.0, 2.0]), "at least one finite value"),
        (lambda: probability_of_improvement([[1.0]], [[1.0], [2.0]]), "as many tasks of both methods, got 1 and 2"),
        (lambda: bootstrap_interval([[1.0]], interquartile_mean, confidence=1.0), r"\(0, 1\), got 1.0"),
        (lambda: bootstrap_interval([[1.0]], interquartile_mean, resamples=0), "at least 1, got 0"),
        (lambda: bootstrap_interval([[[1.0]]], interquartile_mean), r"shape \[n\], got \[\(1, 1\)\]"),
        (lambda: mann_whitney([1.0], [1.0], alternative="bigger"), "unknown alternative 'bigger'"),
        (lambda: smallest_p(3, 3, alternative="two_sided"), "Did you mean 'two-sided'"),
        (lambda: adjust_p_values([0.1], "Holms"), "Did you mean 'holm'"),
        (lambda: SignificanceTest("less"), "unknown alternative 'less': expected one of two-sided, greater"),
        (lambda: SignificanceTest(correction="bonf"), "unknown correction 'bonf'"),
        (lambda: SignificanceTest(level=5), r"level must lie in \(0, 1\), got 5"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_effective_sample_size_of_weights_is_that_worked_by_hand():
    assert effective_sample_size([2.0, 2.0, 2.0]) == pytest.approx(3.0)
    assert effective_sample_size([1.0, 0.0, 0.0, 0.0]) == pytest.approx(1.0)
    # (1 + 2 + 3)^2 / (1 + 4 + 9), on any scale, as small as floats are
    assert effective_sample_size([1.0, 2.0, 3.0]) == pytest.approx(36 / 14)
    assert effective_sample_size([1e-200, 2e-200, 3e-200]) == pytest.approx(36 / 14)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, np.inf], [np.nan, 1.0]], ids=str)
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="expected weights that are finite, not negative and not all zero"):
        effective_sample_size(weights)


def test_the_rank_correlation_is_that_worked_by_hand():
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # no ties: 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 1, 1, 0, 0
    assert rank_correlation([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(1 - 6 * 2 / 60)
    # ranks 0.5, 0.5, 2 against 0, 1, 2, about their mean of 1: 1.5 / sqrt(1.5 * 2)
    assert rank_correlation([5, 5, 9], [1, 2, 3]) == pytest.approx(1.5 / 3**0.5)
    assert np.isnan(rank_correlation([1, 1], [1, 2]))
    with pytest.raises(ValueError, match="got 2 and 3"):
        rank_correlation([1, 2], [1, 2, 3])
