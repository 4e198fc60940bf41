"""Reacher as a goal-reaching task: gymnasium's two-link arm, with the fingertip's position as achieved goal."""

from __future__ import annotations

from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from torchrl_smore.envs._gym import Env, Wrapper, spaces
from torchrl_smore.envs.wrappers import require_mujoco

Array = NDArray[Any]

_REACH = 0.3  # bound of fingertip and goal coordinates in the spaces, m; the arm is 0.21 long, the goals' disc 0.2
_FASTEST = 1000.0  # bound of joint velocities in the spaces, rad/s; full torque against the joints' damping gives 200


class ReacherGoalEnv(Wrapper):
    """Reorders the 10 columns of ``Reacher-v5`` into the 11 of WGCSL's goal-reaching Reacher, without the target.

    ``Reacher`` observes the target twice: its position, and as the vector that leads to it from the fingertip. WGCSL
    turns the vector into the fingertip's position but leaves the target in columns 4 and 5, where a relabelled goal
    contradicts it, and where a policy can read the original goal. Here these two columns hold 0; their places stay, so
    that dimensions are those of the paper (11, 2, 2).

    Args:
        env: ``Reacher-v5`` or the like of it.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        plane = spaces.Box(-_REACH, _REACH, (2,), np.float64)
        state = spaces.Box(-_FASTEST, _FASTEST, (11,), np.float64)
        self.observation_space = spaces.Dict({"observation": state, "achieved_goal": plane, "desired_goal": plane})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Starts an episode; see :meth:`gymnasium.Env.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return _to_goal_form(observation), info

    def step(self, action: Array) -> tuple[dict[str, Array], SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps the simulator; the reward is Reacher's dense one."""
        observation, *rest = self.env.step(action)
        return _to_goal_form(observation), *rest  # type: ignore[return-value]


def make_reacher_env() -> Env:
    """Builds the environment.

    Raises:
        ImportError: if mujoco is missing; says what to install.
    """
    require_mujoco("Reacher")
    from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv

    return ReacherGoalEnv(ReacherEnv())


def _to_goal_form(observation: Array) -> dict[str, Array]:
    angles, target, velocity, to_fingertip = np.split(observation, [4, 6, 8])
    fingertip = target + to_fingertip
    state = np.concatenate([angles, (0.0, 0.0), velocity, fingertip, (0.0,)])
    return {"observation": state, "achieved_goal": fingertip, "desired_goal": target.copy()}
