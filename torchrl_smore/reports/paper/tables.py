"""The paper's tables with our numbers beside the paper's, in Markdown or LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from torchrl_smore._errors import unknown_name
from torchrl_smore.reports.numbers import (
    RESAMPLES,
    Cell,
    Result,
    RunSet,
    Sample,
    SignificanceTest,
    canonical_setting,
    estimate_iqm,
)
from torchrl_smore.reports.paper.markup import Entry, Row, Table, to_html, to_latex, to_markdown
from torchrl_smore.reports.paper.published import HORIZONS, Paper, PaperCell
from torchrl_smore.reports.paper.scores import BASE_SETTING, View, our_sample, task_order, widely_run

Markup = Literal["markdown", "latex", "html"]

_TITLES: dict[str, str] = {
    "discounted_return_0.98": "discounted return at 0.98",
    "discounted_return_0.99": "discounted return at 0.99",
    "return_over_max": "discounted return / largest possible",
    "success_rate": "success rate",
    "final_distance": "final distance",
}
_LINES = (
    "Mean ± standard deviation over seeds (n - 1 in the denominator), number of seeds in parentheses (paper: 10); "
    "bold: best mean of the line on the same data; a dash: no run, or not printed."
)
_NOTES = {
    "discounted_return_0.98": "Paper: as printed; its bold and stars compare the numbers as printed.",
    "discounted_return_0.99": "Paper: as printed; its bold and stars compare the numbers as printed.",
    "return_over_max": (
        "Ours at discount 0.99. Paper: the printed return over the largest one at the discount that it was most likely "
        "computed at, 0.99 for SMORe and the GC- methods, 0.98 for the other baselines (39.50 and 31.79 for 50 steps). "
        "This is an inference: returns of the former exceed 31.79, those of the latter never do and come from "
        "evaluators whose default is 0.98."
    ),
    "success_rate": "Ours: success after the last step.",
    "final_distance": (
        "Ours is measured after the last step; the official evaluators measure before the last action, in normalised "
        "units if they normalise."
    ),
}
_OWN_TASKS = "Tasks that are not the paper's have no line of it; the test leaves them out."
_OTHER_DISCOUNT = "most likely computed at discount {other} by its authors, so not comparable with the line above it."
_LOCOMOTION = (
    "returns of locomotion exceed 100, so they are not of a 0/1 reward at discount 0.99: comparable with nothing here."
)


def views(number: int | str) -> tuple[View, ...]:
    """The views that a table of the paper has: three for returns, else one."""
    metric = Paper().table(number)[0].cell.metric
    return get_args(View)[:3] if metric == "discounted_return" else (metric,)  # type: ignore[return-value]


def table_tasks(number: int | str, results: Iterable[Result] | RunSet) -> list[str]:
    """The tasks that a table has lines of: the paper's, and our own if they have runs of what it is about.

    Args:
        number: of the table; see :func:`build_table`.
        results: of our runs.
    """
    runs = results if isinstance(results, RunSet) else RunSet(results)
    return list(dict.fromkeys(entry.cell.task for entry in _cells(number, None, runs)))


def build_table(
    number: int | str,
    results: Iterable[Result] | RunSet,
    *,
    command: str,
    view: View | None = None,
    tasks: Collection[str] | None = None,
    test: SignificanceTest | None = None,
    resamples: int = RESAMPLES,
) -> Table:
    """Puts our results into the cells of one of the paper's tables.

    Tasks that are not the paper's get lines of their own if they have runs of what the table is about. A star on ours
    follows ``test``, for SMORe among the methods of one of the paper's tasks and one setting; with too few seeds there
    is none, and the notes say so. A star on the paper's is printed there.

    Args:
        number: of the table: 1, 2, 6 to 16.
        results: any; those of no cell of the table are left out.
        command: the line that regenerates the table, which becomes a comment.
        view: one of :func:`views`; by default their first.
        tasks: lines to show, and to correct for testing; by default all of the table's and our own.
        test: of SMORe against the second best method.
        resamples: of the bootstrap of interquartile means.

    Raises:
        ValueError: if there is no such table, view or task, or the command cannot be a comment.
    """
    if "\n" in command or "-->" in command:
        raise ValueError(f"command must be one line without '-->', got {command!r}.")
    if view is not None and view not in views(number):
        raise unknown_name(f"view of Table {number}", view, views(number))
    view, test = view or views(number)[0], test or SignificanceTest()
    runs = results if isinstance(results, RunSet) else RunSet(results)
    cells = _cells(number, tasks, runs)
    ours = {entry.cell: our_sample(entry.cell, runs, view) for entry in cells}
    comparisons = test.compare(_tested(ours), "SMORe", larger_is_better=view != "final_distance")
    starred = {comparison.group for comparison in comparisons if comparison.star}
    layout, columns = _layout(cells)
    rows = []
    for task, line in layout.items():
        mine = {column: _our_entry(entry.cell, ours, view, starred) for column, entry in line.items()}
        theirs = {column: _paper_entry(entry, view) for column, entry in line.items()}
        data = {column: _data(entry.cell.setting) for column, entry in line.items()}
        rows.append(Row(task, "ours", _in_order(mine, data, columns, view)))
        if task in HORIZONS:
            rows.append(Row(task, "paper", _in_order(theirs, data, columns, view)))
    notes = [_LINES, _NOTES[view], *_mark_notes(rows, view)]
    notes += [test.describe(comparisons, "SMORe")] if comparisons else []
    notes += [] if all(task in HORIZONS for task in layout) else [_OWN_TASKS]
    notes += _aggregates(rows, columns, resamples) if view in ("return_over_max", "success_rate") else []
    notes += [*_provenance(ours, runs), *_remarks(cells)]
    return Table(f"Table {number}: {_TITLES[view]}", tuple(columns), tuple(rows), tuple(notes), command)


def render_table(
    number: int | str,
    results: Iterable[Result],
    *,
    command: str,
    markup: Markup = "markdown",
    tasks: Collection[str] | None = None,
    test: SignificanceTest | None = None,
) -> str:
    """All :func:`views` of a table below each other; see :func:`build_table`."""
    writers: dict[str, Callable[[Table], str]] = {"markdown": to_markdown, "latex": to_latex, "html": to_html}
    if markup not in writers:
        raise unknown_name("markup", markup, writers)
    results = list(results)
    tables = [
        build_table(number, results, command=command, view=view, tasks=tasks, test=test) for view in views(number)
    ]
    return "\n".join(writers[markup](table) for table in tables)


def _cells(number: int | str, tasks: Collection[str] | None, runs: RunSet) -> list[PaperCell]:
    cells = Paper().table(number)
    cells += _own_cells(cells, runs)
    known = list(dict.fromkeys(entry.cell.task for entry in cells))
    for task in known if tasks is None else tasks:
        if task not in known:
            raise unknown_name(f"task of Table {number}", task, known)
    return [entry for entry in cells if tasks is None or entry.cell.task in tasks]


def _own_cells(cells: Sequence[PaperCell], runs: RunSet) -> list[PaperCell]:
    """Empty cells for tasks that are not the paper's, where they have a run that Table 1 would not have as well."""
    columns = {(e.cell.method, e.cell.setting): e.cell for e in cells if "mix=" not in e.cell.setting}
    settings = {canonical_setting(setting) for _, setting in columns}
    special = settings - {BASE_SETTING} or settings
    keys = {result.key[:3] for result in runs.results}
    found = []
    for task in task_order(result.task for result in runs.results if result.task not in HORIZONS):
        own = [cell._replace(task=task) for cell in columns.values()]
        there = {key for cell in own if (key := (task, cell.method, canonical_setting(cell.setting))) in keys}
        if any(setting in special for *_, setting in there):
            found += [PaperCell(cell, None, None, "") for cell in own]
    return found


