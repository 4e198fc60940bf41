"""Mean score objective of SMORe and its gradients in one pass.

Reference: ``torchrl_smore.functional.score.score_rows``, averaged over rows.

The expression and its letters are those of :mod:`smore_kernels.formulations`. The gradient with respect to ``P`` is a
constant: one gradient is written for each batch, whatever is asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from smore_kernels.divergences import DIVERGENCES, excess_constants
from smore_kernels.formulations import Formulation, clip, formulation_weights, score_term
from smore_kernels.seeds import joins_seeds

_BLOCK = 1024
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _batch(
    tensors,
    strides,
    weights,
    excess,
    bootstrap,
    grad,
    size,
    seed,
    block,
    MEMBERS: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    HAS_EXCESS: tl.constexpr,
    HAS_POLICY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean of one block of rows over ``size``, all members of one seed; writes the gradient of each row's term."""
    score, next_value, policy_score = tensors
    score_seed, score_member, next_seed, policy_seed, policy_member = strides
    gamma, lower, upper = bootstrap

    offset = block * BLOCK + tl.arange(0, BLOCK)
    mask = offset < size
    b_sum = tl.zeros([BLOCK], dtype=tl.float32)
    b_next = b_sum
    if HAS_EXCESS:
        b_next = tl.load(next_value + seed * next_seed + offset, mask=mask, other=0.0).to(tl.float32)
        b_next = clip(b_next, lower, upper)
    # stepped from member to member: their strides are 32-bit numbers, whose product with a member would be one too
    score_at = score + seed * score_seed + offset
    policy_at = policy_score
    if HAS_POLICY:
        policy_at = policy_score + seed * policy_seed + offset
    for member in range(MEMBERS):
        b_score = tl.load(score_at, mask=mask, other=0.0).to(tl.float32)
        score_at += score_member
        b_term, b_grad = score_term(b_score, b_next, weights, excess, gamma, DIVERGENCE, HAS_EXCESS)
        if HAS_POLICY:
            b_policy = tl.load(policy_at, mask=mask, other=0.0).to(tl.float32)
            policy_at += policy_member
            b_term += weights[3] * b_policy
        # the terms of a masked row are not 0: they are those of S = N = 0
        b_sum += tl.where(mask, b_term, 0.0)
        tl.store(grad + (seed * MEMBERS + member) * size + offset, b_grad, mask=mask)
    return tl.sum(b_sum, axis=0) / size


