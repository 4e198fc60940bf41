"""What every loss of this package shares: ordered keys, functional calls, reductions and output."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, cast, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torchrl.objectives import LossModule
from torchrl.objectives.utils import _vmap_func

from torchrl_smore._dispatch import Kernels, resolve_kernels
from torchrl_smore._errors import unknown_name
from torchrl_smore.objectives._parameters import Entries, lent, members

Reduction = Literal["none", "mean", "sum"]
ScalarOutputMode = Literal["exclude", "non_tensor"]
REDUCTIONS: tuple[Reduction, ...] = ("none", "mean", "sum")


class OfflineLoss(LossModule):
    """Base of the losses in this package.

    A subclass names the keys that it reads in :meth:`_read_keys` and calls :meth:`_set_in_keys` last in its
    constructor (a lazy ``in_keys`` would cost a recompile on the second call). Networks are called through
    :meth:`_call` and, for ensembles, :meth:`_call_ensemble`.

    Args:
        reduction: how per-row losses become outputs; ``"none"`` keeps the batch shape.
        deactivate_vmap: evaluate ensembles one network after the other instead of by ``torch.vmap``. Faster on a CPU,
            where a batched matrix product is slower than two plain ones.
        scalar_output_mode: what becomes of the scalar diagnostics under ``reduction="none"``, where they do not fit the
            batch shape: ``"exclude"`` drops them, ``"non_tensor"`` keeps them as non-tensor entries; ``None`` warns and
            drops them.
    """

    default_value_estimator = None
    out_keys: list[str]
    deactivate_vmap: bool
    reduction: Reduction
    scalar_output_mode: ScalarOutputMode | None
    # a loss that has fused kernels says so in its constructor
    kernels: Kernels = "reference"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # tensordict makes a property, which select_out_keys needs, of the list of the instantiated class only
        if "out_keys" not in cls.__dict__ and isinstance(getattr(cls, "out_keys", None), list):
            cls.out_keys = list(cls.out_keys)

    def __init__(
        self,
        *,
        reduction: Reduction | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: ScalarOutputMode | None = None,
    ) -> None:
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] | None = None
        super().__init__()
        reduction = reduction or "mean"
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
        if reduction == "none" and scalar_output_mode is None:
            warnings.warn(
                f"{type(self).__name__} drops its scalar diagnostics under reduction='none'; pass "
                "scalar_output_mode='exclude' to say that you know, or 'non_tensor' to keep them.",
                stacklevel=3,
            )
            scalar_output_mode = "exclude"
        self.reduction = reduction
        self.deactivate_vmap = deactivate_vmap
        self.scalar_output_mode = scalar_output_mode
        self.out_keys = self._kept(self.out_keys)

    def _kept(self, out_keys: Iterable[str]) -> list[str]:
        """Those of the outputs that the reduction does not drop."""
        drop = self.reduction == "none" and self.scalar_output_mode == "exclude"
        return [key for key in out_keys if key.startswith("loss_") or not drop]

    def _read_keys(self) -> Iterable[NestedKey]:
        raise NotImplementedError

    def _set_in_keys(self) -> None:
        # dict.fromkeys and not set: the order must not change with PYTHONHASHSEED
        self._in_keys = list(dict.fromkeys(unravel_key(key) for key in self._read_keys()))

    @property
    def in_keys(self) -> list[NestedKey]:
        """Every key that :meth:`forward` reads, in a fixed order, without repetition."""
        if self._in_keys is None:
            self._set_in_keys()
        return cast("list[NestedKey]", self._in_keys)

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def _set_coefficient(self, name: str, value: float, valid: bool, expected: str) -> None:
        """Register a schedulable coefficient after its one check."""
        if not valid:
            raise ValueError(f"{name} must {expected}, got {value}.")
        self.register_coeff_buffer(name, float(value))

    def _set_kernels(self, kernels: Kernels) -> None:
        if kernels not in get_args(Kernels):
            raise unknown_name("kernels", kernels, get_args(Kernels))
        self.kernels = kernels

    def _runs_fused(self, *batches: TensorDictBase) -> bool:
        """Whether fused kernels compute the losses: they average over all rows, so nothing may mask or weigh them."""
        if resolve_kernels(self.kernels, batches[0][self._batch_key()].device) == "reference":
            return False
        marks = [self.tensor_keys.priority_weight, *self._loss_mask_keys()]
        plain = self.reduction == "mean" and all(rows.get(key, None) is None for rows in batches for key in marks)
        if not plain and self.kernels == "triton":
            raise ValueError(
                f"kernels='triton' averages over all rows: it needs reduction='mean', got {self.reduction!r}, and a "
                "batch without masks or priority weights."
            )
        return plain

    def _rows(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Shallow copy to write to, with its batch size, where the rows that a mask drops read 0."""
        rows = tensordict.copy()
        if not rows.batch_dims:
            # a dispatched call comes without one: sizes alone do not tell a batch from features
            rows.batch_size = rows[self._batch_key()].shape[:-1]
        q_key = getattr(self.tensor_keys, "q", None)
        if q_key is None:
            self._blank_masked(rows)
        else:
            self._blank_masked(rows, q_key)
            self._blank_masked(rows[q_key])
        return rows

    def _batch_key(self) -> NestedKey:
        """Name an entry with exactly one feature dimension, from which the batch size is read."""
        raise NotImplementedError

    def _blank_masked(self, rows: TensorDictBase, *exclude: NestedKey) -> None:
        found = [rows.get(key, None) for key in self._loss_mask_keys()]
        masks = [mask for mask in found if mask is not None]
        if not masks:
            return
        for key, entry in rows.exclude(*exclude).items(True, True):
            if entry.is_floating_point():
                for mask in masks:
                    # the reduction drops these rows, but a NaN there would still have gradient 0 * NaN
                    entry = torch.where(self._expand_loss_mask(mask, entry), entry, torch.zeros_like(entry))
                rows.set(key, entry)

    def _call(
        self, name: str, tensordict: TensorDictBase, out_key: NestedKey, params: TensorDictBase | Entries
    ) -> Tensor:
        """``out_key`` of a network under given parameters, its trailing singleton dimension dropped."""
        network: TensorDictModule = getattr(self, name)
        with lent(network, params):
            return network(tensordict.select(*network.in_keys))[out_key].squeeze(-1)

    def _call_ensemble(
        self, name: str, tensordict: TensorDictBase, out_key: NestedKey, params: TensorDictParams
    ) -> Tensor:
        """:meth:`_call` for every member of an ensemble, shape ``[members, *B]``."""
        if params.ndim == 0:
            return self._call(name, tensordict, out_key, params).unsqueeze(0)
        if self.deactivate_vmap:
            # a plain loop and not torchrl's pseudo-vmap, which makes torch.compile recompile on every call
            return torch.stack([self._call(name, tensordict, out_key, member) for member in members(params)])
        network: TensorDictModule = getattr(self, name)
        run = self._vmapped[name]
        return run(tensordict.select(*network.in_keys), params)[out_key].squeeze(-1)

    def _make_vmap(self) -> None:
        self._vmapped = {
            name: _vmap_func(getattr(self, name), (None, 0), randomness=self.vmap_randomness)
            for name in self._ensembles()
        }

    def train(self, mode: bool = True) -> OfflineLoss:
        """Sets the mode of the loss and of its functional networks, which TorchRL's own method does not reach."""
        super().train(mode)
        for network in vars(self).values():
            if isinstance(network, nn.Module):
                network.train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # functions made by torch.vmap, which no process can send to another
        return {name: value for name, value in vars(self).items() if name != "_vmapped"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_vmap()

    def _ensembles(self) -> tuple[str, ...]:
        """Names of the networks with stacked parameters."""
        return ()

    def _reduce_row_loss(self, loss: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Reduce in TorchRL's way: masks of ``loss_mask_key`` and priority weights are read from ``tensordict``."""
        weights = None
        # not _maybe_get_priority_weight, which fails for a nested key
        if self.use_prioritized_weights in (True, "auto"):
            weights = tensordict.get(self.tensor_keys.priority_weight, None)
            if weights is not None:
                weights = weights.reshape(loss.shape)
        return self._reduce_loss(loss, tensordict=tensordict, weights=weights)

    def _finish(
        self, losses: dict[str, Tensor], diagnostics: dict[str, Tensor], tensordict: TensorDictBase
    ) -> TensorDict:
        """Losses and detached scalar diagnostics as the output TensorDict."""
        if self.reduction == "none":
            out = TensorDict(cast("dict[str, Any]", losses), batch_size=tensordict.batch_size)
            if self.scalar_output_mode == "non_tensor":
                for name, value in diagnostics.items():
                    out.set_non_tensor(name, value)
        else:
            out = TensorDict({**losses, **diagnostics})
        params = [name for name in self._modules if name.endswith("_params")]
        self._clear_weakrefs(tensordict, out, *params)
        return out
