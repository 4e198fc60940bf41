"""Pictures of a file as the frames of a store, and numbers of frames as states where the file has no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from torchrl_smore.data._frame_sink import FrameSink
from torchrl_smore.data._numbers import EXACT
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._rows import BLOCK_BYTES, Progress, RowArray

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
    if rows > EXACT:
        raise DatasetError(f"{label}: expected at most {EXACT} pictures without states, found {rows}.")


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
