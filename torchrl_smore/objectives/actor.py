"""Advantage-weighted regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictParams, dispatch
from torch import Tensor

from torchrl_smore.functional.losses import awr_loss, awr_weight
from torchrl_smore.objectives._parameters import lent
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode


class AWRActorLoss(OfflineLoss):
    """Weighted log-likelihood of the dataset actions; see :func:`~torchrl_smore.functional.losses.awr_weight`.

    SMORe Eq. 11 with its missing minus sign (erratum E2). Reads the in_keys of ``actor_network``, the action and
    ``tensor_keys.advantage``; writes nothing to its input.

    Args:
        actor_network: stochastic actor with ``get_dist``.
        temperature: multiplies the advantage (an inverse temperature), non-negative, in one over the unit of the
            score; schedulable by assignment. ``0`` is behaviour cloning.
        weight_clip: largest weight, positive, dimensionless.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_actor``, and detached: ``mean_advantage``, mean ``awr_weight``, ``weight_clipped`` (fraction of rows
        whose weight is at ``weight_clip``), mean ``log_prob``.
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
    out_keys = ["loss_actor", "mean_advantage", "awr_weight", "weight_clipped", "log_prob"]
    _schedulable_buffers = frozenset({"temperature"})

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    temperature: Tensor
    weight_clip: float

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        *,
        temperature: float = 3.0,
        weight_clip: float = 100.0,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        self._add_actor_term(actor_network, temperature, weight_clip)
        self._make_vmap()
        self._set_in_keys()

    def _add_actor_term(
        self, actor_network: ProbabilisticTensorDictSequential, temperature: float, weight_clip: float
    ) -> None:
        if not hasattr(actor_network, "get_dist"):
            raise TypeError(f"actor_network must be stochastic (have get_dist), got {type(actor_network).__name__}.")
        if not weight_clip > 0.0:
            raise ValueError(f"weight_clip must be positive, got {weight_clip}.")
        self.convert_to_functional(actor_network, "actor_network")
        self._set_coefficient("temperature", temperature, temperature >= 0.0, "not be negative")
        self.weight_clip = weight_clip

    def _batch_key(self) -> NestedKey:
        return self.tensor_keys.action

    def _read_keys(self) -> Iterable[NestedKey]:
        return [*self.actor_network.in_keys, self.tensor_keys.action, self.tensor_keys.advantage]

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced regression loss, and its detached scalar diagnostics as metadata."""
        return self._actor_term(self._rows(tensordict))

    def _actor_term(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        advantage = tensordict[self.tensor_keys.advantage].squeeze(-1).detach()
        weight = awr_weight(advantage, self.temperature, self.weight_clip)
        metadata = {
            "mean_advantage": advantage.mean(),
            "awr_weight": weight.mean(),
            "weight_clipped": (weight >= self.weight_clip).to(weight.dtype).mean(),
        }
        return self._regression_term(tensordict, weight, metadata)

    def _regression_term(
        self, tensordict: TensorDictBase, weight: Tensor, metadata: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced regression loss under given weights ``[*B]``, and ``metadata`` with ``log_prob`` added."""
        with lent(self.actor_network, self.actor_network_params):
            dist = self.actor_network.get_dist(tensordict.select(*self.actor_network.in_keys))
        log_prob = dist.log_prob(tensordict[self.tensor_keys.action])
        if log_prob.shape != weight.shape:
            raise ValueError(
                f"expected one log-probability for each advantage, got shapes {tuple(log_prob.shape)} and "
                f"{tuple(weight.shape)}; the distribution must count the action as one event."
            )
        metadata = {**metadata, "log_prob": log_prob.detach().mean()}
        return self._reduce_row_loss(awr_loss(log_prob, weight), tensordict), metadata

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        tensordict = self._rows(tensordict)
        loss, metadata = self._actor_term(tensordict)
        return self._finish({"loss_actor": loss}, metadata, tensordict)
