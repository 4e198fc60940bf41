"""What a trajectory dataset must look like: keys, dtypes, shapes, values, and the order of its rows."""

from __future__ import annotations

import logging
from typing import TypeAlias

import torch
from tensordict import LazyStackedTensorDict, NestedKey, TensorDictBase
from torch import Tensor

from torchrl_smore.data._numbers import EXACT
from torchrl_smore.data.errors import DatasetError

Key: TypeAlias = str | tuple[str, ...]

_logger = logging.getLogger("torchrl_smore")

# key -> dtype and the name of its last dimension; "1" is a literal one, "" means that the column has shape [N]
SCHEMA: dict[Key, tuple[torch.dtype, str]] = {
    "observation": (torch.float32, "observation_dim"),
    "action": (torch.float32, "action_dim"),
    "achieved_goal": (torch.float32, "goal_dim"),
    "desired_goal": (torch.float32, "goal_dim"),
    ("next", "observation"): (torch.float32, "observation_dim"),
    ("next", "achieved_goal"): (torch.float32, "goal_dim"),
    ("next", "reward"): (torch.float32, "1"),
    ("next", "done"): (torch.bool, "1"),
    ("next", "terminated"): (torch.bool, "1"),
    ("next", "truncated"): (torch.bool, "1"),
    "traj_start": (torch.int64, ""),
    "traj_stop": (torch.int64, ""),
}


def conformed(data: TensorDictBase) -> TensorDictBase:
    """``data`` with the dtypes and shapes of the schema where these lose nothing, or are a matter of convention.

    Real numbers become float32, with a warning that names their columns; columns ``[N]`` become ``[N, 1]``; without
    ``("next", "truncated")``, rows that are done and not terminated are truncated.

    Returns:
        ``data`` itself if there is nothing to change, else a TensorDict that shares the other columns with it.
    """
    if not isinstance(data, TensorDictBase) or data.batch_dims != 1:
        return data
    found = set(data.keys(include_nested=True, leaves_only=True))
    changed: dict[Key, Tensor] = {}
    converted: list[str] = []
    for key in found & SCHEMA.keys():
        value, (dtype, dim) = data.get(key), SCHEMA[key]
        if dim and value.ndim == 1:
            changed[key] = value = value.unsqueeze(-1)
        if dtype == torch.float32 != value.dtype and not (value.is_complex() or value.dtype == torch.bool):
            changed[key] = value.float()
            converted.append(f"{key!r} ({value.dtype}{_loss(value)})")
    flags = [("next", "done"), ("next", "terminated")]
    if ("next", "truncated") not in found and all(key in found for key in flags):
        done, terminated = (changed.get(key, data.get(key)) for key in flags)
        if done.dtype == terminated.dtype == torch.bool and done.shape == terminated.shape:
            changed["next", "truncated"] = done & ~terminated
    if not changed:
        return data
    if converted:
        _logger.warning("columns are float32: converted %s", ", ".join(sorted(converted)))
    data = data.copy()
    for key, value in changed.items():
        data.set(key, value)
    return data


def stacked(data: TensorDictBase) -> TensorDictBase:
    """``data`` of a valid structure; a copy if it is a lazy stack, which has no columns that could be written."""
    lazy = any(isinstance(part, LazyStackedTensorDict) for part in (data, data.get("next")))
    return data.contiguous() if lazy else data


def check_is_tensordict(data: object) -> None:
    """Checks that ``data`` are columns, and not for example the store that holds them.

    Raises:
        TypeError: if they are no TensorDict.
    """
    if not isinstance(data, TensorDictBase):
        advice = ": give its .data" if isinstance(getattr(data, "data", None), TensorDictBase) else ""
        raise TypeError(f"expected data as a TensorDict, got {type(data).__name__}{advice}.")


def _loss(value: Tensor) -> str:
    if value.is_floating_point() or value.element_size() < 4 or not value.numel():
        return ""
    # in float64, since unsigned numbers have no abs, and the smallest negative one has none that is positive
    return ", rounded beyond 2**24" if value.double().abs().max() > EXACT else ""


def check_structure(data: TensorDictBase) -> None:
    """Checks keys, dtypes and shapes without reading a value.

    Raises:
        DatasetError: at the first fault, naming the key, what was expected and what was found.
    """
    if not isinstance(data, TensorDictBase):
        raise DatasetError(f"data must be a TensorDict, found {type(data).__name__}.")
    if data.batch_dims != 1 or data.shape[0] == 0:
        raise DatasetError(f"data must have batch size [N] with N > 0, found {list(data.batch_size)}.")
    found = set(data.keys(include_nested=True, leaves_only=True))
    for key in SCHEMA:
        if key not in found:
            raise DatasetError(f"key {key!r} is missing: expected {list(SCHEMA)}, found {sorted(map(str, found))}.")
    if surplus := found - SCHEMA.keys():
        raise DatasetError(f"unexpected keys {sorted(map(str, surplus))}: expected exactly {list(SCHEMA)}.")
    dims: dict[str, int] = {"1": 1}
    for key, (dtype, dim) in SCHEMA.items():
        _check_column(key, data.get(key), data.shape[0], dtype, dim, dims)


