"""Everything that is to be found out on a GPU, in one command: is it right, how fast is it, does it learn.

    make gpu                                              all stages into outputs/gpu
    make gpu STAGES="check bench" MINUTES=9 OUT=results   what fits into nine minutes, into a folder of your own
    make gpu STAGES=learn GPU_ARGS="--tasks FetchPush"    one task
    make gpu-dry-run                                      the same code on a CPU, tiny: that all of it works

Needs Python and a PyTorch with CUDA; no network, and no installed package of ours. What else is missing is installed
from the wheels that ``make gpu-wheels`` gathered beforehand into a folder of its own: nothing that the machine has is
replaced. Items run in a process that is watched: one that crashes or hangs costs its own row and no other. Rows are
written as they come, and a second call resumes after the last one. ``docs/gpu.md`` says what each stage does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import gpu_rows
import pages
from gpu_plan import STAGES, TASKS, TRAININGS, Item, Options, plan, run_folder

ROOT = Path(__file__).resolve().parents[1]
#: Where results and curves of the runs are packed: what comes back are few files.
LEARN, LEARN_FILES = "learn.tar.gz", ("results.csv", "curves.csv")
#: What must be importable beside torch; the folder of wheels brings it along.
MODULES = {
    **dict.fromkeys(STAGES, ("numpy", "tensordict", "torchrl", "tqdm")),
    "learn": ("numpy", "tensordict", "torchrl", "tqdm", "mujoco", "gymnasium_robotics", "hydra", "yaml", "matplotlib"),
}
#: Never installed: a second one beside the machine's would be the wrong one.
OF_THE_MACHINE = ("torch", "triton", "nvidia", "cuda", "jax", "jaxlib")
#: Seconds: for the first item of a process, above its own limit, for what is imported; between asking a process to stop
#: and ending it; and kept free before the time is up, for that, tables and a figure.
START, GRACE, RESERVE = 120.0, 25.0, 45.0
#: Seconds that a figure may take, where there are so many.
FIGURE = 120.0
#: A process that ends this often in a row without one row more is not started again.
ATTEMPTS = 3


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="folder of rows, tables and figures")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--minutes", type=float, default=0.0, help="that this call may take; 0: as long as it takes")
    parser.add_argument("--again", default="none", choices=["none", "failed", "all"], help="rows to repeat")
    parser.add_argument("--only", default="", help="items whose key has this in it")
    parser.add_argument("--list", action="store_true", help="print the items and stop")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny; kernels under Triton's interpreter")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="folder that gpu_wheels.py filled")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", help="packages, caches, checkpoints")
    parser.add_argument(
        "--data-dir", type=Path, default=ROOT / "datasets", help="learn: datasets brought along, or made"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="learn: tasks")
    parser.add_argument("--seeds", type=int, default=5, help="learn: seeds, trained together")
    parser.add_argument("--steps", type=int, default=None, help="learn: updates; default: the paper's")
    parser.add_argument("--num-trajectories", type=int, default=None, help="learn: default: the paper's")
    args = parser.parse_args(arguments)
    if args.minutes < 0 or 0 < 60 * args.minutes <= RESERVE:
        parser.error(f"--minutes must be 0, for no limit, or more than {RESERVE / 60:.2g}, got {args.minutes:g}.")
    for name in ("out", "wheels", "work", "data_dir"):
        setattr(args, name, getattr(args, name).resolve())
    return args


def main(arguments: Sequence[str]) -> int:
    """Runs what is asked for and not yet done; the exit status: 0, 1 if an item failed, 2 if it cannot start."""
    args = parse(arguments)
    end = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    options = Options(
        tasks=tuple(args.tasks),
        seeds=args.seeds,
        steps=args.steps,
        num_trajectories=args.num_trajectories,
        data_dir=str(args.data_dir),
        folder=str(args.work / ("learn_dry_run" if args.dry_run else "learn")),
    )
    items = [item for item in plan(args.stages, options, dry_run=args.dry_run) if args.only in item.key]
    if args.list:
        print("\n".join(item.key for item in items))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        refuse_mixture(gpu_rows.read(args.out), dry_run=args.dry_run)
        environment = environment_of(args)
        install(args.stages, args.wheels, args.work / "site", environment)
        device = find_device(environment, dry_run=args.dry_run)
        unpack_learning(args.out, Path(options.folder))
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runner = Runner(args, environment, device, end - RESERVE)
    for stage in (stage for stage in STAGES if stage in args.stages):
        own = [item for item in items if item.stage == stage]
        before = gpu_rows.size(args.out)
        try:
            runner.run(stage, own)
        finally:
            # what came before the time was up, or Ctrl-C; of a training that was cut off, how far it came
            if stage == "learn":
                pack_learning(args.out, Path(options.folder))
            if gpu_rows.size(args.out) > before:
                conclude(args.out, environment, stage, min(FIGURE, max(5.0, end - time.monotonic())))
    rows = gpu_rows.read(args.out)
    left = [item for item in items if item.key not in rows]
    failed = [item for item in items if item.key in rows and rows[item.key]["status"] in gpu_rows.FAILED]
    print(f"\n{len(items) - len(left)} of {len(items)} items done, {len(failed)} of them failed: {args.out}")
    if left:
        print(f"{len(left)} are left; the same command resumes with {left[0].key}")
    print(f"then: python benchmarks/gpu_report.py {args.out}")
    return 1 if failed else 0


def refuse_mixture(rows: dict[str, gpu_rows.Row], *, dry_run: bool) -> None:
    """Keeps a dry run's rows apart from a GPU's.

    Raises:
        RuntimeError: if the folder holds rows of the other kind.
    """
    others = [key for key, row in rows.items() if row["dry_run"] != dry_run]
    if others:
        ours, theirs = ("a dry run", "a GPU") if dry_run else ("a GPU", "a dry run")
        raise RuntimeError(f"the folder holds rows of {theirs} ({others[0]}): give another one for {ours}.")


def environment_of(args: argparse.Namespace) -> dict[str, str]:
    """What the processes see: this checkout, the packages brought along, caches that a later call finds again."""
    places = [ROOT, ROOT / "kernels", ROOT / "benchmarks", ROOT / "recipes"]
    paths = [*map(str, places), *filter(None, [os.environ.get("PYTHONPATH")]), str(args.work / "site")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    for name in ("TRITON_INTERPRET", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        environment.pop(name, None)
    environment["TRITON_CACHE_DIR"] = str(args.work / "triton")
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(args.work / "inductor")
    # each process that steps environments has a core, and so has the one that drives the GPU
    environment["OMP_NUM_THREADS"] = "1"
    if args.dry_run:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def install(stages: Sequence[str], wheels: Path, site: Path, environment: dict[str, str]) -> None:
    """Installs, of the wheels brought along, those whose package the machine lacks, into a folder of their own.

    Raises:
        RuntimeError: if something is missing afterwards.
    """
    wanted = [wheel for wheel in sorted(wheels.glob("*.whl")) if not of_the_machine(distribution(wheel))]
    present = ask(environment, "installed", [distribution(wheel) for wheel in wanted])
    chosen = [wheel for wheel in wanted if distribution(wheel) not in present]
    if chosen:
        print(f"installing {', '.join(map(distribution, chosen))} into {site}", flush=True)
        # --no-deps: a dependency that the machine has may be of another version, and is never replaced
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--upgrade", "--target", str(site)]
        done = subprocess.run([*command, *map(str, chosen)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip could not install the wheels of {wheels}: {done.stderr.strip()[-500:]}")
    needed = dict.fromkeys(["torch", *(module for stage in stages for module in MODULES[stage])])
    found = ask(environment, "importable", list(needed))
    missing = [module for module in needed if module not in found]
    if missing:
        raise RuntimeError(
            f"this Python ({sys.executable}) has no {', '.join(missing)}, and {wheels} brings none: gather them with "
            "`make gpu-wheels` where there is a network, and bring the folder along."
        )


def distribution(wheel: Path) -> str:
    """Name of a wheel's package, normalised."""
    return normalised(wheel.name.partition("-")[0])


