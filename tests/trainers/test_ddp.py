"""Plain DistributedDataParallel trains a loss on two processes as one does on all rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ddp_run.py")


def load_script():
    spec = importlib.util.spec_from_file_location("ddp_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_gloo_processes_get_the_parameters_that_one_process_gets(python, tmp_path):
    places = [str(tmp_path / "store"), str(tmp_path / "out")]
    with python.started(SCRIPT, 0, *places) as first, python.started(SCRIPT, 1, *places) as second:
        for process in (first, second):
            done = process.wait(240)
            assert done.status == 0, done.stderr
    script = load_script()
    loss = script.make_loss()
    want = script.train(loss, loss, script.make_batches())
    for rank in range(2):
        found = torch.load(f"{places[1]}.{rank}")
        assert found.keys() == want.keys()
        for name, parameter in want.items():
            torch.testing.assert_close(found[name], parameter, rtol=1e-5, atol=1e-6)
