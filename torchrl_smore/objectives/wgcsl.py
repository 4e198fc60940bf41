"""Weighted goal-conditioned supervised learning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.baselines.iql import td_target
from torchrl_smore.functional.baselines.wgcsl import best_advantage_weight, offset_weight, percentile, push
from torchrl_smore.functional.losses import awr_weight
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.gcsl import GCSLLoss, Regression
from torchrl_smore.objectives.qvalue import QValueLoss, return_bounds

Threshold = Literal["none", "percentile"]
Advantage = Literal["target", "online"]
TargetBounds = Literal["auto", "symmetric"]


class WGCSLLoss(QValueLoss, GCSLLoss):
    r"""Imitation weighted by discount, advantage and, in the original, the best-advantage threshold.

    .. math:: w = \gamma^{\text{offset}} \, \min(e^A, 10) \, (1 \text{ if } A \ge \text{threshold else } 0.05)

    Yang et al. (2022), arXiv:2202.04478. The defaults are GoFAR's port (``gcsl_agent.py``), with which SMORe compares:
    no threshold, and ``A`` is the clipped TD target less the clipped ``Q(s, pi(s, g), g)``. The original (``AWGCSL``,
    ``gamma_exp_adv_clip10_baw``) is ``threshold="percentile", advantage="online", target_bounds="symmetric"`` on
    rewards {0, 1}, which both its critic and its advantage see; the port's are {-1, 0} (``reward_values`` of the
    sampler). Both: relabelling 1, gamma 0.98, Adam 5e-4, three hidden layers of 256. Port: batch 512, target rate 0.05
    once per 20 updates. Original: target rate 0.1 per cycle, ``threshold_step`` 0.01 (hard tasks, batch 512) or 0.15
    (batch 128).

    Departure: actor and critic share one batch, where the original relabels all rows of the actor and 80% of the
    critic. A goal that was not relabelled has no offset and gets weight 1.

    With ``threshold="percentile"`` a memory of past advantages is a buffer; like that of a batch norm it changes in
    training mode only: batch in, oldest out, the percentile rises by ``threshold_step``, and then it is read.

    Args:
        actor_network: writes ``tensor_keys.action`` from state and goal.
        qvalue_network: ``Q(s, a, g)``, one network or a sequence, of which the smallest counts.
        regression: see :class:`~torchrl_smore.objectives.gcsl.GCSLLoss`.
        threshold: ``"none"`` or ``"percentile"``.
        advantage: ``"target"`` (target networks at the next state, both parts within the bounds) or ``"online"``
            (online networks, no bounds).
        gamma: discount, in ``(0, 1)``.
        discount_offset: whether the discount weight is used; the original drops it for random data of hard tasks.
        weight_clip: largest exponential weight.
        low_weight: weight below the threshold.
        threshold_step: rise of the percentile per update, in percent.
        threshold_max: last percentile.
        memory_size: number of advantages that are remembered.
        target_bounds: of the TD target; ``"auto"`` is ``(-1 / (1 - gamma), 0)``, ``"symmetric"``
            ``(-1 / (1 - gamma), 1 / (1 - gamma))``.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_qvalue``, ``loss_actor``; detached: ``qvalue``, ``td_error``, ``mean_advantage``, ``actor_weight``,
        ``below_threshold`` (fraction of rows), and ``action_error`` or ``log_prob``.
    """

    @dataclass
    class _AcceptedKeys(QValueLoss._AcceptedKeys, GCSLLoss._AcceptedKeys):
        """Keys of :class:`WGCSLLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``; also what the actor writes.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            qvalue: written by the Q networks, ``[*B, 1]``.
            next_value: internal, ``Q(s', pi(s', g), g)`` of the target networks.
            reward: ``[*B, 1]``, -1 away from the goal and 0 at it (port), or 0 and 1 (original).
            terminated: not read.
            goal_offset: steps from the transition to its goal, ``[*B, 1]``, integer, negative for a kept goal.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        goal_offset: NestedKey = "goal_offset"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys  # type: ignore[assignment] # the parts' keys, a subclass of each
    out_keys = ["loss_qvalue", "loss_actor", "qvalue", "td_error", "mean_advantage", "actor_weight", "below_threshold"]

    advantage_memory: Tensor
    num_updates: Tensor

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        *,
        regression: Regression = "mse",
        threshold: Threshold = "none",
        advantage: Advantage = "target",
        gamma: float = 0.98,
        discount_offset: bool = True,
        weight_clip: float = 10.0,
        low_weight: float = 0.05,
        threshold_step: float = 0.01,
        threshold_max: float = 80.0,
        memory_size: int = 50_000,
        target_bounds: TargetBounds | tuple[float, float] | None = "auto",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        OfflineLoss.__init__(
            self, reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode
        )
        for name, chosen, valid in (("threshold", threshold, Threshold), ("advantage", advantage, Advantage)):
            if chosen not in get_args(valid):
                raise unknown_name(name, chosen, get_args(valid))
        self.threshold, self.advantage = threshold, advantage
        self.discount_offset = discount_offset
        self.weight_clip, self.low_weight = weight_clip, low_weight
        self.threshold_step, self.threshold_max = threshold_step, threshold_max
        bounds = _bounds(target_bounds, gamma) if isinstance(target_bounds, str) else target_bounds
        self._add_regression_term(actor_network, regression, delay_actor=True)
        self._add_qvalue_term(qvalue_network, gamma, target_bounds=bounds, use_terminated=False)
        if threshold == "percentile":
            self.register_buffer("advantage_memory", torch.full((memory_size,), torch.nan))
            self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.out_keys = self._kept([*self.out_keys, "action_error" if regression == "mse" else "log_prob"])
        self._make_vmap()
        self._set_in_keys()

    def _read_keys(self) -> Iterable[NestedKey]:
        inputs = [*self.qvalue_network.in_keys, *self.actor_network.in_keys]
        after = self._next_keys(inputs)
        offset = [self.tensor_keys.goal_offset] if self.discount_offset else []
        return [*inputs, self.tensor_keys.action, *after, *self._reward_keys(), *offset]

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted regression loss, and its metadata; in training mode the threshold moves on."""
        return self._actor_term(self._with_next_value(self._rows(tensordict)))

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Temporal-difference loss with the target actor's action, and its metadata."""
        return self._qvalue_term(self._with_next_value(self._rows(tensordict)))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute both losses at the same parameters; see the class."""
        batch = self._with_next_value(self._rows(tensordict))
        loss_qvalue, qvalue_metadata = self._qvalue_term(batch)
        loss_actor, actor_metadata = self._actor_term(batch)
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": loss_actor}
        return self._finish(losses, {**qvalue_metadata, **actor_metadata}, batch)

    def _policy_qvalue(
        self, batch: TensorDictBase, actor: TensorDictParams, qvalue: TensorDictParams, *, after: bool
    ) -> Tensor:
        """Smallest ``Q(s, pi(s, g), g)``, here or after the step, ``[*B]``."""
        gather = self._after_step if after else self._inputs
        action = self._policy_action(gather(batch, self.actor_network.in_keys, {}), actor)
        return self._qvalues(
            gather(batch, self.qvalue_network.in_keys, {self.tensor_keys.action: action}), qvalue
        ).amin(0)

    @torch.no_grad()
    def _with_next_value(self, batch: TensorDictBase) -> TensorDictBase:
        value = self._policy_qvalue(
            batch, self.target_actor_network_params, self.target_qvalue_network_params, after=True
        )
        return batch.set(self.tensor_keys.next_value, value.unsqueeze(-1))

    @torch.no_grad()
    def _advantage(self, batch: TensorDictBase) -> Tensor:
        params = (self.actor_network_params, self.qvalue_network_params)
        here = self._policy_qvalue(batch, *params, after=False)
        if self.advantage == "target":
            target = self._td_target(batch)
            here = here if self.target_bounds is None else here.clamp(*self.target_bounds)
        else:
            after = self._policy_qvalue(batch, *params, after=True)
            target = td_target(batch[self.tensor_keys.reward].squeeze(-1).to(after.dtype), after, self.gamma)
        return target - here

    def _actor_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        advantage = self._advantage(batch)
        weight = awr_weight(advantage, 1.0, self.weight_clip)
        if self.discount_offset:
            offset = batch[self.tensor_keys.goal_offset].squeeze(-1)
            weight = weight * offset_weight(offset, self.gamma, weight.dtype)
        below = torch.zeros_like(advantage)
        if self.threshold == "percentile":
            threshold = self._best_advantage(advantage, self._row_weight(batch, advantage) > 0.0)
            weight = weight * best_advantage_weight(advantage, threshold, self.low_weight)
            below = (advantage < threshold).to(advantage.dtype)
        loss, metadata = self._regression_term(batch, weight)
        own = {"mean_advantage": advantage.mean(), "actor_weight": weight.mean(), "below_threshold": below.mean()}
        return loss, {**own, **metadata}

    def _best_advantage(self, advantage: Tensor, keep: Tensor) -> Tensor:
        """Threshold, after the kept rows' advantages have entered the memory and it has risen (in training mode)."""
        if self.training:
            self.advantage_memory.copy_(push(self.advantage_memory, torch.where(keep, advantage, torch.nan)))
            self.num_updates.add_(1)
        percent = (self.num_updates * self.threshold_step).clamp_max(self.threshold_max)
        return percentile(self.advantage_memory, percent).to(advantage.dtype)


def _bounds(name: str, gamma: float) -> tuple[float, float]:
    if name not in get_args(TargetBounds):
        raise unknown_name("target_bounds", name, get_args(TargetBounds))
    lower, upper = return_bounds(gamma)
    return (lower, -lower) if name == "symmetric" else (lower, upper)
