"""Every method trains from a replay buffer of TorchRL."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer, TensorDictReplayBuffer

from torchrl_smore.data import GoalTransition, HindsightGoalTransform


def near(achieved_goal, goal):
    return (achieved_goal - goal).norm(dim=-1) <= 0.05


def trajectory(steps):
    """Random steps in three dimensions, of which two are the goal, as a collector with a step counter writes them."""
    state = torch.randn(steps + 1, 3).cumsum(0)
    ends = (torch.arange(steps) == steps - 1).unsqueeze(-1)
    after = {"observation": state[1:], "achieved_goal": state[1:, :2], "done": ends, "reward": ends.float()}
    root = {"observation": state[:-1], "achieved_goal": state[:-1, :2], "action": torch.rand(steps, 2) * 2 - 1}
    root |= {"desired_goal": state[-1:, :2].expand(steps, 2), "step_count": torch.arange(steps).unsqueeze(-1)}
    return TensorDict({**root, "next": TensorDict(after, [steps])}, [steps])


@pytest.mark.parametrize("buffer", [ReplayBuffer, TensorDictReplayBuffer])
@pytest.mark.parametrize(
    "method",
    [
        *("smore", "action_free_actor", "gciql", "gcsql", "gceql", "gcxql", "gcsl", "gcsl_nll", "wgcsl"),
        *("wgcsl_original", "crl", "crl_td", "am", "gofar", "gofar_kl", "gofar_binary", "gofar_awr"),
    ],
)
def test_a_step_from_a_buffer_moves_every_network(method, buffer, build, total):
    loss = build(method)
    rb = buffer(
        storage=LazyTensorStorage(60),
        batch_size=64,
        sample_unit=GoalTransition(initial=True),
        transform=HindsightGoalTransform(0.8, success=near, reward_values=(-1.0, 0.0), step_key="step_count"),
    )
    for steps in (12, 5, 20):
        rb.extend(trajectory(steps))
    out = loss(rb.sample())
    total(out).backward()
    networks = {name.split("_params")[0] for name, _ in loss.named_parameters()}
    assert "actor_network" in networks
    for network in networks:
        gradients = [p.grad for name, p in loss.named_parameters() if name.startswith(network) and p.grad is not None]
        assert gradients, network
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), network
        assert any(bool(gradient.any()) for gradient in gradients), network
    before = {name: parameter.detach().clone() for name, parameter in loss.named_parameters()}
    torch.optim.Adam(loss.parameters(), 1e-3).step()
    assert total(loss(rb.sample())).isfinite()
    for network in networks:
        assert any(not torch.equal(before[n], p) for n, p in loss.named_parameters() if n.startswith(network)), network
