r"""SMORe's primal and dual problems in exact form, on goal-conditioned MDPs small enough to enumerate.

Nothing here is sampled or approximated, so a loss, a theorem or an erratum can be checked to machine precision. Arrays
are indexed ``[state, action, goal]``; scores are ``S(s, a, g)`` of shape ``[S, A, G]`` or ``S(s, g)`` of shape
``[S, G]``. ``rho`` is the joint distribution of the offline data and ``q`` the goal-transition distribution, both
``[S, A, G]`` with sum 1. All functions are differentiable in the score. Source: arXiv:2311.02013.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchrl_smore.functional.divergences import Divergence

__all__ = [
    "DualSolution",
    "MatchingProblem",
    "TabularMDP",
    "dual_q",
    "dual_v",
    "dual_v_occupancy",
    "goal_transition_distribution",
    "in_sample_minimiser",
    "in_sample_objective",
    "in_sample_score_range",
    "occupancy",
    "policy_action_objective",
    "primal_value",
    "random_mdp",
    "restrict_policy",
    "solve_dual_q",
    "solve_dual_v",
]


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A goal-conditioned MDP without reward.

    Args:
        transition: ``p(s'|s, a)``, shape ``[S, A, S]``, rows sum to 1.
        initial: ``d_0(s, g)``, the joint distribution of first state and training goal, shape ``[S, G]``, sum 1.
        gamma: discount, in ``[0, 1)``.

    Raises:
        ValueError: if shapes disagree, something does not sum to 1, or ``gamma`` lies outside its range.
    """

    transition: Tensor
    initial: Tensor
    gamma: float

    def __post_init__(self) -> None:
        states, next_states = self.transition.shape[0], self.transition.shape[-1]
        if self.transition.ndim != 3 or states != next_states:
            raise ValueError(f"transition must have shape [S, A, S], got {tuple(self.transition.shape)}.")
        if self.initial.ndim != 2 or self.initial.shape[0] != states:
            raise ValueError(f"initial must have shape [S, G] with S = {states}, got {tuple(self.initial.shape)}.")
        if not 0.0 <= self.gamma < 1.0:
            raise ValueError(f"gamma must lie in [0, 1), got {self.gamma}.")
        _check_distribution("transition", self.transition, self.transition.sum(-1))
        _check_distribution("initial", self.initial, self.initial.sum())


@dataclass(frozen=True, eq=False)
class MatchingProblem:
    r"""Data of :math:`\min D_f(\mathrm{Mix}_\beta(d, \rho) \| \mathrm{Mix}_\beta(q, \rho))` (Eq. 5, Eq. 6).

    Args:
        mdp: the dynamics.
        rho: offline data distribution, shape ``[S, A, G]``, sum 1.
        q: goal-transition distribution, shape ``[S, A, G]``, sum 1.
        beta: weight of ``q`` (and ``d``) in the mixtures, in ``(0, 1]``.

    Raises:
        ValueError: if ``rho`` or ``q`` is no distribution of that shape, or ``beta`` lies outside its range.
    """

    mdp: TabularMDP
    rho: Tensor
    q: Tensor
    beta: float

    def __post_init__(self) -> None:
        shape = (*self.mdp.transition.shape[:2], self.mdp.initial.shape[1])
        for name, table in (("rho", self.rho), ("q", self.q)):
            if table.shape != shape:
                raise ValueError(f"{name} must have shape [S, A, G] = {shape}, got {tuple(table.shape)}.")
            _check_distribution(name, table, table.sum())
        if not 0.0 < self.beta <= 1.0:
            raise ValueError(f"beta must lie in (0, 1], got {self.beta}.")

    def mix(self, other: Tensor) -> Tensor:
        """``beta * other + (1 - beta) * rho``, shape ``[S, A, G]``."""
        return self.beta * other + (1.0 - self.beta) * self.rho

    @property
    def reference(self) -> Tensor:
        """``Mix_beta(q, rho)``, the second argument of the divergence, shape ``[S, A, G]``."""
        return self.mix(self.q)


class DualSolution(NamedTuple):
    """Minimum of a dual objective.

    Args:
        value: objective at ``score``, scalar.
        score: minimiser, shape ``[S, A, G]`` or ``[S, G]``.
    """

    value: Tensor
    score: Tensor


