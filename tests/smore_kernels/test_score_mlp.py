"""The fused score network against plain torch in float64; widths small, for the interpreter's sake."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")
import smore_kernels
from smore_kernels.score_mlp import _score_mlp
from torchrl_smore._experimental import score_mlp as network
from torchrl_smore.functional.score import ScoreObjective, score_rows

NAMES = ["W1", "b1", "W2", "b2", "w3", "b3"]
# members, rho rows, q rows, width, inputs: one row; below a tile; several tiles, a width that is no power of two
SIZES = [(1, 1, 1, 16, 1), (3, 37, 21, 32, 7), (1, 70, 33, 48, 33)]
CASES = [("in_sample", "pearson_chi2"), ("in_sample", "kl"), ("official", "kl"), ("official_stable", "pearson_chi2")]


def make_objective(formulation="in_sample", divergence="pearson_chi2") -> ScoreObjective:
    return ScoreObjective(formulation, divergence, beta=0.3, gamma=0.9, residual_coef=0.5, max_ratio=5.0)


def make_inputs(members, rows, q_rows, width, inputs, device, lead=()):
    """Batches and layers; every second ReLU is off, residuals over kappa = 0.5 reach the cap."""

    def weight(*shape):
        return (2.0 * torch.rand(*lead, members, *shape, device=device) - 1.0) * shape[-1] ** -0.5

    layers = [
        (weight(width, inputs), weight(width)),
        (weight(width, width), weight(width)),
        (weight(1, width), weight(1)),
    ]
    shapes = (rows, inputs), (rows,), (q_rows, inputs), (q_rows,)
    return [torch.randn(*lead, *shape, device=device) for shape in shapes], [t for layer in layers for t in layer]


def pairs(weights):
    return list(zip(weights[::2], weights[1::2]))


def kernel(objective, batch, weights, bounds=None, precision="fp32"):
    constants = {**objective.constants, "divergence": objective.divergence.name}
    return smore_kernels.score_mlp(
        *batch, pairs(weights), formulation=objective.formulation, bounds=bounds, precision=precision, **constants
    )


def rows_of_reference(objective, batch, weights, bounds=(-math.inf, math.inf), scores=network):
    """Terms of each row over the number of rows, ``[B]`` and ``[Q]``, and the scores."""
    x, next_value, q_x, q_next_value = batch
    score, q_score = scores(x, pairs(weights)), scores(q_x, pairs(weights))
    terms = score_rows(
        objective, score=score, next_value=next_value, q_score=q_score, q_next_value=q_next_value, bounds=bounds
    )
    return [term / term.shape[-1] for term in terms], score, q_score


def reference(*args, **kwargs):
    terms, score, q_score = rows_of_reference(*args, **kwargs)
    return sum(term.sum() for term in terms), score, q_score


def run(function, objective, batch, weights, factor=3.0, **kwargs):
    # a factor on the loss catches a backward that ignores grad_output
    leaves = [weight.detach().clone().requires_grad_() for weight in weights]
    loss, *scores = function(objective, batch, leaves, **kwargs)
    (factor * loss).sum().backward()
    return [loss.detach(), *(score.detach() for score in scores)], [leaf.grad for leaf in leaves]


def doubled(tensors):
    return [tensor.double() for tensor in tensors]


def assert_agree(ours, expected, tol):
    for ours_one, expected_one in zip(ours[0], expected[0]):
        torch.testing.assert_close(ours_one.double(), expected_one.double(), rtol=tol, atol=tol)
    for name, gradient, expected_gradient in zip(NAMES, ours[1], expected[1]):
        error = (gradient.double() - expected_gradient.double()).norm()
        assert error <= tol * expected_gradient.double().norm(), f"{name}: {error}"


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("formulation", "divergence"), CASES)
def test_loss_scores_and_gradients_match_plain_torch_in_float64(formulation, divergence, sizes, kernel_device):
    objective = make_objective(formulation, divergence)
    batch, weights = make_inputs(*sizes, kernel_device)
    ours = run(kernel, objective, batch, weights)
    expected = run(reference, objective, doubled(batch), doubled(weights))
    assert {tensor.dtype for tensor in (*ours[0], *ours[1])} == {torch.float32}
    # float32 sums of up to 48 products in three layers; KL multiplies the error of the score by the ratio, up to 5
    assert_agree(ours, expected, 5e-6)


def test_tf32_agrees_to_its_ten_bits(kernel_device):
    objective = make_objective()
    batch, weights = make_inputs(2, 37, 21, 32, 7, kernel_device)
    ours = run(kernel, objective, batch, weights, precision="tf32")
    expected = run(reference, objective, doubled(batch), doubled(weights))
    # 2^-11 a factor, a dozen factors one after the other; Triton's interpreter multiplies in float32
    assert_agree(ours, expected, 5e-3 if kernel_device == "cuda" else 5e-6)


def as_bfloat16(x, device):
    """``x`` rounded as the kernel rounds it, with the gradient of the identity."""
    single = x.detach().float()
    if device == "cuda":
        low = single.bfloat16().to(x.dtype)
    else:
        # Triton's interpreter cuts off
        low = (single.view(torch.int32) & -65536).view(torch.float32).to(x.dtype)
    return x + (low - x).detach()


@pytest.mark.parametrize("sizes", [(2, 37, 21, 32, 7), (1, 70, 5, 48, 33), (2, 21, 11, 256, 32)], ids=str)
def test_bfloat16_matches_a_forward_pass_that_rounds_the_same_factors(sizes, kernel_device):
    def rounded(x, layers):
        (w1, b1), (w2, b2), (w3, b3) = layers
        x, w1, w2 = (as_bfloat16(factor, kernel_device) for factor in (x, w1, w2))
        hidden = as_bfloat16(torch.relu(x @ w1.mT + b1[:, None]), kernel_device)
        return (torch.relu(hidden @ w2.mT + b2[:, None]) @ w3.mT + b3[:, None]).squeeze(-1)

    objective = make_objective()
    batch, weights = make_inputs(*sizes, kernel_device)
    ours = run(kernel, objective, batch, weights, factor=1.0, precision="bf16")
    leaves = [weight.requires_grad_() for weight in doubled(weights)]
    terms, *scores = rows_of_reference(objective, doubled(batch), leaves, scores=rounded)

    # the same factors, summed in float32
    torch.testing.assert_close(ours[0][0].double(), sum(term.sum() for term in terms), rtol=1e-5, atol=1e-5)
    for ours_one, expected in zip(ours[0][1:], scores):
        torch.testing.assert_close(ours_one.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(row, leaves, retain_graph=True) for term in terms for row in term]
    for name, gradient, *rows in zip(NAMES, ours[1], *gradients):
        # the backward pass rounds two more factors a row; rows may cancel, their errors need not
        bound = 2.0 * torch.finfo(torch.bfloat16).eps * sum(row.norm() for row in rows)
        error = (gradient.double() - sum(rows)).norm()
        assert error <= (1e-5 * sum(rows).norm() if name == "b3" else bound), f"{name}: {error} of {bound}"


def test_bfloat16_stays_near_float32(kernel_device):
    objective = make_objective()
    batch, weights = make_inputs(2, 37, 21, 32, 7, kernel_device)
    ours = run(kernel, objective, batch, weights, precision="bf16")
    expected = run(reference, objective, doubled(batch), doubled(weights))
    # an eps for each of two inputs, two weights and one activation, of scores of order 1
    assert_agree((ours[0], []), (expected[0], []), 5 * torch.finfo(torch.bfloat16).eps)


def test_weights_already_in_bfloat16_give_the_result_of_their_float32_copies(kernel_device):
    objective = make_objective()
    batch, weights = make_inputs(2, 37, 21, 32, 7, kernel_device)
    low = [weight.bfloat16() for weight in weights]
    ours = run(kernel, objective, batch, low, precision="bf16")
    expected = run(kernel, objective, batch, [weight.float() for weight in low], precision="bf16")
    assert {gradient.dtype for gradient in ours[1]} == {torch.bfloat16}
    for one, other in zip(ours[0], expected[0]):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(ours[1], expected[1]):
        torch.testing.assert_close(one, other.bfloat16(), rtol=0, atol=0)


def test_the_width_of_the_recipes(kernel_device):
    objective = make_objective()
    batch, weights = make_inputs(2, 33, 17, 256, 32, kernel_device)
    ours = run(kernel, objective, batch, weights)
    assert_agree(ours, run(reference, objective, doubled(batch), doubled(weights)), 5e-6)


@pytest.mark.parametrize("bounds", [(-0.5, 0.3), (-math.inf, 0.3)], ids=str)
@pytest.mark.parametrize("formulation", ["in_sample", "official"])
def test_bootstrapped_values_are_clipped(formulation, bounds, kernel_device):
    objective = make_objective(formulation)
    batch, weights = make_inputs(2, 37, 21, 16, 3, kernel_device)
    ours = run(kernel, objective, batch, weights, bounds=bounds)
    assert_agree(ours, run(reference, objective, doubled(batch), doubled(weights), bounds=bounds), 5e-6)


def test_a_nan_shows_and_official_reads_no_value_on_q(kernel_device):
    batch, weights = make_inputs(2, 37, 21, 16, 3, kernel_device)
    batch[3][4] = math.nan
    assert kernel(make_objective(), batch, weights).loss.isnan()
    assert kernel(make_objective("official"), batch, weights).loss.isfinite()
    batch[0][5, 0] = math.nan
    (loss, score, _), gradients = run(kernel, make_objective("official"), batch, weights)
    assert loss.isnan()
    assert score.isnan().nonzero()[:, 1].tolist() == [5, 5]
    assert all(gradient.isnan().any() for gradient in gradients)


def test_repeated_calls_agree_to_the_bit(kernel_device):
    batch, weights = make_inputs(2, 130, 70, 16, 3, kernel_device)
    first, second = (run(kernel, make_objective(), batch, weights, precision="bf16") for _ in range(2))
    assert_agree(first, second, 0.0)


def test_leading_axes_and_vmap_equal_one_call_a_seed(kernel_device):
    objective = make_objective()
    batch, weights = make_inputs(2, 17, 9, 16, 3, kernel_device, lead=(3,))
    each = [run(kernel, objective, [t[k] for t in batch], [w[k] for w in weights]) for k in range(3)]
    expected = [[torch.stack(out) for out in zip(*part)] for part in zip(*each)]

    def mapped(objective, batch, weights):
        # batches mapped along their last axis
        moved = [tensor.movedim(0, -1) for tensor in batch]
        return torch.vmap(lambda b, w: tuple(kernel(objective, b, w)), in_dims=(-1, 0))(moved, list(weights))

    assert_agree(run(kernel, objective, batch, weights), expected, 0.0)
    assert_agree(run(mapped, objective, batch, weights), expected, 0.0)


def test_vmap_shares_a_batch_and_composes_with_func_grad(kernel_device):
    objective = make_objective()
    batch, _ = make_inputs(2, 17, 9, 16, 3, kernel_device)
    _, weights = make_inputs(2, 17, 9, 16, 3, kernel_device, lead=(3,))
    ours = torch.vmap(torch.func.grad(lambda w: kernel(objective, batch, w).loss))(weights)
    for k in range(3):
        _, expected = run(kernel, objective, batch, [weight[k] for weight in weights], factor=1.0)
        for gradient, expected_gradient in zip(ours, expected):
            torch.testing.assert_close(gradient[k], expected_gradient, rtol=0, atol=0)


def test_compiles_in_one_graph(kernel_device):
    objective = make_objective()
    batch, weights = make_inputs(2, 17, 9, 16, 3, kernel_device)
    compiled = torch.compile(lambda *args: tuple(kernel(*args)), fullgraph=True, backend="aot_eager")
    assert_agree(run(compiled, objective, batch, weights), run(kernel, objective, batch, weights), 1e-6)


def test_the_operator_is_registered_as_torch_library_expects(kernel_device):
    batch, weights = make_inputs(2, 5, 3, 16, 3, kernel_device, lead=(2,))
    constants = ("in_sample", "pearson_chi2", 0.3, 0.9, 0.5, 5.0, -2.0, math.inf, "bf16")
    torch.library.opcheck(_score_mlp, (*batch, *weights, *constants))


def test_a_second_derivative_is_an_error_and_the_batch_gets_no_gradient(kernel_device):
    batch, weights = make_inputs(2, 37, 21, 16, 3, kernel_device)
    leaves = [tensor.requires_grad_() for tensor in (*batch, *weights)]
    loss, score, q_score = kernel(make_objective(), batch, weights)
    assert not score.requires_grad
    assert not q_score.requires_grad
    gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    assert [gradient is None for gradient in gradients] == [True] * 4 + [False] * 6
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradients[-1].square().sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"formulation": "dual"},
            ValueError,
            "formulation must be one of in_sample, official, official_stable, got 'dual'",
        ),
        ({"divergence": "chi2"}, ValueError, "divergence must be one of pearson_chi2, .* got 'chi2'"),
        ({"precision": "fp16"}, ValueError, "precision must be one of fp32, tf32, bf16, got 'fp16'"),
        ({"q_x": torch.zeros(7, 4)}, ValueError, r"q_x of non-empty shape \[7, 3\] .* got \[7, 4\]"),
        ({"x": torch.zeros(5, 3, dtype=torch.float64)}, TypeError, "x in float32 or bfloat16, got torch.float64"),
        # on a GPU these do not compile; the interpreter has no types to tell apart
        (
            {"q_x": torch.zeros(7, 3, dtype=torch.bfloat16)},
            TypeError,
            "q_x in torch.float32 as x is, got torch.bfloat16",
        ),
        (
            {"next_value": torch.zeros(5, dtype=torch.bfloat16)},
            TypeError,
            "q_next_value in torch.bfloat16 as next_value is, got torch.float32",
        ),
        ({"layers": [(torch.zeros(2, 16, 3), torch.zeros(2, 16))]}, ValueError, "three layers"),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused(change, error, message):
    batch = dict(zip(("x", "next_value", "q_x", "q_next_value"), make_inputs(2, 5, 7, 16, 3, "cpu")[0]))
    layers = pairs(make_inputs(2, 5, 7, 16, 3, "cpu")[1])
    with pytest.raises(error, match=message):
        smore_kernels.score_mlp(**{**batch, "layers": layers, **change})


@pytest.mark.parametrize("width", [8, 40, 272])
def test_a_width_that_the_kernel_lacks_is_refused(width):
    batch, weights = make_inputs(1, 5, 7, width, 3, "cpu")
    with pytest.raises(ValueError, match=f"multiple of 16 up to 256, got {width}"):
        kernel(make_objective(), batch, weights)
