"""Opens HDF5 files without following what leads out of them, and reads their arrays in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._rows import BLOCK_BYTES


def import_h5py() -> Any:
    """The package that reads HDF5.

    Raises:
        ImportError: if it is missing; says what to install.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('reading HDF5 needs h5py: pip install "torchrl-smore[hdf5]" or pip install h5py.') from error
    return h5py


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Within it, whatever h5py raises of a damaged file becomes one :class:`DatasetError`."""
    try:
        yield
    except DatasetError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DatasetError(f"cannot read {path} as HDF5: {str(error) or type(error).__name__}") from error


def open_hdf5(path: Path) -> Any:
    """Opens a file for reading; a context manager.

    Raises:
        DatasetError: if it is missing, truncated, or no HDF5.
    """
    h5py = import_h5py()
    with explained(path):
        return h5py.File(path, "r")


def member(path: Path, group: Any, name: str) -> Any:
    """The group or dataset of a name such as ``"infos/qpos"``, which must lie in the file itself.

    Raises:
        DatasetError: if it is missing or a link: external links name other files.
    """
    h5py = import_h5py()
    identifier = group.id
    with explained(path):
        # some files hold a hundred thousand small arrays: the low-level interface takes half the time
        for part in map(str.encode, name.split("/")):
            if not isinstance(identifier, h5py.h5g.GroupID) or not identifier.links.exists(part):
                full = f"{group.name}/{name}".lstrip("/")
                raise DatasetError(f"{path}: expected {full!r}, found {sorted(group)[:20]}.")
            if identifier.links.get_info(part).type != h5py.h5l.TYPE_HARD:
                full = f"{group.name}/{name}".lstrip("/")
                raise DatasetError(f"{path}: {full!r}: expected it in this file, refused a link to elsewhere.")
            identifier = h5py.h5o.open(identifier, part)
        if isinstance(identifier, h5py.h5g.GroupID):
            return h5py.Group(identifier)
        if isinstance(identifier, h5py.h5d.DatasetID):
            return h5py.Dataset(identifier)
    raise DatasetError(f"{path}: {name!r}: expected an array or a group, found {type(identifier).__name__}.")


class Hdf5Array:
    """A dataset of an open file; see :class:`~torchrl_smore.data.readers._rows.RowArray`.

    Raises:
        DatasetError: if there is none of that name, or its numbers lie in other files or were never written.
    """

    def __init__(self, path: Path, group: Any, name: str) -> None:
        dataset = member(path, group, name)
        self.path, self.label = path, f"{path}: {f'{group.name}/{name}'.lstrip('/')!r}"
        if not isinstance(dataset, import_h5py().Dataset) or not dataset.shape:
            raise DatasetError(f"{self.label}: expected an array, found {dataset!r}.")
        self.dataset = dataset
        with explained(path):
            self.shape, self.dtype = tuple(dataset.shape), dataset.dtype
            self._check_storage()

    @property
    def nbytes(self) -> int:
        """Size of the numbers in bytes, not compressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def _check_storage(self) -> None:
        """HDF5 answers for numbers that were never written with zeros, and lets a file declare any size."""
        identifier = self.dataset.id
        properties = identifier.get_create_plist()
        if properties.get_layout() == import_h5py().h5d.VIRTUAL or properties.get_external_count():
            raise DatasetError(f"{self.label}: expected numbers in this file, refused those of other files.")
        if not properties.get_nfilters():
            if (stored := identifier.get_storage_size()) < self.nbytes:
                raise DatasetError(f"{self.label}: expected {self.nbytes} bytes, found {stored}: it is incomplete.")
        else:
            chunks = math.prod(-(-size // chunk) for size, chunk in zip(self.shape, properties.get_chunk()))
            if (stored := identifier.get_num_chunks()) < chunks:
                raise DatasetError(f"{self.label}: expected {chunks} chunks, found {stored}: it is incomplete.")

    def read(self) -> np.ndarray:
        """The whole array."""
        with explained(self.path):
            return self.dataset[()]

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive blocks of rows, whole chunks where there are chunks."""
        rows = max(1, BLOCK_BYTES // max(1, self.dtype.itemsize * math.prod(self.shape[1:])))
        if self.dataset.chunks:
            chunk = self.dataset.chunks[0]
            rows = max(chunk, rows // chunk * chunk)
        for first in range(0, self.shape[0], rows):
            with explained(self.path):
                block = self.dataset[first : first + rows]
            yield block
