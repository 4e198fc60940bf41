"""A linear layer, with its ReLU, on the fastest matrix product that PyTorch has for the CPU at hand."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from torchrl_smore._errors import unknown_name

Matmul = Literal["auto", "torch", "onednn"]
_MATMULS = get_args(Matmul)
_WIDE = 16  # outputs from which on oneDNN gains anything
_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False, matmul: Matmul = "auto") -> Tensor:
    r"""Affine map :math:`x W^\top + b`, and :math:`\max(\cdot, 0)` of it where asked.

    Differentiable any number of times in reverse mode, and works under ``torch.vmap``, ``torch.func`` and
    ``torch.compile``; in forward mode (``torch.func.jvp``) with ``matmul="torch"`` alone.

    Args:
        x: shape ``[*B, I]``.
        weight: shape ``[O, I]``, same dtype and device.
        bias: shape ``[O]``, same dtype and device.
        relu: whether to apply a ReLU, which leaves NaN as it is.
        matmul: ``"torch"`` is :func:`torch.nn.functional.linear`; ``"onednn"`` calls oneDNN for the product and for
            both products of its gradient; ``"auto"`` is ``"onednn"`` for float32 and bfloat16 and 16 outputs or more
            on a CPU where :func:`onednn_is_faster`, else ``"torch"``, and no product at all for one output in a
            compiled graph on a CPU, which fuses the sum with what surrounds it. With ``"auto"``, bfloat16 goes
            through :func:`widened`.

    Returns:
        Shape ``[*B, O]``. The two backends add in another order and agree to rounding, not bit for bit.

    Raises:
        ValueError: for another ``matmul``.
        RuntimeError: for ``"onednn"`` where PyTorch has none, the tensors are not on a CPU, of another dtype than
            float32 and bfloat16, or they are bfloat16 and oneDNN has no products of that for this CPU.
    """
    if matmul not in _MATMULS:
        raise unknown_name("matmul", matmul, _MATMULS)
    on_cpu = x.device.type == "cpu"
    if matmul == "onednn" and not (on_cpu and _HAS_ONEDNN):
        raise RuntimeError(
            f"matmul='onednn' needs CPU tensors and a PyTorch with oneDNN, got a {x.device.type} tensor."
        )
    if matmul == "onednn" and x.dtype not in (torch.float32, torch.bfloat16):
        raise RuntimeError(f"matmul='onednn' needs float32 or bfloat16, got {x.dtype}: take matmul='torch'.")
    if matmul == "onednn" and x.dtype == torch.bfloat16 and not _ONEDNN_TAKES_BF16:
        raise RuntimeError(
            "matmul='onednn' of bfloat16 needs a CPU that oneDNN has such products for (on x86, one with AVX-512): "
            "take matmul='auto', or float32."
        )
    if matmul == "auto" and on_cpu and x.dtype == torch.bfloat16 and not has_bf16_products():
        return widened(partial(linear, relu=relu), x, weight, bias)
    if on_cpu and weight.shape[0] == 1 and matmul == "auto" and torch.compiler.is_compiling():
        # a graph does one column's products and their gradients with the operations beside them
        return _one_column(x, weight, bias, relu)
    fast = on_cpu and onednn_is_faster() and x.dtype in (torch.float32, torch.bfloat16) and x.numel() > 0
    fast = fast and weight.shape[0] >= _WIDE
    # an empty product is none that oneDNN has
    if (matmul == "onednn" and x.numel() > 0) or (matmul == "auto" and fast):
        return _onednn(x, weight, bias, relu)
    out = F.linear(x, weight, bias)
    return out.relu() if relu else out


def _one_column(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    out = (x * weight).sum(-1, keepdim=True) + bias
    return out.relu() if relu else out


def widened(operation: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``operation(*inputs)``, in float32 and rounded where inputs are bfloat16 and not :func:`has_bf16_products`.

    Both round once, at the end: inputs are the same numbers in float32, and sums are float32 in oneDNN as well. What
    PyTorch does there by itself takes three to ten times as long (``docs/performance.md``).

    Args:
        operation: a sum of products, differentiable.
        *inputs: its tensors, all of one dtype and device; what is not bfloat16 or not on a CPU passes as it is.

    Returns:
        What ``operation`` returns, in the dtype of the inputs.
    """
    if inputs[0].device.type != "cpu" or inputs[0].dtype != torch.bfloat16 or has_bf16_products():
        return operation(*inputs)
    return operation(*(value.float() for value in inputs)).to(torch.bfloat16)


