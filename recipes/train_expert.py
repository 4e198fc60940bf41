"""Trains the locomotion experts of CheetahTgtVel and AntTgtVel by soft actor-critic; resumes after a kill.

python recipes/train_expert.py task=CheetahTgtVel-m-e steps=1000000
python recipes/train_expert.py resume=runs/NAME                      resume after a kill
python recipes/train_expert.py resume=runs/NAME steps=3000000        train for longer
python recipes/collect_dataset.py task=CheetahTgtVel-m-e expert_policy=runs/NAME
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import gymnasium
import numpy as np
import torch
import yaml
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from parts.cli import check_range, option, resumed_config, run_recipe
from parts.experts import repeat_command
from parts.sac import Sac
from parts.shared import (
    hold,
    new_run_folder,
    note_precision,
    stopping_on_signals,
    use_threads,
    versions_of,
    write_json,
)
from tqdm import tqdm

from torchrl_smore.envs import Task, get_task, task_names
from torchrl_smore.envs.experts import ActorExpert, Expert, write_actor
from torchrl_smore.modules import Precision
from torchrl_smore.reports import plot_curves, read_metrics
from torchrl_smore.trainers import (
    Compile,
    DivergedError,
    MetricsFile,
    latest_checkpoint,
    load_checkpoint,
    replacing,
    rng_state,
    save_checkpoint,
    set_rng_state,
    write_text,
)

PACKAGES = ("torchrl-smore", "torch", "torchrl", "tensordict", "numpy", "gymnasium", "mujoco")
RUNNING = [name for name in task_names() if not get_task(name).scripted]
REWARDS = ("target", "own")
PANELS = {
    "return of an episode": {"return": "mean", "return_random": "random actions"},
    "forward velocity [m/s]": {"velocity": "mean over the episode"},
    "steps at the goal, share": {"reached": "mean over the episode"},
    "critic loss": {"loss_qvalue": "loss_qvalue"},
    "actor loss": {"loss_actor": "loss_actor"},
    "entropy coefficient": {"alpha": "alpha"},
    "steps per second": {"steps_per_second": "all included"},
}
#: Options that a resumed run may have changed: they decide how far, where and how it runs.
FREE_OPTIONS = ("steps", "threads", "compile", "env_workers", "run_root", "resume", "measure_episodes")
_EVALUATION_SEED, _MEASURE_SEED = 10_000, 20_000  # of the first episode
_TOGETHER = 50  # episodes that are measured at the same time, each in a simulator of its own


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option(RUNNING[0], f"{', '.join(RUNNING)}; -m-e and -r-e share their expert")
    steps: int | None = option(None, "steps of the robot; default: 2,000,000, and of a resumed run its own")
    updates_per_step: float = option(0.5, "updates for each step after the random ones")
    reward: str = option("target", "target: the robot's own, its forward term largest at the goal; own: as it is")
    seed: int = option(0, "of networks, exploration and episodes")
    threads: int = option(1, "CPU threads of PyTorch; 0: its default, one for each core")
    compile: str = option("default", f"compile the update: {', '.join(get_args(Compile))}")
    precision: str = option("float32", f"of hidden layers: {', '.join(get_args(Precision))}")
    num_envs: int = option(8, "robots stepped together")
    env_workers: bool = option(False, "step each robot in a process of its own")
    random_steps: int = option(10_000, "steps of uniform actions before the first update")
    hidden: int = option(256, "width of the two hidden layers of every network")
    batch_size: int = option(256, "transitions of an update")
    capacity: int = option(1_000_000, "transitions that the replay buffer holds")
    eval_episodes: int = option(5, "episodes of an evaluation")
    measure_episodes: int = option(20, "episodes, of other seeds, that measure expert and medium at the end")
    eval_interval: int = option(10_000, "steps between evaluations, each of which keeps the actor")
    log_interval: int = option(1000, "steps between rows of metrics.csv")
    save_interval: int = option(10_000, "steps between checkpoints")
    run_root: str = option("runs", "where run folders are made")
    resume: str | None = option(
        None, "run folder to resume, under its own options but steps, threads, compile, env_workers, measure_episodes"
    )

    @property
    def length(self) -> int:
        """Steps of the robot, given or not."""
        return 2_000_000 if self.steps is None else self.steps


def main(config: Config) -> None:
    """Runs the recipe."""
    run_dir = None
    if config.resume is not None:
        free = (name for name in FREE_OPTIONS if name not in ("resume", "run_root"))
        run_dir, config = Path(config.resume), resumed_config(config, *free)
    check(config)
    use_threads(config.threads)
    torch.manual_seed(config.seed)
    note_precision(config.precision, torch.device("cpu"))
    task = get_task(config.task)
    agent = Sac(
        task.observation_dim,
        task.action_dim,
        hidden=config.hidden,
        capacity=config.capacity,
        batch_size=config.batch_size,
        seed=config.seed,
        compile=config.compile,  # type: ignore[arg-type] # checked there
        precision=config.precision,  # type: ignore[arg-type]
    )
    text = yaml.safe_dump(dataclasses.asdict(dataclasses.replace(config, resume=None)), sort_keys=False)
    if run_dir is None:
        run_dir = new_run_folder(config.run_root, "expert", config.task, f"seed{config.seed}", config=text)
    print(f"run folder: {run_dir}", flush=True)
    with hold(run_dir):
        training = Training(config, task, agent, run_dir)
        write_text(run_dir / "config.yaml", text)
        advice = f"Resume with: python recipes/train_expert.py resume={run_dir}"
        with stopping_on_signals(training.request_stop, advice):
            training.run()
        report(config, task, run_dir)


def check(config: Config) -> None:
    """Refuses what can be refused before anything is written."""
    get_task(config.task)
    if config.task not in RUNNING:
        other = "has a scripted expert" if get_task(config.task).scripted else "is no locomotion task"
        raise ValueError(f"task={config.task} {other}; this recipe trains the experts of {', '.join(RUNNING)}.")

    def value(name: str) -> int:
        return int(config.length if name == "steps" else getattr(config, name))

    counts = ("steps", "num_envs", "hidden", "batch_size", "eval_episodes", "measure_episodes")
    counts += ("eval_interval", "log_interval", "save_interval", "random_steps", "capacity")
    # a row is drawn by a number of float32, which has 2^24 of them
    most = {"steps": 10**9, "capacity": 2**24, "seed": 2**31 - 1001, "num_envs": 1000, "threads": 1000, "hidden": 10**5}
    for names, least in ((counts, 1), (("seed", "threads"), 0)):
        for name in names:
            check_range(name, value(name), least, most.get(name, 10**8))
    for name in ("steps", "random_steps", "eval_interval", "log_interval", "save_interval"):
        if value(name) % config.num_envs:
            raise ValueError(f"{name} must be a multiple of num_envs={config.num_envs}, got {value(name)}.")
    if config.reward not in REWARDS:
        raise ValueError(f"reward must be one of {', '.join(REWARDS)}, got {config.reward!r}.")
    if not 0.0 < config.updates_per_step <= 100.0:
        raise ValueError(f"updates_per_step must lie in (0, 100], got {config.updates_per_step}.")
    if int((config.length - config.random_steps) * config.updates_per_step) < 1:
        raise ValueError(
            f"steps must leave an update after random_steps={config.random_steps:,}, at "
            f"updates_per_step={config.updates_per_step:g}, got {config.length:,}."
        )
    if config.capacity < config.batch_size:
        raise ValueError(f"capacity must be at least batch_size={config.batch_size}, got {config.capacity}.")


class TargetReward(gymnasium.Wrapper):
    """The robot's own reward with another forward term: of the velocity v and its goal g, ``g - |g - v|``.

    Up to the goal this is v, as for the robots themselves, but that of the moment (the achieved goal) instead of the
    mean of the step. Beyond it, running faster is worth less.
    """

    def step(self, action: Any) -> Any:
        """Steps the robot."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        goal, velocity = float(observation["desired_goal"][0]), float(observation["achieved_goal"][0])
        # a robot that has fallen earns nothing, and says nothing
        forward = info.get("reward_forward")
        if forward is not None:
            reward = float(reward) - forward + goal - abs(goal - velocity)
        return observation, reward, terminated, truncated, info


