r"""f-divergences as small frozen objects: generator, derivative, inverse, conjugate and domain.

With :math:`D_f(P \| Q) = E_Q[f(P / Q)]` and density ratios :math:`x \ge 0`, every dual objective of SMORe
(arXiv:2311.02013) needs :math:`f^*(y) = \sup_{x \ge 0} x y - f(x)` and its maximiser. Table 3 of the paper prints
conjugates that hold on part of the line only; what is computed here is the supremum over ``x >= 0`` for every ``y``:

==================  ========================================  ================  =======================================
name                f(x)                                      printed f*(y)     exact f*(y) over x >= 0
==================  ========================================  ================  =======================================
pearson_chi2        (x - 1)^2                                 y + y^2/4         as printed for y >= -2; -1 below
kl                  x log x                                   exp(y - 1)        as printed
squared_hellinger   (sqrt(x) - 1)^2                           y/(1 - y)         as printed for y < 1; +inf from 1 on
total_variation     abs(x - 1)/2                              y, abs(y) <= 1/2  max(y, -1/2) for y <= 1/2; +inf above
jensen_shannon      x log x - (x + 1) log((x + 1)/2)          -log(2 - exp(y))  as printed for y < log 2; +inf then on
==================  ========================================  ================  =======================================

* The printed chi-squared and total variation entries are conjugates over all real ``x``. Eq. 8 uses that form of
  chi-squared; :meth:`Divergence.conjugate_real` has it.
* Outside their domain the printed Hellinger and Jensen-Shannon formulas return negative numbers or the logarithm of
  one; here the value is ``+inf``, or finite once the density ratio is capped (``max_ratio``).
* Eq. 65 writes ``exp(y)`` for KL. It differs from ``exp(y - 1)`` by a constant shift of the score.
* This Jensen-Shannon generator gives twice the usual divergence (at most ``2 log 2``).
* Only KL and chi-squared dominate KL, as Propositions 1 and 2 require; the other three are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchrl_smore._errors import unknown_name

__all__ = ["DIVERGENCES", "Divergence", "DivergenceName", "get_divergence"]

#: Names of the divergences.
DivergenceName = Literal["pearson_chi2", "kl", "squared_hellinger", "total_variation", "jensen_shannon"]


@dataclass(frozen=True)
class Divergence:
    """A generator ``f`` with ``f(1) = 0`` and what the dual objectives derive from it. All functions are elementwise.

    Args:
        name: key in :data:`DIVERGENCES`.
        f: the generator on ``x >= 0``, with its limit at ``x = 0``.
        derivative: ``f'``; at a kink, a subgradient.
        inverse_derivative: ``(f')^{-1}`` on ``derivative_at_zero < y < supremum`` and ``+inf`` from ``supremum`` on.
            Total variation has none; its entry is the maximiser of ``x y - f(x)`` nearest to 1 (0, 1 or ``+inf``).
            For chi-squared it goes on below ``derivative_at_zero`` with negative values, as Eq. 61 prints it.
        conjugate_on_domain: closed form of ``f*`` on ``derivative_at_zero <= y < supremum``, meaningless elsewhere.
        tangent: ``R -> (f'(R), f*(f'(R)))`` in Python floats, for ``R >= 1``: where the cap ``x <= R`` starts to bind.
        supremum: ``lim f'(x)`` for ``x -> inf``; the conjugate is ``+inf`` above it.
        supremum_in_domain: whether the conjugate is finite at ``y = supremum`` itself.
        derivative_at_zero: ``f'(0+)``; at and below it the conjugate is ``-f(0)`` and 0 a maximiser, the only one but
            for total variation at ``derivative_at_zero`` itself, where any ratio in ``[0, 1]`` is one.
        dominates_kl: whether ``D_f >= KL`` for all distributions (Propositions 1 and 2).
        conjugate_unrestricted: the conjugate over all real ``x`` where it differs from the one over ``x >= 0``.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    inverse_derivative: Callable[[Tensor], Tensor]
    conjugate_on_domain: Callable[[Tensor], Tensor]
    tangent: Callable[[float], tuple[float, float]]
    supremum: float
    derivative_at_zero: float
    dominates_kl: bool
    supremum_in_domain: bool = False
    conjugate_unrestricted: Callable[[Tensor], Tensor] | None = None

    def conjugate(self, y: Tensor, *, max_ratio: float = math.inf) -> Tensor:
        r"""Exact conjugate :math:`\sup_{0 \le x \le R} x y - f(x)`, with ``R = max_ratio`` (Eq. 39 for ``R = inf``).

        A finite cap on the density ratio is the guard for training: the result is then finite and convex for every
        ``y`` and continues as a straight line of slope ``R`` where the cap binds. The gradient is
        :meth:`maximiser` (envelope theorem), never NaN.

        Args:
            y: dual variable, shape ``[*]``, any floating dtype, any finite value.
            max_ratio: largest density ratio considered, dimensionless, at least 1 and representable in ``y.dtype``.

        Returns:
            Shape, dtype and device of ``y``; ``+inf`` outside the domain if ``max_ratio`` is infinite.

        Raises:
            ValueError: if ``max_ratio`` is below 1 (a density ratio averages to 1).
        """
        capped, start, level = self._cap(y, max_ratio)
        # entries where the cap binds are evaluated at 0, where everything is finite, so no NaN enters their gradient
        inside = self.conjugate_on_domain(y.masked_fill(capped, 0.0).clamp(min=self.derivative_at_zero))
        if max_ratio == math.inf:
            return inside + _infinite_slope(capped, y)
        return torch.where(capped, level + max_ratio * (y.masked_fill(~capped, 0.0) - start), inside)

    def maximiser(self, y: Tensor, *, max_ratio: float = math.inf) -> Tensor:
        r"""Density ratio :math:`\arg\max_{0 \le x \le R} x y - f(x)`, the derivative of :meth:`conjugate`.

        It is 0 at and below ``derivative_at_zero`` and ``max_ratio`` from ``f'(max_ratio)`` on, so also outside the
        domain. Total variation, whose maximiser is a set at ``y = -1/2`` and ``1/2``, gives 1 there. NaN stays NaN.

        Args:
            y: dual variable, shape ``[*]``, any floating dtype.
            max_ratio: as in :meth:`conjugate`.

        Returns:
            Shape, dtype and device of ``y``, in ``[0, max_ratio]``; differentiable.

        Raises:
            ValueError: if ``max_ratio`` is below 1.
        """
        capped, _, _ = self._cap(y, max_ratio)
        inside = self.inverse_derivative(y.masked_fill(capped, 0.0)).clamp(min=0.0, max=max_ratio)
        return inside.masked_fill(capped, max_ratio)

    def conjugate_real(self, y: Tensor) -> Tensor:
        """Conjugate over all real ``x``, as Table 3 prints chi-squared and total variation; else :meth:`conjugate`.

        Args:
            y: dual variable, shape ``[*]``, any floating dtype.

        Returns:
            Shape, dtype and device of ``y``.
        """
        return self.conjugate(y) if self.conjugate_unrestricted is None else self.conjugate_unrestricted(y)

    def _cap(self, y: Tensor, max_ratio: float) -> tuple[Tensor, float, float]:
        """Where the cap binds, the ``y`` from which on it does, and the conjugate there."""
        if not max_ratio >= 1.0:
            raise ValueError(f"max_ratio must be at least 1, since a density ratio averages to 1, got {max_ratio}.")
        start, level = (self.supremum, math.inf) if max_ratio == math.inf else self.tangent(max_ratio)
        return (y > start if self.supremum_in_domain else y >= start), start, level


