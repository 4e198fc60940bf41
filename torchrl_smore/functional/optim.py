"""Adam, its cosine schedule and the target update over flat buffers, as one function of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_factor(step: Tensor, decay_steps: int) -> Tensor:
    r"""Half a cosine from 1 to 0: :math:`\frac12 (1 + \cos(\pi \min(t / T, 1)))`.

    Source: the schedule of the official code's actor (``learner.py``); Table 4 says "cosine".

    Args:
        step: updates done, ``t``, any integer or floating-point shape.
        decay_steps: length ``T`` of the decay in updates, positive.

    Returns:
        The factor, float32, same shape as ``step``.
    """
    return 0.5 * (1.0 + torch.cos(math.pi * (step.to(torch.float32) / decay_steps).clamp(max=1.0)))


def check_tau(tau: float) -> None:
    """Raises ``ValueError`` for a Polyak rate outside ``(0, 1]``."""
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"tau must lie in (0, 1], got {tau}.")


@torch.no_grad()
def adam_polyak_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_steps: int | None = None,
    target: Tensor | None = None,
    tau: float = 0.005,
) -> None:
    r"""One step of Adam, in place, and the Polyak update of a target copy.

    With :math:`t` = ``step`` + 1, :math:`\eta = \text{lr} \cdot` :func:`cosine_factor` (or ``lr``):

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \theta \leftarrow (1 - \eta \lambda) \theta
        - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}, \quad
        \bar\theta \leftarrow (1 - \tau) \bar\theta + \tau \theta

    Sources: Kingma & Ba (2015), Algorithm 1; Loshchilov & Hutter (2019) for the decoupled decay :math:`\lambda`.

    Args:
        param: :math:`\theta`, shape ``[*]``, float32; written.
        grad: its gradient, shape ``[*]``.
        exp_avg: :math:`m`, shape ``[*]``, float32; written.
        exp_avg_sq: :math:`v`, shape ``[*]``, float32; written.
        step: updates done before this one, int64 scalar on the same device; read only, so that a schedule needs no
            host synchronisation and several buffers may share one counter.
        lr: learning rate, at least 0.
        betas: decay rates of the moments, in ``[0, 1)``.
        eps: added to the denominator, positive.
        weight_decay: :math:`\lambda`, at least 0; 0 is plain Adam.
        decay_steps: length of the cosine decay of ``lr`` in updates; ``None`` keeps it constant.
        target: :math:`\bar\theta`, shape ``[*]``; written. ``None`` has no target.
        tau: Polyak rate, in ``(0, 1]``.

    Raises:
        ValueError: for a ``tau`` outside ``(0, 1]``.
    """
    check_tau(tau)
    beta1, beta2 = betas
    count = step.to(torch.float32) + 1.0
    rate = lr if decay_steps is None else lr * cosine_factor(step, decay_steps)
    exp_avg.lerp_(grad, 1.0 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    if weight_decay:
        param.mul_(1.0 - rate * weight_decay)
    denominator = (exp_avg_sq / (1.0 - beta2**count)).sqrt_().add_(eps)
    param.sub_(rate / (1.0 - beta1**count) * exp_avg / denominator)
    if target is not None:
        target.lerp_(param, tau)
