"""A worker process that runs functions for its parent, and the parent's handle on it.

Plain pipes instead of :mod:`multiprocessing`: nothing of the parent's main module is imported again, no ``__main__``
guard is needed, and a worker whose parent is gone reads the end of its input and leaves.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

#: Seconds in which a worker must take a request, and in which it must answer it.
TIMEOUT_S = 600.0
#: Key of a worker's state: a function that tells whether its parent has ended without closing it.
PARENT_IS_GONE = "parent is gone"
#: Whether this system can wait for a worker; Windows cannot.
HAS_WORKERS = hasattr(select, "poll")
_CPU_INFO = Path("/proc/cpuinfo")
_LENGTH = struct.Struct("<Q")  # before each answer: its number of bytes
_ERROR_LINES = 15  # of a dead worker's stderr, repeated in the exception
# The top-level package imports torch, which a worker does not need and which takes seconds: it is put in place empty,
# so that its subpackages are found, and runs only if somebody asks it for a name.
_BOOT = """
import importlib.util, sys
spec = importlib.util.find_spec("torchrl_smore")
package = importlib.util.module_from_spec(spec)

def load(name):
    if name.startswith("__"):
        raise AttributeError(name)
    del package.__getattr__
    spec.loader.exec_module(package)
    return getattr(package, name)

package.__getattr__ = load
sys.modules["torchrl_smore"] = package
from torchrl_smore._worker import serve
serve()
"""


@functools.cache
def _rounding() -> dict[str, str]:
    """Environment in which NumPy's wheels multiply matrices alike, to the last bit, on every x86-64 with AVX2.

    Their OpenBLAS takes a kernel made for the processor, and each adds in an order of its own: after many steps a
    simulator is elsewhere. The kernel for Haswell runs on all of them.
    """
    with contextlib.suppress(OSError):
        flags = _CPU_INFO.read_text().partition("\nflags")[2].partition("\n")[0].split()
        if {"avx2", "fma"} <= set(flags):
            return {"OPENBLAS_CORETYPE": "Haswell"}
    return {}


def can_be_sent(value: Any) -> bool:
    """Whether a worker finds by name whatever a value is made of: it does not run the script that is running."""
    try:
        named = _Named(io.BytesIO(pickle.dumps(value)))
        named.load()
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return "__main__" not in named.modules and all(map(_is_found, named.modules))


def _is_found(module: str) -> bool:
    """Whether a new process finds a module, as it does not find what was loaded from a file by its path."""
    path, parts = None, module.split(".")
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    for count in range(1, len(parts) + 1):
        found = (finder.find_spec(".".join(parts[:count]), path) for finder in finders)
        spec = next((each for each in found if each is not None), None)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return True


class _Named(pickle.Unpickler):
    """Remembers from which modules something is unpickled."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.modules: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.modules.add(module)
        return super().find_class(module, name)


class DeadWorkerError(RuntimeError):
    """A worker has ended, or was killed since it did not answer: what it was asked for nobody knows."""


