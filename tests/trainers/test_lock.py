"""Locks that processes respect, and that end with their holder however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from torchrl_smore.trainers import LockedError, locked

HOLD = """
import sys, time
from torchrl_smore._lock import locked
with locked(sys.argv[1], "the place"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold():
    """Returns a function that makes another process hold a lock; all of them end with the test."""
    processes = []

    def start(path):
        command = [sys.executable, "-c", HOLD, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path, hold):
    first = hold(tmp_path / "a" / ".lock")
    said = rf"the folder is in use by process {first.pid} on "
    with pytest.raises(LockedError, match=said), locked(tmp_path / "a" / ".lock", "the folder"):
        pass
    first.communicate("\n")
    with locked(tmp_path / "a" / ".lock", "the folder"):
        pass
    assert os.listdir(tmp_path / "a") == []


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path, hold):
    first = hold(tmp_path / ".lock")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path / ".lock", "the folder"):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").exists()


def test_who_waits_is_told_for_whom_and_gets_the_lock_then(tmp_path, hold):
    first = hold(tmp_path / ".lock")
    said = []

    def let_go(line):
        said.append(line)
        first.stdin.write("\n")
        first.stdin.flush()

    with locked(tmp_path / ".lock", "the folder", wait=True, on_wait=let_go):
        assert (tmp_path / ".lock").exists()
    assert len(said) == 1
    assert f"process {first.pid} on " in said[0]


def test_the_same_thread_takes_it_again_and_another_one_does_not(tmp_path):
    path, refused = tmp_path / ".lock", []

    def other():
        try:
            with locked(path, "the folder"):
                pass
        except LockedError as error:
            refused.append(str(error))

    with locked(path, "the folder"):
        with locked(path, "the folder"):
            pass
        assert path.exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert str(os.getpid()) in refused[0]
    assert not path.exists()
