"""What every scripted expert is, and the arithmetic they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Expert = Callable[[Mapping[str, Array]], Array]
"""A memoryless controller.

Takes a mapping with ``observation`` ``[n, ds]``, ``achieved_goal`` ``[n, dg]`` and ``desired_goal`` ``[n, dg]`` and
returns actions ``[n, da]``, float32 in ``[-1, 1]``. Row ``i`` of the result depends on row ``i`` alone.
"""


@runtime_checkable
class PlanningExpert(Protocol):
    """An expert that looks a whole episode ahead, so that its actions follow from more than the observation."""

    def plan(self, observation: Mapping[str, Array], seeds: Sequence[int]) -> Expert:
        """Plans n episodes.

        Args:
            observation: their first observations, n rows.
            seeds: what the n environments were reset with, so that a copy can be brought to the very same state.

        Returns:
            A controller for these n rows and their episodes alone, called once in every step, in order. Plan and
            actions of row ``i`` depend on row ``i`` and its seed alone.
        """


def begin_episodes(expert: Expert | PlanningExpert, observation: Mapping[str, Array], seeds: Sequence[int]) -> Expert:
    """The controller for episodes that begin: the expert itself unless it plans.

    Args:
        expert: a controller, or a planner of one for each batch of episodes.
        observation: of their first step, each entry ``[n, *]``; see :class:`PlanningExpert`.
        seeds: of the n episodes.
    """
    return expert.plan(observation, seeds) if isinstance(expert, PlanningExpert) else expert


class SimulatorOwner:
    """Base of a dataclass that builds a simulator when it first needs one, and leaves it behind when it is pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


def within_unit_box(command: Array) -> Array:
    """Shrinks each row ``[n, d]`` to a largest component of at most 1 and keeps its direction."""
    shrunk: Array = command / np.maximum(np.abs(command).max(axis=-1, keepdims=True), 1.0)
    return shrunk


def length(vector: Array) -> Array:
    """Euclidean norm over the last axis, shape ``[n]`` from ``[n, d]``."""
    norm: Array = np.sqrt(np.square(vector).sum(axis=-1))
    return norm


def direction(vector: Array) -> Array:
    """Unit vectors along the rows of ``[n, d]``; a zero row stays zero."""
    return vector / np.maximum(length(vector), 1e-12)[..., None]
