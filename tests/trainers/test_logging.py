"""A metrics file that can be read at any moment."""

from __future__ import annotations

import csv
import math

from torchrl_smore.trainers import MetricsFile


def read(path):
    """The rows, after checking that every line has as many fields as the header."""
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert {len(line) for line in lines} == {len(lines[0])}
    return [{key: value for key, value in zip(lines[0], line) if value} for line in lines[1:]]


def test_new_columns_leave_gaps_and_the_file_can_be_read_after_every_row(tmp_path):
    path = tmp_path / "run" / "metrics.csv"
    metrics = MetricsFile(path)
    assert read(path) == []
    metrics.write(10, {"loss": 0.5})
    assert read(path) == [{"step": "10", "loss": "0.5"}]
    metrics.write(20, {"eval/success_last": 1.0})
    metrics.write(30, {"loss": 0.25})
    metrics.write(30, {"eval/success_last": 0.0, "eval/x": 2.0})
    assert read(path) == [
        {"step": "10", "loss": "0.5"},
        {"step": "20", "eval/success_last": "1"},
        {"step": "30", "loss": "0.25"},
        {"step": "30", "eval/success_last": "0", "eval/x": "2"},
    ]
    assert path.read_text().splitlines()[0] == "step,loss,eval/success_last,eval/x"
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_drops_what_it_will_repeat_and_goes_on(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in (10, 20, 30):
        first.write(step, {"loss": step / 10})
    first.write(30, {"eval": 1.0})
    again = MetricsFile(path, last_step=20)
    assert [row["step"] for row in read(path)] == ["10", "20"]
    again.write(30, {"loss": 9.0})
    again.write(40, {"new": 1.0})
    assert [row["step"] for row in read(path)] == ["10", "20", "30", "40"]
    assert read(path)[2]["loss"] == "9"


def test_a_new_run_starts_anew_and_a_resumed_one_needs_no_file(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsFile(path).write(10, {"loss": 1.0})
    MetricsFile(path)
    assert read(path) == []
    MetricsFile(tmp_path / "other.csv", last_step=5).write(6, {"loss": 1.0})
    assert read(tmp_path / "other.csv") == [{"step": "6", "loss": "1"}]


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    metrics.write(100, {"a": 1.0, "b": 2.0})
    with path.open("a", newline="") as file:
        file.write("12")  # of 1200,3,4
    MetricsFile(path, last_step=1000).write(200, {"a": 3.0, "b": 4.0})
    assert [row["step"] for row in read(path)] == ["100", "200"]


def test_values_that_are_not_finite_are_written_as_such(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsFile(path).write(1, {"a": math.nan, "b": -math.inf, "c": 1 / 3})
    row = read(path)[0]
    assert math.isnan(float(row["a"]))
    assert float(row["b"]) == -math.inf
    assert float(row["c"]) == round(1 / 3, 8)
