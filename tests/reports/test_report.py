"""A whole report of planted results: what it says, and that its page stands alone."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from torchrl_smore.reports import Paper, Source, evaluate_partly, write_report
from torchrl_smore.reports.numbers.results import ResultsError
from torchrl_smore.reports.provenance import ranges
from torchrl_smore.reports.report import _fewest_seeds

pytest.importorskip("matplotlib")

COMMAND = "python recipes/report.py results='a<b>.csv'"
_VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on a tag that closes another one."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.links += [attrs[name] for name in ("src", "href", "action") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def results(make_result):
    """FetchReach: SMORe above GC-IQL without overlap, 5 seeds; Table 14 of one task; a method with an evil name."""
    levels = {"SMORe": 36.0, "GC-IQL": 30.0, "<img src=x>&|": 20.0}
    rows = [
        make_result(method=method, seed=seed, value=level + 0.1 * seed)
        for method, level in levels.items()
        for seed in range(5)
    ]
    rows += [
        make_result(method=method, setting="expert=0.0", seed=seed, value=10.0 - place + 0.1 * seed)
        for place, method in enumerate(("SMORe", "GoFAR", "WGCSL", "GC-IQL"))
        for seed in range(5)
    ]
    return tuple(rows)


@pytest.fixture(scope="module")
def report(tmp_path_factory, make_result):
    out = tmp_path_factory.mktemp("report")
    rows = results(make_result)
    curves = tuple(make_result(steps=steps, value=steps / 50) for steps in (500, 1000))
    source = Source(rows, curves, (), {"preset": "<smoke>"})
    seen = []
    page = write_report(
        source, out, command=COMMAND, resamples=20, progress=lambda pieces: seen.extend(pieces) or pieces
    )
    return out, page.read_text(), seen


def test_every_table_and_figure_is_there_in_every_format(report):
    out, _, seen = report
    tables = {path.name for path in (out / "tables").iterdir()}
    assert tables == {f"table_{n}.{kind}" for n in Paper().tables for kind in ("md", "tex")}
    figures = {path.name for path in (out / "figures").iterdir()}
    names = [
        "interquartile_mean",
        "performance_profile",
        "probability_of_improvement",
        "learning_curves",
        "coverage",
        "images",
    ]
    assert figures == {f"{name}.{kind}" for name in [*names, "noise"] for kind in ("png", "pdf")}
    assert {path.name for path in out.iterdir()} == {
        *("tables", "figures", "claims.md", "statistics.md", "report.md", "index.html")
    }
    assert len(seen) == 13 + 7


def test_the_page_is_well_formed_asks_for_nothing_and_links_within_itself(report):
    page = Page(report[1])
    assert not {"script", "link", "iframe"} & set(page.tags)
    images = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert len(images) == page.tags.count("img") == 7
    assert {link[1:] for link in page.links if link not in images} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "http://" not in report[1]
    assert "https://" not in report[1]


def test_names_cannot_break_out_of_the_page_or_the_markdown(report):
    out, text, _ = report
    assert "&lt;img src=x&gt;&amp;|" in text
    assert "<img src=x>" not in text
    assert "&lt;smoke&gt;" in text
    assert r"| \<img src=x>&\| |" in (out / "statistics.md").read_text()


def test_a_planted_difference_gets_its_star_and_its_numbers(report):
    out, text, _ = report
    # values 36 to 36.4 without overlap with 30 to 30.4: p = 2 / C(10, 5)
    row = r"| FetchReach | ours | **36.20 ± 0.16 (5)**\* |"
    assert row in (out / "tables" / "table_1.md").read_text()
    assert "<b>36.20 ± 0.16 (5)</b><sup>*</sup>" in text
    assert r"\textbf{36.20 $\pm$ 0.16 (5)}$^{*}$" in (out / "tables" / "table_1.tex").read_text()
    statistics = (out / "statistics.md").read_text()
    # 36.1, 36.2, 36.3 over 39.4994
    assert "| SMORe | 0.916 [" in statistics
    assert "| GC-IQL | 0.765 [" in statistics
    assert "| 1.000 [1.000, 1.000] | 1 task | FetchReach | 5 |" in statistics


def test_few_seeds_are_those_of_any_cell(make_result):
    rows = [make_result(setting="expert=1;images", seed=seed, metric=m) for seed in range(5) for m in ("a", "b")]
    assert _fewest_seeds(rows) == 5
    assert _fewest_seeds([*rows, make_result(setting="no_her")]) == 1
    assert _fewest_seeds([]) > 5


def test_claims_that_lack_runs_are_shown_on_what_there_is_without_a_verdict(report, make_result):
    out, text, _ = report
    claims = (out / "claims.md").read_text()
    assert claims.count("| not enough runs |") == 13
    assert "| C10 | FetchReach | holds | SMORe 10.2;" in claims
    assert "0 hold, 0 fail, and 13 have not enough runs" in text
    found = evaluate_partly(results(make_result))
    assert list(found) == ["C10"]
    assert found["C10"][1] == ("FetchReach",)
    assert evaluate_partly(results(make_result), min_seeds=6) == {}


def test_where_the_numbers_come_from_is_said(report):
    text = " ".join(Page(report[1]).text)
    assert COMMAND in text
    assert "35 (each one task, method, setting and seed), 35 numbers" in text
    for fact in ("abc", "torch=2.13.0", "0 to 4", "1,000", "Bars of the paper's Figure 3"):
        assert fact in text


def test_chosen_tasks_leave_the_others_out_and_unknown_ones_are_refused(make_result, tmp_path):
    source = Source((make_result(), make_result(task="PointReach", metric="return_over_max", value=0.5)))
    with pytest.raises(ValueError, match=r"unknown task 'FetchPusch'.*Did you mean 'FetchPush'"):
        write_report(source, tmp_path, command="x", tasks=["FetchPusch"])
    for name in ("min_seeds", "resamples"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            write_report(source, tmp_path, command="x", **{name: 0})
    mixed = Source((make_result(), make_result(seed=1, steps=7)))
    with pytest.raises(ResultsError, match="expected seeds of one length"):
        write_report(mixed, tmp_path, command="x")
    assert list(tmp_path.iterdir()) == []


def test_seeds_in_few_words():
    assert ranges([4, 0, 1, 2, 7, 7]) == "0 to 2, 4, 7"