def random_mdp(
    num_states: int,
    num_actions: int,
    num_goals: int,
    *,
    gamma: float = 0.9,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> TabularMDP:
    """Draw an MDP with peaked random dynamics, a random first state and, independent of it, a random goal.

    Args:
        num_states: number of states.
        num_actions: number of actions.
        num_goals: number of goals.
        gamma: discount, in ``[0, 1)``.
        generator: source of randomness, the global one if None.
        dtype: floating dtype.

    Returns:
        The MDP, every probability positive.
    """

    def simplex(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).mul(2.0).softmax(-1)

    initial = simplex(num_states)[:, None] * simplex(num_goals)
    return TabularMDP(simplex(num_states, num_actions, num_states), initial, gamma)


def goal_transition_distribution(mdp: TabularMDP, state_goal: Tensor) -> Tensor:
    r"""Goal-transition distribution :math:`q(s,a,g) \propto q^{train}(g) \, E_{s'}[1[\phi(s') = g]]` (Sec. 3).

    Args:
        mdp: the dynamics; ``q^{train}`` is the goal marginal of ``mdp.initial``.
        state_goal: the goal ``phi(s)`` of each state, int64, shape ``[S]``, in ``[0, G)``.

    Returns:
        ``q``, shape ``[S, A, G]``, sum 1.
    """
    num_goals = mdp.initial.shape[1]
    reached = torch.nn.functional.one_hot(state_goal, num_goals).to(mdp.transition.dtype)
    weight = (mdp.transition @ reached) * mdp.initial.sum(0)
    return weight / weight.sum()


def occupancy(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Discounted occupancy of a policy, from the Bellman flow (Eq. 2) as a linear system for each goal.

    Args:
        mdp: the dynamics.
        policy: ``pi(a|s, g)``, shape ``[S, A, G]``, sums to 1 over actions.

    Returns:
        ``d(s, a, g)``, shape ``[S, A, G]``, sum 1, goal marginal that of ``mdp.initial``.
    """
    kernel = torch.einsum("sat,sag->gts", mdp.transition, policy)
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    flow = (1.0 - mdp.gamma) * mdp.initial.T.unsqueeze(-1)
    state = torch.linalg.solve(identity - mdp.gamma * kernel, flow).squeeze(-1).T
    return state.unsqueeze(1) * policy


def restrict_policy(policy: Tensor, support: Tensor) -> Tensor:
    """Policy conditioned on supported actions, which keeps the policy-action objectives bounded.

    Args:
        policy: ``pi(a|s, g)``, shape ``[S, A, G]``.
        support: bool mask of the same shape, True where the data has the triple.

    Returns:
        The renormalised policy, shape ``[S, A, G]``.

    Raises:
        ValueError: if the policy takes no supported action at some state and goal.
    """
    kept = policy * support
    total = kept.sum(1, keepdim=True)
    if not bool((total > 0).all()):
        state, _, goal = (total <= 0).nonzero()[0].tolist()
        raise ValueError(f"the policy takes no supported action at state {state}, goal {goal}.")
    return kept / total


def primal_value(problem: MatchingProblem, divergence: Divergence, d: Tensor) -> Tensor:
    r"""Primal objective :math:`-D_f(\mathrm{Mix}_\beta(d, \rho) \| \mathrm{Mix}_\beta(q, \rho))` (Eq. 6).

    Args:
        problem: the matching problem.
        divergence: the f-divergence.
        d: occupancy, shape ``[S, A, G]``.

    Returns:
        Scalar, at most 0; mass of ``d`` where the reference has none costs ``lim f'(x)`` each, possibly infinite.
    """
    reference, mix = problem.reference, problem.mix(d)
    supported = reference > 0
    ratio = torch.where(supported, mix, 1.0) / torch.where(supported, reference, 1.0)
    unsupported = mix.masked_fill(supported, 0.0).sum()
    recession = torch.where(unsupported > 0, divergence.supremum * unsupported, 0.0)
    return -_mean(reference, divergence.f(ratio)) - recession


def dual_q(
    problem: MatchingProblem, divergence: Divergence, policy: Tensor, score: Tensor, *, over_reals: bool = False
) -> Tensor:
    r"""Dual objective of Theorem 1 (Eq. 7); its minimum over ``S`` is :func:`primal_value` at the policy's occupancy.

    That needs ``Mix_beta(q, rho) > 0`` wherever the policy goes: the expectation, taken literally, does not see ``y``
    elsewhere, and the objective may then fall without bound.

    .. math:: \beta (1-\gamma) E_{d_0, \pi}[S] + E_{\mathrm{Mix}_\beta(q, \rho)}[f^*(y)] - (1-\beta) E_\rho[y],
        \qquad y = \gamma P^\pi S - S

    Args:
        problem: the matching problem.
        divergence: the f-divergence.
        policy: ``pi(a|s, g)``, shape ``[S, A, G]``.
        score: ``S(s, a, g)``, shape ``[S, A, G]``.
        over_reals: use the conjugate over all real ratios; with chi-squared this is Eq. 8.

    Returns:
        Scalar, ``+inf`` where ``y`` leaves the domain of the conjugate.
    """
    mdp, beta = problem.mdp, problem.beta
    policy_score = (policy * score).sum(1)
    y = mdp.gamma * _next(mdp, policy_score) - score
    conjugate = divergence.conjugate_real(y) if over_reals else divergence.conjugate(y)
    first = beta * (1.0 - mdp.gamma) * _mean(mdp.initial, policy_score)
    return first + _mean(problem.reference, conjugate) - (1.0 - beta) * _mean(problem.rho, y)


def solve_dual_q(problem: MatchingProblem, divergence: Divergence, policy: Tensor) -> DualSolution:
    r"""Minimise :func:`dual_q` in closed form.

    The optimum satisfies :math:`y = f'(\mathrm{Mix}_\beta(d^\pi, \rho) / \mathrm{Mix}_\beta(q, \rho))`, and
    :math:`S = -\sum_t (\gamma P^\pi)^t y` inverts the definition of ``y``.

    Args:
        problem: the matching problem.
        divergence: the f-divergence.
        policy: ``pi(a|s, g)``, shape ``[S, A, G]``.

    Returns:
        The minimum and a minimiser, shape ``[S, A, G]``.

    Raises:
        ValueError: if ``Mix_beta(q, rho)`` is 0 somewhere, as the minimum need not be finite or attained then; or if
            ``Mix_beta(d^pi, rho)`` is and ``f'(0)`` infinite, as with KL, squared Hellinger and Jensen-Shannon, as it
            is approached for ``y`` to minus infinity only.
    """
    reference, mdp = problem.reference, problem.mdp
    _check_support(reference)
    y = divergence.derivative(problem.mix(occupancy(mdp, policy)) / reference)
    if not bool(y.isfinite().all()):
        raise ValueError(
            f"{divergence.name} attains its minimum at finite scores only where Mix_beta(d, rho) is positive, got "
            f"{int((~y.isfinite()).sum())} triples where it is not."
        )
    if divergence.supremum_in_domain:
        # y may lie on the edge of the domain: keep the rounding of the inversion inside
        y = y * (1.0 - 100.0 * torch.finfo(y.dtype).eps / (1.0 - mdp.gamma))
    kernel = torch.einsum("sat,tbg->gsatb", mdp.transition, policy).flatten(3, 4).flatten(1, 2)
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    flat = y.flatten(0, 1).T.unsqueeze(-1)
    score = -torch.linalg.solve(identity - mdp.gamma * kernel, flat).squeeze(-1).T.unflatten(0, y.shape[:2])
    return DualSolution(dual_q(problem, divergence, policy, score), score)


def dual_v(problem: MatchingProblem, divergence: Divergence, score: Tensor, *, as_printed: bool = False) -> Tensor:
    r"""Dual objective of Theorem 2 (Eq. 63), with a multiplier ``S(s, g)`` on the state flow only.

    .. math:: \beta (1-\gamma) E_{d_0}[S] + E_{\mathrm{Mix}_\beta(q, \rho)}[w^* y - f(w^*)] - (1-\beta) E_\rho[y],
        \qquad y = \gamma E_{s'}[S(s', g)] - S(s, g)

    Occupancies satisfy ``d >= 0``, that is :math:`w \ge (1-\beta) \rho / \mathrm{Mix}_\beta(q, \rho)`, so
    :math:`w^*` is the larger of that bound and :math:`(f')^{-1}(y)`. The paper prints ``max(0, .)``, which solves a
    relaxation with negative ``d``; both agree at ``beta = 1`` or where the bound is inactive.

    Args:
        problem: the matching problem.
        divergence: the f-divergence.
        score: ``S(s, g)``, shape ``[S, G]``.
        as_printed: use the paper's bound 0. Outside the domain of the conjugate the value is ``+inf`` either way.

    Returns:
        Scalar, ``+inf`` where ``y`` leaves the domain of the conjugate.
    """
    mdp, beta = problem.mdp, problem.beta
    y = _state_residual(mdp, score)
    first = beta * (1.0 - mdp.gamma) * _mean(mdp.initial, score)
    bracket = _bounded_conjugate(divergence, y, _ratio_bound(problem, as_printed))
    return first + _mean(problem.reference, bracket) - (1.0 - beta) * _mean(problem.rho, y)


def dual_v_occupancy(
    problem: MatchingProblem, divergence: Divergence, score: Tensor, *, as_printed: bool = False
) -> Tensor:
    r"""Occupancy :math:`(w^* \mathrm{Mix}_\beta(q, \rho) - (1-\beta) \rho) / \beta` that a score of Theorem 2 implies.

    At the minimiser of :func:`dual_v` it solves the primal (Eq. 51); as printed it may be negative. With total
    variation, whose ratio is not unique, it need not satisfy the flow.

    Args:
        problem: the matching problem.
        divergence: the f-divergence.
        score: ``S(s, g)``, shape ``[S, G]``.
        as_printed: as in :func:`dual_v`.

    Returns:
        Shape ``[S, A, G]``.
    """
    bound = _ratio_bound(problem, as_printed)
    ratio = torch.maximum(divergence.maximiser(_state_residual(problem.mdp, score)), bound)
    return (ratio * problem.reference - (1.0 - problem.beta) * problem.rho) / problem.beta


def solve_dual_v(
    problem: MatchingProblem,
    divergence: Divergence,
    *,
    as_printed: bool = False,
    tolerance: float = 1e-10,
    max_steps: int = 500,
) -> DualSolution:
    """Minimise :func:`dual_v` by Newton's method with backtracking, from ``S = 0``, in the dtype of the problem.

    Args:
        problem: the matching problem, float64 for an accurate answer.
        divergence: a differentiable f-divergence; for total variation the dual is a linear program.
        as_printed: as in :func:`dual_v`.
        tolerance: largest Euclidean norm of the gradient accepted as a minimum.
        max_steps: most Newton steps taken, not negative; 0 accepts ``S = 0`` or nothing.

    Returns:
        The minimum and its minimiser, shape ``[S, G]``.

    Raises:
        ValueError: for total variation, a negative ``max_steps``, or if ``Mix_beta(q, rho)`` is 0 somewhere.
        RuntimeError: if the gradient is still above ``tolerance`` after ``max_steps``.
    """
    if divergence.name == "total_variation":
        raise ValueError("solve_dual_v expects a differentiable divergence; total_variation gives a linear program.")
    if max_steps < 0:
        raise ValueError(f"max_steps must not be negative, got {max_steps}.")
    reference, mdp = problem.reference, problem.mdp
    _check_support(reference)
    bound = _ratio_bound(problem, as_printed)
    score = torch.zeros_like(mdp.initial)
    size = score.numel()
    identity = torch.eye(size, dtype=score.dtype, device=score.device)
    # row (s, a, g) holds the derivative of y(s, a, g) with respect to the flattened score
    jacobian = torch.stack([_state_residual(mdp, row.view_as(score)).flatten() for row in identity], dim=1)
    # one more look than steps: the last step is examined too
    for step_number in range(max_steps + 1):
        leaf = score.detach().requires_grad_()
        value = dual_v(problem, divergence, leaf, as_printed=as_printed)
        (grad,) = torch.autograd.grad(value, leaf)
        norm = float(grad.norm())
        if norm <= tolerance:
            return DualSolution(value.detach(), score)
        if step_number == max_steps:
            break
        y = _state_residual(mdp, score).requires_grad_()
        (curvature,) = torch.autograd.grad(torch.maximum(divergence.maximiser(y), bound).sum(), y)
        hessian = jacobian.T @ ((reference * curvature).flatten()[:, None] * jacobian)
        # damping by the gradient keeps flat pieces solvable and vanishes at the minimum
        step = torch.linalg.solve(hessian + min(1e-2, norm) * 1e-3 * identity, grad.flatten()).view_as(score)
        score = _backtrack(problem, divergence, score, step, value.detach(), float((grad * step).sum()), as_printed)
    raise RuntimeError(f"no minimum within {max_steps} steps: gradient norm {norm:.3g}, expected {tolerance:.3g}.")


def policy_action_objective(
    problem: MatchingProblem, policy: Tensor, score: Tensor, value: Tensor, *, curvature: float = 1.0
) -> Tensor:
    r"""Score objective of Eq. 10, whose first two terms evaluate ``S`` at the policy's actions.

    .. math:: \beta (1-\gamma) E_{\rho, \pi}[S(s, a, g)] + \beta E_q[\gamma S(s', \pi, g) - S(s, a, g)]
        + c \, E_{\mathrm{Mix}_\beta(q, \rho)}[(\gamma M(s', g) - S(s, a, g))^2]

    The quadratic term holds ``S`` at data actions only: without support for every action of the policy there is no
    minimum. :func:`restrict_policy` restores it.

    Args:
        problem: the matching problem.
        policy: ``pi(a|s, g)``, shape ``[S, A, G]``.
        score: ``S(s, a, g)``, shape ``[S, A, G]``.
        value: ``M(s, g)``, shape ``[S, G]``.
        curvature: coefficient ``c``, positive; Eq. 10 prints 1, Eq. 8 has 0.25.

    Returns:
        Scalar.
    """
    gamma, policy_score = problem.mdp.gamma, (policy * score).sum(1)
    first = (1.0 - gamma) * _mean(problem.rho.sum(1), policy_score)
    goal_term = _mean(problem.q, gamma * _next(problem.mdp, policy_score) - score)
    return problem.beta * (first + goal_term) + curvature * _squared_residual(problem, score, value)


def in_sample_objective(problem: MatchingProblem, score: Tensor, value: Tensor, *, curvature: float = 0.25) -> Tensor:
    r"""Eq. 10 with dataset actions in place of policy actions; the policy may go anywhere.

    .. math:: \beta (1-\gamma) E_\rho[S] - \beta E_q[S] + c \, E_{\mathrm{Mix}_\beta(q, \rho)}[(\gamma M(s', g) - S)^2]

    It is bounded below for every data distribution if ``beta < 1``, and at ``beta = 1`` if ``q`` is positive wherever
    ``rho`` is: nothing opposes ``(1 - gamma) E_rho[S]`` elsewhere.

    Args:
        problem: the matching problem.
        score: ``S(s, a, g)``, shape ``[S, A, G]``.
        value: ``M(s, g)``, shape ``[S, G]``.
        curvature: coefficient ``c``, positive.

    Returns:
        Scalar.
    """
    linear = (1.0 - problem.mdp.gamma) * _mean(problem.rho, score) - _mean(problem.q, score)
    return problem.beta * linear + curvature * _squared_residual(problem, score, value)


def in_sample_minimiser(problem: MatchingProblem, value: Tensor, *, curvature: float = 0.25) -> Tensor:
    r"""Minimiser of :func:`in_sample_objective`: a Bellman backup with an implicit reward.

    .. math:: S = \gamma E_{s'}[M(s', g)] + \frac{\beta q - \beta (1-\gamma) \rho}{2 c \, \mathrm{Mix}_\beta(q, \rho)}

    Args:
        problem: the matching problem.
        value: ``M(s, g)``, shape ``[S, G]``.
        curvature: coefficient ``c``, positive.

    Returns:
        ``S(s, a, g)``, shape ``[S, A, G]``; off the support, where the objective ignores it, with reward 0.

    Raises:
        ValueError: if ``rho`` is positive somewhere where ``Mix_beta(q, rho)`` is 0, as it may be at ``beta = 1``: the
            objective has no minimum.
    """
    reference, gamma = problem.reference, problem.mdp.gamma
    unopposed = (reference == 0) & (problem.rho > 0)
    if bool(unopposed.any()):
        raise ValueError(
            f"the objective has no minimum: at beta = {problem.beta} Mix_beta(q, rho) must be positive wherever rho "
            f"is, got 0 at {int(unopposed.sum())} such triples."
        )
    reward = problem.beta * (problem.q - (1.0 - gamma) * problem.rho)
    reward = reward / (2.0 * curvature * reference.masked_fill(reference == 0, 1.0))
    return gamma * _next(problem.mdp, value) + reward


def in_sample_score_range(beta: float, gamma: float, *, curvature: float = 0.25) -> tuple[float, float]:
    r"""Range of the fixed point of :func:`in_sample_minimiser` for any ``M`` that averages or maximises ``S``.

    Args:
        beta: mixture weight, in ``(0, 1]``.
        gamma: discount, in ``[0, 1)``.
        curvature: coefficient ``c``, positive.

    Returns:
        :math:`-\beta / (2 c (1-\beta))` (``-inf`` for ``beta = 1``) and :math:`1 / (2 c (1-\gamma))`.
    """
    low = -beta / (2.0 * curvature * (1.0 - beta)) if beta < 1.0 else -math.inf
    return low, 1.0 / (2.0 * curvature * (1.0 - gamma))


def _backtrack(
    problem: MatchingProblem,
    divergence: Divergence,
    score: Tensor,
    step: Tensor,
    value: Tensor,
    decrease: float,
    as_printed: bool,
) -> Tensor:
    """Longest halved step that lowers the objective, up to its rounding error."""
    scale, rounding = 1.0, 10.0 * torch.finfo(value.dtype).eps * (1.0 + value.abs())
    for _ in range(60):
        trial = score - scale * step
        if dual_v(problem, divergence, trial, as_printed=as_printed) <= value - 1e-4 * scale * decrease + rounding:
            break
        scale /= 2.0
    return trial


def _bounded_conjugate(divergence: Divergence, y: Tensor, bound: Tensor) -> Tensor:
    """``sup x y - f(x)`` over ``x >= bound``, for ``0 <= bound <= 1``."""
    binds = divergence.maximiser(y.detach()) < bound
    # the conjugate is only read, and only differentiated, where the bound does not bind
    return torch.where(binds, bound * y - divergence.f(bound), divergence.conjugate(y.masked_fill(binds, 0.0)))


def _ratio_bound(problem: MatchingProblem, as_printed: bool) -> Tensor:
    """Smallest density ratio allowed in Theorem 2, shape ``[S, A, G]``."""
    if as_printed:
        return torch.zeros_like(problem.rho)
    reference = problem.reference
    return (1.0 - problem.beta) * problem.rho / reference.masked_fill(reference == 0, 1.0)


def _state_residual(mdp: TabularMDP, score: Tensor) -> Tensor:
    """``gamma E[S(s', g)] - S(s, g)`` of ``[S, G]`` as ``[S, A, G]``."""
    return mdp.gamma * _next(mdp, score) - score.unsqueeze(1)


def _squared_residual(problem: MatchingProblem, score: Tensor, value: Tensor) -> Tensor:
    """``E[(gamma M(s', g) - S)^2]`` over the reference distribution and the next state."""
    square = (problem.mdp.gamma * value - score.unsqueeze(2)).square()  # [S, A, S', G]
    return torch.einsum("sag,sat,satg->", problem.reference, problem.mdp.transition, square)


def _next(mdp: TabularMDP, table: Tensor) -> Tensor:
    """``E[table(s', g)]`` of ``[S, G]`` as ``[S, A, G]``."""
    return torch.einsum("sat,tg->sag", mdp.transition, table)


def _mean(weight: Tensor, values: Tensor) -> Tensor:
    """``sum(weight * values)``, where weight 0 silences even an infinite value."""
    return (weight * values.masked_fill(weight == 0, 0.0)).sum()


def _check_distribution(name: str, table: Tensor, total: Tensor) -> None:
    if bool((table < 0).any()) or not torch.allclose(total, torch.ones_like(total), atol=1e-5):
        raise ValueError(f"{name} must be non-negative with sum 1, got sums {total.min():.6g} to {total.max():.6g}.")


def _check_support(reference: Tensor) -> None:
    if not bool((reference > 0).all()):
        raise ValueError(f"Mix_beta(q, rho) must be positive everywhere, got {int((reference <= 0).sum())} zeros.")