def _tested(ours: dict[Cell, Sample | None]) -> dict[str, dict[str, Sequence[float]]]:
    """Values of the paper's tasks by task and setting, by method."""
    samples: dict[str, dict[str, Sequence[float]]] = {}
    for cell, sample in ours.items():
        if cell.task in HORIZONS and sample is not None and sample.values is not None:
            samples.setdefault(_group(cell), {})[cell.method] = sample.values.tolist()
    return samples


def _group(cell: Cell) -> str:
    return f"{cell.task} {canonical_setting(cell.setting)}"


def _data(setting: str) -> str:
    """The part of a setting that says what data a method was trained on."""
    parts = canonical_setting(setting).split(";")
    return ";".join(part for part in parts if part.startswith(("expert=", "mix=", "noise=")))


def _layout(cells: list[PaperCell]) -> tuple[dict[str, dict[str, PaperCell]], list[str]]:
    """Cells by task and column; a column is a method, with its setting where a task has several."""
    settings: dict[tuple[str, str], set[str]] = {}
    for entry in cells:
        settings.setdefault((entry.cell.task, entry.cell.method), set()).add(entry.cell.setting)
    several = any(len(found) > 1 for found in settings.values())
    layout: dict[str, dict[str, PaperCell]] = {}
    for entry in cells:
        column = f"{entry.cell.method} {entry.cell.setting}" if several else entry.cell.method
        layout.setdefault(entry.cell.task, {})[column] = entry
    return layout, list(dict.fromkeys(column for line in layout.values() for column in line))


