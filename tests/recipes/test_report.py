"""The report recipe, run as a user runs it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from torchrl_smore.reports import Result, write_results

RECIPES = Path(__file__).parents[2] / "recipes"
FIELDS = ("1", "FetchReach", "SMORe", "default")


@pytest.fixture
def module(monkeypatch):
    """The names of the recipe's file."""
    monkeypatch.syspath_prepend(RECIPES)
    return runpy.run_path(str(RECIPES / "report.py"))


@pytest.fixture
def files(tmp_path):
    """Two result files of one seed each."""
    for seed in (0, 1):
        row = Result(*FIELDS, seed, "discounted_return_0.99", 30.0 + seed, 1000, 50, "abc", "torch=2")
        write_results(tmp_path / f"{'ab'[seed]}.csv", [row])
    return tmp_path


def test_files_with_commas_between_become_one_report(recipe, files):
    done = recipe("report.py", "results=a.csv,b.csv", "tasks=FetchReach", "out=here", "resamples=10", cwd=files)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == "report: here/index.html\n"
    table = (files / "here" / "tables" / "table_1.md").read_text()
    assert "| FetchReach | ours | 30.50 ± 0.71 (2) |" in table
    assert "Reacher" not in table
    assert table.startswith(
        "<!-- python recipes/report.py results=a.csv,b.csv tasks=FetchReach out=here resamples=10 -->\n"
    )


@pytest.fixture
def files_with_faults(files):
    text = (files / "a.csv").read_text()
    (files / "other.csv").write_text(text.replace("\n1,1,", "\n9,1,"))
    (files / "nan.csv").write_text(text.replace("30.0", "nan"))
    (files / "empty.csv").touch()
    return files


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (None, ["nothing to report", "runs/benchmark", "results=FILE"]),
        ("result=a.csv", ["result=a.csv", "Did you mean results?"]),
        ("results=a.csv,other.csv", ["other.csv, line 2", "expected schema 1, found '9'"]),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(recipe, files_with_faults, option, said):
    before = sorted(files_with_faults.rglob("*"))
    done = recipe("report.py", *([] if option is None else [option]), cwd=files_with_faults)
    assert done.status == 2, done.stdout + done.stderr
    (error,) = done.stderr.splitlines()
    assert all(part in error for part in said), error
    assert sorted(files_with_faults.rglob("*")) == before


# what the recipe makes one line of is checked without a process for each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"benchmark": "nowhere"}, r"nowhere is no benchmark folder: expected results\.csv"),
        ({"results": "no.csv"}, r"no\.csv"),
        ({"results": "a.csv,"}, r"results= takes names with commas between, got 'a\.csv,'"),
        ({"results": "a.csv", "benchmark": "x"}, r"benchmark= or results=, not both"),
        ({"curves": "a.csv"}, r"curves= goes with results="),
        ({"results": "a.csv", "tasks": "FetchPusch"}, r"'FetchPusch'.*Did you mean 'FetchPush'\?"),
        ({"results": "a.csv", "correction": "holms"}, r"'holms'.*Did you mean 'holm'\?"),
        ({"results": "a.csv", "level": 2.0}, r"level must lie in \(0, 1\), got 2"),
        ({"results": "empty.csv"}, r"empty\.csv lacks the column\(s\)"),
        ({"results": "nan.csv"}, r"nan\.csv, line 2: value must be finite, got nan"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_values_are_named(module, files_with_faults, monkeypatch, options, message):
    monkeypatch.chdir(files_with_faults)
    before = sorted(files_with_faults.rglob("*"))
    with pytest.raises((ValueError, OSError), match=message) as caught:
        module["main"](module["Config"](**options))
    assert "\n" not in str(caught.value)
    assert sorted(files_with_faults.rglob("*")) == before


def test_lists_are_quoted_for_hydra_and_other_options_are_not(module):
    quoted = module["quoted"]
    assert quoted("results=a.csv,b's.csv") == r"results='a.csv,b\'s.csv'"
    for argument in ('results="a,b"', "out=a,b", "results=", "--help", "tasks"):
        assert quoted(argument) == argument
