"""Episode and goal index arithmetic: pure functions of row numbers and of uniform random numbers.

Rows are transitions in TED layout, trajectories contiguous, ``start`` and ``stop`` the half-open row interval of a
row's trajectory. The goal *of row k* is ``("next", "achieved_goal")[k]``: hence a goal row ``k >= i`` is strictly later
than the state of row i, the last state of a trajectory can be a goal, and row k is the transition that enters it.

Randomness comes in as uniforms in ``[0, 1)``: nothing here draws, and what gives a batch neither branches on data nor
reads a value back, so it compiles into a static graph and runs the same inside a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchrl_smore._errors import unknown_name

#: Uniform numbers that :func:`goal_transition_rows` uses per sampled row.
NUM_UNIFORMS = 8
#: Numbers of goals that are compared at a time.
_AT_A_TIME = 2**22
#: A relabelling strategy by name, or shares of several, which add up to 1.
Strategy = str | Mapping[str, float]


def uniform_index(uniform: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Integer drawn uniformly from the half-open ``[low, high)``.

    Args:
        uniform: in ``[0, 1)``, shape ``[*]``.
        low: smallest value, an integer or integers of a shape that broadcasts with ``[*]``.
        high: one above the largest, greater than ``low``, likewise.

    Returns:
        int64, shape ``[*]``.
    """
    # in float32 u * width may round up to the width itself: float64 does not for any width below 2^53
    offset = (uniform.double() * (high - low)).long()
    return low + offset


def weighted_index(uniform: Tensor, cumulative: Tensor) -> Tensor:
    """Row drawn in proportion to weights, by inversion.

    Args:
        uniform: in ``[0, 1)``, shape ``[*]``.
        cumulative: from :func:`cumulative_weights`, float64, shape ``[N]``.

    Returns:
        int64, shape ``[*]``; a row of weight 0 never comes.
    """
    return torch.searchsorted(cumulative, uniform.double().contiguous(), right=True)


def cumulative_weights(weights: Tensor) -> Tensor:
    """Running sums of weights over their total, for :func:`weighted_index`.

    Args:
        weights: of the rows of a dataset, not negative, finite, not all 0, shape ``[N]``, in any unit.

    Returns:
        float64, shape ``[N]``, not decreasing; from the last row of positive weight on it is exactly 1.

    Raises:
        ValueError: for weights of more than one dimension, negative, infinite or NaN, without a positive one, or whose
            sum overflows.
    """
    if weights.ndim != 1:
        raise ValueError(f"expected weights of shape [N], got {list(weights.shape)}.")
    weights = weights.double()
    wrong = ~torch.isfinite(weights) | (weights < 0.0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"weights must be finite and not negative, got {float(weights[row])} in row {row}.")
    total = weights.cumsum(0)
    if total.numel() == 0 or not total[-1] > 0.0:
        raise ValueError("at least one weight must be positive: no row could be drawn.")
    if bool(total[-1].isinf()):
        raise ValueError(f"the sum of the weights must be finite, got inf: their largest is {float(weights.max())}.")
    return total / total[-1]


def first_row_away(achieved_goal: Tensor, stop: Tensor, distance: float) -> Tensor:
    """First later row whose achieved goal lies away from a row's own; see the module for what the goal of a row is.

    Args:
        achieved_goal: ``("next", "achieved_goal")``, shape ``[N, *G]``; whole numbers and flags are taken as float64.
        stop: end of each row's trajectory, int64, shape ``[N]``.
        distance: Euclidean, in the unit of the goal, not negative.

    Returns:
        The smallest k with ``i < k < stop[i]`` and a distance to row i of more than ``distance``, int64, shape ``[N]``;
        ``stop[i]`` where there is none.

    Raises:
        ValueError: for a distance that is negative or NaN.
    """
    if not distance >= 0.0:
        raise ValueError(f"distance must not be negative, got {distance}.")
    goal = achieved_goal.unsqueeze(-1).flatten(1)
    first = stop.clone()
    rows = torch.arange(stop.shape[0], device=stop.device)
    offset = 0
    # rows leave the search where they are away or their trajectory ends, so that it costs little beyond what it finds
    while rows.numel() > 0:
        offset += 1
        rows = rows[rows + offset < stop[rows]]
        away = _far_apart(goal, rows, offset, distance)
        first[rows[away]] = rows[away] + offset
        rows = rows[~away]
    return first


