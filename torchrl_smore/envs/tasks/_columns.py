"""Names of columns that several families of tasks have, with their units."""

from __future__ import annotations


def axes(what: str, unit: str, names: str = "xyz") -> tuple[str, ...]:
    """One column for each axis."""
    return tuple(f"{what} {axis} [{unit}]" for axis in names)


GRIPPER = axes("gripper position", "m")
