from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")
import smore_kernels
from smore_kernels import bellman_residual as module
from torchrl_smore.functional.divergences import DIVERGENCES
from torchrl_smore.functional.score import ScoreObjective, score_rows

CASES = [
    *[("in_sample", divergence) for divergence in DIVERGENCES],
    *[("dual", divergence) for divergence in DIVERGENCES],
    ("official", "pearson_chi2"),
    ("official", "kl"),
    ("official_stable", "pearson_chi2"),
]
# one row, below a block, across blocks; members, rho rows, q rows
SIZES = [(1, 1, 1), (2, 1023, 40), (3, 1025, 2049)]
SCORES = ("score", "q_score", "policy_score", "q_next_policy_score")


def make_objective(case: str, divergence: str, **constants) -> ScoreObjective:
    constants = {"beta": 0.3, "gamma": 0.9, "residual_coef": 0.5, "max_ratio": 5.0, **constants}
    return ScoreObjective(case, divergence, **constants)


def make_inputs(objective, members, rows, q_rows, device, dtype=torch.float32, lead=()) -> dict[str, torch.Tensor]:
    # residuals over kappa = 0.5 of about -6 to 6: the caps of all divergences bind on a part of the rows
    shapes = {
        "score": (*lead, members, rows),
        "next_value": (*lead, rows),
        "q_score": (*lead, members, q_rows),
        "q_next_value": (*lead, q_rows),
    }
    if objective.needs_policy:
        shapes |= {"policy_score": shapes["score"], "q_next_policy_score": shapes["q_score"]}
    return {name: torch.randn(shape, device=device).to(dtype) for name, shape in shapes.items()}


def kernel(objective, inputs, bounds=None):
    constants = {**objective.constants, "divergence": objective.divergence.name}
    return smore_kernels.mean_score_objective(**inputs, formulation=objective.formulation, bounds=bounds, **constants)


def reference(objective, inputs, bounds=None):
    rho, q = score_rows(objective, **inputs, bounds=bounds)
    return rho.mean() + q.mean()


def loss_and_gradients(function, objective, inputs, factor=3.0, **kwargs):
    # a factor on the loss catches a backward that ignores grad_output
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    loss = function(objective, leaves, **kwargs)
    (factor * loss).sum().backward()
    return loss.detach(), {name: tensor.grad for name, tensor in leaves.items() if name in SCORES}


def assert_agree(ours, expected, rtol, atol):
    torch.testing.assert_close(ours[0], expected[0].to(ours[0].dtype), rtol=rtol, atol=atol)
    for name, gradient in expected[1].items():
        # a row's gradient is its term's over the number of rows: measured in units of the term
        rows = gradient.shape[-1]
        ours_row, expected_row = ours[1][name].double() * rows, gradient.double() * rows
        torch.testing.assert_close(
            ours_row, expected_row, rtol=rtol, atol=atol, msg=lambda text, name=name: name + text
        )


def in_dtype(inputs, dtype):
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("case", "divergence"), CASES)
def test_value_and_gradients_match_the_reference_in_float64(case, divergence, sizes, kernel_device):
    objective = make_objective(case, divergence)
    inputs = make_inputs(objective, *sizes, kernel_device)

    ours = loss_and_gradients(kernel, objective, inputs)
    expected = loss_and_gradients(reference, objective, in_dtype(inputs, torch.float64))

    assert ours[0].dtype == torch.float32
    # float32 has 2^-24 a rounding, times about ten operations and the condition of exp and log up to the cap
    assert_agree(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("case", "divergence"), CASES)
def test_half_precision_matches_the_float32_reference_at_the_same_inputs(case, divergence, dtype, kernel_device):
    objective = make_objective(case, divergence)
    inputs = make_inputs(objective, 2, 1023, 40, kernel_device, dtype)

    ours = loss_and_gradients(kernel, objective, inputs)
    expected = loss_and_gradients(reference, objective, in_dtype(inputs, torch.float32))

    assert ours[0].dtype == ours[1]["score"].dtype == dtype
    # arithmetic is float32; a gradient is rounded twice, half an eps each, and Triton's interpreter cuts bfloat16 off
    # where a GPU rounds it: a whole eps for the first
    assert_agree(ours, expected, rtol=1.5 * torch.finfo(dtype).eps, atol=1e-4)


