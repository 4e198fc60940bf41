"""Evaluates the policy of a run again: success, returns, distance with intervals, where it fails, films.

python recipes/evaluate.py run=runs/NAME episodes=500
python recipes/evaluate.py run=runs/NAME which=best noise=0.5 film=3
python recipes/evaluate.py run=runs/NAME versus=runs/OTHER         paired, on the same episodes

Writes ``evaluation.json`` (and ``goals.png``, ``success_*.gif``, ``failure_*.gif``) into a folder below the run's, in
the place of those of an earlier evaluation of the same checkpoint there.
The episodes are not those of training unless ``first_seed=10000``.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from parts import OPENGL
from parts.chosen import name_of_choice
from parts.cli import check_range, option, run_recipe
from parts.datasets import number_text
from parts.films import film_episode
from parts.shared import commit_of_library, results_folder, use_threads, versions_of, without_nan, write_json

from torchrl_smore import load_policy
from torchrl_smore.envs import EnvPool, PixelPolicy, Task, get_task, task_names
from torchrl_smore.reports import plot_goals
from torchrl_smore.trainers import Evaluation, Evaluator, TrainedPolicy, mean_interval, mean_metrics, run_seeds

_FILE = re.compile(
    r"goals\.png|(success|failure)_[0-9]+\.gif|\.(goals\.png|(success|failure)_[0-9]+\.gif)\.[0-9]+\.partial"
)
_PACKAGES = ("torchrl-smore", "torch", "torchrl", "gymnasium", "gymnasium-robotics", "mujoco")


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    run: str | None = option(None, "run folder, or a checkpoint in it")
    versus: str | None = option(None, "another run, to compare with on the same episodes")
    task: str | None = option(None, f"{', '.join(task_names())}; default: the run's")
    which: str = option("last", "of run folders: last, best: of each seed's evaluations while it was trained")
    seed: int | None = option(None, "of a run of several seeds, which; default: all")
    episodes: int = option(200, "episodes of each seed")
    noise: float = option(0.0, "standard deviation of the environment's noise on actions")
    film: int = option(0, "successes, and as many failures, to film")
    first_seed: int = option(20_000, "episode e is reset with first_seed + e; training evaluates from 10,000")
    workers: int = option(0, "processes that step environments; 0: this one")
    out: str | None = option(None, "folder; default: evaluation_<which, or the checkpoint>... in the run folder")


def main(config: Config) -> None:
    """Runs the recipe."""
    check(config)
    with contextlib.ExitStack() as painters:
        evaluate(config, painters)


def evaluate(config: Config, painters: contextlib.ExitStack) -> None:
    """Loads, evaluates, writes and prints; ``painters`` closes what draws for policies that see pictures."""
    names = [name for name in (config.run, config.versus) if name is not None]
    groups = [load_seeds(config, name) for name in names]
    use_threads(None, pictures=any(policy.record.pixels is not None for group in groups for policy in group))
    task = get_task(config.task or task_of(groups[0][0]))
    for group in groups:
        check_fits(task, group[0], chosen=config.task is not None)
    out = Path(config.out) if config.out else groups[0][0].record.path / folder_name(config, task, groups)
    with results_folder(out):
        check_replaces(out, config, groups)
        policies = [as_policy(policy, task, painters) for group in groups for policy in group]
        run_and_write(config, task, out, groups, policies)
    print(f"all of it: {out / 'evaluation.json'}")


def run_and_write(
    config: Config,
    task: Task,
    out: Path,
    groups: Sequence[Sequence[TrainedPolicy]],
    policies: Sequence[Callable[[Any], np.ndarray]],
) -> None:
    """Evaluates the policies of all groups, and leaves and prints what comes of it."""
    names = [name for name in (config.run, config.versus) if name is not None]
    with EnvPool(
        task, min(config.episodes * len(policies), 50), num_workers=config.workers, action_noise=config.noise
    ) as pool:
        evaluator = Evaluator(
            pool, episodes=config.episodes, horizon=task.horizon, first_seed=config.first_seed, gammas=task.gammas
        )
        evaluations = evaluator.run_all(policies)
        goals = first_goals(pool, range(config.first_seed, config.first_seed + config.episodes))
    split = [evaluations[: len(groups[0])], evaluations[len(groups[0]) :]]
    success = np.mean([own.per_episode["success_last"] for own in split[0]], 0)
    result = {
        "task": task.name,
        "success_rule": task.success_rule,
        "which": name_of_choice(names[0], config.which, groups[0][0].record),
        **{key: getattr(config, key) for key in ("episodes", "noise", "first_seed")},
        **described(names[0], groups[0], split[0]),
        "failed_seeds": [config.first_seed + int(e) for e in np.flatnonzero(~(success == 1))],
        "commit": commit_of_library(),
        "versions": versions_of(_PACKAGES),
    }
    if config.versus is not None:
        result["versus"] = described(names[1], groups[1], split[1])
        result["paired"] = paired(*split)
    remove_earlier(out)
    write_json(out / "evaluation.json", without_nan(result))
    report(config, task, result)
    title = f"{task.name}, {groups[0][0].record.about.get('method', 'policy')}"
    if plot_goals(goals, success, task.goal_columns, out / "goals.png", title=title):
        print(f"where it fails: {out / 'goals.png'}")
    for kind, wanted in (("success", success == 1), ("failure", success == 0)):
        for episode in np.flatnonzero(wanted)[: config.film]:
            seed = config.first_seed + int(episode)
            pictures = groups[0][0].record.pixels is not None
            out_film = out / f"{kind}_{seed}.gif"
            print(film_episode(task, policies[0], seed, out_film, config.noise, goal_beside=pictures))


def check_replaces(out: Path, config: Config, groups: Sequence[Sequence[TrainedPolicy]]) -> None:
    """Refuses to replace an evaluation of another run, seed or checkpoint, or against another."""
    file = out / "evaluation.json"
    if not file.exists():
        return
    names = [name for name in (config.run, config.versus) if name is not None]
    own = [
        (name, sorted((policy.record.seed, policy.record.step) for policy in group))
        for name, group in zip(names, groups)
    ]
    try:
        held = json.loads(file.read_text())
        parts = [held, held["versus"]] if "versus" in held else [held]
        found = [
            (str(part["run"]), sorted((int(run["seed"]), int(run["step"])) for run in part["runs"])) for part in parts
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{file} is not of an evaluation, and is not replaced: give out= another folder."
        ) from error
    # the run that the folder lies in is its own, wherever it lay then
    places = [
        [(config.out is None and i == 0) or Path(name).resolve() for i, (name, _) in enumerate(each)]
        for each in (found, own)
    ]
    if places[0] != places[1] or [runs for _, runs in found] != [runs for _, runs in own]:
        raise FileExistsError(
            f"{file} is of {_said(found)}, and this would be of {_said(own)}: out=FOLDER writes to another folder and "
            "keeps both."
        )


def _said(groups: Sequence[tuple[str, Sequence[tuple[int, int]]]]) -> str:
    return " against ".join(
        f"{name} (seed {', '.join(str(seed) for seed, _ in runs)}) at "
        f"{', '.join(f'{step:,}' for step in sorted({step for _, step in runs}))} updates"
        for name, runs in groups
    )


def remove_earlier(out: Path) -> None:
    """Removes what an earlier evaluation left in a folder: the numbers, the goals and the films, and nothing else."""
    if not (out / "evaluation.json").is_file():
        return
    for path in out.iterdir():
        if _FILE.fullmatch(path.name):
            path.unlink()


def check(config: Config) -> None:
    """Refuses what can be refused before anything is loaded."""
    if config.run is None:
        raise ValueError("give the run folder as run=runs/NAME.")
    check_range("episodes", config.episodes, 1, 10**6)
    for name, most in (("film", 1000), ("first_seed", 2**31 - 10**6 - 1), ("workers", 1000), ("noise", 1000.0)):
        check_range(name, getattr(config, name), 0, most)
    if config.out is not None and Path(config.out).exists() and not Path(config.out).is_dir():
        raise ValueError(f"out must be a folder, got the file {config.out}.")


def load_seeds(config: Config, path: str) -> list[TrainedPolicy]:
    """The policies of a run, of one seed or of all."""
    seeds: Sequence[int] = run_seeds(path, config.which) if config.seed is None else [config.seed]  # type: ignore[arg-type]
    return [load_policy(path, config.which, seed=seed, goal_margin=None) for seed in seeds]  # type: ignore[arg-type]


def task_of(policy: TrainedPolicy) -> str:
    """The task that a run was trained on."""
    if policy.record.task is None:
        raise ValueError(f"{policy.record.path} does not say what task it is of: give it as task=....")
    return policy.record.task


def check_fits(task: Task, policy: TrainedPolicy, *, chosen: bool) -> None:
    """Refuses a run of other widths than the task's, or of another task than the one that nobody has chosen."""
    own = {"observation": task.observation_dim, "desired_goal": task.goal_dim, "action": task.action_dim}
    found = {key: len(columns) for key, columns in policy.record.columns.items()}
    if own != found or not (chosen or get_task(task_of(policy)).name == task.name):
        raise ValueError(
            f"{policy.record.path} is of {policy.record.task}, with {found}; it does not fit {task.name}, with {own}."
        )


