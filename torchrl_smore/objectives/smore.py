"""SMORe: score, value and actor losses on one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictParams, dispatch
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_smore._dispatch import Kernels
from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.score import Bootstrap, Formulation, ScoreObjective
from torchrl_smore.objectives._parameters import lent
from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.advantage import AdvantageLoss, AdvantageUnit
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.score import ScoreBounds, ScoreLoss
from torchrl_smore.objectives.value import ExpectileValueLoss

ScoreActor = Literal["awr", "score"]
ValueTarget = Literal["dataset", "policy"]
# read now: of an instantiated class, tensordict makes the list a property
_AWR_KEYS = frozenset(AWRActorLoss.out_keys) - {"loss_actor"}


class SMORELoss(ScoreLoss, AdvantageLoss):
    r"""Offline goal-conditioned RL by dual score models (Sikchi et al., ICLR 2024, arXiv:2311.02013).

    The three losses of Algorithm 1, composed of :class:`ScoreLoss` (Eq. 10), :class:`ExpectileValueLoss` (Eq. 9) and
    :class:`AWRActorLoss` (Eq. 11), which may each be used alone. :meth:`forward` computes them at the same parameters
    (the *joint* order: one backward). Calling :meth:`value_loss`, :meth:`actor_loss` and :meth:`score_loss` one after
    the other with an optimiser step in between is the *sequential* order of the official code.

    The input is one TensorDict: offline transitions (rho) at the root and goal transitions (q) under
    ``tensor_keys.q``, as :class:`~torchrl_smore.data.HindsightGoalTransform` makes it. No reward is read. Nothing is
    written to it. Value and actor targets are the smallest target score of the ensemble.

    Args:
        actor_network: stochastic actor, reads state and goal.
        score_network: ``S(s, a, g)``, writes ``tensor_keys.score``, ``[*B, 1]``; one network, or a list of
            ``num_score_nets`` (which keeps their initialisation).
        value_network: ``M(s, g)``, writes ``tensor_keys.value``, ``[*B, 1]``.
        formulation: ``"in_sample"`` (default), ``"dual"``, ``"official"`` or ``"official_stable"``; see
            :class:`~torchrl_smore.functional.score.ScoreObjective` and ``docs/paper_code_ours.md``.
        divergence: ``"pearson_chi2"``, ``"kl"``, ``"squared_hellinger"``, ``"total_variation"``, ``"jensen_shannon"``.
        beta: weight of q in the mixture, in ``(0, 1]``, dimensionless.
        expectile: in ``(0, 1)``, dimensionless; schedulable by assignment.
        temperature: multiplies the advantage, non-negative; schedulable by assignment. 0 is behaviour cloning.
        gamma: discount, in ``(0, 1)``; a coefficient of this loss and not of a value estimator (no reward).
        residual_coef: weight of the Bellman regulariser: 0.25 is Eq. 8, 1 is Eq. 10 as printed. Multiplying it by k
            divides the scores by k.
        max_ratio: cap on the density ratio for divergences other than chi-squared.
        bootstrap: ``"value"`` or, for ``"dual"`` alone, ``"policy"`` (Eq. 8).
        num_score_nets: size of the score ensemble.
        weight_clip: largest AWR weight.
        advantage_unit: what the advantage is measured in when the temperature multiplies it: ``"score"`` (the paper's)
            or ``"horizon"``, ``1 / (1 - gamma)`` of it; see :class:`~torchrl_smore.objectives.advantage.AdvantageLoss`.
        score_bounds: ``"auto"``, ``None`` or ``(lower, upper)``; see :class:`ScoreLoss`.
        actor: ``"awr"`` (Eq. 11), or ``"score"``: maximise the smallest score at the policy's own action, with constant
            score parameters. The latter is Table 16's "without AWR", which the paper does not spell out; it has no
            ``temperature`` and no ``weight_clip``.
        value_target: whose action's score the value fits: ``"dataset"`` (Eq. 9), or ``"policy"``, for ``actor="score"``
            alone: with ``expectile=0.5`` then ``M(s, g)`` is the mean of ``S(s, pi(s, g), g)``, our reading of Table
            16's "without AWR and expectile loss".
        delay_score: keep target score parameters; update them with :class:`torchrl.objectives.SoftUpdate`.
        kernels: ``"auto"``, ``"triton"`` or ``"reference"``; see :class:`ScoreLoss`.
        separate_losses: let parameters that networks share be trained by the first of actor, value and score only.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        deactivate_vmap: evaluate the ensemble network by network (faster on a CPU).
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_score``, ``loss_value``, ``loss_actor``, and the detached diagnostics of the three parts; for
        ``actor="score"`` those of the actor are ``policy_score`` alone.

    Raises:
        ValueError: for an unknown name or a constant outside its range.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_smore.modules import goal_specs, make_networks
        >>> from torchrl_smore.objectives import SMORELoss
        >>> networks = make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=1))
        >>> loss = SMORELoss(networks.actor, networks.score, networks.value, delay_score=False)
        >>> def batch(n=4):
        ...     return TensorDict({
        ...         "observation": torch.randn(n, 3), "action": torch.randn(n, 1), "desired_goal": torch.randn(n, 2),
        ...         ("next", "observation"): torch.randn(n, 3)}, [n])
        >>> out = loss(batch().set("q", batch()))
        >>> [key for key in out.keys() if key.startswith("loss_")]
        ['loss_score', 'loss_value', 'loss_actor']
        >>> sum(value for key, value in out.items() if key.startswith("loss_")).backward()

        Without TensorDict, in the order of :attr:`in_keys` or by name, with the outputs selected:

        >>> _ = loss.select_out_keys("loss_score", "loss_actor")
        >>> rows = {key.replace(".", "_"): value for key, value in batch().flatten_keys(".").items()}
        >>> loss_score, loss_actor = loss(**rows, **{f"q_{key}": value for key, value in rows.items()})
    """

    @dataclass
    class _AcceptedKeys(ScoreLoss._AcceptedKeys, AdvantageLoss._AcceptedKeys):
        """Keys of :class:`SMORELoss`: those of its parts.

        Attributes:
            action: dataset action, ``[*B, A]``.
            desired_goal: the goal pursued, ``[*B, G]``; read from the root also for next states.
            q: nested TensorDict of goal transitions.
            score: written by the score network, ``[*B, 1]``.
            value: written by the value network, ``[*B, 1]``.
            target_score: internal, the score that the value fits.
            advantage: internal, target score less value.
            next_value: internal, ``M(s', g)``.
            policy_action: internal, the policy's action where one is needed.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys  # type: ignore[assignment] # the parts' keys, a subclass of each
    out_keys = ["loss_score", "loss_value", "loss_actor"] + [
        key
        for part in (ScoreLoss, ExpectileValueLoss, AWRActorLoss)
        for key in part.out_keys
        if not key.startswith("loss_")
    ]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    score_network: TensorDictModule
    score_network_params: TensorDictParams
    target_score_network_params: TensorDictParams
    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

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
        max_ratio: float = 100.0,
        bootstrap: Bootstrap = "value",
        num_score_nets: int = 2,
        weight_clip: float = 100.0,
        score_bounds: ScoreBounds = "auto",
        advantage_unit: AdvantageUnit = "score",
        actor: ScoreActor = "awr",
        value_target: ValueTarget = "dataset",
        delay_score: bool = True,
        kernels: Kernels = "auto",
        separate_losses: bool = False,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        # the parts are bases: the common constructor runs once, then each part adds its own term
        OfflineLoss.__init__(
            self, reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode
        )
        objective = ScoreObjective(formulation, divergence, beta, gamma, residual_coef, max_ratio, bootstrap)
        for name, chosen, valid in (("actor", actor, ScoreActor), ("value_target", value_target, ValueTarget)):
            if chosen not in get_args(valid):
                raise unknown_name(name, chosen, get_args(valid))
        if value_target == "policy" and actor == "awr":
            raise ValueError("value_target='policy' needs actor='score': AWR's advantage is over dataset actions.")
        self.actor, self.value_target = actor, value_target
        self._set_advantage_unit(advantage_unit, gamma)
        shared = list(actor_network.parameters()) if separate_losses else None
        if actor == "awr":
            self._add_actor_term(actor_network, temperature, weight_clip)
        else:
            self.convert_to_functional(actor_network, "actor_network")
        self._add_value_term(value_network, expectile, compare_against=shared)
        if shared is not None:
            shared = [*shared, *value_network.parameters()]
        self._add_score_term(score_network, objective, num_score_nets, score_bounds, delay_score, kernels, shared)
        if actor == "score":
            self.out_keys = self._kept([*(key for key in self.out_keys if key not in _AWR_KEYS), "policy_score"])
        self._make_vmap()
        self._set_in_keys()

    def _read_keys(self) -> Iterable[NestedKey]:
        keys = self.tensor_keys
        states = [*self.score_network.in_keys, *self.value_network.in_keys]
        after = self._next_keys(self.value_network.in_keys)
        here = [*states, *self.actor_network.in_keys, keys.action, *after, *self._actor_goal_keys()]
        goal = [key for key in self.value_network.in_keys if key == keys.desired_goal]
        q_here = [*self.score_network.in_keys]
        if self.objective.needs_q_residual:
            q_here += [*after, *goal]
        if self.objective.needs_policy:
            policy_after = [*after, *self._next_keys(self.actor_network.in_keys)]
            here += policy_after if self.objective.bootstrap == "policy" else []
            q_here += policy_after
        return [*here, *(unravel_key((keys.q, key)) for key in q_here)]

    def score_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Score loss bootstrapped from the current value network, and its metadata."""
        return self._score_term(self._with_next_value(self._rows(tensordict)))

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss at the current score and value, and its metadata."""
        if self.actor == "score":
            return self._policy_score_term(self._at_actor_goal(self._rows(tensordict)))
        return super().actor_loss(tensordict)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the three losses at the same parameters; see the class."""
        batch = self._with_target_score(self._rows(tensordict))
        if self.actor == "score":
            loss_value, value_metadata = self._value_term(batch)
            loss_actor, metadata = self._policy_score_term(self._at_actor_goal(batch))
            metadata = {"value": value_metadata["state_value"].mean(), **metadata}
        else:
            loss_value, loss_actor, metadata = self._value_and_actor_terms(batch)
        loss_score, score_metadata = self._score_term(self._with_next_value(batch))
        losses = {"loss_score": loss_score, "loss_value": loss_value, "loss_actor": loss_actor}
        return self._finish(losses, {**score_metadata, **metadata}, batch)

    @torch.no_grad()
    def _with_target_score(self, batch: TensorDictBase) -> TensorDictBase:
        # without a target network the live parameters: ``target_*`` would read ``.data``, which torch.vmap forbids
        params = self.target_score_network_params if self.delay_score else self.score_network_params
        rows = batch
        if self.value_target == "policy":
            keys = self.tensor_keys
            action = self._policy_action(batch.select(*self.actor_network.in_keys))
            rows = self._at_policy(batch.copy().set(keys.policy_action, action))
        scores = self._call_ensemble("score_network", rows, self.tensor_keys.score, params)
        return batch.set(self.tensor_keys.target_score, scores.amin(0).unsqueeze(-1))

    @torch.no_grad()
    def _with_next_value(self, batch: TensorDictBase) -> TensorDictBase:
        keys = self.tensor_keys
        q = batch[keys.q]
        rows = (batch, q) if self.objective.needs_q_residual else (batch,)
        after = torch.cat([self._after_step(part, self.value_network.in_keys) for part in rows], 0)
        value = self._call("value_network", after, keys.value, self.value_network_params).unsqueeze(-1)
        for part, next_value in zip(rows, value.chunk(len(rows), 0)):
            part.set(keys.next_value, next_value)
        if self.objective.needs_policy:
            batch.set(keys.policy_action, self._policy_action(batch.select(*self.actor_network.in_keys)))
            after_q = self._after_step(q, self.actor_network.in_keys)
            q.set(unravel_key(("next", keys.policy_action)), self._policy_action(after_q))
            if self.objective.bootstrap == "policy":
                after_rho = self._after_step(batch, self.actor_network.in_keys)
                batch.set(unravel_key(("next", keys.policy_action)), self._policy_action(after_rho))
        return batch

    def _policy_score_term(self, batch: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Ascent of the smallest score at the policy's action; the score's parameters are constants."""
        keys = self.tensor_keys
        action = self._policy_action(batch.select(*self.actor_network.in_keys))
        inputs = self._at_policy(batch.copy().set(keys.policy_action, action))
        # not .detach(), which tensordict caches across .to(), and not .data, which torch.vmap forbids
        params = cast("TensorDictParams", self.score_network_params.apply(torch.Tensor.detach))
        score = self._call_ensemble("score_network", inputs, keys.score, params).amin(0)
        return self._reduce_row_loss(-score, batch), {"policy_score": score.detach().mean()}

    def _policy_action(self, inputs: TensorDictBase) -> Tensor:
        """Deterministic action of the current policy (the forward of a loss runs in deterministic mode)."""
        with lent(self.actor_network, self.actor_network_params):
            return self.actor_network(inputs)[self.tensor_keys.action]
