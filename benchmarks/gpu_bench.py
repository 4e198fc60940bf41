"""The timings of ``gpu.py``: yardsticks, updates, kernels, peers, and where the time of an update goes.

A block of calls is timed by events of the device, or by the clock on a CPU; a value is the median over blocks.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import bench_kernels
import harness
import torch
from bench_update import count_flops
from gpu_checks import fused_update, matmul_precision, require_triton
from gpu_rows import Skipped, Wrong

BLOCKS = 7
#: Of a block, in seconds: long beside a clock's tick, short beside a drift of the card.
BLOCK_SECONDS = 0.2
_peaks: dict[str, Any] = {}


def seconds_of(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Seconds of one call, averaged over a block."""
    if device == "cuda":
        return bench_kernels.microseconds(call, repeats) / 1e6
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def blocks_of(call: Callable[[], Any], device: str) -> list[float]:
    """Seconds of one call by block, after a block that settles how many calls a block has."""
    small = device == "cpu"
    first = seconds_of(call, 1 if small else 10, device)
    repeats = 1 if small else max(3, min(5000, int(BLOCK_SECONDS / first)))
    return [seconds_of(call, repeats, device) for _ in range(2 if small else BLOCKS)]


def measured(seconds: list[float], work: float = 1.0) -> dict[str, float]:
    """``work`` a second: median and range over blocks."""
    rates = [work / each for each in seconds]
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def peak(device: str, small: bool) -> dict[str, Any]:
    """The yardsticks: bytes a second of a copy, FLOP/s of a large product by precision, seconds of a launch."""
    elements, size = (2**12, 64) if small else (2**28, 8192)
    source, target = torch.randn(2, elements, device=device)
    copied = blocks_of(functools.partial(target.copy_, source), device)
    values: dict[str, Any] = {"copy_gb_per_s": 8 * elements / statistics.median(copied) / 1e9}
    del source, target
    for precision in ("float32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # random numbers: products of zeros run faster
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        with matmul_precision(precision):
            taken = blocks_of(lambda a=a, b=b: a @ b, device)
        values[f"{precision}_tflop_per_s"] = 2 * size**3 / statistics.median(taken) / 1e12
    tiny = torch.zeros(1, device=device)

    def hundred() -> list[torch.Tensor]:
        for _ in range(100):
            tiny.add_(1.0)
        return [tiny]

    run = bench_kernels.captured(hundred) if device == "cuda" else hundred
    values["launch_us"] = statistics.median(blocks_of(run, device)) * 1e4
    _peaks.update(values)
    return values


def forget(device: str) -> None:
    """Drops what earlier items compiled and allocated."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def update(
    device: str,
    mode: str,
    precision: str,
    batch_size: int,
    seeds: int,
    width: int,
    trajectories: int,
    kernels: str = "reference",
    formulation: str = "in_sample",
) -> dict[str, Any]:
    """Updates a second of one way to run them, its memory, and its time over the floor.

    The floor is the longest of three: the products at the card's measured peak in that precision; the bytes that an
    update must move at its copy's rate (optimiser state and parameters 36 bytes each, batch rows once); and, as long
    as a launch takes, the kernels that were launched.
    """
    require_triton(device, kernels)
    forget(device)
    started = time.perf_counter()
    with matmul_precision(precision):
        step = fused_update(
            range(seeds),
            device,
            mode=mode,
            precision=precision,
            batch_size=batch_size,
            width=width,
            trajectories=trajectories,
            formulation=formulation,
            kernels=kernels,
        )
        for _ in range(1 if device == "cpu" else 5):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        warm_up = time.perf_counter() - started
        taken = blocks_of(step, device)
        launches = count_launches(step, device)
    rates = measured(taken)
    values: dict[str, Any] = {f"updates_per_s_{name}": value for name, value in rates.items()}
    values["seed_updates_per_s"] = seeds * rates["median"]
    values["warm_up_s"] = warm_up
    if device == "cuda":
        values["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    flops = count_flops(formulation, batch_size, width) * seeds
    values |= {"gflop": flops / 1e9, "launches": launches}
    return values | floor(statistics.median(taken), flops, moved_bytes(step, batch_size), launches, precision, device)


def moved_bytes(step: Any, batch_size: int) -> int:
    """Bytes that an update must move, of the parameters and of the rows of both parts of a batch.

    A parameter has 28 of the optimiser's, and 36 where there is a target network.
    """
    parameters = sum(flat.numel() for flat in step.params.values())
    with_target = sum(flat.numel() for flat in step.targets.values())
    row = 4 * (2 * harness.OBSERVATION + harness.ACTION + 2 * harness.GOAL)
    return 28 * parameters + 8 * with_target + 2 * batch_size * row * len(step.seeds)


def floor(
    seconds: float, flops: float, moved: float, launches: int | None, precision: str, device: str
) -> dict[str, Any]:
    """Time over the longest of the three floors, and which that is."""
    if not _peaks:
        peak(device, small=device == "cpu")
    floors = {
        "flops": flops / (_peaks[f"{precision}_tflop_per_s"] * 1e12),
        "bytes": moved / (_peaks["copy_gb_per_s"] * 1e9),
        "launches": (launches or 0) * _peaks["launch_us"] / 1e6,
    }
    longest = max(floors, key=floors.__getitem__)
    return {"floor": longest, "over_floor": seconds / floors[longest]} | {
        f"{name}_floor_us": 1e6 * value for name, value in floors.items()
    }


def count_launches(step: Callable[[], Any], device: str) -> int | None:
    """Kernels that one update runs on the device, replayed ones too; ``None`` on a CPU."""
    if device == "cpu":
        return None
    return sum(event.count for event in _profiled(step, device, 1) if event.self_device_time_total > 0)


def _profiled(step: Callable[[], Any], device: str, updates: int) -> list[Any]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(updates):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if device == "cuda" else torch.autograd.DeviceType.CPU
    return [event for event in recorded.key_averages() if event.device_type == kind]


def profile(device: str, batch_size: int, width: int, trajectories: int) -> dict[str, Any]:
    """Where the time of an update goes: its ten most expensive kernels, eager and as a graph."""
    values: dict[str, Any] = {}
    for mode in ("eager", "graph"):
        step = fused_update((0,), device, mode=mode, batch_size=batch_size, width=width, trajectories=trajectories)
        updates = 1 if device == "cpu" else 20
        # a kernel that was timed before may have left another precision
        with matmul_precision("float32"):
            for _ in range(1 if device == "cpu" else 5):
                step()
            events = _profiled(step, device, updates)

        def cost(event: Any) -> float:
            return float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)

        total = sum(map(cost, events))
        events.sort(key=cost, reverse=True)
        values[f"{mode}_us_an_update"] = total / updates
        values[f"{mode}_kernels"] = [
            {"name": event.key[:80], "share": cost(event) / total, "calls": event.count / updates}
            for event in events[:10]
        ]
    return values


def kernel_time(device: str, kernel: str, rows: int, seeds: int, precision: str | None) -> dict[str, Any]:
    """A kernel, eager PyTorch and ``torch.compile`` of its reference, each as a CUDA graph; wrong ones are not timed.

    Raises:
        Wrong: if the kernel's results are not the reference's.
    """
    require_triton(device)
    forget(device)
    torch.manual_seed(0)
    cases: dict[str, Callable[[], bench_kernels.Case]] = {
        "bellman_residual": lambda: bench_kernels.objective_case(rows, seeds, device),
        "expectile_awr": lambda: bench_kernels.expectile_case(rows, seeds, device),
        "adam_polyak": lambda: bench_kernels.adam_case(rows, device),
        "score_mlp": lambda: bench_kernels.network_case(rows, seeds, bench_kernels.WIDTH, precision or "tf32", device),
    }
    case = cases[kernel]()
    excess = bench_kernels.disagreement(case, device)
    if not excess <= 1.0:
        raise Wrong({"error": excess, "tolerance": case.tolerance}, f"off by {excess:.3g} times the tolerance")
    values: dict[str, Any] = {"error": excess, "size": case.size, "bytes": case.bytes, "flops": case.flops}
    if device == "cpu":
        return values
    copy = bench_kernels.captured(bench_kernels.copy_case(2**24, device).make(""))
    kept = ("median_us", "min_us", "max_us", "fraction_of_copy_bandwidth", "tflops")
    for row in bench_kernels.measure(case, BLOCKS, copy):
        values |= {f"{row['implementation']}_{name}": row[name] for name in kept}
        if row["implementation"] == "triton":
            values |= {"over_compile": row["over_compile"], "over_eager": row["over_eager"]}
    return values


def peer(
    device: str,
    script: str,
    batch_size: int,
    width: int,
    trajectories: int,
    updates: int,
    matmul: str = "highest",
) -> dict[str, Any]:
    """Updates a second of a peer in its own process, on the same card."""
    options: dict[str, Any] = {"batch_size": batch_size, "width": width, "trajectories": trajectories}
    if script == "smore_jax.py":
        if importlib.util.find_spec("jax") is None:
            raise Skipped("jax is not installed")
        os.environ.update(JAX_DEFAULT_MATMUL_PRECISION=matmul, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    else:
        options["device"] = device
    threads = 1 if device == "cpu" else min(4, os.cpu_count() or 1)
    other = harness.Peer(sys.executable, script, threads, **options)
    try:
        if script == "smore_jax.py" and device == "cuda" and " on gpu," not in other.hello:
            raise Skipped(f"jax sees no GPU: {other.hello}")
        run = other.block(updates)
        run()
        rates = [run() for _ in range(2 if device == "cpu" else BLOCKS)]
    finally:
        other.close()
    found = {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
    return {f"updates_per_s_{name}": value for name, value in found.items()} | {"hello": other.hello}
