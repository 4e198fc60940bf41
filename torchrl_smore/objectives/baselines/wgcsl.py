"""Weighted goal-conditioned supervised learning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.baselines.iql import return_bounds, td_target
from torchrl_smore.functional.baselines.wgcsl import best_advantage_weight, offset_weight, percentile, push
from torchrl_smore.functional.losses import awr_weight
from torchrl_smore.objectives._construction import (
    check_bounds,
    check_choice,
    check_discount,
    check_not_negative,
    check_positive,
    require_stochastic,
)
from torchrl_smore.objectives._networks import inputs_after, inputs_of, next_keys
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.baselines._extras import asked_entry
from torchrl_smore.objectives.baselines.gcsl import Regression
from torchrl_smore.objectives.terms import Term, imitation_term, td_term

Threshold = Literal["none", "percentile"]
Advantage = Literal["target", "online"]
TargetBounds = Literal["auto", "symmetric"]
_OFFSET = (
    "HindsightGoalTransform(step_key='step_count') and GoalBatchSampler(extras=['goal_offset']) write 'goal_offset'; "
    "the loss with discount_offset=False reads none."
)


@final
class WGCSLLoss(OfflineLoss):
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
        regression: see :class:`~torchrl_smore.objectives.GCSLLoss`.
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

    Returns (forward):
        ``loss_qvalue``, ``loss_actor``; detached: ``qvalue``, ``td_error``, ``mean_advantage``, ``actor_weight``,
        ``below_threshold`` (fraction of rows), and ``action_error`` or ``log_prob``.

    Raises:
        TypeError: for ``regression="nll"`` with an actor without ``get_dist``.
        ValueError: for an unknown name, or a constant outside its range.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`WGCSLLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``; also what the actor writes.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            qvalue: written by the Q networks, ``[*B, 1]``.
            reward: ``[*B, 1]``, -1 away from the goal and 0 at it (port), or 0 and 1 (original).
            goal_offset: steps from the transition to its goal, ``[*B, 1]``, integer, negative for a kept goal.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        qvalue: NestedKey = "score"
        reward: NestedKey = ("next", "reward")
        goal_offset: NestedKey = "goal_offset"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_qvalue", "loss_actor", "qvalue", "td_error", "mean_advantage", "actor_weight", "below_threshold"]
    ensembles = ("qvalue_network",)
    asks_actor_elsewhere = True

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
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        check_choice(threshold=(threshold, Threshold), advantage=(advantage, Advantage))
        check_choice(regression=(regression, Regression))
        check_discount(gamma)
        check_positive(weight_clip=weight_clip, memory_size=memory_size)
        check_not_negative(low_weight=low_weight, threshold_step=threshold_step)
        if not 0.0 <= threshold_max <= 100.0:
            raise ValueError(f"threshold_max must lie in [0, 100], got {threshold_max}.")
        if regression == "nll":
            require_stochastic(actor_network)
        self.threshold, self.advantage = threshold, advantage
        self.discount_offset = discount_offset
        self.weight_clip, self.low_weight = weight_clip, low_weight
        self.threshold_step, self.threshold_max = threshold_step, threshold_max
        self.regression, self.gamma = regression, gamma
        self.target_bounds = check_bounds(
            _bounds(target_bounds, gamma) if isinstance(target_bounds, str) else target_bounds
        )
        self._add_network("actor_network", actor_network, delay=True)
        self._add_network("qvalue_network", qvalue_network, delay=True)
        if threshold == "percentile":
            self.register_buffer("advantage_memory", torch.full((memory_size,), torch.nan))
            self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self._ready([*self.out_keys, "action_error" if regression == "mse" else "log_prob"])

    @property
    def writes_buffers(self) -> bool:
        """Whether there is a memory of advantages (``threshold="percentile"``), to which a call in training writes."""
        return self.threshold == "percentile"

    def _read_keys(self) -> Iterable[NestedKey]:
        keys, inputs = self.tensor_keys, [*self.qvalue_network.in_keys, *self.actor_network.in_keys]
        offset = [keys.goal_offset] if self.discount_offset else []
        return [*inputs, keys.action, *next_keys(inputs, keys), keys.reward, *offset]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute both losses at the same parameters; see the class."""
        rows = self._rows(tensordict)
        target = self._target(rows)
        loss_qvalue, qvalue_metadata = self._qvalue_term(rows, target)
        loss_actor, actor_metadata = self._actor_term(rows, target)
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": loss_actor}
        return self._finish(losses, {**qvalue_metadata, **actor_metadata}, rows)

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Weighted regression loss, and its metadata; in training mode the threshold moves on."""
        rows = self._rows(tensordict)
        return self._actor_term(rows, self._target(rows))

    def qvalue_loss(self, tensordict: TensorDictBase) -> Term:
        """Temporal-difference loss with the target actor's action, and its metadata."""
        rows = self._rows(tensordict)
        return self._qvalue_term(rows, self._target(rows))

    def _next_qvalue(self, rows: TensorDictBase, actor: TensorDictParams, qvalue: TensorDictParams) -> Tensor:
        """Smallest ``Q(s', pi(s', g), g)``, ``[*B]``."""
        keys = self.tensor_keys
        action = self._policy_action(inputs_after(rows, self.actor_network.in_keys, keys), actor)
        inputs = inputs_after(rows, self.qvalue_network.in_keys, keys, {keys.action: action})
        return self._call("qvalue_network", inputs, keys.qvalue, qvalue).amin(0)

    @torch.no_grad()
    def _target(self, rows: TensorDictBase) -> Tensor:
        """``r + gamma Q_target(s', pi_target(s', g), g)`` within the bounds, ``[*B]``."""
        after = self._next_qvalue(rows, self.target_actor_network_params, self.target_qvalue_network_params)
        return td_target(rows[self.tensor_keys.reward].squeeze(-1), after, self.gamma, bounds=self.target_bounds)

    def _qvalue_term(self, rows: TensorDictBase, target: Tensor) -> Term:
        """Q fitted to the target."""
        qvalue = self._call("qvalue_network", rows, self.tensor_keys.qvalue)
        return td_term(qvalue, target, self._reducer(rows))

    @torch.no_grad()
    def _advantage(self, rows: TensorDictBase, target: Tensor) -> Tensor:
        """TD target less ``Q(s, pi(s, g), g)``, ``[*B]``, both with the networks and bounds of ``self.advantage``."""
        keys = self.tensor_keys
        inputs = inputs_of(rows, self.qvalue_network.in_keys, {keys.action: self._policy_action(rows)})
        here = self._call("qvalue_network", inputs, keys.qvalue).amin(0)
        if self.advantage == "target":
            return target - (here if self.target_bounds is None else here.clamp(*self.target_bounds))
        after = self._next_qvalue(rows, self.actor_network_params, self.qvalue_network_params)
        return td_target(rows[keys.reward].squeeze(-1), after, self.gamma) - here

    def _actor_term(self, rows: TensorDictBase, target: Tensor) -> Term:
        """Regression weighted by ``gamma^offset``, the exponential advantage and its place among the latest ones."""
        advantage = self._advantage(rows, target)
        weight = awr_weight(advantage, 1.0, self.weight_clip)
        if self.discount_offset:
            offset = asked_entry(rows, self.tensor_keys.goal_offset, self, _OFFSET)
            weight = weight * offset_weight(offset.squeeze(-1), self.gamma, weight.dtype)
        below = torch.zeros_like(advantage)
        if self.threshold == "percentile":
            threshold = self._best_advantage(advantage, self._row_weight(rows, advantage) > 0.0)
            weight = weight * best_advantage_weight(advantage, threshold, self.low_weight)
            below = (advantage < threshold).to(advantage.dtype)
        policy = self._distribution(rows) if self.regression == "nll" else self._trained_action(rows)
        loss, metadata = imitation_term(policy, rows[self.tensor_keys.action], self._reducer(rows), weight)
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
