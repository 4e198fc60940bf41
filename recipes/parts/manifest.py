"""The manifest of a benchmark: stages of cells in the order in which they are run, as a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from parts.cli import expanded, nearest, typed


@dataclass
class Stage:
    """Cells of tables and figures of the paper, or of a grid of one's own, by some seeds.

    Attributes:
        name: for people.
        seeds: seeds of each cell.
        first_seed: the first of them.
        tables: of the paper.
        figures: of the paper.
        tasks: these alone; without tables and figures all of them.
        methods: these alone; those that a table lacks run on its tasks and settings.
        settings: these alone.
    """

    name: str
    seeds: int
    first_seed: int = 0
    tables: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The stage as options of the benchmark, one request for each table and figure."""
        common = {name: getattr(self, name) for name in ("seeds", "first_seed", "tasks", "methods", "settings")}
        asked = [{"table": number} for number in self.tables] + [{"figure": number} for number in self.figures]
        return [{**common, **each} for each in asked or [{}]]


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        out: folder of the benchmark.
        stages: in their order.
        options: of every run, by the benchmark's name.
        tasks: of a task's runs, more of them.
        differs: by task, what the data and the expert differ in from the paper's, in words.
        commit: that the code must be of, unchanged, in 7 digits or more; default: any, and every row says which it was.
    """

    out: str
    stages: tuple[Stage, ...]
    options: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)
    commit: str | None = None

    def check_commit(self, commit: str) -> None:
        """Refuses code of another commit than the manifest's, or changed since.

        Args:
            commit: of the code, in any number of digits, with ``-dirty`` if it was changed; empty if nobody knows.

        Raises:
            ValueError: naming both.
        """
        if self.commit is None:
            return
        digits = commit.removesuffix("-dirty")
        # either may be the shorter one; none at all begins every other
        if not digits or not (digits.startswith(self.commit) or self.commit.startswith(digits)):
            raise ValueError(
                f"the manifest is of commit {self.commit}, and this code of {commit or 'none'}: run it from a clone "
                "at that commit, or without commit: in it."
            )
        if digits != commit:
            raise ValueError(
                f"the manifest is of commit {self.commit}, and this code was changed since ({commit}): run it from a "
                "clean clone, or without commit: in it."
            )


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML takes the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written, before ``<<`` is replaced."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.composer.ComposerError(None, None, f"found the key {name!r} a second time", key.start_mark)
            seen.add(name)
        return node


def read_manifest(path: str | Path, config: type, allowed: Sequence[str]) -> Manifest:
    """Reads a manifest and checks every name and type in it.

    Args:
        path: the YAML file.
        config: the benchmark's configuration.
        allowed: fields of it that ``options`` and ``tasks`` may set.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming file and place, what was expected and what came.
    """
    path = Path(path)
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    top = _mapping(found, f"{path}", [each.name for each in fields(Manifest)], needed=("out", "stages"))
    stages = _stages(top["stages"], str(path))
    options = _options(top.get("options"), f"{path}: options", config, allowed)
    names = _mapping(top.get("tasks") or {}, f"{path}: tasks")
    tasks = {str(task): _options(given, f"{path}: tasks: {task}", config, allowed) for task, given in names.items()}
    differs = _mapping(top.get("differs") or {}, f"{path}: differs")
    for place, text in [("out", top["out"]), *differs.items()]:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{path}: {place}: expected a text, got {text!r}.")
    # YAML reads a commit of digits alone as a number
    commit = None if top.get("commit") is None else str(top["commit"]).lower()
    if commit is not None and not re.fullmatch("[0-9a-f]{7,40}", commit):
        raise ValueError(f"{path}: commit: expected 7 to 40 hexadecimal digits, got {commit!r}.")
    return Manifest(expanded(top["out"]), stages, options, tasks, differs, commit)


def _stages(found: Any, place: str) -> tuple[Stage, ...]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"{place}: stages: expected a list of at least one stage, got {found!r}.")
    stages = []
    for number, given in enumerate(found, 1):
        where = f"{place}: stage {number}"
        given = _mapping(given, where, [each.name for each in fields(Stage)], needed=("name", "seeds"))
        for name, value in given.items():
            if name in ("tables", "figures") and isinstance(value, list):
                given = {**given, name: [str(each) for each in value]}
            else:
                given = {**given, name: typed(Stage, name, value, where)}
        stage = Stage(**given)
        if stage.seeds < 1 or stage.first_seed < 0:
            raise ValueError(f"{where}: expected seeds from 1 and first_seed from 0, got {given}.")
        stages.append(stage)
    return tuple(stages)


def _options(given: Any, place: str, config: type, allowed: Sequence[str]) -> dict[str, Any]:
    options = _mapping(given or {}, place, allowed)
    return {name: expanded(typed(config, name, value, place)) for name, value in options.items()}


def _mapping(found: Any, place: str, names: Sequence[str] | None = None, needed: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"{place}: expected names with values, got {found!r}.")
    for name in found if names is not None else ():
        if name not in names:
            raise ValueError(f"{place}: unknown {name!r}: expected {', '.join(names)}.{nearest(str(name), names)}")
    for name in needed:
        if name not in found:
            raise ValueError(f"{place} lacks {name}.")
    return dict(found)
