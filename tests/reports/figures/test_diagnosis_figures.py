"""Figures of a diagnosis show what its findings judge, with a unit on every axis."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from torchrl_smore.reports.figures.diagnosis import (
    episodes_figure,
    inputs_figure,
    phases_figure,
    scores_figure,
    weights_figure,
)
from torchrl_smore.reports.numbers.findings import COSINE, PREFERENCE, Diagnosis

FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg


def rows(*found):
    """Rows as they are read from a file: of text."""
    return [{name: str(value) for name, value in row.items()} for row in found]


def goals(*columns):
    return rows(*({"input": "desired_goal", "column": column, "beyond": 0.0, "largest": 2.0} for column in columns))


@pytest.fixture
def diagnosis():
    """Numbers, phases, inputs, quantiles, weights and three episodes."""
    levels = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    phases = (("before", 0.9), ("moving", 0.7), ("at_goal", -0.2))
    episodes = list(enumerate(("reached", "never moved", "reached")))
    classes = (("expert", False), ("random", True))
    columns = ("score_mean", "score_std", "value_mean", "value_std")
    tables = {
        "phases": rows(*({"phase": p, "rows": 10, "cosine": c, "preferred": 0.5} for p, c in phases)),
        "inputs": goals("x [m]", "y [m]"),
        "episodes": rows(*({"seed": seed, "outcome": outcome} for seed, outcome in episodes)),
        "distances": rows(*({"seed": seed, "distance": 0.1 * step} for seed, _ in episodes for step in range(3))),
        "scores": rows(*({"remaining": steps, **dict.fromkeys(columns, 1 / steps)} for steps in (1, 2, 3))),
        "weights": rows(
            *(
                {"behaviour": b, "goal": "hindsight", "at_goal": a, "moving": a, "rows": 0.5, "weight_share": 0.5}
                for b, a in classes
            )
        ),
        "quantiles": rows(
            *(
                {"quantity": quantity, "group": group, "quantile": level, "value": level}
                for quantity in ("advantage", "score")
                for group in ("expert", "random")
                for level in levels
            )
        ),
    }
    return Diagnosis({"threshold": 0.05, "experts": "expert"}, {"lower": 0.0, "upper": 1.0}, {}, tables)


def test_the_threshold_stands_over_the_phases_that_are_judged_and_no_other(diagnosis):
    for axis, threshold in zip(phases_figure(diagnosis).axes, (COSINE, PREFERENCE)):
        assert not [line for line in axis.lines if line.get_linestyle() == "--"]
        lines = np.concatenate([lines.get_segments() for lines in axis.collections])
        assert set(lines[..., 1].flat) == {threshold}
        first, second = lines[..., 0]
        # bars stand at 0, 1 and, at the goal, at 2
        assert first[0] < 0 < first[1] < second[0] < 1 < second[1] < 1.5


@pytest.mark.parametrize(
    ("columns", "unit"),
    [(("x [m]", "y [m]"), "m"), (("x [m]", "angle [rad]"), "unit of the goal"), (("x", "y"), "unit of the goal")],
)
def test_the_distance_has_the_unit_of_the_goal(diagnosis, columns, unit):
    diagnosis.tables["inputs"] = goals(*columns)
    assert episodes_figure(diagnosis).axes[0].get_ylabel() == f"distance to the goal [{unit}]"
    del diagnosis.tables["inputs"]
    assert episodes_figure(diagnosis).axes[0].get_ylabel() == "distance to the goal [unit of the goal]"


@pytest.mark.parametrize("draw", [weights_figure, scores_figure, phases_figure, inputs_figure, episodes_figure])
def test_every_axis_of_numbers_says_what_it_counts(diagnosis, draw):
    for axis in draw(diagnosis).axes:
        for side in (axis.xaxis, axis.yaxis):
            # of classes, phases and groups the ticks are the names
            names = any(label.get_text()[:1].isalpha() for label in side.get_ticklabels())
            assert side.get_label_text() or names, (axis.get_title(), side.axis_name)


def test_the_names_of_many_classes_do_not_lie_on_each_other_nor_the_legend_on_a_bar(diagnosis):
    diagnosis.tables["weights"] = diagnosis.tables["weights"] * 12
    figure = weights_figure(diagnosis)
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    places = [label.get_window_extent() for label in axis.get_yticklabels()]
    assert len(places) == 24
    assert not any(one.overlaps(other) for one, other in pairwise(places))
    legend = axis.get_legend().get_window_extent()
    assert not any(legend.overlaps(bar.get_window_extent()) for bar in axis.patches)
    assert not legend.overlaps(axis.xaxis.get_tightbbox())


def test_episodes_are_counted_in_whole_numbers(diagnosis):
    ticks = episodes_figure(diagnosis).axes[1].get_xticks()
    assert (ticks == np.round(ticks)).all()
