"""Writer of D4RL's HDF5 files; see :mod:`torchrl_smore.data.readers.d4rl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.data.writers._hdf5 import write_hdf5
from torchrl_smore.data.writers._states import column, placing


def write(store: TrajectoryStore, path: str | Path) -> None:
    """Writes all rows end to end, next observations included, so that every store can be held.

    ``observations``, ``actions``, ``next_observations``, ``rewards`` (0 and 1), ``terminals``, ``timeouts`` and
    ``infos/goal`` (the desired goal, as in D4RL's antmaze) have D4RL's names; ``infos/achieved_goal`` and
    ``infos/next_achieved_goal`` are of this package: ``Goals(slice(None), ("array", "infos/goal"),
    "infos/achieved_goal", after="infos/next_achieved_goal")`` reads them again. ``metadata/store`` holds the
    store's ``meta`` as JSON.

    Args:
        store: the trajectories.
        path: the file, which must not exist.

    Raises:
        FileExistsError: if ``path`` exists.
        OSError: if the disk is full or refuses the write.
        ImportError: if h5py is missing.
    """
    arrays = {
        "observations": column(store, "observation"),
        "actions": column(store, "action"),
        "next_observations": column(store, "next", "observation"),
        "rewards": column(store, "next", "reward"),
        "terminals": column(store, "next", "terminated"),
        "timeouts": column(store, "next", "truncated"),
        "infos/goal": column(store, "desired_goal"),
        "infos/achieved_goal": column(store, "achieved_goal"),
        "infos/next_achieved_goal": column(store, "next", "achieved_goal"),
    }

    def fill(file: Any) -> Iterator[None]:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip", compression_opts=4)
            yield
        file["metadata/store"] = json.dumps(store.meta)

    with placing(path) as beside:
        write_hdf5(beside, fill)
