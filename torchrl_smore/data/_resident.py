"""Rows in a file, of which a window of whole trajectories that slides through it is in memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from torchrl_smore.functional.goals import RowWindow

_BLOCK = 1 << 16  # rows that are written at once
_SHARE = 8  # the window moves by at most one over this of itself
_SEED = 0  # of the order in the file


class ResidentRows:
    """A table ``[N, width]`` in a file without a name, and the window of it that is in memory.

    The window holds whole trajectories, neighbours in the file, as many as ``resident`` rows hold. It moves on by
    ``renewed`` rows for each batch, several batches at a time; after the last trajectory comes the first again. Where
    it stands depends on the number of batches alone, so samplers of several seeds that draw in step share it.

    Args:
        columns: float32, ``[N, *]`` each, side by side in the table.
        order: in which their rows stand in the file, trajectory by trajectory, int64, ``[N]``.
        stop: end of the trajectory of every row of the file, int64, ``[N]``.
        reached: rows of the file that reach their stored goal, ascending, int64, ``[R]``.
        anchors: cumulative weights of the rows of the file, float64, ``[N]``; ``None``: uniform.
        folder: where the file is.
        resident: rows of the window.
        renewed: rows that it moves by for each batch.

    Raises:
        OSError: if there is no such folder or no room in it.
        ValueError: if ``resident`` holds no trajectory beside those that are renewed, or all rows.
    """

    def __init__(
        self,
        columns: Sequence[Tensor],
        order: Tensor,
        stop: Tensor,
        reached: Tensor,
        anchors: Tensor | None,
        folder: str | Path,
        *,
        resident: int,
        renewed: int,
    ) -> None:
        self.num_rows = stop.shape[0]
        longest = int((stop.unique().diff(prepend=stop.new_zeros(1))).max())
        least = _SHARE * renewed + longest
        if not least <= resident < self.num_rows:
            raise ValueError(
                f"resident= expects from {least} (one trajectory, and {_SHARE} times the rows of a batch) to "
                f"{self.num_rows - 1} rows (fewer than there are: all of them fit without mapped=), got {resident}."
            )
        self._stop, self._reached, self._anchors = stop, reached, anchors
        self._resident = resident
        self._batches = max(1, (resident - longest) // (_SHARE * renewed))
        self._step, self._first = self._batches * renewed, resident - longest + 1
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed, and gone, with the last sampler
        weakref.finalize(self, self._file.close)
        for start in range(0, self.num_rows, _BLOCK):
            rows = order[start : start + _BLOCK]
            self._file.write(torch.cat([column[rows] for column in columns], -1).contiguous().numpy().data)
        self.table = torch.empty(resident, sum(column.shape[1] for column in columns))
        count, share = torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.float64)
        self._slot = torch.zeros((), dtype=torch.int64)
        self.window = RowWindow(*count.unbind(), *share.unbind())
        self._low = self._high = 0
        self.move_to(0)

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a sampler with resident= can be neither pickled nor deeply copied, as its rows are in a file of this "
            "process. Make it anew in the other one, or leave out resident=."
        )

    def slots(self, row: Tensor) -> Tensor:
        """Where rows of the file that lie in the window stand in ``table``, int64, of the shape of ``row``."""
        return (self._slot + (row - self.window.low) % self.num_rows) % self._resident

    def move_to(self, drawn: int) -> None:
        """Moves the window to where it stands after so many batches; what it held before and holds again stays.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if no row of the window can be an anchor.
        """
        high = self._end(self._first + drawn // self._batches * self._step - 1)
        if high == self._high:
            return
        # rows count on from lap to lap: row and slot are remainders of one number
        low = 0 if high <= self._resident else self._end(high - self._resident - 1)
        self._load(self._high if low <= self._high < high else low, high)
        self._low, self._high = low, high
        window = self.window
        window.low.fill_(low % self.num_rows)
        window.size.fill_(high - low)
        self._slot.fill_(low % self._resident)
        first, last = self._reached_before(low), self._reached_before(high)
        window.reached_low.fill_(first % max(self._reached.shape[0], 1))
        window.reached_size.fill_(last - first)
        if self._anchors is not None:
            before = self._weight_before(low)
            weight = self._weight_before(high) - before
            if not weight > 0.0:
                raise ValueError(
                    f"no row among the {high - low} in memory has a positive anchor weight: resident= must be larger "
                    "than the longest stretch without one."
                )
            window.weight_low.fill_(before % 1.0)
            window.weight.fill_(weight)

    def _end(self, row: int) -> int:
        """End of the trajectory of a row."""
        lap, place = divmod(row, self.num_rows)
        return lap * self.num_rows + int(self._stop[place])

    def _reached_before(self, row: int) -> int:
        lap, place = divmod(row, self.num_rows)
        return lap * self._reached.shape[0] + int(torch.searchsorted(self._reached, place))

    def _weight_before(self, row: int) -> float:
        lap, place = divmod(row, self.num_rows)
        assert self._anchors is not None
        return lap + (float(self._anchors[place - 1]) if place else 0.0)

    def _load(self, start: int, stop: int) -> None:
        """Reads rows into their slots, in pieces that end with the file or with the table."""
        width = self.table.shape[1] * self.table.itemsize
        bytes_of_table = self.table.numpy().reshape(-1).view("uint8")
        while start < stop:
            row, slot = start % self.num_rows, start % self._resident
            count = min(stop - start, self.num_rows - row, self._resident - slot)
            self._file.seek(row * width)
            found = self._file.readinto(bytes_of_table[slot * width : (slot + count) * width].data)
            if found != count * width:
                raise OSError(f"the file of the table ended early: expected {count * width} bytes, got {found}.")
            start += count


def shuffled_trajectories(stop: Tensor) -> tuple[Tensor, Tensor]:
    """An order of the rows, trajectory by trajectory, that is the same in every call.

    Args:
        stop: end of the trajectory of every row, int64, ``[N]``.

    Returns:
        Rows, and the ends of their trajectories in the new order, int64, ``[N]``.
    """
    ends = stop.unique()
    lengths = ends.diff(prepend=ends.new_zeros(1))
    chosen = torch.randperm(ends.shape[0], generator=torch.Generator().manual_seed(_SEED))
    lengths = lengths[chosen]
    new_ends = lengths.cumsum(0)
    # a row lies as far behind the start of its trajectory as before
    moved = (ends[chosen] - new_ends).repeat_interleave(lengths)
    return moved + torch.arange(stop.shape[0]), new_ends.repeat_interleave(lengths)
