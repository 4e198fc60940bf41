"""Advantage-weighted regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, dispatch

from torchrl_smore.functional.losses import actor_weight
from torchrl_smore.objectives._construction import AdvantageUnit, add_weighted_actor, check_discount, scale_of
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.terms import REGRESSION_KEYS, Term, regression_term


@final
class AWRActorLoss(OfflineLoss):
    """Weighted log-likelihood of the dataset actions; see :func:`~torchrl_smore.functional.losses.awr_weight`.

    SMORe Eq. 11 with its missing minus sign (erratum E2). Reads the in_keys of ``actor_network``, the action and
    ``tensor_keys.advantage``; writes nothing to its input.

    Args:
        actor_network: stochastic actor with ``get_dist``.
        temperature: multiplies the advantage (an inverse temperature), non-negative, in one over the unit of the
            advantage; schedulable by assignment. ``0`` is behaviour cloning.
        advantage_unit: that the temperature multiplies; see :class:`~torchrl_smore.SMORELoss`.
        gamma: discount that the advantage was learnt with, in ``(0, 1)``; for ``"horizon"``.
        weight_clip: largest weight, positive, dimensionless.

    Returns (forward):
        ``loss_actor``, and detached: ``mean_advantage``, mean ``awr_weight``, ``weight_clipped`` (fraction of rows
        whose weight is at ``weight_clip``), mean ``log_prob``.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for an unknown unit, a constant outside its range, or ``"horizon"`` without ``gamma``.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`AWRActorLoss`.

        Attributes:
            action: dataset action, ``[*B, A]``.
            advantage: ``[*B, 1]``, taken as a constant.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        action: NestedKey = "action"
        advantage: NestedKey = "advantage"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_actor", *REGRESSION_KEYS]
    _schedulable_buffers = frozenset({"temperature"})

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        *,
        temperature: float = 3.0,
        advantage_unit: AdvantageUnit = "score",
        gamma: float | None = None,
        weight_clip: float = 100.0,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        if gamma is not None:
            check_discount(gamma)
        elif advantage_unit == "horizon":
            raise ValueError("advantage_unit='horizon' needs the gamma that the advantage was learnt with, got None.")
        self.advantage_scale = scale_of(advantage_unit, 0.0 if gamma is None else gamma)
        add_weighted_actor(self, actor_network, temperature, weight_clip)
        self._ready(self.out_keys)

    def _read_keys(self) -> Iterable[NestedKey]:
        return [*self.actor_network.in_keys, self.tensor_keys.action, self.tensor_keys.advantage]

    def actor_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced regression loss, and its detached scalar diagnostics as metadata."""
        return self._actor_term(self._rows(tensordict))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        rows = self._rows(tensordict)
        loss, metadata = self._actor_term(rows)
        return self._finish({"loss_actor": loss}, metadata, rows)

    def _actor_term(self, rows: TensorDictBase) -> Term:
        """Eq. 11, weighted by the advantage of the batch."""
        keys = self.tensor_keys
        advantage = self.advantage_scale * rows[keys.advantage].squeeze(-1)
        weight = actor_weight(advantage, self.temperature, self.weight_clip)
        return regression_term(self._log_prob(rows), weight, self._reducer(rows))
