"""The paper's tables, figures and claims from result files: Markdown, LaTeX, PNG, PDF, and one HTML page.

python recipes/report.py                                           the newest folder of benchmark.py
python recipes/report.py benchmark=runs/benchmark/NAME
python recipes/report.py results=docs/results/easy_tasks/results.csv out=runs/report
python recipes/report.py results=a.csv,b.csv curves=c.csv tasks=FetchReach,FetchPush
python recipes/report.py benchmark=runs/benchmark/table1 page=docs/results/table1.md     Table 1 alone, as one page
"""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from parts.cli import check_range, expanded, option, run_recipe
from tqdm import tqdm

from torchrl_smore.reports import (
    SignificanceTest,
    Source,
    newest_benchmark,
    read_benchmark,
    read_files,
    write_report,
    write_table_page,
)

_LISTS = ("results", "curves", "tasks")


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    benchmark: str | None = option(None, "folder of benchmark.py (results.csv, curves.csv, grid.json)")
    benchmark_root: str = option("runs/benchmark", "where the newest one is looked for if nothing is given")
    results: str | None = option(None, "result files instead, with commas between")
    curves: str | None = option(None, "curve files that go with results=, with commas between")
    out: str | None = option(None, "folder to write to; default: <benchmark folder>/report, with results= runs/report")
    page: str | None = option(None, "writes Table 1 alone, to this Markdown file and a folder of its name beside it")
    tasks: str | None = option(None, "reports and judges these tasks alone, with commas between")
    alternative: str = option("two-sided", "of the Mann-Whitney test: two-sided, greater")
    correction: str = option("holm", "for several tests: holm, bonferroni, none")
    level: float = option(0.05, "of significance, in (0, 1)")
    min_seeds: int = option(5, "of every cell that a claim needs")
    resamples: int = option(2000, "of each bootstrap")


def main(config: Config) -> None:
    """Runs the recipe."""
    # under Hydra's log level these two tell of every glyph and every bootstrap
    for name in ("absl", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    check_range("min_seeds", config.min_seeds, 1, 1000)
    check_range("resamples", config.resamples, 1, 10**6)
    test = SignificanceTest(config.alternative, config.correction, config.level)  # type: ignore[arg-type]
    source, out = read(config)
    command = shlex.join(["python", "recipes/report.py", *_ARGUMENTS])
    if config.page is not None:
        if config.out is not None or config.tasks is not None:
            raise ValueError("page= is a file of its own with every task of Table 1: give it without out= and tasks=.")
        options = {"test": test, "min_seeds": config.min_seeds, "resamples": config.resamples}
        page = write_table_page(source, config.page, command=command, **options)  # type: ignore[arg-type]
        print(f"page: {page}")
        return
    page = write_report(
        source,
        config.out or out,
        command=command,
        tasks=None if config.tasks is None else split("tasks", config.tasks),
        test=test,
        min_seeds=config.min_seeds,
        resamples=config.resamples,
        progress=lambda pieces: tqdm(pieces, desc="report", disable=not sys.stderr.isatty()),
    )
    print(f"report: {page}")


def read(config: Config) -> tuple[Source, Path]:
    """The results to report, and where to by default."""
    if config.results is None:
        if config.curves is not None:
            raise ValueError("curves= goes with results=; a benchmark folder has its own curves.csv.")
        folder = Path(config.benchmark) if config.benchmark is not None else newest_benchmark(config.benchmark_root)
        return read_benchmark(folder), folder / "report"
    if config.benchmark is not None:
        raise ValueError("give benchmark= or results=, not both.")
    curves = [] if config.curves is None else split("curves", config.curves)
    return read_files(split("results", config.results), curves), Path("runs/report")


def split(name: str, text: str) -> list[str]:
    """The parts of a list with commas between."""
    parts = [expanded(part.strip()) for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"{name}= takes names with commas between, got {text!r}.")
    return parts


def quoted(argument: str) -> str:
    """An option that takes a list in quotes: Hydra would take a comma for a sweep."""
    name, equals, value = argument.partition("=")
    plain = equals and name in _LISTS and value and value[0] not in "'\"["
    return f"""{name}='{value.replace("'", chr(92) + "'")}'""" if plain else argument


_ARGUMENTS = sys.argv[1:]

if __name__ == "__main__":
    sys.argv[1:] = map(quoted, _ARGUMENTS)
    run_recipe(Config, main, __doc__ or "")
