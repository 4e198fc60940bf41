"""The actor of a Stable-Baselines3 file as arrays: neither that package nor torch is needed, and no code of it runs."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchrl_smore.envs.experts._base import Array
from torchrl_smore.envs.experts._pickle import Made, Name, array_of, described
from torchrl_smore.envs.experts.actor_file import Activation, Actor, Layer, Output

_MAX_BYTES: Final = 1 << 26  # of one member of an archive, and of all that is read of an actor
_STORAGES: Final = {"torch.FloatStorage": "f4", "torch.DoubleStorage": "f8"}
_ACTIVATIONS: Final[dict[str, Activation]] = {"ReLU": "relu", "Tanh": "tanh"}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)")
# of the text of a Dict space, from {'a': Box(...), ...} or OrderedDict([('a', Box(...)), ...])
_PART = re.compile(r"'([^']+)'[:,]\s*(\w+)\(")
_VECTOR = re.compile(r"Box\(.*?\((\d{1,6}),\), \w+\)", re.DOTALL)
# in the order of an Actor's input
_KEYS: Final = ("observation", "desired_goal", "achieved_goal")


def read_sb3(path: str | Path) -> Actor:
    """Reads the actor of an agent that ``model.save`` of Stable-Baselines3 or sb3-contrib has written.

    PPO, A2C and TRPO, SAC and TQC, TD3 and DDPG, with ``MlpPolicy``, or with ``MultiInputPolicy`` on observations of
    ``observation``, ``achieved_goal`` and ``desired_goal``. Where the agent saw observations of ``VecNormalize``, their
    statistics are read from the file of :func:`normalization_file`. Files of PPO, A2C and TRPO tell whether it did;
    those of the others do not, and their agents did if there is such a file.

    Args:
        path: the ``.zip`` file.

    Returns:
        The actor; it acts as ``model.predict(observation, deterministic=True)`` does, to float32, where the agent's
        actions lie in ``[-1, 1]``. Other bounds are the actor's ``bounds``, and its actions are scaled from them.

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
        parts = _parts(data)
        actor = _actor(data, tensors)
        if parts is not None and sum(parts.values()) != actor.input_dim:
            raise ValueError(f"its observation_space has {sum(parts.values())} columns, its actor {actor.input_dim}")
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        raise ValueError(f"{path} is no agent of Stable-Baselines3 that can be read: {_said(error)}.") from error
    # SAC and TD3 keep that observation with and without VecNormalize, so that only the file of statistics can tell
    unknown = not tensors.names("action_net.") and not normalization_file(path).is_file()
    if data.get("_last_original_obs") is not None and not unknown:
        actor = _normalized(path, actor, parts)
    return actor if parts is None else _in_order(actor, parts)


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
        self._left = _MAX_BYTES

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
        # many tensors may be of one storage, each as large as that
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"policy.pth: expected an actor of at most {_MAX_BYTES} bytes, found more")
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
    low, high = _action_bounds(data)
    options = data.get("policy_kwargs")
    options = options if isinstance(options, dict) else {}
    extractors = ("features_extractor.", "pi_features_extractor.", "actor.features_extractor.")
    if any(tensors.names(prefix) for prefix in extractors):
        raise ValueError(
            "it has a features extractor of its own; expected an MlpPolicy, or a MultiInputPolicy of vectors"
        )
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
    if layers[-1][1].shape != low.shape:
        raise ValueError(f"its action_space has {len(low)} components, its actor {len(layers[-1][1])}")
    if (low == -1.0).all() and (high == 1.0).all():
        return Actor(layers, activation, output)
    if output == "clip":  # to the bounds; what is squashed is in [-1, 1] already
        layers = (*layers[:-1], _scaled(layers[-1], low, high))
    return Actor(layers, activation, output, bounds=(low, high))


def _parts(data: dict[str, Any]) -> dict[str, int] | None:
    """Columns of each part of a Dict observation, in the order in which the agent sees them; ``None`` for a vector."""
    space = data.get("observation_space")
    space = space if isinstance(space, dict) else {}
    if str(space.get(":type:")).endswith(".Box'>"):
        return None
    text = str(space.get("spaces")) if str(space.get(":type:")).endswith(".Dict'>") else ""
    found = list(_PART.finditer(text))
    parts: dict[str, int] = {}
    for match, end in zip(found, [*(match.start() for match in found[1:]), len(text)]):
        vector = _VECTOR.match(text, match.start(2), end)
        if vector is None:
            raise ValueError(f"its observation_space: expected vectors, found {match[1][:40]!r} of {match[2][:40]}")
        parts[match[1]] = int(vector[1])
    if not {"observation"} <= set(parts) <= set(_KEYS):
        keys = ", ".join(sorted(parts))[:80] or "none"
        raise ValueError(f"its observation_space: expected a Box or a Dict of {', '.join(_KEYS)}, found keys {keys}")
    return parts


