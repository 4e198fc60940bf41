from __future__ import annotations

import importlib.util
import logging
import math

import pytest
import torch

from torchrl_smore import _dispatch
from torchrl_smore._dispatch import (
    adam_polyak_,
    expectile_awr,
    resolve_kernels,
    score_objective,
)
from torchrl_smore.functional.score import ScoreObjective


@pytest.fixture
def without_triton(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))


@pytest.fixture
def interpreted_triton():
    if torch.cuda.is_available():
        pytest.skip("triton compiles for the GPU here")
    pytest.importorskip("triton")
    import smore_kernels

    assert smore_kernels.interpreted(), "tests/conftest.py sets TRITON_INTERPRET=1 before triton is imported"


def make_inputs(objective: ScoreObjective) -> dict[str, torch.Tensor]:
    inputs = {"score": torch.randn(2, 3, 5), "next_value": torch.randn(3, 5)}
    inputs |= {"q_score": torch.randn(2, 7), "q_next_value": torch.randn(7)}
    if objective.needs_policy:
        inputs |= {"policy_score": torch.randn(2, 3, 5), "q_next_policy_score": torch.randn(2, 7)}
    return inputs


def test_reference_equals_numbers_worked_by_hand():
    # values clipped to [-1, 1]; rho: y = 0.5 * 1 - 2 = -1.5 and 0.5 * 0 - 1 = -1, q: y = 0.5 * -1 - 3 = -3.5
    # rho terms 0.25 * score + 0.5 * 0.25 * y^2 = 0.78125, 0.375; q term 0.5 * (0.25 * 12.25 - 3) = 0.03125
    loss = score_objective(
        ScoreObjective("in_sample", beta=0.5, gamma=0.5),
        score=torch.tensor([[2.0, 1.0]]),
        next_value=torch.tensor([4.0, 0.0]),
        q_score=torch.tensor([[3.0]]),
        q_next_value=torch.tensor([-9.0]),
        bounds=(-1.0, 1.0),
        kernels="reference",
    )
    torch.testing.assert_close(loss, torch.tensor((0.78125 + 0.375) / 2 + 0.03125))


@pytest.mark.parametrize("bounds", [None, (-0.5, math.inf)], ids=str)
@pytest.mark.parametrize(
    "objective",
    [
        ScoreObjective("in_sample", "kl", beta=0.3, residual_coef=0.5, max_ratio=3.0),
        ScoreObjective("dual", "jensen_shannon", beta=0.3, max_ratio=3.0),
        ScoreObjective("dual", "pearson_chi2", gamma=0.9),
        ScoreObjective("official"),
        ScoreObjective("official_stable", gamma=0.9),
    ],
    ids=lambda objective: f"{objective.formulation}-{objective.divergence.name}",
)
def test_both_implementations_agree_in_value_and_gradient(objective, bounds, interpreted_triton):
    inputs = make_inputs(objective)
    results = []
    for kernels in ("reference", "triton"):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        loss = score_objective(objective, **leaves, bounds=bounds, kernels=kernels)
        (3.0 * loss).backward()
        results.append((loss, {name: leaf.grad for name, leaf in leaves.items()}))
    (expected, gradients), (ours, our_gradients) = results

    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert gradients["next_value"] is None
    for name, gradient in gradients.items():
        if gradient is None:
            assert our_gradients[name] is None
        else:
            torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_the_choice_is_made_inside_one_compiled_graph(kernels, interpreted_triton):
    objective = ScoreObjective()
    inputs = make_inputs(objective)

    def loss(inputs):
        return score_objective(objective, **inputs, kernels=kernels)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs), loss(inputs))


@pytest.mark.parametrize("device", ["cpu", "cuda", torch.device("cuda", 1)], ids=str)
def test_auto_is_the_reference_until_the_kernels_are_measured_and_says_so_once(device, caplog):
    _dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="torchrl_smore"):
        assert [resolve_kernels("auto", device) for _ in range(3)] == ["reference"] * 3
    (record,) = caplog.records
    reason = "not been timed on a GPU" if torch.device(device).type == "cuda" else "are for CUDA tensors"
    assert "reference" in record.message
    assert reason in record.message


def test_auto_follows_the_switch_where_triton_is_installed(monkeypatch, caplog):
    pytest.importorskip("triton")
    monkeypatch.setattr(_dispatch, "AUTO_ON_CUDA", "triton")
    # the interpreter is no use of a GPU
    monkeypatch.setattr("smore_kernels.interpreted", lambda: False)
    assert resolve_kernels("auto", "cuda") == "triton"
    assert resolve_kernels("auto", "cpu") == "reference"


