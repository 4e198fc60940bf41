"""What follows from giving a transition another goal, for every sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SuccessFn = Callable[[Tensor, Tensor], Tensor]


def where_rows(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """``torch.where`` of whole rows: ``mask`` ``[*B]`` holds for whatever follows the batch, ``[*B, *G]``."""
    return torch.where(mask.reshape(mask.shape + (1,) * (chosen.ndim - mask.ndim)), chosen, other)


def reached_mask(success: SuccessFn, achieved_goal: Tensor, goal: Tensor, batch_dims: int = 1) -> Tensor:
    """``success(achieved_goal, goal)`` as booleans of the batch's shape ``[*B]``.

    Raises:
        ValueError: if it returns another shape than ``[*B]`` or ``[*B, 1]``, or a tensor on another device.
        TypeError: if it returns no booleans.
    """
    size = achieved_goal.shape[:batch_dims]
    mask = success(achieved_goal, goal)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"success must return a bool tensor, got {found}.")
    if mask.shape == (*size, 1):
        mask = mask.squeeze(-1)
    if mask.shape != size:
        raise ValueError(
            f"success must return shape {list(size)} or {[*size, 1]} for goals {list(goal.shape)}, "
            f"got {list(mask.shape)}."
        )
    if mask.device != achieved_goal.device:
        raise ValueError(
            f"success must return a tensor on {achieved_goal.device}, as the goals are, got {mask.device}."
        )
    return mask


@dataclass(frozen=True)
class SparseReward:
    """The reward and the ends of a transition under a goal.

    Args:
        success: ``success(achieved_goal [*B, *G], goal [*B, *G]) -> bool [*B]`` (or ``[*B, 1]``).
        values: reward of a step that does not, and that does, reach the goal.
        terminate_at_goal: end the trajectory where the goal is reached.
        dtype: of the reward.

    Raises:
        ValueError: if ``values`` are no two finite numbers.
    """

    success: SuccessFn
    values: tuple[float, float] = (0.0, 1.0)
    terminate_at_goal: bool = False
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if len(self.values) != 2 or not all(map(math.isfinite, self.values)):
            raise ValueError(
                f"reward_values must be the finite rewards of a step that does not and that does reach the goal, got "
                f"{self.values}."
            )

    def __call__(
        self, achieved_goal: Tensor, goal: Tensor, terminated: Tensor | None, truncated: Tensor | None
    ) -> dict[str, Tensor]:
        """Entries of ``next``.

        Args:
            achieved_goal: after the step, shape ``[B, *G]``.
            goal: shape ``[B, *G]``.
            terminated: where the environment itself ended the trajectory (a fall), ``[B]`` or ``[B, 1]``, bool or 0
                and 1: stays so under any goal.
            truncated: where time was up, likewise.

        Returns:
            ``reward``, and ``terminated`` and ``done``, bool, each ``[B, 1]``.
        """
        reached = reached_mask(self.success, achieved_goal, goal).unsqueeze(-1)
        failure, success = self.values
        reward = torch.where(reached, success, failure).to(self.dtype)
        ended = reached & self.terminate_at_goal
        terminated, truncated = (
            None if flag is None else flag.reshape(ended.shape).bool() for flag in (terminated, truncated)
        )
        ended = ended if terminated is None else ended | terminated
        return {"reward": reward, "terminated": ended, "done": ended if truncated is None else ended | truncated}
