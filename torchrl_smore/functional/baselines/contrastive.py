r"""Terms of contrastive RL, as functions of tensors only.

An energy ``f(s, a, g)`` of two embeddings classifies whether a goal is reached from a state and action. Sources:
contrastive RL, Eysenbach et al. (2022), arXiv:2206.07568, as coded in OGBench (``impls/agents/crl.py``); InfoNCE and
distances as energies, JaxGCRL, Bortkiewicz et al. (2024), arXiv:2408.11052; the temporal-difference form, C-learning,
Eysenbach et al. (2020), arXiv:2011.08909, as coded in ``chongyi-zheng/stable_contrastive_rl``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Energy = Literal["inner", "dot", "l2"]
Contrast = Literal["binary", "balanced", "infonce", "symmetric_infonce"]
#: Cap on the importance weight of the temporal-difference form in the public code.
TD_WEIGHT_CLIP = 20.0
_MIN_SQUARE_DISTANCE = 1e-6


def _of_parts(product: Tensor, square: Tensor, dim: int, energy: Energy) -> Tensor:
    """Energy from the inner product and, for a distance, the sum of squared norms."""
    if energy == "dot":
        return product
    if energy == "inner":
        return product / dim**0.5
    # floored: the gradient of a root at 0 is infinite
    return -(square - 2.0 * product).clamp_min(_MIN_SQUARE_DISTANCE).sqrt()


def pair_energy(state: Tensor, goal: Tensor, energy: Energy) -> Tensor:
    r"""Energy of matching rows.

    ``"inner"`` is :math:`x^\top y / \sqrt D` (OGBench), ``"dot"`` :math:`x^\top y` (stable contrastive RL), ``"l2"``
    :math:`-\|x - y\|` (JaxGCRL).

    Args:
        state: embedding x of state and action, shape ``[*, D]``.
        goal: embedding y of the goal, shape ``[*, D]``.
        energy: ``"inner"``, ``"dot"`` or ``"l2"``.

    Returns:
        Shape ``[*]``, in nats.
    """
    square = state.square().sum(-1) + goal.square().sum(-1)
    return _of_parts((state * goal).sum(-1), square, state.shape[-1], energy)


def energy_matrix(state: Tensor, goal: Tensor, energy: Energy) -> Tensor:
    """Energy of every row with every goal; see :func:`pair_energy`.

    Args:
        state: shape ``[*, N, D]``.
        goal: shape ``[*, N, D]``.
        energy: see :func:`pair_energy`.

    Returns:
        Shape ``[*, N, N]``; a row for each state, a column for each goal.
    """
    square = state.square().sum(-1).unsqueeze(-1) + goal.square().sum(-1).unsqueeze(-2)
    return _of_parts(state @ goal.mT, square, state.shape[-1], energy)


def binary_nce(logits: Tensor, row_weight: Tensor, *, balanced: bool = False) -> Tensor:
    """Binary cross-entropy of every pair, 1 on the diagonal and 0 off it.

    Args:
        logits: energies, shape ``[M, N, N]``; averaged over the members.
        row_weight: weight of each row as a goal, shape ``[N]``, not negative.
        balanced: give a row's positive the weight of all its negatives together (stable contrastive RL) instead of
            that of one of them (OGBench).

    Returns:
        The loss of each row, shape ``[N]``; its (weighted) mean is the loss of the batch. Balanced, the terms of a row
        are summed where the public code averages all ``N * N`` of the batch: ``N`` times its loss. Adam does not
        notice; a clip of gradient norms or a sum with other losses does.
    """
    row_weight = _of_some(row_weight)
    positive = softplus(-logits.diagonal(dim1=-2, dim2=-1)).mean(0)
    other = row_weight * (1.0 - torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device))
    negative = softplus(logits).mean(0) * other
    if balanced:
        return positive + negative.sum(-1) / other.sum(-1).clamp_min(torch.finfo(other.dtype).tiny)
    return (row_weight * positive + negative.sum(-1)) / row_weight.sum()


def info_nce(logits: Tensor, row_weight: Tensor, *, symmetric: bool = False, logsumexp_coef: float = 0.0) -> Tensor:
    r"""Cross-entropy of finding the goal of each row among all goals.

    .. math:: \log \sum_j e^{f_{ij}} - f_{ii} \; [+ \log \sum_j e^{f_{ji}} - f_{ii}] \; + c (\log \sum_j e^{f_{ij}})^2

    Args:
        logits: energies, shape ``[M, N, N]``; averaged over the members.
        row_weight: weight of each row as a goal (or state), shape ``[N]``, not negative; equal weights count as 1.
        symmetric: add the loss of finding the state of each goal.
        logsumexp_coef: c, not negative (JaxGCRL: 0.1).

    Returns:
        The loss of each row, shape ``[N]``.
    """
    row_weight = _of_some(row_weight)
    kept = row_weight > 0.0
    scale = kept.sum().to(row_weight.dtype) / row_weight.sum()
    log_weight = torch.where(kept, (torch.where(kept, row_weight, 1.0) * scale).log(), -torch.inf)
    diagonal = logits.diagonal(dim1=-2, dim2=-1)
    forward = (logits + log_weight).logsumexp(-1)
    loss = forward - diagonal + logsumexp_coef * forward.square()
    if symmetric:
        loss = loss + (logits + log_weight.unsqueeze(-1)).logsumexp(-2) - diagonal
    return loss.mean(0)


def contrastive_loss(logits: Tensor, row_weight: Tensor, contrast: Contrast, logsumexp_coef: float = 0.0) -> Tensor:
    """:func:`binary_nce` or :func:`info_nce` by name.

    Args:
        logits: energies, shape ``[M, N, N]``; averaged over the members.
        row_weight: weight of each row, shape ``[N]``, not negative.
        contrast: ``"binary"``, ``"balanced"``, ``"infonce"`` or ``"symmetric_infonce"``.
        logsumexp_coef: see :func:`info_nce`; the binary losses do not read it.

    Returns:
        The loss of each row, shape ``[N]``.
    """
    if contrast in ("binary", "balanced"):
        return binary_nce(logits, row_weight, balanced=contrast == "balanced")
    return info_nce(logits, row_weight, symmetric=contrast == "symmetric_infonce", logsumexp_coef=logsumexp_coef)


def td_nce_weight(next_logit: Tensor) -> Tensor:
    """Importance weight ``min(p / (1 - p), 20)`` of the ensemble's smallest logit, detached.

    Args:
        next_logit: energy after the step, shape ``[M, *]``, in nats.

    Returns:
        The odds, shape ``[*]``, in ``(0, 20]``.
    """
    # p / (1 - p) is exp(logit); clipped first, so that exp cannot overflow
    return next_logit.detach().amin(0).clamp_max(30.0).exp().clamp_max(TD_WEIGHT_CLIP)


def td_nce(next_logit: Tensor, random_logit: Tensor, weight: Tensor, gamma: float) -> Tensor:
    r"""Temporal-difference form of the binary loss.

    .. math:: (1 - \gamma) \ell(f(s, a, s'), 1) + \gamma w \, \ell(f(s, a, g), 1) + \ell(f(s, a, g), 0)

    Args:
        next_logit: energy with the goal achieved next, shape ``[M, *]``.
        random_logit: energy with a random goal, shape ``[M, *]``.
        weight: :func:`td_nce_weight` of that goal at the next state, shape ``[*]``.
        gamma: discount, in ``(0, 1)``.

    Returns:
        The loss averaged over the members, shape ``[*]``.
    """
    bootstrap = gamma * weight * softplus(-random_logit) + softplus(random_logit)
    return ((1.0 - gamma) * softplus(-next_logit) + bootstrap).mean(0)


def policy_energy_loss(energy: Tensor, row_weight: Tensor, normalize: bool) -> Tensor:
    """``-f`` of the policy's action, divided by its mean absolute value over the batch if asked (OGBench).

    Args:
        energy: shape ``[*B]``.
        row_weight: weight of each row in that mean, shape ``[*B]``, not negative.
        normalize: whether to divide; the divisor is a constant.

    Returns:
        The unreduced loss, shape ``[*B]``.
    """
    if not normalize:
        return -energy
    row_weight = _of_some(row_weight)
    scale = (row_weight * energy.detach().abs()).sum() / row_weight.sum()
    return -energy / (scale + 1e-6)


def _of_some(row_weight: Tensor) -> Tensor:
    """``row_weight``, or ones where all are 0: a mean over no row is not finite, nor is its gradient times 0."""
    return torch.where((row_weight > 0.0).any(), row_weight, 1.0)
