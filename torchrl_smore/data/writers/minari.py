"""Writer of Minari datasets in HDF5, without the minari package; see :mod:`torchrl_smore.data.readers.minari`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.data.writers._hdf5 import write_hdf5
from torchrl_smore.data.writers._states import bounds, column, placing, states, with_last_repeated

#: Version of minari whose layout is written: the last for Python 3.10, which refuses what a newer one wrote.
MINARI_VERSION = "0.5.3"
_ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")


def write(
    store: TrajectoryStore,
    root: str | Path,
    dataset_id: str,
    *,
    action_low: float = -1.0,
    action_high: float = 1.0,
    metadata: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Writes a dataset with observations of ``observation``, ``achieved_goal`` and ``desired_goal``, all float32.

    An episode of ``T`` steps has ``T + 1`` observations; the goal beside the last is that of the last step. With
    ``MINARI_DATASETS_PATH=root``, ``minari.load_dataset(dataset_id)`` opens it.

    Args:
        store: trajectories, each step of which begins where the one before it ended.
        root: folder of datasets; the dataset's own is ``root/dataset_id``.
        dataset_id: such as ``"FetchReach/smore-v0"``.
        action_low: smallest action component that the action space allows, at most that of the store.
        action_high: largest action component, at least that of the store.
        metadata: further entries, such as ``author`` and ``description``.
        card: text of a ``README.md`` in the dataset's folder, which is never there without it.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: for other trajectories, or actions outside of ``[action_low, action_high]``.
        ValueError: for an id that minari does not take.
        FileExistsError: if the dataset's folder exists.
        OSError: if the disk is full or refuses the write.
        ImportError: if h5py is missing.
    """
    if not _ID.fullmatch(dataset_id):
        raise ValueError(f"expected the id of a Minari dataset such as FetchReach/smore-v0, got {dataset_id!r}.")
    columns = {
        "achieved_goal": states(store, "achieved_goal"),
        "desired_goal": with_last_repeated(store, column(store, "desired_goal")),
        "observation": states(store, "observation"),
    }
    action, reward = column(store, "action"), column(store, "next", "reward")
    _check_actions(action, action_low, action_high)
    flags = {f"{name}s": column(store, "next", name) for name in ("truncated", "terminated")}
    names = {"terminateds": "terminations", "truncateds": "truncations"}

    def fill(file: Any) -> Iterator[None]:
        for number, (start, stop) in enumerate(bounds(store)):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": stop - start})
            rows = slice(start + number, stop + number + 1)  # each trajectory before has one state more than steps
            for key, values in columns.items():
                group[f"observations/{key}"] = values[rows]
            group["actions"], group["rewards"] = action[start:stop], reward[start:stop]
            for key, values in flags.items():
                group[names[key]] = values[start:stop]
            yield

    folder = Path(root) / dataset_id
    with placing(folder) as beside:
        data = beside / "data"
        data.mkdir(parents=True)
        write_hdf5(data / "main_data.hdf5", fill)
        written = {
            **(metadata or {}),
            "dataset_id": dataset_id,
            "data_format": "hdf5",
            "total_episodes": store.num_trajectories,
            "total_steps": store.num_transitions,
            "observation_space": json.dumps(
                {
                    "type": "Dict",
                    "subspaces": {key: _box(values, -np.inf, np.inf) for key, values in columns.items()},
                }
            ),
            "action_space": json.dumps(_box(action, action_low, action_high)),
            "dataset_size": round((data / "main_data.hdf5").stat().st_size / 1e6, 1),
            "minari_version": MINARI_VERSION,
        }
        (data / "metadata.json").write_text(json.dumps(written, indent=2) + "\n")
        if card is not None:
            (beside / "README.md").write_text(card, encoding="utf-8")
    return folder


def _check_actions(action: np.ndarray, low: float, high: float) -> None:
    # as float32, which the space is of
    outside = (action < np.float32(low)) | (action > np.float32(high))
    if outside.any():
        row, at = np.argwhere(outside)[0]
        raise DatasetError(
            f"'action': expected numbers in [{low:g}, {high:g}], the action space, found {action[row, at]:g} in row "
            f"{row} and {action.min():g} to {action.max():g} in all: pass action_low and action_high, or clip them."
        )


def _box(values: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """A space of float32 vectors as minari writes it."""
    width = values.shape[1]
    return {"type": "Box", "dtype": "float32", "shape": [width], "low": [low] * width, "high": [high] * width}
