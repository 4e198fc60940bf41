"""Writer of OGBench's ``.npz`` files; see :mod:`torchrl_smore.data.readers.ogbench`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.data.writers._states import bounds, column, placing, states, with_last_repeated


def write(store: TrajectoryStore, path: str | Path) -> None:
    """Writes the layout of published files: every state, and beside the last an action without effect.

    ``observations``, ``actions`` and ``terminals`` are OGBench's own. ``achieved_goals`` and ``desired_goals``, one row
    for each state, are of this package: ``Goals(slice(None), ("array", "desired_goals"), "achieved_goals", 0)`` reads
    them again. Rewards are not held.

    Args:
        store: trajectories, each step of which begins where the one before it ended.
        path: the file, which must not exist.

    Raises:
        DatasetError: for other trajectories.
        FileExistsError: if ``path`` exists.
    """
    observations = states(store, "observation")
    terminals = np.zeros(len(observations), dtype=np.float32)
    terminals[[stop + number for number, (_, stop) in enumerate(bounds(store))]] = 1.0
    arrays = {
        "observations": observations,
        "actions": with_last_repeated(store, column(store, "action")),
        "terminals": terminals,
        "achieved_goals": states(store, "achieved_goal"),
        "desired_goals": with_last_repeated(store, column(store, "desired_goal")),
    }
    with placing(path) as beside, beside.open("wb") as file:  # np.savez would append .npz to a name
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
