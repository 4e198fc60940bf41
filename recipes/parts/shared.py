"""What the recipes share: datasets, run folders, Ctrl-C, films."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchrl_smore
from parts import OPENGL
from torchrl_smore.data import DatasetError, TrajectoryStore, mix, readers, split_by_behaviour
from torchrl_smore.envs import (
    SCRIPTED,
    EnvPool,
    RenderError,
    Task,
    collect,
    expert_behaviour,
    get_task,
    medium_behaviour,
    render_episode,
)
from torchrl_smore.envs.experts import policy_files
from torchrl_smore.envs.wrappers import disturb, noise_generator
from torchrl_smore.reports import write_gif
from torchrl_smore.trainers import OfflineTrainer, locked, mean_metrics, write_text

log = logging.getLogger("torchrl_smore.recipes")

#: On two cores a compiled update of 256 in float32 took half the time of the eager one, and half a minute to make.
UPDATES_WORTH_COMPILING = 10_000

# tasks whose D4RL files hold no goals, by the beginning of their names
_FILM_STEPS = 100  # longest film, in steps
_ROBOTS = {"CheetahTgtVel": readers.d4rl.ROBOTS["halfcheetah"], "AntTgtVel": readers.d4rl.ROBOTS["ant"]}


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Versions by name of distribution; of ours, where it runs from a checkout that is not installed, its own word.

    Raises:
        importlib.metadata.PackageNotFoundError: for another one that is not installed.
    """
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "torchrl-smore":
                raise
            found[name] = torchrl_smore.__version__
    return found


