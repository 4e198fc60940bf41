"""Scripted expert for FetchPickAndPlace: approach, grip, carry, never let go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchrl_smore.envs.experts._base import Array, length, within_unit_box


@dataclass(frozen=True)
class FetchPickExpert:
    """Grips the block from above and carries it to the goal; lengths in metres.

    The fingers start closed, so the gripper waits above the block until they are wider than the block. It closes
    while still descending, and a block counts as held once it lies between fingers that no longer span their full
    width. A block that already lies at a goal on the table is left alone.

    Attributes:
        gain: action per metre of error, 1/m.
        hover: height over the block's centre while not yet above it.
        wait: height over the block's centre while the fingers are still too narrow.
        width: opening below which the fingers cannot pass the block, or hold it.
        above: horizontal error under which the gripper may descend and close.
        level: vertical error under which the fingers reach the block.
        radius: the goal's radius, with a margin.
    """

    gain: float = 30.0
    hover: float = 0.055
    wait: float = 0.05
    width: float = 0.052
    above: float = 0.02
    level: float = 0.03
    radius: float = 0.045

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 4]``."""
        state, goal = observation["observation"], observation["desired_goal"]
        block, offset = state[:, 3:6], state[:, 6:9].copy()
        fingers = state[:, 9] + state[:, 10]
        beside, level = length(offset[:, :2]), np.abs(offset[:, 2]) < self.level

        lift = np.where(beside > self.above, self.hover, 0.0)
        offset[:, 2] += np.where(fingers < self.width, np.maximum(lift, self.wait), lift)
        held = level & (beside < self.above + 0.005) & (fingers < self.width)
        closing = level & (beside < self.above)

        action = np.ones((len(state), 4), dtype=np.float32)
        action[:, :3] = within_unit_box(self.gain * np.where(held[:, None], goal - block, offset))
        action[held | closing, 3] = -1.0
        placed = ~held & (length(goal - block) < self.radius) & ~level
        action[placed] = (0.0, 0.0, 0.0, 1.0)
        return action
