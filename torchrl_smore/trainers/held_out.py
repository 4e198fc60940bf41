"""Policies compared without a simulator: on trajectories that were not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from torchrl_smore.data import TrajectoryStore
from torchrl_smore.trainers.evaluation import bootstrap_interval


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Result of :func:`held_out_distance`, in the unit of actions.

    Attributes:
        distance: median of ``per_trajectory``.
        interval: its 95% interval by bootstrap over trajectories.
        per_trajectory: mean distance of the policy's actions to those of each trajectory that counts, shape ``[k]``.
    """

    distance: float
    interval: tuple[float, float]
    per_trajectory: np.ndarray


def held_out_distance(
    policy: Callable[[np.ndarray, np.ndarray], np.ndarray],
    store: TrajectoryStore,
    reached: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> HeldOut:
    """How far a policy's actions lie from those by which held-out trajectories reached their goals.

    Trajectories count that end at the goal for which they were collected and do not begin there; most of such a
    mixture as the paper's are an expert's, and of the others that got there by chance the median takes no notice. The
    distance is the mean of ``|a - policy(s, g)|`` over the trajectory's steps and action components, g being its own
    goal. It tells policies that fail from policies that do not; of several that do not it says little about which is
    best (``docs/howto/data.md``), and a validation loss under hindsight goals says less.

    Args:
        policy: actions ``[n, A]`` for observations ``[n, O]`` and goals ``[n, G]``, such as
            :func:`~torchrl_smore.trainers.load_policy` returns.
        store: trajectories that the policy was not trained on, see :func:`~torchrl_smore.data.hold_out`.
        reached: the task's rule, of achieved goals ``[n, G]`` and goals ``[n, G]``, boolean ``[n]``.

    Raises:
        ValueError: if no trajectory counts, or ``reached`` returns another shape.
    """
    rows = {key: store.data[key].numpy() for key in ("observation", "desired_goal", "action")}
    start, stop = (bound.numpy() for bound in store.trajectory_bounds)
    goal = rows["desired_goal"]
    ends = _checked(reached, store.data["next", "achieved_goal"].numpy()[stop - 1], goal[stop - 1])
    begins = _checked(reached, store.data["achieved_goal"].numpy()[start], goal[start])
    counted = np.flatnonzero(ends & ~begins)
    if not len(counted):
        raise ValueError(
            f"expected trajectories that end at their goal and do not begin there, got none among {len(start)}."
        )
    steps = [slice(start[k], stop[k]) for k in counted]
    actions = (np.asarray(policy(rows["observation"][own], goal[own])) for own in steps)
    distance = np.array([np.abs(action - rows["action"][own]).mean() for action, own in zip(actions, steps)])
    return HeldOut(float(np.median(distance)), bootstrap_interval(distance, np.median), distance)


def _checked(
    reached: Callable[[np.ndarray, np.ndarray], np.ndarray], achieved: np.ndarray, goal: np.ndarray
) -> np.ndarray:
    found = np.asarray(reached(achieved, goal), dtype=bool)
    if found.shape != achieved.shape[:1]:
        raise ValueError(f"reached must return one bool per row, shape [{len(achieved)}], got {list(found.shape)}.")
    return found
