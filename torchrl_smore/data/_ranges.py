"""Which rows of a dataset lie outside of what a task's spaces allow."""

from __future__ import annotations

import torch
from torch import Tensor

#: Smallest and largest value: one for all columns, or one for each.
Range = tuple[float | tuple[float, ...], float | tuple[float, ...]]
_ROUNDING = 1e-5  # of the extent of a range, or of a bound


def described_outside(values: Tensor, allowed: Range, slack: float = 0.0) -> str | None:
    """Says how many rows lie outside of a range and which is the first, or ``None`` where all lie inside.

    Args:
        values: shape ``[N, d]``, finite.
        allowed: smallest and largest value.
        slack: distance beyond the range that does not count, not negative.

    Raises:
        ValueError: if the range does not fit the columns.
    """
    low, high = (torch.as_tensor(bound, dtype=torch.float64, device=values.device) for bound in allowed)
    if any(bound.shape not in ((), values.shape[1:]) for bound in (low, high)):
        raise ValueError(f"expected a range of {values.shape[1]} columns, got {allowed}.")
    # of its own size at most, lest a bound that is infinite excuse everything beyond the other one
    low_slack, high_slack = (
        slack + _ROUNDING * torch.minimum(high - low, bound.abs().clamp(min=1.0)) for bound in (low, high)
    )
    wrong = ((values < low - low_slack) | (values > high + high_slack)).any(-1)
    count = int(wrong.sum())
    if not count:
        return None
    row = int(wrong.int().argmax())
    share, found = count / len(values), ", ".join(f"{value:.4g}" for value in values[row].tolist())
    return (
        f"{count:,} of {len(values):,} rows ({share:.2%}), the first is row {row} with [{found}]; all lie in "
        f"[{values.min():.4g}, {values.max():.4g}]"
    )
