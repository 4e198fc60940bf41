"""Offline goal-conditioned RL with SMORe: collect or load a dataset, train, evaluate, leave a run folder.

python recipes/smore_offline.py                                    FetchReach from nothing, in a few minutes
python recipes/smore_offline.py task=FetchPush steps=100000 batch_size=512 num_trajectories=4000
python recipes/smore_offline.py task=FetchPush dataset=buffer.pkl  a file you own
python recipes/smore_offline.py resume=runs/NAME                   go on after a kill
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from methods import METHODS, Setting
from recipe_cli import nearest, option, resumed_config, run_recipe
from recipe_utils import (
    ProgressLines,
    collect_or_load,
    finite_or_none,
    load_dataset,
    new_run_folder,
    recognise_dataset,
    record_rollout,
    resolve_device,
    stopping_on_interrupt,
    write_json,
)
from torchrl.objectives import LossModule, SoftUpdate
from torchrl.record.loggers import Logger, get_logger

from torchrl_smore import GoalBatchSampler, TrajectoryStore, goal_specs
from torchrl_smore.data import standardization
from torchrl_smore.data.readers import FORMATS, Goals
from torchrl_smore.envs import EnvPool, Task, get_task
from torchrl_smore.reports import plot_curves
from torchrl_smore.trainers import (
    ActorPolicy,
    Compile,
    Evaluator,
    OfflineTrainer,
    adam,
    latest_checkpoint,
    load_checkpoint,
)

LOGGERS = ("tensorboard", "wandb")
LOSS_OPTIONS = ("formulation", "divergence", "beta", "residual_coef", "expectile", "temperature", "gamma")
PACKAGES = ("torchrl-smore", "torch", "torchrl", "tensordict", "numpy", "gymnasium", "gymnasium-robotics", "mujoco")


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option("FetchReach", "FetchReach, FetchPush, FetchPick, PointReach, PointRooms")
    method: str = option("smore", ", ".join(METHODS))
    dataset: str | None = option(
        None, "a store, buffer.pkl (WGCSL), .hdf5 (D4RL), .npz (OGBench), Minari folder or id; none: collect one"
    )
    dataset_format: str | None = option(None, "store, wgcsl, d4rl, minari, ogbench; none: recognised")
    goal_columns: tuple[int, ...] | None = option(
        None, "[COLUMN, ...] of the observation that are the achieved goal, for a dataset without goals"
    )
    desired_goal: tuple[float, ...] | None = option(
        None, "[NUMBER, ...] with goal_columns: the desired goal; none: what the trajectory achieves at its end"
    )
    num_trajectories: int = option(1000, "trajectories to collect when no dataset is given")
    expert_fraction: float | None = option(None, "share of expert trajectories; none: 0.1, or a dataset as it is")
    action_noise: float = option(
        0.0, "the environment's noise on actions, collecting and evaluating (the paper: 0.5-1.5)"
    )
    expert_policy: str | None = option(None, "actor file, or run folder of train_expert.py, of the running tasks")
    medium_policy: str | None = option(None, "the same for the medium trajectories; none: the folder expert_policy")
    data_dir: str = option("datasets", "where collected datasets are kept and found again")
    steps: int = option(4000, "updates (the paper: 400,000 to 1,000,000)")
    batch_size: int = option(256, "offline rows, and as many goal-transition rows (the paper: 512)")
    seed: int = option(0, "of data collection, networks and sampling; evaluation episodes are always the same")
    formulation: str = option("in_sample", "in_sample, dual, official, official_stable")
    divergence: str = option("pearson_chi2", "pearson_chi2, kl, squared_hellinger, total_variation, jensen_shannon")
    beta: float = option(0.5, "weight of goal transitions in the mixture, in (0, 1]")
    expectile: float | None = option(None, "of the value loss, in (0, 1); none: the method's (0.8 SMORe)")
    temperature: float | None = option(None, "multiplies the advantage, >= 0; none: the method's (3 SMORe)")
    gamma: float | None = option(None, "discount of the objective, in (0, 1); none: the method's (0.99 SMORe)")
    residual_coef: float = option(0.25, "weight of the Bellman term: 0.25 is Eq. 8, 1 is Eq. 10 as printed")
    clip_bootstrap: bool = option(True, "clip bootstrapped scores to the range of the closed form")
    her_ratio: float | None = option(
        None, "probability of relabelling a goal, in [0, 1]; none: the method's (0.8 SMORe)"
    )
    networks: str = option("paper", "paper (2x256) or official (3x256, LayerNorm in the value network)")
    normalize: bool = option(True, "standardise observations and goals by the dataset's statistics")
    learning_rate: float | None = option(None, "of Adam; none: the method's (3e-4 SMORe)")
    target_rate: float | None = option(
        None, "Polyak rate of the target networks, in (0, 1]; none: the method's (0.005 SMORe)"
    )
    eval_episodes: int = option(50, "episodes of an evaluation")
    eval_interval: int = option(500, "updates between evaluations")
    log_interval: int = option(50, "updates between rows of metrics.csv")
    save_interval: int = option(1000, "updates between checkpoints")
    env_workers: int = option(0, "processes that step evaluation environments; 0: this one")
    device: str = option("auto", "auto, cpu, cuda")
    threads: int = option(0, "CPU threads of PyTorch; 0: its default")
    compile: str = option("off", "off, default, max: torch.compile of sampling and losses")
    logger: str | None = option(None, "tensorboard or wandb, beside metrics.csv")
    run_root: str = option("runs", "where run folders are made")
    resume: str | None = option(None, "run folder to go on with, under its own options")
    rollout: bool = option(True, "film one episode at the end (rollout.gif)")


def main(config: Config) -> None:
    """Runs the recipe."""
    started = time.perf_counter()
    run_dir = None
    if config.resume is not None:
        run_dir, config = Path(config.resume), config_of_run(config)
    check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    device, task = resolve_device(config.device), get_task(config.task)
    store = make_dataset(config, task)
    print(f"\n{store.summary()}\n")
    torch.manual_seed(config.seed)
    method = METHODS[config.method]
    loss = make_loss(config, task, store, device)
    sampler = make_sampler(config, task, store, device)
    optimizer, scheduler = adam(
        loss,
        lr=given(config.learning_rate, method.learning_rate),
        total_steps=config.steps,
        cosine=("actor_network",) if method.cosine else (),
    )
    target_rate = given(config.target_rate, method.target_rate)

    num_envs = min(config.eval_episodes, 50)
    with EnvPool(task, num_envs, num_workers=config.env_workers, action_noise=config.action_noise) as pool:
        # only now, when nothing is left that a user's mistake could stop
        run_dir = run_dir or new_run(config)
        trainer = OfflineTrainer(
            loss,
            sampler,
            optimizer,
            total_steps=config.steps,
            run_dir=run_dir,
            scheduler=scheduler,
            target_updater=None if target_rate is None else SoftUpdate(loss, tau=target_rate),
            evaluator=Evaluator(pool, episodes=config.eval_episodes, horizon=task.horizon, gammas=task.gammas),
            log_interval=config.log_interval,
            eval_interval=config.eval_interval,
            save_interval=config.save_interval,
            compile=config.compile,  # type: ignore[arg-type]
            logger=make_logger(config, run_dir),
            meta={**identity(config), "dataset_sha256": store.sha256},
            progress_bar=sys.stderr.isatty(),
        )
        if config.resume is not None:
            resume(trainer)
        if not trainer.progress_bar:
            trainer.register_op("post_steps_log", ProgressLines(trainer))
        with stopping_on_interrupt(trainer, f"Go on with: python recipes/smore_offline.py resume={run_dir}"):
            trainer.train()
        report(config, task, run_dir, trainer, time.perf_counter() - started)


def given(value: Any, default: Any) -> Any:
    """An option if the user gave it, else the method's default."""
    return default if value is None else value


