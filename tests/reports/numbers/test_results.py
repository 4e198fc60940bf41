"""Result files: what is read, what is refused, and what counts once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrl_smore.reports import (
    Cell,
    Result,
    ResultsError,
    RunSet,
    canonical_setting,
    merge_results,
    read_results,
    write_results,
)

HEADER = "schema,table,task,method,setting,seed,metric,value,steps,episodes,commit,versions,note"
LINE = "1,1,FetchReach,SMORe,default,0,discounted_return_0.99,35.5,1000,50,abc,torch=2.13.0,"


@pytest.fixture
def write(tmp_path):
    def write_lines(*lines, name="results.csv"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write_lines


def test_a_file_is_read_field_by_field(write, make_result):
    assert read_results(write(HEADER, LINE)) == [make_result()]


def test_results_survive_the_file_to_the_last_bit_and_leave_nothing_beside_it(tmp_path, make_result):
    results = [make_result(seed=i, value=value, note='a "b", c\nd') for i, value in enumerate([0.1, 1 / 3, 1e-300, -2])]
    path = write_results(tmp_path / "results.csv", results)
    assert read_results(path) == results
    assert path.read_text().splitlines()[0] == HEADER
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_numbers_of_numpy_become_plain_ones_and_survive_the_file(tmp_path, make_result):
    result = make_result(seed=np.int64(3), value=np.float32(0.1))
    assert (type(result.seed), type(result.value)) == (int, float)
    assert result.value == float(np.float32(0.1)) != 0.1
    assert read_results(write_results(tmp_path / "r.csv", [result])) == [result]


def test_who_reads_while_it_is_written_sees_the_old_file_whole(tmp_path, make_result):
    path = write_results(tmp_path / "results.csv", [make_result()])
    with path.open() as reader:
        write_results(path, [make_result(value=1.0), make_result(seed=1, value=2.0)])
        assert "35.5" in reader.read()
    assert len(read_results(path)) == 2


def test_a_failed_write_keeps_the_old_file(tmp_path, make_result):
    path = write_results(tmp_path / "results.csv", [make_result()])
    with pytest.raises(ResultsError, match=r"row 2 repeats FetchReach, SMORe, expert=0.1, seed 0.* of row 1"):
        write_results(path, [make_result(), make_result(value=1.0)])
    with pytest.raises(UnicodeEncodeError):
        write_results(path, [make_result(value=1.0), make_result(seed=1, note="\ud800")])
    assert read_results(path) == [make_result()]
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def replaced(number, text):
    fields = LINE.split(",")
    fields[number] = text
    return ",".join(fields)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER, replaced(0, "2")], r"line 2: expected schema 1, found '2'"),
        ([HEADER, LINE, replaced(7, "good")], r"line 3: value must be a number, found 'good'"),
        ([HEADER, replaced(7, "")], r"value must be a number, found ''"),
        ([HEADER, replaced(7, "nan")], r"line 2: value must be finite, got nan"),
        ([HEADER, replaced(5, "0.5")], r"seed must be a whole number, found '0.5'"),
        ([HEADER, replaced(5, "-1")], r"seed must be at least 0, got -1"),
        ([HEADER, replaced(2, " ")], r"task must not be empty"),
        ([HEADER, LINE + ",x"], r"line 2: expected 13 fields, found 14"),
        ([HEADER, LINE[:40]], r"line 2: expected 13 fields, found 7"),
        ([HEADER.replace(",seed", ""), LINE], r"lacks the column\(s\) seed: found schema, table"),
        ([HEADER + ",extra", LINE + ",1"], r"unknown column\(s\) extra: expected schema"),
        (["table,schema" + HEADER[12:], LINE], r"expected the columns in the order schema, table"),
        ([""], r"lacks the column\(s\) schema, table.*: found nothing"),
        ([HEADER, LINE, replaced(7, "1")], r"line 3 repeats FetchReach, SMORe, expert=0.1, seed 0, .* of line 2"),
        ([HEADER, LINE, replaced(1, "12")], r"line 3 repeats"),
        ([HEADER, LINE, replaced(4, "expert=0.100")], r"line 3 repeats"),
        ([HEADER, LINE, replaced(3, "smore")], r"line 3 repeats"),
    ],
)
def test_faults_are_named_with_file_and_place(write, lines, message):
    path = write(*lines)
    with pytest.raises(ResultsError, match=message) as error:
        read_results(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="not a CSV file in UTF-8"):
        read_results(path)


def test_merging_counts_a_run_once_wherever_it_is_listed(write, make_result):
    first = write(HEADER, LINE, name="a.csv")
    second = write(HEADER, replaced(1, "12"), replaced(5, "1"), name="b.csv")
    assert read_results(first, second, first) == [make_result(), make_result(seed=1)]


@pytest.mark.parametrize("field", ["value", "steps", "episodes"])
def test_two_different_runs_of_one_seed_are_a_conflict(make_result, field):
    with pytest.raises(ResultsError, match=rf"seed 0, .*: {field} .*\(commit abc\) and 7.*\(commit def\)"):
        merge_results([make_result()], [make_result(commit="def", **{field: 7})])


def test_a_sample_has_the_values_in_the_order_of_seeds(make_result):
    runs = RunSet([make_result(seed=2, value=1.0), make_result(seed=0, value=4.0), make_result(seed=1, value=4.0)])
    sample = runs.sample(Cell("12", "FetchReach", "SMORe", "default", "discounted_return"))
    np.testing.assert_array_equal(sample.values, [4.0, 4.0, 1.0])
    assert (sample.mean, sample.std, sample.num_seeds) == (3.0, pytest.approx(math.sqrt(3)), 3)


@pytest.mark.parametrize(
    ("metric", "own", "discount"),
    [
        ("discounted_return", "discounted_return_0.98", 0.98),
        ("discounted_return", "discounted_return_0.99", 0.99),
        ("success_rate", "success_last", 0.99),
        ("final_distance", "final_distance", 0.99),
    ],
)
def test_the_papers_metrics_are_found_under_our_names(make_result, metric, own, discount):
    runs = RunSet([make_result(metric=own)])
    cell = Cell("1", "FetchReach", "SMORe", "expert=0.10", metric)
    assert runs.sample(cell, discount=discount).mean == 35.5
    assert runs.sample(cell._replace(task="FetchPush"), discount=discount) is None
    assert runs.sample(cell._replace(setting="expert=0.05"), discount=discount) is None


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("default", "expert=0.1"),
        ("expert=0.10", "expert=0.1"),
        ("beta=0.5", "expert=0.1"),
        # the default of some methods and presets, not of all
        ("expert=.1; her_ratio=0.80", "expert=0.1;her_ratio=0.8"),
        ("no_her", "expert=0.1;no_her"),
        ("noise=1.0;expert=0.05", "expert=0.05;noise=1"),
        ("expert=0.0", "expert=0"),
        ("learning_rate=0.00001", "expert=0.1;learning_rate=1e-05"),
        ("expectile=0.70000001", "expectile=0.70000001;expert=0.1"),
        ("steps=1e6", "expert=0.1;steps=1000000"),
        ("weight_clip=inf", "expert=0.1;weight_clip=inf"),
        # a name that looks like a number stays; and who acted in data of one's own is not stated
        ("default;data=007", "data=007"),
        ("data=a.pkl;expert=0.10;beta=0.70", "beta=0.7;data=a.pkl;expert=0.1"),
        ("expert=30_episodes;mix=m-e", "expert=30_episodes;mix=m-e"),
    ],
)
def test_equal_settings_have_one_spelling(setting, expected):
    assert canonical_setting(setting) == expected
    assert canonical_setting(expected) == expected


@given(st.text(alphabet="ab=;.01 ", max_size=12))
def test_the_canonical_setting_is_its_own(setting):
    assert canonical_setting(canonical_setting(setting)) == canonical_setting(setting)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("smore", "SMORe"), ("gc_iql", "GC-IQL"), ("gciql", "GC-IQL"), ("gofar", "GoFAR"), ("my_method", "my_method")],
)
def test_the_papers_methods_are_understood_in_any_spelling(make_result, name, expected):
    assert make_result(method=name).method == expected


def test_a_seed_must_be_whole(make_result):
    with pytest.raises(TypeError, match="integer"):
        make_result(seed=0.5)
    assert isinstance(make_result(), Result)
