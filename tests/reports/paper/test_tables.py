"""Tables: the right number in the right cell, marks that are earned, and markup that survives any text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torchrl_smore.reports import (
    SignificanceTest,
    build_table,
    render_table,
    table_tasks,
    to_html,
    to_latex,
    to_markdown,
    views,
)

COMMAND = "python recipes/report.py table=1"


def markdown_row(text, task, source):
    """Cells of one line of a Markdown table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {task} | {source} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")][2:]


@pytest.fixture
def two_methods(make_result):
    def make(seeds, smore=36.0, iql=32.0, task="FetchReach"):
        return [
            make_result(method=method, seed=seed, task=task, value=value + 0.5 * seed, metric=f"discounted_return_{g}")
            for method, value in (("SMORe", smore), ("GC-IQL", iql))
            for seed in range(seeds)
            for g in ("0.98", "0.99")
        ]

    return make


def test_ours_stand_above_the_papers_with_mean_std_and_seeds(two_methods):
    text = to_markdown(build_table(1, two_methods(2), command=COMMAND, view="discounted_return_0.99"))
    # 36 and 36.5: mean 36.25, std 0.5 / sqrt(2)
    ours = markdown_row(text, "FetchReach", "ours")
    assert ours == ["**36.25 ± 0.35 (2)**", "–", "–", "–", "–", "–", "32.25 ± 0.35 (2)"]
    paper = markdown_row(text, "FetchReach", "paper")
    assert paper[0] == r"**35.08 ± 0.54**\*"
    assert paper[1] == "28.20 ± 0.61†"
    assert paper[6] == "34.43 ± 1.00"
    assert "| task |  | SMORe | GoFAR | WGCSL | GCSL | CRL | AM | GC-IQL |" in text
    assert text.startswith(f"<!-- {COMMAND} -->\n")


def test_one_seed_has_no_standard_deviation(two_methods):
    text = to_markdown(build_table(1, two_methods(1), command=COMMAND))
    assert markdown_row(text, "FetchReach", "ours")[0] == "**36.00 (1)**"


def test_each_view_reads_its_own_discount(make_result):
    runs = [make_result(value=30.0, metric="discounted_return_0.98"), make_result(value=35.0)]
    cells = {
        view: markdown_row(to_markdown(build_table(1, runs, command=COMMAND, view=view)), "FetchReach", "ours")[0]
        for view in views(1)
    }
    assert cells == {
        "discounted_return_0.98": "30.00 (1)",
        "discounted_return_0.99": "35.00 (1)",
        "return_over_max": "0.886 (1)",  # 35 / 39.4994
    }


def test_the_papers_returns_are_marked_where_their_discount_is_another(two_methods):
    at = {
        g: to_markdown(build_table(1, two_methods(2), command=COMMAND, view=f"discounted_return_{g}"))
        for g in ("0.98", "0.99")
    }
    assert [("†" in cell) for cell in markdown_row(at["0.99"], "FetchPush", "paper")] == [False, *[True] * 5, False]
    assert [("†" in cell) for cell in markdown_row(at["0.98"], "FetchPush", "paper")] == [True, *[False] * 5, True]
    assert all("‡" in cell for cell in markdown_row(at["0.99"], "AntTgtVel-m-e", "paper"))
    assert "† most likely computed at discount 0.98" in at["0.99"]
    assert "† most likely computed at discount 0.99" in at["0.98"]
    assert "‡ returns of locomotion exceed 100" in at["0.99"]


def test_shares_of_the_largest_return_use_the_likely_discount_and_say_so():
    text = to_markdown(build_table(1, [], command=COMMAND, view="return_over_max"))
    # 35.08 / 39.4994, 28.2 / 31.7915, 30.1 / 31.7915; the paper's star is for what it printed
    row = markdown_row(text, "FetchReach", "paper")
    assert (row[0], row[1], row[5]) == ("0.888 ± 0.014", "0.887 ± 0.019", "**0.947 ± 0.010**")
    assert markdown_row(text, "AntTgtVel-m-e", "paper") == ["–"] * 7
    assert "0.99 for SMORe and the GC- methods, 0.98 for the other baselines" in text
    assert "†" not in text


def test_missing_cells_are_dashes():
    row = markdown_row(to_markdown(build_table(13, [], command=COMMAND)), "SawyerDoor", "paper")
    assert [cell == "–" for cell in row] == [False, False, True, False, False]


