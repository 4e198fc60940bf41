"""Every loss is one graph that is compiled once: no graph break, no recompilation on later calls."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torchrl.objectives import SoftUpdate

from torchrl_smore.functional.score import Formulation
from torchrl_smore.objectives import ScoreLoss, SMORELoss

# tensordict says so whenever torch.vmap meets stacked parameters in a compiled graph
pytestmark = pytest.mark.filterwarnings("ignore:Using lock_:UserWarning")


def compiled_outputs(loss, batches, counter):
    torch._dynamo.reset()
    run = torch.compile(loss, backend=counter, fullgraph=True)
    return [run(batch) for batch in batches]


def assert_equal(out, reference):
    assert list(out.keys()) == list(reference.keys())
    for key, value in reference.items():
        torch.testing.assert_close(out[key], value, msg=lambda m, key=key: f"{key}: {m}")


#: What is compiled: every class, and each branch of its options once, several in one graph where they do not exclude
#: each other, since tracing a loss takes seconds.
COMPILED = [
    ("score", {"formulation": "dual", "divergence": "squared_hellinger", "score_bounds": None}),
    ("score", {"formulation": "official", "reduction": "none", "scalar_output_mode": "exclude"}),
    ("smore_official", {"num_score_nets": 1, "delay_score": False}),
    ("smore_official_stable", {"deactivate_vmap": True}),
    ("smore_no_awr_no_expectile", {"formulation": "dual", "divergence": "kl"}),
    ("action_free", {}),
    ("action_free_corrected", {}),
    *((name, {}) for name in ("gciql", "gcsql", "gceql", "gcxql", "gcsl", "gcsl_nll", "wgcsl", "wgcsl_original")),
    ("gofar", {}),
    ("gofar_binary", {"divergence": "kl", "regression": "nll", "actor_weight": "expectile_awr"}),
    *((name, {}) for name in ("crl", "crl_awr", "crl_td", "crl_td_bounds")),
    ("am", {}),
]
#: What the tests below compile.
ALONE = ["value", "actor", "score", "smore"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), COMPILED, ids=str)
def test_a_loss_is_one_graph_compiled_once(name, options, build, batch_for):
    loss = build(name, **options)
    counter = CompileCounterWithBackend("eager")
    batches = [batch_for(loss, seed=seed) for seed in range(3)]
    expected = [loss(batch) for batch in batches]
    for out, reference in zip(compiled_outputs(loss, batches, counter), expected):
        assert_equal(out, reference)
    assert counter.frame_count == 1


def test_every_class_and_every_formulation_is_compiled(build, case_names):
    compiled = [build(name, **options) for name, options in (*COMPILED, *((name, {}) for name in ALONE))]
    assert {type(build(name)) for name in case_names} == {type(loss) for loss in compiled}
    objectives = [loss.objective for loss in compiled if isinstance(loss, ScoreLoss | SMORELoss)]
    assert {objective.formulation for objective in objectives} == set(get_args(Formulation))


def test_masks_and_weights_do_not_break_the_graph(build, batch_for):
    loss = build("score")
    batch = batch_for(loss).set("priority_weight", torch.rand(8)).set(("collector", "mask"), torch.arange(8) < 6)
    batch.set(("q", "collector", "mask"), torch.arange(8) < 7)
    counter = CompileCounterWithBackend("eager")
    for out in compiled_outputs(loss, [batch, batch.clone()], counter):
        assert_equal(out, loss(batch))
    assert counter.frame_count == 1


@pytest.mark.parametrize(("name", "key"), [("actor", "loss_actor"), ("value", "loss_value")])
def test_scheduling_a_coefficient_does_not_recompile(name, key, build, batch_for):
    loss = build(name)
    batch, counter = batch_for(loss), CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    run = torch.compile(loss, backend=counter, fullgraph=True)
    run(batch)
    for temperature, expectile in ((1.0, 0.6), (0.5, 0.9)):
        before = run(batch)[key]
        if name == "actor":
            loss.temperature = temperature
        else:
            loss.expectile = expectile
        assert_equal(run(batch), loss(batch))
        assert not torch.equal(run(batch)[key], before)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_target_updates_and_optimiser_steps_do_not_recompile(build, batch_for, total):
    loss = build("smore", updater=False)
    updater = SoftUpdate(loss, tau=0.5)
    batch, counter = batch_for(loss), CompileCounterWithBackend("eager")
    optimiser = torch.optim.Adam(loss.parameters())
    # eager calls fill a memo of tensordict's whose length compiled graphs guard
    loss(batch)
    updater.step()
    torch._dynamo.reset()
    run = torch.compile(loss, backend=counter, fullgraph=True)
    for _ in range(3):
        out, expected = run(batch), loss(batch)
        assert_equal(out, expected)
        total(out).backward()
        gradients = [p.grad.clone() for p in loss.parameters()]
        optimiser.zero_grad()
        total(expected).backward()
        for ours, p in zip(gradients, loss.parameters()):
            torch.testing.assert_close(ours, p.grad)
        optimiser.step()
        updater.step()
        optimiser.zero_grad()
    assert counter.frame_count == 1


@pytest.mark.slow
def test_inductor_gives_the_losses_and_gradients_of_eager(build, batch_for, total):
    loss = build("score", deactivate_vmap=True)
    batch = batch_for(loss)
    expected = loss(batch)
    total(expected).backward()
    gradients = [p.grad.clone() for p in loss.parameters()]
    loss.zero_grad()
    torch._dynamo.reset()
    out = torch.compile(loss, fullgraph=True)(batch)
    total(out).backward()
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value, rtol=1e-4, atol=1e-5)
    for ours, p in zip(gradients, loss.parameters()):
        torch.testing.assert_close(ours, p.grad, rtol=1e-4, atol=1e-5)
