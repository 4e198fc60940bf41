"""Fixtures that every test shares."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code under test may use the global state
    torch.manual_seed(0)
