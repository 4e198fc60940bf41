"""oneDNN's linear layer gives what PyTorch's gives, under every transform."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from torchrl_smore.modules import linear as module
from torchrl_smore.modules.linear import has_bf16_products, linear, onednn_is_faster, widened

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def inputs(*batch, num_inputs=5, num_outputs=7):
    x = torch.randn(*batch, num_inputs, requires_grad=True)
    weight = torch.randn(num_outputs, num_inputs, requires_grad=True)
    return x, weight, torch.randn(num_outputs, requires_grad=True)


def loss(x, weight, bias, relu, matmul):
    # its gradient is not 0 where a ReLU is
    return (linear(x, weight, bias, relu=relu, matmul=matmul) + 0.5).pow(3).sum()


def test_the_layer_is_an_affine_map_and_its_positive_part():
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0], [-4.0, 1.0]])
    bias = torch.tensor([0.5, 1.0])
    for matmul in ("auto", "torch", "onednn"):
        assert linear(x, weight, bias, matmul=matmul).tolist() == [[1.5, -1.0]]
        assert linear(x, weight, bias, relu=True, matmul=matmul).tolist() == [[1.5, 0.0]]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [((9,), 5, 7), ((9,), 7, 5), ((2, 3), 5, 7), ((), 5, 7)], ids=str)
def test_value_gradients_and_second_derivatives_are_those_of_pytorch(shape, relu):
    batch, num_inputs, num_outputs = shape
    args = inputs(*batch, num_inputs=num_inputs, num_outputs=num_outputs)

    def gradients(matmul):
        first = torch.autograd.grad(loss(*args, relu, matmul), args, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return [*first, *torch.autograd.grad(penalty, args)]

    torch.testing.assert_close(linear(*args, relu=relu, matmul="onednn"), linear(*args, relu=relu, matmul="torch"))
    for ours, expected in zip(gradients("onednn"), gradients("torch")):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


def test_products_of_bf16_are_those_of_the_processor():
    info = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.exists():
        pytest.skip("reads the flags of an x86 processor under Linux")
    assert has_bf16_products() == ("avx512_bf16" in info.read_text().split())


@pytest.fixture(params=["auto", "onednn"])
def bf16_matmul(request, monkeypatch):
    """Both ways to a product of bfloat16: oneDNN's, where this CPU has it, and that in float32, as without it."""
    if request.param == "onednn" and not has_bf16_products():
        pytest.skip("oneDNN has no products of bfloat16 for this CPU")
    monkeypatch.setattr(module, "_HAS_BF16_PRODUCTS", request.param == "onednn")
    return request.param


def test_bf16_gradients_are_those_of_pytorch(bf16_matmul):
    args = [t.detach().bfloat16().requires_grad_() for t in inputs(9)]
    ours, expected = (torch.autograd.grad(loss(*args, True, matmul), args) for matmul in (bf16_matmul, "torch"))
    for a, b in zip(ours, expected):
        assert a.dtype == torch.bfloat16
        # 8 bits of mantissa, cubes, and sums of 9 or 7 terms in another order
        torch.testing.assert_close(a, b, rtol=4e-2, atol=4e-2 * float(b.detach().abs().max()))


def test_without_products_of_bf16_the_sum_is_rounded_once(monkeypatch):
    monkeypatch.setattr(module, "_HAS_BF16_PRODUCTS", False)
    # 8 bits hold 1 and 1/256 but not their sum; rounded term by term, 256 of them would add nothing
    x, weight = torch.full((1, 256), 2.0**-8), torch.ones(1, 256)
    args = [t.bfloat16() for t in (x, weight, torch.ones(1))]
    out = linear(*args)
    assert out.dtype == torch.bfloat16
    assert out.item() == 2.0
    # the factors are the rounded ones: 1 + 2**-9 is 1 in bfloat16
    assert linear(torch.full((1, 1), 1 + 2.0**-9).bfloat16(), args[1][:, :1], args[2] * 0).item() == 1.0


def test_what_is_widened_is_bf16_alone_and_only_without_its_products(monkeypatch):
    seen = []

    def operation(a, b):
        seen.append((a.dtype, b.dtype))
        return a + b

    half, full = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(module, "_HAS_BF16_PRODUCTS", has)
        assert widened(operation, half, half).dtype == torch.bfloat16
        assert seen.pop() == (expected, expected)
    assert widened(operation, full, full).dtype == torch.float32
    widened(operation, *(half.to("meta"),) * 2)
    assert seen == [(torch.float32,) * 2, (torch.bfloat16,) * 2]


