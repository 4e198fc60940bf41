"""One update of K seeds as a function of tensors: sampling, losses, gradients, Adam, schedule and target."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_smore._dispatch import Kernels, adam_polyak_, resolve_kernels
from torchrl_smore._errors import unknown_name
from torchrl_smore.functional.optim import check_tau
from torchrl_smore.trainers.checkpoint import CheckpointError, check_fits, fitting_generators
from torchrl_smore.trainers.compiled import KeptMethod, compiled
from torchrl_smore.trainers.modes import networks_of
from torchrl_smore.trainers.stacked import Flat, StackedLosses
from torchrl_smore.trainers.step_graph import StepGraph
from torchrl_smore.trainers.update import (
    MODES,
    Compile,
    TwoPartSampler,
    check_rates,
    ensure_value_estimator,
    total_loss,
    weight_decays,
)

MapSeeds = Literal["auto", "loop", "vmap"]
_logger = logging.getLogger("torchrl_smore")
#: Attributes of a fused update that its compiled part does not read.
_NOT_TRACED = ("seeds", "_run", "_graph")


@runtime_checkable
class SeededSampler(TwoPartSampler, Protocol):
    """A two-part sampler that can be had again under another seed; :class:`torchrl_smore.data.GoalBatchSampler`."""

    generator: torch.Generator

    def with_seed(self, seed: int) -> SeededSampler:
        """The same data under a generator of its own."""

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of the generator."""


