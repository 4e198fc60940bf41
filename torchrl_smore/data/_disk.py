"""The trajectory store on disk: a TensorDict memmap folder and a manifest, published atomically."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no POSIX: leftovers stay
    fcntl = None  # type: ignore[assignment]

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_smore._files import digest_without, put_in_place, sync, sync_names
from torchrl_smore.data._files import quoted, read_bounded, shortened
from torchrl_smore.data._schema import SCHEMA, Key
from torchrl_smore.data.errors import DatasetError

_logger = logging.getLogger("torchrl_smore")
FORMAT = "torchrl_smore.trajectories"
FORMAT_VERSION = 1
FORMAT_VERSION_FRAMES = 2  # of stores with frames; all others stay readable for what knows version 1 only
_MANIFEST = "meta.json"
_CHECKSUM = "manifest_sha256"
_MAX_MANIFEST = 1 << 26  # bytes
_MAX_META = _MAX_MANIFEST - (1 << 16)  # bytes; the rest is for what else the manifest holds
_MAX_ROWS = 1 << 48
_FOLDER = "data"
_FRAMES = "frames.memmap"
_BLOCK = 1 << 24


def _file(key: Key) -> str:
    return "/".join([_FOLDER, *([key] if isinstance(key, str) else key)]) + ".memmap"


_LAYOUT_FILES = [f"{_FOLDER}/meta.json", f"{_FOLDER}/next/meta.json"]
_FILES = [*_LAYOUT_FILES, *map(_file, SCHEMA)]


def _files(version: Any) -> list[str]:
    return [*_FILES, _FRAMES] if version == FORMAT_VERSION_FRAMES else _FILES


def content_digest(data: TensorDictBase, frames: Tensor | None = None) -> str:
    """SHA-256 over the keys, dtypes, shapes and bytes of columns and frames, in hexadecimal."""
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(SCHEMA, pool.map(lambda key: _bytes_digest(data.get(key)), SCHEMA)))
    return _combined(data, digests, frames, None if frames is None else _bytes_digest(frames))


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuses a place where no store can be written.

    Raises:
        FileExistsError: if there is something and ``overwrite`` is False.
        DatasetError: if there is something else than a store.
    """
    if path.exists():
        if not overwrite:
            raise FileExistsError(f"{path} exists: pass overwrite=True to replace the trajectory store there.")
        _parse_manifest(path)


def write(
    path: Path, data: TensorDictBase, meta: dict[str, Any], *, overwrite: bool, frames: Tensor | None = None
) -> None:
    """Writes a store beside ``path`` and renames it when whole; see :meth:`TrajectoryStore.save`."""
    # as deep as in the manifest, since that is indented
    if (size := len(json.dumps({"meta": meta}, indent=2))) > _MAX_META:
        raise DatasetError(f"meta: expected at most {_MAX_META} bytes of JSON, found {size}.")
    path = path.resolve()
    recover(path)
    check_place(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _published(path) as partial:
        folder = partial / _FOLDER
        # lays out the folder with empty files; the bytes follow through plain writes, because a full disk
        # turns a write to a mapped page into SIGBUS, and a plain write into an OSError
        data.cpu().memmap_like(str(folder))
        with ThreadPoolExecutor() as pool:
            digests = dict(zip(SCHEMA, pool.map(lambda key: _write_column(folder, key, data.get(key)), SCHEMA)))
        of_frames = None if frames is None else _write_tensor(partial / _FRAMES, frames)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION if frames is None else FORMAT_VERSION_FRAMES,
            "num_transitions": data.shape[0],
            "sha256": _combined(data, digests, frames, of_frames),
            "files": {name: _file_record(partial / name) for name in _LAYOUT_FILES}
            | {_file(key): {"bytes": _size(data.get(key)), "sha256": digests[key]} for key in SCHEMA},
            "columns": {_file(key): list(data.get(key).shape) for key in SCHEMA},
            "meta": meta,
        }
        if frames is not None:
            manifest["files"][_FRAMES] = {"bytes": _size(frames), "sha256": of_frames}
            manifest["columns"][_FRAMES] = list(frames.shape)
        manifest[_CHECKSUM] = digest_without(manifest, _CHECKSUM)
        _write_file(partial / _MANIFEST, json.dumps(manifest, indent=2).encode())


