# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SMORe Example.

This is a self-contained example of offline goal-conditioned training with SMORe.

The helper functions are coded in the utils.py associated with this script.
"""

from __future__ import annotations

import warnings

import hydra
import numpy as np
import torch
import tqdm
from tensordict.nn import CudaGraphModule
from torchrl._utils import get_available_device, timeit
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import group_optimizers
from torchrl.record.loggers import generate_exp_name, get_logger
from utils import (
    GoalSampler,
    log_metrics,
    make_dataset,
    make_environment,
    make_loss,
    make_smore_model,
    make_smore_optimizers,
    success_rate,
)

torch.set_float32_matmul_precision("high")


@hydra.main(config_path="", config_name="offline_config", version_base="1.3")
def main(cfg: DictConfig):  # noqa: F821
    # Create logger
    logger = None
    if cfg.logger.backend:
        logger = get_logger(
            logger_type=cfg.logger.backend,
            logger_name="smore_logging",
            experiment_name=generate_exp_name("SMORe-offline", cfg.logger.exp_name),
            wandb_kwargs={
                "mode": cfg.logger.mode,
                "config": dict(cfg),
                "project": cfg.logger.project_name,
                "group": cfg.logger.group_name,
            },
        )

    # Set seeds
    torch.manual_seed(cfg.env.seed)
    np.random.seed(cfg.env.seed)
    device = (
        torch.device(cfg.optim.device) if cfg.optim.device else get_available_device()
    )

    # Create env, dataset and sampler
    eval_env = make_environment(cfg)
    sampler = GoalSampler(
        make_dataset(cfg, eval_env).to(device), cfg.replay_buffer.batch_size
    )

    # Create agent, loss and optimizer
    model = make_smore_model(cfg, eval_env, device)
    loss_module, target_net_updater = make_loss(cfg.loss, model)
    optimizer = group_optimizers(*make_smore_optimizers(cfg.optim, loss_module))

    def update(data):
        optimizer.zero_grad(set_to_none=True)
        loss_info = loss_module(data)
        loss = (
            loss_info["loss_actor"] + loss_info["loss_value"] + loss_info["loss_score"]
        )
        loss.backward()
        optimizer.step()
        target_net_updater.step()
        return loss_info.detach()

    if cfg.compile.compile:
        mode = cfg.compile.compile_mode or (
            "default" if cfg.compile.cudagraphs else "reduce-overhead"
        )
        update = torch.compile(update, mode=mode)
    if cfg.compile.cudagraphs:
        warnings.warn(
            "CudaGraphModule is experimental and may lead to silently wrong results. Use with caution.",
            category=UserWarning,
        )
        update = CudaGraphModule(update, warmup=50)

    # Training loop
    pbar = tqdm.tqdm(range(cfg.optim.gradient_steps))
    for i in pbar:
        timeit.printevery(1000, cfg.optim.gradient_steps, erase=True)
        with timeit("sample"):
            data = sampler.sample()
        with timeit("update"):
            torch.compiler.cudagraph_mark_step_begin()
            loss_info = update(data)

        metrics_to_log = loss_info.to_dict()
        if (i + 1) % cfg.logger.eval_iter == 0:
            with (
                set_exploration_type(ExplorationType.DETERMINISTIC),
                torch.no_grad(),
                timeit("eval"),
            ):
                metrics_to_log["success"] = success_rate(
                    eval_env,
                    model[0],
                    cfg.logger.eval_episodes,
                    cfg.env.max_steps,
                    cfg.env.threshold,
                )
            pbar.set_description(f"success {metrics_to_log['success']:.2f}")
        if logger is not None:
            metrics_to_log.update(timeit.todict(prefix="time"))
            metrics_to_log["time/speed"] = pbar.format_dict["rate"]
            log_metrics(logger, metrics_to_log, i)

    pbar.close()
    if not eval_env.is_closed:
        eval_env.close()


if __name__ == "__main__":
    main()
