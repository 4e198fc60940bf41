"""A lock that several processes respect, and that ends with its holder however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO

# macOS and Linux have the first, Windows has the second
fcntl: ModuleType | None
msvcrt: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

_LONGEST_NOTE = 200  # characters that are read of another process's description of itself
# Windows keeps others from reading what is locked: a byte that no note reaches
_LOCKED_BYTE = 1 << 30
_PAUSE_S = 0.2  # between two tries, where the system itself does not wait
_held: dict[Path, int] = {}  # thread by lock file, of this process


class LockedError(OSError):
    """Another process, or another thread, works in the same place."""


@contextlib.contextmanager
def locked(
    path: str | Path, what: str, *, wait: bool = False, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Holds the lock file ``path``, which is there only while somebody does.

    The thread that holds a lock may take it again. A process that is killed gives it back.

    Args:
        path: the lock file; its parents are made.
        what: what is locked, for messages.
        wait: wait for the other holder instead of raising.
        on_wait: gets one line that names the other holder, before the waiting begins.

    Raises:
        LockedError: if somebody else holds it and ``wait`` is False; names that process.
        NotImplementedError: on a system without file locks.
    """
    path = Path(path).resolve()
    own = threading.get_ident()
    if _held.get(path) == own:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(path, what, wait, on_wait)
    try:
        _held[path] = own
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
    finally:
        del _held[path]
        _give_back(file, path)


def _acquire(path: Path, what: str, wait: bool, on_wait: Callable[[str], None] | None) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if not _take(file, wait=False):
                line = f"{what} is in use by {_holder(file)}"
                if not wait:
                    raise LockedError(f"{line}: wait for it or end it.")
                if on_wait is not None:
                    on_wait(f"{line}; waiting for it")
                    on_wait = None
                _take(file, wait=True)
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _take(file: IO[str], *, wait: bool) -> bool:
    """Whether the lock of an open file is ours now."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
    if msvcrt is None:
        raise NotImplementedError("this system has neither fcntl nor msvcrt: no lock keeps other processes out.")
    while True:
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            if not wait:
                return False
            time.sleep(_PAUSE_S)
        else:
            return True


def _give_back(file: IO[str], path: Path) -> None:
    if fcntl is not None:
        # before it is given back: who opened it by now finds out that it is gone, and opens the next one
        path.unlink(missing_ok=True)
        file.close()
        return
    # Windows deletes no file that somebody has open, so the next holder's stays
    file.close()
    with contextlib.suppress(OSError):
        path.unlink()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(_LONGEST_NOTE) or "another process"


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the file that was locked is still the one that others would open."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
