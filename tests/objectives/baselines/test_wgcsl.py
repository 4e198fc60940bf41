"""GCSL and WGCSL against their formulas written out with plain modules; the best-advantage memory."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import GCSLLoss, WGCSLLoss

GAMMA = 0.9


def networks():
    return make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=2), hidden=(6,), num_score_nets=1)


def random_batch(size=8):
    return TensorDict(
        {
            "observation": torch.randn(size, 3),
            "desired_goal": torch.randn(size, 2),
            "action": torch.randn(size, 2),
            "goal_offset": torch.randint(-1, 5, (size, 1)),
            "next": {"observation": torch.randn(size, 3), "reward": -(torch.rand(size, 1) > 0.3).float()},
        },
        [size],
    )


def test_gcsl_is_the_squared_error_of_the_mean_or_the_likelihood():
    built, batch = networks(), random_batch()
    head = built.actor.module[0].module
    loc, scale = head(batch["observation"], batch["desired_goal"])
    expected = (loc - batch["action"]).square().mean()
    mse, nll = GCSLLoss(networks_actor := copy.deepcopy(built.actor)), GCSLLoss(built.actor, regression="nll")
    assert networks_actor is not built.actor
    out = mse(batch)
    torch.testing.assert_close(out["loss_actor"], expected)
    torch.testing.assert_close(out["action_error"], expected)
    log_prob = torch.distributions.Normal(loc, scale).log_prob(batch["action"]).sum(-1)
    torch.testing.assert_close(nll(batch)["loss_actor"], -log_prob.mean())
    torch.testing.assert_close(nll(batch)["log_prob"], log_prob.mean())
    assert mse.in_keys == ["observation", "desired_goal", "action"]


class Plain:
    """The algorithm with plain modules; targets are shifted by 0.1."""

    def __init__(self, built, batch):
        self.q, self.head = copy.deepcopy(built.score[0].module), copy.deepcopy(built.actor.module[0].module)
        self.target_q, self.target_head = copy.deepcopy(self.q), copy.deepcopy(self.head)
        with torch.no_grad():
            for p in [*self.target_q.parameters(), *self.target_head.parameters()]:
                p += 0.1
        self.s, self.g, self.a = batch["observation"], batch["desired_goal"], batch["action"]
        self.after, self.r, self.offset = batch["next", "observation"], batch["next", "reward"], batch["goal_offset"]

    def target(self):
        action = self.target_head(self.after, self.g)[0]
        return (self.r + GAMMA * self.target_q(self.after, self.g, action)).clamp(-10.0, 0.0)

    def here(self):
        return self.q(self.s, self.g, self.head(self.s, self.g)[0])

    def losses(self, advantage, extra=1.0):
        w = GAMMA ** self.offset.clamp(min=0).float() * advantage.exp().clamp(0.0, 10.0) * extra
        error = (self.head(self.s, self.g)[0] - self.a).square().mean(-1, keepdim=True)
        return (w.detach() * error).mean(), (self.q(self.s, self.g, self.a) - self.target().detach()).square().mean()


def built_loss(built, **kwargs):
    loss = WGCSLLoss(built.actor, built.score, gamma=GAMMA, **kwargs)
    SoftUpdate(loss, tau=0.1)
    with torch.no_grad():
        for name in ("actor", "qvalue"):
            for target in getattr(loss, f"target_{name}_network_params").values(True, True):
                target += 0.1
    return loss


def test_the_port_equals_a_computation_with_plain_modules():
    built, batch = networks(), random_batch()
    plain, loss = Plain(built, batch), built_loss(built)
    advantage = plain.target() - plain.here().clamp(-10.0, 0.0)
    actor, qvalue = plain.losses(advantage)
    out = loss(batch)
    torch.testing.assert_close(out["loss_actor"], actor)
    torch.testing.assert_close(out["loss_qvalue"], qvalue)
    torch.testing.assert_close(out["mean_advantage"], advantage.mean())
    assert out["below_threshold"] == 0.0
    for part in ("actor", "qvalue"):
        torch.testing.assert_close(getattr(loss, f"{part}_loss")(batch)[0], out[f"loss_{part}"])


def test_the_original_equals_a_computation_with_plain_modules():
    built, batch = networks(), random_batch()
    plain = Plain(built, batch)
    loss = built_loss(
        built,
        threshold="percentile",
        advantage="online",
        threshold_step=40.0,
        target_bounds=(-10.0, 0.0),
        memory_size=100,
    )
    after = plain.q(plain.after, plain.g, plain.head(plain.after, plain.g)[0])
    advantage = plain.r + GAMMA * after - plain.here()
    for percent in (40.0, 80.0, 80.0):
        threshold = torch.quantile(advantage, percent / 100)
        actor, _ = plain.losses(advantage, torch.where(advantage >= threshold, 1.0, 0.05))
        # the memory holds copies of one batch: interpolation between equal neighbours differs
        memory = advantage.detach().repeat(loss.num_updates.item() + 1, 1)
        threshold = torch.quantile(memory, percent / 100)
        actor, _ = plain.losses(advantage, torch.where(advantage >= threshold, 1.0, 0.05))
        out = loss(batch)
        torch.testing.assert_close(out["loss_actor"], actor)
        torch.testing.assert_close(out["below_threshold"], (advantage < threshold).float().mean())


def test_the_memory_moves_in_training_mode_only_and_skips_masked_rows():
    loss = built_loss(networks(), threshold="percentile", memory_size=20)
    batch = random_batch().set(("collector", "mask"), torch.arange(8) < 5)
    loss.eval()
    loss(batch)
    assert loss.num_updates == 0
    assert loss.advantage_memory.isnan().all()
    loss.train()
    loss(batch)
    assert loss.num_updates == 1
    assert (~loss.advantage_memory.isnan()).sum() == 5
    state = loss.state_dict()
    assert {"advantage_memory", "num_updates"} <= set(state)


def test_the_memory_of_stacked_seeds_moves_under_vmap():
    losses = [built_loss(networks(), threshold="percentile", memory_size=20) for _ in range(2)]
    batches = [random_batch() for _ in losses]
    stacked = TensorDict.from_modules(*losses, as_module=False, lock=False)

    def run(parameters, batch):
        with parameters.to_module(losses[0], preserve_module_state=False):
            return losses[0](batch)

    torch.vmap(run)(stacked, torch.stack(batches))
    out = torch.vmap(run)(stacked, torch.stack(batches))
    for k, (loss, batch) in enumerate(zip(losses, batches)):
        loss(batch)
        torch.testing.assert_close(out["loss_actor"][k], loss(batch)["loss_actor"])
        torch.testing.assert_close(stacked["advantage_memory"][k], loss.advantage_memory, equal_nan=True)
    assert stacked["num_updates"].tolist() == [2, 2]


def test_without_the_discount_no_offset_is_read():
    loss = built_loss(networks(), discount_offset=False)
    assert "goal_offset" not in loss.in_keys
    assert loss(random_batch().exclude("goal_offset"))["loss_actor"].isfinite()


def test_a_batch_without_offsets_is_told_who_writes_them():
    advice = r"WGCSLLoss reads 'goal_offset', which .*HindsightGoalTransform\(step_key='step_count'\).*discount_offset"
    with pytest.raises(KeyError, match=advice):
        built_loss(networks())(random_batch().exclude("goal_offset"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"threshold": "percent"}, "unknown threshold"),
        ({"advantage": "offline"}, "unknown advantage"),
        ({"regression": "mae"}, "unknown regression"),
        ({"gamma": 1.0}, "gamma must lie"),
        ({"target_bounds": (0.0, -1.0)}, "lower < upper"),
        ({"target_bounds": "symetric"}, "unknown target_bounds"),
        ({"weight_clip": 0.0}, "weight_clip must be positive, got 0.0"),
        ({"memory_size": 0}, "memory_size must be positive, got 0"),
        ({"low_weight": -1.0}, "low_weight must not be negative, got -1.0"),
        ({"threshold_step": -3.0}, "threshold_step must not be negative, got -3.0"),
        ({"threshold_max": 200.0}, r"threshold_max must lie in \[0, 100\], got 200.0"),
    ],
    ids=str,
)
def test_bad_options_are_refused(kwargs, message):
    built = networks()
    with pytest.raises(ValueError, match=message):
        WGCSLLoss(built.actor, built.score, **kwargs)


def test_a_likelihood_needs_a_stochastic_actor():
    with pytest.raises(TypeError, match="must be stochastic"):
        GCSLLoss(networks().value, regression="nll")


def test_default_bounds_are_those_of_the_return():
    built = networks()
    assert WGCSLLoss(built.actor, built.score).target_bounds == pytest.approx((-50.0, 0.0))
    assert math.isclose(WGCSLLoss(built.actor, built.score, gamma=0.5).target_bounds[0], -2.0)


def test_the_threshold_imitates_the_better_action_alone():
    # two actions, one of them a step towards the goal: GCSL averages, the threshold prefers the better
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 1, generator=generator)
    good = torch.rand(256, 1, generator=generator) > 0.5
    batch = TensorDict(
        {
            "observation": torch.cat([x, x, x], -1),
            "desired_goal": torch.ones(256, 2),
            "action": torch.where(good, 0.5, -0.5).expand(256, 2).clone(),
            "goal_offset": torch.zeros(256, 1, dtype=torch.int64),
            "next": {"observation": torch.where(good, 1.0, 0.0).expand(256, 3).clone(), "reward": good.float() - 1.0},
        },
        [256],
    )
    built = networks()
    loss = WGCSLLoss(
        built.actor, built.score, gamma=0.5, threshold="percentile", threshold_step=5.0, threshold_max=50.0
    )
    updater, optimiser = SoftUpdate(loss, tau=0.1), torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(80):
        out = loss(batch)
        optimiser.zero_grad()
        (out["loss_actor"] + out["loss_qvalue"]).backward()
        optimiser.step()
        updater.step()
    with torch.no_grad():
        action = loss._policy_action(batch, loss.actor_network_params)
    assert action.mean() > 0.3


STATES = 12
ORIGINAL = {"threshold": "percentile", "advantage": "online", "target_bounds": "symmetric"}


class ChainTable(torch.nn.Module):
    """Q or the policy on a chain: an entry for each state, goal and, of Q, step to the right (1) or none (0)."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(table)

    def forward(self, observation, goal, *action):
        index = [x.argmax(-1) for x in (observation, goal)] + [a.squeeze(-1).round().long() for a in action]
        return self.table[tuple(index)].unsqueeze(-1)


