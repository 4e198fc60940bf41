"""Targets and value losses of the in-sample methods: numbers worked by hand, minimisers, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_smore.functional.baselines.iql import (
    batch_max,
    eql_value_loss,
    sql_value_loss,
    sql_weight,
    td_loss,
    td_target,
    xql_value_loss,
)


def test_the_target_matches_numbers_worked_by_hand():
    reward, value = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([2.0, 4.0, -8.0], requires_grad=True)
    terminated = torch.tensor([True, False, False])
    target = td_target(reward, value, 0.5, terminated=terminated)
    assert target.tolist() == [1.0, 2.0, -5.0]
    assert not target.requires_grad
    assert td_target(reward, value, 0.5).tolist() == [2.0, 2.0, -5.0]
    assert td_target(reward, value, 0.5, bounds=(-2.0, 0.0)).tolist() == [0.0, 0.0, -2.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_the_target_has_the_dtype_of_the_value_whatever_the_reward_has(dtype):
    target = td_target(torch.tensor([1, 0], dtype=dtype), torch.tensor([2.0, 4.0]), 0.5)
    assert target.dtype == torch.float32
    assert target.tolist() == [2.0, 2.0]


def test_the_td_loss_is_a_square_or_huber():
    error = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    assert td_loss(error).tolist() == [9.0, 1.0, 0.0, 4.0]
    # beyond 2: 2 (|e| - 1)
    assert td_loss(error, 2.0).tolist() == [4.0, 0.5, 0.0, 2.0]
    with pytest.raises(ValueError, match=r"huber_delta must be positive, got 0\.0"):
        td_loss(error, 0.0)


def test_the_sparse_loss_matches_numbers_worked_by_hand():
    # alpha 2: z = (Q - V) / 4 + 1 = 2, 0.5, -1
    score, value = torch.tensor([5.0, -1.0, -7.0]), torch.ones(3)
    torch.testing.assert_close(sql_value_loss(score, value, 2.0), torch.tensor([4.5, 0.75, 0.5]))
    assert sql_weight(torch.tensor([-1.0, 0.5, 7.0]), 5.0).tolist() == [0.0, 0.5, 5.0]


def test_the_exponential_loss_matches_numbers_worked_by_hand():
    # alpha 2: z = 0, 1 and the clip at 5, which is the maximum m
    score, value = torch.tensor([2.0, 4.0, 100.0]), torch.full((3,), 2.0)
    expected = torch.tensor([math.exp(-5.0), math.exp(-4.0), 1.0]) + math.exp(-5.0)
    torch.testing.assert_close(eql_value_loss(score, value, 2.0), expected)


def test_the_gumbel_loss_matches_numbers_worked_by_hand():
    # beta 2: z = 0, 1 and the clip at 7
    score, value = torch.tensor([2.0, 4.0, 100.0]), torch.full((3,), 2.0)
    scale = math.exp(-7.0)
    expected = torch.tensor([scale - scale, math.e * scale - 2 * scale, 1.0 - 8 * scale])
    torch.testing.assert_close(xql_value_loss(score, value, 2.0), expected)


def test_the_batch_maximum_is_floored_and_counts_kept_rows_only():
    z = torch.tensor([-3.0, 2.0, 4.0], requires_grad=True)
    assert batch_max(z).item() == 4.0
    assert not batch_max(z).requires_grad
    assert batch_max(z, torch.tensor([True, True, False])).item() == 2.0
    assert batch_max(z, torch.tensor([True, False, False])).item() == -1.0


def minimiser(loss, scores):
    grid = torch.linspace(-3.0, 6.0, 90001, dtype=torch.float64)
    total = sum(loss(torch.full_like(grid, s), grid) for s in scores)
    return grid[total.argmin()].item()


def test_each_value_is_the_stationary_point_of_its_method():
    scores, alpha = [0.0, 1.0], 0.5
    # without the rescaling by the maximum, which differs between points of the grid: sum exp(z) + V / alpha
    eql = alpha * math.log(sum(math.exp(s / alpha) for s in scores) / 2)
    for loss in (eql_value_loss, xql_value_loss):
        value = torch.tensor(eql, dtype=torch.float64, requires_grad=True)
        loss(torch.tensor(scores, dtype=torch.float64), value.expand(2), alpha).sum().backward()
        assert abs(value.grad.item()) < 1e-12
    # sum relu(z) = n: with both active the value is the mean plus 0 (z sums to 2)
    assert minimiser(lambda s, v: sql_value_loss(s, v, alpha), scores) == pytest.approx(0.5, abs=1e-3)
    # a low action drops out: (3 - V) / 1 + 1 = 2, so V = 2
    assert minimiser(lambda s, v: sql_value_loss(s, v, alpha), [-9.0, 3.0]) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("loss", [sql_value_loss, eql_value_loss, xql_value_loss])
def test_gradient_reaches_the_value_alone_and_stays_finite(loss):
    score, value = torch.tensor([1e4, -1e4, 0.0], requires_grad=True), torch.zeros(3, requires_grad=True)
    loss(score, value, 1.0).sum().backward()
    assert score.grad is None
    assert value.grad.isfinite().all()
