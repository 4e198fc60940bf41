"""The score loss of SMORe, given state-goal scores to bootstrap from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from tensordict.utils import unravel_key
from torch import Tensor, nn

from torchrl_smore._dispatch import Kernels, mean_score_objective, runs_score_mlp, score_mlp_objective
from torchrl_smore.functional.score import Bootstrap, Formulation, ScoreObjective, bellman_residual
from torchrl_smore.objectives._parameters import lent, members
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode

ScoreBounds = Literal["auto"] | tuple[float, float] | None
Layers = list[tuple[Tensor, Tensor]]


class ScoreLoss(OfflineLoss):
    r"""Fits ``S(s, a, g)`` by one of SMORe's objectives; see :class:`~torchrl_smore.functional.score.ScoreObjective`.

    The input is one TensorDict: offline transitions at the root, goal transitions under ``tensor_keys.q``. Both carry
    ``tensor_keys.next_value``, the score ``M(s', g)`` to bootstrap from, taken as a constant; for
    ``formulation="dual"`` also ``tensor_keys.policy_action`` (root) and ``("next", policy_action)`` (under ``q``; with
    ``bootstrap="policy"`` at the root too). The goal is always read from the root of each, never from ``next``.

    Args:
        score_network: writes ``tensor_keys.score``, shape ``[*B, 1]``. A list of ``num_score_nets`` networks keeps
            their initialisation; a single one is cloned and resampled as TorchRL does.
        formulation: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        divergence: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        beta: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        gamma: discount, in ``(0, 1)``. It multiplies a score and no reward, so it is a coefficient of this loss and
            not of a value estimator.
        residual_coef: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        max_ratio: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        bootstrap: see :class:`~torchrl_smore.functional.score.ScoreObjective`.
        num_score_nets: size of the ensemble; the losses of its members are added.
        score_bounds: clips the bootstrapped ``M`` to an interval: ``"auto"`` is
            :attr:`~torchrl_smore.functional.score.ScoreObjective.bootstrap_bounds`, the range of the closed form for
            ``"in_sample"`` and none for the other formulations; ``None`` leaves it free.
        delay_score: keep target parameters (``target_score_network_params``) for a Polyak updater.
        kernels: ``"reference"``, ``"triton"`` (the fused kernels, or an error where they cannot run) or ``"auto"``; see
            ``kernels/README.md``. A plain :class:`~torchrl_smore.modules.ConcatMLP` of two equal hidden layers is run
            by a kernel whole, forward and backward, if it is of ``precision="bf16"``, or if
            ``torch.set_float32_matmul_precision`` allows tf32; otherwise a kernel begins at the scores.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_score``, and detached: mean ``score`` and ``q_score``, root mean square ``residual`` on the offline rows,
        ``bound_clipped`` (fraction of bootstrapped values outside the bounds), ``score_outside`` (fraction of offline
        scores outside the closed form's range, whether or not it is enforced).
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
    out_keys = ["loss_score", "score", "q_score", "residual", "bound_clipped", "score_outside"]

    score_network: TensorDictModule
    score_network_params: TensorDictParams
    target_score_network_params: TensorDictParams

    def __init__(
        self,
        score_network: TensorDictModule | Sequence[TensorDictModule],
        *,
        formulation: Formulation = "in_sample",
        divergence: str = "pearson_chi2",
        beta: float = 0.5,
        gamma: float = 0.99,
        residual_coef: float = 0.25,
        max_ratio: float = 100.0,
        bootstrap: Bootstrap = "value",
        num_score_nets: int = 2,
        score_bounds: ScoreBounds = "auto",
        delay_score: bool = False,
        kernels: Kernels = "auto",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        objective = ScoreObjective(formulation, divergence, beta, gamma, residual_coef, max_ratio, bootstrap)
        self._add_score_term(score_network, objective, num_score_nets, score_bounds, delay_score, kernels)
        self._make_vmap()
        self._set_in_keys()

    def _add_score_term(
        self,
        score_network: TensorDictModule | Sequence[TensorDictModule],
        objective: ScoreObjective,
        num_score_nets: int,
        score_bounds: ScoreBounds,
        delay_score: bool,
        kernels: Kernels,
        compare_against: list[nn.Parameter] | None = None,
    ) -> None:
        if isinstance(score_network, Sequence):
            score_network = list(score_network)
            if len(score_network) != num_score_nets:
                raise ValueError(f"expected {num_score_nets} score networks, got {len(score_network)}.")
            if num_score_nets == 1:
                score_network = score_network[0]
            elif any(
                p is shared for net in score_network for p in net.parameters() for shared in compare_against or ()
            ):
                raise ValueError(
                    "separate_losses cannot detach what a list of score networks shares with another network; "
                    "pass one score network, which is then cloned."
                )
        self.objective = objective
        self.num_score_nets = num_score_nets
        self.delay_score = delay_score
        self._set_kernels(kernels)
        self.score_range = objective.range
        self.score_bounds = _bounds(score_bounds, objective)
        self.convert_to_functional(
            score_network,
            "score_network",
            None if num_score_nets == 1 else num_score_nets,
            create_target_params=delay_score,
            compare_against=compare_against,
        )
        # one input serves all members unless their statistics differ
        self._same_inputs = num_score_nets == 1 or all(
            bool((entry == entry[:1]).all())
            for entry in self.score_network_params.values(True, True)
            if not isinstance(entry, nn.Parameter)
        )

    def _ensembles(self) -> tuple[str, ...]:
        return ("score_network",)

    def _batch_key(self) -> NestedKey:
        return self.tensor_keys.action

    def _read_keys(self) -> Iterable[NestedKey]:
        keys = self.tensor_keys
        here = [*self.score_network.in_keys, keys.next_value]
        q_here = here if self.objective.needs_q_residual else list(self.score_network.in_keys)
        q_here = list(q_here)
        if self.objective.needs_policy:
            after = [*self._next_keys(self.score_network.in_keys), unravel_key(("next", keys.policy_action))]
            here.append(keys.policy_action)
            q_here += after
            if self.objective.bootstrap == "policy":
                here += after
        return [*here, *(unravel_key((keys.q, key)) for key in q_here)]

    def _next_keys(self, in_keys: Iterable[NestedKey]) -> list[NestedKey]:
        """Where a network's inputs are read after the step: state keys under ``next``, the goal where it is."""
        keys = self.tensor_keys
        states = [key for key in in_keys if key not in (keys.action, keys.desired_goal)]
        return [unravel_key(("next", key)) for key in states]

    def _after_step(self, tensordict: TensorDictBase, in_keys: Iterable[NestedKey]) -> TensorDict:
        """Collect the inputs of a network at the next state, under their root names."""
        keys = self.tensor_keys
        entries = {}
        for key in in_keys:
            at = key if key == keys.desired_goal else unravel_key(("next", key))
            if key == keys.action:
                at = unravel_key(("next", keys.policy_action))
            entries[key] = tensordict[at]
        return _flat(entries, tensordict)

    def _at_policy(self, tensordict: TensorDictBase) -> TensorDict:
        """Collect the inputs of the score network with the policy's action in place of the dataset's."""
        keys = self.tensor_keys
        entries = {
            key: tensordict[keys.policy_action if key == keys.action else key] for key in self.score_network.in_keys
        }
        return _flat(entries, tensordict)

    def _scores(self, *batches: TensorDictBase) -> list[Tensor]:
        """Scores ``[members, *B]`` of several batches in one call of the network."""
        rows = [batch.select(*self.score_network.in_keys) for batch in batches]
        scores = self._call_ensemble(
            "score_network", torch.cat(rows, 0), self.tensor_keys.score, self.score_network_params
        )
        return list(torch.split(scores, [batch.shape[0] for batch in rows], 1))

    def score_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced score loss, and its detached scalar diagnostics as metadata."""
        return self._score_term(self._rows(tensordict))

    def _score_term(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        q = tensordict[self.tensor_keys.q]
        next_value, q_next_value, clipped = self._bootstrap_values(tensordict, q)
        fused = self._runs_fused(tensordict, q)
        layers = self._plain_layers() if fused else None
        if layers is not None:
            loss, score, q_score = self._plain_term(layers, tensordict, q, next_value, q_next_value)
            at_policy: list[Tensor] = []
        else:
            score, q_score, *at_policy = self._scores(*self._scored_batches(tensordict, q))
            if fused:
                policy_score, q_next_policy_score, next_policy_score = (*at_policy, None, None, None)[:3]
                loss = mean_score_objective(
                    self.objective,
                    score=score,
                    next_value=next_value,
                    q_score=q_score,
                    q_next_value=next_value if q_next_value is None else q_next_value,
                    policy_score=policy_score,
                    q_next_policy_score=q_next_policy_score,
                    next_policy_score=next_policy_score,
                    kernels=self.kernels,
                )
        if self.objective.bootstrap == "policy":
            _, q_next_value, next_value = at_policy
        gamma = self.objective.gamma
        residual = bellman_residual(score.detach() if fused else score, next_value, gamma)
        if not fused:
            q_residual = None if q_next_value is None else bellman_residual(q_score, q_next_value, gamma)
            rho_term, q_term = self.objective.terms(score, residual, q_score, q_residual, *at_policy[:2])
            loss = self._reduce_row_loss(rho_term.sum(0), tensordict) + self._reduce_row_loss(q_term.sum(0), q)
        lower, upper = self.score_range
        detached = score.detach()
        metadata = {
            "score": detached.mean(),
            "q_score": q_score.detach().mean(),
            "residual": residual.detach().square().mean().sqrt(),
            "bound_clipped": clipped,
            "score_outside": ((detached < lower) | (detached > upper)).to(score.dtype).mean(),
        }
        return loss, metadata

    def _scored_batches(self, tensordict: TensorDictBase, q: TensorDictBase) -> list[TensorDictBase]:
        """Every batch at which the objective reads scores."""
        batches = [tensordict, q]
        if self.objective.needs_policy:
            batches += [self._at_policy(tensordict), self._after_step(q, self.score_network.in_keys)]
            if self.objective.bootstrap == "policy":
                batches.append(self._after_step(tensordict, self.score_network.in_keys))
        return batches

    def _plain_layers(self) -> Layers | None:
        """Layers of all members, stacked, where a kernel can run the whole network, else ``None``."""
        module: Any = getattr(self.score_network, "module", None)
        if not self._same_inputs or self.objective.needs_policy or not hasattr(module, "plain_layers"):
            return None
        with lent(self.score_network, self.score_network_params):
            layers = module.plain_layers()
        if layers is None or not runs_score_mlp(layers := self._with_members(layers), module.precision):
            return None
        return layers

    def _with_members(self, layers: Layers) -> Layers:
        if self.score_network_params.ndim:
            return layers
        return [(weight.unsqueeze(0), bias.unsqueeze(0)) for weight, bias in layers]

    def _plain_term(
        self,
        layers: Layers,
        tensordict: TensorDictBase,
        q: TensorDictBase,
        next_value: Tensor,
        q_next_value: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and detached scores ``[members, *B]`` from inputs and weights, by one kernel."""
        module, params = self.score_network.module, self.score_network_params
        # what standardises the inputs is the same for every member
        with lent(self.score_network, members(params)[0] if params.ndim else params):
            x, q_x = (
                module.joined(*(batch[key] for key in self.score_network.in_keys)).flatten(0, -2)
                for batch in (tensordict, q)
            )
        loss, score, q_score = score_mlp_objective(
            self.objective,
            x=x,
            next_value=next_value.flatten(),
            q_x=q_x,
            q_next_value=q_x.new_zeros(q_x.shape[0]) if q_next_value is None else q_next_value.flatten(),
            layers=layers,
            precision="bf16" if module.precision == "bf16" else "tf32",
            kernels=self.kernels,
        )
        return loss, score.reshape(-1, *tensordict.shape), q_score.reshape(-1, *q.shape)

    def _bootstrap_values(self, tensordict: TensorDictBase, q: TensorDictBase) -> tuple[Tensor, Tensor | None, Tensor]:
        """``M(s', g)`` on rho and on q as constants within the bounds, and the fraction that was outside."""
        rows = (tensordict, q) if self.objective.needs_q_residual else (tensordict,)
        values = [batch[self.tensor_keys.next_value].squeeze(-1).detach() for batch in rows]
        clipped = values[0].new_zeros(())
        if self.score_bounds is not None:
            lower, upper = self.score_bounds
            outside = [((value < lower) | (value > upper)).flatten() for value in values]
            clipped = torch.cat(outside).to(values[0].dtype).mean()
            values = [value.clamp(lower, upper) for value in values]
        return values[0], values[1] if len(values) > 1 else None, clipped

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        tensordict = self._rows(tensordict)
        loss, metadata = self._score_term(tensordict)
        return self._finish({"loss_score": loss}, metadata, tensordict)


def _flat(entries: dict[NestedKey, Tensor], like: TensorDictBase) -> TensorDict:
    out = TensorDict({}, batch_size=like.batch_size)
    for key, value in entries.items():
        out.set(key, value)
    return out


def _bounds(bounds: ScoreBounds, objective: ScoreObjective) -> tuple[float, float] | None:
    if bounds == "auto":
        bounds = objective.bootstrap_bounds
    if bounds is None:
        return None
    lower, upper = (math.nan, math.nan) if isinstance(bounds, str) else bounds
    if not lower < upper:
        raise ValueError(f"score_bounds must be 'auto', None or (lower, upper) with lower < upper, got {bounds!r}.")
    return None if math.isinf(lower) and math.isinf(upper) else (float(lower), float(upper))
