"""OpenGL without a display, for MuJoCo to draw with."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any, Literal, get_args

from torchrl_smore._errors import unknown_name

OpenGL = Literal["egl", "osmesa", "glfw", "cgl"]


class RenderError(RuntimeError):
    """There is no OpenGL to draw with; the message says what to install."""


def render_error(backend: str, reason: str) -> RenderError:
    return RenderError(
        f"rendering with MUJOCO_GL={backend} failed ({reason}). It needs an OpenGL library: apt-get install libegl1 "
        "for MUJOCO_GL=egl, or libosmesa6 for MUJOCO_GL=osmesa; MUJOCO_GL=glfw needs a display."
    )


def default_opengl() -> str:
    """What the environment variable ``MUJOCO_GL`` names, else what needs no display here."""
    return os.environ.get("MUJOCO_GL") or {"darwin": "cgl", "win32": "glfw"}.get(sys.platform, "egl")


def open_gl(model: Any, size: int, backend: str) -> tuple[Any, Any]:
    """A window of ``size`` by ``size`` pixels that nobody sees, made current, and MuJoCo's context in it.

    Raises:
        RenderError: if that library cannot be had; says what to install.
        ValueError: for an unknown one.
    """
    if backend not in get_args(OpenGL):
        raise unknown_name("OpenGL library", backend, get_args(OpenGL))
    import mujoco

    model.vis.global_.offwidth = model.vis.global_.offheight = size
    with warnings.catch_warnings(record=True) as said:  # GLFW only warns where it fails
        warnings.simplefilter("always")
        window = None
        try:
            window = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
            window.make_current()
            # where it made no window, MuJoCo would draw in that of another library, if one is there
            if backend == "glfw" and not importlib.import_module("glfw").get_current_context():
                raise RuntimeError("there is no window")
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        # a missing library shows itself as anything from OSError to AttributeError
        except Exception as error:
            if window is not None:
                window.free()
            reason = said[0].message if said else error
            raise render_error(backend, f"{type(reason).__name__}: {reason}") from error
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    return window, context
