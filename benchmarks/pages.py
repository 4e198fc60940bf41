"""Tables and figures of the benchmarks; imports PyTorch nowhere, and Matplotlib where it draws."""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# the writer of the package without the package, which imports PyTorch
_FILES = runpy.run_path(str(Path(__file__).parents[1] / "torchrl_smore" / "_files.py"))
replacing, write_text = _FILES["replacing"], _FILES["write_text"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], squeeze: bool = True) -> Any:
    """Figure and axes that need no display and leave pyplot's open figures alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=squeeze)
