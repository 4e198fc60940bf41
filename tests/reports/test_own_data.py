"""Runs on data of one's own: their lines in a report, and what is not held against them."""

from __future__ import annotations

import pytest

from torchrl_smore.reports import RunSet, Source, write_report
from torchrl_smore.reports.figures.returns import mean_curves
from torchrl_smore.reports.own_data import own_lines, own_tables
from torchrl_smore.reports.paper import summarize

COMMAND = "python recipes/report.py"
# 1 + 0.99 + ... over 50 steps
MOST = sum(0.99**step for step in range(50))
GRID = {
    "cells": [
        {
            **{"task": "FetchReach", "setting": "data=mine", "dataset": "mine_0a1b2c3d"},
            "data": {"dataset": "/data/mine", "sha256": "0a1b"},
        },
        {"task": "FetchReach", "setting": "expert=0.1", "dataset": "FetchReach_expert100"},
    ],
    "datasets": {
        "mine_0a1b2c3d": [
            {"behaviour": "expert", "num_trajectories": 10, "discounted_return": 36.0, "return_over_max": 0.9},
            {"behaviour": "random", "num_trajectories": 30, "discounted_return": 4.0, "return_over_max": 0.1},
        ],
        "FetchReach_expert100": [{"behaviour": "expert", "num_trajectories": 1, "return_over_max": 1.0}],
    },
}


@pytest.fixture
def runs(make_result):
    """Two methods on data of one's own, three seeds each, in three settings."""

    def make(setting="data=mine", **values):
        names = {"SMORe": 0.8, "hindsight_bc": 0.6, **values}
        return [
            make_result(method=method, setting=setting, seed=seed, metric=metric, value=(mean + seed / 10) * factor)
            for method, mean in names.items()
            for seed in range(3)
            for metric, factor in (("return_over_max", 1.0), ("discounted_return_0.99", MOST), ("final_distance", 0.1))
        ]

    return make


def test_data_of_ones_own_are_lines_that_the_paper_has_not(runs, make_result):
    rows = [*runs("data=mine"), *runs("data=mine;beta=0.7;expert=0.2;noise=0.5"), make_result()]
    found = {(row.task, row.setting) for row in own_lines(Source(tuple(rows))).results}
    assert found == {
        ("FetchReach, data=mine", "default"),
        ("FetchReach, data=mine;expert=0.2;noise=0.5", "beta=0.7"),
        ("FetchReach", "default"),
    }


def test_every_method_stands_in_one_table_with_what_the_data_return(runs, make_result):
    rows = (*runs(), *runs("data=mine;beta=0.7"), make_result(method="GoFAR"))
    tables = own_tables(own_lines(Source(rows, grid=GRID)), COMMAND)
    share, returned, success, distance = tables
    assert share.columns == ("SMORe", "hindsight_bc")
    assert [row.task for row in share.rows] == ["FetchReach, data=mine", "FetchReach, data=mine, beta=0.7"]
    smore, control = share.rows[0].entries
    # 0.8, 0.9 and 1.0; 0.6, 0.7 and 0.8
    assert (smore.sample.mean, smore.sample.std, smore.best) == (pytest.approx(0.9), pytest.approx(0.1), True)
    assert (control.sample.mean, control.best) == (pytest.approx(0.7), False)
    assert returned.rows[0].entries[0].sample.mean == pytest.approx(0.9 * MOST)
    assert success.rows[0].entries == (None, None)
    assert [entry.best for entry in distance.rows[0].entries] == [False, True]
    # (10 * 0.9 + 30 * 0.1) / 40
    told = (
        "FetchReach, data=mine: 40 trajectories, which return 0.300 of the largest possible (10 expert 0.900, 30 random"
    )
    assert [note for note in share.notes if note.startswith(told)]
    assert not any("FetchReach_expert100" in note for note in share.notes)
    assert own_tables(own_lines(Source((make_result(),))), COMMAND) == []


def test_locomotion_on_them_is_over_the_maximum_at_the_same_discount_and_judged_at_its_own(make_result):
    metrics = {"discounted_return_0.99": 50.0, "discounted_return_0.999": 300.0, "return_over_max": 0.47}
    rows = [make_result(task="AntTgtVel-m-e", setting="data=x", metric=m, value=v) for m, v in metrics.items()]
    source = own_lines(Source(tuple(rows)))
    share, *_ = own_tables(source, COMMAND)
    # 100 * (1 - 0.99^1000) is 100 but for 0.004
    assert share.rows[0].entries[0].sample.mean == pytest.approx(0.5, abs=1e-4)
    summary = summarize(RunSet(source.results), resamples=10)
    assert summary.iqm["SMORe"].value == pytest.approx(0.5, abs=1e-4)
    (line,) = mean_curves(source.results).values()
    assert line["SMORe"][1].tolist() == [300.0]
    # of a task that is not the paper's nobody knows the longest episode
    rows = [make_result(task="my:TASK", setting="data=x", metric=m, value=v) for m, v in metrics.items()]
    share, *_ = own_tables(own_lines(Source(tuple(rows))), COMMAND)
    assert share.rows[0].entries[0].sample.mean == 0.47


def test_a_report_of_them_has_statistics_and_curves_and_no_claim(runs, make_result, tmp_path):
    rows = tuple(runs())
    page = write_report(Source(rows, rows, grid=GRID), tmp_path, command=COMMAND, resamples=20, min_seeds=1)
    assert "data of one's own" in page.read_text().replace("&#x27;", "'")
    statistics = (tmp_path / "statistics.md").read_text()
    assert "| SMORe | 0.9" in statistics
    assert "on the data of one's own. " in statistics
    assert "Learning curves, data of one's own" in (tmp_path / "report.md").read_text()
    verdicts = {line.split(" | ")[2] for line in (tmp_path / "claims.md").read_text().splitlines() if "| C" in line}
    assert verdicts == {"not enough runs"}
    table = (tmp_path / "tables" / "table_1.md").read_text()
    assert "| FetchReach | ours | – |" in table
    assert "| FetchReach, data=mine | ours | " in table
    # of two kinds of data each is told; and a task chosen by name brings its lines
    both = Source((*rows, make_result()), (), grid=GRID)
    write_report(both, tmp_path / "b", command=COMMAND, resamples=20, tasks=["FetchReach"])
    assert "Table 1, or of one's own where a task's name says so" in (tmp_path / "b" / "statistics.md").read_text()
    assert (tmp_path / "b" / "tables" / "table_own_data.md").is_file()
