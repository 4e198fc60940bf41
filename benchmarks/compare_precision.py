"""Learning curves of float32 and of bf16 hidden layers, several seeds, equal budgets, and a verdict by a rule.

    python benchmarks/compare_precision.py --jobs 2

Collects a dataset for each task (10% scripted expert) and trains ``in_sample`` on it. The rule: precisions agree on a
task if the difference of their means over seeds is at most the larger of their standard deviations over seeds, for the
discounted return after the last update and for its mean over all evaluations (so that a slower start would show). Runs
that the CSV already holds are not repeated.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import compare_formulations
import harness
from tqdm import tqdm

from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import collect

VARIANTS = {"float32": "in_sample", "bf16": "in_sample bf16"}
METRIC = "discounted_return_0.99"
Rows = list[dict[str, Any]]


def dataset(task: str, trajectories: int, folder: Path) -> Path:
    """The dataset of a task, collected if it is not there."""
    path = folder / f"{task}_{trajectories}"
    if not path.exists():
        expert = trajectories // 10
        collect(task, expert_episodes=expert, random_episodes=trajectories - expert, seed=0, out=path)
    return path


def curves(rows: Rows, task: str, precision: str) -> dict[int, list[float]]:
    """Returns of every evaluation in order, by seed."""
    chosen = [row for row in rows if row["task"] == task and row["variant"] == VARIANTS[precision]]
    chosen.sort(key=lambda row: int(row["step"]))
    found: dict[int, list[float]] = {}
    for row in chosen:
        found.setdefault(int(row["seed"]), []).append(float(row[METRIC]))
    return found


def verdict(rows: Rows, task: str) -> list[list[str]]:
    """Table rows of a task: one for the last evaluation, one for the mean of all."""
    table = []
    for name, of in (("last evaluation", lambda curve: curve[-1]), ("mean of the curve", statistics.mean)):
        cells, means, spreads = [], [], []
        for precision in VARIANTS:
            values = [of(curve) for curve in curves(rows, task, precision).values()]
            means.append(statistics.mean(values))
            spreads.append(statistics.stdev(values) if len(values) > 1 else float("nan"))
            cells.append(f"{means[-1]:.3f} ± {spreads[-1]:.3f}")
        # not `>`: without a spread, from one seed, nothing agrees
        agree = abs(means[1] - means[0]) <= max(spreads)
        table.append([task, name, *cells, f"{means[1] - means[0]:+.3f}", "agree" if agree else "DIFFER"])
    return table


def plot(rows: Rows, tasks: list[str], path: Path, title: str) -> None:
    """Mean over seeds against updates, with their range."""
    figure, axes = harness.subplots(1, len(tasks), figsize=(4.5 * len(tasks), 3.8), squeeze=False)
    for axis, task in zip(axes[0], tasks):
        for precision in VARIANTS:
            steps = sorted({int(row["step"]) for row in rows if row["task"] == task})
            per_step = list(zip(*curves(rows, task, precision).values()))
            (line,) = axis.plot(steps, [statistics.mean(values) for values in per_step], label=precision)
            low, high = list(map(min, per_step)), list(map(max, per_step))
            axis.fill_between(steps, low, high, alpha=0.2, color=line.get_color())
        axis.set_title(task)
        axis.set_xlabel("updates")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(METRIC)
    axes[0][0].legend()
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs what is missing, then draws and prints everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="outputs/benchmarks/precision", help="path without suffix")
    parser.add_argument("--tasks", nargs="+", default=["PointReach", "PointRooms", "FetchReach"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: seconds, and meaningless numbers")
    args = parser.parse_args()
    if args.smoke:
        args.tasks, args.seeds, args.steps, args.batch_size = ["PointReach"], [0], 2, 8
        args.trajectories, args.episodes = 10, 2
    print(harness.machine(1))
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_name(out.name + ".csv")
    rows: Rows = compare_formulations.read_rows(file)
    done = set(map(compare_formulations.key, rows))
    folders = {task: dataset(task, args.trajectories, out.parent) for task in args.tasks}
    asked: Rows = [
        {
            "task": task,
            "folder": str(folders[task]),
            "dataset": TrajectoryStore.load(folders[task], verify=False).sha256[:8],
            "variant": variant,
            "seed": seed,
            "steps": args.steps,
            "batch_size": args.batch_size,
            "episodes": args.episodes,
            "eval_interval": max(1, args.steps // 8),
        }
        for task in args.tasks
        for seed in args.seeds
        for variant in VARIANTS.values()
    ]
    jobs = [job for job in asked if compare_formulations.key(job) not in done]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for new in tqdm(pool.imap_unordered(compare_formulations.run, jobs), total=len(jobs), desc="runs"):
            rows += new
            harness.write_csv(file, [{name: row[name] for name in compare_formulations.COLUMNS} for row in rows])
    wanted = set(map(compare_formulations.key, asked))
    rows = [row for row in rows if compare_formulations.key(row) in wanted]
    title = f"{harness.machine(1)}\n{args.steps} updates of {args.batch_size}, {len(args.seeds)} seeds: mean and range"
    plot(rows, args.tasks, out.with_name(out.name + ".png"), title)
    header = ["task", METRIC, *VARIANTS, "bf16 - float32", "verdict"]
    print("\n" + harness.markdown(header, [cells for task in args.tasks for cells in verdict(rows, task)]))
    print(f"\n{file}, {args.out}.png")


if __name__ == "__main__":
    main()