def as_policy(policy: TrainedPolicy, task: Task, painters: contextlib.ExitStack) -> Callable[[Any], np.ndarray]:
    """A policy as an evaluator calls it: with states, of which one that sees pictures is given these."""

    def act(observation: Any) -> np.ndarray:
        return policy(observation["observation"], observation["desired_goal"])

    if policy.record.pixels is None:
        return act
    return PixelPolicy(act, painters.enter_context(contextlib.closing(task.painter(policy.record.pixels, OPENGL))))


def first_goals(pool: EnvPool, seeds: Sequence[int]) -> np.ndarray:
    """The goals ``[episodes, dg]`` of episodes by their seeds."""
    goals = []
    for first in range(0, len(seeds), pool.num_envs):
        part = list(seeds[first : first + pool.num_envs])
        padded = [*part, *[part[-1]] * (pool.num_envs - len(part))]
        goals.append(pool.reset(padded)["desired_goal"][: len(part)])
    return np.concatenate(goals)


def folder_name(config: Config, task: Task, groups: Sequence[Sequence[TrainedPolicy]]) -> str:
    """Where results are kept, by what decides them."""
    chosen = name_of_choice(str(config.run), config.which, groups[0][0].record)
    parts = ["evaluation", chosen, task.name, f"{config.episodes}from{config.first_seed}"]
    parts += [f"noise{number_text(config.noise)}"] if config.noise else []
    parts += [f"seed{config.seed}"] if config.seed is not None else []
    if config.versus is not None:
        other = groups[1][0].record
        chosen = name_of_choice(config.versus, config.which, other)
        parts += ["versus", other.path.resolve().name, *([chosen] if chosen != config.which else [])]
    return "_".join(parts)


