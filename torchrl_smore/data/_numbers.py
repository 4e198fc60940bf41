"""Numbers of other types than the float32 that a store holds."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np

_logger = logging.getLogger("torchrl_smore")
#: float32 holds every whole number up to here.
EXACT: Final = 1 << 24


def is_rounded(array: np.ndarray) -> bool:
    """Whether whole numbers ``[*]`` are so large that float32 does not hold each of them."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize < 4 or not array.size:
        return False
    return max(int(array.max()), -int(array.min())) > EXACT


def say_rounded(label: Any) -> None:
    """Warns that whole numbers of an array are rounded."""
    _logger.warning("%s: whole numbers beyond 2**24 are rounded, as columns are float32", label)
