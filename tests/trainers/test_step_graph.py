"""On which device a step is captured and replayed, with stand-ins for CUDA: nothing here needs a GPU."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from torchrl_smore.trainers.step_graph import StepGraph


@pytest.fixture
def cuda(monkeypatch):
    """``torch.cuda`` with a current device, which notes where everything happens."""
    seen = SimpleNamespace(current=0, events=[], registered=[])

    def note(event):
        seen.events.append((event, seen.current))

    class Stream:
        def __init__(self, device=None):
            self.device = seen.current if device is None else device.index

        def wait_stream(self, other):
            assert other.device == self.device

    class Graph:
        def replay(self):
            note("replay")

        def register_generator_state(self, generator):
            seen.registered.append(generator)

    @contextlib.contextmanager
    def on_device(device):
        seen.current, before = device.index, seen.current
        yield
        seen.current = before

    @contextlib.contextmanager
    def capturing(graph, stream=None):
        # torch keeps one stream for all captures, of the first device
        note(("capture", 0 if stream is None else stream.device))
        yield

    for name, stand_in in {
        **{"device": on_device, "Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "graph": capturing},
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    seen.note = note
    return seen


def test_a_step_is_warmed_up_captured_and_replayed_on_its_own_device(cuda):
    step = StepGraph(lambda: cuda.note("step") or "out", ["generator"], torch.device("cuda", 1), warmup=2)
    assert [step() for _ in range(4)] == ["out"] * 4
    assert cuda.events == [
        *[("step", 1)] * 2,
        *[(("capture", 1), 1), ("step", 1), ("replay", 1)],
        ("replay", 1),
    ]
    assert cuda.registered == ["generator"]
    assert cuda.current == 0


def test_after_a_reset_it_captures_anew(cuda):
    step = StepGraph(lambda: cuda.note("step"), [], torch.device("cuda", 0), warmup=1)
    for _ in range(2):
        step()
    step.reset()
    step()
    assert [event for event, _ in cuda.events].count(("capture", 0)) == 2
