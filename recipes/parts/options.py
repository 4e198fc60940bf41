"""Options of a training run: what they are, their defaults, and what names a run by them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from parts.cli import nearest, option
from parts.datasets import OF_EXPERT, check_experts
from parts.defaults import PRESETS, resolve
from parts.methods import METHODS
from torchrl_smore.data import ANCHOR_RULES
from torchrl_smore.envs import SCRIPTED, get_task, task_names
from torchrl_smore.functional.goals import STRATEGIES
from torchrl_smore.modules import CHANNELS

#: What the options of SMORe's loss are by default, which its signature says.
SMORE = METHODS["smore"].accepts
#: ``arriving`` where a trajectory comes to its goal, else ``uniform``, with a warning.
AUTO_ANCHORS = "auto"
SCHEDULES = ("cosine", "constant")
#: Options that a resumed run may have changed: they decide where and how it runs, not what comes of it. Of a dataset
#: the content is compared.
FREE_OPTIONS = (
    *("dataset", "dataset_format", "data_dir", "run_root", "resume", "device", "threads", "env_workers"),
    *("evaluation", "kernels", "compile", "compile_cache", "logger", "rollout", "on_divergence", "mapped"),
)


#: Options of what is collected where no dataset is given.
OF_COLLECTION = ("num_trajectories", "expert_policy", "expert_noise", "expert_random_prob", "medium_policy")


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
        None,
        "trajectories to collect when no dataset is given; default: the task's and preset's (330 to 10,000; up to "
        "40,000)",
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
    steps: int | None = option(None, "updates; default: the task's and preset's (4,000 to 24,000; up to 1,000,000)")
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
        "the method's, or future",
    )
    actor_goals: str | None = option(None, "the same for the actor; default: the method's, or those of score and value")
    goal_gamma: float | None = option(
        None, "a geometric goal lies 1/(1 - goal_gamma) steps ahead on average, in (0, 1); default: 0.99"
    )
    goal_stitch: float | None = option(
        None,
        "probability, in [0, 1], with which a hindsight goal goes on as another trajectory does from about there; "
        "default: 0 or the task's, of states and where goals are relabelled; WGCSL and contrastive RL have none",
    )
    mapped: str | None = option(None, "folder for a file of the rows, where they are too many for memory")
    resident: int | None = option(
        None,
        "rows of that file in memory at a time, which pass through it in an order of chance; default: any, by page",
    )
    networks: str = option("paper", "paper (2x256) or official (3x256, LayerNorm in the value network)")
    layer_norm: str | None = option(
        None,
        "LayerNorm in networks of states: critics (score or Q, and value), actor, all, none beside what networks= has; "
        "default: the method's (critics am; none)",
    )
    ensemble: int | None = option(
        None, "score (Q, critic) networks, of which the least counts; default: the method's (2 SMORe)"
    )
    contamination: float | None = option(
        None,
        "share of dataset actions that the actor's likelihood takes to be uniform noise, in [0, 1); default: the "
        "preset's and task's (quick: 0.2, some tasks 0.4 or 0; paper: 0)",
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
    actor_weight_decay: float | None = option(
        None, "decoupled weight decay of the actor, as AdamW's, at least 0; default: 0"
    )
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


def with_defaults(config: Config) -> Config:
    """The options with the defaults of preset, method and task in place of those not given.

    Raises:
        ValueError: for an unknown method or preset, options of a collection beside a dataset, or two kinds of goals for
            a method that has one.
    """
    get_task(config.task)
    idle = [name for name in OF_COLLECTION if getattr(config, name) is not None]
    if config.dataset is not None and idle:
        raise ValueError(f"{', '.join(idle)}: of no use with dataset=, which is read and not collected.")
    for name, valid in (("method", METHODS), ("preset", PRESETS)):
        check_name(config, name, list(valid))
    own_goals = config.actor_goals is not None
    one_kind = not METHODS[config.method].actor_goals
    if one_kind and None not in (config.goals, config.actor_goals):
        raise ValueError(
            f"method={config.method} has one kind of goals: give goals= or actor_goals=, not both, got "
            f"goals={config.goals} and actor_goals={config.actor_goals}."
        )
    goals_given, stitch, noise = config.goals is not None, config.goal_stitch, config.expert_noise
    if config.pixels and config.her_ratio is None:
        config = dataclasses.replace(config, her_ratio=1.0)  # goals are pictures of the data
    config = resolve(config)
    if config.expert_policy not in (None, SCRIPTED):
        config = dataclasses.replace(config, expert_noise=noise)  # what a task says is of its own expert
    if stitch is None and (config.pixels or METHODS[config.method].reached_goals or config.her_ratio == 0.0):
        config = dataclasses.replace(config, goal_stitch=None)  # what a task says is for those who can have it
    if one_kind and (goals_given or (METHODS[config.method].strategy != "future" and not own_goals)):
        # what a task says of the actor's goals is a default, and comes after what was given, and after what is part of
        # the method: a critic that tells where a policy comes to from where it does not has no goals but those
        config = dataclasses.replace(config, actor_goals=None)
    if config.eval_interval is None and config.steps is not None:
        config = dataclasses.replace(config, eval_interval=max(1, config.steps // 8))
    return config


def check_given(config: Config) -> None:
    """Refuses options that a user has given and that nothing would read, by method and by what else was given.

    Args:
        config: before :func:`with_defaults`, whose options may be of use to some methods alone.

    Raises:
        ValueError: for such an option, or an unknown task, method or preset.
    """
    get_task(config.task)
    for name, valid in (("method", METHODS), ("preset", PRESETS)):
        check_name(config, name, list(valid))
    method, resolved = METHODS[config.method], resolve(config)
    given = {field.name for field in dataclasses.fields(Config) if getattr(config, field.name) != field.default}
    likelihood = [name for name in ("contamination", "min_std") if name in given]
    if config.pixels:
        # there the constant deviation is the method's, and contamination an option of all
        likelihood = [name for name in likelihood if name == "min_std" and config.method == "crl_td"]
        reads = False
    else:
        chosen = resolved.regression or method.accepts.get("regression")
        reads = method.likelihood and chosen in (None, "nll")
    if likelihood and not reads:
        raise ValueError(
            f"method={config.method} does not read the likelihood of its actor"
            f"{' (regression=nll would)' if 'regression' in method.accepts else ''}, so it has no "
            f"{' or '.join(likelihood)}."
        )
    if "networks" in given and (config.pixels or not method.preset):
        which = "with pixels=, whose networks have encoder_size" if config.pixels else f"with method={config.method}"
        raise ValueError(f"networks={config.networks}: of no use {which}.")
    if "crop_prob" in given and not config.pixels:
        raise ValueError("crop_prob: of no use without pixels=, the size of pictures.")
    _check_idle(config, resolved, given)
    if config.dataset is None and given & {*OF_EXPERT}:
        _check_experts(config, resolved, given)
    for (name, value), idle in method.idle.items():
        found = [each for each in idle if each in given]
        if found and (getattr(resolved, name) or method.accepts[name]) == value:
            raise ValueError(f"{', '.join(found)}: of no use with {name}={value} of method={config.method}.")


def _check_idle(config: Config, resolved: Config, given: set[str]) -> None:
    """Refuses options of goals, anchors and inputs that others leave without use."""
    # pictures have hindsight goals whatever a method has by default
    no_hindsight = resolved.her_ratio == 0.0 and not (config.pixels and config.her_ratio is None)
    cases = (
        (resolved.anchors == "uniform", ("anchor_share",), "anchors=uniform"),
        (no_hindsight, ("goals", "actor_goals", "goal_gamma"), "her_ratio=0, which keeps stored goals"),
        (config.pixels > 0, ("normalize", "input_clip"), "pixels=, whose inputs are never standardised"),
        (not config.normalize, ("input_clip",), "normalize=false"),
    )
    for holds, names, what in cases:
        idle = [name for name in names if name in given]
        if holds and idle:
            raise ValueError(f"{', '.join(idle)}: of no use with {what}.")


def _check_experts(config: Config, resolved: Config, given: set[str]) -> None:
    """Refuses options of an expert of which no episode is collected; numbers out of range are refused elsewhere."""
    number, share = resolved.num_trajectories or 0, resolved.expert_fraction
    if number > 0 and (share is None or 0.0 <= share <= 1.0):
        task = get_task(config.task).data_source
        check_experts(task, task.composition(number, share), {name: getattr(config, name) for name in given})


def check_name(config: Config, name: str, valid: list[str | None]) -> None:
    """Refuses a value outside a closed set, and proposes the nearest."""
    value, known = getattr(config, name), list(map(str, valid))
    if value not in valid:
        raise ValueError(f"unknown {name} {value!r}: expected {', '.join(known)}.{nearest(str(value), known)}")


def method_options(method: str) -> list[str]:
    """The options of the recipe that a method has: those that its loss takes."""
    accepts = METHODS[method].accepts
    return [field.name for field in dataclasses.fields(Config) if field.name in accepts]


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
