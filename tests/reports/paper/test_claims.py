"""The claims on the paper's own numbers, whose verdicts are known, and on runs made from them."""

from __future__ import annotations

import pytest

from torchrl_smore.reports import Paper, Result, claims_to_markdown, evaluate_claim, evaluate_claims, evaluate_partly
from torchrl_smore.reports.paper.scores import IMAGE_TASKS


def on_paper(claim, **options):
    return evaluate_claim(claim, Paper(), **options)


def test_verdicts_on_the_papers_own_numbers():
    verdicts = {outcome.claim: outcome.verdict for outcome in evaluate_claims(Paper())}
    assert list(verdicts) == [f"C{i}" for i in range(1, 14)]
    # FetchSlide loses 31% at beta 0.8; GC-SQL is ahead on FetchReach
    assert {claim for claim, verdict in verdicts.items() if verdict == "fails"} == {"C7", "C11"}
    # figures without numbers, and a search without a table
    assert {claim for claim, verdict in verdicts.items() if verdict == "not enough runs"} == {"C5", "C6", "C13"}


def test_c1_best_on_eleven_and_significant_on_ten_of_twelve():
    numbers = on_paper("C1").numbers
    assert (numbers["tasks"], numbers["best"], numbers["significant"]) == (12, 11, 10)
    assert numbers["not best"] == "AntTgtVel-m-e"
    assert numbers["not significant"] == "FetchSlide, AntTgtVel-m-e"


def test_c2_and_c3_reproduce_the_printed_averages_and_the_corrected_drop():
    numbers = on_paper("C2").numbers
    assert numbers["SMORe at 0.05"] == pytest.approx(25.98, abs=0.01)
    assert numbers["SMORe at 0.025"] == pytest.approx(23.99, abs=0.01)
    assert numbers["GoFAR at 0.05"] == pytest.approx(16.18, abs=0.01)
    assert numbers["GoFAR at 0.025"] == pytest.approx(11.499, abs=0.001)
    assert numbers["SMORe %"] == pytest.approx(-7.66, abs=0.005)
    assert numbers["GoFAR %"] == pytest.approx(-29.0, abs=0.1)  # printed 28.4, computed 29.0
    numbers = on_paper("C3").numbers
    assert numbers["SMORe at 0.01"] == pytest.approx(21.817, abs=0.001)
    assert numbers["SMORe %"] == pytest.approx(-16.04, abs=0.005)
    assert numbers["GoFAR %"] == pytest.approx(-36.17, abs=0.005)


def test_c3_on_six_tasks_drops_as_computed_from_the_other_tables():
    tasks = ["Reacher", "SawyerReach", "SawyerDoor", "FetchPick", "FetchPush", "FetchSlide"]
    numbers = on_paper("C3", tasks=tasks).numbers
    assert (numbers["SMORe %"], numbers["GoFAR %"]) == (pytest.approx(-20.0, abs=0.05), pytest.approx(-48.3, abs=0.05))
    numbers = on_paper("C3", tasks=["FetchPick"]).numbers
    assert (numbers["SMORe %"], numbers["GoFAR %"]) == (pytest.approx(-41.8, abs=0.05), pytest.approx(-98.1, abs=0.05))


def test_c4_compares_on_the_tasks_that_a_variant_has():
    numbers = on_paper("C4").numbers
    assert numbers["gofar_binary"] == pytest.approx((26.1 + 17.4 + 17.4 + 5.13) / 4)
    assert numbers["SMORe beside gofar_binary"] == pytest.approx((35.08 + 26.47 + 26.83 + 4.99) / 4)
    assert numbers["gofar_binary above SMORe"] == "FetchSlide"
    assert on_paper("C4", tasks=["SawyerDoor"]).missing == ("no task of gofar_binary",)


def test_c4_asks_for_no_second_attempt_at_the_binary_reward(paper_as_results):
    runs = [run for run in paper_as_results("13") if run.setting != "r_gofar_binary"]
    assert evaluate_claim("C4", runs).verdict == "holds"


def test_c7_names_what_each_task_loses():
    numbers = on_paper("C7").numbers
    assert numbers["FetchSlide % lost at worst"] == pytest.approx(100 * (4.99 - 3.43) / 4.99)
    assert numbers["FetchSlide worst"] == "beta=0.8"
    assert numbers["FetchPush % lost at worst"] == pytest.approx(100 * (26.83 - 11.50) / 26.83)
    assert on_paper("C7", tasks=["FetchReach", "FetchPick", "FetchPush"]).verdict == "holds"


