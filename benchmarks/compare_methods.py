"""Every method on one dataset, several seeds, beside the paper's Table 1.

    python benchmarks/compare_methods.py datasets/NAME --steps 1000 --seeds 0 1 2 --jobs 2

Runs ``recipes/smore_offline.py`` once for each method and seed (one thread each), writes a result file and prints a
Markdown table. Runs that the result file already holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchrl_smore import TrajectoryStore
from torchrl_smore.reports import Result, read_results, render_table, write_results

ROOT = Path(__file__).parents[1]
METHODS = ("smore", "gofar", "wgcsl", "gcsl", "crl", "am", "gc_iql", "gc_sql", "gc_eql", "gc_xql", "gc_bc")
METRICS = ("discounted_return_0.98", "discounted_return_0.99", "return_over_max", "success_last", "final_distance")


def run(args: argparse.Namespace, task: str, method: str, seed: int, commit: str) -> list[Result]:
    """Trains one method with one seed and returns its numbers.

    Raises:
        RuntimeError: if the run fails; carries its last line of output.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "task": task,
            "dataset": str(Path(args.dataset).resolve()),
            "method": method,
            "seed": seed,
            "steps": args.steps,
            "batch_size": args.batch_size,
            "eval_interval": args.steps,
            "save_interval": args.steps,
            "threads": 1,
            "rollout": "false",
            "run_root": folder,
        }
        command = [sys.executable, str(ROOT / "recipes" / "smore_offline.py")]
        command += [f"{name}={value}" for name, value in options.items()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode != 0:
            raise RuntimeError(f"{method}, seed {seed}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        (file,) = Path(folder).glob("*/summary.json")
        summary: dict[str, Any] = json.loads(file.read_text())
    versions = ";".join(f"{name}={value}" for name, value in summary["versions"].items())
    common = ("1", task, method, args.setting, seed)
    tail = (args.steps, summary["eval"]["episodes"], commit, versions)
    return [Result(*common, metric, summary["eval"][metric], *tail) for metric in METRICS]


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--out", default=None, help="path without suffix; default docs/results/methods_<task>")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--setting", default="expert=0.1", help="how the result file names the dataset's composition")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    task = TrajectoryStore.load(args.dataset).meta["task"]
    out = Path(args.out or f"docs/results/methods_{task}")
    out.parent.mkdir(parents=True, exist_ok=True)
    results = read_results(out.with_suffix(".csv")) if out.with_suffix(".csv").exists() else []
    done = {(result.method, result.seed) for result in results}
    described = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(described, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    probe = {method: Result("", task, method, "default", 0, "x", 0.0, 0, 0, "", "").method for method in args.methods}
    jobs = [(method, seed) for seed in args.seeds for method in args.methods if (probe[method], seed) not in done]
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(jobs), desc=task) as progress:
        futures = [pool.submit(run, args, task, method, seed, commit) for method, seed in jobs]
        for future in futures:
            results += future.result()
            write_results(out.with_suffix(".csv"), results)
            progress.update()
    command = f"python benchmarks/compare_methods.py {args.dataset} --steps {args.steps}"
    print(render_table(1, results, command=command, tasks=[task]))


if __name__ == "__main__":
    main()
