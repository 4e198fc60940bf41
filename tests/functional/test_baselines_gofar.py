"""The terms of GoFAR: numbers worked by hand, gradients, dropped rows."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_smore.functional.baselines.gofar import (
    bellman_error,
    discriminator_loss,
    gofar_dual,
    gofar_value_loss,
    gradient_penalty,
)

ONES = torch.ones(3)


def test_the_discriminator_loss_matches_numbers_worked_by_hand():
    # c = 1/2 on both: log 2 twice; c = 3/4 on the goal and 1/4 on the achieved goal: -2 log 3/4
    logit = math.log(3.0)
    loss = discriminator_loss(torch.tensor([0.0, logit]), torch.tensor([0.0, -logit]))
    torch.testing.assert_close(loss, torch.tensor([2 * math.log(2.0), -2 * math.log(0.75)]))


def test_the_gradient_penalty_matches_numbers_worked_by_hand_and_is_finite_at_zero():
    gradient = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]], requires_grad=True)
    penalty = gradient_penalty(gradient)
    assert penalty.tolist() == [16.0, 0.0, 1.0]
    penalty.sum().backward()
    # 2 (norm - 1) times the unit vector
    torch.testing.assert_close(gradient.grad, torch.tensor([[4.8, 6.4], [0.0, 0.0], [0.0, 0.0]]))


def test_the_bellman_error_moves_the_value_alone():
    reward, value, after = (torch.tensor([x], requires_grad=True) for x in (1.0, 3.0, 4.0))
    error = bellman_error(reward, value, after, 0.5)
    assert error.item() == 0.0
    error.backward()
    assert value.grad.item() == -1.0
    assert reward.grad is None
    assert after.grad is None


def test_chi_squared_matches_numbers_worked_by_hand():
    dual, error = gofar_dual("chi2"), torch.tensor([-3.0, -0.5, 1.0])
    assert dual.conjugate(error, ONES).tolist() == [4.0, 0.25, 4.0]  # no clipping below -1
    assert dual.weight(error).tolist() == [0.0, 0.5, 2.0]


def test_kl_matches_numbers_worked_by_hand():
    dual, error = gofar_dual("kl"), torch.tensor([0.0, math.log(3.0), 100.0])
    torch.testing.assert_close(dual.weight(error), torch.tensor([1.0, 3.0, 10.0]))
    # log E exp over the first two: log 2
    conjugate = dual.conjugate(error, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(conjugate, torch.full((3,), math.log(2.0)))
    # weights 3 : 1 on 1 and 3
    weighted = dual.conjugate(error[:2], torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(weighted, torch.full((2,), math.log(1.5)))
    torch.testing.assert_close(dual.conjugate(torch.full((4,), 500.0), torch.ones(4)), torch.full((4,), 500.0))


def test_the_gradient_of_kl_is_the_softmax_and_is_finite_with_dropped_rows():
    error = torch.tensor([0.0, math.log(3.0), 7.0], requires_grad=True)
    gofar_dual("kl").conjugate(error, torch.tensor([1.0, 1.0, 0.0])).mean().backward()
    torch.testing.assert_close(error.grad, torch.tensor([0.25, 0.75, 0.0]))


def test_weights_are_detached():
    for name in ("chi2", "kl"):
        assert not gofar_dual(name).weight(torch.ones(2, requires_grad=True)).requires_grad


def test_the_value_loss_adds_the_initial_value():
    loss = gofar_value_loss(torch.tensor([10.0]), torch.tensor([2.0]), 0.9)
    torch.testing.assert_close(loss, torch.tensor([3.0]))


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match=r"unknown divergence 'chi'.*chi2"):
        gofar_dual("chi")