def test_c8_to_c12_averages_are_those_computed_independently():
    c8, c9, c10 = on_paper("C8").numbers, on_paper("C9").numbers, on_paper("C10").numbers
    assert (c8["with HER"], c8["without"]) == (pytest.approx(27.09, abs=0.005), pytest.approx(26.53, abs=0.005))
    assert c8["GoFAR"] == c9["GoFAR"] == pytest.approx(17.14, abs=0.005)
    assert c9["with expectile and AWR"] == pytest.approx(17.50, abs=0.005)
    assert c9["up on"] == "SawyerReach, SawyerDoor, FetchSlide"
    assert (c10["SMORe"], c10["GC-IQL"]) == (pytest.approx(16.50, abs=0.006), pytest.approx(12.92, abs=0.005))
    assert c10["not best on"] == "FetchPick, FetchSlide"
    c11, c12 = on_paper("C11").numbers, on_paper("C12").numbers
    assert c11["not best on"] == "FetchReach"
    assert c11["GC-IQL std"] == pytest.approx((1.00 + 0.29 + 1.45 + 3.10 + 0.74 + 1.59) / 6)
    assert c12["SMORe"] == pytest.approx((35.08 + 36.26 + 20.28 + 26.47 + 26.83 + 4.99) / 6)
    assert c12["no AWR"] == pytest.approx((0.30 + 29.31 + 5.06 + 1.79 + 4.60 + 0.22) / 6)
    assert c12["nor expectile"] == pytest.approx((0.10 + 29.64 + 2.11 + 1.77 + 2.69 + 0.50) / 6)


def test_without_runs_no_claim_is_judged():
    outcomes = evaluate_claims([])
    assert {outcome.verdict for outcome in outcomes} == {"not enough runs"}
    assert all(outcome.missing and not outcome.numbers for outcome in outcomes)
    assert evaluate_claim("C1", []).missing[0] == "Reacher SMORe expert=0.10 (0 of 5 seeds)"


def test_runs_like_the_papers_means_get_the_papers_verdict(paper_as_results):
    for claim, table in (("C1", "1"), ("C2", "2"), ("C3", "2"), ("C7", "9"), ("C8", "12"), ("C10", "14")):
        ours, theirs = evaluate_claim(claim, paper_as_results(table)), on_paper(claim)
        assert ours.verdict == theirs.verdict, claim
        assert ours.numbers.keys() == theirs.numbers.keys()


def test_c1_tests_significance_on_runs(paper_as_results):
    clear, noisy = paper_as_results("1"), paper_as_results("1", spread=5.0)
    # with so little spread all but AntTgtVel-m-e are significant, FetchSlide too
    assert evaluate_claim("C1", clear).numbers["not significant"] == "AntTgtVel-m-e"
    assert evaluate_claim("C1", noisy).verdict == "fails"
    assert "FetchReach" in evaluate_claim("C1", noisy).numbers["not significant"]
    few = evaluate_claim("C1", paper_as_results("1", seeds=5))
    # 12 tests of 5 against 5 seeds: 12 * 2 / 252 > 0.05
    assert few.verdict == "not enough runs"
    assert "Reacher: too few seeds for significance" in few.missing


def test_c1_judges_locomotion_by_the_return_that_its_tables_show(paper_as_results, make_result):
    # at 0.99 SMORe is the worst on every task of locomotion
    runs = paper_as_results("1")
    at_099 = [
        make_result(
            **{"table": "1", "task": run.task, "method": run.method, "setting": run.setting, "seed": run.seed},
            value=1.0 if run.method == "SMORe" else 40.0,
        )
        for run in runs
        if "TgtVel" in run.task
    ]
    assert evaluate_claim("C1", [*runs, *at_099]).numbers["not best"] == "AntTgtVel-m-e"


def test_a_missing_seed_is_asked_for(paper_as_results):
    runs = [r for r in paper_as_results("14", seeds=5) if (r.task, r.method, r.seed) != ("FetchPush", "GoFAR", 4)]
    outcome = evaluate_claim("C10", runs)
    assert (outcome.verdict, outcome.missing) == ("not enough runs", ("FetchPush GoFAR expert=0.0 (4 of 5 seeds)",))
    assert evaluate_claim("C10", runs, min_seeds=4).verdict == "holds"
    assert evaluate_claim("C10", runs, tasks=["FetchReach"]).verdict == "holds"


def scaled(runs, factor, **where):
    """The same runs with some values scaled."""

    def hit(run):
        return all(getattr(run, name) == value for name, value in where.items())

    return [Result(**{**vars(run), "value": run.value * factor}) if hit(run) else run for run in runs]


