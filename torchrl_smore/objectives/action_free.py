"""The action-free variant of SMORe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_smore.functional.losses import actor_weight
from torchrl_smore.functional.score import ScoreObjective, action_free_objective, bellman_residual
from torchrl_smore.objectives._construction import AdvantageUnit, add_weighted_actor, check_choice, scale_of
from torchrl_smore.objectives._networks import inputs_after, inputs_of, next_keys
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.terms import REGRESSION_KEYS, Term, regression_term

Constraint = Literal["printed", "corrected"]


@final
class ActionFreeSMORELoss(OfflineLoss):
    r"""Learns ``S(s, g)`` without actions (Theorem 2, Eq. 63), and optionally a policy from it.

    See :func:`~torchrl_smore.functional.score.action_free_objective`. The theorem as printed solves a relaxation
    (erratum E7); ``constraint="corrected"`` is exact and reads the density ratio ``rho / Mix`` of each row, which
    samples alone do not give. The paper has no rule to extract a policy; with ``actor_network`` the actor regresses on
    the dataset actions weighted by the advantage ``y = gamma S(s', g) - S(s, g)``.

    The input is one TensorDict: offline transitions at the root, goal transitions under ``tensor_keys.q``. Gradient
    flows through both ends of ``y``. Nothing is written to the input.

    Args:
        value_network: ``S(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        actor_network: stochastic actor, or ``None`` to learn the score alone (then no action is read).
        divergence: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        beta: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        gamma: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        residual_coef: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        constraint: ``"printed"`` or ``"corrected"``.
        temperature: see :class:`~torchrl_smore.objectives.AWRActorLoss`.
        advantage_unit: see :class:`~torchrl_smore.SMORELoss`.
        weight_clip: see :class:`~torchrl_smore.objectives.AWRActorLoss`.

    Returns (forward):
        ``loss_value`` and, with an actor, ``loss_actor``; detached: mean ``value``, root mean square ``residual``, and
        the actor's diagnostics.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for an unknown name or a constant outside its range.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`ActionFreeSMORELoss`.

        Attributes:
            action: dataset action, ``[*B, A]``; read with an actor only.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            q: nested TensorDict of goal transitions.
            value: written by the value network, ``[*B, 1]``.
            ratio: ``rho / Mix``, ``[*B, 1]``, at the root and under ``q``; for ``constraint="corrected"``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        q: NestedKey = "q"
        value: NestedKey = "state_value"
        ratio: NestedKey = "mixture_ratio"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_value", "loss_actor", "value", "residual", *REGRESSION_KEYS]
    _schedulable_buffers = frozenset({"temperature"})

    def __init__(
        self,
        value_network: TensorDictModule,
        actor_network: ProbabilisticTensorDictSequential | None = None,
        *,
        divergence: str = "pearson_chi2",
        beta: float = 0.5,
        gamma: float = 0.99,
        residual_coef: float = 0.25,
        constraint: Constraint = "printed",
        temperature: float = 3.0,
        advantage_unit: AdvantageUnit = "score",
        weight_clip: float = 100.0,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        check_choice(constraint=(constraint, Constraint))
        self.constraint = constraint
        # the constants are those of the score objective and are checked there
        self.objective = ScoreObjective("in_sample", divergence, beta, gamma, residual_coef)
        self.advantage_scale = scale_of(advantage_unit, gamma)
        self.has_actor = actor_network is not None
        if actor_network is not None:
            add_weighted_actor(self, actor_network, temperature, weight_clip)
        self._add_network("value_network", value_network)
        self._ready(self.out_keys if self.has_actor else ["loss_value", "value", "residual"])

    def _batch_key(self) -> NestedKey:
        if self.has_actor:
            return self.tensor_keys.action
        # the ratio first: a goal may have several dimensions
        return self.tensor_keys.ratio if self.constraint == "corrected" else self.tensor_keys.desired_goal

    def _batch_size(self, rows: TensorDictBase) -> torch.Size:
        key = self._batch_key()
        if key == self.tensor_keys.ratio and (rows[key].ndim < 2 or rows[key].shape[-1] != 1):
            raise ValueError(f"{type(self).__name__} expects {key!r} of shape [*B, 1], got {list(rows[key].shape)}.")
        return super()._batch_size(rows)

    def _read_keys(self) -> Iterable[NestedKey]:
        keys, inputs = self.tensor_keys, self.value_network.in_keys
        here = [*inputs, *next_keys(inputs, keys), *([keys.ratio] if self.constraint == "corrected" else [])]
        actor = [*self.actor_network.in_keys, keys.action] if self.has_actor else []
        return [*here, *actor, *(unravel_key((keys.q, key)) for key in here)]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        rows = self._rows(tensordict)
        loss, value, residual = self._value_term(rows)
        losses, metadata = {"loss_value": loss}, {"value": value.mean(), "residual": residual.square().mean().sqrt()}
        if self.has_actor:
            losses["loss_actor"], actor_metadata = self._actor_term(rows, residual)
            metadata |= actor_metadata
        return self._finish(losses, metadata, rows)

    def value_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced score loss; metadata ``state_value`` and ``residual``, detached, ``[*B]``."""
        loss, value, residual = self._value_term(self._rows(tensordict))
        return loss, {"state_value": value, "residual": residual}

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Regression loss at the current residual, and its metadata.

        Raises:
            ValueError: for a loss without an actor.
        """
        if not self.has_actor:
            raise ValueError("only a loss with an actor_network has an actor's loss, got None.")
        rows = self._rows(tensordict)
        with torch.no_grad():
            _, residual = self._residual(rows)
        return self._actor_term(rows, residual)

    def _residual(self, rows: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``S(s, g)`` and ``y``, both ``[*B]``."""
        inputs = self.value_network.in_keys
        both = torch.cat([inputs_of(rows, inputs), inputs_after(rows, inputs, self.tensor_keys)], 0)
        value, next_value = self._call("value_network", both, self.tensor_keys.value).chunk(2, 0)
        return value, bellman_residual(value, next_value, self.objective.gamma)

    def _value_term(self, rows: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and value and residual on offline rows, detached."""
        q = self._goal_transitions(rows)
        value, residual = self._residual(rows)
        _, q_residual = self._residual(q)
        ratio = q_ratio = None
        if self.constraint == "corrected":
            ratio, q_ratio = (part[self.tensor_keys.ratio].squeeze(-1) for part in (rows, q))
        rho_term, q_term = action_free_objective(
            value, residual, q_residual, ratio=ratio, q_ratio=q_ratio, **self.objective.constants
        )
        loss = self._reducer(rows)(rho_term) + self._reducer(q)(q_term)
        return loss, value.detach(), residual.detach()

    def _actor_term(self, rows: TensorDictBase, advantage: Tensor) -> Term:
        weight = actor_weight(self.advantage_scale * advantage, self.temperature, self.weight_clip)
        return regression_term(self._log_prob(rows), weight, self._reducer(rows))
