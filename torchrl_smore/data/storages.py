"""Storages of TorchRL that give batches of rows faster."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from tensordict import MemoryMappedTensor, TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorStorage


class RowStorage(TensorStorage):
    """A :class:`~torchrl.data.TensorStorage` that gives batches of rows faster, with the same content.

    On a CPU, whole rows are copied by :func:`torch.index_select`, which takes a third of the time of an index in
    brackets. Everything else, among it rows counted from the end, is left to TorchRL.
    """

    def get(self, index: Any) -> Any:
        """See :class:`~torchrl.data.TensorStorage`; ``index`` of int64 rows may have any shape ``[*B]``."""
        wanted = isinstance(index, Tensor) and index.dtype == torch.int64 and index.numel() > 0 and index.ndim > 0
        if wanted and self.initialized and self.ndim == 1 and _is_tensor(index):
            low, high = map(int, index.aminmax())
            found = self._gather(index.reshape(-1), index.shape) if low >= 0 and high < len(self) else None
            if found is not None:
                return found
        return super().get(index)

    def _gather(self, rows: Tensor, size: torch.Size) -> TensorDict | None:
        """Copies of rows, int64 ``[n]``, in the batch size ``[*B]``; ``None`` where no plain tensors are held."""
        if not _holds_tensors(self._storage):
            return None
        return _mapped(self._storage, lambda column: column.index_select(0, rows).view(size + column.shape[1:]), size)


class GrowingRowStorage(RowStorage, LazyTensorStorage):
    """A :class:`~torchrl.data.LazyTensorStorage` that gives batches of rows faster; see :class:`RowStorage`.

    Where all that is stored are tensors on a CPU, the columns of one type of number are views of one table, in which a
    row is one piece of memory, and those of a batch are views of the rows that were copied from it.
    """

    _storage: Any
    _tables: _Tables | None = None

    def _init_standard(self, data: Any) -> None:
        super()._init_standard(data)
        if self.ndim == 1 and not self.consolidated and _holds_tensors(self._storage):
            self._tables = _Tables(self._storage)
            self._storage = self._tables.columns

    def _gather(self, rows: Tensor, size: torch.Size) -> TensorDict | None:
        # TorchRL may have put other columns in their place, or more of them beside
        if self._tables is not None and self._tables.are_whole(self._storage):
            return self._tables.gather(rows, size)
        return super()._gather(rows, size)

    def __getstate__(self) -> dict[str, Any]:
        # what is read back, or lies in memory that two processes share, is gathered column by column
        state = {**super().__getstate__(), "_tables": None}
        if self._tables is not None and get_spawning_popen() is None:
            # each view would carry its whole table
            state["_storage"] = self._storage.clone()
        return state


class _Tables:
    """Columns that are views of tables, ``[N, width]``, one for each type of number.

    Args:
        like: plain tensors, ``[N, *]``; what they hold is not taken over.
    """

    def __init__(self, like: TensorDict) -> None:
        self._widths: dict[torch.dtype, list[int]] = {}
        # of each column its type's table and which part of it
        places: list[tuple[torch.dtype, int]] = []
        for leaf in like.values(True, True):
            widths = self._widths.setdefault(leaf.dtype, [])
            places.append((leaf.dtype, len(widths)))
            widths.append(leaf.shape[1:].numel())
        self._place = dict(zip(like.values(True, True), places))
        self._tables = {dtype: torch.empty(len(like), sum(w), dtype=dtype) for dtype, w in self._widths.items()}
        self.columns = self._split(self._tables, like, like.batch_size)
        self._place = dict(zip(self.columns.values(True, True), places))

    def are_whole(self, held: Any) -> bool:
        """Whether what is held are these columns and none but them."""
        return held is self.columns and all(leaf in self._place for leaf in held.values(True, True))

    def gather(self, rows: Tensor, size: torch.Size) -> TensorDict:
        """Copies of rows, int64 ``[n]``, in the batch size ``[*B]``."""
        tables = {dtype: table.index_select(0, rows).view(*size, -1) for dtype, table in self._tables.items()}
        return self._split(tables, self.columns, size)

    def _split(self, tables: dict[torch.dtype, Tensor], like: TensorDict, size: torch.Size) -> TensorDict:
        """The columns of tables ``[*B, width]``, in the order of ``like``."""
        parts = {dtype: table.split(self._widths[dtype], -1) for dtype, table in tables.items()}

        def column(of: Tensor) -> Tensor:
            dtype, place = self._place[of]
            return parts[dtype][place].view(size + of.shape[1:])

        return _mapped(like, column, size)


def _mapped(held: TensorDict, change: Callable[[Tensor], Tensor], size: torch.Size) -> TensorDict:
    """A TensorDict of the batch size ``[*B]`` that holds what ``change`` makes of each tensor."""
    columns = {
        key: _mapped(value, change, size) if type(value) is TensorDict else change(value) for key, value in held.items()
    }
    return TensorDict(columns, size, device=held.device)


def _holds_tensors(held: Any) -> bool:
    """Whether this is a TensorDict of plain tensors of a CPU and of such TensorDicts."""
    return type(held) is TensorDict and all(_is_tensor(each) or _holds_tensors(each) for each in held.values())


def _is_tensor(value: Any) -> bool:
    return type(value) in (Tensor, MemoryMappedTensor) and value.device.type == "cpu"
