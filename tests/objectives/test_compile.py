"""Every loss is one graph that is compiled once: no graph break, no recompilation on later calls."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torchrl.objectives import SoftUpdate

# tensordict says so whenever torch.vmap meets stacked parameters in a compiled graph
pytestmark = pytest.mark.filterwarnings("ignore:Using lock_:UserWarning")


def compiled_outputs(loss, batches, counter):
    torch._dynamo.reset()
    run = torch.compile(loss, backend=counter, fullgraph=True)
    return [run(batch) for batch in batches]


QUICK = ("value", "actor", "score", "score_dual", "smore")
SLOW = ("smore_one_score", "smore_no_target", "smore_dual", "smore_official")
SLOW += ("smore_official_stable", "action_free", "action_free_actor", "action_free_corrected")


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_loss_is_one_graph_compiled_once(case, build, batch_for):
    loss = build(case)
    counter = CompileCounterWithBackend("eager")
    batches = [batch_for(loss, seed=seed) for seed in range(3)]
    expected = [loss(batch) for batch in batches]
    for out, reference in zip(compiled_outputs(loss, batches, counter), expected):
        assert list(out.keys()) == list(reference.keys())
        for key, value in reference.items():
            torch.testing.assert_close(out[key], value, msg=lambda m, key=key: f"{key}: {m}")
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        pytest.param("smore", {"deactivate_vmap": True}, marks=pytest.mark.slow),
        ("score", {"deactivate_vmap": True}),
        ("score", {"formulation": "official"}),
        ("score", {"formulation": "official_stable"}),
        ("score", {"divergence": "squared_hellinger", "score_bounds": None}),
        ("score", {"reduction": "none", "scalar_output_mode": "exclude"}),
    ],
    ids=str,
)
def test_options_do_not_break_the_graph(name, kwargs, build, batch_for):
    test_a_loss_is_one_graph_compiled_once(name, lambda case: build(case, **kwargs), batch_for)


def test_masks_and_weights_do_not_break_the_graph(build, batch_for):
    loss = build("score")
    batch = batch_for(loss).set("priority_weight", torch.rand(8)).set(("collector", "mask"), torch.arange(8) < 6)
    batch.set(("q", "collector", "mask"), torch.arange(8) < 7)
    counter = CompileCounterWithBackend("eager")
    for out in compiled_outputs(loss, [batch, batch.clone()], counter):
        torch.testing.assert_close(out["loss_score"], loss(batch)["loss_score"])
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
        torch.testing.assert_close(run(batch)[key], loss(batch)[key])
        assert not torch.equal(run(batch)[key], before)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_target_updates_and_optimiser_steps_do_not_recompile(build, batch_for, total):
    loss = build("smore", updater=False)
    updater = SoftUpdate(loss, tau=0.5)
    batch, counter = batch_for(loss), CompileCounterWithBackend("aot_eager")
    optimiser = torch.optim.Adam(loss.parameters())
    # eager calls fill a memo of tensordict's whose length compiled graphs guard
    loss(batch)
    updater.step()
    torch._dynamo.reset()
    run = torch.compile(loss, backend=counter, fullgraph=True)
    for _ in range(3):
        total(run(batch)).backward()
        gradients = [p.grad.clone() for p in loss.parameters()]
        optimiser.zero_grad()
        total(loss(batch)).backward()
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
