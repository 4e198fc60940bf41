"""Table 1 as one Markdown page: our runs beside the paper's numbers, with what the two differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl_smore._files import write_text
from torchrl_smore.reports import provenance
from torchrl_smore.reports.figures import improvement_figure, learning_figure, save_figure
from torchrl_smore.reports.numbers import (
    CONTROL,
    RESAMPLES,
    Cell,
    RunSet,
    Sample,
    SignificanceTest,
    Source,
    method_label,
    method_order,
    write_curves,
    write_results,
)
from torchrl_smore.reports.paper import (
    HORIZONS,
    IMAGE_TASKS,
    METHOD,
    NUM_TRAJECTORIES,
    NUM_UPDATES,
    Paper,
    claims_to_markdown,
    escape_markdown,
    evaluate_claims,
    is_locomotion,
    judged_sample,
    main_setting,
    summarize,
    summary_to_markdown,
    task_order,
)

#: Methods beside those of Table 1, from Table 15.
MORE_METHODS = ("GC-SQL", "GC-EQL", "GC-XQL")
_KEPT_OF_GRID = ("commit", "versions", "cells", "datasets", "differs", "unavailable")
_UNITS = {True: "return at 0.999", False: "return / largest at 0.99"}
_NOTES = (
    "Mean ± standard deviation over seeds (n - 1 in the denominator), number of seeds in parentheses; the paper's are "
    "over 10. Bold: the best mean of ours in the line. A dash: no run yet, or not printed.",
    "Return over the largest possible one at discount 0.99. The paper's: its printed return over the largest one at "
    "the discount that it was most likely computed at, 0.99 for SMORe and the GC- methods, 0.98 for the others. Of "
    "locomotion, whose printed returns no 0/1 reward at 0.99 can give, the return at 0.999 beside the number as it is "
    "printed.",
    "The data: mean return, in the same unit, of the expert's trajectories and of all, under the goals for which they "
    "were collected.",
)


@dataclass(frozen=True)
class _Line:
    """A task: samples of ours and the paper's by method, digits after the point, its data, what is not the paper's."""

    task: str
    ours: dict[str, Sample]
    paper: dict[str, Sample]
    digits: int
    data: str
    differs: str


def write_table_page(
    source: Source,
    path: str | Path,
    *,
    command: str,
    test: SignificanceTest | None = None,
    min_seeds: int = 5,
    resamples: int = RESAMPLES,
) -> Path:
    """Writes the page, and beside it a folder of its name with its figures and the results that it is made of.

    Tasks and methods of which there is no run are left out and named, so an unfinished benchmark gives a smaller table.
    The folder holds ``results.csv``, ``curves.csv`` and ``grid.json`` of the runs on the paper's tasks, from which the
    same page can be made again.

    Args:
        source: any results. The table has those on the data of Table 1; claims about other tables are judged by those
            in other settings; those of other tasks are left out.
        path: of the page, ``.md``.
        command: the line that makes the page again.
        test: of significance, for the claims; ``None``: :class:`~torchrl_smore.reports.SignificanceTest` as it is.
        min_seeds: of every cell that a claim is judged by.
        resamples: of each bootstrap.

    Returns:
        ``path``.

    Raises:
        ValueError: if ``path`` is no Markdown file, no result is on the data of Table 1, or the folder is the one that
            the results were read from and has more than would be written there.
        ResultsError: if the seeds of one cell differ in their number of updates.
    """
    path, given = Path(path), source
    if path.suffix != ".md":
        raise ValueError(f"the page is a Markdown file: expected a name that ends with .md, got {path.name}.")
    every, source = _of_paper(source), _of_table(source)
    if not source.results:
        raise ValueError("no result is of a task of Table 1 on its data: there is nothing to put on the page.")
    kept = {name: source.grid[name] for name in _KEPT_OF_GRID if name in source.grid}
    folder = path.with_suffix("")
    read_there = any(file.resolve().parent == folder.resolve() for file in given.files)
    if read_there and (every.results, every.curves, kept) != (given.results, given.curves, given.grid):
        raise ValueError(
            f"{folder} is the folder of the benchmark itself, whose tables would lose what a page does not keep: give "
            "the page another name or place."
        )
    runs = RunSet(source.results)
    lines = [_line(task, runs, source) for task in task_order(row.task for row in source.results)]
    summary = summarize(runs, resamples=resamples)
    claims = evaluate_claims(every.results, tasks=None, min_seeds=min_seeds, test=test)
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    if source.curves:
        save_figure(learning_figure(source.curves), folder / "learning_curves")
        figures += ["## Learning curves", "", f"![learning curves]({folder.name}/learning_curves.png)", ""]
    if summary.improvement:
        save_figure(improvement_figure(METHOD, summary.improvement), folder / "improvement")
        title = f"Probability that {METHOD} is better"
        figures += [f"## {title}", "", f"![{title}]({folder.name}/improvement.png)", ""]
    write_results(folder / "results.csv", every.results)
    write_curves(folder / "curves.csv", every.curves)
    write_text(folder / "grid.json", json.dumps(kept, indent=1) + "\n")
    text = [
        *(f"<!-- {command} -->", "# Table 1", ""),
        *(*_extent(lines, source), ""),
        *(*_short(lines), ""),
        *("## Every method", "", *_table(lines), ""),
        *(f"{escape_markdown(note)}\n" for note in _NOTES),
        *("## Over tasks", "", summary_to_markdown(summary, min_seeds)),
        *figures,
        *("## Claims", "", claims_to_markdown(claims)),
        *("## Runs", "", *_facts(source, command, folder.name), ""),
    ]
    return write_text(path, "\n".join(text))


def _of_paper(source: Source) -> Source:
    """The rows of the paper's tasks."""
    results, curves = (
        tuple(row for row in rows if row.task in HORIZONS or row.task in IMAGE_TASKS)
        for rows in (source.results, source.curves)
    )
    return Source(results, curves, source.files, source.grid)


