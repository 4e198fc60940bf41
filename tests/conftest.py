"""Fixtures that every test shares."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

# before anything imports tensordict, which imports triton: without a GPU its kernels run under the interpreter
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code under test may use the global state
    torch.manual_seed(0)
