"""What networks read: entries of a batch under the names that a network knows, some of them replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams
from tensordict.utils import unravel_key
from torch import Tensor

Replaced = Mapping[NestedKey, Tensor]


def inputs_of(rows: TensorDictBase, in_keys: Iterable[NestedKey], replaced: Replaced | None = None) -> TensorDict:
    """Inputs of a network under their names at the root, some of them replaced."""
    replaced = replaced or {}
    out = TensorDict({}, batch_size=rows.batch_size)
    for key in in_keys:
        out.set(key, replaced[key] if key in replaced else rows[key])
    return out


def inputs_after(
    rows: TensorDictBase, in_keys: Iterable[NestedKey], keys: Any, replaced: Replaced | None = None
) -> TensorDict:
    """:func:`inputs_of` at the next state, with the goal of the root: a transition and its successor pursue the same.

    Args:
        rows: has what changes with the step under ``next``.
        in_keys: of the network.
        keys: ``tensor_keys`` of the loss, with ``action`` and ``desired_goal``.
        replaced: entries in place of those of ``rows``; for the action there is no other.
    """
    in_keys = list(in_keys)
    states = dict(zip(state_keys(in_keys, keys), (rows[key] for key in next_keys(in_keys, keys))))
    return inputs_of(rows, in_keys, {**states, **(replaced or {})})


def state_keys(in_keys: Iterable[NestedKey], keys: Any) -> list[NestedKey]:
    """Those inputs that change with the step."""
    return [key for key in in_keys if key not in (keys.action, keys.desired_goal)]


def next_keys(in_keys: Iterable[NestedKey], keys: Any) -> list[NestedKey]:
    """Where they are read after the step."""
    return [unravel_key(("next", key)) for key in state_keys(in_keys, keys)]


def at_actor_goal(rows: TensorDictBase, keys: Any) -> TensorDictBase:
    """``rows``, which pursue the goals of the actor where it has its own (``keys.actor_goal``)."""
    return rows if keys.actor_goal is None else rows.copy().set(keys.desired_goal, rows[keys.actor_goal])


def constant(params: TensorDictParams) -> TensorDictParams:
    """Detached parameters, through which gradient flows to the inputs of a network alone."""
    # not .detach(), which tensordict caches across .to(), and not .data, which torch.vmap forbids
    return cast("TensorDictParams", params.apply(torch.Tensor.detach))