def resolve_device(device: str) -> torch.device:
    """The device to train on; ``"auto"`` chooses and says what.

    Raises:
        ValueError: for another kind of device than ``"cpu"`` and ``"cuda"``.
        RuntimeError: if a GPU is asked for and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device=auto chose %s", device)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"unknown device {device!r}: expected auto, cpu, cuda or the like of cuda:1.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(
            f"device={device} was asked for, but this PyTorch ({torch.__version__}) sees no CUDA device: install a "
            "CUDA build of torch and a driver, or use device=cpu."
        )
    return torch.device(device)


def resolve_compile(mode: str, device: torch.device, updates: int, *, pictures: bool = False) -> str:
    """How to compile the update; ``"auto"`` chooses and says why.

    Args:
        mode: one of :data:`~torchrl_smore.trainers.Compile`, or ``"auto"``.
        device: to train on.
        updates: of all seeds.
        pictures: whether networks see pictures.
    """
    if mode != "auto":
        return mode
    chosen = "off"
    if device.type != "cpu":
        reason = "compilation has been timed on CPUs alone"
    elif pictures:
        reason = "compilation has not been timed where networks see pictures"
    elif updates < UPDATES_WORTH_COMPILING:
        reason = f"it pays from {UPDATES_WORTH_COMPILING:,} updates on"
    elif not _has_compiler():
        reason = "no C++ compiler was found (g++, clang++ or the one that CXX names)"
    else:
        chosen, reason = "default", f"{updates:,} updates are worth the time that it takes"
    log.info("compile=auto chose %s: %s", chosen, reason)
    return chosen


def _has_compiler() -> bool:
    """Whether PyTorch would find a C++ compiler."""
    return any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++"))))


def recognise_dataset(path: str) -> str:
    """The format of a dataset, one of ``readers.FORMATS``.

    Raises:
        DatasetError: if there is none at ``path``, or none of a known format.
    """
    try:
        return readers.recognise(path)
    except DatasetError as error:
        raise DatasetError(f"dataset={path}: {error}") from error


def load_dataset(
    path: str,
    task: Task,
    expert_fraction: float | None = None,
    *,
    format: str | None = None,
    goals: readers.Goals | None = None,
    columns: Mapping[str, Any] | None = None,
    clip_actions: bool = False,
) -> TrajectoryStore:
    """Reads a dataset of any format that :mod:`torchrl_smore.data.readers` knows, and checks that it fits the task.

    Args:
        path: a trajectory store, ``buffer.pkl``, D4RL ``.hdf5``, OGBench ``.npz``, folder or id of a
            Minari dataset, or a table.
        task: the task it is for.
        expert_fraction: share of expert trajectories to reduce or raise the dataset to; ``None`` takes all of it.
        format: one of ``readers.FORMATS``; recognised by default.
        goals: what the goals of a dataset that stores none become. ``None``: for the paper's locomotion tasks its
            velocities.
        columns: names of the columns of a table, see :class:`~torchrl_smore.data.readers.TableColumns`.
        clip_actions: clip actions to [-1, 1]; otherwise rows beyond it are warned of, as are goals far from the task's.

    Raises:
        DatasetError: if it is damaged, hostile, or does not fit.
        ValueError: if it needs ``goals`` and has none, or cannot take any.
    """
    format = format or recognise_dataset(path)
    options: dict[str, Any] = {"fallen": task.has_fallen}
    robot = next((robot for prefix, robot in _ROBOTS.items() if task.name.startswith(prefix)), None)
    if robot is not None and format in ("d4rl", "minari"):
        accepted = ("goals", "observation_columns") if format == "minari" else robot
        options |= {key: robot[key] for key in accepted if key in robot}
    if goals is not None:
        if format in ("store", "wgcsl", "csv"):
            raise ValueError(f"dataset={path} has goals of its own: drop goal_columns and desired_goal.")
        options["goals"] = goals
    if (columns is not None) != (format == "csv"):
        raise ValueError(
            f"dataset={path} is of format {format}: tables, and they alone, need columns={{observation: [NAME, ...], "
            "action: [...], achieved_goal: [...], episode: NAME}."
        )
    if columns is not None:
        options["columns"] = readers.TableColumns.of(columns)
    if format == "d4rl" and "goals" not in options:
        raise ValueError(
            f"dataset={path} has no goals: name the columns of the observation that are the achieved goal of "
            f"{task.name}, {', '.join(task.goal_columns)}, as goal_columns=[...]."
        )
    if format not in ("store", "wgcsl"):
        options["progress"] = sys.stderr.isatty()
    store = readers.read(path, reached=task.reached, format=format, **options)
    try:
        store.check_task(
            observation_dim=task.observation_dim,
            goal_dim=task.goal_dim,
            action_dim=task.action_dim,
            name=task.name,
            goal_range=task.goal_range,
            goal_slack=task.threshold,
        )
    except DatasetError as error:
        raise DatasetError(f"dataset={path}: {error}") from error
    if store.meta.get("task", task.name) not in (task.name, task.data_source.name):
        raise ValueError(f"dataset={path} was collected on {store.meta['task']}, not on {task.name}.")
    if format != "store":
        for key in ("observation", ("next", "observation")):
            store.data[key][:, list(task.blank_columns)] = 0.0
    if clip_actions:
        store = store.with_clipped_actions()
    return store if expert_fraction is None else with_expert_fraction(store, expert_fraction)


def with_expert_fraction(store: TrajectoryStore, fraction: float) -> TrajectoryStore:
    """The largest dataset with that share of expert trajectories that ``store`` holds."""
    parts = split_by_behaviour(store)
    rest = [name for name in parts if name != "expert"]
    held = {"expert": parts["expert"].num_trajectories if "expert" in parts else 0}
    held["rest"] = sum(parts[name].num_trajectories for name in rest)
    limits = [held["expert"] / fraction] if fraction > 0 else []
    limits += [held["rest"] / (1 - fraction)] if fraction < 1 else []
    total = int(min(limits))
    experts = round(total * fraction)
    if len(rest) > 1:
        raise ValueError(f"expert_fraction needs a dataset of one expert and one other part, found {sorted(parts)}.")
    chosen = [
        (parts[name], count) for name, count in (("expert", experts), *((n, total - experts) for n in rest)) if count
    ]
    if not chosen:
        raise ValueError(f"the dataset holds too few trajectories for expert_fraction={fraction}: {held}.")
    stores, counts = zip(*chosen)
    return mix(stores, counts)


def collect_or_load(
    task: Task,
    folder: str,
    *,
    num_trajectories: int,
    expert_fraction: float | None,
    seed: int,
    action_noise: float = 0.0,
    expert_noise: float | None = None,
    expert_random_prob: float | None = None,
    expert_policy: str | None = None,
    medium_policy: str | None = None,
) -> TrajectoryStore:
    """Collects a dataset of the task's composition, or loads what an equal earlier call has collected.

    Tasks with one :attr:`Task.data_task` have one dataset.

    The policies are files of trained actors, or the run folder of one; ``None`` and the noise of the expert are as in
    :func:`~torchrl_smore.envs.collect`.
    """
    if expert_fraction is not None and not 0.0 <= expert_fraction <= 1.0:
        raise ValueError(f"expert_fraction must lie in [0, 1], got {expert_fraction}.")
    task = task.data_source
    composition: dict[str, Any] = {"num_trajectories": num_trajectories, "expert_fraction": expert_fraction}
    given: dict[str, Any] = {
        "action_noise": action_noise,
        "expert_noise": expert_noise,
        "expert_random_prob": expert_random_prob,
        "expert_policy": expert_policy,
        "medium_policy": medium_policy,
    }
    out = dataset_folder(folder, task, seed=seed, **composition, **given)
    # a second process with the same request waits here, and then takes what the first has made
    with _collecting(out):
        if out.exists():
            log.info("dataset: %s", out)
            return TrajectoryStore.load(out)
        return collect(
            task,
            **task.composition(**composition),
            **given,
            seed=seed,
            out=out,
            progress=sys.stderr.isatty(),
        )


def _collecting(out: Path) -> contextlib.AbstractContextManager[None]:
    """The lock that :func:`torchrl_smore.envs.collect` takes; none where a store is there already."""
    if out.exists():
        return contextlib.nullcontext()
    return locked(out.with_name(f".{out.name}.lock"), f"dataset {out}", wait=True, on_wait=log.warning)


def dataset_folder(
    folder: str,
    task: str | Task,
    *,
    num_trajectories: int,
    expert_fraction: float | None,
    seed: int,
    action_noise: float = 0.0,
    expert_noise: float | None = None,
    expert_random_prob: float | None = None,
    expert_policy: str | None = None,
    medium_policy: str | None = None,
) -> Path:
    """Where a collected dataset is kept: in a folder that what decides its content gives the name.

    Raises:
        ValueError: if the task has no such composition, see :meth:`Task.composition`.
    """
    task = get_task(task)
    counts = task.composition(num_trajectories, expert_fraction)
    parts = [task.name, f"expert{counts['expert_episodes']}", f"{task.rest}{counts[f'{task.rest}_episodes']}"]
    parts += [f"seed{seed}"]
    parts += [f"noise{action_noise:g}"] if action_noise else []
    expert = expert_behaviour(task, expert_policy, expert_noise, expert_random_prob)
    if counts["expert_episodes"]:
        parts += [f"expertnoise{expert.noise:g}"] if expert.noise else []
        parts += [f"expertrandom{expert.random_prob:g}"] if expert.random_prob else []
    if expert_policy is None and task.bundled_actors is not None:
        expert_policy = str(task.bundled_actors)
    if medium_policy is None and counts["medium_episodes"]:
        medium_policy = medium_behaviour(task, expert_policy).policy
        if (
            medium_policy is not None
            and expert_policy is not None
            and Path(medium_policy).parent == Path(expert_policy)
        ):
            medium_policy = None  # counted with its folder
    files = [path for path in (expert_policy, medium_policy) if path not in (None, SCRIPTED)]
    parts += ["policy" + digest(*files)] if files else []
    return Path(folder) / "_".join(parts)


def digest(*paths: str | None) -> str:
    """Eight characters that tell the files of trained actors from others; folders count by their actors."""
    found = [Path(path) for path in paths if path is not None]
    files = [file for path in found for file in (sorted(path.glob("*.npz")) if path.is_dir() else policy_files(path))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def new_run_folder(root: str, *parts: object, config: str) -> Path:
    """A folder of its own below ``root``, named by time and ``parts``, with ``config`` as its ``config.yaml``."""
    # a task of one's own has a colon in its name, which not every file system takes
    name = "_".join([time.strftime("%Y%m%d-%H%M%S"), *map(str, parts)]).replace(":", ".")
    for number in range(1000):
        path = Path(root) / (name if number == 0 else f"{name}.{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        try:
            write_text(path / "config.yaml", config)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return path
    raise FileExistsError(f"{root} holds a thousand runs of this second.")


def without_nan(value: Any) -> Any:
    """Nested plain values with ``None`` in place of every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_partial_files(folder: Path) -> None:
    """Removes what a killed process left half written in a folder that nobody else writes to."""
    for left in folder.glob(".*.partial"):
        left.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class Stopped(KeyboardInterrupt):
    """A signal has ended a run, whose checkpoint is saved; ``signum`` says which."""

    def __init__(self, advice: str, signum: int) -> None:
        super().__init__(advice)
        self.signum = signum


