"""Weights of supervised goal-reaching: numbers worked by hand, and the percentile against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torchrl_smore.functional.baselines.wgcsl import (
    action_error,
    best_advantage_weight,
    offset_weight,
    percentile,
    push,
)


def test_the_action_error_is_averaged_over_dimensions():
    policy, action = torch.tensor([[1.0, 0.0], [3.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert action_error(policy, action).tolist() == [0.5, 2.5]


def test_the_offset_weight_discounts_and_spares_kept_goals():
    offset = torch.tensor([0, 1, 3, -1])
    weight = offset_weight(offset, 0.5, torch.float64)
    assert weight.tolist() == [1.0, 0.5, 0.125, 1.0]
    assert weight.dtype == torch.float64


def test_advantages_below_the_threshold_get_the_low_weight():
    advantage = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(best_advantage_weight(advantage, torch.tensor(0.0)), torch.tensor([0.05, 1.0, 1.0]))
    assert best_advantage_weight(advantage, torch.tensor(math.nan)).tolist() == [1.0, 1.0, 1.0]


def test_the_memory_drops_the_oldest_first():
    memory = torch.full((4,), math.nan)
    memory = push(memory, torch.tensor([[1.0], [2.0]]))
    assert memory.tolist()[:2] == [2.0, 1.0]
    memory = push(memory, torch.tensor([3.0, 4.0, 5.0]))
    assert memory.tolist() == [5.0, 4.0, 3.0, 2.0]
    assert push(memory, torch.arange(9.0)).tolist() == [8.0, 7.0, 6.0, 5.0]


@pytest.mark.parametrize("percent", [0.0, 12.5, 33.3, 50.0, 80.0, 100.0])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_percentile_is_that_of_numpy_over_filled_places(count, percent):
    values = torch.randn(count)
    memory = torch.cat([torch.full((3,), math.nan), values])
    expected = np.percentile(values.numpy(), percent)
    assert percentile(memory, torch.tensor(percent)).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_an_empty_memory_has_no_percentile():
    assert percentile(torch.full((3,), math.nan), torch.tensor(50.0)).isnan()
