"""Networks as functions of stacked weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def score_mlp(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Output of a ReLU network with one output, for every member of an ensemble: ``w3 relu(W2 relu(W1 x + b1) + b2) + b3``.

    Args:
        x: inputs, shape ``[*K, B, D]``.
        layers: weight ``[*K, M, out, in]`` and bias ``[*K, M, out]`` of each linear layer, as ``nn.Linear`` has them,
            stacked over axes ``[*K]`` (seeds) and ``M`` members; the last has one output.

    Returns:
        Outputs, shape ``[*K, M, B]``.
    """
    hidden = x.unsqueeze(-3)
    for at, (weight, bias) in enumerate(layers):
        hidden = torch.matmul(hidden if at == 0 else hidden.relu(), weight.mT) + bias.unsqueeze(-2)
    return hidden.squeeze(-1)