@contextlib.contextmanager
def stopping_on_signals(request_stop: Callable[[Stopped], None], advice: str) -> Iterator[None]:
    """Within it, SIGINT (Ctrl-C), SIGTERM and SIGHUP ask for a stop with a checkpoint; a second one stops at once.

    SIGTERM and SIGHUP are left to whoever has a handler of his own for them or ignores them, as ``nohup`` does.

    Args:
        request_stop: called by the signal handler; saves and raises what it is given as soon as it can.
        advice: message of that.

    Raises:
        Stopped: at its end, if a signal came too late for anything to be stopped.
    """
    stopped: Stopped | None = None

    def note(signum: int, _: object) -> None:
        nonlocal stopped
        error = Stopped(advice, signum)
        if stopped is not None:
            raise error
        stopped = error
        request_stop(error)
        with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
            print(f"\n{signal.Signals(signum).name}: stopping with a checkpoint; again stops at once", file=sys.stderr)

    before = {signal.SIGINT: signal.signal(signal.SIGINT, note)}
    ends = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))  # Windows has no SIGHUP
    for each in filter(None, ends):
        if signal.getsignal(each) is signal.SIG_DFL:
            before[each] = signal.signal(each, note)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if stopped is not None:
        raise stopped


class ProgressLines:
    """Prints one line for each evaluation of a trainer: what a log file gets instead of a progress bar."""

    def __init__(self, trainer: OfflineTrainer) -> None:
        self.trainer = trainer
        self.last = trainer.evaluations

    def __call__(self, _: Any) -> None:
        """Runs as a ``post_steps_log`` hook."""
        trainer = self.trainer
        if trainer.evaluations is self.last:
            return
        self.last = trainer.evaluations
        shown = ("success_last", "discounted_return_0.99", "final_distance")
        means = mean_metrics(trainer.evaluations)
        metrics = ", ".join(f"{name} {means[name]:.3f}" for name in shown)
        print(
            f"update {trainer.step:,} of {trainer.total_frames:,}: {metrics} ({trainer.updates_per_second:.0f}/s)",
            flush=True,
        )


