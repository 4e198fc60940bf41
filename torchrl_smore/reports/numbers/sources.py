"""Where a report's numbers come from: a benchmark folder, or files given by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchrl_smore.reports.numbers.results import Result, ResultsError, read_curves, read_results

RESULTS, CURVES, GRID = "results.csv", "curves.csv", "grid.json"


@dataclass(frozen=True)
class Source:
    """Everything that a report is made from.

    Attributes:
        results: final numbers of all runs.
        curves: evaluations along training, maybe none.
        files: what was read.
        grid: what the benchmark was asked to run, as it wrote it, or nothing.
    """

    results: tuple[Result, ...]
    curves: tuple[Result, ...] = ()
    files: tuple[Path, ...] = ()
    grid: dict[str, Any] = field(default_factory=dict)


def newest_benchmark(root: str | Path) -> Path:
    """The folder below ``root`` whose ``results.csv`` was written last.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = sorted(Path(root).glob(f"*/{RESULTS}"), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    if not files:
        raise FileNotFoundError(
            f"nothing to report: expected a folder with {RESULTS} below {root}, found none. Run "
            "recipes/benchmark.py first, or give result files by results=FILE."
        )
    return files[-1].parent


def read_benchmark(folder: str | Path) -> Source:
    """Reads ``results.csv`` of a benchmark folder, and ``curves.csv`` and ``grid.json`` if they are there.

    Raises:
        FileNotFoundError: without ``results.csv``.
        ResultsError: if a file is not what it should be.
    """
    folder = Path(folder)
    if not (folder / RESULTS).is_file():
        raise FileNotFoundError(f"{folder} is no benchmark folder: expected {RESULTS} in it.")
    curves = [folder / CURVES] if (folder / CURVES).is_file() else []
    source = read_files([folder / RESULTS], curves)
    if not (folder / GRID).is_file():
        return source
    return Source(source.results, source.curves, (*source.files, folder / GRID), _read_grid(folder / GRID))


def read_files(results: Sequence[str | Path], curves: Iterable[str | Path] = ()) -> Source:
    """Reads result files and curve files.

    Args:
        results: paths of the result files, at least one.
        curves: paths of the curve files.

    Raises:
        OSError: if one cannot be read.
        ResultsError: if one is not what it should be, or the result files hold no row.
    """
    paths, curve_paths = [Path(path) for path in results], [Path(path) for path in curves]
    rows = read_results(*paths)
    if not rows:
        names = ", ".join(map(str, paths)) or "no file"
        raise ResultsError(f"{names}: expected at least one result, found none.")
    return Source(tuple(rows), tuple(read_curves(*curve_paths)), (*paths, *curve_paths))


def _read_grid(path: Path) -> dict[str, Any]:
    try:
        grid = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON: {error}.") from error
    if not isinstance(grid, dict):
        raise ResultsError(f"{path}: expected a JSON object, found {type(grid).__name__}.")
    return grid
