"""Stores of files that hold all episodes end to end in flat arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._goals import Fallen, Goals, Reached, Rows, rewards, without_falls
from torchrl_smore.data.readers._rows import Column, Progress, RowArray, check_numbers, gather, is_single
from torchrl_smore.data.trajectories import TrajectoryStore

_logger = logging.getLogger("torchrl_smore")
_REWARD_ROWS: Final = 1 << 18
_COMPARED_ROWS: Final = 1 << 12
_GAP: Final = 5.0  # factor between the longest usual step and the shortest jump
_JUMP: Final = 20.0  # factor between the median step and a jump


@dataclass(frozen=True, eq=False)
class Episodes:
    """Which rows of a file form the transitions of a store.

    Attributes:
        source: row of the file for each transition, int64, shape ``[N]``, never decreasing.
        length: transitions of each trajectory, int64, shape ``[K]``.
        terminated: whether a trajectory ends in a terminal transition, bool, shape ``[K]``; else it is truncated.
        dropped: transitions of the file left out: those whose next state or goal is not known, those of episodes too
            short for a trajectory, and those beyond a limit.
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
    late: int = 0,
    last_is_state: bool = False,
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
        late: rows at the beginning of an episode whose goal is not known; see :attr:`Goals.offset`.
        last_is_state: whether the last row of an episode is no transition but the last state, so that nothing is lost
            without it.
        pad_to: terminated episodes that are shorter repeat their last transition up to this length, and then count as
            truncated.
        max_trajectories: how many to take, the first ones.
        max_transitions: take no more whole trajectories than have so many transitions together.

    Raises:
        DatasetError: if there is no trajectory of two transitions.
    """
    if len(end) == 0:
        raise DatasetError(f"{label}: expected transitions, found none.")
    stop = np.flatnonzero(end) + 1
    if len(stop) == 0 or stop[-1] != len(end):
        stop = np.append(stop, len(end))
    start = np.concatenate([[0], stop[:-1]])
    terminated = terminal[stop - 1]
    held = np.maximum(stop - start - late - (0 if next_held else 1), 0)
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
    transitions = len(end) - (len(stop) if last_is_state else 0)
    start, held, length = start[kept] + late, held[kept], length[kept]
    before = length.cumsum() - length
    step = np.arange(int(length.sum())) - before.repeat(length)
    source = start.repeat(length) + np.minimum(step, (held - 1).repeat(length))
    return Episodes(source, length, terminated[kept] & ~padded[kept] & next_held, transitions - int(held.sum()))


def check_limits(**limits: int | None) -> None:
    """Refuses limits that are not positive.

    Raises:
        ValueError: naming the limit.
    """
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be at least 1, got {limit}.")


def offset_of(label: str, arrays: Callable[[str], RowArray], goals: Goals, end: np.ndarray) -> int:
    """By how many rows the array of the goals is late, 0 or 1; see :attr:`Goals.offset`.

    Args:
        label: the file, for messages.
        arrays: the array of a name.
        goals: what the goals become.
        end: the last rows of episodes, bool, shape ``[rows]``.

    Raises:
        DatasetError: if an array is missing or no rows of numbers.
    """
    if goals.array == "observations" or goals.after is not None:
        return 0
    if goals.offset != "auto":
        return goals.offset
    observation, array = (_first_rows(arrays(name)) for name in ("observations", goals.array))
    rows = min(len(observation), len(array), len(end)) - 1
    inside = np.flatnonzero(~end[: max(rows, 0)])
    if not len(inside):
        return 0
    values = array[inside]
    same, late = _matching(values, observation[inside]), _matching(values, observation[inside + 1])
    if not (late & ~same).any() or (same & ~late).any():
        return 0
    _logger.warning(
        "%s: %r holds what the observations of the next row hold: it was written after the step, and is taken for the "
        "state that follows; the first transition of each episode, whose goal is not known, is left out "
        "(Goals(offset=0) takes it as it stands)",
        label,
        goals.array,
    )
    return 1


def _first_rows(array: RowArray) -> np.ndarray:
    check_numbers(array, 1 if is_single(array) else 2)
    for block in array.blocks():
        rows = block[:_COMPARED_ROWS].astype(np.float64)
        return rows.reshape(len(rows), -1)
    return np.empty((0, 1))


def _matching(values: np.ndarray, observation: np.ndarray) -> np.ndarray:
    """Which columns of ``values`` ``[n, d]`` are among those of ``observation`` ``[n, ds]``; bool, shape ``[d]``."""
    return np.array([np.isclose(column[:, None], observation).all(0).any() for column in values.T])


def read_flat(
    label: str,
    arrays: Callable[[str], RowArray],
    episodes: Episodes,
    *,
    next_held: bool,
    has_next: bool,
    late: int,
    goals: Goals,
    reached: Reached,
    fallen: Fallen | None,
    kept: Rows | None,
    meta: Mapping[str, Any],
    progress: Progress,
) -> TrajectoryStore:
    """Reads observations, actions and goals of the chosen rows, each array of the file once.

    Args:
        label: the file, for messages.
        arrays: the array of a name; raises :class:`DatasetError` if there is none.
        episodes: the rows.
        next_held: whether ``next_observations`` holds the next state of each row; otherwise the next row does. It needs
            :meth:`Goals.next_is_known`.
        has_next: whether the file has ``next_observations``. Where a goal of one row is taken for that of a row beside
            it, these must say that the rows follow each other.
        late: rows by which the array of the goals is late, 0 or 1.
        goals: what the goals become.
        reached: the task's rule.
        fallen: the task's rule of a fall, about the kept columns.
        kept: columns of the observation to keep; all by default.
        meta: of the store.
        progress: see :data:`Progress`.

    Raises:
        DatasetError: if an array is missing or not what it must be, or rows do not follow each other and must.
    """
    source, goal_of = episodes.source, goals.rows(f"{label}: {goals.array!r}")
    following = source if next_held else source + 1
    observation, next_observation = Column(source, kept), Column(following, kept)
    of_states = goals.array == "observations"
    achieved = Column(source - late, goal_of)
    next_achieved = Column(following if of_states else source - late + 1, goal_of)
    if goals.after is not None:
        next_achieved = Column(source, goals.rows(f"{label}: {goals.after!r}"))
    action = Column(source)
    after = "next_observations" if next_held else "observations"
    plan: dict[str, list[Column]] = {"observations": [observation]}
    plan.setdefault(after, []).append(next_observation)
    plan.setdefault(goals.array, []).append(achieved)
    plan.setdefault(goals.after or (after if of_states else goals.array), []).append(next_achieved)
    plan.setdefault("actions", []).append(action)
    desired = Column(source)
    if goals.desired_array is not None:
        plan.setdefault(goals.desired_array, []).append(desired)
    if has_next and not of_states and goals.after is None:
        # observations are read before
        plan.setdefault("next_observations", []).append(
            _Following(source - late, observation if late else next_observation, kept)
        )
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
    if not of_states:
        meta = {**meta, "goal_offset": late}
    return assemble(label, values, episodes.length, episodes.terminated, reached=reached, fallen=fallen, meta=meta)


class _Following(Column):
    """Rows of ``next_observations`` that must be what the observations of the next rows are; keeps none of them.

    Args:
        source: as of a column.
        expected: the column of those observations, which has been read.
        of: as of a column.
    """

    def __init__(self, source: np.ndarray, expected: Column, of: Rows | None) -> None:
        super().__init__(source, of)
        self._expected = expected

    def fill(self, label: str, block: np.ndarray, first: int) -> None:
        """Compares what it needs of the rows."""
        low, high = np.searchsorted(self.source, (first, first + len(block)))
        source = self.source[low:high]
        rows = (block if self.of is None else self.of(block))[source - first]
        expected = self._expected.values[low:high]
        # float32 next to float64 is rounded, no other state
        if not (rows == expected).all() and (wrong := ~np.isclose(rows, expected).all(1)).any():
            row = source[int(wrong.argmax())]
            raise DatasetError(
                f"{label}: expected in row {row} the observation of row {row + 1}, found another one: where rows do "
                "not follow each other, the goal of the next row is not the one achieved after the step. Name the "
                "array that holds it as Goals(after=NAME), or take goals from the observations."
            )


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
    fallen: Fallen | None,
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
        fallen: the task's rule of a fall, which earns nothing.
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
        without_falls(reward[part, 0], fallen, values["next_observation"][part])
    _warn_of_jumps(label, values["observation"], values["next_observation"], length)
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


def _warn_of_jumps(label: str, before: np.ndarray, after: np.ndarray, length: np.ndarray) -> None:
    """Warns of a few steps that are far longer than all others: episodes that were cut at the wrong rows hold some.

    Args:
        label: the file.
        before: observations, float32, shape ``[N, ds]``.
        after: observations after the steps, of the same shape.
        length: transitions of each trajectory, shape ``[K]``.
    """
    step = np.empty(len(before))
    for first in range(0, len(before), _REWARD_ROWS):
        part = slice(first, first + _REWARD_ROWS)
        step[part] = np.sqrt(np.square(after[part].astype(np.float64) - before[part]).sum(1))
    ordered = np.sort(step)
    usual, longer = ordered[:-1], ordered[1:]
    median = float(np.median(ordered))
    gaps = np.flatnonzero((usual > 0) & (longer >= _GAP * usual) & (longer >= _JUMP * median) & (median > 0))
    if not len(gaps):
        return
    longest, jump = float(usual[gaps[0]]), float(longer[gaps[0]])
    row = int((step >= jump).argmax())
    number = int(np.searchsorted(length.cumsum(), row, side="right"))
    _logger.warning(
        "%s: %d of %d steps change the observation by %.3g or more and all others by at most %.3g; the first is step "
        "%d of trajectory %d: do episodes end where the file says (timeouts that come rows late leave such jumps)?",
        label,
        int((step >= jump).sum()),
        len(step),
        jump,
        longest,
        row - int(length[:number].sum()),
        number,
    )
