"""How every figure of a report looks: one style for each method, one way to be saved."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_smore._files import replacing
from torchrl_smore.reports.numbers import CONTROL, method_label, method_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# colours of Okabe and Ito (2008), then of Tol's muted scheme, told apart under any colour blindness; marker and dash
# tell methods apart without colour as well
_STYLES: dict[str, tuple[str, str, Any]] = {
    "SMORe": ("#D55E00", "o", "-"),
    "GoFAR": ("#0072B2", "s", "-"),
    "WGCSL": ("#009E73", "^", "-"),
    "GCSL": ("#56B4E9", "v", "-"),
    "CRL": ("#CC79A7", "D", "-"),
    "AM": ("#E69F00", "P", "-"),
    "GC-IQL": ("#000000", "X", "--"),
    "GC-SQL": ("#882255", "<", "--"),
    "GC-EQL": ("#999933", ">", "--"),
    "GC-XQL": ("#332288", "*", "--"),
    "GC-BC": ("#777777", "h", ":"),
}
_CONTROL = ("#444444", "d", (0, (4, 2)))
# the rest of Tol's muted scheme, so that no method of one's own looks like one of these
_OTHERS = [
    *(("#CC6677", "p", "-."), ("#117733", "8", "-."), ("#AA4499", "H", "-.")),
    *(("#44AA99", "p", "-."), ("#DDCC77", "8", "-."), ("#661100", "H", "-.")),
]
_DPI = 120
_LEGEND_HEIGHT, _LEGEND_COLUMNS = 0.7, 6  # inches and names, of a legend that has a row for itself
_UNIT = re.compile(r"\[([^\[\]]+)\]$")


@dataclass(frozen=True)
class Style:
    """Colour, marker and dashes of one method, as keyword arguments of Matplotlib."""

    color: str
    marker: str
    linestyle: Any
    linewidth: float

    @property
    def line(self) -> dict[str, Any]:
        """For a line without markers."""
        return {"color": self.color, "linestyle": self.linestyle, "linewidth": self.linewidth}


def goal_unit(columns: Sequence[str]) -> str:
    """The unit that all columns of a goal name, as ``"x [m]"`` does; of several, or none, that it is the goal's."""
    found = {match[1] if (match := _UNIT.search(column)) else "" for column in columns}
    (unit,) = found if len(found) == 1 else ("",)
    return unit or "unit of the goal"


@contextlib.contextmanager
def needing_plots(what: str) -> Iterator[None]:
    """Turns the lack of a package of the extra ``plots`` into an error that says so.

    Args:
        what: what is drawn or written, for the error.

    Raises:
        ImportError: if an import inside fails for a module that is missing; says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f'{what} needs {error.name}: pip install "torchrl-smore[plots]"') from error


def method_styles(methods: Sequence[str]) -> dict[str, Style]:
    """The style of each method in the fixed order; it does not depend on which others are shown.

    Methods that are not :data:`~torchrl_smore.reports.numbers.METHODS` have six colours of their own, in turn, with
    dash-dotted lines, in alphabetical order among themselves.
    """
    styles = {}
    others = 0
    for method in method_order(methods):
        look = _CONTROL if method == CONTROL else _STYLES.get(method)
        if look is None:
            look, others = _OTHERS[others % len(_OTHERS)], others + 1
        styles[method] = Style(look[0], look[1], look[2], linewidth=2.4 if method == "SMORe" else 1.4)
    return styles


def panels(count: int, columns: int, *, width: float, height: float, legend: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` equal panels (inches each), and a last one for the legend.

    Returns:
        The figure and ``count`` axes, with the legend's, if any, as one more.
    """
    # a figure of its own and not pyplot, whose backend and open figures are the user's
    with needing_plots("a figure"):
        from matplotlib.figure import Figure

    total = count + legend
    columns = min(columns, total)
    if total > columns > 2 and total % columns == 1:
        columns -= 1  # a last row of one panel would be empty but for the legend
    rows = -(-total // columns)
    # a legend that has a row for itself lies along it
    alone = legend and columns > 1 and count % columns == 0
    heights = [height] * (rows - alone) + [_LEGEND_HEIGHT] * alone
    figure = Figure(figsize=(width * columns, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    axes = [figure.add_subplot(grid[divmod(number, columns)]) for number in range(total - alone)]
    if alone:
        axes.append(figure.add_subplot(grid[-1, :]))
    for axis in axes[:count]:
        axis.grid(color="0.9", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axes[count].axis("off")
    return figure, axes


def draw_legend(axis: Axes, methods: Sequence[str], extra: Sequence[Any] = ()) -> None:
    """Names of the methods in order, and further handles, in a panel of its own."""
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], **style.line, marker=style.marker, markersize=5, label=method_label(name))
        for name, style in method_styles(methods).items()
    ]
    handles += extra
    spans = axis.get_subplotspec()
    across = spans is not None and len(spans.colspan) > 1
    if handles:
        columns = min(len(handles), _LEGEND_COLUMNS) if across else 1
        axis.legend(handles=handles, loc="center", fontsize=9, frameon=False, handlelength=3, ncols=columns)


def say_empty(axis: Axes, text: str = "no runs") -> None:
    """Says in a panel that there is nothing to draw."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="0.45", fontsize=10)


def save_figure(figure: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Writes ``<stem>.png`` and ``<stem>.pdf``, each atomically, and makes their folder.

    The same figure gives the same bytes.

    Args:
        figure: of matplotlib.
        stem: path without suffix.

    Returns:
        The paths of both.
    """
    from matplotlib import rc_context

    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".pdf")
    # fonts as text that can be selected and searched
    with rc_context({"pdf.fonttype": 42}):
        for path, metadata in zip(paths, ({"Software": None}, {"CreationDate": None})):
            with replacing(path) as beside:
                figure.savefig(beside, dpi=_DPI, format=path.suffix[1:], metadata=metadata)
    return paths
