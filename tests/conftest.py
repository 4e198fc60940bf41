"""Fixtures that every test shares."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# the tests run in as many processes as there are cores: more threads would only get into each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# how long an example takes says how busy the machine is, and nothing of the code; `make gpu` does without Hypothesis
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("no clock")

# before anything imports tensordict, which imports triton: without a GPU its kernels run under the interpreter
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """Files with slow tests first: no process is left with a long test while the others have nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Garbage is not looked for while modules are imported, nor later among what they hold, half a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        # tracing a loss makes many that live a while: with Python's threshold an eighth of its time goes in collections
        gc.set_threshold(20_000, *gc.get_threshold()[1:])
        gc.enable()


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code under test may use the global state
    torch.manual_seed(0)


# Imports what the package and the recipes import, which takes seconds, once; then each run is a fork of this process.
_SERVER = """
import atexit, gc, importlib, json, os, resource, runpy, signal, sys, traceback

def write_signature(figure, out, *args, **options):
    with open(out, "wb") as file:
        file.write(bytes.fromhex("89504e470d0a1a0a"))

def run(argv):
    sys.argv = argv
    if argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        sys.path.insert(0, "")
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(argv[0]))
        runpy.run_path(argv[0], run_name="__main__")

def begin(job):
    pid = os.fork()
    if pid:
        return pid
    os.chdir(job["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(job["stdout"], os.O_WRONLY), 1)
    os.dup2(os.open(job["stderr"], os.O_WRONLY), 2)
    os.environ.update(job["env"])
    # a session without a terminal may have it ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if job["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], job["file_limit"]))
    if not job["draw"] and "matplotlib.figure" in sys.modules:
        sys.modules["matplotlib.figure"].Figure.savefig = write_signature
    status = 0
    try:
        run(job["argv"])
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    # what was left for the end of a process, but not the unloading of everything imported
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # an extra that is not installed
# a collection in a fork would copy every page that holds an object
gc.collect()
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    if "pid" in job:
        pid, status = os.waitpid(job["pid"], 0 if job["wait"] else os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
        answer = begin(job)
    print(json.dumps(answer), flush=True)
os._exit(0)
"""
_IMPORTED = (
    *("torchrl_smore.envs", "torchrl_smore.reports", "torchrl_smore.trainers", "torchrl_smore.objectives"),
    *("h5py", "matplotlib.figure", "pandas", "yaml", "omegaconf"),
    *("hydra", "hydra._internal.hydra", "hydra.core.override_parser.overrides_parser"),
)


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    status: int
    stdout: str
    stderr: str


class Python:
    """``python ARGUMENTS`` in forks of a process that has imported the package; its hash seed is 123."""

    def __init__(self) -> None:
        own = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "PYTHONHASHSEED": "123"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *_IMPORTED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **own},
        )

    def ask(self, question: dict[str, Any]) -> int | None:
        """One line to the server, and its answer."""
        self.server.stdin.write(json.dumps(question) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    @contextlib.contextmanager
    def started(
        self,
        *arguments: object,
        cwd: Path | str = ".",
        env: dict[str, str] | None = None,
        file_limit: int = 0,
        draw: bool = False,
    ) -> Iterator[Started]:
        """A run that goes on beside the test, and ends with the context at the latest.

        Args:
            arguments: a script and its arguments, or ``"-c"`` and a program.
            cwd: where it runs.
            env: environment variables beside those of the tests.
            file_limit: bytes that a file can have, as on a full disk; 0: no limit.
            draw: draw figures; else ``savefig`` writes the first bytes of a PNG, in a hundredth of the time.
        """
        with tempfile.TemporaryDirectory() as folder:
            files = {key: Path(folder) / key for key in ("stdout", "stderr")}
            for file in files.values():
                file.touch()
            job = {"argv": [str(each) for each in arguments], "cwd": str(Path(cwd).absolute()), "env": env or {}}
            paths = {key: str(file) for key, file in files.items()}
            run = Started(self, self.ask({**job, **paths, "file_limit": file_limit, "draw": draw}), files)
            try:
                yield run
            finally:
                if run.status() is None:
                    os.kill(run.pid, signal.SIGKILL)
                    run.wait()

    def __call__(self, *arguments: object, **how: Any) -> Run:
        """A run from its start to its end; see :meth:`started`."""
        with self.started(*arguments, **how) as run:
            return run.wait()

    def close(self) -> None:
        """Ends the server."""
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()


class Started:
    """A run that goes on."""

    def __init__(self, python: Python, pid: int, files: dict[str, Path]) -> None:
        self.pid = pid
        self._python, self._files, self._status = python, files, None

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._files["stdout"].read_text()

    def status(self, *, wait: bool = False) -> int | None:
        """Exit status, negative for a signal; ``None`` while it goes on."""
        if self._status is None:
            self._status = self._python.ask({"pid": self.pid, "wait": wait})
        return self._status

    def wait(self, seconds: float | None = None) -> Run:
        """What it leaves, once it has ended; within so many seconds, if that is given."""
        end = None if seconds is None else time.monotonic() + seconds
        while self.status(wait=end is None) is None:
            assert time.monotonic() < end, f"goes on after {seconds} s"
            time.sleep(0.01)
        return Run(self._status, **{key: file.read_text() for key, file in self._files.items()})


@pytest.fixture(scope="session")
def python() -> Iterator[Python]:
    """``python(*arguments, cwd, env, file_limit, draw) -> Run``: a process that need not import anything.

    For tests of what a process of its own does. Those of what an import does need a new interpreter.
    """
    server = Python()
    yield server
    server.close()
