"""The actor of a Stable-Baselines3 file as arrays: neither that package nor torch is needed, and no code of it runs."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchrl_smore.envs.experts._base import Array
from torchrl_smore.envs.experts._pickle import Made, Name, array_of, described
from torchrl_smore.envs.experts.actor_file import Activation, Actor, Layer, Output

_MAX_BYTES: Final = 1 << 26  # of one member of an archive
_STORAGES: Final = {"torch.FloatStorage": "f4", "torch.DoubleStorage": "f8"}
_ACTIVATIONS: Final[dict[str, Activation]] = {"ReLU": "relu", "Tanh": "tanh"}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)")


def read_sb3(path: str | Path) -> Actor:
    """Reads the actor of an agent that ``model.save`` of Stable-Baselines3 or sb3-contrib has written.

    PPO, A2C and TRPO, SAC and TQC, TD3 and DDPG, with ``MlpPolicy``. Where the agent saw observations of
    ``VecNormalize``, their statistics are read from the file of :func:`normalization_file`. Files of PPO, A2C and TRPO
    tell whether it did; those of the others do not, and their agents did if there is such a file.

    Args:
        path: the ``.zip`` file.

    Returns:
        The actor; it acts as ``model.predict(observation, deterministic=True)`` does, to float32.

    Raises:
        ValueError: if a file is missing, damaged, or holds something else, or an agent of another kind. Nothing in it
            is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of Stable-Baselines3, found none.")
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(_member(archive, "data"))
            tensors = _Tensors(_member(archive, "policy.pth"))
        if not isinstance(data, dict):
            raise ValueError("data: expected a dictionary")
        actor = _actor(data, tensors)
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        raise ValueError(f"{path} is no agent of Stable-Baselines3 that can be read: {_said(error)}.") from error
    if data.get("_last_original_obs") is None:
        return actor
    # SAC and TD3 keep that observation with and without VecNormalize, so that only the file of statistics can tell
    missing = not normalization_file(path).is_file()
    return actor if missing and not tensors.names("action_net.") else _normalized(path, actor)


def normalization_file(path: str | Path) -> Path:
    """Where the statistics of an agent's observations are: ``NAME/vecnormalize.pkl``, or ``vecnormalize.pkl`` beside.

    Args:
        path: the agent's file, ``NAME.zip``.
    """
    own = Path(path).with_suffix("") / "vecnormalize.pkl"
    return own if own.is_file() else Path(path).with_name("vecnormalize.pkl")


