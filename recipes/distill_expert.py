"""Distils a scripted expert into a network that a network can learn from: DAgger (Ross et al., 2011, arXiv:1011.0686).

python recipes/distill_expert.py task=FetchPush
python recipes/distill_expert.py task=FetchPick rounds=30
python recipes/distill_expert.py task=FetchSlide landing=runs/NAME/landing.npz
python recipes/distill_expert.py resume=runs/NAME                               resume after a kill

A scripted controller switches between cases; what it does cannot be cloned well from episodes of its own. A student
that acts, is corrected by the controller in every state it gets into, and learns from all corrections so far becomes
an expert that another network can be. Leaves ``expert.npz``, which ``expert_policy=`` takes, ``meta.json``,
``metrics.csv`` and ``curves.png`` in a run folder. A checkpoint after each round lets a killed run go on, bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from parts.cli import check_range, option, resumed_config, run_recipe
from parts.experts import linear_arrays, repeat_command
from parts.shared import (
    PACKAGES,
    hold,
    new_run_folder,
    stopping_on_signals,
    use_threads,
    versions_of,
    write_json,
)
from torch import Tensor, nn

from torchrl_smore.envs import EnvPool, Task, get_task, quality, task_names
from torchrl_smore.envs.experts import (
    Actor,
    ActorExpert,
    Expert,
    FetchSlideReactiveExpert,
    LandingModel,
    PlanningExpert,
    begin_episodes,
    write_actor,
)
from torchrl_smore.reports import plot_curves
from torchrl_smore.trainers import (
    MetricsFile,
    latest_checkpoint,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)

Array = NDArray[Any]

PANELS = {
    "success at the end, without noise": {"success": "student"},
    "discounted return at 0.99": {"discounted_return": "student"},
    "squared error to the expert": {"loss": "mean over action components"},
}
#: Options that do not decide what a round learns.
FREE_OPTIONS = ("threads", "run_root", "resume", "measure_episodes")
_MEASURE_SEED = 10_000_000
_EPISODE_SEED = 20_000_000


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option("FetchPush", ", ".join(task_names()))
    rounds: int = option(25, "rounds of student episodes, corrected by the expert")
    first_episodes: int = option(200, "episodes of the expert itself, before the first round")
    episodes: int = option(100, "episodes of the student in a round")
    updates: int = option(1500, "updates after each round")
    final_updates: int = option(8000, "updates at the end, under a cosine")
    batch_size: int = option(512, "states of an update")
    learning_rate: float = option(1e-3, "of Adam")
    noise: float = option(0.2, "standard deviation of noise on the actions of every other episode")
    random_prob: float = option(0.1, "probability that such an episode takes a uniform action in a step")
    landing: str | None = option(None, "of FetchSlide: model of fit_slide.py; default: the package's")
    clip: float = option(5.0, "largest standardised input, in standard deviations")
    measure_episodes: int = option(200, "episodes of the last measurement")
    num_envs: int = option(50, "environments stepped together")
    seed: int = option(0, "of everything")
    threads: int = option(1, "CPU threads of PyTorch; 0: its default, one for each core")
    run_root: str = option("runs", "where run folders are made")
    resume: str | None = option(None, "run folder to resume, under its own options")


def main(config: Config) -> None:
    """Runs the recipe."""
    distill(config)


def distill(config: Config) -> dict[str, Any]:
    """Runs DAgger, from nothing or where ``config.resume`` was killed, and leaves a run folder.

    Returns:
        What ``meta.json`` holds, and the folder as ``"run_dir"``.
    """
    folder = None
    if config.resume is not None:
        folder, config = Path(config.resume), resumed_config(config)
    task = check(config)
    use_threads(config.threads)
    torch.manual_seed(config.seed)
    if folder is None:
        text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
        folder = new_run_folder(config.run_root, config.task, "distilled", config=text)
    print(f"run folder: {folder}", flush=True)
    with hold(folder):
        distillation = Distillation(config, task, folder)
        advice = f"Resume with: python recipes/distill_expert.py resume={folder}"
        with EnvPool(task, config.num_envs) as pool:
            with stopping_on_signals(distillation.request_stop, advice):
                distillation.run(pool)
            write_actor(folder / "expert.npz", distillation.labels.actor(distillation.student))
            meta = report(config, task, pool, folder)
        title = f"{config.task}, distilled"
        plot_curves(folder / "metrics.csv", folder / "curves.png", title=title, panels=PANELS, unit="rounds")
    print(f"Learn from it: python recipes/smore_offline.py task={config.task} expert_policy={folder}")
    return {**meta, "run_dir": str(folder)}


def check(config: Config) -> Task:
    """The task, once every option is in its range."""
    task = get_task(config.task)
    if not task.scripted:
        raise ValueError(
            f"{task.name} has no scripted expert to distil: a task of your own may have one (make_expert), and one of "
            "locomotion a trained one, by recipes/train_expert.py."
        )
    if config.landing is not None:
        if task.name != "FetchSlide":
            raise ValueError(f"landing={config.landing} is for task=FetchSlide, got task={task.name}.")
        _check_landing(config.landing)
    if isinstance(teacher_of(config), PlanningExpert):
        raise ValueError(f"the expert of {task.name} plans ahead: what it does does not follow from what is seen.")
    counts = ("first_episodes", "episodes", "updates", "final_updates", "batch_size", "measure_episodes", "num_envs")
    most = {"seed": 2**31 - 1001, "num_envs": 1000, "threads": 1000, "updates": 10**9, "final_updates": 10**9}
    for names, least in ((counts, 1), (("rounds", "seed", "threads"), 0)):
        for name in names:
            check_range(name, getattr(config, name), least, most.get(name, 10**6))
    for name in ("first_episodes", "episodes"):
        if getattr(config, name) % config.num_envs:
            raise ValueError(f"{name} must be a multiple of num_envs={config.num_envs}, got {getattr(config, name)}.")
    ranges = {
        "learning_rate": ("in (0, 1]", lambda value: 0 < value <= 1),
        "clip": ("positive", lambda value: 0 < value < float("inf")),
        "noise": ("in [0, 1000]", lambda value: 0 <= value <= 1000),
        "random_prob": ("in [0, 1]", lambda value: 0 <= value <= 1),
    }
    for name, (expected, holds) in ranges.items():
        if not holds(getattr(config, name)):
            raise ValueError(f"{name} must be {expected}, got {getattr(config, name)}.")
    return task


def _check_landing(path: str) -> None:
    """Reads a landing model, which the expert itself reads at the first strike."""
    try:
        LandingModel(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"landing={path}: {error}") from error


def teacher_of(config: Config) -> Expert | PlanningExpert:
    """What labels the states."""
    if config.landing is not None:
        return FetchSlideReactiveExpert(Path(config.landing))
    return get_task(config.task).teacher()


class Distillation:
    """The rounds, and everything of them that a checkpoint holds."""

    def __init__(self, config: Config, task: Task, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.labels = Labels(task, config.clip)
        self.student = Student(self.labels.width, task.action_dim)
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=config.learning_rate)
        self.generator = np.random.default_rng(config.seed)
        self.seed = _EPISODE_SEED * (1 + config.seed)  # of the next episode
        self.rounds = 0  # done, that of the expert included
        self.seconds = 0.0
        self.stop: BaseException | None = None
        options = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE_OPTIONS}
        if config.landing is not None:
            options["landing_sha256"] = hashlib.sha256(Path(config.landing).read_bytes()).hexdigest()
        self.identity = {"recipe": "distill_expert", "options": options}
        if any((folder / "checkpoint").glob("step_*")):
            self._load()
        self.metrics = MetricsFile(folder / "metrics.csv", last_step=self.rounds - 1)

    def request_stop(self, error: BaseException) -> None:
        """Makes :meth:`run` raise ``error`` after the round in progress, whose checkpoint is then saved."""
        self.stop = error

    def run(self, pool: EnvPool) -> None:
        """Runs the rounds that are left, and leaves a checkpoint after each."""
        config, labels, teacher = self.config, self.labels, teacher_of(self.config)
        began = time.perf_counter() - self.seconds
        while self.rounds <= config.rounds:
            number = self.rounds
            reward = self._collect(pool, teacher, number)
            if number <= 2:
                # later statistics would move what the student has learnt
                labels.measure()
            last = number == config.rounds
            updates = config.final_updates if last else config.updates
            loss = fit(self.student, self.optimizer, labels, config, updates, last)
            self.seconds = time.perf_counter() - began
            row = {
                "labels": len(labels),
                "loss": loss,
                **{key: reward[key] for key in ("success", "discounted_return")},
            }
            self.metrics.write(number, {**row, "seconds": self.seconds})
            self.rounds += 1
            self._save()
            print(
                f"round {number} of {config.rounds}: {len(labels):,} labels, error {loss:.4f}, episodes without noise: "
                f"success {row['success']:.2f}, return {row['discounted_return']:.1f} ({self.seconds:.0f} s)",
                flush=True,
            )
            if self.stop is not None:
                raise self.stop

    def _collect(self, pool: EnvPool, teacher: Any, number: int) -> dict[str, Any]:
        config, count = self.config, self.config.first_episodes if number == 0 else self.config.episodes
        acting = None if number == 0 else self.labels.expert(self.student)
        batches = -(-count // pool.num_envs)
        seeds = range(self.seed, self.seed + batches * pool.num_envs)
        self.seed = seeds.stop
        return self.labels.collect(pool, teacher, acting, seeds, self.generator, config)

    def _save(self) -> None:
        state = {
            "rounds": self.rounds,
            "seed": self.seed,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "labels": {name: getattr(self.labels, name) for name in Labels.STATE},
            # of 128 bits, which no tensor holds
            "generator": json.dumps(self.generator.bit_generator.state),
            "rng": rng_state(),
        }
        save_checkpoint(self.folder / "checkpoint", self.rounds, state, self.identity, keep=1)

    def _load(self) -> None:
        state, _ = load_checkpoint(latest_checkpoint(self.folder / "checkpoint"), self.identity)
        self.rounds, self.seed, self.seconds = (state[name] for name in ("rounds", "seed", "seconds"))
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in Labels.STATE:
            setattr(self.labels, name, state["labels"][name])
        self.generator.bit_generator.state = json.loads(state["generator"])
        set_rng_state(state["rng"])
        print(f"resuming after {self.rounds} of {self.config.rounds + 1} rounds", flush=True)


class Student(nn.Sequential):
    """The paper's actor: two hidden layers of 256 with ReLU, tanh at the end."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__(
            *(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, action_dim), nn.Tanh())
        )


