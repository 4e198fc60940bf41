"""Exports the policy of a run to one file that maps (observation, goal) to action, standardisation inside.

python recipes/export.py run=runs/NAME format=onnx           for onnxruntime
python recipes/export.py run=runs/NAME format=torchscript    for torch.jit.load, from C++ too
python recipes/export.py run=runs/NAME format=torch_export   for torch.export.load
python recipes/export.py run=runs/NAME format=npz            plain arrays; expert_policy of the other recipes takes it

The file is compared with the run on 1,000 rows before it is put in place; FILE.json beside it names shapes, units,
ranges, the commit and the file's SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.chosen import name_of_choice
from parts.cli import nearest, option, run_recipe
from parts.shared import commit_of_library, versions_of, write_json
from torch import nn

from torchrl_smore import load_policy
from torchrl_smore.envs.experts import Actor, ActorExpert, write_actor
from torchrl_smore.modules import GELUMLP, ConcatMLP, GaussianHead, Standardize
from torchrl_smore.trainers import RunRecord, TrainedPolicy, replacing

TOLERANCE = 1e-5  # largest difference of an action component from the run's
ROWS = 1000  # that are compared
_INPUTS = ("observation", "desired_goal")

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    run: str | None = option(None, "run folder, or a checkpoint in it")
    format: str | None = option(None, "onnx, torchscript, torch_export, npz")
    which: str = option("last", "of a run folder: last, best: of the seed's evaluations while it was trained")
    seed: int | None = option(None, "of a run of several seeds, which; default: the first")
    out: str | None = option(
        None, "the file; default: policy_<which, or the checkpoint>_seed<seed>... in the run folder"
    )
    overwrite: bool = option(False, "replace a file that is there")


def main(config: Config) -> None:
    """Runs the recipe."""
    if config.run is None:
        raise ValueError("give the run folder as run=runs/NAME.")
    if config.format not in FORMATS:
        near = nearest(config.format or "", [*FORMATS])
        raise ValueError(f"give format as one of {', '.join(FORMATS)}, got {config.format}.{near}")
    if config.out is not None and (Path(config.out).is_dir() or config.out.endswith(("/", os.sep))):
        raise ValueError(f"out must be a file, got the folder {config.out}: name the file in it.")
    policy = load_policy(config.run, config.which, seed=config.seed, goal_margin=None)  # type: ignore[arg-type]
    suffix, write = FORMATS[config.format]
    record = policy.record
    chosen = name_of_choice(config.run, config.which, record)
    out = Path(os.path.abspath(config.out or record.path / f"policy_{chosen}_seed{record.seed}.{suffix}"))
    sidecar = out.with_name(out.name + ".json")
    for path in (out, sidecar):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, where a file shall be: give another out=.")
        # a run's policy.json, for example, describes no export; a file that is called as one is of one before
        of_run = path.parent.resolve() == record.path.resolve()
        foreign = not path.name.startswith("policy_") if of_run else path == sidecar
        if path.exists() and foreign and not is_ours(sidecar):
            raise FileExistsError(f"{path} is there, and no export's: give another out=.")
        # what a killed export left to describe a file that never came is no obstacle
        if path.exists() and not config.overwrite and not (path == sidecar and not out.exists() and is_ours(path)):
            raise FileExistsError(f"{path} exists; overwrite=true replaces it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    before = sidecar.read_bytes() if sidecar.exists() else None
    described_anew = False
    try:
        with replacing(out) as beside:
            run = write(policy, beside)
            difference = largest_difference(policy, run)
            # first what describes: a file without its sidecar would look finished
            held = {"sha256": hashlib.sha256(beside.read_bytes()).hexdigest()}
            write_json(sidecar, described(policy, config.format, difference) | held)
            described_anew = True
    except BaseException:
        if not out.exists() or (described_anew and before is None):
            # which is ours, or was not there
            sidecar.unlink(missing_ok=True)
        elif described_anew and before is not None:
            # of the file that is still there
            with replacing(sidecar) as beside:
                beside.write_bytes(before)
        raise
    print(f"{out}: differs by at most {difference:.1e} from the run on {ROWS:,} rows\n{sidecar}: shapes, units, ranges")


def is_ours(path: Path) -> bool:
    """Whether a file is the description of an export."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(held, dict) and "exported_with_commit" in held


