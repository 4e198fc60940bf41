"""What a diagnosis says follows from its tables, by the thresholds that its page states."""

from __future__ import annotations

import csv
import html
import json
from pathlib import Path

import pytest

from torchrl_smore.reports import write_diagnosis
from torchrl_smore.reports.diagnosis import score_growth
from torchrl_smore.reports.numbers.findings import Diagnosis, find

pytest.importorskip("matplotlib")

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "not_learning.md"
ABOUT = {
    **{"task": "FetchPush", "method": "smore", "formulation": "in_sample", "seed": 0, "seeds": 1, "step": 2000},
    **{"gamma": 0.99, "anchors": "uniform", "batch_size": 256, "input_clip": 0.0, "normalize": True},
    **{"threshold": 0.05, "moved": 0.005, "experts": "expert", "experts_known": True},
}
NUMBERS = {
    **{"idle_rows": 0.5, "expert_rows": 0.1, "expert_weight": 0.1, "effective": 0.2, "temperature": 3.0},
    **{"advantage_std": 2.0, "value_slope": 1.0, "score_noise": 2.0, "score_rank_correlation": 0.7, "outside": 0.01},
    **{"score_smallest": -1.0, "score_largest": 210.0, "lower": -2.0, "upper": 200.0},
}
WEIGHTS = [
    {"behaviour": "expert", "goal": "hindsight", "at_goal": False, "moving": True, "rows": 0.4, "weight_share": 0.7},
    {"behaviour": "random", "goal": "stored", "at_goal": True, "moving": False, "rows": 0.6, "weight_share": 0.3},
]
QUANTILES = [
    {"quantity": quantity, "group": "expert", "quantile": level, "value": level}
    for quantity in ("advantage", "score")
    for level in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
]
SCORES = [
    {
        "remaining": steps,
        "rows": 2,
        **dict.fromkeys(("score_mean", "score_std", "value_mean", "value_std"), 1.0 / steps),
    }
    for steps in (1, 2, 3)
]
PHASES = [
    {"phase": phase, "rows": 10, "cosine": cosine, "error": 0.1, "noise": noise, "preferred": preferred}
    | {"gap": 1.0, "gap_std": 2.0}
    for phase, cosine, noise, preferred in (("before", 0.8, 0.3, 0.6), ("at_goal", -0.5, 0.9, 0.2))
]
INPUTS = [
    {"input": "observation", "column": "block <spin>", "mean": 0, "std": 1, "beyond": 0.005, "largest": 20.0},
    {"input": "desired_goal", "column": "x [m]", "mean": 0, "std": 1, "beyond": 0.0, "largest": 2.0},
]
EPISODES = [
    {"seed": seed, "outcome": "reached", "moved": 0.1, "start": 0.2, "closest": 0.0, "final": 0.01}
    for seed in range(10)
]
DISTANCES = [{"seed": seed, "step": step, "distance": 0.1} for seed in range(10) for step in range(3)]
TABLES = {
    **{"weights": WEIGHTS, "quantiles": QUANTILES, "scores": SCORES, "phases": PHASES},
    **{"inputs": INPUTS, "episodes": EPISODES, "distances": DISTANCES},
}


@pytest.fixture
def diagnose(tmp_path):
    """Writes a diagnosis with some numbers, rows or options changed, and returns its findings and its page."""

    def write(numbers=None, about=None, missing=None, metrics=None, **tables):
        held = {
            "about": {**ABOUT, **(about or {})},
            "numbers": {**NUMBERS, **(numbers or {})},
            "missing": missing or {},
        }
        (tmp_path / "diagnosis.json").write_text(json.dumps(held))
        for name, rows in {**TABLES, **tables}.items():
            path = tmp_path / f"{name}.csv"
            path.unlink(missing_ok=True)
            if rows:
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
        return write_diagnosis(tmp_path, metrics), (tmp_path / "index.html").read_text()

    return write


