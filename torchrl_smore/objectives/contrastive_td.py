"""Contrastive reinforcement learning by temporal differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_smore.functional.baselines.contrastive import Energy, pair_energy, td_nce, td_nce_weight
from torchrl_smore.functional.baselines.rows import successor
from torchrl_smore.objectives.base import Reduction, ScalarOutputMode
from torchrl_smore.objectives.contrastive import ContrastiveRLLoss
from torchrl_smore.objectives.qvalue import check_discount


class ContrastiveTDLoss(ContrastiveRLLoss):
    """Stable contrastive RL in its temporal-difference form (Zheng et al., 2023, arXiv:2306.03346).

    The positive goal of a row is the one achieved next; its random goal is that of the next row of the batch, weighted
    by the target critic's odds there at the policy's action; see
    :func:`~torchrl_smore.functional.baselines.contrastive.td_nce`. Future goals are used by the actor alone.

    Defaults of the public code (``stable_contrastive_rl_trainer.py``, ``use_td=True``): ``x^T y`` without scaling,
    actor ``0.95 (-f) + 0.05 (-log pi)`` at a sample of the policy (standard deviation 0.15), gamma 0.99, target rate
    0.005, Adam 3e-4, batch 2048, embeddings of 16, four layers of 1024. Departures: no images, hence no augmentation;
    no entropy term; goals are achieved goals and not whole observations.

    Args:
        actor_network: stochastic actor, reads state and goal.
        critic_network: see :class:`ContrastiveRLLoss`.
        gamma: discount, in ``(0, 1)``.
        energy: see :class:`ContrastiveRLLoss`.
        bc_coef: see :class:`ContrastiveRLLoss`.
        q_coef: see :class:`ContrastiveRLLoss`.
        normalize_q: see :class:`ContrastiveRLLoss`.
        sample_action: see :class:`ContrastiveRLLoss`; also for the next action of the critic's target.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_critic``, ``loss_actor``; detached: ``logit_positive``, ``logit_negative``, mean ``td_weight``,
        ``policy_energy``, ``log_prob``.
    """

    @dataclass
    class _AcceptedKeys(ContrastiveRLLoss._AcceptedKeys):
        """Keys of :class:`ContrastiveTDLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: the actor's goal, ``[*B, G]``.
            next_achieved_goal: goal achieved by the transition, ``[*B, G]``.
            embedding: written by the critic, ``[*B, 2, D]``.
            advantage: not used.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        next_achieved_goal: NestedKey = ("next", "achieved_goal")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys  # type: ignore[assignment] # a subclass of the base's keys
    contrast_keys = ("logit_positive", "logit_negative", "td_weight")

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
        check_discount(gamma)
        super().__init__(
            actor_network,
            critic_network,
            energy=energy,
            bc_coef=bc_coef,
            q_coef=q_coef,
            normalize_q=normalize_q,
            sample_action=sample_action,
            reduction=reduction,
            deactivate_vmap=deactivate_vmap,
            scalar_output_mode=scalar_output_mode,
        )
        self.gamma = gamma

    def _add_critic(self, critic_network: TensorDictModule | Sequence[TensorDictModule]) -> None:
        self._add_network("critic_network", critic_network, create_target_params=True)

    def _read_keys(self) -> Iterable[NestedKey]:
        after = self._next_keys([*self.critic_network.in_keys, *self.actor_network.in_keys])
        return [*super()._read_keys(), *after, self.tensor_keys.next_achieved_goal]

    def _critic_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        keys = self.tensor_keys
        goal = batch[keys.next_achieved_goal]
        following = successor(self._row_weight(batch, goal).flatten() > 0.0)
        inputs = self._inputs(batch, self.critic_network.in_keys, {keys.desired_goal: goal})
        phi, psi = self._embeddings("critic_network", inputs, self.critic_network_params)
        random_psi = psi.flatten(1, -2)[:, following].reshape(psi.shape)
        next_logit, random_logit = (pair_energy(phi, other, self.energy) for other in (psi, random_psi))
        weight = self._td_weight(batch, goal.flatten(0, -2)[following].reshape(goal.shape))
        rows = td_nce(next_logit, random_logit, weight, self.gamma)
        metadata = {
            "logit_positive": next_logit.detach().mean(),
            "logit_negative": random_logit.detach().mean(),
            "td_weight": weight.mean(),
        }
        return self._reduce_row_loss(rows, batch), metadata

    @torch.no_grad()
    def _td_weight(self, batch: TensorDictBase, random_goal: Tensor) -> Tensor:
        """Odds of reaching the random goal after the step, ``[*B]``."""
        keys = self.tensor_keys
        goal = {keys.desired_goal: random_goal}
        dist = self._distribution(self._after_step(batch, self.actor_network.in_keys, goal))
        action = self._draw_action(dist) if self.sample_action else dist.mean.clamp(-1.0, 1.0)
        inputs = self._after_step(batch, self.critic_network.in_keys, {**goal, keys.action: action})
        return td_nce_weight(self._energies("critic_network", inputs, self.target_critic_network_params))
