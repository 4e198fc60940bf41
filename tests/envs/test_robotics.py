"""Robots whose models are compiled once a process: what gymnasium.make builds, only sooner."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from torchrl_smore.envs import _robotics

pytest.importorskip("gymnasium_robotics")
ROBOTS = ["FetchSlide-v4", "HandReach-v3"]


@pytest.mark.parametrize("env_id", ROBOTS)
def test_it_is_the_environment_that_gymnasium_builds(env_id):
    _robotics.make_robotics_env(env_id)  # the next is made of a copy
    env, expected = _robotics.make_robotics_env(env_id), gymnasium.make(env_id, disable_env_checker=True).unwrapped
    assert type(env) is type(expected)
    assert env.spec == expected.spec
    assert env.spec is not gymnasium.spec(env_id)
    assert env.spec.to_json() == expected.spec.to_json()
    generator = np.random.default_rng(0)
    for seed in range(2):
        found, known = env.reset(seed=seed)[0], expected.reset(seed=seed)[0]
        for _ in range(10):
            for key, value in known.items():
                np.testing.assert_array_equal(found[key], value)
            action = generator.uniform(-1.0, 1.0, env.action_space.shape)
            found, known = env.step(action)[0], expected.step(action)[0]


@pytest.mark.parametrize("env_id", ROBOTS)
def test_a_model_is_compiled_once_and_what_a_robot_writes_into_it_is_its_own(env_id):
    _robotics._compiled.cache_clear()
    first, second = (_robotics.make_robotics_env(env_id) for _ in range(2))
    assert (_robotics._compiled.cache_info().misses, _robotics._compiled.cache_info().hits) == (1, 1)
    site = first.model.site_pos.copy()
    first.model.site_pos[:] += 1.0
    np.testing.assert_array_equal(second.model.site_pos, site)
    np.testing.assert_array_equal(_robotics.make_robotics_env(env_id).model.site_pos, site)
