"""The folder in which an unfinished collection keeps its finished chunks."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_smore._files import remove_folder, remove_leftovers, replacing, write_text

_logger = logging.getLogger("torchrl_smore")
_REQUEST = "request.json"
_QUOTED = 200  # characters of a reason


class PartialFolder:
    """Chunks of episodes on disk, each written atomically.

    Args:
        path: the folder; made if it is missing.
        request: what is being collected, expressible in JSON. A folder that was begun for another request is refused.

    Raises:
        ValueError: if the folder holds another request, naming what differs, or one that cannot be read, or something
            else than an unfinished collection.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        self.path = path
        # where a process was killed that had done with one
        self._removed = path.with_name(f".{path.name}-removed")
        if self._removed.exists():
            shutil.rmtree(self._removed, ignore_errors=True)
        text = json.dumps(request, indent=1)
        path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        begun = path / _REQUEST
        if begun.exists():
            self._check_same(self._begun(begun), request)
            return
        if found := sorted(each.name for each in path.iterdir()):
            raise ValueError(
                f"{path}, where chunks would be kept, is no unfinished collection: it has {', '.join(found[:3])}. Move "
                "it, or choose another folder for the dataset."
            )
        write_text(begun, text)

    def _begun(self, file: Path) -> dict[str, Any]:
        try:
            found = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{file} is damaged, so that nobody knows what is being collected there: delete the folder ({error})."
            ) from error
        if not isinstance(found, dict):
            raise ValueError(f"{file}: expected an object, found {type(found).__name__}: delete the folder.")
        return found

    def _check_same(self, found: dict[str, Any], request: dict[str, Any]) -> None:
        differing = [key for key in sorted(found.keys() | request.keys()) if found.get(key) != request.get(key)]
        if differing:
            details = "; ".join(f"{key}: {found.get(key)!r} there, {request.get(key)!r} now" for key in differing)
            raise ValueError(
                f"{self.path} holds an unfinished collection of something else ({details}). "
                "Repeat that request to finish it, or delete the folder."
            )

    def missing(self, num_chunks: int) -> list[int]:
        """Numbers below ``num_chunks`` of the chunks that are not there, or are damaged, of which it warns."""
        return [number for number in range(num_chunks) if not self._holds(number)]

    def _holds(self, number: int) -> bool:
        path = chunk_path(self.path, number)
        if not path.exists():
            return False
        try:
            if not path.is_file():
                raise ValueError("it is no regular file")
            self.read(number)
        except Exception as error:  # NumPy and zipfile do not say what a damaged file makes them raise
            _logger.warning(
                "%s is damaged and is collected anew (%s: %s)", path, type(error).__name__, str(error)[:_QUOTED]
            )
            return False
        return True

    def read(self, number: int) -> dict[str, NDArray[Any]]:
        """The arrays of a chunk, whose checksums are checked; whatever fails then is raised as it comes."""
        with chunk_path(self.path, number).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            held = dict(arrays)
        if not held:
            raise ValueError("it holds no arrays")
        return held

    def remove_if_empty(self) -> None:
        """Deletes the folder if no chunk is in it, so that whatever is mended can be collected at once."""
        # an interrupt may have come while it was removed
        if self.path.is_dir() and not any(self.path.glob("chunk_*.npz")):
            self.remove()

    def remove(self) -> None:
        """Deletes the folder with everything in it; half of it would be taken for an unfinished collection."""
        remove_folder(self.path, self._removed)


def chunk_path(folder: Path, number: int) -> Path:
    """Where a chunk lies."""
    return folder / f"chunk_{number:06d}.npz"


def write_chunk(folder: Path, number: int, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes a chunk atomically.

    Raises:
        OSError: if the disk is full or refuses; nothing is left behind.
    """
    # np.savez would append .npz to a name
    with replacing(chunk_path(folder, number)) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
