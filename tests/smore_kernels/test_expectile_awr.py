"""The fused value loss and actor weights against the functions that they fuse, and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")
import smore_kernels
from smore_kernels.expectile_awr import _expectile_awr
from torchrl_smore.functional import losses

SHAPES = [(1,), (1023,), (2049,), (3, 1025)]  # one row, below a block, across blocks, seeds
CONSTANTS = {"expectile": 0.8, "temperature": 3.0, "weight_clip": 5.0}


def make_inputs(shape, device, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    # exponents of about -9 to 9 against a limit of log 5: the clip binds on a part of the rows
    return tuple(torch.randn(2, *shape, device=device).to(dtype))


def reference(score, value, expectile, temperature, weight_clip):
    """One call a seed; in the order of the kernel's outputs."""
    options = {"expectile": expectile, "temperature": temperature, "weight_clip": weight_clip}
    size = value.shape[-1]
    fits = [losses.expectile_awr(s, v, **options) for s, v in zip(score.reshape(-1, size), value.reshape(-1, size))]
    each = [(fit.loss.mean(), *fit.weight, fit.mean_value) for fit in fits]
    return [torch.stack(out).reshape([*value.shape[:-1], *out[0].shape]) for out in zip(*each)]


def run(function, score, value, constants=CONSTANTS, factor=3.0):
    # a factor on the loss catches a backward that ignores grad_output
    value = value.detach().clone().requires_grad_()
    loss, *rest = function(score, value, **constants)
    (factor * loss).sum().backward()
    return [loss.detach(), *rest, value.grad]


def assert_agree(ours, expected, rtol, atol):
    # a row's gradient is its term's over the number of rows: measured in units of the term
    rows = ours[-1].shape[-1]
    pairs = [*zip(ours[:-1], expected[:-1]), (ours[-1].double() * rows, expected[-1].double() * rows)]
    for at, (ours_one, expected_one) in enumerate(pairs):
        torch.testing.assert_close(
            ours_one.double(),
            expected_one.double(),
            rtol=rtol,
            atol=atol,
            msg=lambda text, at=at: f"output {at}: {text}",
        )


def test_numbers_worked_by_hand(kernel_device):
    score = torch.tensor([-2.0, 0.5, 3.0, math.log(2.0)], device=kernel_device)
    value = torch.tensor([0.0, 0.5, 0.0, 0.0], device=kernel_device)
    loss, weight, advantage, mean_weight, clipped, mean_value, grad = run(
        smore_kernels.expectile_awr,
        score,
        value,
        {"expectile": 0.9, "temperature": 2.0, "weight_clip": 20.0},
        factor=1.0,
    )
    log2 = math.log(2.0)
    assert loss.item() == pytest.approx((0.1 * 4 + 0.9 * 9 + 0.9 * log2**2) / 4)
    # -2 w u / 4
    torch.testing.assert_close(grad.cpu(), torch.tensor([0.4, 0.0, -5.4, -1.8 * log2]) / 4)
    torch.testing.assert_close(weight.cpu(), torch.tensor([math.exp(-4.0), 1.0, 20.0, 4.0]))
    assert advantage.item() == pytest.approx((1.0 + log2) / 4)
    assert mean_weight.item() == pytest.approx((math.exp(-4.0) + 25.0) / 4)
    assert clipped.item() == 0.25
    assert mean_value.item() == 0.125


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_gradient_weights_and_means_match_the_reference_in_float64(shape, kernel_device):
    score, value = make_inputs(shape, kernel_device)
    ours = run(smore_kernels.expectile_awr, score, value)
    expected = run(reference, score.double(), value.double())
    assert {tensor.dtype for tensor in ours} == {torch.float32}
    # float32: 2^-24 a rounding, exp multiplies that of its argument by up to 9
    assert_agree(ours, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.float32, torch.bfloat16)], ids=str
)
def test_half_precision_matches_the_float32_reference_at_the_same_inputs(dtypes, kernel_device):
    score, value = make_inputs((1023,), kernel_device)
    score, value = score.to(dtypes[0]), value.to(dtypes[1])
    ours = run(smore_kernels.expectile_awr, score, value)
    expected = run(reference, score.float(), value.float())
    assert ours[0].dtype == ours[1].dtype == torch.promote_types(*dtypes)
    assert ours[-1].dtype == dtypes[1]
    # arithmetic is float32; a gradient is rounded twice, half an eps each, and Triton's interpreter cuts bfloat16 off
    # where a GPU rounds it: a whole eps for the first
    assert_agree(ours, expected, rtol=1.5 * torch.finfo(dtypes[1]).eps, atol=1e-4)


