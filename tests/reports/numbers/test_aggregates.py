"""Aggregates: rliable and our own code say the same, and which of them spoke is told."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from torchrl_smore.reports import estimate_improvement, estimate_iqm, estimate_profile

METHODS = np.random.default_rng(5).uniform(size=(2, 3, 8))  # methods, tasks, seeds
OURS, THEIRS = (list(method) for method in METHODS)
LEVELS = [0.1, 0.5, 0.9]


@pytest.fixture
def without_rliable(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "rliable" else find(name, *args)
    )


def estimates(**options):
    return [
        estimate_iqm(OURS, **options),
        estimate_improvement(OURS, THEIRS, **options),
        estimate_profile(OURS, LEVELS, **options),
    ]


def test_estimates_are_rliables_own():
    rliable = pytest.importorskip("rliable.metrics")
    library = pytest.importorskip("rliable.library")
    iqm, improvement, profile = estimates(resamples=10)
    ours, theirs = METHODS.transpose(0, 2, 1)
    assert iqm.value == pytest.approx(rliable.aggregate_iqm(ours))
    assert improvement.value == pytest.approx(rliable.probability_of_improvement(ours, theirs))
    np.testing.assert_allclose(profile.value, library.create_performance_profile({"": ours}, LEVELS, reps=10)[0][""])
    assert {estimate.source.split()[0] for estimate in (iqm, improvement, profile)} == {"rliable"}


def test_our_own_code_agrees_with_rliable(request):
    pytest.importorskip("rliable")
    by_rliable = estimates(resamples=2000)
    request.getfixturevalue("without_rliable")
    by_us = estimates(resamples=2000)
    # ends of an interval from 2,000 resamples have a standard error below 0.01 here; a profile moves by whole runs
    for theirs, ours, tolerance in zip(by_rliable, by_us, (0.03, 0.03, 1.01 / 24)):
        np.testing.assert_allclose(ours.value, theirs.value)
        np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=tolerance)
        assert ours.source == "own code, as rliable is not installed"
        assert ours.value.shape == theirs.value.shape == ours.low.shape == theirs.low.shape


def test_unequal_numbers_of_seeds_are_all_used_and_the_source_says_why():
    groups = [[0.0, 1.0, 2.0], [5.0]]
    estimate = estimate_iqm(groups, resamples=50)
    # the middle half of 1/6 each 0 1 2 and 1/2 of 5: a twelfth of 1, a sixth of 2, a quarter of 5
    assert estimate.value == pytest.approx((1 / 12 + 2 / 6 + 5 / 4) / 0.5)
    # two methods may differ from each other
    pytest.importorskip("rliable")
    assert estimate.source.startswith("own code, as tasks differ in their number of seeds")
    estimate = estimate_improvement([[1.0, 3.0]], [[0.0, 2.0, 4.0]], resamples=50)
    assert estimate.value == pytest.approx((1 + 2) / 6)
    assert estimate.source.startswith("rliable")


def test_estimates_repeat_and_leave_numpys_global_generator_alone():
    pytest.importorskip("rliable")
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    first = estimate_iqm(OURS, resamples=50, seed=1)
    assert np.random.random() == expected  # noqa: NPY002
    again, other = estimate_iqm(OURS, resamples=50, seed=1), estimate_iqm(OURS, resamples=50, seed=2)
    assert (first.low, first.high) == (again.low, again.high)
    assert (first.low, first.high) != (other.low, other.high)


def test_resampling_is_within_tasks():
    # tasks differ, seeds within a task do not
    estimate = estimate_iqm([[0.0] * 4, [10.0] * 4], resamples=50)
    assert estimate.low == estimate.high == 5.0


def test_two_methods_need_the_same_tasks():
    with pytest.raises(ValueError, match="as many tasks of both methods, got 3 and 2"):
        estimate_improvement(OURS, THEIRS[:2])
