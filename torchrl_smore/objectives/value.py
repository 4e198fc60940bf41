"""Expectile value loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, dispatch

from torchrl_smore._dispatch import Kernels, expectile_awr
from torchrl_smore.functional.losses import ExpectileAWR
from torchrl_smore.objectives.base import OfflineLoss, Reduction, ScalarOutputMode
from torchrl_smore.objectives.terms import Term


@final
class ExpectileValueLoss(OfflineLoss):
    """Fits ``V(s, g)`` to an upper expectile of a score; see :func:`~torchrl_smore.functional.losses.expectile_loss`.

    SMORe Eq. 9 with the sign of its text (erratum E1). Reads the in_keys of ``value_network`` and
    ``tensor_keys.target_score``; writes nothing to its input.

    Args:
        value_network: writes ``tensor_keys.value``, shape ``[*B, 1]``.
        expectile: in ``(0, 1)``, dimensionless; schedulable by assignment.
        kernels: ``"auto"``, ``"triton"`` or ``"reference"``; see :class:`~torchrl_smore.objectives.ScoreLoss`.

    Returns (forward):
        ``loss_value`` and the detached mean ``value``.

    Raises:
        ValueError: for an unknown name or a constant outside its range.

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
        self._add_network("value_network", value_network)
        self._set_coefficient("expectile", expectile, 0.0 < expectile < 1.0, "lie in (0, 1)")
        self._set_kernels(kernels)
        self._ready(self.out_keys)

    def _batch_key(self) -> NestedKey:
        return self.tensor_keys.target_score

    def _read_keys(self) -> Iterable[NestedKey]:
        return [*self.value_network.in_keys, self.tensor_keys.target_score]

    def value_loss(self, tensordict: TensorDictBase) -> Term:
        """Reduced expectile loss, and ``state_value`` (detached, ``[*B]``) as metadata."""
        fit = self._value_term(self._rows(tensordict))
        return fit.loss, {"state_value": fit.value}

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the loss on a batch; see the class."""
        rows = self._rows(tensordict)
        fit = self._value_term(rows)
        return self._finish({"loss_value": fit.loss}, {"value": fit.mean_value}, rows)

    def _value_term(self, rows: TensorDictBase) -> ExpectileAWR:
        """Eq. 9, the value fitted to an expectile of the score of the batch."""
        keys = self.tensor_keys
        value = self._call("value_network", rows, keys.value)
        target = rows[keys.target_score].squeeze(-1)
        reduce = self._reducer(rows)
        return expectile_awr(target, value, expectile=self.expectile, reduce=reduce, kernels=self.kernels)
