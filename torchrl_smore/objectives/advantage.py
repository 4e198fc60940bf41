"""Value and actor terms around a target score, shared by SMORe and the in-sample baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.value import ExpectileValueLoss


class AdvantageLoss(ExpectileValueLoss, AWRActorLoss):
    """A value fitted to a target score, and an actor that regresses with target score less value as its advantage.

    A base: a subclass says where the target score comes from (:meth:`_with_target_score`) and adds the loss that trains
    it. :meth:`value_loss` and :meth:`actor_loss` may be called one after the other with an optimiser step in between,
    the *sequential* order of the public codes.
    """

    @dataclass
    class _AcceptedKeys(ExpectileValueLoss._AcceptedKeys, AWRActorLoss._AcceptedKeys):
        """Keys of the two terms."""

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys  # type: ignore[assignment] # the parts' keys, a subclass of each

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Value loss against the current target score, and its metadata."""
        return self._value_term(self._with_target_score(self._rows(tensordict)))

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Regression loss at the current advantage, and its metadata."""
        batch = self._with_target_score(self._rows(tensordict))
        with torch.no_grad():
            value = self._call("value_network", batch, self.tensor_keys.value, self.value_network_params)
        return self._actor_term(self._with_advantage(batch, value))

    def _with_target_score(self, batch: TensorDictBase) -> TensorDictBase:
        raise NotImplementedError

    def _with_advantage(self, batch: TensorDictBase, state_value: Tensor) -> TensorDictBase:
        target_score = batch[self.tensor_keys.target_score]
        return batch.set(self.tensor_keys.advantage, target_score - state_value.unsqueeze(-1))
