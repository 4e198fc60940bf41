"""Reader of ``buffer.pkl``, the offline goal-conditioned datasets of WGCSL, GoFAR and GOAT.

A file is a pickled dictionary of arrays: observations ``o [K, T+1, ds]``, achieved goals ``ag [K, T+1, dg]``, actions
``u [K, T, da]`` and goals ``g [K, T, dg]``. Published files have 51 states and 50 actions, or 50 and 49. Rewards are
not stored. Source: Yang et al. (2022), arXiv:2202.04478, whose authors share the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_smore.data._files import reading
from torchrl_smore.data._numbers import is_rounded, say_rounded
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._flat import check_limits
from torchrl_smore.data.readers._goals import Fallen, Reached, rewards, without_falls
from torchrl_smore.data.readers._unpickle import load_arrays
from torchrl_smore.data.trajectories import TrajectoryStore

_NAMES = {"o": "observation", "ag": "achieved_goal", "u": "action", "g": "desired_goal"}
_STATES = ("o", "ag")  # one row per state; the others have one per step


def read(
    path: str | Path,
    *,
    reached: Reached,
    fallen: Fallen | None = None,
    max_trajectories: int | None = None,
    clip: float | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TrajectoryStore:
    """Reads a ``buffer.pkl`` without running any code it may contain.

    Numbers become float32. Needs memory for about twice the file.

    Args:
        path: the file.
        reached: the task's rule, from achieved goals and goals ``[..., dg]`` to booleans ``[...]``. The reward of a
            step is 1 where the goal achieved after the step fulfils it.
        fallen: the task's rule of a fall, from observations ``[n, ds]`` to booleans ``[n]``: a step that ends in a fall
            has reward 0. By default nothing falls.
        max_trajectories: how many trajectories to keep, the first ones; all by default.
        clip: observations and goals are clipped to ``[-clip, clip]``, in their own units: the official training codes
            do so at 200. Goals beyond that become one goal, which counts as reached. By default nothing is clipped.
        meta: of the store, beside ``"source"``, the name of the file.
        progress: not used: the file is read at once.

    Returns:
        The trajectories in the order of the file.

    Raises:
        DatasetError: if the file is missing, damaged, or not of this format; the message says what was expected.
        ValueError: for ``max_trajectories`` below 1, or a ``clip`` that is not positive.
    """
    path = Path(path)
    check_limits(max_trajectories=max_trajectories)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}.")
    with reading(path, "a pickle of arrays"):
        columns = load_arrays(path, _NAMES)
        _check_shapes(path, columns)
        for key in _NAMES:
            # one after the other, so that the float64 original of each is freed before the next is converted
            columns[key] = _prepared(path, key, columns[key][:max_trajectories], None if key == "u" else clip)
        # a copy in the order of C, of which a view is edited: the rule may return an array that it keeps
        reward = np.array(rewards(reached, columns["ag"][:, 1:], columns["g"]), order="C")
        without_falls(reward.reshape(-1), fallen, columns["o"][:, 1:].reshape(reward.size, -1))
        episodes = (
            {_NAMES[key]: array[number] for key, array in columns.items()} | {"reward": reward[number]}
            for number in range(len(reward))
        )
        return TrajectoryStore.from_episodes(episodes, {**(meta or {}), "source": path.name})


def _check_shapes(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    shapes = {key: list(array.shape) for key, array in columns.items()}
    if any(array.ndim != 3 for array in columns.values()):
        raise DatasetError(f"{path}: expected arrays [trajectories, time, width], found {shapes}.")
    trajectories, steps, _ = columns["u"].shape
    for key, array in columns.items():
        rows = steps + 1 if key in _STATES else steps
        if array.shape[:2] != (trajectories, rows):
            raise DatasetError(
                f"{path}: {key!r}: expected {trajectories} trajectories of {rows} rows, as 'u' has {steps} steps, "
                f"found {shapes}."
            )
    if columns["ag"].shape[2] != columns["g"].shape[2]:
        raise DatasetError(f"{path}: 'g': expected goals as wide as the achieved goals 'ag', found {shapes}.")
    if trajectories == 0 or steps < 2:
        raise DatasetError(f"{path}: expected at least one trajectory of two or more steps, found {shapes}.")
    if not all(array.shape[2] for array in columns.values()):
        raise DatasetError(f"{path}: expected arrays of at least one column, found {shapes}.")


def _prepared(path: Path, key: str, array: np.ndarray, clip: float | None) -> np.ndarray:
    if is_rounded(array):
        say_rounded(f"{path}: {key!r}")
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes inf and is reported below
        prepared = array.astype(np.float32, order="C")
    # NaN and infinities survive minimum and maximum, which need no second array; clipping would hide the infinities
    if not np.isfinite([prepared.min(), prepared.max()]).all():
        trajectory, row, _ = np.argwhere(~np.isfinite(prepared))[0].tolist()
        raise DatasetError(
            f"{path}: {key!r}: expected finite numbers, found {prepared[trajectory, row].tolist()} in trajectory "
            f"{trajectory}, row {row}."
        )
    return prepared if clip is None else np.clip(prepared, -clip, clip, out=prepared)
