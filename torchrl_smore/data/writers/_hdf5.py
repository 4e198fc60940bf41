"""HDF5 files that are written through Python, as the library ends the whole process where a write of its own fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

from torchrl_smore.data.readers._hdf5 import import_h5py


def write_hdf5(path: Path, fill: Callable[[Any], Iterator[None]]) -> None:
    """Writes a new HDF5 file, without a copy of it in memory.

    Args:
        path: the file, which must not exist.
        fill: writes to the open ``h5py.File``; yields where it may be stopped, for nothing more is written after a
            failure.

    Raises:
        OSError: if the disk is full or refuses the write; the file is then worthless.
        ImportError: if h5py is missing.
    """
    h5py = import_h5py()

    def write(output: _Output) -> None:
        try:
            with h5py.File(output, "w") as file:
                for _ in fill(file):
                    output.check()
        except Exception:
            # what the library says of a file that is not what it wrote is no news
            output.check()
            raise
        output.check()

    # in a thread of its own: Python raises KeyboardInterrupt in the main one, wherever that is, be it in a method below
    with path.open("x+b", buffering=0) as raw, ThreadPoolExecutor(1) as pool:
        output = _Output(raw)
        try:
            pool.submit(write, output).result()
        except BaseException as error:
            output.failure = output.failure or error
            raise


class _Output:
    """A file for h5py whose methods never raise: HDF5 crashes when it closes what it could not write.

    The first failure is kept, and nothing is written after it.

    Args:
        raw: the file, not buffered, open for reading and writing.
    """

    def __init__(self, raw: FileIO) -> None:
        self._raw, self._place = raw, 0
        self.failure: BaseException | None = None

    def check(self) -> None:
        """Raises the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Sets the place, from the beginning or from the end, and returns it."""
        self._place = offset + (self._try(lambda: self._raw.seek(0, os.SEEK_END)) if whence == os.SEEK_END else 0)
        return self._place

    def tell(self) -> int:
        """The place."""
        return self._place

    def write(self, content: memoryview) -> int:
        """Writes all of it at the place."""
        rest = memoryview(content).cast("B")

        def act() -> int:
            self._raw.seek(self._place)
            done = 0
            while done < len(rest):
                done += self._raw.write(rest[done:])
            return done

        self._try(act)
        return len(rest)

    def read(self, size: int) -> bytes:
        """Up to so many bytes; h5py asks for none, but knows a file by this method."""
        content = bytearray(size)
        return bytes(content[: self.readinto(memoryview(content))])

    def readinto(self, buffer: memoryview) -> int:
        """Fills it from the place on, with zeros where there is nothing."""
        wanted = memoryview(buffer).cast("B")

        def act() -> int:
            self._raw.seek(self._place)
            return self._raw.readinto(wanted)

        read = self._try(act)
        wanted[read:] = bytes(len(wanted) - read)
        return len(wanted)

    def truncate(self, size: int) -> None:
        """Sets the size of the file."""
        self._try(lambda: self._raw.truncate(size))

    def flush(self) -> None:
        """Nothing is buffered."""

    def _try(self, act: Callable[[], int]) -> int:
        """What it returns; 0 if it fails, or something did before."""
        if self.failure is None:
            try:
                return act()
            except BaseException as error:
                self.failure = error
        return 0
