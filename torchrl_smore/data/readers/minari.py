"""Reader of Minari datasets in HDF5, without the minari package.

A dataset is a folder ``data`` with ``main_data.hdf5``, in it a group ``episode_N`` for each episode: ``actions
[T, da]``, ``terminations [T]``, ``truncations [T]`` and ``observations``, either an array ``[T+1, ds]`` or, for Dict
spaces, a group of such arrays. Datasets of 2023 may keep episodes in ``additional_data_N.hdf5`` beside it.
``metadata.json`` names the format and the number of episodes.
Source: https://minari.farama.org/content/dataset_standards.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from torchrl_smore.data._files import check_regular, quoted, read_bounded, reading
from torchrl_smore.data._frame_sink import FrameSink
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._flat import assemble, check_limits
from torchrl_smore.data.readers._frames import check_numbered, same_frame
from torchrl_smore.data.readers._goals import Fallen, Goals, Reached
from torchrl_smore.data.readers._hdf5 import MAX_RATIO, address, import_h5py, member, open_hdf5
from torchrl_smore.data.readers._minari_episode import EpisodeLayout
from torchrl_smore.data.readers._rows import Progress, progress_bar
from torchrl_smore.data.trajectories import TrajectoryStore

_MAIN = "main_data.hdf5"
_ADDITIONAL = re.compile(r"additional_data_\d+\.hdf5")
_EPISODE = re.compile(r"episode_(\d{1,18})")
_MAX_METADATA = 1 << 24  # bytes
_MAX_FILES = 256  # beside the main one


def read(
    path: str | Path,
    *,
    reached: Reached,
    goals: Goals | None = None,
    fallen: Fallen | None = None,
    observation_columns: slice | Sequence[int] | None = None,
    frames_folder: str | Path | None = None,
    max_trajectories: int | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TrajectoryStore:
    """Reads a Minari dataset; needs memory for the store and one episode.

    An episode is terminated if its last step is, and truncated otherwise. Episodes of fewer than two steps are left
    out, and counted in ``meta["dropped_rows"]``. Nested Dict observations and goals become one vector, their parts in
    alphabetical order, as Gymnasium flattens them. One part may be pictures, uint8 ``[T+1, height, width, 3]``: they
    become the frames of the store. If there is nothing else, observation and goal are the number of the frame, and a
    goal, the last one of its episode, is reached in its own frame alone, whatever ``reached`` says. Datasets in other
    formats than HDF5, encoded images, Tuple spaces and discrete actions are refused.

    Args:
        path: the dataset's folder, its ``data`` folder, the ``main_data.hdf5`` in it, or the id of a dataset that
            minari keeps on this machine (under ``MINARI_DATASETS_PATH``, by default ``~/.minari/datasets``);
            nothing is downloaded.
        reached: the task's rule, from achieved goals and goals ``[..., dg]`` to booleans ``[...]``. The reward of a
            step is 1 where the goal achieved after the step fulfils the goal that was desired before it; the rewards
            of the file are not read.
        goals: what the goals become where the observations are no Dict of ``observation``, ``achieved_goal`` and
            ``desired_goal``, or instead of these.
        fallen: the task's rule of a fall, from observations ``[n, ds]`` (of the columns that are kept) to booleans
            ``[n]``: a step that ends in a fall has reward 0. By default nothing falls.
        observation_columns: columns of the observation to keep; all by default. ``goals`` are about all of them.
        frames_folder: where frames are kept in a file that is mapped into memory, and has to be there for as long as
            they are used; ``None``: they are held in memory.
        max_trajectories: how many trajectories to keep, the first ones; all by default.
        meta: of the store, beside ``"source"``, ``"format"``, ``"dropped_rows"`` and the names of flattened parts.
        progress: whether to show a tqdm bar.

    Returns:
        The trajectories by the numbers of their episodes.

    Raises:
        DatasetError: if the dataset is missing, damaged, or not of this format; the message says what was expected.
        ImportError: if h5py is missing.
        ValueError: for ``max_trajectories`` below 1, or ``goals`` that read other arrays than the observations.
    """
    check_limits(max_trajectories=max_trajectories)
    if goals is not None and (goals.array != "observations" or goals.desired_array is not None):
        raise ValueError("Goals of a Minari dataset are functions of its observations: other arrays are not read.")
    if goals is not None:
        goals.check()
    folder = find_dataset(path)
    with reading(folder, "a Minari dataset"), contextlib.ExitStack() as stack:
        columns = _Columns(folder, goals, observation_columns, max_trajectories, stack)
        report = stack.enter_context(progress_bar(progress, folder.parent.name, len(columns.kept), "episode"))
        values, terminated, frames = columns.read(report, frames_folder, stack)
        notes = {
            "source": str(path),
            "format": "minari",
            "dropped_rows": columns.dropped_rows,
            **columns.layout.notes,
            **({"states": "frame numbers"} if columns.layout.numbered else {}),
        }
        store = assemble(
            str(columns.main),
            values,
            columns.length,
            terminated,
            reached=same_frame if columns.layout.numbered else reached,
            fallen=fallen,
            meta={**(meta or {}), **notes},
        )
        return store.with_frames(frames)


class _Columns:
    """The episodes of a dataset that become the columns of a store; ``stack`` keeps files open.

    Raises:
        DatasetError: if the dataset is incomplete or holds no episode of two or more steps.
    """

    def __init__(
        self,
        folder: Path,
        goals: Goals | None,
        observation_columns: slice | Sequence[int] | None,
        max_trajectories: int | None,
        stack: contextlib.ExitStack,
    ) -> None:
        self.main = main = folder / _MAIN
        metadata = _metadata(folder)
        file = stack.enter_context(open_hdf5(main))
        self.episodes = _episodes(main, file, stack)
        metadata = _attributes(file) if metadata is None else metadata
        first = self.episodes[0]
        self.layout = EpisodeLayout(first.path, first.group(), metadata, goals, observation_columns)
        seen: dict[tuple[Path, int], str] = {}
        lengths = np.array([self._steps(episode, seen) for episode in self.episodes])
        _check_total(main, metadata, len(lengths), int(lengths.sum()))
        self.kept = np.flatnonzero(lengths >= 2)[:max_trajectories]
        if not len(self.kept):
            raise DatasetError(f"{main}: expected an episode of two or more steps, found {len(lengths)} shorter ones.")
        self.length = lengths[self.kept]
        self.dropped_rows = int(lengths.sum() - self.length.sum())
        held = sum(check_regular(each) for each in {episode.path for episode in self.episodes})
        if (declared := int(self.length.sum()) * self.layout.row_bytes) > MAX_RATIO * held:
            raise DatasetError(f"{main}: expected {declared} bytes of observations, found files of {held} in all.")

    def _steps(self, episode: _Episode, seen: dict[tuple[Path, int], str]) -> int:
        """Number of steps of an episode that is no other episode under another name."""
        group = episode.group()
        place = (episode.path, address(group))
        if place in seen:
            raise DatasetError(
                f"{episode.path}: expected episodes of their own, found {seen[place]!r} again as {episode.name!r}."
            )
        seen[place] = episode.name
        return self.layout.num_steps(episode.path, group)

    def read(
        self, report: Progress, folder: str | Path | None, stack: contextlib.ExitStack
    ) -> tuple[dict[str, np.ndarray], np.ndarray, Tensor | None]:
        """The columns, whether each episode terminated, bool, shape ``[K]``, and the frames, if there are pictures."""
        values: dict[str, np.ndarray] = {}
        sink, states = None, int(self.length.sum()) + len(self.length)
        if self.layout.numbered:
            check_numbered(str(self.main), states)
        if self.layout.pictures is not None:
            sink = stack.enter_context(FrameSink((states, *self.layout.picture_shape), folder))
        terminated = np.empty(len(self.kept), dtype=bool)
        first = 0
        for number, index in enumerate(self.kept):
            episode, steps = self.episodes[int(index)], int(self.length[number])
            rows, terminated[number] = self.layout.read(episode.path, episode.group(), steps, first + number)
            for key, part in rows.items():
                if key not in values:
                    values[key] = np.empty((int(self.length.sum()), part.shape[1]), dtype=np.float32)
                if part.shape[1] != (width := values[key].shape[1]):
                    raise DatasetError(
                        f"{episode.path}: {episode.name!r}: expected {width} columns of {key!r} as in the episodes "
                        f"before, found {part.shape[1]}."
                    )
                values[key][first : first + len(part)] = part
            if sink is not None:
                sink.take(self.layout.read_pictures(episode.path, episode.group(), steps))
            first += steps
            report(1)
        return values, terminated, None if sink is None else sink.frames()


def find_dataset(path: str | Path) -> Path:
    """The ``data`` folder of a dataset, from its folder, that folder itself, or its id.

    Raises:
        DatasetError: if there is none; names the folders that were looked at.
    """
    for folder in _candidates(path):
        if _holds_data(folder):
            return folder
    raise DatasetError(
        f"{path}: expected a Minari dataset, found none in {', '.join(map(str, _candidates(path)))}. Nothing is "
        f"downloaded: 'minari download {path}' does, if it is the id of a published dataset."
    )


def is_dataset(path: str | Path) -> bool:
    """Whether :func:`find_dataset` finds one."""
    return any(map(_holds_data, _candidates(path)))


def datasets_root() -> Path:
    """The folder that minari keeps datasets in."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def _candidates(path: str | Path) -> tuple[Path, ...]:
    if Path(path).name == _MAIN:
        return (Path(path).parent,)
    return Path(path), Path(path) / "data", datasets_root() / path / "data"


