"""Trained actors as small files of plain arrays, run with numpy: workers need no torch, and nothing is unpickled."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.lib import format as npy

from torchrl_smore._files import replacing
from torchrl_smore.envs.experts._base import Array, Expert

Layer = tuple[Array, Array]
Activation = Literal["relu", "tanh"]
Output = Literal["tanh", "clip"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": lambda x: np.maximum(x, 0.0), "tanh": np.tanh}
_OUTPUTS: dict[str, Callable[[Array], Array]] = {"tanh": np.tanh, "clip": lambda x: np.clip(x, -1.0, 1.0)}
_SETTINGS = ("activation", "output", "goal_dim", "achieved_dim", "mean", "std", "clip")
_MAX_BYTES: Final = 1 << 26  # of a file, inflated: the actors of the package have 0.3 MB


@dataclass(frozen=True)
class Actor:
    """A multilayer perceptron that acts, as arrays.

    Attributes:
        layers: ``weight [out, in]`` and ``bias [out]`` of each, float32, from the input to the mean action before
            ``output``.
        activation: between layers.
        output: what brings the last layer into ``[-1, 1]``.
        goal_dim: columns of ``desired_goal`` that follow those of ``observation`` in the input; 0: it sees no goal.
        achieved_dim: columns of ``achieved_goal`` that follow those; 0: it does not see what is achieved.
        mean: subtracted from the input, ``[in]``, float32; ``None``: inputs are not standardised.
        std: by which the difference is divided, ``[in]``, positive, float32.
        clip: largest absolute standardised input, positive, may be infinite.
        bounds: smallest and largest action of the environment that it was trained in, ``[out]`` each, that its
            ``[-1, 1]`` stand for; ``None``: unknown, or ``[-1, 1]``. Files of :func:`write_actor` do not hold them.
    """

    layers: tuple[Layer, ...]
    activation: Activation = "relu"
    output: Output = "tanh"
    goal_dim: int = 0
    achieved_dim: int = 0
    mean: Array | None = None
    std: Array | None = None
    clip: float = math.inf
    bounds: tuple[Array, Array] | None = None

    @property
    def input_dim(self) -> int:
        """Columns of the input."""
        return int(self.layers[0][0].shape[1])

    @property
    def observation_dim(self) -> int:
        """Columns of the input that are of ``observation``; they are its first."""
        return self.input_dim - self.goal_dim - self.achieved_dim


class ActorExpert:
    """The mean action of a trained actor.

    It sees ``observation``, and ``desired_goal`` and ``achieved_goal`` where it was trained on them. A row of actions
    depends on its own row of inputs alone, to the last bit.

    Args:
        actor: the actor, or a file of :func:`write_actor`.

    Raises:
        ValueError: if the file is missing, damaged, or holds something else.
    """

    def __init__(self, actor: Actor | str | Path) -> None:
        self.actor = actor if isinstance(actor, Actor) else read_actor(actor)

    @property
    def observation_dim(self) -> int:
        """Columns of the observation it was trained on."""
        return self.actor.observation_dim

    @property
    def goal_dim(self) -> int:
        """Columns of the goal it was trained on; 0 for an actor without goals."""
        return self.actor.goal_dim

    @property
    def achieved_dim(self) -> int:
        """Columns of the achieved goal it was trained on; 0 for an actor that does not see it."""
        return self.actor.achieved_dim

    @property
    def action_dim(self) -> int:
        """Components of an action."""
        return int(self.actor.layers[-1][0].shape[0])

    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Returns actions ``[n, da]``, float32 in ``[-1, 1]``."""
        widths = {"observation": 1, "desired_goal": self.goal_dim, "achieved_goal": self.achieved_dim}
        seen = [observation[key].astype(np.float32) for key, width in widths.items() if width]
        inputs = np.concatenate(seen, -1)
        if self.actor.mean is not None and self.actor.std is not None:
            inputs = np.clip((inputs - self.actor.mean) / self.actor.std, -self.actor.clip, self.actor.clip)
        # one product a row: those of whole batches round differently with the size of the batch
        return np.stack([self._act(row) for row in inputs])

    def _act(self, hidden: Array) -> Array:
        activation, output = _ACTIVATIONS[self.actor.activation], _OUTPUTS[self.actor.output]
        for weight, bias in self.actor.layers[:-1]:
            hidden = activation(weight @ hidden + bias)
        weight, bias = self.actor.layers[-1]
        return output(weight @ hidden + bias)


def without_zero_columns(actor: Actor, count: int) -> Actor:
    """An actor that is not shown the last ``count`` columns of its observation, and acts as if all of them were 0.

    What they add to the first layer is a constant then, which its bias takes in.
    """
    if not count:
        return actor
    first, rest = actor.layers[0], actor.layers[1:]
    stop = actor.observation_dim
    gone = np.zeros(actor.input_dim, dtype=bool)
    gone[stop - count : stop] = True
    weight, bias = (array.astype(np.float64) for array in first)
    mean, std = actor.mean, actor.std
    if mean is not None and std is not None:
        constant = np.clip(-mean[gone].astype(np.float64) / std[gone], -actor.clip, actor.clip)
        bias = bias + weight[:, gone] @ constant
        mean, std = mean[~gone], std[~gone]
    layer = (weight[:, ~gone].astype(np.float32), bias.astype(np.float32))
    return replace(actor, layers=(layer, *rest), mean=mean, std=std)