class FusedUpdate:
    """Trains K losses of equal structure together, one step for all of them at a time.

    Does what :class:`Update` does with :func:`adam` and :class:`~torchrl.objectives.SoftUpdate`, in the same order, on
    stacked flat buffers; see :class:`~torchrl_smore.trainers.stacked.StackedLosses` for what becomes of the modules.
    The random numbers of the batch are drawn first; everything after them is a function of tensors that ``compile``
    turns into one graph. Nothing waits for the device. The result of a step are losses and diagnostics, detached, batch
    size ``[K]``; with a CUDA graph the next step overwrites them.

    A compiled step is that of the losses as they were at the first one. Later changes of a tensor (a parameter, a
    coefficient, a statistic) count as well; those of anything else, such as ``loss.reduction``, do not, nor does it
    count what is trained (``requires_grad``), which is settled here.

    A loss that draws random numbers of its own takes them from the global generator, in turn for each seed: such a
    seed's course depends on the seeds beside it. All others train as they would alone.

    Args:
        losses: one loss, or one for each seed.
        sampler: draws and gathers batches.
        seeds: names of the seeds, and seeds of their samplers. ``None``, for one loss: seed 0 by name, and ``sampler``
            as it is.
        lr: learning rate of Adam, whose other constants are those of
            :func:`~torchrl_smore.functional.optim.adam_polyak_`.
        total_steps: length of the cosine decay in updates; ``None`` keeps every rate constant.
        cosine: prefixes of the networks whose rate is decayed.
        actor_weight_decay: decoupled weight decay of the actor, see :func:`adam`; also of those of its parameters that
            no loss reads, which that optimiser passes over.
        tau: Polyak rate of the target networks, in ``(0, 1]``; ``None`` leaves them alone.
        kernels: of Adam, schedule and target: ``"reference"``, ``"triton"`` (or an error where it cannot run) or
            ``"auto"``; see ``kernels/README.md``. Losses have an option of their own.
        compile: ``"off"``, ``"default"`` or ``"max"`` (Inductor's autotuning).
        map_seeds: ``"loop"`` runs one seed after the other through the same (compiled) function, ``"vmap"`` all as one
            batch; ``"auto"`` loops on a CPU, where batched matrix products are slow, and for a loss that writes
            buffers, and logs its choice.
        cuda_graph: capture the step as a CUDA graph, see :class:`~torchrl_smore.trainers.step_graph.StepGraph`;
            ``"auto"``: on CUDA devices.
        compile_cache: a folder in which the compiled function is kept and found again by a later process whose losses,
            sampler, code, libraries and processor are the same; numbers do not depend on it. What lies there is run:
            the folder must be the user's own and writable by nobody else, and is made so if it is missing. ``None``:
            compiled code is not kept.

    Raises:
        PermissionError: if ``compile_cache`` belongs to, or can be written by, somebody else.
        ValueError: for an unknown name, what writes its buffers while it computes (batch or spectral norm in a network,
            ``writes_buffers`` of a loss) under ``compile`` or ``"vmap"``, a number of seeds other than that of losses,
            a rate, length or decay that :func:`adam` refuses, ``tau`` outside ``(0, 1]``, or losses that
            :class:`~torchrl_smore.trainers.stacked.StackedLosses` refuses.
        TypeError: for a sampler that does not come in two parts or cannot be had under other seeds.
        RuntimeError: if a CUDA graph or a kernel is asked for where it cannot run, or ``tau`` for a loss without target
            networks.
    """

    def __init__(
        self,
        losses: LossModule | Sequence[LossModule],
        sampler: SeededSampler,
        *,
        seeds: Sequence[int] | None = None,
        lr: float = 3e-4,
        total_steps: int | None = None,
        cosine: tuple[str, ...] = ("actor_network",),
        actor_weight_decay: float = 0.0,
        tau: float | None = None,
        kernels: Kernels = "auto",
        compile: Compile = "off",
        map_seeds: MapSeeds = "auto",
        cuda_graph: Literal["auto"] | bool = "auto",
        compile_cache: str | Path | None = None,
    ) -> None:
        for name, value, valid in (("compile mode", compile, Compile), ("map_seeds", map_seeds, MapSeeds)):
            if value not in get_args(valid):
                raise unknown_name(name, value, get_args(valid))
        if compile_cache is not None and compile == "off":
            raise ValueError(
                f"compile_cache={compile_cache}: of no use with compile='off', which makes no compiled code."
            )
        if not isinstance(sampler, SeededSampler):
            raise TypeError(
                "FusedUpdate needs a sampler with draw, gather and with_seed such as GoalBatchSampler, got "
                f"{type(sampler).__name__}; Update takes any."
            )
        self.losses = (losses,) if isinstance(losses, LossModule) else tuple(losses)
        for loss in self.losses:
            ensure_value_estimator(loss)
        self.seeds = (0,) if seeds is None else tuple(seeds)
        if len(self.seeds) != len(self.losses) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"expected a seed of its own for each of {len(self.losses)} losses, got {self.seeds}.")
        self.samplers = [sampler] if seeds is None else [sampler.with_seed(seed) for seed in seeds]
        check_rates(lr, total_steps)
        if tau is not None:
            check_tau(tau)
            for loss in self.losses:
                # equals target and source, and tells the loss that its targets are looked after
                SoftUpdate(loss, tau=tau)
        self._stack = StackedLosses(self.losses)
        self.params, self.targets = self._stack.params, self._stack.targets
        self._moments = tuple({g: torch.zeros_like(p) for g, p in self.params.items()} for _ in range(2))
        self.device = next(iter(self.params.values())).device
        self.step = torch.zeros((), dtype=torch.int64, device=self.device)
        self._adam: dict[str, Any] = {"lr": lr, "kernels": resolve_kernels(kernels, self.device)}
        self._decay_steps = {g: total_steps if g.startswith(cosine) else None for g in self.params}
        self._weight_decay = dict(zip(self.params, weight_decays(self.params, actor_weight_decay)))
        self._tau = tau
        self._vmap = self._choose_vmap(map_seeds)
        # torch.func costs a few milliseconds a step in Python where nothing is compiled or mapped
        self._functional = self._vmap or compile != "off"
        if self._functional:
            _check_functional(self.losses[0])
        self._run: Callable[..., dict[str, Tensor]] = self._update
        if compile != "off":
            method: Any = self._update
            self._run = (
                compiled(method, MODES[compile])
                if compile_cache is None
                else KeptMethod(method, MODES[compile], compile_cache, self._traced)
            )
        generators = [each.generator for each in self.samplers]
        self._graph = StepGraph(self._one_step, generators, self.device) if self._use_graph(cuda_graph) else None

    @property
    def loss(self) -> LossModule:
        """The loss of the first seed."""
        return self.losses[0]

    def _traced(self) -> dict[str, Any]:
        """What the compiled function may read of this object."""
        return {name: value for name, value in vars(self).items() if name not in _NOT_TRACED}

    def _choose_vmap(self, map_seeds: MapSeeds) -> bool:
        if map_seeds != "auto":
            return map_seeds == "vmap"
        chosen = self.device.type != "cpu" and len(self.losses) > 1 and not _writes_buffers(self.losses[0])
        if len(self.losses) > 1:
            how = "as one batch (vmap)" if chosen else "one after the other (loop)"
            _logger.info("map_seeds='auto' trains %d seeds %s on %s.", len(self.losses), how, self.device)
        return chosen

    def _use_graph(self, cuda_graph: Literal["auto"] | bool) -> bool:
        if cuda_graph is True and self.device.type != "cuda":
            raise RuntimeError(
                f"cuda_graph=True cannot run on {self.device}: a CUDA graph records work of a CUDA device. Move losses "
                "and sampler there, or use cuda_graph='auto'."
            )
        return bool(cuda_graph) and self.device.type == "cuda"

    def __call__(self) -> TensorDict:
        """Runs one update of every seed; returns losses and diagnostics, detached, batch size ``[K]``."""
        self._stack.take_replaced()
        out: TensorDict = self._one_step() if self._graph is None else self._graph()
        return out

    def _one_step(self) -> TensorDict:
        draws = [sampler.draw() for sampler in self.samplers]  # type: ignore[attr-defined]
        buffers = (self.params, self.targets, *self._moments)
        if self._vmap:
            out = self._run(*buffers, self._stack.stacked_constants(), self.step, torch.stack(draws))
        else:
            outs = []
            for k, draw in enumerate(draws):
                rows = [{group: flat[k] for group, flat in flats.items()} for flats in buffers]
                outs.append(self._run(*rows, self._stack.constants(k), self.step, draw))
            out = {name: torch.stack([each[name] for each in outs]) for name in outs[0]}
        self.step.add_(1)
        return TensorDict(out, batch_size=[len(self.losses)])

    def _update(
        self,
        params: Flat,
        targets: Flat,
        exp_avg: Flat,
        exp_avg_sq: Flat,
        constants: dict[str, Tensor],
        step: Tensor,
        uniform: Tensor,
    ) -> dict[str, Tensor]:
        """Writes parameters, targets and moments of one seed ``[N]``, or of all of them ``[K, N]``."""
        gradients = torch.vmap(self._gradients, randomness="different") if self._vmap else self._gradients
        grads, out = gradients(params, targets, constants, uniform)
        for group, grad in grads.items():
            adam_polyak_(
                params[group],
                grad,
                exp_avg[group],
                exp_avg_sq[group],
                step,
                **self._adam,
                weight_decay=self._weight_decay[group],
                decay_steps=self._decay_steps[group],
                target=None if self._tau is None else targets.get(group),
                tau=1.0 if self._tau is None else self._tau,
            )
        return out

    def _gradients(
        self, params: Flat, targets: Flat, constants: dict[str, Tensor], uniform: Tensor
    ) -> tuple[Flat, dict[str, Tensor]]:
        """Gradients of the sum of all ``loss_*`` entries, ``[N]`` by network, and all entries, detached; one seed."""
        batch = self.samplers[0].gather(uniform)

        def total(params: Flat) -> tuple[Tensor, dict[str, Tensor]]:
            out = self._stack(params, targets, constants, batch)
            return total_loss(out), {name: value.detach() for name, value in out.items()}

        if self._functional:
            grads, (_, out) = torch.func.grad_and_value(total, has_aux=True)(params)
            return grads, out
        leaves = {group: flat.detach().requires_grad_() for group, flat in params.items()}
        value, out = total(leaves)
        return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True))), out

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a FusedUpdate is neither copied nor pickled: its buffers are the memory of its losses' parameters. Make "
            "another of other losses, and load state_dict() into it."
        )

    def state_dict(self) -> dict[str, Any]:
        """State of every loss, moments, updates done, and generators of the samplers."""
        return {
            "seeds": list(self.seeds),
            "losses": [loss.state_dict() for loss in self.losses],
            "exp_avg": dict(self._moments[0]),
            "exp_avg_sq": dict(self._moments[1]),
            "step": self.step,
            "samplers": [sampler.state_dict() for sampler in self.samplers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, on whatever device that was.

        Raises:
            ValueError: if it is that of other seeds, not of a :class:`FusedUpdate`, or does not fit (a
                :class:`CheckpointError`); nothing is overwritten then.
        """
        if list(state.get("seeds", ())) != list(self.seeds):
            raise ValueError(f"expected the state of seeds {list(self.seeds)}, got that of {state.get('seeds')}.")
        own_state = self.state_dict()
        check_fits({**state, "samplers": []}, {**own_state, "samplers": []}, "update")
        before = copy.deepcopy(own_state)
        if self._graph is not None:
            self._graph.reset()
        try:
            self._load(state)
        except Exception as error:  # generators and samplers say each in their own way what they cannot take
            self._load(before)
            raise CheckpointError(
                f"the checkpoint does not fit this run: update: {type(error).__name__}: {error}"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        for loss, own in zip(self.losses, state["losses"]):
            loss.load_state_dict(own)
        for buffers, name in zip(self._moments, ("exp_avg", "exp_avg_sq")):
            for group, buffer in buffers.items():
                buffer.copy_(state[name][group])
        self.step.copy_(state["step"])
        for seed, sampler, own in zip(self.seeds, self.samplers, state["samplers"], strict=True):
            sampler.load_state_dict(fitting_generators(own, sampler.state_dict(), seed))


def _writes_buffers(loss: LossModule) -> bool:
    return bool(getattr(loss, "writes_buffers", False))


def _check_functional(loss: LossModule) -> None:
    """Refuses what writes to its own tensors when it is called, which a function of tensors cannot."""
    instead = "Update can train it, and so can FusedUpdate with compile='off' and map_seeds='loop'."
    if _writes_buffers(loss):
        raise ValueError(f"{type(loss).__name__} writes buffers of its own in every call: {instead}")
    for network in networks_of(loss):
        for name, module in network.named_modules():
            counts = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
            if counts or isinstance(module, _SpectralNorm):
                raise ValueError(f"{name} is a {type(module).__name__}, which writes buffers in every call: {instead}")