class Labels:
    """States that were met, with the expert's action in each."""

    #: Everything that changes.
    STATE = ("inputs", "actions", "mean", "std")

    def __init__(self, task: Task, clip: float) -> None:
        self.task, self.clip = task, clip
        self.width = task.observation_dim + task.goal_dim
        self.inputs, self.actions = torch.empty(0, self.width), torch.empty(0, task.action_dim)
        self.mean, self.std = torch.zeros(self.width), torch.ones(self.width)

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def measure(self) -> None:
        """Takes the statistics of all inputs so far."""
        self.mean, self.std = self.inputs.mean(0), self.inputs.std(0).clamp_min(0.01)

    def standardized(self, rows: Tensor) -> Tensor:
        """Inputs as the student sees them."""
        return ((self.inputs[rows] - self.mean) / self.std).clamp(-self.clip, self.clip)

    def actor(self, student: Student) -> Actor:
        """The student as an actor file holds it."""
        scale = {"mean": self.mean.numpy().copy(), "std": self.std.numpy().copy(), "clip": self.clip}
        return Actor(linear_arrays(student), goal_dim=self.task.goal_dim, **scale)

    def expert(self, student: Student) -> Expert:
        """The student as a controller of many rows at once, by torch: faster than :class:`ActorExpert`, near enough."""

        @torch.no_grad()
        def act(observation: dict[str, Array]) -> Array:
            rows = torch.from_numpy(np.concatenate([observation["observation"], observation["desired_goal"]], -1))
            action: Array = student(((rows - self.mean) / self.std).clamp(-self.clip, self.clip)).numpy()
            return action

        return act  # type: ignore[return-value]

    def collect(
        self,
        pool: EnvPool,
        teacher: Expert,
        acting: Expert | None,
        seeds: Sequence[int],
        generator: np.random.Generator,
        config: Config,
    ) -> dict[str, Any]:
        """Runs episodes, adds every state with the teacher's action, and returns the quality of those without noise.

        Args:
            pool: environments.
            teacher: labels every state.
            acting: acts; ``None``: the teacher.
            seeds: of the episodes, as many as make whole pools.
            generator: of the noise.
            config: its strength.
        """
        rewards, inputs, actions = [], [], []
        for first in range(0, len(seeds), pool.num_envs):
            chosen = seeds[first : first + pool.num_envs]
            noisy = np.arange(first, first + pool.num_envs) % 2 == 1
            observation = pool.reset(chosen)
            guide = begin_episodes(teacher, observation, chosen)
            earned = []
            for _ in range(self.task.horizon):
                label = guide(observation)
                inputs.append(np.concatenate([observation["observation"], observation["desired_goal"]], -1))
                actions.append(label)
                action = label if acting is None else acting(observation)
                shaken = np.clip(action + config.noise * generator.standard_normal(action.shape), -1.0, 1.0)
                uniform = generator.uniform(-1.0, 1.0, action.shape)
                replaced = generator.random(len(action)) < config.random_prob
                shaken = np.where(replaced[:, None], uniform, shaken)
                observation, reward = pool.step(np.where(noisy[:, None], shaken, action).astype(np.float32))
                earned.append(reward)
            rewards.append(np.stack(earned, -1)[~noisy])
        self.inputs = torch.cat([self.inputs, torch.from_numpy(np.concatenate(inputs)).float()])
        self.actions = torch.cat([self.actions, torch.from_numpy(np.concatenate(actions)).float()])
        return quality(np.concatenate(rewards))


