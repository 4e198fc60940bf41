"""A two-link arm in a plane, of gymnasium."""

from __future__ import annotations

from torchrl_smore.envs.experts.reacher import ReacherExpert
from torchrl_smore.envs.reacher import make_reacher_env
from torchrl_smore.envs.tasks._base import Task
from torchrl_smore.envs.tasks._columns import axes

_REACHER = Task(
    name="Reacher",
    observation_columns=(
        "cosine of the shoulder angle",
        "cosine of the elbow angle",
        "sine of the shoulder angle",
        "sine of the elbow angle",
        "0 (in the paper's data: x of the original target) [m]",
        "0 (in the paper's data: y of the original target) [m]",
        "shoulder velocity [rad/s]",
        "elbow velocity [rad/s]",
        *axes("fingertip position", "m", "xy"),
        "0 (fingertip height minus target height) [m]",
    ),
    goal_columns=axes("fingertip position", "m", "xy"),
    action_columns=("shoulder torque [200 N m]", "elbow torque [200 N m]"),
    threshold=0.05,
    goal_range=((-0.2,) * 2, (0.2,) * 2),
    make_base_env=make_reacher_env,
    make_expert=ReacherExpert,
    description="Swing a two-link arm until its fingertip is at a point of the plane.",
    paper_note=(
        "The paper used Reacher-v2 (mujoco-py) in WGCSL's goal wrapper; this is Reacher-v5 of gymnasium with the same "
        "arm, 11 columns, goals (uniform in a disc of radius 0.2) and threshold. Columns 4 and 5, which hold the "
        "original target there and contradict a relabelled goal, are 0 here; recipes do the same to files that they "
        "read."
    ),
    blank_columns=(4, 5, 10),
)
TASKS = (_REACHER,)
