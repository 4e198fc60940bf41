r"""The formulations of the score objective as weights of one expression.

Reference: ``torchrl_smore.functional.score.score_rows``. On each of its two batches (``rho`` and ``q``) every
formulation is

.. math:: l S + s (S - m)^2 + p P + e \, h(y + d), \qquad y = \gamma N - S

where ``S`` is the score at the dataset's action, ``P`` a score at the policy's, ``N`` what the residual bootstraps
from, and ``h`` the convex regulariser of :func:`smore_kernels.divergences.conjugate_excess`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import triton
import triton.language as tl

from smore_kernels.divergences import conjugate_excess

Formulation = Literal["in_sample", "dual", "official", "official_stable"]

# of the released code; tests compare them with functional.score
_PUSH_DOWN = 1e-4
_STEP_REWARD = -2.0


class Weights(NamedTuple):
    """Weights of one batch in the expression above; zero where a formulation has no such term."""

    linear: float = 0.0  # l
    square: float = 0.0  # s
    center: float = 0.0  # m
    policy: float = 0.0  # p
    excess: float = 0.0  # e
    shift: float = 0.0  # d


def formulation_weights(formulation: str, beta: float, gamma: float) -> tuple[Weights, Weights]:
    """Weights on ``rho`` and on ``q``."""
    push_down = beta * (1.0 - gamma)
    if formulation == "in_sample":
        return Weights(linear=push_down, excess=1.0 - beta), Weights(linear=-beta, excess=beta)
    if formulation == "dual":
        rho = Weights(policy=push_down, excess=1.0 - beta)
        return rho, Weights(linear=-beta, policy=beta * gamma, excess=beta)
    if formulation == "official":
        return Weights(linear=_PUSH_DOWN, excess=0.5), Weights(linear=-1.0)
    rho = Weights(square=(1.0 - gamma) * _PUSH_DOWN, excess=0.5, shift=_STEP_REWARD)
    return rho, Weights(square=1.0, center=-_STEP_REWARD / (1.0 - gamma))


@triton.jit
def clip(b_next, lower, upper):
    """``b_next`` within its bounds, by comparisons: minimum and maximum would hide a NaN."""
    return tl.where(b_next < lower, lower, tl.where(b_next > upper, upper, b_next))


@triton.jit
def score_term(b_score, b_next, weights, excess, gamma, DIVERGENCE: tl.constexpr, HAS_EXCESS: tl.constexpr):
    """The expression above without ``p P``, and its derivative by ``S``, elementwise in float32."""
    linear, square, center, _, excess_weight, shift = weights
    b_off = b_score - center
    b_term = linear * b_score + square * b_off * b_off
    b_grad = linear + 2.0 * square * b_off
    if HAS_EXCESS:
        b_h, b_slope = conjugate_excess(gamma * b_next - b_score + shift, excess, DIVERGENCE)
        # at weight 0 (beta = 1) a conjugate that is infinite counts as little as any
        b_term += excess_weight * tl.where(excess_weight == 0.0, 0.0, b_h)
        b_grad -= excess_weight * tl.where(excess_weight == 0.0, 0.0, b_slope)
    return b_term, b_grad
