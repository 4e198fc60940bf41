"""A few of the kills of ``kills.py``, which does any number of them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kills.py")


@pytest.fixture(scope="module")
def kills():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_three_kills_of_each_kind_of_run_lose_nothing():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "9"], capture_output=True, text=True, timeout=900, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines()[2:-2]]
    assert {tuple(cell.strip() for cell in row[:2]) for row in rows} == {
        (kind, name) for kind in ("collection", "training", "grid") for name in ("SIGKILL", "SIGTERM", "SIGHUP")
    }
    assert done.stdout.endswith("9 kills, nothing lost.\n")


def test_what_is_half_written_is_found(kills, tmp_path):
    from torchrl_smore.trainers import save_checkpoint

    path = save_checkpoint(tmp_path / "run" / "checkpoint", 3, {"step": 3}, {})
    kills.check_whole(tmp_path)
    (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-1])
    with pytest.raises(kills.LostError, match="half written"):
        kills.check_whole(tmp_path)
