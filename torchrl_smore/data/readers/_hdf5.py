"""Opens HDF5 files without following what leads out of them, and reads their arrays in blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from torchrl_smore.data._files import check_regular, reading
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.readers._chunks import check_filters, decode
from torchrl_smore.data.readers._rows import BLOCK_BYTES

_MAX_CHUNK: Final = 1 << 26  # bytes of a chunk that is larger than its array
#: The largest factor by which deflate can shrink: what is larger than the file by more is not in it.
MAX_RATIO: Final = 1032


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


def open_hdf5(path: Path) -> Any:
    """Opens a file for reading; a context manager.

    Raises:
        DatasetError: if it is missing, truncated, or no HDF5.
    """
    h5py = import_h5py()
    with reading(path, "HDF5"):
        check_regular(path)
        return h5py.File(path, "r")


def member(path: Path, group: Any, name: str) -> Any:
    """The group or dataset of a name such as ``"infos/qpos"``, which must lie in the file itself.

    Raises:
        DatasetError: if it is missing or a link: external links name other files.
    """
    h5py = import_h5py()
    identifier = group.id
    with reading(path, "HDF5"):
        # some files hold a hundred thousand small arrays: the low-level interface takes half the time
        for part in map(str.encode, name.split("/")):
            if not isinstance(identifier, h5py.h5g.GroupID) or not identifier.links.exists(part):
                full = f"{group.name}/{name}".lstrip("/")
                found = sorted(itertools.islice(group, 20))
                raise DatasetError(f"{path}: expected {full!r}, found {found}.")
            if identifier.links.get_info(part).type != h5py.h5l.TYPE_HARD:
                full = f"{group.name}/{name}".lstrip("/")
                raise DatasetError(f"{path}: {full!r}: expected it in this file, refused a link to elsewhere.")
            identifier = h5py.h5o.open(identifier, part)
        if isinstance(identifier, h5py.h5g.GroupID):
            return h5py.Group(identifier)
        if isinstance(identifier, h5py.h5d.DatasetID):
            return h5py.Dataset(identifier)
    raise DatasetError(f"{path}: {name!r}: expected an array or a group, found {type(identifier).__name__}.")


def address(item: Any) -> int:
    """Where a group or dataset lies in its file: the same for every hard link to it."""
    return int(import_h5py().h5g.get_objinfo(item.id).objno[0])


class Hdf5Array:
    """A dataset of an open file; see :class:`~torchrl_smore.data.readers._rows.RowArray`.

    Booleans are read as the bytes that hold them.

    Raises:
        DatasetError: if there is none of that name, its numbers lie in other files, were never written or cannot all
            be there, or it uses other filters than gzip, shuffle and fletcher32.
    """

    def __init__(self, path: Path, group: Any, name: str) -> None:
        dataset = member(path, group, name)
        self.path = path
        with reading(path, "HDF5"):
            self.label = f"{path}: {f'{group.name}/{name}'.lstrip('/')!r}"
            if not isinstance(dataset, import_h5py().Dataset) or not dataset.shape:
                raise DatasetError(f"{self.label}: expected an array, found {dataset!r}.")
            self.dataset = dataset
            self.shape, self.dtype = tuple(dataset.shape), dataset.dtype
            self._check_type()
            self._chunks: dict[tuple[int, ...], int] = {}
            self._chunk: tuple[int, ...] | None = dataset.chunks
            self._filters: list[int] = []
            self._check_storage()

    @property
    def nbytes(self) -> int:
        """Size of the numbers in bytes, not compressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def _check_type(self) -> None:
        """What is no number is refused elsewhere, in words that say what was expected there."""
        if self.dtype.kind not in "fiub":
            return
        standard = import_h5py().h5t.py_create(self.dtype, logical=True)
        if not self.dataset.id.get_type().equal(standard):
            raise DatasetError(f"{self.label}: expected numbers as NumPy stores them, found another {self.dtype}.")
        if self.dtype == np.bool_:
            self.dtype = np.dtype(np.uint8)

    def _check_storage(self) -> None:
        """HDF5 answers for numbers that were never written with zeros, and lets a file declare any size."""
        identifier = self.dataset.id
        properties = identifier.get_create_plist()
        if properties.get_layout() == import_h5py().h5d.VIRTUAL or properties.get_external_count():
            raise DatasetError(f"{self.label}: expected numbers in this file, refused those of other files.")
        if self._chunk is None:
            if (stored := identifier.get_storage_size()) < self.nbytes:
                raise DatasetError(f"{self.label}: expected {self.nbytes} bytes, found {stored}: it is incomplete.")
            if self.nbytes > (held := check_regular(self.path)):
                raise DatasetError(f"{self.label}: expected {self.nbytes} bytes in a file of {held}.")
            return
        described = [properties.get_filter(number) for number in range(properties.get_nfilters())]
        self._filters = [code for code, *_ in described]
        check_filters(self.label, self._filters, [name.decode(errors="replace") for *_, name in described])
        if self.dtype.kind in "fiub":
            self._find_chunks()

    def _find_chunks(self) -> None:
        """Notes where the file holds each chunk, which must be there, within the file and of its own."""
        assert self._chunk is not None
        size, held = self._chunk_bytes, check_regular(self.path)
        expected = math.prod(-(-rows // chunk) for rows, chunk in zip(self.shape, self._chunk))
        if size > max(self.nbytes, _MAX_CHUNK):
            raise DatasetError(f"{self.label}: expected chunks of at most {_MAX_CHUNK} bytes, found {size}.")
        if expected * (size if not self._filters else size // MAX_RATIO) > held:
            raise DatasetError(f"{self.label}: expected {expected} chunks of {size} bytes in a file of {held}.")
        found: list[Any] = []

        def note(chunk: Any) -> bool | None:
            found.append(chunk)
            return True if len(found) > expected else None  # True ends it

        self.dataset.id.chunk_iter(note)
        for chunk in found:
            if chunk.size <= 0 or chunk.byte_offset is None or chunk.byte_offset + chunk.size > held:
                raise DatasetError(f"{self.label}: expected chunk {chunk.chunk_offset} within the file.")
            if any(offset % step for offset, step in zip(chunk.chunk_offset, self._chunk)):
                raise DatasetError(
                    f"{self.label}: expected chunks of {self._chunk}, found one at {chunk.chunk_offset}."
                )
            if all(offset < rows for offset, rows in zip(chunk.chunk_offset, self.shape)):
                self._chunks[tuple(chunk.chunk_offset)] = chunk.size
        if len(self._chunks) != expected or len(found) > expected:
            raise DatasetError(
                f"{self.label}: expected {expected} chunks, found {len(self._chunks)}: it is incomplete."
            )
        found.sort(key=lambda chunk: chunk.byte_offset)
        for before, after in itertools.pairwise(found):
            if before.byte_offset + before.size > after.byte_offset:
                raise DatasetError(f"{self.label}: expected chunks of their own, found two in the same bytes.")

    @property
    def _chunk_bytes(self) -> int:
        return math.prod(self._chunk or ()) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The whole array."""
        with reading(self.path, "HDF5"):
            return self._rows(0, self.shape[0])

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive blocks of rows, whole chunks where there are chunks."""
        rows = max(1, BLOCK_BYTES // max(1, self.dtype.itemsize * math.prod(self.shape[1:])))
        if self._chunk is not None:
            rows = max(self._chunk[0], rows // self._chunk[0] * self._chunk[0])
        for first in range(0, self.shape[0], rows):
            with reading(self.path, "HDF5"):
                block = self._rows(first, min(first + rows, self.shape[0]))
            yield block

    def _rows(self, first: int, stop: int) -> np.ndarray:
        """Rows ``first`` to ``stop``, which begin with a whole chunk."""
        if self._chunk is None:
            block = self.dataset[first:stop]
            return block.view(np.uint8) if block.dtype == np.bool_ else block
        out = np.empty((stop - first, *self.shape[1:]), dtype=self.dtype)
        limits = (stop, *self.shape[1:])
        for offset in itertools.product(range(first, stop, self._chunk[0]), *self._grid()):
            size = [min(step, limit - at) for step, limit, at in zip(self._chunk, limits, offset)]
            place = tuple(slice(at, at + length) for at, length in zip((offset[0] - first, *offset[1:]), size))
            out[place] = self._decoded(offset)[tuple(map(slice, size))]
        return out

    def _grid(self) -> Iterator[range]:
        assert self._chunk is not None
        return (range(0, width, step) for width, step in zip(self.shape[1:], self._chunk[1:]))

    def _decoded(self, offset: tuple[int, ...]) -> np.ndarray:
        assert self._chunk is not None
        mask, content = self.dataset.id.read_direct_chunk(offset)
        if len(content) != self._chunks[offset]:
            raise DatasetError(f"{self.label}: expected {self._chunks[offset]} bytes in a chunk, found {len(content)}.")
        content = decode(self.label, content, mask, self._filters, self._chunk_bytes, self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(self._chunk)
