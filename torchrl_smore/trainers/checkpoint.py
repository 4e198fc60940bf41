"""Checkpoints: written atomically, checked when read, never unpickled freely."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import tempfile
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from torchrl_smore._files import digest_without, put_in_place, remove_folder, sync

#: Version of the layout of a checkpoint folder.
FORMAT_VERSION = 3
#: Versions that are read: 2 lacks ``meta_sha256``.
READ_VERSIONS = (2, 3)
_STATE, _META, _META_DIGEST = "state.pt", "meta.json", "meta_sha256"
_REPLACED, _REMOVED = "_replaced", "_removed"
#: What a checkpoint says of itself in its meta.
RESERVED = ("format_version", "step", "sha256", _META_DIGEST)
#: What is read back without running code; a subclass, such as a number of NumPy or an enum, is not.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or belongs to something else."""


class CheckpointWarning(UserWarning):
    """A checkpoint is resumed under other circumstances than it was saved in: not bit for bit."""


def save_checkpoint(
    root: str | Path, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes ``root/step_<step>`` beside its final place, renames it when whole, then drops what is beyond ``keep``.

    Checkpoints of later steps are dropped too: they belong to a future that this run, begun before them, has left.

    Args:
        root: folder of all checkpoints of a run; made if absent.
        step: updates done, at least 0.
        state: nested dictionaries and sequences of tensors and plain Python values.
        meta: what identifies the run (task, method, ...), expressible in JSON; of what a checkpoint says of itself
            (:data:`RESERVED`), as the meta of one that was loaded has, this one's is written.
        keep: newest checkpoints to keep, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: if the disk is full or refuses the write; names the path, the room that is needed and the room that is
            left. Older checkpoints stay as they were.
        TypeError: if ``state`` holds something else, which could not be read again, or ``meta`` is no JSON.
    """
    root = Path(root)
    check_storable(state)
    check_meta(meta)
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step_{step:09d}"
    clear_leftovers(root)
    partial = Path(tempfile.mkdtemp(prefix=".partial_", dir=root))
    try:
        _write_state(partial / _STATE, state)
        described = {
            **meta,
            "format_version": FORMAT_VERSION,
            "step": step,
            "sha256": hashlib.sha256((partial / _STATE).read_bytes()).hexdigest(),
        }
        described[_META_DIGEST] = digest_without(described, _META_DIGEST)
        (partial / _META).write_text(json.dumps(described, indent=2) + "\n")
        sync(partial)
        put_in_place(partial, final, final.with_name(f".partial_{final.name}{_REPLACED}"))
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _without_room(error, final, state) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    found = _checkpoints(root)
    place = found.index(final) + 1
    _remove([*found[: max(place - max(keep, 1), 0)], *found[place:]])
    return final


def drop_later(root: str | Path, step: int) -> None:
    """Removes the checkpoints of later steps: a run that resumes an earlier one leaves the future that they belong to.

    Args:
        root: folder of all checkpoints of a run.
        step: the last one that stays.
    """
    _remove([path for path in _checkpoints(Path(root)) if int(path.name[5:]) > step])


def _remove(checkpoints: list[Path]) -> None:
    for old in checkpoints:
        with contextlib.suppress(OSError):
            remove_folder(old, old.with_name(f".partial_{old.name}{_REMOVED}"))


def check_storable(state: Any, where: str = "state") -> None:
    """Checks that a state can be read back, which runs no code: tensors and plain values of Python alone can.

    Args:
        state: nested dictionaries and sequences.
        where: its name in the error.

    Raises:
        TypeError: for anything else; names the first place that has it.
    """
    if type(state) in (dict, OrderedDict, Counter):
        for key, value in state.items():
            check_storable(key, f"{where}: a key")
            check_storable(value, f"{where}.{key}")
    elif type(state) in (list, tuple, set):
        for number, value in enumerate(state):
            check_storable(value, f"{where}.{number}")
    elif not isinstance(state, Tensor) and type(state) not in _PLAIN:
        kind = type(state)
        raise TypeError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold: expected a tensor, a "
            "number, string or other plain value of Python, or a dictionary, list, tuple or set of them (of what NumPy "
            "has, torch.from_numpy makes a tensor and item() a number)."
        )


def check_meta(meta: Mapping[str, Any]) -> None:
    """Checks what is to identify a run in its checkpoints.

    Args:
        meta: values by name.

    Raises:
        TypeError: if it cannot be expressed in JSON.
    """
    try:
        json.dumps(dict(meta))
    except (TypeError, ValueError) as error:
        raise TypeError(f"meta must be expressible in JSON, got {meta!r}: {error}.") from error


class _ErrorKeeper:
    """A file for ``torch.save``, which turns every error of a write into a RuntimeError without its cause."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Writes all of it: a raw file may take less, of 2 GiB or on a disk that is nearly full, and torch goes on."""
        rest = memoryview(content).cast("B")
        written = len(rest)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return written

    def flush(self) -> None:
        self.file.flush()


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    # unbuffered: torch writes in large pieces, and a buffer would fail once more when it is closed
    with path.open("wb", buffering=0) as file:
        keeper = _ErrorKeeper(file)  # type: ignore[arg-type] # raw files serve as well
        try:
            torch.save(dict(state), keeper)  # type: ignore[arg-type]
        except RuntimeError as error:
            if keeper.error is None:
                raise
            raise keeper.error from error


def _without_room(error: OSError, final: Path, state: Mapping[str, Any]) -> OSError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        needed, free = _num_bytes(state) / 1e6, shutil.disk_usage(final.parent).free / 1e6
        reason += f"; a checkpoint needs about {needed:,.2f} MB, {free:,.2f} MB are free; the older ones are kept"
    return OSError(error.errno, reason, str(final))


def _num_bytes(state: Any) -> int:
    """Size of all tensors in nested values."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(_num_bytes, parts))


def clear_leftovers(root: str | Path) -> None:
    """Removes what a killed process left half written, and puts back what it had moved aside.

    Nobody else may be writing there.
    """
    root = Path(root)
    for left in root.glob(".partial_*"):
        final = root / left.name.removeprefix(".partial_").removesuffix(_REPLACED)
        if left.name.endswith(_REPLACED) and (left / _META).is_file() and not final.exists():
            os.replace(left, final)
        else:
            shutil.rmtree(left, ignore_errors=True)


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
        expect: entries that its ``meta`` must have, for example the task. Of an entry that is a mapping, the options of
            a run for example, those keys are compared that both have: another version may know more or fewer.

    Returns:
        State, all tensors on the CPU, and meta.

    Raises:
        CheckpointError: if it is incomplete, damaged, edited, of another format version, or ``meta`` differs from
            ``expect``, which names what differs.
    """
    path = Path(path)
    try:
        meta = json.loads((path / _META).read_text())
        payload = (path / _STATE).read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}.") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path / _META} must hold a JSON object, found {type(meta).__name__}.")
    version = meta.get("format_version")
    if version not in READ_VERSIONS:
        readable = " and ".join(map(str, READ_VERSIONS))
        raise CheckpointError(f"{path} has checkpoint format {version!r}; this version reads {readable}.")
    if hashlib.sha256(payload).hexdigest() != meta.get("sha256"):
        raise CheckpointError(f"{path / _STATE} is damaged: its SHA-256 is not the one in {_META}.")
    _check_meta(path, meta, dict(expect or {}))
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True), meta
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path / _STATE} holds more than tensors and plain values: {error}") from error


