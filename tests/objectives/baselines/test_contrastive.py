"""Contrastive RL, by Monte Carlo and by temporal differences, against formulas with plain modules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_contrastive_networks, make_networks
from torchrl_smore.objectives import ContrastiveRLLoss, ContrastiveTDLoss
from torchrl_smore.objectives.baselines._contrastive import _deterministic

N, LATENT, GAMMA = 8, 4, 0.9


def networks(**kwargs):
    specs = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)
    return make_contrastive_networks(*specs, hidden=(6,), latent=LATENT, **kwargs)


def random_batch():
    after = {"observation": torch.randn(N, 3), "achieved_goal": torch.randn(N, 2)}
    root = {"observation": torch.randn(N, 3), "action": torch.randn(N, 2), "desired_goal": torch.randn(N, 2)}
    return TensorDict({**root, "next": after}, [N])


def plain_critics(built):
    return [copy.deepcopy(critic.module) for critic in built.critic]


def matrix(critics, *inputs):
    """Energies ``[M, N, N]`` of every row with every goal, one by one."""
    *state, goal = inputs
    out = [[[(c.phi(*(x[i] for x in state)) @ c.psi(goal[j])) for j in range(N)] for i in range(N)] for c in critics]
    return torch.stack([torch.stack([torch.stack(row) for row in c]) for c in out])


def test_critic_and_policy_gradient_equal_a_computation_with_plain_modules():
    built, batch = networks(), random_batch()
    critics, head = plain_critics(built), copy.deepcopy(built.actor.module[0].module)
    loss = ContrastiveRLLoss(built.actor, built.critic, bc_coef=0.3)
    s, a, g = batch["observation"], batch["action"], batch["desired_goal"]
    logits = matrix(critics, s, a, g) / LATENT**0.5
    out = loss(batch)
    torch.testing.assert_close(out["loss_critic"], bce(logits, torch.eye(N).expand(2, N, N)))
    mean = logits.mean(0)
    torch.testing.assert_close(out["logit_positive"], mean.diagonal().mean())
    torch.testing.assert_close(out["logit_negative"], mean[~torch.eye(N, dtype=torch.bool)].mean())
    torch.testing.assert_close(out["accuracy"], (mean.argmax(-1) == torch.arange(N)).float().mean())

    loc, scale = head(s, g)
    q = matrix(critics, s, loc.clamp(-1.0, 1.0), g).diagonal(dim1=1, dim2=2).amin(0) / LATENT**0.5
    log_prob = torch.distributions.Normal(loc, scale).log_prob(a).sum(-1)
    expected = -q.mean() / (q.detach().abs().mean() + 1e-6) - 0.3 * log_prob.mean()
    torch.testing.assert_close(out["loss_actor"], expected)
    out["loss_actor"].backward()
    expected.backward()
    theirs = dict(head.named_parameters())
    for name, parameter in loss.named_parameters():
        if name.startswith("actor"):
            torch.testing.assert_close(parameter.grad, theirs[name.split(".module.")[-1]].grad, rtol=1e-3, atol=1e-5)
        else:
            assert parameter.grad is None


def test_awr_takes_the_advantage_over_a_second_pair():
    built, batch = networks(), random_batch()
    critics, value = plain_critics(built), copy.deepcopy(built.value.module)
    head = copy.deepcopy(built.actor.module[0].module)
    loss = ContrastiveRLLoss(built.actor, built.critic, built.value, actor="awr", contrast="infonce", energy="dot")
    s, a, g = batch["observation"], batch["action"], batch["desired_goal"]
    q, v = matrix(critics, s, a, g), matrix([value], s, g)
    out = loss(batch)
    labels = torch.arange(N)
    cross = torch.nn.functional.cross_entropy
    torch.testing.assert_close(out["loss_critic"], (cross(q[0], labels) + cross(q[1], labels)) / 2)
    torch.testing.assert_close(out["loss_value"], cross(v[0], labels))
    advantage = q.diagonal(dim1=1, dim2=2).amin(0) - v[0].diagonal()
    loc, scale = head(s, g)
    log_prob = torch.distributions.Normal(loc, scale).log_prob(a).sum(-1)
    expected = -((3.0 * advantage).exp().clamp_max(100.0).detach() * log_prob).mean()
    torch.testing.assert_close(out["loss_actor"], expected)
    value_loss, _ = loss.contrastive_value_loss(batch)
    torch.testing.assert_close(value_loss, out["loss_value"])


@pytest.mark.parametrize("sample", [False, True])
def test_the_temporal_difference_form_equals_a_computation_with_plain_modules(sample):
    built, batch = networks(std=0.15), random_batch()
    critics, targets = plain_critics(built), plain_critics(built)
    head = copy.deepcopy(built.actor.module[0].module)
    loss = ContrastiveTDLoss(built.actor, built.critic, gamma=GAMMA, sample_action=sample)
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():
        for p in [p for t in targets for p in t.parameters()]:
            p += 0.1
        for p in loss.target_critic_network_params.values(True, True):
            p += 0.1
    s, a, g = batch["observation"], batch["action"], batch["desired_goal"]
    after, entered = batch["next", "observation"], batch["next", "achieved_goal"]
    torch.manual_seed(5)
    other = entered.roll(-1, 0)
    loc, scale = head(after, other)
    action = loc + scale * torch.randn(N, 2) if sample else loc.clamp(-1.0, 1.0)
    p = matrix(targets, after, action, other).diagonal(dim1=1, dim2=2).sigmoid().amin(0)
    w = (p / (1 - p)).clamp(0.0, 20.0).detach()
    f = matrix(critics, s, a, entered)
    positive, negative = f.diagonal(dim1=1, dim2=2), f[:, torch.arange(N), (torch.arange(N) + 1) % N]
    one, zero = torch.ones(2, N), torch.zeros(2, N)
    rows = (1 - GAMMA) * bce(positive, one, reduction="none") + bce(negative, zero, reduction="none")
    rows = rows + GAMMA * w * bce(negative, one, reduction="none")
    torch.manual_seed(5)
    out = loss(batch)
    torch.testing.assert_close(out["loss_critic"], rows.mean())
    torch.testing.assert_close(out["td_weight"], w.mean())
    torch.manual_seed(6)
    actor, _ = loss.actor_loss(batch)
    torch.manual_seed(6)
    loc, scale = head(s, g)
    action = loc + scale * torch.randn(N, 2) if sample else loc.clamp(-1.0, 1.0)
    q = matrix(critics, s, action, g).diagonal(dim1=1, dim2=2).amin(0)
    log_prob = torch.distributions.Normal(loc, scale).log_prob(a).sum(-1)
    torch.testing.assert_close(actor, -0.95 * q.mean() - 0.05 * log_prob.mean())


class SumOfActions(nn.Module):
    """Embeddings whose product is the sum of the action's components."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, action, goal):
        return torch.stack([action * self.one, torch.ones_like(action)], -2)


@pytest.mark.parametrize("kind", [ContrastiveRLLoss, ContrastiveTDLoss])
def test_the_critic_sees_the_mode_within_the_bounds_of_the_actor(kind):
    observation_spec, _ = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)
    actor = make_networks(observation_spec, Bounded(4.0, 6.0, (2,)), hidden=(6,)).actor
    last = actor.module[0].module.trunk.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, math.atanh(0.1))  # the mean lies a tenth of the way from 5 to 6
    critic = TensorDictModule(SumOfActions(), ["action", "desired_goal"], ["embedding"])
    loss = kind(actor, critic, energy="dot", sample_action=False, normalize_q=False, q_coef=1.0, bc_coef=0.0)
    if kind is ContrastiveTDLoss:
        SoftUpdate(loss, tau=0.1)
    out = loss(random_batch())
    torch.testing.assert_close(out["policy_energy"], torch.tensor(2 * 5.1))
    out["loss_actor"].backward()
    (bias,) = (p for name, p in loss.named_parameters() if name.endswith("trunk.layers.2.bias"))
    # d (5 + tanh b) / db
    torch.testing.assert_close(bias.grad, torch.full((2,), -(1.0 - 0.1**2)))


def test_the_methods_give_the_losses_of_forward_one_by_one(build, batch_for):
    for name in ("crl", "crl_awr", "crl_td"):
        loss = build(name)
        batch = batch_for(loss)
        out = loss(batch)
        for part in ("critic", "actor"):
            torch.testing.assert_close(getattr(loss, f"{part}_loss")(batch)[0], out[f"loss_{part}"])


