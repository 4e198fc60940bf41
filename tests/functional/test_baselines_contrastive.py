"""Contrastive terms, pairing of rows and the softmax choice: numbers worked by hand and agreement with PyTorch."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from torchrl_smore.functional.baselines.actionable import chained, softmax_choice
from torchrl_smore.functional.baselines.contrastive import (
    Contrast,
    Energy,
    binary_nce,
    contrastive_loss,
    energy_matrix,
    info_nce,
    pair_energy,
    policy_energy_loss,
    td_nce,
    td_nce_weight,
)
from torchrl_smore.functional.baselines.rows import successor

N = 5
ONES = torch.ones(N)


@pytest.mark.parametrize(("energy", "expected"), [("dot", 11.0), ("inner", 11.0 / 2**0.5), ("l2", -(8.0**0.5))])
def test_each_energy_matches_numbers_worked_by_hand(energy, expected):
    x, y = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    torch.testing.assert_close(pair_energy(x, y, energy)[0].item(), expected)
    torch.testing.assert_close(energy_matrix(x, y, energy)[0], torch.full((2,), expected))


@pytest.mark.parametrize("energy", ["dot", "inner", "l2"])
def test_the_diagonal_of_the_matrix_is_the_energy_of_pairs(energy):
    x, y = torch.randn(2, N, 3), torch.randn(2, N, 3)
    matrix = energy_matrix(x, y, energy)
    assert matrix.shape == (2, N, N)
    torch.testing.assert_close(matrix.diagonal(dim1=-2, dim2=-1), pair_energy(x, y, energy))
    torch.testing.assert_close(matrix[0, 1, 3], pair_energy(x[0, 1], y[0, 3], energy))


def test_equal_embeddings_have_a_finite_gradient():
    x = torch.zeros(3, 2, requires_grad=True)
    energy_matrix(x, x.detach(), "l2").sum().backward()
    assert x.grad.isfinite().all()


def test_the_binary_loss_is_the_mean_cross_entropy_over_all_pairs():
    logits = torch.randn(2, N, N)
    expected = binary_cross_entropy_with_logits(logits, torch.eye(N).expand(2, N, N))
    torch.testing.assert_close(binary_nce(logits, ONES).mean(), expected)


def test_the_balanced_loss_gives_one_over_n_minus_one_to_each_negative():
    logits = torch.randn(2, N, N)
    weight = torch.full((N, N), 1.0 / (N - 1)).fill_diagonal_(1.0)
    bce = binary_cross_entropy_with_logits(logits, torch.eye(N).expand(2, N, N), reduction="none")
    torch.testing.assert_close(binary_nce(logits, ONES, balanced=True).mean(), (weight * bce).sum() / (2 * N))


def test_info_nce_is_a_cross_entropy_over_goals_and_its_symmetric_form_over_states_too():
    logits, label = torch.randn(2, N, N), torch.arange(N)
    goals = torch.stack([cross_entropy(m, label, reduction="none") for m in logits]).mean(0)
    states = torch.stack([cross_entropy(m.T, label, reduction="none") for m in logits]).mean(0)
    torch.testing.assert_close(info_nce(logits, ONES), goals)
    torch.testing.assert_close(info_nce(logits, ONES, symmetric=True), goals + states)
    penalty = 0.5 * logits.logsumexp(-1).square().mean(0)
    torch.testing.assert_close(info_nce(logits, ONES, logsumexp_coef=0.5), goals + penalty)


@pytest.mark.parametrize("contrast", ["binary", "balanced", "infonce", "symmetric_infonce"])
def test_dropped_rows_are_no_negatives_and_equal_weights_count_as_one(contrast):
    logits = torch.randn(2, N, N)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
    kept = weight.bool()
    small = logits[:, kept][:, :, kept]
    ours = contrastive_loss(logits, weight, contrast, 0.1)[kept]
    torch.testing.assert_close(ours, contrastive_loss(small, torch.ones(3), contrast, 0.1))
    twice = contrastive_loss(logits, 2 * ONES, contrast, 0.1)
    torch.testing.assert_close(twice, contrastive_loss(logits, ONES, contrast, 0.1))


def test_one_row_has_no_negatives():
    logits = torch.tensor([[[0.0]]])
    one = torch.ones(1)
    assert binary_nce(logits, one, balanced=True).item() == pytest.approx(math.log(2.0))
    assert binary_nce(logits, one).item() == pytest.approx(math.log(2.0))
    assert info_nce(logits, one, symmetric=True).item() == 0.0


def test_the_td_loss_matches_numbers_worked_by_hand():
    # odds 3 and 1 of two members: the smaller counts; odds e^50 are cut at 20
    weight = td_nce_weight(torch.tensor([[math.log(3.0), 50.0], [0.0, 100.0]], requires_grad=True))
    torch.testing.assert_close(weight, torch.tensor([1.0, 20.0]))
    assert not weight.requires_grad
    # at logit log 3: p = 3/4
    logit = torch.full((1, 1), math.log(3.0))
    zero = torch.zeros(1, 1)
    expected = 0.1 * -math.log(0.75) + 0.9 * 2.0 * math.log(2.0) + math.log(2.0)
    assert td_nce(logit, zero, torch.tensor([2.0]), 0.9).item() == pytest.approx(expected)


def test_the_policy_energy_loss_is_divided_by_the_weighted_mean_size():
    energy = torch.tensor([1.0, -3.0, 100.0], requires_grad=True)
    weight = torch.tensor([1.0, 1.0, 0.0])
    loss = policy_energy_loss(energy, weight, normalize=True)
    torch.testing.assert_close(loss, torch.tensor([-0.5, 1.5, -50.0]))
    loss[0].backward()  # the scale is a constant
    torch.testing.assert_close(energy.grad, torch.tensor([-0.5, 0.0, 0.0]))
    torch.testing.assert_close(policy_energy_loss(energy, weight, normalize=False), -energy)


def test_the_successor_is_the_next_kept_row_in_a_cycle():
    assert successor(torch.ones(4, dtype=torch.bool)).tolist() == [1, 2, 3, 0]
    keep = torch.tensor([True, False, True, False, True])
    following = successor(keep)
    assert following[keep].tolist() == [2, 4, 0]
    assert successor(torch.tensor([True])).tolist() == [0]
    assert (
        (successor(torch.zeros(3, dtype=torch.bool)) < 3) & (successor(torch.zeros(3, dtype=torch.bool)) >= 0)
    ).all()


def test_the_softmax_choice_draws_with_softmax_probabilities_and_passes_the_gradient():
    q = torch.tensor([0.0, math.log(3.0)]).reshape(1, 2, 1).expand(1, 2, 40000).clone().requires_grad_()
    chosen = softmax_choice(q, torch.rand(2, 40000))
    assert (chosen > 0.5).double().mean().item() == pytest.approx(0.75, abs=0.01)
    chosen.sum().backward()
    assert (q.grad.sum(1) == 1.0).all()
    assert softmax_choice(torch.zeros(1, 2, 1), torch.tensor([[0.0], [0.9]])).isfinite().all()


def test_chaining_mixes_by_the_ratio():
    assert chained(torch.tensor(4.0), torch.tensor(8.0), 0.25).item() == 5.0


@pytest.mark.parametrize("contrast", get_args(Contrast))
def test_every_contrast_of_every_energy_is_one_graph(contrast):
    x, y, weight = torch.randn(2, N, 3), torch.randn(2, N, 3), torch.rand(N)

    def losses(x, y, weight):
        of = {energy: energy_matrix(x, y, energy) for energy in get_args(Energy)}
        return [contrastive_loss(logits, weight, contrast, 0.1) for logits in of.values()]

    torch._dynamo.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, y, weight), losses(x, y, weight))
