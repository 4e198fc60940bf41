"""What every scripted expert is, and the arithmetic they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Expert = Callable[[Mapping[str, Array]], Array]
"""A memoryless controller.

Takes a mapping with ``observation`` ``[n, ds]``, ``achieved_goal`` ``[n, dg]`` and ``desired_goal`` ``[n, dg]`` and
returns actions ``[n, da]``, float32 in ``[-1, 1]``. Row ``i`` of the result depends on row ``i`` alone.
"""


def within_unit_box(command: Array) -> Array:
    """Shrinks each row ``[n, d]`` to a largest component of at most 1 and keeps its direction."""
    shrunk: Array = command / np.maximum(np.abs(command).max(axis=-1, keepdims=True), 1.0)
    return shrunk


def length(vector: Array) -> Array:
    """Euclidean norm over the last axis, shape ``[n]`` from ``[n, d]``."""
    norm: Array = np.sqrt(np.square(vector).sum(axis=-1))
    return norm


def direction(vector: Array) -> Array:
    """Unit vectors along the rows of ``[n, d]``; a zero row stays zero."""
    return vector / np.maximum(length(vector), 1e-12)[..., None]
