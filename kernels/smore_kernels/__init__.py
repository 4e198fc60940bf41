"""Fused Triton kernels for SMORe, one operation a file. They depend on torch and triton alone."""

from smore_kernels.bellman_residual import interpreted, mean_score_objective

__all__ = ["interpreted", "mean_score_objective"]
