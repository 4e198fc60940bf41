"""Where loaded networks come from, and which inputs they take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)
_PICTURES = ("observation", "desired_goal")  # inputs that are pictures where the networks have encoders


@dataclass(frozen=True)
class RunRecord:
    """Where networks were loaded from.

    Attributes:
        path: the run's folder.
        checkpoint: the folder that was read.
        step: updates done.
        seed: of the run that the networks are of.
        about: what ``policy.json`` says, for example ``task`` and ``method``.
        goal_margin: by how many extents of the data's goals a goal may lie outside them; ``None``: by any.
    """

    path: Path
    checkpoint: Path
    step: int
    seed: int
    about: dict[str, Any]
    goal_margin: float | None = None

    @property
    def task(self) -> str | None:
        """The task's name, if one was recorded."""
        return self.about.get("task")

    @property
    def pixels(self) -> int | None:
        """Height and width of the pictures that observations and goals are; ``None`` where they are states."""
        return self.about.get("pixels")

    @property
    def columns(self) -> dict[str, list[str]]:
        """Meaning of each column of ``observation``, ``desired_goal`` and ``action``; of states if it sees pictures."""
        return cast("dict[str, list[str]]", self.about["columns"])

    def checked(self, **inputs: Any) -> tuple[list[Tensor], type]:
        """Inputs as tensors of one batch shape, float32 or, of pictures, uint8, and the first one's type, the outputs'.

        Raises:
            TypeError: for inputs that are neither arrays nor tensors of real numbers, or pictures that are not uint8.
            ValueError: for a wrong width or size, batch shapes that do not go together, values that are not finite, or
                goals far outside those of the data.
        """
        tensors = {
            key: self._picture(key, value) if self._seen(key) else self._tensor(key, value)
            for key, value in inputs.items()
        }
        batches = {key: list(tensor.shape[: tensor.ndim - self._dims(key)]) for key, tensor in tensors.items()}
        largest = max(batches.values(), key=len)
        for key, batch in batches.items():
            if batch not in ([], largest):
                raise ValueError(f"expected one row or equally many of each input, got {key} {batch} beside {largest}.")
        if "desired_goal" in tensors and self.pixels is None:
            self._check_goals(tensors["desired_goal"])
        kind = Tensor if isinstance(next(iter(inputs.values())), Tensor) else np.ndarray
        return [
            tensor.expand(*largest, *tensor.shape[tensor.ndim - self._dims(key) :]) for key, tensor in tensors.items()
        ], kind

    def _seen(self, key: str) -> bool:
        """Whether an input is a picture."""
        return self.pixels is not None and key in _PICTURES

    def _dims(self, key: str) -> int:
        """Dimensions of one row of an input."""
        return 3 if self._seen(key) else 1

    def _picture(self, key: str, value: Any) -> Tensor:
        expected = f"{key}: expected pictures of uint8 and shape [..., {self.pixels}, {self.pixels}, 3]"
        if not isinstance(value, (np.ndarray, Tensor)):
            raise TypeError(f"{expected} as a numpy array or a torch tensor, got {type(value).__name__}.")
        if value.dtype != (torch.uint8 if isinstance(value, Tensor) else np.uint8):
            raise TypeError(f"{expected}, got dtype {value.dtype}.")
        if tuple(value.shape[-3:]) != (self.pixels, self.pixels, 3):
            raise ValueError(f"{expected}, got {list(value.shape)}.")
        return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))

    def _tensor(self, key: str, value: Any) -> Tensor:
        expected = f"{key}: expected numbers of shape [..., {len(self.columns[key])}]"
        if not isinstance(value, (np.ndarray, Tensor)):
            raise TypeError(f"{expected} as a numpy array or a torch tensor, got {type(value).__name__}.")
        if isinstance(value, np.ndarray) and value.dtype.kind not in "fiu":
            raise TypeError(f"{expected}, got dtype {value.dtype}.")
        if isinstance(value, np.ndarray):
            with np.errstate(over="ignore"):  # an overflow becomes inf, which is refused below
                # a copy, since tensors have no other byte order, no steps backwards and nothing read-only
                value = np.array(value, np.float32)
        tensor = torch.as_tensor(value)
        if tensor.dtype == torch.bool or tensor.is_complex():
            raise TypeError(f"{expected}, got dtype {tensor.dtype}.")
        if tensor.ndim == 0 or tensor.shape[-1] != len(self.columns[key]):
            raise ValueError(f"{expected} ({', '.join(self.columns[key])}), got {list(tensor.shape)}.")
        tensor = tensor.detach().to(torch.float32)
        if not tensor.isfinite().all():
            column = self.columns[key][_first_column(~tensor.isfinite())]
            raise ValueError(f"{key}: expected finite numbers, got one that is not, in column {column!r}.")
        return tensor

    def _check_goals(self, goal: Tensor) -> None:
        if self.goal_margin is None or self.about.get("goal_range") is None:
            return
        low, high = (torch.tensor(bound, device=goal.device) for bound in self.about["goal_range"])
        # of the widest column: one that never moves has no extent of its own
        slack = self.goal_margin * float((high - low).max())
        outside = (goal < low - slack) | (goal > high + slack)
        if outside.any():
            at = _first_column(outside)
            value = goal[..., at][outside[..., at]].flatten()[0]
            raise ValueError(
                f"desired_goal: column {self.columns['desired_goal'][at]!r} is {value:g}, far outside the data's "
                f"[{low[at]:g}, {high[at]:g}]. Is its unit right? goal_margin=None takes any goal."
            )


def _first_column(wrong: Tensor) -> int:
    return int(wrong.reshape(-1, wrong.shape[-1]).any(0).int().argmax())
