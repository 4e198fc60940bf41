"""A report: every table, figure and claim of a set of results, as files and as one page."""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_smore._errors import unknown_name
from torchrl_smore._files import write_text
from torchrl_smore.reports import page, provenance
from torchrl_smore.reports.figures import aggregates, images, returns, save_figure
from torchrl_smore.reports.numbers import RESAMPLES, Result, RunSet, SignificanceTest, Source
from torchrl_smore.reports.own_data import own_lines, own_tables
from torchrl_smore.reports.paper import (
    HORIZONS,
    METHOD,
    THRESHOLDS,
    Outcome,
    Paper,
    Summary,
    Table,
    build_table,
    claims_to_markdown,
    data_words,
    escape_markdown,
    evaluate_claims,
    evaluate_partly,
    grounds,
    summarize,
    summary_notes,
    summary_rows,
    summary_to_markdown,
    table_tasks,
    to_html,
    to_latex,
    to_markdown,
    views,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "index.html"
GAPS = (
    "Bars of the paper's Figure 3 (success from images): they are in its figure only, and its simulator is not "
    "available; ours are of other tasks with primitives of the same kinds.",
    "Figure 1 of the paper: an illustration, without numbers.",
    "Points of the paper's Figure 2 (noise): they are in its figure only, so ours stand alone.",
)
_OWN = "own_data"
_BAND = "Lines: mean over seeds; bands and bars: one sample standard deviation, none for one seed."


@dataclass(frozen=True)
class Picture:
    """A figure with its file name and what is said about it; ``draw`` makes it."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


@dataclass
class _Parts:
    """What a report consists of, filled piece by piece."""

    source: Source
    runs: RunSet
    summary: Summary
    claims: list[Outcome]
    partly: dict[str, tuple[Outcome, tuple[str, ...]]]
    tables: dict[str, list[Table]] = field(default_factory=dict)
    images: dict[str, tuple[Picture, Path]] = field(default_factory=dict)


def write_report(
    source: Source,
    out: str | Path,
    *,
    command: str,
    tasks: Collection[str] | None = None,
    test: SignificanceTest | None = None,
    min_seeds: int = 5,
    resamples: int = RESAMPLES,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Path:
    """Writes tables, figures, claims and statistics below a folder, and a page that ties them together.

    Runs on data of one's own (``data=NAME`` in their setting) have lines of their own, and neither the paper's numbers
    nor its claims are held against them.

    ``tables/table_<N>.md`` and ``.tex``, ``figures/<name>.png`` and ``.pdf``, ``claims.md``, ``statistics.md``,
    ``report.md`` and ``index.html``, each atomically. Nothing is written if the results or options are
    not what they should be.

    Args:
        source: the results.
        out: the folder.
        command: the line that makes the report again.
        tasks: reports these alone; by default all.
        test: of SMORe against the second best method.
        min_seeds: of a cell, for a claim to be judged; at least 1.
        resamples: of each bootstrap, at least 1.
        progress: wraps the pieces of work, as ``tqdm`` does.

    Returns:
        The page.

    Raises:
        ValueError: for an unknown task or a number out of range.
        ResultsError: if the seeds of one cell differ in their number of updates.
    """
    for name, number in (("min_seeds", min_seeds), ("resamples", resamples)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    source, test, out = own_lines(_of_tasks(source, tasks)), test or SignificanceTest(), Path(out)
    if tasks is not None:
        tasks = list(dict.fromkeys([*tasks, *(row.task for row in source.results)]))
    runs = RunSet(source.results)
    parts = _Parts(
        source,
        runs,
        summarize(runs, resamples=resamples),
        evaluate_claims(runs, tasks=tasks, min_seeds=min_seeds, test=test),
        evaluate_partly(runs, tasks=tasks, min_seeds=min_seeds, test=test),
    )
    own = own_tables(source, command)
    if own:
        parts.tables |= _written(_OWN, own, out)
    for piece in progress([*Paper().tables, *_pictures(source, parts.summary)]):
        if isinstance(piece, Picture):
            png, _ = save_figure(piece.draw(), out / "figures" / piece.name)
            parts.images[piece.name] = piece, png
        else:
            parts.tables |= _write_table(piece, runs, out, command=command, tasks=tasks, test=test, resamples=resamples)
    write_text(out / "claims.md", _claims_as_markdown(parts))
    write_text(out / "statistics.md", f"<!-- {command} -->\n{summary_to_markdown(parts.summary, min_seeds)}")
    write_text(out / "report.md", _markdown(parts, command, min_seeds))
    return write_text(out / PAGE, _page(parts, command, min_seeds))


def _of_tasks(source: Source, tasks: Collection[str] | None) -> Source:
    if tasks is None:
        return source
    known = list(dict.fromkeys([*HORIZONS, *(row.task for row in source.results)]))
    for task in tasks:
        if task not in known:
            raise unknown_name("task", task, known)
    results, curves = (tuple(row for row in rows if row.task in tasks) for rows in (source.results, source.curves))
    return replace(source, results=results, curves=curves)


def _write_table(
    number: str,
    runs: RunSet,
    out: Path,
    *,
    command: str,
    tasks: Collection[str] | None,
    test: SignificanceTest,
    resamples: int,
) -> dict[str, list[Table]]:
    """Writes a table and returns its views, or nothing if it has none of the tasks."""
    lines = [task for task in table_tasks(number, runs) if tasks is None or task in tasks]
    if not lines:
        return {}
    tables = [
        build_table(number, runs, command=command, view=view, tasks=lines, test=test, resamples=resamples)
        for view in views(number)
    ]
    return _written(number, tables, out)


def _written(number: str, tables: list[Table], out: Path) -> dict[str, list[Table]]:
    """Writes the views of a table and returns them by its number."""
    write_text(out / "tables" / f"table_{number}.md", "\n".join(map(to_markdown, tables)))
    write_text(out / "tables" / f"table_{number}.tex", "\n".join(map(to_latex, tables)))
    return {number: tables}


def _pictures(source: Source, summary: Summary) -> list[Picture]:
    settings = returns.curve_settings(source.curves) or ["main"]
    main_data = data_words([row.task for row in source.curves])
    names: list[str] = []
    for setting in settings:
        name = "learning_curves" + ("" if setting == "main" else f"_{returns.slug(setting)}")
        names.append(name if name not in names else f"{name}_{len(names)}")
    return [
        Picture(
            "interquartile_mean",
            "Interquartile mean over tasks",
            "Mean of the middle half of all runs, with 95% stratified bootstrap intervals.",
            lambda: aggregates.iqm_figure(summary.iqm),
        ),
        Picture(
            "performance_profile",
            "Performance profile",
            "Share of runs above each threshold, averaged over tasks: a line above another is better. Bands: 95%, "
            "point by point.",
            lambda: aggregates.profile_figure(THRESHOLDS, summary.profiles),
        ),
        Picture(
            "probability_of_improvement",
            f"Probability that {METHOD} is better",
            f"For a run of {METHOD} and one of the other method on the same task, ties counted as half; 95% intervals. "
            "An interval that includes 0.5 (dashed) shows no difference.",
            lambda: aggregates.improvement_figure(METHOD, summary.improvement),
        ),
        *(
            Picture(
                name,
                "Learning curves" + (f", {main_data}" if setting == "main" else f", {setting}"),
                "Return over the largest possible one at discount 0.99 (tasks that are not the paper's: at their "
                f"largest), of locomotion the return at 0.999. {_BAND} Only evaluations that all seeds of a line have.",
                lambda setting=setting: returns.learning_figure(source.curves, setting),  # type: ignore[misc]
            )
            for name, setting in zip(names, settings)
        ),
        Picture(
            "coverage",
            "Return against expert coverage (Tables 1, 2, 6, 7, 8 and 14)",
            "Return over the largest possible one: ours at 0.99, the paper's at the discount that it was most likely "
            f"computed at. {_BAND} Methods are set apart sideways so that bars do not hide each other.",
            lambda: returns.coverage_figure(source.results),
        ),
        Picture(
            "noise",
            "Return against action noise (Figure 2)",
            f"Noise in the data and in evaluation, 10% expert data. {_BAND}",
            lambda: returns.noise_figure(source.results),
        ),
        Picture(
            "images",
            "Success from pictures (Figure 3)",
            "Success after the last step, on tasks of our own: opening or shutting a drawer, carrying a cube, and two "
            "tasks of two primitives that no trajectory of the data holds together. Bars: mean over seeds, with one "
            "sample standard deviation; dots: seeds.",
            lambda: images.image_figure(source.results),
        ),
    ]


def _claims_as_markdown(parts: _Parts) -> str:
    text = claims_to_markdown(parts.claims)
    if not parts.partly:
        return text
    header, rows = _partly_rows(parts)
    lines = [header, ["---"] * len(header), *([escape_markdown(cell) for cell in row] for row in rows)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text, escape_markdown(_PARTLY), "", *table, ""])


_PARTLY = (
    "Claims that lack runs, on those tasks alone that have enough. This is less than the paper claims, and no verdict "
    "on it."
)


def _partly_rows(parts: _Parts) -> tuple[list[str], list[list[str]]]:
    rows = [
        [claim, ", ".join(tasks), outcome.verdict, grounds(outcome)] for claim, (outcome, tasks) in parts.partly.items()
    ]
    return ["claim", "tasks", "on these alone", "numbers"], rows


def _markdown(parts: _Parts, command: str, min_seeds: int) -> str:
    facts = [f"- {name}: {escape_markdown(text)}" for name, text in provenance.facts(parts.source, command)]
    pictures = [
        f"### {escape_markdown(picture.title)}\n\n![{escape_markdown(picture.title)}](figures/{picture.name}.png)\n\n"
        f"{escape_markdown(picture.caption)}\n"
        for picture, _ in parts.images.values()
    ]
    tables = [to_markdown(table) for tables in parts.tables.values() for table in tables]
    return "\n".join(
        [
            *("# Report beside the SMORe paper", "", *facts, ""),
            *("## Claims", "", _claims_as_markdown(parts)),
            *("## Statistics over tasks", "", summary_to_markdown(parts.summary, min_seeds)),
            *("## Figures", "", *pictures),
            *("## Tables", "", *tables),
            *("## Not here", "", *(f"- {gap}" for gap in GAPS), ""),
        ]
    )


def _page(parts: _Parts, command: str, min_seeds: int) -> str:
    facts = provenance.facts(parts.source, command)
    counts = {verdict: sum(o.verdict == verdict for o in parts.claims) for verdict in ("holds", "fails")}
    rest = len(parts.claims) - sum(counts.values())
    lead = page.paragraph(
        f"{dict(facts)['runs']}; of the paper's {len(parts.claims)} claims {counts['holds']} hold, {counts['fails']} "
        f"fail, and {rest} have not enough runs to be judged."
    )
    if _fewest_seeds(parts.source.results) < min_seeds:
        lead += page.paragraph(
            f"Some cells have fewer than {min_seeds} seeds: no claim is judged by them, and tables print no star "
            "where no outcome could have been significant.",
            "warning",
        )
    sections = [
        page.Section("claims", "Claims", _claims_section(parts)),
        page.Section("statistics", "Statistics over tasks", _statistics_section(parts, min_seeds)),
        page.Section("curves", "Curves", _curves_section(parts)),
        page.Section("tables", "Tables", _tables_section(parts)),
        page.Section("gaps", "Not here", "".join(page.paragraph(gap) for gap in GAPS)),
        page.Section("provenance", "Provenance", _provenance_section(parts, facts)),
    ]
    return page.build_page("Runs of torchrl_smore beside the SMORe paper", lead, sections)


def _fewest_seeds(results: Iterable[Result]) -> float:
    """Of any method on any task in any setting; without runs nothing is few."""
    seeds = Counter(cell for cell, _ in {(row.key[:3], row.seed) for row in results})
    return min(seeds.values(), default=math.inf)


def _claims_section(parts: _Parts) -> str:
    classes = [{"holds": "holds", "fails": "fails"}.get(outcome.verdict, "open") for outcome in parts.claims]
    rows = [[o.claim, o.verdict, o.statement, grounds(o)] for o in parts.claims]
    text = page.text_table(["claim", "verdict", "statement", "numbers"], rows, classes)
    if parts.partly:
        text += page.paragraph(_PARTLY) + page.text_table(*_partly_rows(parts))
    return text


def _statistics_section(parts: _Parts, min_seeds: int) -> str:
    header, rows = summary_rows(parts.summary)
    notes = "".join(page.paragraph(note) for note in summary_notes(parts.summary, min_seeds))
    return (
        notes
        + (page.text_table(header, rows) if rows else "")
        + _images(parts, ["interquartile_mean", "performance_profile", "probability_of_improvement"])
    )


def _curves_section(parts: _Parts) -> str:
    more = [name for name in parts.images if name.startswith("learning_curves_")]
    folded = page.details(f"Learning curves of {len(more)} other setting(s)", _images(parts, more)) if more else ""
    shown = ["learning_curves"] if "learning_curves" in parts.images else []
    return _images(parts, shown) + folded + _images(parts, ["coverage", "noise", "images"])


def _tables_section(parts: _Parts) -> str:
    return "".join(
        (
            f'<h3 id="{_OWN}">Data of one\'s own</h3>\n'
            if number == _OWN
            else f'<h3 id="table-{number}">Table {number}</h3>\n'
        )
        + "".join(map(to_html, tables))
        for number, tables in parts.tables.items()
    )


def _provenance_section(parts: _Parts, facts: list[tuple[str, str]]) -> str:
    text = page.text_table(["", ""], facts)
    header, rows = provenance.run_rows(parts.source.results)
    text += page.details(f"All {len(rows)} cells with runs", page.text_table(header, rows))
    if parts.source.grid:
        grid = json.dumps(parts.source.grid, indent=2, ensure_ascii=False)
        text += page.details("What the benchmark was asked to run (grid.json)", f"<pre>{html.escape(grid)}</pre>")
    return text


def _images(parts: _Parts, names: Iterable[str]) -> str:
    found = [parts.images[name] for name in names]
    return "".join(page.embedded_image(png, picture.title, picture.caption) for picture, png in found)
