"""Each fused kernel against eager PyTorch and ``torch.compile`` of its reference, value and gradient, on a CUDA device.

    python benchmarks/bench_kernels.py --out results/kernels
    python benchmarks/bench_kernels.py --interpret          # no GPU: checks the results only, on small sizes

Sizes are those of the recipes (512 + 512 rows, twin scores, width 256; one seed and ten) and 2^24 elements. Every
implementation is captured once as a CUDA graph, which is how the compiled step runs it; their replays take turns
(A B C A B C ...), so a drift of the machine hits them alike. Medians over blocks are printed with their range. A kernel
whose results differ from the reference's is not timed, and the exit status is 1; without CUDA it is 2. ``copy`` is a
device copy of 2^24 float32 in the same turns: the fraction of its bandwidth says how far a kernel is from its floor of
bytes.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

if "--interpret" in sys.argv:
    # before triton is imported, which torch and tensordict may do
    os.environ["TRITON_INTERPRET"] = "1"

import pages
import torch
from torch import Tensor

from torchrl_smore import _dispatch, _experimental
from torchrl_smore.functional.score import ScoreObjective

Call = Callable[[], list[Tensor]]
IMPLEMENTATIONS = ("triton", "compile", "eager")
INPUTS = 32  # FetchPush: 25 + 3 + 4
WIDTH = 256
MEMBERS = 2


@dataclass(frozen=True)
class Case:
    """One kernel at one size."""

    kernel: str
    size: str
    make: Callable[[str], Call]  # implementation -> a call that returns what is compared
    bytes: int  # read and written at least once, forward and backward
    flops: int
    tolerance: float  # relative, in the norm of each result


def _function(function: Callable, implementation: str) -> Callable:
    """``function(kernels, ...)`` of one implementation."""

    def call(*args: Tensor) -> Tensor:
        return function("triton" if implementation == "triton" else "reference", *args)

    return torch.compile(call, fullgraph=True) if implementation == "compile" else call


def _with_gradient(function: Callable, tensors: list[Tensor], leaves: int, seeds: int) -> Callable[[str], Call]:
    """Value, and gradient with respect to the last ``leaves`` tensors; seeds are mapped along the first axis."""

    def make(implementation: str) -> Call:
        inputs = [tensor.clone().requires_grad_(at >= len(tensors) - leaves) for at, tensor in enumerate(tensors)]

        def mapped(kernels: str, *args: Tensor) -> Tensor:
            return torch.vmap(lambda *one: function(kernels, *one))(*args) if seeds > 1 else function(kernels, *args)

        run = _function(mapped, implementation)

        def call() -> list[Tensor]:
            out = run(*inputs)
            loss = out[0] if isinstance(out, tuple) else out
            rest = [extra.detach() for extra in out[1:]] if isinstance(out, tuple) else []
            return [loss.detach(), *rest, *torch.autograd.grad(loss.sum(), inputs[len(inputs) - leaves :])]

        return call

    return make


def objective_case(rows: int, seeds: int, device: str, dtype: torch.dtype = torch.float32) -> Case:
    """``bellman_residual``: the score objective and its gradients, twin scores, ``in_sample``."""
    lead = (seeds,) if seeds > 1 else ()
    objective = ScoreObjective("in_sample")
    values = [torch.randn(*lead, rows, device=device).to(dtype) for _ in range(2)]
    scores = [torch.randn(*lead, MEMBERS, rows, device=device).to(dtype) for _ in range(2)]

    def loss(kernels: str, next_value: Tensor, q_next_value: Tensor, score: Tensor, q_score: Tensor) -> Tensor:
        tensors = {"score": score, "next_value": next_value, "q_score": q_score, "q_next_value": q_next_value}
        return _dispatch.score_objective(objective, **tensors, bounds=(-2.0, 200.0), kernels=kernels)

    # forward reads scores and values and writes gradients, backward reads and writes gradients
    elements = 2 * seeds * rows * (MEMBERS + 1 + MEMBERS + 2 * MEMBERS)
    size = f"{seeds} x {MEMBERS} x ({rows} + {rows})"
    return Case("bellman_residual", size, _with_gradient(loss, [*values, *scores], 2, seeds), 4 * elements, 0, 1e-5)


def expectile_case(rows: int, seeds: int, device: str, dtype: torch.dtype = torch.float32) -> Case:
    """``expectile_awr``: value loss, gradient, weights and diagnostics."""
    lead = (seeds,) if seeds > 1 else ()
    score, value = (torch.randn(*lead, rows, device=device).to(dtype) for _ in range(2))
    expectile, temperature = torch.tensor(0.8, device=device), torch.tensor(3.0, device=device)

    def loss(kernels: str, score: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        found = _dispatch.expectile_awr(score, value, expectile=expectile, temperature=temperature, kernels=kernels)
        return found.loss, *(found.weight or ()), found.mean_value

    # forward reads two and writes two, backward reads one and writes one
    elements = 6 * seeds * rows
    return Case(
        "expectile_awr", f"{seeds} x {rows}", _with_gradient(loss, [score, value], 1, seeds), 4 * elements, 0, 1e-5
    )


def adam_case(elements: int, device: str) -> Case:
    """``adam_polyak``: Adam with cosine and the target update, in place."""
    buffers = torch.randn(5, elements, device=device)
    buffers[3].square_()

    def make(implementation: str) -> Call:
        param, grad, exp_avg, exp_avg_sq, target = buffers.clone()
        step = torch.tensor(7, device=device)

        def update(kernels: str, *tensors: Tensor) -> None:
            *buffers, target = tensors
            _dispatch.adam_polyak_(*buffers, lr=3e-4, decay_steps=1_000_000, target=target, kernels=kernels)

        run = _function(update, implementation)

        def call() -> list[Tensor]:
            run(param, grad, exp_avg, exp_avg_sq, step, target)
            return [param, exp_avg, exp_avg_sq, target]

        return call

    # five buffers read, four written; the reference's 1 - beta**t costs 3e-5 of a step
    return Case("adam_polyak", f"{elements}", make, 4 * 9 * elements, 0, 1e-5)


def network_case(rows: int, seeds: int, width: int, precision: str, device: str) -> Case:
    """``score_mlp``: the whole score update up to the optimiser."""
    lead = (seeds,) if seeds > 1 else ()
    objective = ScoreObjective("in_sample")
    batch = [torch.randn(*lead, *shape, device=device) for shape in ((rows, INPUTS), (rows,)) * 2]
    shapes = [(MEMBERS, out, into) for out, into in ((width, INPUTS), (width, width), (1, width))]
    weights = [w for s in shapes for w in (torch.randn(*lead, *s) * s[-1] ** -0.5, torch.randn(*lead, *s[:-1]) * 0.1)]
    weights = [weight.to(device) for weight in weights]

    def loss(kernels: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        x, next_value, q_x, q_next_value, *layers = tensors
        rows = {"x": x, "next_value": next_value, "q_x": q_x, "q_next_value": q_next_value}
        layers = list(zip(layers[::2], layers[1::2]))
        return _experimental.score_mlp_objective(objective, **rows, layers=layers, precision=precision, kernels=kernels)

    parameters = seeds * MEMBERS * sum(weight[(0,) * (len(lead) + 1)].numel() for weight in weights)
    products = width * INPUTS + width * width + width
    # forward, gradient of the weights, gradient of the activations but for the input's
    flops = 2 * seeds * MEMBERS * 2 * rows * (3 * products - width * INPUTS)
    moved = 4 * (sum(tensor.numel() for tensor in batch) + 2 * parameters)
    # units switch where cuBLAS and the kernel round otherwise, by as much as gpu_checks.NETWORK says
    tolerance = {"fp32": 1e-4, "tf32": 4e-2, "bf16": 0.1}[precision]
    make = _with_gradient(loss, [*batch, *weights], len(weights), seeds)
    return Case(
        f"score_mlp {precision}", f"{seeds} x {MEMBERS} x ({rows} + {rows}) x {width}", make, moved, flops, tolerance
    )


def copy_case(elements: int, device: str) -> Case:
    """The yardstick: a device copy."""
    source, target = torch.randn(2, elements, device=device)
    return Case("copy", f"{elements}", lambda _: lambda: [target.copy_(source)], 8 * elements, 0, 0.0)


def cases(device: str, small: bool) -> list[Case]:
    """Every kernel at every size; ``small`` for the interpreter."""
    if small:
        precisions = [
            network_case(19, seeds, 32, precision, device) for seeds in (1, 2) for precision in ("fp32", "bf16")
        ]
        rest = [case(1030, seeds, device) for seeds in (1, 2) for case in (objective_case, expectile_case)]
        return [*rest, adam_case(1030, device), *precisions]
    recipe = [case(512, seeds, device) for seeds in (1, 10) for case in (objective_case, expectile_case)]
    # the score's twins, and all networks of a recipe for ten seeds
    recipe += [adam_case(elements, device) for elements in (150_000, 3_000_000)]
    networks = [(512, 1), (512, 10), (2**24 // (2 * MEMBERS * WIDTH), 1)]
    large = [
        objective_case(2**24 // (2 * MEMBERS), 1, device),
        expectile_case(2**24, 1, device),
        adam_case(2**24, device),
    ]
    return [
        *recipe,
        *large,
        *(
            network_case(rows, seeds, WIDTH, precision, device)
            for rows, seeds in networks
            for precision in ("tf32", "bf16")
        ),
    ]


def disagreement(case: Case, device: str) -> float:
    """Largest relative error of the kernel's results in their norm, over the case's tolerance."""
    torch.set_float32_matmul_precision("high" if "tf32" in case.kernel else "highest")
    ours, expected = (case.make(implementation)() for implementation in ("triton", "eager"))
    errors = [
        ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item() for a, b in zip(ours, expected)
    ]
    # a NaN is the largest of all
    return max(errors, key=lambda error: (error != error, error)) / case.tolerance


def captured(call: Call) -> Callable[[], None]:
    """The call as a CUDA graph, after the warm-up that compiles it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # kept for as long as the graph may write to it
        graph_outputs = call()
    return lambda outputs=graph_outputs: graph.replay()