@pytest.mark.parametrize("latent", [1, 3])
def test_an_embedding_of_one_dimension_is_not_lost(latent):
    built = make_contrastive_networks(*goal_specs(3, 2, 2), hidden=(6,), latent=latent)
    loss = ContrastiveRLLoss(built.actor, built.critic, energy="dot")
    batch = random_batch()
    phi, psi = loss._embeddings("critic_network", batch, loss.critic_network_params)
    assert phi.shape == psi.shape == (2, N, latent)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"contrast": "nce"}, "unknown contrast"),
        ({"energy": "cosine"}, "unknown energy"),
        ({"actor": "bc"}, "unknown actor"),
        ({"actor": "awr"}, "needs a value_network and 'ddpgbc' none, got none"),
        ({"logsumexp_coef": -0.1}, "logsumexp_coef must not be negative"),
        ({"bc_coef": -0.1}, "bc_coef must not be negative, got -0.1"),
        ({"q_coef": -1.0}, "q_coef must not be negative, got -1.0"),
    ],
    ids=str,
)
def test_bad_options_are_refused(kwargs, message):
    built = networks()
    with pytest.raises(ValueError, match=message):
        ContrastiveRLLoss(built.actor, built.critic, **kwargs)


def test_other_mistakes_are_refused():
    built = networks()
    with pytest.raises(ValueError, match="'ddpgbc' none, got one"):
        ContrastiveRLLoss(built.actor, built.critic, built.value)
    with pytest.raises(ValueError, match="gamma must lie"):
        ContrastiveTDLoss(built.actor, built.critic, gamma=1.0)
    with pytest.raises(TypeError, match="must be stochastic"):
        ContrastiveRLLoss(built.value, built.critic)
    with pytest.raises(ValueError, match="only actor='awr' has a value"):
        ContrastiveRLLoss(built.actor, built.critic).contrastive_value_loss(random_batch())


class ConstantLocation(nn.Module):
    def __init__(self, location):
        super().__init__()
        self.loc = nn.Parameter(torch.full((2,), location))

    def forward(self, observation):
        loc = self.loc.expand(*observation.shape[:-1], 2)
        return loc, torch.ones_like(loc)


@pytest.mark.parametrize("kind", [ContrastiveRLLoss, ContrastiveTDLoss])
@pytest.mark.parametrize(("bounds", "expected"), [({}, 0.7), ({"low": -2.0, "high": 2.0}, 1.4)], ids=str)
def test_the_policy_may_be_a_squashed_normal_which_has_no_mean(kind, bounds, expected):
    head = TensorDictModule(ConstantLocation(math.atanh(0.7)), ["observation"], ["loc", "scale"])
    # torch.compile cannot trace the safe one
    options = {"distribution_class": TanhNormal, "distribution_kwargs": {**bounds, "safe_tanh": False}}
    actor = ProbabilisticActor(head, in_keys=["loc", "scale"], out_keys=["action"], **options)
    critic = TensorDictModule(SumOfActions(), ["action", "desired_goal"], ["embedding"])
    loss = kind(actor, critic, energy="dot", sample_action=False, normalize_q=False, q_coef=1.0, bc_coef=0.0)
    if kind is ContrastiveTDLoss:
        SoftUpdate(loss, tau=0.1)
    batch = random_batch()
    batch["action"] = batch["action"].tanh()
    out = loss(batch)
    torch.testing.assert_close(out["policy_energy"], torch.tensor(2 * expected))
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)(batch)
    torch.testing.assert_close(compiled["policy_energy"], out["policy_energy"])
    out["loss_actor"].backward()
    # d tanh(l) / dl, and twice as much in a box twice as wide
    slope = (1.0 - 0.7**2) * expected / 0.7
    torch.testing.assert_close(loss.actor_network_params["module", "0", "module", "loc"].grad, torch.full((2,), -slope))


def test_the_deterministic_action_is_the_mode_and_only_without_one_the_mean():
    loc = torch.tensor([0.5])
    gumbel = torch.distributions.Gumbel(loc, torch.ones(1))
    assert torch.equal(_deterministic(gumbel), loc)
    parts = torch.distributions.Normal(torch.tensor([0.0, 4.0]), torch.ones(2))
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.tensor([0.25, 0.75])), parts)
    assert _deterministic(mixture).item() == 3.0


def test_half_a_weight_of_every_row_changes_nothing_where_goals_are_integers():
    built, batch = networks(), random_batch()
    for module in (*(critic.module.psi for critic in built.critic), built.actor.module[0].module):
        module.register_forward_pre_hook(lambda module, inputs: tuple(each.float() for each in inputs))
    goals = torch.arange(2 * N, dtype=torch.uint8).reshape(N, 2)
    batch["desired_goal"], batch["next", "achieved_goal"] = goals, goals.flip(0)
    loss = ContrastiveTDLoss(built.actor, built.critic, sample_action=False)
    SoftUpdate(loss, tau=0.1)
    plain, halved = loss(batch), loss(batch.clone().set("priority_weight", torch.full((N,), 0.5)))
    for key, value in plain.items():
        torch.testing.assert_close(halved[key], value, msg=lambda said, key=key: f"{key}: {said}")
