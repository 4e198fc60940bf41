"""What contrastive RL shares by Monte Carlo and by temporal differences."""

from __future__ import annotations

from typing import Any, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor

from torchrl_smore.functional.baselines.contrastive import Energy, pair_energy
from torchrl_smore.objectives._networks import constant, inputs_of
from torchrl_smore.objectives.base import OfflineLoss
from torchrl_smore.objectives.terms import Term, energy_term


class EnergyLoss(OfflineLoss):
    """Base of both: embeddings of pairs, their energy, and an actor that climbs it."""

    energy: Energy
    bc_coef: float
    q_coef: float
    normalize_q: bool
    sample_action: bool

    def _embeddings(self, name: str, inputs: TensorDictBase, params: TensorDictParams) -> tuple[Tensor, Tensor]:
        """Both embeddings of every member, ``[M, *B, D]`` each."""
        pair = self._call(name, inputs, self.tensor_keys.embedding, params)
        size = pair.shape[0] if name in self.ensembles else 1
        # a dimension of 1 was squeezed
        phi, psi = pair.reshape(size, *inputs.batch_size, 2, -1).unbind(-2)
        return phi, psi

    def _energy(self, name: str, inputs: TensorDictBase, params: TensorDictParams) -> Tensor:
        """Smallest energy of every row with its own goal, ``[*B]``."""
        return pair_energy(*self._embeddings(name, inputs, params), self.energy).amin(0)

    def _ascent_term(self, rows: TensorDictBase) -> Term:
        """Policy gradient through the critic, whose parameters are constants, plus imitation."""
        dist = self._distribution(rows)
        log_prob = dist.log_prob(rows[self.tensor_keys.action])
        own = {self.tensor_keys.action: self._own_action(dist)}
        inputs = inputs_of(self._for_actor(rows), self.critic_network.in_keys, own)
        energy = self._energy("critic_network", inputs, constant(self.critic_network_params))
        coefficients: dict[str, Any] = {"q_coef": self.q_coef, "bc_coef": self.bc_coef, "normalize_q": self.normalize_q}
        return energy_term(energy, log_prob, self._row_weight(rows, energy), self._reducer(rows), **coefficients)

    def _own_action(self, dist: torch.distributions.Distribution) -> Tensor:
        """Action of the policy at which the critic is asked, ``[*B, A]``."""
        if self.sample_action:
            return self._draw_action(dist)
        action = _deterministic(dist)
        return action.clamp(*self._action_range(action))

    def _draw_action(self, dist: torch.distributions.Distribution) -> Tensor:
        """Reparametrised sample, from the global generator."""
        return dist.rsample()


def _deterministic(dist: Any) -> Tensor:
    """What TorchRL takes for the mode of a distribution, of a squashed one too, else its mode, else its mean."""
    # the class is asked, since a property is computed to say whether it is there
    if hasattr(type(dist), "deterministic_sample"):
        action: Tensor = dist.deterministic_sample
        return action
    try:
        return cast("Tensor", dist.mode)
    except NotImplementedError:
        return cast("Tensor", dist.mean)
