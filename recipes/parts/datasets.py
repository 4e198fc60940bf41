"""Datasets of the recipes: read from a file, or collected once and found again."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_smore.data import DatasetError, TrajectoryStore, mix, readers, split_by_behaviour
from torchrl_smore.envs import (
    SCRIPTED,
    Task,
    collect,
    decisive_versions,
    expert_behaviour,
    get_task,
    medium_behaviour,
)
from torchrl_smore.envs.experts import policy_files
from torchrl_smore.trainers import locked

log = logging.getLogger("torchrl_smore.recipes")

# tasks whose D4RL files hold no goals, by the beginning of their names
_ROBOTS = {"CheetahTgtVel": readers.d4rl.ROBOTS["halfcheetah"], "AntTgtVel": readers.d4rl.ROBOTS["ant"]}

#: Options of the expert whose episodes are collected.
OF_EXPERT = ("expert_policy", "expert_noise", "expert_random_prob")

_ROUNDING = 1e-6  # trajectories: of up to ten million, by which a quotient may miss its whole number


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
    if format == "d4rl" and "horizon" not in options and not readers.d4rl.has_timeouts(path):
        log.warning("dataset=%s has no timeouts: its episodes are cut after %d steps, the task's", path, task.horizon)
        options["horizon"] = task.horizon
    if format not in ("store", "wgcsl"):
        options["progress"] = sys.stderr.isatty()
    store = readers.read(path, reached=task.reached, format=format, **options)
    longest = int((store.trajectory_bounds[1] - store.trajectory_bounds[0]).max())
    if longest > task.horizon:
        log.warning(
            "dataset=%s has a trajectory of %d transitions, and an episode of %s has %d: does the file say where all "
            "episodes end?",
            path,
            longest,
            task.name,
            task.horizon,
        )
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
    taken = (task.name, *task.data_tasks)
    if store.meta.get("task", task.name) not in taken:
        raise ValueError(f"dataset={path} was collected on {store.meta['task']}, not on {' or '.join(taken)}.")
    changed = _differing(store, task.data_source, ("observation_columns", "goal_columns", "action_columns"))
    if changed and "task" in store.meta:
        log.warning(
            "dataset=%s was collected when %s had %s: collect it anew, unless these are other names for the same",
            path,
            store.meta["task"],
            changed,
        )
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
    experts, others = largest_mixture(held["expert"], held["rest"], fraction)
    if len(rest) > 1:
        raise ValueError(f"expert_fraction needs a dataset of one expert and one other part, found {sorted(parts)}.")
    chosen = [(parts[name], count) for name, count in (("expert", experts), *((n, others) for n in rest)) if count]
    if not chosen:
        raise ValueError(f"the dataset holds too few trajectories for expert_fraction={fraction}: {held}.")
    stores, counts = zip(*chosen)
    return mix(stores, counts)


def largest_mixture(experts: int, others: int, fraction: float) -> tuple[int, int]:
    """How many trajectories of experts and of others the largest dataset with a share of experts has.

    Args:
        experts: how many there are.
        others: how many there are.
        fraction: share of experts, in ``[0, 1]``.
    """
    limits = [experts / fraction] if fraction > 0 else []
    limits += [others / (1 - fraction)] if fraction < 1 else []
    # 3 / (1 - 0.7) is less than 10
    total = int(min(limits) + _ROUNDING)
    chosen = round(total * fraction)
    return chosen, total - chosen


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

    Tasks with one :attr:`Task.data_source` have one dataset.

    The policies are files of trained actors, or the run folder of one; ``None`` and the noise of the expert are as in
    :func:`~torchrl_smore.envs.collect`.

    Raises:
        ValueError: for an argument out of its range, or if what was collected is of the task as it was, see
            :func:`check_collected`.
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
    note_experts(task, **composition)
    # a second process with the same request waits here, and then takes what the first has made
    with _collecting(out):
        if out.exists():
            # killed when the store was there and its chunks were being removed
            shutil.rmtree(out.with_name(f".{out.name}.partial-removed"), ignore_errors=True)
            log.info("dataset: %s", out)
            store = TrajectoryStore.load(out)
            check_collected(store, task, out)
            return store
        return collect(
            task,
            **task.composition(**composition),
            **given,
            seed=seed,
            out=out,
            progress=sys.stderr.isatty(),
        )


def check_experts(task: Task, counts: Mapping[str, int], given: Mapping[str, Any]) -> None:
    """Refuses options of an expert where no episode is one of it.

    Args:
        task: the task.
        counts: of :meth:`Task.composition`.
        given: the options that the user has given, by name.

    Raises:
        ValueError: naming them.
    """
    if counts["expert_episodes"]:
        return
    idle = [name for name in OF_EXPERT if given.get(name) is not None]
    policy = given.get("expert_policy")
    if counts["medium_episodes"] and policy is not None and given.get("medium_policy") is None:
        # a folder with both has the medium trajectories' actor
        idle = [name for name in idle if name != "expert_policy" or not (Path(policy) / "medium.npz").is_file()]
    if idle:
        raise ValueError(
            f"{', '.join(idle)}: of no use, as no episode of {task.name} is an expert's (expert_episodes=0): raise "
            "expert_fraction= or num_trajectories=."
        )


def note_experts(task: Task, num_trajectories: int, expert_fraction: float | None) -> None:
    """Says so where a share of experts that was asked for is less than one of them."""
    asked = task.expert_episodes != 0 if expert_fraction is None else expert_fraction > 0.0
    if asked and not task.composition(num_trajectories, expert_fraction)["expert_episodes"]:
        log.warning("no trajectory is an expert's: their share of num_trajectories=%d rounds to 0", num_trajectories)


def check_collected(store: TrajectoryStore, task: Task, out: Path) -> None:
    """Refuses a dataset that was collected when its task was another; warns if only code or packages have changed.

    Args:
        store: which says what the task was then, as far as it was written then.
        task: as it is now.
        out: where the store is.

    Raises:
        ValueError: naming what the task had, and what it has.
    """
    names = list(task.definition)
    if store.meta.get("threshold", task.threshold) != task.threshold:
        names.remove("success_rule")  # which names the threshold
    if changed := _differing(store, task, names):
        raise ValueError(f"{out} was collected when {task.name} had {changed}: delete it, or pass it as dataset=.")
    try:
        store.check_task(
            observation_dim=task.observation_dim, goal_dim=task.goal_dim, action_dim=task.action_dim, name=task.name
        )
    except DatasetError as error:
        raise DatasetError(f"{out}: {error}") from error
    then = store.meta.get("versions")
    then = then if isinstance(then, Mapping) else {}
    other = [
        f"{name} {then[name]} (now {now})"
        for name, now in decisive_versions().items()
        if now is not None and then.get(name) not in (None, now)
    ]
    if other:
        log.warning("%s was collected with %s. Delete it to collect it anew", out, " and ".join(other))
    source = task.source_sha256
    if source is not None and store.meta.get("source_sha256", source) != source:
        log.warning(
            "%s was collected with other code of %s: its environment or its expert has changed since, or what they "
            "are given. Delete it to collect it anew",
            out,
            task.name,
        )


def _differing(store: TrajectoryStore, task: Task, names: Sequence[str]) -> str:
    """What of a task was other when a store was collected, as far as that says, and what it is now; or nothing."""
    now = task.definition
    names = [name for name in names if name in store.meta and store.meta[name] != now[name]]
    had = " and ".join(f"{name} {store.meta[name]!r}" for name in names)
    return f"{had}, it now has {' and '.join(repr(now[name]) for name in names)}" if names else ""


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
    task = get_task(task).data_source
    counts = task.composition(num_trajectories, expert_fraction)
    parts = [task.name, f"expert{counts['expert_episodes']}", f"{task.rest}{counts[f'{task.rest}_episodes']}"]
    parts += [f"seed{seed}"]
    parts += [f"noise{number_text(action_noise)}"] if action_noise else []
    expert = expert_behaviour(task, expert_policy, expert_noise, expert_random_prob)
    if counts["expert_episodes"]:
        parts += [f"expertnoise{number_text(expert.noise)}"] if expert.noise else []
        parts += [f"expertrandom{number_text(expert.random_prob)}"] if expert.random_prob else []
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


def number_text(value: float) -> str:
    """A number for the name of a folder: short, and another one for every other number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def digest(*paths: str | None) -> str:
    """Eight characters that tell the files of trained actors from others; folders count by their actors."""
    found = [Path(path) for path in paths if path is not None]
    files = [file for path in found for file in (sorted(path.glob("*.npz")) if path.is_dir() else policy_files(path))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
