r"""The score objective of a two-hidden-layer ReLU network and the gradient of its weights, in two launches.

EXPERIMENTAL: no loss runs it, see ``torchrl_smore/_experimental.py``.

Reference: ``torchrl_smore._experimental.score_mlp`` under the objective of :mod:`smore_kernels.bellman_residual`.

With :math:`h_1 = r(W_1 x + b_1)`, :math:`h_2 = r(W_2 h_1 + b_2)`, :math:`S = w_3 h_2 + b_3`, :math:`d` the derivative
of the loss by a row's score and :math:`m_2` the mask of the second ReLU, everything that the second layer contributes
follows from one matrix :math:`G = \sum_n d_n\, m_{2,n}\, h_{1,n}^T` and one vector :math:`g = \sum_n d_n\, m_{2,n}`:

.. math:: \nabla W_2 = \mathrm{diag}(w_3) G, \quad \nabla b_2 = w_3 g, \quad
          \nabla w_3 = \mathrm{rowsum}(W_2 \circ G) + b_2 g

so :math:`h_2` never leaves the chip: its mask does, one bit per unit. The first launch goes over tiles of rows, the
second over the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from smore_kernels.divergences import DIVERGENCES, excess_constants
from smore_kernels.formulations import Formulation, clip, formulation_weights, score_term
from smore_kernels.seeds import joins_seeds

Precision = Literal["fp32", "tf32", "bf16"]

MAX_WIDTH = 256
_DTYPES = (torch.float32, torch.bfloat16)
# elements of one program that adds up the partial gradients of the first layer
_BLOCK = 1024


class ScoreMLP(NamedTuple):
    """What :func:`score_mlp` computes; the scores are constants.

    Attributes:
        loss: the objective, ``[*K]``.
        score: of offline rows, ``[*K, M, B]``.
        q_score: of goal transitions, ``[*K, M, Q]``.
    """

    loss: Tensor
    score: Tensor
    q_score: Tensor


class _Tiles(NamedTuple):
    """Sizes of the blocks; powers of two."""

    rows: int  # of one program of the first launch
    units: int  # of the second layer in one matrix product there
    inputs: int  # columns of x in one matrix product there
    neurons: int  # rows of W2 in one program of the second launch
    depth: int  # batch rows in one matrix product there
    warps: int


# chosen by what the assembler reports for width 256 on sm_90: bf16 and tf32 spill no register, 128 rows would; fp32,
# which multiplies without tensor cores, spills with any. The mask keeps one bit for each of up to 8 blocks of units.
_TILES = {
    "bf16": _Tiles(rows=64, units=64, inputs=32, neurons=16, depth=64, warps=8),
    "tf32": _Tiles(rows=64, units=32, inputs=16, neurons=16, depth=32, warps=8),
    "fp32": _Tiles(rows=16, units=32, inputs=32, neurons=16, depth=16, warps=8),
}


@triton.jit
def _product(b_a, b_b, b_sum, LOW: tl.constexpr, MULTIPLIED: tl.constexpr, PRECISION: tl.constexpr):
    """``b_sum + b_a @ b_b`` of factors rounded to ``LOW``; Triton's interpreter cannot multiply bfloat16 itself."""
    return tl.dot(b_a.to(LOW).to(MULTIPLIED), b_b.to(LOW).to(MULTIPLIED), b_sum, input_precision=PRECISION)


@triton.jit
def _relu(b_x):
    """By comparison, so that a NaN shows."""
    return tl.where(b_x < 0.0, 0.0, b_x)


@triton.jit
def _input_columns(x_at, row, live, column, NUM_INPUTS: tl.constexpr):
    """Some columns of the tile's inputs, 0 beyond the batch and the inputs."""
    mask = live[:, None] & (column < NUM_INPUTS)[None, :]
    return tl.load(x_at + row[:, None] * NUM_INPUTS + column[None, :], mask=mask, other=0.0)


