"""Offline goal-conditioned RL with SMORe: collect or load a dataset, train, evaluate, leave a run folder.

python recipes/smore_offline.py                                    FetchReach from nothing, in a few minutes
python recipes/smore_offline.py task=FetchPush steps=100000 batch_size=512 num_trajectories=4000
python recipes/smore_offline.py task=FetchPush dataset=buffer.pkl  a file you own
python recipes/smore_offline.py seeds=5                            five seeds in one run
python recipes/smore_offline.py resume=runs/NAME                   resume after a kill
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import yaml
from parts import OPENGL
from parts.cli import check_range, nearest, option, resumed_config, run_recipe
from parts.datasets import collect_or_load, load_dataset, recognise_dataset
from parts.defaults import PRESETS, resolve
from parts.evaluators import EVALUATION, resolve_evaluation
from parts.films import record_rollout
from parts.methods import METHODS, PixelSetting, Setting
from parts.model_card import make_loadable, write_model_card
from parts.pixels import check_pixels, with_pictures
from parts.shared import (
    ProgressLines,
    finite_or_none,
    new_run_folder,
    note_precision,
    remove_partial_files,
    resolve_compile,
    resolve_device,
    stopping_on_signals,
    use_threads,
    versions_of,
    without_nan,
    write_json,
)
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger, get_logger

from torchrl_smore import GoalBatchSampler, TrajectoryStore, goal_specs
from torchrl_smore.data import ANCHOR_RULES, PixelBatchSampler, anchor_weights, check_anchor_rule, standardization
from torchrl_smore.data.readers import FORMATS, Goals
from torchrl_smore.envs import EnvPool, Painter, PixelPolicy, Task, get_task, task_names
from torchrl_smore.functional.goals import STRATEGIES, check_strategy
from torchrl_smore.modules import CHANNELS, MIN_STD
from torchrl_smore.reports import plot_curves
from torchrl_smore.trainers import (
    ActorPolicy,
    BackgroundEvaluator,
    Compile,
    DivergedError,
    Evaluation,
    Evaluator,
    FusedUpdate,
    OfflineTrainer,
    clear_leftovers,
    latest_checkpoint,
    load_checkpoint,
    locked,
    mean_metrics,
)

KERNELS = ("auto", "reference", "triton")
COMPILE = ("auto", *get_args(Compile))
LOGGERS = ("tensorboard", "wandb")
#: What the options of SMORe's loss are by default, which its signature says.
SMORE = METHODS["smore"].accepts
#: ``arriving`` where a trajectory comes to its goal, else ``uniform``, with a warning.
AUTO_ANCHORS = "auto"
ENCODERS = ("separate", "shared", "joint", "critics")
#: Options of networks that see pictures.
PIXEL_OPTIONS = ("encoder", "encoder_size", "pixel_norm", "pixel_cold")
ON_DIVERGENCE = ("stop", "continue")
SCHEDULES = ("cosine", "constant")
#: The largest value of each count: far beyond what any run needs, and within what every library takes.
MOST = {
    **dict.fromkeys(("steps", "eval_interval", "log_interval", "save_interval"), 10**9),
    **dict.fromkeys(("batch_size", "eval_episodes"), 10**6),
    **dict.fromkeys(("seeds", "env_workers"), 1000),
    "num_trajectories": 10**7,
    "seed": 2**31 - 1001,
}
#: Options that a resumed run may have changed: they decide where and how it runs, not what comes of it. Of a dataset
#: the content is compared.
FREE_OPTIONS = (
    *("dataset", "dataset_format", "data_dir", "run_root", "resume", "device", "threads", "env_workers"),
    *("evaluation", "kernels", "compile", "compile_cache", "logger", "rollout", "on_divergence", "mapped"),
)
PACKAGES = ("torchrl-smore", "torch", "torchrl", "tensordict", "numpy", "gymnasium", "gymnasium-robotics", "mujoco")


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option("FetchReach", f"{', '.join(task_names())}, or one of your own as MODULE:NAME")
    method: str = option("smore", ", ".join(METHODS))
    preset: str = option("quick", "quick (minutes) or paper (hours): lengths and sizes where none are given")
    dataset: str | None = option(
        None, "a store, buffer.pkl (WGCSL), .hdf5 (D4RL), .npz (OGBench), Minari folder or id; default: collected"
    )
    dataset_format: str | None = option(None, "store, wgcsl, d4rl, minari, ogbench, csv; default: recognised")
    goal_columns: tuple[int, ...] | None = option(
        None, "[COLUMN, ...] of the observation that are the achieved goal, for a dataset without goals"
    )
    desired_goal: tuple[float, ...] | None = option(
        None, "[NUMBER, ...] with goal_columns: the desired goal; default: what the trajectory achieves at its end"
    )
    clip_actions: bool = option(False, "clip the actions of dataset= to [-1, 1]; false: only say how many lie beyond")
    num_trajectories: int | None = option(
        None, "trajectories to collect when no dataset is given; default: the task's and preset's (1,000; 40,000)"
    )
    expert_fraction: float | None = option(None, "share of expert trajectories; default: 0.1, or a dataset as it is")
    action_noise: float = option(
        0.0, "the environment's noise on actions, collecting and evaluating (the paper: 0.5-1.5)"
    )
    expert_policy: str | None = option(
        None, "actor file, run folder of train_expert.py or distill_expert.py, or scripted; default: the task's"
    )
    expert_noise: float | None = option(
        None, "standard deviation of noise on the expert's actions in collected data; default: the task's"
    )
    expert_random_prob: float | None = option(
        None, "probability in each step that a uniform action replaces the expert's; default: the task's"
    )
    medium_policy: str | None = option(None, "the same for the medium trajectories; default: the folder expert_policy")
    data_dir: str = option("datasets", "where collected datasets are kept and found again")
    columns: Any = option(  # noqa: RUF009 - nobody changes it
        None,
        "of a table: {observation: [NAME, ...], action: [...], achieved_goal: [...], episode: NAME}, and desired_goal "
        "and terminated if it has them",
    )
    steps: int | None = option(None, "updates; default: the preset's (4,000; 400,000 to 1,000,000)")
    batch_size: int | None = option(
        None, "offline rows, and as many goal-transition rows; default: the preset's (256; 512)"
    )
    seed: int = option(0, "of data collection, networks and sampling; evaluation episodes are always the same")
    seeds: int = option(1, "seeds trained together on one dataset: seed, seed + 1, ...")
    formulation: str = option(SMORE["formulation"], "in_sample, dual, official, official_stable")
    divergence: str = option(
        SMORE["divergence"], "pearson_chi2, kl, squared_hellinger, total_variation, jensen_shannon"
    )
    beta: float = option(SMORE["beta"], "weight of goal transitions in the mixture, in (0, 1]")
    expectile: float | None = option(None, "of the value loss, in (0, 1); default: the method's (0.7 SMORe)")
    temperature: float | None = option(None, "multiplies the advantage, >= 0; default: the method's (10 SMORe)")
    gamma: float | None = option(
        None, "discount of the objective, in (0, 1); default: the method's and task's (0.9 SMORe)"
    )
    residual_coef: float = option(
        SMORE["residual_coef"], "weight of the Bellman term: 0.25 is Eq. 8, 1 is Eq. 10 as printed"
    )
    actor: str | None = option(None, "SMORe: awr, score (Table 16); contrastive RL: ddpgbc, awr")
    value_target: str | None = option(None, "SMORe: whose action the value is fitted at: dataset, policy (Table 16)")
    contrast: str | None = option(None, "contrastive RL: binary, balanced, infonce, symmetric_infonce")
    energy: str | None = option(None, "contrastive RL: inner, dot, l2")
    bc_coef: float | None = option(None, "contrastive RL: weight of cloning beside the critic's gradient, not negative")
    reward: str | None = option(None, "GoFAR: discriminator, binary (Table 13)")
    regression: str | None = option(
        None, "GCSL, WGCSL, GoFAR: mse, or nll, the likelihood with its contamination; default: mse"
    )
    alpha: float | None = option(None, "GC-SQL, GC-EQL, GC-XQL: strength of the regularisation, > 0; default: 1")
    actor_weight: str | None = option(None, "GoFAR: dual, expectile_awr (Table 13)")
    advantage_unit: str | None = option(
        None, "unit of advantages for the temperature: score, horizon (1/(1 - gamma) of it); default: the method's"
    )
    weight_clip: float | None = option(
        None, "largest weight of a row in the regression; default: the method's (1 SMORe), or the loss's (100)"
    )
    score_bounds: str | None = option(
        SMORE["score_bounds"], "auto clips bootstrapped scores to the range of the closed form, null leaves them free"
    )
    her_ratio: float | None = option(
        None, "probability of relabelling, in [0, 1]; default: the method's (1 SMORe), and 1 for pictures"
    )
    anchors: str | None = option(
        None,
        f"rows that most samples start from: {', '.join(ANCHOR_RULES)}, such as moving+reaching, or auto, which is "
        "arriving where any trajectory does; default: the preset's (auto; uniform)",
    )
    anchor_share: float = option(0.8, "share of samples that start from those rows, the others from any, in [0, 1]")
    goals: str | None = option(
        None,
        f"hindsight goals of score and value: {', '.join(STRATEGIES)}, or shares such as future:0.5+away:0.5; default: "
        "the method's (away SMORe)",
    )
    actor_goals: str | None = option(
        None, "the same for the actor; default: the method's (future SMORe), or those of score and value"
    )
    mapped: str | None = option(None, "folder for a file of the rows, where they are too many for memory")
    resident: int | None = option(
        None,
        "rows of that file in memory at a time, which pass through it in an order of chance; default: any, by page",
    )
    networks: str = option("paper", "paper (2x256) or official (3x256, LayerNorm in the value network)")
    layer_norm: str | None = option(
        None,
        "LayerNorm in networks of states: critics (score or Q, and value), actor, all; default: what networks= has",
    )
    ensemble: int | None = option(
        None, "score (Q, critic) networks, of which the least counts; default: the method's (2 SMORe)"
    )
    contamination: float | None = option(
        None,
        "share of dataset actions that the actor's likelihood takes to be uniform noise, in [0, 1); default: the "
        "preset's (0.2; 0)",
    )
    min_std: float | None = option(
        None, "smallest standard deviation of the actor, of actions in [-1, 1]; default: the task's, or e^-5 = 0.0067"
    )
    kernels: str = option("auto", "auto, reference, triton: of losses that have kernels, and of the optimiser")
    precision: str = option("float32", "of hidden layers: float32, or bf16 with float32 parameters")
    pixels: int = option(
        0,
        "height and width of the pictures (36 to 512) that observations and goals are; 0: states. Never standardised",
    )
    crop_prob: float = option(0.5, "probability that a row's pictures are shifted by up to 4 pixels, in [0, 1]")
    encoder: str = option(
        "separate",
        "of pictures: separate, one for each network; shared, one for all, trained by score (Q, critic) and value; "
        "joint, one for all, trained by all; critics, one for score (Q, critic) and value, and the actor's own",
    )
    encoder_size: str = option("small", f"of pictures: {', '.join(CHANNELS)}")
    pixel_norm: bool = option(True, "LayerNorm in the hidden layers of networks that see pictures")
    pixel_cold: bool = option(True, "last layer of the goal embedding near 0 at first, for networks that see pictures")
    normalize: bool = option(True, "standardise observations and goals by the dataset's statistics")
    input_clip: float = option(5.0, "largest standardised input, in standard deviations; 0: no bound")
    learning_rate: float | None = option(None, "of Adam; default: the method's (1e-3 SMORe)")
    schedule: str | None = option(None, f"of the actor's learning rate: {', '.join(SCHEDULES)}; default: the method's")
    actor_weight_decay: float = option(0.0, "decoupled weight decay of the actor, as AdamW's, at least 0")
    target_rate: float | None = option(
        None, "Polyak rate of the target networks, in (0, 1]; default: the method's (0.005 SMORe)"
    )
    eval_episodes: int = option(50, "episodes of an evaluation")
    eval_interval: int | None = option(
        None, "updates between evaluations; default: an eighth of them, or the preset's (10,000)"
    )
    log_interval: int | None = option(None, "updates between rows of metrics.csv; default: the preset's (50; 1,000)")
    save_interval: int | None = option(None, "updates between checkpoints; default: the preset's (1,000; 10,000)")
    evaluation: str = option(
        "auto", "here, or background: in a process of its own while updates go on, with the same results; auto chooses"
    )
    env_workers: int = option(0, "processes that step evaluation environments; 0: the one that evaluates")
    device: str = option("auto", "auto, cpu, cuda")
    threads: int | None = option(
        None, "CPU threads of PyTorch; 0: its default, one for each core; default: 1, but 0 with pictures"
    )
    compile: str = option("auto", "off, default, max: torch.compile of the whole update; auto: where it pays")
    compile_cache: str | None = option(
        None, "folder of your own in which compiled code is kept for the next run; what lies there is run"
    )
    on_divergence: str = option("stop", "stop, continue: what is done once a loss is not finite")
    logger: str | None = option(None, "tensorboard or wandb, beside metrics.csv")
    run_root: str = option("runs", "where run folders are made")
    resume: str | None = option(None, "run folder to resume, under its own options")
    rollout: bool = option(True, "film one episode at the end (rollout.gif)")


def main(config: Config) -> None:
    """Runs the recipe."""
    train(config)


def train(config: Config) -> dict[str, Any]:
    """Collects or loads, trains, evaluates, and leaves a run folder.

    Returns:
        What ``summary.json`` holds, and the folder as ``"run_dir"``.
    """
    started = time.perf_counter()
    run_dir = None
    with contextlib.ExitStack() as stack:
        if config.resume is not None:
            run_dir = Path(config.resume)
            stack.enter_context(hold(run_dir))
            config = config_of_run(config)
        else:
            config = with_defaults(config)
        check(config)
        use_threads(config.threads, pictures=config.pixels > 0)
        device, task = resolve_device(config.device), get_task(config.task)
        painter = None
        if config.pixels:
            painter = stack.enter_context(contextlib.closing(task.painter(config.pixels, OPENGL)))
        store = make_dataset(config, task)
        if painter is not None:
            store = with_pictures(store, painter, Path(config.data_dir))
        print(f"\n{store.summary()}\n")
        update = make_update(config, task, store, device)
        evaluator = stack.enter_context(open_evaluator(config, task, device))
        if run_dir is None:
            # only now, when nothing is left that a user's mistake could stop
            run_dir = new_run(config)
            stack.enter_context(hold(run_dir))
        trainer = OfflineTrainer(
            update=update,
            total_steps=config.steps,
            run_dir=run_dir,
            evaluator=evaluator,
            log_interval=config.log_interval,
            eval_interval=config.eval_interval,
            save_interval=config.save_interval,
            on_divergence=config.on_divergence,  # type: ignore[arg-type] # checked
            policy=[make_policy(loss, painter) for loss in update.losses],
            logger=make_logger(config, run_dir),
            meta={**fingerprint(config), "seeds": list(update.seeds), "dataset_sha256": store.sha256},
            progress_bar=sys.stderr.isatty(),
        )
        make_loadable(trainer, task, store, identity(config))
        if config.resume is not None:
            resume(trainer)
        if not trainer.progress_bar:
            trainer.register_op("post_steps_log", ProgressLines(trainer))
        advice = f"Resume with: python recipes/smore_offline.py resume={run_dir}"
        try:
            with stopping_on_signals(trainer.stop_with, advice):
                trainer.train()
        except DivergedError as error:
            write_summary(config, run_dir, trainer, time.perf_counter() - started, error)
            raise
        return report(config, task, run_dir, trainer, time.perf_counter() - started)


@contextlib.contextmanager
def open_evaluator(config: Config, task: Task, device: torch.device) -> Iterator[Evaluator | BackgroundEvaluator]:
    """What evaluates the policies of a run, in this process or in its own."""
    num_envs = min(config.eval_episodes * config.seeds, 50)
    make_pool = functools.partial(
        EnvPool, task, num_envs, num_workers=config.env_workers, action_noise=config.action_noise
    )
    options = {"episodes": config.eval_episodes, "horizon": task.horizon, "gammas": task.gammas}
    mode = resolve_evaluation(config.evaluation, device, config.steps * config.seeds, pictures=config.pixels > 0)
    if mode == "here":
        with make_pool() as pool:
            yield Evaluator(pool, **options)
        return
    EnvPool(task, 1).close()  # a simulator that is missing is told of now, and not when the first evaluation is due
    with BackgroundEvaluator(make_pool, **options) as background:
        yield background


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder, and clears away what a killed one left there half written."""
    if not run_dir.is_dir():
        yield  # nothing to hold: what asked for it is refused elsewhere
        return
    with locked(run_dir / ".lock", f"run folder {run_dir}"):
        remove_partial_files(run_dir)
        clear_leftovers(run_dir / "checkpoint")
        yield