class _Tensors:
    """The state dictionary of ``policy.pth``; what is asked for is read."""

    def __init__(self, content: bytes) -> None:
        self._archive = zipfile.ZipFile(io.BytesIO(content))
        roots = [name.removesuffix("data.pkl") for name in self._archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("policy.pth: expected an archive of torch 1.6 or later")
        self._root = roots[0]
        saved = described(_member(self._archive, f"{self._root}data.pkl"))
        items = saved.items if isinstance(saved, Made) and saved.is_by("collections.OrderedDict") else saved
        if not isinstance(items, dict):
            raise ValueError("policy.pth: expected a dictionary of tensors")
        self._items = items
        order = f"{self._root}byteorder"
        big = order in self._archive.namelist() and _member(self._archive, order) == b"big"
        self._order = ">" if big else "<"

    def names(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix``."""
        return [name for name in self._items if name.startswith(prefix)]

    def layer(self, name: str) -> Layer:
        """Weight and bias of a linear layer."""
        return self._read(f"{name}.weight", 2), self._read(f"{name}.bias", 1)

    def stack(self, prefix: str) -> tuple[Layer, ...]:
        """The linear layers of an ``nn.Sequential``, in order."""
        matches = (re.fullmatch(rf"{re.escape(prefix)}\.(\d{{1,4}})\.weight", name) for name in self._items)
        numbers = sorted(int(match[1]) for match in matches if match)
        return tuple(self.layer(f"{prefix}.{number}") for number in numbers)

    def _read(self, name: str, ndim: int) -> Array:
        value = self._items.get(name)
        if not isinstance(value, Made) or not value.is_by("torch._utils._rebuild_tensor_v2"):
            raise ValueError(f"policy.pth: expected a tensor {name}")
        storage, offset, shape, stride = value.arguments[:4]
        kind, key = _storage(storage)
        if not isinstance(shape, tuple) or not all(type(size) is int and size > 0 for size in (*shape, offset + 1)):
            raise ValueError(f"policy.pth: {name}: expected the shape of a tensor")
        content = _member(self._archive, f"{self._root}data/{key}")
        values = np.frombuffer(content, np.dtype(self._order + kind))[offset : offset + math.prod(shape)]
        contiguous = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if len(shape) != ndim or stride != contiguous or values.size != math.prod(shape):
            raise ValueError(f"policy.pth: {name}: expected a whole, contiguous tensor of {ndim} dimensions")
        with np.errstate(over="ignore"):  # the layers are checked to be finite
            return values.reshape(shape).astype(np.float32)


def _storage(value: Any) -> tuple[str, str]:
    """Dtype and member of a tensor's storage."""
    described_by = value.arguments[0] if isinstance(value, Made) and value.is_by("persistent") else ()
    if isinstance(described_by, tuple) and len(described_by) == 5 and described_by[0] == "storage":
        kind, key = described_by[1:3]
        if isinstance(kind, Name) and kind.text in _STORAGES and isinstance(key, str):
            return _STORAGES[kind.text], key
    raise ValueError(f"policy.pth: expected tensors of {' or '.join(_STORAGES)}")


def _actor(data: dict[str, Any], tensors: _Tensors) -> Actor:
    _check_spaces(data)
    options = data.get("policy_kwargs")
    options = options if isinstance(options, dict) else {}
    extractors = ("features_extractor.", "pi_features_extractor.", "actor.features_extractor.")
    if any(tensors.names(prefix) for prefix in extractors):
        raise ValueError("it has a features extractor of its own; expected an MlpPolicy")
    activation: Activation
    output: Output
    if tensors.names("action_net."):  # PPO, A2C, TRPO
        activation, output = "tanh", "tanh" if str(options.get("squash_output")) == "True" else "clip"
        shared, own = tensors.stack("mlp_extractor.shared_net"), tensors.stack("mlp_extractor.policy_net")
        layers = (*shared, *own, tensors.layer("action_net"))
    elif tensors.names("actor.latent_pi.") and tensors.names("actor.mu.weight"):  # SAC, TQC
        activation, output = "relu", "tanh"
        layers = (*tensors.stack("actor.latent_pi"), tensors.layer("actor.mu"))
    elif tensors.names("actor.mu.") and not tensors.names("actor.latent_pi."):  # TD3, DDPG
        activation, output = "relu", "tanh"
        layers = tensors.stack("actor.mu")
    else:
        raise ValueError("expected an actor of PPO, A2C, TRPO, SAC, TQC, TD3 or DDPG without gSDE")
    if "activation_fn" in options:
        name = str(options["activation_fn"]).removesuffix("'>").rpartition(".")[2]
        if name not in _ACTIVATIONS:
            raise ValueError(f"its activation is {name[:40]!r}; expected one of {', '.join(_ACTIVATIONS)}")
        activation = _ACTIVATIONS[name]
    _check_layers(layers)
    return Actor(layers, activation, output)


def _check_spaces(data: dict[str, Any]) -> None:
    for name in ("observation_space", "action_space"):
        space = data.get(name)
        if not isinstance(space, dict) or not str(space.get(":type:")).endswith(".Box'>"):
            raise ValueError(f"its {name} is no Box")
    for name, bound in (("low", -1.0), ("high", 1.0)):
        found = [float(number) for number in _NUMBER.findall(str(data["action_space"].get(name)))]
        if not found or any(number != bound for number in found):
            raise ValueError(f"its actions are not in [-1, 1]: {name} is {str(data['action_space'].get(name))[:60]}")


def _check_layers(layers: tuple[Layer, ...]) -> None:
    if not layers:
        raise ValueError("expected layers of an actor, found none")
    width = layers[0][0].shape[1]
    for weight, bias in layers:
        if weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError(f"layers do not fit: expected [out, {width}], found {list(weight.shape)}")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("a layer holds numbers that are not finite")
        width = weight.shape[0]


def _normalized(path: Path, actor: Actor) -> Actor:
    """The actor with the statistics that lie beside its file."""
    file = normalization_file(path)
    if not file.is_file():
        raise ValueError(f"{path}: its agent saw standardised observations: expected their statistics, {file}, too.")
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        saved = described(file.read_bytes())
        state = saved.state if isinstance(saved, Made) else None
        if not isinstance(state, dict) or not saved.is_by(
            "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"
        ):
            raise ValueError("expected a VecNormalize")
        if state.get("norm_obs") is False:
            return actor
        statistics = state.get("obs_rms")
        if not isinstance(statistics, Made) or not isinstance(statistics.state, dict):
            raise ValueError("expected statistics of one observation, obs_rms")
        clip, epsilon = (float(array_of(state.get(name))) for name in ("clip_obs", "epsilon"))
        mean, variance = (array_of(statistics.state.get(name)).astype(np.float64) for name in ("mean", "var"))
        if mean.shape != (actor.input_dim,) or variance.shape != mean.shape:
            raise ValueError(f"expected {actor.input_dim} columns, found {list(mean.shape)} and {list(variance.shape)}")
        with np.errstate(invalid="ignore", over="ignore"):
            mean, std = mean.astype(np.float32), np.sqrt(variance + epsilon).astype(np.float32)
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0.0).all() and clip > 0.0):
            raise ValueError("expected finite means, positive variances and a positive clip_obs")
    except Exception as error:  # as above
        raise ValueError(f"{file} is no VecNormalize of {path} that can be read: {_said(error)}.") from error
    return Actor(actor.layers, actor.activation, actor.output, mean=mean, std=std, clip=clip)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        size = archive.getinfo(name).file_size
    except KeyError:
        raise ValueError(f"expected a member {name}") from None
    if size > _MAX_BYTES:
        raise ValueError(f"member {name} has {size} bytes, more than {_MAX_BYTES}")
    return archive.read(name)


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200].rstrip(".")
