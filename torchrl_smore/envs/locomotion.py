"""Running robots of gymnasium's MuJoCo suite, with the forward velocity as the goal."""

from __future__ import annotations

from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from torchrl_smore._falls import ant_has_fallen
from torchrl_smore.envs._gym import Env, Wrapper, gymnasium, spaces


class TargetVelocityEnv(Wrapper):
    """A robot whose achieved goal is one column of its observation and whose desired goal is a constant.

    Observations are float32 already here, so that the end of an episode can be recomputed exactly from stored data.
    The reward is the robot's own, which grows with its speed. After ``terminated`` the robot stays as it fell: further
    steps change nothing, earn nothing, and say ``terminated`` again.

    Args:
        env: a robot with a ``Box`` observation and actions in ``[-1, 1]``.
        column: of the observation with the forward velocity.
        target: velocity to run at, m/s.
        has_fallen: whether an episode is over, from its observation; ``None``: never.
    """

    def __init__(self, env: Env, column: int, target: float, has_fallen: Any = None) -> None:
        super().__init__(env)
        self._column, self._has_fallen = column, has_fallen
        self._target = np.array([target], dtype=np.float32)
        assert env.observation_space.shape is not None
        goal = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = spaces.Dict(
            {
                "observation": spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32),
                "achieved_goal": goal,
                "desired_goal": goal,
            }
        )
        self._fallen: dict[str, NDArray[np.float32]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Starts an episode; see :meth:`gymnasium.Env.reset`."""
        self._fallen = None
        observation, info = self.env.reset(seed=seed, options=options)
        return self._as_dict(observation), info

    def step(
        self, action: NDArray[Any]
    ) -> tuple[dict[str, NDArray[np.float32]], SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps the robot, unless it has fallen."""
        if self._fallen is not None:
            return {key: value.copy() for key, value in self._fallen.items()}, 0.0, True, False, {}
        raw, reward, _, _, info = self.env.step(action)
        observation = self._as_dict(raw)
        terminated = self._has_fallen is not None and bool(self._has_fallen(observation["observation"]))
        if terminated:
            self._fallen = observation
        return observation, reward, terminated, False, info

    def _as_dict(self, observation: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        columns = observation.astype(np.float32)
        velocity = columns[self._column : self._column + 1].copy()
        return {"observation": columns, "achieved_goal": velocity, "desired_goal": self._target.copy()}


def make_half_cheetah(target: float = 11.0) -> Env:
    """HalfCheetah-v5: 17 columns, x velocity in column 8; it cannot fall.

    Raises:
        ImportError: if mujoco is missing; says what to install.
    """
    return TargetVelocityEnv(_make("HalfCheetah-v5"), 8, target)


def make_ant(target: float = 5.0) -> Env:
    """Ant-v5 without contact forces: 27 columns, x velocity in column 13; see :func:`ant_has_fallen`.

    Raises:
        ImportError: if mujoco is missing; says what to install.
    """
    return TargetVelocityEnv(_make("Ant-v5", include_cfrc_ext_in_observation=False), 13, target, ant_has_fallen)


def _make(env_id: str, **options: Any) -> Env:
    try:
        import mujoco  # noqa: F401 - gymnasium reports a missing mujoco in other words
    except ImportError as error:
        raise ImportError(f'{env_id} needs mujoco ({error}): pip install "torchrl-smore[envs]"') from error
    env = gymnasium.make(env_id, disable_env_checker=True, **options).unwrapped
    env.spec = None  # it would make the robot without what is wrapped round it
    return env
