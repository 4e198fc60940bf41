"""The checks of ``gpu.py``: kernels against ``functional`` in float64, steps against steps, the suite's GPU tests.

An error is that of the worst result, in its norm and over its tolerance: right is at most 1, NaN never.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import harness
import torch
from bench_update import FORMULATIONS
from gpu_rows import Skipped, Wrong
from harness import ACTION, GOAL, OBSERVATION
from torch import Tensor

from torchrl_smore import GoalBatchSampler, SMORELoss, _dispatch, _experimental, goal_specs, make_networks
from torchrl_smore.functional.score import ScoreObjective
from torchrl_smore.trainers import FusedUpdate

ROOT = Path(__file__).parents[1]
BOUNDS = (-2.0, 2.0)
#: Relative, in the norm of a result. float32: sums of up to 65,536 terms; bf16: results are stored in 8 bits.
ELEMENTWISE = {"float32": 1e-5, "bf16": 1e-2}
#: Of the network kernel. A factor rounded the other way switches a ReLU here and there off: between rounding to the
#: nearest and cutting off, gradients of 1 to 2,000 rows differ by up to 0.03 in TensorFloat-32 and 0.12 in bfloat16,
#: and in float32 a few of 10^8 units flip.
NETWORK = {"fp32": 1e-4, "tf32": 4e-2, "bf16": 5e-2}
#: Of 50 updates, relative to how far a network has moved: sums in another order, and quotients of small moments.
STEP = 2e-2
Results = dict[str, Tensor]


def machine(device: str) -> dict[str, Any]:
    """What the machine is: the row that names the card and the versions."""
    names = ("torch", "triton", "torchrl", "tensordict", "numpy", "mujoco", "jax")
    found = {name: importlib.metadata.version(name) for name in names if _installed(name)}
    values: dict[str, Any] = {**found, "python": platform.python_version(), "cores": os.cpu_count()}
    values["processor"] = harness.machine(torch.get_num_threads()).partition(", ")[0]
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        values |= {"card": card.name, "memory_gib": round(card.total_memory / 2**30, 1)}
        values |= {"multiprocessors": card.multi_processor_count, "capability": f"{card.major}.{card.minor}"}
        values |= {"cuda": torch.version.cuda, "driver": _driver()}
    return values


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def kernel(kernel: str, device: str, implementation: str = "triton", **params: Any) -> dict[str, Any]:
    """A kernel's values and gradients against its reference in float64 on the same numbers.

    Args:
        kernel: of ``CASES``.
        device: where it runs.
        implementation: ``"reference"`` holds the reference's own precision against the tolerance.
        **params: size and variant, see the functions of ``CASES``.

    Raises:
        Wrong: if a result is further away than its tolerance.
    """
    require_triton(device, implementation)
    # drawn on the CPU: the same numbers on every machine
    torch.manual_seed(0)
    inputs, call, tolerance = CASES[kernel](**params)
    precise = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    expected = call({name: tensor.to(device) for name, tensor in precise.items()}, "exact")
    if implementation == "reference":
        # what the kernels do with bfloat16, which the reference would calculate in
        inputs = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    with poisoned(), matmul_precision("tf32" if params.get("precision") == "tf32" else "float32"):
        ours = call({name: tensor.to(device) for name, tensor in inputs.items()}, implementation)
    return judged(ours, expected, tolerance)


def require_triton(device: str, implementation: str = "triton") -> None:
    """Skips what needs Triton where it is missing, and sees to it that on a CPU the interpreter runs."""
    if implementation != "triton":
        return
    if importlib.util.find_spec("triton") is None:
        raise Skipped("triton is not installed")
    _dispatch.resolve_kernels("triton", device)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN, so that an element that a kernel forgets to write shows."""
    kept = torch.empty, torch.empty_like

    def poisoning(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    torch.empty, torch.empty_like = map(poisoning, kept)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.empty, torch.empty_like = kept


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Products of float32 in TensorFloat-32 within it, or not."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(kept)


def judged(ours: Results, expected: Results, tolerance: float) -> dict[str, Any]:
    """The worst result and its error over the tolerance.

    Raises:
        Wrong: if that is above 1 or no number.
    """
    assert ours.keys() == expected.keys()
    errors = {name: distance(ours[name], expected[name]) / tolerance for name in expected}
    # NaN is the largest of all
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    values = {"error": errors[worst], "tolerance": tolerance, "worst": worst}
    if not errors[worst] <= 1.0:
        raise Wrong(values, f"{worst} is off by {errors[worst]:.3g} times the tolerance of {tolerance:g}")
    return values


def distance(ours: Tensor, expected: Tensor) -> float:
    """Relative error in the norm; of a scalar, which terms of either sign may cancel to, relative to at least 1."""
    norm = expected.double().norm()
    floor = 1.0 if expected.numel() == 1 else 1e-30
    return ((ours.double() - expected.double()).norm() / norm.clamp_min(floor)).item()


def _differentiated(loss: Tensor, leaves: dict[str, Tensor], extras: Results) -> Results:
    # a factor catches a backward that ignores what comes in
    grads = torch.autograd.grad((3.0 * loss).sum(), list(leaves.values()))
    # in units of a row's term, so that one row's gradient is no smaller than another's
    named = {f"gradient of {name}": grad for name, grad in zip(leaves, grads)}
    return {"loss": loss.detach(), **{name: extra.detach() for name, extra in extras.items()}, **named}


def _mapped(function: Callable[..., Any], seeds: int, *tensors: Tensor) -> Any:
    return torch.vmap(function)(*tensors) if seeds > 1 else function(*tensors)


Case = tuple[Results, Callable[[Results, str], Results], float]


def bellman_residual(
    *, formulation: str, divergence: str, rows: int, q_rows: int, seeds: int, dtype: str, members: int = 2
) -> Case:
    """``score_objective``: loss and gradient of every score."""
    name: Any = formulation
    objective = ScoreObjective(name, divergence, beta=0.3, gamma=0.9, residual_coef=0.5, max_ratio=5.0)
    lead = (seeds,) if seeds > 1 else ()
    on_rho, on_q = (*lead, members, rows), (*lead, members, q_rows)
    shapes = {"score": on_rho, "q_score": on_q}
    if objective.needs_policy:
        shapes |= {"policy_score": on_rho, "q_next_policy_score": on_q}
    constant = {"next_value": (*lead, rows), "q_next_value": (*lead, q_rows)}
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    inputs = {name: torch.randn(shape).to(kind) for name, shape in (shapes | constant).items()}

    def call(tensors: Results, implementation: str) -> Results:
        leaves = {name: tensors[name].clone().requires_grad_() for name in shapes}
        given = {**tensors, **leaves}

        def loss(*ordered: Tensor) -> Tensor:
            named = dict(zip(given, ordered))
            return _dispatch.score_objective(objective, **named, bounds=BOUNDS, kernels=_kernels(implementation))

        return _differentiated(_mapped(loss, seeds, *given.values()), leaves, {})

    return inputs, call, ELEMENTWISE[dtype]


def expectile_awr(*, rows: int, seeds: int, dtype: str, weights: bool) -> Case:
    """``expectile_awr``: loss, gradient, weights and diagnostics; coefficients are tensors, as a schedule has them."""
    lead = (seeds,) if seeds > 1 else ()
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    inputs = {name: torch.randn(*lead, rows).to(kind) for name in ("score", "value")}

    def call(tensors: Results, implementation: str) -> Results:
        value = tensors["value"].clone().requires_grad_()
        exact = value.dtype if value.dtype == torch.float64 else torch.float32
        expectile, temperature = (torch.tensor(number, dtype=exact, device=value.device) for number in (0.8, 3.0))

        def loss(score: Tensor, value: Tensor) -> tuple[Tensor, ...]:
            found = _dispatch.expectile_awr(
                score,
                value,
                expectile=expectile,
                temperature=temperature if weights else None,
                kernels=_kernels(implementation),
            )
            return found.loss, found.mean_value, *(found.weight or ())

        out, *extras = _mapped(loss, seeds, tensors["score"], value)
        return _differentiated(out, {"value": value}, {f"output {at}": each for at, each in enumerate(extras, 1)})

    return inputs, call, ELEMENTWISE[dtype]


def adam_polyak(*, rows: int, seeds: int, step: int) -> Case:
    """``adam_polyak_``: parameters, moments and target after one step, with decay and schedule."""
    shape = (seeds, rows) if seeds > 1 else (rows,)
    inputs = {name: torch.randn(shape) for name in ("param", "grad", "exp_avg", "target")}
    inputs |= {"exp_avg_sq": torch.rand(shape), "step": torch.tensor(step)}
    options = {"lr": 0.1, "weight_decay": 0.3, "decay_steps": 10_000, "tau": 0.05}

    def call(tensors: Results, implementation: str) -> Results:
        own = {name: tensor.clone() for name, tensor in tensors.items()}
        _dispatch.adam_polyak_(**own, **options, kernels=_kernels(implementation))
        return {name: own[name] for name in ("param", "exp_avg", "exp_avg_sq", "target")}

    # 1 - 0.999**t is taken in float32 by the reference: 6e-8 of 1e-3, half of it after the root
    return inputs, call, 1e-4 if step < 10 else ELEMENTWISE["float32"]


def score_mlp(
    *,
    formulation: str,
    rows: int,
    q_rows: int,
    width: int,
    inputs: int,
    precision: str,
    seeds: int,
    members: int = 2,
) -> Case:
    """``score_mlp_objective``: loss, scores, and gradient of every weight."""
    name: Any = formulation
    objective = ScoreObjective(name, beta=0.3, gamma=0.9, residual_coef=0.5, max_ratio=5.0)
    lead = (seeds,) if seeds > 1 else ()
    batch = {"x": (rows, inputs), "next_value": (rows,), "q_x": (q_rows, inputs), "q_next_value": (q_rows,)}
    given = {name: torch.randn(*lead, *shape) for name, shape in batch.items()}
    layers = {"W1": (width, inputs), "W2": (width, width), "w3": (1, width)}
    for layer, shape in layers.items():
        bound = shape[-1] ** -0.5
        given[layer] = (2.0 * torch.rand(*lead, members, *shape) - 1.0) * bound
        given[layer.replace("W", "b").replace("w", "b")] = (2.0 * torch.rand(*lead, members, shape[0]) - 1.0) * bound
    weights = ("W1", "b1", "W2", "b2", "w3", "b3")

    def call(tensors: Results, implementation: str) -> Results:
        leaves = {name: tensors[name].clone().requires_grad_() for name in weights}
        ordered = {**{name: tensors[name] for name in batch}, **leaves}

        def loss(*flat: Tensor) -> tuple[Tensor, ...]:
            named = dict(zip(ordered, flat))
            pairs = [(named[w], named[b]) for w, b in zip(weights[::2], weights[1::2])]
            if implementation == "exact":
                score, q_score = (rounded_scores(named[name], pairs, precision) for name in ("x", "q_x"))
                values = {name: named[name] for name in ("next_value", "q_next_value")}
                scores = {"score": score, "q_score": q_score}
                out = _dispatch.score_objective(objective, **scores, **values, bounds=BOUNDS, kernels="reference")
                return out, score, q_score
            return _experimental.score_mlp_objective(
                objective,
                **{name: named[name] for name in batch},
                layers=pairs,
                bounds=BOUNDS,
                precision=precision,  # type: ignore[arg-type]
                kernels=_kernels(implementation),
            )

        out, score, q_score = _mapped(loss, seeds, *ordered.values())
        return _differentiated(out, leaves, {"score": score, "q_score": q_score})

    return given, call, NETWORK[precision]


def _kernels(implementation: str) -> Any:
    return "triton" if implementation == "triton" else "reference"


def rounded_scores(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], precision: str) -> Tensor:
    """Scores ``[M, B]`` of a network whose hidden layers multiply rounded factors, as the kernel's do."""
    (w1, b1), (w2, b2), (w3, b3) = layers
    x, w1, w2 = (rounded(factor, precision) for factor in (x, w1, w2))
    hidden = rounded(torch.relu(x @ w1.mT + b1[:, None]), precision)
    return (torch.relu(hidden @ w2.mT + b2[:, None]) @ w3.mT + b3[:, None]).squeeze(-1)


