"""Kills runs at random moments and checks that nothing is lost beyond the last checkpoint.

python tests/robustness/kills.py 100            a hundred kills, by kind of run and signal, as a table
python tests/robustness/kills.py 20 7           twenty, from another seed
"""

from __future__ import annotations

import csv
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
DATA = ("task=PointReach", "num_trajectories=600")
TRAINING = (
    *("task=PointReach", "num_trajectories=20", "steps=120", "batch_size=16", "eval_episodes=2", "eval_interval=20"),
    *("log_interval=10", "save_interval=10", "device=cpu", "rollout=false", "threads=1"),
)
GRID = (
    *("tasks=[PointReach]", "methods=[gcsl,gc_iql]", "seeds=1", "steps=40", "batch_size=16", "eval_episodes=2"),
    *("eval_interval=10", "num_trajectories=20", "jobs=0", "out=out"),
)
#: By kind of run: the recipe and its options.
COMMANDS = {
    "collection": ("collect_dataset.py", (*DATA, "workers=1", "out=store")),
    "training": ("smore_offline.py", TRAINING),
    "grid": ("benchmark.py", GRID),
    "export": ("export.py", ("run=run", "format=npz", "out=policy.npz")),
}


class LostError(AssertionError):
    """Something is gone, half written or different that a kill must not touch."""


def start(recipe: str, options: tuple[str, ...], cwd: Path) -> int:
    """Begins a recipe in a fork of this process, which has imported what it needs; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setpgid(0, 0)
        os.chdir(cwd)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(source, stream)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.argv = [str(RECIPES / recipe), *options]
        sys.path.insert(0, str(RECIPES))
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish(recipe: str, options: tuple[str, ...], cwd: Path) -> None:
    """Runs a recipe to its end.

    Raises:
        LostError: if it fails.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(start(recipe, options, cwd), 0)[1])
    if status:
        raise LostError(f"{recipe} ended with status {status}: {(cwd / 'log.txt').read_text()[-2000:]}")


def checkpoints(cwd: Path) -> dict[Path, int]:
    """The newest step that is saved in each run folder."""
    found: dict[Path, int] = {}
    for path in cwd.rglob("step_*/meta.json"):
        folder, step = path.parent.parent, int(path.parent.name.removeprefix("step_"))
        if path.parent.name[0] != ".":
            found[folder] = max(step, found.get(folder, 0))
    return found


def chunks(cwd: Path) -> set[str]:
    """The parts of a collection that are on disk."""
    return {path.name for path in cwd.glob("store.partial/chunk_*.npz")}


def check_whole(cwd: Path) -> None:
    """Checks that whatever has its final name is whole.

    Raises:
        LostError: if something is not.
    """
    from torchrl_smore.data import TrajectoryStore
    from torchrl_smore.trainers import load_checkpoint

    try:
        for path in cwd.rglob("checkpoint/step_*"):
            load_checkpoint(path)
        for path in cwd.rglob("summary.json"):
            json.loads(path.read_text())
        if (cwd / "policy.npz").exists():
            exported(cwd)
        for path in (cwd / "store", *cwd.glob("datasets/[!.]*")):
            if path.is_dir() and not path.name.endswith(".partial"):
                TrajectoryStore.load(path)
    except (ValueError, OSError) as error:
        raise LostError(f"half written: {error}") from error


def exported(cwd: Path) -> object:
    """What a file of an actor and its description say."""
    from torchrl_smore.envs.experts import ActorExpert

    actor = ActorExpert(cwd / "policy.npz").actor
    described = json.loads((cwd / "policy.npz.json").read_text())
    return [array.tolist() for layer in actor.layers for array in layer], described["inputs"], described["seed"]


def outcome(kind: str, cwd: Path) -> object:
    """What a finished run has come to, without times."""
    if kind == "collection":
        return json.loads((cwd / "store" / "meta.json").read_text())["sha256"]
    if kind == "export":
        return exported(cwd)
    if kind == "grid":
        with (cwd / "out" / "results.csv").open(newline="") as file:
            rows = [(row["method"], row["metric"], row["value"]) for row in csv.DictReader(file)]
        return rows, {folder.parts[-4]: names(folder) for folder in cwd.glob("out/cells/*/seed*/run/*")}
    (folder,) = (path for path in (cwd / "runs").iterdir() if (path / "summary.json").is_file())
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [
            {key: value for key, value in row.items() if key != "updates_per_second"} for row in csv.DictReader(file)
        ]
    return rows, json.loads((folder / "summary.json").read_text())["eval"], names(folder)


