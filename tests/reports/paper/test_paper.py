"""The paper's numbers as data."""

from __future__ import annotations

from collections import Counter

import pytest

from torchrl_smore.reports import Cell, Paper, max_return


@pytest.fixture(scope="module")
def paper():
    return Paper()


def test_every_table_has_as_many_cells_as_in_print(paper):
    # Table 2 has 42 besides its averages
    expected = {1: 84, 2: 42, 6: 30, 7: 30, 8: 30, 9: 16, 10: 56, 11: 56, 12: 18, 13: 30, 14: 24, 15: 30, 16: 18}
    assert Counter(int(cell.table) for cell in paper.cells) == expected
    assert {int(number): len(paper.table(number)) for number in paper.tables} == expected


def test_cells_are_found_by_what_they_are_of(paper):
    cell = Cell("1", "FetchReach", "SMORe", "default", "discounted_return")
    sample = paper.sample(cell)
    assert (sample.mean, sample.std, sample.num_seeds, sample.values) == (35.08, 0.54, 10, None)
    # Table 16 prints another number for the same words
    assert paper.sample(cell._replace(table="16", task="SawyerDoor")).mean == 20.28
    assert paper.sample(cell._replace(task="SawyerDoor")).mean == 31.48
    assert paper.sample(cell._replace(task="Average")) is None


def test_two_cells_are_missing_and_ten_have_a_star(paper):
    missing = [entry.cell for entry in paper.cells.values() if entry.mean is None]
    assert [(c.table, c.task, c.setting) for c in missing] == [
        ("13", "SawyerReach", "gofar_binary"),
        ("13", "SawyerDoor", "gofar_binary"),
    ]
    assert all(paper.sample(cell) is None for cell in missing)
    starred = {entry.cell.task for entry in paper.cells.values() if entry.significant}
    assert len(starred) == 10
    assert starred == {entry.cell.task for entry in paper.table(1)} - {"FetchSlide", "AntTgtVel-m-e"}
    assert not any(entry.remark for entry in paper.cells.values() if entry.significant or entry.mean is None)


def test_the_largest_return_is_the_geometric_sum():
    assert max_return("FetchReach", 0.99) == pytest.approx(39.50, abs=0.005)
    assert max_return("FetchReach", 0.98) == pytest.approx(31.79, abs=0.005)
    assert max_return("FetchReach", 0.5) == pytest.approx(sum(0.5**t for t in range(50)))
    assert max_return("AntTgtVel-m-e", 0.99) == pytest.approx(100, abs=0.01)
    with pytest.raises(ValueError, match="Did you mean 'FetchReach'"):
        max_return("FetchReech", 0.99)


def test_no_return_exceeds_the_largest_one_at_its_likely_discount(paper):
    shares = [entry.return_over_max for entry in paper.cells.values() if entry.return_over_max]
    assert len(shares) == sum(entry.discount is not None and entry.mean is not None for entry in paper.cells.values())
    assert max(share.mean for share in shares) < 1
    # at 0.98 alone that would not be so
    assert max(e.mean for e in paper.cells.values() if e.discount == 0.99) > max_return("FetchReach", 0.98)


def test_locomotion_is_not_comparable_since_its_returns_exceed_any_discounted_sum(paper):
    other = [entry for entry in paper.cells.values() if not entry.comparable]
    assert len(other) == 4 * 7
    assert {entry.cell.table for entry in other} == {"1"}
    assert max(entry.mean for entry in other) > 100
    assert all(entry.discount is None and entry.return_over_max is None for entry in other)


@pytest.mark.parametrize(
    ("task", "smore", "gofar"),
    [
        ("FetchReach", 0.888, 0.887),
        ("Reacher", 0.719, 0.621),
        ("FetchPick", 0.670, 0.620),
        ("FetchPush", 0.679, 0.572),
        ("FetchSlide", 0.126, 0.078),
        ("HandReach", 0.473, 0.362),
        ("SawyerReach", 0.954, 0.483),
    ],
)
def test_shares_of_the_largest_return_are_those_of_the_independent_transcription(paper, task, smore, gofar):
    found = {e.cell.method: e.return_over_max.mean for e in paper.table(1) if e.cell.task == task}
    assert (found["SMORe"], found["GoFAR"]) == (pytest.approx(smore, abs=5e-4), pytest.approx(gofar, abs=5e-4))


def test_the_spread_is_scaled_like_the_mean(paper):
    share = paper.table(1)[21].return_over_max
    assert paper.table(1)[21].cell == Cell("1", "FetchReach", "SMORe", "expert=0.10", "discounted_return")
    assert (share.mean, share.std) == (
        pytest.approx(35.08 / 39.4994, rel=1e-5),
        pytest.approx(0.54 / 39.4994, rel=1e-5),
    )


def test_as_a_share_of_the_largest_return_smore_is_best_on_six_of_eight_manipulation_tasks(paper):
    best = {}
    for entry in paper.table(1):
        if entry.comparable:
            best.setdefault(entry.cell.task, []).append((entry.return_over_max.mean, entry.cell.method))
    winners = {task: max(line)[1] for task, line in best.items()}
    assert {task for task, method in winners.items() if method != "SMORe"} == {"Reacher", "FetchReach"}
    assert len(winners) == 8


def test_metrics_other_than_returns_have_no_discount(paper):
    for number in (10, 11):
        assert all(entry.discount is None and entry.comparable for entry in paper.table(number))


def test_an_unknown_table_is_named(paper):
    with pytest.raises(ValueError, match="unknown table '3': expected one of 1, 2, 6"):
        paper.table(3)