def problems(findings):
    return [finding.name for finding in findings if finding.problem]


def test_numbers_at_their_thresholds_are_no_problem_and_the_page_states_each_threshold(diagnose, tmp_path):
    findings, page = diagnose()
    assert problems(findings) == []
    assert len(findings) == 12
    assert "Nothing out of the ordinary was found." in page
    for finding in findings:
        for text in (finding.name, finding.rule):
            assert html.escape(text) in page
    assert "block &lt;spin&gt;" in page
    assert page.count("data:image/png;base64,") == 5
    assert {path.name for path in tmp_path.glob("*.png")} == {
        *("weights.png", "scores.png", "phases.png", "inputs.png", "episodes.png")
    }


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"numbers": {"idle_rows": 0.51}}, "rows at their goal that have not moved", "51% of the rows"),
        ({"numbers": {"effective": 0.19}}, "effective sample size of the weights", "19% of the rows"),
        ({"numbers": {"expert_weight": 0.09}}, "weight of the experts", "(0.90 times)"),
        ({"numbers": {"effective": 0.86, "expert_rows": 0.49, "expert_weight": 0.5}}, "work of the weights", "86%"),
        ({"numbers": {"value_slope": 0.9}}, "worth of a step", "raises the value by 0.9"),
        ({"numbers": {"score_rank_correlation": 0.69}}, "score along expert trajectories", "correlation of 0.69"),
        ({"numbers": {"outside": 0.02}}, "range of the score", "range is [-2, 200]; 2.0% are outside"),
        ({"inputs": [{**INPUTS[0], "beyond": 0.0051}]}, "inputs out of range", "1 of 1 input columns"),
        ({"inputs": [{**INPUTS[0], "largest": 73.0}]}, "inputs out of range", "block <spin> (73)"),
        (
            {"phases": [{**PHASES[0], "preferred": 0.59}]},
            "preference for the expert's action before the achieved goal moves",
            "in 59% of the states",
        ),
        (
            {"phases": [{**PHASES[0], "phase": "moving", "cosine": 0.79}]},
            "agreement with the expert while it moves",
            "mean cosine of 0.79",
        ),
        (
            {"phases": [{**PHASES[0], "noise": 0.31}]},
            "expert's actions taken for noise before the achieved goal moves",
            "takes 31% of the expert's actions",
        ),
        (
            {"episodes": [*EPISODES[:8], *({**row, "outcome": "never moved"} for row in EPISODES[8:])]},
            "failed episodes",
            "8 of 10 episodes end at their goal; 2 never moved",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_beyond_its_threshold_is_a_problem_with_advice_on_top_of_the_page(diagnose, change, name, said):
    findings, page = diagnose(**change)
    assert problems(findings) == [name]
    (finding,) = [finding for finding in findings if finding.problem]
    assert said in finding.said
    assert finding.advice
    assert page.index("Try: ") < page.index("<nav>")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("numbers", "about"),
    [
        ({"effective": 0.85, "expert_rows": 0.49}, {}),
        ({"effective": 1.0, "expert_rows": 0.5}, {}),
        ({"effective": 1.0, "expert_rows": 0.0}, {}),
        ({"effective": 1.0, "expert_rows": 0.49}, {"experts_known": False}),
    ],
)
def test_weights_that_leave_all_rows_are_no_problem_where_experts_have_half_or_none_of_them_or_are_not_known(
    diagnose, numbers, about
):
    findings, _ = diagnose(numbers={"expert_weight": 0.5, **numbers}, about=about)
    assert problems(findings) == []


@pytest.mark.usefixtures("undrawn")
def test_weights_that_lean_away_from_the_experts_are_not_to_be_sharper(diagnose):
    findings, _ = diagnose(numbers={"effective": 1.0, "expert_rows": 0.4, "expert_weight": 0.39})
    assert problems(findings) == ["weight of the experts"]