@triton.jit
def _score_objective_fwd_kernel(
    rho,
    rho_strides,
    rho_weights,
    rho_grad,
    rho_size,
    q,
    q_strides,
    q_weights,
    q_grad,
    q_size,
    excess,
    bootstrap,
    partial,
    MEMBERS: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    Q_EXCESS: tl.constexpr,
    HAS_POLICY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    seed = tl.program_id(1).to(tl.int64)
    # the first blocks are those of rho, the others of q: one launch for both
    rho_blocks = tl.cdiv(rho_size, BLOCK)
    at = partial + seed * tl.num_programs(0) + block
    if block < rho_blocks:
        rho_sum = _batch(
            rho, rho_strides, rho_weights, excess, bootstrap, rho_grad, rho_size, seed, block,
            MEMBERS, DIVERGENCE, True, HAS_POLICY, BLOCK,
        )  # fmt: skip
        tl.store(at, rho_sum)
    else:
        q_sum = _batch(
            q, q_strides, q_weights, excess, bootstrap, q_grad, q_size, seed, block - rho_blocks,
            MEMBERS, DIVERGENCE, Q_EXCESS, HAS_POLICY, BLOCK,
        )  # fmt: skip
        tl.store(at, q_sum)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, as ``TRITON_INTERPRET=1`` asks before triton is imported."""
    # tl.sum is made when triton is imported, the kernel when this file is: the interpreter needs both
    return not any(isinstance(function, triton.JITFunction) for function in (tl.sum, _score_objective_fwd_kernel))


def _operands(score: Tensor, next_value: Tensor, policy: Tensor | None) -> tuple[Any, Any]:
    """Tensors of one batch with a contiguous last dimension, and their strides over seeds and members."""
    tensors = tuple(
        tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()
        for tensor in (score, next_value, policy)
    )
    return tensors, tuple(s for tensor in tensors for s in ((0, 0) if tensor is None else tensor.stride()[:-1]))


# one op over [K, M, B]: K seeds, M members, B (or Q) rows; the gradients are those of each row's term, so that half
# precision does not underflow before the loss scale arrives
@torch.library.custom_op(
    "smore_kernels::score_objective",
    mutates_args=(),
    schema=(
        "(Tensor score, Tensor next_value, Tensor q_score, Tensor q_next_value, Tensor? policy_score, "
        "Tensor? q_next_policy_score, str formulation, str divergence, float beta, float gamma, "
        "float residual_coef, float max_ratio, float lower, float upper) -> (Tensor, Tensor, Tensor)"
    ),
)
def _score_objective(
    score, next_value, q_score, q_next_value, policy_score, q_next_policy_score,
    formulation, divergence, beta, gamma, residual_coef, max_ratio, lower, upper,
):  # fmt: skip
    seeds, members, rho_size = score.shape
    q_size = q_score.shape[-1]
    official = formulation in ("official", "official_stable")
    if official:
        divergence, residual_coef = "pearson_chi2", 1.0
    rho_weights, q_weights = formulation_weights(formulation, beta, gamma)
    rho, rho_strides = _operands(score, next_value, policy_score)
    q, q_strides = _operands(q_score, q_next_value, q_next_policy_score)
    grad = torch.empty(score.shape, dtype=score.dtype, device=score.device)
    q_grad = torch.empty(q_score.shape, dtype=q_score.dtype, device=score.device)
    blocks = triton.cdiv(rho_size, _BLOCK) + triton.cdiv(q_size, _BLOCK)
    # one partial sum per block, added by torch: no atomics, so repeatable from run to run
    partial = torch.empty((seeds, blocks), dtype=torch.float32, device=score.device)
    with torch.cuda.device_of(score):
        _score_objective_fwd_kernel[(blocks, seeds)](
            rho, rho_strides, tuple(rho_weights), grad, rho_size,
            q, q_strides, tuple(q_weights), q_grad, q_size,
            excess_constants(divergence, residual_coef, max_ratio), (gamma, lower, upper), partial,
            MEMBERS=members, DIVERGENCE=divergence, Q_EXCESS=not official, HAS_POLICY=policy_score is not None,
            BLOCK=_BLOCK,
        )  # fmt: skip
    return partial.sum(-1), grad, q_grad


@_score_objective.register_fake
def _(score: Tensor, next_value: Tensor, q_score: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss = score.new_empty(score.shape[:1], dtype=torch.float32)
    return loss, score.new_empty(score.shape), q_score.new_empty(q_score.shape)


_score_objective.register_vmap(joins_seeds(_score_objective))


class _ScoreObjective(torch.autograd.Function):
    """Autograd of the op. A ``Function`` because ``torch.func.grad`` refuses what ``register_autograd`` makes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _score_objective(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        # undefined gradients of the saved gradients stay None, which is how a second derivative is recognised
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])
        ctx.formulation, _, ctx.beta, ctx.gamma = inputs[6:10]

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, grad_grad: Tensor | None, grad_q_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_grad is not None or grad_q_grad is not None:
            raise RuntimeError("the kernel is differentiable once; take the reference for second derivatives.")
        out: list[Tensor | None] = [None] * 14
        if grad_loss is None:
            return tuple(out)
        grad, q_grad = ctx.saved_tensors
        rho_weights, q_weights = formulation_weights(ctx.formulation, ctx.beta, ctx.gamma)
        scale = (grad_loss / grad.shape[-1])[:, None, None]
        q_scale = (grad_loss / q_grad.shape[-1])[:, None, None]
        out[0] = (scale * grad).to(grad.dtype)
        out[2] = (q_scale * q_grad).to(grad.dtype)
        if ctx.formulation == "dual":
            out[4] = (scale * rho_weights.policy).to(grad.dtype).expand_as(grad)
            out[5] = (q_scale * q_weights.policy).to(grad.dtype).expand_as(q_grad)
        return tuple(out)


# Dynamo's own treatment of a Function knows no vmap rule; allowed in the graph, AOTAutograd runs it as eager does
@torch.compiler.allow_in_graph
def _mean_score_objective(*inputs: Any) -> Tensor:
    return _ScoreObjective.apply(*inputs)[0]


