"""Trajectories of full length from episodes that ended early."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

_REPEATED = ("observation", "achieved_goal", "action")
_REPEATED_NEXT = ("observation", "achieved_goal", "reward")


def repeat_last_transition(data: TensorDict, ended: Tensor) -> None:
    """Replaces, in place, what follows the end of an episode by copies of the transition that led to it.

    That is how the official code pads the episodes of locomotion. Trajectories keep their rows; their last row alone
    stays done.

    Args:
        data: the columns of a :class:`~torchrl_smore.data.TrajectoryStore`, N rows.
        ended: whether the episode is over after a row's transition, bool, shape ``[N]``.
    """
    row = torch.arange(len(ended), device=ended.device)
    start = data.get("traj_start").reshape(-1)
    # the first end in each trajectory, noted at the trajectory's first row
    first = torch.full_like(row, len(ended)).scatter_reduce(0, start[ended], row[ended], "amin")
    source = torch.minimum(row, first[start])
    for key in (*_REPEATED, *(("next", name) for name in _REPEATED_NEXT)):
        data.set(key, data.get(key)[source])