def get_divergence(name: str | Divergence) -> Divergence:
    """Return the divergence of that name; an instance is returned unchanged.

    Raises:
        ValueError: if no divergence has that name.
    """
    if isinstance(name, Divergence):
        return name
    if name not in DIVERGENCES:
        raise unknown_name("divergence", name, DIVERGENCES)
    return DIVERGENCES[name]


def _infinite_slope(mask: Tensor, y: Tensor) -> Tensor:
    """``+inf`` with gradient ``+-inf`` (away from 0) where ``mask``, else 0 with gradient 0; no 0 * inf in between."""
    return torch.copysign(torch.zeros_like(y).masked_fill(mask, math.inf), y.detach()) * y.masked_fill(~mask, 0.0)


def _chi2(x: Tensor) -> Tensor:
    return (x - 1.0).square()


def _chi2_derivative(x: Tensor) -> Tensor:
    return 2.0 * (x - 1.0)


def _chi2_inverse(y: Tensor) -> Tensor:
    return 1.0 + y / 2.0


def _chi2_conjugate(y: Tensor) -> Tensor:
    return y + y.square() / 4.0


def _chi2_tangent(ratio: float) -> tuple[float, float]:
    return 2.0 * (ratio - 1.0), ratio * ratio - 1.0


def _kl(x: Tensor) -> Tensor:
    return torch.xlogy(x, x)


def _kl_derivative(x: Tensor) -> Tensor:
    return x.log() + 1.0


def _kl_conjugate(y: Tensor) -> Tensor:
    return (y - 1.0).exp()


def _kl_tangent(ratio: float) -> tuple[float, float]:
    return math.log(ratio) + 1.0, ratio


