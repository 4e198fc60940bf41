"""A hand that reaches, or opens a door by a hook."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torchrl_smore.envs.experts._base import Expert
from torchrl_smore.envs.experts.sawyer import SawyerDoorExpert, SawyerReachExpert
from torchrl_smore.envs.sawyer import DOOR, REACH, SawyerEnv, SawyerWorld
from torchrl_smore.envs.tasks._base import Task
from torchrl_smore.envs.tasks._columns import axes

_HAND = axes("hand position", "m")
_NOTE = (
    "The paper used {old} of the multiworld port in WGCSL (mujoco-py, a seven-joint arm with meshes). This is a small "
    "model of our own with the published state, 2 cm steps, hand box, goals and threshold; see "
    "torchrl_smore.envs.sawyer for what differs. {more}"
)


def _sawyer(name: str, simulator: str, world: SawyerWorld, expert: Callable[[], Expert], description: str) -> Task:
    door = world.goal == "door"
    angle = ("door angle [rad]",) if door else ()
    more = (
        "Success is the published reward's (0.06 rad), in the return and in the success rate; the official success "
        "rate counts what is within 0.02 rad, its return what is within 0.06."
        if door
        else "Episodes start in the middle of the hand's box."
    )
    return Task(
        name=name,
        observation_columns=(*_HAND, *angle),
        goal_columns=angle or _HAND,
        action_columns=axes("hand displacement", "0.02 m"),
        threshold=0.06,
        goal_range=(world.goal_low, world.goal_high),
        make_base_env=partial(SawyerEnv, world),
        make_expert=expert,
        description=description,
        paper_note=_NOTE.format(old=simulator, more=more),
    )


TASKS = (
    _sawyer("SawyerReach", "SawyerReachXYZEnv-v1", REACH, SawyerReachExpert, "Move a hand to a point in a box."),
    _sawyer("SawyerDoor", "SawyerDoor-v0", DOOR, SawyerDoorExpert, "Open a door by an angle, with a hook."),
)
