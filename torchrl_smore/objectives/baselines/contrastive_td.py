"""Contrastive reinforcement learning by temporal differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor

from torchrl_smore.functional.baselines.contrastive import Energy, pair_energy, td_nce, td_nce_weight
from torchrl_smore.functional.baselines.rows import successor
from torchrl_smore.objectives._construction import (
    check_choice,
    check_discount,
    check_not_negative,
    require_stochastic,
)
from torchrl_smore.objectives._networks import inputs_after, inputs_of, next_keys
from torchrl_smore.objectives.base import Reduction, ScalarOutputMode
from torchrl_smore.objectives.baselines._contrastive import EnergyLoss
from torchrl_smore.objectives.terms import Term


@final
class ContrastiveTDLoss(EnergyLoss):
    """Stable contrastive RL in its temporal-difference form (Zheng et al., 2023, arXiv:2306.03346).

    The positive goal of a row is the one achieved next; its random goal is that of the next row of the batch, weighted
    by the target critic's odds there at the policy's action; see
    :func:`~torchrl_smore.functional.baselines.contrastive.td_nce`. Future goals are used by the actor alone.

    Defaults of the public code (``stable_contrastive_rl_trainer.py``, ``use_td=True``): ``x^T y`` without scaling,
    actor ``0.95 (-f) + 0.05 (-log pi)`` at a sample of the policy (standard deviation 0.15), gamma 0.99, target rate
    0.005, Adam 3e-4, batch 2048, embeddings of 16, four layers of 1024. Departures: no entropy term; goals are achieved
    goals and not whole observations, or pictures, whose crops the sampler takes and critic and actor see alike.

    Args:
        actor_network: stochastic actor, reads state and goal.
        critic_network: see :class:`~torchrl_smore.objectives.ContrastiveRLLoss`.
        gamma: discount, in ``(0, 1)``.
        energy: see :class:`~torchrl_smore.objectives.ContrastiveRLLoss`.
        bc_coef: see :class:`~torchrl_smore.objectives.ContrastiveRLLoss`.
        q_coef: see :class:`~torchrl_smore.objectives.ContrastiveRLLoss`.
        normalize_q: see :class:`~torchrl_smore.objectives.ContrastiveRLLoss`.
        sample_action: see :class:`~torchrl_smore.objectives.ContrastiveRLLoss`; also of the critic's
            target.

    Returns (forward):
        ``loss_critic``, ``loss_actor``; detached: ``logit_positive``, ``logit_negative``, mean ``td_weight``,
        ``policy_energy``, ``log_prob``.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for an unknown name, or a constant outside its range.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`ContrastiveTDLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: the actor's goal, ``[*B, G]``.
            next_achieved_goal: goal achieved by the transition, ``[*B, G]``.
            embedding: written by the critic, ``[*B, 2, D]``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        next_achieved_goal: NestedKey = ("next", "achieved_goal")
        embedding: NestedKey = "embedding"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = [
        *["loss_critic", "loss_actor", "logit_positive", "logit_negative", "td_weight"],
        *["policy_energy", "log_prob"],
    ]
    ensembles = ("critic_network",)
    asks_actor_elsewhere = True

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModule | Sequence[TensorDictModule],
        *,
        gamma: float = 0.99,
        energy: Energy = "dot",
        bc_coef: float = 0.05,
        q_coef: float = 0.95,
        normalize_q: bool = False,
        sample_action: bool = True,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        check_discount(gamma)
        check_choice(energy=(energy, Energy))
        check_not_negative(bc_coef=bc_coef, q_coef=q_coef)
        require_stochastic(actor_network)
        self.gamma, self.energy = gamma, energy
        self.bc_coef, self.q_coef = bc_coef, q_coef
        self.normalize_q, self.sample_action = normalize_q, sample_action
        self._add_network("actor_network", actor_network)
        self._add_network("critic_network", critic_network, delay=True)
        self._ready(self.out_keys)

    def _read_keys(self) -> Iterable[NestedKey]:
        keys, inputs = self.tensor_keys, [*self.critic_network.in_keys, *self.actor_network.in_keys]
        return [*inputs, keys.action, *next_keys(inputs, keys), keys.next_achieved_goal]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses at the same parameters; see the class."""
        rows = self._rows(tensordict)
        loss_critic, critic_metadata = self._critic_term(rows)
        loss_actor, actor_metadata = self._ascent_term(rows)
        losses = {"loss_critic": loss_critic, "loss_actor": loss_actor}
        return self._finish(losses, {**critic_metadata, **actor_metadata}, rows)

    def critic_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced loss of the critic, and its detached scalar diagnostics as metadata."""
        return self._critic_term(self._rows(tensordict))

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced actor loss at the current critic, and its metadata."""
        return self._ascent_term(self._rows(tensordict))

    def _critic_term(self, rows: TensorDictBase) -> Term:
        """The goal achieved next against the one that another row achieves, weighted by its odds after the step."""
        keys = self.tensor_keys
        goal = rows[keys.next_achieved_goal]
        following = successor(self._row_weight(rows, goal).flatten() > 0.0)
        inputs = inputs_of(rows, self.critic_network.in_keys, {keys.desired_goal: goal})
        phi, psi = self._embeddings("critic_network", inputs, self.critic_network_params)
        random_psi = psi.flatten(1, -2)[:, following].reshape(psi.shape)
        next_logit, random_logit = (pair_energy(phi, other, self.energy) for other in (psi, random_psi))
        # goals may be pictures: what is not batch is theirs
        flat_goal = goal.flatten(0, rows.batch_dims - 1)
        weight = self._td_weight(rows, flat_goal[following].reshape(goal.shape))
        return self._reducer(rows)(td_nce(next_logit, random_logit, weight, self.gamma)), {
            "logit_positive": next_logit.detach().mean(),
            "logit_negative": random_logit.detach().mean(),
            "td_weight": weight.mean(),
        }

    @torch.no_grad()
    def _td_weight(self, rows: TensorDictBase, random_goal: Tensor) -> Tensor:
        """Odds of reaching the random goal after the step, ``[*B]``."""
        keys = self.tensor_keys
        goal = {keys.desired_goal: random_goal}
        asked = self.actor_network.in_keys
        # an actor may do without goals
        own = goal if keys.desired_goal in asked else None
        action = self._own_action(self._distribution(inputs_after(rows, asked, keys, own)))
        inputs = inputs_after(rows, self.critic_network.in_keys, keys, {**goal, keys.action: action})
        pair = self._embeddings("critic_network", inputs, self.target_critic_network_params)
        return td_nce_weight(pair_energy(*pair, self.energy))
