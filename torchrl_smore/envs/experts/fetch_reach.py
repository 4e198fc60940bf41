"""Scripted expert for FetchReach: a proportional controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchrl_smore.envs.experts._base import Array, within_unit_box


@dataclass(frozen=True)
class FetchReachExpert:
    """Moves the gripper straight to the goal.

    An action component of 1 moves the gripper 0.033 m a step, so the gain ``1 / 0.033`` arrives in one step from
    nearby; further away the command is scaled by its largest component, which keeps the line straight and makes
    diagonals faster.

    Attributes:
        gain: action per metre of error, 1/m.
    """

    gain: float = 30.0

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 4]``; the gripper, blocked in this task, gets 0."""
        error = observation["desired_goal"] - observation["achieved_goal"]
        action = np.zeros((len(error), 4), dtype=np.float32)
        action[:, :3] = within_unit_box(self.gain * error)
        return action