def test_half_precision_gradient_does_not_underflow_before_the_loss_scale(kernel_device):
    inputs = make_inputs(make_objective("official", "pearson_chi2"), 1, 4096, 8, kernel_device, torch.float16)
    inputs["score"], inputs["next_value"] = torch.zeros_like(inputs["score"]), torch.zeros_like(inputs["next_value"])

    _, gradients = loss_and_gradients(kernel, make_objective("official", "pearson_chi2"), inputs, factor=32768.0)

    # 1e-4 / 4096 is below the smallest positive float16
    torch.testing.assert_close(
        gradients["score"].float(), torch.full((1, 4096), 8e-4).to(kernel_device), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_without_a_cap_value_and_gradient_are_infinite_where_those_of_the_reference_are(divergence, kernel_device):
    objective = make_objective("in_sample", divergence, max_ratio=math.inf)
    inputs = make_inputs(objective, 2, 37, 20, kernel_device)

    ours, expected = (loss_and_gradients(f, objective, inputs) for f in (kernel, reference))

    assert ours[0].isinf() == (divergence not in ("pearson_chi2", "kl"))
    assert_agree(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_at_beta_one_an_infinite_conjugate_on_the_offline_rows_counts_for_nothing(divergence, kernel_device):
    objective = make_objective("in_sample", divergence, max_ratio=math.inf, beta=1.0, residual_coef=0.25)
    inputs = make_inputs(objective, 2, 37, 20, kernel_device)
    # y = gamma N - S: far beyond every supremum on rho, 0 on q
    inputs["score"] = torch.full_like(inputs["score"], -60.0)
    inputs["q_score"] = (objective.gamma * inputs["q_next_value"]).expand_as(inputs["q_score"]).clone()

    ours, expected = (loss_and_gradients(f, objective, inputs) for f in (kernel, reference))

    assert ours[0].isfinite()
    assert ours[1]["score"].isfinite().all()
    assert_agree(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence", ["squared_hellinger", "total_variation", "jensen_shannon"])
@pytest.mark.parametrize("max_ratio", [5.0, math.inf])
def test_the_edge_of_the_domain_is_the_reference_s(divergence, max_ratio, kernel_device):
    objective = make_objective("in_sample", divergence, max_ratio=max_ratio, residual_coef=0.25, beta=1.0)
    edges = torch.tensor([-0.5, 0.5, 1.0, math.log(2.0)], device=kernel_device)
    for edge in edges:
        inputs = {name: torch.zeros(1, 1, device=kernel_device) for name in ("score", "q_score")}
        inputs |= {name: torch.zeros(1, device=kernel_device) for name in ("next_value", "q_next_value")}
        inputs["q_score"] = -edge.reshape(1, 1)
        ours, expected = (loss_and_gradients(f, objective, inputs) for f in (kernel, reference))
        assert_agree(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bounds", [(-0.5, 0.3), (-math.inf, 0.3), (-0.5, math.inf)], ids=str)
@pytest.mark.parametrize("case", ["in_sample", "dual", "official", "official_stable"])
def test_bootstrapped_values_are_clipped_and_constant(case, bounds, kernel_device):
    objective = make_objective(case, "pearson_chi2")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device)

    ours, expected = (loss_and_gradients(f, objective, inputs, bounds=bounds) for f in (kernel, reference))
    next_value = inputs["next_value"].requires_grad_()
    leaf = inputs["score"].requires_grad_()
    kernel(objective, inputs).backward()

    assert_agree(ours, expected, rtol=1e-5, atol=1e-5)
    assert next_value.grad is None
    assert leaf.grad is not None


def test_a_nan_is_not_hidden_by_the_bounds(kernel_device):
    objective = make_objective("in_sample", "pearson_chi2")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device)
    inputs["q_next_value"][3] = math.nan
    assert kernel(objective, inputs, bounds=(-1.0, 1.0)).isnan()


def test_slices_and_transposed_inputs_are_read_through_their_strides(kernel_device):
    objective = make_objective("dual", "pearson_chi2")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device)
    names = [name for name in inputs if name in SCORES]
    sliced = dict(zip(names, torch.cat([inputs[n] for n in names], 1).split([inputs[n].shape[1] for n in names], 1)))
    transposed = {name: inputs[name].T.contiguous().T for name in names}

    expected = kernel(objective, inputs)

    assert not sliced["score"].is_contiguous()
    torch.testing.assert_close(kernel(objective, inputs | sliced), expected, rtol=0, atol=0)
    torch.testing.assert_close(kernel(objective, inputs | transposed), expected, rtol=0, atol=0)


def test_repeated_calls_agree_to_the_bit(kernel_device):
    objective = make_objective("in_sample", "kl")
    inputs = make_inputs(objective, 2, 5000, 3000, kernel_device)
    first, second = (loss_and_gradients(kernel, objective, inputs) for _ in range(2))
    assert_agree(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["in_sample", "dual", "official_stable"])
def test_leading_axes_and_vmap_equal_one_call_per_seed(case, kernel_device):
    objective = make_objective(case, "jensen_shannon")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device, lead=(3,))
    each = [{name: tensor[seed] for name, tensor in inputs.items()} for seed in range(3)]
    each = [loss_and_gradients(kernel, objective, one) for one in each]
    expected = torch.stack([one[0] for one in each]), {n: torch.stack([one[1][n] for one in each]) for n in each[0][1]}

    def vmapped(objective, inputs):
        # the mapped axis last and, for q, shared by all seeds
        moved = {name: tensor.movedim(0, -1) for name, tensor in inputs.items()}
        return torch.vmap(lambda one: kernel(objective, one), in_dims=-1)(moved)

    assert_agree(loss_and_gradients(kernel, objective, inputs), expected, rtol=0, atol=0)
    assert_agree(loss_and_gradients(vmapped, objective, inputs), expected, rtol=0, atol=0)


