"""A run that kills itself, for ``test_resume.py``: ``python killed_run.py RUN_DIR update|save``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torchrl.objectives import SoftUpdate

from torchrl_smore.data import GoalBatchSampler, TrajectoryStore
from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss
from torchrl_smore.trainers import OfflineTrainer, adam, checkpoint


def make_trainer(run_dir):
    """A run of 12 updates with a checkpoint after every fifth."""
    rng = np.random.default_rng(0)
    episodes = [
        {
            "observation": rng.normal(size=(7, 3)),
            "achieved_goal": rng.normal(size=(7, 2)),
            "action": rng.uniform(-1, 1, (6, 2)),
            "desired_goal": rng.normal(size=2),
            "reward": np.eye(6)[-1],
        }
        for _ in range(4)
    ]
    torch.manual_seed(0)
    networks = make_networks(*goal_specs(3, 2, 2), hidden=(8,))
    loss = SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=True)
    optimizer, scheduler = adam(loss, lr=1e-3, total_steps=12)
    return OfflineTrainer(
        loss,
        GoalBatchSampler(TrajectoryStore.from_episodes(episodes).data, 8),
        optimizer,
        total_steps=12,
        run_dir=run_dir,
        scheduler=scheduler,
        target_updater=SoftUpdate(loss, tau=0.05),
        log_interval=2,
        save_interval=5,
        meta={"task": "walk"},
        progress_bar=False,
    )


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def main(run_dir, when):
    trainer = make_trainer(run_dir)
    if when == "update":
        trainer.register_op("post_optim", lambda: kill() if trainer._optim_count == 9 else None)
    else:
        # the second checkpoint is written, and not yet in its place
        place = checkpoint.put_in_place
        checkpoint.put_in_place = lambda new, final, aside: kill() if "10" in final.name else place(new, final, aside)
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
