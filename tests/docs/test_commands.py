"""Commands on the site, in the README and in CONTRIBUTING name files and options that exist."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The words of each command of a page that starts Python, comments and what is after a pipe left out."""
    text = page.read_text(encoding="utf-8")
    fenced = [block for kind, block in _FENCE.findall(text) if kind in ("", "bash", "text")]
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    lines += [line[4:] for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    found = []
    for line in lines:
        match = re.match(r"\s*(?:\w+=\S+ )*python3? ((?:recipes|benchmarks|tests|docs)/.*)", line)
        if match is not None:
            # two spaces begin the remark beside a command
            words = shlex.split(re.split(r"\s{2,}(?=\S)", match[1])[0], comments=True)
            found.append(words)
    return found


@cache
def options_of(script: Path) -> frozenset[str] | None:
    """Names of the options of a Hydra recipe: annotated fields of its ``Config``; ``None`` for other scripts."""
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            own = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
            return frozenset(own)
    return None


COMMANDS = [(page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words)[:80] for _, words in COMMANDS])
def test_a_command_names_a_script_and_options_that_exist(page, words):
    script = ROOT / words[0]
    assert script.is_file(), f"{page}: {words[0]} does not exist"
    known = options_of(script)
    if known is not None:
        given = {word.split("=")[0] for word in words[1:] if "=" in word}
        assert given <= known, f"{page}: {words[0]} has no option {sorted(given - known)}"


def test_commands_are_found():
    assert len(COMMANDS) > 60
    assert any(words[:2] == ["recipes/diagnose.py", "run=runs/NAME"] for _, words in COMMANDS)
