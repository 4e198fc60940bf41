"""A Shadow hand that reaches with its fingertips, of gymnasium-robotics."""

from __future__ import annotations

from functools import partial

from torchrl_smore.envs._robotics import make_robotics_env
from torchrl_smore.envs.experts.hand_reach import HandReachExpert
from torchrl_smore.envs.tasks._base import Task
from torchrl_smore.envs.tasks._columns import axes

_JOINTS = (
    *("WRJ1", "WRJ0"),
    *("FFJ3", "FFJ2", "FFJ1", "FFJ0"),
    *("MFJ3", "MFJ2", "MFJ1", "MFJ0"),
    *("RFJ3", "RFJ2", "RFJ1", "RFJ0"),
    *("LFJ4", "LFJ3", "LFJ2", "LFJ1", "LFJ0"),
    *("THJ4", "THJ3", "THJ2", "THJ1", "THJ0"),
)
_UNDRIVEN = ("FFJ0", "MFJ0", "RFJ0", "LFJ0")  # dragged along by the joint before them
_FINGERTIPS = tuple(
    column
    for finger in ("forefinger", "middle finger", "ring finger", "little finger", "thumb")
    for column in axes(f"{finger} tip position", "m")
)
_NOTE = (
    "The paper used HandReach-v0 (mujoco-py); HandReach-v3 of gymnasium-robotics has the same observations, actions, "
    "goals and threshold, but another physics engine version, so data from the old environment are slightly "
    "off-distribution. Before v3 episodes did not start in the documented pose."
)

_HAND_REACH = Task(
    name="HandReach",
    observation_columns=(
        *(f"{joint} angle [rad]" for joint in _JOINTS),
        *(f"{joint} velocity [rad/s]" for joint in _JOINTS),
        *_FINGERTIPS,
    ),
    goal_columns=_FINGERTIPS,
    action_columns=tuple(
        f"{joint} target angle [half of its range, from the middle]" for joint in _JOINTS if joint not in _UNDRIVEN
    ),
    threshold=0.01,
    make_base_env=partial(make_robotics_env, "HandReach-v3"),
    make_expert=HandReachExpert,
    description="Bring the thumb and one finger of a hand together, or, one time in ten, keep all tips where they are.",
    paper_note=_NOTE,
)
TASKS = (_HAND_REACH,)