def _holds_data(folder: Path) -> bool:
    return (folder / _MAIN).is_file() or (folder / "metadata.json").is_file()


def _metadata(folder: Path) -> dict[str, Any] | None:
    """What ``metadata.json`` says; there is none before version 0.5, when the file's attributes said it.

    Raises:
        DatasetError: if it is damaged, or says that the data are no HDF5.
    """
    file = folder / "metadata.json"
    if not file.exists():
        return None
    with reading(file, "JSON"):
        metadata = json.loads(read_bounded(file, _MAX_METADATA))
    if not isinstance(metadata, dict):
        raise DatasetError(f"{file}: expected an object, found {type(metadata).__name__}.")
    if (found := metadata.get("data_format", "hdf5")) != "hdf5":
        raise DatasetError(
            f"{file}: 'data_format': expected 'hdf5', found {quoted(found)}: with minari, create the dataset again "
            'with data_format="hdf5".'
        )
    return metadata


def _attributes(file: Any) -> dict[str, Any]:
    """What the attributes of the main file say of what matters here."""
    return {
        name: file.attrs[name] for name in ("total_episodes", "total_steps", "observation_space") if name in file.attrs
    }


def _check_total(main: Path, metadata: Mapping[str, Any], episodes: int, steps: int) -> None:
    for name, found in (("total_episodes", episodes), ("total_steps", steps)):
        if name not in metadata:
            continue
        told = metadata[name]
        if isinstance(told, (bool, np.bool_)) or not isinstance(told, (int, np.integer)):
            raise DatasetError(f"{main}: {name!r} of the metadata: expected an integer, found {quoted(told)}.")
        if told != found:
            raise DatasetError(
                f"{main}: expected {quoted(int(told))} {name.removeprefix('total_')} by the metadata, found {found}: "
                "the dataset is incomplete."
            )


