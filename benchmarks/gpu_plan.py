"""What ``gpu.py`` runs: items by stage, the most wanted first. Knows names and sizes alone, and imports no package."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAGES = ("check", "bench", "learn")
#: Kinds of items that leave a run in a folder.
TRAININGS = ("gpu_learn.learn", "gpu_learn.learn_pictures")
#: Seconds of a training: a million updates at 50 a second, and what hangs is given up.
LEARN_LIMIT = 6 * 3600.0
STATE_TASKS = ("FetchReach", "FetchPush", "FetchPick", "FetchSlide", "HandReach")
#: Those of Figure 3, which are learnt from pictures, and the methods that do, SMORe and its control first.
PICTURE_TASKS = ("Tabletop-drawer", "Tabletop-pick", "Tabletop-pick-close", "Tabletop-push-open")
PICTURE_METHODS = ("smore", "hindsight_bc", "crl", "gc_iql")
TASKS = (*STATE_TASKS, *PICTURE_TASKS)
PRECISIONS = ("float32", "tf32", "bf16")
#: ``eager``: operator by operator; ``graph``: those as one CUDA graph; ``compiled``: by Inductor; ``captured``: both.
MODES = ("eager", "graph", "compiled", "captured")
DIVERGENCES = ("pearson_chi2", "kl", "squared_hellinger", "total_variation", "jensen_shannon")
#: Test files of which every test runs on a GPU where there is one, with or without the marker, and one of which those
#: with the marker do: its others are CPU tests, which compile C++ for minutes.
MARKED_TESTS = "tests/trainers/test_fused.py"
TEST_FILES = (
    MARKED_TESTS,
    "tests/smore_kernels/test_bellman_residual.py",
    "tests/smore_kernels/test_expectile_awr.py",
    "tests/smore_kernels/test_adam_polyak.py",
    "tests/smore_kernels/test_score_mlp.py",
)


@dataclass(frozen=True)
class Item:
    """One thing to find out.

    Attributes:
        key: what its row is found by; begins with the stage.
        kind: module and function that run it.
        params: its keyword arguments, plain values.
        limit: seconds after which it is given up.
    """

    key: str
    kind: str
    params: dict[str, Any] = field(default_factory=dict)
    limit: float = 60.0

    @property
    def stage(self) -> str:
        """``check``, ``bench`` or ``learn``."""
        return self.key.partition("/")[0]


@dataclass(frozen=True)
class Options:
    """What the caller may choose of ``learn``."""

    tasks: tuple[str, ...] = TASKS
    seeds: int = 5
    steps: int | None = None
    num_trajectories: int | None = None
    data_dir: str = "datasets"
    folder: str = "learn"


def plan(stages: Sequence[str], options: Options, *, dry_run: bool) -> list[Item]:
    """The items of some stages in the order in which they are run; tiny ones for a dry run.

    Raises:
        ValueError: for an unknown stage.
    """
    makers = {"check": check_items, "bench": bench_items, "learn": learn_items}
    unknown = [stage for stage in stages if stage not in makers]
    if unknown or not stages:
        raise ValueError(f"expected stages among {', '.join(STAGES)}, got {' '.join(stages) or 'none'}.")
    items = [item for stage in STAGES if stage in stages for item in makers[stage](options, dry_run)]
    if dry_run:
        # a machine with much else to do is slow, and not at fault
        items = [dataclasses.replace(item, limit=max(item.limit, 600.0)) for item in items]
    keys = [item.key for item in items]
    assert len(set(keys)) == len(keys)
    return items


def check_items(options: Options, dry_run: bool) -> Iterator[Item]:
    """Is it right? Machine, kernels, captured step, seeds side by side, tests."""
    yield Item("check/machine", "gpu_checks.machine", {}, 120.0)
    yield from kernel_items(dry_run)
    updates, seeds = (3, 2) if dry_run else (50, 16)
    for mode in ("graph",) if dry_run else ("graph", "captured"):
        for map_seeds in ("loop", "vmap"):
            params = {"mode": mode, "map_seeds": map_seeds, "updates": updates, "kernels": "reference"}
            yield Item(f"check/step/{mode}/{map_seeds}", "gpu_checks.captured_step", params, 240.0)
    params = {"mode": "graph", "map_seeds": "vmap", "updates": updates, "kernels": "triton"}
    yield Item("check/step/graph/vmap/triton", "gpu_checks.captured_step", params, 240.0)
    for precision in ("float32",) if dry_run else PRECISIONS:
        params = {"seeds": seeds, "updates": updates, "precision": precision}
        yield Item(f"check/seeds/{seeds}/{precision}", "gpu_checks.seeds_together", params, 240.0)
    # which file a dry run takes does not matter, and that of the optimiser imports the least
    for path in TEST_FILES[-2:-1] if dry_run else TEST_FILES:
        params = {"path": path, "marked": path == MARKED_TESTS}
        yield Item(f"check/tests/{path.rpartition('/')[2].removesuffix('.py')}", "gpu_checks.tests", params, 300.0)


def kernel_items(dry_run: bool) -> Iterator[Item]:
    """Each kernel against its reference: recipes' sizes first, then one row, odd sizes, large ones, variants."""
    pairs = [(19, 5)] if dry_run else [(512, 512), (1, 1), (2, 3), (127, 65), (1025, 2049), (65536, 65535)]
    main = {"formulation": "in_sample", "divergence": "pearson_chi2", "seeds": 1}
    variants = [
        *({**main, "divergence": divergence} for divergence in DIVERGENCES[1:]),
        *({**main, "formulation": "dual", "divergence": divergence} for divergence in DIVERGENCES),
        {**main, "formulation": "official"},
        {**main, "formulation": "official_stable"},
        {**main, "seeds": 3},
    ]
    variants = variants[-1:] if dry_run else variants
    chosen = [(main, *pair) for pair in pairs]
    chosen += [(variant, *pair) for variant in variants for pair in (pairs if dry_run else [(513, 1025), (65535, 511)])]
    for dtype in ("float32", "bf16"):
        for variant, rows, q_rows in chosen:
            params = {**variant, "rows": rows, "q_rows": q_rows, "dtype": dtype}
            yield _kernel("bellman_residual", params)
    for dtype in ("float32", "bf16"):
        for rows in (19,) if dry_run else (512, 1, 1023, 1025, 65535, 65536):
            for weights, seeds in ((True, 1), (False, 3)):
                yield _kernel("expectile_awr", {"rows": rows, "seeds": seeds, "dtype": dtype, "weights": weights})
    for rows in (19,) if dry_run else (148_994, 1, 1023, 65536, 3_000_001):
        for step in (0, 5000):
            yield _kernel("adam_polyak", {"rows": rows, "seeds": 1, "step": step})
    widths = [(32, 7)] if dry_run else [(256, 32), (48, 33)]
    pairs = [(19, 5)] if dry_run else [(512, 512), (1, 1), (63, 65), (1025, 2049), (65536, 65535)]
    for precision in ("fp32", "tf32", "bf16"):
        for formulation in ("in_sample",) if dry_run else ("in_sample", "official", "official_stable"):
            for width, inputs in widths:
                for rows, q_rows in pairs if formulation == "in_sample" else pairs[:1]:
                    size = {"rows": rows, "q_rows": q_rows, "width": width, "inputs": inputs}
                    params = {"formulation": formulation, "precision": precision, "seeds": 1, **size}
                    yield _kernel("score_mlp", params, 120.0)
        if not dry_run:
            size = {"rows": 512, "q_rows": 511, "width": 256, "inputs": 32}
            params = {"formulation": "in_sample", "precision": precision, "seeds": 3, **size}
            yield _kernel("score_mlp", params, 120.0)


