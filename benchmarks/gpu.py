"""One command for a machine with a GPU: checks every kernel, times everything, trains; see docs/gpu.md.

    python benchmarks/gpu.py --gather wheels              # beforehand, where there is a network
    python benchmarks/gpu.py --stages check bench learn   # there: make gpu STAGES="check bench learn" MINUTES=9
    python benchmarks/gpu.py --dry-run                    # anywhere: tiny sizes on the CPU, kernels interpreted

Needs nothing but Python, and torch with CUDA, to begin with. Every task runs in a process of its own, so that one that
crashes stops no other; what it finds is appended to ``results.jsonl`` in the output folder at once. The same command
again goes on with what is not done yet; ``--again`` repeats what failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("check", "bench", "learn")
#: What a machine with torch and triton may lack, less what such machines have (numpy, scipy, matplotlib, pytest, yaml).
WHEELS = ("torchrl", "tensordict", "mujoco", "gymnasium", "gymnasium-robotics", "hydra-core", "omegaconf", "pettingzoo")
WHEELS += ("antlr4-python3-runtime", "farama-notifications", "pyvers", "cloudpickle", "glfw", "pyopengl", "orjson")
LIMIT_MIB = 64
ROW = "ROW "


@dataclass(frozen=True)
class Task:
    """One process: ``gpu_tasks.py KEY``."""

    stage: str
    key: str
    seconds: float  # after which it is ended


def tasks(stages: Sequence[str], dry_run: bool) -> list[Task]:
    """Every task of the stages, in order."""
    precisions = ("float32", "tf32", "bf16")
    kernels = [
        *(f"kernel.{name}.float32" for name in ("bellman_residual", "expectile_awr", "adam_polyak")),
        *(f"kernel.score_mlp.{precision}" for precision in precisions),
    ]
    kernels += [f"kernel.{name}.bf16" for name in ("bellman_residual", "expectile_awr")]
    found = {
        "check": [
            ("device", 120),
            *((key, 240) for key in kernels),
            ("captured", 300),
            ("seeds", 300),
            ("pytest", 420),
        ],
        "bench": [
            *((f"update.{precision}", 420) for precision in precisions),
            *((f"seeds.{precision}", 420) for precision in ("tf32", "bf16")),
            ("kernels", 420),
            ("profile", 240),
            ("torchrl_iql", 180),
            ("jax", 180),
        ],
        "learn": [
            (f"learn.{task}", 3600.0) for task in ("FetchReach", "FetchPush", "FetchPick", "HandReach", "FetchSlide")
        ],
    }
    if dry_run:
        found["learn"] = [("learn.PointReach", 300.0)]
    return [Task(stage, key, float(seconds)) for stage in stages for key, seconds in found[stage]]


def gather(folder: Path, python: str = "3.12") -> int:
    """Downloads the wheels for an x86-64 Linux machine; returns their size in bytes.

    Raises:
        RuntimeError: if pip finds none for a package, or they are larger than :data:`LIMIT_MIB`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pins = {
        line.split("==")[0].strip().lower(): line.strip() for line in (ROOT / "constraints.txt").open() if "==" in line
    }
    wanted = [pins.get(name, name) for name in WHEELS]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)] + ["manylinux2014_x86_64"]
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, f"--dest={folder}"]
    command += [f"--platform={platform}" for platform in platforms]
    for package in wanted:
        done = subprocess.run([*command, package], capture_output=True, text=True)
        if done.returncode and package.startswith("antlr4"):
            # published as source alone
            build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", package]
            done = subprocess.run(build, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"no wheel for {package}: {done.stderr.strip()[-300:]}")
        print(f"{package}", flush=True)
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"{size / 2**20:.1f} MiB in {folder} (at most {LIMIT_MIB})")
    if size > LIMIT_MIB * 2**20:
        raise RuntimeError(f"the wheels are {size / 2**20:.0f} MiB, more than {LIMIT_MIB}.")
    return size


def install(wheels: Path, site: Path) -> None:
    """Unpacks the wheels of packages that cannot be imported here into a folder of their own; torch is left alone.

    Raises:
        RuntimeError: if pip refuses one.
    """
    imports = {"hydra-core": "hydra", "gymnasium-robotics": "gymnasium_robotics", "pyopengl": "OpenGL"}
    imports |= {"antlr4-python3-runtime": "antlr4", "farama-notifications": "farama_notifications"}
    missing = []
    for path in sorted(wheels.glob("*.whl")):
        name = path.name.split("-")[0].lower().replace("_", "-")
        module = imports.get(name, name.replace("-", "_"))
        probe = [sys.executable, "-c", f"import importlib.util as u; raise SystemExit(u.find_spec({module!r}) is None)"]
        if subprocess.run(probe, env=environment(site), capture_output=True).returncode:
            missing.append(path)
    if not missing:
        return
    print(f"installing {', '.join(path.name.split('-')[0] for path in missing)} into {site}", flush=True)
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", f"--target={site}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *map(str, missing)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"pip could not install the wheels of {wheels}: {done.stderr.strip()[-500:]}")