def test_a_clear_win_gets_a_star_with_enough_seeds_only(two_methods):
    def star(runs, **options):
        text = to_markdown(build_table(1, runs, command=COMMAND, **options))
        return markdown_row(text, "FetchReach", "ours")[0].endswith(r"\*"), text

    assert star(two_methods(4))[0]
    without, text = star(two_methods(3))
    assert not without
    assert "Too few seeds for a star, whatever the values: FetchReach expert=0.1 (3 against 3)" in text
    assert star(two_methods(3), test=SignificanceTest(alternative="greater"))[0]
    assert not star(two_methods(4, smore=32.25))[0]
    # with a second task, Holm asks for more
    assert not star(two_methods(4) + two_methods(4, 30.0, 30.25, task="FetchPush"))[0]
    # a worse method gets none however certain it is
    lost = to_markdown(build_table(1, two_methods(5, smore=1.0), command=COMMAND))
    assert markdown_row(lost, "FetchReach", "ours")[0].startswith("2.00")
    assert r"\*" not in "".join(markdown_row(lost, "FetchReach", "ours"))


def test_lower_distances_are_better(make_result):
    runs = [
        make_result(method=method, seed=seed, metric="final_distance", value=value + seed / 1000)
        for method, value in (("SMORe", 0.01), ("AM", 0.02))
        for seed in range(5)
    ]
    text = to_markdown(build_table(11, runs, command=COMMAND))
    assert markdown_row(text, "FetchReach", "ours")[0] == r"**0.012 ± 0.002 (5)**\*"
    assert markdown_row(text, "FetchReach", "paper")[6] == "**0.002 ± 0.001**"


def test_with_several_settings_each_has_a_column_and_its_own_best():
    text = to_markdown(build_table(2, [], command=COMMAND))
    assert "| task |  | SMORe expert=0.05 | GoFAR expert=0.05 | SMORe expert=0.025 |" in text
    row = markdown_row(text, "Reacher", "paper")
    assert [cell.startswith("**") for cell in row] == [True, False] * 3
    # on the same data the best of all columns is one
    betas = markdown_row(to_markdown(build_table(9, [], command=COMMAND)), "FetchPick", "paper")
    assert [cell.startswith("**") for cell in betas] == [False, False, False, True]


def test_a_base_column_takes_the_runs_of_the_main_table(make_result):
    row = markdown_row(
        to_markdown(build_table(9, [make_result()], command=COMMAND, view=views(9)[1])), "FetchReach", "ours"
    )
    assert row == ["35.50 (1)", "–", "–", "–"]


def test_one_run_of_the_binary_reward_stands_beside_both_of_the_papers(make_result):
    run = make_result(table="13", method="GoFAR", setting="gofar_binary", value=12.5)
    text = to_markdown(build_table(13, [run], command=COMMAND, view="discounted_return_0.99"))
    assert sum("12.5" in cell for cell in markdown_row(text, "FetchReach", "ours")) == 2


def test_success_rates_come_from_the_last_step_and_are_aggregated(make_result):
    runs = [
        make_result(seed=seed, task=task, metric=metric, value=value)
        for seed in range(3)
        for task, value in (("FetchReach", 1.0), ("FetchPush", 0.5))
        for metric in ("success_last", "success_any")
    ]
    text = to_markdown(build_table(10, runs, command=COMMAND))
    assert markdown_row(text, "FetchPush", "ours")[0] == "0.500 ± 0.000 (3)"
    # six runs, one left out at each end: (0.5 + 0.5 + 1 + 1) / 4; stratified resamples are all alike
    assert "interval over FetchReach, FetchPush: SMORe 0.750 [0.750, 0.750]." in text


def test_a_method_with_one_of_three_tasks_does_not_leave_that_task_alone_to_be_aggregated(make_result):
    tasks = ("FetchReach", "FetchPush", "FetchPick")
    runs = [make_result(task=task, metric="success_last", value=value) for task, value in zip(tasks, (1.0, 0.5, 0.6))]
    runs.append(make_result(task="FetchPick", metric="success_last", method="GC-IQL", value=0.9))
    text = to_markdown(build_table(10, runs, command=COMMAND))
    # of three runs none is left out: (1 + 0.5 + 0.6) / 3
    assert "interval over FetchReach, FetchPick, FetchPush: SMORe 0.700 [0.700, 0.700]. " in text


def test_tasks_can_be_chosen_and_where_the_runs_come_from_is_said(two_methods):
    text = to_markdown(build_table(1, two_methods(2), command=COMMAND, tasks=["FetchReach"]))
    assert "FetchPush" not in text
    assert "Our runs: commit abc; versions torch=2.13.0; steps 1000; episodes 50." in text
    assert "Our runs" not in to_markdown(build_table(1, [], command=COMMAND))
    with pytest.raises(ValueError, match=r"unknown task of Table 9 'FetchPusch'.*Did you mean 'FetchPush'"):
        build_table(9, [], command=COMMAND, tasks=["FetchPusch"])


def test_rendering_gives_every_view(two_methods):
    text = render_table(1, iter(two_methods(2)), command=COMMAND)
    assert text.count(f"<!-- {COMMAND} -->") == 3
    assert text.count("36.25") == 2
    assert render_table(10, [], command=COMMAND).count("<!--") == 1