def _digits(view: View) -> int:
    return 2 if view.startswith("discounted_return") else 3


def _our_entry(cell: Cell, ours: dict[Cell, Sample | None], view: View, starred: set[str]) -> Entry | None:
    sample = ours[cell]
    if sample is None:
        return None
    star = cell.method == "SMORe" and _group(cell) in starred
    return Entry(sample, _digits(view), show_seeds=True, star=star)


def _paper_entry(entry: PaperCell, view: View) -> Entry | None:
    sample = entry.return_over_max if view == "return_over_max" else entry.sample
    if sample is None:
        return None
    mark = ""
    if view.startswith("discounted_return"):
        at = float(view.rpartition("_")[2])
        mark = "‡" if not entry.comparable else "" if entry.discount == at else "†"
    # the paper tested what it printed, not what was divided by different maxima
    star = entry.significant and view != "return_over_max"
    return Entry(sample, _digits(view), show_seeds=False, star=star, mark=mark)


def _in_order(
    entries: dict[str, Entry | None], data: dict[str, str], columns: Sequence[str], view: View
) -> tuple[Entry | None, ...]:
    """One line in the order of the columns, the best entry of each kind of data marked."""
    best = min if view == "final_distance" else max
    line: list[Entry | None] = []
    for column in columns:
        entry = entries.get(column)
        if entry is not None:
            means = [e.sample.mean for name, e in entries.items() if e is not None and data[name] == data[column]]
            entry = replace(entry, best=len(means) > 1 and entry.sample.mean == best(means))
        line.append(entry)
    return tuple(line)


def _mark_notes(rows: Sequence[Row], view: View) -> list[str]:
    used = {entry.mark for row in rows for entry in row.entries if entry is not None}
    notes = []
    if "†" in used:
        other = "0.99" if view == "discounted_return_0.98" else "0.98"
        notes.append("† " + _OTHER_DISCOUNT.format(other=other))
    if "‡" in used or (view == "return_over_max" and any("TgtVel" in row.task for row in rows)):
        notes.append(("‡ " if "‡" in used else "Paper: ") + _LOCOMOTION)
    return notes


def _aggregates(rows: Sequence[Row], columns: Sequence[str], resamples: int) -> list[str]:
    """Interquartile means of our runs, of the columns that are widely run, over the tasks that all of these have."""
    ours = [row for row in rows if row.source == "ours"]
    run = {i: [row for row in ours if row.entries[i] is not None] for i in range(len(columns))}
    places = widely_run({i: line for i, line in run.items() if line})
    shared = [row for row in ours if all(row.entries[i] is not None for i in places)]
    if not places or not shared:
        return []
    texts, sources = [], []
    for i in places:
        samples = [entry.sample for row in shared if (entry := row.entries[i]) is not None]
        groups = [sample.values for sample in samples if sample.values is not None]
        iqm = estimate_iqm(groups, resamples=resamples)
        texts.append(f"{columns[i]} {iqm.value:.3f} [{iqm.low:.3f}, {iqm.high:.3f}]")
        sources.append(iqm.source)
    tasks = ", ".join(row.task for row in shared)
    return [
        f"Ours, interquartile mean and 95% stratified bootstrap interval over {tasks}: {'; '.join(texts)}. "
        f"By {'; '.join(dict.fromkeys(sources))}."
    ]


def _provenance(ours: dict[Cell, Sample | None], runs: RunSet) -> list[str]:
    """Where the numbers of a table come from, if it has any."""
    shown = {(cell.task, cell.method, canonical_setting(cell.setting)) for cell, sample in ours.items() if sample}
    used = [result for result in runs.results if result.key[:3] in shown]
    texts = [
        f"{name} {', '.join(dict.fromkeys(str(getattr(result, name)) or 'unknown' for result in used))}"
        for name in ("commit", "versions", "steps", "episodes")
    ]
    return [f"Our runs: {'; '.join(texts)}."] if used else []


def _remarks(cells: Sequence[PaperCell]) -> list[str]:
    remarks = [f"{e.cell.task}, {e.cell.method}, {e.cell.setting}: {e.remark}" for e in cells if e.remark]
    return [f"On the paper's numbers: {'; '.join(remarks)}."] if remarks else []