def chain_batch(state, action, goal, offset=None):
    after = (state + action).clamp_max(STATES - 1)
    eye = torch.eye(STATES)
    return TensorDict(
        {
            "observation": eye[state],
            "desired_goal": eye[goal],
            "action": action[:, None].float(),
            "goal_offset": torch.full((len(state), 1), -1) if offset is None else offset[:, None],
            "next": {"observation": eye[after], "reward": (after == goal)[:, None].float()},
        },
        [len(state)],
    )


def test_weights_on_a_chain_are_those_of_a_critic_of_rewards_0_and_1():
    # the goal is the last state, and the policy always steps to the right: entering it pays 1 and staying there
    # again, so V(s) = gamma^(10 - s) / (1 - gamma) below the goal and 1 / (1 - gamma) at it
    value = GAMMA ** (STATES - 2 - torch.arange(STATES)).clamp_min(0).double() / (1 - GAMMA)
    stay = GAMMA * value
    stay[-1] = value[-1]
    table = torch.zeros(STATES, STATES, 2)
    table[:, -1] = torch.stack([stay, value], -1).float()
    q = TensorDictModule(ChainTable(table), ["observation", "desired_goal", "action"], ["score"])
    actor = TensorDictModule(ChainTable(torch.ones(STATES, STATES)), ["observation", "desired_goal"], ["action"])
    loss = WGCSLLoss(actor, q, gamma=GAMMA, **ORIGINAL)
    loss.eval()
    SoftUpdate(loss, tau=0.1)
    goal = torch.tensor([STATES - 1])
    for state in range(STATES):
        for action in (0, 1):
            batch = chain_batch(torch.tensor([state]), torch.tensor([action]), goal)
            out = loss(batch)
            # a step of the policy has no advantage; standing still loses a step of the discount
            advantage = 0.0 if action == 1 or state == STATES - 1 else -(1 - GAMMA) * value[state].item()
            torch.testing.assert_close(out["td_error"].item(), 0.0, atol=1e-5, rtol=0.0)
            torch.testing.assert_close(out["mean_advantage"].item(), advantage, atol=1e-5, rtol=0.0)
            torch.testing.assert_close(out["actor_weight"].item(), math.exp(advantage), atol=1e-5, rtol=0.0)


