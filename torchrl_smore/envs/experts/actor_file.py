"""Trained actors as small files of plain arrays, run with numpy: workers need no torch, and nothing is unpickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from torchrl_smore.envs.experts._base import Array, Expert

Layer = tuple[Array, Array]


class ActorExpert:
    """The mean action of a trained actor: a multilayer perceptron with ReLU between its layers and tanh at the end.

    It sees ``observation`` alone. A row of actions depends on its own row of observations alone, to the last bit.

    Args:
        path: a file of :func:`write_actor`.

    Raises:
        ValueError: if the file is missing, damaged, or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.layers = read_actor(self.path)

    @property
    def observation_dim(self) -> int:
        """Columns of the observation it was trained on."""
        return int(self.layers[0][0].shape[1])

    @property
    def action_dim(self) -> int:
        """Components of an action."""
        return int(self.layers[-1][0].shape[0])

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, da]``, float32 in ``[-1, 1]``."""
        # one product a row: those of whole batches round differently with the size of the batch
        return np.stack([self._act(row) for row in observation["observation"].astype(np.float32)])

    def _act(self, hidden: Array) -> Array:
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(weight @ hidden + bias, 0.0)
        weight, bias = self.layers[-1]
        return np.tanh(weight @ hidden + bias)


def write_actor(path: str | Path, layers: Sequence[Layer]) -> None:
    """Writes the layers of an actor, whole or not at all.

    Args:
        path: the ``.npz`` file.
        layers: ``weight [out, in]`` and ``bias [out]`` of each, from the observation to the mean action before tanh.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.partial")
    arrays: dict[str, Array] = {}
    for number, (weight, bias) in enumerate(layers):
        arrays |= {f"weight_{number}": np.asarray(weight, np.float32), f"bias_{number}": np.asarray(bias, np.float32)}
    try:
        with beside.open("wb") as file:  # np.savez would append .npz to a name
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_actor(path: str | Path) -> list[Layer]:
    """Reads the layers of an actor; see :func:`write_actor`.

    Raises:
        ValueError: if the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected the file of a trained actor, found none. recipes/train_expert.py makes it.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is no array")
    # a file with one bare array is no context, hence the last two
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no file of a trained actor, or a damaged one: {error}.") from error
    names = [name for number in range(len(arrays) // 2) for name in (f"weight_{number}", f"bias_{number}")]
    if not names or set(names) != set(arrays):
        raise ValueError(f"{path}: expected arrays weight_0, bias_0, weight_1, ..., found {sorted(arrays) or 'none'}.")
    layers = [(arrays[weight], arrays[bias]) for weight, bias in zip(names[::2], names[1::2])]
    width = None
    for number, (weight, bias) in enumerate(layers):
        fits = weight.ndim == 2 and bias.shape == weight.shape[:1] and width in (None, weight.shape[1])
        if not fits or weight.dtype != np.float32 or bias.dtype != np.float32:
            raise ValueError(
                f"{path}: layer {number}: expected float32 [out, {width or 'in'}] and [out], "
                f"found {weight.dtype} {list(weight.shape)} and {bias.dtype} {list(bias.shape)}."
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"{path}: layer {number} holds numbers that are not finite.")
        width = weight.shape[0]
    return layers


def refuse_to_act(task: str) -> Expert:
    """Stands where other tasks have a scripted expert.

    Raises:
        ValueError: always; says which command trains an expert.
    """
    raise ValueError(
        f"{task} has no scripted expert. Train one: python recipes/train_expert.py task={task}. "
        "Then pass its run folder, or a file of it, as expert_policy."
    )
