"""The tasks of gpu.py, each a process: prints what it finds as lines that begin with ``ROW``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

if "--dry-run" in sys.argv:
    # before triton is imported, which torch and tensordict may do
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from gpu import ROOT, ROW

PRECISIONS = ("float32", "tf32", "bf16")
#: Of float32: sums in another order.
ROUNDING = 1e-5
#: Of a half: what one rounding of a result costs.
HALF_ROUNDING = 2.0**-8
SEEDS = 16


def row(**found: Any) -> None:
    """Hands a row to gpu.py."""
    print(ROW + json.dumps(found), flush=True)


def device_name(args: argparse.Namespace) -> str:
    """Where tasks run: the GPU, or the CPU of a dry run."""
    return "cpu" if args.dry_run else "cuda"


def device(args: argparse.Namespace) -> None:
    """Which card, and which versions of what."""
    import torchrl_smore

    names = ("torch", "triton", "torchrl", "tensordict", "numpy", "mujoco", "gymnasium-robotics", "jax")
    row(package=str(Path(torchrl_smore.__file__).resolve().parent), python=sys.version.split()[0])
    row(versions={name: _version(name) for name in names}, commit=_commit())
    if args.dry_run:
        row(device="dry run on the CPU", dry_run=True)
        return
    if not torch.cuda.is_available():
        raise SystemExit(f"this PyTorch ({torch.__version__}) sees no CUDA device.")
    found = torch.cuda.get_device_properties(0)
    row(
        device=found.name,
        memory_gib=round(found.total_memory / 2**30, 1),
        capability=f"{found.major}.{found.minor}",
        multiprocessors=found.multi_processor_count,
        cuda=torch.version.cuda,
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def kernel(args: argparse.Namespace, name: str, precision: str) -> None:
    """One kernel against its reference in value and gradient, odd sizes, 1 to 65,536 rows, one seed and several.

    In float32 the relative error, in the norm of each result, is bounded. Products of halves and of tf32 round both
    ways: there the error of the kernel, measured against the reference in float32, may be twice the reference's own.
    """
    import bench_kernels

    wrong = 0
    sizes = (1, 7, 33) if args.dry_run else (1, 7, 511, 512, 1025, 8192, 65_536)
    for rows in sizes:
        for seeds in (1, 3):
            if name == "adam_polyak" and seeds > 1:
                continue
            ours, reference, exact, size = _results(bench_kernels, name, precision, rows, seeds, args)
            error = _error(ours, exact)
            bound = ROUNDING if precision == "float32" else 2.0 * _error(reference, exact) + HALF_ROUNDING
            row(kernel=name, precision=precision, size=size, error=_short(error), bound=_short(bound))
            wrong += not error <= bound
    if wrong:
        raise SystemExit(f"{name}, {precision}: {wrong} results differ from the reference.")


def _results(made: Any, name: str, precision: str, rows: int, seeds: int, args: argparse.Namespace) -> Any:
    """What kernel, reference, and reference in float32 give for the same inputs."""
    where, found, size = device_name(args), [], ""
    for implementation, chosen in (("triton", precision), ("eager", precision), ("eager", "float32")):
        torch.manual_seed(rows)
        torch.set_float32_matmul_precision("high" if chosen == "tf32" else "highest")
        half = torch.bfloat16 if chosen == "bf16" else torch.float32
        if name == "bellman_residual":
            case = made.objective_case(rows, seeds, where, half)
        elif name == "expectile_awr":
            case = made.expectile_case(rows, seeds, where, half)
        elif name == "adam_polyak":
            case = made.adam_case(rows, where)
        else:
            width = 32 if args.dry_run else 256
            case = made.network_case(rows, seeds, width, {"float32": "fp32"}.get(chosen, chosen), where)
        size = case.size
        found.append([result.detach().double() for result in case.make(implementation)()])
    return (*found, size)


def _error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest error of a result in its norm, over the norm; a NaN is the largest of all."""
    errors = [((a - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in zip(found, expected)]
    return max(errors, key=lambda error: (error != error, error))


def _short(number: float) -> float:
    return float(f"{number:.3g}")


def make_update(args: argparse.Namespace, *, batch_size: int, precision: str, seeds: int = 1, **options: Any) -> Any:
    """A fused update of SMORe on random data of FetchPush's shape."""
    import harness

    from torchrl_smore import GoalBatchSampler, SMORELoss, goal_specs, make_networks
    from torchrl_smore.trainers import FusedUpdate

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    where, losses = device_name(args), []
    data = _dataset(8 if args.dry_run else 10_000).to(where)
    for seed in range(seeds):
        torch.manual_seed(seed)
        networks = make_networks(
            *goal_specs(harness.OBSERVATION, harness.GOAL, harness.ACTION),
            hidden=(16, 16) if args.dry_run else (256, 256),
            precision="bf16" if precision == "bf16" else "float32",
        )
        losses.append(SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=True).to(where))
    sampler = GoalBatchSampler(data, batch_size, device=where)
    return FusedUpdate(losses, sampler, seeds=range(seeds), total_steps=1_000_000, tau=0.005, **options)


def _dataset(trajectories: int) -> Any:
    import harness

    torch.manual_seed(0)
    return harness.random_dataset(trajectories)


def parameters(update: Any) -> torch.Tensor:
    """Every parameter of every seed, ``[K, N]``, float64."""
    return torch.cat([flat.detach().double() for flat in update.params.values()], -1).cpu()


def captured(args: argparse.Namespace) -> None:
    """The captured step against the eager one, 50 updates: parameters, losses."""
    steps, size = (5, 8) if args.dry_run else (50, 512)
    ends = {}
    for name, options in _modes(args).items():
        update = make_update(args, batch_size=size, precision="float32", **options)
        for _ in range(steps):
            out = update()
        ends[name] = parameters(update), float(out["loss_score"][0])
    expected, loss = ends["eager"]
    start = parameters(make_update(args, batch_size=size, precision="float32"))
    moved = float((expected - start).norm())
    worst = 0.0
    for name, (found, its_loss) in ends.items():
        error = float((found - expected).norm()) / moved
        row(mode=name, updates=steps, error_over_distance_moved=float(f"{error:.3g}"), loss=its_loss, eager_loss=loss)
        worst = max(worst, error)
    # another order of sums, amplified by Adam's quotient where gradients nearly vanish
    if not worst <= 1e-2:
        raise SystemExit(f"after {steps} updates the modes are {worst:.2g} of the distance moved apart.")


def _modes(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    if args.dry_run:
        return {"eager": {}, "vmap": {"map_seeds": "vmap"}}
    return {
        "eager": {"cuda_graph": False},
        "compiled": {"cuda_graph": False, "compile": "default"},
        "eager, captured": {"cuda_graph": True},
        "compiled, captured": {"cuda_graph": True, "compile": "default"},
    }


def seeds(args: argparse.Namespace) -> None:
    """Seeds trained together against each of them alone."""
    count, steps, size = (3, 3, 8) if args.dry_run else (SEEDS, 50, 256)
    options = {"batch_size": size, "precision": "float32"}
    together = make_update(args, seeds=count, map_seeds="vmap", **options)
    start = parameters(together)
    for _ in range(steps):
        together()
    found, worst = parameters(together), 0.0
    for seed in range(count):
        alone = _alone(args, seed, **options)
        for _ in range(steps):
            alone()
        expected = parameters(alone)[0]
        worst = max(worst, float((found[seed] - expected).norm() / (expected - start[seed]).norm()))
    row(seeds=count, updates=steps, largest_error_over_distance_moved=float(f"{worst:.3g}"))
    if not worst <= 1e-2:
        raise SystemExit(f"{count} seeds together are {worst:.2g} of the distance moved away from each alone.")


def _alone(args: argparse.Namespace, seed: int, **options: Any) -> Any:
    """The update of one seed by itself: that of all of them, of which the others are dropped."""
    from torchrl_smore.trainers import FusedUpdate

    many = make_update(args, seeds=seed + 1, **options)
    sampler = many.samplers[seed]
    return FusedUpdate([many.losses[seed]], sampler, seeds=[seed], total_steps=1_000_000, tau=0.005)


def pytest(args: argparse.Namespace) -> None:
    """The suite's tests that need a GPU, and those of the kernels."""
    if importlib.util.find_spec("pytest") is None:
        raise SystemExit("pytest is not installed here.")
    chosen = ["tests/smore_kernels", "tests/trainers/test_fused.py"]
    chosen = [*chosen[1:], "-m", "gpu"] if args.dry_run else [*chosen, "-m", "not slow"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=line", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-2000:])
    lines = done.stdout.strip().splitlines()
    row(summary=lines[-1] if lines else "", failed=[line.split(" ")[1] for line in lines if line.startswith("FAILED")])
    if done.returncode not in (0, 5):  # 5: nothing was selected, or all of it skipped
        raise SystemExit("tests failed.")


def update(args: argparse.Namespace, precision: str) -> None:
    """Updates per second of one seed by mode and batch size, beside the floor."""
    floor = Floor(args, precision)
    for batch_size in (8,) if args.dry_run else (256, 512, 1024, 2048, 4096, 8192):
        for name, options in _modes(args).items():
            if batch_size not in (8, 512) and name != "compiled, captured":
                continue
            _time(args, floor, name, batch_size=batch_size, precision=precision, seeds=1, **options)


def seeds_together(args: argparse.Namespace, precision: str) -> None:
    """Seed-updates per second of seeds trained together, captured and compiled."""
    floor = Floor(args, precision)
    options = {} if args.dry_run else {"cuda_graph": True, "compile": "default"}
    for count in (1, 2) if args.dry_run else (1, 4, 16, 64, 128):
        size = 8 if args.dry_run else 512
        _time(args, floor, "together", batch_size=size, precision=precision, seeds=count, **options)


def _time(
    args: argparse.Namespace, floor: Floor, mode: str, *, batch_size: int, precision: str, seeds: int, **options: Any
) -> None:
    started = time.perf_counter()
    made = make_update(args, batch_size=batch_size, precision=precision, seeds=seeds, **options)
    for _ in range(2 if args.dry_run else 10):
        made()
    _wait(args)
    warm = time.perf_counter() - started
    rates = [_rate(args, made) for _ in range(2 if args.dry_run else 7)]
    rate = statistics.median(rates)
    memory = None if args.dry_run else round(torch.cuda.max_memory_allocated() / 2**30, 3)
    row(
        mode=mode,
        precision=precision,
        batch_size=batch_size,
        seeds=seeds,
        updates_per_second=round(rate, 1),
        lowest=round(min(rates), 1),
        highest=round(max(rates), 1),
        seed_updates_per_second=round(rate * seeds, 1),
        time_over_gemm_floor=round(1.0 / (rate * floor.seconds(batch_size, seeds)), 2),
        memory_gib=memory,
        warm_up_seconds=round(warm, 1),
    )


def _rate(args: argparse.Namespace, made: Callable[[], Any]) -> float:
    """Updates per second over about half a second."""
    repeats = 2 if args.dry_run else 20
    while True:
        _wait(args)
        started = time.perf_counter()
        for _ in range(repeats):
            made()
        _wait(args)
        seconds = time.perf_counter() - started
        if args.dry_run or seconds > 0.4:
            return repeats / seconds
        repeats = int(repeats * max(1.5, 0.5 / max(seconds, 1e-6)))


def _wait(args: argparse.Namespace) -> None:
    if not args.dry_run:
        torch.cuda.synchronize()


class Floor:
    """Seconds that the matrix products of an update take at the card's measured peak: the floor of FLOPs."""

    def __init__(self, args: argparse.Namespace, precision: str) -> None:
        size = 64 if args.dry_run else 8192
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        a, b = (torch.randn(size, size, device=device_name(args), dtype=dtype) for _ in range(2))
        self.width = 16 if args.dry_run else 256
        self.peak = 2.0 * size**3 * max(_rate(args, lambda: a @ b) for _ in range(3))
        row(floor="large product", precision=precision, tflops=round(self.peak / 1e12, 2))

    def seconds(self, batch_size: int, seeds: int) -> float:
        """Of one update of ``in_sample``."""
        from bench_update import count_flops

        return seeds * count_flops("in_sample", batch_size, self.width) / self.peak


def kernels(args: argparse.Namespace) -> None:
    """Each kernel against ``torch.compile`` of its reference, beside a copy; sizes of recipes and large ones."""
    import bench_kernels

    where = device_name(args)
    if args.dry_run:
        for case in bench_kernels.cases(where, True)[:2]:
            row(kernel=case.kernel, size=case.size, error_over_tolerance=bench_kernels.disagreement(case, where))
        return
    copy = bench_kernels.captured(bench_kernels.copy_case(2**24, where).make(""))
    extra = [bench_kernels.objective_case(rows, 1, where) for rows in (65_536, 1_048_576)]
    for case in [*bench_kernels.cases(where, False), *extra]:
        if bench_kernels.disagreement(case, where) <= 1.0:
            for found in bench_kernels.measure(case, 9, copy):
                row(**{key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in found.items()})
        else:
            row(kernel=case.kernel, size=case.size, implementation="triton", wrong=True)


def profile(args: argparse.Namespace) -> None:
    """Where the time of a compiled update goes, kernel by kernel, and how many launches it has."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    options = {} if args.dry_run else {"cuda_graph": False, "compile": "default"}
    made = make_update(args, batch_size=8 if args.dry_run else 512, precision="bf16", **options)
    for _ in range(5):
        made()
    _wait(args)
    activities = [ProfilerActivity.CPU] if args.dry_run else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    steps = 2 if args.dry_run else 20
    with profiler(activities=activities) as recorded:
        for _ in range(steps):
            made()
        _wait(args)
    events = recorded.key_averages()

    def spent(event: Any) -> float:
        return float(event.self_cpu_time_total if args.dry_run else event.self_device_time_total)

    on_device = sorted((event for event in events if spent(event) > 0.0), key=spent, reverse=True)
    total = sum(spent(event) for event in on_device)
    row(launches_per_update=sum(e.count for e in on_device) / steps, device_us_per_update=round(total / steps, 1))
    for event in on_device[:12]:
        row(
            operation=event.key[:80],
            us_per_update=round(spent(event) / steps, 2),
            calls_per_update=event.count / steps,
            share=round(spent(event) / total, 3),
        )


def peer(args: argparse.Namespace, script: str, name: str, **options: Any) -> None:
    """A peer's updates per second."""
    import harness

    common = {"batch_size": 512, "width": 256, "trajectories": 4000}
    if args.dry_run:
        common = {"batch_size": 8, "width": 16, "trajectories": 4}
    made = harness.Peer(sys.executable, script, os.cpu_count() or 1, **common, **options)
    block = made.block(2 if args.dry_run else 200)
    rates = [block() for _ in range(2 if args.dry_run else 5)]
    row(peer=name, said=made.hello, updates_per_second=round(statistics.median(rates), 1), batch_size=512)
    made.close()


def torchrl_iql(args: argparse.Namespace) -> None:
    """TorchRL's IQL loss with its replay buffer, eager and compiled."""
    for compiled in ("off",) if args.dry_run else ("off", "default"):
        peer(args, "torchrl_iql.py", f"TorchRL IQLLoss, compile={compiled}", device=device_name(args), compile=compiled)


def jax(args: argparse.Namespace) -> None:
    """The JAX peer, where JAX has the device."""
    if importlib.util.find_spec("jax") is None:
        row(peer="JAX", said="jax is not installed")
        return
    import jax as installed

    if not args.dry_run and installed.default_backend() != "gpu":
        row(peer="JAX", said=f"jax {installed.__version__} has no GPU here")
        return
    peer(args, "smore_jax.py", "JAX, official_stable")


def learn(args: argparse.Namespace, task: str) -> None:
    """SMORe at the paper's budget, five seeds together; results in the benchmark's own format."""
    out = args.work / "learn"
    options = {
        "device": "cuda",
        "seeds": 5,
        "seeds_together": 5,
        "preset": "paper",
        "compile": "default",
        "precision": "bf16",
        "eval_interval": 20_000,
    }
    if args.dry_run:
        options = {"device": "cpu", "seeds": 2, "seeds_together": 2, "preset": "quick", "steps": 20, "batch_size": 16}
        options |= {"eval_episodes": 2, "eval_interval": 10, "num_trajectories": 20}
    if args.data is not None:
        options["data_dir"] = args.data
    else:
        options["data_dir"] = args.work / "datasets"
    given = [f"{key}={value}" for key, value in options.items()]
    command = [sys.executable, str(ROOT / "recipes" / "benchmark.py"), f"tasks=[{task}]", "methods=[smore]", *given]
    done = subprocess.run([*command, "jobs=0", f"out={out}"])
    for name in ("results", "curves"):
        for found in _benchmark_rows(out / f"{name}.csv", task):
            row(table=name, **found)
    if done.returncode:
        raise SystemExit("the benchmark did not finish.")


def _benchmark_rows(path: Path, task: str) -> Iterator[dict[str, str]]:
    import csv

    if path.is_file():
        with path.open(newline="") as file:
            yield from (found for found in csv.DictReader(file) if found["task"] == task)


def main() -> None:
    """Runs the task of the given name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("key")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    kind, *rest = args.key.split(".")
    if kind == "seeds" and rest:
        kind = "seeds_together"
    run = {
        function.__name__: function
        for function in (device, kernel, captured, seeds, pytest, update, seeds_together, kernels, profile)
    }
    run |= {"torchrl_iql": torchrl_iql, "jax": jax, "learn": learn}
    if kind not in run:
        raise SystemExit(f"unknown task {args.key!r}: expected one of {', '.join(run)}.")
    run[kind](args, *rest)


if __name__ == "__main__":
    main()
