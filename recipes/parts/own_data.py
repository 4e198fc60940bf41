"""A dataset of one's own in a benchmark: what tells it from others, and what it holds."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.build import make_dataset
from parts.cli import nearest
from parts.datasets import recognise_dataset
from parts.options import Config as RunConfig
from torchrl_smore import TrajectoryStore
from torchrl_smore.data import DatasetError, readers
from torchrl_smore.envs import get_task

#: Options of ``smore_offline.py`` that say how a dataset is read, beside where it is and its format.
OF_READING = ("goal_columns", "desired_goal", "columns", "clip_actions")
#: All of them.
OF_DATA = ("dataset", "dataset_format", *OF_READING)
#: The part of a setting that names the dataset: ``data=NAME``.
DATA_PART = "data"
_BLOCK = 2**20  # bytes that are read at a time


@dataclass(frozen=True, eq=False)
class OwnData:
    """A dataset that is read and not collected.

    Attributes:
        task: what it is for.
        path: where it is, from the root; of a Minari dataset its id, if it was given so.
        format: one of ``readers.FORMATS``.
        sha256: of its content; a dataset that was moved keeps it.
        reading: the options of :data:`OF_READING`.
    """

    task: str
    path: str
    format: str
    sha256: str
    reading: dict[str, Any]

    @property
    def name(self) -> str:
        """What ``grid.json`` calls it, whose numbers are those of one task."""
        told = hashlib.sha256(f"{self.task} {self.sha256}".encode()).hexdigest()
        return f"{data_name(self.path)}_{told[:8]}"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells runs on it from runs on other data, whose results are others."""
        given = {name: value for name, value in self.reading.items() if value not in (None, False)}
        return {"sha256": self.sha256, **given}

    @property
    def options(self) -> dict[str, Any]:
        """All of :data:`OF_DATA`, as a run takes them."""
        return {"dataset": self.path, "dataset_format": self.format, **self.reading}

    def check_unchanged(self) -> None:
        """Looks whether the content is still what it was.

        Raises:
            ValueError: if it is another.
        """
        if _digest(self.path, self.format) != self.sha256:
            raise ValueError(
                f"dataset={self.path} was changed since this benchmark was begun: its other runs learned from what "
                "it was. Put that back, or give another out=."
            )

    def load(self, expert_fraction: float | None = None) -> TrajectoryStore:
        """Reads it as a run does.

        Raises:
            ValueError: if it is damaged, does not fit the task, or has no such share of experts.
        """
        config = RunConfig(task=self.task, expert_fraction=expert_fraction, **self.options)
        return make_dataset(config, get_task(self.task))

    @functools.cached_property
    def parts(self) -> list[dict[str, Any]]:
        """Who acted in it, in how many trajectories, and what these return, at the largest discount of the task.

        Where the dataset does not say who did, it has one part, of nobody known.
        """
        store, task = self.load(), get_task(self.task)
        gamma = max(task.gammas)
        most = sum(gamma**step for step in range(task.horizon))
        known = store.meta.get("composition") or [{"num_trajectories": store.num_trajectories}]
        counts = [part["num_trajectories"] for part in known]
        means = [float(own.mean()) for own in store.discounted_returns(gamma).split(counts) if len(own)]
        names = [part.get("behaviour", "unknown") for part, count in zip(known, counts) if count]
        return [
            {"behaviour": name, "num_trajectories": count, "discounted_return": mean, "return_over_max": mean / most}
            for name, count, mean in zip(names, filter(None, counts), means)
        ]


def read_own_data(config: Any, task: str) -> OwnData:
    """Looks at the dataset that the options name for a task; its content is read only for what tells it from others.

    Args:
        config: has the options :data:`OF_DATA`.
        task: by its name.

    Raises:
        ValueError: if there is none, or none of that format.
    """
    path, format = config.dataset, config.dataset_format
    if format is not None and format not in readers.FORMATS:
        known = ", ".join(readers.FORMATS)
        raise ValueError(f"unknown dataset_format {format!r}: expected {known}.{nearest(format, readers.FORMATS)}")
    format = format or recognise_dataset(path)
    try:
        sha256 = _digest(path, format)
    except OSError as error:
        raise DatasetError(f"dataset={path}: {error.strerror or error}.") from error
    # the id of a Minari dataset is no path
    place = str(Path(path).resolve()) if Path(path).exists() else path
    return OwnData(task, place, format, sha256, {name: getattr(config, name) for name in OF_READING})


def data_name(path: str) -> str:
    """A dataset's name in settings: that of its file or folder."""
    return re.sub(r"[^\w.+-]+", "_", Path(path).resolve().name) or "data"


def on_own_data(setting: str) -> bool:
    """Whether a setting is one of a dataset of one's own."""
    return any(part.partition("=")[0] == DATA_PART for part in setting.split(";"))


def _digest(path: str, format: str) -> str:
    """SHA-256 of the content, which a trajectory store tells."""
    if format == "store":
        try:
            return str(json.loads((Path(path) / "meta.json").read_text(encoding="utf-8"))["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"dataset={path}: meta.json is damaged, or no store's: {error!r}.") from error
    files = [Path(path)]
    if format == "minari":
        files = [file for file in sorted(readers.minari.find_dataset(path).iterdir()) if file.is_file()]
    found = hashlib.sha256()
    for block in (block for file in files for block in _blocks(file)):
        found.update(block)
    return found.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
