"""Expert for FetchSlide whose every action follows from what is seen, so that a network can be it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from torchrl_smore.envs.experts._around import drive_round
from torchrl_smore.envs.experts._base import Array, length, within_unit_box
from torchrl_smore.envs.experts.actor_file import Actor, read_actor

_FORM = (19, 5, "relu", "clip")  # columns of strike_inputs, outputs, activation and output of a landing model
_LANDING = Path(__file__).parents[1] / "assets" / "actors" / "FetchSlide" / "expert.npz"
_MOVES = 0.004  # speed from which the puck was met, in m/step
_GOAL_RADIUS = 0.05
_FINEST = -4.4  # logarithm of the smallest standard deviation (m) that the points of the disc resolve


@dataclass(frozen=True)
class FetchSlideReactiveExpert:
    """Drives behind the puck and strikes as a model of where pucks come to rest tells; lengths in metres.

    In each step in which the gripper is behind the puck, or follows it closely, the model says of 108 strikes
    and of none how a puck that is struck so, and left alone from then on, would be spread where it comes to rest; the
    expert takes the strike with which it most probably rests in the goal. So a second step corrects what the first has
    made of the puck, and no plan is kept. A puck that came to rest elsewhere within reach is struck again.

    Attributes:
        model: file of the landing model, see :class:`LandingModel`; the one that comes with this package.
        run_up: distance from which the gripper strikes, centre to centre; they touch at 0.046.
        follow: a moving puck further away than this is left alone.
        preference: by how much a strike must raise the probability of success of a puck that moves already.
    """

    model: Path = _LANDING
    run_up: float = 0.05
    follow: float = 0.058
    preference: float = 0.02

    _HEIGHT = 0.42  # the gripper's
    _TOUCH = 0.038  # nearer than this behind the puck there is no room to begin a strike
    _SLACK = 0.006  # how far from the line of the strike, and behind its beginning, it may begin

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 4]``; the gripper is blocked in this task and gets 0."""
        state, goal = (observation[key].astype(np.float64) for key in ("observation", "desired_goal"))
        gripper, puck = state[:, :2], state[:, 3:5]
        along = (goal[:, :2] - puck) / np.maximum(length(goal[:, :2] - puck), 1e-6)[:, None]
        drive = drive_round(gripper, puck, puck - self.run_up * along, clearance=0.045, detour=0.058, gain=30.0)

        action = np.zeros((len(state), 4), dtype=np.float32)
        resting = (length(puck_velocity(state)) > _MOVES) | (length(goal[:, :2] - puck) < _GOAL_RADIUS - 0.002)
        action[:, :2] = np.where(resting[:, None], 0.0, within_unit_box(drive))
        for row in np.flatnonzero(self.striking(observation)):
            action[row, :2] = self._strike(state[row], goal[row, :2])
        action[:, 2] = np.clip(20.0 * (self._HEIGHT - state[:, 2]), -1.0, 1.0)
        return action

    def striking(self, observation: Mapping[str, Array]) -> Array:
        """In which rows the model decides, booleans ``[n]``: behind a resting puck, or close behind a moving one."""
        state, goal = (observation[key].astype(np.float64) for key in ("observation", "desired_goal"))
        from_puck, way = state[:, :2] - state[:, 3:5], goal[:, :2] - state[:, 3:5]
        distance = length(way)
        unit = way / np.maximum(distance, 1e-6)[:, None]
        along = (from_puck * unit).sum(-1)
        across = length(from_puck - along[:, None] * unit)
        placed = (along < -self._TOUCH) & (along > -self.run_up - self._SLACK) & (across < self._SLACK)
        moving = length(puck_velocity(state)) > _MOVES
        decides: Array = np.where(moving, length(from_puck) <= self.follow, placed & (distance >= _GOAL_RADIUS - 0.002))
        return decides

    @cached_property
    def _landing(self) -> LandingModel:
        return LandingModel(self.model)

    def _strike(self, state: Array, goal: Array) -> Array:
        """The best action ``[2]`` in the plane, for one row."""
        way = goal - state[3:5]
        strikes = _candidates(float(np.arctan2(way[1], way[0])))
        chance, rest = self._landing.success(state, strikes, way)
        if chance.max() < self.preference:  # out of reach: as near as can be
            best = int(length(rest - way).argmin())
        else:
            best = int(chance.argmax())
            if length(puck_velocity(state[None]))[0] > _MOVES and chance[0] > chance[best] - self.preference:
                best = 0
        chosen: Array = strikes[best]
        return chosen


