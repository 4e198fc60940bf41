"""Named rules that say which rows of a dataset are drawn as anchors, from the data and the task's threshold alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.data._schema import check_is_tensordict
from torchrl_smore.data.samplers import achieved_goals, stored_goal_reached, stored_stop, trajectory_order, with_ends
from torchrl_smore.functional.goals import first_row_away, trajectory_start

_logger = logging.getLogger("torchrl_smore")


@dataclass(frozen=True)
class AnchorRule:
    """A named choice of rows.

    Attributes:
        text: what it chooses, in a few words.
        select: from the data, batch size ``[N]``, and the threshold to the chosen rows, bool ``[N]``.
        needs: what a dataset must have for a row to be chosen, for the error where none is.
        needs_threshold: whether ``select`` reads the threshold.
    """

    text: str
    select: Callable[[TensorDictBase, float], Tensor]
    needs: str
    needs_threshold: bool = False


def _moving(data: TensorDictBase, threshold: float) -> Tensor:
    stop = stored_stop(data)
    return first_row_away(achieved_goals(data), stop, threshold) < stop


def _reaching(data: TensorDictBase, threshold: float) -> Tensor:
    stop = stored_stop(data)
    # as many rows reach their goal up to the end of a trajectory as up to its start where none of it does
    count = torch.cat([stop.new_zeros(1), stored_goal_reached(data).long().cumsum(0)])
    return count[stop] > count[trajectory_start(stop)]


def _arriving(data: TensorDictBase, threshold: float) -> Tensor:
    starts_there = stored_goal_reached(data)[trajectory_start(stored_stop(data))]
    return _reaching(data, threshold) & ~starts_there


#: Rules by name; ``"uniform"``, the paper's, chooses every row.
ANCHOR_RULES: dict[str, AnchorRule] = {
    "uniform": AnchorRule(
        "every row", lambda data, threshold: torch.ones(len(data), dtype=torch.bool, device=data.device), "a row"
    ),
    "moving": AnchorRule(
        "rows after which the achieved goal still moves away by more than the threshold",
        _moving,
        "an achieved goal that moves by more than the threshold",
        needs_threshold=True,
    ),
    "reaching": AnchorRule(
        "rows of trajectories that reach their stored goal at some time",
        _reaching,
        "a trajectory with a positive reward",
    ),
    "arriving": AnchorRule(
        "rows of trajectories that reach their stored goal, but not with their first step",
        _arriving,
        "a trajectory with its first positive reward after its first step",
    ),
}


def check_anchor_rule(rule: str) -> tuple[str, ...]:
    """Names of the rules that ``rule`` joins by ``+``.

    Raises:
        ValueError: for an unknown one.
    """
    names = tuple(rule.split("+"))
    for name in names:
        if name not in ANCHOR_RULES:
            raise unknown_name("anchor rule", name, ANCHOR_RULES)
    return names


def anchor_weights(
    rule: str,
    data: TensorDictBase,
    *,
    threshold: float | None = None,
    share: float = 0.8,
    or_uniform: bool = False,
    trajectory_key: NestedKey | None = None,
) -> Tensor | None:
    """Weights of rows that give a share of all draws to the rows that a rule chooses, and the rest to all rows.

    Args:
        rule: one of :data:`ANCHOR_RULES`, or several joined by ``+``: the rows that all of them choose.
        data: TED layout, batch size ``[N]``; rows of several trajectories may lie among each other.
        threshold: distance that counts as reached, in the unit of the goal; for ``"moving"``.
        share: of the draws, in ``[0, 1]``, which the chosen rows share evenly.
        or_uniform: where the rule chooses no row, warn and draw from all rows, instead of an error.
        trajectory_key: see :class:`GoalTransition`.

    Returns:
        float64, shape ``[N]``, with sum 1; ``None`` for ``"uniform"``.

    Raises:
        ValueError: for an unknown rule, a share outside its range, a missing threshold, or a rule that chooses no row.
        TypeError: if ``data`` are no TensorDict.
    """
    check_is_tensordict(data)
    names = check_anchor_rule(rule)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in [0, 1], got {share}.")
    if rule == "uniform":
        return None
    rules = [ANCHOR_RULES[name] for name in names]
    if threshold is None and any(each.needs_threshold for each in rules):
        raise ValueError(f"the anchor rule {rule!r} needs the task's threshold.")
    bound = math.nan if threshold is None else threshold
    order = trajectory_order(data, trajectory_key)
    ordered = with_ends(data if order is None else data[order], trajectory_key)
    chosen = torch.stack([each.select(ordered, bound) for each in rules]).all(0)
    if order is not None:
        chosen = torch.empty_like(chosen).scatter_(0, order, chosen)
    count, rows = int(chosen.sum()), chosen.shape[0]
    if count == 0:
        needs = " and ".join(each.needs for each in rules)
        message = f"the anchor rule {rule!r} chooses none of {rows:,} rows: it needs {needs}"
        if not or_uniform:
            raise ValueError(f"{message}. Use 'uniform', another rule, or weights of your own.")
        _logger.warning("%s; all draws are from all rows, in place of %.0f%% of them.", message, 100 * (1 - share))
        return None
    text = ", ".join(each.text for each in rules)
    _logger.info("anchors: %.0f%% of draws from %s (%.1f%% of rows)", 100 * share, text, 100 * count / rows)
    return chosen.double() * (share / count) + (1.0 - share) / rows
