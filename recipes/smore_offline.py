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
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from parts import OPENGL
from parts.build import make_dataset, make_policy, make_update, reading
from parts.checks import check
from parts.cli import read_config, resumed_config, run_recipe
from parts.evaluators import resolve_evaluation
from parts.films import record_rollout
from parts.model_card import make_loadable, write_model_card
from parts.options import FREE_OPTIONS, Config, check_given, fingerprint, identity, seed_label, with_defaults
from parts.pixels import with_pictures
from parts.shared import (
    PACKAGES,
    ProgressLines,
    finite_or_none,
    hold,
    new_run_folder,
    resolve_device,
    stopping_on_signals,
    use_threads,
    versions_of,
    without_nan,
    write_json,
)
from torchrl.record.loggers import Logger, get_logger

from torchrl_smore.envs import EnvPool, Task, get_task
from torchrl_smore.reports import plot_curves
from torchrl_smore.trainers import (
    BackgroundEvaluator,
    DivergedError,
    Evaluation,
    Evaluator,
    OfflineTrainer,
    latest_checkpoint,
    load_checkpoint,
    mean_metrics,
)


def main(config: Config) -> None:
    """Runs the recipe."""
    if config.resume is None:
        check_given(config)
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
        store = make_dataset(config if run_dir is None else reading(config, own_config(run_dir)), task)
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
        if config.resume is not None:
            # refuses another dataset, of which nothing is to be written into the run
            resume(trainer)
        make_loadable(trainer, task, store, identity(config))
        if not trainer.progress_bar:
            trainer.register_op("post_steps_log", ProgressLines(trainer))
        advice = f"Resume with: python recipes/smore_offline.py resume={run_dir}"
        with stopping_on_signals(trainer.stop_with, advice):
            try:
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


def new_run(config: Config) -> Path:
    """A new run folder with its ``config.yaml``."""
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    parts = [part for part in identity(config).values() if part is not None]
    return new_run_folder(config.run_root, *parts, seed_label(config), config=text)


def config_of_run(config: Config) -> Config:
    """The options that the run to resume was begun with, once its newest checkpoint is found whole and fitting."""
    own: Config = resumed_config(config, *(name for name in FREE_OPTIONS if name not in ("resume", "run_root")))
    run_dir = Path(own.resume or "")
    if has_checkpoint(run_dir):
        load_checkpoint(latest_checkpoint(run_dir / "checkpoint"), fingerprint(own))
    return own


def own_config(run_dir: Path) -> Config:
    """The options that a run was begun with."""
    own: Config = read_config(Config, run_dir / "config.yaml")
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
    curves = run_dir / "curves.png"
    plot_curves(run_dir / "metrics.csv", curves, title=title, horizon=task.horizon, goal_columns=task.goal_columns)
    rollout = ""
    if config.rollout:
        first_seed, film = trainer.evaluator.first_seed, run_dir / "rollout.gif"
        rollout = record_rollout(task, trainer.policies[0], first_seed, film, goal_beside=bool(config.pixels))
    rate = trainer.updates_per_second
    done = f"{trainer.step:,} updates" if np.isnan(rate) else f"{trainer.step:,} updates at {rate:.0f}/s"
    print(f"\n{title}: {done}, {seconds:.0f} s in all")
    for line in table_lines(evaluations):
        print(line)
    print(f"over {config.eval_episodes} episodes. Run folder: {run_dir}")
    if rollout:
        print(rollout)
    return {**summary, "run_dir": str(run_dir)}


def write_summary(
    config: Config, run_dir: Path, trainer: OfflineTrainer, seconds: float, diverged: DivergedError | None = None
) -> dict[str, Any]:
    """Writes ``summary.json``: ``null`` where there is no number, and for the evaluation if it ended by diverging.

    The times are those of the last call that did an update.
    """
    times = {"updates_per_second": finite_or_none(trainer.updates_per_second, 2), "seconds": round(seconds, 1)}
    if times["updates_per_second"] is None:
        times |= earlier_times(run_dir / "summary.json")
    evaluations = [] if diverged is not None else trainer.evaluations
    # one that is let go on has an evaluation and says it nevertheless
    diverged = diverged or trainer.diverged
    summary = {
        **identity(config),
        "seeds": list(trainer.seeds),
        "steps": trainer.step,
        **times,
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


def earlier_times(path: Path) -> dict[str, Any]:
    """The times in a run's summary, or nothing where it has none that can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("updates_per_second", "seconds")}
    return {}


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
