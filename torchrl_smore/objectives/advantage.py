"""Value and actor terms around a target score, shared by SMORe and the in-sample baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_smore._dispatch import expectile_awr
from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.losses import ExpectileAWR
from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.value import ExpectileValueLoss

#: What an advantage is measured in before the temperature multiplies it: the unit of the score, or ``1 / (1 - gamma)``
#: of it, so that it is a share of the range that scores can have.
AdvantageUnit = Literal["score", "horizon"]


class AdvantageLoss(ExpectileValueLoss, AWRActorLoss):
    """A value fitted to a target score, and an actor that regresses with target score less value as its advantage.

    A base: a subclass says where the target score comes from (:meth:`_with_target_score`) and adds the loss that trains
    it. :meth:`value_loss` and :meth:`actor_loss` may be called one after the other with an optimiser step in between,
    the *sequential* order of the public codes.

    The advantage may be measured in the score's own unit or in effective horizons, ``1 / (1 - gamma)`` of it
    (:data:`AdvantageUnit`): the range of scores grows with the horizon, and with it the noise in them, so a temperature
    that is right at one discount ruins the regression at another; in horizons one temperature serves all.

    The regression may pursue goals of its own: ``set_keys(actor_goal="actor_goal")`` reads them there, and the
    advantage is then taken at them too (OGBench samples goals of value and actor apart).
    """

    @dataclass
    class _AcceptedKeys(ExpectileValueLoss._AcceptedKeys, AWRActorLoss._AcceptedKeys):
        """Keys of the two terms.

        Attributes:
            desired_goal: the goal pursued, ``[*B, G]``.
            actor_goal: the goal pursued in the regression, ``[*B, G]``; ``None``: that of ``desired_goal``.
        """

        desired_goal: NestedKey = "desired_goal"
        actor_goal: NestedKey | None = None

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys  # type: ignore[assignment] # the parts' keys, a subclass of each

    advantage_scale: float = 1.0

    def _set_advantage_unit(self, unit: AdvantageUnit, gamma: float) -> None:
        if unit not in get_args(AdvantageUnit):
            raise unknown_name("advantage_unit", unit, get_args(AdvantageUnit))
        self.advantage_scale = 1.0 - gamma if unit == "horizon" else 1.0

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Value loss against the current target score, and its metadata."""
        return self._value_term(self._with_target_score(self._rows(tensordict)))

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Regression loss at the current advantage, and its metadata."""
        return self._actor_term_at(self._at_actor_goal(self._rows(tensordict)))

    def _actor_term_at(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Regression loss of rows that pursue the actor's goals, and its metadata."""
        batch = self._with_target_score(batch)
        with torch.no_grad():
            value = self._call("value_network", batch, self.tensor_keys.value, self.value_network_params)
        if self._runs_fused(batch):
            return self._fused_actor_term(batch, self._fused_terms(batch, value))
        return self._actor_term(self._with_advantage(batch, value))

    @property
    def _own_actor_goal(self) -> bool:
        return self.tensor_keys.actor_goal is not None

    def _actor_goal_keys(self) -> list[NestedKey]:
        """What is read beside the keys of the terms."""
        key = self.tensor_keys.actor_goal
        return [] if key is None else [key]

    def _at_actor_goal(self, batch: TensorDictBase) -> TensorDictBase:
        if not self._own_actor_goal:
            return batch
        return batch.copy().set(self.tensor_keys.desired_goal, batch[self.tensor_keys.actor_goal])

    @torch.no_grad()
    def advantage(self, tensordict: TensorDictBase) -> Tensor:
        """Target score less value at the dataset's actions: what weighs the regression.

        Args:
            tensordict: a batch as for :meth:`forward`; of it what :meth:`actor_loss` reads.

        Returns:
            Shape ``[*B]``, in the unit of the score (``advantage_scale`` is not applied), without gradient.
        """
        batch = self._with_target_score(self._at_actor_goal(self._rows(tensordict)))
        value = self._call("value_network", batch, self.tensor_keys.value, self.value_network_params)
        return batch[self.tensor_keys.target_score].squeeze(-1) - value

    def _value_and_actor_terms(self, batch: TensorDictBase) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Both losses at the same value, and their diagnostics; needs the target score."""
        if self._own_actor_goal:
            loss_value, value_metadata = self._value_term(batch)
            loss_actor, metadata = self._actor_term_at(self._at_actor_goal(batch))
            return loss_value, loss_actor, {"value": value_metadata["state_value"].mean(), **metadata}
        if not self._runs_fused(batch):
            loss_value, metadata = self._value_term(batch)
            value = metadata["state_value"]
            loss_actor, metadata = self._actor_term(self._with_advantage(batch, value))
            return loss_value, loss_actor, {"value": value.mean(), **metadata}
        value = self._call("value_network", batch, self.tensor_keys.value, self.value_network_params)
        fused = self._fused_terms(batch, value)
        loss_actor, metadata = self._fused_actor_term(batch, fused)
        return fused.loss, loss_actor, {"value": fused.mean_value, **metadata}

    def _fused_terms(self, batch: TensorDictBase, value: Tensor) -> ExpectileAWR:
        score = batch[self.tensor_keys.target_score].squeeze(-1)
        return expectile_awr(
            score,
            value,
            expectile=self.expectile,
            temperature=self.temperature * self.advantage_scale,
            weight_clip=self.weight_clip,
            kernels=self.kernels,
        )

    def _fused_actor_term(self, batch: TensorDictBase, fused: ExpectileAWR) -> tuple[Tensor, dict[str, Tensor]]:
        metadata = {
            "mean_advantage": fused.mean_advantage * self.advantage_scale,
            "awr_weight": fused.mean_weight,
            "weight_clipped": fused.weight_clipped,
        }
        return self._regression_term(batch, cast("Tensor", fused.weight), metadata)

    def _with_target_score(self, batch: TensorDictBase) -> TensorDictBase:
        raise NotImplementedError

    def _with_advantage(self, batch: TensorDictBase, state_value: Tensor) -> TensorDictBase:
        target_score = batch[self.tensor_keys.target_score]
        advantage = target_score - state_value.unsqueeze(-1)
        if self.advantage_scale != 1.0:
            advantage = self.advantage_scale * advantage
        return batch.set(self.tensor_keys.advantage, advantage)
