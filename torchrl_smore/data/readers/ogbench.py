"""Reader of OGBench's ``.npz`` files, without the ogbench package.

All trajectories lie end to end in ``observations [R, ds]``, ``actions [R, da]`` and ``terminals [R]``, beside arrays
such as ``qpos``. There are three layouts of one trajectory s0 .. s4 with its actions a0 .. a3:

- published files hold every state, and an action without effect beside the last: terminals 0 0 0 0 1;
- *compact*, with ``valids``: the same rows, terminals 0 0 0 1 1, valids 1 1 1 1 0;
- *full*, with ``next_observations``: one row per transition, terminals 0 0 0 1.

Source: Park et al. (2025), arXiv:2410.20092, and ``ogbench/utils.py``. No trajectory terminates: each is cut after a
fixed number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_smore.data._files import reading
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._flat import check_limits, episodes_of, offset_of, read_flat
from torchrl_smore.data.readers._frames import RowNumbers, check_pictures, is_picture, read_frames, same_frame
from torchrl_smore.data.readers._goals import Fallen, Goals, Reached
from torchrl_smore.data.readers._npz import NpzArray, array_names, open_npz
from torchrl_smore.data.readers._rows import Progress, RowArray, progress_bar, read_flags
from torchrl_smore.data.trajectories import TrajectoryStore

#: The goal is the whole observation, as in OGBench's own agents; stored is the last one of the trajectory.
WHOLE_OBSERVATION = Goals(achieved=slice(None))


def read(
    path: str | Path,
    *,
    reached: Reached,
    goals: Goals = WHOLE_OBSERVATION,
    fallen: Fallen | None = None,
    states: str | None = "qpos",
    frames_folder: str | Path | None = None,
    max_trajectories: int | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TrajectoryStore:
    """Reads an OGBench file in one pass; needs memory for the store and some blocks of 16 MB.

    Every trajectory is marked truncated. Where the observations are pictures, uint8 ``[R, height, width, 3]``, they
    become the frames of the store, and ``states`` says what its observations are.

    Args:
        path: the file; nothing in it is unpickled.
        reached: the task's rule, from achieved goals and goals ``[..., dg]`` to booleans ``[...]``. The reward of a
            step is 1 where the goal achieved after the step fulfils it.
        goals: what the goals become, which the files do not hold. OGBench's oracle representations are columns of
            other arrays: ``Goals(slice(0, 2), array="qpos")`` is the position in its mazes. (In the full layout the
            last transition of each trajectory is left out for these, as its next row is not held, unless ``after``
            names an array that holds what it would; and rows that do not follow each other are refused.)
        fallen: the task's rule of a fall, from observations ``[n, ds]`` to booleans ``[n]``: a step that ends in a fall
            has reward 0. By default nothing falls.
        states: of pictures, the array that holds the states that they show, from which goals, rewards and falls come;
            ``None``: the number of the row, and a goal of such numbers is reached in its own frame alone, whatever
            ``reached`` says.
        frames_folder: where frames are kept in a file that is mapped into memory, and has to be there for as long as
            they are used; ``None``: they are held in memory.
        max_trajectories: how many trajectories to keep, the first ones; all by default.
        meta: of the store, beside ``"source"``, ``"format"``, ``"layout"`` and ``"dropped_rows"``.
        progress: whether to show a tqdm bar.

    Returns:
        The trajectories in the order of the file.

    Raises:
        DatasetError: if the file is missing, damaged, or not of this format; the message says what was expected.
    """
    path = Path(path)
    check_limits(max_trajectories=max_trajectories)
    goals.check()
    with reading(path, "npz"), open_npz(path) as archive:
        arrays: dict[str, NpzArray] = {}

        def array_of(name: str) -> NpzArray:
            if name not in arrays:
                arrays[name] = NpzArray(path, archive, name)
                shapes = {known: list(array.shape) for known, array in arrays.items()}
                if len({shape[0] for shape in shapes.values()}) > 1:
                    raise DatasetError(f"{path}: expected arrays with equally many rows, found {shapes}.")
            return arrays[name]

        for name in ("observations", "actions", "terminals"):
            array_of(name)
        pictures, numbers = None, None
        if is_picture(arrays["observations"]):
            pictures = check_pictures(arrays["observations"])
            if states is None:
                numbers = RowNumbers(str(path), pictures.shape[0])
                reached = same_frame if goals.array == "observations" else reached

        def vectors_of(name: str) -> RowArray:
            if pictures is None or name != "observations":
                return array_of(name)
            return numbers or array_of(str(states))

        names = array_names(archive)
        layout = "full" if "next_observations" in names else "compact" if "valids" in names else "published"
        if pictures is not None and layout == "full":
            raise DatasetError(
                f"{path}: expected pictures of every state one after the other, found 'next_observations': write the "
                "file without them."
            )
        if layout == "full" and array_of("next_observations").shape != arrays["observations"].shape:
            raise DatasetError(
                f"{path}: 'next_observations': expected the shape of 'observations', "
                f"{list(arrays['observations'].shape)}, found {list(arrays['next_observations'].shape)}."
            )
        total = sum(archive.getinfo(f"{name}.npy").file_size for name in arrays)
        with progress_bar(progress, path.name, total) as report:
            end = _last_rows(path, layout, array_of, report)
            late = offset_of(str(path), vectors_of, goals, end)
            has_next = layout == "full"
            next_held = has_next and goals.next_is_known(late)
            episodes = episodes_of(
                str(path),
                end,
                np.zeros_like(end),
                next_held=next_held,
                late=late,
                last_is_state=layout != "full",
                max_trajectories=max_trajectories,
            )
            store = read_flat(
                str(path),
                vectors_of,
                episodes,
                next_held=next_held,
                has_next=has_next,
                late=late,
                goals=goals,
                reached=reached,
                fallen=fallen,
                kept=None,
                meta={
                    **(meta or {}),
                    "source": path.name,
                    "format": "ogbench",
                    "layout": layout,
                    "dropped_rows": episodes.dropped,
                    **({} if pictures is None else {"states": states or "frame numbers"}),
                },
                progress=report,
            )
            if pictures is None:
                return store
            return store.with_frames(read_frames(pictures, episodes.source, episodes.length, frames_folder, report))


def _last_rows(path: Path, layout: str, array_of: Any, report: Progress) -> np.ndarray:
    """The last row of each trajectory, bool, shape ``[R]``."""
    terminal = read_flags(array_of("terminals"), report)
    end = ~read_flags(array_of("valids"), report) if layout == "compact" else terminal
    name = "valids" if layout == "compact" else "terminals"
    if not len(end) or not end[-1]:
        raise DatasetError(f"{path}: {name!r}: expected the last row to end a trajectory: the file is incomplete.")
    if layout == "compact" and (wrong := end & ~terminal).any():
        raise DatasetError(
            f"{path}: 'terminals': expected 1 where 'valids' is 0, found 0 in row {int(wrong.argmax())}."
        )
    return end
