r"""The score objective of SMORe in every formulation, as functions of tensors only.

Throughout, ``y = gamma * M(s', g) - S(s, a, g)`` is the Bellman residual, ``rho`` the (relabelled) offline data, ``q``
the goal transitions, ``Mix = beta q + (1 - beta) rho``, and a *pair* ``(rho_term, q_term)`` stands for the objective
``mean(rho_term) + mean(q_term)``: the two batches need not have the same size. Source: Sikchi et al. (2024),
arXiv:2311.02013. Its conjugate enters through

.. math:: h(y) = \kappa f^*(y / \kappa) - y, \qquad \kappa = 1 / (4c),

which is ``c y^2`` for Pearson chi-squared: ``residual_coef`` c = 0.25 is the generator f itself (Eq. 8), any other c
weighs the whole divergence by ``kappa``. Eq. 10 prints c = 1 (erratum E3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.divergences import Divergence, get_divergence

Pair = tuple[Tensor, Tensor]
Formulation = Literal["in_sample", "dual", "official", "official_stable"]
Bounds = tuple[float, float]

#: Weight of the push-down on offline scores in the official code (``critic_gcrl.py``).
OFFICIAL_PUSH_DOWN = 1e-4
#: Constant reward of the official stable loss away from the goal; goals are regressed to minus this over 1 - gamma.
OFFICIAL_STEP_REWARD = -2.0


def bellman_residual(score: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """Residual ``y = gamma * M(s', g) - S(s, a, g)`` of Eq. 10, in units of the score.

    Args:
        score: ``S(s, a, g)``, shape ``[*]``, or ``[M, *B]`` of an ensemble.
        next_value: ``M(s', g)``, of a shape that broadcasts with it, such as ``[*B]``.
        gamma: discount, in ``(0, 1)``.

    Returns:
        The residual, of the shape of ``score``.

    Raises:
        ValueError: if the two broadcast to another shape, as ``[B]`` and ``[B, 1]`` do.
    """
    residual = gamma * next_value - score
    if residual.shape != score.shape:
        raise ValueError(
            f"next_value must broadcast to the shape of score, got shapes {tuple(next_value.shape)} and "
            f"{tuple(score.shape)}."
        )
    return residual


def _kappa(residual_coef: float) -> float:
    """Weight ``kappa = 1 / (4 residual_coef)`` of the divergence; ``ValueError`` unless positive and finite."""
    if not 0.0 < residual_coef < math.inf:
        raise ValueError(f"residual_coef must be positive and finite, got {residual_coef}.")
    return 0.25 / residual_coef


def conjugate_excess(
    y: Tensor, divergence: Divergence, residual_coef: float = 0.25, max_ratio: float = 100.0
) -> Tensor:
    r"""Convex regulariser ``h(y) = kappa f*(y / kappa) - y`` with ``kappa = 1 / (4 residual_coef)``.

    For Pearson chi-squared the paper's objectives use the conjugate over all reals (Table 3 as printed), so that
    ``h(y) = residual_coef * y^2`` everywhere. The other conjugates are taken over density ratios in
    ``[0, max_ratio]``: finite and convex for every ``y``, equal to the exact one where its maximiser is below the cap.

    Args:
        y: Bellman residual, shape ``[*]``.
        divergence: the f-divergence.
        residual_coef: weight c, positive and finite, dimensionless.
        max_ratio: cap on the density ratio, at least 1, dimensionless; not used for Pearson chi-squared.

    Returns:
        ``h(y)``, same shape, dtype and device as ``y``.

    Raises:
        ValueError: if ``residual_coef`` is not positive and finite.
    """
    kappa = _kappa(residual_coef)
    if divergence.name == "pearson_chi2":
        return residual_coef * y.square()
    return kappa * divergence.conjugate(y / kappa, max_ratio=max_ratio) - y


def in_sample_objective(
    score: Tensor,
    residual: Tensor,
    q_score: Tensor,
    q_residual: Tensor,
    *,
    divergence: Divergence,
    beta: float,
    gamma: float,
    residual_coef: float = 0.25,
    max_ratio: float = 100.0,
) -> Pair:
    r"""Theorem 1 with every policy action replaced by the dataset's own: the policy may go anywhere.

    .. math:: \beta(1-\gamma) E_\rho[S] - \beta E_q[S] + E_{Mix}[h(y)]

    For chi-squared this is Eq. 8/10 less the terms that erratum E5 shows to be unbounded below. Its minimiser is
    ``gamma M + r`` with an implicit reward r; see :func:`in_sample_reward_range`.

    It is bounded below for every data distribution if ``beta < 1`` and, but for chi-squared, ``max_ratio`` is at least
    ``(1 - beta gamma) / (1 - beta)``. Otherwise that depends on the data: ``Mix`` must be positive wherever ``rho`` is
    (at ``beta = 1`` nothing opposes ``E_rho[S]`` where ``q`` is 0), and ``(1 - beta gamma) rho / Mix`` there at most
    ``max_ratio``, again but for chi-squared.

    Args:
        score: ``S`` on offline transitions, shape ``[*B]``.
        residual: ``y`` there, shape ``[*B]``; gradient flows through both.
        q_score: ``S`` on goal transitions, shape ``[*Q]``.
        q_residual: ``y`` there, shape ``[*Q]``.
        divergence: the f-divergence.
        beta: weight of ``q`` in the mixture, in ``(0, 1]``.
        gamma: discount, in ``(0, 1)``.
        residual_coef: see :func:`conjugate_excess`.
        max_ratio: see :func:`conjugate_excess`.

    Returns:
        The terms on ``rho`` (shape ``[*B]``) and on ``q`` (shape ``[*Q]``).
    """
    excess = conjugate_excess(residual, divergence, residual_coef, max_ratio)
    q_excess = conjugate_excess(q_residual, divergence, residual_coef, max_ratio)
    rho_term = beta * (1.0 - gamma) * score
    # without a cap the excess may be infinite: a weight of 0 would make it NaN
    if beta < 1.0:
        rho_term = rho_term + (1.0 - beta) * excess
    return rho_term, beta * (q_excess - q_score)


def dual_objective(
    policy_score: Tensor,
    residual: Tensor,
    q_score: Tensor,
    q_residual: Tensor,
    q_next_policy_score: Tensor,
    *,
    divergence: Divergence,
    beta: float,
    gamma: float,
    residual_coef: float = 0.25,
    max_ratio: float = 100.0,
) -> Pair:
    r"""Theorem 1 (Eq. 7) with the policy's actions.

    .. math:: \beta(1-\gamma) E_\rho[S(s,\pi)] + \beta E_q[\gamma S(s',\pi) - S] + E_{Mix}[h(y)]

    This is Eq. 8 for chi-squared with ``c = 0.25`` and residuals bootstrapped from ``S(s', pi(s'), g)``, and Eq. 10
    with ``c = 1`` and residuals bootstrapped from ``M``, as the losses of this package do. Either is unbounded below
    wherever the policy leaves the data (erratum E5); it is here for fidelity and research.

    Args:
        policy_score: ``S(s, pi(s, g), g)`` on offline states, shape ``[*B]``.
        residual: see :func:`in_sample_objective`.
        q_score: see :func:`in_sample_objective`.
        q_residual: see :func:`in_sample_objective`.
        q_next_policy_score: ``S(s', pi(s', g), g)`` after goal transitions, shape ``[*Q]``.
        divergence: see :func:`in_sample_objective`.
        beta: see :func:`in_sample_objective`.
        gamma: see :func:`in_sample_objective`.
        residual_coef: see :func:`conjugate_excess`.
        max_ratio: see :func:`conjugate_excess`.

    Returns:
        The terms on ``rho`` (shape ``[*B]``) and on ``q`` (shape ``[*Q]``).
    """
    rho_term, q_term = in_sample_objective(
        policy_score,
        residual,
        q_score,
        q_residual,
        divergence=divergence,
        beta=beta,
        gamma=gamma,
        residual_coef=residual_coef,
        max_ratio=max_ratio,
    )
    return rho_term, q_term + beta * gamma * q_next_policy_score


def official_objective(score: Tensor, residual: Tensor, q_score: Tensor) -> Pair:
    r"""Objective ``smore`` of the released code: :math:`-E_q[S] + 10^{-4} E_\rho[S] + 0.5 E_\rho[y^2]`.

    It has no ``beta``, and its residual covers ``rho`` only; see ``docs/paper_code_ours.md``.

    Args:
        score: ``S`` on offline transitions, shape ``[*B]``.
        residual: ``y`` there, shape ``[*B]``.
        q_score: ``S`` on goal transitions, shape ``[*Q]``.

    Returns:
        The terms on ``rho`` (shape ``[*B]``) and on ``q`` (shape ``[*Q]``).
    """
    return OFFICIAL_PUSH_DOWN * score + 0.5 * residual.square(), -q_score


def official_stable_objective(score: Tensor, residual: Tensor, q_score: Tensor, *, gamma: float) -> Pair:
    r"""Objective ``smore_stable`` of the released code (its default), two regressions.

    .. math:: E_q[(S - 2/(1-\gamma))^2] + (1-\gamma) 10^{-4} E_\rho[S^2] + 0.5 E_\rho[(S - (-2 + \gamma M))^2]

    Args:
        score: ``S`` on offline transitions, shape ``[*B]``.
        residual: ``y`` there, shape ``[*B]``.
        q_score: ``S`` on goal transitions, shape ``[*Q]``.
        gamma: discount, in ``(0, 1)``.

    Returns:
        The terms on ``rho`` (shape ``[*B]``) and on ``q`` (shape ``[*Q]``).
    """
    goal_score = -OFFICIAL_STEP_REWARD / (1.0 - gamma)
    bellman = 0.5 * (residual + OFFICIAL_STEP_REWARD).square()
    return (1.0 - gamma) * OFFICIAL_PUSH_DOWN * score.square() + bellman, (q_score - goal_score).square()


def in_sample_reward_range(
    divergence: Divergence, beta: float, gamma: float, residual_coef: float, max_ratio: float = math.inf
) -> tuple[float, float]:
    r"""Range of the implicit reward ``S - gamma M`` at the minimiser of :func:`in_sample_objective`.

    Stationarity at one ``(s, a, g)`` reads ``(f*)'(y / kappa) = (1 - beta gamma) rho / Mix``, a ratio between 0 (pure
    ``q``) and ``(1 - beta gamma) / (1 - beta)`` (pure ``rho``); the reward is ``-y``. For chi-squared this gives
    ``[-beta (1 - gamma) / (2c (1 - beta)), 1 / (2c)]``. Where the cap ``max_ratio`` lies below the largest ratio (which
    chi-squared does not have), the objective has no minimiser and the lower end is infinite. For total variation the
    minimiser on pure ``q`` is a set, every reward of at least ``kappa / 2``: the upper end is its end nearest to 0.

    Args:
        divergence: the f-divergence.
        beta: weight of ``q`` in the mixture, in ``(0, 1]``.
        gamma: discount, in ``(0, 1)``.
        residual_coef: see :func:`conjugate_excess`.
        max_ratio: see :func:`conjugate_excess`.

    Returns:
        The smallest and the largest reward; infinite where the divergence does not bound it.

    Raises:
        ValueError: see :func:`conjugate_excess`.
    """
    kappa = _kappa(residual_coef)
    largest_ratio = math.inf if beta == 1.0 else (1.0 - beta * gamma) / (1.0 - beta)
    capped = largest_ratio > max_ratio and divergence.name != "pearson_chi2"
    if math.isinf(largest_ratio) or capped:
        lower = -math.inf
    else:
        lower = -kappa * float(divergence.derivative(torch.tensor(largest_ratio, dtype=torch.float64)))
    return lower, -kappa * divergence.derivative_at_zero


@dataclass(frozen=True)
class ScoreObjective:
    """One formulation of the score objective with its constants, checked.

    Args:
        formulation: ``"in_sample"`` (:func:`in_sample_objective`), ``"dual"`` (:func:`dual_objective`), ``"official"``
            (:func:`official_objective`) or ``"official_stable"`` (:func:`official_stable_objective`).
        divergence: an f-divergence or its name. The official formulations ignore it, ``beta``, ``residual_coef`` and
            ``max_ratio``, which are checked all the same.
        beta: weight of ``q`` in the mixture, in ``(0, 1]``.
        gamma: discount, in ``(0, 1)``.
        residual_coef: see :func:`conjugate_excess`.
        max_ratio: see :func:`conjugate_excess`.

    Attributes:
        range: bounds on the score from the formulation's closed form; infinite where there is none. ``in_sample``: the
            reward of :func:`in_sample_reward_range` over ``1 - gamma``. ``official``: its reward is at least -1e-4 and
            has no upper bound. ``official_stable``: a weighted mean of 2/(1-gamma), 0 and -2 + gamma M. ``dual``
            depends on the policy: no bound in terms of the data.
        needs_policy: whether :func:`score_rows` reads scores at the policy's actions.
        needs_q_residual: whether it reads the residual on ``q``; the official code has it on ``rho`` only.
        constants: keyword arguments of the objectives of this module.

    Raises:
        ValueError: for an unknown name or a constant outside its range.
    """

    formulation: Formulation = "in_sample"
    divergence: str | Divergence = "pearson_chi2"
    beta: float = 0.5
    gamma: float = 0.99
    residual_coef: float = 0.25
    max_ratio: float = 100.0
    range: tuple[float, float] = field(init=False, repr=False, compare=False)
    needs_policy: bool = field(init=False, repr=False, compare=False)
    needs_q_residual: bool = field(init=False, repr=False, compare=False)
    constants: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.formulation not in get_args(Formulation):
            raise unknown_name("formulation", self.formulation, get_args(Formulation))
        object.__setattr__(self, "divergence", get_divergence(self.divergence))
        if not 0.0 < self.beta <= 1.0:
            raise ValueError(f"beta must lie in (0, 1], got {self.beta}.")
        if not 0.0 < self.gamma < 1.0:
            raise ValueError(f"gamma must lie in (0, 1), got {self.gamma}.")
        _kappa(self.residual_coef)
        if not self.max_ratio >= 1.0:
            raise ValueError(f"max_ratio must be at least 1, got {self.max_ratio}.")
        # once and not in every loss: it reads a tensor's number, which a compiled loss cannot
        object.__setattr__(self, "range", _RANGE[self.formulation](self))
        object.__setattr__(self, "needs_policy", self.formulation == "dual")
        object.__setattr__(self, "needs_q_residual", self.formulation in ("in_sample", "dual"))
        names = ("divergence", "beta", "gamma", "residual_coef", "max_ratio")
        object.__setattr__(self, "constants", {name: getattr(self, name) for name in names})

    @property
    def bootstrap_bounds(self) -> tuple[float, float] | None:
        """What the bootstrapped ``M`` is clipped to unless told otherwise; ``None`` for nothing.

        ``in_sample``: its :attr:`range`. The official formulations are those of the released code, which clips nothing;
        ``dual`` has no range.
        """
        return self.range if self.formulation == "in_sample" else None


def _in_sample_range(o: ScoreObjective) -> tuple[float, float]:
    divergence = get_divergence(o.divergence)
    lower, upper = in_sample_reward_range(divergence, o.beta, o.gamma, o.residual_coef, o.max_ratio)
    return lower / (1.0 - o.gamma), upper / (1.0 - o.gamma)


_RANGE: dict[str, Callable[[ScoreObjective], tuple[float, float]]] = {
    "in_sample": _in_sample_range,
    "dual": lambda o: (-math.inf, math.inf),
    "official": lambda o: (-OFFICIAL_PUSH_DOWN / (1.0 - o.gamma), math.inf),
    "official_stable": lambda o: (OFFICIAL_STEP_REWARD / (1.0 - o.gamma), -OFFICIAL_STEP_REWARD / (1.0 - o.gamma)),
}


def score_rows(
    objective: ScoreObjective,
    *,
    score: Tensor,
    next_value: Tensor,
    q_score: Tensor,
    q_next_value: Tensor | None,
    policy_score: Tensor | None = None,
    q_next_policy_score: Tensor | None = None,
    bounds: Bounds | None = None,
) -> Pair:
    """Terms of every row on ``rho`` and on ``q``, added over the members of an ensemble.

    Args:
        objective: formulation and constants.
        score: ``S(s, a, g)`` on offline rows, shape ``[M, *B]``.
        next_value: ``M(s', g)`` there, shape ``[*B]``, taken as a constant.
        q_score: ``S(s, a, g)`` on goal transitions, shape ``[M, *Q]``.
        q_next_value: ``M(s', g)`` there, shape ``[*Q]``, taken as a constant; read, and needed,
            where ``objective.needs_q_residual``.
        policy_score: ``S(s, pi(s, g), g)`` on offline rows, shape ``[M, *B]``; for ``"dual"`` only.
        q_next_policy_score: ``S(s', pi(s', g), g)`` after goal transitions, ``[M, *Q]``; for ``"dual"`` only.
        bounds: interval to which both next values are clipped; either end may be infinite.

    Returns:
        Terms of shape ``[*B]`` and ``[*Q]``; the objective is the sum of their means.

    Raises:
        ValueError: if a tensor that the formulation needs is missing.
    """
    next_value = next_value.detach() if bounds is None else next_value.detach().clamp(*bounds)
    residual = bellman_residual(score, next_value, objective.gamma)
    if objective.formulation == "official":
        rho, q = official_objective(score, residual, q_score)
    elif objective.formulation == "official_stable":
        rho, q = official_stable_objective(score, residual, q_score, gamma=objective.gamma)
    else:
        if q_next_value is None:
            raise ValueError(f"formulation={objective.formulation!r} needs q_next_value.")
        q_next_value = q_next_value.detach() if bounds is None else q_next_value.detach().clamp(*bounds)
        q_residual = bellman_residual(q_score, q_next_value, objective.gamma)
        if objective.formulation == "in_sample":
            rho, q = in_sample_objective(score, residual, q_score, q_residual, **objective.constants)
        elif policy_score is None or q_next_policy_score is None:
            raise ValueError("formulation='dual' needs policy_score and q_next_policy_score.")
        else:
            rho, q = dual_objective(
                policy_score, residual, q_score, q_residual, q_next_policy_score, **objective.constants
            )
    return rho.sum(0), q.sum(0)


def action_free_objective(
    value: Tensor,
    residual: Tensor,
    q_residual: Tensor,
    *,
    divergence: Divergence,
    beta: float,
    gamma: float,
    residual_coef: float = 0.25,
    max_ratio: float = 100.0,
    ratio: Tensor | None = None,
    q_ratio: Tensor | None = None,
) -> Pair:
    r"""Theorem 2 (Eq. 63): a score ``S(s, g)`` learned without actions.

    .. math:: \beta(1-\gamma) E_\rho[S] + E_{Mix}[w^* y - \kappa f(w^*)] - (1-\beta) E_\rho[y], \qquad
              w^* = \max(b, (f')^{-1}(y / \kappa))

    with ``y = gamma S(s', g) - S(s, g)``. The paper prints ``b = 0``; the constraint ``d >= 0`` means
    ``b = (1 - beta) rho / Mix`` (erratum E7), which needs the density ratio. The initial states are those of the data.

    Args:
        value: ``S(s, g)`` on offline states, shape ``[*B]``.
        residual: ``y`` there, shape ``[*B]``.
        q_residual: ``y`` on goal transitions, shape ``[*Q]``.
        divergence: the f-divergence.
        beta: weight of ``q`` in the mixture, in ``(0, 1]``.
        gamma: discount, in ``(0, 1)``.
        residual_coef: see :func:`conjugate_excess`.
        max_ratio: largest ``w*``, dimensionless.
        ratio: ``rho / Mix`` on the offline transitions, shape ``[*B]``, in ``[0, 1 / (1 - beta)]``; ``None`` is the
            objective as printed.
        q_ratio: the same on the goal transitions, shape ``[*Q]``.

    Returns:
        The terms on ``rho`` (shape ``[*B]``) and on ``q`` (shape ``[*Q]``).

    Raises:
        ValueError: see :func:`conjugate_excess`.
    """
    kappa = _kappa(residual_coef)

    def bracket(y: Tensor, density_ratio: Tensor | None) -> Tensor:
        # w* is a maximiser: by the envelope theorem it may be held constant in the gradient
        w = divergence.maximiser(y.detach() / kappa, max_ratio=max_ratio)
        if density_ratio is not None:
            w = torch.maximum(w, (1.0 - beta) * density_ratio)
        # beyond the range of f', w* is max_ratio, which may be infinite: so is the maximum then, and not inf - inf
        infinite = w.isinf()
        w = w.masked_fill(infinite, 0.0)
        return (w * y - kappa * divergence.f(w)).masked_fill(infinite, math.inf)

    rho_term = beta * (1.0 - gamma) * value
    # as in in_sample_objective
    if beta < 1.0:
        rho_term = rho_term + (1.0 - beta) * (bracket(residual, ratio) - residual)
    return rho_term, beta * bracket(q_residual, q_ratio)
