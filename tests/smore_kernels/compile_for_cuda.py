"""Compiles the kernels for a CUDA architecture on a machine that need not have one; prints one line a kernel.

Run as ``python compile_for_cuda.py 90`` without ``TRITON_INTERPRET`` in the environment. The public functions are
called on CPU tensors with every launch turned into a compilation. Registers and stack (spilled registers lie there) are
what the assembler that comes with triton says of the binary, shared memory is what a launch asks for.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import smore_kernels

SEEDS, MEMBERS, ROWS, Q_ROWS = 2, 2, 1023, 512
OBJECTIVES = [
    ("in_sample", "pearson_chi2", torch.float32),
    ("in_sample", "kl", torch.bfloat16),
    ("in_sample", "squared_hellinger", torch.float16),
    ("in_sample", "total_variation", torch.float32),
    ("dual", "jensen_shannon", torch.float32),
    ("dual", "pearson_chi2", torch.bfloat16),
    ("official_stable", "pearson_chi2", torch.float32),
]
# precision, width, inputs
NETWORKS = [("bf16", 256, 32), ("tf32", 256, 32), ("fp32", 256, 32), ("tf32", 48, 88)]


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


def resources(compiled: Any) -> str:
    """Size, registers a thread, stack a thread and shared memory a block of a binary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (re.search(rf"{name}:(\d+)", usage)[1] for name in ("REG", "STACK"))
    size = len(compiled.asm["cubin"])
    return f"{size} bytes, {registers} registers, {stack} bytes of stack, {compiled.metadata.shared} of shared memory"


def compile_instead_of_launching(label: list[str]) -> None:
    run = triton.JITFunction.run

    def compile_and_print(self: triton.JITFunction, *args: Any, **kwargs: Any) -> Any:
        compiled = run(self, *args, **{**kwargs, "warmup": True})
        print(self.__name__, *label, "-", resources(compiled))
        return compiled

    triton.JITFunction.run = compile_and_print


def call_objective(formulation: str, divergence: str, dtype: torch.dtype) -> None:
    score, q_score = torch.zeros(SEEDS, MEMBERS, ROWS, dtype=dtype), torch.zeros(SEEDS, MEMBERS, Q_ROWS, dtype=dtype)
    policy = {}
    if formulation == "dual":
        policy = {"policy_score": score, "q_next_policy_score": q_score}
    smore_kernels.mean_score_objective(
        score, torch.zeros(SEEDS, ROWS), q_score, torch.zeros(SEEDS, Q_ROWS),
        formulation=formulation, divergence=divergence, bounds=(-2.0, float("inf")), **policy,
    )  # fmt: skip


def call_network(precision: str, width: int, inputs: int) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(SEEDS, *shape)

    layers = [
        (zeros(MEMBERS, out, into), zeros(MEMBERS, out)) for out, into in ((width, inputs), (width, width), (1, width))
    ]
    rows = zeros(ROWS, inputs), zeros(ROWS), zeros(Q_ROWS, inputs), zeros(Q_ROWS)
    smore_kernels.score_mlp(*rows, layers, precision=precision)


def main() -> None:
    driver.set_active(NoDevice(int(sys.argv[1])))
    label: list[str] = []
    compile_instead_of_launching(label)
    for objective in OBJECTIVES:
        label[:] = map(str, objective)
        call_objective(*objective)
    for temperature, dtype in (
        (None, torch.float32),
        (torch.ones(()), torch.float32),
        (torch.ones(()), torch.bfloat16),
    ):
        label[:] = [str(dtype), "value only" if temperature is None else "value and weights"]
        rows = torch.zeros(SEEDS, ROWS, dtype=dtype)
        smore_kernels.expectile_awr(rows, rows, expectile=torch.full((), 0.8), temperature=temperature)
    for decay_steps, target in ((None, None), (100, torch.zeros(ROWS))):
        label[:] = [f"decay_steps={decay_steps}", f"target={target is not None}"]
        buffers = torch.zeros(4, ROWS)
        smore_kernels.adam_polyak_(*buffers, torch.tensor(0), lr=1e-3, decay_steps=decay_steps, target=target)
    for network in NETWORKS:
        label[:] = map(str, network)
        call_network(*network)


if __name__ == "__main__":
    main()