def test_every_table_of_the_paper_renders_in_both_markups(paper_as_results):
    for number in (1, 2, *range(6, 17)):
        runs = paper_as_results(str(number), seeds=2)
        for markup in ("markdown", "latex"):
            assert f"Table {number}: " in render_table(number, runs, command=COMMAND, markup=markup)


def test_latex_is_balanced_escaped_and_free_of_signs_it_cannot_set(make_result):
    runs = [make_result(versions="a_b=1.0 & 50% #1 ~x^y \\z {w} $", note="")]
    text = to_latex(build_table(13, runs, command="python 'recipes/report.py' table=13 % x", view=views(13)[1]))
    lines = text.splitlines()
    assert lines[0] == "% python 'recipes/report.py' table=13 % x"
    assert r"a\_b=1.0 \& 50\% \#1 \textasciitilde{}x\textasciicircum{}y \textbackslash{}z \{w\} \$" in text
    assert r"GoFAR gofar\_expectile\_awr" in text
    assert r"\textbf{35.08 $\pm$ 0.54}" in text
    assert r"28.20 $\pm$ 0.61$^{\dagger}$" in text
    assert text.isascii()
    body = text.replace(r"\{", "").replace(r"\}", "")
    assert body.count("{") == body.count("}")
    (columns,) = [line for line in lines if line.startswith(r"\begin{tabular}")]
    rows = [line for line in lines if line.endswith(r" \\")]
    # task, ours or paper, and five columns: six separators in each line
    assert columns == r"\begin{tabular}{llrrrrr}"
    assert len(rows) == 1 + 2 * 6
    assert {line.count(" & ") for line in rows} == {6}


def test_markdown_escapes_what_would_be_markup(make_result):
    text = to_markdown(build_table(13, [make_result(commit="a|b_c*d<e")], command=COMMAND, view=views(13)[1]))
    assert r"commit a\|b\_c\*d\<e" in text
    assert r"GoFAR gofar\_expectile\_awr" in text


def test_html_escapes_names_and_keeps_bold_stars_and_dashes(two_methods, make_result):
    runs = [*two_methods(4), make_result(method="<i>&x", commit="<script>")]
    text = to_html(build_table(1, runs, command="python x --a '<b>'", view="discounted_return_0.99"))
    assert "<b>36.75 ± 0.65 (4)</b><sup>*</sup></td>" in text  # 36, 36.5, 37, 37.5
    assert "<td>28.20 ± 0.61†</td>" in text
    assert text.count("<tr") == 1 + 2 * 12
    assert "<script>" not in text
    assert text.startswith("<!-- python x --a &#x27;&lt;b&gt;&#x27; -->")


def test_tasks_of_our_own_get_lines_where_they_say_something_new(make_result):
    base = [make_result(task="PointReach", seed=seed, metric="return_over_max", value=0.5) for seed in range(2)]
    swept = [replace(run, setting="beta=0.7", value=0.25) for run in base]
    assert (
        markdown_row(to_markdown(build_table(1, base, command=COMMAND, view="return_over_max")), "PointReach", "ours")[
            0
        ]
        == "0.500 ± 0.000 (2)"
    )
    # the default alone is no sweep of beta
    assert "PointReach" not in table_tasks(9, base)
    assert table_tasks(9, [*base, *swept])[-1] == "PointReach"
    text = to_markdown(build_table(9, [*base, *swept], command=COMMAND, view="return_over_max"))
    assert markdown_row(text, "PointReach", "ours") == ["**0.500 ± 0.000 (2)**", "0.250 ± 0.000 (2)", "–", "–"]
    assert "| PointReach | paper |" not in text
    assert "Tasks that are not the paper's have no line of it" in text


def test_tasks_of_our_own_are_not_tested_and_do_not_count_in_the_correction(two_methods):
    # with a second test Holm would ask for more than 2 / C(8, 4)
    runs = [*two_methods(4), *two_methods(4, 30.0, 30.25, task="PointReach")]
    text = to_markdown(build_table(1, runs, command=COMMAND))
    assert markdown_row(text, "FetchReach", "ours")[0].endswith(r"\*")
    assert "over 1 comparisons" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_table(3, [], command=COMMAND), "unknown table '3'"),
        (lambda: build_table(10, [], command=COMMAND, view="return_over_max"), "view of Table 10 'return_over_max'"),
        (lambda: build_table(1, [], command="a\nb"), "one line without '-->'"),
        (lambda: build_table(1, [], command="a --> b"), "one line without '-->'"),
        (lambda: render_table(1, [], command=COMMAND, markup="rst"), "unknown markup 'rst'"),
    ],
)
def test_errors_name_what_is_known(call, message):
    with pytest.raises(ValueError, match=message):
        call()
