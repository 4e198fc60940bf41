"""The ``in_sample`` update written by hand in plain PyTorch: what is left when nothing of TensorDict or TorchRL is.

The yardstick for the overhead of :class:`~torchrl_smore.SMORELoss`. Same data, products, optimiser and order of work;
:func:`losses` is compared with the loss module before anything is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_smore import SMORELoss
from torchrl_smore.functional.goals import NUM_UNIFORMS, goal_transition_rows
from torchrl_smore.modules.linear import linear

GAMMA, BETA, RESIDUAL_COEF, EXPECTILE, TEMPERATURE, MAX_WEIGHT = 0.99, 0.5, 0.25, 0.8, 3.0, 100.0
Network = list[Tensor]  # weight, bias, weight, bias, ...
Batch = tuple[Tensor, ...]  # state [B, 28], action, next state; the same of goal transitions


def mlp(params: Network, x: Tensor) -> Tensor:
    """A network with ReLU between its layers."""
    for weight, bias in zip(params[:-2:2], params[1:-2:2]):
        x = linear(x, weight, bias, relu=True)
    return torch.nn.functional.linear(x, params[-2], params[-1])


def losses(params: dict[str, Network], batch: Batch, lower: float, upper: float) -> tuple[Tensor, Tensor, Tensor]:
    """Score, value and actor loss at the same parameters; score bounds ``lower`` and ``upper``."""
    state, action, following, q_state, q_action, q_following = batch
    rows = torch.cat([state, action], -1)
    with torch.no_grad():
        target = torch.minimum(mlp(params["target0"], rows), mlp(params["target1"], rows))
        after = mlp(params["value"], torch.cat([following, q_following])).clamp(lower, upper)
    value = mlp(params["value"], state)
    diff = target - value
    loss_value = (torch.where(diff > 0, EXPECTILE, 1.0 - EXPECTILE) * diff.square()).mean()
    weight = (TEMPERATURE * diff.detach()).exp().clamp(max=MAX_WEIGHT)
    *trunk, log_std = params["actor"]
    log_std = log_std.clamp(-5.0, 2.0)
    z = (action - mlp(trunk, state).tanh()) / log_std.exp()
    log_prob = (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1, keepdim=True)
    loss_actor = -(weight * log_prob).mean()
    both = torch.cat([rows, torch.cat([q_state, q_action], -1)])
    loss_score = torch.zeros(())
    for name in ("score0", "score1"):
        score = mlp(params[name], both)
        residual = RESIDUAL_COEF * (GAMMA * after - score).square()
        rho, q = score.chunk(2)
        rho_residual, q_residual = residual.chunk(2)
        loss_score = loss_score + BETA * (1.0 - GAMMA) * rho.mean() + (1.0 - BETA) * rho_residual.mean()
        loss_score = loss_score - BETA * q.mean() + BETA * q_residual.mean()
    return loss_score, loss_value, loss_actor


def parameters(loss: SMORELoss) -> dict[str, Network]:
    """Copies of a loss module's parameters in the order of their layers; those of targets want no gradient."""

    def layers(name: str, member: int | None = None) -> Network:
        tree = getattr(loss, f"{name}_params").flatten_keys(".")
        found = [tree[key] for key in sorted(tree.keys()) if key.endswith(("weight", "bias"))]
        # sorted by layer, but the bias of each comes before its weight
        found = [found[i + 1 - 2 * (i % 2)] for i in range(len(found))]
        found += [tree["module.0.module.log_std"]] if name == "actor_network" else []
        return [(p if member is None else p[member]).detach().clone().requires_grad_() for p in found]

    made = {"value": layers("value_network"), "actor": layers("actor_network")}
    for member in (0, 1):
        made[f"score{member}"] = layers("score_network", member)
        made[f"target{member}"] = [p.requires_grad_(False) for p in layers("target_score_network", member)]
    return made


def as_batch(batch: TensorDict) -> Batch:
    """The tensors of a sampler's batch."""
    parts = []
    for rows in (batch, batch["q"]):
        goal = rows["desired_goal"]
        parts += [torch.cat([rows["observation"], goal], -1), rows["action"]]
        parts.append(torch.cat([rows["next", "observation"], goal], -1))
    return tuple(parts)


def make_update(loss: SMORELoss, data: TensorDict, batch_size: int) -> Callable[[], None]:
    """One update of ``loss``'s parameters, copied, on ``data``: sampling, losses, Adam, cosine, target."""
    params, bounds = parameters(loss), loss.score_bounds
    goal_dim = data["desired_goal"].shape[-1]
    columns = ("observation", "action", ("next", "observation"), "desired_goal", ("next", "achieved_goal"))
    widths = [data[key].shape[-1] for key in columns]
    table, stop = torch.cat([data[key] for key in columns], -1), data["traj_stop"]
    reached = (data["next", "reward"] > 0).flatten().nonzero().squeeze(-1)
    generator = torch.Generator().manual_seed(0)
    actor = {id(p) for p in params["actor"]}
    trained = [p for name in ("actor", "value", "score0", "score1") for p in params[name]]
    groups = [[p for p in trained if id(p) in actor], [p for p in trained if id(p) not in actor]]
    optimizer = torch.optim.Adam([{"params": group} for group in groups], lr=3e-4, fused=True)
    cosine = [lambda step: 0.5 * (1.0 + math.cos(math.pi * step / 1_000_000)), lambda step: 1.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
    targets, sources = ([p for i in (0, 1) for p in params[f"{name}{i}"]] for name in ("target", "score"))

    def sample() -> Batch:
        uniform = torch.rand(batch_size, NUM_UNIFORMS, dtype=torch.float64, generator=generator)
        rows = goal_transition_rows(uniform, stop, reached, her_ratio=0.8)
        parts = []
        for index, mask in ((rows.index, rows.relabel_mask), (rows.q_index, rows.q_relabel_mask)):
            state, action, following, stored, entered = table[index].split(widths, -1)
            if not parts:
                entered = table[rows.goal_index, -goal_dim:]
            goal = torch.where(mask[:, None], entered, stored)
            parts += [torch.cat([state, goal], -1), action, torch.cat([following, goal], -1)]
        return tuple(parts)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(losses(params, sample(), *bounds)).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(targets, sources, 0.005)

    return update