@pytest.mark.parametrize(
    ("claim", "table", "factor", "where"),
    [
        ("C1", "1", 0.5, {"task": "FetchPush", "method": "SMORe"}),
        ("C2", "2", 0.5, {"method": "SMORe", "setting": "expert=0.025"}),
        ("C3", "2", 0.5, {"method": "SMORe", "setting": "expert=0.01"}),
        ("C4", "13", 2.0, {"setting": "gofar_expectile_awr"}),
        ("C8", "12", 1.1, {"setting": "no_her"}),  # HER would hurt
        ("C8", "12", 0.8, {"setting": "no_her"}),  # the gain would not be small
        ("C8", "12", 0.5, {"setting": "no_her", "task": "FetchSlide"}),  # below GoFAR on one task
        ("C9", "13", 1.2, {"setting": "gofar_expectile_awr"}),
        ("C9", "13", 1.05, {"setting": "gofar_expectile_awr", "task": "FetchPush"}),  # up on 4 of 6
        ("C10", "14", 1.5, {"method": "GC-IQL"}),
        ("C12", "16", 3.0, {"setting": "no_awr"}),
    ],
)
def test_a_claim_fails_on_runs_that_contradict_it(paper_as_results, claim, table, factor, where):
    runs = paper_as_results(table)
    assert evaluate_claim(claim, runs).verdict == "holds"
    assert evaluate_claim(claim, scaled(runs, factor, **where)).verdict == "fails"


def test_c11_holds_once_smore_leads_everywhere_and_asks_for_the_smallest_spread(paper_as_results, make_result):
    runs = scaled(paper_as_results("15"), 1.1, method="SMORe")
    # spread of GC-SQL ten times that of the others
    wide = [Result(**{**vars(r), "value": r.value + (r.seed - 4.5) * (r.method == "GC-SQL")}) for r in runs]
    # and of GC-IQL the smallest
    narrow = [Result(**{**vars(r), "value": r.value + 0.1 * (r.seed - 4.5) * (r.method != "GC-IQL")}) for r in wide]
    assert evaluate_claim("C11", narrow).verdict == "holds"
    spread = [Result(**{**vars(r), "value": r.value + 0.5 * (r.seed - 4.5) * (r.method == "GC-IQL")}) for r in narrow]
    assert evaluate_claim("C11", spread).verdict == "fails"


def test_who_shares_the_first_place_is_not_ahead(make_result):
    in_sample = [
        make_result(method=method, seed=seed, value=value + seed * (method != "GC-IQL"))
        for method, value in (("SMORe", 30.0), ("GC-IQL", 30.5), ("GC-SQL", 20.0), ("GC-EQL", 20.0), ("GC-XQL", 20.0))
        for seed in range(2)
    ]
    # 30 and 31 against 30.5 twice
    shared = evaluate_claim("C11", in_sample, tasks=["FetchReach"], min_seeds=2)
    assert (shared.verdict, shared.numbers["not best on"]) == ("fails", "FetchReach")
    ahead = scaled(in_sample, 1.01, method="SMORe")
    assert evaluate_claim("C11", ahead, tasks=["FetchReach"], min_seeds=2).verdict == "holds"


def test_runs_of_unequal_length_judge_nothing(paper_as_results):
    runs = paper_as_results("14")
    longer = [Result(**{**vars(run), "steps": 2000}) if run.method == "SMORe" else run for run in runs]
    assert evaluate_claim("C10", runs).verdict == "holds"
    outcome = evaluate_claim("C10", longer)
    assert outcome.verdict == "not enough runs"
    assert "FetchReach: runs of one length (found 1,000, 2,000 updates)" in outcome.missing


def noisy_runs(make_result, smore):
    return [
        make_result(method=method, setting=f"expert=0.10;noise={noise}", seed=seed, value=value)
        for method, value in [("SMORe", smore), *((m, 20.0) for m in ("GoFAR", "WGCSL", "GCSL", "CRL", "AM", "GC-IQL"))]
        for noise in ("0.5", "1.0", "1.5")
        for seed in range(5)
    ]


def test_c5_needs_smore_ahead_at_every_noise(make_result):
    assert evaluate_claim("C5", noisy_runs(make_result, 21.0)).verdict == "holds"
    assert evaluate_claim("C5", noisy_runs(make_result, 19.0)).verdict == "fails"
    late = scaled(noisy_runs(make_result, 21.0), 0.5, method="SMORe", setting="expert=0.10;noise=1.5")
    assert evaluate_claim("C5", late).verdict == "fails"
    assert evaluate_claim("C5", noisy_runs(make_result, 21.0)[:-15]).verdict == "not enough runs"


