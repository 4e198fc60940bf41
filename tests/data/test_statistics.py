"""Statistics of columns worked out by numpy, and their floor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_smore.data import GoalBatchSampler, anchor_weights, standardization
from torchrl_smore.data import statistics as module


@pytest.mark.parametrize("rows", [2, 2**16])
def test_mean_and_deviation_are_those_of_numpy_over_all_rows(store, monkeypatch, rows):
    monkeypatch.setattr(module, "_ROWS", rows)
    assert len(store.data) > 4
    statistics = standardization(store.data)
    columns = {"observation": store.data["observation"], "desired_goal": store.data["next", "achieved_goal"]}
    assert statistics.keys() == columns.keys()
    for key, values in columns.items():
        mean, std = statistics[key]
        np.testing.assert_allclose(mean, values.numpy().astype(np.float64).mean(0), rtol=1e-6)
        np.testing.assert_allclose(std, values.numpy().astype(np.float64).std(0), rtol=1e-6)
        assert mean.dtype == std.dtype == torch.float32


def test_a_column_that_hardly_moves_has_the_floor_as_its_deviation(store):
    store.data["observation"][:, 1] = 7.0
    mean, std = standardization(store.data, floor=0.25)["observation"]
    assert (mean[1].item(), std[1].item()) == (7.0, 0.25)
    assert bool((std[[0, 2, 3]] > 0.25).all())
    assert standardization(store.data)["observation"][1][1].item() == pytest.approx(0.01)


def test_a_large_offset_does_not_swallow_the_deviation(store):
    store.data["observation"] = store.data["observation"].sign() + 10_000.0
    expected = store.data["observation"].numpy().astype(np.float64).std(0)
    np.testing.assert_allclose(standardization(store.data)["observation"][1], expected, rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_have_no_statistics(store, value):
    store.data["next", "achieved_goal"][3, 1] = value
    with pytest.raises(ValueError, match=r"expects finite numbers, \('next', 'achieved_goal'\) has others"):
        standardization(store.data)


def test_a_single_row_has_the_floor_and_no_nan(store):
    mean, std = standardization(store.data[:1])["observation"]
    torch.testing.assert_close(mean, store.data["observation"][0])
    torch.testing.assert_close(std, torch.full((4,), 0.01))


@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_a_floor_that_is_not_positive_is_refused(store, floor):
    with pytest.raises(ValueError, match="floor must be positive"):
        standardization(store.data, floor)


@pytest.mark.parametrize("key", ["observation", ("next", "achieved_goal")], ids=str)
def test_a_column_that_is_missing_is_named(store, key):
    with pytest.raises(
        KeyError, match=rf"standardization reads .*{key if isinstance(key, str) else key[1]}.*do not have"
    ):
        standardization(store.data.exclude(key))


@pytest.mark.parametrize(
    "use", [standardization, lambda data: GoalBatchSampler(data, 4), lambda data: anchor_weights("uniform", data)]
)
def test_a_store_in_the_place_of_its_columns_is_refused_with_what_to_give(store, use):
    use(store.data)
    with pytest.raises(TypeError, match=r"data as a TensorDict, got TrajectoryStore: give its \.data\."):
        use(store)
    with pytest.raises(TypeError, match=r"data as a TensorDict, got list\."):
        use([1.0])
