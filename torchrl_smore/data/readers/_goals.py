"""What achieved goals, desired goals and rewards become when a dataset is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from torchrl_smore.data._files import shortened
from torchrl_smore.data.errors import DatasetError

#: The rule of a task: from achieved goals and goals ``[..., dg]`` to booleans ``[...]``.
Reached: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
#: The rule of a fall: from observations ``[n, ds]`` to booleans ``[n]``.
Fallen: TypeAlias = Callable[[np.ndarray], np.ndarray]
Rows: TypeAlias = Callable[[np.ndarray], np.ndarray]

#: Desired goal that is the goal achieved at the end of the trajectory.
FINAL: Final[Literal["final"]] = "final"


@dataclass(frozen=True)
class Goals:
    """The goals of a dataset that stores none, as functions of what it stores.

    Attributes:
        achieved: columns of ``array`` (a number, a slice, a sequence of numbers), or a function from its rows
            ``[n, d]``, float32, to goals ``[n, dg]``.
        desired: ``"final"``, the goal that the trajectory achieves after its last step; or a constant of ``dg``
            numbers; or ``("array", NAME)``, an array of the file with one goal in each row.
        array: the array that ``achieved`` is about; the observations by default.
        offset: rows by which ``array`` is late: 0 where its row ``r`` is about the state of row ``r``, 1 where it was
            written after the step, and so is about the state that follows (``infos/*`` of D4RL's antmaze). ``"auto"``
            looks for the same numbers among the observations: 1 where they are those of the next row, else 0.
        after: another array, whose row ``r`` is about the state after the step of row ``r``: ``achieved`` of it is the
            goal achieved after the step. ``array`` is then about the state before it, and not late. ``None``: that
            goal is the one of the next row, or of ``next_observations`` where goals are about the observations.
    """

    achieved: int | slice | Sequence[int] | Rows
    desired: Literal["final"] | float | Sequence[float] | np.ndarray | tuple[Literal["array"], str] = FINAL
    array: str = "observations"
    offset: Literal["auto", 0, 1] = "auto"
    after: str | None = None

    def check(self) -> None:
        """Checks what does not depend on the data.

        Raises:
            ValueError: if ``desired``, ``offset`` or ``after`` is none of those that are allowed.
        """
        if self.offset not in ("auto", 0, 1):
            raise ValueError(f"Goals: offset must be 'auto', 0 or 1, got {self.offset!r}.")
        if self.array == "observations" and self.offset == 1:
            raise ValueError("Goals: observations are not late: offset=1 needs another array.")
        if self.after is not None and self.array in ("observations", self.after):
            raise ValueError(
                f"Goals: after={self.after!r} needs another array for the goals before the step, got "
                f"array={self.array!r}."
            )
        if self.after is not None and self.offset == 1:
            raise ValueError(f"Goals: with after={self.after!r} an array is not late, got offset=1.")
        if not self.desired_is_final and self.desired_array is None:
            self.constant()

    @property
    def desired_is_final(self) -> bool:
        """Whether the desired goal is the one that the trajectory achieves at its end."""
        return isinstance(self.desired, str) and self.desired == FINAL

    @property
    def desired_array(self) -> str | None:
        """Name of the array that holds the desired goals, if one does."""
        desired: Any = self.desired
        return desired[1] if isinstance(desired, tuple) and len(desired) == 2 and desired[0] == "array" else None

    def next_is_known(self, late: int) -> bool:
        """Whether the goal after an episode's last step is in a file that holds the observation after it.

        Args:
            late: rows by which ``array`` is late, 0 or 1.
        """
        return self.array == "observations" or self.after is not None or late == 1

    def rows(self, label: str) -> Rows:
        """``achieved`` as a function of rows, which checks that columns exist; ``label`` is for messages."""
        if callable(self.achieved):
            return self.achieved
        return columns_of(label, self.achieved)

    def constant(self) -> np.ndarray:
        """The constant desired goal, float32, shape ``[dg]``.

        Raises:
            ValueError: if ``desired`` is no vector of finite numbers.
        """
        try:
            goal = np.atleast_1d(np.asarray(self.desired, dtype=np.float32))
        except (TypeError, ValueError):
            goal = np.array([np.nan], dtype=np.float32)
        if goal.ndim != 1 or not np.isfinite(goal).all():
            raise ValueError(
                f"Goals: desired must be 'final', finite numbers [dg] or ('array', NAME), got {self.desired!r}."
            )
        return goal


def columns_of(label: str, columns: int | slice | Sequence[int]) -> Rows:
    """A function that picks columns of rows, and says which are missing."""
    if not isinstance(columns, slice):
        columns = np.atleast_1d(columns).tolist()

    def pick(rows: np.ndarray) -> np.ndarray:
        width = rows.shape[1]
        if isinstance(columns, slice):
            wanted = np.arange(width)[columns]
            # Python cuts a slice to what there is; an end that it moves lies beyond
            ends = zip((columns.start, columns.stop), columns.indices(width))
            missing = any(end is not None and (end if end >= 0 else end + width) != cut for end, cut in ends)
        else:
            wanted = np.asarray(columns)
            missing = wanted.size > 0 and (wanted.min() < 0 or wanted.max() >= width)
        if missing or wanted.size == 0:
            raise DatasetError(f"{label}: expected columns {columns}, found {width} columns.")
        return rows[:, wanted]

    return pick


def rewards(reached: Reached, achieved: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Which steps reach their goal, bool, shape ``[...]``.

    Args:
        reached: the task's rule.
        achieved: goals achieved after the steps, shape ``[..., dg]``.
        goal: desired goals, same shape.

    Raises:
        DatasetError: if the rule returns something else than booleans of that shape.
    """
    try:
        reward = np.asarray(reached(achieved, goal))
    except Exception as error:
        raise DatasetError(
            f"reached: expected booleans for goals of shape {list(goal.shape)}, failed with "
            f"{type(error).__name__}: {shortened(str(error))}"
        ) from error
    if reward.shape == (*goal.shape[:-1], 1):
        reward = reward[..., 0]
    if reward.shape != goal.shape[:-1] or reward.dtype != np.bool_:
        raise DatasetError(
            f"reached: expected booleans of shape {list(goal.shape[:-1])}, found {reward.dtype} {list(reward.shape)}."
        )
    return reward


def without_falls(reward: np.ndarray, fallen: Fallen | None, observation: np.ndarray) -> None:
    """Takes the reward, in place, from steps that end in a fall: a robot that has fallen has reached nothing.

    Args:
        reward: bool or number, shape ``[n]``.
        fallen: the task's rule; ``None``: nothing falls.
        observation: after the steps, float32, shape ``[n, ds]``.

    Raises:
        DatasetError: if the rule fails or returns something else than booleans ``[n]``.
    """
    if fallen is None:
        return
    try:
        down = np.asarray(fallen(observation))
    except Exception as error:
        raise DatasetError(
            f"fallen: expected booleans for observations of shape {list(observation.shape)}, failed with "
            f"{type(error).__name__}: {shortened(str(error))}"
        ) from error
    if down.shape == (*reward.shape, 1):
        down = down[..., 0]
    if down.shape != reward.shape or down.dtype != np.bool_:
        raise DatasetError(
            f"fallen: expected booleans of shape {list(reward.shape)}, found {down.dtype} {list(down.shape)}."
        )
    reward[down] = 0
