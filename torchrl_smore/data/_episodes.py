"""Builds the flat columns of a dataset from separate episodes, without a Python loop over transitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_smore.data._numbers import is_rounded, say_rounded
from torchrl_smore.data.errors import DatasetError

_REQUIRED = ("observation", "achieved_goal", "action", "desired_goal", "reward")
_OPTIONAL = ("terminated",)

Episode = dict[str, np.ndarray]


def stack_episodes(episodes: Iterable[Mapping[str, Any]]) -> TensorDict:
    """Lays episodes end to end as TED rows; see :meth:`TrajectoryStore.from_episodes` for what an episode holds.

    Raises:
        DatasetError: naming the episode and the key, for a fault that the flat rows would not show any more.
    """
    checked: list[Episode] = []
    widths: dict[str, int] = {}
    for number, episode in enumerate(episodes):
        checked.append(_checked(number, episode, widths))
    if not checked:
        raise DatasetError("expected at least one episode, found none.")
    length = torch.tensor([len(episode["action"]) for episode in checked])
    stop = length.cumsum(0)
    rows = int(stop[-1])

    def column(key: str, rows_of: slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        out = torch.empty(rows, widths.get(key, 1), dtype=dtype)
        parts = [episode[key][rows_of] for episode in checked]
        if any(map(is_rounded, parts)):
            say_rounded(repr(key))
        with np.errstate(over="ignore"):  # an overflow becomes inf, which the schema reports with its row
            np.concatenate(parts, out=out.numpy(), casting="same_kind")
        return out

    done = torch.zeros(rows, 1, dtype=torch.bool)
    done[stop - 1] = True
    terminated = column("terminated", dtype=torch.bool)
    following = {
        "observation": column("observation", slice(1, None)),
        "achieved_goal": column("achieved_goal", slice(1, None)),
        "reward": column("reward"),
        "done": done,
        "terminated": terminated,
        "truncated": done & ~terminated,
    }
    columns = {
        "observation": column("observation", slice(-1)),
        "action": column("action"),
        "achieved_goal": column("achieved_goal", slice(-1)),
        "desired_goal": column("desired_goal"),
        "next": TensorDict(following, [rows]),
        "traj_start": (stop - length).repeat_interleave(length),
        "traj_stop": stop.repeat_interleave(length),
    }
    return TensorDict(columns, [rows])


def _checked(number: int, episode: Mapping[str, Any], widths: dict[str, int]) -> Episode:
    """Returns the episode's arrays, each with one row per step or state, after checking their shapes."""
    if missing := [key for key in _REQUIRED if key not in episode]:
        raise DatasetError(f"episode {number}: missing {missing}, found {list(episode)}.")
    if surplus := [key for key in episode if key not in _REQUIRED + _OPTIONAL]:
        raise DatasetError(f"episode {number}: unexpected {surplus}, expected {[*_REQUIRED, *_OPTIONAL]}.")
    arrays = {key: _array(value) for key, value in episode.items()}
    for key, array in arrays.items():
        if array.dtype.kind not in ("b" if key == "terminated" else "fiub"):
            expected = "booleans" if key == "terminated" else "real numbers"
            raise DatasetError(f"episode {number}: {key!r}: expected {expected}, found dtype {array.dtype}.")
    steps = len(arrays["action"]) if arrays["action"].ndim else 0
    if steps < 2:
        raise DatasetError(
            f"episode {number}: expected two or more transitions, found 'action' of shape "
            f"{list(arrays['action'].shape)}."
        )
    if arrays["action"].ndim == 1 and arrays["action"].dtype.kind == "f":
        arrays["action"] = arrays["action"][:, None]
    if arrays["desired_goal"].ndim == 1:
        goal = arrays["desired_goal"]
        arrays["desired_goal"] = np.broadcast_to(goal, (steps, *goal.shape))
    arrays.setdefault("terminated", np.zeros(steps, dtype=bool))
    for key, array in arrays.items():
        arrays[key] = _checked_shape(number, key, array, steps, widths)
    if arrays["terminated"][:-1].any():
        step = int(arrays["terminated"][:, 0].argmax())
        raise DatasetError(
            f"episode {number}: 'terminated': expected False before the last step, found True in step {step}."
        )
    return arrays


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    # NumPy has no bfloat16
    return (value.float() if value.is_floating_point() and value.itemsize < 4 else value).numpy()


def _checked_shape(number: int, key: str, array: np.ndarray, steps: int, widths: dict[str, int]) -> np.ndarray:
    if key in ("reward", "terminated"):
        if array.shape != (steps,):
            raise DatasetError(f"episode {number}: {key!r}: expected shape [{steps}], found {list(array.shape)}.")
        return array[:, None]
    rows = steps + 1 if key in ("observation", "achieved_goal") else steps
    # the two goals share one width: whichever comes first in the first episode sets it
    name = "achieved_goal" if key == "desired_goal" else key
    if array.ndim == 2:
        widths.setdefault(name, array.shape[1])
        widths.setdefault(key, widths[name])
    if array.ndim != 2 or array.shape != (rows, widths[name]):
        wanted = f"[{rows}, {widths.get(name, name)}]"
        raise DatasetError(
            f"episode {number}: {key!r}: expected shape {wanted} for {steps} steps, found {list(array.shape)}."
        )
    return array
