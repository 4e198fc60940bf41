"""The numbers that the SMORe paper (arXiv:2311.02013) prints in its Tables 1, 2 and 6 to 16."""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass
from importlib import resources

from torchrl_smore._errors import unknown_name
from torchrl_smore.reports.numbers import Cell, Sample, canonical_setting

NUM_SEEDS = 10  # of every table (App. C.1)
#: Steps of an episode by task: not in the paper, but of the environments of the official code.
HORIZONS = {
    **dict.fromkeys(("Reacher", "SawyerReach", "SawyerDoor"), 50),
    **dict.fromkeys(("FetchReach", "FetchPick", "FetchPush", "FetchSlide", "HandReach"), 50),
    **dict.fromkeys(("CheetahTgtVel-m-e", "CheetahTgtVel-r-e", "AntTgtVel-m-e", "AntTgtVel-r-e"), 1000),
}
#: Updates of batch 512 by task, App. C.1.
NUM_UPDATES = {task: 400_000 if task in ("FetchReach", "FetchPick", "FetchSlide") else 1_000_000 for task in HORIZONS}
#: Trajectories of the published datasets by task; for locomotion a million transitions of D4RL and 30 experts.
NUM_TRAJECTORIES = {task: 40_000 if steps == 50 else 1_030 for task, steps in HORIZONS.items()}
_FLAGS = {"significant", "missing"}


def max_return(task: str, discount: float) -> float:
    """Return of reward 1 at each step of an episode: 39.50 at 0.99 and 31.79 at 0.98 for 50 steps.

    Args:
        task: of the paper.
        discount: in ``(0, 1)``.

    Raises:
        ValueError: for a task that is not the paper's.
    """
    if task not in HORIZONS:
        raise unknown_name("task of the paper", task, HORIZONS)
    return (1 - discount ** HORIZONS[task]) / (1 - discount)


@dataclass(frozen=True)
class PaperCell:
    """One printed number.

    Args:
        cell: where it stands.
        mean: over seeds; ``None`` where the paper prints a dash.
        std: standard deviation over seeds, likewise.
        note: ``significant`` for a star, or what is odd about the print.
    """

    cell: Cell
    mean: float | None
    std: float | None
    note: str

    @property
    def significant(self) -> bool:
        """Whether the paper puts a star on it."""
        return self.note == "significant"

    @property
    def remark(self) -> str:
        """What is odd about the print, or nothing."""
        return "" if self.note in _FLAGS else self.note

    @property
    def comparable(self) -> bool:
        """``False`` for returns of locomotion, which exceed 100, so they are not of a 0/1 reward at discount 0.99."""
        return not (self.cell.metric == "discounted_return" and "TgtVel" in self.cell.task)

    @property
    def discount(self) -> float | None:
        """The discount that a return was most likely computed at, ``None`` if unknown.

        0.99 for SMORe and the in-sample methods, whose returns exceed the 31.79 that 50 steps can give at 0.98; 0.98
        for the others, which never do, and whose published evaluators use it. The paper only says 0.99.
        """
        if self.cell.metric != "discounted_return" or not self.comparable:
            return None
        return 0.99 if self.cell.method == "SMORe" or self.cell.method.startswith("GC-") else 0.98

    @property
    def sample(self) -> Sample | None:
        """Mean and standard deviation as printed, or ``None`` for a dash."""
        if self.mean is None:
            return None
        return Sample(self.mean, math.nan if self.std is None else self.std, NUM_SEEDS)

    @property
    def return_over_max(self) -> Sample | None:
        """The same as a share of :func:`max_return` at :attr:`discount`, or ``None`` if that is unknown."""
        if self.mean is None or self.discount is None:
            return None
        most = max_return(self.cell.task, self.discount)
        return Sample(self.mean / most, math.nan if self.std is None else self.std / most, NUM_SEEDS)


class Paper:
    """All printed numbers but the averages of Table 2, which follow from the others.

    Attributes:
        cells: by what they are of, in the order of print.
    """

    def __init__(self) -> None:
        self.cells: dict[Cell, PaperCell] = {entry.cell: entry for entry in _read_paper()}

    @property
    def tables(self) -> tuple[str, ...]:
        """Numbers of the tables."""
        return tuple(dict.fromkeys(cell.table for cell in self.cells))

    def table(self, number: int | str) -> list[PaperCell]:
        """The cells of one table.

        Raises:
            ValueError: if it is none of :attr:`tables`.
        """
        if str(number) not in self.tables:
            raise unknown_name("table", str(number), self.tables)
        return [entry for entry in self.cells.values() if entry.cell.table == str(number)]

    def sample(self, cell: Cell) -> Sample | None:
        """Mean and standard deviation as printed, or ``None`` for a dash and for what is not there."""
        entry = self.find(cell)
        return None if entry is None else entry.sample

    def find(self, cell: Cell) -> PaperCell | None:
        """The entry of a cell, however its setting is written; with an empty table the first one that has it."""
        return _entries().get(_canonical(cell))


def _canonical(cell: Cell) -> Cell:
    return cell._replace(setting=canonical_setting(cell.setting))


@functools.cache
def _read_paper() -> tuple[PaperCell, ...]:
    text = resources.files("torchrl_smore.reports.paper").joinpath("paper_tables.csv").read_text(encoding="utf-8")
    entries = []
    for row in csv.DictReader(text.splitlines()):
        mean, std = (float(row[name]) if row[name] else None for name in ("mean", "std"))
        cell = Cell(row["table"], row["task"], row["method"], row["setting"], row["metric"])
        if cell.task != "Average":
            entries.append(PaperCell(cell, mean, std, row["note"]))
    return tuple(entries)


@functools.cache
def _entries() -> dict[Cell, PaperCell]:
    """Entries by cells in canonical words, with their table and with none, where the first table counts."""
    found: dict[Cell, PaperCell] = {}
    for entry in _read_paper():
        cell = _canonical(entry.cell)
        found[cell] = entry
        found.setdefault(cell._replace(table=""), entry)
    return found
