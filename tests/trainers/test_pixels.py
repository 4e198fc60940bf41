"""Losses, updates and policies whose observations and goals are pictures."""

import copy

import numpy as np
import pytest
import torch
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate

from torchrl_smore import SMORELoss
from torchrl_smore.data import PixelBatchSampler
from torchrl_smore.envs import collect, get_task, paint
from torchrl_smore.modules import make_pixel_networks
from torchrl_smore.objectives import GCIQLLoss, GCSLLoss
from torchrl_smore.trainers import ActorPolicy, FusedUpdate

ACTIONS = Bounded(-1.0, 1.0, (2,))


@pytest.fixture(scope="module")
def store():
    plain = collect("PointReach", expert_episodes=4, random_episodes=4, seed=0, progress=False)
    return paint(plain, get_task("PointReach").painter(36))


def make_loss(name):
    torch.manual_seed(0)
    networks = make_pixel_networks(ACTIONS, pixels=36, latent=16, hidden=(16,))
    if name == "bc":
        return GCSLLoss(networks.actor, regression="nll")
    kind = {"smore": SMORELoss, "iql": GCIQLLoss}[name]
    loss = kind(networks.actor, networks.score, networks.value, deactivate_vmap=True)
    SoftUpdate(loss, tau=0.005)  # which tells the loss that its targets are looked after
    return loss


def make_sampler(store, name, **options):
    rewards = {"success": "identity", "reward_values": (-1.0, 0.0), "terminate_at_goal": True} if name == "iql" else {}
    return PixelBatchSampler(store, 16, q=name == "smore", crop_prob=0.5, **rewards, **options)


@pytest.mark.parametrize("name", ["bc", "smore", "iql"])
def test_losses_take_pictures_as_they_are(store, name):
    loss = make_loss(name)
    out = loss(make_sampler(store, name)())
    total = sum(value for key, value in out.items() if key.startswith("loss_"))
    assert torch.isfinite(total)
    total.backward()
    encoders = [parameter for key, parameter in loss.named_parameters() if "encoder" in key]
    assert len(encoders) >= 8
    assert all(parameter.grad is not None for parameter in encoders)


@pytest.mark.parametrize("name", ["bc", "smore"])
def test_an_update_goes_on_exactly_from_its_state(store, name):
    def update():
        return FusedUpdate(make_loss(name), make_sampler(store, name), tau=None if name == "bc" else 0.005)

    first, second = update(), update()
    first()
    state = copy.deepcopy(first.state_dict())
    expected = [first() for _ in range(2)]
    second.load_state_dict(state)
    for out in expected:
        found = second()
        for key, value in out.items():
            torch.testing.assert_close(found[key], value, rtol=0.0, atol=0.0)


def test_the_policy_of_a_loss_keeps_pictures_as_they_are(store):
    policy = ActorPolicy(make_loss("bc"))
    frames = store.frames[:3].numpy()
    action = policy({"observation": frames, "desired_goal": frames[::-1]})
    assert action.shape == (3, 2)
    with pytest.raises(ValueError, match=r"expected 2 pictures of uint8, got 0"):
        policy({"observation": frames.astype(np.float64), "desired_goal": frames.astype(np.float64)})


@pytest.mark.slow
def test_cloning_learns_from_pictures_where_a_point_has_to_go():
    plain = collect("PointReach", expert_episodes=300, random_episodes=0, seed=1, progress=False)
    painter = get_task("PointReach").painter(48)
    # most of an episode is spent at the goal
    moving = (plain.data["action"].abs().amax(-1) > 0.5).float()
    sampler = PixelBatchSampler(paint(plain, painter), 64, q=False, following=False, anchors=moving)
    networks = make_pixel_networks(ACTIONS, pixels=48, latent=64, hidden=(64,))
    loss = GCSLLoss(networks.actor, regression="nll")
    update = FusedUpdate(loss, sampler, lr=1e-3)
    for _ in range(600):
        update()
    rng = np.random.default_rng(0)
    here, goal = rng.uniform(-4.0, 4.0, (2, 200, 2))
    far = np.linalg.norm(goal - here, axis=-1) > 3.0
    action = ActorPolicy(loss)({"observation": painter.states(here), "desired_goal": painter.goals(goal)})[far]
    way = (goal - here)[far]
    cosine = (action * way).sum(-1) / np.linalg.norm(action, axis=-1) / np.linalg.norm(way, axis=-1)
    assert np.median(cosine) > 0.9
