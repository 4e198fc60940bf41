"""Pairing the rows of a batch with one another."""

from __future__ import annotations

import torch
from torch import Tensor


def successor(keep: Tensor) -> Tensor:
    """Index of the next kept row of each kept row, in a cycle.

    The rows of a batch are independent draws, so the next one is a random other one. A batch with dropped rows pairs as
    the batch without them would: static shapes, no host synchronisation. A dropped row is paired with any.

    Args:
        keep: which rows count, bool, shape ``[N]``.

    Returns:
        Row numbers, int64, shape ``[N]``.
    """
    order = torch.argsort((~keep).to(torch.int64), stable=True)  # kept rows first, in their order
    rank = (keep.to(torch.int64).cumsum(0) - 1).clamp_min(0)
    following = (rank + 1) % keep.sum().clamp_min(1)
    return order.gather(0, following)
