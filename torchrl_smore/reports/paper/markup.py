"""A table as text: Markdown, LaTeX or HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torchrl_smore.reports.numbers import Sample


@dataclass(frozen=True)
class Entry:
    """A filled cell; ``digits`` after the point, ``mark`` one of ``""``, ``"†"``, ``"‡"``."""

    sample: Sample
    digits: int
    show_seeds: bool
    best: bool = False
    star: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """One line: a task by us or by the paper."""

    task: str
    source: Literal["ours", "paper"]
    entries: tuple[Entry | None, ...]


@dataclass(frozen=True)
class Table:
    """One view of one table, ready to be printed.

    Args:
        title: above it.
        columns: their heads, one for each method.
        rows: of the paper and of ours, two for each task.
        notes: below it.
        command: the line that makes it again, written as a comment.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    command: str


def to_markdown(table: Table) -> str:
    """GitHub Markdown, with the command as a comment above it."""
    lines = [
        ["task", "", *map(escape_markdown, table.columns)],
        ["---"] * (len(table.columns) + 2),
        *_text_rows(table, _MARKDOWN),
    ]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [_MARKDOWN.escape(note) + "\n" for note in table.notes]
    return "\n".join([f"<!-- {table.command} -->", f"**{table.title}**", "", *body, "", *notes])


def to_latex(table: Table) -> str:
    """A ``table`` environment for the package ``booktabs``, with the command as a comment above it."""
    escape = _LATEX.escape
    body: list[str] = []
    for text, row in zip(_text_rows(table, _LATEX), table.rows):
        body += [r"\addlinespace"] if row.source == "ours" and body else []
        body.append(" & ".join(text) + r" \\")
    return "\n".join(
        [
            f"% {table.command}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.title)}}}",
            rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(["task", "", *map(escape, table.columns)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {escape(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def to_html(table: Table) -> str:
    """A ``figure`` element with the table and its notes, with the command as a comment above it."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("task", "", *table.columns))
    body = [
        f'<tr class="{row.source}">' + "".join(f"<td>{cell}</td>" for cell in text) + "</tr>"
        for text, row in zip(_text_rows(table, _HTML), table.rows)
    ]
    notes = [f"<p>{html.escape(note)}</p>" for note in table.notes]
    return "\n".join(
        [
            f"<!-- {html.escape(table.command)} -->",
            '<figure class="table">',
            f"<figcaption>{html.escape(table.title)}</figcaption>",
            '<div class="scroll"><table>',
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *body,
            "</tbody></table></div>",
            '<div class="notes">',
            *notes,
            "</div></figure>",
            "",
        ]
    )


@dataclass(frozen=True)
class _Markup:
    escape: Callable[[str], str]
    bold: Callable[[str], str]
    star: str
    dash: str


def escape_markdown(text: str) -> str:
    """Text without signs that Markdown would read."""
    return re.sub(r"([\\|*_<])", r"\\\1", text)


_LATEX_SIGNS = {
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$", "<": "$<$", ">": "$>$", "|": "$|$"},
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX_SIGNS.get(sign, sign) for sign in text)


_MARKDOWN = _Markup(escape_markdown, lambda text: f"**{text}**", r"\*", "–")
_LATEX = _Markup(_escape_latex, lambda text: rf"\textbf{{{text}}}", r"$^{*}$", "--")
_HTML = _Markup(html.escape, lambda text: f"<b>{text}</b>", "<sup>*</sup>", "–")


def _text_rows(table: Table, markup: _Markup) -> list[list[str]]:
    return [
        [markup.escape(row.task), row.source, *(_text(entry, markup) for entry in row.entries)] for row in table.rows
    ]


def _text(entry: Entry | None, markup: _Markup) -> str:
    if entry is None:
        return markup.dash
    sample = entry.sample
    text = f"{sample.mean:.{entry.digits}f}"
    if not math.isnan(sample.std):
        text += f" ± {sample.std:.{entry.digits}f}"
    if entry.show_seeds:
        text += f" ({sample.num_seeds})"
    text = markup.escape(text)
    text = markup.bold(text) if entry.best else text
    return text + (markup.star if entry.star else "") + markup.escape(entry.mark)
