"""The small losses of tests/objectives, and TorchRL's test base class where a clone of TorchRL is at hand."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest


def _load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_objectives = _load("smore_objectives_fixtures", Path(__file__).parents[1] / "objectives" / "conftest.py")
build, batch_for, total = _objectives.build, _objectives.batch_for, _objectives.total


@pytest.fixture(params=_objectives.CASES)
def case(request):
    """Name of a loss and of its options; a test that asks for it runs once for each."""
    return request.param


@pytest.fixture(scope="session")
def upstream_base():
    """TorchRL's ``LossModuleTestBase`` with its shared tests, which its repository has and its wheel has not."""
    clone = os.environ.get("TORCHRL_CLONE")
    if not clone:
        pytest.skip("TORCHRL_CLONE is not set to a clone of pytorch/rl")
    path = Path(clone) / "test" / "objectives" / "_objectives_common.py"
    if not path.is_file():
        pytest.fail(f"TORCHRL_CLONE={clone}: there is no {path.relative_to(clone)}", pytrace=False)
    return _load("_objectives_common", path).LossModuleTestBase()
