"""Scripted expert for FetchPush: drive round the block, push it, brake in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchrl_smore.envs.experts._around import drive_round
from torchrl_smore.envs.experts._base import Array, direction, length, within_unit_box

_STEP_SECONDS = 0.04  # the observed velocities are displacements over one step of this length
_GRAVITY_FRICTION = 9.81 * 0.92  # deceleration of the sliding block, m/s^2


@dataclass(frozen=True)
class FetchPushExpert:
    """Pushes the block from behind with a speed that lets it slide the last centimetres.

    With ``u`` the unit vector from block to goal, the gripper drives to a spot behind the block, round it if the
    straight way would touch it, then pushes along ``u`` with the speed whose travel plus slide covers the rest, and
    stands still once the block is going to stop in the goal. All lengths in metres, in the plane of the table.

    Attributes:
        behind: distance of the waiting spot behind the block's centre.
        clearance: a straight way must stay this far from the block's centre.
        detour: radius of the circle driven round the block.
        gain: action per metre of error, 1/m.
        height: height the gripper keeps, where its closed fingers meet the block.
        stop: stand still once the block will come to rest this close to the goal.
        edge: stand still, too, while the block and its resting place are both this close (the goal's radius is 0.05).
    """

    behind: float = 0.052
    clearance: float = 0.05
    detour: float = 0.058
    gain: float = 29.0
    height: float = 0.42
    stop: float = 0.034
    edge: float = 0.049

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 4]``; the gripper stays closed."""
        state = observation["observation"].astype(np.float64)
        goal = observation["desired_goal"][:, :2].astype(np.float64)
        gripper, block = state[:, :2], state[:, 3:5]
        # columns 14:16 are relative to the gripper's own velocity, columns 20:22
        velocity = (state[:, 14:16] + state[:, 20:22]) / _STEP_SECONDS

        plane = np.zeros_like(gripper)
        # most steps of an episode come after the block has arrived, and cost next to nothing
        moving = ~self._will_stop_in_goal(block, goal, velocity)
        if moving.any():
            plane[moving] = self._drive(gripper[moving], block[moving], goal[moving])

        action = np.empty((len(state), 4), dtype=np.float32)
        action[:, :2] = within_unit_box(plane)
        action[:, 2] = np.clip(20.0 * (self.height - state[:, 2]), -1.0, 1.0)
        action[:, 3] = -1.0
        return action

    def _drive(self, gripper: Array, block: Array, goal: Array) -> Array:
        along_goal = direction(goal - block)
        from_block = gripper - block
        along = (from_block * along_goal).sum(-1)
        across = from_block - along[:, None] * along_goal
        pushing = (along < -0.02) & (length(across) < 0.02 + 0.35 * np.maximum(0.0, -along - 0.05))
        push = self._push(length(goal - block), along, along_goal, across)
        return np.where(pushing[:, None], push, self._reposition(gripper, block, along_goal))

    def _push(self, distance: Array, along: Array, along_goal: Array, across: Array) -> Array:
        # 0.033 f of travel in the step plus a slide of 0.05 f^2 covers what remains: solve for the speed f
        remaining = np.maximum(distance - 0.011, 0.0) + np.maximum(0.0, -along - 0.034)
        speed = np.minimum((np.sqrt(0.033**2 + 0.2 * remaining) - 0.033) / 0.1, 1.5)
        return along_goal * speed[:, None] - self.gain * across

    def _reposition(self, gripper: Array, block: Array, along_goal: Array) -> Array:
        spot = block - self.behind * along_goal
        return drive_round(gripper, block, spot, clearance=self.clearance, detour=self.detour, gain=self.gain)

    def _will_stop_in_goal(self, block: Array, goal: Array, velocity: Array) -> Array:
        slide = velocity * (length(velocity) / (2.0 * _GRAVITY_FRICTION))[:, None]
        rest = length(block + slide - goal)
        return (rest < self.stop) | ((rest < self.edge) & (length(block - goal) < self.edge))
