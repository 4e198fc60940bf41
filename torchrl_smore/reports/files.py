"""Files that are whole or absent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to, which takes its place if the body ends without an exception.

    The folder must exist. A file that was there stays as it is until then.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file in UTF-8, whole or not at all, and makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def needing_plots(what: str) -> Iterator[None]:
    """Turns the lack of a package of the extra ``plots`` into an error that says so.

    Args:
        what: what is drawn or written, for the error.

    Raises:
        ImportError: if an import inside fails for a module that is missing; says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f'{what} needs {error.name}: pip install "torchrl-smore[plots]"') from error
