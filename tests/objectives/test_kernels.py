"""``kernels=``: the fused objective inside the loss, under the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import ExpectileValueLoss, GCIQLLoss, SMORELoss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    {},
    {"divergence": "kl", "score_bounds": (-0.01, 0.01)},
    {"formulation": "dual", "residual_coef": 1.0},
    {"formulation": "official"},
    {"formulation": "official_stable", "num_score_nets": 1},
]


def _batch(rows=5):
    def draw():
        entries = {"observation": torch.randn(rows, 3), "desired_goal": torch.randn(rows, 2)}
        after = TensorDict({"observation": torch.randn(rows, 3)}, [rows])
        return TensorDict({**entries, "action": torch.randn(rows, 1), "next": after}, [rows], device=DEVICE)

    return draw().set("q", draw())


def _loss(kernels, **options):
    torch.manual_seed(1)
    number = options.get("num_score_nets", 2)
    networks = make_networks(*goal_specs(3, 2, 1), hidden=(8,), num_score_nets=number)
    # no target network: its updater is not what is tested
    options = {"delay_score": False, **options}
    return SMORELoss(networks.actor, networks.score, networks.value, kernels=kernels, **options).to(DEVICE)


def _compared(build, batch, **options):
    """Outputs and gradients by the reference and by the kernels."""
    results = []
    for kernels in ("reference", "triton"):
        loss = build(kernels, **options)
        out = loss(batch)
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        results.append((out.detach().to_dict(), [p.grad for p in loss.parameters()]))
    return results


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("deactivate_vmap", [False, True])
def test_the_kernel_gives_the_losses_gradients_and_diagnostics_of_the_reference(options, deactivate_vmap):
    expected, ours = _compared(_loss, _batch(), deactivate_vmap=deactivate_vmap, **options)
    torch.testing.assert_close(ours, expected)


def test_a_mask_or_another_reduction_is_refused_by_the_kernel_and_left_to_the_reference_by_auto():
    batch = _batch()
    masked = batch.clone().set(("collector", "mask"), torch.ones(5, 1, dtype=torch.bool, device=DEVICE))
    with pytest.raises(ValueError, match="averages over all rows"):
        _loss("triton")(masked)
    with pytest.raises(ValueError, match="reduction='mean', got 'sum'"):
        _loss("triton", reduction="sum")(batch)
    torch.testing.assert_close(_loss("auto")(masked)["loss_score"], _loss("reference")(batch)["loss_score"])


def test_an_unknown_kernel_choice_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown kernels 'tritn'.*'triton'"):
        _loss("tritn")


def _count_calls(monkeypatch):
    """The fused calls from here on."""
    import smore_kernels

    calls, fused = [], smore_kernels.expectile_awr

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return fused(*args, **kwargs)

    monkeypatch.setattr(smore_kernels, "expectile_awr", counted)
    return calls


def test_value_loss_and_actor_weights_come_from_one_call_and_alone_from_one_each(monkeypatch):
    batch, calls = _batch(), _count_calls(monkeypatch)
    reference, fused = _loss("reference"), _loss("triton")
    # schedules assign; the clip, at the mean advantage, binds on a part of the rows
    clip = reference(batch)["mean_advantage"].mul(30.0).exp().item()
    for loss in (reference, fused):
        loss.expectile, loss.temperature, loss.weight_clip = 0.9, 30.0, clip
    outs = []
    for loss in (reference, fused):
        out = loss(batch)
        assert len(calls) == (loss is fused)
        value, value_metadata = loss.value_loss(batch)
        actor, actor_metadata = loss.actor_loss(batch)
        (value + actor).backward()
        outs.append((out.detach().to_dict(), value, actor, value_metadata, actor_metadata))
    assert len(calls) == 3
    assert 0.0 < outs[0][0]["weight_clipped"] < 1.0
    torch.testing.assert_close(outs[1], outs[0])
    for ours, expected in zip(fused.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_the_value_loss_and_the_baseline_that_share_the_term_take_the_same_choice(monkeypatch):
    calls = _count_calls(monkeypatch)
    batch = _batch()
    batch["next", "reward"], batch["next", "terminated"] = torch.rand(5, 1), torch.zeros(5, 1, dtype=torch.bool)
    batch["target_score"] = torch.randn(5, 1)
    networks = make_networks(*goal_specs(3, 2, 1), hidden=(8,))
    for build in (
        lambda kernels: ExpectileValueLoss(networks.value, kernels=kernels),
        lambda kernels: GCIQLLoss(networks.actor, networks.score, networks.value, kernels=kernels),
    ):
        calls.clear()
        modules = [build(kernels).to(DEVICE) for kernels in ("triton", "reference")]
        for module in modules:
            if isinstance(module, GCIQLLoss):
                SoftUpdate(module, tau=0.5)
        ours, expected = (module(batch.to(DEVICE)) for module in modules)
        assert len(calls) == 1
        torch.testing.assert_close(ours.detach().to_dict(), expected.detach().to_dict())
        with pytest.raises(ValueError, match="unknown kernels 'tritn'"):
            build("tritn")


def _check_under_vmap(losses, batches, calls):
    """Mapped over seeds they give what each gives alone, in one fused call."""
    expected = [loss(batch) for loss, batch in zip(losses, batches)]
    stacked = TensorDict.from_modules(*losses, as_module=False, lock=False)

    def run(parameters, batch):
        with parameters.to_module(losses[0], preserve_module_state=False):
            return losses[0](batch)

    calls.clear()
    out = torch.vmap(run)(stacked, torch.stack(batches))
    assert len(calls) == 1
    for key, value in out.items():
        torch.testing.assert_close(value, torch.stack([one[key] for one in expected]))


def test_seeds_under_vmap_run_the_kernels_with_a_temperature_each(monkeypatch):
    calls = _count_calls(monkeypatch)
    losses, batches = [_loss("triton") for _ in range(3)], [_batch() for _ in range(3)]
    for loss, temperature in zip(losses, (0.5, 1.0, 30.0)):
        loss.temperature = temperature
    _check_under_vmap(losses, batches, calls)
