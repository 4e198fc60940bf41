"""The picture of the architecture is what its script draws, and shows imports that the layers allow."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRAWING = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))


def test_the_picture_is_what_the_script_draws():
    assert DRAWING["FILE"].read_text(encoding="utf-8") == DRAWING["draw"]()


def test_arrows_are_imports_that_the_layers_allow_and_lead_from_part_to_part():
    allowed, parts = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["ALLOWED"], DRAWING["PARTS"]
    assert {name for name in allowed if not name.startswith("_") or name == "_dispatch"} <= set(parts)
    for above, below, points in DRAWING["IMPORTS"]:
        assert above == "recipes" or below in allowed[above], (above, below)
        for name, (x, y), edge in ((above, points[0], 74), (below, points[-1], 0)):
            left, top, width, _ = parts[name]
            assert left <= x <= left + width, (above, below)
            assert y == top + edge, (above, below)
