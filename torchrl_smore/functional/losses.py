"""Elementwise value and actor loss terms, as functions of tensors only."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def expectile_loss(diff: Tensor, expectile: float | Tensor) -> Tensor:
    r"""Squared error that weighs under- and over-estimation differently.

    .. math:: L(u) = |\text{expectile} - 1[u < 0]| \, u^2, \qquad u = \text{target} - \text{prediction}

    Its minimiser is the mean of the target at ``0.5`` and tends to the in-sample maximum as ``expectile`` tends to
    ``1``. Source: Kostrikov et al. (2021), arXiv:2110.06169, Sec. 4.1. SMORe (arXiv:2311.02013) prints Eq. 9 with the
    argument the other way round (erratum E1); ours is the one its text and its code mean, ``u = S - M``.

    Args:
        diff: ``target - prediction``, shape ``[*]``, floating point.
        expectile: weight of positive differences, dimensionless, in ``(0, 1)``; a 0-d tensor is taken as it is.

    Returns:
        The unreduced loss, same shape, dtype and device as ``diff``.

    Raises:
        ValueError: if a float ``expectile`` lies outside ``(0, 1)``.
    """
    if not isinstance(expectile, Tensor) and not 0.0 < expectile < 1.0:
        raise ValueError(f"expectile must lie in (0, 1), got {expectile}.")
    square = diff.square()
    # scalars times a tensor keep the tensor's dtype; a tensor of two scalars would be float32
    return torch.where(diff > 0, expectile * square, (1.0 - expectile) * square)


def awr_weight(advantage: Tensor, temperature: float | Tensor, weight_clip: float = 100.0) -> Tensor:
    r"""Exponential advantage weight of advantage-weighted regression, at most ``weight_clip``, here :math:`w_{\max}`.

    .. math:: w = \min(\exp(\text{temperature} \cdot A), w_{\max})

    ``temperature`` multiplies the advantage, as in TorchRL's ``IQLLoss`` (it is an inverse temperature; the paper's
    alpha). The paper states no cap; the official code (``actor.py``) uses 100. A large advantage gives exactly
    ``weight_clip`` with gradient 0, never an infinity or NaN.

    Args:
        advantage: shape ``[*]``, in units of the score.
        temperature: in one over the unit of the score, non-negative.
        weight_clip: largest weight, dimensionless, positive; ``math.inf`` leaves the weight free.

    Returns:
        The weight, same shape, dtype and device as ``advantage``, in ``[0, weight_clip]``; 0 by underflow only.

    Raises:
        ValueError: if a float ``temperature`` is negative or ``weight_clip`` is not positive.
    """
    if not isinstance(temperature, Tensor) and temperature < 0.0:
        raise ValueError(f"temperature must not be negative, got {temperature}.")
    if not weight_clip > 0.0:
        raise ValueError(f"weight_clip must be positive, got {weight_clip}.")
    exponent = temperature * advantage
    limit = math.log(weight_clip)
    # the exponent is clamped too: the gradient of an infinite exp would be inf * 0
    weight = exponent.clamp_max(limit).exp().clamp_max(weight_clip)
    return torch.where(exponent >= limit, weight_clip, weight)


class ActorWeight(NamedTuple):
    """Weights of rows in the actor's regression, ``[*B]``, and means over rows, scalars; all of them constants.

    Attributes:
        weight: of each row, :func:`awr_weight`.
        mean_advantage: in the unit that the temperature multiplies.
        mean_weight: mean of ``weight``.
        weight_clipped: fraction of rows whose weight is the largest.
    """

    weight: Tensor
    mean_advantage: Tensor
    mean_weight: Tensor
    weight_clipped: Tensor


def actor_weight(advantage: Tensor, temperature: float | Tensor, weight_clip: float = 100.0) -> ActorWeight:
    """:func:`awr_weight` of a constant advantage, with its diagnostics.

    Args:
        advantage: shape ``[*B]``, in the unit of the score; detached.
        temperature: see :func:`awr_weight`.
        weight_clip: see :func:`awr_weight`.

    Raises:
        ValueError: see :func:`awr_weight`.
    """
    advantage = advantage.detach()
    return weighed(advantage, awr_weight(advantage, temperature, weight_clip), weight_clip)


def weighed(advantage: Tensor, weight: Tensor, weight_clip: float) -> ActorWeight:
    """Given weights, with their diagnostics.

    Args:
        advantage: shape ``[*B]``, a constant.
        weight: of each row, shape ``[*B]``, a constant.
        weight_clip: rows of at least this weight count as clipped.
    """
    return ActorWeight(weight, advantage.mean(), weight.mean(), (weight >= weight_clip).to(weight.dtype).mean())


class ExpectileAWR(NamedTuple):
    """What :func:`expectile_awr` computes; everything but ``loss`` is a constant.

    Attributes:
        loss: of the value, ``[*B]``, or reduced.
        value: ``[*B]``.
        mean_value: its mean, 0-d.
        weight: of the actor's regression; ``None`` without a temperature.
    """

    loss: Tensor
    value: Tensor
    mean_value: Tensor
    weight: ActorWeight | None


def expectile_awr(
    score: Tensor,
    value: Tensor,
    *,
    expectile: float | Tensor,
    temperature: float | Tensor | None = None,
    weight_clip: float = 100.0,
    advantage_scale: float = 1.0,
) -> ExpectileAWR:
    """:func:`expectile_loss` and :func:`actor_weight` of one difference ``score - value``.

    Args:
        score: target of the value, shape ``[*B]``, taken as a constant.
        value: shape ``[*B]``.
        expectile: see :func:`expectile_loss`.
        temperature: see :func:`awr_weight`; ``None`` computes no weights.
        weight_clip: see :func:`awr_weight`.
        advantage_scale: multiplies the difference before the temperature does; the value loss does not see it.

    Returns:
        The unreduced loss, ``[*B]``; the value, detached, and its mean; the weights, ``None`` without a temperature.

    Raises:
        ValueError: if the shapes of score and value differ, or see :func:`expectile_loss` and :func:`awr_weight`.
    """
    if score.shape != value.shape:
        raise ValueError(
            f"score and value must have the same shape, got {tuple(score.shape)} and {tuple(value.shape)}."
        )
    difference = score.detach() - value
    weight = None
    if temperature is not None:
        advantage = difference.detach()
        if advantage_scale != 1.0:
            advantage = advantage_scale * advantage
        weight = weighed(advantage, awr_weight(advantage, temperature, weight_clip), weight_clip)
    value = value.detach()
    return ExpectileAWR(expectile_loss(difference, expectile), value, value.mean(), weight)


def awr_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """Weighted negative log-likelihood, ``-weight * log_prob``, with the weight taken as a constant.

    SMORe prints Eq. 11 without the minus sign (erratum E2). Source: Peng et al. (2019), arXiv:1910.00177.

    Args:
        log_prob: log-density of the dataset action under the policy, shape ``[*]``, in nats.
        weight: non-negative weight of each action, shape ``[*]``, for example :func:`awr_weight`; or 0-d, of all.

    Returns:
        The unreduced loss, shape ``[*]``. Gradient flows into ``log_prob`` alone.

    Raises:
        ValueError: if the shapes differ and the weight is not 0-d.
    """
    if weight.ndim > 0 and weight.shape != log_prob.shape:
        raise ValueError(
            f"log_prob and weight must have the same shape, got {tuple(log_prob.shape)} and {tuple(weight.shape)}."
        )
    return -weight.detach() * log_prob
