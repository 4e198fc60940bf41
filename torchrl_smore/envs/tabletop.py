"""Tabletop tasks: a gripper, a drawer, a can and a cube, in MuJoCo, from primitive shapes of our own.

They stand in for the image tasks of the paper's Fig. 3, whose simulator (PyBullet) and data are not available. Kept is
what those tasks are about: data of single primitives (open or close the drawer, carry the cube, push the can), and
evaluation tasks, two of which need two primitives in a row that no trajectory of the data holds together. In three of
four episodes of the data of these two the gripper is where another primitive has left it, as in the original, which
resets its scene every four trajectories. What differs: scene, gripper and lengths are our own, nothing turns, the cube
is held by friction, starts are drawn anew in every episode where the original has one for each task, and the data of
the two tasks of one primitive begin as their evaluations do, where the original has one dataset.

A state is 10 numbers, and nothing else decides what follows but what is left of velocities a tenth of a second after an
action. The drawer does not move while the can stands before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchrl_smore.envs._gym import Env, spaces
from torchrl_smore.envs._scene import load_model
from torchrl_smore.envs.wrappers import require_mujoco

Array = NDArray[Any]
Kind = Literal["primitives", "fresh", "drawer", "pick", "pick-close", "push-open"]

STEP = 0.04
"""Displacement of the gripper for an action component of 1, in metres."""
FINGER_STEP = 0.03
"""Displacement of each finger for an action component of 1, in metres."""
OPEN_FINGERS = 0.035
"""Distance of each finger from the middle when the gripper is open, in metres."""
OPEN_DRAWER = 0.15
"""How far an open drawer is pulled out, in metres; it can be by 0.16."""
HANDLE = (-0.17, 0.02, 0.05)
"""Middle of the handle of the shut drawer, in metres."""
HOME = (0.0, -0.10, 0.24)
"""Where the gripper is at the end of an episode, in metres: of the experts', and in goal images."""
INSIDE = ((-0.28, 0.08), (-0.06, 0.31))
"""Corners in the plane of the inside of the shut drawer, in metres."""
LIP = 0.08
"""Height under which what is there is in the drawer and not on the cabinet, in metres."""
CUBE_HALF = 0.02
"""Half of the cube's edge, in metres."""
CAN_HEIGHT = 0.092
"""Height of the can's top, in metres."""

GRIPPER, FINGERS, DRAWER, CAN, CUBE = slice(0, 3), 3, 4, slice(5, 7), slice(7, 10)
_LOW, _HIGH = np.array((-0.34, -0.29, 0.02)), np.array((0.34, 0.32, 0.30))  # where the gripper is sent
_SUBSTEPS = 20
_BEFORE_DRAWER = (
    np.array((-0.32, -0.18)),
    np.array((-0.02, 0.09)),
)  # corners of where the can keeps the drawer from moving
_GOAL = slice(4, 10)
_MARGIN = 0.05
_JOINTS = (
    *("gripper_x", "gripper_y", "gripper_z", "near_finger", "drawer"),
    *("can_x", "can_y", "cube_x", "cube_y", "cube_z"),
)

_CONTINUED = 0.75  # share of the episodes of "primitives" that begin where a primitive has ended
_CRADLE, _GRIPPED, _HOLDING = 0.017, 0.008, 0.016  # of the fingers beside the can, on the handle and on the cube
_BESIDE_CAN = (0.036, 0.035)  # how far from the can's middle and how high a push ends
# boxes that starts and goals are drawn from
_GRIPPER_START = ((-0.20, -0.20, 0.20), (0.20, 0.10, 0.28))
_CAN_LEFT, _CAN_RIGHT = ((-0.22, -0.12), (-0.12, -0.06)), ((0.08, -0.12), (0.25, -0.06))
_CUBE_PLACES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "table": ((0.02, -0.27, 0.02), (0.28, -0.21, 0.02)),
    "tray": ((0.165, 0.155, 0.02), (0.255, 0.245, 0.02)),
    "top": ((-0.24, 0.16, 0.12), (-0.10, 0.27, 0.12)),
    "drawer": ((-0.22, 0.15, 0.03), (-0.12, 0.18, 0.03)),  # of the shut one
}


