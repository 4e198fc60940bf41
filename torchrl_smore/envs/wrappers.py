"""Turns a goal-conditioned gymnasium environment into the form every task has here."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from torchrl_smore.envs._gym import Env, Wrapper, spaces

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
_NOISE_STREAM = 0x5EED  # keeps the noise apart from the environment's own draws, which use the seed itself


class GoalTaskWrapper(Wrapper):
    """Float32 observations, a 0/1 reward, and an episode that success never ends.

    The reward is ``reached(achieved_goal, desired_goal)`` after the step, computed from the float32 observation, so
    that it can be recomputed exactly from stored data; in a terminal state it is 0. ``info["is_success"]`` is the same
    as a bool. The end of the episode is left to the caller, who steps ``Task.horizon`` times: ``terminated`` is what
    the environment says and ``truncated`` is always ``False``.

    Args:
        env: an environment with a ``Dict`` observation of ``observation``, ``achieved_goal`` and ``desired_goal``.
        reached: the success rule, see :meth:`torchrl_smore.envs.Task.reached`.

    Raises:
        ValueError: for another observation space.
    """

    def __init__(self, env: Env, reached: Callable[[Any, Any], Any]) -> None:
        super().__init__(env)
        self._reached = reached
        inner = env.observation_space
        if not isinstance(inner, spaces.Dict) or set(GOAL_KEYS) - set(inner.spaces):
            raise ValueError(f"expected a Dict observation space with keys {', '.join(GOAL_KEYS)}, got {inner}.")
        boxes = {key: inner[key] for key in GOAL_KEYS}
        self.observation_space = spaces.Dict(
            {key: spaces.Box(box.low.min(), box.high.max(), box.shape, np.float32) for key, box in boxes.items()}  # type: ignore[attr-defined]
        )

    @property
    def spec(self) -> None:  # type: ignore[override]
        """``None``, as gymnasium would build the simulator from it, without the rule of success."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Starts an episode; see :meth:`gymnasium.Env.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return _as_float32(observation), info

    def step(
        self, action: NDArray[Any]
    ) -> tuple[dict[str, NDArray[np.float32]], SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps the environment; the reward is 1.0 where the goal is reached afterwards, else 0.0."""
        raw, _, terminated, _, info = self.env.step(action)
        observation = _as_float32(raw)
        # the simulators' only terminal states are falls
        success = not terminated and bool(self._reached(observation["achieved_goal"], observation["desired_goal"]))
        return observation, float(success), bool(terminated), False, {**info, "is_success": success}

    def compute_reward(self, achieved_goal: NDArray[Any], desired_goal: NDArray[Any], info: Any) -> NDArray[np.float32]:
        """Rewards, ``[*]``, of ``achieved_goal`` and ``desired_goal``, each ``[*, dg]``; ``info`` is not used."""
        return np.asarray(self._reached(achieved_goal, desired_goal), dtype=np.float32)


class ActionNoiseWrapper(Wrapper):
    r"""Noise in the environment itself: executes :math:`\mathrm{clip}(a + \sigma \epsilon, -1, 1)`.

    :math:`\epsilon` is standard normal, independent for each step and component. It comes from a generator of its own,
    seeded by the reset seed: the same seed gives the same start and goal with and without noise. The paper's Fig. 2
    uses sigma 0.5, 1.0 and 1.5.

    Args:
        env: the environment; its actions lie in ``[-1, 1]``.
        sigma: standard deviation, in units of the action, at least 0.
    """

    def __init__(self, env: Env, sigma: float) -> None:
        super().__init__(env)
        self._sigma = check_noise("action_noise", sigma)
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, with new noise if a ``seed`` is given; see :meth:`gymnasium.Env.reset`."""
        if seed is not None:
            self._generator = noise_generator(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: NDArray[Any]) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps the environment with the disturbed action."""
        return self.env.step(disturb(action, self._sigma, self._generator))


def noise_generator(seed: int) -> np.random.Generator:
    """The generator of an episode's action noise."""
    return np.random.default_rng([_NOISE_STREAM, seed])


def disturb(action: NDArray[Any], sigma: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """``clip(action + sigma * normal, -1, 1)``; see :class:`ActionNoiseWrapper`.

    Args:
        action: shape ``[*]``, in ``[-1, 1]``.
        sigma: standard deviation, not negative, in the unit of the action.
        generator: of the noise.

    Returns:
        Of the same shape, float32.
    """
    noisy = action + sigma * generator.standard_normal(np.shape(action))
    return np.clip(noisy, -1.0, 1.0).astype(np.float32)


def check_noise(name: str, sigma: float) -> float:
    """Returns ``sigma``, or raises, calling it ``name``.

    Raises:
        ValueError: unless it is finite and at least 0.
        TypeError: if it is no number.
    """
    if isinstance(sigma, (str, bytes)) or not isinstance(sigma, SupportsFloat):
        raise TypeError(f"{name} must be a number, got {sigma!r}.")
    if not (math.isfinite(sigma) and sigma >= 0.0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {sigma!r}.")
    return float(sigma)


def require_mujoco(what: str) -> ModuleType:
    """Imports mujoco.

    Args:
        what: what needs it, for the error.

    Raises:
        ImportError: if it is missing; says what to install.
    """
    try:
        return importlib.import_module("mujoco")
    except ImportError as error:
        raise ImportError(f'{what} needs mujoco ({error}): pip install "torchrl-smore[envs]"') from error


def _as_float32(observation: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    return {key: np.array(observation[key], dtype=np.float32) for key in GOAL_KEYS}
