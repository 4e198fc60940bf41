"""Networks as functions of stacked weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def score_mlp(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], hidden_dtype: torch.dtype = torch.float32) -> Tensor:
    """Score of a ReLU network for every member of an ensemble: ``w3 relu(W2 relu(W1 x + b1) + b2) + b3``.

    Args:
        x: inputs, shape ``[*K, B, D]``.
        layers: weight ``[*K, M, out, in]`` and bias ``[*K, M, out]`` of each linear layer, as ``nn.Linear`` has them,
            stacked over axes ``[*K]`` (seeds) and ``M`` members; the last has one output.
        hidden_dtype: dtype that inputs and hidden layers are cast to unless it is float32; the last layer keeps that of
            its weight.

    Returns:
        Scores, shape ``[*K, M, B]``, in the dtype of the last layer.
    """
    *inner, (last_weight, last_bias) = layers
    hidden = x.unsqueeze(-3)
    for weight, bias in inner:
        if hidden_dtype != torch.float32:
            hidden, weight, bias = (tensor.to(hidden_dtype) for tensor in (hidden, weight, bias))
        hidden = (torch.matmul(hidden, weight.mT) + bias.unsqueeze(-2)).relu()
    return (torch.matmul(hidden.to(last_weight.dtype), last_weight.mT) + last_bias.unsqueeze(-2)).squeeze(-1)
