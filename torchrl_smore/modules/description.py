"""Networks as plain values: what they were built with, without their weights, and the way back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torchrl_smore._errors import unknown_name
from torchrl_smore.modules.bilinear import GELUMLP, BilinearScore, FixedStdHead, PairEmbedding
from torchrl_smore.modules.discriminator import TanhMLP
from torchrl_smore.modules.networks import ConcatMLP, GaussianHead, Standardize
from torchrl_smore.modules.pixels import Encoded, PixelEncoder

_CLASSES: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(BilinearScore, ConcatMLP, Encoded, FixedStdHead, GELUMLP, GaussianHead, PairEmbedding, PixelEncoder),
        *(Standardize, TanhMLP),
    )
}
_STATISTICS = "statistics"
_BOUNDS = ("low", "high")


def describe_network(network: nn.Module) -> dict[str, Any]:
    """What :func:`build_network` needs to build the network again, expressible in JSON.

    Each of this package's modules keeps what its constructor takes in attributes of the same names, so that an option
    that a module gains is described as well.

    Args:
        network: one of this package's modules; its parts are such modules too.

    Returns:
        ``{"class": name, "options": {...}}``, parts as such descriptions; of statistics their widths alone.

    Raises:
        TypeError: for a module of another class.
    """
    name = type(network).__name__
    if _CLASSES.get(name) is not type(network):
        raise TypeError(f"a {name} cannot be described: expected one of {', '.join(_CLASSES)}.")
    options = {}
    for option in inspect.signature(type(network)).parameters:
        value = getattr(network, option)
        if option == _STATISTICS:
            value = [None if pair is None else int(pair[0].shape[-1]) for pair in value]
        elif isinstance(value, nn.Module):
            value = describe_network(value)
        elif isinstance(value, torch.Tensor):
            value = value.tolist()
        options[option] = list(value) if isinstance(value, tuple) else value
    return {"class": name, "options": options}


def build_network(description: Mapping[str, Any], **replaced: Any) -> nn.Module:
    """Builds a network from what :func:`describe_network` returned, with weights of its own.

    Args:
        description: of the network.
        **replaced: options to build with other values than described, in every part that has them.

    Raises:
        ValueError: if that is no description, or one of a class or with options that this version lacks.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("options"), Mapping):
        raise ValueError(f"expected the description of a network, a class and its options, got {description!r}.")
    name = description.get("class")
    if name not in _CLASSES:
        raise unknown_name("class of networks", name, _CLASSES)
    known = inspect.signature(_CLASSES[name]).parameters
    options = {**description["options"], **{key: value for key, value in replaced.items() if key in known}}
    for option, value in options.items():
        if option == _STATISTICS:
            options[option] = _placeholders(value)
        elif isinstance(value, Mapping):
            options[option] = build_network(value, **replaced)
        elif option in _BOUNDS and value is not None:
            options[option] = torch.tensor(value)
    try:
        return _CLASSES[name](**options)
    except TypeError as error:
        raise ValueError(f"a {name} cannot be built from the options {sorted(options)}: {error}.") from error


def _placeholders(widths: Sequence[int | None]) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """Statistics that change nothing, in the shape of those that a state will bring."""
    return [None if width is None else (torch.zeros(width), torch.ones(width)) for width in widths]