def identity(config: Config) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed; methods without formulations have ``None``."""
    formulation = config.formulation if "formulation" in METHODS[config.method].accepts else None
    return {"task": config.task, "method": config.method, "formulation": formulation}


def new_run(config: Config) -> Path:
    """A new run folder with its ``config.yaml``."""
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    parts = [part for part in identity(config).values() if part is not None]
    return new_run_folder(config.run_root, *parts, f"seed{config.seed}", config=text)


def config_of_run(config: Config) -> Config:
    """The options that the run to resume was begun with, once its newest checkpoint is found whole and fitting."""
    own: Config = resumed_config(config)
    run_dir = Path(own.resume or "")
    if has_checkpoint(run_dir):
        load_checkpoint(latest_checkpoint(run_dir / "checkpoint"), identity(own))
    return own


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run has come as far as its first checkpoint."""
    return any((run_dir / "checkpoint").glob("step_*"))


def resume(trainer: OfflineTrainer) -> None:
    """Takes up the newest checkpoint, if the run had come to one."""
    assert trainer.run_dir is not None
    if has_checkpoint(trainer.run_dir):
        trainer.resume()
    print(f"resuming {trainer.run_dir} at update {trainer.step:,} of {trainer.total_frames:,}")


def check(config: Config) -> None:
    """Refuses what can be refused before anything is written or collected."""
    get_task(config.task)
    counts = ("steps", "batch_size", "num_trajectories")
    counts += ("eval_episodes", "eval_interval", "log_interval", "save_interval")
    ranges = {
        **dict.fromkeys(counts, ("at least 1", lambda value: value >= 1)),
        **dict.fromkeys(("seed", "env_workers", "threads"), ("at least 0", lambda value: value >= 0)),
        **dict.fromkeys(
            ("her_ratio", "expert_fraction"), ("in [0, 1]", lambda value: value is None or 0 <= value <= 1)
        ),
        "action_noise": ("a number not below 0", lambda value: 0 <= value < float("inf")),
        "target_rate": ("in (0, 1]", lambda value: value is None or 0 < value <= 1),
        "learning_rate": ("a positive number", lambda value: value is None or 0 < value < float("inf")),
    }
    for name, (expected, holds) in ranges.items():
        if not holds(getattr(config, name)):
            raise ValueError(f"{name} must be {expected}, got {getattr(config, name)}.")
    names = {"method": METHODS, "compile": get_args(Compile), "logger": (None, *LOGGERS)}
    names["dataset_format"] = (None, *FORMATS)
    for name, valid in names.items():
        value = getattr(config, name)
        if value not in valid:
            known = ", ".join(map(str, valid))
            raise ValueError(f"unknown {name} {value!r}: expected {known}.{nearest(str(value), list(map(str, valid)))}")
    if config.logger is not None and importlib.util.find_spec(config.logger) is None:
        raise ImportError(f'logger={config.logger} needs a package: pip install "torchrl-smore[{config.logger}]"')
    if config.dataset is not None and config.dataset_format is None:
        recognise_dataset(config.dataset)
    if config.device != "auto":
        resolve_device(config.device)
    # built and thrown away: the loss refuses what it cannot take
    make_loss(config, get_task(config.task), None, torch.device("cpu"))