def _far_apart(goal: Tensor, rows: Tensor, offset: int, distance: float) -> Tensor:
    """Whether ``goal[rows + offset]`` lies away from ``goal[rows]``, ``[N, D]``; bool, shape of ``rows``."""
    parts = []
    # few at a time: goals may be pictures, and what is computed with has up to 16 times their size
    for part in torch.split(rows, max(1, _AT_A_TIME // max(1, goal.shape[1]))):
        here, there = goal[part], goal[part + offset]
        if not goal.is_floating_point():
            # differences and squares of small integer types wrap around
            here, there = here.double(), there.double()
        parts.append((there - here).square().sum(-1) > distance * distance)
    return torch.cat(parts)


def future_goal_row(index: Tensor, stop: Tensor, uniform: Tensor) -> Tensor:
    """Goal row of the *future* strategy, uniform over ``[index, stop)`` (Andrychowicz et al. 2017, arXiv:1707.01495).

    Args:
        index: transition rows, int64, shape ``[*]``.
        stop: end of each row's trajectory, int64, shape ``[*]``.
        uniform: in ``[0, 1)``, shape ``[*]``.

    Returns:
        Goal rows k with ``index <= k < stop``, int64, shape ``[*]``.
    """
    return uniform_index(uniform, index, stop)


def geometric_goal_row(index: Tensor, stop: Tensor, uniform: Tensor, gamma: float) -> Tensor:
    """Goal row ``index + Geometric(1 - gamma)``, cut at the last row of the trajectory.

    Offset 0 (the transition's own next state) has probability ``1 - gamma``.

    Args:
        index: transition rows, int64, shape ``[*]``.
        stop: end of each row's trajectory, int64, shape ``[*]``.
        uniform: in ``[0, 1)``, shape ``[*]``.
        gamma: probability of going one step further, in ``(0, 1)``.

    Returns:
        Goal rows k with ``index <= k < stop``, int64, shape ``[*]``.

    Raises:
        ValueError: if ``gamma`` lies outside ``(0, 1)``.
    """
    check_goal_gamma(("geometric",), gamma)
    offset = torch.floor(torch.log1p(-uniform.double()) / math.log(gamma)).long()
    return torch.minimum(index + offset, stop - 1)


def goal_row(
    strategy: Strategy,
    index: Tensor,
    stop: Tensor,
    uniform: Tensor,
    num_rows: int,
    gamma: float = 0.99,
    away: Tensor | None = None,
) -> Tensor:
    """Goal row of a named relabelling strategy, or of a mixture of them.

    ``"current"``: the row itself, whose step enters its goal; ``"future"``: :func:`future_goal_row`; ``"geometric"``:
    :func:`geometric_goal_row`; ``"away"``: uniform over the rows from the first that lies away from the row's own
    achieved goal on (:func:`first_row_away`), ``"future"`` where none does; ``"final"``: the last row of the
    trajectory; ``"random"``: any row of the dataset.

    Args:
        strategy: one of :data:`STRATEGIES`, or shares of several, see :func:`check_strategy`.
        index: transition rows, int64, shape ``[*]``.
        stop: end of each row's trajectory, int64, shape ``[*]``.
        uniform: in ``[0, 1)``, shape ``[*]``.
        num_rows: rows of the dataset.
        gamma: used by ``"geometric"``.
        away: first row away of each row, int64, shape ``[*]``; used by ``"away"``.

    Returns:
        Goal rows, int64, shape ``[*]``.

    Raises:
        ValueError: see :func:`check_strategy`, or for ``"away"`` without ``away``.
    """
    # float32 has no number between a share's largest and 1, at which a row would be that after the last
    uniform = uniform.double()
    shares = check_strategy(strategy)
    if "away" in shares and away is None:
        raise ValueError("the goal strategy 'away' needs the first row away of each row.")
    draw = _Draw(index, stop, uniform, num_rows, gamma, stop if away is None else away)
    names = list(shares)
    if len(names) == 1:
        return STRATEGIES[names[0]](draw)
    # one number chooses the strategy and, stretched over its share, the row
    rows, low = index, 0.0
    for name in names:
        high = low + shares[name]
        inside = ((uniform - low) / shares[name]).clamp(0.0, _BELOW_ONE)
        chosen = STRATEGIES[name](replace(draw, uniform=inside))
        # the last one takes what rounding of the sum may leave
        rows = torch.where((uniform >= low) & ((uniform < high) | (name == names[-1])), chosen, rows)
        low = high
    return rows


def check_strategy(strategy: Strategy) -> dict[str, float]:
    """Shares of the named strategies that are used at all.

    Args:
        strategy: a name, or positive shares (or 0) by name that add up to 1.

    Returns:
        The positive shares by name.

    Raises:
        ValueError: for an unknown name, a negative share, or a sum other than 1.
    """
    shares = {strategy: 1.0} if isinstance(strategy, str) else {name: float(s) for name, s in strategy.items()}
    for name in shares:
        if name not in STRATEGIES:
            raise unknown_name("goal strategy", name, STRATEGIES)
    if not all(share >= 0.0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1.0):
        raise ValueError(f"shares of goal strategies must not be negative and add up to 1, got {shares}.")
    return {name: share for name, share in shares.items() if share > 0.0}


def check_goal_gamma(used: Collection[str], gamma: float) -> None:
    """Checks the discount of the goal strategy ``"geometric"`` if it is used.

    Args:
        used: names of strategies.
        gamma: probability of going one step further.

    Raises:
        ValueError: if it lies outside ``(0, 1)``.
    """
    if "geometric" in used and not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must lie in (0, 1) for the goal strategy 'geometric', got {gamma}.")


def check_her_ratio(her_ratio: float) -> None:
    """Checks a probability of relabelling.

    Raises:
        ValueError: if it lies outside ``[0, 1]``.
    """
    if not 0.0 <= her_ratio <= 1.0:
        raise ValueError(f"her_ratio must lie in [0, 1], got {her_ratio}.")


_BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True, eq=False)
class _Draw:
    index: Tensor
    stop: Tensor
    uniform: Tensor
    num_rows: int
    gamma: float
    away: Tensor


def _away_goal_row(draw: _Draw) -> Tensor:
    first = torch.where(draw.away < draw.stop, draw.away, draw.index)
    return uniform_index(draw.uniform, first, draw.stop)


#: Relabelling strategies by name.
STRATEGIES: dict[str, Callable[[_Draw], Tensor]] = {
    "current": lambda draw: draw.index,
    "future": lambda draw: future_goal_row(draw.index, draw.stop, draw.uniform),
    "geometric": lambda draw: geometric_goal_row(draw.index, draw.stop, draw.uniform, draw.gamma),
    "away": _away_goal_row,
    "final": lambda draw: draw.stop - 1,
    "random": lambda draw: uniform_index(draw.uniform, 0, draw.num_rows).expand_as(draw.index),
}


@dataclass(frozen=True, eq=False)
class RowWindow:
    """Neighbouring rows, after the last of which comes the first, of which anchors are drawn; each field is 0-d.

    Attributes:
        low: the first row, int64.
        size: how many rows, int64, positive.
        reached_low: place among the rows that reach their stored goal of the first that does so here, int64.
        reached_size: how many do, int64, possibly 0.
        weight_low: cumulative weight of the anchors before ``low``, float64, in ``[0, 1)``.
        weight: weight of the anchors here, float64, in ``(0, 1]``.
    """

    low: Tensor
    size: Tensor
    reached_low: Tensor
    reached_size: Tensor
    weight_low: Tensor
    weight: Tensor

    def anchor_row(self, uniform: Tensor, num_rows: int, anchors: Tensor | None) -> Tensor:
        """A row of the window, by its weight if there are weights.

        Args:
            uniform: in ``[0, 1)``, shape ``[*]``.
            num_rows: rows of the dataset.
            anchors: from :func:`cumulative_weights`, float64, shape ``[N]``; ``None``: all rows are alike.

        Returns:
            int64, shape ``[*]``.
        """
        if anchors is None:
            return (self.low + uniform_index(uniform, 0, self.size)) % num_rows
        number = self.weight_low + uniform.double() * self.weight
        row = weighted_index(torch.where(number >= 1.0, number - 1.0, number), anchors)
        # rounding of the number must not lead out of the window
        return (self.low + torch.minimum((row - self.low) % num_rows, self.size - 1)) % num_rows


@dataclass(frozen=True, eq=False)
class GoalTransitionRows:
    """Rows of one sampled batch; each field has shape ``[B]``, row numbers int64 and masks bool.

    Attributes:
        index: the offline transition (i).
        goal_index: the row (k) whose goal it is given where ``relabel_mask`` holds.
        relabel_mask: where it is given another goal; elsewhere it keeps its stored one.
        q_index: the goal transition (m).
        q_relabel_mask: where that pursues the goal which it enters itself; elsewhere its stored goal, which it reaches.
        reached_index: what ``q_index`` is where ``q_relabel_mask`` does not hold; where no row of the data reaches its
            stored goal, it enters its own goal too.
        actor_goal_index: the row whose goal the actor is given where ``relabel_mask`` holds: ``goal_index`` unless it
            has a strategy of its own.
    """

    index: Tensor
    goal_index: Tensor
    relabel_mask: Tensor
    q_index: Tensor
    q_relabel_mask: Tensor
    reached_index: Tensor
    actor_goal_index: Tensor


def goal_transition_rows(
    uniform: Tensor,
    stop: Tensor,
    reached: Tensor,
    *,
    her_ratio: float,
    strategy: Strategy = "future",
    actor_strategy: Strategy | None = None,
    gamma: float = 0.99,
    index: Tensor | None = None,
    anchors: Tensor | None = None,
    away: Tensor | None = None,
    window: RowWindow | None = None,
) -> GoalTransitionRows:
    r"""Draws rows for a batch of offline transitions (rho) and one of goal transitions (q).

    SMORe Sec. 3.3: "first pick g by HER, then the transition that leads to it". Both rows i and m are thus distributed
    as in the paper: i uniform over the data, its goal the future of i; m the HER goal row of a second, independent
    anchor. The share ``1 - her_ratio`` of q that is not relabelled is uniform over ``reached``, the rows that reach
    their stored goal; with none it is relabelled too.

    ``anchors`` draws both anchors in proportion to weights instead. That reweights rho and q alike: the score's fixed
    point at a transition does not depend on the weights, the expectile over actions and the regression do.

    Args:
        uniform: independent uniforms in ``[0, 1)``, shape ``[B, NUM_UNIFORMS]``.
        stop: end of the trajectory of every row of the dataset, int64, shape ``[N]``.
        reached: rows whose stored goal is reached after the step, int64, shape ``[R]``, possibly empty.
        her_ratio: probability of relabelling, in ``[0, 1]``.
        strategy: see :func:`goal_row`.
        actor_strategy: of the actor's goals, if they are to differ from those of score and value.
        gamma: used by the ``"geometric"`` strategy.
        index: rows i when a sampler has drawn them already, int64, shape ``[B]``; otherwise drawn as ``anchors`` says.
        anchors: from :func:`cumulative_weights`, float64, shape ``[N]``; ``None`` is uniform over the data.
        away: from :func:`first_row_away`, int64, shape ``[N]``; for the strategy ``"away"``.
        window: of whole trajectories, from which rows i and m come; ``None``: from all of the data.

    Returns:
        The rows. Deterministic in ``uniform``; no value is read back from the device.

    Raises:
        ValueError: if ``her_ratio`` lies outside ``[0, 1]``, the dataset is empty, or ``uniform`` or ``index`` has
            another shape.
    """
    check_her_ratio(her_ratio)
    if uniform.ndim != 2 or uniform.shape[-1] != NUM_UNIFORMS:
        raise ValueError(f"expected uniforms of shape [B, {NUM_UNIFORMS}], got {tuple(uniform.shape)}.")
    num_rows = stop.shape[0]
    if index is not None and index.shape != uniform.shape[:1]:
        raise ValueError(f"expected one index for each of the {uniform.shape[0]} rows, got {tuple(index.shape)}.")
    if num_rows == 0:
        raise ValueError("cannot sample goals from an empty dataset.")
    u_anchor, u_goal, u_relabel, u_q_anchor, u_q_goal, u_q_relabel, u_reached, u_actor_goal = uniform.unbind(-1)

    def anchor_row(number: Tensor) -> Tensor:
        if window is not None:
            return window.anchor_row(number, num_rows, anchors)
        return uniform_index(number, 0, num_rows) if anchors is None else weighted_index(number, anchors)

    def goal_of(rows: Tensor, number: Tensor, chosen: Strategy) -> Tensor:
        first = None if away is None else away[rows]
        return goal_row(chosen, rows, stop[rows], number, num_rows, gamma, first)

    if index is None:
        index = anchor_row(u_anchor)
    goal_index = goal_of(index, u_goal, strategy)
    actor_goal_index = goal_index if actor_strategy is None else goal_of(index, u_actor_goal, actor_strategy)
    relabel_mask = u_relabel < her_ratio

    entering = goal_of(anchor_row(u_q_anchor), u_q_goal, strategy)
    q_relabel_mask = u_q_relabel < her_ratio
    if reached.shape[0] == 0:
        reached_index, q_relabel_mask = entering, torch.ones_like(q_relabel_mask)
    elif window is None:
        reached_index = reached[uniform_index(u_reached, 0, reached.shape[0])]
    else:
        place = window.reached_low + uniform_index(u_reached, 0, window.reached_size)
        none_here = window.reached_size == 0
        reached_index = torch.where(none_here, entering, reached[place % reached.shape[0]])
        q_relabel_mask = q_relabel_mask | none_here
    q_index = torch.where(q_relabel_mask, entering, reached_index)
    return GoalTransitionRows(index, goal_index, relabel_mask, q_index, q_relabel_mask, reached_index, actor_goal_index)


def trajectory_stop(done: Tensor, *, open_end: bool = False) -> Tensor:
    """End of the trajectory of every row, from the flags that close trajectories, whose number is read back.

    Args:
        done: bool, shape ``[N]``; the last row must be ``True``.
        open_end: let the last trajectory, which still grows, end where the rows do.

    Returns:
        One past the first ``True`` at or after each row, int64, shape ``[N]``.

    Raises:
        ValueError: if ``done`` has another shape or is empty, or its last row is ``False`` and the end may not be open.
    """
    if done.ndim != 1:
        raise ValueError(f"expected done of shape [N], got {list(done.shape)}.")
    if done.numel() == 0 or not (open_end or bool(done[-1])):
        raise ValueError("the last row of the last trajectory must be done; an open trajectory would wrap around.")
    stop = done.nonzero().squeeze(-1) + 1
    if open_end and not bool(done[-1]):
        stop = torch.cat([stop, stop.new_full((1,), done.shape[0])])
    return stop.repeat_interleave(stop.diff(prepend=stop.new_zeros(1)))


def trajectory_start(stop: Tensor) -> Tensor:
    """First row of the trajectory of every row, from :func:`trajectory_stop`; int64, shape ``[N]``."""
    rows = torch.arange(stop.shape[0], device=stop.device)
    first = torch.ones_like(stop, dtype=torch.bool)
    first[1:] = stop[1:] != stop[:-1]
    return torch.where(first, rows, 0).cummax(0).values


def first_row(index: Tensor, stop: Tensor) -> Tensor:
    """First row of the trajectory of some rows.

    Args:
        index: rows, int64, shape ``[*]``.
        stop: end of the trajectory of every row, int64, shape ``[N]``.

    Returns:
        int64, shape ``[*]``.
    """
    # ends do not decrease from row to row, and the rows of a trajectory share theirs
    return torch.searchsorted(stop, stop[index])


def goal_offset(index: Tensor, goal_index: Tensor, relabel_mask: Tensor) -> Tensor:
    """Steps from transitions to the rows whose goals they were given.

    Args:
        index: rows of the transitions, or their places in their trajectories, integer, shape ``[*]``.
        goal_index: the same of the rows whose goals may be given.
        relabel_mask: where they are, bool, shape ``[*]``.

    Returns:
        0 for a transition that enters its goal itself, -1 for one that kept its stored goal; int64, shape ``[*, 1]``.
    """
    return torch.where(relabel_mask, goal_index - index, -1).unsqueeze(-1)
