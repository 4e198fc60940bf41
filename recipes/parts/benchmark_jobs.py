"""One run of a benchmark: what happens in a worker, or in the driver without Ray.

Everything of a run lies in its folder: ``run/`` is the run folder of ``smore_offline.py``, ``log.txt`` what it printed,
``result.json`` its numbers, there once the run is finished and never before. A run that was killed resumes from its
last checkpoint; one that is finished is read and not repeated. ``starts.txt`` has a line for each time that it was
begun: session of the driver, process, commit, and whether that began ``anew``, ``resumed``, or only ``read`` a run
whose training had ended.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from parts.metrics import is_kept

_RESULT, _STARTS = "result.json", "starts.txt"
_UNKNOWN = "unknown"  # a commit outside a repository


def folder_name(seeds: Sequence[int]) -> str:
    """Name of the folder of the run of some seeds that follow each other, in that of its cell."""
    return f"seed{seeds[0]}" if len(seeds) == 1 else f"seed{seeds[0]}-{seeds[-1]}"


def begun_groups(cell_folder: Path) -> list[tuple[int, ...]]:
    """The seeds of each run of a cell that is finished or has a checkpoint, no seed twice: first those finished.

    Raises:
        ValueError: if two finished runs have a seed in common.
    """
    groups = [(path, group) for path in sorted(cell_folder.glob("seed*")) if (group := _seeds_of(path))]
    kept: dict[int, Path] = {}
    found = []
    for path, group in groups:
        if has_result(path):
            twice = next((seed for seed in group if seed in kept), None)
            if twice is not None:
                raise ValueError(f"{path} and {kept[twice].name} beside it both hold seed {twice}: remove one of them.")
            kept |= dict.fromkeys(group, path)
            found.append(group)
    for path, group in groups:
        # without a checkpoint nothing is lost: it may be that so many seeds had no room together
        if not set(group) & kept.keys() and has_checkpoint(path):
            kept |= dict.fromkeys(group, path)
            found.append(group)
    return found


def _seeds_of(folder: Path) -> tuple[int, ...]:
    """What :func:`folder_name` made a name of, or nothing."""
    match = re.fullmatch(r"seed(\d+)(?:-(\d+))?", folder.name)
    if match is None:
        return ()
    first = int(match[1])
    return tuple(range(first, int(match[2] or first) + 1))


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a finished run gave: rows of ``results`` and ``curves``, ``starts`` by session; ``None`` before its end.

    Raises:
        ValueError: if the file is damaged.
    """
    if not has_result(folder):
        return None
    path = folder / _RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return {"results": result["results"], "curves": result["curves"], "starts": _starts(folder)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the run is read again.") from error


def has_result(folder: Path) -> bool:
    """Whether the run of a folder is finished."""
    return (folder / _RESULT).is_file()


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has come as far as its first checkpoint."""
    return any(folder.glob("run/*/checkpoint/step_*"))


def keep_result(folder: Path, results: list[dict[str, Any]], curves: list[dict[str, Any]]) -> None:
    """Ends a run: its folder has these rows, or what it had before."""
    from parts.shared import write_json

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _RESULT, {"results": results, "curves": curves})


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains what a job says unless that is done, and returns what :func:`read_result` finds then.

    Args:
        job: ``folder``, ``session`` (of the driver), ``options`` of ``smore_offline.py``, and ``identity``: the
            columns of its rows that are known beforehand. ``own_data``, if any, must still be what it was.
    """
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    from torchrl_smore.trainers import locked

    # a worker that outlived its driver for a moment may still be writing
    with locked(folder / ".lock", f"run {folder}", wait=True):
        found = read_result(folder)
        if found is not None:
            return found
        summary = _trained(folder)
        if summary is None and job.get("own_data") is not None:
            job["own_data"].check_unchanged()
        how = "read" if summary is not None else "resumed" if has_checkpoint(folder) else "anew"
        with (folder / _STARTS).open("a", encoding="utf-8") as file:
            file.write(f"{job['session']} {os.getpid()} {job['identity']['commit'] or _UNKNOWN} {how}\n")
        if summary is None:
            with _printing_to(folder / "log.txt"):
                summary = _train(folder, job["options"])
        _write_result(folder, {**job["identity"], "commit": "+".join(_commits(folder))}, summary)
        found = read_result(folder)
        assert found is not None
        return found


def _begun(folder: Path) -> list[Path]:
    """The run folder that a job has, if it has come as far as one."""
    return [path for path in sorted((folder / "run").glob("*")) if (path / "config.yaml").is_file()]


def begun_options(cell_folder: Path) -> dict[str, Any]:
    """The options of a cell's first run, or nothing where no run of it is kept."""
    for folder in sorted(cell_folder.glob("seed*")):
        for run in _begun(folder)[:1]:
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
                options = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
                return options if isinstance(options, dict) else {}
    return {}


def _trained(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that was killed between the end of its training and its result."""
    for run in _begun(folder)[:1]:
        # the curves are the last that it leaves: one killed before them resumes at its end
        if all((run / name).is_file() for name in ("summary.json", "curves.png")):
            with contextlib.suppress(ValueError):  # a damaged one is written again likewise
                summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
                if summary.get("diverged") is None:
                    return {**summary, "run_dir": str(run)}
    return None


def _train(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    from smore_offline import train

    from parts.options import Config

    root = folder / "run"
    root.mkdir(exist_ok=True)
    begun = _begun(folder)
    for path in set(root.iterdir()) - set(begun):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # killed before its first file was whole
        else:
            path.unlink()  # what a file manager leaves
    if not begun:
        return train(Config(**options, run_root=str(root)))
    # one that diverged ends so again, from its last good checkpoint, and says why
    return train(Config(resume=str(begun[0]), dataset=options["dataset"]))


def _write_result(folder: Path, identity: dict[str, Any], summary: dict[str, Any]) -> None:
    versions = ";".join(f"{name}={value}" for name, value in summary["versions"].items())
    common = {**identity, "versions": versions, "episodes": summary["runs"][0]["eval"]["episodes"]}
    results = [
        {**common, "seed": run["seed"], "metric": metric, "value": run["eval"][metric], "steps": summary["steps"]}
        for run in summary["runs"]
        for metric in run["eval"]
        if is_kept(metric)
    ]
    curves = []
    with (Path(summary["run_dir"]) / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            seed = int(row.get("seed") or summary["seeds"][0])
            curves += [
                {**common, "seed": seed, "metric": metric, "value": float(text), "steps": int(row["step"])}
                for name, text in row.items()
                if text and name.startswith("eval/") and is_kept(metric := name.removeprefix("eval/"))
            ]
    keep_result(folder, results, curves)


def _starts(folder: Path) -> list[str]:
    """The session of the driver, once for each time that the run was begun."""
    path = folder / _STARTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.split(" ")[0] for line in lines]


def _commits(folder: Path) -> list[str]:
    """Those that trained what a run has come to, in their order; none if nobody knows any."""
    commits: list[str] = []
    for line in (folder / _STARTS).read_text(encoding="utf-8").splitlines():
        # runs of earlier versions say no more than session and process
        commit, how = (*line.split(" ")[2:], _UNKNOWN, "resumed")[:2]
        if how == "anew":
            commits = []
        if how != "read" and commit not in commits:
            commits.append(commit)
    return [] if commits == [_UNKNOWN] else commits


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    with (
        path.open("a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield
