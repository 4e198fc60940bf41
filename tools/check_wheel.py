"""Builds the wheel, installs it in clean environments and trains in each: what ``pip install torchrl-smore`` gives.

python tools/check_wheel.py                                 Python 3.10 to 3.13; core, [envs] and [all]
python tools/check_wheel.py --pythons 3.11 --extras core    one of them
python tools/check_wheel.py --installer uv                  faster than pip, which is what users have

Interpreters are found as ``python3.X`` on the PATH, else by ``uv python find`` (``uv python install`` brings more).
Each environment runs the README's example and 100 updates: of a short trainer script in core and [envs], of
``recipes/smore_offline.py`` in [all], which has the packages that recipes need. What is imported is the wheel's
package, never the checkout's. Packages come from where pip or uv take them, at the versions of ``constraints.txt``;
their environment variables (PIP_FIND_LINKS, UV_FIND_LINKS, ...) choose a CPU build of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "torchrl_smore", "kernels")
IMPORT_S = 0.3  # that the package may add to importing torchrl
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = ("core", "envs", "all")
PACKAGES = {"torchrl_smore", "smore_kernels"}
TASKS = {"core": "PointReach", "envs": "FetchReach", "all": "FetchReach"}
TIMEOUT_S = 3600
_LAST_LINES = 8  # of what a failed command said
TRAIN = """
import sys
from torchrl_smore import GoalBatchSampler, SMORELoss, goal_specs, make_networks
from torchrl_smore.envs import EnvPool, collect, get_task
from torchrl_smore.trainers import Evaluator, OfflineTrainer, adam
task = get_task(sys.argv[1])
store = collect(task, expert_episodes=4, random_episodes=16, seed=0, workers=1)
networks = make_networks(*goal_specs(task.observation_dim, task.goal_dim, task.action_dim), hidden=(32, 32))
loss = SMORELoss(networks.actor, networks.score, networks.value, delay_score=False)
optimizer, scheduler = adam(loss)
with EnvPool(task, 2) as pool:
    trainer = OfflineTrainer(
        loss, GoalBatchSampler(store.data, 64), optimizer, scheduler=scheduler, total_steps=100, run_dir="run",
        evaluator=Evaluator(pool, episodes=2), progress_bar=False,
    )
    trainer.train()
