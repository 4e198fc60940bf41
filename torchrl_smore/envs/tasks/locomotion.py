"""A half cheetah and an Ant that run at a velocity, of gymnasium."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torchrl_smore._falls import ant_has_fallen
from torchrl_smore.envs.experts.actor_file import refuse_to_act
from torchrl_smore.envs.locomotion import make_ant, make_half_cheetah
from torchrl_smore.envs.tasks._base import Task
from torchrl_smore.envs.tasks._columns import axes

_GOAL = ("x velocity [m/s]",)
_JOINTS = tuple(f"{side} {joint}" for side in ("back", "front") for joint in ("thigh", "shin", "foot"))
_CHEETAH_COLUMNS = (
    "torso height [m]",
    "torso pitch [rad]",
    *(f"{joint} angle [rad]" for joint in _JOINTS),
    "x velocity [m/s]",
    "z velocity [m/s]",
    "torso pitch velocity [rad/s]",
    *(f"{joint} angular velocity [rad/s]" for joint in _JOINTS),
)
_LEGS = tuple(
    f"{leg} {joint}" for leg in ("front left", "front right", "back left", "back right") for joint in ("hip", "ankle")
)
_ANT_COLUMNS = (
    "torso height [m]",
    *(f"torso orientation quaternion {axis}" for axis in "wxyz"),
    *(f"{joint} angle [rad]" for joint in _LEGS),
    "x velocity [m/s]",
    "y velocity [m/s]",
    "z velocity [m/s]",
    *axes("torso angular velocity", "rad/s"),
    *(f"{joint} angular velocity [rad/s]" for joint in _LEGS),
)
# the order of gymnasium's actuators, which is not that of the joints
_ANT_ACTION = tuple(f"{_LEGS[number]} torque [150 N m]" for number in (6, 7, 0, 1, 2, 3, 4, 5))
_GEARS = (120, 90, 60, 120, 60, 30)
_CHEETAH_ACTION = tuple(f"{joint} torque [{gear} N m]" for joint, gear in zip(_JOINTS, _GEARS))
_ANT_CONTACT_COLUMNS = 84  # contact forces, which Ant-v2 and -v3 append and leave at 0
_NOTE = (
    "The paper used the {robot}-*-v2 data of D4RL (mujoco-py); this is version 5 of gymnasium's robot, with another "
    "physics engine version, and recipes/train_expert.py trains the experts. Goal, success rule and the discount of "
    "0.999 are those of the official code. The printed returns exceed 100, so they are not at a discount of 0.99."
)
_FALL_NOTE = (
    " D4RL's observation has 84 more columns, contact forces that are all 0 there. A fall ends an episode there; here "
    "the Ant stays as it fell and earns nothing more, so that episodes have one length."
)


def _target_velocity(robot: Literal["Cheetah", "Ant"], rest: Literal["random", "medium"]) -> Task:
    cheetah, letter = robot == "Cheetah", rest[0]
    name, target = f"{robot}TgtVel-{letter}-e", 11 if cheetah else 5
    return Task(
        name=name,
        observation_columns=_CHEETAH_COLUMNS if cheetah else _ANT_COLUMNS,
        goal_columns=_GOAL,
        action_columns=_CHEETAH_ACTION if cheetah else _ANT_ACTION,
        threshold=0.5,
        goal_range=((float(target),), (float(target),)),
        make_base_env=make_half_cheetah if cheetah else make_ant,
        make_expert=partial(refuse_to_act, name),
        description=f"Run forwards at {target} m/s; the data are 30 expert episodes, the rest {rest}.",
        paper_note=_NOTE.format(robot="halfcheetah" if cheetah else "ant") + ("" if cheetah else _FALL_NOTE),
        horizon=1000,
        zero_columns=0 if cheetah else _ANT_CONTACT_COLUMNS,
        strict=True,
        has_fallen=None if cheetah else ant_has_fallen,
        gammas=(0.98, 0.99, 0.999),
        expert_episodes=30,
        rest=rest,
        actors=f"{robot}TgtVel",
    )


TASKS = (
    _target_velocity("Cheetah", "medium"),
    _target_velocity("Cheetah", "random"),
    _target_velocity("Ant", "medium"),
    _target_velocity("Ant", "random"),
)
