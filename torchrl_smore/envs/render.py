"""Pictures of an episode, without a display: robots by MuJoCo's offscreen renderer, points drawn in numpy."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from torchrl_smore._errors import check_whole, unknown_name
from torchrl_smore._worker import TIMEOUT_S, DeadWorkerError, Worker
from torchrl_smore.envs._gym import Env
from torchrl_smore.envs._opengl import OpenGL, RenderError, default_opengl, open_gl, render_error
from torchrl_smore.envs._stages import STAGES, each_in_space
from torchrl_smore.envs.batch import Observation
from torchrl_smore.envs.point import HALF_WIDTH, PointEnv
from torchrl_smore.envs.tasks import Task, get_task

Frame = NDArray[np.uint8]

_WHITE, _PAPER, _WALL = (1.0, 1.0, 1.0), (0.91, 0.92, 0.94), (0.33, 0.37, 0.43)
_TRAIL, _POINT, _BLOCK = (0.45, 0.62, 0.86), (0.11, 0.32, 0.66), (0.95, 0.68, 0.15)
_AIM, _REACHED = (0.86, 0.24, 0.20), (0.16, 0.62, 0.32)  # the goal before and while it is reached

_TRACK = "track"  # the camera of many MuJoCo models that follows the robot
_FRAME_S = 10.0  # in which a frame is drawn, by the slowest of libraries
_FLOOR = 800.0  # half the length of the floor of a locomotion task, in metres


def render_episode(
    task: str | Task,
    seed: int,
    actions: NDArray[Any],
    *,
    size: int = 256,
    opengl: OpenGL | None = None,
    own_process: bool = False,
    goal_beside: bool = False,
) -> Frame:
    """Films the episode that starts at a seed and takes the given actions.

    The goal is drawn with the distance that counts as reached: red at first, green while it is reached; a velocity as a
    ball above the robot, with which the camera runs. Point tasks are drawn without any graphics library. A MuJoCo task
    of one's own is seen by its camera ``track``, or else from where MuJoCo sees all of it, and its goal is drawn if it
    is of points in space, of three numbers each.

    Args:
        task: the task or its name.
        seed: of the environment's reset, at least 0.
        actions: shape ``[T, da]``, in ``[-1, 1]``.
        size: height and width of a frame, in pixels, at least 16.
        opengl: library for the simulators; ``None`` is what the environment variable ``MUJOCO_GL`` names, else EGL
            (on macOS CGL, on Windows GLFW). All but GLFW need no display.
        own_process: draw in a process of its own, where a graphics driver that crashes takes nothing else down.
        goal_beside: draw what a policy of pictures sees, larger: the state, and to its right the goal, without marks.

    Returns:
        Frames ``[T + 1, size, size, 3]``, RGB, of the start and the state after each action; with the goal beside it
        they are ``2 * size + 4`` wide.

    Raises:
        RenderError: if the task needs OpenGL and it cannot be had, or a process of its own dies.
        RuntimeError: if the environment fails in a process of its own.
        ValueError: for an unknown task or library, a wrong shape, actions that are not finite, an environment that
            cannot be drawn, or a task that has no pictures, beside which the goal cannot be shown.
        TypeError: for a seed or a size that is no whole number.
        ImportError: if a package the simulator needs is missing.
    """
    task = get_task(task)
    actions = np.asarray(actions, dtype=np.float32)
    if actions.ndim != 2 or actions.shape[1] != task.action_dim:
        raise ValueError(f"expected actions of shape [T, {task.action_dim}], got {list(actions.shape)}.")
    if not np.isfinite(actions).all():
        raise ValueError(f"expected finite actions, got {actions[~np.isfinite(actions).all(1)][0].tolist()}.")
    size, seed = check_whole("size", size), check_whole("seed", seed)
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}.")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}.")
    if opengl is not None and opengl not in get_args(OpenGL):
        raise unknown_name("OpenGL library", opengl, get_args(OpenGL))
    backend = opengl or default_opengl()
    if not own_process:
        return _film(task, seed, actions, size, backend, goal_beside)
    try:
        time_s = TIMEOUT_S + _FRAME_S * len(actions)
        with closing(Worker(f"the process that films {task.name}", time_s)) as worker:
            worker.send(_film_apart, task, seed, actions, size, backend, goal_beside)
            frames = worker.receive()
    except (DeadWorkerError, NotImplementedError) as error:
        raise render_error(backend, str(error).strip().splitlines()[0]) from error
    if isinstance(frames, Exception):
        raise frames
    return frames


def _film_apart(_: Any, *args: Any) -> Frame | Exception:
    os.environ.pop("PYOPENGL_PLATFORM", None)  # an earlier choice of the parent's, which PyOpenGL would insist on
    try:
        return _film(*args)
    except (RenderError, ValueError, ImportError) as error:
        return error
    except Exception as error:
        # of the environment; it may be of a class that cannot be sent
        return RuntimeError(f"{args[0].name} could not be filmed: {type(error).__name__}: {error}")


def _film(task: Task, seed: int, actions: NDArray[Any], size: int, backend: str, goal_beside: bool) -> Frame:
    with ExitStack() as stack:
        env = task.make_env()
        stack.callback(env.close)
        observation, _ = env.reset(seed=seed)
        camera = _PicturesCamera(task, size, backend) if goal_beside else _camera(env.unwrapped, task, size, backend)
        stack.callback(camera.close)
        frames = [camera.shoot(observation)]
        for action in actions:
            observation, *_ = env.step(action)
            frames.append(camera.shoot(observation))
    return np.stack(frames)


def _camera(env: Env, task: Task, size: int, backend: str) -> _PlaneCamera | _MujocoCamera:
    if isinstance(env, PointEnv):
        return _PlaneCamera(env, task, size)
    if hasattr(env, "model") and hasattr(env, "data"):
        return _MujocoCamera(env, task, size, backend)
    raise ValueError(f"{task.name} cannot be drawn: {type(env).__name__} is neither a point nor a MuJoCo simulation.")


class _PicturesCamera:
    """Draws what a policy of pictures sees: state and goal, side by side."""

    _GAP = 4  # pixels between them

    def __init__(self, task: Task, size: int, backend: str) -> None:
        self._painter = task.painter(size, cast("OpenGL", backend))
        self._gap = np.full((size, self._GAP, 3), 255, dtype=np.uint8)

    def shoot(self, observation: Observation) -> Frame:
        """The pictures of the state and of its goal."""
        state = self._painter.states(observation["observation"][None])[0]
        goal = self._painter.goals(observation["desired_goal"][None])[0]
        return np.concatenate([state, self._gap, goal], axis=1)

    def close(self) -> None:
        """Releases what it draws with."""
        self._painter.close()


class _MujocoCamera:
    """Draws a MuJoCo simulation to memory."""

    def __init__(self, env: Any, task: Task, size: int, backend: str) -> None:
        import mujoco

        self._mujoco, self._env, self._task = mujoco, env, task
        _make_presentable(env.model)
        self._stage = STAGES.get(task.name)
        if self._stage is not None and self._stage.follows is not None:
            # floors end after 40 m, less than an episode: make them longer, and the pattern as much finer
            floor = env.model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
            longer = _FLOOR / env.model.geom_size[floor, 0].max()
            env.model.geom_size[floor, :2] = _FLOOR
            env.model.mat_texrepeat[env.model.geom_matid[floor]] *= longer
        self._window, self._context = open_gl(env.model, size, backend)
        self._scene = mujoco.MjvScene(env.model, maxgeom=500)
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0  # the goal's own mark is drawn below, to scale
        self._view = mujoco.MjvCamera()
        if self._stage is not None:
            for key, value in self._stage.view.items():
                setattr(self._view, key, value)
        elif _TRACK in [env.model.camera(number).name for number in range(env.model.ncam)]:
            self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._view.fixedcamid = env.model.camera(_TRACK).id
        else:
            mujoco.mjv_defaultFreeCamera(env.model, self._view)
        self._viewport = mujoco.MjrRect(0, 0, size, size)

    def shoot(self, observation: Observation) -> Frame:
        """The picture of the current state."""
        mujoco, scene = self._mujoco, self._scene
        everything = mujoco.mjtCatBit.mjCAT_ALL
        stage, origin = self._stage, np.zeros(3)
        if stage is not None:
            origin = origin if stage.follows is None else self._env.data.body(stage.follows).xpos
            self._view.lookat[:] = origin + stage.view["lookat"]
        mujoco.mjv_updateScene(self._env.model, self._env.data, self._option, None, self._view, everything, scene)
        goal = observation["desired_goal"]
        color = _REACHED if self._task.reached(observation["achieved_goal"], goal) else _AIM
        radius = self._task.threshold if stage is None or stage.radius is None else stage.radius
        for mark in origin + (each_in_space(goal) if stage is None else stage.marks(goal)):
            self._add_ball(mark, min(0.012, 0.8 * radius), (*color, 1.0))
            self._add_ball(mark, radius, (*color, 0.35))
        mujoco.mjr_render(self._viewport, scene, self._context)
        pixels = np.empty((self._viewport.height, self._viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._viewport, self._context)
        return pixels[::-1]  # OpenGL counts rows from below

    def _add_ball(self, position: NDArray[Any], radius: float, rgba: tuple[float, ...]) -> None:
        geom = self._scene.geoms[self._scene.ngeom]
        self._mujoco.mjv_initGeom(
            geom,
            self._mujoco.mjtGeom.mjGEOM_SPHERE,
            np.full(3, radius),
            position.astype(np.float64),
            np.eye(3).ravel(),
            np.array(rgba, dtype=np.float32),
        )
        self._scene.ngeom += 1

    def close(self) -> None:
        """Releases the OpenGL context."""
        self._window.make_current()  # or what another window has under the same numbers would be freed
        self._context.free()
        self._window.free()


def _make_presentable(model: Any) -> None:
    """Gives the scene a plain background, the block a colour and a dark room light; hides what pulls the gripper."""
    sky = model.tex_type == 2  # mjTEXTURE_SKYBOX
    for start, height, width, channels in zip(
        model.tex_adr[sky], model.tex_height[sky], model.tex_width[sky], model.tex_nchannel[sky]
    ):
        model.tex_data[start : start + int(height) * int(width) * int(channels)] = 235
    if model.nlight == 0:
        model.vis.headlight.ambient[:] = 0.5
    model.geom_rgba[model.body_mocapid[model.geom_bodyid] >= 0, 3] = 0.0
    for number in range(model.ngeom):
        if model.geom(number).name == "object0":
            model.geom_matid[number] = -1
            model.geom_rgba[number] = (*_BLOCK, 1.0)


class _PlaneCamera:
    """Draws a point among walls, with its trail."""

    _OVERSAMPLING = 3  # pixels across that are averaged to one
    _MARGIN = 0.4  # around the box, in its unit

    def __init__(self, env: PointEnv, task: Task, size: int) -> None:
        self._task = task
        edge = HALF_WIDTH + self._MARGIN
        count = size * self._OVERSAMPLING
        axis = ((np.arange(count) + 0.5) / count * 2 - 1) * edge
        self._x, self._y = axis[None].astype(np.float32), -axis[:, None].astype(np.float32)
        self._canvas = np.empty((count, count, 3), dtype=np.float32)
        self._canvas[:] = _PAPER
        self._paint(self._canvas, self._inside(-HALF_WIDTH, HALF_WIDTH, -HALF_WIDTH, HALF_WIDTH), _WHITE)
        for wall in env.world.walls:
            self._paint(self._canvas, self._inside(*np.clip(wall, -HALF_WIDTH, HALF_WIDTH)), _WALL)
        self._last: NDArray[Any] | None = None

    def shoot(self, observation: Observation) -> Frame:
        """The picture of an observation, which also lengthens the trail."""
        here, goal = observation["achieved_goal"], observation["desired_goal"]
        self._paint(self._canvas, self._near(here if self._last is None else self._last, here, 0.06), _TRAIL)
        self._last = here
        image = self._canvas.copy()
        color = _REACHED if self._task.reached(here, goal) else _AIM
        self._paint(image, self._near(goal, goal, self._task.threshold), color, 0.28)
        self._paint(image, self._near(goal, goal, 0.10), color)
        self._paint(image, self._near(here, here, 0.20), _POINT)
        side, k = len(image) // self._OVERSAMPLING, self._OVERSAMPLING
        return (image.reshape(side, k, side, k, 3).mean((1, 3)) * 255).round().astype(np.uint8)

    def _inside(self, x_min: float, x_max: float, y_min: float, y_max: float) -> NDArray[np.bool_]:
        return (self._x >= x_min) & (self._x <= x_max) & (self._y >= y_min) & (self._y <= y_max)

    def _near(self, start: NDArray[Any], stop: NDArray[Any], radius: float) -> NDArray[np.bool_]:
        """Mask of what lies within ``radius`` of the segment between two positions."""
        along = stop - start
        x, y = self._x - start[0], self._y - start[1]
        share = np.clip((x * along[0] + y * along[1]) / max(float(along @ along), 1e-12), 0.0, 1.0)
        return (x - share * along[0]) ** 2 + (y - share * along[1]) ** 2 <= radius**2

    @staticmethod
    def _paint(image: NDArray[Any], mask: NDArray[np.bool_], color: tuple[float, ...], opacity: float = 1.0) -> None:
        image[mask] += opacity * (np.array(color, dtype=np.float32) - image[mask])

    def close(self) -> None:
        """Nothing to release."""
