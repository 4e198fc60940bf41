"""The rows that ``gpu.py`` leaves: one JSON object a line, appended whole, found again by key."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pages

ROWS = "rows.jsonl"
#: ``wrong``: ran, and the numbers are not those expected; ``error``: said why; ``crashed``: its process died;
#: ``timeout``: took longer than its limit; ``skipped``: cannot run on this machine.
STATUSES = ("ok", "wrong", "error", "crashed", "timeout", "skipped")
FAILED = ("wrong", "error", "crashed", "timeout")
COLUMNS = ("key", "status", "seconds", "device", "dry_run", "time", "detail")
Row = dict[str, Any]


class Skipped(Exception):
    """Something that this machine cannot run; the message says why."""


class Wrong(Exception):
    """Numbers that are not those expected; carries them."""

    def __init__(self, values: dict[str, Any], detail: str) -> None:
        super().__init__(detail)
        self.values = values


def append(folder: Path, row: Row) -> None:
    """Adds a row in one write, so that a kill leaves whole lines."""
    if row["status"] not in STATUSES:
        raise ValueError(f"expected a status among {', '.join(STATUSES)}, got {row['status']!r}.")
    path = folder / ROWS
    line = json.dumps(row, allow_nan=False) + "\n"
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        # what a full disk or a dying machine has cut off stays a line of its own
        line = "\n" + line
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def size(folder: Path) -> int:
    """Bytes of all rows, which grow with each."""
    path = folder / ROWS
    return path.stat().st_size if path.is_file() else 0


def read(folder: Path) -> dict[str, Row]:
    """The last row of every key, in the order in which keys came first; lines cut off are left out."""
    path = folder / ROWS
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["key"]] = row
    return rows


def of_stage(rows: Iterable[Row], stage: str) -> list[Row]:
    """The rows of one stage."""
    return [row for row in rows if row["key"].partition("/")[0] == stage]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The rows as a table, with a column for every value that one of them has; atomically."""
    names = dict.fromkeys(name for row in rows for name in row["values"])
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *names], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**{name: row[name] for name in COLUMNS}, **row["values"]})
    pages.write_text(path, text.getvalue())


def table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Columns of text, aligned."""
    widths = [max(len(row[at]) for row in (header, *cells)) for at in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (header, *cells)
    )