def _kernel(kernel: str, params: dict[str, Any], limit: float = 90.0) -> Item:
    words = ",".join(f"{name}={value}" for name, value in params.items())
    return Item(f"check/kernel/{kernel}/{words}", "gpu_checks.kernel", {"kernel": kernel, **params}, limit)


def bench_items(options: Options, dry_run: bool) -> Iterator[Item]:
    """How fast is it? Yardsticks, the update at a recipe's size, kernels, sweeps, peers, one profile."""
    yield Item("bench/peak", "gpu_bench.peak", {"small": dry_run})
    size = {"width": 16, "trajectories": 4} if dry_run else {"width": 256, "trajectories": 4000}

    def update(mode: str, precision: str, batch: int, seeds: int, **more: Any) -> Item:
        words = "".join(f"/{name}={value}" for name, value in more.items())
        params = {"mode": mode, "precision": precision, "batch_size": batch, "seeds": seeds, **size, **more}
        limit = 240.0 if mode in ("compiled", "captured") else 90.0
        return Item(
            f"bench/update/{mode}/{precision}/batch={batch}/seeds={seeds}{words}", "gpu_bench.update", params, limit
        )

    if dry_run:
        yield from (update(mode, precision, 8, 1) for mode, precision in zip(MODES, (*PRECISIONS, "float32")))
        yield update("graph", "float32", 8, 2)
        yield update("graph", "bf16", 8, 1, kernels="triton")
        yield Item(
            "bench/kernel/bellman_residual/rows=19/seeds=2", "gpu_bench.kernel_time", _timed("bellman_residual", 19, 2)
        )
    else:
        yield from (update(mode, precision, 512, 1) for mode in ("graph", "eager") for precision in PRECISIONS)
        yield from (update("captured", precision, 512, 1) for precision in PRECISIONS)
        yield from (update("graph", precision, 512, seeds) for seeds in (16, 64, 128) for precision in PRECISIONS)
        yield from (update("captured", precision, 512, seeds) for seeds in (16, 128) for precision in ("tf32", "bf16"))
        yield from (update("compiled", precision, 512, 1) for precision in PRECISIONS)
        for seeds in (1, 16):
            yield from (update("graph", precision, 512, seeds, kernels="triton") for precision in PRECISIONS)
        yield from (kernel_time(*case) for case in KERNEL_TIMES)
        batches = (256, 1024, 2048, 4096, 8192)
        yield from (update("graph", precision, batch, 1) for batch in batches for precision in PRECISIONS)
        yield from (update("graph", precision, 512, seeds) for seeds in (2, 4, 8, 32) for precision in PRECISIONS)
        yield from (update("captured", precision, 8192, 1) for precision in ("tf32", "bf16"))
        yield update("eager", "float32", 512, 16)
        yield update("graph", "float32", 512, 1, formulation="official_stable")
    yield Item("bench/profile", "gpu_bench.profile", {"batch_size": 8 if dry_run else 512, **size}, 180.0)
    peer = {"batch_size": 8 if dry_run else 512, **size, "updates": 2 if dry_run else 200}
    yield Item("bench/peer/torchrl_iql", "gpu_bench.peer", {"script": "torchrl_iql.py", **peer}, 180.0)
    for matmul in ("highest", "default"):
        yield Item(
            f"bench/peer/jax/{matmul}", "gpu_bench.peer", {"script": "smore_jax.py", "matmul": matmul, **peer}, 180.0
        )


