"""Tables of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_smore.data import DatasetError, readers
from torchrl_smore.data.readers import TableColumns, csv

COLUMNS = TableColumns(("x", "y", "v"), ("u",), ("x", "y"), "run")
TEXT = """\
run,x,y,v,u,gx,gy,end
a,0,0,0.5,1,1,0,0
a,1,0,0.25,-1,1,0,0
a,1,2,0,,1,0,1
7,5,5,1,0.5,5,6,0
7,5,5.5,1e-1,0,5,6,0
7,5,6,0,9,5,6,0
"""


def reached(achieved, goal):
    return (np.abs(achieved - goal) < 0.1).all(-1)


@pytest.fixture
def read(tmp_path):
    """Reads text as a table."""

    def read(text, columns=COLUMNS, **options):
        path = tmp_path / "log.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return csv.read(path, reached=reached, columns=columns, **options)

    return read


def test_rows_become_transitions_and_the_last_of_an_episode_its_last_state(read):
    data = read(TEXT).data
    assert data["observation"].tolist() == [[0, 0, 0.5], [1, 0, 0.25], [5, 5, 1], [5, 5.5, pytest.approx(0.1)]]
    assert data["next", "observation"][1].tolist() == [1, 2, 0]
    assert data["action"].tolist() == [[1], [-1], [0.5], [0]]
    assert data["achieved_goal"].tolist() == [[0, 0], [1, 0], [5, 5], [5, 5.5]]
    # no desired goals named: what the episode achieves at its end
    assert data["desired_goal"].tolist() == [[1, 2], [1, 2], [5, 6], [5, 6]]
    assert data["next", "reward"][:, 0].tolist() == [0, 1, 0, 1]
    assert data["next", "truncated"][:, 0].tolist() == [False, True, False, True]
    assert data["traj_stop"].tolist() == [2, 2, 4, 4]


def test_goals_and_terminal_states_come_from_columns_that_are_named(read):
    columns = TableColumns(("x", "y", "v"), ("u",), ("x", "y"), "run", ("gx", "gy"), "end")
    store = read(TEXT, columns, meta={"robot": "mine"})
    assert store.data["desired_goal"].tolist() == [[1, 0], [1, 0], [5, 6], [5, 6]]
    assert store.data["next", "reward"][:, 0].tolist() == [1, 0, 0, 1]
    assert store.data["next", "terminated"][:, 0].tolist() == [False, True, False, False]
    assert store.meta["robot"] == "mine"
    assert (store.meta["source"], store.meta["format"], store.meta["dropped_rows"]) == ("log.csv", "csv", 0)
    assert store.meta["columns"]["desired_goal"] == ["gx", "gy"]


def test_short_episodes_are_left_out_and_limits_hold(read):
    assert read(TEXT + "b,1,1,1,1,0,0,0\nb,1,1,1,1,0,0,0\n").meta["dropped_rows"] == 1
    assert read(TEXT, max_trajectories=1).num_trajectories == 1
    with pytest.raises(ValueError, match="max_trajectories must be at least 1"):
        read(TEXT, max_trajectories=0)


def test_quotes_windows_line_ends_and_byte_order_marks_are_read(read):
    text = "\ufeff" + TEXT.replace("\n", "\r\n").replace("a,", '"a",').replace("run", '"run"')
    assert torch.equal(read(text).data["observation"], read(TEXT).data["observation"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a column 'x', found \[\]"),
        ("run,x,y,v,u\n", "expected transitions, found none"),
        (TEXT.replace("x", "X", 1), "expected a column 'x', found .*'X'"),
        (TEXT.replace("run", "runs"), "expected a column 'run', found .*Did you mean 'runs'"),
        (TEXT.replace("gx", "x"), "expected one column 'x', found 2"),
        (TEXT.replace("0.25,-1,", "0.25,"), "line 3: expected 8 cells as in the header, found 7"),
        (TEXT.replace("0.25,-1,", "0.25,-1,1,"), "line 3: expected 8 cells as in the header, found 9"),
        (TEXT.replace("0.25", "fast"), "line 3, column 'v': expected a number, found 'fast'"),
        (TEXT.replace("0.25", ""), "line 3, column 'v': expected a number, found an empty cell or NaN"),
        (TEXT.replace("0.25", "nan"), "line 3, column 'v': expected a number, found an empty cell or NaN"),
        (TEXT.replace("0.25", "-inf"), "line 3, column 'v': expected a number, found -inf"),
        (TEXT.replace("0.25", "1e39"), "column 'v': expected numbers that float32 holds"),
        (TEXT.replace("0.25", "2_5"), "line 3, column 'v': expected a number, found '2_5'"),
        (TEXT.replace("1,0,0.25", " ,0,2_5"), "line 3, column 'v': expected a number, found '2_5'"),
        (TEXT.replace("a,", ","), "line 2, column 'run': expected the name of an episode, found an empty cell or NaN"),
        (TEXT.replace("7,", " ,"), "line 5, column 'run': expected the name of an episode, found an empty cell"),
        (TEXT.replace("0.25,-1,", "0.25,-1\n\n,"), "line 3: expected 8 cells as in the header, found 5"),
        (TEXT.replace("-1,", ",", 1), "line 3, column 'u': expected a number, found an empty cell"),
        (TEXT + "a,1,1,1,1,1,1,0\n", "line 8: .*those of 'a' begin again; sort the table"),
        (TEXT.replace(",", ";"), "expected a column 'x', found"),
        (TEXT.encode("utf-16"), "cannot read .* as a table"),
        (b"\x00\xff" * 50, "cannot read|expected a column"),
        ("run,x,y,v,u\na,1,1,1,1\nb,1,1,1,1\n", "expected an episode of two or more transitions"),
    ],
)
def test_a_table_with_a_fault_is_refused_with_line_and_column(read, text, message):
    with pytest.raises(DatasetError, match=f"log.csv.*{message}|{message}") as caught:
        read(text)
    assert "log.csv" in str(caught.value)


def test_blank_lines_are_passed_over(read):
    text = "\n" + TEXT.replace("7,5,5,", "\n\r\n7,5,5,") + "\n\n"
    assert torch.equal(read(text).data["observation"], read(TEXT).data["observation"])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("0.25,-1,", "column 'v': expected a number, found an empty cell or NaN"),
        ("a,1,0", "the rows of an episode must follow each other"),
        ("0,0\na,1,2", "terminated: expected 0, or 1 in the last row"),
    ],
)
def test_lines_are_those_of_the_file_after_cells_of_several_and_blank_ones(read, cell, message):
    columns = TableColumns(("x", "y", "v"), ("u",), ("x", "y"), "run", terminated="end")
    wrong = {"0.25,-1,": ",-1,", "a,1,0": "c,1,0", "0,0\na,1,2": "0,1\na,1,2"}[cell]
    header, *rows = TEXT.replace(cell, wrong).splitlines()
    # the header is lines 2 and 3, the first row 5 to 7, the second 8
    text = "\n".join(["", f'{header},"no\nte"', "", f'{rows[0]},"a\n\nb"', *(f"{row},0" for row in rows[1:])])
    line = 9 if message.startswith("the rows") else 8
    with pytest.raises(DatasetError, match=rf"log.csv, line {line}\W.*{message}"):
        read(text, columns)


def test_large_whole_numbers_are_named(read, tmp_path, caplog):
    # in a cell that is not read, too large to be whole to a fraction, and the last that float32 holds
    small = TEXT.replace("7,5,6,0,9,", "7,5,6,0,99999999,").replace("a,0,0,0.5,1,", "a,16777216,0,16777216.5,1,")

    def rounded():
        return [said for said in caplog.messages if "rounded" in said]

    read(small)
    assert not rounded()
    read(small.replace("16777216,", "16777217,").replace("-1,", "-123456789,"))
    (said,) = rounded()
    assert said.startswith(f"{tmp_path / 'log.csv'}: columns ['x', 'u']: whole numbers beyond 2**24 are rounded")
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = {"run": [0] * 3, "x": [(1 << 53) + 1, 1, 2], "u": [0.5, 0.5, None]}
    parquet.write_table(pyarrow.table(table), tmp_path / "log.parquet")
    found = csv.read(tmp_path / "log.parquet", reached=reached, columns=TableColumns(("x",), ("u",), ("x",), "run"))
    assert found.data["observation"][0, 0] == 1 << 53
    assert "columns ['x']: whole numbers beyond 2**24 are rounded" in rounded()[1]


@pytest.mark.parametrize(("row", "line"), [("a,1,0,0.25,-1,1,0,1", 3), ("a,1,0,0.25,-1,1,0,2", 3)])
def test_an_end_before_the_last_row_is_refused(read, row, line):
    columns = TableColumns(("x",), ("u",), ("x",), "run", terminated="end")
    with pytest.raises(DatasetError, match=f"line {line}: terminated: expected 0, or 1 in the last row"):
        read(TEXT.replace("a,1,0,0.25,-1,1,0,0", row), columns)


def test_columns_are_named_as_on_a_command_line():
    names = {"observation": ["x", "y"], "action": "u", "achieved_goal": ("x",), "episode": "run", "terminated": ["end"]}
    assert TableColumns.of(names) == TableColumns(("x", "y"), ("u",), ("x",), "run", None, "end")
    for wrong, message in (
        ({**names, "goal": ["x"]}, r"got \['goal'\]"),
        ({"observation": ["x"], "episode": None}, "achieved_goal, action, episode missing"),
        ({**names, "action": [1]}, r"action: expected names, got \[1\]"),
        (["x"], r"expected {observation: \[NAME, ...\], ...}, got \['x'\]"),
        ({**names, "action": []}, "action: expected names"),
        ({**names, "episode": ["a", "b"]}, "episode: expected one name"),
    ):
        with pytest.raises(ValueError, match=message):
            TableColumns.of(wrong)


def test_a_parquet_file_says_the_same(tmp_path, read):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [line.split(",") for line in TEXT.splitlines()]
    table = {name: [row[at] for row in rows[1:]] for at, name in enumerate(rows[0])}
    typed = {k: v if k == "run" else [float(cell) if cell else None for cell in v] for k, v in table.items()}
    parquet.write_table(pyarrow.table(typed), tmp_path / "log.parquet")
    found = readers.read(tmp_path / "log.parquet", reached=reached, columns=COLUMNS)
    expected = read(TEXT)
    assert all(torch.equal(found.data[key], expected.data[key]) for key in expected.data.keys(True, True))
    parquet.write_table(pyarrow.table({**typed, "v": table["run"]}), tmp_path / "text.parquet")
    with pytest.raises(DatasetError, match="column 'v': expected numbers, found string"):
        csv.read(tmp_path / "text.parquet", reached=reached, columns=COLUMNS)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"cannot read .*cut.parquet as a table"):
        csv.read(tmp_path / "cut.parquet", reached=reached, columns=COLUMNS)


@pytest.mark.parametrize(
    ("names", "kind", "line"),
    [
        (["None", "None", None, None], "string", 3),
        (["a", "a", "", ""], "string", 3),
        ([None] * 4, "int64", 1),
        ([1, 1, None, None], "int64", 3),
        ([float("nan")] * 4, "float64", 1),
    ],
)
@pytest.mark.parametrize("dictionary", [False, True])
def test_rows_of_a_parquet_file_that_are_of_no_episode_are_refused(tmp_path, names, kind, line, dictionary):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    run = pyarrow.array(names, pyarrow.type_for_alias(kind))
    table = {"run": run.dictionary_encode() if dictionary else run, "x": [1.0, 2.0, 3.0, 4.0], "u": [1.0] * 4}
    parquet.write_table(pyarrow.table(table), tmp_path / "log.parquet")
    columns = TableColumns(("x",), ("u",), ("x",), "run")
    with pytest.raises(
        DatasetError, match=f"line {line}, column 'run': expected the name of an episode, found an empty"
    ):
        csv.read(tmp_path / "log.parquet", reached=reached, columns=columns)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read .*none.csv as a table"):
        csv.read(tmp_path / "none.csv", reached=reached, columns=COLUMNS)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DatasetError, match="found a folder"):
        csv.read(tmp_path / "folder.csv", reached=reached, columns=COLUMNS)
