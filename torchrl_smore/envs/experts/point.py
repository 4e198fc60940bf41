"""Scripted experts for the point tasks: straight ahead, or the shortest way round the walls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from torchrl_smore.envs.experts._base import Array, length, within_unit_box
from torchrl_smore.envs.point import HALF_WIDTH, PointWorld

_TOUCH = 1e-6  # a position at a wall's face may round into the wall in float32


@dataclass(frozen=True)
class PointExpert:
    """Follows the shortest path to the goal.

    The path is made of straight pieces between corners of walls (a visibility graph, built once); every step heads
    for the next corner, or for the goal itself once nothing is in between.

    Attributes:
        world: the walls.
        margin: distance kept from corners. A step moves along x before y, so that a diagonal step past a corner needs
            some room.
    """

    world: PointWorld
    margin: float = 0.05
    _corners: Array = field(init=False, repr=False, compare=False)
    _between: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        corners = _corners(self.world, self.margin)
        object.__setattr__(self, "_corners", corners)
        object.__setattr__(self, "_between", _shortest(corners, self.world))

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 2]``."""
        here = observation["achieved_goal"].astype(np.float64)
        goal = observation["desired_goal"].astype(np.float64)
        target = goal.copy()
        hidden = ~_sees(here, goal, self.world)
        if hidden.any():
            target[hidden] = self._next_corner(here[hidden], goal[hidden])
        return within_unit_box(target - here).astype(np.float32)

    def _next_corner(self, here: Array, goal: Array) -> Array:
        to_first = _distances(here, self._corners, self.world)
        from_last = _distances(goal, self._corners, self.world)
        whole = (to_first[:, :, None] + self._between + from_last[:, None, :]).min(axis=-1)
        corner: Array = self._corners[whole.argmin(axis=-1)]
        return corner


def _corners(world: PointWorld, margin: float) -> Array:
    """Corners of all walls, moved outwards by ``margin``, that lie in the box and in no wall; ``[k, 2]``."""
    grown = [(w[0] - margin, w[1] + margin, w[2] - margin, w[3] + margin) for w in world.walls]
    corners: Array = np.array([(x, y) for x0, x1, y0, y1 in grown for x in (x0, x1) for y in (y0, y1)]).reshape(-1, 2)
    corners = corners[(np.abs(corners) < HALF_WIDTH).all(-1) & ~world.blocked(corners)]
    return corners


def _shortest(corners: Array, world: PointWorld) -> Array:
    """All-pairs path lengths between corners (Floyd-Warshall), ``[k, k]``."""
    path = _distances(corners, corners, world)
    for middle in range(len(corners)):
        path = np.minimum(path, path[:, middle, None] + path[None, middle, :])
    return path


def _distances(start: Array, stop: Array, world: PointWorld) -> Array:
    """Straight distances ``[n, k]``; infinite where a wall is in between."""
    first = np.broadcast_to(start[:, None], (len(start), len(stop), 2))
    last = np.broadcast_to(stop[None], first.shape)
    return np.where(_sees(first, last, world), length(last - first), np.inf)


def _sees(start: Array, stop: Array, world: PointWorld) -> Array:
    """Whether the segments between ``[*, 2]`` and ``[*, 2]`` enter no wall, shape ``[*]`` (slab method)."""
    way = stop - start
    # a huge slope instead of a division by zero for a segment parallel to an axis
    inverse = 1.0 / np.where(np.abs(way) < 1e-12, 1e-12, way)
    free = np.ones(way.shape[:-1], dtype=bool)
    for wall in world.walls:
        low, high = np.array(wall[0::2]) + _TOUCH, np.array(wall[1::2]) - _TOUCH
        near, far = (low - start) * inverse, (high - start) * inverse
        enter = np.minimum(near, far).max(axis=-1)
        leave = np.maximum(near, far).min(axis=-1)
        free &= ~(np.maximum(enter, 0.0) < np.minimum(leave, 1.0))
    return free
