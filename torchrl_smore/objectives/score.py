"""The score loss of SMORe, given state-goal scores to bootstrap from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import unravel_key

from torchrl_smore._dispatch import Kernels
from torchrl_smore.functional.score import Bounds, Formulation, ScoreObjective
from torchrl_smore.objectives._networks import inputs_after, inputs_of, next_keys
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.terms import SCORE_KEYS, Term, score_term

ScoreBounds = Literal["auto"] | Bounds | None


@final
class ScoreLoss(OfflineLoss):
    r"""Fits ``S(s, a, g)`` by one of SMORe's objectives; see :class:`~torchrl_smore.functional.score.ScoreObjective`.

    The input is one TensorDict: offline transitions at the root, goal transitions under ``tensor_keys.q``. Both carry
    ``tensor_keys.next_value``, the score ``M(s', g)`` to bootstrap from, taken as a constant; for
    ``formulation="dual"`` also ``tensor_keys.policy_action`` (root) and ``("next", policy_action)`` (under ``q``). The
    goal is always read from the root of each, never from ``next``.

    Args:
        score_network: writes ``tensor_keys.score``, shape ``[*B, 1]``. A list of ``num_score_nets`` networks keeps
            their initialisation. Of a single one copies are drawn anew, by the ``reset_parameters`` of its own modules;
            if it consists of PyTorch's layers, as TorchRL does: uniformly over the range of each parameter.
        formulation: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        divergence: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        beta: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        gamma: discount, in ``(0, 1)``. It multiplies a score and no reward, so it is a coefficient of this loss and
            not of a value estimator.
        residual_coef: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        num_score_nets: size of the ensemble; the losses of its members are added.
        score_bounds: clips the bootstrapped ``M`` to an interval: ``"auto"`` is
            :attr:`~torchrl_smore.functional.score.ScoreObjective.bootstrap_bounds`, the range of the closed form for
            ``"in_sample"`` and none for the other formulations; ``None`` leaves it free.
        delay_score: keep target parameters (``target_score_network_params``) for a Polyak updater.
        kernels: ``"reference"``, ``"triton"`` (the fused kernels, or an error where they cannot run) or ``"auto"``; see
            ``kernels/README.md``.

    Returns (forward):
        ``loss_score``, and detached: mean ``score`` and ``q_score``, root mean square ``residual`` on the offline rows,
        ``bound_clipped`` (fraction of bootstrapped values outside the bounds), ``score_outside`` (fraction of offline
        scores outside the closed form's range, whether or not it is enforced).

    Raises:
        ValueError: for an unknown name or a constant outside its range.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`ScoreLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            q: nested TensorDict of goal transitions.
            score: written by the score network, ``[*B, 1]``.
            next_value: ``M(s', g)``, ``[*B, 1]``, at the root and under ``q``.
            policy_action: ``pi(s, g)``, ``[*B, A]``, for ``formulation="dual"``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        desired_goal: NestedKey = "desired_goal"
        q: NestedKey = "q"
        score: NestedKey = "score"
        next_value: NestedKey = ("next", "state_value")
        policy_action: NestedKey = "policy_action"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_score", *SCORE_KEYS]
    ensembles = ("score_network",)

    def __init__(
        self,
        score_network: TensorDictModule | Sequence[TensorDictModule],
        *,
        formulation: Formulation = "in_sample",
        divergence: str = "pearson_chi2",
        beta: float = 0.5,
        gamma: float = 0.99,
        residual_coef: float = 0.25,
        num_score_nets: int = 2,
        score_bounds: ScoreBounds = "auto",
        delay_score: bool = False,
        kernels: Kernels = "auto",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        self.objective = ScoreObjective(formulation, divergence, beta, gamma, residual_coef)
        self.score_bounds = resolve_bounds(score_bounds, self.objective)
        self._set_kernels(kernels)
        self._add_network("score_network", score_network, size=num_score_nets, delay=delay_score)
        self._ready(self.out_keys)

    def _read_keys(self) -> Iterable[NestedKey]:
        keys, inputs = self.tensor_keys, self.score_network.in_keys
        here, of_q = [*inputs, keys.next_value], list(inputs)
        if self.objective.needs_q_residual:
            of_q.append(keys.next_value)
        if self.objective.needs_policy:
            here.append(keys.policy_action)
            of_q += [*next_keys(inputs, keys), unravel_key(("next", keys.policy_action))]
        return [*here, *(unravel_key((keys.q, key)) for key in of_q)]

    def score_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced score loss, and its detached scalar diagnostics as metadata."""
        return self._score_term(self._rows(tensordict))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        rows = self._rows(tensordict)
        loss, metadata = self._score_term(rows)
        return self._finish({"loss_score": loss}, metadata, rows)

    def _score_term(self, rows: TensorDictBase) -> Term:
        """Eq. 10, bootstrapped from the ``M(s', g)`` of the batch."""
        keys, q, inputs = self.tensor_keys, self._goal_transitions(rows), self.score_network.in_keys
        scored = [inputs_of(rows, inputs), inputs_of(q, inputs)]
        if self.objective.needs_policy:
            scored.append(inputs_of(rows, inputs, {keys.action: rows[keys.policy_action]}))
            scored.append(inputs_after(q, inputs, keys, {keys.action: q[unravel_key(("next", keys.policy_action))]}))
        scores = self._call("score_network", torch.cat(scored, 0), keys.score)
        return score_term(
            self.objective,
            *scores.chunk(len(scored), 1),
            next_value=rows[keys.next_value].squeeze(-1),
            q_next_value=q[keys.next_value].squeeze(-1) if self.objective.needs_q_residual else None,
            bounds=self.score_bounds,
            reduce=(self._reducer(rows), self._reducer(q)),
            kernels=self.kernels,
        )


def resolve_bounds(bounds: ScoreBounds, objective: ScoreObjective) -> Bounds | None:
    """The interval that ``score_bounds`` stands for, ``None`` for no bounds; raises ``ValueError`` for any other."""
    if bounds == "auto":
        bounds = objective.bootstrap_bounds
    if bounds is None:
        return None
    lower, upper = (math.nan, math.nan) if isinstance(bounds, str) else bounds
    if not lower < upper:
        raise ValueError(f"score_bounds must be 'auto', None or (lower, upper) with lower < upper, got {bounds!r}.")
    return None if math.isinf(lower) and math.isinf(upper) else (float(lower), float(upper))
