"""Synthetic episodes and stores that the data tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from torchrl_smore.data.trajectories import TrajectoryStore

Episode = dict[str, np.ndarray]


@pytest.fixture
def make_episodes() -> Callable[..., list[Episode]]:
    """Returns a factory of random episodes, one for each length in ``lengths``."""

    def make(
        lengths: Sequence[int] = (5, 3, 2, 7),
        *,
        observation_dim: int = 4,
        goal_dim: int = 2,
        action_dim: int = 3,
        seed: int = 0,
    ) -> list[Episode]:
        rng = np.random.default_rng(seed)
        return [
            {
                "observation": rng.normal(size=(steps + 1, observation_dim)).astype(np.float32),
                "achieved_goal": rng.normal(size=(steps + 1, goal_dim)).astype(np.float32),
                "action": rng.uniform(-1, 1, size=(steps, action_dim)).astype(np.float32),
                "desired_goal": rng.normal(size=goal_dim).astype(np.float32),
                "reward": rng.integers(0, 2, size=steps).astype(np.float32),
            }
            for steps in lengths
        ]

    return make


@pytest.fixture
def episodes(make_episodes: Callable[..., list[Episode]]) -> list[Episode]:
    """Four episodes of 5, 3, 2 and 7 steps."""
    return make_episodes()


@pytest.fixture
def make_store(make_episodes: Callable[..., list[Episode]]) -> Callable[..., TrajectoryStore]:
    """Returns a factory of stores: the arguments of ``make_episodes``, and ``meta``."""

    def make(*args: Any, meta: dict[str, Any] | None = None, **kwargs: Any) -> TrajectoryStore:
        return TrajectoryStore.from_episodes(make_episodes(*args, **kwargs), meta)

    return make


@pytest.fixture
def store(make_store: Callable[..., TrajectoryStore]) -> TrajectoryStore:
    """A store of the four ``episodes``."""
    return make_store()