@dataclass(frozen=True)
class Scene:
    """Where things are: what a start or a goal is drawn as.

    Attributes:
        gripper: position ``[3]`` in metres.
        opened: how far the drawer is pulled out, in metres.
        can: position ``[2]`` in the plane.
        place: which of the places the cube is in.
        cube: its position ``[3]``; in the drawer, that with the drawer shut.
        fingers: distance of each finger from the middle, in metres.
    """

    gripper: Array
    opened: float
    can: Array
    place: str
    cube: Array
    fingers: float = OPEN_FINGERS

    @property
    def state(self) -> Array:
        """The observation, ``[10]``."""
        shift = (0.0, -self.opened if self.place == "drawer" else 0.0, 0.0)
        return np.concatenate([self.gripper, [self.fingers, self.opened], self.can, self.cube + np.array(shift)])


def draw_episode(kind: Kind, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Start and goal of an episode.

    ``"primitives"``: what the data hold, one of opening or shutting the drawer, carrying the cube to another place, and
    pushing the can to the right or the left, as often as each other where the scene allows it, but the cube twice
    as often where the drawer is open, half of the times into it; three of four begin with the gripper where such a
    primitive ends, the others above the table, as all other kinds do. ``"fresh"``: the same, and all begin above the
    table. ``"drawer"``: opening or shutting it. ``"pick"``: the cube from the table to the tray or to the top of the
    cabinet. ``"pick-close"``: the cube from the table into the open drawer, which is then shut. ``"push-open"``: the
    can from before the shut drawer to the right, so that the drawer can be opened.

    Args:
        kind: of the task.
        rng: that draws them.
    """
    if kind in ("primitives", "fresh"):
        return _primitive(rng, _CONTINUED if kind == "primitives" else 0.0)
    shut = kind == "push-open" or (kind == "drawer" and rng.random() < 0.5)
    opened = 0.0 if shut else _opening(rng)
    place = ("table", "tray", "top")[rng.integers(3)] if kind in ("drawer", "push-open") else "table"
    can = _uniform(rng, _CAN_LEFT if kind == "push-open" else _CAN_RIGHT)
    start = Scene(_uniform(rng, _GRIPPER_START), opened, can, place, _uniform(rng, _CUBE_PLACES[place]))
    if kind == "drawer":
        return start, _after(start, opened=0.0 if opened else OPEN_DRAWER)
    if kind == "pick":
        return start, _carried(rng, start, ("tray", "top")[rng.integers(2)])
    if kind == "pick-close":
        return start, _after(_carried(rng, start, "drawer"), opened=0.0)
    return start, _after(start, can=_pushed(rng, start), opened=OPEN_DRAWER)


def _primitive(rng: np.random.Generator, continued: float) -> tuple[Scene, Scene]:
    opened = _opening(rng) if rng.random() < 0.5 else 0.0
    left = opened == 0.0 and rng.random() < 0.5
    place = tuple(_CUBE_PLACES)[rng.choice(4, p=(0.45, 0.15, 0.15, 0.25))]
    can = _uniform(rng, _CAN_LEFT if left else _CAN_RIGHT)
    start = Scene(_uniform(rng, _GRIPPER_START), opened, can, place, _uniform(rng, _CUBE_PLACES[place]))
    start = _continued(rng, start) if rng.random() < continued else start
    possible = ["push"]
    possible += [] if left else ["drawer"]
    # out of the drawer it is not carried
    possible += [] if place == "drawer" else ["pick"] * (2 if opened else 1)
    primitive = possible[rng.integers(len(possible))]
    if primitive == "drawer":
        return start, _after(start, opened=0.0 if opened else OPEN_DRAWER)
    if primitive == "push":
        return start, _after(start, can=_pushed(rng, start))
    # into an open drawer as often as to all other places
    if opened and rng.random() < 0.5:
        return start, _carried(rng, start, "drawer")
    targets = [name for name in _CUBE_PLACES if name not in (place, "drawer")]
    return start, _carried(rng, start, targets[rng.integers(len(targets))])


def _continued(rng: np.random.Generator, scene: Scene) -> Scene:
    """A scene with the gripper where a primitive has left it: beside the can, on the handle, or around the cube."""
    before_drawer = bool(blocks_drawer(scene.can))
    ends = ["can"]
    ends += [] if before_drawer else ["handle"]
    # in the shut drawer no cube was put down
    ends += [] if scene.place == "drawer" and not scene.opened else ["cube"]
    end = ends[rng.integers(len(ends))]
    if end == "can":
        gap, height = _BESIDE_CAN
        # to before the drawer it was pushed from the right
        side = 1.0 if before_drawer else rng.choice((-1.0, 1.0))
        return replace(scene, gripper=np.array((scene.can[0] + side * gap, scene.can[1], height)), fingers=_CRADLE)
    if end == "handle":
        return replace(scene, gripper=np.array(HANDLE) - (0.0, scene.opened, 0.0), fingers=_GRIPPED)
    # still holding it, or about to leave it
    fingers = rng.uniform(_HOLDING, OPEN_FINGERS)
    return replace(scene, gripper=scene.state[CUBE] + (0.0, 0.0, 0.002), fingers=fingers)


def _after(start: Scene, **changes: Any) -> Scene:
    return replace(start, gripper=np.array(HOME), fingers=OPEN_FINGERS, **changes)


def _carried(rng: np.random.Generator, start: Scene, place: str) -> Scene:
    return _after(start, place=place, cube=_uniform(rng, _CUBE_PLACES[place]))


def _pushed(rng: np.random.Generator, start: Scene) -> Array:
    """Where the can is pushed to along x: out from before the drawer, before it if it is shut, else by 9 cm."""
    x, y = start.can
    if x < 0.0:
        return np.array((rng.uniform(_CAN_RIGHT[0][0], _CAN_RIGHT[1][0]), y))
    if start.opened == 0.0:
        return np.array((rng.uniform(_CAN_LEFT[0][0], _CAN_LEFT[1][0]), y))
    return np.array((x + (0.09 if x < 0.165 else -0.09), y))


def _opening(rng: np.random.Generator) -> float:
    return float(rng.uniform(OPEN_DRAWER - 0.01, OPEN_DRAWER + 0.005))


def _uniform(rng: np.random.Generator, box: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    return rng.uniform(*box)


class TabletopEnv(Env):
    """The table; see :func:`draw_episode` for what is to be done on it.

    The observation is the state: gripper ``[3]``, distance of each finger from the middle, how far the drawer is out,
    can ``[2]``, cube ``[3]``, in metres; the achieved goal is that without the gripper and its fingers, see
    :func:`goal_of`.

    Args:
        kind: which episodes.

    Raises:
        ImportError: if mujoco is missing; says what to install.
    """

    metadata = {"render_modes": []}

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.render_mode = None
        self.model = load_model("tabletop.xml", "TabletopEnv")
        self.data = self._mujoco.MjData(self.model)
        self._places, self._put = placer(self.model)
        self._lock = self.model.equality("lock").id
        self.goal_state = np.zeros(len(_JOINTS))
        low = np.array([*_LOW, 0.0, 0.0, -0.5, -0.5, -0.5, -0.5, -0.5]) - _MARGIN
        high = np.array([*_HIGH, 0.035, 0.16, 0.5, 0.5, 0.5, 0.5, 0.5]) + _MARGIN
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = spaces.Dict(
            {
                "observation": spaces.Box(low, high, dtype=np.float64),
                "achieved_goal": spaces.Box(low[_GOAL], high[_GOAL], dtype=np.float64),
                "desired_goal": spaces.Box(low[_GOAL], high[_GOAL], dtype=np.float64),
            }
        )

    @property
    def _mujoco(self) -> ModuleType:
        # asked for anew: an environment that kept a module could be neither pickled nor copied
        return require_mujoco("TabletopEnv")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Draws start and goal, and puts everything there at rest; no ``options``."""
        super().reset(seed=seed)
        start, goal = draw_episode(self.kind, self.np_random)
        self.goal_state = goal.state
        self.set_state(start.state)
        return self._observe(), {}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Sends gripper and fingers from where they are by ``action`` ``[4]``.

        The reward is 0, see ``GoalTaskWrapper``.
        The first three components are in units of 4 cm; the fourth opens each finger by 3 cm, or closes it if negative.
        """
        action = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        state = self.state
        self.data.ctrl[:3] = np.clip(state[GRIPPER] + STEP * action[:3], _LOW, _HIGH)
        # not clipped at 0: fingers that hold something press on it by what they are asked to close
        self.data.ctrl[3] = min(state[FINGERS] + FINGER_STEP * action[3], OPEN_FINGERS)
        self.data.eq_active[self._lock] = blocks_drawer(state[CAN])
        self.model.eq_data[self._lock, 0] = state[DRAWER]
        self._mujoco.mj_step(self.model, self.data, _SUBSTEPS)
        return self._observe(), 0.0, False, False, {}

    @property
    def state(self) -> Array:
        """The state ``[10]``, copied."""
        return self.data.qpos[self._places]

    def set_state(self, state: Array) -> None:
        """Puts everything at rest where ``state`` ``[10]`` says."""
        self._mujoco.mj_resetData(self.model, self.data)
        self._put(self.data, state)
        self.data.ctrl[:] = state[:4]
        self._mujoco.mj_forward(self.model, self.data)

    def _observe(self) -> dict[str, Array]:
        state = self.state
        return {
            "observation": state,
            "achieved_goal": goal_of(state),
            "desired_goal": goal_of(self.goal_state),
        }


def goal_of(state: Array) -> Array:
    """What is achieved in states ``[*, 10]``: drawer, can and cube, ``[*, 6]``, in metres.

    A cube that lies in the drawer goes along with it, and is where it would be with the drawer shut: what one primitive
    does to the goal does not depend on what others do. So a goal jumps by as much as the drawer is out where the cube
    is let down into it, below :data:`LIP`, or taken out.
    """
    goal = state[..., _GOAL].copy()
    shut = goal[..., 3:] + np.array((0.0, 1.0, 0.0)) * goal[..., :1]
    goal[..., 4] = np.where(_in_drawer(shut), shut[..., 1], goal[..., 4])
    return goal


def cube_of_goal(goal: Array, opened: Array) -> Array:
    """Where the cube of a goal ``[*, 6]`` is, ``[*, 3]``, while the drawer is out by ``opened`` ``[*]``, in metres."""
    cube = goal[..., 3:].copy()
    cube[..., 1] -= np.where(_in_drawer(cube), opened, 0.0)
    return cube


def _in_drawer(cube: Array) -> Array:
    """Whether a cube ``[*, 3]``, as if the drawer were shut, lies in it, ``[*]``."""
    low, high = INSIDE
    return np.asarray(((cube[..., :2] > low) & (cube[..., :2] < high)).all(-1) & (cube[..., 2] < LIP))


def blocks_drawer(can: Array) -> Array:
    """Whether a can ``[*, 2]`` keeps the drawer from moving, ``[*]``."""
    low, high = _BEFORE_DRAWER
    return np.asarray(((can > low) & (can < high)).all(-1))


def placer(model: Any) -> tuple[list[int], Callable[[Any, Array], None]]:
    """Where in ``qpos`` the numbers of a state are, and what writes a state ``[10]`` to the positions of MuJoCo's data.

    Nothing that follows from positions is computed.
    """
    places = [int(model.joint(name).qposadr[0]) for name in _JOINTS]
    return places, partial(_put, places, int(model.joint("far_finger").qposadr[0]))


def _put(places: list[int], far_finger: int, data: Any, state: Array) -> None:
    data.qpos[places] = state
    data.qpos[far_finger] = state[FINGERS]
