"""Episode and goal index arithmetic: pure functions of row numbers and of uniform random numbers.

Rows are transitions in TED layout, trajectories contiguous, ``start`` and ``stop`` the half-open row interval of a
row's trajectory. The goal *of row k* is ``("next", "achieved_goal")[k]``: hence a goal row ``k >= i`` is strictly later
than the state of row i, the last state of a trajectory can be a goal, and row k is the transition that enters it.

Randomness comes in as uniforms in ``[0, 1)``: nothing here draws, branches on data or reads a value back, so every
function compiles into a static graph and runs the same inside a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrl_smore._errors import unknown_name

#: Uniform numbers that :func:`goal_transition_rows` uses per sampled row.
NUM_UNIFORMS = 7


def uniform_index(uniform: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Integer drawn uniformly from the half-open ``[low, high)``.

    Args:
        uniform: in ``[0, 1)``, shape ``[*]``.
        low: smallest value, broadcastable.
        high: one above the largest, greater than ``low``.

    Returns:
        int64, shape ``[*]``.
    """
    # in float32 u * width may round up to the width itself: float64 does not for any width below 2^53
    offset = (uniform.double() * (high - low)).long()
    return low + offset


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
    """Goal row ``index + Geometric(1 - gamma)``, cut at the last row of the trajectory, as OGBench does.

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
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must lie in (0, 1), got {gamma}.")
    offset = torch.floor(torch.log1p(-uniform.double()) / math.log(gamma)).long()
    return torch.minimum(index + offset, stop - 1)


def goal_row(strategy: str, index: Tensor, stop: Tensor, uniform: Tensor, num_rows: int, gamma: float = 0.99) -> Tensor:
    """Goal row of a named relabelling strategy.

    ``"future"``: :func:`future_goal_row`; ``"geometric"``: :func:`geometric_goal_row`; ``"final"``: the last row of the
    trajectory; ``"random"``: any row of the dataset.

    Args:
        strategy: one of :data:`STRATEGIES`.
        index: transition rows, int64, shape ``[*]``.
        stop: end of each row's trajectory, int64, shape ``[*]``.
        uniform: in ``[0, 1)``, shape ``[*]``.
        num_rows: rows of the dataset.
        gamma: used by ``"geometric"``.

    Returns:
        Goal rows, int64, shape ``[*]``.

    Raises:
        ValueError: for another strategy.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("goal strategy", strategy, STRATEGIES)
    return STRATEGIES[strategy](index, stop, uniform, num_rows, gamma)


_Strategy = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]

#: Relabelling strategies by name.
STRATEGIES: dict[str, _Strategy] = {
    "future": lambda index, stop, uniform, num_rows, gamma: future_goal_row(index, stop, uniform),
    "geometric": lambda index, stop, uniform, num_rows, gamma: geometric_goal_row(index, stop, uniform, gamma),
    "final": lambda index, stop, uniform, num_rows, gamma: stop - 1,
    "random": lambda index, stop, uniform, num_rows, gamma: uniform_index(uniform, 0, num_rows).expand_as(index),
}


@dataclass(frozen=True)
class GoalTransitionRows:
    """Rows of one sampled batch; each field has shape ``[B]``.

    ``index`` (i) is the offline transition, ``goal_index`` (k) the row whose goal it is given where ``relabel_mask``
    holds (elsewhere it keeps its stored goal), ``q_index`` (m) the goal transition: it pursues the goal that it enters
    itself where ``q_relabel_mask`` holds, and elsewhere its stored goal, which it reaches.
    """

    index: Tensor
    goal_index: Tensor
    relabel_mask: Tensor
    q_index: Tensor
    q_relabel_mask: Tensor


