r"""Temporal-difference targets and the value losses of the in-sample methods, as functions of tensors only.

Sources: IQL, Kostrikov et al. (2021), arXiv:2110.06169 (its expectile loss is
:func:`~torchrl_smore.functional.losses.expectile_loss`); SQL and EQL, Xu et al. (2023), arXiv:2303.15810, code
``ryanxhr/IVR``; XQL, Garg et al. (2023), arXiv:2301.02328, code ``Div99/XQL``. Constants are those of the code.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Largest exponents of the entropic value losses in the public code: EQL (IVR) and XQL.
EQL_EXPONENT_CLIP = 5.0
XQL_EXPONENT_CLIP = 7.0
#: The batch maximum that rescales the entropic losses is not taken below this.
MIN_BATCH_MAX = -1.0


def td_target(
    reward: Tensor,
    next_value: Tensor,
    gamma: float,
    *,
    terminated: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    r"""One-step target :math:`\mathrm{clip}(r + \gamma (1 - \text{terminated}) V(s', g), \text{bounds})`, a constant.

    Args:
        reward: of the transition, shape ``[*B]``, of any dtype.
        next_value: value after it, same shape, floating point; its dtype is the target's.
        gamma: discount, in ``(0, 1)``.
        terminated: nonzero where nothing is bootstrapped, same shape; ``None`` bootstraps everywhere.
        bounds: smallest and largest target, in units of the return.

    Returns:
        The detached target, shape ``[*B]``.
    """
    discount = gamma if terminated is None else gamma * (1.0 - terminated.to(next_value.dtype))
    target = (reward.to(next_value.dtype) + discount * next_value).detach()
    return target if bounds is None else target.clamp(*bounds)


def return_bounds(gamma: float) -> tuple[float, float]:
    """Range of the discounted return of rewards in {-1, 0}; ``gamma`` in ``(0, 1)``."""
    return -1.0 / (1.0 - gamma), 0.0


def td_loss(error: Tensor, huber_delta: float | None = None) -> Tensor:
    r"""Squared error ``e^2`` (without 1/2), or Huber's loss ``e^2 / 2`` for ``|e| < d``, ``d (|e| - d / 2)`` beyond.

    Args:
        error: prediction less target, shape ``[*]``.
        huber_delta: d, positive, in units of the return; ``None`` is the squared error.

    Returns:
        The unreduced loss, shape ``[*]``.

    Raises:
        ValueError: if ``huber_delta`` is not positive.
    """
    if huber_delta is None:
        return error.square()
    if not huber_delta > 0.0:
        raise ValueError(f"huber_delta must be positive, got {huber_delta}.")
    size = error.abs()
    return torch.where(size < huber_delta, 0.5 * error.square(), huber_delta * (size - 0.5 * huber_delta))


def sql_value_loss(score: Tensor, value: Tensor, alpha: float) -> Tensor:
    r"""Value loss of sparse Q-learning.

    .. math:: 1[z > 0]\, z^2 + V / \alpha, \qquad z = (Q - V) / (2 \alpha) + 1

    Args:
        score: Q, shape ``[*]``, taken as a constant.
        value: V, shape ``[*]``.
        alpha: strength of the behaviour regularisation, positive, in units of the return.

    Returns:
        The unreduced loss, shape ``[*]``.
    """
    z = (score.detach() - value) / (2.0 * alpha) + 1.0
    return z.clamp_min(0.0).square() + value / alpha


def sql_weight(advantage: Tensor, weight_clip: float = 100.0) -> Tensor:
    """Actor weight of sparse Q-learning, ``clip(max(A, 0), 0, weight_clip)``: actions below the value get none.

    Args:
        advantage: shape ``[*]``, in the unit of the return.
        weight_clip: largest weight, positive, in the same unit.

    Returns:
        The weight, of the shape of ``advantage``.
    """
    return advantage.clamp(0.0, weight_clip)


def batch_max(z: Tensor, keep: Tensor | None = None) -> Tensor:
    """Largest exponent of the batch, at least -1, detached: what the entropic losses are divided by (as exp).

    Args:
        z: shape ``[*]``.
        keep: bool, shape ``[*]``; rows that count. ``None`` keeps all.

    Returns:
        0-d, of the dtype of ``z``.
    """
    if keep is not None:
        z = torch.where(keep, z, MIN_BATCH_MAX)
    return z.detach().amax().clamp_min(MIN_BATCH_MAX)


def eql_value_loss(score: Tensor, value: Tensor, alpha: float, *, keep: Tensor | None = None) -> Tensor:
    r"""Value loss of exponential Q-learning, rescaled by the batch maximum m against overflow.

    .. math:: e^{z - m} + e^{-m} V / \alpha, \qquad z = \min((Q - V) / \alpha, 5)

    Args:
        score: Q, shape ``[*]``, taken as a constant.
        value: V, shape ``[*]``.
        alpha: strength of the behaviour regularisation, positive, in units of the return.
        keep: see :func:`batch_max`.

    Returns:
        The unreduced loss, shape ``[*]``.
    """
    z = ((score.detach() - value) / alpha).clamp_max(EQL_EXPONENT_CLIP)
    m = batch_max(z, keep)
    return (z - m).exp() + (-m).exp() * value / alpha


def xql_value_loss(score: Tensor, value: Tensor, beta: float, *, keep: Tensor | None = None) -> Tensor:
    r"""Gumbel regression of extreme Q-learning, rescaled by the batch maximum m.

    .. math:: e^{z - m} - z e^{-m} - e^{-m}, \qquad z = \min((Q - V) / \beta, 7)

    Away from the clip it has the gradient of :func:`eql_value_loss`; at the clip XQL's is 0 and EQL's is not.

    Args:
        score: Q, shape ``[*]``, taken as a constant.
        value: V, shape ``[*]``.
        beta: temperature of the Gumbel noise, positive, in units of the return.
        keep: see :func:`batch_max`.

    Returns:
        The unreduced loss, shape ``[*]``.
    """
    z = ((score.detach() - value) / beta).clamp_max(XQL_EXPONENT_CLIP)
    m = batch_max(z, keep)
    return (z - m).exp() - (z + 1.0) * (-m).exp()