def test_the_operator_maps_any_axis_of_a_tensor(kernel_device):
    objective = make_objective("in_sample", "kl")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device, lead=(3, 1))
    tensors = [inputs[name] for name in ("score", "next_value", "q_score", "q_next_value")]
    constants = (None, None, "in_sample", "kl", 0.3, 0.9, 0.5, 5.0, -math.inf, math.inf)

    def operator(score, next_value, q_score, q_next_value):
        return module._score_objective(score, next_value, q_score, q_next_value, *constants)

    moved = [tensor.movedim(0, axis) for tensor, axis in zip(tensors, (3, 1, 2, 0))]
    for ours, expected in zip(torch.vmap(operator, (3, 1, 2, 0))(*moved), torch.vmap(operator)(*tensors)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.vmap(operator)(*tensors)[0][:, 0], kernel(objective, inputs)[:, 0])


def test_vmap_shares_what_is_not_mapped_and_composes_with_func_grad(kernel_device):
    objective = make_objective("dual", "pearson_chi2")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device)
    scores = torch.randn(3, 2, 33, device=kernel_device)

    def gradient(score):
        return torch.func.grad(lambda score: kernel(objective, inputs | {"score": score}))(score)

    ours = torch.vmap(gradient)(scores)

    for score, ours_one in zip(scores, ours):
        expected = loss_and_gradients(reference, objective, inputs | {"score": score}, factor=1.0)
        torch.testing.assert_close(ours_one, expected[1]["score"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["in_sample", "dual"])
def test_compiles_in_one_graph(case, backend, kernel_device):
    objective = make_objective(case, "kl")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device)
    compiled = torch.compile(kernel, fullgraph=True, backend=backend)

    ours, expected = (loss_and_gradients(f, objective, inputs) for f in (compiled, kernel))

    assert_agree(ours, expected, rtol=1e-6, atol=1e-6)


def test_vmap_and_func_grad_compile_in_one_graph(kernel_device):
    objective = make_objective("in_sample", "kl")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device, lead=(3,))

    def mapped(objective, inputs):
        return torch.vmap(lambda one: kernel(objective, one))(inputs)

    def gradient(inputs):
        score = inputs["score"]
        return torch.func.grad(lambda score: mapped(objective, inputs | {"score": score}).sum())(score)

    compiled = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    ours, expected = (loss_and_gradients(f, objective, inputs) for f in (compiled, kernel))
    assert_agree(ours, expected, rtol=1e-6, atol=1e-6)
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), gradient(inputs))


def test_the_operator_is_registered_as_torch_library_expects(kernel_device):
    for case in ("in_sample", "dual"):
        objective = make_objective(case, "kl")
        inputs = make_inputs(objective, 2, 33, 21, kernel_device, lead=(3,))
        policy = [inputs.get(name) for name in SCORES[2:]]
        tensors = [inputs[name] for name in ("score", "next_value", "q_score", "q_next_value")]
        constants = (objective.formulation, "kl", 0.5, 0.99, 0.25, 100.0, -2.0, math.inf)
        torch.library.opcheck(module._score_objective, (*tensors, *policy, *constants))


def test_a_second_derivative_is_an_error_and_not_zero(kernel_device):
    objective = make_objective("in_sample", "pearson_chi2")
    inputs = make_inputs(objective, 2, 33, 21, kernel_device)
    score = inputs["score"].requires_grad_()
    (gradient,) = torch.autograd.grad(kernel(objective, inputs), score, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"formulation": "insample"}, ValueError, "formulation must be one of in_sample, .* got 'insample'"),
        ({"divergence": "chi2"}, ValueError, "divergence must be one of pearson_chi2, .* got 'chi2'"),
        ({"formulation": "dual"}, ValueError, "needs policy_score and q_next_policy_score"),
        ({"policy_score": torch.zeros(2, 5)}, ValueError, "belong to formulation='dual'"),
        ({"score": torch.zeros(5)}, ValueError, r"\[\*K, M, B\]"),
        ({"next_value": torch.zeros(4)}, ValueError, r"next_value of non-empty shape \[5\] .* got \[4\]"),
        ({"q_score": torch.zeros(3, 7)}, ValueError, r"q_score of non-empty shape \[2, 7\] .* got \[3, 7\]"),
        ({"q_score": torch.zeros(2, 0), "q_next_value": torch.zeros(0)}, ValueError, "q_score of non-empty shape"),
        ({"score": torch.zeros(2, 5, dtype=torch.float64)}, TypeError, "score in float32, .* got torch.float64"),
        ({"q_score": torch.zeros(2, 7, dtype=torch.float16)}, TypeError, "q_score in float32, .* got torch.float16"),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused(change, error, message):
    inputs = {"score": torch.zeros(2, 5), "next_value": torch.zeros(5)}
    inputs |= {"q_score": torch.zeros(2, 7), "q_next_value": torch.zeros(7)}
    with pytest.raises(error, match=message):
        smore_kernels.mean_score_objective(**(inputs | change))
