"""A point among walls."""

from __future__ import annotations

from functools import partial

from torchrl_smore.envs.experts.point import PointExpert
from torchrl_smore.envs.pixels import PointPainter
from torchrl_smore.envs.point import FOUR_ROOMS, GOAL_RADIUS, HALF_WIDTH, PointBatch, PointEnv, PointWorld
from torchrl_smore.envs.tasks._base import Task
from torchrl_smore.envs.tasks._columns import axes

_NOTE = (
    "The paper used {old} of the multiworld port in WGCSL. Box, step, radius and walls are the published ones; "
    "see torchrl_smore.envs.point for how collisions differ. The reward there is dense; ours is 0/1."
)


def _point(name: str, simulator: str, world: PointWorld, description: str) -> Task:
    return Task(
        name=name,
        observation_columns=axes("position", "1", "xy"),
        goal_columns=axes("position", "1", "xy"),
        action_columns=axes("displacement", "1", "xy"),
        threshold=GOAL_RADIUS,
        make_base_env=partial(PointEnv, world),
        make_expert=partial(PointExpert, world),
        make_batch=partial(PointBatch, world),
        make_painter=partial(PointPainter, world),
        goal_range=((-HALF_WIDTH,) * 2, (HALF_WIDTH,) * 2),
        description=description,
        paper_note=_NOTE.format(old=simulator),
    )


TASKS = (
    _point("PointReach", "Point2DLargeEnv-v1", PointWorld(), "Move a point to within 1 of another, in a box."),
    _point("PointRooms", "Point2D-FourRoom-v1", PointWorld(FOUR_ROOMS), "The same in four rooms with wide doors."),
)
