"""Entries that a batch has only if its sampler was asked for them."""

from __future__ import annotations

from tensordict import NestedKey, TensorDictBase
from torch import Tensor


def asked_entry(rows: TensorDictBase, key: NestedKey, reader: object, advice: str) -> Tensor:
    """An entry of a batch.

    Args:
        rows: the batch.
        key: of the entry.
        reader: the loss that reads it.
        advice: who writes it, and when.

    Raises:
        KeyError: if it is not there; says who reads it and gives the advice.
    """
    entry = rows.get(key, None)
    if entry is None:
        raise KeyError(f"{type(reader).__name__} reads {key!r}, which the batch does not have: {advice}")
    return entry