@pytest.mark.usefixtures("undrawn")
def test_one_failed_episode_of_ten_is_within_the_threshold(diagnose):
    findings, _ = diagnose(episodes=[*EPISODES[:9], {**EPISODES[9], "outcome": "short of the goal"}])
    assert problems(findings) == []


@pytest.mark.usefixtures("undrawn")
def test_inputs_that_are_clipped_are_no_problem(diagnose):
    findings, _ = diagnose(about={"input_clip": 5.0}, inputs=[{**INPUTS[0], "largest": 73.0}])
    assert problems(findings) == []
    (said,) = [finding.said for finding in findings if finding.name == "inputs out of range"]
    assert said.endswith("They are clipped at 5.")


def test_what_does_not_apply_is_left_out_and_named_and_its_old_figure_goes(diagnose, tmp_path):
    diagnose()
    numbers = {name: NUMBERS[name] for name in ("idle_rows", "expert_rows")}
    held = {"about": {**ABOUT, "experts": "best", "experts_known": False}, "numbers": numbers}
    (tmp_path / "diagnosis.json").write_text(json.dumps({**held, "missing": {"score": "there is none."}}))
    for name in ("weights", "quantiles", "scores"):
        (tmp_path / f"{name}.csv").unlink()
    findings = write_diagnosis(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert not any("weight" in finding.name or "range of the score" in finding.name for finding in findings)
    assert "Not shown: score: there is none." in page
    assert "the best tenth by return that reaches its goal stands in" in page
    assert not (tmp_path / "weights.png").exists()
    assert not (tmp_path / "scores.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_growth_is_the_last_fifths_share_of_all_change(tmp_path, diagnose):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,score\n" + "".join(f"{i},{i}\n" for i in range(10)))
    # from 7 to 9 of 0 to 9
    assert score_growth(metrics, ABOUT) == {"growth": pytest.approx(2 / 9)}
    findings, _ = diagnose(metrics=metrics)
    assert problems(findings) == ["score still growing"]
    metrics.write_text("step,qvalue\n" + "".join(f"{i},{min(i, 7)}\n" for i in range(10)))
    assert score_growth(metrics, ABOUT) == {"growth": 0.0}
    metrics.write_text("step,score\n" + "".join(f"{i},{i}\n" for i in range(9)))
    assert score_growth(metrics, ABOUT) == {}


@pytest.mark.parametrize("later", ["nan", "900"])
def test_growth_is_that_of_the_networks_that_are_diagnosed(tmp_path, later):
    metrics = tmp_path / "metrics.csv"
    rows = "".join(f"{i},{i}\n" for i in range(10))
    # the checkpoint is of update 9, and the run went on to diverge, or was killed
    metrics.write_text(f"step,score\n{rows}10,{later}\n11,{later}\n")
    assert score_growth(metrics, {**ABOUT, "step": 9}) == {"growth": pytest.approx(2 / 9)}
    assert score_growth(metrics, {**ABOUT, "step": 8}) == {}
    if later == "nan":
        assert score_growth(metrics, ABOUT) == {}


def test_growth_of_one_of_several_seeds_is_its_own(tmp_path):
    metrics = tmp_path / "metrics.csv"
    lines = [f"{i},{seed},{i if seed == 3 else 5 - i}" for i in range(10) for seed in (3, 4)]
    metrics.write_text("\n".join(["step,seed,score", *lines]) + "\n")
    assert score_growth(metrics, {"seeds": 2, "seed": 3}) == {"growth": pytest.approx(2 / 9)}


def test_the_how_to_lists_every_check_with_its_threshold():
    tables = {name: [{key: str(value) for key, value in row.items()} for row in rows] for name, rows in TABLES.items()}
    findings = find(Diagnosis(ABOUT, {**NUMBERS, "growth": 0.0}, {}, tables))
    expected = {finding.name.removesuffix(" before the achieved goal moves"): finding.rule for finding in findings}
    cells = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = {name.strip(): rule.strip() for name, rule, _ in cells[1:]}
    assert listed == expected
