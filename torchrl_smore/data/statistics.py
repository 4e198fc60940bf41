"""Statistics of a dataset to standardise network inputs with."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor


def standardization(data: TensorDictBase, floor: float = 0.01) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of observations and goals over all rows.

    Goals are measured on achieved goals after the step, because hindsight goals are drawn from them. The floor is that
    of the official code (``dataset_utils.py``): a column that hardly moves is not blown up.

    Args:
        data: TED layout, batch size ``[N]``.
        floor: smallest standard deviation, positive, in the unit of the column.

    Raises:
        ValueError: if ``floor`` is not positive.

    Returns:
        ``{"observation": (mean [O], std [O]), "desired_goal": (mean [G], std [G])}``, float32.
    """
    if not floor > 0.0:
        raise ValueError(f"floor must be positive, got {floor}.")
    columns = {"observation": data.get("observation"), "desired_goal": data.get(("next", "achieved_goal"))}
    return {
        key: (values.double().mean(0).float(), values.double().std(0, correction=0).clamp_min(floor).float())
        for key, values in columns.items()
    }
