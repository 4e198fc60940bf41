"""Trajectories as sequences of states, and files of others that do not replace anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from torchrl_smore._files import replacing
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.trajectories import TrajectoryStore


@contextmanager
def placing(path: str | Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write a file or folder to, which takes its place if nothing fails.

    If something does, folders that were made for it are gone again.

    Raises:
        FileExistsError: if ``path`` exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; move it, or write to another place.")
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as beside:
            yield beside
    except BaseException:
        for folder in made:  # innermost first
            with contextlib.suppress(OSError):  # another program has put something there
                folder.rmdir()
        raise


def column(store: TrajectoryStore, *key: str) -> np.ndarray:
    """A column of the store as an array ``[N, *]``; of one number per row ``[N]``.

    Raises:
        DatasetError: if the store has frames, which would be lost.
    """
    if store.frames is not None:
        raise DatasetError("this format is written without frames: write store.with_frames(None) to leave them out.")
    values: np.ndarray = store.data.get(key).cpu().numpy()
    return values[:, 0] if key[0] == "next" and key[1] in ("reward", "done", "terminated", "truncated") else values


def bounds(store: TrajectoryStore) -> list[tuple[int, int]]:
    """First row and one past the last row of each trajectory."""
    start, stop = store.trajectory_bounds
    return list(zip(start.tolist(), stop.tolist()))


def states(store: TrajectoryStore, name: str) -> np.ndarray:
    """Observations or achieved goals of every state, those of a trajectory of ``T`` steps ``T + 1`` rows.

    Args:
        store: the trajectories.
        name: ``"observation"`` or ``"achieved_goal"``.

    Returns:
        Shape ``[N + K, *]``, trajectories end to end.

    Raises:
        DatasetError: if a step does not begin where the one before it ended, so that no sequence of states says the
            same; this is so where an episode was filled up with its last transition.
    """
    here, after = column(store, name), column(store, "next", name)
    inside = np.ones(len(here) - 1, dtype=bool)
    edges = bounds(store)
    inside[[stop - 1 for _, stop in edges[:-1]]] = False
    broken = inside & (here[1:] != after[:-1]).any(1)
    if broken.any():
        row = int(broken.argmax())
        number = sum(stop <= row for _, stop in edges)
        raise DatasetError(
            f"{name!r}: trajectory {number} goes on in row {row + 1} elsewhere than where row {row} ended (as episodes "
            "that ended early and were filled up do). This format holds sequences of states; d4rl holds such rows."
        )
    return np.concatenate([part for start, stop in edges for part in (here[start:stop], after[stop - 1 : stop])])


def with_last_repeated(store: TrajectoryStore, values: np.ndarray) -> np.ndarray:
    """Rows ``[N, *]`` with each trajectory's last row once more, ``[N + K, *]``."""
    index = np.concatenate([np.append(np.arange(start, stop), stop - 1) for start, stop in bounds(store)])
    return values[index]
