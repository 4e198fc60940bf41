"""Contracts of every baseline that take a while: stacked seeds, and learning a toy problem."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SoftUpdate

from torchrl_smore.modules import goal_specs, make_contrastive_networks, make_discriminator, make_networks
from torchrl_smore.objectives import (
    ActionableModelsLoss,
    ContrastiveRLLoss,
    ContrastiveTDLoss,
    GCEQLLoss,
    GCIQLLoss,
    GCSLLoss,
    GCSQLLoss,
    GCXQLLoss,
    GoFARLoss,
    WGCSLLoss,
)

NAMES = ["gciql", "gcsql", "gceql", "gcxql", "gcsl", "gcsl_nll", "wgcsl", "wgcsl_original"]
NAMES += ["gofar", "gofar_kl", "gofar_binary", "gofar_awr"]
NAMES += ["crl", "crl_balanced", "crl_infonce", "crl_awr", "crl_td", "am", "am_twins"]


@pytest.mark.parametrize("deactivate_vmap", [False, True], ids=["nested_vmap", "loop"])
@pytest.mark.parametrize("name", NAMES)
def test_stacked_parameters_under_vmap_equal_separate_losses(name, deactivate_vmap, build, batch_for, total):
    losses = [build(name, deactivate_vmap=deactivate_vmap) for _ in range(3)]
    batches = [batch_for(loss, seed=seed) for seed, loss in enumerate(losses)]
    stacked = TensorDict.from_modules(*losses, as_module=False, lock=False)

    def run(parameters, batch):
        with parameters.to_module(losses[0], preserve_module_state=False):
            return losses[0](batch)

    out = torch.vmap(run)(stacked, torch.stack(batches))
    total(out).sum().backward()
    for k, (loss, batch) in enumerate(zip(losses, batches)):
        expected = loss(batch)
        for key, value in expected.items():
            torch.testing.assert_close(out[key][k], value, msg=lambda m, key=key: f"{key}: {m}")
        total(expected).backward()
        for name_, parameter in loss.named_parameters():
            network, *path = name_.split(".")
            if parameter.grad is not None:
                grad = stacked.get((network, *path)).grad[k]
                torch.testing.assert_close(grad, parameter.grad, rtol=1e-3, atol=1e-5)


LENGTH = 10


def walks(size, reward_values, her_ratio=1.0):
    """Rows of random walks ``x' = x + 0.2 a`` on ``[-1, 1]`` with goals from their future."""
    x = [torch.rand(size, 1) * 2 - 1]
    actions = torch.rand(LENGTH, size, 1) * 2 - 1
    for action in actions:
        x.append((x[-1] + 0.2 * action).clamp(-1.0, 1.0))
    x = torch.stack(x)
    row = torch.arange(size)
    t = torch.randint(0, LENGTH, (size,))
    offset = (torch.rand(size) * (LENGTH - t)).long()
    goal = torch.where(torch.rand(size, 1) < her_ratio, x[t + offset + 1, row], torch.rand(size, 1) * 2 - 1)
    entered = x[t + 1, row]
    failure, success = reward_values
    reward = torch.where((entered - goal).abs() < 0.1, success, failure)
    after = {"observation": entered, "achieved_goal": entered, "reward": reward, "terminated": reward == success}
    root = {"observation": x[t, row], "achieved_goal": x[t, row], "initial_observation": x[0], "desired_goal": goal}
    return TensorDict({**root, "action": actions[t, row], "goal_offset": offset.unsqueeze(-1), "next": after}, [size])


def toy_loss(name):
    specs = goal_specs(observation_dim=1, goal_dim=1, action_dim=1)
    nets = make_networks(*specs, hidden=(32, 32))
    one = nets.score[:1]
    contrastive = make_contrastive_networks(*specs, hidden=(32, 32), latent=8)
    makers = {
        "gciql": lambda: GCIQLLoss(nets.actor, nets.score, nets.value, gamma=0.9),
        "gcsql": lambda: GCSQLLoss(nets.actor, nets.score, nets.value, gamma=0.9, alpha=0.2),
        "gceql": lambda: GCEQLLoss(nets.actor, nets.score, nets.value, gamma=0.9, alpha=2.0),
        "gcxql": lambda: GCXQLLoss(nets.actor, nets.score, nets.value, gamma=0.9),
        "gcsl": lambda: GCSLLoss(nets.actor),
        "wgcsl": lambda: WGCSLLoss(nets.actor, one, gamma=0.9),
        "gofar": lambda: GoFARLoss(nets.actor, nets.value, make_discriminator(specs[0], hidden=(32,)), gamma=0.9),
        "gofar_binary": lambda: GoFARLoss(nets.actor, nets.value, reward="binary", gamma=0.9),
        "crl": lambda: ContrastiveRLLoss(contrastive.actor, contrastive.critic),
        "crl_td": lambda: ContrastiveTDLoss(contrastive.actor, contrastive.critic, gamma=0.9),
        "am": lambda: ActionableModelsLoss(nets.actor, one, gamma=0.9, conservative_coef=0.1),
    }
    return makers[name]()


@pytest.mark.parametrize(
    "name", ["gciql", "gcsql", "gceql", "gcxql", "gcsl", "wgcsl", "gofar", "gofar_binary", "crl", "crl_td", "am"]
)
def test_a_baseline_learns_to_step_towards_its_goal(name, total):
    loss = toy_loss(name)
    updater = SoftUpdate(loss, tau=0.05) if any(key.startswith("target_") for key in loss.state_dict()) else None
    optimiser = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for _ in range(200):
        batch = walks(128, (-1.0, 0.0))
        if name == "gofar":
            # no relabelling: goals of their own distribution
            batch["desired_goal"] = torch.rand(128, 1) * 2 - 1
        optimiser.zero_grad()
        total(loss(batch)).backward()
        optimiser.step()
        if updater is not None:
            updater.step()
    x, goal = torch.meshgrid(torch.linspace(-0.8, 0.8, 9), torch.linspace(-0.8, 0.8, 9), indexing="ij")
    far = (x - goal).abs() > 0.35
    grid = TensorDict({"observation": x[far].unsqueeze(-1), "desired_goal": goal[far].unsqueeze(-1)}, [int(far.sum())])
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        action = loss._policy_action(grid, loss.actor_network_params)
    towards = (action * (grid["desired_goal"] - grid["observation"])).sign()
    assert (towards > 0).double().mean() > 0.9