def fit(
    student: Student, optimizer: torch.optim.Adam, labels: Labels, config: Config, updates: int, cosine: bool
) -> float:
    """Fits the student to all labels; returns the mean squared error over the last tenth of the updates."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates) if cosine else None
    losses = []
    for _ in range(updates):
        rows = torch.randint(len(labels), (config.batch_size,))
        loss = (student(labels.standardized(rows)) - labels.actions[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses[-max(1, updates // 10) :]).mean())


def report(config: Config, task: Task, pool: EnvPool, folder: Path) -> dict[str, Any]:
    """Measures expert and student on fresh episodes without noise, and writes ``meta.json``."""
    path = folder / "expert.npz"
    meta: dict[str, Any] = {
        "task": task.name,
        "command": repeat_command("distill_expert.py", config, "task", "seed", threads=Config.threads, resume=None),
        "versions": versions_of(PACKAGES),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    for name, expert in (("scripted", teacher_of(config)), ("expert", ActorExpert(path))):
        meta[name] = {"episodes": config.measure_episodes, **measure(pool, expert, config.measure_episodes)}
        found = f"success {meta[name]['success']:.3f}, discounted return {meta[name]['discounted_return']:.2f}"
        print(f"{name}: {found} over {config.measure_episodes} episodes")
    write_json(folder / "meta.json", meta)
    return meta


def measure(pool: EnvPool, expert: Expert, episodes: int) -> dict[str, Any]:
    """Quality of an expert without noise over episodes that no one has learnt from."""
    rewards: list[Array] = []
    for first in range(0, episodes, pool.num_envs):
        seeds = range(_MEASURE_SEED + first, _MEASURE_SEED + first + pool.num_envs)
        observation = pool.reset(seeds)
        acting, earned = begin_episodes(expert, observation, seeds), []
        for _ in range(pool.task.horizon):
            observation, reward = pool.step(acting(observation))
            earned.append(reward)
        rewards.append(np.stack(earned, -1))
    return quality(np.concatenate(rewards)[:episodes])


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
