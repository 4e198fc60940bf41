"""``recipe-options::``: what each command of ``recipes/`` takes, from the dataclass that declares it."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

RECIPES = Path(__file__).parents[2] / "recipes"


def recipes() -> list[str]:
    """Names of the commands that declare their options, in alphabetical order."""
    return sorted(path.stem for path in RECIPES.glob("*.py") if "run_recipe(Config" in path.read_text(encoding="utf-8"))


class RecipeOptions(SphinxDirective):
    """A section for each command: its purpose, and a table of its options."""

    def run(self) -> list[nodes.Node]:
        """Expands to reStructuredText."""
        as_given = importlib.import_module("parts.cli").as_given
        lines = []
        for name in recipes():
            module = importlib.import_module(name)
            self.env.note_dependency(str(module.__file__))
            title = f"``{name}.py``"
            summary = (module.__doc__ or "").split("\n\n")[0]
            lines += [title, "-" * len(title), "", *summary.splitlines(), ""]
            lines += [".. list-table::", "   :header-rows: 1", "", "   * - option", "     - default", "     -"]
            for field in dataclasses.fields(module.Config):
                default = field.default
                if field.default_factory is not dataclasses.MISSING:
                    default = field.default_factory()
                # read as plain text: it is what ``--help`` prints
                text = field.metadata["help"].replace("\\", "\\\\").replace("*", "\\*").replace("`", "\\`")
                lines += [f"   * - ``{field.name}=``", f"     - ``{as_given(default)}``", f"     - {text}"]
            lines.append("")
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Adds the directive."""
    sys.path.insert(0, str(RECIPES))
    app.add_directive("recipe-options", RecipeOptions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
