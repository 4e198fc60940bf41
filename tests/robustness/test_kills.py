"""A few of the kills of ``kills.py``, which does any number of them."""

from __future__ import annotations

import importlib.util
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


def test_a_kill_of_each_kind_of_run_by_each_signal_loses_nothing(python):
    done = python(SCRIPT, 4)
    assert done.status == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in done.stdout.splitlines()[2:-2]]
    assert rows == [["collection", "SIGKILL"], ["export", "SIGKILL"], ["grid", "SIGHUP"], ["training", "SIGTERM"]]
    assert done.stdout.endswith("4 kills, nothing lost.\n")


def test_what_is_half_written_is_found(kills, tmp_path):
    from torchrl_smore.trainers import save_checkpoint

    path = save_checkpoint(tmp_path / "run" / "checkpoint", 3, {"step": 3}, {})
    kills.check_whole(tmp_path)
    (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-1])
    with pytest.raises(kills.LostError, match="half written"):
        kills.check_whole(tmp_path)