def test_the_weight_reaches_its_cap_at_an_advantage_of_ln_10():
    table = torch.zeros(STATES, STATES, 2)
    actor = TensorDictModule(ChainTable(torch.ones(STATES, STATES)), ["observation", "desired_goal"], ["action"])
    row = chain_batch(torch.tensor([0]), torch.tensor([1]), torch.tensor([STATES - 1]))
    for advantage, weight in ((1.3, math.exp(1.3)), (2.3, math.exp(2.3)), (2.31, 10.0)):
        table[0, -1, 1] = -advantage
        q = TensorDictModule(ChainTable(table.clone()), ["observation", "desired_goal", "action"], ["score"])
        loss = WGCSLLoss(actor, q, gamma=GAMMA, **ORIGINAL).eval()
        SoftUpdate(loss, tau=0.1)
        assert loss(row)["actor_weight"].item() == pytest.approx(weight, rel=1e-5)


class Original:
    """AWGCSL's updates on the chain as its source has them: a ring of advantages in numpy, the actor's step first."""

    def __init__(self, built, *, gamma, step, largest, size, lr):
        self.q, self.head = copy.deepcopy(built.score[0].module), copy.deepcopy(built.actor.module[0].module)
        self.target_q, self.target_head = copy.deepcopy(self.q), copy.deepcopy(self.head)
        self.gamma, self.step, self.largest = gamma, step, largest
        self.ring, self.filled, self.place, self.percent = np.zeros(size), 0, 0, 0.0
        self.optimisers = [torch.optim.Adam(part.parameters(), lr=lr) for part in (self.head, self.q)]

    def _threshold(self, advantage):
        for a in advantage:
            self.ring[self.place] = a
            self.place = (self.place + 1) % len(self.ring)
        self.filled = min(self.filled + len(advantage), len(self.ring))
        self.percent = min(self.percent + self.step, self.largest)
        return np.percentile(self.ring[: self.filled], self.percent)

    def update(self, batch):
        s, g, a = batch["observation"], batch["desired_goal"], batch["action"]
        after, r = batch["next", "observation"], batch["next", "reward"]
        with torch.no_grad():
            here = self.q(s, g, self.head(s, g)[0])
            advantage = (r + self.gamma * self.q(after, g, self.head(after, g)[0]) - here).squeeze(-1)
            bound = 1.0 / (1.0 - self.gamma)
            target = r + self.gamma * self.target_q(after, g, self.target_head(after, g)[0])
            target = target.clamp(-bound, bound)
        below = advantage.double().numpy() < self._threshold(advantage.double().numpy())
        weight = self.gamma ** batch["goal_offset"].squeeze(-1).float() * advantage.exp().clamp(0.0, 10.0)
        weight = weight * torch.where(torch.tensor(below), 0.05, 1.0)
        losses = (
            (weight * (self.head(s, g)[0] - a).square().mean(-1)).mean(),
            (self.q(s, g, a) - target).square().mean(),
        )
        for loss, optimiser in zip(losses, self.optimisers):
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            for target, source in ((self.target_q, self.q), (self.target_head, self.head)):
                for old, new in zip(target.parameters(), source.parameters()):
                    old.lerp_(new, 0.1)
        return [loss.item() for loss in losses], below.mean()


