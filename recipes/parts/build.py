"""Dataset, loss, update and policies of a training run, made from its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torchrl.objectives import LossModule

from parts.datasets import collect_or_load, load_dataset
from parts.methods import METHODS, PixelSetting, Setting
from parts.options import AUTO_ANCHORS, Config, method_options
from parts.shared import note_precision, resolve_compile
from torchrl_smore import GoalBatchSampler, TrajectoryStore, goal_specs
from torchrl_smore.data import PixelBatchSampler, anchor_weights, standardization
from torchrl_smore.data.readers import Goals
from torchrl_smore.envs import Painter, PixelPolicy, Task
from torchrl_smore.functional.goals import check_strategy
from torchrl_smore.modules import MIN_STD
from torchrl_smore.trainers import ActorPolicy, FusedUpdate

#: Of geometric goals where none is given, whatever that of the objective.
GOAL_GAMMA = 0.99
_WINDOW = 8  # batches that GoalBatchSampler's window of resident rows holds at the least


def make_dataset(config: Config, task: Task) -> TrajectoryStore:
    """Loads ``dataset=``, or collects one."""
    if config.dataset is not None:
        goals = make_goals(config)
        options: dict[str, Any] = {"format": config.dataset_format, "goals": goals, "columns": config.columns}
        options["clip_actions"] = config.clip_actions
        return load_dataset(config.dataset, task, config.expert_fraction, **options)
    return collect_or_load(
        task,
        config.data_dir,
        num_trajectories=config.num_trajectories,
        expert_fraction=config.expert_fraction,
        seed=config.seed,
        action_noise=config.action_noise,
        expert_noise=config.expert_noise,
        expert_random_prob=config.expert_random_prob,
        expert_policy=config.expert_policy,
        medium_policy=config.medium_policy,
    )


def reading(config: Config, own: Config) -> Config:
    """The options by which a run's dataset is read where it lies now.

    Args:
        config: the options, with the place of now.
        own: those that the run was begun with. What it had collected itself is read whole: that has its share of
            experts, and a share of a dataset that holds no whole number of them leaves rows out.
    """
    return dataclasses.replace(config, expert_fraction=None) if own.dataset is None and config.dataset else config


def make_goals(config: Config) -> Goals | None:
    """Goals of a dataset that has none, as the options name them."""
    if config.goal_columns is None:
        if config.desired_goal is not None:
            raise ValueError("desired_goal needs goal_columns.")
        return None
    return Goals(config.goal_columns, "final" if config.desired_goal is None else config.desired_goal)


def make_loss(config: Config, task: Task, store: TrajectoryStore | None, device: torch.device) -> LossModule:
    """Networks and loss of the chosen method; without a store, for a look at the options, inputs stay raw."""
    setting = Setting(
        specs=goal_specs(task.observation_dim, task.goal_dim, task.action_dim),
        preset=config.networks,
        statistics=standardization(store.data)
        if config.normalize and not config.pixels and store is not None
        else None,
        clip=config.input_clip or None,
        # on a CPU two plain matrix products are faster than the batched one that vmap makes of twins
        deactivate_vmap=device.type == "cpu",
        options=loss_options(config),
        contamination=config.contamination,  # type: ignore[arg-type]
        min_std=MIN_STD if config.min_std is None else config.min_std,
        precision=config.precision,  # type: ignore[arg-type]
        kernels=config.kernels,
        pixels=pixel_setting(config),
        layer_norm=config.layer_norm,
        ensemble=config.ensemble,
    )
    loss = METHODS[config.method].build(setting).to(device)
    if config.actor_goals is not None and METHODS[config.method].actor_goals:
        loss.set_keys(actor_goal="actor_goal")
    return loss


def loss_options(config: Config) -> dict[str, Any]:
    """Keyword arguments for the loss of the chosen method.

    Raises:
        ValueError: if an option was given that the method does not have.
    """
    accepts = method_options(config.method)
    others = {name for method in METHODS for name in method_options(method)} - set(accepts)
    for field in dataclasses.fields(Config):
        if field.name in others and getattr(config, field.name) != field.default:
            raise ValueError(
                f"method={config.method} has no option {field.name}; it has {', '.join(accepts) or 'none'}."
            )
    method = METHODS[config.method]
    if config.target_rate is not None and not method.target_network:
        raise ValueError(f"method={config.method} has no target network, so no target_rate.")
    if config.ensemble is not None and not method.ensemble:
        raise ValueError(f"method={config.method} has no score, Q or critic, so no ensemble.")
    if config.layer_norm not in (None, "none", *method.norms):
        raise ValueError(
            f"method={config.method} has LayerNorm by option in {', '.join(method.norms) or 'no network'}, "
            f"got layer_norm={config.layer_norm}."
        )
    options = {name: getattr(config, name) for name in accepts}
    # without a value is what has none by default: the method's stands in the loss
    unset = {field.name for field in dataclasses.fields(Config) if field.default is None}
    return {name: value for name, value in options.items() if value is not None or name not in unset}


def pixel_setting(config: Config) -> PixelSetting | None:
    """How networks see pictures; ``None`` where they see states."""
    if not config.pixels:
        return None
    return PixelSetting(
        config.pixels,
        encoder_is=config.encoder,  # type: ignore[arg-type] # checked
        encoder=config.encoder_size,  # type: ignore[arg-type] # checked
        layer_norm=config.pixel_norm,
        cold=config.pixel_cold,
    )


def make_update(config: Config, task: Task, store: TrajectoryStore, device: torch.device) -> FusedUpdate:
    """The update of every seed, each with networks and a stream of batches of its own."""
    method = METHODS[config.method]
    decays = method.cosine if config.schedule is None else config.schedule == "cosine"
    seeds = range(config.seed, config.seed + config.seeds)
    losses = []
    for seed in seeds:
        torch.manual_seed(seed)
        losses.append(make_loss(config, task, store, device))
    of_loss = {"pictures": config.pixels > 0, "writes_buffers": getattr(losses[0], "writes_buffers", False)}
    mode = resolve_compile(config.compile, device, len(seeds) * config.steps, **of_loss)
    note_precision(config.precision, device)
    return FusedUpdate(
        losses,
        make_sampler(config, task, store, device),
        seeds=seeds,
        lr=config.learning_rate,
        total_steps=config.steps,
        cosine=("actor_network",) if decays else (),
        actor_weight_decay=config.actor_weight_decay or 0.0,
        tau=config.target_rate if method.target_network else None,
        kernels=config.kernels,  # type: ignore[arg-type]
        compile=mode,
        # where compile=auto has chosen, and said, that nothing is compiled, nothing is kept
        compile_cache=None if mode == "off" else config.compile_cache,
    )


def make_policy(loss: LossModule, painter: Painter | None) -> ActorPolicy | PixelPolicy:
    """What is evaluated: the actor, which sees states or pictures of them."""
    policy = ActorPolicy(loss)
    return policy if painter is None else PixelPolicy(policy, painter)


def make_sampler(
    config: Config, task: Task, store: TrajectoryStore, device: torch.device, extras: Sequence[str] = ()
) -> GoalBatchSampler | PixelBatchSampler:
    """The batches that the chosen method reads, with further entries for other readers."""
    method = METHODS[config.method]
    rewards = (-1.0, 0.0) if config.reward == "binary" else method.rewards
    goals, actor_goals = (*map(parse_strategy, kinds_of_goals(config)), None)[:2]
    options: dict[str, Any] = {
        "strategy": goals,
        "actor_strategy": actor_goals,
        "anchors": make_anchors(config, task, store),
        "gamma": GOAL_GAMMA if config.goal_gamma is None else config.goal_gamma,
        "threshold": task.threshold,
        "success": task.reached if rewards is not None else None,
        "reward_values": rewards or (0.0, 1.0),
        "terminate_at_goal": method.terminate_at_goal,
        "q": method.goal_transitions,
        "seed": config.seed,
        "device": device,
    }
    if config.pixels:
        bootstraps = method.target_network
        return PixelBatchSampler(store, config.batch_size, following=bootstraps, crop_prob=config.crop_prob, **options)
    options |= {
        "stitch": config.goal_stitch or 0.0,
        "goal_parts": [(first, stop) for _, first, stop in task.goal_parts],
    }
    if config.resident is not None:
        check_room(store, config.batch_size * (2 if method.goal_transitions else 1))
    options |= {"mapped": config.mapped, "resident": config.resident, "extras": (*method.extras, *extras)}
    return GoalBatchSampler(store.data, config.batch_size, her_ratio=config.her_ratio, **options)


def check_room(store: TrajectoryStore, rows: int) -> None:
    """Refuses ``resident`` for a dataset that is smaller than the least window of its rows.

    Args:
        store: the dataset.
        rows: of a batch, goal transitions included.

    Raises:
        ValueError: with both numbers.
    """
    start, stop = store.trajectory_bounds
    least = _WINDOW * rows + int((stop - start).max())
    if least >= store.num_transitions:
        raise ValueError(
            f"resident: the dataset of {store.num_transitions:,} rows is too small for it, which needs more than "
            f"{least:,} (a trajectory, and {_WINDOW} times the rows of a batch): drop resident=."
        )


def make_anchors(config: Config, task: Task, store: TrajectoryStore) -> torch.Tensor | None:
    """Weights of the rows that samples start from."""
    auto = config.anchors == AUTO_ANCHORS
    rule = "arriving" if auto else config.anchors
    # a rule that was asked for and chooses nothing is an error; "auto" says what it does
    return anchor_weights(rule, store.data, threshold=task.threshold, share=config.anchor_share, or_uniform=auto)


def kinds_of_goals(config: Config) -> list[str]:
    """The goals of score and value, and those of the actor if they are others."""
    method = METHODS[config.method]
    goals = config.goals or method.strategy
    if config.actor_goals is None:
        return [goals]
    # one network, one kind of goal: the actor's
    return [goals, config.actor_goals] if method.actor_goals else [config.actor_goals]


def parse_strategy(text: str) -> str | dict[str, float]:
    """``future``, or ``future:0.5+away:0.5``, as samplers take it.

    Raises:
        ValueError: for anything else.
    """
    if ":" not in text:
        check_strategy(text)
        return text
    try:
        shares = {name: float(share) for name, share in (part.split(":") for part in text.split("+"))}
    except ValueError:
        raise ValueError(f"expected a goal strategy, or shares such as future:0.5+away:0.5, got {text!r}.") from None
    return check_strategy(shares)