def make_robot(task: Task, reward: str) -> gymnasium.Env:
    """The robot under one of ``REWARDS``."""
    robot = task.make_base_env()
    return TargetReward(robot) if reward == "target" else robot


def make_envs(task: Task, num_envs: int, workers: bool = False, reward: str = "own") -> VectorEnv:
    """Several robots; an episode ends when one falls or at the horizon, and the next begins at once."""
    trainer = os.getpid()

    def make() -> gymnasium.Env:
        # gymnasium makes one in this process too, to look at its spaces
        if os.getpid() != trainer:
            # what ends a group of processes reaches the trainer too, which ends its step before it saves and stops;
            # by SIGTERM multiprocessing itself ends these
            for name in ("SIGINT", "SIGHUP"):
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), signal.SIG_IGN)
        return gymnasium.wrappers.TimeLimit(make_robot(task, reward), task.horizon)

    kind = AsyncVectorEnv if workers else SyncVectorEnv
    return kind([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


class Training:
    """The loop, and everything of it that a checkpoint holds.

    Episodes in progress are not in a checkpoint: a resumed run starts new ones, whose seed depends on the step.
    """

    def __init__(self, config: Config, task: Task, agent: Sac, run_dir: Path) -> None:
        self.config, self.task, self.agent, self.run_dir = config, task, agent, run_dir
        self.step = 0
        options = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE_OPTIONS}
        self.identity = {"recipe": "train_expert", "task": config.task, "seed": config.seed, "options": options}
        self.stop: BaseException | None = None
        if any((run_dir / "checkpoint").glob("step_*")):
            state, _ = load_checkpoint(latest_checkpoint(run_dir / "checkpoint"), self.identity)
            self.step = state["step"]
            if self.step > config.length:
                raise ValueError(f"steps must be at least the {self.step:,} that the run has, got {config.length:,}.")
            self.agent.load_state_dict(state["agent"])
            set_rng_state(state["rng"])
            print(f"resuming at step {self.step:,} of {config.length:,}", flush=True)
        self.metrics = MetricsFile(run_dir / "metrics.csv", last_step=self.step or None)
        (run_dir / "actors").mkdir(exist_ok=True)

    def request_stop(self, error: BaseException) -> None:
        """Makes :meth:`run` save a checkpoint after the step in progress and raise ``error``."""
        self.stop = error

    def save(self) -> None:
        """Writes a checkpoint; the one before is dropped, for the replay buffer makes them large.

        Raises:
            DivergedError: instead, if a parameter is not finite.
        """
        self._check_finite()
        state = {"step": self.step, "agent": self.agent.state_dict(), "rng": rng_state()}
        save_checkpoint(self.run_dir / "checkpoint", self.step, state, self.identity, keep=1)

    def run(self) -> None:
        """Trains to the last step."""
        config, agent = self.config, self.agent
        if self.step == 0:
            random = measure(self.task, None, config.eval_episodes, _EVALUATION_SEED, config.reward)
            self.metrics.write(0, {f"{name}_random": values.mean() for name, values in random.items()})
        envs = make_envs(self.task, config.num_envs, config.env_workers, config.reward)
        bar = tqdm(total=config.length, initial=self.step, unit="step", disable=not sys.stderr.isatty())
        losses: Any = None
        try:
            seed = int(np.random.SeedSequence([config.seed, self.step]).generate_state(1)[0])
            observation = envs.reset(seed=seed)[0]["observation"]
            began, at = time.perf_counter(), self.step
            while self.step < config.length:
                observation = self._interact(envs, observation)
                bar.update(config.num_envs)
                if self.step > config.random_steps:
                    due = int((self.step - config.random_steps) * config.updates_per_step)
                    for _ in range(due - agent.updates):
                        losses = agent.update()
                values: dict[str, float] = {}
                if self.step % config.log_interval == 0 and losses is not None:
                    speed = (self.step - at) / (time.perf_counter() - began)
                    values = {"alpha": float(losses["alpha"]), "steps_per_second": speed}
                    values |= {key: float(losses[key]) for key in ("loss_qvalue", "loss_actor", "entropy")}
                    began, at = time.perf_counter(), self.step
                if self.step % config.eval_interval == 0 or self.step == config.length:
                    values |= self._evaluate(bar)
                if values:
                    self.metrics.write(self.step, values)
                if self.step % config.save_interval == 0 or self.step == config.length or self.stop is not None:
                    self.save()
                if self.stop is not None:
                    raise self.stop
        finally:
            bar.close()
            envs.close()

    def _check_finite(self) -> None:
        for name, parameter in self.agent.loss.named_parameters():
            if not parameter.isfinite().all():
                root = self.run_dir / "checkpoint"
                kept = latest_checkpoint(root) if any(root.glob("step_*")) else None
                raise DivergedError(name, self.agent.updates, None, kept)

    def _interact(self, envs: VectorEnv, observation: NDArray[Any]) -> NDArray[Any]:
        """One step of every robot; returns where they are then."""
        config = self.config
        if self.step < config.random_steps:
            # by torch, whose generator a checkpoint holds
            action = torch.rand(config.num_envs, self.task.action_dim).numpy() * 2.0 - 1.0
        else:
            action = self.agent.act(observation, explore=True)
        reached, reward, terminated, truncated, info = envs.step(action)
        following = reached["observation"]
        if (terminated | truncated).any():
            following = following.copy()
            for row in np.flatnonzero(terminated | truncated):
                following[row] = info["final_obs"][row]["observation"]
        self.agent.remember(observation, action, reward, following, terminated)
        self.step += config.num_envs
        return reached["observation"].copy()

    def _evaluate(self, bar: Any) -> dict[str, float]:
        """Keeps the actor and measures it; raises as :meth:`save`."""
        self._check_finite()
        path = actor_path(self.run_dir, self.step)
        write_actor(path, self.agent.layers())
        config = self.config
        found = measure(self.task, ActorExpert(path), config.eval_episodes, _EVALUATION_SEED, config.reward)
        values = {name: float(each.mean()) for name, each in found.items()}
        line = "return {return:.1f}, velocity {velocity:.2f} m/s, at the goal {reached:.1%} of the steps".format(
            **values
        )
        if bar.disable:
            print(f"step {self.step:,} of {config.length:,}: {line}", flush=True)
        bar.set_postfix_str(line)
        return values


def actor_path(run_dir: Path, step: int) -> Path:
    """Where the actor of a step is kept."""
    return run_dir / "actors" / f"step_{step:09d}.npz"


def measure(
    task: Task, policy: Expert | None, episodes: int, first_seed: int, reward: str
) -> dict[str, NDArray[np.float64]]:
    """What episodes of fixed seeds achieve, shape ``[episodes]`` each.

    Args:
        task: the task.
        policy: ``None`` for uniform actions.
        episodes: their number.
        first_seed: of the first one; the others count upwards.
        reward: of ``REWARDS``.

    Returns:
        ``return``, the sum of that reward; ``velocity``, the mean until a fall, m/s; ``reached``, the share of the
        horizon's steps that end at the goal; ``discounted_return``, of 1 for such a step, at the largest of
        ``task.gammas``.
    """
    groups = [range(first, min(first + _TOGETHER, episodes)) for first in range(0, episodes, _TOGETHER)]
    envs = [make_robot(task, reward) for _ in groups[0]]
    try:
        found = [_measure(task, envs[: len(group)], policy, episodes, first_seed, group) for group in groups]
    finally:
        for env in envs:
            env.close()
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def _measure(
    task: Task, envs: list[gymnasium.Env], policy: Expert | None, episodes: int, first_seed: int, group: range
) -> dict[str, NDArray[np.float64]]:
    """What :func:`measure` returns of some of its episodes that follow each other, one for each of ``envs``."""
    observation = stack([env.reset(seed=first_seed + episode)[0] for env, episode in zip(envs, group, strict=True)])
    rng = np.random.default_rng(first_seed)
    total, distance, steps, reached, discounted = (np.zeros(len(group)) for _ in range(5))
    for number in range(task.horizon):
        action = uniform_actions(rng, episodes, group, task.action_dim) if policy is None else policy(observation)
        results = [env.step(row) for env, row in zip(envs, action, strict=True)]
        observation = stack([result[0] for result in results])
        running = np.array([not result[2] for result in results])
        total += [float(result[1]) for result in results]
        distance += running * observation["achieved_goal"][:, 0]
        at_goal = running * task.reached(observation["achieved_goal"], observation["desired_goal"])
        reached += at_goal
        discounted += max(task.gammas) ** number * at_goal
        steps += running
        if not running.any():
            break
    return {
        "return": total,
        "velocity": distance / np.maximum(steps, 1.0),
        "reached": reached / task.horizon,
        "discounted_return": discounted,
    }


def uniform_actions(rng: np.random.Generator, episodes: int, group: range, width: int) -> NDArray[np.float32]:
    """The rows of ``group`` among uniform actions ``[episodes, width]``, which leaves ``rng`` where all of them do.

    So an episode's actions are the same in whatever group it is measured.
    """
    skip: Any = rng.bit_generator
    skip.advance(group.start * width)  # of PCG64: one number of 64 bits for each component
    action = rng.uniform(-1.0, 1.0, (len(group), width)).astype(np.float32)
    skip.advance((episodes - group.stop) * width)
    return action


def stack(observations: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """One batch of several observations."""
    return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}


def choose(steps: NDArray[Any], returns: NDArray[Any]) -> dict[str, int]:
    """The steps whose actors are expert and medium.

    The expert has the highest return. Medium is, of those before it, the one whose return is nearest to half of that.
    """
    best = int(returns.argmax())
    earlier = returns[:best] if best else returns[:1]
    medium = int(np.abs(earlier - returns[best] / 2.0).argmin())
    return {"expert": int(steps[best]), "medium": int(steps[medium])}


def report(config: Config, task: Task, run_dir: Path) -> None:
    """Writes ``expert.npz``, ``medium.npz``, ``meta.json`` and ``curves.png``, and prints what came out."""
    metrics = read_metrics(run_dir / "metrics.csv")
    title = f"{config.task}, seed {config.seed}"
    plot_curves(run_dir / "metrics.csv", run_dir / "curves.png", title=title, panels=PANELS, unit="steps")
    meta: dict[str, Any] = {
        "task": config.task,
        "reward": config.reward,
        "command": command(config),
        "steps": config.length,
        "return_random": float(metrics["return_random"][1][0]),
        "versions": versions_of(PACKAGES),
    }
    for name, step in choose(*metrics["return"]).items():
        path = run_dir / f"{name}.npz"
        with replacing(path) as beside:
            shutil.copyfile(actor_path(run_dir, step), beside)
        found = measure(task, ActorExpert(path), config.measure_episodes, _MEASURE_SEED, config.reward)
        meta[name] = {
            "step": step,
            "episodes": config.measure_episodes,
            **{key: float(values.mean()) for key, values in found.items()},
            "return_std": float(found["return"].std()),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        print(
            f"{name}: step {step:,}, return {meta[name]['return']:.1f} +- {meta[name]['return_std']:.1f}, "
            f"{meta[name]['velocity']:.2f} m/s, at the goal {meta[name]['reached']:.1%} of the steps"
        )
    write_json(run_dir / "meta.json", meta)
    print(f"Collect with: python recipes/collect_dataset.py task={config.task} expert_policy={run_dir}")


def command(config: Config) -> str:
    """The command that repeats a run from nothing."""
    return repeat_command("train_expert.py", config, "task", "seed", steps=config.length, resume=None)


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
