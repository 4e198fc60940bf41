"""Files of others: opened only if they are files, and whatever goes wrong in them becomes one kind of error."""

from __future__ import annotations

import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from torchrl_smore.data.errors import DatasetError

#: Characters that a message quotes from a file at most.
QUOTED: Final = 200
_LONGEST: Final = 1000  # characters of a message

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8
_SHORT.maxlevel = 3


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Within it, whatever fails becomes one :class:`DatasetError` that names file and reason.

    Readers check their arguments before it, and everything that depends on the file within it: a damaged file makes
    the packages below fail in ways that none of them documents. A missing package stays an ``ImportError``.

    Args:
        path: the file or folder that is read.
        kind: what it is read as, for the message: ``"HDF5"``.
    """
    try:
        yield
    except ImportError:
        raise
    except DatasetError as error:
        text = str(error)
        if str(path) in text and len(text) <= _LONGEST:
            raise
        text = text if str(path) in text[:_LONGEST] else f"{path}: {text}"
        raise DatasetError(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...") from error
    except Exception as error:
        raise DatasetError(f"cannot read {path} as {kind}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = shortened(str(error))
    if isinstance(error, (OSError, ValueError)) and text:
        return text
    return ": ".join(filter(None, (type(error).__name__, text)))


def shortened(text: str) -> str:
    """``text``, cut to :data:`QUOTED` characters."""
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def quoted(value: Any) -> str:
    """What a file holds, for a message: its ``repr``, of :data:`QUOTED` characters at most."""
    return shortened(_SHORT.repr(value))


def check_regular(path: Path) -> int:
    """Size in bytes of a file that is a file: pipes and devices may keep their reader for ever.

    Raises:
        DatasetError: if it is something else.
        OSError: if there is none.
    """
    return _regular_size(path, os.stat(path))


def _regular_size(path: Path, found: os.stat_result) -> int:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
        raise DatasetError(f"{path}: expected a regular file, found {kind}.")
    return found.st_size


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; see :func:`check_regular`.

    Raises:
        DatasetError: if it is something else.
        OSError: if there is none.
    """
    check_regular(path)
    # without waiting for the other end, should a pipe have taken its place since
    stream = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    try:
        _regular_size(path, os.fstat(stream.fileno()))
    except BaseException:
        stream.close()
        raise
    return stream


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        DatasetError: if it is larger, or no regular file.
        OSError: if there is none.
    """
    with open_regular(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise DatasetError(f"{path}: expected at most {limit} bytes, found more.")
    return content