def read(path: Path, *, verify: bool) -> tuple[TensorDict, dict[str, Any], Tensor | None]:
    """Maps columns and frames of a store into memory, copy-on-write; see :meth:`TrajectoryStore.load`."""
    manifest = read_manifest(path)
    _check_files(path, manifest["files"], _files(manifest["format_version"]), verify=verify)
    rows = manifest["num_transitions"]
    columns = {
        key: _map(path / _file(key), manifest["columns"].get(_file(key)), dtype, dims=2, rows=rows)
        for key, (dtype, _) in SCHEMA.items()
    }
    data = TensorDict({"next": TensorDict({}, [rows])}, [rows])
    for key, column in columns.items():
        data.set(key, column)
    frames, of_frames = None, None
    if manifest["format_version"] == FORMAT_VERSION_FRAMES:
        frames = _map(path / _FRAMES, manifest["columns"].get(_FRAMES), torch.uint8, dims=4)
        of_frames = manifest["files"][_FRAMES]["sha256"]
    if verify:
        digests = {key: manifest["files"][_file(key)]["sha256"] for key in SCHEMA}
        if (found := _combined(data, digests, frames, of_frames)) != manifest["sha256"]:
            raise DatasetError(f"{path / _MANIFEST}: 'sha256': expected {found} from its files, found a different one.")
    return data, manifest["meta"], frames


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads ``meta.json`` and checks that it is whole and that this version of the library can read what it describes.

    Raises:
        DatasetError: if it is missing, damaged, altered, or of another format version.
    """
    file = path / _MANIFEST
    manifest = _parse_manifest(path)
    if (version := manifest.get("format_version")) not in (FORMAT_VERSION, FORMAT_VERSION_FRAMES):
        raise DatasetError(
            f"{file}: expected format version {FORMAT_VERSION}, or {FORMAT_VERSION_FRAMES} with frames, found "
            f"{quoted(version)}."
        )
    expected = {"num_transitions": int, "sha256": str, "files": dict, "columns": dict, "meta": dict}
    for key, kind in expected.items():
        if not isinstance(manifest.get(key), kind):
            raise DatasetError(f"{file} is damaged: expected {key!r} of type {kind.__name__}.")
    if surplus := manifest.keys() - expected.keys() - {"format", "format_version", _CHECKSUM}:
        raise DatasetError(f"{file} is damaged: unexpected {quoted(sorted(surplus))}.")
    for name in _files(version):
        record = manifest["files"].get(name)
        if not isinstance(record, dict) or record.keys() != {"bytes", "sha256"}:
            raise DatasetError(f"{file} is damaged: expected size and digest of {name}, found {quoted(record)}.")
    if _CHECKSUM in manifest:
        if (found := digest_without(manifest, _CHECKSUM)) != manifest[_CHECKSUM]:
            raise DatasetError(
                f"{file} is altered: expected {_CHECKSUM!r} {found} from its content, found "
                f"{quoted(manifest[_CHECKSUM])}."
            )
    else:
        _say_unprotected(file.resolve())
    return manifest


def _parse_manifest(path: Path) -> dict[str, Any]:
    """What ``meta.json`` holds, if it is that of a trajectory store."""
    file = path / _MANIFEST
    if not file.is_file():
        raise DatasetError(f"{path} is not a trajectory store: it has no {_MANIFEST}.{_hint(path.resolve())}")
    content = read_bounded(file, _MAX_MANIFEST)
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{file} is damaged: expected JSON, found {shortened(str(error))}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DatasetError(f"{path} is not a trajectory store: {_MANIFEST} does not name the format {FORMAT!r}.")
    return manifest


@functools.cache
def _say_unprotected(file: Path) -> None:
    _logger.warning(
        "%s has no checksum of its own: it was written by an earlier version. What it says of the data is taken as it "
        "stands; saving the store again adds one",
        file,
    )


def _hint(path: Path) -> str:
    """Says where the previous store lies, if an overwrite was killed between its two renames."""
    left = _hidden(path, "replaced")
    return f" An interrupted overwrite left the store that was there at {left[0]}." if left else ""


def _check_files(path: Path, files: dict[str, dict[str, Any]], names: list[str], *, verify: bool) -> None:
    for name in names:
        file, record = path / name, files[name]
        if not file.is_file():
            raise DatasetError(f"{file} is missing.")
        if (size := file.stat().st_size) != record["bytes"]:
            raise DatasetError(
                f"{file} is truncated or altered: expected {quoted(record['bytes'])} bytes, found {size}."
            )
    if not verify:
        return
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(names, pool.map(lambda name: _file_digest(path / name), names)):
            if digest != (expected := files[name]["sha256"]):
                raise DatasetError(f"{path / name} is altered: expected SHA-256 {quoted(expected)}, found {digest}.")


def _map(file: Path, shape: Any, dtype: torch.dtype, *, dims: int, rows: int | None = None) -> Tensor:
    """Maps one file privately: writes to the tensor stay in memory, and read-only files will do."""
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= dims
        or not all(type(size) is int and 0 < size <= _MAX_ROWS for size in shape)
    ):
        raise DatasetError(f"{file}: expected a shape of positive numbers in {_MANIFEST}, found {quoted(shape)}.")
    elements = math.prod(shape)
    if (rows is not None and shape[0] != rows) or elements * dtype.itemsize != file.stat().st_size:
        wanted = "" if rows is None else f" in {rows} rows"
        raise DatasetError(
            f"{file}: expected {file.stat().st_size} bytes{wanted}, found shape {shape} of {dtype} in {_MANIFEST}."
        )
    return torch.from_file(str(file), shared=False, size=elements, dtype=dtype).view(shape)


@contextmanager
def _published(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``path`` that takes its place on success and disappears on failure."""
    partial, lock = _locked_folder(path)
    replaced = path.with_name(partial.name.replace(".partial-", ".replaced-"))
    try:
        yield partial
        sync(partial)
        put_in_place(partial, path, replaced)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _locked_folder(path: Path) -> tuple[Path, int | None]:
    """A new hidden folder beside ``path``, and the lock that tells other processes that someone writes to it."""
    while True:
        partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}")
        partial.mkdir()
        lock = _lock(partial, wait=True)
        if partial.is_dir():  # not yet locked, it looked like a leftover to a process that starts at this moment
            return partial, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of a folder; ``None`` if someone else holds it or there are no locks here."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def recover(path: Path) -> None:
    """Puts back the store that was at ``path`` if its overwriter was killed, and removes what killed processes left.

    The hidden folders of a live process stay, even while what it has moved aside is all that there is of the store.
    Where folders have no locks, every process whose new store is still beside ``path`` is taken to be live.

    Raises:
        OSError: if the previous store cannot be renamed.
    """
    path = path.resolve()
    # listed before those who write: of one who begins in between, nothing may look as if nobody had moved it aside
    moved_aside = _hidden(path, "replaced")
    with ExitStack() as locks:
        live, abandoned = set(), []
        for partial in _hidden(path, "partial"):
            if (lock := _lock(partial, wait=False)) is None:
                live.add(_token(partial))
                continue
            # until the end, so that a second process which recovers takes it for ours
            locks.callback(os.close, lock)
            abandoned.append(partial)
        for previous in moved_aside:
            if _token(previous) in live:
                continue
            if path.exists():
                abandoned.append(previous)
            else:
                os.replace(previous, path)
                sync_names(path.parent)
        for folder in abandoned:
            shutil.rmtree(folder, ignore_errors=True)


