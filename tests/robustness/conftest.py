"""The mutation suite as a module."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def suite() -> ModuleType:
    """``run_mutations.py``, which is a script."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module("run_mutations")
    finally:
        sys.path.pop(0)
