"""Reader of tables of one's own, CSV or Parquet: one row for each state, columns by name.

A row holds the state of a step and the action taken there. The last row of an episode holds its last state; the action
beside it is not read, and its cells may be empty. Rows of an episode follow each other.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchrl_smore.data._files import check_regular, open_regular, quoted, reading
from torchrl_smore.data._numbers import EXACT, say_rounded
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._flat import assemble, check_limits, episodes_of
from torchrl_smore.data.readers._goals import Fallen, Reached
from torchrl_smore.data.readers._hdf5 import MAX_RATIO
from torchrl_smore.data.trajectories import TrajectoryStore

_REQUIRED = ("observation", "action", "achieved_goal")
_COMPARED: Final = 1000  # columns among which the nearest name is looked for
_SMALL: Final = 1 << 26  # bytes of numbers that a Parquet file of any size may hold


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns of a table.

    Attributes:
        observation: in the order of the task's observation.
        action: in the order of the task's action.
        achieved_goal: in the order of the task's goal; may be columns of ``observation`` too.
        episode: a column whose value is the same in all rows of an episode and in no other rows, and nowhere empty.
        desired_goal: in the order of the task's goal; ``None``: what the episode achieves at its end.
        terminated: a column that is 1 in the last row of an episode that ended in a terminal state and 0 elsewhere;
            ``None``: every episode is truncated.
    """

    observation: Sequence[str]
    action: Sequence[str]
    achieved_goal: Sequence[str]
    episode: str
    desired_goal: Sequence[str] | None = None
    terminated: str | None = None

    @classmethod
    def of(cls, names: Any) -> TableColumns:
        """Makes one of names as a command line gives them; a lone name stands for a list of one.

        Raises:
            ValueError: for an entry that there is none of, is missing, or holds something else than names.
        """
        if not isinstance(names, Mapping):
            raise ValueError(f"columns: expected {{observation: [NAME, ...], ...}}, got {names!r}.")
        fields = set(cls.__dataclass_fields__)
        if unknown := set(names) - fields:
            raise ValueError(f"columns: expected entries among {sorted(fields)}, got {sorted(unknown)}.")
        if missing := {*_REQUIRED, "episode"} - {key for key, value in names.items() if value is not None}:
            raise ValueError(f"columns: {', '.join(sorted(missing))} missing; expected lists of names of columns.")
        entries: dict[str, Any] = {}
        for key, value in names.items():
            single = key in ("episode", "terminated")
            listed = value if isinstance(value, (list, tuple)) else [value]
            if value is not None and (not listed or not all(isinstance(name, str) and name for name in listed)):
                raise ValueError(f"columns: {key}: expected names, got {value!r}.")
            if value is not None and single and len(listed) != 1:
                raise ValueError(f"columns: {key}: expected one name, got {value!r}.")
            entries[key] = None if value is None else listed[0] if single else tuple(listed)
        return cls(**entries)

    @property
    def numeric(self) -> dict[str, Sequence[str]]:
        """The columns of numbers, by what they are."""
        found = {key: getattr(self, key) for key in (*_REQUIRED, "desired_goal")}
        found["terminated"] = None if self.terminated is None else (self.terminated,)
        return {key: names for key, names in found.items() if names is not None}


