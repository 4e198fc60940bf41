"""What of a benchmark is done, running and missing, and how long the rest takes."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from torchrl_smore.trainers import LockedError, locked

_LISTED = 10  # missing runs that are named


@dataclass(frozen=True)
class Status:
    """Jobs of one stage by their state; ``running`` and ``missing`` hold the updates that each has done."""

    name: str
    done: tuple[Any, ...]
    running: tuple[tuple[Any, int], ...]
    missing: tuple[tuple[Any, int], ...]


def status_of(name: str, jobs: Iterable[Any], finished: Mapping[Path, Any]) -> Status:
    """Looks at the folders of a stage's jobs.

    Args:
        name: of the stage.
        jobs: each with ``folder``, ``cell``, ``seeds``, ``options`` and ``words``.
        finished: results by folder.
    """
    done, running, missing = [], [], []
    for job in jobs:
        if job.folder in finished:
            done.append(job)
        elif _is_held(job.folder / ".lock"):
            running.append((job, _updates(job.folder)))
        else:
            missing.append((job, _kept(job.folder)))
    return Status(name, tuple(done), tuple(running), tuple(missing))


def seconds_per_update(jobs: Iterable[Any]) -> dict[tuple[str, str], float]:
    """Measured time of an update and one seed by task and method, evaluations included, mean over runs.

    Runs that were begun several times are left out: their summary knows their last part alone.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for job in jobs:
        path = next(iter(sorted((job.folder / "run").glob("*/summary.json"))), None)
        if path is None or len((job.folder / "starts.txt").read_text(encoding="utf-8").splitlines()) != 1:
            continue
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # damaged: it serves an estimate alone
            continue
        key = job.cell.task, job.cell.method
        found.setdefault(key, []).append(summary["seconds"] / (summary["steps"] * len(job.seeds)))
    return {key: fmean(values) for key, values in found.items()}


def seconds_left(status: Status, measured: Mapping[tuple[str, str], float]) -> float | None:
    """Time of what is running and missing, one run at a time; ``None`` if nothing was measured.

    A cell of which nothing was measured takes as long as others of its task, else of its method, else of any.
    """
    left = [*status.running, *status.missing]
    if not left:
        return 0.0
    if not measured:
        return None
    total = 0.0
    for job, updates in left:
        own = job.cell.task, job.cell.method
        kin = [
            [value for key, value in measured.items() if key == own],
            [value for key, value in measured.items() if key[0] == own[0]],
            [value for key, value in measured.items() if key[1] == own[1]],
            [*measured.values()],
        ]
        each = fmean(next(values for values in kin if values))
        # one at the last update still has to end
        total += each * max(job.options["steps"] - updates, 1) * len(job.seeds)
    return total


def describe_status(stages: Sequence[Status], results: Mapping[Path, Any], at_a_time: int) -> str:
    """What of every stage is done, running and missing, what it was made by, and how long the rest takes.

    Args:
        stages: in their order.
        results: of finished runs, by folder.
        at_a_time: runs at the same time.
    """
    every = [job for stage in stages for job in stage.done]
    measured = seconds_per_update(every)
    count = sum(len(stage.done) + len(stage.running) + len(stage.missing) for stage in stages)
    lines = [f"{len(every)} of {count} runs done"]
    for stage in stages:
        own = len(stage.done) + len(stage.running) + len(stage.missing)
        lines.append(
            f"  {stage.name or 'all'}: {len(stage.done)} of {own} done, {len(stage.running)} running, "
            f"{len(stage.missing)} missing; {_duration(seconds_left(stage, measured))}"
        )
    for stage in stages:
        lines += [
            f"running: {job.words}: update {updates:,} of {job.options['steps']:,}" for job, updates in stage.running
        ]
    missing = [job for stage in stages for job, _ in stage.missing]
    lines += [f"missing: {job.words}" for job in missing[:_LISTED]]
    lines += [f"missing: {len(missing) - _LISTED:,} more"] if len(missing) > _LISTED else []
    commits = Counter(results[job.folder]["results"][0]["commit"] or "unknown" for job in every)
    lines += [f"commits: {', '.join(f'{commit} ({runs})' for commit, runs in commits.items())}"] if commits else []
    left = [seconds_left(stage, measured) for stage in stages]
    total = None if None in left else sum(value or 0.0 for value in left)
    if total is not None and at_a_time > 1:
        lines.append(f"left: {_duration(total)} one at a time, {_duration(total / at_a_time)} at {at_a_time} at a time")
    else:
        lines.append(f"left: {_duration(total)}")
    return "\n".join(lines)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "nobody knows how long yet: nothing was measured"
    if seconds == 0:
        return "nothing left"
    if seconds < 5400:
        return f"about {max(seconds / 60, 1):.0f} min"
    return f"about {seconds / 3600:.1f} h"


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with locked(lock, "run"):
            return False
    except LockedError:
        return True


def _kept(folder: Path) -> int:
    """Updates of the newest checkpoint of a run that was killed, from which it goes on; 0 without one."""
    steps = (path.name.removeprefix("step_") for path in folder.glob("run/*/checkpoint/step_*"))
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _updates(folder: Path) -> int:
    """Updates of the last row that a run has written so far."""
    for path in (folder / "run").glob("*/metrics.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            steps = [int(row["step"]) for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]
        return max(steps, default=0)
    return 0