def test_auto_falls_back_and_says_why_where_triton_is_missing(monkeypatch, caplog, without_triton):
    _dispatch._log_once.cache_clear()
    monkeypatch.setattr(_dispatch, "AUTO_ON_CUDA", "triton")
    with caplog.at_level(logging.INFO, logger="torchrl_smore"):
        assert resolve_kernels("auto", "cuda") == "reference"
    assert "pip install 'torchrl-smore[triton]'" in caplog.text


def test_triton_without_triton_names_what_to_install(without_triton):
    with pytest.raises(RuntimeError, match=r"not installed; pip install 'torchrl-smore\[triton\]'"):
        resolve_kernels("triton", "cuda")


def test_triton_on_a_device_it_cannot_use_says_what_is_missing(monkeypatch):
    smore_kernels = pytest.importorskip("smore_kernels", exc_type=ImportError)
    monkeypatch.setattr(smore_kernels, "interpreted", lambda: False)
    with pytest.raises(RuntimeError, match=r"cannot run on cpu tensors: .*TRITON_INTERPRET=1"):
        resolve_kernels("triton", "cpu")
    with pytest.raises(RuntimeError, match="cannot run on mps tensors: the kernels are for CUDA tensors"):
        resolve_kernels("triton", "mps")


def test_triton_runs_on_cuda_tensors_and_on_others_under_the_interpreter(interpreted_triton, monkeypatch):
    assert resolve_kernels("triton", "cpu") == "triton"
    # the interpreter would copy every tensor of a GPU to the host and back
    with pytest.raises(RuntimeError, match="cannot run on cuda tensors: TRITON_INTERPRET=1"):
        resolve_kernels("triton", "cuda")
    monkeypatch.setattr("smore_kernels.interpreted", lambda: False)
    assert resolve_kernels("triton", "cuda") == "triton"


def test_an_unknown_choice_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown kernels 'trition'.*Did you mean 'triton'"):
        resolve_kernels("trition", "cpu")


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("formulation", ["in_sample", "dual"])
def test_a_missing_value_after_goal_transitions_is_named(kernels, formulation, interpreted_triton):
    objective = ScoreObjective(formulation)
    with pytest.raises(ValueError, match=f"formulation='{formulation}' needs q_next_value"):
        score_objective(objective, **{**make_inputs(objective), "q_next_value": None}, kernels=kernels)


def test_the_official_formulations_take_values_of_another_dtype_than_the_scores(interpreted_triton):
    objective = ScoreObjective("official")
    inputs = {name: None if tensor is None else tensor.detach() for name, tensor in make_inputs(objective).items()}
    inputs |= {name: inputs[name].bfloat16() for name in ("score", "q_score")} | {"q_next_value": None}
    found = [score_objective(objective, **inputs, kernels=kernels) for kernels in ("reference", "triton")]
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


def test_missing_policy_scores_are_named():
    inputs = make_inputs(ScoreObjective())
    with pytest.raises(ValueError, match="needs policy_score and q_next_policy_score"):
        score_objective(ScoreObjective("dual"), **inputs)


def test_the_optimiser_step_is_the_reference_s_with_either_implementation(interpreted_triton, monkeypatch):
    import smore_kernels

    calls = []
    fused = smore_kernels.adam_polyak_
    monkeypatch.setattr(smore_kernels, "adam_polyak_", lambda *a, **k: calls.append(fused(*a, **k)))
    start = torch.randn(5, 40).abs()
    written = {}
    for kernels in ("reference", "auto", "triton"):
        param, grad, m, v, target = start.clone()
        options = {"lr": 0.1, "decay_steps": 9, "weight_decay": 0.2, "target": target, "tau": 0.3}
        adam_polyak_(param, grad, m, v, torch.tensor(4), kernels=kernels, **options)
        written[kernels] = torch.stack([param, m, v, target])
    assert len(calls) == 1
    torch.testing.assert_close(written["auto"], written["reference"], rtol=0, atol=0)
    torch.testing.assert_close(written["triton"], written["reference"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_value_loss_and_actor_weights_agree_for_rows_of_any_shape(temperature, interpreted_triton):
    score, results = torch.randn(3, 5), []
    for kernels in ("reference", "triton"):
        value = torch.linspace(-1.0, 1.0, 15).reshape(3, 5).requires_grad_()
        options = {"expectile": torch.tensor(0.7), "temperature": temperature, "weight_clip": 3.0}
        out = expectile_awr(score, value, **options, kernels=kernels)
        (3.0 * out.loss).backward()
        results.append((out._asdict(), value.grad))
    assert (results[0][0]["weight"] is None) == (temperature is None)
    torch.testing.assert_close(results[1], results[0])
