"""Links of the pages at the root of the repository lead somewhere; Sphinx checks those of the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_a_page_links_to_or_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    linked = {target.split("#")[0] for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text)}
    named = set(re.findall(r"\b(?:docs|recipes|tests|benchmarks|tools)/[\w./]*\w\.(?:md|py|yaml)\b", text))
    assert linked | named
    assert not sorted(path for path in linked | named if path and "NAME" not in path and not (ROOT / path).exists())
