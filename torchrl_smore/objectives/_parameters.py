"""Lends parameters to a functional network for a call, faster than ``TensorDict.to_module`` where nothing is traced."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

#: Parameters and buffers by their place, the names of modules and then the entry's own.
Entries = dict[tuple[str, ...], Tensor]
#: The dictionary of a module that holds an entry, and the entry's name there.
_Place = tuple[dict[str, Any], str]
_places: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], _Place]] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def lent(network: nn.Module, params: TensorDictBase | Entries) -> Iterator[None]:
    """Within it, ``network`` computes with ``params``; afterwards it has what it had before.

    ``to_module`` serves any module in any state, at 50 to 100 us a call; this puts tensors where the module reads them.
    What is traced into a graph, or does not match the module entry by entry, is left to ``to_module``.

    Args:
        network: of a loss, made functional.
        params: its parameters and buffers, or one of :func:`members`.
    """
    if not torch.compiler.is_compiling():
        entries = _entries(params) if isinstance(params, TensorDictBase) else params
        places = _find_places(network)
        if entries.keys() == places.keys():
            before = [holder[name] for holder, name in places.values()]
            try:
                for path, (holder, name) in places.items():
                    holder[name] = entries[path]
                yield
            finally:
                for (holder, name), entry in zip(places.values(), before):
                    holder[name] = entry
            return
    if isinstance(params, dict):
        nested = TensorDict({})
        for path, entry in params.items():
            nested.set(path, entry)
        params = nested
    with params.to_module(network, preserve_module_state=False):  # type: ignore[arg-type]
        yield


def members(params: TensorDictBase) -> Sequence[TensorDictBase | Entries]:
    """The parameters of each member of an ensemble; those of all are stacked along the first dimension."""
    if torch.compiler.is_compiling():
        return params.unbind(0)
    parts = {path: entry.unbind(0) for path, entry in _entries(params).items()}
    return [{path: part[k] for path, part in parts.items()} for k in range(params.shape[0])]


def _entries(params: TensorDictBase) -> Entries:
    return {path if isinstance(path, tuple) else (path,): entry for path, entry in params.items(True, True)}


def _find_places(network: nn.Module) -> dict[tuple[str, ...], _Place]:
    found = _places.get(network)
    if found is None:
        found = _places[network] = {
            (*(path.split(".") if path else ()), name): (holder, name)
            for path, module in network.named_modules()
            for holder in (module._parameters, module._buffers)
            for name, entry in holder.items()
            if entry is not None
        }
    return found
