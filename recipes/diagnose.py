"""Why a run learns or does not: weights, score, policy, inputs and failed episodes, on one page with what to try.

python recipes/diagnose.py run=runs/NAME
python recipes/diagnose.py run=runs/NAME position=2 episodes=100     of the seeds trained together the third

Reads the run's newest checkpoint and its dataset, runs its policy, and leaves tables, figures and ``index.html`` in
``runs/NAME/diagnosis``, of a run of several seeds in ``runs/NAME/diagnosis_seed<seed>``, in under a minute. What it
finds is printed too.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parts.build import make_dataset, make_loss, make_sampler, reading
from parts.cli import check_range, option, read_config, run_recipe
from parts.datasets import dataset_folder
from parts.diagnosis import (
    Groups,
    Row,
    along_trajectories,
    effective_temperature,
    expert_batch,
    find_groups,
    has_score,
    input_rows,
    moving_mask,
    noise_shares,
    phase_of,
    phase_rows,
    policy_actions,
    quantile_rows,
    row_weights,
    run_episodes,
    state_value,
    steps_to_goal,
    weight_classes,
)
from parts.methods import METHODS
from parts.options import Config as RunConfig
from parts.options import identity
from parts.shared import results_folder, use_threads, write_json
from torch import Tensor

from torchrl_smore import SMORELoss, TrajectoryStore
from torchrl_smore.envs import Task, get_task
from torchrl_smore.reports import DIAGNOSIS_TABLES, effective_sample_size, write_diagnosis
from torchrl_smore.trainers import ActorPolicy, CheckpointError, latest_checkpoint, load_checkpoint, write_text

FOLDER = "diagnosis"
_FIRST_EPISODE = 10_000  # the seeds of every evaluation


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    run: str | None = option(None, "run folder of smore_offline.py")
    position: int = option(0, "which of the seeds that were trained together")
    dataset: str | None = option(None, "where the run's dataset lies now; default: where it lay then")
    rows: int = option(50_000, "rows drawn as in training, for the weights")
    trajectories: int = option(200, "most expert trajectories that are looked at")
    episodes: int = option(50, "episodes of the policy")
    moved: float = option(0.1, "share of the task's threshold that counts as a movement of the achieved goal")
    seed: int = option(0, "of the drawing")
    threads: int = option(1, "CPU threads of PyTorch; 0: its default, one for each core")
    out: str | None = option(None, "folder; default: diagnosis, or of several seeds diagnosis_seed<seed>, in the run's")


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained loss with what it was trained on."""

    run: RunConfig
    task: Task
    store: TrajectoryStore
    loss: Any
    groups: Groups
    moving: Tensor


def main(config: Config) -> None:
    """Runs the recipe."""
    check(config)
    use_threads(config.threads)
    folder = Path(config.run or "")
    run, state, meta = read_run(folder, config.dataset)
    seed = run.seed + config.position
    default = folder / (FOLDER if run.seeds == 1 else f"{FOLDER}_seed{seed}")
    out = Path(config.out) if config.out else default
    with results_folder(out):
        if out != default:
            check_replaces(out)
        subject = open_subject(config, run, state["update"]["losses"], meta)
        diagnose(config, subject, state["step"], out)


def diagnose(config: Config, subject: Subject, step: int, out: Path) -> None:
    """Measures, and leaves and prints what comes of it."""
    run, folder = subject.run, Path(config.run or "")
    tables, numbers, missing = measure(subject, config)
    about = {**identity(run), "step": step, "seed": run.seed + config.position, "gamma": run.gamma}
    about |= {
        name: getattr(run, name)
        for name in ("anchors", "goals", "actor_goals", "goal_stitch", "her_ratio", "input_clip")
    }
    about |= {"normalize": run.normalize, "batch_size": run.batch_size, "threshold": subject.task.threshold}
    about |= {"experts": subject.groups.names[subject.groups.expert], "experts_known": subject.groups.known}
    about |= {"moved": config.moved * subject.task.threshold, "seeds": run.seeds}
    for name in DIAGNOSIS_TABLES:
        # what an earlier diagnosis has left and this one does not have would be read as its own
        (out / f"{name}.csv").unlink(missing_ok=True)
        if name in tables:
            write_table(out / f"{name}.csv", tables[name])
    write_json(out / "diagnosis.json", {"about": about, "numbers": numbers, "missing": missing})
    findings = write_diagnosis(out, folder / "metrics.csv")
    print(f"{', '.join(str(part) for part in identity(run).values() if part)}, update {step:,}")
    for finding in findings:
        if finding.problem:
            print(f"\n! {finding.said}\n  Try: {finding.advice}")
    if not any(finding.problem for finding in findings):
        print("\nNothing out of the ordinary was found.")
    for part, reason in missing.items():
        print(f"\nNot shown: {part}: {reason}")
    print(f"\n{out / 'index.html'}")


