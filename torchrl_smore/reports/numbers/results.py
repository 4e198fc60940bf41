"""Result files: one row for each number that the run of one seed gave.

A result file is CSV in UTF-8 whose columns are ``schema``, which is 1, and the fields of :class:`Result`. A curve file
has the same columns and one row for each evaluation along a run: there ``steps`` tells rows apart too.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchrl_smore._files import replacing
from torchrl_smore.reports.numbers.statistics import mean_and_std

SCHEMA = 1
#: Names of the methods, in the order of the tables.
METHODS = ("SMORe", "GoFAR", "WGCSL", "GCSL", "CRL", "AM", "GC-IQL", "GC-SQL", "GC-EQL", "GC-XQL", "GC-BC")
#: SMORe's control: its actor, regressed on the same samples without weights.
CONTROL = "hindsight_bc"
# parts of a setting that say what is so anyway, for every method and preset: not her_ratio, which the recipes vary
_DEFAULT_PARTS = {"default", "", "beta=0.5"}
_SPELLINGS = {name.lower().replace("-", ""): name for name in METHODS}


def method_order(names: Iterable[str]) -> list[str]:
    """Each name once: :data:`METHODS` in their order, then others by alphabet."""
    found = set(names)
    return [name for name in METHODS if name in found] + sorted(found - set(METHODS))


def method_label(name: str) -> str:
    """A method's name for people."""
    return "control (hindsight BC)" if name == CONTROL else name


class ResultsError(ValueError):
    """A result file, or a set of results, that is not what it should be."""


