"""gymnasium-robotics' environments, whose models are compiled once a process and whose joints are read at once."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from torchrl_smore.envs._gym import Env, gymnasium


def make_robotics_env(env_id: str) -> Env:
    """Builds a gymnasium-robotics environment without the wrappers of ``gymnasium.make``.

    Reading the meshes of a robot takes a tenth of a second, and an evaluation of 50 episodes builds 50 robots: they are
    read once a process. What a robot says of its joints it asks by name, one by one, which is a fifth of a step of
    Fetch and two fifths of one of the hand; here it is two reads, of the same numbers.

    Raises:
        ImportError: if gymnasium-robotics or mujoco is missing; says what to install.
    """
    try:
        # the package prints advice on tasks we do not use to stderr when it is imported
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
            import mujoco  # noqa: F401 - gymnasium-robotics reports a missing mujoco only later, in other words
    except ImportError as error:
        raise ImportError(
            f'{env_id} needs gymnasium-robotics and mujoco ({error}): pip install "torchrl-smore[envs]"'
        ) from error
    gymnasium.register_envs(gymnasium_robotics)
    spec = gymnasium.spec(env_id)
    robot: Any = gymnasium.envs.registration.load_env_creator(str(spec.entry_point))
    shared = dataclasses.replace(spec, entry_point=_copying_models(robot))
    env: Any = gymnasium.make(shared, disable_env_checker=True).unwrapped
    # built, it is what gymnasium.make builds: to pickle, to isinstance and to whoever reads its spec
    env.__class__ = robot
    env.spec.entry_point = spec.entry_point
    env._utils = _JointsAtOnce(env._utils, env.model, env._model_names.joint_names)
    return env


@functools.cache
def _copying_models(robot: Any) -> Any:
    """``robot``, whose model is copied from the one that this process has compiled."""

    def _initialize_simulation(self: Any) -> None:
        mujoco = self._mujoco
        self._mujoco = _CompiledOnce(mujoco)
        try:
            robot._initialize_simulation(self)
        finally:
            self._mujoco = mujoco

    return type(robot.__name__, (robot,), {"_initialize_simulation": _initialize_simulation})


class _CompiledOnce:
    """mujoco, as seen by a robot that is being built."""

    def __init__(self, mujoco: ModuleType) -> None:
        self._mujoco = mujoco
        self.MjModel = SimpleNamespace(from_xml_path=self._model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mujoco, name)

    def _model(self, path: str) -> Any:
        # a robot writes into its model
        return copy.copy(_compiled(path))


@functools.cache
def _compiled(path: str) -> Any:
    import mujoco

    return mujoco.MjModel.from_xml_path(path)


class _JointsAtOnce:
    """gymnasium-robotics' ``mujoco_utils``, as seen by one robot, whose joints it has looked for once."""

    def __init__(self, utils: ModuleType, model: Any, joints: Sequence[str]) -> None:
        self._utils = utils
        # where each place holds its own index, what is read is where it is
        places = SimpleNamespace(qpos=np.arange(model.nq), qvel=np.arange(model.nv))
        self._positions, self._velocities = utils.robot_get_obs(model, places, joints)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._utils, name)

    def robot_get_obs(self, model: Any, data: Any, joint_names: Sequence[str]) -> tuple[Any, Any]:
        """Positions and velocities of the robot's joints, ``[joints]`` each, copied."""
        return data.qpos[self._positions], data.qvel[self._velocities]