print(trainer.evaluation)
"""
IMPORT = """
import time
import torchrl, torchrl.data, torchrl.objectives
start = time.process_time()
import torchrl_smore
print(time.process_time() - start)
"""


@dataclass
class Row:
    """What came of one environment.

    Attributes:
        python: version asked for.
        extra: ``core`` or the name of the extra.
        torch: version of torch that was installed.
        install_s: seconds that the installer took, the download included where nothing is cached.
        size_mb: megabytes of the environment.
        import_s: CPU seconds that importing the package adds to torchrl's own.
        example_s: seconds of the README's example.
        train_s: seconds of the run of 100 updates.
        error: why it ended early; empty if it did not.
    """

    python: str
    extra: str
    torch: str = ""
    install_s: float = float("nan")
    size_mb: float = float("nan")
    import_s: float = float("nan")
    example_s: float = float("nan")
    train_s: float = float("nan")
    error: str = ""


class CheckError(RuntimeError):
    """Something that the wheel promises and does not keep."""


def build_wheel(python: str, folder: Path, *options: str) -> Path:
    """The wheel, built by pip from a copy: a ``build/`` that an earlier one left would put deleted files into it.

    Args:
        python: interpreter with pip.
        folder: where it is built and stays; must not be there.
        options: of ``pip wheel``.

    Raises:
        CheckError: if it cannot be built.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=skip)
        else:
            shutil.copy(path, source / name)
    run(
        [python, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "--wheel-dir", str(folder), str(source)],
        folder,
    )
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    """Raises :class:`CheckError` unless metadata and files are what the project says.

    Two top-level packages on purpose, typed both; every file of data that the source has; authors, URLs, classifiers.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        top_level = set(archive.read(f"{info}/top_level.txt").decode().split())
    files = {name for name in names if not name.startswith(info)}
    for found in (top_level, {name.split("/")[0] for name in files}):
        if found != PACKAGES:
            raise CheckError(f"expected the packages {sorted(PACKAGES)} and nothing else, got {sorted(found)}.")
    missing = {f"{name}/py.typed" for name in PACKAGES} - files
    for package in (ROOT / "torchrl_smore", ROOT / "kernels" / "smore_kernels"):
        for path in package.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                missing |= {path.relative_to(package.parent).as_posix()} - files
    if missing:
        raise CheckError(f"the wheel lacks {', '.join(sorted(missing))}.")
    for field in ("Author", "Project-URL", "Classifier", "License-Expression", "Requires-Python", "Summary"):
        if not metadata.get_all(field):
            raise CheckError(f"the metadata has no {field}.")


def run(command: Sequence[str], folder: Path) -> str:
    """What a command printed, run in ``folder`` with nothing of the caller's Python environment.

    Raises:
        CheckError: with its last lines, if it fails.
    """
    own = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    variables = {key: value for key, value in os.environ.items() if key not in own}
    try:
        done = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"{' '.join(command[:4])} took more than {TIMEOUT_S} s") from error
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
        raise CheckError(f"{' '.join(command[:4])} ended with exit status {done.returncode}:\n{said}")
    return done.stdout


def find_python(version: str) -> str | None:
    """An interpreter of that version which runs, or ``None``."""
    candidates = [shutil.which(f"python{version}")]
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        candidates.append(found.stdout.strip() or None)
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, candidates):
        # a shim of pyenv is on the PATH for versions that are not switched on, and then only complains
        tried = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if tried.stdout.strip() == version:
            return path
    return None


def example() -> str:
    """The README's example.

    Raises:
        CheckError: if the README does not have exactly one.
    """
    found = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    if len(found) != 1:
        raise CheckError(f"expected one example in README.md, found {len(found)}.")
    return str(found[0])


def environment(python: str, installer: str, folder: Path) -> tuple[str, list[str]]:
    """Makes a clean environment; returns its interpreter and the command that installs into it."""
    own = str(folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python")
    if installer == "uv":
        run([python, "-m", "venv", "--without-pip", "env"], folder)
        return own, ["uv", "pip", "install", "--quiet", "--python", own]
    run([python, "-m", "venv", "env"], folder)
    pip = [own, "-m", "pip", "install", "--quiet"]
    # the pip that comes with Python 3.10 finds no set of versions
    run([*pip, "--upgrade", "pip"], folder)
    return own, pip


def check(python: str, version: str, extra: str, wheel: Path, installer: str, folder: Path) -> Row:
    """Installs the wheel with an extra into a new environment under ``folder`` and tries it there."""
    row = Row(version, extra)
    try:
        own, install = environment(python, installer, folder)
        wanted = str(wheel) if extra == "core" else f"{wheel}[{extra}]"
        start = time.perf_counter()
        run([*install, "--constraint", str(ROOT / "constraints.txt"), wanted], folder)
        row.install_s = time.perf_counter() - start
        row.size_mb = sum(path.lstat().st_size for path in (folder / "env").rglob("*") if path.is_file()) / 1e6
        place = "import torch, torchrl_smore; print(torch.__version__, torchrl_smore.__file__)"
        row.torch, where = run([own, "-c", place], folder).split(maxsplit=1)
        if not Path(where.strip()).is_relative_to(folder.resolve()):
            raise CheckError(f"imported from {where.strip()} and not from the wheel.")
        # a busy machine makes single measurements too long, never too short
        for _ in range(3):
            row.import_s = float(run([own, "-c", IMPORT], folder))
            if row.import_s <= IMPORT_S:
                break
        if row.import_s > IMPORT_S:
            raise CheckError(f"importing the package adds {row.import_s:.2f} s to torchrl's own, more than {IMPORT_S}.")
        (folder / "example.py").write_text(example(), encoding="utf-8")
        row.example_s = seconds([own, "example.py"], folder)
        row.train_s = seconds(training(own, extra, folder), folder)
    except CheckError as error:
        row.error = str(error)
    return row


def training(python: str, extra: str, folder: Path) -> list[str]:
    """The command of 100 updates."""
    if extra == "all":
        recipe = [python, str(ROOT / "recipes" / "smore_offline.py"), f"task={TASKS[extra]}", "steps=100"]
        return [*recipe, "num_trajectories=50", "eval_episodes=2", "rollout=false"]
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    return [python, "train.py", TASKS[extra]]


def seconds(command: Sequence[str], folder: Path) -> float:
    """Seconds that a command takes."""
    start = time.perf_counter()
    run(command, folder)
    return time.perf_counter() - start


def table(rows: Sequence[Row]) -> str:
    """Markdown table of the rows, failures in words below it."""
    lines = [
        "| Python | extra | torch | install (s) | size (MB) | import (+s) | example (s) | 100 updates (s) | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (row.install_s, row.size_mb, row.import_s, row.example_s, row.train_s)
        shown = [
            "" if number != number else f"{number:,.{digits}f}" for number, digits in zip(numbers, (0, 0, 2, 0, 0))
        ]
        lines.append(
            f"| {' | '.join([row.python, row.extra, row.torch, *shown, 'failed' if row.error else 'works'])} |"
        )
    lines += [f"\nPython {row.python}, {row.extra}: {row.error}" for row in rows if row.error]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks what is asked for; returns the number of environments that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=PYTHONS, help="versions as 3.X")
    parser.add_argument("--extras", nargs="+", default=EXTRAS, choices=EXTRAS)
    parser.add_argument("--installer", default="pip", choices=("pip", "uv"))
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file too")
    options = parser.parse_args(arguments)
    if options.installer == "uv" and shutil.which("uv") is None:
        parser.error(
            "--installer uv: there is no uv on the PATH. Install it (pip install uv), or take --installer pip."
        )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(sys.executable, folder / "wheel")
        check_content(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e3:,.0f} kB", flush=True)
        pythons = {version: find_python(version) for version in options.pythons}
        for extra, (version, python) in product(options.extras, pythons.items()):
            if python is None:
                rows.append(Row(version, extra, error="there is no such interpreter here."))
            else:
                place = folder / f"{version}-{extra}"
                place.mkdir()
                rows.append(check(python, version, extra, wheel, options.installer, place))
                shutil.rmtree(place)
            print(table(rows[-1:]).split("\n", 2)[2], file=sys.stderr, flush=True)
    print(table(rows))
    if options.out is not None:
        beside = options.out.with_name(f".{options.out.name}.partial")
        beside.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
        beside.replace(options.out)
    return sum(bool(row.error) for row in rows)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
