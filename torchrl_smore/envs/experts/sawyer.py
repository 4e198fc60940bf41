"""Scripted experts for the Sawyer tasks: straight to the point, and by the handle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchrl_smore.envs.experts._base import Array, length, within_unit_box
from torchrl_smore.envs.sawyer import DOOR, HANDLE_OFFSET, HANDLE_TOP, HINGE, HOOK_OFFSET, STEP, handle_point


@dataclass(frozen=True)
class SawyerReachExpert:
    """Moves every coordinate of the hand by what it lacks, 2 cm at most."""

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 3]``."""
        error = observation["desired_goal"] - observation["achieved_goal"]
        return np.clip(error / STEP, -1.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class SawyerDoorExpert:
    """Slides the hook to where the slot will be at the goal angle; if the hook is out of the slot, puts it back first.

    In the slot, the door's angle follows from the hook's place, so a straight line to any point of the slot at the goal
    angle will do; it takes the one that is the fewest steps away. Out of the slot it rises clear of the handle, moves
    above the slot, and lowers itself. A door at its goal is then left alone. All of this is read off hand position and
    angle, nothing is remembered. Lengths in metres.

    Attributes:
        radii: places along the slot, as distances from the hinge: least, largest and number.
        in_slot: distance from the centre line under which the hook is between the bars, if it is low enough.
        above_slot: distance from a place in the slot under which the hook may be lowered.
        near: angle to the goal, in radians, under which a door without the hook is left alone (threshold 0.06).
    """

    radii: tuple[float, float, int] = (0.075, 0.275, 41)
    in_slot: float = 0.012
    above_slot: float = 0.006
    near: float = 0.05

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 3]``."""
        state = observation["observation"].astype(np.float64)
        angle, goal = state[:, 3], observation["desired_goal"][:, 0].astype(np.float64)
        hook = state[:, :2] + (0.0, HOOK_OFFSET)
        high = state[:, 2] > HANDLE_TOP
        held = ~high & self._between_bars(hook, angle)

        way = self._nearest_in_slot(hook, np.where(held, goal, angle)) - hook
        aligned = length(way) < self.above_slot
        clear = state[:, 2] > DOOR.high[2] - 0.002
        action = np.zeros((len(state), 3))
        action[:, :2] = np.where((held | aligned | clear)[:, None], within_unit_box(way / STEP), 0.0)
        action[:, 2] = np.where(held, 0.0, np.where(aligned, -1.0, 1.0))
        action[~held & (np.abs(angle - goal) < self.near)] = 0.0
        return action.astype(np.float32)

    def _between_bars(self, hook: Array, angle: Array) -> Array:
        cosine, sine = np.cos(angle), np.sin(angle)
        x, y = hook[:, 0] - HINGE[0], hook[:, 1] - HINGE[1]
        along, across = -cosine * x - sine * y, cosine * y - sine * x + HANDLE_OFFSET
        least, largest, _ = self.radii
        inside = (along > least - 0.02) & (along < largest + 0.02)
        return inside & (np.abs(across) < self.in_slot)

    def _nearest_in_slot(self, hook: Array, angle: Array) -> Array:
        """Of the slot at ``angle``, the place ``[n, 2]`` that is the fewest steps away."""
        places = handle_point(angle[:, None], np.linspace(*self.radii))
        # beyond the edge of the hand's box the hand slides along the edge, and the place with it
        best: Array = places[np.arange(len(places)), np.abs(places - hook[:, None]).max(-1).argmin(-1)]
        return best
