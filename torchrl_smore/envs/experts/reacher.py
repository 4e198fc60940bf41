"""Scripted expert for Reacher: inverse kinematics of a two-link arm, and a PD controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchrl_smore.envs.experts._base import Array

_LINKS = (0.1, 0.11)  # from shoulder to elbow and from elbow to fingertip, m
_ELBOW_LIMIT = 3.0  # rad; the shoulder turns freely


@dataclass(frozen=True)
class ReacherExpert:
    """Drives both joints to the nearer of the two arm poses whose fingertip is at the goal.

    A goal nearer to the shoulder than the links differ, or farther than they reach together, is answered with the
    nearest point of the reachable ring.

    Attributes:
        stiffness: torque per radian of error, 1/rad.
        damping: torque per joint velocity, s/rad.
    """

    stiffness: float = 4.0
    damping: float = 0.22

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 2]``."""
        state = observation["observation"].astype(np.float64)
        joints = np.arctan2(state[:, 2:4], state[:, 0:2])
        error = self._shortest_turn(joints, observation["desired_goal"].astype(np.float64))
        torque = self.stiffness * error - self.damping * state[:, 6:8]
        return np.clip(torque, -1.0, 1.0).astype(np.float32)

    def _shortest_turn(self, joints: Array, goal: Array) -> Array:
        """Joint displacements ``[n, 2]`` to the pose whose larger displacement is smaller."""
        upper, lower = _LINKS
        cosine = (np.square(goal).sum(-1) - upper**2 - lower**2) / (2.0 * upper * lower)
        bend = np.minimum(np.arccos(np.clip(cosine, -1.0, 1.0)), _ELBOW_LIMIT)
        turns = []
        for elbow in (bend, -bend):
            inner = np.arctan2(lower * np.sin(elbow), upper + lower * np.cos(elbow))
            shoulder = np.arctan2(goal[:, 1], goal[:, 0]) - inner
            # only the shoulder may go round: the elbow would run into its limit
            around = np.mod(shoulder - joints[:, 0] + np.pi, 2.0 * np.pi) - np.pi
            turns.append(np.stack([around, elbow - joints[:, 1]], axis=-1))
        first, second = turns
        nearer = np.abs(first).max(-1) <= np.abs(second).max(-1)
        return np.where(nearer[:, None], first, second)