def write_actor(path: str | Path, actor: Actor | Sequence[Layer]) -> None:
    """Writes an actor atomically.

    Args:
        path: the ``.npz`` file.
        actor: the actor, or the layers of one with ReLU, tanh and raw observations.
    """
    actor = actor if isinstance(actor, Actor) else Actor(tuple(actor))
    arrays: dict[str, Array] = {}
    for number, (weight, bias) in enumerate(actor.layers):
        arrays |= {f"weight_{number}": np.asarray(weight, np.float32), f"bias_{number}": np.asarray(bias, np.float32)}
    arrays |= {"activation": np.array(actor.activation), "output": np.array(actor.output)}
    arrays["goal_dim"] = np.array(actor.goal_dim, np.int64)
    if actor.achieved_dim:
        arrays["achieved_dim"] = np.array(actor.achieved_dim, np.int64)
    if actor.mean is not None:
        arrays |= {"mean": np.asarray(actor.mean, np.float32), "std": np.asarray(actor.std, np.float32)}
        arrays["clip"] = np.array(actor.clip, np.float32)
    with replacing(path) as beside, beside.open("wb") as file:  # np.savez would append .npz to a name
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_actor(path: str | Path) -> Actor:
    """Reads an actor; see :func:`write_actor`. Runs nothing that the file may hold.

    Raises:
        ValueError: if the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected the file of a trained actor, found none. recipes/train_expert.py makes it.")
    try:
        arrays = _arrays(path)
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        raise ValueError(f"{path} is no file of a trained actor, or a damaged one: {str(error)[:200]}.") from error
    settings = {name: arrays.pop(name) for name in _SETTINGS if name in arrays}
    names = [name for number in range(len(arrays) // 2) for name in (f"weight_{number}", f"bias_{number}")]
    if not names or set(names) != set(arrays):
        raise ValueError(
            f"{path}: expected arrays weight_0, bias_0, weight_1, ..., found {str(sorted(arrays) or 'none')[:200]}."
        )
    layers = tuple((arrays[weight], arrays[bias]) for weight, bias in zip(names[::2], names[1::2]))
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
    return _checked(path, Actor(layers), settings)


def _arrays(path: Path) -> dict[str, Array]:
    """The arrays of an archive, none of which may declare more than it holds."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if (size := sum(member.file_size for member in members)) > _MAX_BYTES:
            raise ValueError(f"expected at most {_MAX_BYTES:,} bytes, found {size:,}")
        arrays = {}
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename}: expected an array as NumPy compresses it")
            stream = io.BytesIO(archive.read(member))
            held = len(stream.getvalue())
            if npy.read_magic(stream) != (1, 0):
                raise ValueError(f"{member.filename}: expected version 1.0 of the npy format")
            shape, _, dtype = npy.read_array_header_1_0(stream)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != held - stream.tell():
                raise ValueError(f"{member.filename}: expected the numbers that it declares")
            stream.seek(0)
            arrays[member.filename.removesuffix(".npy")] = npy.read_array(stream, allow_pickle=False)
    return arrays


def _checked(path: Path, actor: Actor, settings: dict[str, Array]) -> Actor:
    """``actor`` with what a file says beside its layers; files of version 0.1.0 say nothing."""
    chosen: dict[str, Any] = {}
    for name, valid in (("activation", _ACTIVATIONS), ("output", _OUTPUTS)):
        if name in settings:
            chosen[name] = str(settings[name])
            if settings[name].shape != () or chosen[name] not in valid:
                raise ValueError(f"{path}: {name}: expected one of {', '.join(valid)}, found {chosen[name][:50]!r}.")
    width = actor.input_dim
    rest = width  # columns that may be of a goal: one at least is of the observation
    for name in ("goal_dim", "achieved_dim"):
        if name not in settings:
            continue
        dim = settings[name]
        if dim.shape != () or not np.issubdtype(dim.dtype, np.integer) or not 0 <= int(dim) < rest:
            raise ValueError(f"{path}: {name}: expected an integer in [0, {rest}), found {str(dim)[:50]}.")
        chosen[name] = int(dim)
        rest -= int(dim)
    scale = [name for name in ("mean", "std", "clip") if name in settings]
    if scale and len(scale) < 3:
        raise ValueError(f"{path}: expected mean, std and clip together, found {' and '.join(scale)}.")
    for name in scale:
        array, shape = settings[name], () if name == "clip" else (width,)
        positive = name == "mean" or bool((array > 0.0).all()) if array.dtype == np.float32 else False
        finite = name == "clip" or bool(np.isfinite(array).all()) if array.dtype == np.float32 else False
        if array.shape != shape or not positive or not finite:
            bound = "finite" if name == "mean" else "positive"
            raise ValueError(
                f"{path}: {name}: expected {bound} float32 {list(shape)}, found {array.dtype} {list(array.shape)}."
            )
        chosen[name] = float(array) if name == "clip" else array
    return replace(actor, **chosen)


def refuse_to_act(task: str, advice: str | None = None) -> Expert:
    """Stands where other tasks have a scripted expert.

    Raises:
        ValueError: always; says which command trains an expert, or gives other advice.
    """
    if advice is None:
        advice = (
            f"Train one: python recipes/train_expert.py task={task}. Then pass its run folder, or a file of it, as "
            "expert_policy."
        )
    raise ValueError(f"{task} has no scripted expert. {advice}")
