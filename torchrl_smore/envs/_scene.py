"""MuJoCo scenes of our own, from the folder of assets."""

from __future__ import annotations

from importlib import resources
from typing import Any

from torchrl_smore.envs.wrappers import require_mujoco


def load_model(file: str, what: str) -> Any:
    """The MuJoCo model of ``file`` among the assets.

    Args:
        file: its name.
        what: what needs it, for the error.

    Raises:
        ImportError: if mujoco is missing; says what to install.
    """
    mujoco = require_mujoco(what)
    with resources.as_file(resources.files(__package__) / "assets") as folder:
        return mujoco.MjModel.from_xml_path(str(folder / file))
