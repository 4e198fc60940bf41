"""Robots compiled once a process, their joints read at once: what gymnasium.make builds, only sooner."""

from __future__ import annotations

import copy
import pickle

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


@pytest.mark.parametrize("env_id", [*ROBOTS, "FetchReach-v4"])
def test_joints_that_are_read_at_once_are_those_that_are_asked_for_by_name(env_id):
    from gymnasium_robotics.utils import mujoco_utils

    env = _robotics.make_robotics_env(env_id)
    env.reset(seed=0)
    env.step(env.action_space.high)
    of_env = (env.model, env.data, env._model_names.joint_names)
    found, known = env._utils.robot_get_obs(*of_env), mujoco_utils.robot_get_obs(*of_env)
    for values, expected in zip(found, known, strict=True):
        assert np.abs(expected).max() > 0.0
        np.testing.assert_array_equal(values, expected)
    env.step(env.action_space.low)  # an observation is no view of the simulator's state
    for values, expected in zip(found, known, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_joints_behind_an_object_that_moves_freely_are_found_in_positions_and_in_velocities():
    import mujoco
    from gymnasium_robotics.utils import mujoco_utils

    ball = "<geom size='.1'/>"
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody><body pos='0 0 9'><joint name='object' type='free'/>{ball}</body>"
        f"<body><joint name='robot:turn' type='hinge'/>{ball}<body><joint name='robot:push' type='slide'/>{ball}"
        "</body></body></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = np.arange(model.nq), -np.arange(model.nv)
    of_env = (model, data, ["robot:push", "object", "robot:turn"])
    # a free body has 7 positions and 6 velocities
    expected = [np.array([8.0, 7.0]), np.array([-7.0, -6.0])]
    for utils in (mujoco_utils, _robotics._JointsAtOnce(mujoco_utils, model, of_env[2])):
        for values, known in zip(utils.robot_get_obs(*of_env), expected, strict=True):
            np.testing.assert_array_equal(values, known)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_is_an_environment_like_it(duplicate):
    env = _robotics.make_robotics_env("FetchReach-v4")
    other = duplicate(env)
    assert type(other) is type(env)
    found, known = other.reset(seed=3)[0], env.reset(seed=3)[0]
    np.testing.assert_array_equal(found["observation"], known["observation"])
