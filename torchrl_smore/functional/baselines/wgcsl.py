r"""Weights of supervised goal-reaching, as functions of tensors only.

Sources: GCSL, Ghosh et al. (2019), arXiv:1912.06088; WGCSL, Yang et al. (2022), arXiv:2202.04478, code
``YangRui2015/AWGCSL`` (the original) and ``JasonMa2016/GoFAR`` (``gcsl_agent.py``, the port that SMORe compares with).
"""

from __future__ import annotations

import torch
from torch import Tensor


def action_error(policy_action: Tensor, action: Tensor) -> Tensor:
    """Squared distance of two actions, averaged over their dimensions.

    Args:
        policy_action: the policy's, shape ``[*B, A]``; gradient flows through both.
        action: the dataset's, shape ``[*B, A]``.

    Returns:
        Shape ``[*B]``.
    """
    return (policy_action - action).square().mean(-1)


def offset_weight(offset: Tensor, gamma: float, dtype: torch.dtype) -> Tensor:
    """Weight ``gamma ** offset`` of a relabelled goal.

    Args:
        offset: steps from the transition to the row whose goal was taken, integer, shape ``[*B]``; 0 where this very
            transition enters the goal. Negative where the goal was not relabelled: those rows get weight 1.
        gamma: discount, in ``(0, 1)``.
        dtype: of the result.

    Returns:
        The weight, in ``(0, 1]``, shape ``[*B]``.
    """
    steps = offset.clamp_min(0).to(dtype)
    return torch.full_like(steps, gamma).pow(steps)


def best_advantage_weight(advantage: Tensor, threshold: Tensor, low_weight: float = 0.05) -> Tensor:
    """1 where the advantage reaches the threshold, else ``low_weight``; a NaN threshold is none at all.

    Args:
        advantage: shape ``[*B]``.
        threshold: 0-d, in the unit of the advantage.
        low_weight: dimensionless, not negative.

    Returns:
        The weight, of the shape and dtype of ``advantage``.
    """
    return torch.where(advantage < threshold, low_weight, torch.ones_like(advantage))


def push(memory: Tensor, values: Tensor) -> Tensor:
    """First-in-first-out memory after values entered it in order: the newest first, the oldest dropped.

    Args:
        memory: shape ``[C]``.
        values: shape ``[*]``; taken as constants, in the dtype of the memory.

    Returns:
        Another tensor ``[C]``; the memory itself is not written.
    """
    return torch.cat([values.detach().flatten().flip(0).to(memory.dtype), memory])[: memory.shape[0]]


def percentile(memory: Tensor, percent: Tensor) -> Tensor:
    """Percentile of the entries that are not NaN, linearly interpolated, 0-d; NaN for an empty memory.

    Args:
        memory: shape ``[C]``; NaN marks a free place.
        percent: 0-d, in ``[0, 100]``.

    Returns:
        0-d, of the dtype of the memory.
    """
    ordered = memory.sort().values  # NaN last
    last = (memory == memory).sum() - 1
    position = percent.to(torch.float64) / 100.0 * last
    lower = position.floor().long().clamp_min(0)
    upper = position.ceil().long().clamp_min(0)
    low, high = ordered.gather(0, torch.stack([lower, upper])).unbind(0)
    # no product with an infinite or distant neighbour when the position is whole
    return torch.where(lower == upper, low, low + (position - lower).to(low.dtype) * (high - low))
