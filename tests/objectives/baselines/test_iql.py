"""The in-sample losses against their formulas written out with plain modules, and their options."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import GCEQLLoss, GCIQLLoss, GCSQLLoss, GCXQLLoss

GAMMA = 0.9


def networks(num=2):
    return make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=2), hidden=(6,), num_score_nets=num)


def random_batch(size=8):
    return TensorDict(
        {
            "observation": torch.randn(size, 3),
            "desired_goal": torch.randn(size, 2),
            "action": torch.randn(size, 2),
            "next": {
                "observation": torch.randn(size, 3),
                "reward": torch.randn(size, 1),
                "terminated": torch.rand(size, 1) > 0.5,
            },
        },
        [size],
    )


def value_and_weight(kind, u):
    """Value loss and actor weight of ``u = Q - V`` for alpha (beta) 2, as the papers print them."""
    z = (u / 2.0).clamp_max(7.0 if kind is GCXQLLoss else 5.0)
    if kind is GCIQLLoss:
        return torch.where(u > 0, 0.8, 0.2) * u**2, (3.0 * u).exp().clamp_max(100.0)
    if kind is GCSQLLoss:
        return None, u.clamp(0.0, 100.0)
    m = max(z.max().item(), -1.0)
    if kind is GCEQLLoss:
        return (z, m), (5.0 * u).exp().clamp_max(100.0)
    return ((z - m).exp() - z * math.exp(-m) - math.exp(-m)), (3.0 * u).exp().clamp_max(100.0)


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("kind", [GCIQLLoss, GCSQLLoss, GCEQLLoss, GCXQLLoss])
def test_losses_equal_a_computation_with_plain_modules(kind, num):
    built, batch = networks(num), random_batch()
    qs, value, head = (copy.deepcopy(x) for x in (built.score, built.value.module, built.actor.module[0].module))
    options = {"expectile": 0.8} if kind is GCIQLLoss else {"alpha": 2.0}
    loss = kind(built.actor, built.score, built.value, gamma=GAMMA, **options)
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():
        for target in loss.target_qvalue_network_params.values(True, True):
            target += 0.1
        targets = copy.deepcopy(qs)
        for parameter in (p for t in targets for p in t.parameters()):
            parameter += 0.1
    s, g, a = batch["observation"], batch["desired_goal"], batch["action"]
    q = torch.stack([t.module(s, g, a) for t in targets]).amin(0)
    v = value(s, g)
    row, weight = value_and_weight(kind, q - v)
    if kind is GCSQLLoss:
        row = (((q - v) / 4 + 1).clamp_min(0)) ** 2 + v / 2
    elif kind is GCEQLLoss:
        z, m = row
        row = (z - m).exp() + math.exp(-m) * v / 2
    loc, scale = head(s, g)
    log_prob = (-0.5 * ((a - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1, keepdim=True)
    bootstrap = torch.where(batch["next", "terminated"], 0.0, value(batch["next", "observation"], g))
    y = batch["next", "reward"] + GAMMA * bootstrap
    errors = [t.module(s, g, a) - y for t in qs]
    half = 0.5 if kind is GCXQLLoss else 1.0  # all errors lie below Huber's 20
    loss_q = sum(half * (e**2).mean() for e in errors)
    out = loss(batch)
    torch.testing.assert_close(out["loss_value"], row.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["loss_actor"], -(weight * log_prob).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["loss_qvalue"], loss_q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["mean_advantage"], (q - v).mean())
    torch.testing.assert_close(loss.advantage(batch), (q - v).squeeze(-1))
    assert not loss.advantage(batch).requires_grad


@pytest.mark.parametrize("kind", [GCIQLLoss, GCEQLLoss, GCXQLLoss])
def test_in_horizons_a_temperature_of_ten_is_two_at_a_discount_of_point_eight(kind):
    built, batch = networks(), random_batch()
    losses = []
    for options in ({"temperature": 10.0, "advantage_unit": "horizon"}, {"temperature": 2.0}):
        loss = kind(built.actor, built.score, built.value, gamma=0.8, **options)
        SoftUpdate(loss, tau=0.1)
        losses.append(loss(batch))
    horizon, score = losses
    for key in ("loss_actor", "awr_weight", "loss_value", "loss_qvalue"):
        torch.testing.assert_close(horizon[key], score[key])
    torch.testing.assert_close(horizon["mean_advantage"], 0.2 * score["mean_advantage"])


@pytest.mark.parametrize("name", ["gciql", "gcsql", "gceql", "gcxql"])
def test_the_methods_give_the_losses_of_forward_one_by_one(name, build, batch_for):
    loss = build(name)
    batch = batch_for(loss)
    out = loss(batch)
    for part in ("value", "actor", "qvalue"):
        torch.testing.assert_close(getattr(loss, f"{part}_loss")(batch)[0], out[f"loss_{part}"])


def test_a_soft_update_moves_the_target_qs_alone(build):
    loss = build("gciql", updater=False)
    updater = SoftUpdate(loss, tau=0.25)
    before = loss.target_qvalue_network_params.clone()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += 1.0
    updater.step()
    for key, target in loss.target_qvalue_network_params.items(True, True):
        torch.testing.assert_close(target, before[key] + 0.25)
    assert not any(name.startswith(("target_value", "target_actor")) for name in loss.state_dict())


@pytest.mark.parametrize("kind", [GCIQLLoss, GCSQLLoss, GCEQLLoss, GCXQLLoss])
def test_terminated_stops_the_bootstrap_unless_switched_off(kind):
    batch = random_batch()
    batch["next", "terminated"] = torch.ones(8, 1, dtype=torch.bool)
    built = networks()
    for use in (True, False):
        loss = kind(built.actor, built.score, built.value, use_terminated=use)
        SoftUpdate(loss, tau=0.1)
        other = batch.clone()
        other["next", "observation"] = batch["next", "observation"] + 1.0
        assert torch.equal(loss(batch)["loss_qvalue"], loss(other)["loss_qvalue"]) == use
        assert (("next", "terminated") in loss.in_keys) == use


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        (GCIQLLoss, {"gamma": 1.0}, r"gamma must lie in \(0, 1\), got 1.0"),
        (GCIQLLoss, {"expectile": 1.0}, "expectile must lie"),
        (GCSQLLoss, {"weight_clip": 0.0}, "weight_clip must be positive, got 0.0"),
        (GCEQLLoss, {"alpha": 0.0}, "alpha must be positive, got 0.0"),
        (GCXQLLoss, {"huber_delta": -1.0}, "huber_delta must be positive, got -1.0"),
    ],
    ids=str,
)
def test_bad_options_are_refused(kind, kwargs, message):
    built = networks()
    with pytest.raises(ValueError, match=message):
        kind(built.actor, built.score, built.value, **kwargs)


def test_other_mistakes_are_refused():
    built = networks()
    with pytest.raises(TypeError, match="must be stochastic"):
        GCSQLLoss(built.value, built.score, built.value)
    with pytest.raises(ValueError, match="at least one, got an empty sequence"):
        GCIQLLoss(built.actor, [], built.value)
    with pytest.raises(TypeError, match="temperature"):
        GCSQLLoss(built.actor, built.score, built.value, temperature=1.0)


def test_defaults_are_those_of_the_code():
    built = networks()
    args = (built.actor, built.score, built.value)
    assert GCEQLLoss(*args, alpha=2.0).temperature.item() == 5.0
    assert GCXQLLoss(*args).temperature.item() == 3.0
    assert GCXQLLoss(*args).huber_delta == 20.0
    assert GCXQLLoss(*args, huber_delta=None).huber_delta is None
    assert GCSQLLoss(*args).huber_delta is None


@pytest.mark.parametrize("kind", [GCEQLLoss, GCXQLLoss])
def test_rows_without_weight_do_not_rescale_the_value_loss(kind):
    built, batch = networks(), random_batch(40)
    loss = kind(built.actor, built.score, built.value, gamma=GAMMA)
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():  # positive weights on the features of huge actions: a huge Q
        loss.target_qvalue_network_params["module", "layers", "2", "weight"].abs_()
    batch["action"][5:] *= 1e3
    kept = loss(batch[:5])["loss_value"]
    assert loss(batch[5:])["mean_advantage"] > 10.0
    weighted = batch.clone().set("priority_weight", (torch.arange(40) < 5).float())
    torch.testing.assert_close(loss(weighted)["loss_value"], kept)
