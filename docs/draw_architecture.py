"""Draws ``images/architecture.svg``: the floors of the package, which part imports which, and where a batch goes.

python docs/draw_architecture.py
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).parent / "images" / "architecture.svg"
Points = tuple[tuple[int, int], ...]
_SIZE = (1000, 720)
_HEIGHT = 74

#: Part: left edge, top edge, width, what it holds.
PARTS = {
    "recipes": (40, 40, 920, "commands: from options to a run folder"),
    "reports": (40, 170, 230, "tables, statistics, figures"),
    "trainers": (360, 170, 270, "update, loop, evaluation"),
    "envs": (720, 170, 240, "tasks, experts, collection"),
    "objectives": (190, 300, 350, "losses: keys, networks, reductions"),
    "data": (630, 300, 330, "store, readers, samplers"),
    "modules": (40, 430, 150, "networks"),
    "_dispatch": (330, 430, 210, "reference or kernel"),
    "functional": (40, 560, 640, "formulas and index arithmetic: tensors in, tensors out"),
    "smore_kernels": (740, 560, 220, "formulas in Triton"),
}
#: Importing part, imported part, arrow.
IMPORTS: tuple[tuple[str, str, Points], ...] = (
    ("recipes", "reports", ((155, 114), (155, 170))),
    ("recipes", "trainers", ((495, 114), (495, 170))),
    ("recipes", "envs", ((840, 114), (840, 170))),
    ("trainers", "modules", ((380, 244), (380, 272), (115, 272), (115, 430))),
    ("trainers", "objectives", ((430, 244), (430, 300))),
    ("trainers", "data", ((610, 244), (610, 272), (660, 272), (660, 300))),
    ("envs", "data", ((840, 244), (840, 300))),
    ("objectives", "functional", ((300, 374), (300, 560))),
    ("objectives", "_dispatch", ((435, 374), (435, 430))),
    ("modules", "functional", ((115, 504), (115, 560))),
    ("_dispatch", "functional", ((400, 504), (400, 560))),
    ("_dispatch", "smore_kernels", ((500, 504), (500, 532), (850, 532), (850, 560))),
    ("data", "functional", ((660, 374), (660, 560))),
)
#: Where a batch goes: arrow, place of the label, label.
ROUTE: tuple[tuple[Points, tuple[int, int], str], ...] = (
    (((630, 337), (540, 337)), (585, 327), "1 batch"),
    (((222, 374), (222, 560)), (214, 395), "2 rows"),
    (((262, 560), (262, 374)), (214, 412), "3 terms"),
    (((490, 300), (490, 244)), (500, 264), "4 losses"),
    (((630, 207), (720, 207)), (675, 197), "5 policy"),
    (((360, 207), (270, 207)), (315, 197), "6 metrics"),
)
_ANCHORS = {"2 rows": "end", "3 terms": "end", "4 losses": "start"}
_STYLE = """
text { font-family: system-ui, sans-serif; fill: #1f2933; }
.name { font: 600 17px ui-monospace, monospace; }
.holds, .label { font-size: 14px; }
.label { fill: #b3410e; font-weight: 600; }
.part { fill: #f1f5f9; stroke: #64748b; }
.import { stroke: #94a3b8; stroke-width: 1.5; fill: none; marker-end: url(#grey); }
.route { stroke: #d9531e; stroke-width: 3; fill: none; marker-end: url(#orange); }
"""
_LEGEND = (
    "Grey: imports, which point downwards only. Orange: where a batch goes.",
    "1 a sampler draws offline and goal transitions; 2 a loss hands tensors to formulas; 3 one term per row returns;",
    "4 an update: backward, optimiser, target network; 5 an evaluation plays episodes; 6 files become reports.",
)


def draw() -> str:
    """The drawing."""
    width, height = _SIZE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>The parts of torchrl_smore, their imports, and the way of a batch</title>",
        f"<style>{_STYLE}</style>",
        f"<defs>{_arrow_head('grey', '#94a3b8', 8)}{_arrow_head('orange', '#d9531e', 5)}</defs>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for name, (left, top, span, holds) in PARTS.items():
        lines += [
            f'<rect x="{left}" y="{top}" width="{span}" height="{_HEIGHT}" rx="6" class="part"/>',
            _text(left + span // 2, top + 31, name, "name"),
            _text(left + span // 2, top + 55, holds, "holds"),
        ]
    lines += [_path(points, "import") for _, _, points in IMPORTS]
    for points, (x, y), label in ROUTE:
        lines += [_path(points, "route"), _text(x, y, label, "label", _ANCHORS.get(label, "middle"))]
    lines += [_text(40, 662 + 20 * number, text, "holds", "start") for number, text in enumerate(_LEGEND)]
    return "\n".join([*lines, "</svg>", ""])


def _text(x: int, y: int, text: str, kind: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(points: Points, kind: str) -> str:
    return f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" class="{kind}"/>'


def _arrow_head(name: str, color: str, size: int) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{size}" markerHeight="{size}" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{color}"/></marker>'
    )


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
