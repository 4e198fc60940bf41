"""The fused optimiser step against the reference, AdamW in float64, and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")
import smore_kernels
from smore_kernels import adam_polyak as module
from torchrl_smore.functional.optim import adam_polyak_ as reference

OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "betas": (0.0, 0.5), "eps": 1e-3},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "decay_steps": 7, "weight_decay": 0.3},
]


def make_buffers(shape, device) -> list[torch.Tensor]:
    param, grad, exp_avg, target = torch.randn(4, *shape, device=device)
    return [param, grad, exp_avg, torch.rand(shape, device=device), target]


def run(function, buffers, step, tau=0.005, with_target=True, **options):
    """What is written: parameters, both moments, the target."""
    param, grad, exp_avg, exp_avg_sq, target = (buffer.clone() for buffer in buffers)
    counter = torch.tensor(step, device=param.device)
    kept = grad.clone()
    function(param, grad, exp_avg, exp_avg_sq, counter, target=target if with_target else None, tau=tau, **options)
    assert counter.item() == step
    torch.testing.assert_close(grad, kept, rtol=0, atol=0, equal_nan=True)
    return [param, exp_avg, exp_avg_sq, target]


@pytest.mark.parametrize("step", [0, 3, 6, 7, 5000])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(1,), (1023,), (3, 1025)], ids=str)
def test_what_is_written_equals_the_reference(shape, options, step, kernel_device):
    buffers = make_buffers(shape, kernel_device)
    ours, expected = (run(f, buffers, step, **options) for f in (smore_kernels.adam_polyak_, reference))
    # the reference takes 1 - 0.999**t in float32: 6e-8 of 1e-3, half of it after the root, of a step lr |m| / sqrt(v)
    rtol = 3e-5 if step < 10 else 1e-6
    for ours_one, expected_one in zip(ours, expected):
        torch.testing.assert_close(ours_one, expected_one, rtol=rtol, atol=rtol)


def test_ten_steps_equal_those_of_torch_in_float64_with_its_scheduler(kernel_device):
    ours, *_ = make_buffers((2, 37), kernel_device)
    theirs = torch.nn.Parameter(ours.double())
    optimizer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * min(t / 7, 1.0))))
    m, v, target, mean = torch.zeros_like(ours), torch.zeros_like(ours), ours.clone(), ours.double()
    for step in range(10):
        grad = torch.randn_like(ours)
        theirs.grad = grad.double()
        optimizer.step()
        schedule.step()
        mean = 0.9 * mean + 0.1 * theirs.detach()
        options = {"lr": 0.01, "weight_decay": 0.1, "decay_steps": 7, "target": target, "tau": 0.1}
        smore_kernels.adam_polyak_(ours, grad, m, v, torch.tensor(step, device=kernel_device), **options)
    # parameters of order 1 in float32, ten steps
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.double(), mean, rtol=1e-6, atol=1e-6)


def test_the_first_step_is_the_learning_rate_to_float32(kernel_device):
    param, grad, m, v = torch.tensor([[0.0, 0.0], [1e-3, -7.0], [0.0, 0.0], [0.0, 0.0]], device=kernel_device)
    smore_kernels.adam_polyak_(param, grad, m, v, torch.tensor(0, device=kernel_device), lr=0.1, eps=1e-30)
    torch.testing.assert_close(param.cpu(), torch.tensor([-0.1, 0.1]), rtol=3e-7, atol=0)


def test_a_tau_of_one_copies_and_without_a_target_none_is_written(kernel_device):
    buffers = make_buffers((5,), kernel_device)
    buffers[-1] *= 1e6
    param, _, _, target = run(smore_kernels.adam_polyak_, buffers, 2, lr=0.1, tau=1.0)
    torch.testing.assert_close(target, param, rtol=0, atol=0)
    *_, target = run(smore_kernels.adam_polyak_, buffers, 2, lr=0.1, with_target=False)
    torch.testing.assert_close(target, buffers[-1], rtol=0, atol=0)


def test_a_nan_gradient_shows_in_everything_that_is_written(kernel_device):
    buffers = make_buffers((5,), kernel_device)
    buffers[1][3] = math.nan
    for written in run(smore_kernels.adam_polyak_, buffers, 2, lr=0.1, decay_steps=2):
        assert written.isnan().nonzero().flatten().tolist() == [3]


def test_a_strided_gradient_is_read_and_a_strided_buffer_refused(kernel_device):
    buffers = make_buffers((6, 5), kernel_device)
    strided = [buffers[0], buffers[1].T.contiguous().T, *buffers[2:]]
    expected = run(smore_kernels.adam_polyak_, buffers, 2, lr=0.1)
    # clone keeps the strides
    for ours, one in zip(run(smore_kernels.adam_polyak_, strided, 2, lr=0.1), expected):
        torch.testing.assert_close(ours, one, rtol=0, atol=0)
    with pytest.raises(ValueError, match="exp_avg is written in place: expected it contiguous"):
        run(smore_kernels.adam_polyak_, [*buffers[:2], buffers[2].T.contiguous().T, *buffers[3:]], 2, lr=0.1)


@pytest.mark.parametrize("mapped_step", [False, True])
def test_vmap_over_buffers_in_any_axis_equals_one_call_each(mapped_step, kernel_device):
    buffers = make_buffers((3, 40), kernel_device)
    steps = torch.tensor([0, 5, 9] if mapped_step else 4, device=kernel_device)
    expected = [
        run(smore_kernels.adam_polyak_, [b[k] for b in buffers], int(steps[k] if mapped_step else steps), lr=0.1)
        for k in range(3)
    ]
    param, grad, m, v, target = (buffer.clone() for buffer in buffers)

    def update(param, grad, m, v, step, target):
        smore_kernels.adam_polyak_(param, grad, m, v, step, lr=0.1, target=target)
        return param

    grad = grad.T.contiguous()
    torch.vmap(update, (0, 1, 0, 0, 0 if mapped_step else None, 0))(param, grad, m, v, steps, target)

    for at, written in enumerate((param, m, v, target)):
        torch.testing.assert_close(written, torch.stack([one[at] for one in expected]), rtol=0, atol=0)


def test_vmap_refuses_to_write_what_the_slices_share(kernel_device):
    param, grad, m, v = torch.zeros(4, 3, 5, device=kernel_device)
    step = torch.tensor(0, device=kernel_device)
    with pytest.raises(ValueError, match="writes exp_avg: expected it mapped"):
        torch.vmap(lambda p, g, s: smore_kernels.adam_polyak_(p, g, m[0], s, step, lr=0.1) or p)(param, grad, v)


@pytest.mark.parametrize("decay_steps", [None, 7])
def test_lives_in_one_compiled_graph_and_writes_there(decay_steps, kernel_device):
    buffers = make_buffers((1030,), kernel_device)

    def update(param, grad, m, v, step, **options):
        # work around the operator, so that the graph has what to order
        smore_kernels.adam_polyak_(param, 2.0 * grad, m, v, step, **options)
        step += 1
        return param.sum()

    expected = run(
        smore_kernels.adam_polyak_, [buffers[0], 2.0 * buffers[1], *buffers[2:]], 3, lr=0.1, decay_steps=decay_steps
    )
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    param, grad, m, v, target = (buffer.clone() for buffer in buffers)
    step = torch.tensor(3, device=kernel_device)
    compiled(param, grad, m, v, step, lr=0.1, decay_steps=decay_steps, target=target)
    assert step.item() == 4
    for ours, one in zip((param, m, v, target), expected):
        torch.testing.assert_close(ours, one, rtol=0, atol=0)


@pytest.mark.parametrize("with_target", [False, True])
def test_the_operator_is_registered_as_torch_library_expects(with_target, kernel_device):
    param, grad, m, v, target = make_buffers((17,), kernel_device)
    step = torch.tensor(3, device=kernel_device)
    constants = (0.1, 0.9, 0.999, 1e-8, 0.0, 7, 0.005)
    torch.library.opcheck(module._adam_polyak, (param, grad, m, v, step, target if with_target else None, *constants))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grad": torch.zeros(4)}, ValueError, r"grad of the shape of param, \[5\] on cpu, got \[4\]"),
        ({"target": torch.zeros(5, dtype=torch.float64)}, TypeError, "target in float32, got torch.float64"),
        ({"step": torch.zeros(2, dtype=torch.int64)}, ValueError, r"one step on cpu, got shape \[2\]"),
        ({"step": torch.tensor(1.0)}, TypeError, "step as an integer, got torch.float32"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"lr": -1.0}, ValueError, "lr must be at least 0 and finite, got -1.0"),
        ({"lr": float("nan")}, ValueError, "lr must be at least 0 and finite, got nan"),
        ({"eps": 0.0}, ValueError, "eps must be positive and finite, got 0.0"),
        ({"weight_decay": -5.0}, ValueError, "weight_decay must be at least 0 and finite, got -5.0"),
        ({"tau": 0.0}, ValueError, r"tau must lie in \(0, 1\], got 0.0"),
        ({"decay_steps": 0}, ValueError, "decay_steps must be positive, got 0"),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused(change, error, message):
    buffers = {name: torch.zeros(5) for name in ("param", "grad", "exp_avg", "exp_avg_sq")}
    with pytest.raises(error, match=message):
        smore_kernels.adam_polyak_(**{**buffers, "step": torch.tensor(0), "lr": 0.1, **change})
