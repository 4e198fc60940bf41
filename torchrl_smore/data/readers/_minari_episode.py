"""One episode of a Minari dataset: the arrays that its group holds, as columns of a store."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_smore.data._files import quoted
from torchrl_smore.data._numbers import is_rounded, say_rounded
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._frames import check_pictures, is_picture
from torchrl_smore.data.readers._goals import Goals, columns_of
from torchrl_smore.data.readers._hdf5 import Hdf5Array, address, import_h5py, member
from torchrl_smore.data.readers._rows import Column, check_numbers, is_single

_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
_MAX_DEPTH = 8  # of nested Dict spaces
_MAX_PARTS = 256  # of all of them together


class EpisodeLayout:
    """How observations are laid out, as found in the first episode and then demanded of every other.

    Args:
        path: file of the first episode.
        group: group of the first episode.
        metadata: of the dataset.
        goals: what the goals become; ``None`` takes those of a Dict observation.
        observation_columns: what is kept of the observation; ``None`` takes all.

    Attributes:
        pictures: name of the part of the observations that is pictures, or ``None``.
        numbered: whether there is nothing else, so that states are numbers of frames.

    Raises:
        DatasetError: if the observations are no vectors, or hold no goals and none are given.
    """

    def __init__(
        self,
        path: Path,
        group: Any,
        metadata: Mapping[str, Any],
        goals: Goals | None,
        observation_columns: slice | Sequence[int] | None,
    ) -> None:
        self.goals, self.observation_columns = goals, observation_columns
        found = list(itertools.islice(_leaves(path, group, "observations"), _MAX_PARTS + 1))
        if len(found) > _MAX_PARTS:
            raise DatasetError(f"{path}: expected observations of at most {_MAX_PARTS} parts, found more.")
        self.pictures = self._find_pictures(path, group, metadata, found)
        found = [name for name in found if name != self.pictures]
        self.numbered = not found
        if self.numbered:
            self.parts: dict[str, list[str]] = {}
            self._widths: dict[str, int] = {}
            return
        parts = {key: [name for name in found if _below(name, f"observations/{key}")] for key in _GOAL_KEYS}
        has_goals = all(parts.values())
        if not has_goals and goals is None:
            names = [name.partition("/")[2] or name for name in found]
            raise DatasetError(
                f"{path}: expected observations with {list(_GOAL_KEYS)}, found {names}: pass goals, a function of the "
                "observation."
            )
        self.parts = {"observation": parts["observation"] if has_goals else found}
        if goals is None:
            self.parts |= {key: parts[key] for key in _GOAL_KEYS[1:]}
        for names in self.parts.values():
            for name in names:
                _check_space(path, metadata, name)
        self._widths = {name: _width(Hdf5Array(path, group, name)) for name in itertools.chain(*self.parts.values())}

    def _find_pictures(self, path: Path, group: Any, metadata: Mapping[str, Any], found: Sequence[str]) -> str | None:
        """The part of the observations that is pictures, if there is one."""
        arrays = {name: Hdf5Array(path, group, name) for name in found}
        named = [name for name, array in arrays.items() if is_picture(array)]
        if len(named) > 1:
            raise DatasetError(f"{path}: expected one picture of each state, found {named}.")
        self.picture_shape: tuple[int, ...] = ()
        for name in named:
            self.picture_shape = check_pictures(arrays[name]).shape[1:]
            _check_space(path, metadata, name, self.picture_shape)
        return named[0] if named else None

    @property
    def row_bytes(self) -> int:
        """What the observations of one step take in a store, at least."""
        return 4 * sum(self._widths.values()) + math.prod(self.picture_shape or (0,))

    @property
    def notes(self) -> dict[str, Any]:
        """Names of flattened parts, where there are several."""
        several = {key: names for key, names in self.parts.items() if len(names) > 1}
        return {"flattened": several} if several else {}

    @staticmethod
    def num_steps(path: Path, group: Any) -> int:
        """Number of steps of an episode."""
        return Hdf5Array(path, group, "actions").shape[0]

    def read(self, path: Path, group: Any, steps: int, first: int) -> tuple[dict[str, np.ndarray], bool]:
        """The rows of an episode for each column, and whether it terminated.

        Without vectors the observation is the number of the frame, of which ``first`` is the episode's first, and the
        goal that of its last.
        """
        action = _vectors(Hdf5Array(path, group, "actions"), steps)
        if self.numbered:
            number = np.arange(first, first + steps + 1, dtype=np.float32)[:, None]
            states = {
                "observation": number,
                "achieved_goal": number,
                "desired_goal": np.full_like(number, first + steps),
            }
            return _as_rows(states, action), _terminated(Hdf5Array(path, group, "terminations"), steps)
        states = {
            key: np.concatenate(
                [_vectors(Hdf5Array(path, group, name), steps + 1, self._widths[name]) for name in names], axis=1
            )
            for key, names in self.parts.items()
        }
        label = f"{path}: {f'{group.name[1:]}/observations'!r}"
        if self.goals is not None:
            column = Column(np.arange(steps + 1), self.goals.rows(label))
            column.fill(label, states["observation"], 0)
            states["achieved_goal"] = column.values
            goal = column.values[-1] if self.goals.desired_is_final else self.goals.constant()
            states["desired_goal"] = np.repeat(goal[None], steps + 1, axis=0)
        if self.observation_columns is not None:
            states["observation"] = columns_of(label, self.observation_columns)(states["observation"])
        return _as_rows(states, action), _terminated(Hdf5Array(path, group, "terminations"), steps)

    def read_pictures(self, path: Path, group: Any, steps: int) -> np.ndarray:
        """The pictures of an episode, uint8 ``[steps + 1, height, width, 3]``.

        Raises:
            DatasetError: if there are more or fewer, or of another size than in the first episode.
        """
        assert self.pictures is not None
        array = check_pictures(Hdf5Array(path, group, self.pictures))
        expected = (steps + 1, *self.picture_shape)
        if array.shape != expected:
            raise DatasetError(
                f"{array.label}: expected {expected[0]} pictures of {list(self.picture_shape)} as in the first "
                f"episode, found {list(array.shape)}."
            )
        return array.read()


def _as_rows(states: Mapping[str, np.ndarray], action: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of transitions, from those of ``T + 1`` states."""
    return {
        "observation": states["observation"][:-1],
        "action": action,
        "achieved_goal": states["achieved_goal"][:-1],
        "desired_goal": states["desired_goal"][:-1],
        "next_observation": states["observation"][1:],
        "next_achieved_goal": states["achieved_goal"][1:],
    }