class LandingModel:
    """Where pucks come to rest: a network in the file format of actors, and what its outputs mean.

    From :func:`strike_inputs` it tells a normal distribution in the plane: the mean displacement of the puck's centre
    until it rests (m), an eighth of the logarithms of the standard deviations, and the inverse hyperbolic tangent of
    the correlation divided by 0.95. No output needs to leave ``[-1, 1]``.

    Args:
        path: the file; ``recipes/fit_slide.py`` makes it.

    Raises:
        ValueError: if the file is missing, damaged, or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self._network: Actor = read_actor(path)
        if not is_landing_model(self._network):
            network = self._network
            found = (network.input_dim, len(network.layers[-1][1]), network.activation, network.output)
            raise ValueError(
                f"{path} is no landing model: expected (inputs, outputs, activation, output) to be {_FORM}, with "
                f"standardised inputs, found {found}, {'not ' if network.mean is None else ''}standardised."
            )

    def success(self, state: Array, strikes: Array, way: Array) -> tuple[Array, Array]:
        """Probability that the puck comes to rest in the goal, and the mean of where it does.

        Args:
            state: one observation, ``[25]``.
            strikes: k actions in the plane, ``[k, 2]``.
            way: from the puck to the goal, ``[2]``.

        Returns:
            ``[k]``, and ``[k, 2]`` from where the puck is now.
        """
        out = self._outputs(strike_inputs(np.repeat(state[None], len(strikes), 0), strikes)).astype(np.float64)
        mean, spread, correlation = (
            out[:, :2],
            np.exp(np.clip(8.0 * out[:, 2:4], _FINEST, 1.0)),
            0.95 * np.tanh(out[:, 4:]),
        )
        # the mean of the density over points of the disc, times its area
        z = (way + _DISC - mean[:, None]) / spread[:, None]
        rest = 1.0 - np.square(correlation)
        square = (np.square(z).sum(-1) - 2.0 * correlation * z.prod(-1)) / rest
        peak = 2.0 * np.pi * spread.prod(-1) * np.sqrt(rest[:, 0])
        return np.exp(-0.5 * square).mean(-1) * np.pi * _GOAL_RADIUS**2 / peak, mean

    def _outputs(self, inputs: Array) -> Array:
        network = self._network
        hidden = np.clip((inputs - network.mean) / network.std, -network.clip, network.clip)
        for weight, bias in network.layers[:-1]:
            hidden = np.maximum(hidden @ weight.T + bias, 0.0)
        weight, bias = network.layers[-1]
        return np.clip(hidden @ weight.T + bias, -1.0, 1.0)


def is_landing_model(network: Actor) -> bool:
    """Whether a network in the file format of actors may be a :class:`LandingModel`."""
    found = (network.input_dim, len(network.layers[-1][1]), network.activation, network.output)
    return found == _FORM and network.mean is not None


def puck_velocity(state: Array) -> Array:
    """Velocity of the puck in the plane, in m/step, ``[n, 2]`` from observations ``[n, 25]``."""
    velocity: Array = state[:, 14:16] + state[:, 20:22]  # the former are relative to the gripper's velocity, the latter
    return velocity


def strike_inputs(state: Array, action: Array) -> Array:
    """What decides where a struck puck comes to rest, ``[n, 19]``, float32.

    Args:
        state: observations before the action, ``[n, 25]``.
        action: its components in the plane, ``[n, 2]``.

    Returns:
        Positions of the gripper and of the puck from there, velocities of puck and gripper, the puck's angular velocity
        and rotation, and the action.
    """
    parts = (state[:, :3], state[:, 6:9], puck_velocity(state), state[:, 20:23], state[:, 17:20], state[:, 11:14])
    return np.concatenate([*parts, action], axis=-1).astype(np.float32)


def _candidates(angle: float) -> Array:
    """Strikes ``[109, 2]``: none, then 9 directions within 0.4 rad of ``angle`` with 12 strengths each."""
    angles = angle + np.linspace(-0.4, 0.4, 9)
    units = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    units /= np.abs(units).max(-1, keepdims=True)
    strikes = units[:, None] * np.linspace(0.15, 1.0, 12)[None, :, None]
    return np.concatenate([np.zeros((1, 2)), strikes.reshape(-1, 2)])


def _disc() -> Array:
    """19 points of the goal's disc, one for each of as many cells of equal area: a centre and two rings."""
    rings = [np.zeros((1, 2))]
    for count, cells in ((6, 4), (12, 13)):  # cells inside the middle of the ring
        turns = np.arange(count) * (2.0 * np.pi / count)
        rings.append(_GOAL_RADIUS * np.sqrt(cells / 19) * np.stack([np.cos(turns), np.sin(turns)], axis=-1))
    return np.concatenate(rings)


_DISC = _disc()