def largest_difference(policy: TrainedPolicy, run: Run) -> float:
    """Of an action component, over rows as the run has seen them.

    Raises:
        RuntimeError: if it exceeds :data:`TOLERANCE`.
    """
    observation, goal = sample_rows(policy)
    difference = float(np.abs(run(observation, goal) - policy(observation, goal)).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the exported policy differs by {difference:.1e} from the run, more than {TOLERANCE:g}: nothing written."
        )
    return difference


def sample_rows(policy: TrainedPolicy) -> tuple[np.ndarray, np.ndarray]:
    """Observations and goals: normal around the run's statistics, three times as wide, so that the clip is met.

    Pictures are of uniform noise.
    """
    generator = np.random.default_rng(0)
    if policy.record.pixels is not None:
        size = (ROWS, policy.record.pixels, policy.record.pixels, 3)
        return generator.integers(0, 256, size, dtype=np.uint8), generator.integers(0, 256, size, dtype=np.uint8)
    widths = [len(policy.record.columns[key]) for key in _INPUTS]
    scales: list[Any] = [None, None]
    head = policy.module.module.head
    if isinstance(head, Standardize):
        scales = head.statistics
    rows = []
    for width, scale in zip(widths, scales):
        drawn = 3.0 * generator.standard_normal((ROWS, width))
        if scale is not None:
            drawn = scale[0].numpy() + scale[1].numpy() * drawn
        rows.append(drawn.astype(np.float32))
    return rows[0], rows[1]


def plain_module(policy: TrainedPolicy) -> nn.Module:
    """The policy's module on PyTorch's own matrix product: others are operators that no other program knows."""
    loaded = load_policy(policy.record.checkpoint, seed=policy.record.seed, goal_margin=None)
    for module in loaded.module.modules():
        if isinstance(module, (ConcatMLP, GELUMLP)):
            module.matmul = "torch"
    return loaded.module.module


def examples(policy: TrainedPolicy) -> tuple[torch.Tensor, ...]:
    """Two rows of each input."""
    if policy.record.pixels is not None:
        shape = (2, policy.record.pixels, policy.record.pixels, 3)
        return torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)
    return tuple(torch.zeros(2, len(policy.record.columns[key])) for key in _INPUTS)


def write_onnx(policy: TrainedPolicy, path: Path) -> Run:
    """Writes an ONNX file; inputs ``observation`` and ``desired_goal``, output ``action``, float32, any batch.

    Pictures are uint8.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - the exporter reports it missing in other words
    except ImportError as error:
        raise ImportError(f'format=onnx needs a package ({error}): pip install "torchrl-smore[export]"') from error
    batch = torch.export.Dim("batch")
    with quiet():
        program = torch.onnx.export(
            plain_module(policy),
            examples(policy),
            input_names=list(_INPUTS),
            output_names=["action"],
            dynamic_shapes=({0: batch}, {0: batch}),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["action"], dict(zip(_INPUTS, (observation, goal))))[0])

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps exporters from telling their users about the exporters."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def write_torchscript(policy: TrainedPolicy, path: Path) -> Run:
    """Writes a TorchScript file of a function of two tensors."""
    with quiet():
        torch.jit.save(torch.jit.trace(plain_module(policy), examples(policy)), str(path))  # type: ignore[no-untyped-call]
        loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return lambda *rows: loaded(*map(torch.from_numpy, rows)).numpy()


def write_torch_export(policy: TrainedPolicy, path: Path) -> Run:
    """Writes a ``.pt2`` file of ``torch.export`` of a function of two tensors, any batch."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(plain_module(policy), examples(policy), dynamic_shapes=({0: batch}, {0: batch}))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return lambda *rows: loaded(*map(torch.from_numpy, rows)).numpy()


