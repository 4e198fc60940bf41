"""Terms that losses share, as functions of tensors: each returns its reduced loss and detached diagnostics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from torchrl_smore._dispatch import Kernels, score_objective
from torchrl_smore.functional.baselines.contrastive import policy_energy_loss
from torchrl_smore.functional.baselines.iql import td_loss
from torchrl_smore.functional.baselines.wgcsl import action_error
from torchrl_smore.functional.losses import ActorWeight, awr_loss
from torchrl_smore.functional.score import Bounds, ScoreObjective, bellman_residual

#: From losses of rows ``[*B]`` to the output, :func:`torch.mean` where nothing masks or weighs the rows.
Reduce = Callable[[Tensor], Tensor]
#: A reduced loss, and what is logged beside it, detached.
Term = tuple[Tensor, dict[str, Tensor]]
#: What :func:`score_term` logs.
SCORE_KEYS = ("score", "q_score", "residual", "bound_clipped", "score_outside")
#: What :func:`regression_term` logs.
REGRESSION_KEYS = ("mean_advantage", "awr_weight", "weight_clipped", "log_prob")


def score_term(
    objective: ScoreObjective,
    score: Tensor,
    q_score: Tensor,
    policy_score: Tensor | None = None,
    q_next_policy_score: Tensor | None = None,
    *,
    next_value: Tensor,
    q_next_value: Tensor | None,
    bounds: Bounds | None,
    reduce: tuple[Reduce, Reduce],
    kernels: Kernels,
) -> Term:
    """SMORe's score loss, added over the members of an ensemble (Eq. 10).

    Args:
        objective: formulation and constants.
        score: ``S(s, a, g)`` on offline rows, ``[M, *B]``.
        q_score: the same on goal transitions, ``[M, *Q]``.
        policy_score: ``S(s, pi(s, g), g)`` on offline rows, ``[M, *B]``; for ``"dual"``.
        q_next_policy_score: ``S(s', pi(s', g), g)`` after goal transitions, ``[M, *Q]``; for ``"dual"``.
        next_value: ``M(s', g)`` after offline rows, ``[*B]``, taken as a constant.
        q_next_value: the same after goal transitions, ``[*Q]``, or ``None`` where the objective has no residual there.
        bounds: interval to which both are clipped.
        reduce: of offline rows and of goal transitions.
        kernels: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        The loss; means of ``score`` and ``q_score``, root mean square ``residual`` on offline rows, fractions
        ``bound_clipped`` of next values and ``score_outside`` of offline scores outside the closed form's range.
    """
    next_value, clipped = next_value.detach(), next_value.new_zeros(())
    if bounds is not None:
        lower, upper = bounds
        values = next_value.flatten()
        if q_next_value is not None:
            values = torch.cat([values, q_next_value.detach().flatten()])
            q_next_value = q_next_value.clamp(lower, upper)
        clipped = ((values < lower) | (values > upper)).to(values.dtype).mean()
        next_value = next_value.clamp(lower, upper)
    loss = score_objective(
        objective,
        score=score,
        next_value=next_value,
        q_score=q_score,
        q_next_value=q_next_value,
        policy_score=policy_score,
        q_next_policy_score=q_next_policy_score,
        reduce=reduce,
        kernels=kernels,
    )
    score, (lower, upper) = score.detach(), objective.range
    return loss, {
        "score": score.mean(),
        "q_score": q_score.detach().mean(),
        "residual": bellman_residual(score, next_value, objective.gamma).square().mean().sqrt(),
        "bound_clipped": clipped,
        "score_outside": ((score < lower) | (score > upper)).to(score.dtype).mean(),
    }


def regression_term(log_prob: Tensor, weight: ActorWeight, reduce: Reduce) -> Term:
    """Advantage-weighted regression on the dataset actions (Eq. 11).

    Args:
        log_prob: of the dataset actions, ``[*B]``.
        weight: of each, a constant, with its diagnostics.
        reduce: of rows.

    Returns:
        The loss; ``mean_advantage``, ``awr_weight``, ``weight_clipped``, and the mean ``log_prob``.

    Raises:
        ValueError: if the shapes of log-probabilities and weights differ.
    """
    check_log_prob(log_prob, weight.weight.shape)
    return reduce(awr_loss(log_prob, weight.weight)), {
        "mean_advantage": weight.mean_advantage,
        "awr_weight": weight.mean_weight,
        "weight_clipped": weight.weight_clipped,
        "log_prob": log_prob.detach().mean(),
    }


def check_log_prob(log_prob: Tensor, size: torch.Size) -> None:
    """Checks that a distribution gives one log-probability for each row: another shape would broadcast.

    Args:
        log_prob: of the dataset actions, ``[*B]``.
        size: batch size ``B`` of the rows.

    Raises:
        ValueError: if it has another shape.
    """
    if log_prob.shape != size:
        raise ValueError(
            f"expected one log-probability for each row, got shape {tuple(log_prob.shape)} for rows {tuple(size)}; "
            "actions are [*B, A], and the distribution must count each as one event."
        )


def td_term(qvalue: Tensor, target: Tensor, reduce: Reduce, huber_delta: float | None = None) -> Term:
    """Temporal-difference loss, added over the members of an ensemble.

    Args:
        qvalue: ``Q(s, a, g)``, ``[M, *B]``.
        target: what each is fitted to, ``[*B]``, a constant.
        reduce: of rows.
        huber_delta: see :func:`~torchrl_smore.functional.baselines.iql.td_loss`.

    Returns:
        The loss; mean ``qvalue``, root mean square ``td_error``.
    """
    error = qvalue - target
    loss = reduce(td_loss(error, huber_delta).sum(0))
    return loss, {"qvalue": qvalue.detach().mean(), "td_error": error.detach().square().mean().sqrt()}


def imitation_term(policy: Tensor | Distribution, action: Tensor, reduce: Reduce, weight: Tensor | None = None) -> Term:
    """Imitation of the dataset actions: squared error of an action, or negative log-likelihood of a distribution.

    Args:
        policy: the policy's actions, ``[*B, A]``, or its distribution, of which an action is one event.
        action: dataset action, ``[*B, A]``.
        reduce: of rows.
        weight: of each row, ``[*B]``, a constant; ``None`` weighs all alike.

    Returns:
        The loss; mean ``action_error`` or mean ``log_prob``, without weights.

    Raises:
        ValueError: if the policy's actions have another shape than those of the dataset, or log-probabilities another
            than the rows.
    """
    if isinstance(policy, Tensor):
        if policy.shape != action.shape:
            raise ValueError(
                f"expected the policy's actions in the shape of the dataset's, [*B, A], got {tuple(policy.shape)} and "
                f"{tuple(action.shape)}."
            )
        error = action_error(policy, action)
        rows = error if weight is None else weight.detach() * error
        return reduce(rows), {"action_error": error.detach().mean()}
    log_prob = policy.log_prob(action)
    for size in (action.shape[:-1], *([] if weight is None else [weight.shape])):
        check_log_prob(log_prob, size)
    rows = awr_loss(log_prob, log_prob.new_ones(()) if weight is None else weight)
    return reduce(rows), {"log_prob": log_prob.detach().mean()}


def energy_term(
    energy: Tensor,
    log_prob: Tensor,
    row_weight: Tensor,
    reduce: Reduce,
    *,
    q_coef: float,
    bc_coef: float,
    normalize_q: bool,
) -> Term:
    """Policy gradient through an energy, plus imitation (DDPG+BC).

    Args:
        energy: at the policy's actions, ``[*B]``.
        log_prob: of the dataset actions, ``[*B]``.
        row_weight: weight of each row in the mean that ``normalize_q`` divides by, ``[*B]``.
        reduce: of rows.
        q_coef: weight of the energy.
        bc_coef: weight of the log-likelihood.
        normalize_q: divide the energy by its mean absolute value.

    Returns:
        The loss; mean ``policy_energy`` and ``log_prob``.

    Raises:
        ValueError: if the shapes of log-probabilities and weights differ.
    """
    check_log_prob(log_prob, row_weight.shape)
    rows = q_coef * policy_energy_loss(energy, row_weight, normalize_q) - bc_coef * log_prob
    return reduce(rows), {"policy_energy": energy.detach().mean(), "log_prob": log_prob.detach().mean()}
