"""What every loss of this package shares: ordered keys, functional calls of networks, reductions and output."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, cast, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_smore._dispatch import Kernels
from torchrl_smore._errors import unknown_name
from torchrl_smore.objectives._encoder import check_encoder, encode_pictures
from torchrl_smore.objectives._networks import PICTURES, ActorSight, Networks, lent
from torchrl_smore.objectives.terms import Reduce, check_log_prob

Reduction = Literal["none", "mean", "sum"]
ScalarOutputMode = Literal["exclude", "non_tensor"]


class OfflineLoss(Networks):
    """Base of the losses in this package, all of which are final.

    What two of them share is here or a function; losses that are one method but for a term have a base of their own.

    A loss names the keys that it reads in ``_read_keys`` and calls ``_ready`` last in its constructor; networks
    are registered by ``_add_network`` and called by ``_call``.
    Arguments that every loss takes are explained at the constructor here; those of the losses have no docstring of
    their own and inherit it.
    """

    default_value_estimator = None
    #: Every key that ``forward`` reads, in a fixed order, without repetition.
    in_keys: list[NestedKey]
    out_keys: list[str]
    reduction: Reduction
    scalar_output_mode: ScalarOutputMode | None

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
        """Arguments of every loss, which come after its own.

        Args:
            reduction: how losses of rows become outputs: ``"mean"`` (``None`` as well), ``"sum"``, or ``"none"``, which
                keeps the batch shape. Rows that a mask of TorchRL drops (``("collector", "mask")``) count in no loss;
                diagnostics are means of all rows, in which such a row is one of zeros.
            deactivate_vmap: evaluate ensembles one network after the other instead of by ``torch.vmap``. Faster on a
                CPU, where a batched matrix product is slower than two plain ones.
            scalar_output_mode: of scalar diagnostics under ``reduction="none"``, where they do not fit the batch shape:
                ``"exclude"`` drops them, ``"non_tensor"`` keeps them as non-tensor entries, ``None`` warns and drops
                them.

        Raises:
            ValueError: for an unknown ``reduction`` or ``scalar_output_mode``.
        """
        self._out_keys: list[NestedKey] | None = None
        super().__init__()
        reduction = reduction or "mean"
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}.")
        if scalar_output_mode is not None and scalar_output_mode not in get_args(ScalarOutputMode):
            valid = ", ".join(get_args(ScalarOutputMode))
            raise ValueError(f"scalar_output_mode must be one of {valid} or None, got {scalar_output_mode!r}.")
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls :meth:`forward`.

        Raises:
            RuntimeError: what it raises; of a batch whose floating-point entries have another dtype than the networks,
                with their names.
        """
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        try:
            return super().__call__(*args, **kwargs)
        except RuntimeError as error:
            # only then, as a network may well convert what it reads
            found = self._other_dtypes(args[0] if args else kwargs)
            if not found or not any(word in str(error) for word in ("dtype", "scalar type")):
                raise
            raise RuntimeError(
                f"{type(self).__name__}: expected {self._dtype()}, as its networks have, and found "
                f"{', '.join(found)}: convert them where the data come from, as in "
                f"data['observation'] = data['observation'].float(). ({error})"
            ) from error

    @property
    def writes_buffers(self) -> bool:
        """Whether a call in training mode writes to buffers of the loss itself, which a function of tensors cannot."""
        return False

    def _dtype(self) -> torch.dtype | None:
        """That of the first floating-point parameter of a network; ``None`` without one."""
        first = self._first_entry()
        return None if first is None else first.dtype

    def _first_entry(self) -> Tensor | None:
        """The first floating-point parameter or buffer of a network; ``None`` without one."""
        # not parameters(): FusedUpdate lends the loss plain TensorDicts, which are no modules, in their place
        networks = [each for each in self._modules.values() if isinstance(each, (TensorDictParams, TensorDictBase))]
        entries = (entry for network in networks for entry in network.values(True, True))
        return next((entry for entry in entries if entry.is_floating_point()), None)

    def _other_dtypes(self, batch: Any) -> list[str]:
        """Floating-point entries that are read and have another dtype than the networks, of a batch or by argument."""
        if isinstance(batch, TensorDictBase):
            batch = {key: batch.get(key, None) for key in self.in_keys}
        return [
            f"{key!r} of {entry.dtype}"
            for key, entry in (batch.items() if isinstance(batch, dict) else ())
            if isinstance(entry, Tensor) and entry.is_floating_point() and entry.dtype != self._dtype()
        ]

    @abstractmethod
    def _read_keys(self) -> Iterable[NestedKey]:
        """Every key that :meth:`forward` reads; repetitions do not matter."""

    def _batch_key(self) -> NestedKey:
        """Name an entry with exactly one feature dimension, from which the batch size is read."""
        return self.tensor_keys.action

    def _batch_size(self, rows: TensorDictBase) -> torch.Size:
        """Batch size of entries that came without one, as by keyword."""
        key = self._batch_key()
        found = rows[key]
        # a goal may be a picture, uint8 [*B, H, W, C]
        size = found.shape[:-3] if found.dtype == torch.uint8 and found.ndim > 3 else found.shape[:-1]
        for other in self.in_keys:
            entry = rows.get(other, None)
            if isinstance(entry, Tensor) and entry.shape[: len(size)] != size:
                raise ValueError(
                    f"{type(self).__name__} reads the batch size {list(size)} from {key!r} of shape "
                    f"{list(found.shape)} and got {other!r} of shape {list(entry.shape)}, which does not begin with "
                    "it: there are as many goal transitions as rows; pass a TensorDict with a batch size if one row of "
                    f"{key!r} has several dimensions."
                )
        return size

    def _ready(self, out_keys: Iterable[str]) -> None:
        """Ends a constructor: what is written, what is read (a lazy list would cost a recompile), how maps draw.

        Buffers of the loss itself go where its networks are.
        """
        self._keep_stated_bounds()
        self._place_buffers()
        drop = self.reduction == "none" and self.scalar_output_mode == "exclude"
        self.out_keys = [key for key in out_keys if key.startswith("loss_") or not drop]
        self._set_in_keys()
        self._make_vmap()

    def _place_buffers(self) -> None:
        first = self._first_entry()
        for name, buffer in self._buffers.items():
            if buffer is not None and first is not None:
                # in float64 for networks of float64 alone: a coefficient rounds to no less than float32
                dtype = torch.promote_types(torch.get_default_dtype(), first.dtype)
                self._buffers[name] = buffer.to(first.device, dtype if buffer.is_floating_point() else None)

    def _set_in_keys(self) -> None:
        # dict.fromkeys and not set: the order must not change with PYTHONHASHSEED
        self.in_keys = list(dict.fromkeys(unravel_key(key) for key in self._read_keys()))

    def share_encoder(self, encoder_network: TensorDictModule, *, actor: ActorSight = "frozen") -> None:
        """Gives the networks one encoder: they then read vectors where a batch has pictures (entries of uint8).

        The encoder becomes a network of its own, ``encoder_network``, trained by the losses of score, Q, critic and
        value. It has no target: target networks read what the encoder that is trained makes of a picture. A picture
        that several networks read is encoded once.

        Args:
            encoder_network: reads one picture, uint8 ``[*B, H, W, C]``, and writes one vector, ``[*B, D]``.
            actor: ``"frozen"``: the actor reads the vectors, and its gradient stops there; ``"trained"``: it trains the
                encoder too; ``"own"``: it reads the pictures, by an encoder of its own. The score or Q of an actor's
                loss never trains the encoder.

        Raises:
            ValueError: for another ``actor``, or if the loss has an encoder already, or nothing that would train it.
        """
        check_encoder(encoder_network, self, actor)
        self.actor_sight = actor
        self._add_network("encoder_network", encoder_network)

    def encoded(self, tensordict: TensorDictBase) -> TensorDictBase:
        """A shallow copy with vectors in the place of the pictures that the networks read, see :meth:`share_encoder`.

        For an actor with an encoder of its own, what it reads is kept below ``"pictures"``.

        Args:
            tensordict: a batch, or of one what some network reads, of at least one dimension.
        """
        encoder = self.encoder_network
        assert encoder is not None
        # the goal of an actor that does not train the encoder, and what follows a step, are constants
        goal = getattr(self.tensor_keys, "actor_goal", None)
        constant = None if self.actor_sight == "trained" else goal
        later = [key for key in self.in_keys if key == constant or (isinstance(key, tuple) and "next" in key)]
        with lent(encoder, self.encoder_network_params):
            rows = encode_pictures(tensordict, [[key for key in self.in_keys if key not in later], later], encoder)
        if self.actor_sight == "own":
            seen = [*self.actor_network.in_keys, *([] if goal is None else [goal])]
            rows.set(PICTURES, tensordict.select(*seen, strict=False))
        return rows

    def _set_coefficient(self, name: str, value: float, valid: bool, expected: str) -> None:
        """Register a schedulable coefficient after its one check."""
        if not valid:
            raise ValueError(f"{name} must {expected}, got {value}.")
        # in the precision in which it is given, until _ready knows that of the networks
        self.register_coeff_buffer(name, float(value), dtype=torch.float64)

    def _set_kernels(self, kernels: Kernels) -> None:
        if kernels not in get_args(Kernels):
            raise unknown_name("kernels", kernels, get_args(Kernels))
        if kernels == "triton" and self.reduction != "mean":
            raise ValueError(
                f"kernels='triton' averages over all rows: it needs reduction='mean', got {self.reduction!r}."
            )
        self.kernels = kernels

    def _rows(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Shallow copy to write to, with its batch size, where dropped rows read 0 and pictures are encoded."""
        rows = tensordict.copy()
        if not rows.batch_dims:
            # a dispatched call comes without one: sizes alone do not tell a batch from features
            rows.batch_size = self._batch_size(rows)
        if not rows.batch_size.numel():
            raise ValueError(f"{type(self).__name__} expects at least one row, got batch size {list(rows.batch_size)}.")
        if self.use_prioritized_weights is True and rows.get(self.tensor_keys.priority_weight, None) is None:
            raise KeyError(
                f"{type(self).__name__} was to weigh rows by {self.tensor_keys.priority_weight!r}, which the batch "
                "does not have; prioritised buffers of TorchRL write 'priority_weight'."
            )
        q_key = getattr(self.tensor_keys, "q", None)
        q = None if q_key is None else rows.get(q_key, None)
        for part, apart in ((rows, q_key), *([] if q is None else [(q, None)])):
            self._check_action(part, rows.batch_size)
            for mask_key in self._loss_mask_keys():
                mask = part.get(mask_key, None)
                for key, entry in () if mask is None else part.exclude(*filter(None, [apart])).items(True, True):
                    if entry.is_floating_point():
                        # the reduction drops these rows, but a NaN there would still have gradient 0 * NaN
                        entry = torch.where(self._expand_loss_mask(mask, entry), entry, torch.zeros_like(entry))
                        part.set(key, entry)
        return rows if self.encoder_network is None else self.encoded(rows)

    def _check_action(self, part: TensorDictBase, size: torch.Size) -> None:
        """Raises ``ValueError`` for actions that are not one vector for each row, which would broadcast."""
        key = getattr(self.tensor_keys, "action", None)
        if key is None or unravel_key(key) not in self.in_keys:
            return
        action = part.get(key, None)
        if action is not None and action.shape[:-1] != size:
            expected = ", ".join(map(str, [*size, "A"]))
            raise ValueError(
                f"{type(self).__name__} expects {key!r} of shape [{expected}], also of one component, got "
                f"{list(action.shape)}."
            )

    def _log_prob(self, rows: TensorDictBase) -> Tensor:
        """Log-probability of the dataset's actions under the current policy, ``[*B]``."""
        log_prob = self._distribution(rows).log_prob(rows[self.tensor_keys.action])
        check_log_prob(log_prob, rows.batch_size)
        return log_prob

    def _goal_transitions(self, rows: TensorDictBase) -> TensorDictBase:
        """What is under ``tensor_keys.q``; raises ``KeyError`` if nothing is."""
        key = self.tensor_keys.q
        q = rows.get(key, None)
        if q is None:
            raise KeyError(
                f"{type(self).__name__} reads goal transitions under {key!r}, which the batch does not have: "
                "a nested TensorDict of as many rows."
            )
        return q

    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Names the entries that are read; see :meth:`torchrl.objectives.LossModule.set_keys`.

        Raises:
            ValueError: for an entry that this loss does not have; proposes the nearest that it has.
        """
        accepted = self._AcceptedKeys.__dataclass_fields__
        for name in kwargs:
            if name not in accepted:
                raise ValueError(f"{name} is not an accepted tensordict key: {unknown_name('key', name, accepted)}")
        super().set_keys(**kwargs)
        self._keep_stated_bounds()
        self._place_buffers()

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> NoReturn:
        """Part of TorchRL's interface: there is no ``value_type`` with ``hyperparams`` to make.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no value estimator: its own formula bootstraps, and a discount is the argument "
            "gamma of its constructor."
        )

    def _reducer(self, rows: TensorDictBase) -> Reduce:
        """Reduction in TorchRL's way, by the masks of ``loss_mask_key`` and the priority weights of ``rows``."""
        weight = None
        # not _maybe_get_priority_weight, which fails for a nested key
        if self.use_prioritized_weights in (True, "auto"):
            weight = rows.get(self.tensor_keys.priority_weight, None)
        plain = self.reduction == "mean" and weight is None
        for key in self._loss_mask_keys():
            plain = plain and rows.get(key, None) is None
        if plain:
            return torch.mean
        return lambda loss: self._reduce_loss(
            loss, tensordict=rows, weights=None if weight is None else weight.reshape(loss.shape)
        )

    def _row_weight(self, rows: TensorDictBase, like: Tensor) -> Tensor:
        """Weight of each row where rows are coupled, ``[*B]``: 0 if a mask drops it, else its priority weight, or 1."""
        # not in the integers that a picture is made of, in which half a weight is none
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        weight = torch.ones(rows.batch_size, dtype=dtype, device=like.device)
        if self.use_prioritized_weights in (True, "auto"):
            given = rows.get(self.tensor_keys.priority_weight, None)
            if given is not None:
                weight = given.reshape(weight.shape).to(dtype)
        for key in self._loss_mask_keys():
            mask = rows.get(key, None)
            if mask is not None:
                weight = weight * mask.reshape(weight.shape).to(dtype)
        return weight

    def _finish(self, losses: dict[str, Tensor], diagnostics: dict[str, Tensor], rows: TensorDictBase) -> TensorDict:
        """Losses and detached scalar diagnostics as the output TensorDict."""
        if self.reduction == "none":
            out = TensorDict(cast("dict[str, Any]", losses), batch_size=rows.batch_size)
            if self.scalar_output_mode == "non_tensor":
                for name, value in diagnostics.items():
                    out.set_non_tensor(name, value)
        else:
            out = TensorDict({**losses, **diagnostics})
        return out
