"""From where each simulated task is filmed, and where its goal is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_smore.envs.sawyer import handle_point
from torchrl_smore.envs.tabletop import CAN_HEIGHT, HANDLE, cube_of_goal

Array = NDArray[Any]

_DOOR_MARK_RADIUS, _DOOR_MARK_HEIGHT = 0.29, 0.20  # above the far end of the handle, where the hand hides nothing, m
_FINGERTIP_HEIGHT = 0.01


def _in_the_plane(goal: Array) -> Array:
    return np.array([[*goal, _FINGERTIP_HEIGHT]])


def each_in_space(goal: Array) -> Array:
    """Points ``[k, 3]`` of a goal of ``3 k`` numbers; none of any other."""
    return goal.reshape(-1, 3) if goal.size % 3 == 0 else goal.reshape(-1, 1)[:0].repeat(3, 1)


def _above_the_torso(goal: Array) -> Array:
    return np.array([[0.0, 0.0, 0.6]])


def _above_the_handle(goal: Array) -> Array:
    return np.array([[*handle_point(goal[0], np.array(_DOOR_MARK_RADIUS)), _DOOR_MARK_HEIGHT]])


def _handle_can_and_cube(goal: Array) -> Array:
    handle = np.array(HANDLE) - (0.0, goal[0], 0.0)
    return np.stack([handle, [*goal[1:3], CAN_HEIGHT], cube_of_goal(goal, goal[0])])


@dataclass(frozen=True)
class Stage:
    """How a MuJoCo task is filmed.

    Attributes:
        view: fields of MuJoCo's free camera: distance [m], azimuth and elevation [degrees], lookat [m].
        marks: points ``[k, 3]`` that show a goal ``[dg]``.
        follows: body that camera and marks go along with, seen from where it is; ``None``: they stay.
        radius: of the translucent balls round them, in metres; ``None``: the task's threshold.
    """

    view: Mapping[str, Any]
    marks: Callable[[Array], Array] = each_in_space
    radius: float | None = None
    follows: str | None = None


# a velocity has no place: a ball over the robot shows by its colour whether it is reached
_CHEETAH = Stage(
    {"distance": 3.2, "azimuth": 90.0, "elevation": -10.0, "lookat": (0.0, 0.0, 0.1)}, _above_the_torso, 0.15, "torso"
)
_ANT = Stage(
    {"distance": 3.6, "azimuth": 90.0, "elevation": -25.0, "lookat": (0.0, 0.0, 0.1)}, _above_the_torso, 0.15, "torso"
)

_TABLETOP = Stage(
    {"distance": 0.98, "azimuth": 90.0, "elevation": -45.6, "lookat": (0.0, 0.044, 0.0)}, _handle_can_and_cube, 0.03
)

_FETCH = Stage({"distance": 1.05, "azimuth": 145.0, "elevation": -28.0, "lookat": (1.33, 0.75, 0.54)})
STAGES: dict[str, Stage] = {
    **dict.fromkeys(("FetchReach", "FetchPush", "FetchPick"), _FETCH),
    "FetchSlide": Stage({"distance": 1.45, "azimuth": 145.0, "elevation": -35.0, "lookat": (1.30, 0.75, 0.45)}),
    "HandReach": Stage({"distance": 0.38, "azimuth": 55.0, "elevation": -30.0, "lookat": (1.0, 0.92, 0.17)}),
    "Reacher": Stage(
        {"distance": 0.66, "azimuth": 90.0, "elevation": -89.9, "lookat": (0.0, 0.0, 0.0)}, marks=_in_the_plane
    ),
    "SawyerReach": Stage({"distance": 1.0, "azimuth": 60.0, "elevation": -25.0, "lookat": (0.0, 0.62, 0.16)}),
    "SawyerDoor": Stage(
        {"distance": 0.82, "azimuth": 35.0, "elevation": -48.0, "lookat": (-0.02, 0.64, 0.12)},
        marks=_above_the_handle,
        # what the threshold comes to at this distance from the hinge
        radius=_DOOR_MARK_RADIUS * 0.06,
    ),
    "CheetahTgtVel-m-e": _CHEETAH,
    "CheetahTgtVel-r-e": _CHEETAH,
    "AntTgtVel-m-e": _ANT,
    "AntTgtVel-r-e": _ANT,
    **dict.fromkeys(
        ("Tabletop", *(f"Tabletop-{kind}" for kind in ("fresh", "drawer", "pick", "pick-close", "push-open"))),
        _TABLETOP,
    ),
}
"""The stages of the tasks here, by name of the task."""
