"""Helpers of the recipes, and the OpenGL library that films are drawn with.

torchrl imports mujoco, which fails to import where ``MUJOCO_GL`` names a library that is not there. Only films need it,
each drawn in a process of its own, so the variable is put aside here, before anything else of the recipes is imported.
"""

import os

_KEPT = "SMORE_MUJOCO_GL"  # where processes that a recipe starts find what was put aside
if "MUJOCO_GL" in os.environ:
    os.environ[_KEPT] = os.environ.pop("MUJOCO_GL")
#: What ``MUJOCO_GL`` named when the recipe began; ``None``: nothing, and the system's default draws.
OPENGL: str | None = os.environ.get(_KEPT)
