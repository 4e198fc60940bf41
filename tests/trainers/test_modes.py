"""Networks act in evaluation mode and learn in training mode, also where a loss keeps them beside its modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor

from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.objectives import AWRActorLoss, GCSLLoss
from torchrl_smore.trainers import ActorPolicy, FusedUpdate, OfflineTrainer, Update, adam, in_mode

KINDS = {
    "dropout": lambda: nn.Dropout(0.5),
    "batch norm": lambda: nn.BatchNorm1d(8),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
}


class Body(nn.Module):
    """Writes down in which mode it is called."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(5, 8), layer, nn.Linear(8, 2)
        self.modes = []

    def forward(self, observation, goal):
        self.modes.append(self.training)
        loc = self.last(self.layer(self.first(torch.cat([observation, goal], -1))))
        return loc, torch.ones_like(loc)


@pytest.fixture
def make(request):
    """Returns a factory of a cloning loss whose actor has a layer with a mode, and the network's body."""

    def make(kind):
        torch.manual_seed(0)
        body = Body(KINDS[kind]())
        module = TensorDictModule(body, ["observation", "desired_goal"], ["loc", "scale"])
        actor = ProbabilisticActor(
            module, in_keys=["loc", "scale"], out_keys=["action"], distribution_class=IndependentNormal
        )
        return GCSLLoss(actor), body

    return make


def seen(rows):
    rng = np.random.default_rng(0)
    return {"observation": rng.normal(size=(rows, 3)), "desired_goal": rng.normal(size=(rows, 2))}


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_acts_in_evaluation_mode_changes_nothing_and_gives_the_mode_back(make, kind):
    loss, body = make(kind)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    policy = ActorPolicy(loss)
    together = policy(seen(6))
    np.testing.assert_array_equal(policy(seen(6)), together)
    # in training mode a row would depend on the rows beside it (batch norm), or on chance (dropout)
    alone = [policy({key: value[row : row + 1] for key, value in seen(6).items()})[0] for row in range(6)]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert set(body.modes) == {False}
    assert all(module.training for module in body.modules())
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


class Encoder(nn.Module):
    """From pictures ``[n, 4, 4, 3]`` to vectors ``[n, 3]``."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(48, 8), layer, nn.Linear(8, 3)

    def forward(self, pictures):
        return self.last(self.layer(self.first(pictures.flatten(1).float() / 255)))


@pytest.mark.parametrize("kind", KINDS)
def test_so_does_the_encoder_that_it_shares(kind):
    torch.manual_seed(0)
    encoder = Encoder(KINDS[kind]())
    actor = TensorDictModule(nn.Linear(3, 2), ["observation"], ["action"])
    loss = GCSLLoss(actor)
    loss.share_encoder(TensorDictModule(encoder, ["picture"], ["vector"]), actor="trained")
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    pictures = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    policy = ActorPolicy(loss)
    together = policy({"observation": pictures})
    alone = [policy({"observation": pictures[row : row + 1]})[0] for row in range(6)]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert all(module.training for module in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_each_module_gets_its_own_mode_back(make):
    loss, body = make("dropout")
    body.last.eval()
    with in_mode(False, loss):
        assert not any(module.training for module in (loss, *body.modules()))
    assert [module.training for module in (loss, body, body.layer, body.last)] == [True, True, True, False]


def test_the_mode_of_a_loss_reaches_its_functional_networks(make):
    loss, body = make("dropout")
    assert loss.eval() is loss
    assert not body.layer.training
    loss.train()
    assert body.layer.training


class StillPool:
    """One environment that stays where it is."""

    num_envs = 1

    def reset(self, seeds):
        return {**seen(1), "achieved_goal": np.zeros((1, 2))}

    def step(self, actions):
        return self.reset(None), np.zeros(1)


@pytest.mark.parametrize("fused", [False, True])
def test_training_is_in_training_mode_between_evaluations_and_afterwards_all_is_as_before(make, data, fused):
    from torchrl_smore.trainers import Evaluator

    loss, body = make("dropout")
    loss.eval()
    sampler = GoalBatchSampler(data, 8)
    update = FusedUpdate(loss, sampler) if fused else Update(loss, sampler, adam(loss)[0])
    evaluator = Evaluator(StillPool(), episodes=1, horizon=1)
    OfflineTrainer(update=update, total_steps=4, evaluator=evaluator, eval_interval=2, progress_bar=False).train()
    assert body.modes == [True, True, False, True, True, False]
    assert not any(module.training for module in (loss, *body.modules()))


def test_a_policy_that_is_a_module_acts_in_evaluation_mode():
    from torchrl_smore.trainers import Evaluator

    class Policy(nn.Module):
        modes = []

        def forward(self, observation):
            self.modes.append(self.training)
            return np.zeros((1, 2))

    policy = Policy()
    Evaluator(StillPool(), episodes=1, horizon=2).run(policy)
    assert policy.modes == [False, False]
    assert policy.training


def actor(keys, out):
    module = TensorDictModule(Body(nn.Identity()), keys, ["loc", "scale"])
    return ProbabilisticActor(module, in_keys=["loc", "scale"], out_keys=[out], distribution_class=IndependentNormal)


@pytest.mark.parametrize(
    ("keys", "action"),
    [
        (["observation", "desired_goal"], ("agent", "action")),
        ([("agent", "observation"), ("agent", "desired_goal")], "act"),
    ],
)
def test_the_policy_reads_the_names_that_the_loss_was_given(keys, action):
    torch.manual_seed(0)
    loss = AWRActorLoss(actor(keys, action))
    loss.set_keys(action=action)
    policy = ActorPolicy(loss)
    actions = policy(seen(4))
    assert actions.shape == (4, 2)
    torch.manual_seed(0)
    plain = ActorPolicy(AWRActorLoss(actor(["observation", "desired_goal"], "action")))
    np.testing.assert_array_equal(actions, plain(seen(4)))


def test_what_no_environment_gives_is_named():
    policy = ActorPolicy(AWRActorLoss(actor(["observation", "target"], "action")))
    with pytest.raises(KeyError, match="actor_network reads 'target', and the environments give 'observation'"):
        policy(seen(2))
