"""Discriminator between goals and achieved goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Composite

from torchrl_smore.modules.networks import STANDARDIZED_CLIP, Standardize, as_statistics, initialize
from torchrl_smore.modules.precision import Precision, check_precision, run_layers


class TanhMLP(nn.Module):
    """Multi-layer perceptron with tanh on the concatenation of its inputs; PyTorch's initialisation.

    Smooth, unlike ReLU, because a gradient penalty differentiates it twice.

    Args:
        num_inputs: total size of the inputs' last dimensions.
        num_outputs: size of the output.
        hidden: widths of the hidden layers.
        precision: of the hidden layers, see :func:`~torchrl_smore.modules.precision.run_layers`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (256, 256, 256),
        *,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.num_inputs, self.num_outputs, self.hidden = num_inputs, num_outputs, tuple(hidden)
        self.precision = check_precision(precision)
        widths = [num_inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights; those of an ensemble, stacked along leading dimensions, each for itself."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                initialize(layer.weight, layer.bias, orthogonal=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs of shape ``[*B, d_i]`` to ``[*B, num_outputs]``."""
        return run_layers(self.layers, torch.cat(inputs, -1), precision=self.precision)


def make_discriminator(
    observation_spec: Composite,
    *,
    hidden: Sequence[int] = (256, 256, 256),
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    clip: float | None = STANDARDIZED_CLIP,
    precision: Precision = "float32",
) -> TensorDictModule:
    """Discriminator of GoFAR: reads ``achieved_goal`` and ``desired_goal``, writes ``logit``, ``[*B, 1]``.

    Three hidden layers of 256 with tanh (``discriminator.py`` of the public code).

    Args:
        observation_spec: has ``desired_goal`` ``[G]``.
        hidden: widths of the hidden layers.
        statistics: mean and standard deviation by key, ``[G]`` each; those of ``desired_goal`` standardise both inputs,
            others are not looked at.
        clip: bound of standardised inputs, see :class:`~torchrl_smore.modules.Standardize`.
        precision: of the hidden layers.

    Returns:
        A module for :class:`~torchrl_smore.objectives.GoFARLoss`.

    Raises:
        ValueError: if ``clip`` is not positive where there are statistics.
    """
    goal_dim = observation_spec["desired_goal"].shape[-1]
    network: nn.Module = TanhMLP(2 * goal_dim, 1, hidden, precision=precision)
    scale = as_statistics({key: pair for key, pair in (statistics or {}).items() if key == "desired_goal"})
    if scale:
        network = Standardize(network, [scale["desired_goal"]] * 2, clip)
    return TensorDictModule(network, ["achieved_goal", "desired_goal"], ["logit"])
