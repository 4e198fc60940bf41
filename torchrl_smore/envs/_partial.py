"""The folder in which an unfinished collection keeps its finished chunks."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_REQUEST = "request.json"


class PartialFolder:
    """Chunks of episodes on disk, each written whole or not at all.

    Args:
        path: the folder; made if it is missing.
        request: what is being collected, expressible in JSON. A folder that was begun for another request is refused.

    Raises:
        ValueError: if the folder holds another request; names what differs.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        begun = path / _REQUEST
        if begun.exists():
            self._check_same(json.loads(begun.read_text()), request)
            return
        _write_whole(begun, lambda file: file.write_text(json.dumps(request, indent=1)))

    def _check_same(self, found: dict[str, Any], request: dict[str, Any]) -> None:
        differing = [key for key in sorted(found.keys() | request.keys()) if found.get(key) != request.get(key)]
        if differing:
            details = "; ".join(f"{key}: {found.get(key)!r} there, {request.get(key)!r} now" for key in differing)
            raise ValueError(
                f"{self.path} holds an unfinished collection of something else ({details}). "
                "Repeat that request to finish it, or delete the folder."
            )

    def missing(self, num_chunks: int) -> list[int]:
        """Numbers below ``num_chunks`` of the chunks that are not there or cannot be read."""
        return [number for number in range(num_chunks) if not zipfile.is_zipfile(chunk_path(self.path, number))]

    def read(self, number: int) -> dict[str, NDArray[Any]]:
        """The arrays of a chunk."""
        with np.load(chunk_path(self.path, number), allow_pickle=False) as arrays:
            return dict(arrays)

    def remove(self) -> None:
        """Deletes the folder with everything in it."""
        shutil.rmtree(self.path)


def chunk_path(folder: Path, number: int) -> Path:
    """Where a chunk lies."""
    return folder / f"chunk_{number:06d}.npz"


def write_chunk(folder: Path, number: int, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes a chunk beside its place and renames it when whole.

    Raises:
        OSError: if the disk is full or refuses; nothing is left behind.
    """
    _write_whole(chunk_path(folder, number), lambda file: _save(file, arrays))


def _save(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:  # np.savez would append .npz to a name
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
