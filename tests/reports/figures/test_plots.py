"""Curves and rollouts become files that others can read."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_smore.reports import plot_curves, plot_goals, write_gif
from torchrl_smore.reports.figures.plots import read_metrics

pytest.importorskip("matplotlib")
imageio = pytest.importorskip("imageio.v3")

METRICS = """step,loss_score,eval/discounted_return_0.99,eval/success_last,weight_clipped,unknown
10,0.5,,,0.1,3
20,,1.5,0.2,,
20,0.25,,,nan,
40,,9.0,1,,
"""


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    return path


def test_columns_come_with_the_steps_where_they_have_a_value(metrics):
    columns = read_metrics(metrics)
    np.testing.assert_array_equal(columns["loss_score"], [[10, 20], [0.5, 0.25]])
    np.testing.assert_array_equal(columns["eval/success_last"], [[20, 40], [0.2, 1]])
    np.testing.assert_array_equal(columns["weight_clipped"], [[10, 20], [0.1, np.nan]])
    assert "step" not in columns


SEEDS = """step,seed,loss_score,eval/success_last
10,0,1.0,
10,3,3.0,
20,0,,0.5
20,3,,0.7
30,0,5.0,
30,3,7.0,
40,0,9.0,
"""


def test_of_several_seeds_the_mean_is_read_or_one_of_them(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(SEEDS)
    # seed 3 was killed before its last row
    np.testing.assert_allclose(read_metrics(path)["loss_score"], [[10, 30], [2.0, 6.0]])
    np.testing.assert_allclose(read_metrics(path)["eval/success_last"], [[20], [0.6]])
    np.testing.assert_array_equal(read_metrics(path, seed=0)["loss_score"], [[10, 30, 40], [1.0, 5.0, 9.0]])
    assert "seed" not in read_metrics(path)
    with pytest.raises(ValueError, match="no rows of seed 1; its seeds: 0, 3"):
        read_metrics(path, seed=1)


def test_the_range_over_seeds_is_shaded(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bands = []
    monkeypatch.setattr(Axes, "fill_between", lambda self, *args, **kwargs: bands.append(args))
    path = tmp_path / "metrics.csv"
    path.write_text(SEEDS)
    plot_curves(path, tmp_path / "curves.png")
    assert [[list(values) for values in band] for band in bands] == [
        [[20], [0.5], [0.7]],
        [[10, 30], [1.0, 5.0], [3.0, 7.0]],
    ]
    bands.clear()
    path.write_text(METRICS)
    plot_curves(path, tmp_path / "curves.png")
    assert not bands


@pytest.mark.parametrize(
    ("discounts", "shown", "largest"),
    [
        ((0.98, 0.99), ["0.99", "0.98"], (1 - 0.99**50) / 0.01),
        ((0.9, 0.95, 1), ["0.9", "0.95", "1"], (1 - 0.9**50) / 0.1),
        ((1,), ["1"], 50.0),
    ],
)
def test_returns_are_drawn_at_whatever_discounts_a_run_has(tmp_path, monkeypatch, discounts, shown, largest):
    from matplotlib.axes import Axes

    drawn, lines = [], []
    monkeypatch.setattr(Axes, "legend", lambda self, **how: drawn.append(self.get_legend_handles_labels()[1]))
    monkeypatch.setattr(Axes, "axhline", lambda self, height, **how: lines.append(height))
    path = tmp_path / "metrics.csv"
    names = [f"eval/discounted_return_{discount}" for discount in discounts]
    path.write_text("\n".join([",".join(["step", *names]), ",".join("1" for _ in ["step", *names]), ""]))
    plot_curves(path, tmp_path / "curves.png")
    assert drawn == [[f"discount {discount}" for discount in shown]]
    assert lines == [pytest.approx(largest)]


def test_curves_are_a_picture_with_something_on_it(metrics, tmp_path):
    out = plot_curves(metrics, tmp_path / "curves.png", title="a run")
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    image = imageio.imread(out)
    # four panels: two rows of three, 4.2 by 2.8 inches each at 110 dots an inch
    np.testing.assert_allclose(image.shape[:2], [2 * 2.8 * 110, 3 * 4.2 * 110], atol=1)
    # axes, labels and lines; the panel that is not used is blank
    assert (image[..., :3].min(-1) < 250).mean() > 0.01
    assert image[400:, 950:, :3].min() == 255
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]


@pytest.mark.parametrize(
    ("columns", "unit"),
    [(("x [m]", "y [m]"), "m"), (("x [m]", "angle [rad]"), "unit of the goal"), ((), "unit of the goal")],
)
def test_the_distance_has_the_unit_of_the_goal_and_no_other_panel_has_it(tmp_path, monkeypatch, columns, unit):
    from matplotlib.axes import Axes

    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **kwargs: titles.append(text))
    path = tmp_path / "metrics.csv"
    path.write_text("step,eval/success_last,eval/final_distance\n1,0.5,0.1\n")
    plot_curves(path, tmp_path / "curves.png", goal_columns=columns)
    assert titles == ["success", f"final distance [{unit}]"]


def test_curves_leave_the_users_figures_and_backend_alone(metrics, tmp_path, monkeypatch):
    import matplotlib

    used = []
    monkeypatch.setattr(matplotlib, "use", lambda *args, **kwargs: used.append(args))
    plot_curves(metrics, tmp_path / "curves.png")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    assert not used
    assert pyplot.get_fignums() == []


def test_an_older_picture_is_replaced(metrics, tmp_path):
    out = tmp_path / "curves.png"
    out.write_bytes(b"old")
    plot_curves(metrics, out)
    assert imageio.imread(out).ndim == 3


@pytest.mark.parametrize("text", ["step\n", "step,unknown\n1,2\n", "step,loss_score\n1,\n"])
def test_without_a_known_column_the_file_is_named_and_nothing_is_drawn(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.csv has none of the columns"):
        plot_curves(path, tmp_path / "curves.png")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_gif_is_read_back_frame_by_frame(tmp_path):
    frames = np.zeros((5, 20, 30, 3), dtype=np.uint8)
    for number in range(5):
        frames[number, 4 * number : 4 * number + 4] = 255
    out = write_gif(frames, tmp_path / "rollout.gif", fps=10)
    back = imageio.imread(out, index=None)[..., :3]
    assert back.shape == frames.shape
    # black and white survive the palette
    np.testing.assert_allclose(back.astype(int), frames.astype(int), atol=4)
    meta = imageio.immeta(out)
    assert (meta["duration"], meta["loop"]) == (100, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["rollout.gif"]


def test_a_goal_is_seen_on_white_however_often_it_was_reached(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    scatter = Axes.scatter
    monkeypatch.setattr(Axes, "scatter", lambda *args, **kwargs: drawn.append(scatter(*args, **kwargs)) or drawn[-1])
    share = np.linspace(0, 1, 5)
    assert plot_goals(np.stack([share, share**2], 1), share, ["x [m]", "y [m]"], tmp_path / "goals.png")
    (marks,) = drawn
    luminance = marks.cmap(share)[:, :3] @ [0.2126, 0.7152, 0.0722]
    # one lightness for one share, for whoever sees no red or green
    assert (np.diff(luminance) > 0.05).all()
    (edge,) = marks.get_edgecolor()
    assert edge[:3] @ [0.2126, 0.7152, 0.0722] < 0.3
    assert marks.get_linewidth()[0] > 0


def test_no_text_leaves_the_picture_and_steps_are_written_out(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: kept.append(self) or save(self, *args, **kwargs)
    )
    title = "A-task-with-a-name-that-goes-on-and-on-and-on, method_with_a_long_name_as_well"
    plot_goals(np.eye(3), np.ones(3), ["x [m]", "y [m]", "z [m]"], tmp_path / "goals.png", title=title)
    figure = kept.pop()
    (said,) = [text for text in figure.texts if text.get_text()]
    extent, whole = said.get_window_extent(), figure.bbox
    assert 0 <= extent.x0 < extent.x1 <= whole.x1
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss_score\n0,1.0\n1000000,0.5\n")
    plot_curves(path, tmp_path / "curves.png")
    assert "1,000,000" in [label.get_text() for label in kept.pop().axes[0].get_xticklabels()]
    # of few updates no number stands at two ticks
    path.write_text("step,loss_score\n0,1.0\n2,0.5\n")
    plot_curves(path, tmp_path / "curves.png")
    ticks = [label.get_text() for label in kept.pop().axes[0].get_xticklabels()]
    assert len(set(ticks)) == len(ticks)