def has_bf16_products() -> bool:
    """Whether this CPU multiplies bfloat16, and oneDNN, and with it PyTorch, asks it to: on x86, with AVX512-BF16.

    With AVX-512 alone oneDNN converts number by number, in a third of the speed of float32.
    """
    return _HAS_BF16_PRODUCTS


def onednn_is_faster() -> bool:
    """Whether oneDNN beats the BLAS that PyTorch calls for float32: with AVX-512 on an x86 CPU that is not Intel's.

    MKL takes its AVX2 code there and oneDNN AVX-512, on a Zen 5 core at twice the rate (``docs/performance.md``).
    """
    return _ONEDNN_IS_FASTER


def _cpu_vendor() -> str:
    """``vendor_id`` of the first processor; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    with info.open() as lines:
        found = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
        return next(found, "")


# once, and not in a call: neither an answer of oneDNN nor reading a file can be traced into a graph
_ONEDNN_TAKES_BF16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_HAS_BF16_PRODUCTS = _ONEDNN_TAKES_BF16 and (
    platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_avx512_bf16_supported()
)
_ONEDNN_IS_FASTER = (
    _HAS_ONEDNN
    and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and _cpu_vendor() not in ("GenuineIntel", "")
)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return _differentiable(x, weight, bias, relu)
    return _forward(x, weight, bias, relu)


# opaque to dynamo, which would trace into the function and lose its gradient under torch.func.grad
@torch.compiler.allow_in_graph
def _differentiable(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    # a function with a setup_context, which functorch asks for, inspects its signature in every call: 15 us
    kind = _FunctorchLinear if torch._C._are_functorch_transforms_active() else _Linear
    out: Tensor = kind.apply(x, weight, bias, relu)  # type: ignore[no-untyped-call]
    return out


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    out: Tensor
    if torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter):
        out = torch.ops.torchrl_smore.onednn_linear(x, weight, bias, relu)
    else:
        out = _onednn_linear(x, weight, bias, relu)
    return out


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
    x, weight, _, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight, output = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    return (
        _onednn(grad, weight.t(), None, False) if needs_x else None,
        _weight_gradient(rows, inputs) if needs_weight else None,
        rows.sum(0) if needs_bias else None,
        None,
    )


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``grad.T @ x``."""
    if grad.dtype == torch.bfloat16:
        # a plain product is oneDNN's already, and in this orientation the faster one
        return grad.t() @ x
    # oneDNN wants the wider side as columns, and rows contiguous: here a compiled graph makes them with other work
    if grad.shape[-1] > x.shape[-1]:
        return _onednn(x.t().contiguous(), grad.t(), None, False).t()
    return _onednn(grad.t().contiguous(), x.t(), None, False)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        out = _forward(x, weight, bias, relu)
        _save(ctx, (x, weight, bias, relu), out)
        return out

    backward = staticmethod(_backward)


class _FunctorchLinear(torch.autograd.Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        # one product after the other: a batched one would be left to MKL
        members = [
            [item if dim is None else item.select(dim, k) for item, dim in zip(inputs, in_dims)]
            for k in range(info.batch_size)
        ]
        return torch.stack([_onednn(*member) for member in members]), 0


_library = torch.library.Library("torchrl_smore", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "onednn_linear(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor"
)


# an operator of our own around PyTorch's, whose Inductor lowering insists on constant weights
@torch.library.impl(_library, "onednn_linear", "CPU")
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    # oneDNN's own ReLU makes 0 of NaN, so that a network of NaN would have finite losses
    return out.relu_() if relu else out


@torch.library.register_fake("torchrl_smore::onednn_linear", lib=_library)
def _output(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