def _check_column(key: Key, value: Tensor, rows: int, dtype: torch.dtype, dim: str, dims: dict[str, int]) -> None:
    if value.dtype != dtype:
        raise DatasetError(f"{key!r}: expected dtype {dtype}, found {value.dtype}.")
    if value.ndim != (2 if dim else 1):
        raise DatasetError(f"{key!r}: expected shape {f'[N, {dim}]' if dim else '[N]'}, found {list(value.shape)}.")
    if not dim:
        return
    expected = dims.setdefault(dim, value.shape[1])
    if value.shape[1] != expected or expected == 0:
        known = f" ({dim} as in the columns before it)" if dim != "1" and expected else ""
        wanted = expected or f"{dim} > 0"
        raise DatasetError(f"{key!r}: expected shape [{rows}, {wanted}]{known}, found {list(value.shape)}.")


def check_values(data: TensorDictBase) -> None:
    """Checks that every number is finite and every reward 0 or 1.

    Raises:
        DatasetError: at the first fault, naming the key and the first row at fault.
    """
    for key, (dtype, _) in SCHEMA.items():
        if dtype.is_floating_point:
            check_finite(key, data.get(key))
    reward = data.get(("next", "reward"))
    if (wrong := (reward != 0) & (reward != 1)).any():
        row = _first(wrong)
        raise DatasetError(
            "('next', 'reward'): expected 1 where the goal is reached after the step and 0 elsewhere, "
            f"found {reward[row].item()} in row {row}."
        )


def check_finite(key: NestedKey, value: Tensor) -> None:
    """Checks that every number of a column ``[N, d]`` is finite.

    Raises:
        DatasetError: naming the key and the first row at fault.
    """
    # NaN and infinities survive aminmax, which needs no second array of the size of the column
    if not torch.stack(torch.aminmax(value)).isfinite().all():
        row = _first(~value.isfinite().all(-1))
        raise DatasetError(f"{key!r}: expected finite numbers, found {value[row].tolist()} in row {row}.")


def check_trajectories(data: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Checks that trajectories are contiguous, longer than one transition and done in their last row only.

    Returns:
        First row and one past the last row of each trajectory, int64, shape ``[K]`` each.

    Raises:
        DatasetError: at the first fault, naming the row or the trajectory.
    """
    start, stop = _bounds(data)
    if (short := stop - start < 2).any():
        number = _first(short)
        raise DatasetError(
            f"trajectory {number} (row {start[number].item()}) has a single transition: expected two or more."
        )
    done, terminated, truncated = (data.get(("next", name)).squeeze(-1) for name in ("done", "terminated", "truncated"))
    last = torch.zeros_like(done).index_fill_(0, stop - 1, True)
    if (wrong := done != last).any():
        row = _first(wrong)
        expected = "True in the last row of a trajectory" if last[row] else "False before the last row of a trajectory"
        raise DatasetError(f"('next', 'done'): expected {expected}, found {done[row].item()} in row {row}.")
    if (wrong := done != (terminated | truncated)).any():
        row = _first(wrong)
        raise DatasetError(
            f"('next', 'done'): expected terminated or truncated = {(terminated | truncated)[row].item()}, "
            f"found {done[row].item()} in row {row}."
        )
    return start, stop


def _bounds(data: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Bounds of each trajectory as the rows with ``traj_start == row`` imply them, checked against every row."""
    rows = data.shape[0]
    traj_start, traj_stop = data.get("traj_start"), data.get("traj_stop")
    row = torch.arange(rows, device=traj_start.device)
    start = (traj_start == row).nonzero().squeeze(-1)
    if start.numel() == 0 or start[0] != 0:
        raise DatasetError(f"'traj_start': expected 0 in row 0, found {traj_start[0].item()}.")
    stop = torch.cat([start[1:], start.new_tensor([rows])])
    number = torch.bucketize(row, start, right=True) - 1
    for key, value, bound in (("traj_start", traj_start, start), ("traj_stop", traj_stop, stop)):
        if (wrong := value != bound[number]).any():
            at = _first(wrong)
            raise DatasetError(
                f"{key!r}: trajectories must be contiguous and agree on their bounds: expected "
                f"{bound[number[at]].item()} in row {at}, found {value[at].item()}."
            )
    return start, stop


def check_frames(frames: Tensor, num_states: int) -> None:
    """Checks that frames are pictures of every state.

    Args:
        frames: of the states of all trajectories, one after the other.
        num_states: how many there are: the transitions, and one more for each trajectory.

    Raises:
        DatasetError: naming what was expected and what was found.
    """
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
        found = frames.dtype if isinstance(frames, Tensor) else type(frames).__name__
        raise DatasetError(f"frames: expected dtype torch.uint8, found {found}.")
    shape = list(frames.shape)
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise DatasetError(f"frames: expected shape [{num_states}, height, width, 3], found {shape}.")
    if shape[0] != num_states:
        raise DatasetError(
            f"frames: expected {num_states}, one for each transition and one more for each trajectory, found "
            f"{shape[0]}."
        )


def _first(mask: Tensor) -> int:
    return int(mask.reshape(mask.shape[0], -1).any(-1).int().argmax())
