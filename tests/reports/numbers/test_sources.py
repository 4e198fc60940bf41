"""Benchmark folders and files by hand: found, read, or refused in words."""

from __future__ import annotations

import json
import os

import pytest

from torchrl_smore.reports import (
    newest_benchmark,
    read_benchmark,
    read_curves,
    read_files,
    read_results,
    write_curves,
    write_results,
)
from torchrl_smore.reports.numbers.results import ResultsError, RunSet


@pytest.fixture
def curve(make_result):
    return [make_result(steps=steps, value=steps / 100) for steps in (100, 200, 300)]


def benchmark(folder, results, curves=(), grid=None):
    folder.mkdir(parents=True)
    write_results(folder / "results.csv", results)
    if curves:
        write_curves(folder / "curves.csv", curves)
    if grid is not None:
        (folder / "grid.json").write_text(grid)
    return folder


def test_curves_tell_rows_apart_by_updates(tmp_path, curve):
    path = write_curves(tmp_path / "curves.csv", curve)
    assert read_curves(path) == curve
    assert read_curves(path, path) == curve
    with pytest.raises(
        ResultsError, match=r"line 3 repeats .* of line 2, after 200 updates and 100: is it a curve file"
    ):
        read_results(path)
    with pytest.raises(ResultsError, match=r"row 4 repeats FetchReach, SMORe, expert=0\.1, seed 0, .* of row 1\."):
        write_curves(path, [*curve, curve[0]])
    assert read_curves(path) == curve


def test_seeds_of_one_cell_must_have_the_same_number_of_updates(make_result):
    with pytest.raises(
        ResultsError, match=r"expected seeds of one length, .* seed 0 had 1000 updates and seed 1 had 2000"
    ):
        RunSet([make_result(), make_result(seed=1, steps=2000)])
    # another task, method or setting may train longer
    RunSet([make_result(), make_result(task="FetchPush", steps=2000), make_result(setting="no_her", steps=2000)])


def test_a_benchmark_folder_is_read_with_what_it_has(tmp_path, make_result, curve):
    bare = read_benchmark(benchmark(tmp_path / "bare", [make_result()]))
    assert (bare.results, bare.curves, bare.grid) == ((make_result(),), (), {})
    full = read_benchmark(benchmark(tmp_path / "full", [make_result()], curve, json.dumps({"preset": "smoke"})))
    assert (full.curves, full.grid) == (tuple(curve), {"preset": "smoke"})
    assert [path.name for path in full.files] == ["results.csv", "curves.csv", "grid.json"]


def test_the_newest_benchmark_is_the_one_written_last(tmp_path, make_result):
    for age, name in enumerate(("b", "c", "a")):
        folder = benchmark(tmp_path / name, [make_result()])
        os.utime(folder / "results.csv", (1000 - age, 1000 - age))
    (tmp_path / "unfinished").mkdir()
    assert newest_benchmark(tmp_path) == tmp_path / "b"


def test_files_by_hand_are_merged(tmp_path, make_result):
    paths = [write_results(tmp_path / f"{seed}.csv", [make_result(seed=seed)]) for seed in range(2)]
    assert [row.seed for row in read_files(paths).results] == [0, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (newest_benchmark, FileNotFoundError, r"expected a folder with results\.csv below .*, found none"),
        (read_benchmark, FileNotFoundError, r"is no benchmark folder: expected results\.csv in it"),
        (lambda path: read_files([path / "no.csv"]), FileNotFoundError, r"no\.csv"),
        (lambda path: read_files([write_results(path / "a.csv", [])]), ResultsError, r"a\.csv: expected at least one"),
    ],
)
def test_what_is_missing_is_named(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path)


@pytest.mark.parametrize(("grid", "message"), [("{", "is not JSON"), ("[1]", "expected a JSON object, found list")])
def test_a_damaged_grid_is_refused(tmp_path, make_result, grid, message):
    with pytest.raises(ResultsError, match=rf"grid\.json.*{message}"):
        read_benchmark(benchmark(tmp_path / "x", [make_result()], grid=grid))