def test_onednn_is_refused_where_it_has_no_product_of_bf16(monkeypatch):
    monkeypatch.setattr(module, "_ONEDNN_TAKES_BF16", False)
    with pytest.raises(RuntimeError, match=r"of bfloat16 needs a CPU .* AVX-512.*: take matmul='auto'"):
        linear(*(t.detach().bfloat16() for t in inputs(2)), matmul="onednn")


@pytest.mark.parametrize(
    ("relu", "backend"),
    [(False, None), (True, None), (True, "aot_eager"), pytest.param(True, "inductor", marks=pytest.mark.slow)],
)
def test_vmap_and_functional_gradients_agree_in_eager_and_in_one_graph(relu, backend):
    x, *_ = inputs(9)
    weights, biases = torch.randn(3, 7, 5), torch.randn(3, 7)

    def stacked(matmul):
        grad = torch.func.grad(lambda w, b: loss(x.detach(), w, b, relu, matmul), (0, 1))
        return lambda w, b: (*torch.vmap(grad)(w, b), *grad(w[0], b[0]))

    ours = stacked("onednn")
    if backend is not None:
        torch._dynamo.reset()
        ours = torch.compile(ours, backend=backend, fullgraph=True)
    for a, b in zip(ours(weights, biases), stacked("torch")(weights, biases)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_an_unchanged_argument_gets_no_gradient():
    x, weight, bias = inputs(9)
    out = linear(x.detach(), weight, bias.detach(), matmul="onednn")
    (grad,) = torch.autograd.grad(out.sum(), weight)
    torch.testing.assert_close(grad, x.detach().sum(0).expand(7, 5))


def test_auto_takes_onednn_only_where_it_is_faster(monkeypatch):
    args, calls = inputs(9, num_outputs=16), []
    monkeypatch.setattr(module, "_onednn", lambda *arguments: calls.append(arguments))
    for faster, expected in ((False, 0), (True, 1)):
        monkeypatch.setattr(module, "_ONEDNN_IS_FASTER", faster)
        assert onednn_is_faster() is faster
        linear(*args)
        assert len(calls) == expected
    # neither a type that oneDNN has no product for, an empty batch nor a narrow layer reaches it
    assert linear(*(t.double() for t in args)).dtype == torch.float64
    assert linear(args[0][:0], *args[1:]).shape == (0, 16)
    assert linear(*inputs(9, num_outputs=15)).shape == (9, 15)
    assert len(calls) == 1


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch", [(9,), (2, 3), ()], ids=str)
def test_one_output_in_a_graph_has_value_and_gradients_of_the_product_without_one(batch, relu, monkeypatch):
    args = inputs(*batch, num_outputs=1)
    if batch == (9,):
        monkeypatch.setattr(torch.nn.functional, "linear", None)  # nobody calls it
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: loss(*args, relu, "auto"), backend="aot_eager", fullgraph=True)
    ours = torch.autograd.grad(compiled(*args), args)
    monkeypatch.undo()
    for a, b in zip(ours, torch.autograd.grad(loss(*args, relu, "torch"), args)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_names_and_devices_that_cannot_be_are_refused():
    args = inputs(2)
    with pytest.raises(ValueError, match=r"unknown matmul 'onednnn'.*Did you mean 'onednn'"):
        linear(*args, matmul="onednnn")
    with pytest.raises(RuntimeError, match=r"needs CPU tensors.*got a meta tensor"):
        linear(*(t.detach().to("meta") for t in args), matmul="onednn")


@pytest.mark.parametrize("matmul", ["torch", "onednn", "auto"])
@pytest.mark.parametrize("where", ["input", "weight", "bias"])
def test_a_relu_hides_no_nan(matmul, where):
    tensors = {"input": torch.rand(4, 20), "weight": torch.rand(16, 20), "bias": torch.rand(16)}
    tensors[where].flatten()[0] = float("nan")
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    out = linear(*leaves, relu=True, matmul=matmul)
    assert out[0, 0].isnan()
    assert out[1:, 1:].isfinite().all()
    assert (out[1:, 1:] > 0).all()


@pytest.mark.parametrize("matmul", ["torch", "onednn", "auto"])
def test_an_empty_batch_has_an_empty_product(matmul):
    weight, bias = torch.rand(16, 5, requires_grad=True), torch.rand(16)
    out = linear(torch.rand(0, 5), weight, bias, relu=True, matmul=matmul)
    assert out.shape == (0, 16)
    out.sum().backward()
    assert (weight.grad == 0.0).all()


def test_onednn_of_another_dtype_is_refused():
    x = torch.rand(2, 20, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"needs float32 or bfloat16, got torch.float64: take matmul='torch'"):
        linear(x, x, x[:, 0], matmul="onednn")