def make_dataset(config: Config, task: Task) -> TrajectoryStore:
    """Loads ``dataset=``, or collects one."""
    if config.dataset is not None:
        goals = make_goals(config)
        return load_dataset(config.dataset, task, config.expert_fraction, format=config.dataset_format, goals=goals)
    return collect_or_load(
        task,
        config.data_dir,
        num_trajectories=config.num_trajectories,
        expert_fraction=config.expert_fraction,
        seed=config.seed,
        action_noise=config.action_noise,
        expert_policy=config.expert_policy,
        medium_policy=config.medium_policy,
    )


def make_goals(config: Config) -> Goals | None:
    """Goals of a dataset that has none, as the options name them."""
    if config.goal_columns is None:
        if config.desired_goal is not None:
            raise ValueError("desired_goal needs goal_columns.")
        return None
    return Goals(config.goal_columns, "final" if config.desired_goal is None else config.desired_goal)


def loss_options(config: Config) -> dict[str, Any]:
    """Keyword arguments for the loss of the chosen method.

    Raises:
        ValueError: if an option was given that the method does not have.
    """
    accepts = METHODS[config.method].accepts
    options = {name: getattr(config, name) for name in LOSS_OPTIONS}
    options["score_bounds"] = "auto" if config.clip_bootstrap else None
    for field in dataclasses.fields(Config):
        name = "score_bounds" if field.name == "clip_bootstrap" else field.name
        if name in options and name not in accepts and getattr(config, field.name) != field.default:
            raise ValueError(
                f"method={config.method} has no option {field.name}; it has {', '.join(accepts) or 'none'}."
            )
    if config.target_rate is not None and METHODS[config.method].target_rate is None:
        raise ValueError(f"method={config.method} has no target network, so no target_rate.")
    return {
        name: value
        for name, value in options.items()
        if name in accepts and (value is not None or name == "score_bounds")
    }