def rounded(x: Tensor, precision: str) -> Tensor:
    """``x`` rounded to the bits of a factor, with the gradient of the identity.

    Under the interpreter bfloat16 is cut off, and TensorFloat-32 is float32.
    """
    single = x.detach().float()
    if precision == "bf16":
        cut = (single.view(torch.int32) & -65536).view(torch.float32)
        single = single.bfloat16() if x.is_cuda else cut
    elif precision == "tf32" and x.is_cuda:
        # 13 of 23 bits go, to the nearest
        single = ((single.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return x + (single.to(x.dtype) - x).detach() if precision != "fp32" else x


CASES: dict[str, Callable[..., Case]] = {
    "bellman_residual": bellman_residual,
    "expectile_awr": expectile_awr,
    "adam_polyak": adam_polyak,
    "score_mlp": score_mlp,
}


def fused_update(
    seeds: Sequence[int],
    device: str,
    *,
    mode: str,
    precision: str = "float32",
    map_seeds: str = "auto",
    batch_size: int = 512,
    width: int = 256,
    trajectories: int = 400,
    formulation: str = "in_sample",
    kernels: str = "reference",
    lr: float = 3e-4,
) -> FusedUpdate:
    """The update of some seeds in a mode of ``gpu_plan.MODES``; on a CPU nothing is captured, nor compiled."""
    cuda = device == "cuda"
    losses = []
    for seed in seeds:
        torch.manual_seed(seed)
        networks = make_networks(
            *goal_specs(OBSERVATION, GOAL, ACTION),
            hidden=(width, width),
            precision="bf16" if precision == "bf16" else "float32",
        )
        loss = SMORELoss(
            *(networks.actor, networks.score, networks.value),
            deactivate_vmap=not cuda,
            kernels=kernels,  # type: ignore[arg-type]
            **FORMULATIONS[formulation],
        )
        losses.append(loss.to(device))
    torch.manual_seed(0)
    return FusedUpdate(
        losses,
        GoalBatchSampler(harness.random_dataset(trajectories), batch_size, device=device),
        seeds=seeds,
        lr=lr,
        total_steps=1_000_000,
        tau=0.005,
        kernels=kernels,  # type: ignore[arg-type]
        compile="default" if cuda and mode in ("compiled", "captured") else "off",
        map_seeds=map_seeds,  # type: ignore[arg-type]
        cuda_graph=cuda and mode in ("graph", "captured"),
    )


def movement(update: FusedUpdate, updates: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameters and targets before and after some updates, ``[K, N]`` by network."""
    buffers = {**update.params, **{f"target {name}": flat for name, flat in update.targets.items()}}
    before = {name: flat.clone() for name, flat in buffers.items()}
    for _ in range(updates):
        update()
    return {name: (before[name], flat.clone()) for name, flat in buffers.items()}


def drift(
    ours: dict[str, tuple[Tensor, Tensor]], expected: dict[str, tuple[Tensor, Tensor]], tolerance: float = STEP
) -> dict[str, Any]:
    """How far two runs have come apart, over how far the expected one has moved.

    Raises:
        Wrong: if that is above the tolerance, or they did not begin at the same place.
    """
    for name, (start, _) in expected.items():
        if not torch.equal(ours[name][0], start):
            raise Wrong({}, f"{name} begins at another place")
    moved = {name: end - start for name, (start, end) in expected.items()}
    return judged({name: ours[name][1] - ours[name][0] for name in moved}, moved, tolerance)


def captured_step(
    device: str, mode: str, map_seeds: str, updates: int, kernels: str = "reference", **size: int
) -> dict[str, Any]:
    """Updates of two seeds in a mode against as many operator by operator, by the reference, one seed at a time."""
    size = size or _size(device)
    require_triton(device, kernels)
    expected = movement(fused_update((0, 1), device, mode="eager", map_seeds="loop", **size), updates)
    ours = movement(fused_update((0, 1), device, mode=mode, map_seeds=map_seeds, kernels=kernels, **size), updates)
    return drift(ours, expected) | {"updates": updates}


def seeds_together(device: str, seeds: int, updates: int, precision: str, **size: int) -> dict[str, Any]:
    """Seeds trained side by side in one captured step, against each alone."""
    size = size or _size(device)
    with matmul_precision(precision):
        together = fused_update(range(seeds), device, mode="graph", precision=precision, map_seeds="vmap", **size)
        ours = movement(together, updates)
        alone = [
            movement(
                fused_update((seed,), device, mode="graph", precision=precision, map_seeds="loop", **size), updates
            )
            for seed in range(seeds)
        ]
    expected = {
        name: tuple(torch.cat([each[name][at] for each in alone]) for at in (0, 1))
        for name in ours  # type: ignore[misc]
    }
    # products of fewer bits in another order: each update is off by as many
    tolerance = {"float32": STEP, "tf32": 5 * STEP, "bf16": 10 * STEP}[precision]
    return drift(ours, expected, tolerance) | {"updates": updates}


def _size(device: str) -> dict[str, int]:
    return {} if device == "cuda" else {"batch_size": 8, "width": 16, "trajectories": 4}


def tests(device: str, path: str, marked: bool) -> dict[str, Any]:
    """A file of the suite: all of its tests on a GPU, or those with the marker alone; without one those, which skip.

    Raises:
        Wrong: if one fails; names the first.
    """
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    report = Path(tempfile.gettempdir()) / f"gpu_tests_{os.getpid()}.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "filterwarnings=default",
        f"--junit-xml={report}",
        path,
    ]
    # another machine has other plugins and other warnings, and neither is what is tested
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, *(["-m", "gpu"] if marked or device == "cpu" else [])],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {done.returncode}: {_last_line(done.stdout)}")
    suite = next(ElementTree.parse(report).iter("testsuite"))
    report.unlink()
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    values = {**counts, "passed": counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]}
    bad = [case.get("name") for case in suite.iter("testcase") if {each.tag for each in case} & {"failure", "error"}]
    if bad or done.returncode not in (0, 5):
        raise Wrong(values, f"{len(bad)} of {counts['tests']} failed, first {bad[:1]}: {_last_line(done.stdout)}")
    return values


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*m", "", lines[-1])[:300] if lines else "it said nothing"
