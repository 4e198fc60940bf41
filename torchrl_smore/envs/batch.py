"""Several environments of one task behind one pair of calls: what collection and evaluation step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from torchrl_smore.envs._gym import Env
from torchrl_smore.envs.wrappers import GOAL_KEYS, ActionNoiseWrapper

Observation = dict[str, NDArray[np.float32]]


class BatchEnv(Protocol):
    """``num_envs`` environments stepped together; observations are dicts of float32 arrays ``[n, ...]``."""

    num_envs: int

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Starts one episode per seed, ``num_envs`` of them at most; an episode depends on its seed alone."""

    def step(self, actions: NDArray[Any]) -> Observation:
        """Steps the n environments that were given a seed by ``actions`` ``[n, da]``."""

    def close(self) -> None:
        """Releases the environments."""


class GymBatch:
    """Steps gymnasium environments one after the other.

    Args:
        make_env: builds one environment.
        num_envs: how many.
        action_noise: standard deviation of the environment's action noise; 0 for none.
    """

    def __init__(self, make_env: Callable[[], Env], num_envs: int, action_noise: float = 0.0) -> None:
        self.num_envs = num_envs
        envs = [make_env() for _ in range(num_envs)]
        self._envs = [ActionNoiseWrapper(env, action_noise) for env in envs] if action_noise > 0.0 else envs
        self._active = self._envs

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Starts one episode per seed."""
        self._active = self._envs[: len(seeds)]
        return _stack([env.reset(seed=seed)[0] for env, seed in zip(self._active, seeds, strict=True)])

    def step(self, actions: NDArray[Any]) -> Observation:
        """Steps all environments that have an episode by ``actions`` ``[n, da]``."""
        return _stack([env.step(action)[0] for env, action in zip(self._active, actions, strict=True)])

    def close(self) -> None:
        """Closes every environment."""
        for env in self._envs:
            env.close()


def _stack(observations: list[dict[str, NDArray[Any]]]) -> Observation:
    return {key: np.stack([observation[key] for observation in observations]) for key in GOAL_KEYS}