def _of_table(source: Source) -> Source:
    """The rows of the paper's tasks on the data of its Table 1."""
    results, curves = (
        tuple(row for row in rows if row.task in HORIZONS and row.key[2] == main_setting(row.task))
        for rows in (source.results, source.curves)
    )
    return Source(results, curves, source.files, source.grid)


def _columns() -> list[str]:
    """Every method that the whole table has, SMORe and its control first."""
    printed = {entry.cell.method for entry in Paper().table(1)} | {*MORE_METHODS}
    first, *others = method_order(printed)
    return [first, CONTROL, *others]


def _line(task: str, runs: RunSet, source: Source) -> _Line:
    locomotion = is_locomotion(task)
    ours, theirs = {}, {}
    for method in _columns():
        cell = Cell("", task, method, main_setting(task), "discounted_return")
        sample = judged_sample(cell, runs)
        if sample is not None:
            ours[method] = sample
        entry = Paper().find(cell)
        printed = None if entry is None else entry.sample if locomotion else entry.return_over_max
        if printed is not None:
            theirs[method] = printed
    digits = 1 if locomotion else 3
    return _Line(task, ours, theirs, digits, _data(task, digits, source), _differences(task, source))


def _data(task: str, digits: int, source: Source) -> str:
    """What the expert in the data returns, and all of the data; a dash where that is not known."""
    metric = "discounted_return" if is_locomotion(task) else "return_over_max"
    names = {cell.get("dataset") for cell in source.grid.get("cells", ()) if _is_of_table(cell, task)}
    known = source.grid.get("datasets", {})
    told = []
    for parts in (known[name] for name in sorted(filter(None, names)) if name in known):
        if parts and all(metric in part for part in parts):
            expert = [part[metric] for part in parts if part["behaviour"] == "expert"]
            counts = [part["num_trajectories"] for part in parts]
            mean = sum(part[metric] * count for part, count in zip(parts, counts)) / sum(counts)
            told.append(f"{expert[0]:.{digits}f}, {mean:.{digits}f}" if expert else f"–, {mean:.{digits}f}")
    return " or ".join(told) or "–"


def _is_of_table(cell: Mapping[str, Any], task: str) -> bool:
    return bool(cell["task"] == task and cell["setting"] == main_setting(task))


def _differences(task: str, source: Source) -> str:
    """What data, expert and budget differ in from the paper's."""
    parts = [str(source.grid["differs"][task])] if task in source.grid.get("differs", {}) else []
    cells = [cell for cell in source.grid.get("cells", ()) if _is_of_table(cell, task)]
    counts = sorted({cell["num_trajectories"] for cell in cells if "num_trajectories" in cell})
    if counts and counts != [NUM_TRAJECTORIES[task]]:
        parts.append(f"{_either(counts)} trajectories, not {NUM_TRAJECTORIES[task]:,}")
    updates = sorted({row.steps for row in source.results if row.task == task})
    if updates != [NUM_UPDATES[task]]:
        parts.append(f"{_either(updates)} updates, not {NUM_UPDATES[task]:,}")
    sizes = sorted({cell["batch_size"] for cell in cells if "batch_size" in cell})
    if sizes and sizes != [512]:
        parts.append(f"batch {_either(sizes)}, not 512")
    return "; ".join(parts) or "nothing known"


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)


