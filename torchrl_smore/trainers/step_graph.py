"""A step captured as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class StepGraph:
    """Runs a step as it is for a few calls, then captures it once as a CUDA graph and replays that.

    The step must work on fixed tensors in place, without host synchronisation. Every call is a real step: the first
    ones warm up compilation, cuBLAS workspaces and the allocator. Not measured: no GPU was at hand.

    Args:
        step: takes nothing; what it returns is overwritten by the next replay.
        generators: CUDA generators that the step draws from, besides the default one.
        device: where the step works, whichever device is the current one.
        warmup: calls before the capture, at least 1.
    """

    def __init__(
        self, step: Callable[[], Any], generators: Sequence[torch.Generator], device: torch.device, warmup: int = 3
    ) -> None:
        self.step = step
        self.generators = generators
        self.device = device
        self.warmup = warmup
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._out: Any = None

    def __call__(self) -> Any:
        """One step."""
        with torch.cuda.device(self.device):
            if self._graph is None and self._calls < self.warmup:
                self._calls += 1
                return self._on_side_stream()
            if self._graph is None:
                self._graph = self._captured()
            self._graph.replay()
        return self._out

    def reset(self) -> None:
        """Forgets the graph; the next call captures anew. For states that were replaced from outside."""
        self._graph = self._out = None

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # the stream that torch takes by default is for ever of the device that was the current one at its first graph;
        # capturing records the step without running it
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device)):
            self._out = self.step()
        return graph

    def _on_side_stream(self) -> Any:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            out = self.step()
        torch.cuda.current_stream().wait_stream(stream)
        return out