def check_replaces(out: Path) -> None:
    """Refuses a folder with files of our names that no diagnosis has left."""
    names = [name for name in ("index.html", *(f"{name}.csv" for name in DIAGNOSIS_TABLES)) if (out / name).exists()]
    if names and not (out / "diagnosis.json").is_file():
        raise FileExistsError(f"{out} has {', '.join(names)}, but is of no diagnosis: give out= another folder.")


def check(config: Config) -> None:
    """Refuses numbers out of range before anything is read."""
    if config.run is None:
        raise ValueError("give the run folder as run=runs/NAME.")
    for name, most in (("rows", 10**8), ("trajectories", 10**7), ("episodes", 10**6)):
        check_range(name, getattr(config, name), 1, most)
    for name, most in (("seed", 2**31 - 1001), ("threads", 1000), ("moved", 10**6)):
        check_range(name, getattr(config, name), 0, most)


def read_run(folder: Path, dataset: str | None) -> tuple[RunConfig, dict[str, Any], dict[str, Any]]:
    """Options of a run, the state of its newest checkpoint, and what the checkpoint says of itself.

    Args:
        folder: of the run.
        dataset: where its dataset lies now, if elsewhere.
    """
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"run={folder} is no run folder: it has no config.yaml.")
    run = read_config(RunConfig, folder / "config.yaml")
    # a run from before there were rules for anchors drew them from all rows
    run = reading(dataclasses.replace(run, anchors=run.anchors or "uniform", dataset=dataset or run.dataset), run)
    if not any((folder / "checkpoint").glob("step_*")):
        raise FileNotFoundError(f"run={folder} has not come to its first checkpoint yet.")
    state, meta = load_checkpoint(latest_checkpoint(folder / "checkpoint"), identity(run))
    return run, state, meta


def open_subject(config: Config, run: RunConfig, states: list[dict[str, Any]], meta: dict[str, Any]) -> Subject:
    """The loss of one seed with its parameters, and the dataset that it was trained on."""
    if not 0 <= config.position < len(states):
        raise ValueError(f"position must be in [0, {len(states) - 1}], got {config.position}.")
    if run.pixels:
        raise ValueError(f"run={config.run} sees pictures (pixels={run.pixels}): only what sees states is diagnosed.")
    task = get_task(run.task)
    store = find_dataset(run, task)
    if meta.get("dataset_sha256", store.sha256) != store.sha256:
        raise CheckpointError(
            f"run={config.run} was trained on another dataset than this one: its SHA-256 is not the one in the "
            "checkpoint. Name the right one as dataset=PATH."
        )
    loss = make_loss(run, task, store, torch.device("cpu"))
    loss.load_state_dict(states[config.position])
    groups = find_groups(store, max(task.gammas))
    return Subject(run, task, store, loss, groups, moving_mask(store.data, task.threshold, config.moved))


def find_dataset(run: RunConfig, task: Task) -> TrajectoryStore:
    """The dataset of a run; never collects one anew."""
    if run.dataset is None:
        names = ("num_trajectories", "expert_fraction", "seed", "action_noise", "expert_noise", "expert_random_prob")
        given = {name: getattr(run, name) for name in (*names, "expert_policy", "medium_policy")}
        place = dataset_folder(run.data_dir, task, **given)
        if not place.is_dir():
            raise FileNotFoundError(
                f"the dataset of the run is gone: {place} is not there. Start where the run was started, or give its "
                "place as dataset=PATH."
            )
    return make_dataset(run, task)


def measure(subject: Subject, config: Config) -> tuple[dict[str, list[Row]], dict[str, float], dict[str, str]]:
    """Every table, the numbers beside them, and what does not apply to this run, with the reason."""
    tables: dict[str, list[Row]] = {"inputs": input_rows(subject.task, subject.store.data)}
    numbers: dict[str, float] = {}
    missing: dict[str, str] = {}
    with warnings.catch_warnings():
        # nothing is trained here, so nothing updates the target network
        warnings.filterwarnings("ignore", "No target network updater", UserWarning)
        measure_batch(subject, config, tables, numbers, missing)
        measure_experts(subject, config, tables, numbers, missing)
        seeds = range(_FIRST_EPISODE, _FIRST_EPISODE + config.episodes)
        tables["episodes"], tables["distances"] = run_episodes(
            subject.task,
            ActorPolicy(subject.loss),
            seeds,
            action_noise=subject.run.action_noise,
            share=config.moved,
        )
    return tables, numbers, missing


