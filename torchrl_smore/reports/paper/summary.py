"""What all runs on the data of Table 1 say together: aggregates of every method over tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from torchrl_smore.reports.numbers import (
    RESAMPLES,
    Estimate,
    RunSet,
    estimate_improvement,
    estimate_iqm,
    estimate_profile,
    method_label,
)
from torchrl_smore.reports.paper.markup import escape_markdown
from torchrl_smore.reports.paper.scores import Scores, data_words, groups_of, main_scores, shared_tasks, widely_run

#: The method that a summary is about.
METHOD = "SMORe"
#: Shares of the largest return at which a performance profile is evaluated.
THRESHOLDS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Summary:
    """Aggregates of return over maximum at 0.99, by method or rival in the fixed order.

    Attributes:
        scores: what they are of: method to task to values.
        tasks: that every method of ``iqm`` has; interquartile means and profiles are over these.
        iqm: interquartile means, of the methods that have at least half as many tasks as the one that has most.
        profiles: at :data:`THRESHOLDS`.
        improvement: probability that SMORe is above a rival, over the tasks that both have; of locomotion by the return
            at 0.999.
        rival_tasks: those tasks.
    """

    scores: Scores
    tasks: list[str]
    iqm: dict[str, Estimate]
    profiles: dict[str, Estimate]
    improvement: dict[str, Estimate]
    rival_tasks: dict[str, list[str]]

    @property
    def sources(self) -> list[str]:
        """Who computed, which is rliable, or our own code and why."""
        every = [*self.iqm.values(), *self.profiles.values(), *self.improvement.values()]
        return list(dict.fromkeys(estimate.source for estimate in every))

    @property
    def fewest_seeds(self) -> int:
        """Of any method on any task; 0 without runs."""
        return min((len(values) for line in self.scores.values() for values in line.values()), default=0)


def summarize(runs: RunSet, *, resamples: int = RESAMPLES) -> Summary:
    """Computes the aggregates.

    Args:
        runs: ours.
        resamples: of each bootstrap.
    """
    scores = main_scores(runs)
    compared = {method: scores[method] for method in widely_run(scores)}
    tasks = shared_tasks(compared)
    groups = {method: groups_of(scores, method, tasks) for method in compared if tasks}
    judged, improvement, rival_tasks = main_scores(runs, judged=True), {}, {}
    for rival in judged if METHOD in judged else ():
        common = [] if rival == METHOD else shared_tasks({name: judged[name] for name in (METHOD, rival)})
        if common:
            pair = (groups_of(judged, name, common) for name in (METHOD, rival))
            improvement[rival] = estimate_improvement(*pair, resamples=resamples)
            rival_tasks[rival] = common
    return Summary(
        scores,
        tasks,
        {method: estimate_iqm(values, resamples=resamples) for method, values in groups.items()},
        {method: estimate_profile(values, THRESHOLDS, resamples=resamples) for method, values in groups.items()},
        improvement,
        rival_tasks,
    )


def summary_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: interquartile mean, probability of improvement and tasks of each method."""
    header = ["method", "interquartile mean [95%]", f"P({METHOD} > method) [95%]", "over", "tasks run", "seeds"]
    rows = []
    for method, line in summary.scores.items():
        seeds = sorted({len(values) for values in line.values()})
        rows.append(
            [
                method_label(method),
                _interval(summary.iqm.get(method)),
                _interval(summary.improvement.get(method)),
                _number_of_tasks(len(summary.rival_tasks[method])) if method in summary.improvement else "–",
                ", ".join(line),
                f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}",
            ]
        )
    return header, rows


def summary_notes(summary: Summary, min_seeds: int) -> list[str]:
    """What the numbers are, over which tasks, by whom computed, and how far to trust them.

    Args:
        summary: what :func:`summarize` gave.
        min_seeds: with fewer, a note warns of the intervals.
    """
    if not summary.scores:
        return ["No runs on the data of Table 1."]
    every = [task for line in summary.scores.values() for task in line]
    tasks = ", ".join(summary.tasks) or "none: no task was run by every method"
    begun = [method_label(method) for method in summary.scores if summary.tasks and method not in summary.iqm]
    but = f", but for {', '.join(begun)} with fewer than half of the tasks" if begun else ""
    notes = [
        "Return over the largest possible one at discount 0.99 (tasks that are not the paper's: at their largest), on "
        f"the {data_words(every)}. Interquartile means and profiles are over the tasks that every method has run{but} "
        f"({tasks}); the probability of improvement over those that both methods have, of locomotion by the return at "
        "0.999.",
        "Intervals: 95%, percentiles of a stratified bootstrap that draws seeds within each task (arXiv:2108.13264). "
        f"Computed by {'; '.join(summary.sources) or 'nobody: nothing to compute'}.",
    ]
    if summary.fewest_seeds < min_seeds:
        notes.append(
            f"Some cells have {summary.fewest_seeds} seed(s), fewer than {min_seeds}: resampling so few gives "
            "intervals that are too narrow. Do not read them as evidence."
        )
    return notes


def summary_to_markdown(summary: Summary, min_seeds: int) -> str:
    """The table and its notes; for the arguments see :func:`summary_notes`."""
    header, rows = summary_rows(summary)
    lines = [header, ["---"] * len(header), *([escape_markdown(text) for text in row] for row in rows)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [escape_markdown(note) + "\n" for note in summary_notes(summary, min_seeds)]
    return "\n".join([*(table if rows else []), "", *notes])


def _interval(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _number_of_tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"
