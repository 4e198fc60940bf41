"""A worker process that runs functions for its parent, and the parent's handle on it.

Plain pipes instead of :mod:`multiprocessing`: nothing of the parent's main module is imported again, no ``__main__``
guard is needed, and a worker whose parent is gone reads the end of its input and leaves.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

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
from torchrl_smore.envs._worker import serve
serve()
"""


class Worker:
    """Runs functions in a process of its own, one at a time, in the order sent.

    Args:
        name: how errors name this worker.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",  # the workers themselves fill the cores
            "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
            "PYTHONSAFEPATH": "1",  # the parent's path and nothing before it
        }
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, function: Callable[..., Any], *args: Any) -> None:
        """Starts ``function(state, *args)`` there; everything must be picklable, the function by its name.

        ``state`` is a dict that the worker keeps from one call to the next.

        Raises:
            RuntimeError: if the worker is dead.
        """
        message = pickle.dumps((function, args), protocol=pickle.HIGHEST_PROTOCOL)
        try:
            self._process.stdin.write(message)  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except (OSError, ValueError) as error:
            raise self._death() from error

    def receive(self) -> Any:
        """Waits for the result of the oldest :meth:`send` not yet answered.

        Raises:
            RuntimeError: if the function raised, with its traceback, or if the worker died, with what it last said.
        """
        try:
            ok, value = pickle.load(self._process.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise self._death() from error
        if not ok:
            raise RuntimeError(f"{self.name} failed:\n{value}")
        return value

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

    def _death(self) -> RuntimeError:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return RuntimeError(f"{self.name} (process {self.pid}) no longer answers.")
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        said = ""
        if not self._stderr.closed:
            self._stderr.seek(0)
            said = "\n".join(self._stderr.read().decode(errors="replace").splitlines()[-_ERROR_LINES:])
        return RuntimeError(
            f"{self.name} (process {self.pid}) {cause}." + (f" Its last words:\n{said}" if said else "")
        )


def serve() -> None:
    """The worker's side: answers requests until its input ends."""
    state: dict[str, Any] = {}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which closes its workers
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not end up among the answers
    while True:
        try:
            function, args = pickle.load(requests)
        except EOFError:
            return
        except Exception:
            answer: tuple[bool, Any] = (False, traceback.format_exc())
        else:
            answer = _run(function, state, args)
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _run(function: Callable[..., Any], state: dict[str, Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, function(state, *args)
    except Exception:
        return False, traceback.format_exc()
