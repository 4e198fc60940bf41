"""Writer of ``buffer.pkl``, the format of WGCSL, GoFAR and GOAT; see :mod:`torchrl_smore.data.readers.wgcsl`."""

from __future__ import annotations

import pickle
from pathlib import Path

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.data.writers._states import bounds, column, placing, states


def write(store: TrajectoryStore, path: str | Path) -> None:
    """Writes a dictionary of float32 arrays ``o, ag [K, T+1, *]`` and ``u, g [K, T, *]``. It holds no rewards.

    Args:
        store: trajectories of one length, each step of which begins where the one before it ended.
        path: the file, which must not exist.

    Raises:
        DatasetError: for other trajectories.
        FileExistsError: if ``path`` exists.
    """
    lengths = sorted({stop - start for start, stop in bounds(store)})
    if len(lengths) > 1:
        raise DatasetError(
            f"buffer.pkl holds trajectories of one length, found {lengths[0]} to {lengths[-1]} transitions; d4rl, "
            "minari and ogbench hold any."
        )
    steps, count = lengths[0], store.num_trajectories
    arrays = {
        "o": states(store, "observation").reshape(count, steps + 1, -1),
        "ag": states(store, "achieved_goal").reshape(count, steps + 1, -1),
        "u": column(store, "action").reshape(count, steps, -1),
        "g": column(store, "desired_goal").reshape(count, steps, -1),
    }
    with placing(path) as beside, beside.open("wb") as file:
        # protocol 4: what the programs of 2022 read
        pickle.dump(arrays, file, protocol=4)
