"""Defaults of preset, method and task, from the YAML files in ``configs/``.

What the user gives comes first, then ``configs/task/TASK.yaml`` (its ``methods`` section of the chosen method, which
may have ``presets`` of its own, its ``presets`` section of the chosen preset, its own options), then
``configs/method/METHOD.yaml`` (its ``presets`` section, its own options), then ``configs/preset/PRESET.yaml``, then the
dataclass of the recipe, which alone decides what options there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from parts.cli import nearest, typed

CONFIGS = Path(__file__).parents[1] / "configs"
PRESETS = ("quick", "paper")
#: Sections that a file of each kind may have, beside options.
_SECTIONS = {"task": ("methods", "presets"), "method": ("presets",), "preset": ()}


def resolve(config: Any) -> Any:
    """A copy of a configuration in which every option without a value has its default, if one is named anywhere.

    Args:
        config: has ``task``, ``method`` and ``preset``; ``None`` marks an option without a value.

    Raises:
        ValueError: if a file has an option that the recipe lacks, or a value of another type.
    """
    defaults = find_defaults(type(config), config.task, config.method, config.preset)
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def find_defaults(recipe: type, task: str, method: str, preset: str) -> dict[str, Any]:
    """Defaults by option; a task without a file of its own has none."""
    of_task, of_method = read_defaults(recipe, "task", task), read_defaults(recipe, "method", method)
    parts = [read_defaults(recipe, "preset", preset)]
    for own in (of_method, of_task, of_task.get("methods", {}).get(method, {})):
        parts += [own, own.get("presets", {}).get(preset, {})]
    return {name: value for part in parts for name, value in part.items() if name not in _SECTIONS["task"]}


def read_defaults(recipe: type, kind: str, name: str) -> dict[str, Any]:
    """One file of defaults, checked.

    Args:
        recipe: the dataclass of the options.
        kind: ``"task"``, ``"method"`` or ``"preset"``.
        name: of the file, without its suffix.

    Raises:
        ValueError: see :func:`resolve`.
    """
    path = CONFIGS / kind / f"{name}.yaml"
    if not path.is_file():
        return {}
    try:
        content = _parsed(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold options by name, found {type(content).__name__}.")
    _check_sections(recipe, content, _SECTIONS[kind], str(path))
    return dict(content)


def of_every_preset(task: str, names: Iterable[str]) -> dict[str, Any]:
    """What the file of a task says of some options whatever the preset, for recipes that have none; not checked."""
    path = CONFIGS / "task" / f"{task}.yaml"
    content = (_parsed(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    return {name: content[name] for name in names if name in content}


@cache
def _parsed(text: str) -> Any:
    """What a text in YAML says; a benchmark reads the same few files for each of its runs."""
    return yaml.safe_load(text)


def _check_sections(recipe: type, content: Mapping[str, Any], sections: tuple[str, ...], where: str) -> None:
    """Checks options, and those in sections; the section of a method may have presets of its own."""
    _check(recipe, {key: value for key, value in content.items() if key not in sections}, where)
    for section in sections:
        for key, options in content.get(section, {}).items():
            inner = ("presets",) if section == "methods" else ()
            _check_sections(recipe, options, inner, f"{where}, {section}.{key}")


def _check(recipe: type, options: Mapping[str, Any], where: str) -> None:
    names = [field.name for field in dataclasses.fields(recipe)]
    for name, value in options.items():
        if name not in names:
            raise ValueError(f"{where}: the recipe has no option {name!r}.{nearest(str(name), names)}")
        typed(recipe, name, value, where)
