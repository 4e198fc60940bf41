"""Separable critics ``phi(s, a), psi(g)`` and the networks of contrastive RL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec
from torchrl.modules import IndependentNormal, ProbabilisticActor

from torchrl_smore.modules.linear import Matmul
from torchrl_smore.modules.networks import continuous
from torchrl_smore.modules.precision import Precision, check_precision, run_layers


class GELUMLP(nn.Module):
    """Multi-layer perceptron with GELU, then LayerNorm if asked, on the concatenation of its inputs (OGBench).

    Weights are Xavier-uniform (``fan_avg``), those of the last layer times ``output_scale``; biases are zero.

    Args:
        num_inputs: total size of the inputs' last dimensions.
        num_outputs: size of the output.
        hidden: widths of the hidden layers.
        layer_norm: normalise each hidden layer after its GELU.
        output_scale: gain of the last layer's weights, in terms of their variance.
        precision: of the hidden layers, see :func:`~torchrl_smore.modules.precision.run_layers`.
        matmul: see :func:`~torchrl_smore.modules.linear.linear`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (512, 512, 512),
        *,
        layer_norm: bool = False,
        output_scale: float = 1.0,
        precision: Precision = "float32",
        matmul: Matmul = "auto",
    ) -> None:
        super().__init__()
        self.num_inputs, self.num_outputs, self.hidden = num_inputs, num_outputs, tuple(hidden)
        self.layer_norm, self.precision, self.matmul = layer_norm, check_precision(precision), matmul
        layers: list[nn.Module] = []
        width = num_inputs
        for cells in hidden:
            layers += [nn.Linear(width, cells), nn.GELU(approximate="tanh")]
            if layer_norm:
                layers.append(nn.LayerNorm(cells))
            width = cells
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_outputs))
        self.output_scale = output_scale
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights; those of an ensemble, stacked along leading dimensions, each for itself."""
        last = self.layers[-1]
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                gain = self.output_scale if layer is last else 1.0
                # variance_scaling(gain, fan_avg, uniform)
                bound = math.sqrt(6.0 * gain / sum(layer.weight.shape[-2:]))
                nn.init.uniform_(layer.weight, -bound, bound)
                nn.init.zeros_(layer.bias)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs of shape ``[*B, d_i]`` to ``[*B, num_outputs]``."""
        return run_layers(self.layers, torch.cat(inputs, -1), precision=self.precision, matmul=self.matmul)


class PairEmbedding(nn.Module):
    """``phi`` of all inputs but the last and ``psi`` of the last, the goal, stacked to ``[*B, 2, D]``.

    Args:
        phi: embeds state and action, ``[*B, O]`` and ``[*B, A]``, or the state alone, to ``[*B, D]``.
        psi: embeds the goal, ``[*B, G]``, to ``[*B, D]``.
    """

    def __init__(self, phi: nn.Module, psi: nn.Module) -> None:
        super().__init__()
        self.phi, self.psi = phi, psi

    def forward(self, *inputs: Tensor) -> Tensor:
        """Both embeddings; index 0 of the second last dimension is ``phi``."""
        return torch.stack([self.phi(*inputs[:-1]), self.psi(inputs[-1])], -2)


class BilinearScore(nn.Module):
    """``S(s, a, g) = phi(s, a)^T psi(g)``, SMORe's score network for images.

    Args:
        embedding: writes both embeddings.
        scaled: divide by the square root of their dimension, as OGBench does.
    """

    def __init__(self, embedding: PairEmbedding, *, scaled: bool = False) -> None:
        super().__init__()
        self.embedding, self.scaled = embedding, scaled

    def forward(self, *inputs: Tensor) -> Tensor:
        """Score, ``[*B, 1]``."""
        pair = self.embedding(*inputs)
        phi, psi = pair.unbind(-2)
        # not prod: its gradient asks the device how many factors are 0
        score: Tensor = (phi * psi).sum(-1, keepdim=True)
        return score / math.sqrt(pair.shape[-1]) if self.scaled else score


class FixedStdHead(nn.Module):
    """Mean from a trunk, without squashing, and a constant standard deviation.

    Args:
        trunk: maps the inputs to the mean, ``[*B, A]``.
        std: standard deviation, positive, in the unit of the action.

    Raises:
        ValueError: for another ``std``.
    """

    def __init__(self, trunk: nn.Module, std: float = 1.0) -> None:
        super().__init__()
        if not 0.0 < std < math.inf:
            raise ValueError(f"std must be positive and finite, got {std}.")
        self.trunk, self.std = trunk, std

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale, each ``[*B, A]``."""
        loc = self.trunk(*inputs)
        return loc, torch.full_like(loc, self.std)


@dataclass(frozen=True)
class ContrastiveNetworks:
    """What :func:`make_contrastive_networks` builds.

    Attributes:
        actor: reads ``observation`` and ``desired_goal``, stochastic.
        critic: a network for each member of the ensemble; reads the action as well and writes both embeddings,
            ``[*B, 2, D]``.
        value: the same without the action, for ``actor="awr"``.
    """

    actor: ProbabilisticTensorDictSequential
    critic: list[TensorDictModule]
    value: TensorDictModule


def make_contrastive_networks(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    hidden: Sequence[int] = (512, 512, 512),
    latent: int = 512,
    num_critics: int = 2,
    std: float = 1.0,
    precision: Precision = "float32",
) -> ContrastiveNetworks:
    """Build the networks of contrastive RL as in OGBench: GELU and LayerNorm in the critics, GELU in the actor.

    Its goals are whole states; here they are achieved goals, as for every method of this package.

    Args:
        observation_spec: has ``observation`` ``[O]`` and ``desired_goal`` ``[G]``.
        action_spec: ``[A]``, for actions in ``[-1, 1]``.
        hidden: widths of the hidden layers.
        latent: dimension of the embeddings.
        num_critics: size of the ensemble.
        std: standard deviation of the actor (OGBench 1, stable contrastive RL 0.15).
        precision: of the hidden layers.

    Returns:
        Critics with in_keys ``observation``, ``action``, ``desired_goal``, a value without ``action`` (for
        ``actor="awr"``), both with out key ``embedding``, and the actor.

    Raises:
        ValueError: for discrete actions, an unknown precision, or a ``std`` that is not positive.
    """
    num_state, num_goal = observation_spec["observation"].shape[-1], observation_spec["desired_goal"].shape[-1]
    num_action = continuous(action_spec).shape[-1]

    def pair(num_inputs: int) -> PairEmbedding:
        return PairEmbedding(
            GELUMLP(num_inputs, latent, hidden, layer_norm=True, precision=precision),
            GELUMLP(num_goal, latent, hidden, layer_norm=True, precision=precision),
        )

    critic = [
        TensorDictModule(pair(num_state + num_action), ["observation", "action", "desired_goal"], ["embedding"])
        for _ in range(num_critics)
    ]
    value = TensorDictModule(pair(num_state), ["observation", "desired_goal"], ["embedding"])
    trunk = GELUMLP(num_state + num_goal, num_action, hidden, output_scale=0.01, precision=precision)
    head = FixedStdHead(trunk, std)
    actor = ProbabilisticActor(
        TensorDictModule(head, ["observation", "desired_goal"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=IndependentNormal,
        return_log_prob=False,
    )
    return ContrastiveNetworks(actor, critic, value)
