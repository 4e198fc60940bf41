"""Compiles the kernels for a CUDA architecture on a machine that need not have one; prints one line a variant.

Run as ``python compile_for_cuda.py 90`` without ``TRITON_INTERPRET`` in the environment.
"""

from __future__ import annotations

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from smore_kernels.bellman_residual import _operands, _score_objective_fwd_kernel
from smore_kernels.divergences import excess_constants
from smore_kernels.formulations import formulation_weights

SEEDS, MEMBERS, ROWS, Q_ROWS = 2, 2, 1023, 512
VARIANTS = [
    ("in_sample", "pearson_chi2", False, torch.float32),
    ("in_sample", "kl", False, torch.bfloat16),
    ("in_sample", "squared_hellinger", False, torch.float16),
    ("in_sample", "total_variation", False, torch.float32),
    ("dual", "jensen_shannon", False, torch.float32),
    ("dual", "pearson_chi2", True, torch.bfloat16),
    ("official_stable", "pearson_chi2", False, torch.float32),
]


class NoDevice:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_variant(formulation: str, divergence: str, policy_bootstrap: bool, dtype: torch.dtype) -> int:
    score, policy, next_policy = torch.zeros(3, SEEDS, MEMBERS, ROWS, dtype=dtype)
    q_score, q_policy = torch.zeros(2, SEEDS, MEMBERS, Q_ROWS, dtype=dtype)
    dual = formulation == "dual"
    rho = _operands(
        score, torch.zeros(SEEDS, ROWS), policy if dual else None, next_policy if policy_bootstrap else None
    )
    q = _operands(
        q_score, torch.zeros(SEEDS, Q_ROWS), q_policy if dual else None, q_policy if policy_bootstrap else None
    )
    rho_weights, q_weights = formulation_weights(formulation, 0.5, 0.99)
    compiled = _score_objective_fwd_kernel.warmup(
        *rho, tuple(rho_weights), score, ROWS, *q, tuple(q_weights), q_score, Q_ROWS,
        excess_constants(divergence, 0.25, 100.0), (0.99, -2.0, float("inf")), torch.zeros(SEEDS, 2),
        MEMBERS=MEMBERS, DIVERGENCE=divergence, Q_EXCESS=formulation != "official_stable", HAS_POLICY=dual,
        POLICY_BOOTSTRAP=policy_bootstrap, BLOCK=1024, grid=(2, SEEDS),
    )  # fmt: skip
    return len(compiled.asm["cubin"])


def main() -> None:
    driver.set_active(NoDevice(int(sys.argv[1])))
    for variant in VARIANTS:
        print(*variant, compile_variant(*variant), "bytes")


if __name__ == "__main__":
    main()
