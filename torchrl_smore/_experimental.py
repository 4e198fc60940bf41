"""EXPERIMENTAL: the kernel that runs a whole score network, which no loss uses.

It has never been timed on a GPU (``make gpu`` does so). If it beats the matrix products that the losses run before the
kernel of the score objective, they may take it; if not, this file goes, with ``smore_kernels/score_mlp.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from torchrl_smore._dispatch import Kernels, kernel_constants, resolve_kernels, score_objective
from torchrl_smore.functional.score import Bounds, ScoreObjective


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


def score_mlp_objective(
    objective: ScoreObjective,
    *,
    x: Tensor,
    next_value: Tensor,
    q_x: Tensor,
    q_next_value: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    bounds: Bounds | None = None,
    precision: Literal["fp32", "tf32", "bf16"] = "tf32",
    kernels: Kernels = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`~torchrl_smore._dispatch.score_objective` of two-hidden-layer networks by their weights.

    Axes of seeds are mapped with ``torch.vmap``. The kernel is differentiable once, with respect to the weights.

    Args:
        objective: formulation and constants; ``"dual"``, which needs the policy's actions, is not computed.
        x: inputs of the network on offline rows (observation, goal, action side by side), ``[B, D]``; a constant.
        next_value: ``M(s', g)`` there, shape ``[B]``, taken as a constant.
        q_x: inputs on goal transitions, shape ``[Q, D]``.
        q_next_value: ``M(s', g)`` there, shape ``[Q]``, taken as a constant.
        layers: see :func:`score_mlp`, without seeds; the kernel takes hidden widths that
            are one multiple of 16 up to 256.
        bounds: interval to which both next values are clipped; either end may be infinite.
        precision: of the hidden layers' products; the reference leaves the choice between ``"tf32"`` and ``"fp32"`` to
            ``torch.set_float32_matmul_precision``.
        kernels: see :func:`~torchrl_smore._dispatch.resolve_kernels`.

    Returns:
        The loss, a scalar, and the detached scores, ``[M, B]`` and ``[M, Q]``.

    Raises:
        RuntimeError: see :func:`~torchrl_smore._dispatch.resolve_kernels`.
        ValueError: for ``formulation="dual"``, or what the kernel cannot compute.
    """
    if objective.needs_policy:
        raise ValueError("formulation='dual' needs scores at the policy's actions; call score_objective.")
    if resolve_kernels(kernels, x.device) == "triton":
        import smore_kernels

        return smore_kernels.score_mlp(
            x, next_value, q_x, q_next_value, layers, bounds=bounds, precision=precision, **kernel_constants(objective)
        )
    hidden_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    score, q_score = (score_mlp(rows.detach(), layers, hidden_dtype) for rows in (x, q_x))
    loss = score_objective(
        objective,
        score=score,
        q_score=q_score,
        next_value=next_value,
        q_next_value=q_next_value,
        bounds=bounds,
        kernels="reference",
    )
    return loss, score.detach(), q_score.detach()
