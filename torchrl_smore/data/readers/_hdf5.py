"""Opens HDF5 files without following what leads out of them, and reads their arrays in blocks."""

from __future__ import annotations

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
    full = f"{group.name}/{name}".lstrip("/")
    item = group
    with explained(path):
        for part in name.split("/"):
            link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
            if link is None:
                raise DatasetError(f"{path}: expected an array {full!r}, found {sorted(group)[:20]}.")
            if not isinstance(link, h5py.HardLink):
                raise DatasetError(f"{path}: {full!r}: expected it in this file, refused a {type(link).__name__}.")
            item = item[part]
    return item


class Hdf5Array:
    """A dataset of an open file; see :class:`~torchrl_smore.data.readers._rows.RowArray`.

    Raises:
        DatasetError: if there is none of that name, or its numbers lie in other files or were never written.
    """

    def __init__(self, path: Path, group: Any, name: str) -> None:
        dataset = member(path, group, name)
        self.path = path
        self.label = f"{path}: {f'{group.name}/{name}'.lstrip('/')!r}"
        if not isinstance(dataset, import_h5py().Dataset) or dataset.shape is None or dataset.ndim == 0:
            raise DatasetError(f"{self.label}: expected an array, found {dataset!r}.")
        self.shape, self.dtype = tuple(dataset.shape), dataset.dtype
        self.dataset = dataset
        with explained(path):
            self._check_storage()

    def _check_storage(self) -> None:
        """HDF5 answers for numbers that were never written with zeros, and lets a file declare any size."""
        properties = self.dataset.id.get_create_plist()
        if self.dataset.is_virtual or properties.get_external_count():
            raise DatasetError(f"{self.label}: expected numbers in this file, refused those of other files.")
        expected = self.dataset.size * self.dtype.itemsize
        if not properties.get_nfilters():
            if (stored := self.dataset.id.get_storage_size()) < expected:
                raise DatasetError(f"{self.label}: expected {expected} bytes, found {stored}: the file is incomplete.")
        else:
            chunks = int(np.prod([-(-size // chunk) for size, chunk in zip(self.shape, self.dataset.chunks)]))
            if (stored := self.dataset.id.get_num_chunks()) < chunks:
                raise DatasetError(f"{self.label}: expected {chunks} chunks, found {stored}: the file is incomplete.")

    def read(self) -> np.ndarray:
        """The whole array."""
        with explained(self.path):
            return self.dataset[()]

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive blocks of rows, whole chunks where there are chunks."""
        rows = max(1, BLOCK_BYTES // max(1, self.dtype.itemsize * int(np.prod(self.shape[1:]))))
        if self.dataset.chunks:
            chunk = self.dataset.chunks[0]
            rows = max(chunk, rows // chunk * chunk)
        for first in range(0, self.shape[0], rows):
            with explained(self.path):
                block = self.dataset[first : first + rows]
            yield block