def read(
    path: str | Path,
    *,
    reached: Reached,
    columns: TableColumns,
    fallen: Fallen | None = None,
    max_trajectories: int | None = None,
    meta: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TrajectoryStore:
    """Reads a table; numbers become float32. Needs memory for some times its numbers as float64.

    Blank lines of CSV are passed over. Warns (logger ``torchrl_smore``) of whole numbers that float32 rounds.

    Args:
        path: the file; Parquet if its name ends in ``.parquet``, else CSV with a header, commas and UTF-8.
        reached: the task's rule, from achieved goals and goals ``[..., dg]`` to booleans ``[...]``. The reward of a
            step is 1 where the goal achieved after the step fulfils it.
        columns: names of the columns.
        fallen: the task's rule of a fall, from observations ``[n, ds]`` to booleans ``[n]``: a step that ends in a fall
            has reward 0. By default nothing falls.
        max_trajectories: how many trajectories to keep, the first ones; all by default.
        meta: of the store, beside ``"source"``, ``"format"``, ``"columns"`` and ``"dropped_rows"``, the steps of
            episodes shorter than two.
        progress: not used: a table is read before it is known how long it is.

    Returns:
        The trajectories in the order of the file.

    Raises:
        DatasetError: if the file is missing or damaged, a column is missing, a row has more or fewer cells than the
            header, a cell is no finite number, an episode has no name, or its rows do not follow each other; names line
            and column.
        ImportError: for Parquet, if pyarrow is missing.
    """
    path = Path(path)
    check_limits(max_trajectories=max_trajectories)
    table = _parquet if path.suffix == ".parquet" else _csv
    with reading(path, "a table"):
        wanted = list(dict.fromkeys(name for names in columns.numeric.values() for name in names))
        episode, values, lines = table(path, wanted, columns.episode)
        end = _ends(path, columns.episode, episode, lines)
        place = {name: number for number, name in enumerate(wanted)}
        arrays = {key: values[:, [place[name] for name in names]] for key, names in columns.numeric.items()}
        # the action beside an episode's last state is none
        arrays["action"][end] = 0.0
        for key, array in arrays.items():
            _check_finite(path, columns.numeric[key], array, lines)
        terminal = _terminal(path, arrays.pop("terminated", None), end, lines)
        episodes = episodes_of(
            str(path),
            end,
            np.zeros_like(end),
            next_held=False,
            last_is_state=True,
            max_trajectories=max_trajectories,
        )
        source, after = episodes.source, episodes.source + 1
        last = after[episodes.length.cumsum() - 1]
        columns_of_store = {key: _float32(path, columns.numeric[key], array) for key, array in arrays.items()}
        _say_rounded(path, columns.numeric, arrays)
        achieved = columns_of_store["achieved_goal"]
        desired = (
            achieved[last].repeat(episodes.length, axis=0)
            if columns.desired_goal is None
            else columns_of_store["desired_goal"][source]
        )
        rows = {
            "observation": columns_of_store["observation"][source],
            "action": columns_of_store["action"][source],
            "achieved_goal": achieved[source],
            "desired_goal": desired,
            "next_observation": columns_of_store["observation"][after],
            "next_achieved_goal": achieved[after],
        }
        notes = {"source": path.name, "format": "csv", "dropped_rows": episodes.dropped}
        notes["columns"] = {key: list(names) for key, names in columns.numeric.items()}
        return assemble(
            str(path),
            rows,
            episodes.length,
            terminal[last],
            reached=reached,
            fallen=fallen,
            meta={**(meta or {}), **notes},
        )


def _csv(path: Path, wanted: Sequence[str], episode: str) -> tuple[list[str], np.ndarray, Sequence[int]]:
    """Episode names, numbers ``[rows, len(wanted)]`` (empty cells as NaN), and the line that each row ends in."""
    with open_regular(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        header = next(filter(None, reader), [])
        places = _places(path, header, [*wanted, episode])
        names: list[str] = []
        lines: list[int] = []
        cells = _cells(path, reader, header, places[:-1], places[-1], names, lines)
        numbers = np.fromiter(cells, dtype=(np.float64, len(wanted)))
    return names, numbers, lines


def _cells(
    path: Path,
    reader: Any,
    header: Sequence[str],
    places: Sequence[int],
    episode: int,
    names: list[str],
    lines: list[int],
) -> Iterator[tuple[float, ...]]:
    """The numbers of each row; appends its episode to ``names`` and its line to ``lines``."""
    for row in reader:
        if not row:  # a blank line
            continue
        if len(row) != len(header):
            raise DatasetError(
                f"{path}, line {reader.line_num}: expected {len(header)} cells as in the header, found {len(row)}."
            )
        names.append(row[episode])
        lines.append(reader.line_num)
        try:
            yield tuple(_number(row[place]) for place in places)
        except ValueError:
            at = next(place for place in places if not _is_number(row[place]))
            raise DatasetError(
                f"{path}, line {reader.line_num}, column {header[at]!r}: expected a number, found {quoted(row[at])}."
            ) from None


def _number(cell: str) -> float:
    """What a cell holds, NaN if nothing; a ``ValueError`` if it is no number."""
    if "_" in cell:  # Python's own way to write a number, nobody else's
        raise ValueError
    return float(cell) if cell.strip() else np.nan


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path, wanted: Sequence[str], episode: str) -> tuple[list[str], np.ndarray, Sequence[int]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f'{path} needs pyarrow ({error}): pip install "torchrl-smore[parquet]"') from error
    with open_regular(path) as stream:
        file = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
        _places(path, file.schema_arrow.names, [*wanted, episode])
        nbytes, held = 8 * file.metadata.num_rows * len(wanted), check_regular(path)
        if nbytes > max(_SMALL, MAX_RATIO * held):
            raise DatasetError(
                f"{path}: expected at most {MAX_RATIO} bytes for each of {held}, found {nbytes} declared."
            )
        named = file.schema_arrow.field(episode).type
        if pyarrow.types.is_string(named) or pyarrow.types.is_large_string(named):
            # each name once, however many rows it has
            stream.seek(0)
            file = pyarrow.parquet.ParquetFile(stream, read_dictionary=[episode], page_checksum_verification=True)
        table = file.read(columns=[*dict.fromkeys([*wanted, episode])])
    numbers = np.empty((table.num_rows, len(wanted)))
    for number, name in enumerate(wanted):
        kind = table.schema.field(name).type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)):
            raise DatasetError(f"{path}, column {name!r}: expected numbers, found {kind}.")
        # not safe: whole numbers beyond 2**53 are rounded, as those beyond 2**24 are later
        numbers[:, number] = table[name].cast("float64", safe=False).fill_null(np.nan).to_numpy()
    return _names(table[episode]), numbers, range(1, table.num_rows + 1)


