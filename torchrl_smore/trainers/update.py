"""One update of an offline loss: sample, loss, backward, optimiser, schedule, target."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.objectives import HardUpdate, LossModule, TargetNetUpdater

from torchrl_smore._errors import unknown_name
from torchrl_smore.trainers.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    check_fits,
    check_storable,
    fitting_generators,
)

#: How :func:`torch.compile` is used: not at all, with its default mode, or with its slowest search.
Compile = Literal["off", "default", "max"]
#: Names of :func:`torch.compile` for ours.
MODES: dict[str, str] = {"default": "default", "max": "max-autotune-no-cudagraphs"}
#: Where the state of a replay buffer has that of its generator.
_GENERATOR = "generator"
#: What optimisers of torch keep in the shape of each parameter.
_OF_ADAM = ("exp_avg", "exp_avg_sq")
_LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")


@runtime_checkable
class TwoPartSampler(Protocol):
    """A sampler split into random numbers and a pure function of them; :class:`torchrl_smore.data.GoalBatchSampler`."""

    def draw(self) -> Tensor:
        """Random numbers of one batch."""

    def gather(self, uniform: Tensor) -> TensorDictBase:
        """The batch that belongs to them."""


class UpdateStep(Protocol):
    """What :class:`~torchrl_smore.trainers.OfflineTrainer` runs: an :class:`Update` or a ``FusedUpdate``.

    ``losses`` has one loss for each of ``seeds``, which name them; a step returns losses and diagnostics, detached, of
    batch size ``[]`` or, by seed, ``[K]``.
    """

    losses: tuple[LossModule, ...]
    seeds: tuple[int, ...]

    def __call__(self) -> TensorDict:
        """Runs one update."""

    def state_dict(self) -> dict[str, Any]:
        """All that an update changes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""


