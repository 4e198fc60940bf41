"""Driving the gripper round a block without touching it, in the plane of the table; lengths in metres."""

from __future__ import annotations

import numpy as np

from torchrl_smore.envs.experts._base import Array, direction, length


def drive_round(gripper: Array, block: Array, spot: Array, *, clearance: float, detour: float, gain: float) -> Array:
    """Commands towards a spot beside a block: straight if the way is clear, else at full speed round the block.

    Args:
        gripper: position, ``[n, 2]``.
        block: its centre, ``[n, 2]``.
        spot: where to go, ``[n, 2]``.
        clearance: a straight way must stay this far from the block's centre.
        detour: radius of the circle driven round the block.
        gain: action per metre of error on the straight way, 1/m.

    Returns:
        Action components, ``[n, 2]``, not yet bounded on the straight way.
    """
    way = spot - gripper
    share = ((block - gripper) * way).sum(-1) / np.maximum(np.square(way).sum(-1), 1e-12)
    closest = gripper + np.clip(share, 0.0, 1.0)[:, None] * way
    free = length(closest - block) > clearance
    return np.where(free[:, None], gain * way, _tangent(gripper, block, spot, detour))


def _tangent(gripper: Array, block: Array, spot: Array, detour: float) -> Array:
    """Full-speed command ``[n, 2]`` along the shorter tangent to the circle round the block."""
    towards = block - gripper
    distance = length(towards)
    # sign of the turn that brings the gripper round on the shorter side
    to_spot = spot - gripper
    side = np.where(towards[:, 0] * to_spot[:, 1] - towards[:, 1] * to_spot[:, 0] >= 0.0, 1.0, -1.0)
    ratio = detour / np.maximum(distance, 1e-6)
    # inside the circle the angle exceeds a right angle, which leads outwards again
    angle = side * (np.arcsin(np.minimum(ratio, 1.0)) + 8.0 * np.clip(ratio - 1.0, 0.0, 0.1))
    cosine, sine = np.cos(angle), np.sin(angle)
    unit = direction(towards)
    turned = np.stack([cosine * unit[:, 0] - sine * unit[:, 1], sine * unit[:, 0] + cosine * unit[:, 1]], axis=-1)
    command: Array = turned / np.maximum(np.abs(turned).max(-1, keepdims=True), 1e-12)
    return command
