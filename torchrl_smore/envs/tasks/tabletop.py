"""A gripper at a table with a drawer, a can and a cube."""

from __future__ import annotations

from functools import partial

from torchrl_smore.envs.experts.tabletop import TabletopExpert
from torchrl_smore.envs.pixels import TabletopPainter
from torchrl_smore.envs.tabletop import Kind, TabletopEnv
from torchrl_smore.envs.tasks._base import Task
from torchrl_smore.envs.tasks._columns import GRIPPER, axes

_DRAWER_AND_CAN = ("drawer opening [m]", *axes("can position", "m", "xy"))
_THINGS = (*_DRAWER_AND_CAN, *axes("cube position", "m"))
_GOAL = (*_DRAWER_AND_CAN, *axes("cube position with the drawer shut", "m"))
_PRIMITIVES, _FRESH = "Tabletop", "Tabletop-fresh"
_NOTE = (
    "The paper's image tasks (Fig. 3, {original}) are those of stable contrastive RL in PyBullet; this is a scene of "
    "our own with the same kinds of primitives, see torchrl_smore.envs.tabletop. Tolerances there: 0.065 and 0.08 m in "
    "a larger scene."
)


def _tabletop(kind: Kind, original: str, description: str, horizon: int = 400, data: tuple[str, ...] = ()) -> Task:
    return Task(
        name=_PRIMITIVES if kind == "primitives" else f"Tabletop-{kind}",
        observation_columns=(*GRIPPER, "distance of each finger from the middle [m]", *_THINGS),
        goal_columns=_GOAL,
        action_columns=(*axes("gripper displacement", "0.04 m"), "finger opening [0.03 m each]"),
        threshold=0.05,
        make_base_env=partial(TabletopEnv, kind),
        make_expert=TabletopExpert,
        description=description,
        paper_note=_NOTE.format(original=original),
        horizon=horizon,
        goal_parts=(("drawer", 0, 1), ("can", 1, 3), ("cube", 3, 6)),
        data_tasks=data,
        make_painter=TabletopPainter,
    )


TASKS = (
    _tabletop(
        "primitives",
        "whose data are single primitives",
        "One of moving a drawer, carrying a cube and pushing a can: what data for two of them in a row hold.",
        horizon=60,
    ),
    _tabletop(
        "fresh",
        "whose data are single primitives",
        "The same, begun above the table and never where another has ended: what data for one of them hold.",
        horizon=60,
    ),
    _tabletop("drawer", "seed 49", "Open a drawer, or shut it.", data=(_FRESH, _PRIMITIVES)),
    _tabletop("pick", "seed 12", "Carry a cube to a tray or to the top of a cabinet.", data=(_FRESH, _PRIMITIVES)),
    _tabletop("pick-close", "seed 37", "Carry a cube into a drawer, then shut it.", data=(_PRIMITIVES, _FRESH)),
    _tabletop(
        "push-open",
        "seed 31",
        "Push a can out from before a drawer, then open the drawer.",
        data=(_PRIMITIVES, _FRESH),
    ),
)
