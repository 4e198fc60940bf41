"""Mean expectile loss of the value, its gradient, the weights of advantage-weighted regression and what both log.

References: ``torchrl_smore.functional.losses.expectile_loss`` and ``awr_weight``, of one advantage ``score - value``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from smore_kernels.seeds import joins_seeds

_BLOCK = 1024
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STATISTICS = 4


class ExpectileAWR(NamedTuple):
    """What :func:`expectile_awr` computes; everything but ``loss`` is a constant.

    Attributes:
        loss: mean over rows, ``[*K]``.
        weight: of each row in the actor's regression, ``[*K, B]``; ``None`` without a temperature.
        mean_advantage: mean of ``score - value``, ``[*K]``.
        mean_weight: mean of ``weight``, ``[*K]``.
        weight_clipped: fraction of rows whose weight is the largest, ``[*K]``.
        mean_value: mean of ``value``, ``[*K]``.
    """

    loss: Tensor
    weight: Tensor | None
    mean_advantage: Tensor
    mean_weight: Tensor
    weight_clipped: Tensor
    mean_value: Tensor


@triton.jit
def _expectile_awr_fwd_kernel(
    score,
    value,
    strides,
    expectile,
    temperature,
    clip,
    limit,
    loss,
    statistics,
    grad,
    weight,
    size,
    HAS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    seed = tl.program_id(1).to(tl.int64)
    score_seed, value_seed, expectile_seed, temperature_seed = strides
    offset = block * BLOCK + tl.arange(0, BLOCK)
    mask = offset < size
    # masked lanes load 0 on both sides: loss and advantage are 0 there, the weight is not and is masked below
    b_score = tl.load(score + seed * score_seed + offset, mask=mask, other=0.0).to(tl.float32)
    b_value = tl.load(value + seed * value_seed + offset, mask=mask, other=0.0).to(tl.float32)
    b_advantage = b_score - b_value
    s_expectile = tl.load(expectile + seed * expectile_seed).to(tl.float32)
    b_slope = tl.where(b_advantage > 0.0, s_expectile, 1.0 - s_expectile) * b_advantage
    # the gradient of a row's term: its share of the mean comes with the loss scale, or half precision underflows
    tl.store(grad + seed * size + offset, -2.0 * b_slope, mask=mask)
    partial = seed * tl.num_programs(0) + block
    tl.store(loss + partial, tl.sum(b_slope * b_advantage, axis=0) / size)
    tl.store(statistics + 4 * partial, tl.sum(b_advantage, axis=0) / size)
    tl.store(statistics + 4 * partial + 3, tl.sum(b_value, axis=0) / size)
    b_weight = tl.zeros([BLOCK], dtype=tl.float32)
    b_clipped = b_weight
    if HAS_WEIGHT:
        b_exponent = tl.load(temperature + seed * temperature_seed).to(tl.float32) * b_advantage
        # comparisons and not minimum, which would hide a NaN
        b_weight = tl.exp(tl.where(b_exponent >= limit, limit, b_exponent))
        b_weight = tl.where((b_exponent >= limit) | (b_weight > clip), clip, b_weight)
        tl.store(weight + seed * size + offset, b_weight, mask=mask)
        b_clipped = tl.where(mask & (b_weight >= clip), 1.0, 0.0)
        b_weight = tl.where(mask, b_weight, 0.0)
    tl.store(statistics + 4 * partial + 1, tl.sum(b_weight, axis=0) / size)
    tl.store(statistics + 4 * partial + 2, tl.sum(b_clipped, axis=0) / size)


# one op over [K, B]; expectile and temperature have shape [K], so that each seed may have its own
@torch.library.custom_op(
    "smore_kernels::expectile_awr",
    mutates_args=(),
    schema=(
        "(Tensor score, Tensor value, Tensor expectile, Tensor? temperature, float weight_clip) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _expectile_awr(score, value, expectile, temperature, weight_clip):
    seeds, size = value.shape
    score, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (score, value))
    grad, weight = _empty_outputs(score, value, temperature)
    blocks = triton.cdiv(size, _BLOCK)
    # one partial sum per block, added by torch: no atomics, so repeatable from run to run
    loss = torch.empty((seeds, blocks), dtype=torch.float32, device=value.device)
    statistics = torch.empty((seeds, blocks, _STATISTICS), dtype=torch.float32, device=value.device)
    # strides of 0 for a value that all seeds share
    strides = (
        score.stride(0),
        value.stride(0),
        expectile.stride(0),
        0 if temperature is None else temperature.stride(0),
    )
    with torch.cuda.device_of(value):
        _expectile_awr_fwd_kernel[(blocks, seeds)](
            score, value, strides, expectile, temperature, float(weight_clip), math.log(weight_clip),
            loss, statistics, grad, weight, size, HAS_WEIGHT=temperature is not None, BLOCK=_BLOCK,
        )  # fmt: skip
    if blocks == 1:
        return loss.squeeze(1), statistics.squeeze(1), grad, weight
    return loss.sum(1), statistics.sum(1), grad, weight


def _empty_outputs(score: Tensor, value: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor]:
    weight_shape = (value.shape[0], value.shape[1] if temperature is not None else 0)
    weight_dtype = torch.promote_types(score.dtype, value.dtype)
    weight = torch.empty(weight_shape, dtype=weight_dtype, device=value.device)
    return torch.empty(value.shape, dtype=value.dtype, device=value.device), weight


@_expectile_awr.register_fake
def _(
    score: Tensor, value: Tensor, expectile: Tensor, temperature: Tensor | None, weight_clip: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = value.new_empty(value.shape[:1], dtype=torch.float32)
    return loss, loss.new_empty((*loss.shape, _STATISTICS)), *_empty_outputs(score, value, temperature)


_expectile_awr.register_vmap(joins_seeds(_expectile_awr))


class _ExpectileAWR(torch.autograd.Function):
    """Autograd of the op. A ``Function`` because ``torch.func.grad`` refuses what ``register_autograd`` makes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _expectile_awr(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        # an undefined gradient of the saved gradient stays None, which is how a second derivative is recognised
        ctx.set_materialize_grads(False)
        _, statistics, grad, weight = output
        ctx.mark_non_differentiable(statistics, weight)
        ctx.save_for_backward(grad)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: Any, grad_grad: Tensor | None, __: Any) -> tuple[Any, ...]:
        if grad_grad is not None:
            raise RuntimeError("the kernel is differentiable once; take the reference for second derivatives.")
        if grad_loss is None:
            return (None,) * 5
        (grad,) = ctx.saved_tensors
        return None, ((grad_loss / grad.shape[-1])[:, None] * grad).to(grad.dtype), None, None, None