def microseconds(run: Callable[[], None], repeats: int) -> float:
    """Time of one replay, averaged over a block."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    stop.record()
    stop.synchronize()
    return 1e3 * start.elapsed_time(stop) / repeats


def measure(case: Case, blocks: int, copy: Callable[[], None]) -> list[dict[str, object]]:
    """One row per implementation, from interleaved blocks."""
    torch.set_float32_matmul_precision("high" if "tf32" in case.kernel else "highest")
    # compiled code is found by code object, of which all cases share one: the second would be compiled for sizes that
    # vary, and the ninth refused
    torch.compiler.reset()
    runs = {name: captured(case.make(name)) for name in IMPLEMENTATIONS} | {"copy": copy}
    repeats = {name: max(3, min(500, int(2e4 / microseconds(run, 10)))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(blocks):
        for name, run in runs.items():
            times[name].append(microseconds(run, repeats[name]))
    bandwidth = 8 * 2**24 / statistics.median(times["copy"])
    rows = []
    for name in IMPLEMENTATIONS:
        median = statistics.median(times[name])
        ratios = {
            f"over_{other}": statistics.median(b / a for a, b in zip(times[name], times[other]))
            for other in IMPLEMENTATIONS
        }
        rows.append(
            {
                "kernel": case.kernel,
                "size": case.size,
                "implementation": name,
                "median_us": median,
                "min_us": min(times[name]),
                "max_us": max(times[name]),
                **ratios,
                "fraction_of_copy_bandwidth": case.bytes / median / bandwidth,
                "tflops": case.flops / median / 1e6,
            }
        )
    return rows


def write(rows: list[dict[str, object]], folder: Path, title: str) -> None:
    """``kernels.csv`` and ``kernels.png``, each written atomically."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    with pages.replacing(folder / "kernels.csv") as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    fused = [row for row in rows if row["implementation"] == "triton"]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(fused)), layout="constrained")
    axes.barh([f"{row['kernel']}, {row['size']}" for row in fused], [row["over_compile"] for row in fused])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("time of torch.compile over time of the kernel")
    axes.set_title(title, fontsize=8)
    axes.invert_yaxis()
    with pages.replacing(folder / "kernels.png") as beside:
        figure.savefig(beside, dpi=150, format="png")
    plt.close(figure)


