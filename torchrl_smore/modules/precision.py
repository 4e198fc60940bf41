"""Runs the layers of a multi-layer perceptron in float32, or its hidden layers in bfloat16."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_smore._errors import unknown_name
from torchrl_smore.modules.linear import Matmul, linear

#: Precision of the hidden layers; parameters are float32 in both.
Precision = Literal["float32", "bf16"]


def check_precision(precision: str) -> Precision:
    """Returns the precision.

    Raises:
        ValueError: for another than ``"float32"`` and ``"bf16"``.
    """
    if precision not in get_args(Precision):
        raise unknown_name("precision", precision, get_args(Precision))
    return precision  # type: ignore[return-value]


def run_layers(
    layers: nn.Sequential, x: Tensor, *, precision: Precision = "float32", matmul: Matmul = "auto"
) -> Tensor:
    """``layers(x)``, each ReLU fused into the linear layer before it, the hidden layers in the given precision.

    With ``"bf16"``, weights and activations of the hidden layers are bfloat16 and sums float32; the parameters stay
    float32, and so do their gradients and the last layer. Weights are cast where they are used: a cache would save 1%
    of an update at most (``docs/performance.md``), and a compiled update shares the casts of a weight.

    Args:
        layers: linear layers, norms and activations; the last one is linear.
        x: input, shape ``[*B, I]``, float32.
        precision: of the hidden layers.
        matmul: see :func:`~torchrl_smore.modules.linear.linear`.

    Returns:
        Shape ``[*B, O]``, float32.
    """
    *hidden, last = layers
    assert isinstance(last, nn.Linear)
    bf16, fused = precision == "bf16" and len(hidden) > 0, False
    x = x.to(torch.bfloat16) if bf16 else x
    for layer, following in zip(hidden, [*hidden[1:], last]):
        if isinstance(layer, nn.Linear):
            fused = isinstance(following, nn.ReLU)
            x = linear(x, *_parameters(layer, bf16), relu=fused, matmul=matmul)
        elif isinstance(layer, nn.LayerNorm):
            x = F.layer_norm(x, layer.normalized_shape, *_parameters(layer, bf16), layer.eps)
            fused = False
        elif not fused:
            x = layer(x)
    return linear(x.to(last.weight.dtype) if bf16 else x, last.weight, last.bias, matmul=matmul)


def _parameters(layer: nn.Linear | nn.LayerNorm, bf16: bool) -> tuple[Tensor, Tensor]:
    weight, bias = layer.weight, layer.bias
    return (weight.to(torch.bfloat16), bias.to(torch.bfloat16)) if bf16 else (weight, bias)