def test_c6_needs_smore_ahead_of_both_rivals_on_the_four_tasks_and_looks_at_no_others(make_result):
    def runs(tasks=IMAGE_TASKS, smore=0.9, methods=("CRL", "GC-IQL")):
        return [
            make_result(task=task, method=method, setting="expert=1;images", seed=s, metric="success_last", value=value)
            for task in tasks
            for method, value in (("SMORe", smore), *((rival, 0.5) for rival in methods))
            for s in range(5)
        ]

    assert evaluate_claim("C6", runs()).verdict == "holds"
    assert evaluate_claim("C6", runs(smore=0.4)).numbers["not best"] == ", ".join(IMAGE_TASKS)
    # neither a task of our own nor the control is the paper's
    more = [
        *runs(),
        *runs(["PointReach"], 0.1, [])[:1],
        *scaled(runs(methods=["hindsight_bc"]), 3, method="hindsight_bc"),
    ]
    assert evaluate_claim("C6", more).verdict == "holds"
    assert len(evaluate_claim("C6", runs(IMAGE_TASKS[:3])).missing) == 3
    assert len(evaluate_claim("C6", runs(methods=["CRL", "hindsight_bc"])).missing) == 4


def test_c11_asks_for_a_spread(paper_as_results):
    single = evaluate_claim("C11", paper_as_results("15", seeds=1), min_seeds=1)
    assert single.verdict == "not enough runs"
    assert "1 seed has no spread" in single.missing[0]
    assert evaluate_claim("C11", paper_as_results("15", seeds=2), min_seeds=2).verdict == "fails"


def test_tasks_that_need_more_seeds_together_are_no_part_of_a_claim(paper_as_results):
    runs = [row for row in scaled(paper_as_results("1", seeds=5), 2.0, method="SMORe") if "TgtVel" not in row.task]
    # the smallest p of 5 against 5 is 2 / 252: Holm's correction leaves 0.0079 * 8 > 0.05 of eight tasks, 0.04 of five
    assert "C1" not in evaluate_partly(runs)
    five = ["FetchReach", "FetchPick", "FetchPush", "Reacher", "SawyerDoor"]
    assert evaluate_claim("C1", runs, tasks=five).verdict == "holds"
    lacking = [row for row in runs if row.task != "Reacher" or row.seed < 4]
    outcome, tasks = evaluate_partly(lacking, tasks=five)["C1"]
    assert (outcome.verdict, sorted(tasks)) == ("holds", sorted({*five} - {"Reacher"}))


def test_c13_finds_the_best_of_each_sweep(make_result):
    def runs(best_expectile, task="FetchReach"):
        values = {f"expectile={e}": 30.0 - abs(e - best_expectile) for e in (0.65, 0.7, 0.8, 0.85)}
        values |= {f"her_ratio={h}": 30.0 - abs(h - 0.8) for h in (0.2, 0.5, 0.8, 1.0)}
        return [
            make_result(task=task, setting=f"expert=0.10;{setting}", seed=seed, value=value)
            for setting, value in values.items()
            for seed in range(5)
        ]

    assert evaluate_claim("C13", runs(0.8), tasks=["FetchReach"]).verdict == "holds"
    assert evaluate_claim("C13", runs(0.7), tasks=["FetchReach"]).numbers["FetchReach best expectile"] == 0.7
    assert evaluate_claim("C13", runs(0.7), tasks=["FetchReach"]).verdict == "fails"
    assert evaluate_claim("C13", runs(0.7, "HandReach"), tasks=["HandReach"]).verdict == "holds"
    # runs of the default setting, which has another ratio in some presets, are none at 0.8
    other = [row for row in runs(0.8) if not row.setting.endswith("her_ratio=0.8")]
    other += [make_result(task="FetchReach", setting="expert=0.10", seed=seed, value=40.0) for seed in range(5)]
    found = evaluate_claim("C13", other, tasks=["FetchReach"])
    assert (found.verdict, len(found.missing)) == ("not enough runs", 1)
    assert "her_ratio=0.8 (0 of 5 seeds)" in found.missing[0]


def test_the_list_of_claims_is_a_markdown_table():
    lines = claims_to_markdown(evaluate_claims(Paper())).splitlines()
    assert lines[0] == "| claim | statement | verdict | numbers |"
    assert len(lines) == 2 + 13
    assert all(line.count(" | ") == 3 for line in lines)
    assert "| holds | tasks 12; best 11; significant 10; not best AntTgtVel-m-e;" in lines[2]
    assert "(0 of 5 seeds) and 18 more |" in lines[6]


def test_an_unknown_claim_is_named():
    with pytest.raises(ValueError, match="unknown claim 'C14': expected one of C1, C2"):
        evaluate_claim("C14", [])
