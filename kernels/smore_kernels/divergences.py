"""The convex regulariser of the score objective and its derivative, for use inside kernels.

Reference: ``torchrl_smore.functional.score.conjugate_excess`` and ``torchrl_smore.functional.divergences``.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

#: Where the cap on the density ratio starts to bind, and the conjugate there, for a finite cap.
_TANGENT = {
    "pearson_chi2": lambda ratio: (2.0 * (ratio - 1.0), ratio * ratio - 1.0),
    "kl": lambda ratio: (math.log(ratio) + 1.0, ratio),
    "squared_hellinger": lambda ratio: (1.0 - 1.0 / math.sqrt(ratio), math.sqrt(ratio) - 1.0),
    "total_variation": lambda ratio: (0.5, 0.5),
    "jensen_shannon": lambda ratio: (math.log(2.0 * ratio / (ratio + 1.0)), math.log((ratio + 1.0) / 2.0)),
}
#: Where the conjugate without a cap becomes infinite.
_SUPREMUM = {
    "pearson_chi2": math.inf,
    "kl": math.inf,
    "squared_hellinger": 1.0,
    "total_variation": 0.5,
    "jensen_shannon": math.log(2.0),
}
DIVERGENCES = tuple(_TANGENT)


def excess_constants(
    divergence: str, residual_coef: float, max_ratio: float
) -> tuple[float, float, float, float, float]:
    """What :func:`conjugate_excess` needs: ``(residual_coef, max_ratio, start, level, origin)``.

    With ``z = y / kappa``, the conjugate is the line ``level + max_ratio * (z - origin)`` from ``z = start`` on.
    """
    if max_ratio == math.inf:
        # the line is +inf everywhere; measured from start it would be inf * 0 there
        return residual_coef, max_ratio, _SUPREMUM[divergence], math.inf, 0.0
    start, level = _TANGENT[divergence](max_ratio)
    return residual_coef, max_ratio, start, level, start


@triton.jit
def conjugate_excess(b_y, constants, DIVERGENCE: tl.constexpr):
    """``h(y)`` and ``h'(y)``, elementwise in float32."""
    residual_coef, max_ratio, start, level, origin = constants
    if DIVERGENCE == "pearson_chi2":
        b_excess = residual_coef * b_y * b_y
        b_slope = 2.0 * residual_coef * b_y
    else:
        kappa = 0.25 / residual_coef
        b_z = b_y / kappa
        # total variation alone has a conjugate that is finite at the supremum itself
        b_capped = b_z > start if DIVERGENCE == "total_variation" else b_z >= start
        # capped entries are evaluated at 0, where everything is finite
        b_inside = tl.where(b_capped, 0.0, b_z)
        if DIVERGENCE == "kl":
            b_conjugate = tl.exp(b_inside - 1.0)
            b_ratio = b_conjugate
        elif DIVERGENCE == "squared_hellinger":
            b_root = 1.0 / (1.0 - b_inside)
            b_conjugate = b_root - 1.0
            b_ratio = b_root * b_root
        elif DIVERGENCE == "total_variation":
            b_conjugate = tl.where(b_inside < -0.5, -0.5, b_inside)
            b_ratio = tl.where(b_inside < -0.5, 0.0, 1.0)
        else:
            tl.static_assert(DIVERGENCE == "jensen_shannon", "unknown divergence")
            b_exp = tl.exp(b_inside)
            b_conjugate = -tl.log(2.0 - b_exp)
            b_ratio = b_exp / (2.0 - b_exp)
        # and the line, which may be infinite, away from inf - inf where it is not used
        b_line = level + max_ratio * tl.where(b_capped, b_z - origin, 1.0)
        b_conjugate = tl.where(b_capped, b_line, b_conjugate)
        b_excess = kappa * b_conjugate - b_y
        b_slope = tl.where(b_capped, max_ratio, b_ratio) - 1.0
    return b_excess, b_slope
