"""When a robot has fallen: read by environments, which know no torch, and by readers of their data."""

from __future__ import annotations

from typing import Any

_HEALTHY_HEIGHT = (0.2, 1.0)  # of the Ant's torso, m: the default of gymnasium's Ant, and D4RL's


def ant_has_fallen(observation: Any) -> Any:
    """Whether the Ant's episode is over: its torso is lower than 0.2 m or higher than 1 m, or no number.

    Args:
        observation: shape ``[*, 27]``, a numpy array or a torch tensor; column 0 is the height.

    Returns:
        Booleans of shape ``[*]``, of the same kind.
    """
    height = observation[..., 0]
    low, high = _HEALTHY_HEIGHT
    return ~((height >= low) & (height <= high))
