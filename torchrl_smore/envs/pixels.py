"""Tasks seen as pictures: what a state looks like, frames for a dataset, and policies that see.

A picture here is a function of the state that the task's observation is, so that nothing has to be rendered while data
are collected or a policy is run: frames are painted from stored or observed states. That holds for tasks whose
observation says where everything is; others have no painter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from torchrl_smore.envs._opengl import OpenGL, default_opengl, open_gl
from torchrl_smore.envs._scene import load_model
from torchrl_smore.envs.point import HALF_WIDTH, PointWorld
from torchrl_smore.envs.tabletop import HOME, OPEN_FINGERS, cube_of_goal, placer

if TYPE_CHECKING:
    from torchrl_smore.data.trajectories import TrajectoryStore

Array = NDArray[Any]
Frames = NDArray[np.uint8]

_CHUNK = 2048  # frames painted, and written, at a time: 14 MB at 48 pixels


class Painter(Protocol):
    """Draws the states of a task: uint8 frames ``[n, size, size, 3]``, RGB."""

    size: int

    def states(self, observation: Array) -> Frames:
        """Frames of states ``[n, ds]``."""

    def goals(self, goal: Array) -> Frames:
        """Frames of states in which goals ``[n, dg]`` are reached."""

    def close(self) -> None:
        """Releases what it draws with."""


class PointPainter:
    """Draws a point among walls, seen from above, in numpy alone.

    Args:
        world: box and walls.
        size: height and width of a frame in pixels.
        opengl: not needed.
    """

    _PAPER, _WALL, _POINT = (235, 238, 242), (84, 94, 110), (28, 82, 168)
    _RADIUS = 0.6  # of the point, in the unit of positions; the goal's is 1

    def __init__(self, world: PointWorld, size: int, opengl: OpenGL | None = None) -> None:
        self.size = check_size(size)
        axis = ((np.arange(size) + 0.5) / size * 2.0 - 1.0) * HALF_WIDTH
        self._x, self._y = axis[None].astype(np.float32), -axis[:, None].astype(np.float32)
        at = np.stack(np.broadcast_arrays(self._x, self._y), -1)
        self._empty = np.where(world.blocked(at)[..., None], self._WALL, self._PAPER).astype(np.uint8)

    def states(self, observation: Array) -> Frames:
        """Frames of positions ``[n, 2]``."""
        position = np.asarray(observation, dtype=np.float32)[:, :, None, None]
        inside = (self._x - position[:, 0]) ** 2 + (self._y - position[:, 1]) ** 2 <= self._RADIUS**2
        frames = np.repeat(self._empty[None], len(position), axis=0)
        frames[inside] = self._POINT
        return frames

    def goals(self, goal: Array) -> Frames:
        """Frames of goals ``[n, 2]``: the point is there."""
        return self.states(goal)

    def close(self) -> None:
        """Nothing to release."""


class _ScenePainter:
    """Draws a MuJoCo scene through its camera ``view``, without a display.

    Args:
        model: the scene.
        put: writes what is drawn, one row of numbers, to MuJoCo's data.
        size: height and width of a frame in pixels.
        opengl: library to draw with, see :func:`~torchrl_smore.envs.render_episode`.

    Raises:
        RenderError: if there is no OpenGL; says what to install.
        ImportError: if mujoco is missing; says what to install.
    """

    def __init__(self, model: Any, put: Callable[[Any, Array], None], size: int, opengl: OpenGL | None) -> None:
        self.size = check_size(size)
        import mujoco

        self._mujoco, self._model, self._put = mujoco, model, put
        self._data = mujoco.MjData(model)
        self._window, self._context = open_gl(model, size, opengl or default_opengl())
        self._scene = mujoco.MjvScene(model, maxgeom=100)
        self._option = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._view.fixedcamid = model.camera("view").id
        self._viewport = mujoco.MjrRect(0, 0, size, size)
        self._closed = False

    def _draw(self, rows: Array) -> Frames:
        """Frames ``[n, size, size, 3]`` of ``rows`` ``[n, k]``.

        Raises:
            RuntimeError: after :meth:`close`: MuJoCo would draw in the window of another painter, or in none.
        """
        if self._closed:
            raise RuntimeError(f"the {type(self).__name__} is closed.")
        self._window.make_current()  # another window may have been opened since
        frames = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        for frame, row in zip(frames, np.asarray(rows, dtype=np.float64)):
            self._shoot(frame, row)
        # OpenGL counts rows from below
        return np.ascontiguousarray(frames[:, ::-1])

    def _shoot(self, frame: Frames, row: Array) -> None:
        mujoco = self._mujoco
        self._put(self._data, row)
        # what a picture needs of the forward dynamics
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, self._data, self._option, None, self._view, everything, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(frame, None, self._viewport, self._context)

    def close(self) -> None:
        """Releases the OpenGL context. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._window.make_current()  # or what another window has under the same numbers would be freed
        self._context.free()
        self._window.free()