def _check_meta(path: Path, meta: dict[str, Any], expect: dict[str, Any]) -> None:
    # through JSON, as meta has gone: a tuple has become a list
    for key, value in json.loads(json.dumps(expect)).items():
        found = meta.get(key)
        if isinstance(value, dict) and isinstance(found, dict):
            differing = [(name, found[name], value[name]) for name in value if name in found]
        elif isinstance(value, dict) and key not in meta and meta["format_version"] < FORMAT_VERSION:
            continue  # saved by a version that did not write it
        else:
            differing = [(key, found, value)]
        wrong = [f"{name}={was!r}; expected {now!r}" for name, was, now in differing if was != now]
        if wrong:
            raise CheckpointError(f"{path} is a checkpoint with {', '.join(wrong)}.")
    if meta["format_version"] >= FORMAT_VERSION and meta.get(_META_DIGEST) != digest_without(meta, _META_DIGEST):
        raise CheckpointError(f"{path / _META} is damaged or was edited: its content does not fit its {_META_DIGEST}.")


def check_fits(saved: Any, own: Any, where: str) -> None:
    """Checks, before anything is overwritten, that a saved state can take the place of one's own.

    Args:
        saved: nested mappings and sequences of tensors and plain values.
        own: what it is to replace; devices may differ.
        where: name of both in the error.

    Raises:
        CheckpointError: if a key, a shape or a dtype differs; names the first. One number may have another precision.
    """
    if isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != own.keys():
            keys = set(saved) if isinstance(saved, Mapping) else set()
            differing = ", ".join(sorted(map(str, keys ^ set(own)))[:3])
            raise CheckpointError(f"the checkpoint does not fit this run: {where} differs in {differing}.")
        for key in own:
            check_fits(saved[key], own[key], f"{where}.{key}")
    elif isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            raise CheckpointError(f"the checkpoint does not fit this run: {where} must have {len(own)} entries.")
        for number, pair in enumerate(zip(saved, own)):
            check_fits(*pair, f"{where}.{number}")
    elif isinstance(own, Tensor):
        found = (tuple(saved.shape), saved.dtype) if isinstance(saved, Tensor) else type(saved).__name__
        expected = (tuple(own.shape), own.dtype)
        # a coefficient of a loss in float64 was float32 in earlier versions
        numbers = [each for each in (saved, own) if isinstance(each, Tensor) and each.is_floating_point()]
        if found != expected and not (len(numbers) == 2 and not any(each.ndim for each in numbers)):
            raise CheckpointError(f"the checkpoint does not fit this run: {where} is {found}, expected {expected}.")