class Update:
    """Owns everything that one update touches, and runs it.

    The order of an update: batch, losses at the same parameters (the sum of all ``loss_*`` entries), one backward,
    optimiser step, schedule step, target update. With ``compile`` the losses are compiled; if the sampler comes in two
    parts its gathers are compiled with them.

    Args:
        loss: any TorchRL loss whose output has ``loss_*`` entries.
        sampler: returns a batch; for example ``replay_buffer.sample`` or a :class:`TwoPartSampler`. Its ``state_dict``
            is part of the state; of a TorchRL replay buffer that of its sampler and of its generator, if it was given
            one. (A buffer draws the same batches again if that is all: it must not prefetch, and must hold the same
            data.)
        optimizer: over ``loss.parameters()``.
        scheduler: stepped after every update, or ``None``.
        target_updater: stepped after every update, or ``None``.
        compile: ``"off"``, ``"default"`` or ``"max"`` (Inductor's autotuning).

    Raises:
        ValueError: for another ``compile``.
        TypeError: for an ``optimizer`` that is none, such as the pair that :func:`adam` returns, or a ``sampler`` that
            is not callable.

    A call raises ``ValueError`` for a loss that writes no ``loss_*`` entry, or others than scalars.
    """

    def __init__(
        self,
        loss: LossModule,
        sampler: Callable[[], TensorDictBase],
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        target_updater: TargetNetUpdater | None = None,
        compile: Compile = "off",
    ) -> None:
        if compile not in get_args(Compile):
            raise unknown_name("compile mode", compile, get_args(Compile))
        if not isinstance(optimizer, torch.optim.Optimizer):
            hint = ": adam() returns an optimiser and its scheduler" if isinstance(optimizer, tuple) else ""
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}{hint}.")
        if not callable(sampler):
            hint = ": its method sample is one" if isinstance(sampler, ReplayBuffer) else ""
            raise TypeError(f"sampler must be callable and return a batch, got a {type(sampler).__name__}{hint}.")
        ensure_value_estimator(loss)
        self.loss = loss
        self.losses: tuple[LossModule, ...] = (loss,)
        self.seeds: tuple[int, ...] = (0,)
        self.sampler = sampler
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.target_updater = target_updater
        self._two_part = isinstance(sampler, TwoPartSampler)
        self._losses = self._sampled_losses if self._two_part else loss
        if compile != "off":
            self._losses = torch.compile(self._losses, mode=MODES[compile])

    def _sampled_losses(self, uniform: Tensor) -> TensorDictBase:
        return self.loss(self.sampler.gather(uniform))  # type: ignore[attr-defined]

    def __call__(self) -> TensorDict:
        """Runs one update; returns losses and diagnostics, detached."""
        source = self.sampler.draw() if self._two_part else self.sampler()  # type: ignore[attr-defined]
        out = self._losses(source)
        total = total_loss(out)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.target_updater is not None:
            self.target_updater.step()
        return out.detach()

    def state_dict(self) -> dict[str, Any]:
        """State of loss, optimiser, schedule, sampler and, where it counts updates, target updater."""
        state = {"loss": self.loss.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.scheduler is not None:
            state["scheduler"] = self.scheduler.state_dict()
        if (stateful := _stateful(self.sampler)) is not None:
            own = stateful.state_dict()
            if own or stateful is self.sampler:
                state["sampler"] = own
        if isinstance(self.target_updater, HardUpdate):
            state["target_updater"] = self.target_updater.counter
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, on whatever device that was.

        Rates and decays are then those of the checkpoint, as always where an optimiser of torch is restored.

        Raises:
            CheckpointError: if it does not fit; nothing is overwritten then.
        """
        own = self.state_dict()
        if "sampler" in own and "sampler" not in state and isinstance(_stateful(self.sampler), _BufferState):
            warnings.warn(
                "the checkpoint was saved without the state of its replay buffer's sampler, by an earlier version: the "
                "run continues, not bit for bit.",
                CheckpointWarning,
                stacklevel=2,
            )
            state = {**state, "sampler": own["sampler"]}
        check_fits({key: key for key in state}, {key: key for key in own}, "update")
        check_fits(state["loss"], own["loss"], "loss")
        self._check_optimizer(state["optimizer"])
        before = copy.deepcopy(own)
        try:
            self._load(state, own)
        except Exception as error:  # parts of TorchRL and of the user say each in their own way what they cannot take
            self._load(before, own)
            raise CheckpointError(
                f"the checkpoint does not fit this run: update: {type(error).__name__}: {error}"
            ) from error

    def _check_optimizer(self, saved: dict[str, Any]) -> None:
        """Checks groups and moments, which no optimiser does when it loads them."""
        groups = [group["params"] for group in self.optimizer.param_groups]
        found = [len(group["params"]) for group in saved["param_groups"]]
        if found != (expected := [len(group) for group in groups]):
            raise CheckpointError(
                f"the checkpoint does not fit this run: update.optimizer has groups of {found} parameters, expected "
                f"{expected}."
            )
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, (parameter for group in groups for parameter in group)):
            known = saved["state"].get(number, {})
            moments = {name: v for name, v in known.items() if name in _LIKE_PARAMETERS}
            # an optimiser of another kind has kept others; a parameter without gradients has none
            of_adam = _OF_ADAM if known and isinstance(self.optimizer, torch.optim.Adam) else ()
            check_fits(moments, dict.fromkeys([*moments, *of_adam], parameter), f"update.optimizer.{number}")

    def _load(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        stateful = _stateful(self.sampler)
        if "sampler" in state and hasattr(stateful, "load_state_dict"):
            stateful.load_state_dict(fitting_generators(state["sampler"], own["sampler"], seed=0))
        if isinstance(self.target_updater, HardUpdate):
            self.target_updater.counter = state["target_updater"]


class _BufferState:
    """What a TorchRL replay buffer changes when it is sampled from: its sampler, and its own generator if it has one.

    Its data are not part of it.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer

    def state_dict(self) -> dict[str, Any]:
        state = {
            # a rest of a permutation is a view of it, of which all would be saved
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in self.buffer.sampler.state_dict().items()
        }
        try:
            check_storable(state)
        except TypeError:
            warnings.warn(
                f"a checkpoint cannot hold the state of a {type(self.buffer.sampler).__name__}: a run that is resumed "
                "draws other batches.",
                CheckpointWarning,
                stacklevel=2,
            )
            state = {}
        generator = self.buffer._rng
        return state if generator is None else {**state, _GENERATOR: generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        generator = rest.pop(_GENERATOR, None)
        if generator is not None:
            self.buffer._rng.set_state(generator)
        if rest:
            self.buffer.sampler.load_state_dict(rest)


def _stateful(sampler: Any) -> Any:
    """What of a sampler has a state: itself, the replay buffer whose method it is, or ``None``."""
    buffer = getattr(sampler, "__self__", None)
    if isinstance(buffer, ReplayBuffer):
        return _BufferState(buffer)
    return sampler if hasattr(sampler, "state_dict") else None


def ensure_value_estimator(loss: LossModule) -> None:
    """Makes the value estimator that a loss of TorchRL would make in its first call: it is part of the state."""
    if getattr(loss, "default_value_estimator", None) is not None and getattr(loss, "_value_estimator", None) is None:
        loss.make_value_estimator()


def total_loss(out: Mapping[str, Tensor] | TensorDictBase) -> Tensor:
    """Sum of all ``loss_*`` entries of what a loss returned.

    Raises:
        ValueError: if there is none, or one that is no scalar.
    """
    losses: dict[str, Tensor] = {key: value for key, value in out.items() if key.startswith("loss_")}
    if not losses:
        raise ValueError(f"expected a loss with loss_* entries, got one that writes {sorted(out.keys())}.")
    shapes = {key: list(value.shape) for key, value in losses.items() if value.ndim}
    if shapes:
        raise ValueError(f"expected losses that are scalars, got shapes {shapes}: take reduction='mean' or 'sum'.")
    total: Any = sum(losses.values())
    return total  # type: ignore[no-any-return]


def network_name(parameter: str) -> str:
    """The network that a loss's parameter belongs to, by which rates are grouped: its name up to ``_params``."""
    return parameter.split("_params")[0]


def weight_decays(networks: Iterable[str], of_actor: float) -> list[float]:
    """Decoupled weight decay of each network.

    Args:
        networks: their names.
        of_actor: that of the actor, at least 0; the others have none.

    Raises:
        ValueError: see :func:`adam`.
    """
    if not 0.0 <= of_actor < math.inf:
        raise ValueError(f"actor_weight_decay must be at least 0 and finite, got {of_actor}.")
    decays = [of_actor if name.startswith("actor_network") else 0.0 for name in networks]
    if of_actor and not any(decays):
        raise ValueError(f"actor_weight_decay={of_actor}: the loss has no actor.")
    return decays


def check_rates(lr: float, total_steps: int | None) -> None:
    """Refuses a learning rate or a length of its decay that no training can have.

    Args:
        lr: at least 0 and finite.
        total_steps: positive; ``None``: no decay.

    Raises:
        ValueError: for others.
    """
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"lr must be at least 0 and finite, got {lr}.")
    if total_steps is not None and total_steps < 1:
        raise ValueError(f"total_steps must be positive, or None for a constant rate, got {total_steps}.")


def adam(
    loss: LossModule,
    *,
    lr: float = 3e-4,
    total_steps: int | None = None,
    cosine: tuple[str, ...] = ("actor_network",),
    actor_weight_decay: float = 0.0,
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
    """Adam as in the paper: one learning rate, decayed by half a cosine to 0 for the actor alone.

    Table 4 says "cosine" without naming a network; the official code decays the actor's rate only.

    Args:
        loss: its parameters are grouped by network, one group each, named ``"name"`` in the group.
        lr: learning rate, at least 0.
        total_steps: length of the decay, positive; ``None`` keeps every rate constant.
        cosine: prefixes of the parameters that are decayed.
        actor_weight_decay: decoupled weight decay of all parameters of the actor, as in AdamW (Loshchilov & Hutter,
            2019): an update takes ``rate * actor_weight_decay`` of themselves from them. At least 0.

    Returns:
        Optimiser (fused) and scheduler.

    Raises:
        ValueError: for a rate or a decay that is negative or not finite, a decay of a loss that has no actor, or a
            length that is not positive.
    """
    check_rates(lr, total_steps)
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in loss.named_parameters():
        groups.setdefault(network_name(name), []).append(parameter)
    # a tensor rate would be needed to schedule inside a compiled step; this optimiser runs outside of it
    optimizer = torch.optim.Adam(
        [{"params": params, "name": name} for name, params in groups.items()], lr=lr, fused=True
    )
    for group, weight_decay in zip(optimizer.param_groups, weight_decays(groups, actor_weight_decay)):
        group.update(weight_decay=weight_decay, decoupled_weight_decay=weight_decay > 0.0)

    def decayed(step: int) -> float:
        return 1.0 if total_steps is None else 0.5 * (1.0 + math.cos(math.pi * min(step / total_steps, 1.0)))

    factors = [decayed if name.startswith(cosine) else (lambda step: 1.0) for name in groups]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
