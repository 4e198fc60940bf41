"""The metrics of a run as one CSV file that is always whole."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from torchrl_smore._files import replacing


class MetricsFile:
    """Rows of metrics, one for each logged step, in a CSV file.

    A row is appended when its columns are known; a new column rewrites the file (beside its place, then renamed). An
    existing file is read back first, so that a resumed run continues it.

    Args:
        path: the CSV file; its parents are made.
        last_step: drop rows beyond this step (a resumed run repeats them); ``None`` starts anew.
    """

    def __init__(self, path: str | Path, last_step: int | None = None) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, str]] = []
        if last_step is not None and self.path.exists():
            with self.path.open(newline="") as file:
                # a last line without its end was torn by a full disk
                whole = [line for line in file if line.endswith("\n")]
            self._rows = [row for row in csv.DictReader(whole) if int(row["step"]) <= last_step]
        self._columns = list(self._rows[0]) if self._rows else ["step"]
        self._rewrite()

    def write(self, step: int, values: Mapping[str, float], seed: int | None = None) -> None:
        """Adds one row.

        Args:
            step: updates done.
            values: finite or not, by column.
            seed: whose row it is, in a file of several seeds, which then has a column of that name.
        """
        row = {"step": str(step), **({} if seed is None else {"seed": str(seed)})}
        row.update({key: f"{value:.8g}" for key, value in values.items()})
        new = [key for key in row if key not in self._columns]
        self._columns += new
        self._rows.append(row)
        if new:
            self._rewrite()
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def has(self, step: int, prefix: str, count: int) -> bool:
        """Whether there are rows of ``step`` with a value in a column whose name begins with ``prefix``.

        Args:
            step: updates done.
            prefix: of names of columns.
            count: how many rows there must be.
        """
        return sum(self._is_of(row, step, prefix) for row in self._rows) >= count

    def drop(self, step: int, prefix: str) -> None:
        """Removes rows of ``step`` with a value in a column whose name begins with ``prefix``.

        Args:
            step: updates done.
            prefix: of names of columns.
        """
        kept = [row for row in self._rows if not self._is_of(row, step, prefix)]
        if len(kept) < len(self._rows):
            self._rows = kept
            self._rewrite()

    @staticmethod
    def _is_of(row: Mapping[str, str], step: int, prefix: str) -> bool:
        return int(row["step"]) == step and any(value for key, value in row.items() if key.startswith(prefix))

    def _rewrite(self) -> None:
        with replacing(self.path) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
