"""Runs of an earlier benchmark whose tables are kept and whose folder is gone: they count as finished in a new one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parts.benchmark_jobs import has_result, keep_result
from parts.grid import paper_name
from torchrl_smore.reports import Result, canonical_setting, read_curves, read_results

_FILES = ("results.csv", "curves.csv", "grid.json")
_Rows = dict[tuple, list[Result]]  # by task, method, setting and seed


@dataclass(frozen=True, eq=False)
class Earlier:
    """The tables of an earlier benchmark.

    Attributes:
        cells: names of its cells' folders, which end with a digest of their options.
        datasets: by name, what each returns.
        differs: by task, what data and expert differ in from the paper's, in words.
        results: rows of each run.
        curves: rows of each run.
    """

    cells: frozenset[str]
    datasets: dict[str, Any]
    differs: dict[str, str]
    results: _Rows
    curves: _Rows

    def take_over(self, jobs: Iterable[Any]) -> list[Any]:
        """Keeps the numbers of each job that was finished there, with equal options, as its result; returns those jobs.

        Args:
            jobs: each with ``folder``, ``cell_folder``, ``cell``, ``seeds`` and ``options``. One that has a result
                is left alone, and so is one of whose seeds a return or success, or every row of a curve, is missing.
        """
        taken = []
        for job in jobs:
            if job.cell_folder.name not in self.cells or has_result(job.folder):
                continue
            cell = job.cell.task, paper_name(job.cell.method), canonical_setting(job.cell.setting)
            results = [self.results.get((*cell, seed), []) for seed in job.seeds]
            if not all(_is_whole(rows, job.options["steps"]) for rows in results):
                continue
            curves = [self.curves.get((*cell, seed), []) for seed in job.seeds]
            if not all(curves):
                continue
            keep_result(job.folder, *([asdict(row) for rows in each for row in rows] for each in (results, curves)))
            taken.append(job)
        return taken


def read_earlier(folder: str | Path) -> Earlier:
    """Reads the tables of an earlier benchmark: its own folder, or that of a page which ``report.py`` made of it.

    Raises:
        ValueError: if a file is missing or damaged, naming it.
    """
    folder = Path(folder)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"earlier={folder}: expected {', '.join(_FILES)}, as a benchmark and a page of report.py have them; "
            f"found no {', '.join(missing)}."
        )
    try:
        grid = json.loads((folder / "grid.json").read_text(encoding="utf-8"))
        cells, datasets = frozenset(str(cell["id"]) for cell in grid["cells"]), dict(grid["datasets"])
        differs = dict(grid.get("differs", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'grid.json'} is damaged, or of no benchmark: {error!r}.") from error
    results, curves = read_results(folder / "results.csv"), read_curves(folder / "curves.csv")
    return Earlier(cells, datasets, differs, _by_run(results), _by_run(curves))


def _is_whole(rows: Iterable[Result], steps: int) -> bool:
    """Whether rows of a run are all of its end, a return and a success among them."""
    metrics = {row.metric.rpartition("_")[0] for row in rows if row.steps == steps}
    return {"discounted_return", "success"} <= metrics and all(row.steps == steps for row in rows)


def _by_run(rows: Iterable[Result]) -> _Rows:
    found: _Rows = {}
    for row in rows:
        found.setdefault(row.key[:4], []).append(row)
    return found
