"""Fused Triton kernels for SMORe, one operation a file. They depend on torch and triton alone."""

from smore_kernels.adam_polyak import adam_polyak_
from smore_kernels.bellman_residual import interpreted, mean_score_objective

__all__ = ["adam_polyak_", "interpreted", "mean_score_objective"]
