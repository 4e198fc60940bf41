"""Adam over a flat buffer against torch's, and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_smore.functional.optim import adam_polyak_, cosine_factor


def test_cosine_factor_at_the_start_the_middle_the_end_and_after():
    factor = cosine_factor(torch.tensor([0, 25, 50, 100, 130]), 100)
    torch.testing.assert_close(factor, torch.tensor([1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_first_step_moves_against_the_sign_of_the_gradient_by_the_learning_rate():
    param, grad = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1e-3, -7.0, 0.0])
    m, v, target = torch.zeros(3), torch.zeros(3), torch.zeros(3)
    adam_polyak_(param, grad, m, v, torch.tensor(0), lr=0.1, target=target, tau=0.25)
    torch.testing.assert_close(param, torch.tensor([0.9, 1.1, 1.0]), atol=1e-5, rtol=0)
    # a quarter of the way from 0 to the new parameters, not to the old ones
    torch.testing.assert_close(target, torch.tensor([0.225, 0.275, 0.25]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("decay_steps", [None, 7])
def test_ten_steps_equal_those_of_torch_with_its_scheduler(weight_decay, decay_steps):
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(37, generator=generator)
    theirs = torch.nn.Parameter(ours.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=weight_decay)
    horizon = decay_steps or math.inf
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * min(t / horizon, 1.0)))
    )
    m, v, target, mean = torch.zeros(37), torch.zeros(37), ours.clone(), ours.clone()
    for step in range(10):
        grad = torch.randn(37, generator=generator)
        theirs.grad = grad.clone()
        optimizer.step()
        schedule.step()
        mean = 0.9 * mean + 0.1 * theirs.detach()
        options = {"lr": 0.01, "weight_decay": weight_decay, "decay_steps": decay_steps, "tau": 0.1}
        adam_polyak_(ours, grad, m, v, torch.tensor(step), target=target, **options)
    torch.testing.assert_close(ours, theirs.detach())
    torch.testing.assert_close(target, mean)


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_of_no_target_or_beyond_it_is_refused(tau):
    zeros = [torch.zeros(2) for _ in range(4)]
    with pytest.raises(ValueError, match=r"tau must lie in \(0, 1\], got"):
        adam_polyak_(*zeros, torch.tensor(0), lr=0.1, target=torch.zeros(2), tau=tau)
