"""Runs recipes as a user does: own process, own working directory, exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchrl_smore.envs import collect

RECIPES = Path(__file__).parents[2] / "recipes"


class Recipes:
    """Runs recipes as :class:`Python` runs scripts."""

    def __init__(self, python: Any) -> None:
        self._python = python

    def started(self, name: str, *options: str, **how: Any) -> Any:
        """A context in which the recipe in the file ``name`` goes on."""
        return self._python.started(RECIPES / name, *options, **how)

    def __call__(self, name: str, *options: str, **how: Any) -> Any:
        """Status and output of the recipe in the file ``name``."""
        return self._python(RECIPES / name, *options, **how)


@pytest.fixture(scope="session")
def recipe(python: Any) -> Recipes:
    """``recipe(name, *options, cwd, env, file_limit, draw) -> Run``; ``file_limit`` (bytes) acts as a full disk."""
    return Recipes(python)


@pytest.fixture(scope="session")
def store_path(tmp_path_factory):
    """A PointReach store of 4 expert and 16 random trajectories."""
    path = tmp_path_factory.mktemp("data") / "store"
    collect("PointReach", expert_episodes=4, random_episodes=16, seed=0, out=path, progress=False)
    return path


@pytest.fixture
def buffer():
    """Arrays of a WGCSL ``buffer.pkl`` for PointReach: 6 trajectories of 50 steps."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (6, 50, 2))
    position = np.clip(np.concatenate([np.zeros((6, 1, 2)), action.cumsum(1)], 1), -5, 5)
    goal = np.repeat(rng.uniform(-5, 5, (6, 1, 2)), 50, 1)
    return {"o": position, "ag": position.copy(), "u": action, "g": goal}


@pytest.fixture(scope="module")
def import_recipe() -> Iterator[Callable[[str], object]]:
    """Imports a module of the recipes by its name; the environment variables that it sets are gone afterwards."""
    environment = dict(os.environ)
    sys.path.insert(0, str(RECIPES))
    yield importlib.import_module
    sys.path.remove(str(RECIPES))
    os.environ.clear()
    os.environ.update(environment)
