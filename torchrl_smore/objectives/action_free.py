"""The action-free variant of SMORe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictParams, dispatch
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.score import ScoreObjective, action_free_objective, bellman_residual
from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode

Constraint = Literal["printed", "corrected"]


class ActionFreeSMORELoss(AWRActorLoss):
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
        max_ratio: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        constraint: ``"printed"`` or ``"corrected"``.
        temperature: see :class:`AWRActorLoss`.
        weight_clip: see :class:`AWRActorLoss`.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_value`` and, with an actor, ``loss_actor``; detached: mean ``value``, root mean square ``residual``, and
        the actor's diagnostics.
    """

    @dataclass
    class _AcceptedKeys(AWRActorLoss._AcceptedKeys):
        """Keys of :class:`ActionFreeSMORELoss`.

        Attributes:
            action: dataset action, ``[*B, A]``; read with an actor only.
            advantage: internal, ``y``.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            q: nested TensorDict of goal transitions.
            value: written by the value network, ``[*B, 1]``.
            ratio: ``rho / Mix``, ``[*B, 1]``, at the root and under ``q``; for ``constraint="corrected"``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        desired_goal: NestedKey = "desired_goal"
        q: NestedKey = "q"
        value: NestedKey = "state_value"
        ratio: NestedKey = "mixture_ratio"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def __init__(
        self,
        value_network: TensorDictModule,
        actor_network: ProbabilisticTensorDictSequential | None = None,
        *,
        divergence: str = "pearson_chi2",
        beta: float = 0.5,
        gamma: float = 0.99,
        residual_coef: float = 0.25,
        max_ratio: float = 100.0,
        constraint: Constraint = "printed",
        temperature: float = 3.0,
        weight_clip: float = 100.0,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        OfflineLoss.__init__(
            self, reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode
        )
        if constraint not in get_args(Constraint):
            raise unknown_name("constraint", constraint, get_args(Constraint))
        self.constraint = constraint
        # the constants are those of the score objective and are checked there
        self.objective = ScoreObjective("in_sample", divergence, beta, gamma, residual_coef, max_ratio)
        self.has_actor = actor_network is not None
        if actor_network is not None:
            self._add_actor_term(actor_network, temperature, weight_clip)
        self.convert_to_functional(value_network, "value_network")
        actor_keys = (
            ["loss_actor", "mean_advantage", "awr_weight", "weight_clipped", "log_prob"] if self.has_actor else []
        )
        self.out_keys = self._kept(["loss_value", *actor_keys[:1], "value", "residual", *actor_keys[1:]])
        self._make_vmap()
        self._set_in_keys()

    def _batch_key(self) -> NestedKey:
        return self.tensor_keys.desired_goal

    def _read_keys(self) -> Iterable[NestedKey]:
        keys = self.tensor_keys
        here = [*self.value_network.in_keys]
        here += [unravel_key(("next", key)) for key in here if key != keys.desired_goal]
        if self.constraint == "corrected":
            here.append(keys.ratio)
        actor = [*self.actor_network.in_keys, keys.action] if self.has_actor else []
        return [*here, *actor, *(unravel_key((keys.q, key)) for key in here)]

    def _residual(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        keys = self.tensor_keys
        entries = {
            key: tensordict[key if key == keys.desired_goal else unravel_key(("next", key))]
            for key in self.value_network.in_keys
        }
        after = TensorDict({}, batch_size=tensordict.batch_size)
        for key, entry in entries.items():
            after.set(key, entry)
        both = torch.cat([tensordict.select(*self.value_network.in_keys), after], 0)
        value, next_value = self._call("value_network", both, keys.value, self.value_network_params).chunk(2, 0)
        return value, bellman_residual(value, next_value, self.objective.gamma)

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced score loss; metadata ``state_value`` and ``residual``, detached, ``[*B]``."""
        return self._value_term(self._rows(tensordict))

    def _value_term(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        q = tensordict[self.tensor_keys.q]
        value, residual = self._residual(tensordict)
        _, q_residual = self._residual(q)
        ratio = q_ratio = None
        if self.constraint == "corrected":
            ratio, q_ratio = (rows[self.tensor_keys.ratio].squeeze(-1) for rows in (tensordict, q))
        o = self.objective
        rho_term, q_term = action_free_objective(
            value, residual, q_residual, ratio=ratio, q_ratio=q_ratio, **o.constants()
        )
        loss = self._reduce_row_loss(rho_term, tensordict) + self._reduce_row_loss(q_term, q)
        return loss, {"state_value": value.detach(), "residual": residual.detach()}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Regression loss at the current residual, and its metadata."""
        batch = self._rows(tensordict)
        with torch.no_grad():
            _, residual = self._residual(batch)
        return self._actor_term(batch.set(self.tensor_keys.advantage, residual.unsqueeze(-1)))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        batch = self._rows(tensordict)
        loss_value, metadata = self._value_term(batch)
        losses = {"loss_value": loss_value}
        residual = metadata["residual"]
        diagnostics = {"value": metadata["state_value"].mean(), "residual": residual.square().mean().sqrt()}
        if self.has_actor:
            batch.set(self.tensor_keys.advantage, residual.unsqueeze(-1))
            losses["loss_actor"], actor_metadata = self._actor_term(batch)
            diagnostics.update(actor_metadata)
        return self._finish(losses, diagnostics, batch)