def names(folder: Path) -> list[str]:
    """What a run folder holds, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def go_on(kind: str, cwd: Path) -> tuple[str, tuple[str, ...]]:
    """The command that goes on with a killed run."""
    recipe, options = COMMANDS[kind]
    begun = sorted(path.parent for path in cwd.glob("runs/*/config.yaml")) if kind == "training" else []
    return recipe, ((f"resume={begun[-1]}",) if begun else options)


def kill_once(kind: str, signum: signal.Signals, after_s: float, cwd: Path, want: object) -> int:
    """Kills a run after some seconds, lets it go on, and compares what it comes to.

    Args:
        kind: of ``COMMANDS``.
        signum: how.
        after_s: when.
        cwd: empty folder.
        want: :func:`outcome` of a run that nobody killed.

    Returns:
        The status that the killed run ended with; 0 if it had ended before.

    Raises:
        LostError: if something is lost.
    """
    pid = start(*COMMANDS[kind], cwd)
    time.sleep(after_s)
    before, parts = checkpoints(cwd), chunks(cwd)
    os.kill(pid, signum)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, -signum, 128 + signum):
        raise LostError(f"{signum.name} ended with status {status}: {(cwd / 'log.txt').read_text()[-2000:]}")
    check_whole(cwd)
    after = checkpoints(cwd)
    for folder, step in before.items():
        if after.get(folder, -1) < step:
            raise LostError(f"{folder} had update {step}, and has {after.get(folder)} after {signum.name}")
    if not (cwd / "store").exists() and not parts <= chunks(cwd):
        raise LostError(f"{signum.name} has taken {parts - chunks(cwd)}")
    if kind == "training" and status == 128 + signum and not after:
        raise LostError(f"{signum.name} has left no checkpoint")
    # a file or store in its place is finished, whatever its process was still about to do
    if not (cwd / "store").exists() and not (cwd / "policy.npz").exists():
        finish(*go_on(kind, cwd), cwd)
    if leftovers(cwd) and kind in ("collection", "export"):
        # what lies beside a finished store or file goes when the command is given again
        recipe, options = COMMANDS[kind]
        finish(recipe, (*options, "overwrite=true"), cwd)
    if outcome(kind, cwd) != want:
        raise LostError(f"{kind} comes to something else after {signum.name} at {after_s:.2f} s")
    if left := leftovers(cwd):
        raise LostError(f"left behind after {signum.name}: {left}")
    return status


def leftovers(cwd: Path) -> list[Path]:
    """What a killed process left half written or half removed."""
    return [path for path in cwd.rglob(".*") if ".partial" in path.name or ".replaced" in path.name]


def begun(kind: str, root: Path, name: str) -> Path:
    """A folder for a run of a kind, with what it begins from: an export with a run that was trained."""
    cwd = root / name
    cwd.mkdir()
    if kind == "export":
        # of the same command, where runs of training are killed as well
        trained = root / ("training" if (root / "training").is_dir() else "trained")
        if not trained.is_dir():
            trained.mkdir()
            finish(*COMMANDS["training"], trained)
        (folder,) = trained.glob("runs/*/")
        shutil.copytree(folder, cwd / "run")
    return cwd


def run(count: int, seed: int = 0, kinds: tuple[str, ...] = tuple(COMMANDS)) -> Counter[tuple[str, str, str]]:
    """Kills ``count`` runs, kinds and signals in turn, at moments drawn from ``seed``.

    Returns:
        How often a kind of run, killed by a signal, ended in which way.

    Raises:
        LostError: if something is lost.
    """
    # imported here, before any fork
    import hydra  # noqa: F401
    import torch

    import torchrl_smore.envs
    import torchrl_smore.reports
    import torchrl_smore.trainers  # noqa: F401

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rng = random.Random(seed)
    found: Counter[tuple[str, str, str]] = Counter()
    whole: dict[str, tuple[float, object]] = {}
    with tempfile.TemporaryDirectory() as root:
        for number in range(count):
            # in turn, so that every kind of run meets every signal
            kind, signum = kinds[number % len(kinds)], SIGNALS[(number + number // len(kinds)) % len(SIGNALS)]
            if kind not in whole:
                cwd = begun(kind, Path(root), kind)
                started = time.perf_counter()
                finish(*COMMANDS[kind], cwd)
                whole[kind] = time.perf_counter() - started, outcome(kind, cwd)
            seconds, want = whole[kind]
            cwd = begun(kind, Path(root), f"{number}")
            status = kill_once(kind, signum, rng.uniform(0.0, seconds), cwd, want)
            shutil.rmtree(cwd)
            how = "had ended" if status == 0 else "saved, then ended" if status > 0 else "ended at once"
            found[kind, signum.name, how] += 1
            print(f"{number + 1} of {count}: {kind}, {signum.name}, {how}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """The command line."""
    count, seed = (int(text) for text in (*sys.argv[1:], "0")[:2])
    found = run(count, seed)
    print("| run | signal | it | kills | lost |\n|---|---|---|---|---|")
    for (kind, name, how), kills in sorted(found.items()):
        print(f"| {kind} | {name} | {how} | {kills} | 0 |")
    print(f"\n{sum(found.values())} kills, nothing lost.")


if __name__ == "__main__":
    main()
