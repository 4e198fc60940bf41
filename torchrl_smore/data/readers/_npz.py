"""Reads the arrays of an ``.npz`` file in blocks, straight from the archive, and never unpickles."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from torchrl_smore.data._files import open_regular, quoted, shortened
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._rows import BLOCK_BYTES


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an archive for reading.

    Raises:
        DatasetError: if it is missing, truncated, or no archive.
    """
    with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
        yield archive


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """Names of the arrays in an archive."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


_MAX_DIMENSIONS = 8


class NpzArray:
    """An array of an open archive; see :class:`~torchrl_smore.data.readers._rows.RowArray`.

    Booleans are read as the bytes that hold them.

    Raises:
        DatasetError: if there is none of that name, or it is no array of numbers in C order of the size it declares.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, name: str) -> None:
        self.label = f"{path}: {name!r}"
        if name not in array_names(archive):
            raise DatasetError(f"{path}: expected an array {name!r}, found {quoted(array_names(archive))}.")
        self._archive, self._member = archive, f"{name}.npy"
        described = archive.getinfo(self._member)
        if described.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DatasetError(f"{self.label}: expected an array as NumPy compresses it, found another compression.")
        with archive.open(described) as stream:
            self.shape, fortran_order, self.dtype = self._header(stream)
            held = described.file_size - stream.tell()
        if self.dtype.kind not in "fiub":
            raise DatasetError(f"{self.label}: expected real numbers, refused dtype {self.dtype}.")
        if self.dtype == np.bool_:
            self.dtype = np.dtype(np.uint8)
        if fortran_order and len(self.shape) > 1:
            raise DatasetError(f"{self.label}: expected an array in C order, found one in Fortran order.")
        if not 0 < len(self.shape) <= _MAX_DIMENSIONS:
            raise DatasetError(f"{self.label}: expected rows, found an array of {len(self.shape)} dimensions.")
        if held != (expected := math.prod(self.shape) * self.dtype.itemsize):
            raise DatasetError(f"{self.label}: expected {expected} bytes for {quoted(list(self.shape))}, found {held}.")

    def _header(self, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
        try:
            version = npy.read_magic(stream)
            readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"unknown version {version} of the npy format")
            return readers[version](stream)
        except ValueError as error:
            raise DatasetError(f"{self.label}: expected an npy array: {shortened(str(error))}.") from error

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive blocks of rows; the last one is followed by the check of the archive's checksum."""
        width = self.dtype.itemsize * math.prod(self.shape[1:])
        rows = max(1, BLOCK_BYTES // max(1, width))
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(self._archive.open(self._member))
            self._header(stream)
            for first in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - first)
                content = stream.read(count * width)
                if len(content) != count * width:
                    raise DatasetError(f"{self.label}: expected {self.shape[0]} rows, the data end before.")
                yield np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])
