"""Fused Triton kernels for SMORe, one operation per file. They depend on torch and triton alone."""

from smore_kernels.adam_polyak import adam_polyak_
from smore_kernels.bellman_residual import interpreted, mean_score_objective
from smore_kernels.expectile_awr import ExpectileAWR, expectile_awr
from smore_kernels.score_mlp import ScoreMLP, score_mlp

__all__ = [
    "ExpectileAWR",
    "ScoreMLP",
    "adam_polyak_",
    "expectile_awr",
    "interpreted",
    "mean_score_objective",
    "score_mlp",
]
