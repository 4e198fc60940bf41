"""A Fetch robot that reaches, pushes, picks and slides, of gymnasium-robotics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torchrl_smore.envs._robotics import make_robotics_env
from torchrl_smore.envs.experts._base import Expert, PlanningExpert
from torchrl_smore.envs.experts.fetch_pick import FetchPickExpert
from torchrl_smore.envs.experts.fetch_push import FetchPushExpert
from torchrl_smore.envs.experts.fetch_reach import FetchReachExpert
from torchrl_smore.envs.experts.fetch_slide import FetchSlideExpert
from torchrl_smore.envs.experts.fetch_slide_reactive import FetchSlideReactiveExpert
from torchrl_smore.envs.pixels import FetchReachPainter
from torchrl_smore.envs.tasks._base import Task
from torchrl_smore.envs.tasks._columns import GRIPPER, axes

_FINGERS = ("right finger displacement [m]", "left finger displacement [m]")
_GRIPPER_VELOCITY = axes("gripper velocity", "m/step")
_FINGER_VELOCITY = ("right finger velocity [m/step]", "left finger velocity [m/step]")
_REACH_COLUMNS = (*GRIPPER, *_FINGERS, *_GRIPPER_VELOCITY, *_FINGER_VELOCITY)
_BLOCK_COLUMNS = (
    *GRIPPER,
    *axes("block position", "m"),
    *axes("block position minus gripper position", "m"),
    *_FINGERS,
    *axes("block rotation (XYZ Euler angle)", "rad"),
    *axes("block velocity minus gripper velocity", "m/step"),
    *axes("block angular velocity", "rad/step"),
    *_GRIPPER_VELOCITY,
    *_FINGER_VELOCITY,
)
_ACTION = (*axes("gripper displacement", "0.05 m"), "finger opening")
_NOTE = (
    "The paper used {old} (mujoco-py); {new} of gymnasium-robotics has the same observations, actions, goals and "
    "threshold, but another physics engine version and start poses that differ slightly, so data from the old "
    "environment are slightly off-distribution. The versions in between (v2 with mujoco >= 3, v3) are broken: "
    "misplaced robot, block under the table."
)


def _fetch(
    name: str,
    simulator: str,
    expert: Callable[[], Expert | PlanningExpert],
    goal_of: str,
    description: str,
    **options: Any,
) -> Task:
    columns = _REACH_COLUMNS if goal_of == "gripper" else _BLOCK_COLUMNS
    return Task(
        name=name,
        observation_columns=tuple(column.replace("block", goal_of) for column in columns),
        goal_columns=axes(f"{goal_of} position", "m"),
        action_columns=_ACTION,
        threshold=0.05,
        make_base_env=partial(make_robotics_env, f"{simulator}-v4"),
        make_expert=expert,
        description=description,
        paper_note=_NOTE.format(old=f"{simulator}-v1", new=f"{simulator}-v4"),
        **options,
    )


TASKS = (
    _fetch(
        "FetchReach",
        "FetchReach",
        FetchReachExpert,
        "gripper",
        "Move the gripper to a point in the air.",
        goal_range=((1.19, 0.59, 0.38), (1.5, 0.9, 0.69)),
        make_painter=FetchReachPainter,
    ),
    _fetch(
        "FetchPush",
        "FetchPush",
        FetchPushExpert,
        "block",
        "Push a block to a point on the table.",
        goal_range=((1.19, 0.59, 0.42), (1.5, 0.9, 0.43)),
        actors="FetchPush",
        expert_noise=0.2,
        expert_random_prob=0.1,
    ),
    _fetch(
        "FetchPick",
        "FetchPickAndPlace",
        FetchPickExpert,
        "block",
        "Carry a block to a point on the table or, half the time, in the air.",
        goal_range=((1.19, 0.59, 0.42), (1.5, 0.9, 0.88)),
        actors="FetchPick",
        expert_noise=0.2,
        expert_random_prob=0.05,
    ),
    _fetch(
        "FetchSlide",
        "FetchSlide",
        FetchSlideExpert,
        "puck",
        "Strike a puck so that it slides to a point on a long table, out of the robot's reach.",
        goal_range=((1.09, 0.44, 0.41), (1.7, 1.05, 0.42)),
        actors="FetchSlide",
        make_teacher=FetchSlideReactiveExpert,
    ),
)
