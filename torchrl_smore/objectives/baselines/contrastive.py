"""Contrastive reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor

from torchrl_smore.functional.baselines.contrastive import Contrast, Energy, contrastive_loss, energy_matrix
from torchrl_smore.functional.losses import actor_weight
from torchrl_smore.objectives._construction import (
    add_weighted_actor,
    check_choice,
    check_not_negative,
    require_stochastic,
)
from torchrl_smore.objectives.base import Reduction, ScalarOutputMode
from torchrl_smore.objectives.baselines._contrastive import EnergyLoss
from torchrl_smore.objectives.terms import REGRESSION_KEYS, Term, regression_term

ContrastiveActor = Literal["ddpgbc", "awr"]
_CONTRAST_KEYS = ["logit_positive", "logit_negative", "accuracy"]


@final
class ContrastiveRLLoss(EnergyLoss):
    r"""Contrastive RL (Eysenbach et al., 2022, arXiv:2206.07568): no reward, no bootstrap.

    The critic's embeddings ``phi(s, a)``, ``psi(g)`` tell the goal of each row from those of the other rows of the
    batch; see :func:`~torchrl_smore.functional.baselines.contrastive.contrastive_loss`. The desired goal of *every* row
    must come from its own future: sample with ``her_ratio=1, strategy="geometric"``. The actor maximises the smallest
    energy at its action and imitates (``"ddpgbc"``), or regresses with the advantage over a second contrastive pair
    ``V(s, g)`` (``"awr"``).

    Defaults of OGBench (``impls/agents/crl.py``): binary loss over the batch, ``x^T y / sqrt(512)``, two critics, three
    hidden layers of 512, Adam 3e-4, batch 1024, gamma 0.99 (of the sampler), alpha (``bc_coef``) 0.1, actor of constant
    standard deviation 1. JaxGCRL: ``contrast="infonce", energy="l2", logsumexp_coef=0.1``. Departure: actor and critic
    share their goals, where OGBench draws the actor's uniformly over the future.

    Args:
        actor_network: stochastic actor, reads state and goal.
        critic_network: writes ``tensor_keys.embedding``, ``[*B, 2, D]``: phi and psi; one network or a sequence.
        value_network: the same without an action, for ``actor="awr"``.
        contrast: ``"binary"``, ``"balanced"``, ``"infonce"`` or ``"symmetric_infonce"``.
        energy: ``"inner"``, ``"dot"`` or ``"l2"``; see
            :func:`~torchrl_smore.functional.baselines.contrastive.pair_energy`.
        logsumexp_coef: weight of the squared log-sum-exp for InfoNCE.
        actor: ``"ddpgbc"`` or ``"awr"``.
        bc_coef: weight of the log-likelihood for ``"ddpgbc"``.
        q_coef: weight of the energy for ``"ddpgbc"``.
        normalize_q: divide the energy by its mean absolute value.
        sample_action: a reparametrised sample instead of the mode (of a distribution that has none in closed form the
            deterministic sample of TorchRL), clipped to the bounds of actions: those that the actor tells, as a
            :class:`~torchrl_smore.modules.GaussianHead`, the ``low`` and ``high`` of its distribution or its spec do,
            or ``[-1, 1]``.
        temperature: for ``"awr"``; schedulable by assignment. It multiplies a difference of energies, which are
            logarithms of ratios of densities and do not grow with the horizon: it needs no ``advantage_unit``.
        weight_clip: for ``"awr"``.

    Returns (forward):
        ``loss_critic``, ``loss_actor`` and, for ``"awr"``, ``loss_value``; detached: mean ``logit_positive`` and
        ``logit_negative``, ``accuracy`` (rows whose own goal has the largest energy), and of the actor
        ``policy_energy`` and ``log_prob``, or those of :class:`~torchrl_smore.objectives.AWRActorLoss`.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for an unknown name, a constant outside its range, or a value network without ``actor="awr"`` and
            the other way round.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`ContrastiveRLLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: a goal from the row's future, ``[*B, G]``.
            embedding: written by critic and value, ``[*B, 2, D]``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        embedding: NestedKey = "embedding"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_critic", "loss_actor", *_CONTRAST_KEYS, "policy_energy", "log_prob"]
    ensembles = ("critic_network",)
    _schedulable_buffers = frozenset({"temperature"})

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModule | Sequence[TensorDictModule],
        value_network: TensorDictModule | None = None,
        *,
        contrast: Contrast = "binary",
        energy: Energy = "inner",
        logsumexp_coef: float = 0.0,
        actor: ContrastiveActor = "ddpgbc",
        bc_coef: float = 0.1,
        q_coef: float = 1.0,
        normalize_q: bool = True,
        sample_action: bool = False,
        temperature: float = 3.0,
        weight_clip: float = 100.0,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        check_choice(contrast=(contrast, Contrast), energy=(energy, Energy), actor=(actor, ContrastiveActor))
        if (value_network is None) != (actor == "ddpgbc"):
            given = "none" if value_network is None else "one"
            raise ValueError(f"actor='awr' needs a value_network and 'ddpgbc' none, got {given}.")
        check_not_negative(logsumexp_coef=logsumexp_coef, bc_coef=bc_coef, q_coef=q_coef)
        self.contrast, self.energy, self.logsumexp_coef, self.actor = contrast, energy, logsumexp_coef, actor
        self.bc_coef, self.q_coef = bc_coef, q_coef
        self.normalize_q, self.sample_action = normalize_q, sample_action
        if value_network is not None:
            add_weighted_actor(self, actor_network, temperature, weight_clip)
            self._add_network("value_network", value_network)
        else:
            require_stochastic(actor_network)
            self._add_network("actor_network", actor_network)
        self._add_network("critic_network", critic_network)
        own = [*_CONTRAST_KEYS, *REGRESSION_KEYS] if actor == "awr" else [*_CONTRAST_KEYS, "policy_energy", "log_prob"]
        self._ready(["loss_critic", "loss_actor", *(["loss_value"] if actor == "awr" else []), *own])

    def _read_keys(self) -> Iterable[NestedKey]:
        value = self.value_network.in_keys if self.actor == "awr" else []
        return [*self.critic_network.in_keys, *self.actor_network.in_keys, *value, self.tensor_keys.action]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses at the same parameters; see the class."""
        rows = self._rows(tensordict)
        losses: dict[str, Tensor] = {}
        losses["loss_critic"], critic_metadata = self._contrast("critic_network", rows)
        losses["loss_actor"], actor_metadata = self._actor_term(rows)
        if self.actor == "awr":
            losses["loss_value"], _ = self._contrast("value_network", rows)
        return self._finish(losses, {**critic_metadata, **actor_metadata}, rows)

    def critic_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced contrastive loss, and its detached scalar diagnostics as metadata."""
        return self._contrast("critic_network", self._rows(tensordict))

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced actor loss at the current critic, and its metadata."""
        return self._actor_term(self._rows(tensordict))

    def contrastive_value_loss(self, tensordict: TensorDictBase) -> Term:
        """Contrastive loss of the value, and its metadata; for ``actor="awr"``.

        Raises:
            ValueError: for another actor, which has no value.
        """
        if self.actor != "awr":
            raise ValueError(f"only actor='awr' has a value, got {self.actor!r}.")
        return self._contrast("value_network", self._rows(tensordict))

    def _contrast(self, name: str, rows: TensorDictBase) -> Term:
        """Which goal of the batch belongs to which row: the contrastive loss of a network's embeddings."""
        phi, psi = self._embeddings(name, rows, getattr(self, f"{name}_params"))
        logits = energy_matrix(phi.flatten(1, -2), psi.flatten(1, -2), self.energy)
        weight = self._row_weight(rows, logits).flatten()
        loss = contrastive_loss(logits, weight, self.contrast, self.logsumexp_coef)
        detached = logits.detach().mean(0)
        diagonal = detached.diagonal()
        others = detached.shape[0] * (detached.shape[0] - 1)
        return self._reducer(rows)(loss.reshape(rows.batch_size)), {
            "logit_positive": diagonal.mean(),
            "logit_negative": (detached.sum() - diagonal.sum()) / max(others, 1),
            "accuracy": (diagonal >= detached.amax(-1)).to(logits.dtype).mean(),
        }

    def _actor_term(self, rows: TensorDictBase) -> Term:
        """Policy gradient plus imitation, or regression by the advantage over the second pair."""
        if self.actor == "ddpgbc":
            return self._ascent_term(rows)
        with torch.no_grad():
            advantage = self._energy("critic_network", rows, self.critic_network_params)
            advantage = advantage - self._energy("value_network", rows, self.value_network_params)
        weight = actor_weight(advantage, self.temperature, self.weight_clip)
        return regression_term(self._log_prob(rows), weight, self._reducer(rows))
