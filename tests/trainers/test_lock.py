"""Locks that processes respect, and that end with their holder however that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

from torchrl_smore.trainers import LockedError, locked

HOLD = """
import os, sys, time
from torchrl_smore._lock import locked
with locked(sys.argv[1], "the place"):
    print("held", flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
"""


@pytest.fixture
def hold(python, tmp_path_factory):
    """Returns a function that makes another process hold a lock; all of them end with the test."""
    with contextlib.ExitStack() as stack:

        def start(path):
            end = tmp_path_factory.mktemp("hold") / "end"
            process = stack.enter_context(python.started("-c", HOLD, path, end))
            while process.stdout != "held\n":
                assert process.status() is None, process.wait().stderr
                time.sleep(0.01)
            return process, end.touch

        yield start


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path, hold):
    first, let_go = hold(tmp_path / "a" / ".lock")
    said = rf"the folder is in use by process {first.pid} on "
    with pytest.raises(LockedError, match=said), locked(tmp_path / "a" / ".lock", "the folder"):
        pass
    let_go()
    assert first.wait(60).status == 0
    with locked(tmp_path / "a" / ".lock", "the folder"):
        pass
    assert os.listdir(tmp_path / "a") == []


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path, hold):
    first, _ = hold(tmp_path / ".lock")
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait(60).status == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path / ".lock", "the folder"):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").exists()


def test_who_waits_is_told_for_whom_and_gets_the_lock_then(tmp_path, hold):
    first, let_go = hold(tmp_path / ".lock")
    said = []

    def note(line):
        said.append(line)
        let_go()

    with locked(tmp_path / ".lock", "the folder", wait=True, on_wait=note):
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
