"""Reader of D4RL's HDF5 files, without the d4rl package.

A file holds all episodes end to end: ``observations [R, ds]``, ``actions [R, da]``, ``terminals [R]``, usually
``timeouts [R]`` and in the MuJoCo sets of version 2 ``next_observations [R, ds]``; ``rewards``, ``infos/*`` and
``metadata/*`` are not needed. Source: Fu et al. (2020), arXiv:2004.07219, and ``d4rl/offline_env.py``.

Where an episode ends, the next row is another episode's first state. With ``next_observations`` the state after the
last step is known; without them the last row of an episode gives only the state that its last known step leads to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchrl_smore._falls import ant_has_fallen
from torchrl_smore.data._files import reading
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._flat import check_limits, episodes_of, offset_of, read_flat
from torchrl_smore.data.readers._goals import Fallen, Goals, Reached, columns_of
from torchrl_smore.data.readers._hdf5 import Hdf5Array, open_hdf5
from torchrl_smore.data.readers._rows import progress_bar, read_flags
from torchrl_smore.data.trajectories import TrajectoryStore

_logger = logging.getLogger("torchrl_smore")


#: Options of :func:`read` for the paper's locomotion tasks, by the robot of the file: the achieved goal is the forward
#: velocity, the desired one the speed that the paper asks for when it evaluates (its success rule: closer than 0.5).
#: (The official code trains with stored goals of 0.) Of the Ant's 111 columns the last 84 are contact forces, all 0 in
#: D4RL; environments of today do not have them. An Ant that has fallen earns nothing, however fast it falls.
ROBOTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "halfcheetah": {
        "goals": Goals(achieved=8, desired=11.0),
        "horizon": 1000,
        "pad": True,
    },
    "ant": {
        "goals": Goals(achieved=13, desired=5.0),
        "fallen": ant_has_fallen,
        "observation_columns": slice(0, 27),
        "horizon": 1000,
        "pad": True,
    },
}


def read(
    path: str | Path,
    *,
    reached: Reached,
    goals: Goals,
    fallen: Fallen | None = None,
    observation_columns: slice | Sequence[int] | None = None,
    horizon: int | None = None,
    pad: bool = False,
    max_trajectories: int | None = None,
    max_transitions: int | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TrajectoryStore:
    """Reads a D4RL file in one pass; needs memory for the store and some blocks of 16 MB.

    Episodes end at ``terminals``, ``timeouts`` and the end of the file. The transition of an episode's last row is
    kept where ``next_observations`` tell its next state (and ``goals`` are about the observations, are late, or name
    the array ``after`` the step), and left out otherwise: the next row belongs to another episode. Where the goal after
    a step is that of the next row, ``next_observations`` must say that rows follow each other. A trajectory is marked
    terminated if its last transition is held and terminal, and truncated otherwise. ``meta["dropped_rows"]`` counts the
    rows whose transition is left out, be it the last of an episode, the first one where goals are late, one of an
    episode of fewer than two transitions, or one beyond a limit.

    Warns (logger ``torchrl_smore``) where episodes end in terminals that are left out and no row is rewarded, where
    goals are late, and where a few steps are far longer than all others.

    Args:
        path: the file.
        reached: the task's rule, from achieved goals and goals ``[..., dg]`` to booleans ``[...]``. The reward of a
            step is 1 where the goal achieved after the step fulfils it; the rewards of the file are not read.
        goals: what the goals become. Columns are those of the file, before ``observation_columns``.
        fallen: the task's rule of a fall, from observations ``[n, ds]`` (of the columns that are kept) to booleans
            ``[n]``: a step that ends in a fall has reward 0. By default nothing falls.
        observation_columns: columns of the observation to keep; all by default.
        horizon: steps after which an episode is cut in any case; needed for files without ``timeouts``.
        pad: terminated episodes that are shorter than ``horizon`` repeat their last transition up to it, as the
            official code does, and count as truncated. Episodes that were cut by a timeout keep their length.
        max_trajectories: how many trajectories to keep, the first ones; all by default. (The paper takes 30 of the
            expert's.)
        max_transitions: keep only whole trajectories that have so many transitions together. (The paper: 2 million.)
        meta: of the store, beside ``"source"``, ``"format"`` and ``"dropped_rows"``.
        progress: whether to show a tqdm bar.

    Returns:
        The trajectories in the order of the file.

    Raises:
        DatasetError: if the file is missing, damaged, or not of this format; the message says what was expected.
        ImportError: if h5py is missing.
        ValueError: for a ``horizon`` below 2, or ``pad`` without one.
    """
    path = Path(path)
    if horizon is not None and horizon < 2:
        raise ValueError(f"horizon must be at least 2, got {horizon}.")
    if pad and horizon is None:
        raise ValueError("pad needs a horizon to pad to.")
    check_limits(max_trajectories=max_trajectories, max_transitions=max_transitions)
    goals.check()
    with reading(path, "HDF5"), open_hdf5(path) as file:
        listed = set(file)
        names = ["observations", "actions", "terminals", *(n for n in ("timeouts", "next_observations") if n in listed)]
        arrays = {name: Hdf5Array(path, file, name) for name in names}
        _check_lengths(path, arrays)
        if "timeouts" not in arrays and horizon is None:
            raise DatasetError(f"{path}: expected an array 'timeouts', found none: pass the horizon of the episodes.")

        def array_of(name: str) -> Hdf5Array:
            if name not in arrays:
                arrays[name] = Hdf5Array(path, file, name)
                _check_lengths(path, arrays)
            return arrays[name]

        with progress_bar(progress, path.name, sum(array.nbytes for array in arrays.values())) as report:
            terminal = read_flags(arrays["terminals"], report)
            end = terminal | read_flags(arrays["timeouts"], report) if "timeouts" in arrays else terminal.copy()
            if horizon is not None:
                _cut(end, horizon)
            late = offset_of(str(path), array_of, goals, end)
            has_next = "next_observations" in arrays
            next_held = has_next and goals.next_is_known(late)
            episodes = episodes_of(
                str(path),
                end,
                terminal,
                next_held=next_held,
                late=late,
                pad_to=horizon if pad else None,
                max_trajectories=max_trajectories,
                max_transitions=max_transitions,
            )
            kept = None if observation_columns is None else columns_of(f"{path}: 'observations'", observation_columns)
            store = read_flat(
                str(path),
                array_of,
                episodes,
                next_held=next_held,
                has_next=has_next,
                late=late,
                goals=goals,
                reached=reached,
                fallen=fallen,
                kept=kept,
                meta={**(meta or {}), "source": path.name, "format": "d4rl", "dropped_rows": episodes.dropped},
                progress=report,
            )
    if terminal.any() and not next_held and not store.data["next", "reward"].any():
        _logger.warning(
            "%s: %d rows are terminal, yet no transition is rewarded: the state after a terminal row is not in the "
            "file, so that its transition is left out, and with it the success of an episode that ends at the goal",
            path,
            int(terminal.sum()),
        )
    return store


def has_timeouts(path: str | Path) -> bool:
    """Whether a file says where episodes were cut; :func:`read` wants the horizon of one that does not.

    Raises:
        DatasetError: if it is missing or no HDF5 file.
        ImportError: if h5py is missing.
    """
    with reading(Path(path), "HDF5"), open_hdf5(Path(path)) as file:
        return "timeouts" in set(file)


def _check_lengths(path: Path, arrays: Mapping[str, Any]) -> None:
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise DatasetError(f"{path}: expected arrays with equally many rows, found {shapes}.")
    if "next_observations" in shapes and shapes["next_observations"] != shapes["observations"]:
        raise DatasetError(f"{path}: 'next_observations': expected the shape of 'observations', found {shapes}.")


def _cut(end: np.ndarray, horizon: int) -> None:
    """Marks further ends, in place, so that no episode is longer than ``horizon`` rows."""
    first = np.zeros(len(end), dtype=np.int64)
    first[1:][end[:-1]] = np.flatnonzero(end[:-1]) + 1
    step = np.arange(len(end)) - np.maximum.accumulate(first)
    end |= step % horizon == horizon - 1
