"""Scripted expert for the tabletop tasks: what is not where it should be, one thing after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchrl_smore.envs.experts._base import Array, length, within_unit_box
from torchrl_smore.envs.tabletop import (
    CAN,
    CUBE,
    CUBE_HALF,
    DRAWER,
    FINGER_STEP,
    FINGERS,
    GRIPPER,
    HANDLE,
    HOME,
    INSIDE,
    LIP,
    OPEN_FINGERS,
    STEP,
    cube_of_goal,
)


@dataclass(frozen=True)
class TabletopExpert:
    """Pushes the can, then carries the cube, then moves the drawer, each if it is away from its goal; then goes home.

    Everything is read off the state; a cube that it does not have to carry is let go of before the can is pushed.
    Lengths in metres.

    Attributes:
        hover: height of the gripper on its way, above everything, and with the cube in hand.
        above: horizontal distance from a place below under which the gripper is lowered.
        near: distance from its goal under which a thing is left alone (threshold 0.05).
        held: distance of each finger from the middle, under which they are closed on the cube.
        cradle: distance of each finger from the middle while the can is pushed: it rests against both.
        pull: largest displacement of the drawer in a step.
        behind: distance of the gripper from the can's centre, where it is lowered for a push.
    """

    hover: float = 0.20
    above: float = 0.012
    near: float = 0.03
    held: float = 0.0225
    cradle: float = 0.016
    pull: float = 0.025
    behind: float = 0.075

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 4]``."""
        state = observation["observation"].astype(np.float64)
        goal = observation["desired_goal"].astype(np.float64)
        return np.stack([self._act(*row) for row in zip(state, goal)]).astype(np.float32)

    def _act(self, state: Array, goal: Array) -> Array:
        can, cube, drawer = goal[1:3], cube_of_goal(goal, state[DRAWER]), goal[0]
        if length(state[CAN] - can) > self.near:
            return self._push(state, can)
        away = length(state[CUBE] - cube) > self.near and not self._shut_in(state)
        if away or self._holds(state):
            return self._carry(state, cube)
        if abs(state[DRAWER] - drawer) > 0.01:
            return self._slide(state, drawer)
        return self._go_home(state)

    def _shut_in(self, state: Array) -> bool:
        """Whether the cube is under the top of the cabinet, where the gripper does not get."""
        x, y, z = state[CUBE]
        return bool(INSIDE[0][0] < x < INSIDE[1][0] and y > INSIDE[0][1] and z < LIP)

    def _holds(self, state: Array) -> bool:
        offset = np.abs(state[CUBE] - state[GRIPPER])
        return bool(state[FINGERS] < self.held and offset.max() < 0.8 * CUBE_HALF)

    def _push(self, state: Array, goal: Array) -> Array:
        if np.abs(state[CUBE] - state[GRIPPER]).max() < 2.0 * CUBE_HALF:
            # what is between the fingers stays where it is
            let_go = state[FINGERS] > 0.9 * OPEN_FINGERS
            return self._command(np.array((0.0, 0.0, STEP if let_go else 0.0)), 1.0)
        side = np.sign(goal[0] - state[CAN][0])
        gap, aside, height = side * (state[CAN][0] - state[0]), abs(state[CAN][1] - state[1]), state[2]
        fingers = (self.cradle - state[FINGERS]) / FINGER_STEP
        if 0.02 < gap < self.behind + 0.03 and aside < 0.02 and height < 0.06:
            # slower towards the end, so that the can does not slide on
            ahead = np.clip(0.7 * (goal[0] - state[CAN][0]) + side * max(gap - 0.036, 0.0), -STEP, STEP)
            return self._command(np.array((ahead, state[CAN][1] - state[1], 0.03 - height)), fingers)
        place = np.array((state[CAN][0] - side * self.behind, state[CAN][1], 0.03))
        return self._command(self._way(state, place), fingers)

    def _carry(self, state: Array, goal: Array) -> Array:
        if self._holds(state):
            way = self._way(state, goal + np.array((0.0, 0.0, 0.002)))
            placed = length(state[GRIPPER] - goal) < 0.012
            return self._command(way, 1.0 if placed else -1.0)
        way = self._way(state, state[CUBE])
        beside, level = length(way[:2]), abs(way[2])
        if beside < self.above and level < 0.008:
            return self._command(way, -1.0)
        return self._command(way, 1.0)

    def _slide(self, state: Array, goal: float) -> Array:
        handle = np.array(HANDLE) - (0.0, state[DRAWER], 0.0)
        offset = handle - state[GRIPPER]
        if abs(offset[0]) < 0.04 and abs(offset[1]) < 0.02 and abs(offset[2]) < 0.02:
            gripped = state[FINGERS] < 0.012
            # not at full speed, at which what lies in the drawer would slide
            along = np.clip(state[DRAWER] - goal, -self.pull, self.pull) if gripped else offset[1]
            return self._command(np.array((offset[0], along, offset[2])), -1.0)
        return self._command(self._way(state, handle), 1.0)

    def _go_home(self, state: Array) -> Array:
        return self._command(self._way(state, np.array(HOME)), 1.0)

    def _way(self, state: Array, place: Array) -> Array:
        """Displacement towards ``place`` ``[3]``: up, across at the height of :attr:`hover`, and down."""
        way = place - state[GRIPPER]
        low = state[2] < place[2] + 0.05
        if length(way[:2]) < (2.0 if low else 1.0) * self.above:
            return way
        up = self.hover - state[2]
        return np.array((0.0, 0.0, up)) if up > 0.02 else np.array((*way[:2], up))

    def _command(self, way: Array, fingers: float) -> Array:
        return np.array((*within_unit_box(way / STEP), np.clip(fingers, -1.0, 1.0)))
