"""Statistics of a dataset to standardise network inputs with."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_smore.data._schema import check_is_tensordict

#: Rows that are looked at together.
_ROWS = 2**16


def standardization(data: TensorDictBase, floor: float = 0.01) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of observations and goals over all rows.

    Goals are measured on achieved goals after the step, because hindsight goals are drawn from them. The floor is that
    of the official code (``dataset_utils.py``): a column that hardly moves is not blown up.

    Args:
        data: TED layout, batch size ``[N]``.
        floor: smallest standard deviation, positive, in the unit of the column.

    Raises:
        ValueError: if ``floor`` is not positive, or a number is not finite.
        KeyError: if the data lack a column; names it.
        TypeError: if they are no TensorDict.

    Returns:
        ``{"observation": (mean [O], std [O]), "desired_goal": (mean [G], std [G])}``, float32.
    """
    if not floor > 0.0:
        raise ValueError(f"floor must be positive, got {floor}.")
    check_is_tensordict(data)
    sources: dict[str, NestedKey] = {"observation": "observation", "desired_goal": ("next", "achieved_goal")}
    columns = {key: data.get(source, None) for key, source in sources.items()}
    for key, values in columns.items():
        if values is None:
            raise KeyError(f"standardization reads {sources[key]!r}, which the data do not have.")
        if not torch.stack(torch.aminmax(values)).isfinite().all():
            raise ValueError(f"standardization expects finite numbers, {sources[key]!r} has others.")
    moments = {key: _moments(values) for key, values in columns.items()}
    return {key: (mean.float(), std.clamp_min(floor).float()) for key, (mean, std) in moments.items()}


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, float64; in blocks, as a mapped dataset may not fit in memory."""
    mean = torch.stack([block.double().sum(0) for block in torch.split(values, _ROWS)]).sum(0) / len(values)
    squares = [(block.double() - mean).square().sum(0) for block in torch.split(values, _ROWS)]
    return mean, (torch.stack(squares).sum(0) / len(values)).sqrt()
