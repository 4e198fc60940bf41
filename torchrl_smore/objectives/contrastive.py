"""Contrastive reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.baselines.contrastive import (
    Contrast,
    Energy,
    contrastive_loss,
    energy_matrix,
    pair_energy,
    policy_energy_loss,
)
from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.goal_loss import GoalLoss, require_stochastic

ContrastiveActor = Literal["ddpgbc", "awr"]


class ContrastiveRLLoss(GoalLoss, AWRActorLoss):
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
        sample_action: a reparametrised sample instead of the mode clipped to ``[-1, 1]``.
        temperature: for ``"awr"``; schedulable by assignment.
        weight_clip: for ``"awr"``.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_critic``, ``loss_actor`` and, for ``"awr"``, ``loss_value``; detached: mean ``logit_positive`` and
        ``logit_negative``, ``accuracy`` (rows whose own goal has the largest energy), and of the actor
        ``policy_energy`` and ``log_prob``, or the diagnostics of AWR.
    """

    @dataclass
    class _AcceptedKeys(AWRActorLoss._AcceptedKeys):
        """Keys of :class:`ContrastiveRLLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: a goal from the row's future, ``[*B, G]``.
            embedding: written by critic and value, ``[*B, 2, D]``.
            advantage: internal, for ``"awr"``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        desired_goal: NestedKey = "desired_goal"
        embedding: NestedKey = "embedding"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys  # type: ignore[assignment] # the parts' keys, a subclass of each
    contrast_keys = ("logit_positive", "logit_negative", "accuracy")

    critic_network: TensorDictModule
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams
    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

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
        OfflineLoss.__init__(
            self, reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode
        )
        for name, chosen, valid in (
            ("contrast", contrast, Contrast),
            ("energy", energy, Energy),
            ("actor", actor, ContrastiveActor),
        ):
            if chosen not in get_args(valid):
                raise unknown_name(name, chosen, get_args(valid))
        if (value_network is None) != (actor == "ddpgbc"):
            given = "none" if value_network is None else "one"
            raise ValueError(f"actor='awr' needs a value_network and 'ddpgbc' none, got {given}.")
        if not logsumexp_coef >= 0.0:
            raise ValueError(f"logsumexp_coef must not be negative, got {logsumexp_coef}.")
        self.contrast, self.energy, self.logsumexp_coef, self.actor = contrast, energy, logsumexp_coef, actor
        self.bc_coef, self.q_coef = bc_coef, q_coef
        self.normalize_q, self.sample_action = normalize_q, sample_action
        if value_network is not None:
            self._add_actor_term(actor_network, temperature, weight_clip)
            self._add_network("value_network", value_network)
        else:
            require_stochastic(actor_network)
            self._add_network("actor_network", actor_network)
        self._add_critic(critic_network)
        self.out_keys = self._kept(self._output_names())
        self._make_vmap()
        self._set_in_keys()

    def _add_critic(self, critic_network: TensorDictModule | Sequence[TensorDictModule]) -> None:
        self._add_network("critic_network", critic_network)

    def _output_names(self) -> list[str]:
        if self.actor == "awr":
            own = ["loss_value", *self.contrast_keys, "mean_advantage", "awr_weight", "weight_clipped", "log_prob"]
        else:
            own = [*self.contrast_keys, "policy_energy", "log_prob"]
        return ["loss_critic", "loss_actor", *own]

    def _ensembles(self) -> tuple[str, ...]:
        return ("critic_network",)

    def _read_keys(self) -> Iterable[NestedKey]:
        value = self.value_network.in_keys if self.actor == "awr" else []
        return [*self.critic_network.in_keys, *self.actor_network.in_keys, *value, self.tensor_keys.action]

    def critic_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced contrastive loss, and its detached scalar diagnostics as metadata."""
        return self._critic_term(self._rows(tensordict))

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced actor loss at the current critic, and its metadata."""
        return self._policy_term(self._rows(tensordict))

    def contrastive_value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrastive loss of the value, and its metadata; for ``actor="awr"``."""
        if self.actor != "awr":
            raise ValueError(f"only actor='awr' has a value, got {self.actor!r}.")
        return self._contrast("value_network", self._rows(tensordict))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses at the same parameters; see the class."""
        batch = self._rows(tensordict)
        losses: dict[str, Tensor] = {}
        losses["loss_critic"], critic_metadata = self._critic_term(batch)
        losses["loss_actor"], actor_metadata = self._policy_term(batch)
        if self.actor == "awr":
            losses["loss_value"], _ = self._contrast("value_network", batch)
        return self._finish(losses, {**critic_metadata, **actor_metadata}, batch)

    def _embeddings(self, name: str, inputs: TensorDictBase, params: TensorDictParams) -> tuple[Tensor, Tensor]:
        """Both embeddings of every member, ``[M, *B, D]`` each."""
        pair = self._call_ensemble(name, inputs, self.tensor_keys.embedding, params)
        # a dimension of 1 was squeezed
        phi, psi = pair.reshape(pair.shape[0], *inputs.batch_size, 2, -1).unbind(-2)
        return phi, psi

    def _energies(self, name: str, inputs: TensorDictBase, params: TensorDictParams) -> Tensor:
        """Energy of every row with its own goal, ``[M, *B]``."""
        return pair_energy(*self._embeddings(name, inputs, params), self.energy)

    def _critic_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        return self._contrast("critic_network", batch)

    def _contrast(self, name: str, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        phi, psi = self._embeddings(name, batch, getattr(self, f"{name}_params"))
        logits = energy_matrix(phi.flatten(1, -2), psi.flatten(1, -2), self.energy)
        weight = self._row_weight(batch, logits).flatten()
        rows = contrastive_loss(logits, weight, self.contrast, self.logsumexp_coef)
        detached = logits.detach().mean(0)
        diagonal = detached.diagonal()
        others = detached.shape[0] * (detached.shape[0] - 1)
        metadata = {
            "logit_positive": diagonal.mean(),
            "logit_negative": (detached.sum() - diagonal.sum()) / max(others, 1),
            "accuracy": (diagonal >= detached.amax(-1)).to(logits.dtype).mean(),
        }
        return self._reduce_row_loss(rows.reshape(batch.batch_size), batch), metadata

    def _policy_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        if self.actor == "ddpgbc":
            return self._gradient_term(batch)
        with torch.no_grad():
            energy = self._energies("critic_network", batch, self.critic_network_params).amin(0)
            value = self._energies("value_network", batch, self.value_network_params).amin(0)
        return self._actor_term(batch.set(self.tensor_keys.advantage, (energy - value).unsqueeze(-1)))

    def _gradient_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Policy gradient through the critic, whose parameters are constants, plus imitation."""
        dist = self._distribution(batch)
        log_prob = dist.log_prob(batch[self.tensor_keys.action])
        action = self._draw_action(dist) if self.sample_action else dist.mean.clamp(-1.0, 1.0)
        inputs = self._inputs(batch, self.critic_network.in_keys, {self.tensor_keys.action: action})
        energy = self._energies("critic_network", inputs, self._constant("critic_network_params")).amin(0)
        weight = self._row_weight(batch, energy)
        rows = self.q_coef * policy_energy_loss(energy, weight, self.normalize_q) - self.bc_coef * log_prob
        metadata = {"policy_energy": energy.detach().mean(), "log_prob": log_prob.detach().mean()}
        return self._reduce_row_loss(rows, batch), metadata

    def _draw_action(self, dist: torch.distributions.Distribution) -> Tensor:
        """Reparametrised sample, from the global generator."""
        return dist.rsample()
