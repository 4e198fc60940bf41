"""Options of a training run that cannot be meant, refused before anything is written or collected."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import torch

from parts.build import kinds_of_goals, make_goals, make_loss, parse_strategy
from parts.cli import check_range
from parts.datasets import recognise_dataset
from parts.evaluators import EVALUATION
from parts.methods import METHODS
from parts.options import AUTO_ANCHORS, SCHEDULES, Config, check_name
from parts.pixels import check_pixels
from parts.shared import check_device, resolve_device
from torchrl_smore.data import check_anchor_rule
from torchrl_smore.data.readers import FORMATS
from torchrl_smore.envs import get_task
from torchrl_smore.functional.goals import check_strategy
from torchrl_smore.modules import CHANNELS
from torchrl_smore.trainers import Compile

KERNELS = ("auto", "reference", "triton")
COMPILE = ("auto", *get_args(Compile))
LOGGERS = ("tensorboard", "wandb")
NETWORKS = ("paper", "official")
ENCODERS = ("separate", "shared", "joint", "critics")
#: Options of networks that see pictures.
PIXEL_OPTIONS = ("encoder", "encoder_size", "pixel_norm", "pixel_cold")
ON_DIVERGENCE = ("stop", "continue")
#: The largest value of each count: far beyond what any run needs, and within what every library takes.
MOST = {
    **dict.fromkeys(("steps", "eval_interval", "log_interval", "save_interval"), 10**9),
    "batch_size": 10**6,
    # episode e of a training is that of seed 10,000 + e, and those of evaluate.py begin at 20,000
    "eval_episodes": 10_000,
    **dict.fromkeys(("seeds", "env_workers"), 1000),
    "num_trajectories": 10**7,
    "seed": 2**31 - 1001,
}


def check(config: Config, *, elsewhere: bool = False) -> None:
    """Refuses what can be refused before anything is written or collected.

    Args:
        config: the options.
        elsewhere: whether the run is one of other machines, which have the device if this one has not.
    """
    get_task(config.task)
    for name, most in MOST.items():
        least = 0 if name in ("seed", "env_workers") else 1
        if getattr(config, name) is None:
            raise ValueError(f"{name} must be a number, got null.")
        check_range(name, getattr(config, name), least, most)
    check_range("threads", config.threads, 0, 1000)
    ranges = {
        **dict.fromkeys(
            ("her_ratio", "expert_fraction", "anchor_share", "crop_prob"),
            ("in [0, 1]", lambda value: value is None or 0 <= value <= 1),
        ),
        **dict.fromkeys(("action_noise", "input_clip"), ("in [0, 1000]", lambda value: 0 <= value <= 1000)),
        "contamination": ("in [0, 1)", lambda value: value is not None and 0 <= value < 1),
        "min_std": ("in (0, 7]", lambda value: value is None or 0 < value <= 7),
        "expert_noise": ("in [0, 1000]", lambda value: value is None or 0 <= value <= 1000),
        "expert_random_prob": ("in [0, 1]", lambda value: value is None or 0 <= value <= 1),
        "goal_stitch": ("in [0, 1]", lambda value: value is None or 0 <= value <= 1),
        "goal_gamma": ("in (0, 1)", lambda value: value is None or 0 < value < 1),
        "target_rate": ("in (0, 1]", lambda value: value is None or 0 < value <= 1),
        "learning_rate": ("in (0, 1]", lambda value: value is None or 0 < value <= 1),
        "actor_weight_decay": ("in [0, 1000]", lambda value: value is None or 0 <= value <= 1000),
        "ensemble": ("in [1, 100]", lambda value: value is None or 1 <= value <= 100),
    }
    for name, (expected, holds) in ranges.items():
        if not holds(getattr(config, name)):
            raise ValueError(f"{name} must be {expected}, got {getattr(config, name)}.")
    names = {"method": METHODS, "compile": COMPILE, "kernels": KERNELS, "logger": (None, *LOGGERS)}
    names |= {"dataset_format": (None, *FORMATS), "on_divergence": ON_DIVERGENCE, "schedule": (None, *SCHEDULES)}
    names |= {"encoder": ENCODERS, "encoder_size": tuple(CHANNELS), "evaluation": EVALUATION, "networks": NETWORKS}
    for name, valid in names.items():
        check_name(config, name, list(valid))
    if config.anchors != AUTO_ANCHORS:
        check_anchor_rule(config.anchors)
    if config.goals is not None:
        parse_strategy(config.goals)  # also where a task says of the actor's what counts in its place
    strategies = {name for goals in kinds_of_goals(config) for name in check_strategy(parse_strategy(goals))}
    if config.resume is None and "random" in strategies and METHODS[config.method].reached_goals:
        raise ValueError(
            f"random goals: method={config.method} takes a hindsight goal for one that its trajectory reaches, which a "
            "random one is not."
        )
    if config.goal_gamma is not None and "geometric" not in strategies:
        raise ValueError(f"goal_gamma: of no use without geometric goals, got {', '.join(sorted(strategies))}.")
    if config.goal_stitch:
        _check_goal_stitch(config)
    if config.logger is not None and importlib.util.find_spec(config.logger) is None:
        raise ImportError(f'logger={config.logger} needs a package: pip install "torchrl-smore[{config.logger}]"')
    names_of_datasets = ("dataset_format", "goal_columns", "desired_goal", "columns", "clip_actions")
    of_datasets = [name for name in names_of_datasets if getattr(config, name) not in (None, False)]
    if config.dataset is None and of_datasets:
        raise ValueError(f"{', '.join(of_datasets)}: of no use without dataset=, a file to read.")
    if config.pixels:
        check_range("pixels", config.pixels, 36, 512)
        check_pixels(config.pixels, get_task(config.task), config.method, config.her_ratio)
        if config.mapped is not None:
            raise ValueError("mapped: of no use with pixels=, whose frames are in a file as they are.")
        if config.layer_norm not in (None, "none"):
            raise ValueError("layer_norm: not with pixels=, whose networks have pixel_norm.")
        if config.evaluation == "background":
            raise ValueError("evaluation=background: not with pixels=, whose pictures are drawn in this process.")
    else:
        own = [name for name in PIXEL_OPTIONS if getattr(config, name) != getattr(Config, name)]
        if own:
            raise ValueError(f"{', '.join(own)}: of no use without pixels=, the size of pictures.")
    if config.mapped is not None and not Path(config.mapped).is_dir():
        raise FileNotFoundError(f"mapped={config.mapped}: expected an existing folder, on a local disk.")
    if config.resident is not None and config.mapped is None:
        raise ValueError("resident: of no use without mapped=, a folder for the rest of the rows.")
    check_range("resident", config.resident, 1, 10**12)
    if config.compile_cache is not None and config.compile == "off":
        raise ValueError("compile_cache: of no use with compile=off, which makes no compiled code.")
    make_goals(config)  # refuses a goal without its columns
    if config.dataset is not None and config.dataset_format is None:
        recognise_dataset(config.dataset)
    check_device(config.device)
    if config.device != "auto" and not elsewhere:
        resolve_device(config.device)
    # built and thrown away: the loss refuses what it cannot take
    loss = make_loss(config, get_task(config.task), None, torch.device("cpu"))
    if config.compile not in ("auto", "off") and getattr(loss, "writes_buffers", False):
        raise ValueError(
            f"compile={config.compile}: method={config.method} writes buffers of its own in each update, which cannot "
            "be compiled; compile=off trains it."
        )


def _check_goal_stitch(config: Config) -> None:
    """Refuses stitched goals where there are no hindsight goals, or where these have to be such as a row enters."""
    given = f"goal_stitch={config.goal_stitch}"
    if config.pixels:
        raise ValueError(f"{given}: not with pixels=, whose goals are pictures of the data.")
    if METHODS[config.method].reached_goals:
        raise ValueError(
            f"{given}: method={config.method} takes a hindsight goal for one that its trajectory reaches, which a "
            "stitched one is not."
        )
    if config.her_ratio == 0.0:
        raise ValueError(f"{given}: of no use with her_ratio=0, which keeps every stored goal.")