@pytest.mark.parametrize("weight_clip", [1e-3, 100.0, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_any_clip_and_a_temperature_of_zero(weight_clip, temperature, kernel_device):
    score, value = make_inputs((33,), kernel_device)
    constants = {"expectile": 0.5, "temperature": temperature, "weight_clip": weight_clip}
    ours, expected = (run(f, score, value, constants) for f in (smore_kernels.expectile_awr, reference))
    assert_agree(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_huge_advantage_gives_the_clip_and_a_nan_shows(kernel_device):
    score, value = torch.tensor([1e15, math.nan, 0.0], device=kernel_device), torch.zeros(3, device=kernel_device)
    loss, weight, advantage, mean_weight, clipped, mean_value, grad = run(smore_kernels.expectile_awr, score, value)
    assert weight[0] == 5.0
    assert weight.isnan().tolist() == grad.isnan().tolist() == [False, True, False]
    assert loss.isnan()
    assert advantage.isnan()
    assert mean_weight.isnan()
    assert clipped.item() == pytest.approx(1 / 3)
    assert mean_value.item() == 0.0


def test_without_a_temperature_there_are_no_weights(kernel_device):
    score, value = make_inputs((2, 33), kernel_device)
    ours, full = (smore_kernels.expectile_awr(score, value, expectile=0.8, temperature=t) for t in (None, 3.0))
    assert ours.weight is None
    for name in ("loss", "mean_advantage", "mean_value"):
        torch.testing.assert_close(getattr(ours, name), getattr(full, name), rtol=0, atol=0)


def test_coefficients_in_tensors_are_read_there_one_for_all_or_one_a_seed(kernel_device):
    score, value = make_inputs((3, 33), kernel_device)
    expectile = torch.tensor([0.5, 0.7, 0.9], device=kernel_device)
    temperature = torch.tensor(2.0, device=kernel_device, dtype=torch.float64)
    ours = run(smore_kernels.expectile_awr, score, value, {"expectile": expectile, "temperature": temperature})
    for k, tau in enumerate((0.5, 0.7, 0.9)):
        one = run(smore_kernels.expectile_awr, score[k], value[k], {"expectile": tau, "temperature": 2.0})
        for all_seeds, expected in zip(ours, one):
            torch.testing.assert_close(all_seeds[k], expected, rtol=0, atol=0)


def test_half_precision_gradient_does_not_underflow_before_the_loss_scale(kernel_device):
    score = torch.full((4096,), 1e-4, dtype=torch.float16, device=kernel_device)
    *_, grad = run(smore_kernels.expectile_awr, score, torch.zeros_like(score), factor=32768.0)
    # -2 * 0.8 * 1e-4 / 4096 is below the smallest positive float16
    torch.testing.assert_close(grad.float(), torch.full_like(grad, -1.28e-3).float(), rtol=2e-3, atol=0)


def test_strided_and_shared_inputs_are_read_through_their_strides(kernel_device):
    score, value = make_inputs((3, 33), kernel_device)
    expected = run(smore_kernels.expectile_awr, score, value)
    wide = torch.cat([score, value], 1)
    sliced = run(smore_kernels.expectile_awr, wide[:, :33], value.T.contiguous().T)
    shared = run(smore_kernels.expectile_awr, score[:1].expand(3, -1), value)
    for at, (ours, one) in enumerate(zip(sliced, expected)):
        torch.testing.assert_close(ours, one, rtol=0, atol=0)
        torch.testing.assert_close(shared[at][0], one[0], rtol=0, atol=0)


def test_repeated_calls_agree_to_the_bit(kernel_device):
    score, value = make_inputs((5000,), kernel_device)
    first, second = (run(smore_kernels.expectile_awr, score, value) for _ in range(2))
    assert_agree(first, second, rtol=0, atol=0)


def test_vmap_over_any_axis_and_over_a_coefficient_equals_one_call_each(kernel_device):
    score, value = make_inputs((3, 33), kernel_device)
    temperature = torch.tensor([0.5, 1.0, 2.0], device=kernel_device)
    each = [
        run(smore_kernels.expectile_awr, s, v, {"expectile": 0.8, "temperature": t})
        for s, v, t in zip(score, value, temperature)
    ]

    def mapped(score, value, temperature):
        one = lambda s, v, t: tuple(smore_kernels.expectile_awr(s, v, expectile=0.8, temperature=t))  # noqa: E731
        return torch.vmap(one, (1, 0, 0))(score.T, value, temperature)

    ours = run(mapped, score, value, {"temperature": temperature})
    for at, tensor in enumerate(ours):
        torch.testing.assert_close(tensor, torch.stack([one[at] for one in each]), rtol=0, atol=0)


def test_composes_with_func_grad(kernel_device):
    score, value = make_inputs((3, 33), kernel_device)

    def gradient(value):
        return torch.func.grad(lambda v: smore_kernels.expectile_awr(score[0], v, **CONSTANTS).loss)(value)

    ours = torch.vmap(gradient)(value)
    for k in range(3):
        torch.testing.assert_close(ours[k], run(smore_kernels.expectile_awr, score[0], value[k], factor=1.0)[-1])


@pytest.mark.parametrize("vmap", [False, True])
def test_compiles_in_one_graph(vmap, kernel_device):
    score, value = make_inputs((2, 33), kernel_device)
    constants = {"expectile": torch.tensor(0.8, device=kernel_device), "temperature": 3.0, "weight_clip": 5.0}

    def fused(score, value, **constants):
        if vmap:
            return torch.vmap(lambda s, v: tuple(smore_kernels.expectile_awr(s, v, **constants)))(score, value)
        return tuple(smore_kernels.expectile_awr(score, value, **constants))

    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    ours, expected = (run(f, score, value, constants) for f in (compiled, fused))
    assert_agree(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_weight", [False, True])
def test_the_operator_is_registered_as_torch_library_expects(with_weight, kernel_device):
    score, value = make_inputs((3, 33), kernel_device)
    coefficients = torch.rand(2, 3, device=kernel_device)
    torch.library.opcheck(
        _expectile_awr, (score, value, coefficients[0], coefficients[1] if with_weight else None, 5.0)
    )


def test_a_second_derivative_is_an_error_and_not_zero(kernel_device):
    score, value = make_inputs((33,), kernel_device)
    value.requires_grad_()
    (gradient,) = torch.autograd.grad(
        smore_kernels.expectile_awr(score, value, **CONSTANTS).loss, value, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


def test_only_the_loss_carries_gradient_and_only_to_the_value(kernel_device):
    score, value = (tensor.requires_grad_() for tensor in make_inputs((33,), kernel_device))
    loss, *constants = smore_kernels.expectile_awr(score, value, **CONSTANTS)
    assert not any(tensor.requires_grad for tensor in constants)
    loss.backward()
    assert score.grad is None
    assert value.grad is not None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"score": torch.zeros(4)}, ValueError, r"one non-empty shape .* got \[4\] on cpu, \[5\] on cpu"),
        ({"score": torch.zeros(0), "value": torch.zeros(0)}, ValueError, "non-empty"),
        ({"value": torch.zeros(5, dtype=torch.float64)}, TypeError, "value in float32, .* got torch.float64"),
        ({"expectile": 1.0}, ValueError, r"expectile must lie in \(0, 1\), got 1.0"),
        ({"expectile": torch.zeros(2)}, ValueError, r"expectile of shape \[\] or \[\], got \[2\]"),
        ({"expectile": torch.zeros((), device="meta")}, ValueError, "expectile on cpu as the rows are, got it on meta"),
        ({"temperature": torch.zeros((), device="meta")}, ValueError, "temperature on cpu .* got it on meta"),
        ({"temperature": -0.1}, ValueError, "temperature must not be negative, got -0.1"),
        ({"weight_clip": 0.0}, ValueError, "weight_clip must be positive, got 0.0"),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        smore_kernels.expectile_awr(**{"score": torch.zeros(5), "value": torch.zeros(5), **CONSTANTS, **change})