def normalised(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def of_the_machine(name: str) -> bool:
    """Whether a package, or one of its parts such as ``nvidia-cublas``, must be the machine's own."""
    return any(f"{normalised(name)}-".startswith(f"{own}-") for own in OF_THE_MACHINE)


_QUESTIONS = {
    "installed": "import importlib.metadata as m, re; have = {re.sub('[-_.]+', '-', d.name or '').lower() for d in "
    "m.distributions()}; print(json.dumps([n for n in names if n in have]))",
    "importable": "from importlib.util import find_spec; print(json.dumps([n for n in names if find_spec(n)]))",
}


def ask(environment: dict[str, str], question: str, names: list[str]) -> set[str]:
    """Which of ``names`` are installed, or importable, in the processes that will run."""
    code = f"import json; names = json.loads({json.dumps(json.dumps(names))}); {_QUESTIONS[question]}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def find_device(environment: dict[str, str], *, dry_run: bool) -> str:
    """The name of the GPU, but for a dry run.

    Raises:
        RuntimeError: if this PyTorch sees none.
    """
    if dry_run:
        print("dry run on the CPU: tiny sizes, and numbers that mean nothing", flush=True)
        return "dry run on a CPU"
    code = "import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    version, _, name = done.stdout.strip().partition(" ")
    if done.returncode or not name:
        said = done.stderr.strip().splitlines()[-1:] or [f"torch {version} sees no CUDA device"]
        raise RuntimeError(f"no GPU: {said[0]}. `make gpu-dry-run` tries everything on the CPU.")
    print(f"{name}, torch {version}", flush=True)
    return name


class Runner:
    """Runs items in worker processes, and enters what became of those that did not come to write a row."""

    def __init__(self, args: argparse.Namespace, environment: dict[str, str], device: str, deadline: float) -> None:
        self.args, self.environment, self.device, self.deadline = args, environment, device, deadline
        self.log = args.out / "log.txt"

    def run(self, stage: str, items: Sequence[Item]) -> None:
        """Runs the items of a stage that have no row yet."""
        before = gpu_rows.read(self.args.out)
        repeated = {"none": (), "failed": gpu_rows.FAILED, "all": gpu_rows.STATUSES}[self.args.again]
        # data and trainings that took longer than their limit go on from what they left; one that hangs does so again
        repeated = (*repeated, "timeout") if stage == "learn" else repeated
        todo = {i.key: i for i in items if i.key not in before or before[i.key]["status"] in repeated}
        # a run that is there would be read or resumed, and not repeated; one that was cut off is to go on
        ended = {key for key in todo if key in before and before[key]["status"] != "timeout"}
        anew = {key for key in ended if self.args.again == "all" and todo[key].kind in TRAININGS}
        print(f"\n{stage}: {len(items)} items, {len(items) - len(todo)} of them done before", flush=True)
        barren = 0
        while todo and time.monotonic() < self.deadline:
            # one at a time: what is not reached keeps its run and its row
            first = next(iter(todo))
            chosen = {first: todo[first]} if anew else todo
            if first in anew:
                anew.remove(first)
                self._discard(todo[first])
            done = self._run_process(chosen)
            for key in done:
                del todo[key]
            barren = 0 if done else barren + 1
            if barren == ATTEMPTS:
                key = next(iter(todo))
                self._enter(todo.pop(key), "crashed", 0.0, f"no process came as far as this: {last_line(self.log)}")
                return

    def _discard(self, item: Item) -> None:
        """Takes away the run of a training, and enters a row that any later call goes on from."""
        self._enter(item, "timeout", 0.0, "begun anew and not yet finished")
        folder = run_folder(item.params)
        # in this order: whatever ends it in between leaves a whole run, or none
        for path in (folder / "result.json", *folder.glob("run/*/config.yaml")):
            path.unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)

    def _run_process(self, todo: dict[str, Item]) -> list[str]:
        """Runs one process until it ends, hangs or the time is up; the keys that have a row since."""
        with tempfile.TemporaryDirectory(dir=self.args.work) as folder, self.log.open("a", encoding="utf-8") as log:
            order, progress = Path(folder) / "items.json", Path(folder) / "progress.json"
            order.write_text(json.dumps([dataclasses.asdict(item) for item in todo.values()]))
            command = [sys.executable, str(ROOT / "benchmarks" / "gpu_worker.py"), str(order), str(self.args.out)]
            command += [str(progress), self.device, *(["--dry-run"] if self.args.dry_run else [])]
            written = NewRows(self.args.out)
            process = subprocess.Popen(
                command,
                env={**self.environment, "TMPDIR": folder},
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )
            cause = "time"
            try:
                cause = self._watch(process, progress, todo, written)
            finally:
                stop(process, gently=cause == "time" or next(iter(todo.values())).stage == "learn")
            written.show()
            current = read_progress(progress)
            key = current.get("key")
            if key in todo and key not in written.keys and cause != "time":
                status, words = "timeout", f"took longer than {todo[key].limit:.0f} s"
                if cause == "ended":
                    status, words = "crashed", f"{status_words(process.returncode)}: {last_line(self.log)}"
                self._enter(todo[key], status, time.time() - current["started"], words)
                written.keys.append(key)
            return [key for key in written.keys if key in todo]

    def _watch(self, process: subprocess.Popen, progress: Path, todo: dict[str, Item], written: NewRows) -> str:
        """Waits until the process has ``"ended"``, an item is over its ``"limit"``, or all ``"time"`` is up."""
        started = time.time()
        while process.poll() is None:
            written.show()
            current = read_progress(progress)
            limit = todo[current["key"]].limit if current else 0.0
            limit += 0.0 if written.keys else START
            if time.monotonic() >= self.deadline:
                return "time"
            if time.time() - current.get("started", started) > limit:
                return "limit"
            time.sleep(0.2)
        return "ended"

    def _enter(self, item: Item, status: str, seconds: float, detail: str) -> None:
        row = {"key": item.key, "kind": item.kind, "params": item.params, "status": status}
        row |= {"seconds": round(seconds, 2), "device": self.device, "dry_run": self.args.dry_run}
        row |= {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "values": {}, "detail": detail}
        gpu_rows.append(self.args.out, row)
        print(line_of(row), flush=True)


