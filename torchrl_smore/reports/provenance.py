"""Where a report's numbers come from, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torchrl_smore.reports.numbers import Result, Source, method_order
from torchrl_smore.reports.paper import task_order


def facts(source: Source, command: str) -> list[tuple[str, str]]:
    """Names and texts: command, files, extent, commits, versions."""
    rows = source.results
    runs = {row.key[:4] for row in rows}
    return [
        ("command", command),
        ("files", ", ".join(str(path) for path in source.files)),
        ("runs", f"{len(runs)} (each one task, method, setting and seed), {len(rows)} numbers"),
        ("tasks", ", ".join(task_order(row.task for row in rows))),
        ("methods", ", ".join(method_order(row.method for row in rows))),
        ("seeds", ranges(row.seed for row in rows)),
        ("updates", _distinct(f"{row.steps:,}" for row in rows)),
        ("evaluation episodes", _distinct(str(row.episodes) for row in rows)),
        ("commit", _distinct(row.commit or "unknown" for row in rows)),
        ("versions", _distinct(row.versions.replace(";", ", ") or "unknown" for row in rows)),
        ("learning curves", f"{len(source.curves)} numbers" if source.curves else "none given"),
    ]


def run_rows(rows: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of all cells that have runs, with their seeds, updates, episodes and commits."""
    header = ["task", "method", "setting", "seeds", "updates", "episodes", "commit"]
    cells: dict[tuple[str, str, str], list[Result]] = {}
    for row in rows:
        cells.setdefault(row.key[:3], []).append(row)
    tasks, methods = (task_order(t for t, *_ in cells), method_order(m for _, m, _ in cells))
    ordered = sorted(cells, key=lambda cell: (tasks.index(cell[0]), cell[2], methods.index(cell[1])))
    return header, [
        [
            *(cell[0], cell[1], cell[2]),
            ranges(row.seed for row in cells[cell]),
            _distinct(f"{row.steps:,}" for row in cells[cell]),
            _distinct(str(row.episodes) for row in cells[cell]),
            _distinct(row.commit or "unknown" for row in cells[cell]),
        ]
        for cell in ordered
    ]


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in few words: ``0 to 4, 7``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in parts)


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