class TabletopPainter(_ScenePainter):
    """Draws the tabletop.

    Args:
        size: height and width of a frame in pixels.
        opengl: library to draw with, see :func:`~torchrl_smore.envs.render_episode`.

    Raises:
        RenderError: if there is no OpenGL; says what to install.
        ImportError: if mujoco is missing; says what to install.
    """

    def __init__(self, size: int, opengl: OpenGL | None = None) -> None:
        model = load_model("tabletop.xml", "TabletopPainter")
        _, put = placer(model)
        super().__init__(model, put, size, opengl)

    def states(self, observation: Array) -> Frames:
        """Frames of states ``[n, 10]``."""
        return self._draw(observation)

    def goals(self, goal: Array) -> Frames:
        """Frames of goals ``[n, 6]``: everything is where it should be, and the open gripper at home."""
        gripper = np.broadcast_to([*HOME, OPEN_FINGERS], (len(goal), 4))
        return self._draw(np.concatenate([gripper, goal[:, :3], cube_of_goal(goal, goal[:, 0])], axis=-1))


class FetchReachPainter(_ScenePainter):
    """Draws the gripper of FetchReach above its table.

    The pictures are of a scene of our own, not the simulator's renderings: the joints of the robot's arm are not part
    of the observation. In its place is a shadow straight below the gripper, which shows its height. Velocities,
    which the observation has too, are not seen.

    Args:
        size: height and width of a frame in pixels.
        opengl: library to draw with, see :func:`~torchrl_smore.envs.render_episode`.

    Raises:
        RenderError: if there is no OpenGL; says what to install.
        ImportError: if mujoco is missing; says what to install.
    """

    def __init__(self, size: int, opengl: OpenGL | None = None) -> None:
        model = load_model("fetch_reach.xml", "FetchReachPainter")
        gripper, shadow = (int(model.body(name).mocapid[0]) for name in ("gripper", "shadow"))
        table = model.geom("table")
        top = float(table.pos[2] + table.size[2])

        def put(data: Any, position: Array) -> None:
            data.mocap_pos[gripper] = position
            data.mocap_pos[shadow] = (*position[:2], top)

        super().__init__(model, put, size, opengl)

    def states(self, observation: Array) -> Frames:
        """Frames of states ``[n, 10]``."""
        return self._draw(observation[:, :3])

    def goals(self, goal: Array) -> Frames:
        """Frames of goals ``[n, 3]``: the gripper is there."""
        return self._draw(goal)


def check_size(size: int) -> int:
    """Returns ``size``, or raises ``ValueError`` unless it is from 16 to 512 pixels."""
    if not 16 <= size <= 512:
        raise ValueError(f"pictures must be from 16 to 512 pixels in each direction, got {size}.")
    return size


def paint(
    store: TrajectoryStore, painter: Painter, *, folder: str | Path | None = None, progress: bool = False
) -> TrajectoryStore:
    """The store with a frame for each of its states, painted from its observations.

    Args:
        store: of a task that ``painter`` draws.
        painter: draws its states.
        folder: where the frames are kept in a temporary file, mapped into memory; it has to be there for as long as
            they are used, and is removed if one cannot be painted. ``None``: they are held in memory.
        progress: whether to show a progress bar.

    Returns:
        A store that shares the columns, see :meth:`~torchrl_smore.data.TrajectoryStore.with_frames`.

    Raises:
        DatasetError: if ``folder`` is not there.
        ImportError: if tqdm is missing.
        OSError: if the disk is full.
    """
    # here and not above, so that workers, which never need it, start without importing torch
    from torchrl_smore.data._frame_sink import FrameSink

    states = _states(store)
    shape = (len(states), painter.size, painter.size, 3)
    chunks = [states[first : first + _CHUNK] for first in range(0, len(states), _CHUNK)]
    with FrameSink(shape, folder) as sink:
        for painted in _painted(painter, chunks, progress):
            sink.take(painted)
        return store.with_frames(sink.frames())


def _painted(painter: Painter, chunks: list[Array], progress: bool) -> Any:
    from tqdm import tqdm

    for chunk in tqdm(chunks, desc="painting", unit=" chunks", disable=not progress):
        yield painter.states(chunk)


def _states(store: TrajectoryStore) -> Array:
    """The states of all trajectories, ``[N + K, ds]``, in the order of frames."""
    index = store.frame_index
    last = store.trajectory_bounds[1] - 1
    states = store.data["observation"].new_empty(store.num_transitions + store.num_trajectories, store.observation_dim)
    states[index] = store.data["observation"]
    states[index[last] + 1] = store.data["next", "observation"][last]
    found: Array = states.numpy()
    return found


class PixelPolicy:
    """A policy that sees pictures, for environments that give states: what it is given is painted first.

    Args:
        policy: from ``observation`` and ``desired_goal``, uint8 ``[n, size, size, 3]``, to actions ``[n, da]``.
        painter: draws states and goals of the task.
    """

    def __init__(self, policy: Callable[[Mapping[str, Array]], Array], painter: Painter) -> None:
        self.policy, self.painter = policy, painter
        self._goals: tuple[Array, Frames] | None = None

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Actions ``[n, da]`` for states."""
        goal = observation["desired_goal"]
        # a goal stays for an episode
        if self._goals is None or not np.array_equal(self._goals[0], goal):
            self._goals = (goal.copy(), self.painter.goals(goal))
        return self.policy(
            {"observation": self.painter.states(observation["observation"]), "desired_goal": self._goals[1]}
        )
