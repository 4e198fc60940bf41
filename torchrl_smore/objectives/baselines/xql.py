"""Extreme Q-learning with goals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor

from torchrl_smore.functional.baselines.iql import td_target, xql_value_loss
from torchrl_smore.functional.losses import actor_weight
from torchrl_smore.objectives._construction import AdvantageUnit, add_weighted_actor, check_discount, scale_of
from torchrl_smore.objectives._networks import at_actor_goal, inputs_after, next_keys
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.terms import REGRESSION_KEYS, Term, regression_term, td_term


@final
class GCXQLLoss(OfflineLoss):
    r"""Goal-conditioned extreme Q-learning (Garg et al., 2023, arXiv:2301.02328).

    See :func:`~torchrl_smore.functional.baselines.iql.xql_value_loss`; actor weight ``exp(3 (Q - V))``, Huber's loss
    for Q.

    In-sample: the value is fitted to the smallest target Q by a convex function of ``(Q - V) / alpha`` instead of an
    expectile, the actor regresses on the dataset actions, every Q is fitted to ``r + gamma (1 - terminated) V(s', g)``.
    No action outside the data is ever evaluated. :meth:`forward` computes the three at the same parameters; calling
    :meth:`value_loss`, :meth:`actor_loss` and :meth:`qvalue_loss` with an optimiser step in between is the sequential
    order of the public code. Nothing is written to the input.

    Defaults of the public code (``Div99/XQL``): gamma 0.99, target rate 0.005, Adam 3e-4 with a cosine for the
    actor, batch 256, LayerNorm in the value network. Its goal-conditioned version is unreleased: relabelling (0.8) and
    the reward ({0, 1} or {-1, 0}) are the sampler's.

    Args:
        actor_network: stochastic actor, reads state and goal.
        qvalue_network: ``Q(s, a, g)``, one network or a sequence (twins).
        value_network: ``V(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        alpha: its beta, the Gumbel temperature, positive, in units of the return (tuned per task within 0.6 to 8).
        temperature: multiplies the advantage, non-negative; schedulable by assignment.
        gamma: discount, in ``(0, 1)``.
        weight_clip: largest actor weight.
        advantage_unit: see :class:`~torchrl_smore.objectives.SMORELoss`.
        huber_delta: see :func:`~torchrl_smore.functional.baselines.iql.td_loss`.
        use_terminated: whether ``tensor_keys.terminated`` stops the bootstrap.

    Returns (forward):
        ``loss_qvalue``, ``loss_value``, ``loss_actor``; detached: mean ``qvalue`` and ``value``, root mean square
        ``td_error``, and those of :class:`~torchrl_smore.objectives.AWRActorLoss`.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for a constant outside its range.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`GCXQLLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            actor_goal: the goal pursued in the regression, ``[*B, G]``; ``None``: that of ``desired_goal``.
            qvalue: written by the Q networks, ``[*B, 1]``.
            value: written by the value network, ``[*B, 1]``.
            reward: ``[*B, 1]``.
            terminated: bool, ``[*B, 1]``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        actor_goal: NestedKey | None = None
        qvalue: NestedKey = "score"
        value: NestedKey = "state_value"
        reward: NestedKey = ("next", "reward")
        terminated: NestedKey = ("next", "terminated")
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_qvalue", "loss_value", "loss_actor", "qvalue", "td_error", "value", *REGRESSION_KEYS]
    ensembles = ("qvalue_network",)
    _schedulable_buffers = frozenset({"temperature"})

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        value_network: TensorDictModule,
        *,
        alpha: float = 1.0,
        temperature: float = 3.0,
        gamma: float = 0.99,
        weight_clip: float = 100.0,
        advantage_unit: AdvantageUnit = "score",
        huber_delta: float | None = 20.0,
        use_terminated: bool = True,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        if not alpha > 0.0:
            raise ValueError(f"alpha must be positive, got {alpha}.")
        if huber_delta is not None and not huber_delta > 0.0:
            raise ValueError(f"huber_delta must be positive, got {huber_delta}.")
        check_discount(gamma)
        self.alpha, self.gamma = alpha, gamma
        self.advantage_scale = scale_of(advantage_unit, gamma)
        self.huber_delta, self.use_terminated = huber_delta, use_terminated
        add_weighted_actor(self, actor_network, temperature, weight_clip)
        self._add_network("value_network", value_network)
        self._add_network("qvalue_network", qvalue_network, delay=True)
        self._ready(self.out_keys)

    def _read_keys(self) -> Iterable[NestedKey]:
        keys, value_keys = self.tensor_keys, self.value_network.in_keys
        inputs = [*self.qvalue_network.in_keys, *value_keys, *self.actor_network.in_keys, keys.action]
        rest = [keys.terminated] if self.use_terminated else []
        rest += [] if keys.actor_goal is None else [keys.actor_goal]
        return [*inputs, *next_keys(value_keys, keys), keys.reward, *rest]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the three losses at the same parameters; see the class."""
        rows = self._rows(tensordict)
        loss_value, value, advantage = self._value_term(rows)
        loss_actor, actor_metadata = self._actor_term(rows, advantage)
        loss_qvalue, qvalue_metadata = self._qvalue_term(rows)
        losses = {"loss_qvalue": loss_qvalue, "loss_value": loss_value, "loss_actor": loss_actor}
        return self._finish(losses, {**qvalue_metadata, "value": value.mean(), **actor_metadata}, rows)

    def value_loss(self, tensordict: TensorDictBase) -> Term:
        """Value loss against the current target Q, and ``state_value`` (detached, ``[*B]``) as metadata."""
        loss, value, _ = self._value_term(self._rows(tensordict))
        return loss, {"state_value": value}

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Regression loss at the current advantage, and its metadata."""
        return self._actor_term(self._rows(tensordict))

    def qvalue_loss(self, tensordict: TensorDictBase) -> Term:
        """Temporal-difference loss bootstrapped from the current value, and its metadata."""
        return self._qvalue_term(self._rows(tensordict))

    @torch.no_grad()
    def advantage(self, tensordict: TensorDictBase) -> Tensor:
        """Smallest target Q less value at the dataset's actions: what weighs the regression.

        Args:
            tensordict: a batch as for :meth:`forward`; of it what :meth:`actor_loss` reads.

        Returns:
            Shape ``[*B]``, in the unit of the return (``advantage_scale`` is not applied), without gradient.
        """
        rows = at_actor_goal(self._rows(tensordict), self.tensor_keys)
        return self._target_qvalue(rows) - self._call("value_network", rows, self.tensor_keys.value)

    @torch.no_grad()
    def _target_qvalue(self, rows: TensorDictBase) -> Tensor:
        """Smallest target Q of the dataset's actions, ``[*B]``."""
        params = self.target_qvalue_network_params
        return self._call("qvalue_network", rows, self.tensor_keys.qvalue, params).amin(0)

    def _value_term(self, rows: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Gumbel regression of the value; with it value and advantage, detached, ``[*B]``."""
        value = self._call("value_network", rows, self.tensor_keys.value)
        qvalue = self._target_qvalue(rows)
        keep = self._row_weight(rows, value) > 0.0
        loss = self._reducer(rows)(xql_value_loss(qvalue, value, self.alpha, keep=keep))
        return loss, value.detach(), qvalue - value.detach()

    def _actor_term(self, rows: TensorDictBase, advantage: Tensor | None = None) -> Term:
        """Advantage-weighted regression: by the given one, unless the actor has goals of its own."""
        own = at_actor_goal(rows, self.tensor_keys)
        if advantage is None or own is not rows:
            with torch.no_grad():
                advantage = self._target_qvalue(own) - self._call("value_network", own, self.tensor_keys.value)
        weight = actor_weight(self.advantage_scale * advantage, self.temperature, self.weight_clip)
        log_prob = self._distribution(own).log_prob(own[self.tensor_keys.action])
        return regression_term(log_prob, weight, self._reducer(own))

    def _qvalue_term(self, rows: TensorDictBase) -> Term:
        """Every Q fitted to ``r + gamma (1 - terminated) V(s', g)``."""
        keys = self.tensor_keys
        with torch.no_grad():
            after = inputs_after(rows, self.value_network.in_keys, keys)
            next_value = self._call("value_network", after, keys.value)
        terminated = rows[keys.terminated].squeeze(-1) if self.use_terminated else None
        target = td_target(rows[keys.reward].squeeze(-1), next_value, self.gamma, terminated=terminated)
        qvalue = self._call("qvalue_network", rows, keys.qvalue)
        return td_term(qvalue, target, self._reducer(rows), self.huber_delta)
