"""A small goal-conditioned dataset, networks and trainers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl.objectives import SoftUpdate

from torchrl_smore.data import GoalBatchSampler, TrajectoryStore, standardization
from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss
from torchrl_smore.trainers import FusedUpdate, OfflineTrainer, adam

OBSERVATION, GOAL, ACTION = 3, 2, 2


def near(achieved_goal, goal):
    return (achieved_goal - goal).norm(dim=-1) <= 0.5


@pytest.fixture
def success():
    """The success rule of the data."""
    return near


@pytest.fixture(scope="session")
def data():
    """Eight random walks of 6 to 13 steps; half of them store their last state as goal and reach it there."""
    rng = np.random.default_rng(0)
    episodes = []
    for number, steps in enumerate(range(6, 14)):
        action = rng.uniform(-1, 1, (steps, ACTION))
        place = np.concatenate([rng.normal(size=(1, GOAL)), action]).cumsum(0)
        observation = np.concatenate([place, rng.normal(size=(steps + 1, OBSERVATION - GOAL))], 1)
        goal = place[-1] if number % 2 else place[-1] + 50.0
        reward = (np.linalg.norm(place[1:] - goal, axis=1) <= 0.5).astype(np.float32)
        episodes.append(
            {
                "observation": observation,
                "achieved_goal": place,
                "action": action,
                "desired_goal": goal,
                "reward": reward,
            }
        )
    return TrajectoryStore.from_episodes(episodes).data


@pytest.fixture
def make_loss(data):
    """Returns a factory of small SMORe losses."""

    def make(seed=0, **options):
        torch.manual_seed(seed)
        networks = make_networks(
            *goal_specs(OBSERVATION, GOAL, ACTION), hidden=(8, 8), statistics=standardization(data)
        )
        return SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=True, **options)

    return make


@pytest.fixture
def make_quick_update(data):
    """Returns a factory of updates of small SMORe losses with whatever the recipe's options can add to one."""

    def make(*seeds, total_steps, **options):
        losses = []
        for seed in seeds:
            torch.manual_seed(seed)
            networks = make_networks(
                *goal_specs(OBSERVATION, GOAL, ACTION),
                hidden=(8, 8),
                statistics=standardization(data),
                num_score_nets=3,
                score_layer_norm=True,
                value_layer_norm=True,
                actor_layer_norm=True,
                contamination=0.2,
                min_std=0.1,
            )
            loss = SMORELoss(
                networks.actor,
                networks.score,
                networks.value,
                deactivate_vmap=True,
                num_score_nets=3,
                weight_clip=1.0,
                advantage_unit="horizon",
                temperature=30.0,
            )
            loss.set_keys(actor_goal="actor_goal")
            losses.append(loss)
        sampler = GoalBatchSampler(
            data,
            16,
            her_ratio=1.0,
            strategy="away",
            threshold=0.1,
            actor_strategy="future",
            anchors=torch.arange(len(data), dtype=torch.float64),
        )
        return FusedUpdate(
            losses, sampler, seeds=seeds, lr=1e-3, total_steps=total_steps, tau=0.05, actor_weight_decay=0.1, **options
        )

    return make


@pytest.fixture
def make_trainer(data, make_loss):
    """Returns a factory of trainers without a progress bar: ``make(total_steps, **options of OfflineTrainer)``."""

    def make(total_steps, *, seed=0, **options):
        loss = make_loss(seed)
        optimizer, scheduler = adam(loss, lr=1e-3, total_steps=total_steps)
        options.setdefault("sampler", GoalBatchSampler(data, 16, seed=seed))
        options.setdefault("target_updater", SoftUpdate(loss, tau=0.05))
        options.setdefault("progress_bar", False)
        return OfflineTrainer(loss, optimizer=optimizer, scheduler=scheduler, total_steps=total_steps, **options)

    return make