def mean_score_objective(
    score: Tensor,
    next_value: Tensor,
    q_score: Tensor,
    q_next_value: Tensor,
    *,
    formulation: Formulation = "in_sample",
    divergence: str = "pearson_chi2",
    beta: float = 0.5,
    gamma: float = 0.99,
    residual_coef: float = 0.25,
    max_ratio: float = 100.0,
    bounds: tuple[float, float] | None = None,
    policy_score: Tensor | None = None,
    q_next_policy_score: Tensor | None = None,
) -> Tensor:
    r"""Mean over ``rho`` rows plus mean over ``q`` rows of the score objective, added over members; float32 inside.

    ``[*K]`` are leading axes (seeds), each with its own loss; ``torch.vmap`` adds another. Differentiable once, with
    respect to the scores. The constants mean what they do in ``torchrl_smore.functional.score.ScoreObjective``.

    Args:
        score: ``S(s, a, g)`` on offline rows, shape ``[*K, M, B]``, float32, bfloat16 or float16.
        next_value: ``M(s', g)`` there, shape ``[*K, B]``, taken as a constant.
        q_score: ``S(s, a, g)`` on goal transitions, shape ``[*K, M, Q]``.
        q_next_value: ``M(s', g)`` there, shape ``[*K, Q]``, taken as a constant; not read by the official formulations.
        formulation: which objective.
        divergence: name of the f-divergence; the official formulations ignore it.
        beta: weight of ``q`` in the mixture, in ``(0, 1]``.
        gamma: discount, in ``(0, 1)``.
        residual_coef: weight of the divergence, positive.
        max_ratio: cap on the density ratio, at least 1, may be infinite.
        bounds: interval to which both next values are clipped; either end may be infinite.
        policy_score: ``S(s, pi(s, g), g)`` on offline rows, shape ``[*K, M, B]``; for ``"dual"`` only.
        q_next_policy_score: ``S(s', pi(s', g), g)`` after goal transitions, ``[*K, M, Q]``; for ``"dual"`` only.

    Returns:
        The loss, shape ``[*K]``, in the dtype of ``score + next_value``.

    Raises:
        ValueError: for an unknown name, shapes that do not fit or are empty, or policy scores that the formulation
            lacks or has no use for.
        TypeError: for a dtype other than those above, or scores of several dtypes.
    """
    _check_choice(formulation, divergence, policy_score, q_next_policy_score)
    if score.ndim < 2 or q_score.ndim < 2:
        raise ValueError(f"expected scores of shape [*K, M, B], got {list(score.shape)} and {list(q_score.shape)}.")
    lead, rho, q = score.shape[:-2], score.shape[-2:], (score.shape[-2], q_score.shape[-1])
    lower, upper = (-math.inf, math.inf) if bounds is None else bounds

    def rows(name: str, tensor: Tensor, tail: Sequence[int], dtype: torch.dtype) -> Tensor:
        """``tensor`` with its leading axes as one."""
        if tensor.dtype not in _DTYPES or tensor.dtype != dtype:
            raise TypeError(f"expected {name} in float32, bfloat16 or float16 as its kind is, got {tensor.dtype}.")
        if tensor.shape != (*lead, *tail) or tensor.numel() == 0 or tensor.device != score.device:
            expected, got = f"{[*lead, *tail]} on {score.device}", f"{list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"expected {name} of non-empty shape {expected}, got {got}.")
        return tensor.reshape(-1, *tail)

    def policy_rows(name: str, tensor: Tensor | None, tail: Sequence[int]) -> Tensor | None:
        return None if tensor is None else rows(name, tensor, tail, score.dtype)

    loss = _mean_score_objective(
        rows("score", score, rho, score.dtype),
        rows("next_value", next_value.detach(), rho[1:], next_value.dtype),
        rows("q_score", q_score, q, score.dtype),
        rows("q_next_value", q_next_value.detach(), q[1:], next_value.dtype),
        policy_rows("policy_score", policy_score, rho),
        policy_rows("q_next_policy_score", q_next_policy_score, q),
        formulation, divergence, beta, gamma, residual_coef, max_ratio, lower, upper,
    )  # fmt: skip
    return loss.reshape(lead).to(torch.promote_types(score.dtype, next_value.dtype))


def _check_choice(
    formulation: str,
    divergence: str,
    policy_score: Tensor | None,
    q_next_policy_score: Tensor | None,
) -> None:
    for kind, name, valid in (
        ("formulation", formulation, get_args(Formulation)),
        ("divergence", divergence, DIVERGENCES),
    ):
        if name not in valid:
            raise ValueError(f"{kind} must be one of {', '.join(valid)}, got {name!r}.")
    missing = policy_score is None or q_next_policy_score is None
    if formulation == "dual" and missing:
        raise ValueError("formulation='dual' needs policy_score and q_next_policy_score.")
    if formulation != "dual" and not (policy_score is q_next_policy_score is None):
        raise ValueError(f"scores at the policy's actions belong to formulation='dual', got {formulation!r}.")
