"""Losses of equal structure as one function of stacked flat buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.objectives import LossModule

from torchrl_smore.trainers.update import network_name

Flat = dict[str, Tensor]

#: Every parameter starts at a multiple of this many numbers (64 bytes): matrix products want aligned operands.
_ALIGNMENT = 16
#: Types whose objects are compared as they are; numbers are by value, whatever their type.
_VALUES = (str, bytes, type(None), Enum, range, torch.dtype, torch.device, TensorSpec)
_NUMBERS = (bool, int, float, complex)
#: What every module has: parameters, buffers, hooks, mode.
_OF_MODULES = set(vars(nn.Module()))
#: What a loss module works out when it is first asked for, and who looks after its targets.
_OF_LOSSES = {"_cache", "_param_maps", "_in_keys", "_out_keys", "_vmap_randomness", "_has_update_associated"}


@dataclass(frozen=True)
class _Layout:
    """Where the parameters of one network lie in its flat buffer of N numbers."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def pieces(self) -> list[int]:
        """Sizes of parameters and of the padding after each, in turn; they add up to N."""
        counts = [math.prod(shape) for shape in self.shapes]
        return [size for count in counts for size in (count, -count % _ALIGNMENT)]

    def flatten(self, entries: Mapping[str, Tensor]) -> Tensor:
        """A copy of the parameters in one tensor ``[N]``, zeros between them."""
        first = entries[self.names[0]]
        flat = torch.zeros(sum(self.pieces), dtype=first.dtype, device=first.device)
        for name, view in self.views(flat).items():
            view.copy_(entries[name].detach())
        return flat

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters as views of a buffer ``[N]``."""
        # one split, whose backward is one concatenation
        parts = flat.split(self.pieces)[::2]
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes)}


class StackedLosses:
    """K loss modules whose parameters lie in flat buffers ``[K, N]``, one for each network, as a function of them.

    The modules stay usable: their parameters and target parameters become views of row k. What would replace these
    views (``.to()`` of another device or dtype) breaks that bond; writing in place (``load_state_dict``) does not.

    Args:
        losses: of equal structure, on one device; parameters are float32 and not shared between networks.

    Attributes:
        losses: as given.
        params: trained parameters, ``[K, N]`` by network; the names are those of the groups of
            :func:`~torchrl_smore.trainers.adam`.
        targets: target parameters in the same layout, for networks that have them.

    Raises:
        ValueError: if there is no loss, the structures differ, nothing is trained, a parameter is not float32 or is
            shared, within a loss or between two, or an option of a loss or network differs between losses (also a
            number that a network counts in its attributes), or a buffer of another module (a value estimator of TorchRL
            holds gamma).
    """

    def __init__(self, losses: Sequence[LossModule]) -> None:
        if not losses:
            raise ValueError("expected at least one loss, got none.")
        self.losses = tuple(losses)
        trained, buffers = zip(*(_entries(loss) for loss in losses))
        _check_apart(trained)
        _check_equal([{**a, **b} for a, b in zip(trained, buffers)])
        _check_constants(self.losses)
        _check_options(self.losses)
        self._layouts = _layouts(trained[0])
        with_target = [
            group for group, layout in self._layouts.items() if all(f"target_{n}" in buffers[0] for n in layout.names)
        ]
        self.params: Flat = {}
        self.targets: Flat = {}
        for group, layout in self._layouts.items():
            self.params[group] = _move(layout, trained)
            if group in with_target:
                self.targets[group] = _move(_prefixed(layout), buffers)
        moved = {f"target_{name}" for group in with_target for name in self._layouts[group].names}
        self._constants = [{n: b for n, b in entries.items() if n not in moved} for entries in buffers]

    def take_replaced(self) -> None:
        """Copies to where they are read those coefficients that were replaced by another tensor, and puts them back."""
        for loss, constants in zip(self.losses, self._constants):
            for name, buffer in loss._buffers.items():
                own = constants.get(name, buffer)
                if own is not buffer:
                    loss._buffers[name] = own.copy_(buffer)

    def constants(self, k: int) -> dict[str, Tensor]:
        """Everything else that loss k keeps (coefficients, statistics, frozen parameters), as it is now."""
        return self._constants[k]

    def stacked_constants(self) -> dict[str, Tensor]:
        """:meth:`constants` of all losses, stacked ``[K, *]``: a copy."""
        return {name: torch.stack([each[name] for each in self._constants]) for name in self._constants[0]}

    def __call__(
        self, params: Flat, targets: Flat, constants: Mapping[str, Tensor], batch: TensorDictBase
    ) -> dict[str, Tensor]:
        """Losses and diagnostics of one seed, a function of its arguments alone.

        Args:
            params: ``[N]`` by network.
            targets: ``[N]`` by network.
            constants: see :meth:`constants`.
            batch: what the loss reads.
        """
        entries = dict(constants)
        for group, layout in self._layouts.items():
            entries.update(layout.views(params[group]))
            if group in targets:
                entries.update(_prefixed(layout).views(targets[group]))
        return dict(_call_with(self.losses[0], entries, batch).items())


def _call_with(loss: LossModule, entries: Mapping[str, Tensor], batch: TensorDictBase) -> TensorDictBase:
    """Calls ``loss`` with other tensors for its parameters and buffers."""
    networks = {
        name: TensorDict({}, batch_size=module.batch_size)
        for name, module in loss._modules.items()
        if isinstance(module, TensorDictParams)
    }
    own: dict[str, Tensor] = {}
    for name, entry in entries.items():
        head, *path = name.split(".")
        if path:
            networks[head].set(tuple(path), entry)
        else:
            own[head] = entry
    places = (loss._modules, loss._parameters, loss._buffers)
    kept = [dict(place) for place in places]
    # not TensorDict.to_module: it copies TensorDictParams, which cannot be traced
    try:
        loss._modules.update(networks)  # type: ignore[arg-type] # plain TensorDicts serve as well
        for place in (loss._parameters, loss._buffers):
            place.update({name: own[name] for name in place if name in own})  # type: ignore[arg-type]
        return loss(batch)
    finally:
        for place, before in zip(places, kept):
            place.update(before)


def _entries(loss: LossModule) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained parameters, and all other parameters and buffers, by name."""
    # not the loss's own method, which leaves out parameters that two networks share
    parameters = dict(nn.Module.named_parameters(loss, remove_duplicate=False))
    trained: dict[str, Tensor] = {name: p for name, p in parameters.items() if p.requires_grad}
    others: dict[str, Tensor] = {name: p for name, p in parameters.items() if not p.requires_grad}
    others.update({name: b for name, b in loss.named_buffers(remove_duplicate=False) if name not in _elsewhere(loss)})
    places: dict[int, str] = {}
    for name, entry in {**trained, **others}.items():
        place = places.setdefault(entry.data_ptr(), name)
        if place != name and place in trained and entry.numel():
            raise ValueError(f"{place} and {name} are one parameter; expected networks that share none.")
    return trained, others