def fitting_generators(saved: dict[str, Any], own: dict[str, Any], seed: int) -> dict[str, Any]:
    """The saved state of a sampler with its generators replaced where another kind of device has other ones.

    Args:
        saved: ``state_dict()`` of a sampler, from a checkpoint.
        own: that of the sampler which is to take it.
        seed: of generators that cannot take the saved state.

    Returns:
        ``saved``, or a copy in which such generators begin anew, of which a :class:`CheckpointWarning` tells.
    """
    if not isinstance(saved, Mapping) or not isinstance(own, Mapping):
        return saved
    fitting = dict(saved)
    for name, state in own.items():
        other = saved.get(name)
        if not isinstance(state, Tensor) or state.dtype != torch.uint8 or not isinstance(other, Tensor):
            continue
        if other.shape != state.shape:
            warnings.warn(
                f"the random numbers of the sampler ({name}) were drawn on another kind of device: they begin anew, so "
                "the run continues with other batches than it would have had.",
                CheckpointWarning,
                stacklevel=2,
            )
            # a state of the own kind: seed and offset of a CUDA generator, or a fresh one of a CPU
            fitting[name] = _fresh_generator(state, seed)
    return fitting


def _fresh_generator(like: Tensor, seed: int) -> Tensor:
    cpu = torch.Generator().manual_seed(seed).get_state()
    if like.shape == cpu.shape:
        return cpu
    # of a CUDA generator: seed and offset, 64 bits each
    return torch.tensor([seed, 0], dtype=torch.int64).view(torch.uint8)[: like.numel()].clone()


def rng_state() -> dict[str, Any]:
    """State of the global generators of torch (of GPUs if one is in use), numpy and Python, as plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        # asking would begin to use one
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores what :func:`rng_state` returned.

    Generators of GPUs that this machine lacks are left out, those of GPUs that it has besides stay as they are; a
    :class:`CheckpointWarning` tells of both.
    """
    torch.set_rng_state(state["torch"])
    saved, here = len(state["cuda"]), torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    if saved != here:
        warnings.warn(
            f"the checkpoint holds the random generators of {saved} GPUs, this process sees {here}: those without a "
            "partner are left as they are.",
            CheckpointWarning,
            stacklevel=2,
        )
    for device in range(min(saved, here)):
        torch.cuda.set_rng_state(state["cuda"][device], device)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def _checkpoints(root: Path) -> list[Path]:
    found = [path for path in root.glob("step_*") if path.name[5:].isdecimal() and (path / _META).is_file()]
    return sorted(found, key=lambda path: int(path.name[5:]))