# Dynamo's own treatment of a Function knows no vmap rule; allowed in the graph, AOTAutograd runs it as eager does
@torch.compiler.allow_in_graph
def _mean_expectile_awr(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, statistics, _, weight = _ExpectileAWR.apply(*inputs)
    return loss, statistics, weight


def expectile_awr(
    score: Tensor,
    value: Tensor,
    *,
    expectile: float | Tensor,
    temperature: float | Tensor | None = None,
    weight_clip: float = 100.0,
) -> ExpectileAWR:
    r"""Row mean of the expectile loss of ``u = score - value``, and the weights ``min(exp(temperature u), clip)``.

    ``[*K]`` are leading axes (seeds), each with its own loss; ``torch.vmap`` adds another. Arithmetic is float32.
    Differentiable once, the loss with respect to ``value`` alone.

    Args:
        score: target of the value, shape ``[*K, B]``, float32, bfloat16 or float16, taken as a constant.
        value: shape ``[*K, B]``, of one of these dtypes.
        expectile: weight of positive differences, dimensionless, in ``(0, 1)``. A tensor, 0-d or ``[*K]``, is read by
            the kernel and by nobody else; a float costs the launch that fills one.
        temperature: in one over the unit of the score, non-negative, a float or a tensor as ``expectile``; ``None``
            computes no weights.
        weight_clip: largest weight, dimensionless, positive; ``math.inf`` leaves the weight free.

    Returns:
        The loss in the dtype of ``score - value``, the weights in the same dtype (``None`` without a temperature), and
        float32 means over rows: advantage, weight, fraction of weights at the clip (the last two 0 without a
        temperature), value.

    Raises:
        ValueError: for shapes that differ, are empty or lie on several devices, or a float outside its range.
        TypeError: for another dtype.
    """
    for name, tensor in (("score", score), ("value", value)):
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"expected {name} in float32, bfloat16 or float16, got {tensor.dtype}.")
    if score.shape != value.shape or score.device != value.device or not value.ndim or value.numel() == 0:
        expected, got = f"{list(score.shape)} on {score.device}", f"{list(value.shape)} on {value.device}"
        raise ValueError(
            f"expected score and value of one non-empty shape [*K, B] on one device, got {expected}, {got}."
        )
    if not isinstance(expectile, Tensor) and not 0.0 < expectile < 1.0:
        raise ValueError(f"expectile must lie in (0, 1), got {expectile}.")
    if temperature is not None and not isinstance(temperature, Tensor) and not temperature >= 0.0:
        raise ValueError(f"temperature must not be negative, got {temperature}.")
    if not weight_clip > 0.0:
        raise ValueError(f"weight_clip must be positive, got {weight_clip}.")
    lead, size = value.shape[:-1], value.shape[-1]

    def per_seed(name: str, given: float | Tensor) -> Tensor:
        if not isinstance(given, Tensor):
            given = torch.full((), given, dtype=torch.float32, device=value.device)
        if given.ndim and given.shape != lead:
            raise ValueError(f"expected {name} of shape [] or {list(lead)}, got {list(given.shape)}.")
        if given.device != value.device:
            raise ValueError(f"expected {name} on {value.device} as the rows are, got it on {given.device}.")
        return given.detach().expand(lead).reshape(-1)

    loss, statistics, weight = _mean_expectile_awr(
        score.detach().reshape(-1, size),
        value.reshape(-1, size),
        per_seed("expectile", expectile),
        None if temperature is None else per_seed("temperature", temperature),
        weight_clip,
    )
    means = statistics.reshape(*lead, _STATISTICS).unbind(-1)
    weights = None if temperature is None else weight.reshape(value.shape)
    return ExpectileAWR(loss.reshape(lead).to(torch.promote_types(score.dtype, value.dtype)), weights, *means)