@dataclass(frozen=True)
class _Episode:
    """Where an episode lies. Its group is opened anew each time: open ones take tens of kilobytes each."""

    path: Path
    file: Any
    name: str

    def group(self) -> Any:
        group = member(self.path, self.file, self.name)
        if not isinstance(group, import_h5py().Group):
            raise DatasetError(f"{self.path}: {self.name!r}: expected a group, found an array.")
        return group


def _episodes(main: Path, file: Any, stack: contextlib.ExitStack) -> list[_Episode]:
    """The episodes by number; ``stack`` keeps further files open."""
    h5py = import_h5py()
    opened: dict[str, Any] = {}
    numbered = sorted((int(match[1]), name) for name in file if (match := _EPISODE.fullmatch(name)))
    episodes = []
    for _, name in numbered:
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink) and _ADDITIONAL.fullmatch(link.filename):
            # beside the main file and nowhere else: a link may name any file of the machine
            beside = main.with_name(link.filename)
            if link.filename not in opened:
                if len(opened) == _MAX_FILES:
                    raise DatasetError(f"{main}: expected at most {_MAX_FILES} further files, found more.")
                opened[link.filename] = stack.enter_context(open_hdf5(beside))
            episodes.append(_Episode(beside, opened[link.filename], link.path.strip("/")))
        else:
            episodes.append(_Episode(main, file, name))
    if not episodes:
        raise DatasetError(f"{main}: expected groups 'episode_N', found none.")
    return episodes
