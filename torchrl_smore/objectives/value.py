"""Expectile value loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor, nn

from torchrl_smore._dispatch import Kernels, expectile_awr
from torchrl_smore.functional.losses import expectile_loss
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode


class ExpectileValueLoss(OfflineLoss):
    """Fits ``V(s, g)`` to an upper expectile of a score; see :func:`~torchrl_smore.functional.losses.expectile_loss`.

    SMORe Eq. 9 with the sign of its text (erratum E1). Reads the in_keys of ``value_network`` and
    ``tensor_keys.target_score``; writes nothing to its input.

    Args:
        value_network: writes ``tensor_keys.value``, shape ``[*B, 1]``.
        expectile: in ``(0, 1)``, dimensionless; schedulable by assignment.
        kernels: ``"auto"``, ``"triton"`` or ``"reference"``; see :class:`~torchrl_smore.objectives.ScoreLoss`.
        reduction: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        deactivate_vmap: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.
        scalar_output_mode: see :class:`~torchrl_smore.objectives.base.OfflineLoss`.

    Returns (forward):
        ``loss_value`` and the detached mean ``value``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_smore.objectives import ExpectileValueLoss
        >>> network = TensorDictModule(torch.nn.Linear(4, 1), in_keys=["observation"], out_keys=["state_value"])
        >>> loss = ExpectileValueLoss(network, expectile=0.8)
        >>> batch = TensorDict({"observation": torch.randn(8, 4), "target_score": torch.randn(8, 1)}, [8])
        >>> sorted(loss(batch).keys())
        ['loss_value', 'value']
    """

    @dataclass
    class _AcceptedKeys:
        """Keys of :class:`ExpectileValueLoss`.

        Attributes:
            target_score: the score to fit, ``[*B, 1]``, taken as a constant.
            value: written by the value network, ``[*B, 1]``.
            priority_weight: importance weight of each row, optional, ``[*B]`` or ``[*B, 1]``.
        """

        target_score: NestedKey = "target_score"
        value: NestedKey = "state_value"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss_value", "value"]
    _schedulable_buffers = frozenset({"expectile"})

    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams
    expectile: Tensor

    def __init__(
        self,
        value_network: TensorDictModule,
        *,
        expectile: float = 0.8,
        kernels: Kernels = "auto",
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap, scalar_output_mode=scalar_output_mode)
        self._add_value_term(value_network, expectile)
        self._set_kernels(kernels)
        self._make_vmap()
        self._set_in_keys()

    def _add_value_term(
        self, value_network: TensorDictModule, expectile: float, compare_against: list[nn.Parameter] | None = None
    ) -> None:
        self.convert_to_functional(value_network, "value_network", compare_against=compare_against)
        self._set_coefficient("expectile", expectile, 0.0 < expectile < 1.0, "lie in (0, 1)")

    def _batch_key(self) -> NestedKey:
        return self.tensor_keys.target_score

    def _read_keys(self) -> Iterable[NestedKey]:
        return [*self.value_network.in_keys, self.tensor_keys.target_score]

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Reduced expectile loss, and ``state_value`` (detached, ``[*B]``) as metadata."""
        return self._value_term(self._rows(tensordict))

    def _value_term(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        value = self._call("value_network", tensordict, self.tensor_keys.value, self.value_network_params)
        score = tensordict[self.tensor_keys.target_score].squeeze(-1).detach()
        metadata = {"state_value": value.detach()}
        if self._runs_fused(tensordict):
            return expectile_awr(score, value, expectile=self.expectile, kernels=self.kernels).loss, metadata
        loss = expectile_loss(score - value, self.expectile)
        return self._reduce_row_loss(loss, tensordict), metadata

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        tensordict = self._rows(tensordict)
        loss, metadata = self._value_term(tensordict)
        return self._finish({"loss_value": loss}, {"value": metadata["state_value"].mean()}, tensordict)
