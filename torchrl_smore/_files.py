"""Files and folders that are written atomically, and descriptions that tell when they were altered.

Uses the standard library alone.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_BESIDE = re.compile(r"\..+\.(\d+)\.partial", re.DOTALL)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write a file or folder to, which takes its place if the body raises nothing.

    What was written is on the disk before it has its name, so that a power cut leaves the old file or the new one. A
    file that was there stays as it is until then, and after an exception; a folder that was there must be empty. The
    parent folder must exist.

    The path beside it is ``.NAME.PID.partial``. What a killed process left there is removed by the next one that writes
    the same file.

    Raises:
        OSError: what the body or the system raises; where it would name the path beside, or nothing, it names ``path``.
    """
    path = Path(path)
    remove_leftovers(path.parent, path.name)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        sync(beside)
        os.replace(beside, path)
    except OSError as error:
        # of a full disk Python does not say which file it was
        if error.errno is not None and error.filename in (None, str(beside), beside):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        _remove(beside)
    sync_names(path.parent)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes what :func:`replacing` of processes that are no longer there left in a folder.

    Args:
        folder: may be missing.
        name: of the file that was written, or the end of its name; ``None``: any.
    """
    for left in folder.glob(f".*{'' if name is None else glob.escape(name)}.*.partial"):
        if (match := _BESIDE.fullmatch(left.name)) and not _is_running(int(match[1])):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file in UTF-8 atomically, and makes its folder; see :func:`replacing`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return path


def put_in_place(new: Path, path: Path, aside: Path) -> None:
    """Renames the folder ``new`` to ``path``; a folder that was there is removed once the new one is in its place.

    Args:
        new: on the same file system as ``path``.
        path: the place.
        aside: what was at ``path`` has this name for a moment, which is how long a killed process may leave it there.

    Raises:
        OSError: if a name cannot be changed; what was at ``path`` is there again.
    """
    replaced = path.exists()
    if replaced:
        os.replace(path, aside)
    try:
        os.replace(new, path)
    except BaseException:
        if replaced:
            os.replace(aside, path)
        raise
    sync_names(path.parent)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)


def remove_folder(path: Path, aside: Path) -> None:
    """Removes a folder that others know by its name, so that a process killed meanwhile leaves no half of it there.

    Args:
        path: the folder.
        aside: its name while it is being removed, which must be free: what a killed process may leave behind.

    Raises:
        OSError: if the name cannot be changed; the folder is whole then.
    """
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Brings a file, or a folder with everything in it, to the disk."""
    if path.is_dir():
        for each in path.iterdir():
            sync(each)
        sync_names(path)
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames need no help
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_without(entries: Mapping[str, Any], name: str) -> str:
    """SHA-256 over all entries of a description but the one that is to hold it, in hexadecimal.

    It is that of their JSON with sorted keys, so it stays the same however the file is laid out.

    Args:
        entries: expressible in JSON.
        name: of the entry that is left out, there or not.
    """
    content = {key: value for key, value in entries.items() if key != name}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
