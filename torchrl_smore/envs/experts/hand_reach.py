"""Scripted expert for HandReach: inverse kinematics of the fingertips, with the weight of the fingers fed forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from torchrl_smore.envs._robotics import make_robotics_env
from torchrl_smore.envs.experts._base import Array, SimulatorOwner

_TIPS = ("robot0:S_fftip", "robot0:S_mftip", "robot0:S_rftip", "robot0:S_lftip", "robot0:S_thtip")


@dataclass(frozen=True)
class HandReachExpert(SimulatorOwner):
    r"""Solves for the joint angles that put all fingertips on the goal, in every step, and asks the actuators for them.

    The angles :math:`q^*` come from damped Gauss-Newton steps that start at the measured angles :math:`q`. The
    actuators are springs of stiffness :math:`k_p`: a target equal to :math:`q^*` leaves the fingers hanging about 27 mm
    low, so the joint torque :math:`b(q^*)` that carries their weight is added, and the way to go is overdriven:

    .. math:: \mathrm{ctrl} = q^* + (K - 1)(q^* - q) + b(q^*) / k_p

    The last joint of each finger has no actuator. A tendon drags it along with the joint before it, with some slack;
    where it is within the slack is taken from the measured angles. A step that would push two fingers into each other
    is solved again with the gap between them as one more quantity to bring to zero.

    Most goals it misses are at the edge of the hand's reach: the best angles miss them by about the threshold, too.

    Attributes:
        overdrive: :math:`K`, dimensionless; 1 moves at the springs' own pace.
        damping: of the Gauss-Newton steps, in m/rad.
        num_iterations: Gauss-Newton steps for each action.
        contact_weight: of a metre of gap between fingers, beside a metre of a fingertip's error.
    """

    overdrive: float = 2.0
    damping: float = 0.01
    num_iterations: int = 3
    contact_weight: float = 10.0

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 20]``.

        Raises:
            ImportError: if a package the simulator needs is missing; says what to install.
        """
        angles = observation["observation"][:, :24].astype(np.float64)
        goals = observation["desired_goal"].astype(np.float64)
        return np.stack([self._action(*row) for row in zip(angles, goals, strict=True)]).astype(np.float32)

    @cached_property
    def _hand(self) -> _Hand:
        return _Hand()

    def _action(self, measured: Array, goal: Array) -> Array:
        hand = self._hand
        driven = measured[hand.driven]
        target = driven.clip(hand.low, hand.high)
        slack = hand.slack(measured)
        for _ in range(self.num_iterations):
            target = self._improved(target, slack, goal)
        hand.place(hand.whole(target, slack))
        control = target + (self.overdrive - 1.0) * (target - driven) + hand.weight() / hand.stiffness
        return ((control - hand.centre) / hand.half_range).clip(-1.0, 1.0)

    def _improved(self, angle: Array, slack: Array, goal: Array) -> Array:
        hand = self._hand
        hand.place(hand.whole(angle, slack))
        error, jacobian = goal - hand.tips(), hand.tips_jacobian()
        better = _bounded_step(angle, jacobian, error, hand.low, hand.high, self.damping)
        gap, gap_jacobian = hand.gaps()
        closed = gap + gap_jacobian @ (better - angle) < 0.0
        if not closed.any():
            return better
        error = np.concatenate([error, -self.contact_weight * gap[closed]])
        jacobian = np.concatenate([jacobian, self.contact_weight * gap_jacobian[closed]])
        return _bounded_step(angle, jacobian, error, hand.low, hand.high, self.damping)


def _bounded_step(angle: Array, jacobian: Array, error: Array, low: Array, high: Array, damping: float) -> Array:
    """One damped least-squares step within limits: a joint that would leave them is held, the others solved again.

    Args:
        angle: where to start, within the limits, in rad, ``[20]``.
        jacobian: of what is to be changed, in m/rad, ``[k, 20]``.
        error: by how much it is to be changed, in m, ``[k]``.
        low: lower limits, ``[20]``.
        high: upper limits, ``[20]``.
        damping: in m/rad.

    Returns:
        The new angles, ``[20]``.
    """
    step, free = np.zeros_like(angle), np.ones(angle.shape, dtype=bool)
    for _ in range(4):
        columns = jacobian[:, free]
        normal = columns.T @ columns + damping**2 * np.eye(columns.shape[1])
        step[free] = np.linalg.solve(normal, columns.T @ (error - jacobian[:, ~free] @ step[~free]))
        outside = free & ((angle + step < low) | (angle + step > high))
        if not outside.any():
            break
        step[outside] = (angle + step).clip(low, high)[outside] - angle[outside]
        free &= ~outside
    return (angle + step).clip(low, high)


