"""One way in to every format: which reader a path belongs to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchrl_smore._errors import unknown_name
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers import csv, d4rl, minari, ogbench, wgcsl
from torchrl_smore.data.readers._frames import same_frame
from torchrl_smore.data.readers._goals import Fallen, Reached, rewards, without_falls
from torchrl_smore.data.trajectories import TrajectoryStore

_logger = logging.getLogger("torchrl_smore")
_SUFFIXES: Final = {
    **{".pkl": "wgcsl", ".pickle": "wgcsl", ".hdf5": "d4rl", ".h5": "d4rl", ".npz": "ogbench"},
    **{".csv": "csv", ".parquet": "csv"},
}
_READERS: Final[Mapping[str, Callable[..., TrajectoryStore]]] = {
    "wgcsl": wgcsl.read,
    "d4rl": d4rl.read,
    "minari": minari.read,
    "ogbench": ogbench.read,
    "csv": csv.read,
}
#: Names of the formats.
FORMATS: Final = ("store", *_READERS)


def recognise(path: str | Path) -> str:
    """The format of a dataset, one of :data:`FORMATS`.

    Folders are told apart by the files in them, files by their suffix. What does not exist must be the id of a Minari
    dataset on this machine.

    Raises:
        DatasetError: if it is none of them.
    """
    path = Path(path)
    if path.is_dir() and (path / "meta.json").is_file():
        return "store"
    if minari.is_dataset(path):
        return "minari"
    known = (
        f"expected a trajectory store (a folder with meta.json), a Minari dataset (a folder with data/main_data.hdf5, "
        f"or an id under {minari.datasets_root()}), or a file that ends in {', '.join(_SUFFIXES)}"
    )
    if not path.exists():
        raise DatasetError(f"{path} does not exist; {known}.")
    if path.is_dir() or path.suffix not in _SUFFIXES:
        raise DatasetError(f"{path} is of no known format; {known}, or its format by name, one of {list(FORMATS)}.")
    return _SUFFIXES[path.suffix]


def read(
    path: str | Path, *, reached: Reached, fallen: Fallen | None = None, format: str | None = None, **options: Any
) -> TrajectoryStore:
    """Reads a dataset of any format.

    Args:
        path: a trajectory store, a WGCSL/GoFAR ``buffer.pkl``, a D4RL ``.hdf5``, an OGBench ``.npz``, the folder or id
            of a Minari dataset, or a table (``.csv``, ``.parquet``), which needs ``columns``.
        reached: the task's rule, from achieved goals and goals ``[..., dg]`` to booleans ``[...]``; rewards follow from
            it, but for goals that are numbers of frames, each reached in its own. Those that a trajectory store has,
            and that contradict it, are warned of (logger ``torchrl_smore``); its file stays as it is.
        fallen: the task's rule of a fall, from observations ``[n, ds]`` to booleans ``[n]``: a step that ends in a fall
            has reward 0. By default nothing falls.
        format: one of :data:`FORMATS`; recognised by default.
        options: of the reader, such as ``goals``; see its ``read``. A trajectory store takes those of
            :meth:`TrajectoryStore.load`, and ``progress``, of no use there.

    Raises:
        DatasetError: if the dataset is of no known format, damaged, or not what was expected.
        ValueError: for an unknown format.
    """
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    name = recognise(path) if format is None else format
    if name == "store":
        store = TrajectoryStore.load(path, **{key: value for key, value in options.items() if key != "progress"})
        _reward(store, str(path), reached, fallen)
        return store
    return _READERS[name](path, reached=reached, fallen=fallen, **options)


def _reward(store: TrajectoryStore, label: str, reached: Reached, fallen: Fallen | None) -> None:
    """Puts the rewards of the rules in the place of the store's, and warns of those that contradict ``reached``."""
    following, desired = store.data["next"], store.data["desired_goal"].numpy()
    stored, after = following["reward"].squeeze(-1).numpy(), following["observation"].numpy()
    achieved = following["achieved_goal"].numpy()
    if store.meta.get("states") == "frame numbers" and np.array_equal(achieved, after):
        # a rule of distances says nothing of them
        reached = same_frame
    own = rewards(reached, achieved, desired)
    earned = own.astype(stored.dtype)
    without_falls(earned, fallen, after)
    # a store that was written where falls were known has none for them, one that was written before has
    wrong = (stored != own) & (stored != earned)
    if wrong.any():
        row = int(wrong.argmax())
        _logger.warning(
            "%s: %d of %d rewards contradict the rule of the task, the first in row %d, %g: those of the rule are used",
            label,
            int(wrong.sum()),
            len(wrong),
            row,
            stored[row],
        )
    if (stored != earned).any():  # pages of a mapped store that nobody writes to take no memory
        stored[:] = earned
