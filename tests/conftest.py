"""Fixtures that every test shares."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

# the tests run in as many processes as there are cores: more threads would only get into each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# before anything imports tensordict, which imports triton: without a GPU its kernels run under the interpreter
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code under test may use the global state
    torch.manual_seed(0)
