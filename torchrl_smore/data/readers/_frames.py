"""Pictures of a file as the frames of a store, and numbers of frames as states where the file has no others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from torch import Tensor

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._rows import BLOCK_BYTES, Progress, RowArray

_MOST_NUMBERS = 1 << 24  # whole numbers up to here are exact in float32
Pictures = TypeVar("Pictures", bound=RowArray)


def is_picture(array: RowArray) -> bool:
    """Whether the rows of an array are no vectors, and so must be pictures."""
    return len(array.shape) > 2


def check_pictures(array: Pictures) -> Pictures:
    """The array, if it is one of pictures.

    Raises:
        DatasetError: unless it is uint8 ``[rows, height, width, 3]``.
    """
    if array.dtype != np.uint8 or len(array.shape) != 4 or array.shape[3] != 3 or 0 in array.shape[1:]:
        raise DatasetError(
            f"{array.label}: expected pictures of uint8 and shape [rows, height, width, 3], found {array.dtype} "
            f"{list(array.shape)}."
        )
    return array


class FrameSink:
    """Takes the frames of a store in their order, to memory or to a file that is mapped into it; a context manager.

    The file is removed if an exception leaves the context.

    Args:
        shape: of all of them, ``(frames, height, width, 3)``.
        folder: where the file is made, which has to be there for as long as the frames are used; ``None``: memory.
    """

    def __init__(self, shape: tuple[int, ...], folder: str | Path | None) -> None:
        self._shape, self._folder, self._taken = shape, folder, 0
        self._frames: Tensor | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> FrameSink:
        if self._folder is None:
            self._frames = torch.empty(self._shape, dtype=torch.uint8)
        else:
            # plain writes: a full disk turns a write to a mapped page into a signal
            self._file = tempfile.NamedTemporaryFile(dir=self._folder, suffix=".frames", delete=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            if kind is not None:
                Path(self._file.name).unlink(missing_ok=True)

    def take(self, pictures: np.ndarray) -> None:
        """Appends uint8 ``[n, height, width, 3]``."""
        if self._file is None:
            assert self._frames is not None
            self._frames[self._taken : self._taken + len(pictures)] = torch.from_numpy(np.array(pictures))
        else:
            self._file.write(np.ascontiguousarray(pictures).data)
        self._taken += len(pictures)

    def frames(self) -> Tensor:
        """All of them, once that many were taken."""
        if self._file is None:
            assert self._frames is not None
            return self._frames
        self._file.close()
        mapped = torch.from_file(self._file.name, shared=False, size=int(np.prod(self._shape)), dtype=torch.uint8)
        return mapped.view(self._shape)


def read_frames(
    array: RowArray, source: np.ndarray, length: np.ndarray, folder: str | Path | None, progress: Progress
) -> Tensor:
    """The frames of trajectories whose states are consecutive rows of an array of pictures, which is read once.

    Args:
        array: checked by :func:`check_pictures`.
        source: row of the observation of each transition, int64, shape ``[N]``, increasing; that of the next
            observation is the row after it.
        length: transitions of each trajectory, shape ``[K]``.
        folder: see :class:`FrameSink`.
        progress: is told the bytes that were read.

    Returns:
        uint8 ``[N + K, height, width, 3]``.

    Raises:
        DatasetError: if the file ends before.
    """
    stop = length.cumsum()
    states = np.empty(len(source) + len(length), dtype=np.int64)
    trajectory = np.arange(len(length)).repeat(length)
    states[np.arange(len(source)) + trajectory] = source
    states[stop + np.arange(len(length))] = source[stop - 1] + 1
    first = 0
    with FrameSink((len(states), *array.shape[1:]), folder) as sink:
        for block in array.blocks():
            low, high = np.searchsorted(states, (first, first + len(block)))
            sink.take(block[states[low:high] - first])
            first += len(block)
            progress(block.nbytes)
            if first > states[-1]:
                break
        return sink.frames()


def check_numbered(label: str, rows: int) -> None:
    """Refuses more rows than float32 can number.

    Raises:
        DatasetError: naming both.
    """
    if rows > _MOST_NUMBERS:
        raise DatasetError(f"{label}: expected at most {_MOST_NUMBERS} pictures without states, found {rows}.")


class RowNumbers:
    """An array that holds the number of each of its rows: a state that tells frames apart, and says nothing else.

    Raises:
        DatasetError: for more rows than float32 can number.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, label: str, rows: int) -> None:
        check_numbered(label, rows)
        self.label = label
        self.shape: tuple[int, ...] = (rows, 1)

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive numbers."""
        for first in range(0, self.shape[0], BLOCK_BYTES // 4):
            last = min(self.shape[0], first + BLOCK_BYTES // 4)
            yield np.arange(first, last, dtype=np.float32)[:, None]


def same_frame(achieved: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The rule of a goal that is a frame's number: ``[..., 1]`` twice to booleans ``[...]``."""
    equal: np.ndarray = (achieved == goal).all(-1)
    return equal
