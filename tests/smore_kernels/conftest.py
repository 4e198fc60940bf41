"""Where kernels run in tests: on a CUDA device, else under Triton's interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch


@pytest.fixture
def kernel_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    import smore_kernels

    if not smore_kernels.interpreted():
        pytest.fail("TRITON_INTERPRET=1 must be set before triton is imported, which tests/conftest.py does")
    return "cpu"


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """New memory holds NaN, so an element that a kernel forgets to write shows."""

    def poisoned(make):
        def call(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return call

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
