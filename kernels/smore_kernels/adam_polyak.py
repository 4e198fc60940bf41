"""Adam, its cosine schedule, decoupled weight decay and the target update over flat buffers, in place, in one launch.

Reference: ``torchrl_smore.functional.optim.adam_polyak_``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
# stands for log(0): its exponential is 0 in float32
_LOG_ZERO = -200.0


@triton.jit
def _lerp(b_start, b_end, weight):
    """From ``b_start`` to ``b_end``; the end itself at weight 1, as ``torch.lerp`` has it."""
    b_step = b_end - b_start
    return tl.where(weight < 0.5, b_start + weight * b_step, b_end - (1.0 - weight) * b_step)


@triton.jit
def _one_less_power(log_base, count):
    """``1 - base**count`` without the cancellation near 0, which costs four digits of ``1 - 0.999``."""
    x = log_base * count
    series = -x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x / 120.0))))
    return tl.where(x > -0.1, series, 1.0 - tl.exp(x))


@triton.jit
def _adam_polyak_kernel(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    target,
    step,
    lr,
    moment_weights,
    log_betas,
    eps,
    weight_decay,
    decay_steps,
    tau,
    size,
    COSINE: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    weight1, weight2 = moment_weights
    log_beta1, log_beta2 = log_betas
    done = tl.load(step).to(tl.float32)
    rate = lr
    if COSINE:
        fraction = done / decay_steps
        rate = lr * 0.5 * (1.0 + tl.cos(3.141592653589793 * tl.where(fraction > 1.0, 1.0, fraction)))
    correction1 = _one_less_power(log_beta1, done + 1.0)
    correction2 = _one_less_power(log_beta2, done + 1.0)

    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < size
    # masked lanes compute on 0 and are not stored
    b_grad = tl.load(grad + offset, mask=mask, other=0.0)
    b_avg = _lerp(tl.load(exp_avg + offset, mask=mask, other=0.0), b_grad, weight1)
    b_avg_sq = tl.load(exp_avg_sq + offset, mask=mask, other=0.0)
    b_avg_sq = (1.0 - weight2) * b_avg_sq + weight2 * b_grad * b_grad
    b_param = tl.load(param + offset, mask=mask, other=0.0) * (1.0 - rate * weight_decay)
    b_param -= rate / correction1 * b_avg / (tl.sqrt(b_avg_sq / correction2) + eps)
    tl.store(exp_avg + offset, b_avg, mask=mask)
    tl.store(exp_avg_sq + offset, b_avg_sq, mask=mask)
    tl.store(param + offset, b_param, mask=mask)
    if HAS_TARGET:
        b_target = tl.load(target + offset, mask=mask, other=0.0)
        tl.store(target + offset, _lerp(b_target, b_param, tau), mask=mask)


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0.0 else _LOG_ZERO


@torch.library.custom_op(
    "smore_kernels::adam_polyak_",
    mutates_args=("param", "exp_avg", "exp_avg_sq", "target"),
    schema=(
        "(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor step, Tensor(d!)? target, "
        "float lr, float beta1, float beta2, float eps, float weight_decay, int? decay_steps, float tau) -> ()"
    ),
)
def _adam_polyak(
    param, grad, exp_avg, exp_avg_sq, step, target, lr, beta1, beta2, eps, weight_decay, decay_steps, tau
):  # fmt: skip
    if not param.numel():
        return
    grad = grad.contiguous()
    with torch.cuda.device_of(param):
        _adam_polyak_kernel[(triton.cdiv(param.numel(), _BLOCK),)](
            param, grad, exp_avg, exp_avg_sq, target, step,
            float(lr), (1.0 - beta1, 1.0 - beta2), (_log(beta1), _log(beta2)), float(eps), float(weight_decay),
            float(decay_steps or 1), float(tau), param.numel(),
            COSINE=decay_steps is not None, HAS_TARGET=target is not None, BLOCK=_BLOCK,
        )  # fmt: skip


@_adam_polyak.register_fake
def _(*args: Any) -> None:
    return None


@_adam_polyak.register_vmap
def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[None, None]:
    """One launch a slice: a mapped buffer may have any layout, and a mapped counter differs from slice to slice."""
    mutated = {"param": 0, "exp_avg": 2, "exp_avg_sq": 3, "target": 5}
    shared = [name for name, at in mutated.items() if isinstance(args[at], Tensor) and in_dims[at] is None]
    if shared:
        raise ValueError(f"adam_polyak_ writes {', '.join(shared)}: expected it mapped as the other arguments are.")
    for index in range(info.batch_size):
        _adam_polyak(*(arg if dim is None else arg.select(dim, index) for arg, dim in zip(args, in_dims)))
    return None, None


def adam_polyak_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_steps: int | None = None,
    target: Tensor | None = None,
    tau: float = 0.005,
) -> None:
    """``torchrl_smore.functional.optim.adam_polyak_`` in one launch; arguments and equations are its own.

    Elementwise, so buffers of several seeds may be stacked, ``[K, N]``, with one counter. The bias corrections are
    taken without the cancellation that costs the reference up to 3e-5 of an early step.

    Args:
        param: contiguous, shape ``[*]``, float32; written.
        grad: shape ``[*]``, float32.
        exp_avg: contiguous, shape ``[*]``, float32; written.
        exp_avg_sq: contiguous, shape ``[*]``, float32; written.
        step: updates done before this one, one integer on the same device; read by the kernel, never by the host.
        lr: learning rate, at least 0.
        betas: decay rates of the moments, in ``[0, 1)``.
        eps: added to the denominator, positive.
        weight_decay: decoupled decay, at least 0.
        decay_steps: length of the cosine decay in updates, positive; ``None`` keeps ``lr``.
        target: contiguous, shape ``[*]``, float32; written. ``None`` has no target.
        tau: Polyak rate, in ``(0, 1]``.

    Raises:
        ValueError: for shapes or devices that differ, a written buffer that is not contiguous, a counter of more than
            one element, or a constant outside its range.
        TypeError: for a buffer that is not float32 or a counter that is not an integer.
    """
    buffers = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if target is not None:
        buffers["target"] = target
    for name, buffer in buffers.items():
        if buffer.dtype != torch.float32:
            raise TypeError(f"expected {name} in float32, got {buffer.dtype}.")
        if buffer.shape != param.shape or buffer.device != param.device:
            expected, got = f"{list(param.shape)} on {param.device}", f"{list(buffer.shape)} on {buffer.device}"
            raise ValueError(f"expected {name} of the shape of param, {expected}, got {got}.")
        if name != "grad" and not buffer.is_contiguous():
            raise ValueError(f"{name} is written in place: expected it contiguous, got strides {buffer.stride()}.")
    if step.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"expected step as an integer, got {step.dtype}.")
    if step.numel() != 1 or step.device != param.device:
        raise ValueError(f"expected one step on {param.device}, got shape {list(step.shape)} on {step.device}.")
    if not (0.0 <= betas[0] < 1.0 and 0.0 <= betas[1] < 1.0):
        raise ValueError(f"betas must lie in [0, 1), got {betas}.")
    for name, number, fits in (
        ("lr must be at least 0", lr, 0.0 <= lr < math.inf),
        ("eps must be positive", eps, 0.0 < eps < math.inf),
        ("weight_decay must be at least 0", weight_decay, 0.0 <= weight_decay < math.inf),
    ):
        if not fits:
            raise ValueError(f"{name} and finite, got {number}.")
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"tau must lie in (0, 1], got {tau}.")
    if decay_steps is not None and decay_steps < 1:
        raise ValueError(f"decay_steps must be positive, got {decay_steps}.")
    _adam_polyak(
        param.detach(),
        grad.detach(),
        exp_avg,
        exp_avg_sq,
        step,
        target,
        lr,
        *betas,
        eps,
        weight_decay,
        decay_steps,
        tau,
    )
