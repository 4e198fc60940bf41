"""What the baselines share beyond :class:`OfflineLoss`: inputs with replaced entries, policy actions, row weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_smore.objectives._parameters import lent
from torchrl_smore.objectives.base import OfflineLoss


class GoalLoss(OfflineLoss):
    """Base of the goal-conditioned baselines; ``tensor_keys`` has ``action`` and ``desired_goal``.

    The goal is always read from the root of the batch, never from ``next``, so that a transition and its successor
    pursue the same one.
    """

    tensor_keys: Any

    def _add_network(
        self,
        name: str,
        network: TensorDictModule | Sequence[TensorDictModule],
        *,
        create_target_params: bool = False,
    ) -> None:
        """Register a network, or a sequence of them as an ensemble that keeps its initialisation."""
        size = None
        if isinstance(network, Sequence):
            networks = list(network)
            if not networks:
                raise ValueError(f"{name} must be a network or a sequence of at least one, got an empty sequence.")
            network, size = (networks[0], None) if len(networks) == 1 else (networks, len(networks))
        self.convert_to_functional(network, name, size, create_target_params=create_target_params)

    def _batch_key(self) -> NestedKey:
        return self.tensor_keys.action

    def _state_keys(self, in_keys: Iterable[NestedKey]) -> list[NestedKey]:
        """Those inputs that change with the step."""
        return [key for key in in_keys if key not in (self.tensor_keys.action, self.tensor_keys.desired_goal)]

    def _next_keys(self, in_keys: Iterable[NestedKey]) -> list[NestedKey]:
        """Where the changing inputs are read after the step."""
        return [unravel_key(("next", key)) for key in self._state_keys(in_keys)]

    def _inputs(
        self, tensordict: TensorDictBase, in_keys: Iterable[NestedKey], entries: Mapping[NestedKey, Tensor]
    ) -> TensorDict:
        """Inputs of a network under their root names, some of them replaced."""
        out = TensorDict({}, batch_size=tensordict.batch_size)
        for key in in_keys:
            out.set(key, entries[key] if key in entries else tensordict[key])
        return out

    def _after_step(
        self,
        tensordict: TensorDictBase,
        in_keys: Iterable[NestedKey],
        entries: Mapping[NestedKey, Tensor] | None = None,
    ) -> TensorDict:
        """:meth:`_inputs` at the next state."""
        in_keys = list(in_keys)
        states: dict[NestedKey, Tensor] = {
            key: tensordict[unravel_key(("next", key))] for key in self._state_keys(in_keys)
        }
        return self._inputs(tensordict, in_keys, {**states, **(entries or {})})

    def _policy_action(self, inputs: TensorDictBase, params: TensorDictParams) -> Tensor:
        """Deterministic action of the policy (the forward of a loss runs in deterministic mode), ``[*B, A]``."""
        network: TensorDictModule = self.actor_network
        with lent(network, params):
            return network(inputs.select(*network.in_keys))[self.tensor_keys.action]

    def _constant(self, name: str) -> TensorDictParams:
        """Detached parameters, through which gradient flows to the inputs of a network alone."""
        # not .detach(), which tensordict caches across .to(), and not .data, which torch.vmap forbids
        params: TensorDictParams = getattr(self, name)
        return cast("TensorDictParams", params.apply(torch.Tensor.detach))

    def _distribution(self, inputs: TensorDictBase) -> torch.distributions.Distribution:
        """Action distribution of the current policy."""
        with lent(self.actor_network, self.actor_network_params):
            return self.actor_network.get_dist(inputs.select(*self.actor_network.in_keys))

    def _row_weight(self, tensordict: TensorDictBase, like: Tensor) -> Tensor:
        """Weight of each row in an expectation over the batch, ``[*B]``, in the dtype of ``like``.

        0 where a mask drops the row, else its priority weight, or 1. For losses that couple the rows of a batch.
        """
        weight = torch.ones(tensordict.batch_size, dtype=like.dtype, device=like.device)
        if self.use_prioritized_weights in (True, "auto"):
            given = tensordict.get(self.tensor_keys.priority_weight, None)
            if given is not None:
                weight = given.reshape(weight.shape).to(like.dtype)
        for key in self._loss_mask_keys():
            mask = tensordict.get(key, None)
            if mask is not None:
                weight = weight * mask.reshape(weight.shape).to(like.dtype)
        return weight


def require_stochastic(actor_network: TensorDictModule) -> None:
    """Raises ``TypeError`` for an actor without ``get_dist``."""
    if not hasattr(actor_network, "get_dist"):
        raise TypeError(f"actor_network must be stochastic (have get_dist), got {type(actor_network).__name__}.")
