"""Readers meet standard terms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "recipes", "torchrl_smore", "kernels", "benchmarks", "tools", "upstream", "tests")
FILES = [
    *(path for name in FOLDERS for kind in ("md", "rst", "py", "yaml") for path in (ROOT / name).rglob(f"*.{kind}")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")),
]
FILES.remove(Path(__file__))
# what is not said: what is said in its place
INSTEAD = {
    r"[Rr]unning (tasks?|experts?|environments?)\b": "locomotion",
    r"whole or not at all": "atomically",
    r"\bgo(es)? on (after a kill|with the run|where it)": "resume",
    r"\bGo on with: ": "Resume with: ",
    r"[;(] ?none: (the|a|one|all|what|where|recognised|[0-9])": "default: ",
    r"\b[Ss]ome (two|three|four|five|ten|dozen|hundred|thousand|[0-9])": "about",
    r"\b(us|ms|s|GFLOP|bytes|[KMG]B|numbers?|rows|steps|updates|episodes|seeds|trajectories|once|twice|times) an? "
    r"(update|task|run|row|seed|cell|parameter|program)\b": "per",
}


@pytest.mark.parametrize("pattern", INSTEAD)
def test_standard_terms(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"say {INSTEAD[pattern]!r}"
