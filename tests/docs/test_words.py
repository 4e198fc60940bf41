"""Readers meet standard terms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "docs").rglob("*.rst"),
    *(ROOT / "recipes").rglob("*.py"),
    *(ROOT / "torchrl_smore").rglob("*.py"),
    *(ROOT / "kernels").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
]
# what is not said: what is said in its place
INSTEAD = {
    r"[Rr]unning (tasks?|experts?)\b": "locomotion",
    r"whole or not at all": "atomically",
    r"\bgo(es)? on (after a kill|with the run|where it)": "resume",
    r"\bGo on with: ": "Resume with: ",
    r"[;(] ?none: (the|a|one|all|what|where|recognised|[0-9])": "default: ",
    r"\bsome (ten|hundred|thousand|[0-9])": "about",
    r"[0-9] (us|ms|s|bytes|MB|rows|steps|updates|episodes) an? (update|task|run|row|seed|cell|parameter)\b": "per",
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
