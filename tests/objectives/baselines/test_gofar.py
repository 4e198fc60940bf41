"""GoFAR against its formulas written out with plain modules, and its variants."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import ConcatMLP, TanhMLP, goal_specs, make_discriminator, make_networks
from torchrl_smore.objectives import GoFARLoss

GAMMA = 0.9
SPECS = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)


def networks():
    return make_networks(*SPECS, hidden=(6,)), make_discriminator(SPECS[0], hidden=(6,))


def random_batch(size=8):
    def draw(n):
        return torch.randn(size, n)

    after = {"observation": draw(3), "reward": -(torch.rand(size, 1) > 0.3).float()}
    root = {"observation": draw(3), "initial_observation": draw(3), "action": draw(2), "next": after}
    return TensorDict({**root, "desired_goal": draw(2), "achieved_goal": draw(2)}, [size])


def build_loss(built, discriminator, **kwargs):
    loss = GoFARLoss(built.actor, built.value, discriminator, gamma=GAMMA, **kwargs)
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():
        for target in loss.target_value_network_params.values(True, True):
            target += 0.1
    return loss


@pytest.mark.parametrize("reward", ["discriminator", "binary"])
@pytest.mark.parametrize("variant", ["chi2", "kl", "expectile_awr"])
def test_losses_equal_a_computation_with_plain_modules(variant, reward):
    (built, discriminator), batch = networks(), random_batch()
    value, head = copy.deepcopy(built.value.module), copy.deepcopy(built.actor.module[0].module)
    target, c = copy.deepcopy(value), copy.deepcopy(discriminator.module)
    with torch.no_grad():
        for p in target.parameters():
            p += 0.1
    options = {"divergence": variant} if variant != "expectile_awr" else {"actor_weight": variant}
    loss = build_loss(built, discriminator if reward == "discriminator" else None, reward=reward, **options)
    s, g, a, ag = (batch[key] for key in ("observation", "desired_goal", "action", "achieved_goal"))
    # the log-odds of c, from c itself
    p = c(ag, g).double().sigmoid()
    r = (p.log() - (1 - p).log()).float().detach() if reward == "discriminator" else batch["next", "reward"]
    e = r + GAMMA * target(batch["next", "observation"], g).detach() - value(s, g)
    start = (1 - GAMMA) * value(batch["initial_observation"], g).mean()
    if variant == "chi2":
        loss_value, w = start + ((e + 1) ** 2).mean(), (e + 1).relu()
    elif variant == "kl":
        loss_value, w = start + e.exp().mean().log(), e.exp().clamp(0, 10)
    else:
        loss_value, w = (torch.where(e > 0, 0.8, 0.2) * e**2).mean(), (3 * e).exp().clamp_max(100.0)
    loss_actor = (w.detach() * (head(s, g)[0] - a) ** 2).mean()
    out = loss(batch)
    torch.testing.assert_close(out["loss_value"], loss_value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["loss_actor"], loss_actor, rtol=1e-4, atol=1e-5)
    assert ("loss_discriminator" in set(out.keys())) == (reward == "discriminator")
    loss_value.backward()
    out["loss_value"].backward()
    grad = {name: p.grad for name, p in loss.named_parameters() if name.startswith("value")}
    for mine, theirs in zip(sorted(grad), sorted(name for name, _ in value.named_parameters())):
        torch.testing.assert_close(grad[mine], dict(value.named_parameters())[theirs].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("coef", [0.0, 0.01, 5.0])
def test_the_discriminator_loss_equals_one_by_double_differentiation(coef):
    (built, discriminator), batch = networks(), random_batch()
    c = copy.deepcopy(discriminator.module)
    loss = build_loss(built, discriminator, gradient_penalty_coef=coef)
    g, ag = batch["desired_goal"], batch["achieved_goal"]
    torch.manual_seed(3)
    part = torch.rand(8, 1)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(c(g, g), torch.ones(8, 1)) + bce(c(ag, g), torch.zeros(8, 1))
    mixed = (part * torch.cat([g, g], -1) + (1 - part) * torch.cat([ag, g], -1)).requires_grad_()
    (gradient,) = torch.autograd.grad(c(*mixed.chunk(2, -1)).sum(), mixed, create_graph=True)
    expected = expected + coef * (gradient.norm(dim=-1) - 1).square().mean()
    torch.manual_seed(3)
    ours, _ = loss.discriminator_loss(batch)
    torch.testing.assert_close(ours, expected)
    ours.backward()
    expected.backward()
    theirs = dict(c.named_parameters())
    for name, parameter in loss.named_parameters():
        if name.startswith("discriminator"):
            torch.testing.assert_close(parameter.grad, theirs[name.split(".module.")[1]].grad)


def test_the_methods_give_the_losses_of_forward_one_by_one(build, batch_for):
    loss = build("gofar")
    batch = batch_for(loss)
    out = loss(batch)
    for part in ("value", "actor", "discriminator"):
        torch.testing.assert_close(getattr(loss, f"{part}_loss")(batch)[0], out[f"loss_{part}"])


def test_the_discriminator_learns_to_tell_goals_from_achieved_goals():
    built, discriminator = networks()
    loss = build_loss(built, discriminator)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(60):
        batch = random_batch(64)
        batch["achieved_goal"] = batch["desired_goal"] + torch.where(torch.rand(64, 1) > 0.5, 3.0, -3.0)
        value, _ = loss.discriminator_loss(batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert loss._logit(batch, batch["desired_goal"]).mean() > 0.5
    assert loss._logit(batch).mean() < -0.5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reward": "sparse"}, "unknown reward"),
        ({"actor_weight": "awr"}, "unknown actor_weight"),
        ({"divergence": "chi"}, "unknown divergence"),
        ({"reward": "binary"}, "and 'binary' none, got one"),
        ({"gradient_penalty_coef": -1.0}, "gradient_penalty_coef must not be negative"),
        ({"weight_clip": -1.0}, "weight_clip must be positive, got -1.0"),
        ({"gamma": 0.0}, "gamma must lie"),
        ({"actor_weight": "expectile_awr", "expectile": 1.0}, "expectile must lie"),
    ],
    ids=str,
)
def test_bad_options_are_refused(kwargs, message):
    built, discriminator = networks()
    with pytest.raises(ValueError, match=message):
        GoFARLoss(built.actor, built.value, discriminator, **kwargs)


def test_a_missing_discriminator_and_an_ambiguous_state_are_refused():
    built, discriminator = networks()
    with pytest.raises(ValueError, match="needs a discriminator_network and 'binary' none, got none"):
        GoFARLoss(built.actor, built.value)
    value = TensorDictModule(ConcatMLP(7, 1, (6,)), ["observation", "achieved_goal", "desired_goal"], ["state_value"])
    loss = GoFARLoss(built.actor, value, discriminator)
    SoftUpdate(loss, tau=0.1)
    batch = random_batch()
    batch["next", "achieved_goal"] = torch.randn(8, 2)
    with pytest.raises(ValueError, match="must read one entry besides the goal"):
        loss(batch)


def test_a_batch_without_initial_observations_is_told_who_writes_them():
    built, discriminator = networks()
    batch = random_batch().exclude("initial_observation")
    advice = r"GoFARLoss reads 'initial_observation', which .*HindsightGoalTransform .* GoalTransition\(initial=True\)"
    with pytest.raises(KeyError, match=advice):
        build_loss(built, discriminator)(batch)
    assert build_loss(built, discriminator, actor_weight="expectile_awr")(batch)["loss_value"].isfinite()


def test_the_code_s_defaults():
    built, discriminator = networks()
    loss = GoFARLoss(built.actor, built.value, discriminator)
    assert (loss.gamma, loss.gradient_penalty_coef, loss.actor_weight) == (0.98, 0.01, "dual")
    assert not dict(loss.named_buffers()).keys() & {"expectile", "temperature"}


def test_a_binary_reward_has_no_discriminators_loss():
    built, _ = networks()
    with pytest.raises(ValueError, match="only reward='discriminator' has a discriminator, got 'binary'"):
        GoFARLoss(built.actor, built.value, reward="binary").discriminator_loss(random_batch())


class Flattened(torch.nn.Module):
    """A discriminator of goals ``[*B, 2, 2, 3]`` or ``[*B, 12]``."""

    def __init__(self):
        super().__init__()
        self.network = TanhMLP(24, 1, (6,))

    def forward(self, *goals):
        return self.network(*(goal.float().reshape(*goal.shape[:-3], 12) if goal.ndim > 3 else goal for goal in goals))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_the_gradient_penalty_takes_pictures_row_by_row(dtype):
    built, _ = networks()
    discriminator = TensorDictModule(Flattened(), ["achieved_goal", "desired_goal"], ["logit"])
    loss = build_loss(built, discriminator, gradient_penalty_coef=5.0)
    pictures = {key: torch.randint(0, 4, (8, 2, 2, 3)).to(dtype) for key in ("achieved_goal", "desired_goal")}
    torch.manual_seed(3)
    ours, _ = loss.discriminator_loss(TensorDict(pictures, [8]))
    # as vectors, whose penalty is that of a double differentiation
    torch.manual_seed(3)
    vectors = {key: picture.float().reshape(8, 12) for key, picture in pictures.items()}
    expected, _ = loss.discriminator_loss(TensorDict(vectors, [8]))
    torch.testing.assert_close(ours, expected)
