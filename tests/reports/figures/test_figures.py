"""Figures draw the numbers they are given, in one style, into files that others can read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from torchrl_smore.reports.figures.aggregates import improvement_figure, profile_figure
from torchrl_smore.reports.figures.images import image_figure
from torchrl_smore.reports.figures.returns import (
    coverage_figure,
    curve_settings,
    learning_figure,
    mean_curves,
    noise_figure,
)
from torchrl_smore.reports.figures.style import draw_legend, method_styles, panels, save_figure
from torchrl_smore.reports.numbers.aggregates import Estimate
from torchrl_smore.reports.numbers.results import CONTROL, METHODS

pytest.importorskip("matplotlib")
imageio = pytest.importorskip("imageio.v3")
FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg
to_hex = pytest.importorskip("matplotlib.colors").to_hex


def texts(axis):
    return [text.get_text() for text in axis.texts]


def titled(figure, title):
    (axis,) = [axis for axis in figure.axes if axis.get_title() == title]
    return axis


def points(axis, color):
    """Markers of one colour: their heights, in order of drawing."""
    lines = [line for line in axis.lines if line.get_color() == color and line.get_marker() not in ("None", None, "")]
    return [line.get_ydata().astype(float) for line in lines if len(line.get_ydata())]


def test_every_method_looks_different_and_the_same_in_all_company():
    styles = method_styles(METHODS)
    looks = {(style.color, style.linestyle) for style in styles.values()}
    assert len(looks) == len({style.marker for style in styles.values()}) == len(METHODS)
    assert method_styles(["AM", "SMORe"])["AM"] == styles["AM"]
    # others come last, by alphabet
    assert list(method_styles(["zeta", "AM", "eta", "SMORe"])) == ["SMORe", "AM", "eta", "zeta"]


def test_a_method_of_ones_own_has_a_colour_of_its_own():
    own = [f"own_{number}" for number in range(6)]
    styles = method_styles([*METHODS, CONTROL, *own])
    assert len({style.color for style in styles.values()}) == len(METHODS) + 1 + len(own)


def test_a_learning_curve_is_the_mean_of_the_seeds_where_all_have_been(make_result):
    rows = [
        make_result(task="PointReach", metric="return_over_max", seed=seed, steps=steps, value=value)
        for seed, line in enumerate([{0: 0.0, 10: 0.5, 20: 0.9}, {0: 0.2, 10: 0.7}])
        for steps, value in line.items()
    ]
    steps, mean, std = mean_curves(rows)["PointReach"]["SMORe"]
    np.testing.assert_array_equal(steps, [0, 10])
    np.testing.assert_allclose(mean, [0.1, 0.6])
    np.testing.assert_allclose(std, [0.2 / np.sqrt(2)] * 2)
    axis = titled(learning_figure(rows), "PointReach")
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[0, 0.1], [10, 0.6]])
    assert axis.get_xlabel() == "updates"


def test_returns_of_the_papers_tasks_become_shares_of_the_largest(make_result):
    rows = [make_result(value=39.4994 / 2), make_result(metric="return_over_max", value=0.1), make_result(metric="x")]
    rows.append(make_result(task="PointReach", metric="success_last", value=0.3))
    assert list(mean_curves(rows)) == ["FetchReach"]
    (_, mean, std) = mean_curves(rows)["FetchReach"]["SMORe"]
    assert mean == pytest.approx([0.5], abs=1e-5)
    assert np.isnan(std).all()


def test_locomotion_is_shown_by_the_return_that_it_is_judged_by(make_result):
    ant = {"task": "AntTgtVel-m-e", "setting": "expert=30_episodes;mix=m-e"}
    rows = [make_result(**ant, metric=f"discounted_return_{g}", value=v) for g, v in (("0.99", 34.0), ("0.999", 280.0))]
    rows.append(make_result(value=39.4994 / 2))
    figure = learning_figure(rows)
    (of_ant,) = titled(figure, "AntTgtVel-m-e").lines
    np.testing.assert_array_equal(of_ant.get_ydata(), [280.0])
    assert titled(figure, "AntTgtVel-m-e").get_ylabel() == "return at 0.999"
    assert titled(figure, "AntTgtVel-m-e").get_ylim()[1] > 280.0
    assert titled(figure, "FetchReach").get_ylabel() == "return / largest possible"


@pytest.mark.parametrize(("count", "along"), [(12, True), (3, False), (4, False), (1, False)])
def test_a_legend_in_a_row_of_its_own_lies_along_it(count, along):
    figure, axes = panels(count, 4, width=3.0, height=2.0)
    draw_legend(axes[-1], [*METHODS[:2], CONTROL])
    assert len(axes) == count + 1
    rows = {axis.get_subplotspec().rowspan.start for axis in axes[:-1]}
    assert (axes[-1].get_subplotspec().rowspan.start in rows) != along
    # as high as its panels, and the row of a legend a third of one
    assert figure.get_size_inches()[1] == pytest.approx(2.0 * len(rows) + 0.7 * along)
    names = [text.get_text() for text in axes[-1].get_legend().get_texts()]
    assert names == ["SMORe", "GoFAR", "control (hindsight BC)"]


def test_curves_are_parted_by_setting_with_table_1_first(make_result):
    ant = {"task": "AntTgtVel-m-e", "setting": "expert=30_episodes;mix=m-e", "metric": "discounted_return_0.999"}
    rows = [make_result(setting="beta=0.7"), make_result(), make_result(**ant), make_result(setting="z", metric="x")]
    assert curve_settings(rows) == ["main", "beta=0.7;expert=0.1"]
    assert list(mean_curves(rows)) == ["FetchReach", "AntTgtVel-m-e"]


def test_coverage_shows_ours_and_the_papers_points(make_result):
    runs = [
        make_result(method="GoFAR", setting=f"expert={share}", seed=seed, value=39.4994 * level)
        for share, level in (("0.01", 0.25), ("0.10", 0.75))
        for seed in range(2)
    ]
    axis = titled(coverage_figure(runs), "FetchReach")
    ours, paper = points(axis, method_styles(["GoFAR"])["GoFAR"].color)
    np.testing.assert_allclose(ours, [0.25, 0.75], atol=1e-5)
    # Tables 14, 2, 2, 2 and 1, over 31.79
    np.testing.assert_allclose(paper[-1], 28.2 / 31.7915, atol=1e-5)
    assert len(paper) == 5
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "1", "2.5", "5", "10"]


def test_a_task_without_a_number_to_draw_says_so_in_its_panel(make_result):
    # a task of one's own has no largest return to divide by
    figure = coverage_figure([make_result(task="PointReach", setting="expert=0.01", metric="success_last")])
    assert texts(titled(figure, "PointReach")) == ["no runs"]
    assert texts(titled(figure, "FetchReach")) == []


def test_names_of_many_bars_do_not_lie_on_each_other(make_result):
    shared = {"setting": "expert=1;images", "metric": "success_last", "value": 0.5}
    figure = image_figure(make_result(task="Tabletop-pick", method=method, **shared) for method in METHODS)
    FigureCanvasAgg(figure).draw()
    places = [label.get_window_extent() for label in titled(figure, "Tabletop-pick").get_xticklabels()]
    assert len(places) == len(METHODS)
    assert not any(one.overlaps(other) for one, other in pairwise(places))


def test_noise_is_drawn_where_there_are_runs_and_said_to_be_missing_where_not(make_result):
    runs = [make_result(value=30.0), make_result(setting="noise=0.5", value=20.0)]
    axis = titled(noise_figure(runs), "FetchReach")
    assert texts(axis) == []
    np.testing.assert_allclose(points(axis, method_styles(["SMORe"])["SMORe"].color), [[30.0, 20.0]])
    assert texts(titled(noise_figure([]), "FetchReach")) == ["no runs"]


def test_aggregates_are_drawn_with_their_intervals():
    one = Estimate(np.array(0.6), np.array(0.4), np.array(0.7), "x")
    axis = improvement_figure("SMORe", {"AM": one}).axes[0]
    (interval,) = axis.collections
    np.testing.assert_allclose(interval.get_segments()[0][:, 0], [0.4, 0.7])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["AM"]
    levels = np.array([0.0, 1.0])
    profile = profile_figure(levels, {"AM": Estimate(np.array([0.8, 0.1]), levels * 0, levels * 0 + 1, "x")}).axes[0]
    np.testing.assert_allclose(profile.lines[0].get_ydata(), [0.8, 0.1])
    assert texts(improvement_figure("SMORe", {}).axes[0]) == ["no task that SMORe and another method have"]


def test_a_figure_becomes_a_png_and_a_pdf_of_the_same_bytes_each_time(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    paths = save_figure(learning_figure([]), tmp_path / "new" / "empty")
    before = [path.read_bytes() for path in paths]
    assert [path.name for path in paths] == ["empty.png", "empty.pdf"]
    assert imageio.imread(paths[0]).ndim == 3
    assert before[1].startswith(b"%PDF-")
    assert before[1].rstrip().endswith(b"%%EOF")
    save_figure(learning_figure([]), tmp_path / "new" / "empty")
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["empty.pdf", "empty.png"]
    assert pyplot.get_fignums() == []


def test_success_from_pictures_is_a_bar_for_each_method_and_a_panel_for_each_task(make_result):
    shared = {"setting": "expert=1;images", "metric": "success_last"}
    runs = [
        make_result(task="Tabletop-pick", method=method, seed=seed, value=value, **shared)
        for method, values in (("SMORe", (0.2, 0.4)), ("CRL", (0.5,)))
        for seed, value in enumerate(values)
    ]
    runs += [make_result(task="PointReach", value=0.9, **shared), make_result(metric="success_last")]
    figure = image_figure(runs)
    tasks = ["Tabletop-drawer", "Tabletop-pick", "Tabletop-pick-close", "Tabletop-push-open", "PointReach"]
    assert [axis.get_title() for axis in figure.axes[:5]] == tasks
    axis = titled(figure, "Tabletop-pick")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["SMORe", "CRL"]
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches], [0.3, 0.5])
    styles = method_styles(["SMORe", "CRL"])
    colors = [style.color for style in (styles["SMORe"], styles["CRL"])]
    assert [to_hex(bar.get_facecolor()) for bar in axis.patches] == [to_hex(color) for color in colors]
    # a bar of one deviation for two seeds, none for one
    (spread,) = [part.get_segments()[0] for part in axis.collections]
    np.testing.assert_allclose(spread[:, 1], [0.3 - np.sqrt(0.02), 0.3 + np.sqrt(0.02)])
    assert texts(titled(figure, "Tabletop-drawer")) == ["no runs"]
    assert len(titled(figure, "PointReach").patches) == 1