class Worker:
    """Runs functions in a process of its own, one at a time, in the order sent.

    Args:
        name: how errors name this worker.
        timeout_s: seconds, positive, in which it must take a request, and in which it must answer it. One that does
            not, because it was stopped for example, is killed. ``math.inf``: however long it takes.

    Raises:
        ValueError: if ``timeout_s`` is not positive.
        NotImplementedError: on a system without ``select.poll``, which is Windows.
    """

    def __init__(self, name: str, timeout_s: float = TIMEOUT_S) -> None:
        if not timeout_s > 0.0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}.")
        if not HAS_WORKERS:
            raise NotImplementedError(f"{name} cannot run: workers need select.poll, which this system does not have.")
        self.name = name
        self.timeout_s = timeout_s
        self._timed_out = False
        self._come = bytearray()  # of answers not yet received: what interrupts a wait loses nothing of them
        environment = {**_rounding(), **os.environ} | {
            "OMP_NUM_THREADS": "1",  # the workers themselves fill the cores
            # anything else than a string, which Python ignores too
            "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path if isinstance(path, str)),
            "PYTHONSAFEPATH": "1",  # the parent's path and nothing before it
        }
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            bufsize=0,  # what is waited for must lie in the pipe and nowhere else
        )
        os.set_blocking(self._process.stdin.fileno(), False)  # type: ignore[union-attr]

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, function: Callable[..., Any], *args: Any) -> None:
        """Starts ``function(state, *args)`` there; everything must be picklable, the function by its name.

        ``state`` is a dict that the worker keeps from one call to the next; it begins with :data:`PARENT_IS_GONE`.

        Raises:
            RuntimeError: if the worker is dead, or does not take it in time.
        """
        message = memoryview(pickle.dumps((function, args), protocol=pickle.HIGHEST_PROTOCOL))
        try:
            pipe = self._process.stdin.fileno()  # type: ignore[union-attr]
            deadline = time.monotonic() + self.timeout_s
            while message:
                self._wait(pipe, select.POLLOUT, deadline)
                message = message[os.write(pipe, message) :]
        except (OSError, ValueError) as error:
            raise self._death() from error

    def receive(self) -> Any:
        """Waits for the result of the oldest :meth:`send` not yet answered; interrupted, it can be called again.

        Raises:
            RuntimeError: if the function raised, with its traceback, if the worker died, with what it last said, or if
                it does not answer in time.
        """
        deadline = time.monotonic() + self.timeout_s
        try:
            self._await(_LENGTH.size, deadline)
            (length,) = _LENGTH.unpack_from(self._come)
            self._await(_LENGTH.size + length, deadline)
            ok, value = pickle.loads(bytes(self._come[_LENGTH.size : _LENGTH.size + length]))
            del self._come[: _LENGTH.size + length]
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise self._death() from error
        if not ok:
            raise RuntimeError(f"{self.name} failed:\n{value}")
        return value

    def has_answered(self) -> bool:
        """Whether :meth:`receive` would not have to wait: an answer has begun to come, or none will come any more."""
        poll = select.poll()
        poll.register(self._process.stdout.fileno(), select.POLLIN)  # type: ignore[union-attr]
        return bool(self._come or poll.poll(0))

    def _await(self, length: int, deadline: float) -> None:
        """Waits until so many bytes of answers have come."""
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        while len(self._come) < length:
            self._wait(pipe, select.POLLIN, deadline)
            before = len(self._come)
            self._come += os.read(pipe, 1 << 20)
            if len(self._come) == before:
                raise EOFError("the worker's output has ended")

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        left = deadline - time.monotonic()
        # a worker that dies closes its pipes, which ends the waiting
        if not poll.poll(None if math.isinf(left) else 1000.0 * max(left, 0.0)):
            self._timed_out = True
            self._process.kill()
            raise TimeoutError

    def close(self, wait_s: float = 2.0) -> None:
        """Ends the process, by force after ``wait_s`` seconds, and collects it. Safe to call twice."""
        with contextlib.suppress(OSError):  # flushing to a process that is already gone
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # only now: closing would wait for a thread that still reads
        self._process.stdout.close()  # type: ignore[union-attr]
        self._stderr.close()

    def _death(self) -> DeadWorkerError:
        if self._timed_out:
            return DeadWorkerError(
                f"{self.name} (process {self.pid}) has not answered for {self.timeout_s:g} s, as one that was stopped: "
                "it was killed."
            )
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return DeadWorkerError(f"{self.name} (process {self.pid}) no longer answers.")
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        said = ""
        if not self._stderr.closed:
            self._stderr.seek(0)
            said = "\n".join(self._stderr.read().decode(errors="replace").splitlines()[-_ERROR_LINES:])
        return DeadWorkerError(
            f"{self.name} (process {self.pid}) {cause}." + (f" Its last words:\n{said}" if said else "")
        )


def serve() -> None:
    """The worker's side: answers requests until its input ends."""
    # as it was told: one that dies while this process starts is nobody's parent any more
    parent = int(sys.argv[1])
    state: dict[str, Any] = {PARENT_IS_GONE: lambda: os.getppid() != parent}
    # what ends a group of processes reaches the parent too, which may want an answer still and then closes its workers
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not end up among the answers
    while True:
        try:
            function, args = pickle.load(requests)
        except EOFError:
            return
        except Exception as error:
            answer: tuple[bool, Any] = (False, _of_main(error) + traceback.format_exc())
        else:
            answer = _run(function, state, args)
        content = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
        answers.write(_LENGTH.pack(len(content)) + content)
        answers.flush()


def _of_main(error: Exception) -> str:
    """Explains why a worker does not find what the parent's script defines."""
    if isinstance(error, AttributeError) and "__main__" in str(error):
        return (
            "a worker process imports what it runs, and does not run the script that started it: put the task and its "
            "functions in a module of their own and import them from there, or use no worker processes (workers=1), in "
            "an EnvPool num_workers=0.\n"
        )
    return ""


def _run(function: Callable[..., Any], state: dict[str, Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, function(state, *args)
    except Exception:
        return False, traceback.format_exc()