class NewRows:
    """The rows that a process adds to a folder, shown as they come."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / gpu_rows.ROWS
        self.offset = self.path.stat().st_size if self.path.exists() else 0
        self.keys: list[str] = []

    def show(self) -> None:
        """Prints what is new, whole lines alone."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        for line in filter(None, whole.splitlines()):
            row = json.loads(line)
            self.keys.append(row["key"])
            print(line_of(row), flush=True)


def stop(process: subprocess.Popen, *, gently: bool) -> None:
    """Ends a process and all that it started; gently: it may first leave a checkpoint."""
    if process.poll() is None and gently:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            print(f"it did not stop within {GRACE:.0f} s and is ended", flush=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_progress(path: Path) -> dict[str, float | str]:
    """Key of the item at hand and when it began; empty before the first."""
    return json.loads(path.read_text()) if path.is_file() else {}


def status_words(status: int) -> str:
    """What became of a process."""
    return f"its process died of {signal.Signals(-status).name}" if status < 0 else f"its process ended with {status}"


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def line_of(row: gpu_rows.Row) -> str:
    """A row for people."""
    shown = ("error", "updates_per_s_median", "seed_updates_per_s", "over_compile", "success_last", "passed")
    numbers = [
        f"{name} {row['values'][name]:.4g}" for name in shown if isinstance(row["values"].get(name), float | int)
    ]
    rest = ", ".join([*numbers, *([row["detail"]] if row["detail"] else [])])
    return f"  {row['status']:<8} {row['seconds']:7.1f} s  {row['key']}{'  ' + rest if rest else ''}"


def conclude(out: Path, environment: dict[str, str], stage: str, seconds: float) -> None:
    """Leaves a stage's CSV and PNG, for which there are so many seconds, and prints how its items ended by group."""
    rows = gpu_rows.of_stage(gpu_rows.read(out).values(), stage)
    if not rows:
        return
    if stage != "learn":
        gpu_rows.write_csv(out / f"{stage}.csv", rows)
    groups: dict[str, Counter[str]] = {}
    for row in rows:
        groups.setdefault("/".join(row["key"].split("/")[1:3][: 2 if stage == "check" else 1]), Counter())[
            row["status"]
        ] += 1
    statuses = [name for name in gpu_rows.STATUSES if any(counts[name] for counts in groups.values())]
    cells = [[name, *(str(counts[status] or "") for status in statuses)] for name, counts in groups.items()]
    print("\n" + gpu_rows.table([stage, *statuses], cells), flush=True)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_report.py"), str(out), "--figure", stage]
    try:
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=True)
    except subprocess.CalledProcessError as error:
        print(f"no figure: {(error.stderr.strip().splitlines() or ['it said nothing'])[-1]}", flush=True)
    except subprocess.TimeoutExpired:
        print(f"no figure within {seconds:.0f} s; gpu_report.py draws it later", flush=True)


def pack_learning(out: Path, folder: Path) -> None:
    """Puts results, curves and logs of the runs into one file, without checkpoints; atomically."""
    names = (*LEARN_FILES, *(f"*/{name}" for name in ("result.json", "seconds.txt", "log.txt")))
    names += ("*/run/*/config.yaml", "*/run/*/metrics.csv")
    files = sorted({path for name in (*names, "*/run/*/summary.json") for path in folder.glob(name)})
    if not files:
        return
    with pages.replacing(out / LEARN) as beside, tarfile.open(beside, "w:gz") as archive:
        for path in files:
            archive.add(path, path.relative_to(folder))


def unpack_learning(out: Path, folder: Path) -> None:
    """On a new machine, puts the finished runs of earlier calls where they were."""
    if (out / LEARN).is_file() and not folder.exists():
        with pages.replacing(folder) as beside:
            with tarfile.open(out / LEARN) as archive:
                archive.extractall(beside, filter="data")
            # a run without its checkpoint begins anew
            for run in [path.parent for path in beside.glob("*/run") if not (path.parent / "result.json").is_file()]:
                shutil.rmtree(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
