"""What distances on held-out trajectories say of finished policies: whether they rank them as episodes do.

    python recipes/collect_dataset.py task=Reacher num_trajectories=500 seed=777 out=held/Reacher
    python benchmarks/compare_held_out.py runs/benchmark/table1 held/Reacher --out held_out.csv

Takes every finished run of a benchmark on the tasks of some datasets that no run was trained on. For each seed's last
policy: the return that the benchmark found, the distance of
:func:`~torchrl_smore.trainers.held_out_distance`, and what is mostly called a validation loss of cloning, the mean
squared error of actions at random rows under goals that their own trajectories achieve later.

Writes ``--out``, a CSV with a row for each policy, a PNG beside it, and prints a Markdown table of rank correlations
and of what choosing by either number would have got.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
from harness import machine, write_csv
from scipy.stats import spearmanr

from torchrl_smore import TrajectoryStore, load_policy
from torchrl_smore.envs import Task, get_task
from torchrl_smore.trainers import TrainedPolicy, held_out_distance

COLUMNS = ("task", "method", "seed", "return_over_max", "held_out_distance", "hindsight_mse")
_ROWS = 20_000  # of the validation loss


def hindsight_mse(policy: TrainedPolicy, store: TrajectoryStore) -> float:
    """Mean squared error of actions at random rows under goals achieved later; the same rows for every policy."""
    rng = np.random.default_rng(0)
    data = store.data
    row = rng.integers(0, store.num_transitions, _ROWS)
    left = data["traj_stop"].numpy()[row] - row
    goal = data["next", "achieved_goal"].numpy()[row + (rng.random(_ROWS) * left).astype(int)]
    error = policy(data["observation"].numpy()[row], goal) - data["action"].numpy()[row]
    return float(np.square(error).mean())


def rows_of(benchmark: Path, store: TrajectoryStore, task: Task) -> list[dict[str, Any]]:
    """A row for each policy of a task in a benchmark's folder, seed by seed."""
    rows = []
    for file in sorted(benchmark.glob(f"cells/{task.name}_*/*/result.json")):
        results = json.loads(file.read_text(encoding="utf-8"))["results"]
        returns = {own["seed"]: own["value"] for own in results if own["metric"] == "return_over_max"}
        run = next((record.parent for record in file.parent.glob("run/*/policy.json")), None)
        if run is None:
            print(f"left out: {file.parent} has no policy.json")
            continue
        for seed, value in sorted(returns.items()):
            policy = load_policy(run, seed=seed, goal_margin=None)
            rows.append(
                {
                    "task": task.name,
                    "method": results[0]["method"],
                    "seed": seed,
                    "return_over_max": value,
                    "held_out_distance": held_out_distance(policy, store, task.reached).distance,
                    "hindsight_mse": hindsight_mse(policy, store),
                }
            )
    return rows


def line_of(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """A task's line of the table: policies, their returns, and of each number its rank correlation and choice."""
    returns = np.array([row["return_over_max"] for row in rows])
    cells = [name, f"{len(rows)}", f"{returns.min():.3f}, {np.median(returns):.3f}, {returns.max():.3f}"]
    for column in COLUMNS[-2:]:
        found = np.array([row[column] for row in rows])
        cells += [f"{spearmanr(-found, returns)[0]:+.2f}", f"{returns[found.argmin()]:.3f}"]
    return cells


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Return against either number, a panel for each task, methods by colour."""
    tasks, methods = (sorted({row[key] for row in rows}) for key in ("task", "method"))
    figure, grid = pages.subplots(2, len(tasks), figsize=(2.6 * len(tasks) + 1.6, 5.2), squeeze=False)
    for k, column in enumerate(COLUMNS[-2:]):
        for n, (task, axes) in enumerate(zip(tasks, grid[k])):
            for color, method in enumerate(methods):
                own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
                xs, ys = ([row[key] for row in own] for key in (column, "return_over_max"))
                axes.plot(xs, ys, "o", alpha=0.6, color=f"C{color}", mec="black" if color > 9 else "none", label=method)
            axes.locator_params(axis="x", nbins=3)
            axes.set_xlabel(column.replace("_", " "))
            axes.set_title(task if k == 0 else "")
            if n == 0:
                axes.set_ylabel("return / largest")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="folder of a benchmark's cells")
    parser.add_argument("held_out", type=Path, nargs="+", help="stores of tasks, which no run was trained on")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/held_out.csv"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, lines = [], []
    for folder in options.held_out:
        store = TrajectoryStore.load(folder)
        task = get_task(str(store.meta["task"]))
        own = rows_of(options.benchmark, store, task)
        if not own:
            raise SystemExit(f"{options.benchmark} has no finished run of {task.name}.")
        rows += own
        lines.append(line_of(task.name, own))
        print(f"{task.name}: {len(own)} policies", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(options.out, rows)
    draw(rows, options.out.with_suffix(".png"))
    head = [
        "task",
        "policies",
        "return: least, median, most",
        "distance: rank correlation",
        "its choice",
        "mse: rank correlation",
        "its choice",
    ]
    print(f"\n{machine(torch.get_num_threads())}\n")
    print(pages.markdown(head, lines))


if __name__ == "__main__":
    main()