def _check_apart(trained: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuses losses of which two train the same parameter: it can be part of one row alone."""
    places: dict[int, tuple[int, str]] = {}
    for k, entries in enumerate(trained):
        for name, parameter in entries.items():
            other, same = places.setdefault(parameter.data_ptr(), (k, name))
            if other != k and parameter.numel():
                raise ValueError(
                    f"losses {other} and {k} share {same}; expected networks that each seed has for itself."
                )


def _elsewhere(loss: LossModule) -> dict[str, Tensor]:
    """Buffers of other modules than functional networks, by name: TorchRL's value estimators hold gamma."""
    modules = {name: module for name, module in loss.named_children() if not isinstance(module, TensorDictParams)}
    return {f"{head}.{name}": b for head, module in modules.items() for name, b in module.named_buffers()}


def _check_constants(losses: Sequence[LossModule]) -> None:
    """Refuses losses that differ in buffers that stay where they are: those of the first serve all."""
    first = _elsewhere(losses[0])
    for k, loss in enumerate(losses[1:], 1):
        each = _elsewhere(loss)
        for name in sorted({*first, *each}):
            if name not in first or name not in each or not torch.equal(first[name], each[name]):
                raise ValueError(
                    f"{name} of loss {k} is {_show(each.get(name))}, of loss 0 {_show(first.get(name))}; "
                    "expected them to be equal."
                )


def _show(entry: Tensor | None) -> Any:
    return "missing" if entry is None else entry.tolist()


def _check_options(losses: Sequence[LossModule]) -> None:
    """Refuses losses or networks that differ in options: the first is what all are computed by.

    Options are what modules keep beside parameters, buffers, tensors, hooks and mode: numbers, texts, classes, specs,
    and what collections, dataclasses and submodules hold of these.
    """
    for k, loss in enumerate(losses[1:], 1):
        found = _difference(losses[0], loss, "", set())
        if found is not None:
            path, first, other = found
            raise ValueError(f"{path} of loss {k} is {other!r}, of loss 0 {first!r}; expected them to be equal.")


def _difference(first: Any, other: Any, path: str, seen: set[tuple[int, int]]) -> tuple[str, Any, Any] | None:
    """Where two objects first differ, and what is there; what has no value to compare by passes.

    Pairs that were ``seen`` are passed over: a part may lead back to the whole.
    """
    if first is other or (id(first), id(other)) in seen:
        return None
    if isinstance(first, _NUMBERS) and isinstance(other, _NUMBERS):
        # NaN is equal to itself here
        return None if first == other or (first != first and other != other) else (path, first, other)
    if _kind(first) != _kind(other):
        return path, first, other
    if isinstance(first, _VALUES):
        return None if first == other else (path, first, other)
    if isinstance(first, type):
        same_name = (first.__module__, first.__qualname__) == (other.__module__, other.__qualname__)
        return None if same_name else (path, first, other)
    if isinstance(first, Tensor):
        same = first.shape == other.shape and first.device == other.device and torch.equal(first, other)
        return None if same else (path, first.tolist(), other.tolist())
    if isinstance(first, TensorDictParams):
        return None
    seen.add((id(first), id(other)))
    if isinstance(first, (list, tuple)):
        if len(first) != len(other):
            return path, first, other
        parts: dict[Any, tuple[Any, Any]] = dict(enumerate(zip(first, other)))
    elif isinstance(first, Mapping):
        if first.keys() != other.keys():
            return path, sorted(map(str, first)), sorted(map(str, other))
        parts = {name: (value, other[name]) for name, value in first.items()}
    elif isinstance(first, nn.Module) or is_dataclass(first):
        own, its = (_attributes(each) for each in (first, other))
        if own.keys() != its.keys():
            return path, sorted(own), sorted(its)
        parts = {name: (value, its[name]) for name, value in own.items()}
    else:
        return None
    for name, pair in parts.items():
        found = _difference(*pair, f"{path}.{name}" if path else str(name), seen)
        if found is not None:
            return found
    return None


def _kind(value: Any) -> tuple[str, str]:
    """Class by name, of which PyTorch's parametrisations make one for each module; a list is as good as a tuple."""
    kind = tuple if isinstance(value, list) else type(value)
    return kind.__module__, kind.__qualname__


def _attributes(part: Any) -> dict[str, Any]:
    """Attributes of a dataclass, or of a module with its submodules and without what is no option of it."""
    if not isinstance(part, nn.Module):
        return {field.name: getattr(part, field.name) for field in fields(part)}
    left_out = _OF_MODULES | _OF_LOSSES if isinstance(part, LossModule) else _OF_MODULES
    kept = {
        name: value
        for name, value in vars(part).items()
        # a tensor is what a call has left; torch.compile gives each module a number
        if name not in left_out and not isinstance(value, Tensor) and not name.startswith("_torchdynamo")
    }
    return {**kept, **part._modules}


def _check_equal(entries: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuses losses that differ in the names, shapes, dtypes or devices of what they keep."""
    described = [{name: (tuple(t.shape), t.dtype, t.device) for name, t in each.items()} for each in entries]
    for k, each in enumerate(described[1:], 1):
        if each != described[0]:
            names = sorted(n for n in {*each, *described[0]} if each.get(n) != described[0].get(n))
            raise ValueError(f"losses must have equal structure; loss {k} differs from loss 0 in {', '.join(names)}.")


def _layouts(trained: Mapping[str, Tensor]) -> dict[str, _Layout]:
    if not trained:
        raise ValueError("expected a loss with parameters to train, got one without.")
    groups: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in trained.items():
        if parameter.dtype != torch.float32:
            raise ValueError(f"parameters must be float32, got {parameter.dtype} for {name}.")
        groups.setdefault(network_name(name), {})[name] = parameter.shape
    return {group: _Layout(tuple(shapes), tuple(shapes.values())) for group, shapes in groups.items()}


def _prefixed(layout: _Layout) -> _Layout:
    return _Layout(tuple(f"target_{name}" for name in layout.names), layout.shapes)


def _move(layout: _Layout, entries: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Makes the entries of K losses views of the new buffer ``[K, N]`` that it returns."""
    flat = torch.stack([layout.flatten(each) for each in entries])
    for row, each in zip(flat, entries):
        for name, view in layout.views(row).items():
            each[name].data = view
    return flat