def make_loss(config: Config, task: Task, store: TrajectoryStore | None, device: torch.device) -> LossModule:
    """Networks and loss of the chosen method; without a store, for a look at the options, inputs stay raw."""
    setting = Setting(
        specs=goal_specs(task.observation_dim, task.goal_dim, task.action_dim),
        preset=config.networks,
        statistics=standardization(store.data) if config.normalize and store is not None else None,
        # on a CPU two plain matrix products are faster than the batched one that vmap makes of twins
        deactivate_vmap=device.type == "cpu",
        options=loss_options(config),
    )
    return METHODS[config.method].build(setting).to(device)


def make_sampler(config: Config, task: Task, store: TrajectoryStore, device: torch.device) -> GoalBatchSampler:
    """The batches that the chosen method reads."""
    method = METHODS[config.method]
    return GoalBatchSampler(
        store.data,
        config.batch_size,
        her_ratio=given(config.her_ratio, method.her_ratio),
        strategy=method.strategy,
        success=task.reached if method.rewards is not None else None,
        reward_values=method.rewards or (0.0, 1.0),
        terminate_at_goal=method.terminate_at_goal,
        q=method.goal_transitions,
        extras=method.extras,
        seed=config.seed,
        device=device,
    )


def make_logger(config: Config, run_dir: Path) -> Logger | None:
    """The logger asked for beside ``metrics.csv``."""
    if config.logger is None:
        return None
    return get_logger(config.logger, str(run_dir), run_dir.name)


def report(config: Config, task: Task, run_dir: Path, trainer: OfflineTrainer, seconds: float) -> None:
    """Writes ``summary.json``, ``curves.png`` and ``rollout.gif``, and prints what came out."""
    policy = ActorPolicy(trainer.loss_module)
    assert trainer.evaluator is not None
    # a run that was killed after its last update has everything but this evaluation
    evaluation = (trainer.evaluation or trainer.evaluator.run(policy)).summary()
    summary = {
        **identity(config),
        "seeds": [config.seed],
        "steps": trainer.step,
        "updates_per_second": finite_or_none(trainer.updates_per_second, 2),
        "seconds": round(seconds, 1),
        "versions": {name: version(name) for name in PACKAGES},
        "eval": evaluation,
    }
    write_json(run_dir / "summary.json", summary)
    title = ", ".join(str(part) for part in (*identity(config).values(), f"seed {config.seed}") if part is not None)
    plot_curves(run_dir / "metrics.csv", run_dir / "curves.png", title=title, horizon=task.horizon)
    rollout = ""
    if config.rollout:
        rollout = record_rollout(task, policy, trainer.evaluator.first_seed, run_dir / "rollout.gif")
    print(f"\n{title}: {trainer.step:,} updates at {trainer.updates_per_second:.0f}/s, {seconds:.0f} s in all")
    for key, (low, high) in evaluation["intervals"].items():
        print(f"  {key:<24} {evaluation[key]:8.3f}   95% interval [{low:.3f}, {high:.3f}]")
    print(f"over {evaluation['episodes']} episodes. Run folder: {run_dir}")
    if rollout:
        print(rollout)


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
