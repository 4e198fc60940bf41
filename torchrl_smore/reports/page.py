"""A report as one HTML file that needs nothing else: no script, no request, images inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --tint: #f5f7f9; }
body { margin: 0 auto; max-width: 82rem; padding: 1.5rem 1.25rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 1.8rem 0 .4rem; }
nav { background: var(--tint); padding: .7rem 1rem; border-radius: .4rem; margin: 1.2rem 0; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: #0a58ca; }
p, li { max-width: 60rem; }
code, pre { font: .88em/1.45 ui-monospace, "Liberation Mono", Menlo, monospace; background: var(--tint); }
code { padding: .1em .3em; border-radius: .2em; overflow-wrap: anywhere; }
pre { padding: .7rem 1rem; overflow: auto; max-height: 24rem; }
figure { margin: 1.2rem 0 1.8rem; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: .3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .45rem; text-align: right; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2), .text th, .text td { text-align: left; }
.text td { white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--ink); }
tr.ours td { border-top: 1px solid var(--line); }
tr.paper td { color: var(--soft); }
.text tbody td { border-top: 1px solid var(--line); }
.notes, .caption { font-size: .85rem; color: var(--soft); }
.notes p { margin: .3rem 0; }
.holds td:nth-child(2), .fails td:nth-child(2) { font-weight: 600; }
.holds td:nth-child(2) { color: #05603a; } .fails td:nth-child(2) { color: #a4262c; }
.open td { color: var(--soft); }
.warning { background: #fff6e0; border-left: 4px solid #b87503; padding: .5rem .9rem; }
summary { cursor: pointer; margin: .6rem 0; }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: ``anchor`` for links, ``title`` as text, ``body`` as HTML."""

    anchor: str
    title: str
    body: str


def build_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: plain text.
        lead: HTML below the title.
        sections: in order; they are linked at the top.
    """
    links = " ".join(f'<a href="#{s.anchor}">{html.escape(s.title)}</a>' for s in sections)
    body = [f'<section id="{s.anchor}"><h2>{html.escape(s.title)}</h2>\n{s.body}\n</section>' for s in sections]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # what is not in this file is refused, should anything ever ask for it
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            lead,
            f"<nav>{links}</nav>",
            *body,
            "</body></html>",
            "",
        ]
    )


def embedded_image(png: Path, title: str, caption: str) -> str:
    """A PNG file as part of the page."""
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    return (
        f'<figure id="{html.escape(png.stem)}"><figcaption>{html.escape(title)}</figcaption>\n'
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">\n'
        f'<p class="caption">{html.escape(caption)}</p></figure>'
    )


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """A table of plain text.

    Args:
        header: names of the columns.
        rows: as many texts each.
        classes: CSS classes, one for each row, or none.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in row)
        body.append(f'<tr class="{classes[i]}">{cells}</tr>' if classes else f"<tr>{cells}</tr>")
    return "\n".join(
        [
            '<div class="scroll text"><table>',
            f"<thead><tr>{head}</tr></thead><tbody>",
            *body,
            "</tbody></table></div>",
        ]
    )


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph, of a CSS class if one is given."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def details(summary: str, body: str) -> str:
    """HTML that opens on demand."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{body}\n</details>"
