"""Stores of files that hold all episodes end to end in flat arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._goals import Goals, Reached, Rows, rewards
from torchrl_smore.data.readers._rows import Column, Progress, RowArray, gather
from torchrl_smore.data.trajectories import TrajectoryStore

_REWARD_ROWS = 1 << 18


@dataclass(frozen=True)
class Episodes:
    """Which rows of a file form the transitions of a store.

    Attributes:
        source: row of the file for each transition, int64, shape ``[N]``, never decreasing.
        length: transitions of each trajectory, int64, shape ``[K]``.
        terminated: whether a trajectory ends in a terminal transition, bool, shape ``[K]``; else it is truncated.
        dropped: rows of the file left out, being too few for a trajectory or beyond a limit.
    """

    source: np.ndarray
    length: np.ndarray
    terminated: np.ndarray
    dropped: int = 0


def episodes_of(
    label: str,
    end: np.ndarray,
    terminal: np.ndarray,
    *,
    next_held: bool,
    pad_to: int | None = None,
    max_trajectories: int | None = None,
    max_transitions: int | None = None,
) -> Episodes:
    """Cuts the rows of a file into trajectories.

    Args:
        label: the file, for messages.
        end: the last rows of episodes, bool, shape ``[rows]``; the last row of the file ends one in any case.
        terminal: rows after which the environment terminated, bool, shape ``[rows]``.
        next_held: whether the state after an end is known. Otherwise the last row of an episode gives only a state,
            and no trajectory is marked as terminated.
        pad_to: terminated episodes that are shorter repeat their last transition up to this length, and then count as
            truncated.
        max_trajectories: how many to take, the first ones.
        max_transitions: take no more whole trajectories than have so many transitions together.

    Raises:
        DatasetError: if there is no trajectory of two transitions.
        ValueError: if a limit is not positive.
    """
    for name, limit in (("max_trajectories", max_trajectories), ("max_transitions", max_transitions)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be at least 1, got {limit}.")
    if len(end) == 0:
        raise DatasetError(f"{label}: expected transitions, found none.")
    stop = np.flatnonzero(end) + 1
    if len(stop) == 0 or stop[-1] != len(end):
        stop = np.append(stop, len(end))
    start = np.concatenate([[0], stop[:-1]])
    terminated = terminal[stop - 1]
    held = stop - start - (0 if next_held else 1)
    length = held
    if pad_to is not None:
        length = np.where(terminated & (held > 0), np.maximum(held, pad_to), held)
    padded = length > held
    kept = length >= 2
    if max_transitions is not None:
        kept &= np.where(kept, length, 0).cumsum() <= max_transitions
    kept = np.flatnonzero(kept)[:max_trajectories]
    if len(kept) == 0:
        raise DatasetError(
            f"{label}: expected an episode of two or more transitions within the limits, found {len(stop)} episodes "
            f"of at most {int(held.max(initial=0))} transitions."
        )
    start, held, length = start[kept], held[kept], length[kept]
    before = length.cumsum() - length
    step = np.arange(int(length.sum())) - before.repeat(length)
    source = start.repeat(length) + np.minimum(step, (held - 1).repeat(length))
    dropped = len(end) - int((stop - np.concatenate([[0], stop[:-1]]))[kept].sum())
    return Episodes(source, length, terminated[kept] & ~padded[kept] & next_held, dropped)


def read_flat(
    label: str,
    arrays: Callable[[str], RowArray],
    episodes: Episodes,
    *,
    next_held: bool,
    goals: Goals,
    reached: Reached,
    kept: Rows | None,
    meta: Mapping[str, Any],
    progress: Progress,
) -> TrajectoryStore:
    """Reads observations, actions and goals of the chosen rows, each array of the file once.

    Args:
        label: the file, for messages.
        arrays: the array of a name; raises :class:`DatasetError` if there is none.
        episodes: the rows.
        next_held: whether ``next_observations`` holds the next state of each row; otherwise the next row does.
        goals: what the goals become. ``goals.array`` must be the observations where ``next_held``.
        reached: the task's rule.
        kept: columns of the observation to keep; all by default.
        meta: of the store.
        progress: see :data:`Progress`.
    """
    source, goal_of = episodes.source, goals.rows(f"{label}: {goals.array!r}")
    following = source if next_held else source + 1
    observation, next_observation = Column(source, kept), Column(following, kept)
    achieved, next_achieved = Column(source, goal_of), Column(following, goal_of)
    action = Column(source)
    plan: dict[str, list[Column]] = {"observations": [observation]}
    plan.setdefault(goals.array, []).append(achieved)
    if next_held:
        plan["next_observations"] = [next_observation, next_achieved]
    else:
        plan["observations"].append(next_observation)
        plan[goals.array].append(next_achieved)
    plan.setdefault("actions", []).append(action)
    desired = Column(source)
    if goals.desired_array is not None:
        plan.setdefault(goals.desired_array, []).append(desired)
    for name, columns in plan.items():
        gather(arrays(name), columns, progress)
    if goals.desired_array is None:
        desired.values = _desired(label, goals, next_achieved.values, episodes.length)
    values = {
        "observation": observation.values,
        "action": action.values,
        "achieved_goal": achieved.values,
        "desired_goal": desired.values,
        "next_observation": next_observation.values,
        "next_achieved_goal": next_achieved.values,
    }
    return assemble(label, values, episodes.length, episodes.terminated, reached=reached, meta=meta)


def _desired(label: str, goals: Goals, achieved: np.ndarray, length: np.ndarray) -> np.ndarray:
    if goals.desired_is_final:
        return achieved[length.cumsum() - 1].repeat(length, axis=0)
    goal = goals.constant()
    if goal.shape != achieved.shape[1:]:
        raise DatasetError(
            f"{label}: expected a desired goal as wide as the achieved one, {achieved.shape[1]}, found {len(goal)}."
        )
    return np.repeat(goal[None], len(achieved), axis=0)


def assemble(
    label: str,
    values: Mapping[str, np.ndarray],
    length: np.ndarray,
    terminated: np.ndarray,
    *,
    reached: Reached,
    meta: Mapping[str, Any],
) -> TrajectoryStore:
    """Makes a store of whole columns, without a copy of them.

    Args:
        label: the file, for messages.
        values: float32 columns ``[N, *]``: ``observation``, ``action``, ``achieved_goal``, ``desired_goal``,
            ``next_observation``, ``next_achieved_goal``.
        length: transitions of each trajectory, int64, shape ``[K]``.
        terminated: whether each trajectory ends terminated, bool, shape ``[K]``.
        reached: the task's rule, from which the rewards come.
        meta: of the store.

    Raises:
        DatasetError: if widths of goals differ, or the columns are no store.
    """
    achieved, desired = values["next_achieved_goal"], values["desired_goal"]
    if achieved.shape != desired.shape:
        raise DatasetError(
            f"{label}: expected desired goals as wide as the achieved ones, {achieved.shape[1]}, "
            f"found {desired.shape[1]}."
        )
    rows = len(achieved)
    reward = np.empty((rows, 1), dtype=np.float32)
    for first in range(0, rows, _REWARD_ROWS):
        part = slice(first, first + _REWARD_ROWS)
        reward[part, 0] = rewards(reached, achieved[part], desired[part])
    tensors = {key: torch.from_numpy(value) for key, value in values.items()}
    sizes = torch.from_numpy(length)
    stop = sizes.cumsum(0)

    def flags(last: Tensor) -> Tensor:
        column = torch.zeros(rows, 1, dtype=torch.bool)
        column[stop - 1, 0] = last
        return column

    ended = torch.from_numpy(terminated)
    following = {
        "observation": tensors["next_observation"],
        "achieved_goal": tensors["next_achieved_goal"],
        "reward": torch.from_numpy(reward),
        "done": flags(torch.ones_like(ended)),
        "terminated": flags(ended),
        "truncated": flags(~ended),
    }
    columns = {key: tensors[key] for key in ("observation", "action", "achieved_goal", "desired_goal")}
    bounds = {
        "traj_start": (stop - sizes).repeat_interleave(sizes),
        "traj_stop": stop.repeat_interleave(sizes),
    }
    return TrajectoryStore(TensorDict({**columns, "next": TensorDict(following, [rows]), **bounds}, [rows]), meta)