def measure_batch(
    subject: Subject,
    config: Config,
    tables: dict[str, list[Row]],
    numbers: dict[str, float],
    missing: dict[str, str],
) -> None:
    """Rows as training draws them: what they are of, their weights, and the range of their score."""
    run, task, loss, groups, data = subject.run, subject.task, subject.loss, subject.groups, subject.store.data
    # from all rows, which are in memory here, however much of them training had there at a time
    drawing = dataclasses.replace(run, batch_size=config.rows, seed=config.seed, mapped=None, resident=None)
    batch = make_sampler(drawing, task, subject.store, torch.device("cpu"), extras=("row",))()
    row = batch["row"].squeeze(-1)
    goal = batch.get("actor_goal", batch["desired_goal"])
    at_goal = task.reached(data["achieved_goal"][row], goal)
    group = groups.of[trajectory_of(subject.store, row)]
    stored = (goal == data["desired_goal"][row]).all(-1)
    classes: dict[str, list[Any]] = {
        "behaviour": [groups.names[number] for number in group.tolist()],
        "goal": ["stored" if kept else "hindsight" for kept in stored.tolist()],
        "at_goal": at_goal.tolist(),
        "moving": subject.moving[row].tolist(),
    }
    numbers["idle_rows"] = float((at_goal & ~subject.moving[row]).double().mean())
    numbers["expert_rows"] = float((group == groups.expert).double().mean())
    if not has_score(loss):
        missing["weights, score and preference"] = f"method={run.method} has no score and value of dataset actions."
        return
    advantage = loss.advantage(batch)
    value = state_value(loss, batch)
    tables["quantiles"] = quantile_rows("advantage", advantage, groups, group)
    tables["quantiles"] += quantile_rows("score", advantage + value, groups, group)
    numbers["advantage_std"] = float(advantage.double().std(correction=0))
    measure_range(subject, advantage + value, numbers)
    weight = row_weights(loss, advantage)
    if weight is None:
        missing["weights"] = f"actor={run.actor} does not weigh a regression by an advantage."
        return
    tables["weights"] = weight_classes(classes, advantage, weight, loss.weight_clip)
    numbers["temperature"] = effective_temperature(loss)
    numbers["effective"] = effective_sample_size(weight.numpy()) / len(weight) if weight.any() else 0.0
    total = float(weight.double().sum())
    numbers["expert_weight"] = float(weight[group == groups.expert].double().sum()) / total if total else 0.0


def trajectory_of(store: TrajectoryStore, row: Tensor) -> Tensor:
    """Number of the trajectory that each row is of."""
    start, _ = store.trajectory_bounds
    return torch.searchsorted(start, row, right=True) - 1


def measure_range(subject: Subject, score: Tensor, numbers: dict[str, float]) -> None:
    """The score's range against that of its closed form, where it has one."""
    loss = subject.loss
    if isinstance(loss, SMORELoss):
        lower, upper = loss.objective.range
    else:
        rewards = METHODS[subject.run.method].rewards or (-1.0, 0.0)
        lower, upper = (reward / (1.0 - loss.gamma) for reward in rewards)
    numbers |= {"score_smallest": float(score.min()), "score_largest": float(score.max())}
    numbers |= {name: bound for name, bound in (("lower", lower), ("upper", upper)) if math.isfinite(bound)}
    numbers["outside"] = float(((score < lower) | (score > upper)).double().mean())


def measure_experts(
    subject: Subject,
    config: Config,
    tables: dict[str, list[Row]],
    numbers: dict[str, float],
    missing: dict[str, str],
) -> None:
    """Expert trajectories under their stored goals: phases, policy, score along them and against random actions."""
    groups, loss, data = subject.groups, subject.loss, subject.store.data
    experts = (groups.of == groups.expert).nonzero().squeeze(-1)[: config.trajectories]
    numbers["expert_trajectories"] = len(experts)
    if not len(experts):
        missing["everything along expert trajectories"] = (
            "the data name no expert, and no trajectory in them reaches its stored goal."
        )
        return
    start, stop = subject.store.trajectory_bounds
    rows = torch.cat([torch.arange(int(start[i]), int(stop[i])) for i in experts.tolist()])
    batch = expert_batch(data, rows)
    at_goal = subject.task.reached(data["achieved_goal"][rows], batch["desired_goal"])
    gap = None
    if has_score(loss):
        advantage = loss.advantage(batch)
        chance = torch.rand(batch["action"].shape, generator=torch.Generator().manual_seed(config.seed)) * 2 - 1
        gap = advantage - loss.advantage(batch.copy().set("action", chance))
        remaining = steps_to_goal(data)[rows]
        kept = (remaining > 0) & ~at_goal
        if kept.any():
            value = state_value(loss, batch)
            tables["scores"], along = along_trajectories(remaining[kept], (advantage + value)[kept], value[kept])
            numbers |= {name: number for name, number in along.items() if math.isfinite(number)}
        else:
            missing["score along expert trajectories"] = "none of them reaches its stored goal on its way."
    phase = phase_of(at_goal, subject.moving[rows])
    noise = noise_shares(loss, batch)
    tables["phases"] = phase_rows(phase, batch["action"], policy_actions(loss, batch), gap, noise)


def write_table(path: Path, rows: list[Row]) -> None:
    """A CSV file, written atomically, with six significant digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{cell:.6g}" if isinstance(cell, float) else cell for name, cell in row.items()})
    write_text(path, text.getvalue())


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
