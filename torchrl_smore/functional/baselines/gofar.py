r"""The terms of GoFAR (Ma et al., 2022, arXiv:2206.03023), as functions of tensors only.

Occupancy matching with a discriminator between goals and achieved goals. Equations and constants are those of the code
(``JasonMa2016/GoFAR``, ``gofar_agent.py`` and ``discriminator.py``); the residual is
``e = r + gamma V_target(s', g) - V(s, g)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from torchrl_smore._errors import unknown_name

GoFARDivergence = Literal["chi2", "kl"]
#: Cap on the actor's weight for KL in the public code.
KL_WEIGHT_CLIP = 10.0


def discriminator_loss(goal_logit: Tensor, achieved_logit: Tensor) -> Tensor:
    """Binary cross-entropy, 1 on ``(g, g)`` and 0 on ``(achieved, g)``, added over the two classes.

    Args:
        goal_logit: of the desired goal beside itself, shape ``[*B]``, in nats.
        achieved_logit: of the achieved goal beside the desired one, shape ``[*B]``, in nats.

    Returns:
        The unreduced loss, shape ``[*B]``.
    """
    return softplus(-goal_logit) + softplus(achieved_logit)


def gradient_penalty(gradient: Tensor) -> Tensor:
    """Squared distance of the gradient's norm from 1 (WGAN-GP), with a finite gradient where the norm is 0.

    Args:
        gradient: of the logit with respect to its inputs, shape ``[*B, D]``.

    Returns:
        The penalty, shape ``[*B]``.
    """
    square = gradient.square().sum(-1)
    # the norm's own gradient at 0 is NaN under a second differentiation
    norm = torch.where(square > 0.0, square, 1.0).sqrt() * (square > 0.0)
    return (norm - 1.0).square()


def bellman_error(reward: Tensor, value: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """Residual ``e = r + gamma V(s', g) - V(s, g)``, in the unit of the return; gradient flows through ``value`` alone.

    Args:
        reward: shape ``[*B]``, taken as a constant.
        value: ``V(s, g)``, shape ``[*B]``.
        next_value: ``V(s', g)`` of the target network, shape ``[*B]``, taken as a constant.
        gamma: discount, in ``(0, 1)``.

    Returns:
        The residual, shape ``[*B]``.
    """
    return reward.detach() + gamma * next_value.detach() - value


def chi2_conjugate(error: Tensor, row_weight: Tensor) -> Tensor:
    """Term of the value loss for chi-squared, ``(e + 1)^2``: no 1/2 or 1/4 as in a conjugate, and no clipping.

    Args:
        error: shape ``[*B]``.
        row_weight: not read; :func:`kl_conjugate` has the same parameters.

    Returns:
        Shape ``[*B]``.
    """
    return (error + 1.0).square()


def kl_conjugate(error: Tensor, row_weight: Tensor) -> Tensor:
    r"""Term of the value loss for KL, :math:`\log E[\exp e]` of the whole batch, repeated for every row.

    Args:
        error: shape ``[*B]``.
        row_weight: weight of each row in the expectation, shape ``[*B]``, not negative; rows with 0 do not count.

    Returns:
        Shape ``[*B]``, the same number in every row.
    """
    # a dropped row holds any error: it must not reach the maximum inside logsumexp
    shifted = torch.where(row_weight > 0.0, error + row_weight.clamp_min(1e-30).log(), -torch.inf)
    return (shifted.flatten().logsumexp(0) - row_weight.sum().log()).expand_as(error)


def chi2_weight(error: Tensor) -> Tensor:
    """Actor weight for chi-squared, ``max(e + 1, 0)``, detached, of the shape of ``error``."""
    return (error.detach() + 1.0).clamp_min(0.0)


def kl_weight(error: Tensor) -> Tensor:
    """Actor weight for KL, ``min(exp(e), 10)``, detached, of the shape of ``error``."""
    return error.detach().exp().clamp_max(KL_WEIGHT_CLIP)


@dataclass(frozen=True)
class GoFARDual:
    """A divergence as GoFAR uses it.

    Attributes:
        conjugate: from error and row weight, ``[*B]`` each, to the term of the value loss, ``[*B]``.
        weight: from the error to the weight of each row in the regression, ``[*B]``, detached.
    """

    conjugate: Callable[[Tensor, Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]


_DUALS = {"chi2": GoFARDual(chi2_conjugate, chi2_weight), "kl": GoFARDual(kl_conjugate, kl_weight)}


def gofar_dual(divergence: GoFARDivergence) -> GoFARDual:
    """The functions of a divergence; raises ``ValueError`` for an unknown name."""
    if divergence not in _DUALS:
        raise unknown_name("divergence", divergence, get_args(GoFARDivergence))
    return _DUALS[divergence]


def gofar_value_loss(initial_value: Tensor, conjugate: Tensor, gamma: float) -> Tensor:
    """Unreduced value loss ``(1 - gamma) V(s0, g) + f*(e)``.

    Args:
        initial_value: ``V(s0, g)`` at the first state of each row's trajectory, shape ``[*B]``.
        conjugate: of the residuals, see :class:`GoFARDual`, shape ``[*B]``.
        gamma: discount, in ``(0, 1)``.

    Returns:
        Shape ``[*B]``.
    """
    return (1.0 - gamma) * initial_value + conjugate
