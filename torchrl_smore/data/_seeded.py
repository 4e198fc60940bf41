"""What the samplers of batches share: numbers from a generator of their own, and its state."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor

_Own = TypeVar("_Own", bound="SeededBatches")


class SeededBatches(ABC):
    """Draws ``num_uniforms`` numbers for each of ``batch_size`` rows and gathers the batch that belongs to them.

    It can be pickled and sent to other processes, unless it reads a file of its own process; there it goes on from the
    state that its generator has here: each gets numbers of its own by :meth:`with_seed`.
    """

    batch_size: int
    generator: torch.Generator
    num_uniforms: int

    @abstractmethod
    def gather(self, uniform: Tensor) -> TensorDict:
        """The batch that belongs to ``uniform``; deterministic."""

    def draw(self) -> Tensor:
        """Uniform numbers for one batch, ``[B, num_uniforms]``, float64, from this object's generator."""
        size, device = (self.batch_size, self.num_uniforms), self.generator.device
        return torch.rand(size, dtype=torch.float64, device=device, generator=self.generator)

    def __call__(self) -> TensorDict:
        """Draws and gathers one batch."""
        return self.gather(self.draw())

    def with_seed(self: _Own, seed: int) -> _Own:
        """The same data, not copied, under a generator of its own; equal to a sampler made with that seed."""
        other = copy.copy(self)
        other.generator = torch.Generator(self.generator.device).manual_seed(seed)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # a generator cannot be sent to another process
        kept = {key: value for key, value in self.__dict__.items() if key != "generator"}
        return {**kept, "_sent": (self.generator.device, self.generator.get_state())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, drawn = state.pop("_sent")
        self.__dict__.update(state)
        self.generator = torch.Generator(device)
        self.generator.set_state(drawn)

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of the generator."""
        # a state of any device is one on the CPU, wherever a checkpoint was loaded to
        self.generator.set_state(state["generator"].cpu())