def _check_space(path: Path, metadata: Mapping[str, Any], name: str, picture: tuple[int, ...] | None = None) -> None:
    """Refuses what is no vector, or no such picture, by the declared space: encoded images look like vectors."""
    space = metadata.get("observation_space")
    if not isinstance(space, str):
        return
    try:
        declared = json.loads(space)
        for key in name.split("/")[1:]:
            declared = declared["subspaces"][key]
        kind, shape = declared["type"], declared.get("shape")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{path}: 'observation_space' of the metadata: expected a space with {name!r}, found {space[:200]}."
        ) from error
    if picture is not None:
        if kind != "Box" or shape != list(picture):
            raise DatasetError(
                f"{path}: {name!r}: expected pictures of the declared {quoted(kind)} of shape {quoted(shape)}, found "
                f"{list(picture)}."
            )
        return
    if kind != "Box" or not isinstance(shape, list) or len(shape) != 1:
        raise DatasetError(
            f"{path}: {name!r}: expected a Box of vectors, found a {quoted(kind)} of shape {quoted(shape)}; a "
            "trajectory store holds vectors of float32."
        )


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}/")


def _leaves(path: Path, group: Any, name: str, above: tuple[int, ...] = ()) -> Iterator[str]:
    """Names of the arrays below ``name``, parts of Dict spaces in alphabetical order."""
    item = member(path, group, name)
    if not isinstance(item, import_h5py().Group):
        yield name
        return
    place = address(item)
    if place in above:
        raise DatasetError(f"{path}: {item.name!r}: expected a Dict space, found a group that contains itself.")
    if len(above) == _MAX_DEPTH or "_index_0" in item or not 0 < len(item) <= _MAX_PARTS:
        expected = f"expected an array or a Dict space of at most {_MAX_DEPTH} levels"
        raise DatasetError(f"{path}: {item.name!r}: {expected}, found a group of {list(itertools.islice(item, 20))}.")
    for key in sorted(item):
        yield from _leaves(path, group, f"{name}/{key}", (*above, place))


def _width(array: Hdf5Array) -> int:
    check_numbers(array, 2)
    return int(array.shape[1])


def _vectors(array: Hdf5Array, rows: int, width: int | None = None) -> np.ndarray:
    check_numbers(array, 1 if width is None and is_single(array) else 2)
    if width is not None and array.shape[1] != width:
        raise DatasetError(
            f"{array.label}: expected {width} columns as in the first episode, found {list(array.shape)}."
        )
    if array.shape[0] != rows:
        raise DatasetError(f"{array.label}: expected {rows} rows, found {list(array.shape)}.")
    column, values = Column(np.arange(rows)), array.read()
    if is_rounded(values):
        say_rounded(array.label)
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow becomes inf and is reported
        column.fill(array.label, values.astype(np.float32, copy=False).reshape(rows, -1), 0)
    return column.values


def _terminated(array: Hdf5Array, steps: int) -> bool:
    check_numbers(array, 1)
    if array.shape[0] != steps:
        raise DatasetError(f"{array.label}: expected {steps} rows, found {list(array.shape)}.")
    flags = array.read() != 0
    if flags[:-1].any():
        raise DatasetError(
            f"{array.label}: expected an episode to end where it terminates, found True in step {int(flags.argmax())} "
            f"of {steps}."
        )
    return bool(flags[-1])
