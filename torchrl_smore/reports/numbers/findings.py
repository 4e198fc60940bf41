"""What the numbers of a diagnosis say, each by a threshold, and what to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EFFECTIVE = 0.2  # of the rows
IDLE_WEIGHTS = 0.85  # of the rows
MOSTLY_EXPERTS = 0.5  # of the rows
STEP = 0.5  # gain of the value with a step over the standard deviation of the advantage
RANK = 0.7
GROWTH = 0.1  # of what the score has changed in all
OUTSIDE = 0.01  # of the rows
#: Smallest share of the states in which the score is to prefer the expert's action.
PREFERENCE = 0.6
#: Smallest mean cosine of the policy's action and the expert's.
COSINE = 0.8
NOISE = 0.3  # of the expert's actions
IDLE = 0.5  # of the rows
BEYOND = 0.005  # of the rows
#: Largest standardised input, in standard deviations.
FARTHEST = 20.0
FAILED = 0.1  # of the episodes

_PHASE_NAMES = {"before": "before the achieved goal moves", "moving": "while it moves", "at_goal": "at the goal"}
_ADVICE = {
    "never moved": "the policy does not get to what it has to move: see its agreement before the achieved goal moves; "
    "more rows of that phase (anchors=moving), more updates, experts that a network can imitate",
    "reached and left": "the goal is met and lost: see the rows at the goal; her_ratio below 1 or more experts show "
    "how to stay",
    "farther than at the start": "what is moved goes the wrong way: precision at the contact is missing, where rows "
    "are rare: anchors=moving, input_clip=5, more experts",
    "short of the goal": "the way is right and too short: more updates, or more rows on the way (anchors=moving)",
}


@dataclass(frozen=True)
class Diagnosis:
    """The tables of a diagnosis with its numbers.

    Attributes:
        about: options of the run.
        numbers: single numbers by name; what does not apply is left out.
        missing: parts that do not apply, with the reason.
        tables: rows of each table, all texts.
    """

    about: dict[str, Any]
    numbers: dict[str, float]
    missing: dict[str, str]
    tables: dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Finding:
    """What one check says of a run.

    Args:
        name: of the check.
        rule: what is expected, with its threshold.
        said: what was found.
        problem: whether that breaks the rule.
        advice: what to try then.
    """

    name: str
    rule: str
    said: str
    problem: bool
    advice: str


def find(diagnosis: Diagnosis) -> list[Finding]:
    """Every check that applies, in the order of a run: rows, weights, score, policy, episodes."""
    return [finding for check in _CHECKS for finding in check(diagnosis)]


def _rows(d: Diagnosis) -> list[Finding]:
    idle = d.numbers["idle_rows"]
    advice = "anchors=moving (rows after which it still moves)"
    if d.about.get("anchors") == "moving":
        advice = "a larger anchor_share, or goals=away (goals that are away from the row's own achieved goal)"
    return [
        Finding(
            "rows at their goal that have not moved",
            f"at most {IDLE:.0%} of the drawn rows",
            f"{idle:.0%} of the rows that training draws are at their goal before anything has moved: nothing can be "
            "learnt from them but to stay.",
            idle > IDLE,
            advice,
        )
    ]


def _inputs(d: Diagnosis) -> list[Finding]:
    wide = [row for row in d.tables["inputs"] if float(row["beyond"]) > BEYOND or float(row["largest"]) > FARTHEST]
    wide.sort(key=lambda row: -float(row["largest"]))
    shown = ", ".join(f"{row['column']} ({float(row['largest']):.0f})" for row in wide[:3])
    clip, standardised = float(d.about.get("input_clip") or 0.0), bool(d.about.get("normalize"))
    said = f"{len(wide)} of {len(d.tables['inputs'])} input columns are far out"
    said += f", the farthest in standard deviations: {shown}." if wide else "."
    if not standardised:
        said += " Inputs of this run are not standardised."
    elif clip:
        said += f" They are clipped at {clip:g}."
    return [
        Finding(
            "inputs out of range",
            f"no column with more than {BEYOND:.1%} of its rows beyond 5 standard deviations or one beyond "
            f"{FARTHEST:g}, unless clipped",
            said,
            bool(wide) and not (standardised and clip),
            "normalize=true input_clip=5",
        )
    ]


def _weights(d: Diagnosis) -> list[Finding]:
    if "effective" not in d.numbers:
        return []
    effective, rows, weight = (d.numbers[name] for name in ("effective", "expert_rows", "expert_weight"))
    batch = float(d.about.get("batch_size") or 0.0)
    found = [
        Finding(
            "effective sample size of the weights",
            f"at least {EFFECTIVE:.0%} of the rows",
            f"The weights leave {effective:.0%} of the rows to the regression ({effective * batch:.0f} of a batch of "
            f"{batch:.0f}); temperature times the advantage's standard deviation is "
            f"{d.numbers['temperature'] * d.numbers['advantage_std']:.1f}.",
            effective < EFFECTIVE,
            "weight_clip=1, with which weights leave rows out and no row dominates; a lower temperature; a smaller "
            "gamma, which makes a step worth more of the score; and method=hindsight_bc, the same regression without "
            "weights, as the control to beat",
        )
    ]
    if 0.0 < rows < 1.0:
        lift, experts = weight / rows, "Experts" if d.about["experts_known"] else "The best trajectories"
        found.append(
            Finding(
                "weight of the experts",
                "no less than their share of the rows",
                f"{experts} have {rows:.1%} of the rows and {weight:.1%} of the weight ({lift:.2f} times).",
                lift < 1.0,
                "the upper tail of the advantage is other rows, so it is noise: weight_clip=1, a smaller gamma, "
                "anchors=arriving",
            )
        )
    if 0.0 < rows <= weight and d.about["experts_known"]:
        found.append(
            Finding(
                "work of the weights",
                f"at most {IDLE_WEIGHTS:.0%} of the rows left where fewer than {MOSTLY_EXPERTS:.0%} are experts'",
                f"{rows:.0%} of the rows are experts', and the weights leave {effective:.0%} of all.",
                rows < MOSTLY_EXPERTS and effective > IDLE_WEIGHTS,
                "the weights lean to the experts and do little: compare with method=hindsight_bc, the same regression "
                "without any, and if that is below the experts try contamination=0.4, by which the likelihood leaves "
                "out more itself, or sharper ones, by a larger weight_clip, an expectile of 0.9 or, where the method "
                "has one, a temperature three times as large",
            )
        )
    return found


def _score(d: Diagnosis) -> list[Finding]:
    n, found = d.numbers, []
    if "value_slope" in n:
        ratio = n["value_slope"] / n["advantage_std"] if n["advantage_std"] else float("inf")
        found.append(
            Finding(
                "worth of a step",
                f"at least {STEP:g} of the advantage's standard deviation",
                f"A step nearer to the goal raises the value by {n['value_slope']:.3g}; the advantage varies by "
                f"{n['advantage_std']:.3g} over the rows of a batch ({ratio:.2f} of it), the score by "
                f"{n['score_noise']:.3g} among expert rows with equally many steps to go.",
                ratio < STEP,
                f"a smaller gamma (now {d.about.get('gamma')}): a step is worth 1 - gamma of the score; 0.9 suits "
                "goals about 10 to 20 steps away",
            )
        )
    if "score_rank_correlation" in n:
        ranks = n["score_rank_correlation"], n.get("value_rank_correlation", float("nan"))
        found.append(
            Finding(
                "score along expert trajectories",
                f"a rank correlation with nearness of at least {RANK:g}",
                f"Along trajectories ({d.about['experts']}) the score has a rank correlation of {ranks[0]:.2f} with "
                f"nearness to the goal (the value {ranks[1]:.2f}).",
                ranks[0] < RANK,
                "more updates, anchors=arriving, goals=away, input_clip=5, a larger learning_rate; target_rate=0.02 if "
                "the score still grows",
            )
        )
    if "growth" in n:
        found.append(
            Finding(
                "score still growing",
                f"at most {GROWTH:.0%} of all its change in the last fifth of the updates",
                f"In the last fifth of the updates the mean score made {n['growth']:.0%} of its change.",
                n["growth"] > GROWTH,
                "more updates, a larger target_rate (0.02), or a smaller gamma, whose score has less far to go",
            )
        )
    if "outside" in n and ("lower" in n or "upper" in n):
        bounds = f"[{n.get('lower', float('-inf')):.4g}, {n.get('upper', float('inf')):.4g}]"
        found.append(
            Finding(
                "range of the score",
                f"at most {OUTSIDE:.0%} of the rows outside the closed form's",
                f"Scores lie in [{n['score_smallest']:.4g}, {n['score_largest']:.4g}], the closed form's range is "
                f"{bounds}; {n['outside']:.1%} are outside.",
                n["outside"] > OUTSIDE,
                "a smaller expectile (0.7), whose bias adds up over the horizon; score_bounds=auto; a smaller gamma",
            )
        )
    return found


def _phases(d: Diagnosis) -> list[Finding]:
    found = []
    away = [row for row in d.tables.get("phases", []) if row["phase"] != "at_goal"]
    for row in (row for row in away if row.get("preferred")):
        share, place = float(row["preferred"]), _PHASE_NAMES[row["phase"]]
        found.append(
            Finding(
                f"preference for the expert's action {place}",
                f"in at least {PREFERENCE:.0%} of the states",
                f"The score prefers the expert's action to a random one in {share:.0%} of the states {place} "
                f"(gap {float(row['gap']):.3g} ± {float(row['gap_std']):.3g}).",
                share < PREFERENCE,
                "the score does not tell actions apart there: a smaller gamma, more rows of this phase "
                "(anchors=moving), more updates",
            )
        )
    for row in (row for row in away if row.get("noise")):
        share, place = float(row["noise"]), _PHASE_NAMES[row["phase"]]
        found.append(
            Finding(
                f"expert's actions taken for noise {place}",
                f"at most {NOISE:.0%} of them",
                f"The actor's likelihood takes {share:.0%} of the expert's actions {place} for noise, and does not "
                "learn from them.",
                share > NOISE,
                "compare with contamination=0, which helps on some tasks and harms on others; min_std=0.1, if the "
                "likelihood has become narrower than what is still to be learnt; fewer updates; a smaller "
                "learning_rate",
            )
        )
    for row in away:
        cosine, place = float(row["cosine"]), _PHASE_NAMES[row["phase"]]
        found.append(
            Finding(
                f"agreement with the expert {place}",
                f"a mean cosine of at least {COSINE:g} (noise on the data's actions lowers it)",
                f"The policy's action and the expert's have a mean cosine of {cosine:.2f} {place} (error "
                f"{float(row['error']):.2f}).",
                cosine < COSINE,
                "more rows of this phase (anchors=moving), more updates or a larger learning_rate, a lower "
                "temperature, experts that a network can imitate",
            )
        )
    return found


def _episodes(d: Diagnosis) -> list[Finding]:
    counts = Counter(row["outcome"] for row in d.tables["episodes"])
    episodes = sum(counts.values())
    failed = {name: count for name, count in counts.most_common() if name != "reached"}
    share = sum(failed.values()) / episodes
    said = f"{episodes - sum(failed.values())} of {episodes} episodes end at their goal"
    if failed:
        said += "; " + ", ".join(f"{count} {name}" for name, count in failed.items())
    return [
        Finding(
            "failed episodes",
            f"at most {FAILED:.0%} of them",
            f"{said}.",
            share > FAILED,
            _ADVICE[next(iter(failed))] if failed else "",
        )
    ]


_CHECKS: tuple[Callable[[Diagnosis], list[Finding]], ...] = (_rows, _inputs, _weights, _score, _phases, _episodes)
