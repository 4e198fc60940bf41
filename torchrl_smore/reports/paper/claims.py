"""The paper's claims C1 to C13, judged on a set of results: ours, or the paper's own tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torchrl_smore._errors import unknown_name
from torchrl_smore.reports.numbers import Result, RunSet, SignificanceTest
from torchrl_smore.reports.paper.claim_rules import CLAIMS, NotEnoughRuns, Numbers, View
from torchrl_smore.reports.paper.markup import escape_markdown
from torchrl_smore.reports.paper.published import HORIZONS, Paper

Verdict = Literal["holds", "fails", "not enough runs"]


@dataclass(frozen=True)
class Outcome:
    """What became of a claim.

    Attributes:
        claim: ``C1`` to ``C13``.
        statement: what is claimed, as it is tested here.
        verdict: ``"not enough runs"`` if any cell that it needs has too few seeds.
        numbers: what the verdict rests on, empty if there are not enough runs.
        missing: cells without enough seeds, in words.
    """

    claim: str
    statement: str
    verdict: Verdict
    numbers: Numbers
    missing: tuple[str, ...] = ()


def evaluate_claim(
    claim: str,
    results: Iterable[Result] | RunSet | Paper,
    *,
    tasks: Collection[str] | None = None,
    min_seeds: int = 5,
    test: SignificanceTest | None = None,
) -> Outcome:
    """Evaluates one claim.

    Args:
        claim: ``"C1"`` to ``"C13"``.
        results: ours, or the paper's printed means.
        tasks: evaluates the claim on these tasks alone; by default on all that the paper's table has.
        min_seeds: of every cell that the claim needs.
        test: decides significance in C1.

    Raises:
        ValueError: if there is no such claim.
    """
    if claim not in CLAIMS:
        raise unknown_name("claim", claim, CLAIMS)
    statement, function = CLAIMS[claim]
    paper = Paper()
    source = results if isinstance(results, (Paper, RunSet)) else RunSet(results)
    try:
        holds, numbers = function(View(source, tasks, min_seeds, test or SignificanceTest(), paper))
    except NotEnoughRuns as error:
        return Outcome(claim, statement, "not enough runs", {}, error.args)
    return Outcome(claim, statement, "holds" if holds else "fails", numbers)


def evaluate_claims(
    results: Iterable[Result] | RunSet | Paper,
    *,
    tasks: Collection[str] | None = None,
    min_seeds: int = 5,
    test: SignificanceTest | None = None,
) -> list[Outcome]:
    """Evaluates all claims; see :func:`evaluate_claim`."""
    source = results if isinstance(results, (Paper, RunSet)) else RunSet(results)
    return [evaluate_claim(claim, source, tasks=tasks, min_seeds=min_seeds, test=test) for claim in CLAIMS]


def evaluate_partly(
    results: Iterable[Result] | RunSet,
    *,
    tasks: Collection[str] | None = None,
    min_seeds: int = 5,
    test: SignificanceTest | None = None,
) -> dict[str, tuple[Outcome, tuple[str, ...]]]:
    """Each claim that lacks runs, on the tasks that alone have enough for it: the outcome and those tasks, by claim.

    Such an outcome is about less than the paper claims. A claim of which no task has enough is left out, or which needs
    more seeds for all of these together; for the arguments see :func:`evaluate_claim`.
    """
    source = results if isinstance(results, RunSet) else RunSet(results)
    wanted = [task for task in HORIZONS if tasks is None or task in tasks]
    found = {}
    for outcome in evaluate_claims(source, tasks=tasks, min_seeds=min_seeds, test=test):
        if not outcome.missing:
            continue

        def on(chosen: Collection[str], claim: str = outcome.claim) -> Outcome:
            return evaluate_claim(claim, source, tasks=chosen, min_seeds=min_seeds, test=test)

        enough = tuple(task for task in wanted if not on([task]).missing)
        # together they may need more seeds: the correction is for as many tests as there are tasks
        together = on(enough) if enough else outcome
        if not together.missing:
            found[outcome.claim] = together, enough
    return found


def claims_to_markdown(outcomes: Sequence[Outcome]) -> str:
    """A table of claim, verdict and numbers; of missing cells the first three are named."""
    lines = ["| claim | statement | verdict | numbers |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        cells = map(escape_markdown, (outcome.claim, outcome.statement, outcome.verdict, grounds(outcome)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def grounds(outcome: Outcome) -> str:
    """What a verdict rests on, or the first three cells that are missing, in one line of plain text."""
    if not outcome.missing:
        return "; ".join(f"{name} {_number(value)}" for name, value in outcome.numbers.items())
    more = len(outcome.missing) - 3
    return "missing: " + ", ".join(outcome.missing[:3]) + (f" and {more} more" if more > 0 else "")


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
