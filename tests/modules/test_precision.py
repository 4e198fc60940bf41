"""bf16 hidden layers: what flows in which dtype, and how far it is from float32."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import (
    GELUMLP,
    ConcatMLP,
    TanhMLP,
    goal_specs,
    make_contrastive_networks,
    make_discriminator,
    make_networks,
    precision,
)
from torchrl_smore.modules import linear as linear_module
from torchrl_smore.objectives import SMORELoss

OBSERVATION, G, A = 5, 3, 4
SPECS = goal_specs(OBSERVATION, G, A)
KINDS = {
    "relu": lambda **kw: ConcatMLP(8, 2, (64, 64), **kw),
    "norm": lambda **kw: ConcatMLP(8, 2, (64, 64), layer_norm=True, **kw),
    "tanh": lambda **kw: TanhMLP(8, 2, (64, 64), **kw),
    "gelu": lambda **kw: GELUMLP(8, 2, (64, 64), layer_norm=True, **kw),
}


def twins(kind):
    """The same network in both precisions."""
    full, half = KINDS[kind](), KINDS[kind](precision="bf16")
    half.load_state_dict(full.state_dict())
    return full, half


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_layers_are_bf16_between_float32_input_output_and_parameters(kind, monkeypatch):
    _, half = twins(kind)
    seen = []

    def recorded(x, weight, bias, **kwargs):
        seen.append((x.dtype, weight.dtype, bias.dtype))
        return linear_module.linear(x, weight, bias, **kwargs)

    monkeypatch.setattr(precision, "linear", recorded)
    out = half(torch.randn(6, 8))
    assert seen == [(torch.bfloat16,) * 3] * 2 + [(torch.float32,) * 3]
    assert out.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in half.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_near_those_of_float32_but_not_equal(kind):
    full, half = twins(kind)
    x = torch.randn(256, 8)
    outputs, gradients = [], []
    for network in (full, half):
        out = network(x)
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert all(p.grad.dtype == torch.float32 for p in network.parameters())
    # a bf16 number has a relative error of 2^-9, and a few of them follow each other
    error = (outputs[1] - outputs[0]).norm() / outputs[0].norm()
    assert 1e-5 < error < 2e-2
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 1e-5 < error < 5e-2


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_the_plain_sequence_of_layers(kind):
    full, _ = twins(kind)
    x = torch.randn(7, 8)
    torch.testing.assert_close(full(x), full.layers(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_made_double_stays_double(kind):
    full, _ = twins(kind)
    x = torch.randn(7, 8, dtype=torch.float64)
    torch.testing.assert_close(full.double()(x), full.layers(x), rtol=1e-12, atol=1e-12)


def test_without_hidden_layers_nothing_is_rounded():
    network = ConcatMLP(8, 2, (), precision="bf16")
    x = torch.randn(7, 8)
    assert torch.equal(network(x), network.layers(x))


def test_a_step_below_the_resolution_of_bf16_accumulates_in_the_master_weights():
    network = ConcatMLP(2, 1, (4,), precision="bf16")
    weight = network.layers[0].weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for _ in range(8):
        weight.grad = torch.full_like(weight, 2.0**-13)
        optimizer.step()
    torch.testing.assert_close(before - weight.detach(), torch.full_like(weight, 2.0**-10), rtol=1e-3, atol=0.0)


def batch(rows=8, seeds=()):
    def part():
        return TensorDict(
            {
                "observation": torch.randn(*seeds, rows, OBSERVATION),
                "action": torch.rand(*seeds, rows, A) * 2 - 1,
                "desired_goal": torch.randn(*seeds, rows, G),
                ("next", "observation"): torch.randn(*seeds, rows, OBSERVATION),
            },
            [*seeds, rows],
        )

    return part().set("q", part())


def smore(**kwargs):
    networks = make_networks(*SPECS, hidden=(32, 32), precision="bf16")
    return SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=True, **kwargs)


def total(out):
    return sum(value for key, value in out.items() if key.startswith("loss_"))


def test_losses_are_float32_and_every_network_gets_float32_gradients():
    loss = smore()
    updater = SoftUpdate(loss, tau=0.5)
    optimizer = torch.optim.Adam(loss.parameters())
    for _ in range(2):
        out = loss(batch())
        assert all(value.dtype == torch.float32 for value in out.values())
        total(out).backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in loss.parameters())
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    targets = loss.target_score_network_params.values(True, True)
    assert all(target.dtype == torch.float32 for target in targets)


def test_the_target_network_runs_in_bf16_too():
    loss = smore()
    SoftUpdate(loss, tau=0.5)
    data = batch()
    bf16 = loss(data)["mean_advantage"]
    for module in loss.score_network.modules():
        if isinstance(module, ConcatMLP):
            module.precision = "float32"
    # only the advantage's target score has changed
    float32 = loss(data)["mean_advantage"]
    assert bf16 != float32
    torch.testing.assert_close(bf16, float32, atol=2e-2, rtol=2e-2)


def test_stacked_seeds_equal_separate_losses():
    losses, data = [smore(delay_score=False) for _ in range(3)], batch(seeds=(3,))
    stacked = TensorDict.from_modules(*losses, as_module=False, lock=False)

    def run(parameters, rows):
        with parameters.to_module(losses[0], preserve_module_state=False):
            return losses[0](rows)

    out = torch.vmap(run)(stacked, data)
    for k, loss in enumerate(losses):
        for key, value in loss(data[k]).items():
            torch.testing.assert_close(out[key][k], value, rtol=1e-2, atol=1e-3, msg=lambda m, key=key: f"{key}: {m}")


def test_a_compiled_network_is_one_graph_with_the_values_and_gradients_of_eager():
    _, network = twins("relu")
    x, weight = torch.randn(9, 8), network.layers[2].weight
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))
    ours, expected = (torch.autograd.grad(run(x).sum(), weight)[0] for run in (compiled, network))
    torch.testing.assert_close(ours, expected)


def test_every_builder_passes_the_precision_on():
    networks = make_networks(*SPECS, hidden=(6,), precision="bf16")
    contrastive = make_contrastive_networks(*SPECS, hidden=(6,), latent=2, precision="bf16")
    built = [networks.actor, networks.value, *networks.score, contrastive.actor, *contrastive.critic, contrastive.value]
    for network in [*built, make_discriminator(SPECS[0], precision="bf16")]:
        found = [module.precision for module in network.modules() if hasattr(module, "precision")]
        assert found
        assert set(found) == {"bf16"}


@pytest.mark.parametrize("build", [*KINDS.values(), lambda **kw: make_networks(*SPECS, **kw)])
def test_an_unknown_precision_is_refused(build):
    with pytest.raises(ValueError, match=r"unknown precision 'bf61'.*Did you mean 'bf16'"):
        build(precision="bf61")