class _Hand:
    """Kinematics and weight of the hand. Its 24 joints follow from 20 driven ones and the slack of 4 tendons.

    Attributes:
        driven: number of the joint behind each actuator, ``[20]``.
        low, high: where the limits of those joints begin to push, in rad, ``[20]``.
        stiffness: of the actuators, in N m/rad, ``[20]``.
        centre, half_range: an action ``a`` asks for the angle ``centre + a half_range``, in rad, ``[20]``.
    """

    def __init__(self) -> None:
        env: Any = make_robotics_env("HandReach-v3")
        import mujoco

        model = env.model
        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        self._sites = [model.site(name).id for name in _TIPS]
        self.driven = model.actuator_trnid[:, 0].copy()
        # the simulator's soft limits push from that far ahead
        margin = model.jnt_margin[self.driven]
        self.low, self.high = model.jnt_range[self.driven, 0] + margin, model.jnt_range[self.driven, 1] - margin
        self.stiffness = model.actuator_gainprm[:, 0].copy()
        edges = model.actuator_ctrlrange
        self.centre, self.half_range = edges.mean(1), (edges[:, 1] - edges[:, 0]) / 2.0
        self._last, self._play, self._coupling = _tendons(model, self.driven)

    def slack(self, angles: Array) -> Array:
        """How far the last joints are from where the tendons' middles put them, in rad, ``[24]``; 0 for the others."""
        slack = np.zeros_like(angles)
        free = angles - self._coupling @ angles[self.driven]
        slack[self._last] = free[self._last].clip(-self._play, self._play)
        return slack

    def whole(self, driven: Array, slack: Array) -> Array:
        """Angles of all joints, ``[24]``, from the driven ones, ``[20]``."""
        angles: Array = self._coupling @ driven + slack
        return angles

    def place(self, angles: Array) -> None:
        """Puts the hand where all joints, ``[24]``, have these angles, for the methods below."""
        self._data.qpos[:] = angles
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_comPos(self._model, self._data)

    def tips(self) -> Array:
        """Positions of the fingertips, in m, ``[15]``."""
        return self._data.site_xpos[self._sites].ravel()

    def tips_jacobian(self) -> Array:
        """Derivatives of the fingertips by the driven joints, in m/rad, ``[15, 20]``."""
        rows = np.empty((len(self._sites), 3, self._model.nv))
        for row, site in zip(rows, self._sites, strict=True):
            self._mujoco.mj_jacSite(self._model, self._data, row, None, site)
        jacobian: Array = rows.reshape(-1, self._model.nv) @ self._coupling
        return jacobian

    def gaps(self) -> tuple[Array, Array]:
        """Distances of the c pairs of surfaces that touch, negative where they overlap, and their derivatives.

        Returns:
            In m, ``[c]``, and by the driven joints, in m/rad, ``[c, 20]``.
        """
        model, data = self._model, self._data
        self._mujoco.mj_collision(model, data)
        rows = np.empty((data.ncon, model.nv))
        first, second = np.empty((2, 3, model.nv))
        contact = data.contact
        for row, bodies, place, frame in zip(rows, model.geom_bodyid[contact.geom], contact.pos, contact.frame):
            for jacobian, body in zip((first, second), bodies):
                self._mujoco.mj_jac(model, data, jacobian, None, place, body)
            row[:] = frame[:3] @ (second - first)  # the frame's first axis points to the second surface
        return contact.dist.copy(), rows @ self._coupling

    def weight(self) -> Array:
        """Torques of the actuators that hold the hand still against gravity, in N m, ``[20]``."""
        torque = np.empty(self._model.nv)
        self._mujoco.mj_rne(self._model, self._data, 0, torque)
        return torque @ self._coupling


def _tendons(model: Any, driven: Array) -> tuple[Array, Array, Array]:
    """The joints that hang on a tendon.

    Returns:
        Their numbers, ``[4]``, their play to either side, in rad, ``[4]``, and the derivative of all joints by the
        driven ones, ``[24, 20]``.
    """
    coupling = np.zeros((model.nv, model.nu))
    coupling[driven, np.arange(model.nu)] = 1.0
    last = np.setdiff1d(np.arange(model.nv), driven)
    play = np.empty(len(last))
    for row, joint in enumerate(last):
        # the tendon bounds |r0 q0 - r1 q1|, with q0 the last joint and q1 the one before it
        tendon = model.tendon(model.joint(joint).name.replace(":", ":T_").replace("J0", "J1c")).id
        start = model.tendon_adr[tendon]
        radius = dict(zip(model.wrap_objid[start : start + 2], model.wrap_prm[start : start + 2], strict=True))
        before = joint - 1
        coupling[joint, driven == before] = -radius[before] / radius[joint]
        play[row] = model.tendon_range[tendon, 1] / radius[joint]
    return last, play, coupling