def described(name: str, policies: Sequence[TrainedPolicy], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """A run and what its policies achieve; of several seeds with the mean over them."""
    record = policies[0].record
    return {
        "run": name,
        "method": record.about.get("method"),
        "formulation": record.about.get("formulation"),
        "eval": mean_metrics(evaluations),
        "runs": [
            {"seed": policy.record.seed, "step": policy.record.step, "eval": own.summary()}
            for policy, own in zip(policies, evaluations)
        ],
    }


def paired(first: Sequence[Evaluation], second: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """First minus second of each metric: its mean over episodes (each the mean over seeds) and a bootstrap interval."""
    differences = {}
    for key in first[0].per_episode:
        ours, theirs = (np.mean([own.per_episode[key] for own in each], 0) for each in (first, second))
        difference = ours - theirs
        low, high = mean_interval(difference)
        differences[key] = {"mean": float(difference.mean()), "interval": [low, high]}
    return differences


def report(config: Config, task: Task, result: dict[str, Any]) -> None:
    """Prints the numbers, and a line to paste."""
    runs = result["runs"]
    for key in runs[0]["eval"]["intervals"]:
        if len(runs) == 1:
            low, high = runs[0]["eval"]["intervals"][key]
            rest = f"95% interval [{low:.3f}, {high:.3f}]"
        else:
            rest = "by seed: " + ", ".join(f"{run['eval'][key]:.3f}" for run in runs)
        print(f"  {key:<24} {result['eval'][key]:8.3f}   {rest}")
    for key, own in result.get("paired", {}).items():
        low, high = own["interval"]
        print(f"  {key:<24} {own['mean']:+8.3f}   against {config.versus}, 95% interval [{low:+.3f}, {high:+.3f}]")
    seeds = ", ".join(str(run["seed"]) for run in runs)
    steps = ", ".join(f"{step:,}" for step in sorted({run["step"] for run in runs}))
    interval = ""
    if len(runs) == 1:
        low, high = runs[0]["eval"]["intervals"]["success_last"]
        interval = f" [{low:.3f}, {high:.3f}]"
    noise = f", action noise {config.noise:g}" if config.noise else ""
    named = result["which"] if result["which"] == config.which else f"checkpoint {result['which']}"
    print(
        f"\n{task.name}, {result['method']}, {named}, after {steps} updates, seed {seeds}: success "
        f"{result['eval']['success_last']:.3f}{interval} over {config.episodes} episodes{noise}"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