def _names(column: Any) -> list[str]:
    """The episode of each row, empty where there is none; rows of one dictionary share its texts."""
    names: list[str] = []
    for chunk in column.chunks:
        if hasattr(chunk, "dictionary"):
            texts = [_text(value) for value in chunk.dictionary.to_pylist()]
            names += ["" if code is None else texts[code] for code in chunk.indices.to_pylist()]
        else:
            names += [_text(value) for value in chunk.to_pylist()]
    return names


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)  # NaN alone differs from itself


def _places(path: Path, header: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where columns are."""
    for name in wanted:
        if header.count(name) > 1:
            raise DatasetError(f"{path}: expected one column {name!r}, found {header.count(name)}.")
        if name not in header:
            near = difflib.get_close_matches(name, header[:_COMPARED], n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DatasetError(f"{path}: expected a column {name!r}, found {quoted(list(header))}.{hint}")
    return [header.index(name) for name in wanted]


def _ends(path: Path, name: str, episode: Sequence[str], lines: Sequence[int]) -> np.ndarray:
    """The last row of each episode, bool, shape ``[rows]``."""
    # not as an array, all of whose names take as much memory as the longest one
    end = np.ones(len(episode), dtype=bool)
    end[:-1] = [first != second for first, second in itertools.pairwise(episode)]
    seen: set[str] = set()
    for row in np.flatnonzero(np.concatenate([[True], end[:-1]])).tolist() if len(episode) else []:
        if not episode[row].strip():
            raise DatasetError(
                f"{path}, line {lines[row]}, column {name!r}: expected the name of an episode, found an empty cell or "
                "NaN: rows without one need not be of one episode."
            )
        if episode[row] in seen:
            raise DatasetError(
                f"{path}, line {lines[row]}: the rows of an episode must follow each other, and those of "
                f"{quoted(episode[row])} begin again; sort the table by episode and time."
            )
        seen.add(episode[row])
    return end


def _check_finite(path: Path, names: Sequence[str], values: np.ndarray, lines: Sequence[int]) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, at = np.argwhere(wrong)[0]
        found = "an empty cell or NaN" if np.isnan(values[row, at]) else f"{values[row, at]:g}"
        raise DatasetError(f"{path}, line {lines[row]}, column {names[at]!r}: expected a number, found {found}.")


def _terminal(path: Path, flags: np.ndarray | None, end: np.ndarray, lines: Sequence[int]) -> np.ndarray:
    """Rows that are terminal states, bool, shape ``[rows]``."""
    if flags is None:
        return np.zeros_like(end)
    values = flags[:, 0]
    wrong = ~np.isin(values, (0.0, 1.0)) | ((values == 1.0) & ~end)
    if wrong.any():
        row = int(wrong.argmax())
        raise DatasetError(
            f"{path}, line {lines[row]}: terminated: expected 0, or 1 in the last row of an episode, found "
            f"{values[row]:g}."
        )
    return values == 1.0


def _say_rounded(path: Path, columns: Mapping[str, Sequence[str]], arrays: Mapping[str, np.ndarray]) -> None:
    """Warns of the columns that hold whole numbers beyond those of float32, whatever type the table gives them."""
    rounded = [
        columns[key][at]
        for key, values in arrays.items()
        for at in np.flatnonzero(((np.abs(values) > EXACT) & (values == np.rint(values))).any(0)).tolist()
    ]
    if rounded:
        say_rounded(f"{path}: columns {quoted(list(dict.fromkeys(rounded)))}")


def _float32(path: Path, names: Sequence[str], values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # an overflow becomes inf and is reported
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        at = int((~np.isfinite(numbers)).any(0).argmax())
        raise DatasetError(f"{path}, column {names[at]!r}: expected numbers that float32 holds.")
    return numbers
