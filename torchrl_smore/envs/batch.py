"""Several environments of one task behind one pair of calls: what collection and evaluation step."""

from __future__ import annotations

import contextlib
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

    Raises:
        ValueError: if ``make_env`` gives one environment twice, of which a step would be two.
    """

    def __init__(self, make_env: Callable[[], Env], num_envs: int, action_noise: float = 0.0) -> None:
        self.num_envs = num_envs
        with contextlib.ExitStack() as opened:
            envs = []
            for _ in range(num_envs):
                envs.append(make_env())
                opened.callback(envs[-1].close)
            if len({id(env.unwrapped) for env in envs}) < num_envs:
                raise ValueError("the same environment was built twice: what builds one must make a new one each time.")
            # all are there: nothing is left to close by itself
            opened.pop_all()
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
        """Closes every environment, also where one of them fails to."""
        with contextlib.ExitStack() as opened:
            for env in self._envs:
                opened.callback(env.close)


def close_batch(state: dict[str, Any]) -> None:
    """Closes the environments that a process keeps as ``state["batch"]``, if there are any."""
    if "batch" in state:
        state.pop("batch").close()


def _stack(observations: list[dict[str, NDArray[Any]]]) -> Observation:
    return {key: np.stack([observation[key] for observation in observations]) for key in GOAL_KEYS}
