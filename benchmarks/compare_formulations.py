"""Learning curves of SMORe's formulations on one dataset, several seeds, equal budgets.

    python benchmarks/compare_formulations.py datasets/NAME --steps 1000 --seeds 0 1 2 --jobs 2

Writes a CSV (one row for each evaluation) and a PNG beside ``--out``, and prints a Markdown table of the final
evaluations (mean and standard deviation over seeds). Runs that the CSV already holds are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pages
import torch
from torchrl.objectives import SoftUpdate

from torchrl_smore import GoalBatchSampler, SMORELoss, TrajectoryStore, goal_specs, make_networks
from torchrl_smore.data import standardization
from torchrl_smore.envs import EnvPool, get_task
from torchrl_smore.reports import read_metrics
from torchrl_smore.trainers import Evaluator, OfflineTrainer, adam

VARIANTS: dict[str, dict[str, Any]] = {
    "in_sample": {},
    "in_sample c=1": {"residual_coef": 1.0},
    "in_sample free": {"score_bounds": None},
    "in_sample raw": {"normalize": False},
    "in_sample bf16": {"precision": "bf16"},
    "dual (Eq. 8, M)": {"formulation": "dual"},
    "dual (Eq. 10)": {"formulation": "dual", "residual_coef": 1.0},
    "official": {"formulation": "official"},
    "official_stable": {"formulation": "official_stable"},
    "behaviour cloning": {"temperature": 0.0},
}
METRICS = ("success_last", "discounted_return_0.98", "discounted_return_0.99", "return_over_max", "final_distance")
DIAGNOSTICS = ("score", "q_score", "value", "residual", "mean_advantage", "weight_clipped", "score_outside")


#: What tells a run from another, as the CSV has it.
RUN = ("task", "dataset", "variant", "seed", "steps", "batch_size", "episodes", "eval_interval")
COLUMNS = (*RUN, "step", *METRICS, *DIAGNOSTICS, "updates_per_second")


def key(job: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells a run from another, of one that is to be made or of a row."""
    return tuple(str(job.get(name)) for name in RUN)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of earlier runs; none where there is no file.

    Raises:
        ValueError: if it does not say what its runs were of.
    """
    rows = list(csv.DictReader(file.open(newline=""))) if file.exists() else []
    if rows and not set(RUN) <= rows[0].keys():
        missing = ", ".join(name for name in RUN if name not in rows[0])
        raise ValueError(f"{file} does not say {missing} of its runs: give another --out, or remove it.")
    return rows


def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Trains one variant with one seed; returns a row for each evaluation."""
    torch.set_num_threads(1)
    store = TrajectoryStore.load(job["folder"], verify=False)
    task = get_task(store.meta["task"])
    options = dict(VARIANTS[job["variant"]])
    scales = standardization(store.data) if options.pop("normalize", True) else None
    torch.manual_seed(job["seed"])
    specs = goal_specs(task.observation_dim, task.goal_dim, task.action_dim)
    networks = make_networks(*specs, statistics=scales, precision=options.pop("precision", "float32"))
    loss = SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=True, **options)
    optimizer, scheduler = adam(loss, total_steps=job["steps"])
    with EnvPool(task, min(job["episodes"], 50)) as pool, tempfile.TemporaryDirectory() as run_dir:
        trainer = OfflineTrainer(
            loss,
            GoalBatchSampler(store.data, job["batch_size"], seed=job["seed"]),
            optimizer,
            total_steps=job["steps"],
            run_dir=run_dir,
            scheduler=scheduler,
            target_updater=SoftUpdate(loss, tau=0.005),
            evaluator=Evaluator(pool, episodes=job["episodes"], horizon=task.horizon),
            eval_interval=job["eval_interval"],
            log_interval=job["eval_interval"],
            save_interval=job["steps"],
            progress_bar=False,
        )
        trainer.train()
        columns = read_metrics(Path(run_dir) / "metrics.csv")
    evaluated = columns["eval/success_last"][0]
    wanted = {
        **{f"eval/{name}": name for name in METRICS},
        **{name: name for name in (*DIAGNOSTICS, "updates_per_second")},
    }
    values = {short: dict(zip(*columns[name])) for name, short in wanted.items()}
    given = {name: job[name] for name in RUN}
    return [
        {**given, "step": int(step), **{name: f"{column[step]:.5g}" for name, column in values.items()}}
        for step in evaluated
    ]


def plot(rows: list[dict[str, Any]], out: Path, title: str) -> None:
    """Mean over seeds of return and success against updates, with the seeds' range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, name in zip(axes, ("discounted_return_0.99", "success_last")):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            steps = sorted({int(row["step"]) for row in rows if row["variant"] == variant})
            per_step = [
                [float(row[name]) for row in rows if row["variant"] == variant and int(row["step"]) == step]
                for step in steps
            ]
            (line,) = axis.plot(steps, [statistics.mean(values) for values in per_step], label=variant)
            axis.fill_between(
                steps, list(map(min, per_step)), list(map(max, per_step)), alpha=0.15, color=line.get_color()
            )
        axis.set_title(name)
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(out, dpi=110)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: final evaluation of each variant, mean and standard deviation over seeds."""
    names = ("success_last", "discounted_return_0.99", "final_distance", "score", "q_score", "weight_clipped")
    lines = ["| variant | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        last = [row for row in rows if row["variant"] == variant and int(row["step"]) == int(row["steps"])]
        cells = []
        for name in names:
            values = [float(row[name]) for row in last]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.3g} ± {spread:.2g}")
        lines.append(f"| {variant} | {len(last)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, then draws and prints everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument(
        "--out", default=None, help="path without suffix; default outputs/benchmarks/formulations_<task>"
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--eval-interval", type=int, default=250)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    args = parser.parse_args()
    store = TrajectoryStore.load(args.dataset)
    task = store.meta["task"]
    out = Path(args.out or f"outputs/benchmarks/formulations_{task}")
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".csv")
    rows = read_rows(file)
    done = {key(row) for row in rows}
    common = {name: getattr(args, name) for name in ("steps", "batch_size", "episodes", "eval_interval")}
    common |= {"folder": args.dataset, "dataset": store.sha256[:8]}
    asked = [
        {**common, "task": task, "variant": variant, "seed": seed} for seed in args.seeds for variant in args.variants
    ]
    jobs = [job for job in asked if key(job) not in done]
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, new in enumerate(pool.imap_unordered(run, jobs), 1):
            rows += new
            with pages.replacing(file) as beside, beside.open("w", newline="") as handle:
                writer = csv.DictWriter(handle, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            last = new[-1]
            print(
                f"[{number}/{len(jobs)}, {time.perf_counter() - started:.0f} s] {last['variant']} seed {last['seed']}: "
                f"return {last['discounted_return_0.99']}, success {last['success_last']}",
                flush=True,
            )
    wanted = set(map(key, asked))
    rows = [row for name in args.variants for row in rows if row["variant"] == name and key(row) in wanted]
    plot(rows, out.with_suffix(".png"), f"{task}, {args.steps} updates of {args.batch_size}, seeds' mean and range")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrl", "mujoco"))
    print(f"\n{platform.processor() or platform.machine()}, {packages}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
