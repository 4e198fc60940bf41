from __future__ import annotations

import json

import pytest

from torchrl_smore.reports import Source, read_benchmark, write_table_page
from torchrl_smore.reports.numbers import ResultsError, RunSet, write_curves, write_results
from torchrl_smore.reports.paper import max_return, summarize
from torchrl_smore.reports.paper.summary import summary_notes

COMMAND = "python recipes/report.py benchmark=x page=table1.md"
MIXED = "expert=30_episodes;mix=m-e"


@pytest.fixture
def source(make_result):
    """Three seeds of SMORe and its control on FetchReach, two of SMORe on a locomotion task, and what is left out."""
    reach = [
        make_result(method=method, seed=seed, value=value, steps=20_000)
        for method, values in (("SMORe", (35.55, 37.525, 39.5)), ("hindsight_bc", (31.6, 31.6, 31.6)))
        for seed, value in enumerate(values, 100)
    ]
    cheetah = [
        make_result(
            **{"task": "CheetahTgtVel-m-e", "setting": MIXED, "seed": seed, "steps": 40_000},
            **{"metric": metric, "value": value},
        )
        for seed in (100, 101)
        for metric, value in (("discounted_return_0.99", 50.0), ("discounted_return_0.999", 140.0 + 20 * (seed - 100)))
    ]
    other = [make_result(setting="expert=0.05", value=1.0), make_result(task="PointReach", value=1.0)]
    curves = [make_result(method=m, seed=100, steps=s, value=30.0) for m in ("SMORe", "hindsight_bc") for s in (1, 2)]
    shared = {"steps": 20_000, "batch_size": 256, "num_trajectories": 1000, "seeds": [100, 101, 102]}
    reach_data, parts = {"dataset": "reach"}, {"reach": [(100, 0.9, 35.0), (900, 0.1, 4.0)], "m-e": [(30, 0.8, 250.5)]}
    grid = {
        "command": "from /a/place/of/one's own",
        "commit": "abc",
        "differs": {"FetchReach": "scripted expert"},
        "datasets": {
            name: [
                {"behaviour": whose, "num_trajectories": n, "return_over_max": share, "discounted_return": value}
                for whose, (n, share, value) in zip(("expert", "random"), counted)
            ]
            for name, counted in parts.items()
        },
        "cells": [
            {"task": "FetchReach", "method": "SMORe", "setting": "expert=0.1", **shared, **reach_data},
            {"task": "FetchReach", "method": "hindsight_bc", "setting": "expert=0.1", **shared, **reach_data},
            {"task": "FetchReach", "method": "SMORe", "setting": "expert=0.05", **shared, "dataset": "m-e"},
            {
                **{"task": "CheetahTgtVel-m-e", "method": "SMORe", "setting": MIXED, **shared},
                **{"num_trajectories": 1030, "dataset": "m-e"},
            },
        ],
    }
    return Source((*reach, *cheetah, *other), tuple(curves), (), grid)


@pytest.fixture
def page(source, tmp_path):
    return write_table_page(source, tmp_path / "table1.md", command=COMMAND, resamples=20)