@triton.jit
def _score_mlp_rows_kernel(
    x,
    next_value,
    score,
    rho_weights,
    rho_size,
    q_x,
    q_next_value,
    q_score,
    q_weights,
    q_size,
    w1,
    b1,
    w2,
    b2,
    w3,
    b3,
    excess,
    bootstrap,
    hidden,
    active,
    slope,
    partial,
    sums,
    NUM_INPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    MEMBERS: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    Q_EXCESS: tl.constexpr,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    INPUTS: tl.constexpr,
    LOW: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Forward, residual and backward of one tile of rows of one network, down to its share of the first layer."""
    tile = tl.program_id(0).to(tl.int64)
    seed = tl.program_id(2).to(tl.int64)
    net = seed * MEMBERS + tl.program_id(1)
    tiles = tl.num_programs(0)
    nets = tl.num_programs(2) * MEMBERS
    gamma, lower, upper = bootstrap
    # the first tiles are those of rho, the others of q: one launch for both
    rho_tiles = tl.cdiv(rho_size, ROWS)
    is_q = tile >= rho_tiles
    size = tl.where(is_q, q_size, rho_size)
    row = tl.where(is_q, tile - rho_tiles, tile) * ROWS + tl.arange(0, ROWS)
    live = row < size
    if is_q:
        x_at, next_at, score_at = q_x + seed * size * NUM_INPUTS, q_next_value + seed * size, q_score + net * size
    else:
        x_at, next_at, score_at = x + seed * size * NUM_INPUTS, next_value + seed * size, score + net * size
    unit = tl.arange(0, HIDDEN)
    in_width = unit < WIDTH

    b_hidden = tl.zeros([ROWS, HIDDEN], dtype=tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        column = start + tl.arange(0, INPUTS)
        b_x = _input_columns(x_at, row, live, column, NUM_INPUTS)
        b_w1 = tl.load(
            w1 + net * WIDTH * NUM_INPUTS + unit[None, :] * NUM_INPUTS + column[:, None],
            mask=in_width[None, :] & (column < NUM_INPUTS)[:, None],
            other=0.0,
        )
        b_hidden = _product(b_x, b_w1, b_hidden, LOW, MULTIPLIED, PRECISION)
    b_bias = tl.load(b1 + net * WIDTH + unit, mask=in_width, other=0.0).to(tl.float32)
    # rounded once: the second layer, its gradient and the mask see the same activations
    b_hidden = _relu(b_hidden + b_bias[None, :]).to(LOW)
    # rows of the workspaces are padded to whole tiles: written whole, read without a mask
    at = net * tiles * ROWS + tile * ROWS + tl.arange(0, ROWS)
    tl.store(hidden + at[:, None] * HIDDEN + unit[None, :], b_hidden)

    b_score = tl.zeros([ROWS], dtype=tl.float32)
    b_active = tl.zeros([ROWS, UNITS], dtype=tl.int32)
    for block in range(HIDDEN // UNITS):
        neuron = block * UNITS + tl.arange(0, UNITS)
        mask = neuron < WIDTH
        b_w2 = tl.load(
            w2 + net * WIDTH * WIDTH + neuron[None, :] * WIDTH + unit[:, None],
            mask=mask[None, :] & in_width[:, None],
            other=0.0,
        )
        b_sum = _product(b_hidden, b_w2, tl.zeros([ROWS, UNITS], tl.float32), LOW, MULTIPLIED, PRECISION)
        b_sum += tl.load(b2 + net * WIDTH + neuron, mask=mask, other=0.0).to(tl.float32)[None, :]
        b_last = tl.load(w3 + net * WIDTH + neuron, mask=mask, other=0.0).to(tl.float32)
        b_score += tl.sum(_relu(b_sum) * b_last[None, :], axis=1)
        # a NaN counts as active, as in torch, and shows in the gradients
        b_active |= tl.where(b_sum <= 0.0, 0, 1) << block
    b_score += tl.load(b3 + net).to(tl.float32)
    tl.store(score_at + row, b_score, mask=live)
    tl.store(active + at[:, None] * UNITS + tl.arange(0, UNITS)[None, :], b_active.to(tl.int8))

    if is_q:
        b_next = tl.load(next_at + row, mask=live & Q_EXCESS, other=0.0).to(tl.float32)
        b_term, b_slope = score_term(
            b_score, clip(b_next, lower, upper), q_weights, excess, gamma, DIVERGENCE, Q_EXCESS
        )
    else:
        b_next = tl.load(next_at + row, mask=live, other=0.0).to(tl.float32)
        b_term, b_slope = score_term(b_score, clip(b_next, lower, upper), rho_weights, excess, gamma, DIVERGENCE, True)
    # a padded row computes the terms of x = 0: it must not count
    b_slope = tl.where(live, b_slope / size, 0.0)
    tl.store(slope + at, b_slope)
    tl.store(sums + net * tiles + tile, tl.sum(tl.where(live, b_term, 0.0), axis=0) / size)
    tl.store(sums + (nets + net) * tiles + tile, tl.sum(b_slope, axis=0))

    b_grad = tl.zeros([ROWS, HIDDEN], dtype=tl.float32)
    for block in range(HIDDEN // UNITS):
        neuron = block * UNITS + tl.arange(0, UNITS)
        mask = neuron < WIDTH
        b_last = tl.load(w3 + net * WIDTH + neuron, mask=mask, other=0.0).to(tl.float32)
        b_factor = tl.where(((b_active >> block) & 1) != 0, b_last[None, :], 0.0)
        b_w2 = tl.load(
            w2 + net * WIDTH * WIDTH + neuron[:, None] * WIDTH + unit[None, :],
            mask=mask[:, None] & in_width[None, :],
            other=0.0,
        )
        b_grad = _product(b_factor, b_w2, b_grad, LOW, MULTIPLIED, PRECISION)
    b_grad = tl.where(b_hidden.to(tl.float32) <= 0.0, 0.0, b_grad * b_slope[:, None])
    # gradients of W1 and b1, one after the other
    partial_at = partial + (net * tiles + tile) * (WIDTH * NUM_INPUTS + WIDTH)
    tl.store(partial_at + WIDTH * NUM_INPUTS + unit, tl.sum(b_grad, axis=0), mask=in_width)
    b_grad = tl.trans(b_grad)
    for start in range(0, NUM_INPUTS, INPUTS):
        column = start + tl.arange(0, INPUTS)
        b_x = _input_columns(x_at, row, live, column, NUM_INPUTS)
        b_sum = _product(b_grad, b_x, tl.zeros([HIDDEN, INPUTS], tl.float32), LOW, MULTIPLIED, PRECISION)
        tl.store(
            partial_at + unit[:, None] * NUM_INPUTS + column[None, :],
            b_sum,
            mask=in_width[:, None] & (column < NUM_INPUTS)[None, :],
        )


@triton.jit
def _sum_of(values, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    b_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, COUNT, BLOCK):
        offset = start + tl.arange(0, BLOCK)
        b_sum += tl.load(values + offset, mask=offset < COUNT, other=0.0)
    return tl.sum(b_sum, axis=0)


@triton.jit
def _score_mlp_weights_kernel(
    hidden,
    active,
    slope,
    partial,
    sums,
    w2,
    b2,
    w3,
    loss,
    grad,
    TILES: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    MEMBERS: tl.constexpr,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    NEURONS: tl.constexpr,
    DEPTH: tl.constexpr,
    LOW: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of the weights in the order W1, b1, W2, b2, w3, b3, each element by one program, and the loss."""
    part = tl.program_id(0)
    member = tl.program_id(1)
    seed = tl.program_id(2).to(tl.int64)
    net = seed * MEMBERS + member
    nets = tl.num_programs(2) * MEMBERS
    first = WIDTH * NUM_INPUTS + WIDTH
    grad_at = grad + net * (first + WIDTH * WIDTH + 2 * WIDTH + 1)
    neuron_parts = tl.cdiv(WIDTH, NEURONS)
    if part < neuron_parts:
        neuron = part * NEURONS + tl.arange(0, NEURONS)
        mask = neuron < WIDTH
        unit = tl.arange(0, HIDDEN)
        in_width = unit < WIDTH
        bit = part * NEURONS // UNITS
        column = part * NEURONS % UNITS + tl.arange(0, NEURONS)
        b_matrix = tl.zeros([NEURONS, HIDDEN], dtype=tl.float32)
        b_vector = tl.zeros([NEURONS], dtype=tl.float32)
        row = net * TILES * ROWS + tl.arange(0, DEPTH)
        for _ in range(0, TILES * ROWS, DEPTH):
            b_active = tl.load(active + row[None, :] * UNITS + column[:, None]).to(tl.int32)
            b_slope = tl.where(((b_active >> bit) & 1) != 0, tl.load(slope + row)[None, :], 0.0)
            b_hidden = tl.load(hidden + row[:, None] * HIDDEN + unit[None, :])
            b_vector += tl.sum(b_slope, axis=1)
            b_matrix = _product(b_slope, b_hidden, b_matrix, LOW, MULTIPLIED, PRECISION)
            row += DEPTH
        b_last = tl.load(w3 + net * WIDTH + neuron, mask=mask, other=0.0).to(tl.float32)
        b_bias = tl.load(b2 + net * WIDTH + neuron, mask=mask, other=0.0).to(tl.float32)
        both = mask[:, None] & in_width[None, :]
        b_w2 = tl.load(w2 + net * WIDTH * WIDTH + neuron[:, None] * WIDTH + unit[None, :], mask=both, other=0.0)
        # rounded as the forward pass multiplied it
        b_w2 = b_w2.to(LOW).to(tl.float32)
        second_at = grad_at + first + WIDTH * WIDTH
        tl.store(grad_at + first + neuron[:, None] * WIDTH + unit[None, :], b_last[:, None] * b_matrix, mask=both)
        tl.store(second_at + neuron, b_last * b_vector, mask=mask)
        tl.store(second_at + WIDTH + neuron, tl.sum(b_w2 * b_matrix, axis=1) + b_bias * b_vector, mask=mask)
    elif part < tl.num_programs(0) - 1:
        offset = (part - neuron_parts) * BLOCK + tl.arange(0, BLOCK)
        mask = offset < first
        b_sum = tl.zeros([BLOCK], dtype=tl.float32)
        partial_at = partial + net * TILES * first
        for _ in range(TILES):
            b_sum += tl.load(partial_at + offset, mask=mask, other=0.0)
            partial_at += first
        tl.store(grad_at + offset, b_sum, mask=mask)
    else:
        tl.store(grad_at + first + WIDTH * WIDTH + 2 * WIDTH, _sum_of(sums + (nets + net) * TILES, TILES, BLOCK))
        if member == 0:
            # the terms of the members of a seed lie side by side
            tl.store(loss + seed, _sum_of(sums + net * TILES, MEMBERS * TILES, BLOCK))


def _num_weights(inputs: int, width: int) -> int:
    return width * inputs + width + width * width + 2 * width + 1


# one op over K seeds, M members, B (or Q) rows; weights [K, M, ...]
@torch.library.custom_op(
    "smore_kernels::score_mlp",
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor next_value, Tensor q_x, Tensor q_next_value, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
        "Tensor w3, Tensor b3, str formulation, str divergence, float beta, float gamma, float residual_coef, "
        "float max_ratio, float lower, float upper, str precision) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _score_mlp(
    x, next_value, q_x, q_next_value, w1, b1, w2, b2, w3, b3,
    formulation, divergence, beta, gamma, residual_coef, max_ratio, lower, upper, precision,
):  # fmt: skip
    seeds, members, width, inputs = w1.shape
    rho_size, q_size, device = x.shape[-2], q_x.shape[-2], x.device
    official = formulation in ("official", "official_stable")
    if official:
        divergence, residual_coef = "pearson_chi2", 1.0
    rho_weights, q_weights = formulation_weights(formulation, beta, gamma)
    x, next_value, q_x, q_next_value = (tensor.contiguous() for tensor in (x, next_value, q_x, q_next_value))
    w1, b1, w2, b2, w3, b3 = (tensor.contiguous() for tensor in (w1, b1, w2, b2, w3, b3))
    hidden_width = triton.next_power_of_2(width)
    tile = _TILES[precision]
    units, columns = min(tile.units, hidden_width), min(tile.inputs, max(16, triton.next_power_of_2(inputs)))
    tiles = triton.cdiv(rho_size, tile.rows) + triton.cdiv(q_size, tile.rows)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    first = width * inputs + width
    score, q_score = new(seeds, members, rho_size), new(seeds, members, q_size)
    loss, grad = new(seeds), new(seeds, members, _num_weights(inputs, width))
    low = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = seeds * members * tiles * tile.rows
    hidden, active, slope = new(rows, hidden_width, dtype=low), new(rows, units, dtype=torch.int8), new(rows)
    # one partial sum a tile of rows, added in a fixed order: no atomics, so repeatable from run to run
    partial, sums = new(seeds * members * tiles, first), new(2, seeds * members * tiles)
    triton_low = tl.bfloat16 if precision == "bf16" else tl.float32
    # the sizes of a run do not change: known to the compiler, they remove masks
    constants = {
        "NUM_INPUTS": inputs,
        "WIDTH": width,
        "MEMBERS": members,
        "HIDDEN": hidden_width,
        "ROWS": tile.rows,
        "UNITS": units,
        "LOW": triton_low,
        "MULTIPLIED": tl.float32 if _interpreted() else triton_low,
        "PRECISION": "ieee" if precision == "fp32" else "tf32",
        "num_warps": tile.warps,
    }
    with torch.cuda.device_of(x):
        _score_mlp_rows_kernel[(tiles, members, seeds)](
            x, next_value, score, tuple(rho_weights), rho_size, q_x, q_next_value, q_score, tuple(q_weights), q_size,
            w1, b1, w2, b2, w3, b3, excess_constants(divergence, residual_coef, max_ratio), (gamma, lower, upper),
            hidden, active, slope, partial, sums,
            DIVERGENCE=divergence, Q_EXCESS=not official, INPUTS=columns, num_stages=1, **constants,
        )  # fmt: skip
        parts = triton.cdiv(width, tile.neurons) + triton.cdiv(first, _BLOCK) + 1
        _score_mlp_weights_kernel[(parts, members, seeds)](
            hidden, active, slope, partial, sums, w2, b2, w3, loss, grad, TILES=tiles,
            NEURONS=tile.neurons, DEPTH=tile.depth, BLOCK=_BLOCK, num_stages=2, **constants,
        )  # fmt: skip
    return loss, grad, score, q_score


def _takes_width(width: int) -> bool:
    return width % 16 == 0 and 0 < width <= MAX_WIDTH


def _interpreted() -> bool:
    return not isinstance(_score_mlp_rows_kernel, triton.JITFunction)


@_score_mlp.register_fake
def _(x: Tensor, next_value: Tensor, q_x: Tensor, q_next_value: Tensor, w1: Tensor, *args: Any) -> tuple[Tensor, ...]:
    seeds, members, width, inputs = w1.shape

    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    grad = new(seeds, members, _num_weights(inputs, width))
    return new(seeds), grad, new(seeds, members, x.shape[-2]), new(seeds, members, q_x.shape[-2])


_score_mlp.register_vmap(joins_seeds(_score_mlp))


class _ScoreMLP(torch.autograd.Function):
    """Autograd of the op. A ``Function`` because ``torch.func.grad`` refuses what ``register_autograd`` makes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _score_mlp(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        # an undefined gradient of the saved gradient stays None, which is how a second derivative is recognised
        ctx.set_materialize_grads(False)
        _, grad, *scores = output
        ctx.mark_non_differentiable(*scores)
        ctx.save_for_backward(grad)
        ctx.weights = [(weight.shape, weight.dtype) for weight in inputs[4:10]]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_grad is not None:
            raise RuntimeError("the kernel is differentiable once; take the reference for second derivatives.")
        out: list[Tensor | None] = [None] * 19
        if grad_loss is None:
            return tuple(out)
        (grad,) = ctx.saved_tensors
        sizes = [math.prod(shape[2:]) for shape, _ in ctx.weights]
        pieces = (grad_loss[:, None, None] * grad).split(sizes, -1)
        out[4:10] = [piece.reshape(shape).to(dtype) for piece, (shape, dtype) in zip(pieces, ctx.weights)]
        return tuple(out)


# Dynamo's own treatment of a Function knows no vmap rule; allowed in the graph, AOTAutograd runs it as eager does
@torch.compiler.allow_in_graph
def _mean_score_mlp(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, _, score, q_score = _ScoreMLP.apply(*inputs)
    return loss, score, q_score


def score_mlp(
    x: Tensor,
    next_value: Tensor,
    q_x: Tensor,
    q_next_value: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    formulation: Formulation = "in_sample",
    divergence: str = "pearson_chi2",
    beta: float = 0.5,
    gamma: float = 0.99,
    residual_coef: float = 0.25,
    max_ratio: float = 100.0,
    bounds: tuple[float, float] | None = None,
    precision: Precision = "tf32",
) -> ScoreMLP:
    r"""``mean_score_objective`` of the scores of an ensemble of networks, with the gradient of their weights.

    ``[*K]`` are leading axes (seeds), each with its own loss; ``torch.vmap`` adds another. Differentiable once, with
    respect to the weights alone. The constants are those of :func:`~smore_kernels.mean_score_objective`.

    Args:
        x: inputs of the network on offline rows (observation, action and goal side by side), shape ``[*K, B, D]``,
            float32 or bfloat16, taken as a constant.
        next_value: ``M(s', g)`` there, shape ``[*K, B]``, taken as a constant.
        q_x: inputs on goal transitions, shape ``[*K, Q, D]``.
        q_next_value: ``M(s', g)`` there, shape ``[*K, Q]``; not read by the official formulations.
        layers: weight and bias of each linear layer, as ``nn.Linear`` has them, stacked over seeds and ``M`` members:
            ``[*K, M, H, D]`` and ``[*K, M, H]``, ``[*K, M, H, H]`` and ``[*K, M, H]``, ``[*K, M, 1, H]`` and
            ``[*K, M, 1]``; ``H`` a multiple of 16 up to 256; float32 or bfloat16.
        formulation: which objective; ``"dual"``, which asks for the policy's actions, is not among them.
        divergence: name of the f-divergence; the official formulations ignore it.
        beta: weight of ``q`` in the mixture, in ``(0, 1]``.
        gamma: discount, in ``(0, 1)``.
        residual_coef: weight of the divergence, positive.
        max_ratio: cap on the density ratio, at least 1, may be infinite.
        bounds: interval to which both next values are clipped; either end may be infinite.
        precision: factors of the matrix products, whose sums are float32 in any case: ``"bf16"``, ``"tf32"`` (10 bits
            of fraction) or ``"fp32"`` (no tensor cores). The last layer, the objective and the gradients are float32.

    Returns:
        The loss, float32, shape ``[*K]``, and the scores, float32, ``[*K, M, B]`` and ``[*K, M, Q]``.

    Raises:
        ValueError: for an unknown name, a formulation or width that the kernel lacks, or shapes or devices that do not
            fit.
        TypeError: for a dtype other than those above, or two of them in ``x`` and ``q_x`` or in both next values.
    """
    names = {"divergence": (divergence, DIVERGENCES), "precision": (precision, get_args(Precision))}
    formulations = tuple(name for name in get_args(Formulation) if name != "dual")
    for kind, (name, valid) in {"formulation": (formulation, formulations), **names}.items():
        if name not in valid:
            raise ValueError(f"{kind} must be one of {', '.join(valid)}, got {name!r}.")
    if len(layers) != 3 or layers[0][0].ndim < 3:
        shapes = [list(weight.shape) for weight, _ in layers]
        raise ValueError(f"expected three layers with weights of shape [*K, M, out, in], got {shapes}.")
    *lead, members, width, inputs = layers[0][0].shape
    if not _takes_width(width):
        raise ValueError(f"expected a width that is a multiple of 16 up to {MAX_WIDTH}, got {width}.")
    size, q_size = x.shape[-2] if x.ndim > 1 else 0, q_x.shape[-2] if q_x.ndim > 1 else 0
    lower, upper = (-math.inf, math.inf) if bounds is None else bounds

    def checked(name: str, tensor: Tensor, *tail: int) -> Tensor:
        """``tensor`` with its leading axes as one."""
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"expected {name} in float32 or bfloat16, got {tensor.dtype}.")
        if list(tensor.shape) != [*lead, *tail] or tensor.numel() == 0 or tensor.device != x.device:
            expected, got = f"{[*lead, *tail]} on {x.device}", f"{list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"expected {name} of non-empty shape {expected}, got {got}.")
        return tensor.reshape(-1, *tail)

    rows = (
        checked("x", x.detach(), size, inputs),
        checked("next_value", next_value.detach(), size),
        checked("q_x", q_x.detach(), q_size, inputs),
        checked("q_next_value", q_next_value.detach(), q_size),
    )
    # a program reads the rows of either batch through one pointer
    for name, tensor, other in (("q_x", q_x, x), ("q_next_value", q_next_value, next_value)):
        if tensor.dtype != other.dtype:
            raise TypeError(f"expected {name} in {other.dtype} as {name.removeprefix('q_')} is, got {tensor.dtype}.")
    tails = [(width, inputs), (width,), (width, width), (width,), (1, width), (1,)]
    flat = [tensor for layer in layers for tensor in layer]
    weights = [
        checked(f"{'bias' if at % 2 else 'weight'} of layer {at // 2 + 1}", tensor, members, *tail)
        for at, (tensor, tail) in enumerate(zip(flat, tails))
    ]
    loss, score, q_score = _mean_score_mlp(
        *rows, *weights, formulation, divergence, beta, gamma, residual_coef, max_ratio, lower, upper, precision
    )
    return ScoreMLP(loss.reshape(lead), score.reshape(*lead, members, size), q_score.reshape(*lead, members, q_size))