def write_npz(policy: TrainedPolicy, path: Path) -> Run:
    """Writes the file of a trained actor that :class:`~torchrl_smore.envs.experts.ActorExpert` runs.

    Raises:
        ValueError: for a network that such a file cannot hold.
    """
    head = policy.module.module.head
    if policy.record.pixels is not None:
        raise ValueError("format=npz holds no encoder of pictures; use another.")
    scaling = head if isinstance(head, Standardize) else None
    gaussian = head.network if isinstance(head, Standardize) else head
    trunk = gaussian.trunk if isinstance(gaussian, GaussianHead) else gaussian
    layers = trunk.plain_layers() if isinstance(trunk, ConcatMLP) and isinstance(gaussian, GaussianHead) else None
    if layers is None or trunk.precision != "float32":
        raise ValueError("format=npz holds float32 layers with ReLU between them and tanh at the end; use another.")
    widths = [len(policy.record.columns[key]) for key in _INPUTS]
    options: dict[str, Any] = {}
    if scaling is not None:
        if any(pair is None for pair in scaling.statistics):
            raise ValueError("format=npz standardises every input or none; use another.")
        for name, parts in zip(("mean", "std"), zip(*scaling.statistics)):  # type: ignore[arg-type]
            options[name] = torch.cat(parts).numpy()
        options["clip"] = float("inf") if scaling.clip is None else scaling.clip
    arrays = tuple((weight.numpy(), bias.numpy()) for weight, bias in layers)
    write_actor(path, Actor(arrays, goal_dim=widths[1], **options))
    expert = ActorExpert(path)
    return lambda *rows: expert(dict(zip(_INPUTS, rows)))


def input_of(record: RunRecord, key: str) -> dict[str, Any]:
    """What the sidecar says of shape and content of an input."""
    if record.pixels is not None:
        shape = ["batch", record.pixels, record.pixels, 3]
        return {"shape": shape, "dtype": "uint8", "content": "picture, RGB, the first row at the top"}
    # runs that began before observations were looked at name no range of theirs
    found = record.about.get("goal_range" if key == "desired_goal" else "observation_range")
    shape = ["batch", len(record.columns[key])]
    return {"shape": shape, "dtype": "float32", "columns": record.columns[key], "range_in_data": found}


def described(policy: TrainedPolicy, format: str, difference: float) -> dict[str, Any]:
    """What the sidecar says."""
    record, low_high = policy.record, policy.record.about["action_range"]
    columns = {"observation": "observation", "desired_goal": "goal"}
    return {
        "format": format,
        "inputs": [{"name": key, "meaning": text, **input_of(record, key)} for key, text in columns.items()],
        "output": {
            "name": "action",
            "shape": ["batch", len(record.columns["action"])],
            "dtype": "float32",
            "columns": record.columns["action"],
            "range": low_high,
        },
        **{key: record.about.get(key) for key in ("task", "method", "formulation", "success_rule")},
        "run": record.path.name,
        "checkpoint": record.checkpoint.name,
        "seed": record.seed,
        "trained_with_commit": record.about.get("commit"),
        "exported_with_commit": commit_of_library(),
        "versions": versions_of(["torchrl-smore", "torch"]),
        "rows_checked": ROWS,
        "largest_difference": difference,
    }


#: Suffix of the file and what writes it, by format.
FORMATS: dict[str, tuple[str, Callable[[TrainedPolicy, Path], Run]]] = {
    "onnx": ("onnx", write_onnx),
    "torchscript": ("pt", write_torchscript),
    "torch_export": ("pt2", write_torch_export),
    "npz": ("npz", write_npz),
}


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
