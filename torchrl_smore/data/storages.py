"""Storages of TorchRL that give batches of rows faster."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import MemoryMappedTensor, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorStorage


class RowStorage(TensorStorage):
    """A :class:`~torchrl.data.TensorStorage` that gives batches of rows faster, with the same content.

    On a CPU, whole rows are copied by :func:`torch.index_select`, which takes a third of the time of an index in
    brackets. Everything else, among it rows counted from the end, is left to TorchRL.
    """

    def get(self, index: Any) -> Any:
        """See :class:`~torchrl.data.TensorStorage`; ``index`` of int64 rows may have any shape ``[*B]``."""
        held = self._storage
        wanted = isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim > 0 and self.ndim == 1
        if wanted and self.initialized and type(held) is TensorDict and _is_plain(held, index):
            flat = index.reshape(-1)
            held = held if self._is_full else held[: len(self)]
            return held.apply(lambda x: x.index_select(0, flat).unflatten(0, index.shape), batch_size=index.shape)
        return super().get(index)


class GrowingRowStorage(RowStorage, LazyTensorStorage):
    """A :class:`~torchrl.data.LazyTensorStorage` that gives batches of rows faster; see :class:`RowStorage`."""


def _is_plain(held: TensorDictBase, index: Tensor) -> bool:
    """Whether all that is held are tensors of a CPU, as is the index, which has no negative number."""
    return _is_tensor(index) and _holds_tensors(held) and not bool((index < 0).any())


def _holds_tensors(held: TensorDictBase) -> bool:
    return all(_holds_tensors(each) if type(each) is TensorDict else _is_tensor(each) for each in held.values())


def _is_tensor(value: Any) -> bool:
    return type(value) in (Tensor, MemoryMappedTensor) and value.device.type == "cpu"