def main() -> int:
    """Checks, measures, prints and writes; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--interpret", action="store_true", help="check the results under Triton's interpreter, no timing"
    )
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("results/kernels"))
    args = parser.parse_args()
    if not args.interpret and not torch.cuda.is_available():
        print(
            "bench_kernels.py times kernels on a CUDA device and found none; --interpret checks results.",
            file=sys.stderr,
        )
        return 2
    device = "cpu" if args.interpret else "cuda"
    torch.manual_seed(0)
    packages = f"torch {torch.__version__}, triton {version('triton')}"
    title = f"{'Triton interpreter' if args.interpret else torch.cuda.get_device_name()}, {packages}"
    print(title)
    rows: list[dict[str, object]] = []
    copy = None if args.interpret else captured(copy_case(2**24, device).make(""))
    wrong = 0
    for case in cases(device, args.interpret):
        excess = disagreement(case, device)
        label = f"{case.kernel}, {case.size}: error {excess:.2g} of the tolerance {case.tolerance:g}"
        if not excess <= 1.0:
            wrong += 1
            print(f"{label} - WRONG, not timed")
            continue
        print(label)
        if copy is None:
            continue
        for row in measure(case, args.blocks, copy):
            rows.append(row)
            print(
                f"  {row['implementation']:8} {row['median_us']:9.1f} us [{row['min_us']:.1f}, {row['max_us']:.1f}], "
                f"compile takes {row['over_compile']:.2f} x, eager {row['over_eager']:.2f} x, "
                f"{100 * row['fraction_of_copy_bandwidth']:.0f}% of copy bandwidth, {row['tflops']:.1f} TFLOP/s"
            )
    if wrong:
        print(f"{wrong} results differ from the reference: nothing is written.", file=sys.stderr)
        return 1
    if rows:
        write(rows, args.out, title)
        print(f"wrote {args.out / 'kernels.csv'} and {args.out / 'kernels.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
