"""Runs whose observations and goals are pictures: their dataset, batches and policies."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from parts.methods import METHODS
from torchrl_smore.data import DatasetError, TrajectoryStore
from torchrl_smore.envs import Painter, Task, paint
from torchrl_smore.trainers import locked

log = logging.getLogger("torchrl_smore.recipes")
_COMPARED = 16  # states
_SAME = 8.0  # of 255, on average: more than two renderers differ by


def check_pixels(pixels: int, task: Task, method: str, her_ratio: float) -> None:
    """Refuses what cannot be learnt from pictures.

    Raises:
        ValueError: naming the option.
    """
    if task.make_painter is None:
        raise ValueError(
            f"pixels={pixels}: {task.name} has no pictures, its observation does not say all that is seen."
        )
    if not METHODS[method].pictures:
        able = ", ".join(name for name, other in METHODS.items() if other.pictures)
        raise ValueError(f"pixels={pixels} goes with method={able}, got {method}.")
    if her_ratio != 1.0:
        raise ValueError(f"pixels={pixels}: goals are pictures of the data, so her_ratio must be 1, got {her_ratio}.")


def _difference(store: TrajectoryStore, painter: Painter) -> float:
    """How far a dataset's frames are on average, of 255, from what the policy will see when it is evaluated."""
    assert store.frames is not None
    rows = torch.linspace(0, store.num_transitions - 1, _COMPARED).long()
    own = store.frames[store.frame_index[rows]].float()
    painted = torch.from_numpy(painter.states(store.data["observation"][rows].numpy())).float()
    return (own - painted).abs().mean().item()


def _warn_of_other_pictures(store: TrajectoryStore, painter: Painter) -> None:
    if (difference := _difference(store, painter)) > _SAME:
        log.warning(
            "the dataset's pictures are not those that the task paints of the same states (%.0f of 255 apart on "
            "average): the policy learns from the one kind and is evaluated on the other",
            difference,
        )


def with_pictures(store: TrajectoryStore, painter: Painter, folder: Path) -> TrajectoryStore:
    """The dataset with frames of the painter's size: its own, or painted once and then kept below ``folder``.

    Raises:
        DatasetError: if its own frames have another size.
        RenderError: if there is no OpenGL; says what to install.
    """
    size = painter.size
    if store.frames is not None:
        found = list(store.frames.shape[1:3])
        if found != [size, size]:
            raise DatasetError(f"the dataset has frames of {found[0]} x {found[1]} pixels, expected {size} x {size}.")
        _warn_of_other_pictures(store, painter)
        return store
    out = folder / f"pictures_{size}_{store.sha256[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.lock"), f"pictures {out}", wait=True):
        for left in folder.glob(f".{out.name}.*"):
            if left.is_dir():  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        if out.exists() and _difference(TrajectoryStore.load(out, verify=False), painter):
            log.warning("%s shows the states as the task no longer paints them here: painted anew", out)
            shutil.rmtree(out)
        if not out.exists():
            beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=folder))
            try:
                paint(store, painter, folder=beside, progress=sys.stderr.isatty()).save(out)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return TrajectoryStore.load(out)