#: Kernel, rows, seeds, and the precision of a network's products.
KERNEL_TIMES: tuple[tuple[str, int, int, str | None], ...] = (
    *((kernel, 512, seeds, None) for seeds in (1, 10) for kernel in ("bellman_residual", "expectile_awr")),
    *(("bellman_residual", rows, 1, None) for rows in (65536, 2**20, 2**22)),
    *(("expectile_awr", rows, 1, None) for rows in (65536, 2**20, 2**24)),
    *(("adam_polyak", rows, 1, None) for rows in (150_000, 3_000_000, 2**24)),
    *(("score_mlp", 512, seeds, precision) for seeds in (1, 10) for precision in ("tf32", "bf16")),
    *(("score_mlp", 32768, 1, precision) for precision in ("tf32", "bf16")),
)


def kernel_time(kernel: str, rows: int, seeds: int, precision: str | None) -> Item:
    """A kernel against eager PyTorch and ``torch.compile`` of its reference."""
    words = f"rows={rows}/seeds={seeds}" + (f"/{precision}" if precision else "")
    return Item(
        f"bench/kernel/{kernel}/{words}", "gpu_bench.kernel_time", _timed(kernel, rows, seeds, precision), 180.0
    )


def _timed(kernel: str, rows: int, seeds: int, precision: str | None = None) -> dict[str, Any]:
    return {"kernel": kernel, "rows": rows, "seeds": seeds, "precision": precision}


def learn_items(options: Options, dry_run: bool) -> Iterator[Item]:
    """Does it learn? Data and training of each task, all data of a task before its training; then Figure 3."""
    if dry_run:
        chosen = [*options.tasks[:1], *(task for task in options.tasks if task in PICTURE_TASKS)][:2]
        options = dataclasses.replace(options, tasks=tuple(chosen), steps=4, seeds=2, num_trajectories=10)
    shared = {name: getattr(options, name) for name in ("num_trajectories", "data_dir", "steps", "folder")}
    common = {**shared, "tiny": dry_run}
    for task in options.tasks:
        if task not in PICTURE_TASKS:
            params = {"task": task, **common, "seeds": options.seeds}
            data = "/".join([f"learn/{task}/data", *sizes({**params, "steps": None})])
            yield Item(data, "gpu_learn.data", params, 540.0)
            key = "/".join([f"learn/{task}/{options.seeds}_seeds", *sizes(params)])
            yield Item(key, "gpu_learn.learn", params, LEARN_LIMIT)
    methods, seeds = (PICTURE_METHODS[:1], 1) if dry_run else (PICTURE_METHODS, options.seeds)
    pictured = [task for task in options.tasks if task in PICTURE_TASKS]
    for method, task, seed in itertools.product(methods, pictured, range(seeds)):
        params = {"task": task, "method": method, "seed": seed, **common}
        key = "/".join([f"learn/{task}/{method}/seed{seed}", *sizes(params)])
        yield Item(key, "gpu_learn.learn_pictures", params, LEARN_LIMIT)


def sizes(params: Mapping[str, Any]) -> list[str]:
    """What was asked for in place of the paper's sizes, in words for names; a dry run has one size and needs none."""
    names = () if params["tiny"] else ("steps", "num_trajectories")
    return [f"{name}={params[name]}" for name in names if params[name] is not None]


def run_folder(params: Mapping[str, Any]) -> Path:
    """Where the run of a training lies: no two that differ in what is learnt share a folder."""
    whose = [params["method"], f"seed{params['seed']}"] if "method" in params else [str(params["seeds"])]
    return Path(params["folder"]) / "_".join([params["task"], *whose, *sizes(params)])
