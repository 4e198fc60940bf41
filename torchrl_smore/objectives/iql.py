"""In-sample Q-learning with goals: what the methods share, and GC-IQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore._dispatch import Kernels
from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.advantage import AdvantageLoss, AdvantageUnit
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.qvalue import QValueLoss
from torchrl_smore.objectives.value import ExpectileValueLoss


class InSampleLoss(QValueLoss, AdvantageLoss):
    """What the in-sample methods share; they differ in the loss of the value and in the weight of the actor.

    One batch at the same parameters: the value is fitted to the smallest target Q, the actor regresses on the dataset
    actions, every Q is fitted to ``r + gamma (1 - terminated) V(s', g)`` with the current value. Calling
    :meth:`value_loss`, :meth:`actor_loss` and :meth:`qvalue_loss` with an optimiser step in between is the sequential
    order of the public code. No action outside the data is ever evaluated. Nothing is written to the input.
    """

    @dataclass
    class _AcceptedKeys(QValueLoss._AcceptedKeys, AdvantageLoss._AcceptedKeys):
        """Keys of the in-sample losses: those of their parts.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            qvalue: written by the Q networks, ``[*B, 1]``.
            value: written by the value network, ``[*B, 1]``.
            reward: ``[*B, 1]``.
            terminated: bool, ``[*B, 1]``.
            target_score: internal, the smallest target Q.
            advantage: internal, ``target_score`` less value.
            next_value: internal, ``V(s', g)``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys  # type: ignore[assignment] # the parts' keys, a subclass of each
    out_keys = ["loss_qvalue", "loss_value", "loss_actor"] + [
        key
        for part in (QValueLoss, ExpectileValueLoss, AWRActorLoss)
        for key in part.out_keys
        if not key.startswith("loss_")
    ]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams
    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def _read_keys(self) -> Iterable[NestedKey]:
        inputs = [*self.qvalue_network.in_keys, *self.value_network.in_keys, *self.actor_network.in_keys]
        after = [*self._next_keys(self.value_network.in_keys), *self._reward_keys()]
        return [*inputs, self.tensor_keys.action, *after, *self._actor_goal_keys()]

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Temporal-difference loss bootstrapped from the current value, and its metadata."""
        return self._qvalue_term(self._with_next_value(self._rows(tensordict)))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the three losses at the same parameters; see the class."""
        batch = self._with_target_score(self._rows(tensordict))
        loss_value, loss_actor, metadata = self._value_and_actor_terms(batch)
        loss_qvalue, qvalue_metadata = self._qvalue_term(self._with_next_value(batch))
        losses = {"loss_qvalue": loss_qvalue, "loss_value": loss_value, "loss_actor": loss_actor}
        return self._finish(losses, {**qvalue_metadata, **metadata}, batch)

    @torch.no_grad()
    def _with_target_score(self, batch: TensorDictBase) -> TensorDictBase:
        score = self._qvalues(batch, self.target_qvalue_network_params).amin(0)
        return batch.set(self.tensor_keys.target_score, score.unsqueeze(-1))

    @torch.no_grad()
    def _with_next_value(self, batch: TensorDictBase) -> TensorDictBase:
        keys = self.tensor_keys
        after = self._after_step(batch, self.value_network.in_keys)
        value = self._call("value_network", after, keys.value, self.value_network_params)
        return batch.set(keys.next_value, value.unsqueeze(-1))


class GCIQLLoss(InSampleLoss):
    """Goal-conditioned implicit Q-learning (Kostrikov et al., 2021, arXiv:2110.06169) on relabelled data.

    ``V`` is an upper expectile of the smallest target Q, the actor is advantage-weighted regression: the same two
    terms as :class:`~torchrl_smore.objectives.SMORELoss`, around a TD loss that reads a reward. The script of the SMORe
    paper's GC-IQL is unreleased; defaults are IQL's and SMORe's: expectile 0.7 (CORL; OGBench 0.9), temperature 3,
    gamma 0.99, target rate 0.005, Adam 3e-4 with a cosine for the actor, batch 256, relabelling 0.8. Rewards are what
    the sampler writes, {0, 1} or {-1, 0}.

    Args:
        actor_network: stochastic actor, reads state and goal.
        qvalue_network: ``Q(s, a, g)``, one network or a sequence (twins).
        value_network: ``V(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        expectile: in ``(0, 1)``, dimensionless; schedulable by assignment.
        temperature: multiplies the advantage, non-negative; schedulable by assignment.
        gamma: discount, in ``(0, 1)``.
        weight_clip: largest actor weight.
        advantage_unit: see :class:`~torchrl_smore.objectives.SMORELoss`.
        use_terminated: see :class:`~torchrl_smore.objectives.qvalue.QValueLoss`.
        kernels: ``"auto"``, ``"triton"`` or ``"reference"``; see :class:`~torchrl_smore.objectives.ScoreLoss`.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_qvalue``, ``loss_value``, ``loss_actor``, and the detached diagnostics of the three parts.

    Examples:
        >>> from torchrl_smore.modules import goal_specs, make_networks
        >>> networks = make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=1))
        >>> loss = GCIQLLoss(networks.actor, networks.score, networks.value)
        >>> [".".join(key) if isinstance(key, tuple) else key for key in loss.in_keys][3:]
        ['next.observation', 'next.reward', 'next.terminated']
    """

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | Sequence[TensorDictModule],
        value_network: TensorDictModule,
        *,
        expectile: float = 0.7,
        temperature: float = 3.0,
        gamma: float = 0.99,
        weight_clip: float = 100.0,
        advantage_unit: AdvantageUnit = "score",
        use_terminated: bool = True,
        kernels: Kernels = "auto",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        OfflineLoss.__init__(
            self, reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode
        )
        self._add_actor_term(actor_network, temperature, weight_clip)
        self._set_advantage_unit(advantage_unit, gamma)
        self._add_value_term(value_network, expectile)
        self._set_kernels(kernels)
        self._add_qvalue_term(qvalue_network, gamma, use_terminated=use_terminated)
        self._make_vmap()
        self._set_in_keys()
