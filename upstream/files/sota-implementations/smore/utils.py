# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torchrl.envs import DoubleToFloat, GymEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SMORELoss, SoftUpdate
from torchrl.trainers.helpers.models import ACTIVATIONS

STATE = ["observation", "desired_goal"]


# ====================================================================
# Environment and data
# --------------------


def make_environment(cfg):
    """A goal-conditioned environment: it has ``achieved_goal`` and ``desired_goal``."""
    env = TransformedEnv(GymEnv(cfg.env.name), DoubleToFloat())
    env.set_seed(cfg.env.seed)
    return env


def make_dataset(cfg, env):
    """Transitions in TED format, trajectory after trajectory: a saved TensorDict, or random episodes."""
    if cfg.replay_buffer.dataset:
        return TensorDict.load_memmap(cfg.replay_buffer.dataset)
    with torch.no_grad():
        episodes = [
            env.rollout(cfg.env.max_steps) for _ in range(cfg.replay_buffer.episodes)
        ]
    for episode in episodes:
        # a rollout that is cut ends without a flag
        episode["next", "done"][-1] = True
    return torch.cat([episode.select(*STATE, "action", "next") for episode in episodes])


class GoalSampler:
    """Batches of SMORe: offline transitions (rho), and goal transitions (q) under ``"q"``.

    The goal of an offline transition is what is achieved at a later step of its
    trajectory, its own included, uniformly (hindsight). A goal transition is one that
    enters its own goal, drawn as those goals are: the row whose goal another transition
    is given. Stored goals are not used.

    Args:
        data: TED, shape ``[N]``, whole trajectories; the last row of each is done.
        batch_size: number of offline, and of goal transitions.
    """

    def __init__(self, data, batch_size):
        self.data = data
        self.batch_size = batch_size
        last = data["next", "done"].flatten().nonzero().flatten()
        if not len(last) or last[-1] != len(data) - 1:
            raise ValueError("the last transition of the data must be done.")
        rows = torch.arange(len(data), device=last.device)
        self.last = last[torch.searchsorted(last, rows)]

    def _goal_row(self, row):
        left = self.last[row] - row + 1
        return row + (torch.rand(row.shape, device=row.device) * left).long()

    def sample(self):
        anchors = torch.randint(
            len(self.data), (2, self.batch_size), device=self.last.device
        )
        row, q_row = anchors[0], self._goal_row(anchors[1])
        rho, q = self.data[row], self.data[q_row]
        rho["desired_goal"] = self.data["next", "achieved_goal"][self._goal_row(row)]
        q["desired_goal"] = q["next", "achieved_goal"]
        return rho.set("q", q)


def success_rate(env, policy, episodes, max_steps, threshold):
    """Share of episodes that end within ``threshold`` of their goal."""
    reached = 0
    for _ in range(episodes):
        last = env.rollout(max_steps, policy, auto_cast_to_device=True)[-1]
        distance = last["next", "achieved_goal"] - last["next", "desired_goal"]
        reached += bool(distance.norm() < threshold)
    return reached / episodes


# ====================================================================
# Model
# -----


class Joined(torch.nn.Module):
    """A network of the concatenation of its inputs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        return self.network(torch.cat(inputs, -1))


def make_smore_model(cfg, env, device="cpu"):
    """Actor, score and value; lazy layers get their sizes here."""
    action_spec = env.action_spec
    options = {
        "num_cells": cfg.model.hidden_sizes,
        "activation_class": ACTIVATIONS[cfg.model.activation],
    }
    extractor = NormalParamExtractor(
        scale_mapping=f"biased_softplus_{cfg.model.default_policy_scale}",
        scale_lb=cfg.model.scale_lb,
    )
    actor_net = torch.nn.Sequential(
        MLP(out_features=2 * action_spec.shape[-1], **options), extractor
    )
    actor = ProbabilisticActor(
        TensorDictModule(Joined(actor_net), STATE, ["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=action_spec,
        distribution_class=TanhNormal,
        distribution_kwargs={
            "low": action_spec.space.low.to(device),
            "high": action_spec.space.high.to(device),
            "tanh_loc": False,
        },
        default_interaction_type=ExplorationType.RANDOM,
    )
    score = ValueOperator(MLP(out_features=1, **options), [*STATE, "action"], ["score"])
    value = ValueOperator(MLP(out_features=1, **options), STATE, ["state_value"])
    model = torch.nn.ModuleList([actor, score, value]).to(device)
    with torch.no_grad():
        td = env.fake_tensordict().to(device)
        for net in model:
            net(td)
    return model


# ====================================================================
# Loss and optimizers
# -------------------


def make_loss(loss_cfg, model):
    loss_module = SMORELoss(
        model[0],
        model[1],
        model[2],
        formulation=loss_cfg.formulation,
        beta=loss_cfg.beta,
        gamma=loss_cfg.gamma,
        expectile=loss_cfg.expectile,
        temperature=loss_cfg.temperature,
    )
    return loss_module, SoftUpdate(loss_module, tau=loss_cfg.tau)


def make_smore_optimizers(optim_cfg, loss_module):
    return [
        torch.optim.Adam(
            params,
            lr=optim_cfg.lr,
            weight_decay=optim_cfg.weight_decay,
            # a CUDA graph cannot hold a step that counts on the host
            capturable=params[0].device.type == "cuda",
        )
        for params in (
            list(network_params.flatten_keys().values())
            for network_params in (
                loss_module.actor_network_params,
                loss_module.score_network_params,
                loss_module.value_network_params,
            )
        )
    ]


def log_metrics(logger, metrics, step):
    logger.log_metrics(metrics, step)
