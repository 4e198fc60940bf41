"""Actionable Models against their formulas written out with plain modules."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import ActionableModelsLoss

N, GAMMA = 8, 0.9


def networks(num=1):
    return make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=2), hidden=(6,), num_score_nets=num)


def random_batch():
    after = {"observation": torch.randn(N, 3), "reward": -(torch.rand(N, 1) > 0.3).float()}
    root = {"observation": torch.randn(N, 3), "action": torch.randn(N, 2), "desired_goal": torch.randn(N, 2)}
    return TensorDict({**root, "next": after}, [N])


def build_loss(built, **kwargs):
    loss = ActionableModelsLoss(built.actor, built.score, gamma=GAMMA, **kwargs)
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():
        for name in ("actor", "qvalue"):
            for target in getattr(loss, f"target_{name}_network_params").values(True, True):
                target += 0.1
    return loss


class Plain:
    def __init__(self, built, batch):
        self.q, self.head = copy.deepcopy(built.score[0].module), copy.deepcopy(built.actor.module[0].module)
        self.target_q, self.target_head = copy.deepcopy(self.q), copy.deepcopy(self.head)
        with torch.no_grad():
            for p in [*self.target_q.parameters(), *self.target_head.parameters()]:
                p += 0.1
        self.s, self.a, self.after = batch["observation"], batch["action"], batch["next", "observation"]

    def parts(self, g, r):
        """TD loss and actor loss of a set of goals and rewards."""
        bootstrap = self.target_q(self.after, g, self.target_head(self.after, g)[0])
        target = (r + GAMMA * bootstrap).clamp(-10.0, 0.0).detach()
        td = (self.q(self.s, g, self.a) - target).square().mean()
        return td, -self.q(self.s, g, self.head(self.s, g)[0]).mean()


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_losses_equal_a_computation_with_plain_modules(ratio):
    built, batch = networks(), random_batch()
    plain, loss = Plain(built, batch), build_loss(built, chain_ratio=ratio, conservative_coef=0.0)
    g = batch["desired_goal"]
    own = plain.parts(g, batch["next", "reward"])
    other_goal = g.roll(-1, 0)
    other = plain.parts(other_goal, plain.q(plain.s, other_goal, plain.a).detach())
    out = loss(batch)
    for key, first, second in zip(("loss_qvalue", "loss_actor"), own, other):
        torch.testing.assert_close(out[key], (1 - ratio) * first + ratio * second)
    torch.testing.assert_close(out["policy_qvalue"], -own[1])
    for part in ("qvalue", "actor"):
        torch.testing.assert_close(getattr(loss, f"{part}_loss")(batch)[0], out[f"loss_{part}"])


@pytest.mark.parametrize("num", [1, 2])
def test_the_push_down_is_the_value_of_one_of_the_drawn_actions(num):
    built, batch = networks(num), random_batch()
    qs = [copy.deepcopy(network.module) for network in built.score]
    free, pushed = (build_loss(copy.deepcopy(built), chain_ratio=0.0, conservative_coef=c) for c in (0.0, 2.0))
    torch.manual_seed(4)
    uniform = torch.rand(10, N)
    action = torch.rand(10, N, 2) * 2 - 1
    s, g = (batch[key].expand(10, N, -1) for key in ("observation", "desired_goal"))
    gumbel = -(-uniform.log()).log()
    expected = 0.0
    for q in qs:
        value = q(s, g, action).squeeze(-1)
        expected = expected + value.gather(0, (value + gumbel).argmax(0, keepdim=True)).mean()
    torch.manual_seed(4)
    out = pushed(batch)
    torch.testing.assert_close(out["loss_qvalue"] - free(batch)["loss_qvalue"], 2.0 * expected)
    torch.testing.assert_close(out["random_qvalue"], expected / num)


def test_drawn_actions_fill_the_action_box():
    action, uniform = build_loss(networks(), num_random_actions=500)._draw(torch.zeros(20, 2))
    assert action.shape == (500, 20, 2)
    assert uniform.shape == (500, 20)
    assert -1.0 <= action.min() < -0.99
    assert 0.99 < action.max() <= 1.0


def test_drawn_actions_fill_the_box_of_the_actor():
    low, high = torch.tensor([4.0, -0.5]), torch.tensor([6.0, 0.5])
    observation_spec, _ = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)
    built = make_networks(observation_spec, Bounded(low, high), hidden=(6,), num_score_nets=1)
    action, _ = build_loss(built, num_random_actions=500)._draw(torch.zeros(20, 2))
    assert (action >= low).all()
    assert (action <= high).all()
    width = high - low
    assert (action.amin((0, 1)) < low + 0.01 * width).all()
    assert (action.amax((0, 1)) > high - 0.01 * width).all()


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_gradient_reaches_what_goals_are_made_of_with_any_chaining(ratio):
    loss, batch = build_loss(networks(), chain_ratio=ratio), random_batch()
    # as an encoder that networks share makes them
    batch["desired_goal"] = batch["desired_goal"].clone().requires_grad_()
    loss.qvalue_loss(batch)[0].backward()
    assert (batch["desired_goal"].grad != 0.0).any(-1).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"chain_ratio": 1.5}, r"chain_ratio must lie in \[0, 1\], got 1.5"),
        ({"conservative_coef": -1.0}, "conservative_coef must not be negative"),
        ({"num_random_actions": 0}, "num_random_actions must be positive, got 0"),
        ({"target_bounds": "symmetric"}, "lower < upper, got 'symmetric'"),
        ({"target_bounds": (0.0, 1.0, 2.0)}, "lower < upper"),
    ],
    ids=str,
)
def test_bad_options_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_loss(networks(), **kwargs)


def test_half_a_weight_of_every_row_changes_nothing_where_goals_are_integers():
    built, batch = networks(), random_batch()
    for module in (built.score[0].module, built.actor.module[0].module):
        module.register_forward_pre_hook(lambda module, inputs: tuple(each.float() for each in inputs))
    batch["desired_goal"] = torch.arange(2 * N, dtype=torch.uint8).reshape(N, 2)
    loss = build_loss(built, conservative_coef=0.0)
    plain, halved = loss(batch), loss(batch.clone().set("priority_weight", torch.full((N,), 0.5)))
    for key in ("loss_qvalue", "loss_actor"):
        torch.testing.assert_close(halved[key], plain[key])