def environment(site: Path, dry_run: bool = False) -> dict[str, str]:
    """What a task sees: this checkout first, then what was installed."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "benchmarks"), str(ROOT / "recipes"), str(site)]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    made = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return {**made, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if dry_run else made


class Results:
    """``results.jsonl``: one line for each thing found, written and on disk before the next."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        self.rows = list(read_rows(self.path))
        if self.path.exists():
            # a line that was cut off by a kill would spoil the next one
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            beside = self.path.with_suffix(".partial")
            beside.write_text(text)
            beside.replace(self.path)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def status(self, key: str) -> str | None:
        """How the last run of a task ended: ``done``, ``failed``, ``timeout``; ``None`` if it never ended."""
        found = [row["status"] for row in self.rows if row.get("task") == key and "status" in row]
        return found[-1] if found else None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a ``results.jsonl``."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row


def run(task: Task, args: argparse.Namespace, results: Results, seconds: float) -> str:
    """Runs one task, at most that long; returns how it ended."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_tasks.py"), task.key, f"--work={args.work}"]
    command += ["--dry-run"] if args.dry_run else []
    command += [f"--data={args.data}"] if args.data else []
    started, tail = time.monotonic(), []
    with (args.out / "log.txt").open("a") as log:
        log.write(f"== {task.key}\n")
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment(args.site, args.dry_run),
            cwd=args.work,
            start_new_session=True,
        )
        alarm = _Alarm(process, seconds)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(ROW):
                row = json.loads(line[len(ROW) :])
                results.add({"stage": task.stage, "task": task.key, **row})
                print("  " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            else:
                log.write(line)
                tail = [*tail[-4:], line.strip()]
        code = process.wait()
        ended = alarm.stop()
    status = "timeout" if ended else "done" if code == 0 else "failed"
    row = {"stage": task.stage, "task": task.key, "status": status, "seconds": round(time.monotonic() - started, 1)}
    if status == "failed":
        row |= {"exit": code, "message": " | ".join(tail)[-500:]}
    results.add(row)
    return status


class _Alarm:
    """Ends a process and its children when its time is up: first by asking, then by force."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        import threading

        self.rang = False
        self._process = process
        self._timers = [
            threading.Timer(seconds, self._end, (signal.SIGTERM,)),
            threading.Timer(seconds + 10.0, self._end, (signal.SIGKILL,)),
        ]
        for timer in self._timers:
            timer.daemon = True
            timer.start()

    def _end(self, number: int) -> None:
        if self._process.poll() is None:
            self.rang = True
            os.killpg(self._process.pid, number)

    def stop(self) -> bool:
        """Whether it rang."""
        for timer in self._timers:
            timer.cancel()
        return self.rang


def main() -> int:
    """Gathers, or runs the stages; the exit status is 1 if a task failed, 2 where nothing can run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gather", type=Path, help="folder for wheels: download them, and do nothing else")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="folder of wheels to install from")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--tasks", nargs="+", default=[], help="of the stages' tasks only those that begin so")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="results.jsonl, CSV, PNG and log")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", help="datasets and run folders")
    parser.add_argument("--data", type=Path, help="folder of datasets brought along; none: collect them")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no task goes on; 0: no bound")
    parser.add_argument("--again", action="store_true", help="repeat tasks that failed or ran out of time")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: shows that everything runs")
    args = parser.parse_args()
    if args.gather:
        gather(args.gather)
        return 0
    args.out, args.work = args.out.resolve(), args.work.resolve()
    args.data = args.data and args.data.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    args.site = args.work / "site"
    if args.wheels.is_dir():
        install(args.wheels, args.site)
    started, results = time.monotonic(), Results(args.out)
    wanted = [task for task in tasks(args.stages, args.dry_run) if task.key.startswith(tuple(args.tasks) or "")]
    ended = {task.key: results.status(task.key) for task in wanted}
    repeated = ("failed", "timeout") if args.again else ("timeout",)
    todo = [task for task in wanted if ended[task.key] in (None, *repeated)]
    print(f"{len(todo)} of {len(wanted)} tasks to do; results in {args.out}", flush=True)
    for number, task in enumerate(todo):
        left = 60.0 * args.minutes - (time.monotonic() - started) if args.minutes else task.seconds
        if left < 20.0:
            print(f"time is up: {len(todo) - number} tasks are left; the same command goes on with them")
            break
        print(f"[{number + 1}/{len(todo)}] {task.stage}: {task.key}", flush=True)
        ended[task.key] = run(task, args, results, min(task.seconds, left))
        print(f"  {ended[task.key]}", flush=True)
        if task.key == "device" and ended["device"] == "failed" and not args.dry_run:
            print("no CUDA device can be used here, see log.txt; --dry-run runs everything on the CPU", file=sys.stderr)
            return 2
    report = [sys.executable, str(ROOT / "benchmarks" / "gpu_report.py"), str(args.out), "--files-only"]
    subprocess.run(report, env=environment(args.site, args.dry_run), check=False)
    failed = [key for key, status in ended.items() if status == "failed"]
    counts = {status: list(ended.values()).count(status) for status in ("done", "failed", "timeout", None)}
    print(", ".join(f"{count} {status or 'not begun'}" for status, count in counts.items() if count))
    if failed:
        print(f"failed: {', '.join(failed)} (log: {args.out / 'log.txt'})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
