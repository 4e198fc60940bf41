"""Arrays of a file, read once from the first row to the last, in blocks that are spread over columns of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from torchrl_smore.data._files import shortened
from torchrl_smore.data._numbers import is_rounded, say_rounded
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._goals import Rows

#: Bytes of a block: large enough for the disk, small beside the dataset.
BLOCK_BYTES = 1 << 24

#: Is told the number of bytes that have been read since the last call.
Progress = Callable[[int], None]


class RowArray(Protocol):
    """An array in a file."""

    label: str  # file and name, for messages
    shape: tuple[int, ...]
    dtype: np.dtype

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive blocks of rows, from the first row to the last; a block may be overwritten by the next."""


class Column:
    """A float32 column of a store whose rows come from rows of one array.

    Args:
        source: row of the file for each row of the column, int64, shape ``[N]``, never decreasing.
        of: what is kept of the rows ``[n, d]``; all by default.
    """

    def __init__(self, source: np.ndarray, of: Rows | None = None) -> None:
        self.source, self.of = source, of
        self.values = np.empty((0, 0), dtype=np.float32)

    def fill(self, label: str, block: np.ndarray, first: int) -> None:
        """Takes what it needs from the rows of a file that begin with number ``first``."""
        low, high = np.searchsorted(self.source, (first, first + len(block)))
        try:
            rows = block if self.of is None else np.asarray(self.of(block))
        except DatasetError:
            raise
        except Exception as error:
            raise DatasetError(
                f"{label}: expected the goal function to take rows {list(block.shape)}, failed with "
                f"{type(error).__name__}: {shortened(str(error))}"
            ) from error
        if rows.ndim != 2 or len(rows) != len(block) or rows.dtype.kind not in "fiub":
            raise DatasetError(
                f"{label}: expected the goal function to return numbers of shape [{len(block)}, dg], "
                f"found {rows.dtype} {list(rows.shape)}."
            )
        if not self.values.size:
            self.values = np.empty((len(self.source), rows.shape[1]), dtype=np.float32)
        part = self.values[low:high]
        np.take(rows.astype(np.float32, copy=False), self.source[low:high] - first, axis=0, out=part, mode="clip")
        check_finite(label, part, self.source[low:high])


def check_finite(label: str, values: np.ndarray, row: np.ndarray) -> None:
    """Checks values ``[n, d]`` that came from the numbered rows of a file."""
    # NaN and infinities survive minimum and maximum, which need no second array
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        at = int((~np.isfinite(values).all(-1)).argmax())
        raise DatasetError(
            f"{label}: expected finite numbers, found {summary_of(values[at])} in row {row[at]} (as float32)."
        )


def summary_of(values: np.ndarray) -> str:
    """A row of numbers for a message, shortened."""
    shown = ", ".join(f"{value:g}" for value in values[:8])
    return f"[{shown}{', ...' if len(values) > 8 else ''}]"


def gather(array: RowArray, columns: Sequence[Column], progress: Progress) -> None:
    """Reads an array of rows of numbers once and fills columns with it.

    Raises:
        DatasetError: if it holds no rows of real numbers, or one that is not finite in float32.
    """
    check_numbers(array, 1 if is_single(array) else 2)
    first, last = 0, max(int(column.source[-1]) for column in columns) + 1
    rounded = False
    for block in array.blocks():
        rounded |= is_rounded(block)
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes inf and is reported
            rows = block.astype(np.float32, copy=False).reshape(len(block), -1)
        for column in columns:
            column.fill(array.label, rows, first)
        first += len(block)
        progress(block.nbytes)
        if first >= last:
            break
    if rounded:
        say_rounded(array.label)


def is_single(array: RowArray) -> bool:
    """Whether rows are one number each, a column of width 1; whole numbers are more likely to name actions."""
    return len(array.shape) == 1 and array.dtype.kind == "f"


def read_flags(array: RowArray, progress: Progress) -> np.ndarray:
    """Reads flags ``[rows]`` or ``[rows, 1]`` of any type of number.

    Returns:
        bool, shape ``[rows]``.

    Raises:
        DatasetError: if a value is neither 0 nor 1, or the shape is another.
    """
    if array.shape[1:] == (1,):
        check_numbers(array, 2)
    else:
        check_numbers(array, 1)
    flags = np.empty(array.shape[0], dtype=bool)
    first = 0
    for block in array.blocks():
        block = block.reshape(-1)
        if (wrong := (block != 0) & (block != 1)).any():
            at = int(wrong.argmax())
            raise DatasetError(f"{array.label}: expected 0 or 1, found {block[at]} in row {first + at}.")
        flags[first : first + len(block)] = block
        first += len(block)
        progress(block.nbytes)
    return flags


def check_numbers(array: RowArray, ndim: int) -> None:
    """Checks dtype and number of dimensions.

    Raises:
        DatasetError: if they differ; of images and discrete actions it says that the store cannot hold them.
    """
    found = f"found {array.dtype} {list(array.shape)}"
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{array.label}: expected real numbers, {found}.")
    if len(array.shape) != ndim:
        wanted = "[rows, width]" if ndim == 2 else "[rows]"
        hint = ""
        if ndim == 2:
            hint = " (images)" if len(array.shape) > 2 else " (discrete?)"
            hint += "; a trajectory store holds vectors of float32"
        raise DatasetError(f"{array.label}: expected shape {wanted}, {found}{hint}.")
    if ndim == 2 and array.shape[1] == 0:
        raise DatasetError(f"{array.label}: expected at least one column, {found}.")


@contextmanager
def progress_bar(show: bool, label: str, total: int, unit: str = "B") -> Iterator[Progress]:
    """A tqdm bar over bytes or another unit, or nothing.

    Raises:
        ImportError: if a bar is asked for and tqdm is missing.
    """
    if not show:
        yield lambda _: None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False.") from error
    with tqdm(total=total, desc=f"reading {label}", unit=unit, unit_scale=True) as bar:
        yield bar.update