def commit_of_library() -> str:
    """The commit that this code is of, with ``-dirty`` if it was changed since; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def finite_or_none(value: float, digits: int) -> float | None:
    """``value`` rounded, or ``None`` where JSON has no number for it."""
    return round(value, digits) if math.isfinite(value) else None


def seed_of_farthest_goal(task: Task, first_seed: int) -> int:
    """Of eight seeds the one whose goal is farthest at the start: there is most to see."""
    with EnvPool(task, 8) as pool:
        start = pool.reset(range(first_seed, first_seed + 8))
    return first_seed + int(np.linalg.norm(start["achieved_goal"] - start["desired_goal"], axis=-1).argmax())


def record_rollout(
    task: Task, policy: Callable[[Any], np.ndarray], first_seed: int, out: Path, *, goal_beside: bool = False
) -> str:
    """Films the episode of :func:`seed_of_farthest_goal`; see :func:`film_episode`."""
    return film_episode(task, policy, seed_of_farthest_goal(task, first_seed), out, goal_beside=goal_beside)


def film_episode(
    task: Task,
    policy: Callable[[Any], np.ndarray],
    seed: int,
    out: Path,
    action_noise: float = 0.0,
    *,
    goal_beside: bool = False,
) -> str:
    """Films the first 100 steps of an episode to a GIF in a process of its own, where no OpenGL can harm the run.

    Args:
        task: the task.
        policy: from observations of one row to actions of one row.
        seed: of the episode.
        out: the file.
        action_noise: of the environment, the same as that of a pool with this seed.
        goal_beside: what a policy of pictures sees, the scene and the goal side by side, in the place of goal marks.

    Returns:
        One line that says what came of it.
    """
    noise = noise_generator(seed)
    with EnvPool(task, 1) as pool:
        observation = pool.reset([seed])
        actions = []
        for _ in range(min(task.horizon, _FILM_STEPS)):
            action = policy(observation)[0]
            actions.append(disturb(action, action_noise, noise) if action_noise > 0 else action)
            observation, _ = pool.step(actions[-1][None])
    try:
        film = render_episode(
            task,
            seed,
            np.stack(actions),
            opengl=OPENGL,  # type: ignore[arg-type]
            own_process=True,
            goal_beside=goal_beside,
        )
        write_gif(film, out)
    except (RenderError, ValueError) as error:
        return f"no {out.name}: {error}"
    return f"rollout: {out}"