@dataclass(frozen=True)
class Result:
    """One number of one run: a row of a result file, which is CSV in UTF-8 with a column ``schema`` (1) before these.

    Args:
        table: the table of the paper that the run was made for, or empty; not part of a number's identity.
        task: ``FetchReach``, ...
        method: ``SMORe``, ``GC-IQL``, ... (any spelling of the paper's names in letter case, ``_`` and ``-``).
        setting: what differs from the method's defaults on 10% expert data, ``;`` between parts: ``default``,
            ``expert=0.05``, ``beta=0.7``, ``no_her``, ``expert=0.10;noise=0.5``; see :func:`canonical_setting`.
        seed: a whole number of at least 0.
        metric: ``discounted_return_0.98``, ``discounted_return_0.99``, ``success_last``, ``final_distance``, ...
        value: finite, in the unit of the metric.
        steps: updates that the evaluated networks had; in a curve file, it tells rows apart too.
        episodes: evaluation episodes behind the number.
        commit: of the library.
        versions: of packages, ``torch=2.13.0;torchrl=0.14.1``.
        note: anything.

    Raises:
        ResultsError: for an empty name, a negative count, or a value that is not finite.
    """

    table: str
    task: str
    method: str
    setting: str
    seed: int
    metric: str
    value: float
    steps: int
    episodes: int
    commit: str
    versions: str
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("task", "method", "setting", "metric"):
            if not getattr(self, name).strip():
                raise ResultsError(f"{name} must not be empty.")
        for name in ("seed", "steps", "episodes"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
            if getattr(self, name) < 0:
                raise ResultsError(f"{name} must be at least 0, got {getattr(self, name)}.")
        # a float32 would not be found equal to itself after a round trip through the file
        object.__setattr__(self, "value", float(self.value))
        if not math.isfinite(self.value):
            raise ResultsError(f"value must be finite, got {self.value}.")
        spelling = self.method.lower().replace("-", "").replace("_", "")
        object.__setattr__(self, "method", _SPELLINGS.get(spelling, self.method))

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """Task, method, setting, seed and metric, of which a file holds at most one row."""
        return self.task, self.method, canonical_setting(self.setting), self.seed, self.metric


COLUMNS = ("schema", *(field.name for field in fields(Result)))
_NUMBERS = {"seed": int, "value": float, "steps": int, "episodes": int}


@functools.cache
def canonical_setting(setting: str) -> str:
    """One spelling for equal settings: sorted parts, plain numbers, defaults left out, the share of experts stated.

    Whole numbers have all their digits, others as many as tell them apart: ``1e6`` becomes ``1000000``, ``0.00001``
    becomes ``1e-05``. ``default``, ``beta=0.5`` and ``expert=0.10`` all become ``expert=0.1``; ``no_her`` becomes
    ``expert=0.1;no_her``. Data of one's own have a name in place of that share: ``data=NAME`` stays as it is.
    """
    parts = set()
    for part in setting.split(";"):
        name, equals, value = part.strip().partition("=")
        # the name of a dataset may look like a number
        parts.add(f"{name}{equals}{value if name == 'data' else _plain_number(value)}")
    parts -= _DEFAULT_PARTS
    if not any(part.startswith(("expert=", "data=")) for part in parts):
        parts.add("expert=0.1")
    return ";".join(sorted(parts))


def _plain_number(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(int(text))
    with contextlib.suppress(ValueError):
        number = float(text)
        # from 1e16 on repr has an exponent, and not every whole number is a float
        return str(int(number)) if number.is_integer() and abs(number) < 1e16 else repr(number)
    return text


def read_results(*paths: str | Path) -> list[Result]:
    """Reads result files and merges them, see :func:`merge_results`.

    Raises:
        ResultsError: naming file, line, and what was expected and found, if a file has another schema, lacks a column
            or has one too many, a value is not a number, or a number is there twice.
    """
    return merge_results(*(_read(Path(path), operator.attrgetter("key")) for path in paths))


def read_curves(*paths: str | Path) -> list[Result]:
    """Reads curve files: as result files, but a run may have a row for each number of updates.

    Raises:
        ResultsError: as :func:`read_results`, and if two rows say different things of one run after as many updates.
    """
    return _merge((_read(Path(path), _curve_key) for path in paths), _curve_key)


def write_results(path: str | Path, results: Iterable[Result]) -> Path:
    """Writes a result file atomically, in place of one that is there.

    Args:
        path: of the file, which is returned.
        results: its rows.

    Raises:
        ResultsError: if a number is there twice.
    """
    return _write(Path(path), list(results), operator.attrgetter("key"))


def write_curves(path: str | Path, curves: Iterable[Result]) -> Path:
    """Writes a curve file; see :func:`write_results`."""
    return _write(Path(path), list(curves), _curve_key)


def _write(path: Path, rows: list[Result], key: Callable[[Result], tuple]) -> Path:
    _check_unique(rows, [f"row {i}" for i in range(1, len(rows) + 1)], str(path), key)
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((SCHEMA, *astuple(row)) for row in rows)
    return path


def merge_results(*groups: Iterable[Result]) -> list[Result]:
    """All results in order, those that say the same of the same run once.

    Raises:
        ResultsError: if two give different values, steps or episodes for one number: one of the runs would be lost.
    """
    return _merge(groups, operator.attrgetter("key"))


def _curve_key(result: Result) -> tuple:
    return *result.key, result.steps


def _merge(groups: Iterable[Iterable[Result]], key: Callable[[Result], tuple]) -> list[Result]:
    merged: dict[tuple, Result] = {}
    for result in (result for group in groups for result in group):
        kept = merged.setdefault(key(result), result)
        for name in ("value", "steps", "episodes"):
            if getattr(kept, name) != getattr(result, name):
                raise ResultsError(
                    f"two runs claim {_words(result.key)}: {name} {getattr(kept, name)} (commit {kept.commit}) and "
                    f"{getattr(result, name)} (commit {result.commit}). Remove one, or give it another seed or setting."
                )
    return list(merged.values())


class Cell(NamedTuple):
    """One cell of a table, in the paper's words.

    Attributes:
        table: its number, ``"1"``.
        task: ``FetchReach``, ...
        method: ``SMORe``, ...
        setting: as in :class:`Result`.
        metric: ``discounted_return``, ``success_rate``, ...
    """

    table: str
    task: str
    method: str
    setting: str
    metric: str


@dataclass(frozen=True, eq=False)
class Sample:
    """What is known of a cell.

    Args:
        mean: over seeds, in the unit of the cell's metric.
        std: standard deviation over seeds; NaN if unknown.
        num_seeds: how many.
        values: one of each seed, ``[num_seeds]``, or ``None`` if they are not known.
        steps: updates that the evaluated networks had, or ``None`` if that is not known.
    """

    mean: float
    std: float
    num_seeds: int
    values: np.ndarray | None = None
    steps: int | None = None


class RunSet:
    """Our results, found by the paper's cells.

    Args:
        results: of any number of runs; equal ones count once.

    Raises:
        ResultsError: if the seeds of one cell were trained for different numbers of updates: their mean says nothing.
    """

    def __init__(self, results: Iterable[Result]) -> None:
        self.results = merge_results(results)
        self._values: dict[tuple, dict[int, float]] = {}
        self._first: dict[tuple, Result] = {}
        for result in self.results:
            task, method, setting, seed, metric = result.key
            cell = task, method, setting, metric
            other = self._first.setdefault(cell, result)
            if other.steps != result.steps:
                raise ResultsError(
                    f"expected seeds of one length, but of {task}, {method}, {setting}, {metric} seed {other.seed} had "
                    f"{other.steps} updates and seed {seed} had {result.steps}. Remove some, or give them another "
                    "setting."
                )
            self._values.setdefault(cell, {})[seed] = result.value

    def sample(self, cell: Cell, *, discount: float = 0.99) -> Sample | None:
        """The runs of a cell in the order of their seeds, or ``None``; ``cell.table`` does not matter.

        Args:
            cell: ``discounted_return`` means ``discounted_return_<discount>``, ``success_rate`` means ``success_last``
                (the official evaluators read the flag of the last step).
            discount: which of the returns.
        """
        own = {"discounted_return": f"discounted_return_{discount:g}", "success_rate": "success_last"}
        metric = own.get(cell.metric, cell.metric)
        key = cell.task, cell.method, canonical_setting(cell.setting), metric
        by_seed = self._values.get(key)
        if by_seed is None:
            return None
        values = np.array([by_seed[seed] for seed in sorted(by_seed)])
        return Sample(*mean_and_std(values), len(values), values, self._first[key].steps)


def _read(path: Path, key: Callable[[Result], tuple]) -> list[Result]:
    results, places = [], []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            _check_header(path, next(reader, []))
            for row in reader:
                places.append(f"line {reader.line_num}")
                results.append(_parse(row, f"{path}, {places[-1]}"))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} is not a CSV file in UTF-8: {error}.") from error
    _check_unique(results, places, str(path), key)
    return results


def _check_header(path: Path, header: list[str]) -> None:
    if sorted(header) == sorted(COLUMNS) and tuple(header) != COLUMNS:
        raise ResultsError(
            f"{path}: expected the columns in the order {', '.join(COLUMNS)}, found {', '.join(header)}."
        )
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ResultsError(f"{path} lacks the column(s) {', '.join(missing)}: found {', '.join(header) or 'nothing'}.")
    if len(header) > len(COLUMNS):
        unknown = [name for name in header if name not in COLUMNS] or ["a repeated one"]
        raise ResultsError(f"{path} has unknown column(s) {', '.join(unknown)}: expected {', '.join(COLUMNS)}.")


def _parse(row: list[str], place: str) -> Result:
    if len(row) != len(COLUMNS):
        raise ResultsError(f"{place}: expected {len(COLUMNS)} fields, found {len(row)}.")
    texts = dict(zip(COLUMNS, row))
    if texts.pop("schema") != str(SCHEMA):
        raise ResultsError(f"{place}: expected schema {SCHEMA}, found {row[0]!r}. Another version wrote this file.")
    values: dict = dict(texts)
    for name, kind in _NUMBERS.items():
        try:
            values[name] = kind(texts[name])
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ResultsError(f"{place}: {name} must be {wanted}, found {texts[name]!r}.") from None
    try:
        return Result(**values)
    except ResultsError as error:
        raise ResultsError(f"{place}: {error}") from None


def _check_unique(results: list[Result], places: list[str], where: str, key: Callable[[Result], tuple]) -> None:
    first: dict[tuple, tuple[str, int]] = {}
    for result, place in zip(results, places):
        before, steps = first.setdefault(key(result), (place, result.steps))
        if before != place:
            curve = "" if steps == result.steps else f", after {result.steps} updates and {steps}: is it a curve file?"
            raise ResultsError(f"{where}: {place} repeats {_words(result.key)} of {before}{curve or '.'}")


def _words(key: tuple[str, str, str, int, str]) -> str:
    return f"{key[0]}, {key[1]}, {key[2]}, seed {key[3]}, {key[4]}"