def _hellinger(x: Tensor) -> Tensor:
    return (x.sqrt() - 1.0).square()


def _hellinger_derivative(x: Tensor) -> Tensor:
    return 1.0 - x.rsqrt()


def _hellinger_inverse(y: Tensor) -> Tensor:
    return (1.0 - y).clamp(min=0.0).reciprocal().square()


def _hellinger_conjugate(y: Tensor) -> Tensor:
    # y / (1 - y), whose autograd derivative would cancel for large negative y
    return (1.0 - y).reciprocal() - 1.0


def _hellinger_tangent(ratio: float) -> tuple[float, float]:
    return 1.0 - 1.0 / math.sqrt(ratio), math.sqrt(ratio) - 1.0


def _total_variation(x: Tensor) -> Tensor:
    return (x - 1.0).abs() / 2.0


def _total_variation_derivative(x: Tensor) -> Tensor:
    return torch.sign(x - 1.0) / 2.0


def _total_variation_inverse(y: Tensor) -> Tensor:
    # no comparison holds for NaN
    return (y >= -0.5).to(y.dtype).masked_fill(y > 0.5, math.inf).masked_fill(y.isnan(), math.nan)


def _total_variation_conjugate(y: Tensor) -> Tensor:
    return y.clamp(min=-0.5)


def _total_variation_conjugate_real(y: Tensor) -> Tensor:
    return y.clamp(-0.5, 0.5) + _infinite_slope(y.abs() > 0.5, y)


def _total_variation_tangent(ratio: float) -> tuple[float, float]:
    return 0.5, 0.5


def _jensen_shannon(x: Tensor) -> Tensor:
    return torch.xlogy(x, x) - torch.xlogy(x + 1.0, (x + 1.0) / 2.0)


def _jensen_shannon_derivative(x: Tensor) -> Tensor:
    return (2.0 * x / (x + 1.0)).log()


def _jensen_shannon_inverse(y: Tensor) -> Tensor:
    outside = y >= math.log(2.0)
    exp = y.masked_fill(outside, 0.0).exp()
    return (exp / (2.0 - exp)).masked_fill(outside, math.inf)


def _jensen_shannon_conjugate(y: Tensor) -> Tensor:
    return -(2.0 - y.exp()).log()


def _jensen_shannon_tangent(ratio: float) -> tuple[float, float]:
    return math.log(2.0 * ratio / (ratio + 1.0)), math.log((ratio + 1.0) / 2.0)


_ALL = (
    Divergence(
        name="pearson_chi2",
        f=_chi2,
        derivative=_chi2_derivative,
        inverse_derivative=_chi2_inverse,
        conjugate_on_domain=_chi2_conjugate,
        tangent=_chi2_tangent,
        supremum=math.inf,
        derivative_at_zero=-2.0,
        dominates_kl=True,
        conjugate_unrestricted=_chi2_conjugate,
    ),
    Divergence(
        name="kl",
        f=_kl,
        derivative=_kl_derivative,
        inverse_derivative=_kl_conjugate,
        conjugate_on_domain=_kl_conjugate,
        tangent=_kl_tangent,
        supremum=math.inf,
        derivative_at_zero=-math.inf,
        dominates_kl=True,
    ),
    Divergence(
        name="squared_hellinger",
        f=_hellinger,
        derivative=_hellinger_derivative,
        inverse_derivative=_hellinger_inverse,
        conjugate_on_domain=_hellinger_conjugate,
        tangent=_hellinger_tangent,
        supremum=1.0,
        derivative_at_zero=-math.inf,
        dominates_kl=False,
    ),
    Divergence(
        name="total_variation",
        f=_total_variation,
        derivative=_total_variation_derivative,
        inverse_derivative=_total_variation_inverse,
        conjugate_on_domain=_total_variation_conjugate,
        tangent=_total_variation_tangent,
        supremum=0.5,
        derivative_at_zero=-0.5,
        dominates_kl=False,
        supremum_in_domain=True,
        conjugate_unrestricted=_total_variation_conjugate_real,
    ),
    Divergence(
        name="jensen_shannon",
        f=_jensen_shannon,
        derivative=_jensen_shannon_derivative,
        inverse_derivative=_jensen_shannon_inverse,
        conjugate_on_domain=_jensen_shannon_conjugate,
        tangent=_jensen_shannon_tangent,
        supremum=math.log(2.0),
        derivative_at_zero=-math.inf,
        dominates_kl=False,
    ),
)

#: Every divergence of Table 3 by name.
DIVERGENCES: dict[str, Divergence] = {divergence.name: divergence for divergence in _ALL}
