"""The page that says why a run learns or does not, from the tables of ``recipes/diagnose.py``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchrl_smore._files import replacing, write_text
from torchrl_smore.reports.figures import diagnosis as figures
from torchrl_smore.reports.figures import read_metrics
from torchrl_smore.reports.numbers import Diagnosis, Finding, find
from torchrl_smore.reports.page import Section, build_page, details, embedded_image, paragraph, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Names of the tables that a diagnosis may have.
DIAGNOSIS_TABLES = ("weights", "quantiles", "scores", "phases", "inputs", "episodes", "distances")
_LONG = ("distances", "quantiles")  # drawn, not printed
_FEWEST_ROWS = 10  # of metrics.csv, to tell growth from noise
_DPI = 110


def write_diagnosis(folder: str | Path, metrics: str | Path | None = None) -> list[Finding]:
    """Writes the figures and ``index.html`` of a diagnosis into its folder, each atomically.

    Args:
        folder: has ``diagnosis.json`` and those of :data:`DIAGNOSIS_TABLES` that apply, as CSV files. Figures of
            other tables are removed.
        metrics: the run's ``metrics.csv``, which says whether the score still grows.

    Returns:
        Every check that applies.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if ``diagnosis.json`` is no JSON.
    """
    folder = Path(folder)
    diagnosis = read_diagnosis(folder)
    if metrics is not None and Path(metrics).is_file():
        diagnosis.numbers.update(score_growth(metrics, diagnosis.about))
    findings = find(diagnosis)
    sections = [_checks(findings), *(_section(diagnosis, folder, *part) for part in _PARTS)]
    title = " ".join(str(diagnosis.about[name]) for name in ("task", "method"))
    page = build_page(f"Diagnosis: {title}", _lead(diagnosis, findings), [s for s in sections if s is not None])
    write_text(folder / "index.html", page)
    return findings


def read_diagnosis(folder: Path) -> Diagnosis:
    """The tables and numbers in a folder."""
    held = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    tables = {}
    for name in DIAGNOSIS_TABLES:
        path = folder / f"{name}.csv"
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                tables[name] = list(csv.DictReader(file))
    return Diagnosis(held["about"], held["numbers"], held["missing"], tables)


def score_growth(metrics: str | Path, about: dict[str, object]) -> dict[str, float]:
    """``growth``: the change of the mean score from the eighth to the last tenth of the updates, over all its change.

    The updates are those up to ``about["step"]``: later ones are of networks that are gone, and of a run that diverged.
    Of a constant rate it is 0.2 and a little more. Empty for a run too short, or without a score that is finite.
    """
    seeds = about.get("seeds", 1)
    columns = read_metrics(metrics, None if seeds == 1 else int(str(about["seed"])))
    name = next((name for name in ("score", "qvalue") if name in columns), None)
    if name is None:
        return {}
    steps, values = columns[name]
    values = values[steps <= float(str(about.get("step", math.inf)))]
    if len(values) < _FEWEST_ROWS:
        return {}
    tenths = [part.mean() for part in np.array_split(values, 10)]
    spread = float(np.max(tenths) - np.min(tenths))
    return {"growth": abs(float(tenths[9] - tenths[7])) / spread} if spread and math.isfinite(spread) else {}


def _lead(diagnosis: Diagnosis, findings: list[Finding]) -> str:
    about = diagnosis.about
    formulation = f" ({about['formulation']})" if about.get("formulation") else ""
    parts = [
        paragraph(
            f"{about['task']}, {about['method']}{formulation}, seed {about['seed']}, after {about['step']:,} updates; "
            f"discount {about.get('gamma')}, anchors {about.get('anchors')}."
        )
    ]
    if not about["experts_known"]:
        parts.append(
            paragraph(
                "The data do not say which trajectories are an expert's: the best tenth by return that reaches its "
                "goal stands in (best).",
                "warning",
            )
        )
    problems = [finding for finding in findings if finding.problem]
    parts += [paragraph(f"{finding.said} Try: {finding.advice}.", "warning") for finding in problems]
    if not problems:
        parts.append(paragraph("Nothing out of the ordinary was found."))
    parts += [paragraph(f"Not shown: {part}: {reason}", "notes") for part, reason in diagnosis.missing.items()]
    return "\n".join(parts)


def _checks(findings: list[Finding]) -> Section:
    rows = [(f.name, "look" if f.problem else "fine", f.said, f.rule) for f in findings]
    classes = ["fails" if f.problem else "holds" for f in findings]
    return Section("checks", "Checks", text_table(("check", "", "found", "threshold"), rows, classes))


def _section(
    diagnosis: Diagnosis,
    folder: Path,
    name: str,
    needs: tuple[str, ...],
    title: str,
    draw: Callable[[Diagnosis], Figure],
    caption: str,
) -> Section | None:
    png = folder / f"{name}.png"
    if not any(diagnosis.tables.get(table) for table in needs):
        png.unlink(missing_ok=True)
        return None
    with replacing(png) as beside:
        draw(diagnosis).savefig(beside, dpi=_DPI, format="png", metadata={"Software": None})
    body = embedded_image(png, title, caption.format(**diagnosis.about))
    for table in needs:
        rows = diagnosis.tables.get(table)
        if rows and table not in _LONG:
            body += details(f"{table}.csv", text_table(list(rows[0]), [list(row.values()) for row in rows]))
    return Section(name, title, body)


_PARTS = (
    (
        "weights",
        ("weights",),
        "Weights of the regression",
        figures.weights_figure,
        "Rows are drawn as in training. There: the row begins where its goal is reached. Moving: the achieved goal has "
        "moved since the start, or moves in this step, by more than {moved:g}. Lines: 5 to 95%, thick 25 to 75%, ticks "
        "1 and 99%, dot the median.",
    ),
    (
        "scores",
        ("scores", "quantiles"),
        "Score and value",
        figures.scores_figure,
        "Left, where shown: mean and one standard deviation by the steps that remain until the stored goal is first "
        "reached. Right: over rows drawn as in training.",
    ),
    (
        "phases",
        ("phases",),
        "By phase",
        figures.phases_figure,
        "States of trajectories ({experts}) under their stored goals. Before: the achieved goal has not moved by more "
        "than {moved:g} (of manipulation: before contact); at goal: within the threshold of {threshold:g}. Dashed: the "
        "threshold of the check.",
    ),
    (
        "inputs",
        ("inputs",),
        "Inputs",
        figures.inputs_figure,
        "Standardised by the data's mean and deviation, before any clip, over all rows; dashed: 5, and the threshold "
        "of the check.",
    ),
    (
        "episodes",
        ("episodes", "distances"),
        "Episodes of the policy",
        figures.episodes_figure,
        "Episodes with the seeds of every evaluation, the policy's mode. Never moved: the achieved goal stayed within "
        "{moved:g} of where it began.",
    ),
)
