"""Scripted expert for FetchSlide: one strike, chosen by trying strikes in a simulator of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from torchrl_smore.envs._robotics import make_robotics_env
from torchrl_smore.envs.experts._around import drive_round
from torchrl_smore.envs.experts._base import Array, Expert, SimulatorOwner, length, within_unit_box

_HORIZON = 50
_STRIKE_STEPS = 2  # with one, half the goals are out of range; a third no longer meets the puck
_AT_REST = 2e-4  # m/step


@dataclass(frozen=True)
class FetchSlideExpert(SimulatorOwner):
    """Drives behind the puck and strikes it once, so that it comes to rest in the goal; lengths in metres.

    Where a puck ends depends on the strike in too rough a way for a formula: a start that differs by a float32's
    rounding can end centimetres away. So each episode is tried out beforehand in a copy of the environment, reset with
    the same seed and hence equal to it bit for bit. A trial is corrected in angle and strength by what it missed; where
    corrections stop helping, random changes of growing size are added, to the run-up as well.

    The strike that was chosen is not in the observation: a policy cloned from this expert can only learn their mean.
    Noise on the expert's actions, or in the environment, makes the strike another one than was tried, and ruins it.

    Attributes:
        num_trials: trials for one episode, at most; each takes about 30 ms.
        precision: distance between puck and goal at which a trial is good enough.
        run_up: distance from which the gripper strikes, centre to centre; they touch at 0.046.
    """

    num_trials: int = 24
    precision: float = 0.02
    run_up: float = 0.05

    def plan(self, observation: Mapping[str, Array], seeds: Sequence[int]) -> Expert:
        """Plans n episodes; see :class:`~torchrl_smore.envs.PlanningExpert`.

        Raises:
            ValueError: if an observation is not the one that its seed leads to.
            ImportError: if a package the simulator needs is missing; says what to install.
        """
        states = observation["observation"]
        return _Striker([self._search(state, seed) for state, seed in zip(states, seeds, strict=True)])

    @cached_property
    def _table(self) -> _Table:
        return _Table()

    def _search(self, state: Array, seed: int) -> _Strike:
        puck, goal = self._table.begin(state, seed)
        rng = np.random.default_rng(seed)
        wish = _polar(goal - puck)
        strike = best = _Strike(wish[1], self.run_up, min(0.3 + wish[0], 1.0))
        best_error, best_end, stale = np.inf, puck, 0
        for _ in range(self.num_trials):
            end = self._table.end(state, seed, strike)
            error = float(length(end - goal))
            if error < best_error:
                best, best_error, best_end, stale = strike, error, end, 0
            else:
                stale += 1
            if best_error < self.precision:
                break
            # every other time from the last trial: what is best by luck alone leads no further
            base, base_end = (strike, end) if stale % 2 else (best, best_end)
            strike = _corrected(base, _polar(base_end - puck), wish)
            if stale:
                strike = self._varied(strike, 0.02 * min(stale + 1, 6), rng)
        return best

    def _varied(self, strike: _Strike, spread: float, rng: np.random.Generator) -> _Strike:
        turn, boost = spread * rng.standard_normal(2)
        return _Strike(
            strike.angle + turn,
            rng.uniform(self.run_up - 0.002, self.run_up + 0.01),
            float(np.clip(strike.speed * np.exp(boost), 0.1, 1.0)),
        )


@dataclass(frozen=True)
class _Strike:
    """How to strike.

    Attributes:
        angle: direction in the plane of the table, in rad.
        run_up: distance from the puck's centre at which the strike begins.
        speed: largest component of the action while striking, in ``(0, 1]``.
    """

    angle: float
    run_up: float
    speed: float


def _polar(vector: Array) -> tuple[float, float]:
    """Length and angle in the plane of the table."""
    return float(np.hypot(vector[0], vector[1])), float(np.arctan2(vector[1], vector[0]))


def _corrected(strike: _Strike, got: tuple[float, float], wish: tuple[float, float]) -> _Strike:
    """The strike that ought to send the puck ``wish`` away, after one that sent it ``got`` (distance and angle)."""
    if got[0] < 0.03:  # hardly met: its direction says nothing
        return replace(strike, speed=min(1.5 * strike.speed, 1.0))
    turn = (wish[1] - got[1] + np.pi) % (2.0 * np.pi) - np.pi
    speed = strike.speed * (wish[0] / got[0]) ** 0.6
    return replace(strike, angle=strike.angle + np.clip(turn, -0.6, 0.6), speed=float(np.clip(speed, 0.1, 1.0)))


class _Striker:
    """Carries out one strike per row: drives behind the puck, strikes, and stands still from then on.

    Args:
        strikes: one for each of the n rows.
    """

    _HEIGHT = 0.42  # the gripper's
    _TOUCH = 0.038  # nearer than this behind the puck there is no room to begin a strike
    _SLACK = 0.005  # how far from the line of the strike, and behind its beginning, it may begin
    _STRUCK = 0.006  # speed of a puck that was met, in m/step

    def __init__(self, strikes: list[_Strike]) -> None:
        angle = np.array([strike.angle for strike in strikes])
        self._along = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        self._run_up = np.array([strike.run_up for strike in strikes])
        speed = np.array([strike.speed for strike in strikes])
        self._strike = self._along * (speed / np.abs(self._along).max(-1))[:, None]
        self._striking = np.zeros(len(strikes), dtype=bool)
        self._steps_left = np.full(len(strikes), _STRIKE_STEPS)  # counted from when the puck is met

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, 4]``; the gripper is blocked in this task and gets 0."""
        state = observation["observation"].astype(np.float64)
        gripper, puck = state[:, :2], state[:, 3:5]
        self._striking |= self._in_place(gripper - puck)
        self._steps_left -= self._striking & (_puck_speed(state) > self._STRUCK)
        spot = puck - self._run_up[:, None] * self._along
        drive = drive_round(gripper, puck, spot, clearance=0.045, detour=0.058, gain=30.0)

        action = np.zeros((len(state), 4), dtype=np.float32)
        plane = np.where(self._striking[:, None], self._strike, within_unit_box(drive))
        action[:, :2] = np.where(self.done[:, None], 0.0, plane)
        action[:, 2] = np.clip(20.0 * (self._HEIGHT - state[:, 2]), -1.0, 1.0)
        return action

    @property
    def done(self) -> Array:
        """Whether the strike is over, ``[n]``."""
        done: Array = self._steps_left <= 0
        return done

    def _in_place(self, from_puck: Array) -> Array:
        along = (from_puck * self._along).sum(-1)
        across = length(from_puck - along[:, None] * self._along)
        placed: Array = (along < -self._TOUCH) & (along > -self._run_up - self._SLACK) & (across < self._SLACK)
        return placed


