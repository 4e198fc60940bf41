"""Checkpoints: whole or absent, checked when read, never unpickled freely."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Version of the layout of a checkpoint folder; another one is refused.
FORMAT_VERSION = 2
_STATE, _META = "state.pt", "meta.json"


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or belongs to something else."""


def save_checkpoint(
    root: str | Path, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes ``root/step_<step>`` beside its final place, renames it when whole, then drops what is beyond ``keep``.

    Checkpoints of later steps are dropped too: they belong to a future that this run, begun before them, has left.

    Args:
        root: folder of all checkpoints of a run; made if absent.
        step: updates done.
        state: nested mappings of tensors and plain Python values.
        meta: what identifies the run (task, method, ...), expressible in JSON.
        keep: newest checkpoints to keep, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if the disk is full or refuses the write; older checkpoints stay as they were.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step_{step:09d}"
    for left in root.glob(".partial_*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial_", dir=root))
    try:
        torch.save(dict(state), partial / _STATE)
        described = {
            **meta,
            "format_version": FORMAT_VERSION,
            "step": step,
            "sha256": hashlib.sha256((partial / _STATE).read_bytes()).hexdigest(),
        }
        (partial / _META).write_text(json.dumps(described, indent=2) + "\n")
        _put_in_place(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    found = _checkpoints(root)
    place = found.index(final) + 1
    for old in [*found[: max(place - max(keep, 1), 0)], *found[place:]]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _put_in_place(partial: Path, final: Path) -> None:
    """Renames, keeping an older checkpoint of the same step until the new one is there."""
    if not final.exists():
        os.replace(partial, final)
        return
    aside = final.with_name(f".partial_{final.name}_replaced")
    os.replace(final, aside)
    try:
        os.replace(partial, final)
    except BaseException:
        os.replace(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def latest_checkpoint(root: str | Path) -> Path:
    """The newest whole checkpoint below ``root``.

    Raises:
        CheckpointError: if there is none.
    """
    found = _checkpoints(Path(root))
    if not found:
        raise CheckpointError(f"no checkpoint in {root}; expected a folder named step_<number>.")
    return found[-1]


def load_checkpoint(path: str | Path, expect: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint folder.

    Args:
        path: the folder that :func:`save_checkpoint` returned.
        expect: entries that its ``meta`` must have, for example the task.

    Returns:
        State and meta.

    Raises:
        CheckpointError: if it is incomplete, damaged, of another format version, or ``meta`` differs from ``expect``.
    """
    path = Path(path)
    try:
        meta = json.loads((path / _META).read_text())
        payload = (path / _STATE).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}.") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path / _META} must hold a JSON object, found {type(meta).__name__}.")
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {meta.get('format_version')!r}; this version reads {FORMAT_VERSION}."
        )
    if hashlib.sha256(payload).hexdigest() != meta.get("sha256"):
        raise CheckpointError(f"{path / _STATE} is damaged: its SHA-256 is not the one in {_META}.")
    # through JSON, as meta has gone: a tuple has become a list
    for key, value in json.loads(json.dumps(dict(expect or {}))).items():
        if meta.get(key) != value:
            raise CheckpointError(f"{path} is a checkpoint with {key}={meta.get(key)!r}; expected {value!r}.")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True), meta
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path / _STATE} holds more than tensors and plain values: {error}") from error


def rng_state() -> dict[str, Any]:
    """State of the global generators of torch (all devices), numpy and Python, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores what :func:`rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def _checkpoints(root: Path) -> list[Path]:
    found = [path for path in root.glob("step_*") if path.name[5:].isdecimal() and (path / _META).is_file()]
    return sorted(found, key=lambda path: int(path.name[5:]))
