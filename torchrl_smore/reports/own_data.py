"""Runs on a dataset of one's own: lines of their own in every table and figure, and one table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchrl_smore.reports.numbers import Cell, Result, RunSet, Source, canonical_setting, method_order
from torchrl_smore.reports.paper import Table, our_sample, task_order
from torchrl_smore.reports.paper.markup import Entry, Row
from torchrl_smore.reports.paper.scores import BASE_SETTING, OWN_DATA, View, is_own

_VIEWS: dict[View, str] = {
    "return_over_max": "discounted return / largest possible",
    "discounted_return_0.99": "discounted return at 0.99",
    "success_rate": "success after the last step",
    "final_distance": "final distance",
}
_OF_DATA = (OWN_DATA, "expert=", "noise=")
_LINES = (
    "Mean ± standard deviation over seeds (n - 1 in the denominator), number of seeds in parentheses; bold: best mean "
    "of the line; a dash: no run. The paper has nothing to compare with. Largest possible: at 0.99, of tasks that are "
    "not the paper's at the largest discount that they are evaluated at."
)


def own_lines(source: Source) -> Source:
    """Makes the data of one's own part of the task's name: ``FetchReach, data=NAME`` is no task of the paper.

    So it gets lines of its own, and neither the paper's numbers nor its claims are held against it.

    Args:
        source: whose settings say ``data=NAME`` where the data were not collected.
    """
    results, curves = (tuple(map(_line, rows)) for rows in (source.results, source.curves))
    return replace(source, results=results, curves=curves)


def own_tables(source: Source, command: str) -> list[Table]:
    """Return, success and distance of every method on data of one's own; nothing without such runs.

    Args:
        source: what :func:`own_lines` gave.
        command: the line that makes the tables again.
    """
    rows = [row for row in source.results if is_own(row.task)]
    if not rows:
        return []
    runs = RunSet(rows)
    lines = list(
        dict.fromkeys((task, setting) for task in task_order(r.task for r in rows) for setting in _of(rows, task))
    )
    methods = method_order(row.method for row in rows)
    notes = (_LINES, *_data_notes(source))
    return [
        Table(
            f"Data of one's own: {title}",
            tuple(methods),
            tuple(Row(_words(*line), "ours", _entries(runs, *line, methods, view)) for line in lines),
            notes,
            command,
        )
        for view, title in _VIEWS.items()
    ]


def _line(row: Result) -> Result:
    parts = canonical_setting(row.setting).split(";")
    if not any(part.startswith(OWN_DATA) for part in parts):
        return row
    of_data = sorted(
        (part for part in parts if part.startswith(_OF_DATA)), key=lambda part: _OF_DATA.index(_head(part))
    )
    rest = ";".join(part for part in parts if part not in of_data)
    return replace(row, task=f"{row.task}, {';'.join(of_data)}", setting=rest or "default")


def _head(part: str) -> str:
    return f"{part.partition('=')[0]}="


def _of(rows: Sequence[Result], task: str) -> list[str]:
    found = {row.key[2] for row in rows if row.task == task}
    return sorted(found, key=lambda setting: (setting != BASE_SETTING, setting))


def _words(task: str, setting: str) -> str:
    """The line's name, without the share of experts that a setting has by default."""
    rest = ";".join(part for part in setting.split(";") if part != BASE_SETTING)
    return f"{task}, {rest}" if rest else task


def _entries(runs: RunSet, task: str, setting: str, methods: Sequence[str], view: View) -> tuple[Entry | None, ...]:
    samples = [our_sample(Cell("", task, method, setting, _metric(view)), runs, view) for method in methods]
    means = [sample.mean for sample in samples if sample is not None]
    best = (min if view == "final_distance" else max)(means, default=0.0)
    digits = 2 if view == "discounted_return_0.99" else 3
    return tuple(
        None if sample is None else Entry(sample, digits, show_seeds=True, best=len(means) > 1 and sample.mean == best)
        for sample in samples
    )


def _metric(view: View) -> str:
    return "discounted_return" if view in ("return_over_max", "discounted_return_0.99") else view


def _data_notes(source: Source) -> list[str]:
    """What the data hold, as far as the benchmark says it."""
    notes = {}
    for cell in source.grid.get("cells", ()):
        parts = source.grid.get("datasets", {}).get(cell.get("dataset"))
        if "data" in cell and parts:
            count = sum(part["num_trajectories"] for part in parts)
            mean = sum(part["return_over_max"] * part["num_trajectories"] for part in parts) / count
            told = [f"{part['num_trajectories']:,} {part['behaviour']} {part['return_over_max']:.3f}" for part in parts]
            listed = f" ({', '.join(told)})" if len(parts) > 1 else ""
            notes[cell["dataset"]] = (
                f"{cell['task']}, data={cell['dataset'].rpartition('_')[0]}: {count:,} trajectories, which return "
                f"{mean:.3f} of the largest possible{listed}; {cell['data']['dataset']}."
            )
    return list(notes.values())