def _puck_speed(state: Array) -> Array:
    """Speed of the puck in the plane, in m/step, ``[n]`` from observations ``[n, 25]``."""
    return length(state[:, 14:16] + state[:, 20:22])  # the former are relative to the gripper's velocity, the latter


class _Table:
    """A copy of the environment in which strikes are tried."""

    def __init__(self) -> None:
        self._env = make_robotics_env("FetchSlide-v4")

    def begin(self, state: Array, seed: int) -> tuple[Array, Array]:
        """Resets the copy; returns the positions of puck and goal, ``[3]`` each.

        Raises:
            ValueError: if that does not lead to the observation ``state``, ``[25]``, float32.
        """
        first = self._env.reset(seed=seed)[0]
        if not np.array_equal(first["observation"].astype(np.float32), state):
            raise ValueError(f"the observation is not the start of the FetchSlide episode with seed {seed}.")
        return first["achieved_goal"], first["desired_goal"]

    def end(self, state: Array, seed: int, strike: _Strike) -> Array:
        """Position of the puck, ``[3]``, after that strike in the episode of a seed, which begins at ``state``."""
        self._env.reset(seed=seed)
        striker = _Striker([strike])
        for _ in range(_HORIZON):
            raw = self._env.step(striker({"observation": state[None]})[0])[0]
            state = raw["observation"].astype(np.float32)
            if striker.done[0] and _puck_speed(state[None])[0] < _AT_REST:
                break
        position: Array = raw["achieved_goal"]
        return position