def cells(page, start):
    (line,) = [line for line in page.read_text().splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.usefixtures("undrawn")
def test_claims_are_judged_by_the_test_that_is_asked_for(source, tmp_path, monkeypatch):
    from torchrl_smore.reports import SignificanceTest, table_page

    asked, evaluate = [], table_page.evaluate_claims
    monkeypatch.setattr(table_page, "evaluate_claims", lambda *runs, **how: asked.append(how) or evaluate(*runs, **how))
    test = SignificanceTest("greater", "none", 0.1)
    write_table_page(source, tmp_path / "table1.md", command=COMMAND, test=test, min_seeds=2, resamples=20)
    assert asked == [{"tasks": None, "min_seeds": 2, "test": test}]


@pytest.mark.usefixtures("undrawn")
def test_ours_stand_beside_the_papers_and_the_control(page):
    assert cells(page, "| task | unit |") == [
        *("task", "unit", "", "SMORe", "control (hindsight BC)", "the data: expert, all", "differs from the paper in")
    ]
    # 35.55, 37.525 and 39.5 of (1 - 0.99^50) / 0.01 = 39.4994; 31.6 the same three times
    assert cells(page, "| FetchReach | return")[1:5] == [
        *("return / largest at 0.99", "ours", "**0.950 ± 0.050** (3)", "0.800 ± 0.000 (3)")
    ]
    lines = page.read_text().splitlines()
    below = lines[next(i for i, line in enumerate(lines) if line.startswith("| FetchReach | return")) + 1]
    # Table 1 prints 35.08 ± 0.54
    assert below == "|  |  | paper | 0.888 ± 0.014 | – |  |  |"
    assert cells(page, "| control (hindsight BC) |")[3:5] == ["1 task", "FetchReach"]


@pytest.mark.usefixtures("undrawn")
def test_the_short_table_has_the_best_of_the_others_and_what_bounds_a_policy(source, make_result, tmp_path):
    others = [
        make_result(method=m, value=v, steps=20_000) for m, v in (("GCSL", 11.85), ("GC-IQL", 35.55), ("AM", 3.95))
    ]
    more = Source((*source.results, *others), source.curves, (), source.grid)
    page = write_table_page(more, tmp_path / "c.md", command=COMMAND, resamples=5)
    assert cells(page, "| FetchReach | 0") == [
        *("FetchReach", "0.950 ± 0.050", "0.800 ± 0.000", "GC-IQL 0.900", "0.888 ± 0.014", "0.900")
    ]
    assert cells(page, "| CheetahTgtVel-m-e | 1") == [
        *("CheetahTgtVel-m-e", "150.0 ± 14.1", "–", "–", "136.7 ± 10.6", "250.5")
    ]


@pytest.mark.usefixtures("undrawn")
def test_locomotion_is_the_return_at_0_999_beside_the_number_as_printed(page):
    assert cells(page, "| CheetahTgtVel-m-e | return")[1:5] == ["return at 0.999", "ours", "**150.0 ± 14.1** (2)", "–"]


@pytest.mark.usefixtures("undrawn")
def test_what_data_expert_and_budget_differ_in_is_said_in_the_line(page):
    assert cells(page, "| FetchReach | return")[-1] == (
        "scripted expert; 1,000 trajectories, not 40,000; 20,000 updates, not 400,000; batch 256, not 512"
    )
    assert cells(page, "| CheetahTgtVel-m-e | return")[-1] == "40,000 updates, not 1,000,000; batch 256, not 512"


@pytest.mark.usefixtures("undrawn")
def test_what_the_data_return_stands_in_the_line_in_its_unit(page, source, tmp_path):
    # (100 x 0.9 + 900 x 0.1) / 1,000; the data of another setting are not these
    assert cells(page, "| FetchReach | return")[-2] == "0.900, 0.180"
    assert cells(page, "| CheetahTgtVel-m-e | return")[-2] == "250.5, 250.5"
    unknown = Source(source.results, source.curves, (), {**source.grid, "datasets": {}})
    assert (
        cells(write_table_page(unknown, tmp_path / "b.md", command=COMMAND, resamples=5), "| FetchReach | return")[-2]
        == "–"
    )


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_named_and_left_out(page):
    text = page.read_text()
    # 12 tasks by 7 methods of Table 1, 3 of Table 15 and the control
    assert "**Incomplete**: 3 of 132 cells have runs." in text
    assert "No run yet of GoFAR, WGCSL, GCSL, CRL, AM, GC-IQL, GC-SQL, GC-EQL, GC-XQL." in text
    assert "No run yet on Reacher, SawyerReach, SawyerDoor, FetchPick," in text
    assert "Seeds so far: 2 of 3: SMORe on CheetahTgtVel-m-e." in text
    assert "| Reacher |" not in text
    assert "PointReach" not in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((("expert=0.1", 10), ("expert=0.05", 3)), " 5 of 10 in each cell."),
        ((("expert=0.1", 5), ("expert=0.05", 10)), ""),
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_seeds_that_another_setting_asks_for_are_not_the_tables(make_result, tmp_path, asked, told, turn):
    rows = [make_result(seed=seed) for seed in range(5)]
    shared = {"task": "FetchReach", "method": "SMORe"}
    cells = [{**shared, "setting": setting, "seeds": list(range(count))} for setting, count in asked[::turn]]
    page = write_table_page(Source(tuple(rows), grid={"cells": cells}), tmp_path / "a.md", command="", resamples=5)
    (extent,) = [line for line in page.read_text().splitlines() if line.startswith("**Incomplete**")]
    assert extent.partition("Seeds so far:")[2] == told


@pytest.mark.usefixtures("undrawn")
def test_cells_with_few_seeds_are_named_by_their_number_and_method(make_result, tmp_path):
    counts = {
        **{("FetchReach", "SMORe"): 2, ("FetchPush", "SMORe"): 2, ("FetchPush", "GCSL"): 2},
        **{("FetchPick", "hindsight_bc"): 1, ("FetchReach", "GCSL"): 3},
    }
    rows = [
        make_result(task=task, method=method, seed=seed) for (task, method), n in counts.items() for seed in range(n)
    ]
    cells = [{"task": task, "method": method, "setting": "expert=0.1", "seeds": [0, 1, 2]} for task, method in counts]
    page = write_table_page(Source(tuple(rows), grid={"cells": cells}), tmp_path / "a.md", command="", resamples=5)
    (extent,) = [line for line in page.read_text().splitlines() if line.startswith("**Incomplete**")]
    said = extent.partition("Seeds so far: ")[2]
    assert sorted(said.removesuffix(".").split(". ")) == [
        "1 of 3: control (hindsight BC) on FetchPick",
        "2 of 3: SMORe on FetchReach, FetchPush; GCSL on FetchPush",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_whole_table_says_so(make_result, tmp_path):
    from torchrl_smore.reports.paper import HORIZONS, main_setting
    from torchrl_smore.reports.table_page import CONTROL, MORE_METHODS

    methods = ("SMORe", CONTROL, "GoFAR", "WGCSL", "GCSL", "CRL", "AM", "GC-IQL", *MORE_METHODS)
    rows = [
        make_result(task=task, method=method, setting=main_setting(task), metric=metric)
        for task in HORIZONS
        for method in methods
        for metric in ("discounted_return_0.99", "discounted_return_0.999")
    ]
    text = write_table_page(Source(tuple(rows)), tmp_path / "a.md", command=COMMAND, resamples=5).read_text()
    assert "All 132 cells of 12 tasks and 11 methods have their runs." in text
    assert "Incomplete" not in text


def test_probability_of_improvement_and_curves_are_on_the_page(page):
    text = page.read_text()
    # every seed of SMORe is above every one of the control
    assert "1.000 [1.000, 1.000]" in text
    for name in ("learning_curves", "improvement"):
        assert f"(table1/{name}.png)" in text
        assert (page.parent / "table1" / f"{name}.png").stat().st_size > 5000
    assert "| C1 |" in text


def test_improvement_on_a_locomotion_task_is_by_the_return_of_its_line(make_result):
    """At 0.99 both seeds of the control are above SMORe's, at 0.999 one of them equals the larger of SMORe's."""
    values = {"SMORe": ((50.0, 140.0), (50.0, 160.0)), "hindsight_bc": ((60.0, 130.0), (60.0, 160.0))}
    rows = [
        make_result(
            **{"task": "CheetahTgtVel-m-e", "setting": MIXED, "method": method, "seed": seed},
            **{"metric": metric, "value": value},
        )
        for method, seeds in values.items()
        for seed, pair in enumerate(seeds)
        for metric, value in zip(("discounted_return_0.99", "discounted_return_0.999"), pair)
    ]
    summary = summarize(RunSet(rows), resamples=5)
    # of the four pairs SMORe wins two, loses one, and ties one
    assert summary.improvement["hindsight_bc"].value == pytest.approx(0.625)
    assert summary.rival_tasks == {"hindsight_bc": ["CheetahTgtVel-m-e"]}


def test_a_method_just_begun_does_not_leave_one_task_for_the_interquartile_means(make_result):
    """Means by hand: of two tasks with 20 and 10 of 39.5 each, the half in the middle is 15 of 39.5."""
    returns = {
        ("SMORe", "FetchReach"): 20.0,
        ("SMORe", "FetchPush"): 10.0,
        ("SMORe", "FetchPick"): 5.0,
        ("hindsight_bc", "FetchReach"): 10.0,
        ("hindsight_bc", "FetchPush"): 20.0,
        ("GoFAR", "FetchPick"): 30.0,
    }
    rows = [
        make_result(method=method, task=task, seed=seed, setting="expert=0.1", value=value)
        for (method, task), value in returns.items()
        for seed in range(4)
    ]
    summary = summarize(RunSet(rows), resamples=5)
    assert sorted(summary.tasks) == ["FetchPush", "FetchReach"]
    assert {name: each.value for name, each in summary.iqm.items()} == {
        "SMORe": pytest.approx(15.0 / max_return("FetchPush", 0.99)),
        "hindsight_bc": pytest.approx(15.0 / max_return("FetchPush", 0.99)),
    }
    (note, *_) = summary_notes(summary, min_seeds=1)
    assert "every method has run, but for GoFAR with fewer than half of the tasks (" in note
    assert summary.rival_tasks["GoFAR"] == ["FetchPick"]


def test_the_folder_beside_it_gives_the_same_page_and_tells_no_place(page, tmp_path):
    assert "own" not in json.loads((tmp_path / "table1" / "grid.json").read_text())
    assert "/a/place" not in (tmp_path / "table1" / "grid.json").read_text()
    first = page.read_text()
    again = write_table_page(read_benchmark(tmp_path / "table1"), page, command=COMMAND, resamples=20)
    assert again.read_text() == first


@pytest.mark.usefixtures("undrawn")
def test_claims_of_other_tables_are_judged_by_the_runs_of_their_settings(source, make_result, tmp_path):
    others = [
        make_result(task="FetchReach", setting=f"beta={beta}", seed=seed, value=30.0, steps=20_000)
        for beta in (0.7, 0.8, 0.9)
        for seed in range(100, 103)
    ]
    more = Source((*source.results, *others), source.curves, (), source.grid)

    def missing(claim, page):
        text = cells(page, f"| {claim} |")[3]
        return "FetchReach" in text

    page = write_table_page(source, tmp_path / "a.md", command=COMMAND, min_seeds=3, resamples=5)
    assert missing("C7", page)
    page = write_table_page(more, tmp_path / "b.md", command=COMMAND, min_seeds=3, resamples=5)
    assert not missing("C7", page)
    # and the table is that of its own settings
    assert cells(page, "| FetchReach | return")[3] == "**0.950 ± 0.050** (3)"
    first = page.read_text()
    again = write_table_page(read_benchmark(tmp_path / "b"), page, command=COMMAND, min_seeds=3, resamples=5)
    assert again.read_text() == first


@pytest.mark.usefixtures("undrawn")
def test_the_folder_of_a_benchmark_is_not_that_of_its_page(source, tmp_path):
    folder = tmp_path / "table1"
    folder.mkdir()
    write_results(folder / "results.csv", source.results)
    write_curves(folder / "curves.csv", source.curves)
    (folder / "grid.json").write_text(json.dumps({**source.grid, "registry": []}))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"table1 is the folder of the benchmark itself, whose tables would lose"):
        write_table_page(read_benchmark(folder), tmp_path / "table1.md", command=COMMAND, resamples=5)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "table1.md").exists()


def test_nothing_is_written_of_what_cannot_be_a_page(source, make_result, tmp_path):
    with pytest.raises(ValueError, match=r"ends with \.md, got table1\.html"):
        write_table_page(source, tmp_path / "table1.html", command=COMMAND)
    with pytest.raises(ValueError, match="no result is of a task of Table 1"):
        write_table_page(Source((make_result(task="PointReach"),)), tmp_path / "a.md", command=COMMAND)
    longer = make_result(seed=103, steps=1)
    with pytest.raises(ResultsError, match="expected seeds of one length"):
        write_table_page(Source((*source.results, longer)), tmp_path / "a.md", command=COMMAND)
    assert not list(tmp_path.iterdir())
