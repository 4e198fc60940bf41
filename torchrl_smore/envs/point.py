"""PointReach and PointRooms: a point in the plane, in numpy, one at a time or many at once.

The geometry is that of WGCSL's ``Point2DLargeEnv-v1`` and ``Point2D-FourRoom-v1`` (multiworld): positions in a box of
half-width 5, displacements of at most 1 per axis and step, goal radius 1, start and goal uniform over the free space.

The published four rooms are a cross in the middle and four stubs at the middle of the outer walls, drawn for a ball
of radius 0.5. Walls here are those of the ball's *centre*: each published rectangle grown by wall thickness 0.3 and
ball radius 0.5. The doors between rooms are therefore 2.8 wide.

Where this differs from multiworld: a step moves along x first and then along y, and each part ends at the face of the
first wall in its way. Multiworld tests bounding boxes instead, which also stops moves that only pass near a corner,
and leaves a gap of 0.01 before the wall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_smore.envs._gym import Env, spaces
from torchrl_smore.envs.wrappers import disturb, noise_generator

HALF_WIDTH = 5.0
GOAL_RADIUS = 1.0

# x_min, x_max, y_min, y_max; the faces themselves are free
_ARM = (-1.65, 1.65, -0.8, 0.8)
_STUBS = ((-6.8, -4.45, -0.8, 0.8), (4.45, 6.8, -0.8, 0.8))
_ALONG_X = (_ARM, *_STUBS)
FOUR_ROOMS = (*_ALONG_X, *((y_min, y_max, x_min, x_max) for x_min, x_max, y_min, y_max in _ALONG_X))

Walls = tuple[tuple[float, float, float, float], ...]
Array = NDArray[Any]


@dataclass(frozen=True)
class PointWorld:
    """Start, goal and motion of points among walls.

    Attributes:
        walls: rectangles ``(x_min, x_max, y_min, y_max)`` that no point enters; their faces may be touched.
    """

    walls: Walls = ()

    def blocked(self, position: Array) -> Array:
        """Whether each position ``[*, 2]`` lies inside a wall, shape ``[*]``."""
        inside = np.zeros(position.shape[:-1], dtype=bool)
        for x_min, x_max, y_min, y_max in self.walls:
            x, y = position[..., 0], position[..., 1]
            inside |= (x > x_min) & (x < x_max) & (y > y_min) & (y < y_max)
        return inside

    def sample(self, generator: np.random.Generator) -> Array:
        """A position uniform over the free space, shape ``[2]``."""
        while True:
            position = generator.uniform(-HALF_WIDTH, HALF_WIDTH, size=2)
            if not self.blocked(position):
                return position

    def move(self, position: Array, action: Array) -> Array:
        """Positions after a step, shape ``[n, 2]``; walls stop x first, then y.

        Args:
            position: before it, shape ``[n, 2]``.
            action: displacements, shape ``[n, 2]``, clipped to ``[-1, 1]``.
        """
        moved = position.copy()
        displacement = np.clip(action, -1.0, 1.0)
        for axis in (0, 1):
            target = np.clip(moved[:, axis] + displacement[:, axis], -HALF_WIDTH, HALF_WIDTH)
            moved[:, axis] = self._stop_at_walls(moved, target, axis)
        return moved

    def _stop_at_walls(self, position: Array, target: Array, axis: int) -> Array:
        here, across = position[:, axis], position[:, 1 - axis]
        for wall in self.walls:
            low, high = wall[2 * axis], wall[2 * axis + 1]
            in_the_way = (across > wall[2 - 2 * axis]) & (across < wall[3 - 2 * axis])
            target = np.where(in_the_way & (here <= low), np.minimum(target, low), target)
            target = np.where(in_the_way & (here >= high), np.maximum(target, high), target)
        return target


class PointEnv(Env):
    """One point that has to come within 1 of a goal; observation and achieved goal are its position.

    Args:
        world: the walls.
    """

    metadata = {"render_modes": []}

    def __init__(self, world: PointWorld) -> None:
        self.world = world
        self.render_mode = None
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        plane = spaces.Box(-HALF_WIDTH, HALF_WIDTH, (2,), np.float32)
        self.observation_space = spaces.Dict({"observation": plane, "achieved_goal": plane, "desired_goal": plane})
        self._position = np.zeros((1, 2))
        self._goal = np.zeros((1, 2))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Draws goal and start by ``seed``; ``options`` is not used. See :meth:`gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self._goal, self._position = _goal_and_start(self.world, self.np_random)
        return self._observe(), {}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Moves by ``action``, shape ``[2]``."""
        self._position = self.world.move(self._position, np.asarray(action, dtype=np.float64)[None])
        observation = self._observe()
        reward = self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {})
        return observation, float(reward), False, False, {}

    def compute_reward(self, achieved_goal: Array, desired_goal: Array, info: Any) -> Array:
        """1.0 where ``achieved_goal`` is within a radius of ``desired_goal``, else 0.0; ``info`` is not used.

        Shapes: ``[*, 2]`` of the goals, ``[*]`` of the reward.
        """
        distance = np.sqrt(np.square(achieved_goal - desired_goal).sum(-1))
        return np.asarray(distance <= GOAL_RADIUS, dtype=np.float32)

    def _observe(self) -> dict[str, Array]:
        return {key: value[0] for key, value in _observe(self._position, self._goal).items()}


class PointBatch:
    """Many points stepped as one array; the same seeds give the same episodes as :class:`PointEnv`.

    Args:
        world: the walls.
        num_envs: number of points, at most.
        action_noise: standard deviation of the environment's action noise.
    """

    def __init__(self, world: PointWorld, num_envs: int, action_noise: float = 0.0) -> None:
        self.num_envs = num_envs
        self._world, self._sigma = world, action_noise
        self._noise: list[np.random.Generator] = []
        self._position = self._goal = np.zeros((num_envs, 2))

    def reset(self, seeds: Sequence[int]) -> dict[str, Array]:
        """Starts one episode per seed."""
        starts = [_goal_and_start(self._world, _generator(seed)) for seed in seeds]
        self._goal = np.concatenate([goal for goal, _ in starts])
        self._position = np.concatenate([position for _, position in starts])
        self._noise = [noise_generator(seed) for seed in seeds]
        return _observe(self._position, self._goal)

    def step(self, actions: Array) -> dict[str, Array]:
        """Moves every point by its action ``[n, 2]``."""
        if self._sigma > 0.0:
            actions = np.stack([disturb(a, self._sigma, g) for a, g in zip(actions, self._noise, strict=True)])
        self._position = self._world.move(self._position, actions.astype(np.float64))
        return _observe(self._position, self._goal)

    def close(self) -> None:
        """Nothing to release."""


def _goal_and_start(world: PointWorld, generator: np.random.Generator) -> tuple[Array, Array]:
    return world.sample(generator)[None], world.sample(generator)[None]


def _generator(seed: int) -> np.random.Generator:
    """The generator that gymnasium's environments draw from after ``reset(seed=seed)``."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def _observe(position: Array, goal: Array) -> dict[str, Array]:
    here = position.astype(np.float32)
    return {"observation": here, "achieved_goal": here.copy(), "desired_goal": goal.astype(np.float32)}