def goal_transition_rows(
    uniform: Tensor,
    stop: Tensor,
    reached: Tensor,
    *,
    her_ratio: float,
    strategy: str = "future",
    gamma: float = 0.99,
    coupled: bool = False,
    index: Tensor | None = None,
) -> GoalTransitionRows:
    r"""Draws rows for a batch of offline transitions (rho) and one of goal transitions (q).

    SMORe Sec. 3.3: "first pick g by HER, then the transition that leads to it". Both rows i and m are thus distributed
    as in the paper: i uniform over the data, its goal the future of i; m the HER goal row of a second, independent
    anchor (``coupled=True``: of the same anchor, so that both share the goal). The share ``1 - her_ratio`` of q that is
    not relabelled is uniform over ``reached``, the rows that reach their stored goal; with none it is relabelled too.

    Args:
        uniform: independent uniforms in ``[0, 1)``, shape ``[B, NUM_UNIFORMS]``.
        stop: end of the trajectory of every row of the dataset, int64, shape ``[N]``.
        reached: rows whose stored goal is reached after the step, int64, shape ``[R]``, possibly empty.
        her_ratio: probability of relabelling, in ``[0, 1]``.
        strategy: one of :data:`STRATEGIES`.
        gamma: used by the ``"geometric"`` strategy.
        coupled: share anchor and goal between rho and q.
        index: rows i when a sampler has drawn them already, int64, shape ``[B]``; otherwise uniform over the data.

    Returns:
        The rows. Deterministic in ``uniform``; no value is read back from the device.

    Raises:
        ValueError: if ``her_ratio`` lies outside ``[0, 1]``, the dataset is empty, or ``uniform`` or ``index`` has
            another shape.
    """
    if not 0.0 <= her_ratio <= 1.0:
        raise ValueError(f"her_ratio must lie in [0, 1], got {her_ratio}.")
    if uniform.ndim != 2 or uniform.shape[-1] != NUM_UNIFORMS:
        raise ValueError(f"expected uniforms of shape [B, {NUM_UNIFORMS}], got {tuple(uniform.shape)}.")
    num_rows = stop.shape[0]
    if index is not None and index.shape != uniform.shape[:1]:
        raise ValueError(f"expected one index for each of the {uniform.shape[0]} rows, got {tuple(index.shape)}.")
    if num_rows == 0:
        raise ValueError("cannot sample goals from an empty dataset.")
    u = uniform.unbind(-1)

    if index is None:
        index = uniform_index(u[0], 0, num_rows)
    goal_index = goal_row(strategy, index, stop[index], u[1], num_rows, gamma)
    relabel_mask = u[2] < her_ratio

    if coupled:
        entering, q_relabel_mask = goal_index, relabel_mask
    else:
        anchor = uniform_index(u[3], 0, num_rows)
        entering = goal_row(strategy, anchor, stop[anchor], u[4], num_rows, gamma)
        q_relabel_mask = u[5] < her_ratio
    if reached.shape[0] == 0:
        q_index, q_relabel_mask = entering, torch.ones_like(q_relabel_mask)
    else:
        q_index = torch.where(q_relabel_mask, entering, reached[uniform_index(u[6], 0, reached.shape[0])])
    return GoalTransitionRows(index, goal_index, relabel_mask, q_index, q_relabel_mask)


def trajectory_stop(done: Tensor) -> Tensor:
    """End of the trajectory of every row, from the flags that close trajectories.

    Args:
        done: bool, shape ``[N]``; the last row must be ``True``.

    Returns:
        int64, shape ``[N]``: one past the first ``True`` at or after each row.

    Raises:
        ValueError: if ``done`` is empty or its last row is ``False``.
    """
    if done.ndim != 1 or done.numel() == 0 or not bool(done[-1]):
        raise ValueError("the last row of the last trajectory must be done; an open trajectory would wrap around.")
    ends = done.nonzero().squeeze(-1)
    rows = torch.arange(done.shape[0], device=done.device)
    return ends[torch.searchsorted(ends, rows)] + 1


def trajectory_start(stop: Tensor) -> Tensor:
    """First row of the trajectory of every row, from :func:`trajectory_stop`; int64, shape ``[N]``."""
    rows = torch.arange(stop.shape[0], device=stop.device)
    first = torch.ones_like(stop, dtype=torch.bool)
    first[1:] = stop[1:] != stop[:-1]
    return torch.where(first, rows, 0).cummax(0).values
