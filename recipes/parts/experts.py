"""What recipes that make experts share: the command that repeats a run, and networks as an actor file holds them."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float32]


def repeat_command(recipe: str, config: Any, *named: str, **instead: Any) -> str:
    """The command that repeats a run from nothing, wherever its folder was.

    Args:
        recipe: the recipe's file, below ``recipes/``.
        config: the run's options.
        *named: options that the command names even where they have their default.
        **instead: options that it has in place of the run's, for example of what says where or how fast a run went.
    """
    given = dataclasses.replace(config, run_root=type(config).run_root, **instead)
    options = [
        f"{field.name}={getattr(given, field.name)}"
        for field in dataclasses.fields(config)
        if field.name in named or getattr(given, field.name) != field.default
    ]
    return shlex.join(["python", f"recipes/{recipe}", *options])


def linear_arrays(network: nn.Module) -> tuple[tuple[Array, Array], ...]:
    """Copies of weight ``[out, in]`` and bias ``[out]`` of each linear layer on the CPU, from input to output."""
    return tuple(
        (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    )
