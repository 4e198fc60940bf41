"""SMORe: score, value and actor losses on one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_smore._dispatch import Kernels, expectile_awr
from torchrl_smore.functional.losses import ExpectileAWR
from torchrl_smore.functional.score import Formulation, ScoreObjective
from torchrl_smore.objectives._construction import AdvantageUnit, add_weighted_actor, check_choice, scale_of
from torchrl_smore.objectives._networks import at_actor_goal, constant, inputs_after, inputs_of, next_keys
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.score import ScoreBounds, resolve_bounds
from torchrl_smore.objectives.terms import REGRESSION_KEYS, SCORE_KEYS, Term, regression_term, score_term

ScoreActor = Literal["awr", "score"]
ValueTarget = Literal["dataset", "policy"]
_LOSSES = ["loss_score", "loss_value", "loss_actor"]


@final
class SMORELoss(OfflineLoss):
    r"""Offline goal-conditioned RL by dual score models (Sikchi et al., ICLR 2024, arXiv:2311.02013).

    The three losses of Algorithm 1, which :class:`ScoreLoss` (Eq. 10), :class:`ExpectileValueLoss` (Eq. 9) and
    :class:`AWRActorLoss` (Eq. 11) give alone. :meth:`forward` computes them at the same parameters (the *joint* order:
    one backward). Calling :meth:`value_loss`, :meth:`actor_loss` and :meth:`score_loss` one after the other with an
    optimiser step in between is the *sequential* order of the official code.

    The input is one TensorDict, to which nothing is written: offline transitions (rho) at the root and goal transitions
    (q) under ``tensor_keys.q``, as :class:`~torchrl_smore.data.HindsightGoalTransform` makes it. No reward is read.
    Value and actor targets are the smallest target score of the ensemble. After ``set_keys(actor_goal="actor_goal")``
    the regression, and the advantage that weighs it, pursue the goals there (OGBench samples them apart).

    Args:
        actor_network: stochastic actor, reads state and goal.
        score_network: ``S(s, a, g)``, writes ``tensor_keys.score``, ``[*B, 1]``; see :class:`ScoreLoss`.
        value_network: ``M(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        formulation: ``"in_sample"``, ``"dual"``, ``"official"``, ``"official_stable"``; ``docs/paper_code_ours.md``.
        divergence: ``"pearson_chi2"``, ``"kl"``, ``"squared_hellinger"``, ``"total_variation"``, ``"jensen_shannon"``.
        beta: weight of q in the mixture, in ``(0, 1]``, dimensionless.
        expectile: in ``(0, 1)``, dimensionless; schedulable by assignment.
        temperature: multiplies the advantage, non-negative; schedulable by assignment. 0 is behaviour cloning.
        gamma: discount, in ``(0, 1)``; a coefficient of this loss and not of a value estimator (no reward).
        residual_coef: weight of the Bellman term: 0.25 is Eq. 8, 1 is Eq. 10 as printed; scores go as one over it.
        num_score_nets: size of the score ensemble.
        weight_clip: largest weight of the regression.
        advantage_unit: that the temperature multiplies: ``"score"`` (the paper's) or ``"horizon"``,
            ``1 / (1 - gamma)`` of it, in which the range of scores does not depend on it.
        score_bounds: ``"auto"``, ``None`` or ``(lower, upper)``; see :class:`ScoreLoss`.
        actor: ``"awr"`` (Eq. 11), or ``"score"``: ascent of the smallest score at the policy's own action, our reading
            of Table 16's "without AWR"; it has no ``temperature`` and no ``weight_clip``.
        value_target: whose action's score the value fits: ``"dataset"`` (Eq. 9), or ``"policy"``, for ``actor="score"``
            alone; with ``expectile=0.5`` our reading of Table 16's "without AWR and expectile loss".
        delay_score: keep target score parameters; update them with :class:`torchrl.objectives.SoftUpdate`.
        kernels: ``"auto"``, ``"triton"`` or ``"reference"``; see :class:`ScoreLoss`.

    Returns (forward):
        ``loss_score``, ``loss_value``, ``loss_actor``, and detached diagnostics: those of the losses that give one part
        alone; of ``actor="score"`` only ``policy_score``.

    Raises:
        ValueError: for an unknown name or a constant outside its range.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_smore.modules import goal_specs, make_networks
        >>> from torchrl_smore.objectives import SMORELoss
        >>> networks = make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=1))
        >>> loss = SMORELoss(networks.actor, networks.score, networks.value, delay_score=False)
        >>> rows = {"observation": torch.randn(4, 3), "action": torch.randn(4, 1), "desired_goal": torch.randn(4, 2),
        ...         ("next", "observation"): torch.randn(4, 3)}
        >>> out = loss(TensorDict({**rows, "q": TensorDict(rows, [4])}, [4]))
        >>> [key for key in out.keys() if key.startswith("loss_")]
        ['loss_score', 'loss_value', 'loss_actor']
        >>> sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`SMORELoss`."""

        action: NestedKey = "action"  #: Of the dataset, ``[*B, A]``.
        desired_goal: NestedKey = "desired_goal"  #: The goal pursued, ``[*B, G]``, at the root also for next states.
        actor_goal: NestedKey | None = None  #: The goal of the regression, ``[*B, G]``, or ``None`` for desired_goal.
        q: NestedKey = "q"  #: Nested TensorDict of goal transitions.
        score: NestedKey = "score"  #: Written by score_network, ``[*B, 1]``.
        value: NestedKey = "state_value"  #: Written by value_network, ``[*B, 1]``.
        priority_weight: NestedKey = "priority_weight"  #: Weight of each row, optional, ``[*B]`` or ``[*B, 1]``.

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = [*_LOSSES, *SCORE_KEYS, "value", *REGRESSION_KEYS]
    ensembles = ("score_network",)
    _schedulable_buffers = frozenset({"expectile", "temperature"})

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        score_network: TensorDictModule | Sequence[TensorDictModule],
        value_network: TensorDictModule,
        *,
        formulation: Formulation = "in_sample",
        divergence: str = "pearson_chi2",
        beta: float = 0.5,
        expectile: float = 0.8,
        temperature: float = 3.0,
        gamma: float = 0.99,
        residual_coef: float = 0.25,
        num_score_nets: int = 2,
        weight_clip: float = 100.0,
        score_bounds: ScoreBounds = "auto",
        advantage_unit: AdvantageUnit = "score",
        actor: ScoreActor = "awr",
        value_target: ValueTarget = "dataset",
        delay_score: bool = True,
        kernels: Kernels = "auto",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        self.objective = objective = ScoreObjective(formulation, divergence, beta, gamma, residual_coef)
        check_choice(actor=(actor, ScoreActor), value_target=(value_target, ValueTarget))
        if value_target == "policy" and actor == "awr":
            raise ValueError("value_target='policy' needs actor='score': AWR's advantage is over dataset actions.")
        self.actor, self.value_target, self.delay_score = actor, value_target, delay_score
        self.advantage_scale, self.weight_clip = scale_of(advantage_unit, gamma), weight_clip
        if actor == "awr":
            add_weighted_actor(self, actor_network, temperature, weight_clip)
        else:
            self._add_network("actor_network", actor_network)
        self._add_network("value_network", value_network)
        self._set_coefficient("expectile", expectile, 0.0 < expectile < 1.0, "lie in (0, 1)")
        self._set_kernels(kernels)
        self.score_bounds, self.asks_actor_elsewhere = resolve_bounds(score_bounds, objective), objective.needs_policy
        self._add_network("score_network", score_network, size=num_score_nets, delay=delay_score)
        self._ready([*_LOSSES, *SCORE_KEYS, "value", *(REGRESSION_KEYS if actor == "awr" else ["policy_score"])])

    def _read_keys(self) -> Iterable[NestedKey]:
        keys, value_keys = self.tensor_keys, self.value_network.in_keys
        after = next_keys(value_keys, keys)
        here = [*self.score_network.in_keys, *value_keys, *self.actor_network.in_keys, keys.action, *after]
        here += [key for key in (keys.actor_goal,) if key is not None]
        of_q = list(self.score_network.in_keys)
        if self.objective.needs_q_residual:
            of_q += [*after, *(key for key in value_keys if key == keys.desired_goal)]
        if self.objective.needs_policy:
            asked = [*self.actor_network.in_keys, *self.score_network.in_keys]
            of_q += [*after, *next_keys(asked, keys), *(key for key in asked if key == keys.desired_goal)]
        return [*here, *(unravel_key((keys.q, key)) for key in of_q)]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the three losses at the same parameters; see the class."""
        rows = self._rows(tensordict)
        fit = self._value_term(rows)
        loss_actor, actor_metadata = self._actor_term(rows, fit)
        loss_score, score_metadata = self._score_term(rows)
        losses = {"loss_score": loss_score, "loss_value": fit.loss, "loss_actor": loss_actor}
        return self._finish(losses, {**score_metadata, "value": fit.mean_value, **actor_metadata}, rows)

    def value_loss(self, tensordict: TensorDictBase) -> Term:
        """Value loss against the current target score, and ``state_value`` (detached, ``[*B]``) as metadata."""
        fit = self._value_term(self._rows(tensordict))
        return fit.loss, {"state_value": fit.value}

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Actor loss at the current score and value, and its metadata."""
        return self._actor_term(self._rows(tensordict))

    def score_loss(self, tensordict: TensorDictBase) -> Term:
        """Score loss bootstrapped from the current value network, and its metadata."""
        return self._score_term(self._rows(tensordict))

    @torch.no_grad()
    def advantage(self, tensordict: TensorDictBase) -> Tensor:
        """Target score less value at the dataset's actions, ``[*B]``, in the unit of the score."""
        rows = at_actor_goal(self._rows(tensordict), self.tensor_keys, self.in_keys)
        return self._smallest_score(rows) - self._call("value_network", rows, self.tensor_keys.value)

    @torch.no_grad()
    def _target_score(self, rows: TensorDictBase) -> Tensor:
        """Smallest target score, ``[*B]``, of the dataset's actions or of the policy's."""
        if self.value_target == "policy":
            rows = inputs_of(rows, self.score_network.in_keys, {self.tensor_keys.action: self._policy_action(rows)})
        return self._smallest_score(rows)

    def _smallest_score(self, rows: TensorDictBase) -> Tensor:
        """Smallest target score, ``[*B]``, of the actions in ``rows``."""
        # not target_score_network_params without a delay: it would read .data, which torch.vmap forbids
        params = self.target_score_network_params if self.delay_score else None
        return self._call("score_network", rows, self.tensor_keys.score, params).amin(0)

    def _value_term(self, rows: TensorDictBase) -> ExpectileAWR:
        """Eq. 9, the value fitted to an expectile of the target score, and with it the weights of Eq. 11."""
        return expectile_awr(
            self._target_score(rows),
            self._call("value_network", rows, self.tensor_keys.value),
            expectile=self.expectile,
            temperature=self.temperature if self.actor == "awr" else None,
            weight_clip=self.weight_clip,
            advantage_scale=self.advantage_scale,
            reduce=self._reducer(rows),
            kernels=self.kernels,
        )

    def _actor_term(self, rows: TensorDictBase, fit: ExpectileAWR | None = None) -> Term:
        """Eq. 11 with the weights of ``fit``, unless the actor has goals of its own; or ascent of the score."""
        keys, own = self.tensor_keys, at_actor_goal(rows, self.tensor_keys, self.in_keys)
        if self.actor == "score":
            inputs = inputs_of(
                self._for_actor(own), self.score_network.in_keys, {keys.action: self._trained_action(own)}
            )
            params = constant(self.score_network_params)
            score = self._call("score_network", inputs, keys.score, params).amin(0)
            return self._reducer(own)(-score), {"policy_score": score.detach().mean()}
        with torch.no_grad():
            weight: Any = (fit if fit is not None and own is rows else self._value_term(own)).weight
        return regression_term(self._log_prob(own), weight, self._reducer(own))

    def _score_term(self, rows: TensorDictBase) -> Term:
        """Eq. 10, the score's objective with ``M(s', g)`` to bootstrap from."""
        keys, q, inputs = self.tensor_keys, self._goal_transitions(rows), self.score_network.in_keys
        scored = [inputs_of(rows, inputs), inputs_of(q, inputs)]
        with torch.no_grad():
            parts = [rows, q] if self.objective.needs_q_residual else [rows]
            after = torch.cat([inputs_after(part, self.value_network.in_keys, keys) for part in parts], 0)
            next_values = self._call("value_network", after, keys.value).chunk(len(parts), 0)
            if self.objective.needs_policy:
                scored.append(inputs_of(rows, inputs, {keys.action: self._policy_action(rows)}))
                next_action = self._policy_action(inputs_after(q, self.actor_network.in_keys, keys))
                scored.append(inputs_after(q, inputs, keys, {keys.action: next_action}))
        scores = self._call("score_network", torch.cat(scored, 0), keys.score)
        return score_term(
            self.objective,
            *scores.chunk(len(scored), 1),
            next_value=next_values[0],
            q_next_value=next_values[1] if self.objective.needs_q_residual else None,
            bounds=self.score_bounds,
            reduce=(self._reducer(rows), self._reducer(q)),
            kernels=self.kernels,
        )