def with_defaults(config: Config) -> Config:
    """The options with the defaults of preset, method and task in place of those not given."""
    get_task(config.task)
    for name, valid in (("method", METHODS), ("preset", PRESETS)):
        check_name(config, name, list(valid))
    if config.pixels and config.her_ratio is None:
        config = dataclasses.replace(config, her_ratio=1.0)  # goals are pictures of the data
    config = resolve(config)
    if config.eval_interval is None and config.steps is not None:
        config = dataclasses.replace(config, eval_interval=max(1, config.steps // 8))
    return config


def check_name(config: Config, name: str, valid: list[str | None]) -> None:
    """Refuses a value outside a closed set, and proposes the nearest."""
    value, known = getattr(config, name), list(map(str, valid))
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}: expected {', '.join(known)}.{nearest(str(value), known)}")


def identity(config: Config) -> dict[str, Any]:
    """What names a run; methods without formulations have ``None``."""
    formulation = config.formulation if "formulation" in method_options(config.method) else None
    return {"task": config.task, "method": config.method, "formulation": formulation}


def fingerprint(config: Config) -> dict[str, Any]:
    """What a checkpoint says of the run, and what a run that resumes it must agree with, name by name."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE_OPTIONS}
    return {**identity(config), "options": options}


def seed_label(config: Config) -> str:
    """The seeds of a run in names and titles: ``seed0``, or ``seeds0-4``."""
    return f"seed{config.seed}" if config.seeds == 1 else f"seeds{config.seed}-{config.seed + config.seeds - 1}"


def new_run(config: Config) -> Path:
    """A new run folder with its ``config.yaml``."""
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    parts = [part for part in identity(config).values() if part is not None]
    return new_run_folder(config.run_root, *parts, seed_label(config), config=text)


def config_of_run(config: Config) -> Config:
    """The options that the run to resume was begun with, once its newest checkpoint is found whole and fitting."""
    own: Config = resumed_config(config)
    run_dir = Path(own.resume or "")
    if has_checkpoint(run_dir):
        load_checkpoint(latest_checkpoint(run_dir / "checkpoint"), fingerprint(own))
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
        "target_rate": ("in (0, 1]", lambda value: value is None or 0 < value <= 1),
        "learning_rate": ("in (0, 1]", lambda value: value is None or 0 < value <= 1),
        "actor_weight_decay": ("in [0, 1000]", lambda value: 0 <= value <= 1000),
        "ensemble": ("in [1, 100]", lambda value: value is None or 1 <= value <= 100),
    }
    for name, (expected, holds) in ranges.items():
        if not holds(getattr(config, name)):
            raise ValueError(f"{name} must be {expected}, got {getattr(config, name)}.")
    names = {"method": METHODS, "compile": COMPILE, "kernels": KERNELS, "logger": (None, *LOGGERS)}
    names |= {"dataset_format": (None, *FORMATS), "on_divergence": ON_DIVERGENCE, "schedule": (None, *SCHEDULES)}
    names |= {"encoder": ENCODERS, "encoder_size": tuple(CHANNELS), "evaluation": EVALUATION}
    for name, valid in names.items():
        check_name(config, name, list(valid))
    if config.anchors != AUTO_ANCHORS:
        check_anchor_rule(config.anchors)
    for goals in (config.goals, config.actor_goals):
        if goals is not None:
            parse_strategy(goals)
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
        if config.layer_norm is not None:
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
    if config.compile_cache is not None and config.compile == "off":
        raise ValueError("compile_cache: of no use with compile=off, which makes no compiled code.")
    make_goals(config)  # refuses a goal without its columns
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


def make_goals(config: Config) -> Goals | None:
    """Goals of a dataset that has none, as the options name them."""
    if config.goal_columns is None:
        if config.desired_goal is not None:
            raise ValueError("desired_goal needs goal_columns.")
        return None
    return Goals(config.goal_columns, "final" if config.desired_goal is None else config.desired_goal)


def method_options(method: str) -> list[str]:
    """The options of the recipe that a method has: those that its loss takes."""
    accepts = METHODS[method].accepts
    return [field.name for field in dataclasses.fields(Config) if field.name in accepts]


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
    if config.layer_norm not in (None, *method.norms):
        raise ValueError(
            f"method={config.method} has LayerNorm by option in {', '.join(method.norms) or 'no network'}, "
            f"got layer_norm={config.layer_norm}."
        )
    options = {name: getattr(config, name) for name in accepts}
    # without a value is what has none by default: the method's stands in the loss
    unset = {field.name for field in dataclasses.fields(Config) if field.default is None}
    return {name: value for name, value in options.items() if value is not None or name not in unset}


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
    mode = resolve_compile(config.compile, device, len(seeds) * config.steps, pictures=config.pixels > 0)
    note_precision(config.precision, device)
    return FusedUpdate(
        losses,
        make_sampler(config, task, store, device),
        seeds=seeds,
        lr=config.learning_rate,
        total_steps=config.steps,
        cosine=("actor_network",) if decays else (),
        actor_weight_decay=config.actor_weight_decay,
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
    goals = parse_strategy(config.goals or method.strategy)
    actor_goals = None if config.actor_goals is None else parse_strategy(config.actor_goals)
    if not method.actor_goals:
        # one network, one kind of goal: the actor's
        goals, actor_goals = actor_goals or goals, None
    options: dict[str, Any] = {
        "strategy": goals,
        "actor_strategy": actor_goals,
        "anchors": make_anchors(config, task, store),
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
    options |= {"mapped": config.mapped, "resident": config.resident, "extras": (*method.extras, *extras)}
    return GoalBatchSampler(store.data, config.batch_size, her_ratio=config.her_ratio, **options)


def make_anchors(config: Config, task: Task, store: TrajectoryStore) -> torch.Tensor | None:
    """Weights of the rows that samples start from."""
    auto = config.anchors == AUTO_ANCHORS
    rule = "arriving" if auto else config.anchors
    # a rule that was asked for and chooses nothing is an error; "auto" says what it does
    return anchor_weights(rule, store.data, threshold=task.threshold, share=config.anchor_share, or_uniform=auto)


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


def make_logger(config: Config, run_dir: Path) -> Logger | None:
    """The logger asked for beside ``metrics.csv``."""
    if config.logger is None:
        return None
    return get_logger(config.logger, str(run_dir), run_dir.name)


def report(config: Config, task: Task, run_dir: Path, trainer: OfflineTrainer, seconds: float) -> dict[str, Any]:
    """Writes ``summary.json``, ``curves.png`` and ``rollout.gif``, and prints what came out."""
    assert trainer.evaluator is not None
    evaluations = trainer.evaluations
    summary = write_summary(config, run_dir, trainer, seconds)
    write_model_card(run_dir)
    title = ", ".join(str(part) for part in (*identity(config).values(), seed_label(config)) if part is not None)
    plot_curves(run_dir / "metrics.csv", run_dir / "curves.png", title=title, horizon=task.horizon)
    rollout = ""
    if config.rollout:
        first_seed, film = trainer.evaluator.first_seed, run_dir / "rollout.gif"
        rollout = record_rollout(task, trainer.policies[0], first_seed, film, goal_beside=bool(config.pixels))
    print(f"\n{title}: {trainer.step:,} updates at {trainer.updates_per_second:.0f}/s, {seconds:.0f} s in all")
    for line in table_lines(evaluations):
        print(line)
    print(f"over {config.eval_episodes} episodes. Run folder: {run_dir}")
    if rollout:
        print(rollout)
    return {**summary, "run_dir": str(run_dir)}


def write_summary(
    config: Config, run_dir: Path, trainer: OfflineTrainer, seconds: float, diverged: DivergedError | None = None
) -> dict[str, Any]:
    """Writes ``summary.json``: ``null`` where there is no number, and for all of the evaluation if the run diverged."""
    evaluations = [] if diverged is not None else trainer.evaluations
    summary = {
        **identity(config),
        "seeds": list(trainer.seeds),
        "steps": trainer.step,
        "updates_per_second": finite_or_none(trainer.updates_per_second, 2),
        "seconds": round(seconds, 1),
        "versions": versions_of(PACKAGES),
        "diverged": diverged and {"loss": diverged.name, "update": diverged.step, "seed": diverged.seed},
        "eval": evaluation_summary(evaluations) if evaluations else None,
        "runs": [
            {"seed": seed, "eval": own and own.summary()}
            for seed, own in zip(trainer.seeds, evaluations or [None] * len(trainer.seeds))
        ],
    }
    summary = without_nan(summary)
    write_json(run_dir / "summary.json", summary)
    return summary


def evaluation_summary(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The evaluation of one seed; of several the mean and standard deviation over seeds of each metric."""
    if len(evaluations) == 1:
        return evaluations[0].summary()
    spread = {key: float(np.std([own.metrics[key] for own in evaluations], ddof=1)) for key in evaluations[0].metrics}
    return {**mean_metrics(evaluations), "episodes": evaluations[0].episodes, "std_over_seeds": spread}


def table_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """What is printed of the evaluation: each metric with its interval or, of several seeds, each seed's value."""
    if len(evaluations) == 1:
        own = evaluations[0]
        return [
            f"  {key:<24} {own.metrics[key]:8.3f}   95% interval [{low:.3f}, {high:.3f}]"
            for key, (low, high) in own.intervals.items()
        ]
    return [
        f"  {key:<24} {mean:8.3f}   by seed: {', '.join(f'{own.metrics[key]:.3f}' for own in evaluations)}"
        for key, mean in mean_metrics(evaluations).items()
    ]


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
