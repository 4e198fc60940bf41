"""Equations as MathML, which browsers draw themselves: no script and no network.

What docutils' converter does not know is a warning, so that a build with warnings as errors refuses it.
"""

from __future__ import annotations

import html

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

_logger = logging.getLogger(__name__)


def _markup(node: nodes.math | nodes.math_block, block: bool) -> str:
    latex = node.astext().strip()
    if block and "\\\\" in latex and "\\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    try:
        return tex2mathml(latex, as_block=block)
    except MathError as error:
        _logger.warning("equation %r cannot be set: %s", latex, error, location=node, type="mathml")
        return f"<code>{html.escape(latex)}</code>"


def _visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_markup(node, block=False))
    raise nodes.SkipNode


def _visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math-block"))
    if node.get("number"):
        translator.body.append(f'<span class="eqno">({node["number"]})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(f"{_markup(node, block=True)}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Registers the renderer; ``html_math_renderer = "mathml"`` chooses it."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