def _extent(lines: Sequence[_Line], source: Source) -> list[str]:
    """Whether the table is whole, and what it lacks."""
    columns, shown = _columns(), [line.task for line in lines]
    asked: Mapping[tuple[str, str], int] = {
        (cell["task"], cell["method"]): len(cell["seeds"])
        for cell in source.grid.get("cells", ())
        if cell["task"] in HORIZONS and cell["method"] in columns and _is_of_table(cell, cell["task"])
    }
    filled = sum(len(line.ours) for line in lines)
    whole = len(HORIZONS) * len(columns)
    tasks = [task for task in HORIZONS if task not in shown]
    methods = [method for method in columns if not any(method in line.ours for line in lines)]
    few: dict[tuple[int, int], dict[str, list[str]]] = {}
    for line in lines:
        for method, sample in line.ours.items():
            if sample.num_seeds < (of := asked.get((line.task, method), 0)):
                few.setdefault((sample.num_seeds, of), {}).setdefault(method, []).append(line.task)
    if filled == whole and not few:
        return [f"All {whole} cells of {len(HORIZONS)} tasks and {len(columns)} methods have their runs."]
    told = [f"**Incomplete**: {filled} of {whole} cells have runs."]
    told += [f"No run yet of {', '.join(map(method_label, methods))}."] if methods else []
    told += [f"No run yet on {', '.join(tasks)}."] if tasks else []
    told += [f"Seeds so far: {_so_far(few, filled)}."] if few else []
    return [" ".join(map(escape_markdown, told)).replace(r"\*\*", "**")]


def _so_far(few: Mapping[tuple[int, int], Mapping[str, Sequence[str]]], filled: int) -> str:
    """Which of the ``filled`` cells have how many of the seeds that were asked for, by numbers, then by method."""
    told = []
    for (count, of), tasks in few.items():
        if sum(map(len, tasks.values())) == filled:
            return f"{count} of {of} in each cell"
        names = "; ".join(f"{method_label(method)} on {', '.join(on)}" for method, on in tasks.items())
        told.append(f"{count} of {of}: {names}")
    return ". ".join(told)


def _short(lines: Sequence[_Line]) -> list[str]:
    """A line a task: SMORe, its control, the best other method, the paper's SMORe, and the expert in the data."""
    header = ["task", METHOD, "its control", "best of the others", "the paper's", "the expert in the data"]
    rows = [header, ["---"] * len(header)]
    for line in lines:
        others = {name: sample for name, sample in line.ours.items() if name not in (METHOD, CONTROL)}
        best = max(others, key=lambda name: others[name].mean, default=None)
        rows.append(
            [
                line.task,
                *(_entry(line.ours.get(method), line.digits) for method in (METHOD, CONTROL)),
                "–" if best is None else f"{best} {_entry(others[best], line.digits)}",
                _entry(line.paper.get(METHOD), line.digits),
                line.data.partition(",")[0],
            ]
        )
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rows[1], *map(_escaped, rows[2:]))]


def _table(lines: Sequence[_Line]) -> list[str]:
    """Two lines a task, ours and the paper's, a column for each method that has a run."""
    methods = [method for method in _columns() if any(method in line.ours for line in lines)]
    header = ["task", "unit", "", *map(method_label, methods), "the data: expert, all", "differs from the paper in"]
    rows = [header, ["---"] * len(header)]
    for line in lines:
        best = max((sample.mean for sample in line.ours.values()), default=None)
        ours = [_entry(line.ours.get(method), line.digits, best) for method in methods]
        theirs = [_entry(line.paper.get(method), line.digits) for method in methods]
        rows.append([line.task, _UNITS[is_locomotion(line.task)], "ours", *ours, line.data, line.differs])
        rows.append(["", "", "paper", *theirs, "", ""])
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rows[1], *map(_escaped, rows[2:]))]


def _escaped(row: Sequence[str]) -> list[str]:
    return [escape_markdown(text).replace(r"\*\*", "**") for text in row]


def _entry(sample: Sample | None, digits: int, best: float | None = None) -> str:
    if sample is None:
        return "–"
    text = f"{sample.mean:.{digits}f}" + ("" if sample.std != sample.std else f" ± {sample.std:.{digits}f}")
    if best is None:
        return text
    return f"{'**' + text + '**' if sample.mean == best else text} ({sample.num_seeds})"


def _facts(source: Source, command: str, folder: str) -> list[str]:
    facts: list[tuple[str, Any]] = [
        fact for fact in provenance.facts(source, command) if fact[0] not in ("files", "methods", "tasks")
    ]
    links = ", ".join(f"[{name}]({folder}/{name})" for name in ("results.csv", "curves.csv", "grid.json"))
    return [*(f"- {name}: {escape_markdown(text)}" for name, text in facts), f"- numbers: {links}"]