def _token(hidden: Path) -> str:
    """What the two hidden folders of one process have in common."""
    return hidden.name.rpartition("-")[2]


def _hidden(path: Path, kind: str) -> list[Path]:
    """Hidden folders of :func:`_published` beside ``path``."""
    siblings = path.parent.iterdir() if path.parent.is_dir() else []
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{kind}-[0-9a-f]{{12}}")
    return [sibling for sibling in siblings if pattern.fullmatch(sibling.name)]


def _write_column(folder: Path, key: Key, value: Tensor) -> str:
    return _write_tensor(folder.parent / _file(key), value)


def _write_tensor(file: Path, value: Tensor) -> str:
    content = _as_bytes(value)
    _write_file(file, content)
    return hashlib.sha256(content).hexdigest()


def _write_file(file: Path, content: bytes | memoryview) -> None:
    file.write_bytes(content)


def _combined(
    data: TensorDictBase, digests: dict[Key, str], frames: Tensor | None = None, of_frames: str | None = None
) -> str:
    columns = [(_file(key), str(data.get(key).dtype), list(data.get(key).shape), digests[key]) for key in SCHEMA]
    if frames is not None and of_frames is not None:
        columns.append((_FRAMES, str(frames.dtype), list(frames.shape), of_frames))
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def _bytes_digest(value: Tensor) -> str:
    return hashlib.sha256(_as_bytes(value)).hexdigest()


def _as_bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _file_record(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": _file_digest(file)}


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()