def _action_bounds(data: dict[str, Any]) -> tuple[Array, Array]:
    """Smallest and largest action, ``[A]`` each, float64."""
    space = data.get("action_space")
    if not isinstance(space, dict) or not str(space.get(":type:")).endswith(".Box'>"):
        raise ValueError("its action_space is no Box")
    texts = [str(space.get(name)) for name in ("low", "high")]
    low, high = (np.array([float(number) for number in _NUMBER.findall(text)]) for text in texts)
    fits = len(low) > 0 and low.shape == high.shape and bool((low < high).all())
    if not fits or not (np.abs([low, high]) < np.finfo(np.float32).max).all():
        raise ValueError(f"its actions have no bounds: low is {texts[0][:60]}, high is {texts[1][:60]}")
    return low, high


def _scaled(layer: Layer, low: Array, high: Array) -> Layer:
    """A layer whose output is that of ``layer`` on the scale on which ``low`` is -1 and ``high`` is 1."""
    weight, bias = (array.astype(np.float64) for array in layer)
    half = (high - low) / 2.0
    return (weight / half[:, None]).astype(np.float32), ((bias - low) / half - 1.0).astype(np.float32)


def _in_order(actor: Actor, parts: dict[str, int]) -> Actor:
    """The actor with the columns of its input in the order of :class:`Actor`."""
    starts = dict(zip(parts, np.cumsum([0, *parts.values()])))
    columns = np.concatenate([np.arange(starts[key], starts[key] + parts[key]) for key in _KEYS if key in parts])
    weight, bias = actor.layers[0]
    return replace(
        actor,
        layers=((np.ascontiguousarray(weight[:, columns]), bias), *actor.layers[1:]),
        goal_dim=parts.get("desired_goal", 0),
        achieved_dim=parts.get("achieved_goal", 0),
        mean=None if actor.mean is None else actor.mean[columns],
        std=None if actor.std is None else actor.std[columns],
    )


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


def _normalized(path: Path, actor: Actor, parts: dict[str, int] | None) -> Actor:
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
        clip, epsilon = (float(array_of(state.get(name))) for name in ("clip_obs", "epsilon"))
        found = state.get("obs_rms")
        whole = {"": found}, {"": actor.input_dim}
        mean, variance = _statistics(*(whole if parts is None else (found, parts)))
        with np.errstate(invalid="ignore", over="ignore"):
            mean, std = mean.astype(np.float32), np.sqrt(variance + epsilon).astype(np.float32)
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0.0).all() and clip > 0.0):
            raise ValueError("expected finite means, positive variances and a positive clip_obs")
    except Exception as error:  # as above
        raise ValueError(f"{file} is no VecNormalize of {path} that can be read: {_said(error)}.") from error
    return replace(actor, mean=mean, std=std, clip=clip)


def _statistics(found: Any, widths: dict[str, int]) -> tuple[Array, Array]:
    """Means and variances of the columns of every part of an observation, one part after the other, float64."""
    if not isinstance(found, dict) or set(found) != set(widths):
        keys = ", ".join(sorted(found))[:80] if isinstance(found, dict) else "one observation"
        raise ValueError(f"expected statistics of {', '.join(widths)}, found those of {keys}")
    means, variances = [], []
    for key, width in widths.items():
        own = found[key]
        if not isinstance(own, Made) or not isinstance(own.state, dict):
            raise ValueError("expected statistics of one observation, obs_rms")
        mean, variance = (array_of(own.state.get(name)).astype(np.float64) for name in ("mean", "var"))
        if mean.shape != (width,) or variance.shape != mean.shape:
            raise ValueError(f"expected {width} columns, found {list(mean.shape)} and {list(variance.shape)}")
        means.append(mean)
        variances.append(variance)
    return np.concatenate(means), np.concatenate(variances)


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