def test_the_original_equals_its_source_update_for_update_on_a_chain():
    specs = goal_specs(observation_dim=STATES, goal_dim=STATES, action_dim=1)
    built = make_networks(*specs, hidden=(16,), num_score_nets=1)
    # 40 advantages fall out of a memory of 100 from the third update on; the percentile is at its last after 6
    plain = Original(built, gamma=0.98, step=15.0, largest=80.0, size=100, lr=3e-3)
    loss = WGCSLLoss(built.actor, built.score, threshold_step=15.0, memory_size=100, **ORIGINAL)
    updater, optimiser = SoftUpdate(loss, tau=0.1), torch.optim.Adam(loss.parameters(), lr=3e-3)
    for _ in range(10):
        state, offset = torch.randint(STATES - 1, (40,)), torch.randint(STATES, (40,))
        offset = torch.minimum(offset, STATES - 2 - state)
        batch = chain_batch(state, torch.randint(2, (40,)), state + 1 + offset, offset)
        # no two rows with one advantage: which side of the threshold a tie falls to is a matter of rounding
        batch["observation"] += 0.01 * torch.randn(40, STATES)
        expected, below = plain.update(batch)
        out = loss(batch)
        optimiser.zero_grad()
        (out["loss_actor"] + out["loss_qvalue"]).backward()
        optimiser.step()
        updater.step()
        assert [out["loss_actor"].item(), out["loss_qvalue"].item()] == pytest.approx(expected, rel=1e-4)
        assert out["below_threshold"].item() == pytest.approx(below)
