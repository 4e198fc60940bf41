"""Decodes the chunks of HDF5 arrays, and trusts none of the sizes that a file declares.

The HDF5 library takes a chunk that inflates to less than its declared size for a whole one, and then reads what lies
behind it in memory. Here a chunk is what it must be, or an error.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from torchrl_smore.data.errors import DatasetError

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_NAMES = {_DEFLATE: "gzip", _SHUFFLE: "shuffle", _FLETCHER32: "fletcher32"}

#: Codes of the filters of an array, in the order in which they were applied.
Filters = Sequence[int]


def check_filters(label: str, codes: Filters, names: Sequence[str]) -> None:
    """Refuses filters other than gzip, shuffle and fletcher32.

    Raises:
        DatasetError: if there is another, or one comes twice.
    """
    for code, name in zip(codes, names):
        if code not in _NAMES:
            raise DatasetError(
                f"{label}: expected numbers compressed by gzip, found the filter {name or code!r}: "
                "'h5repack -f GZIP=4 OLD NEW' rewrites a file."
            )
    if len(set(codes)) != len(codes):
        raise DatasetError(f"{label}: expected each filter once, found {[_NAMES[code] for code in codes]}.")


def decode(label: str, content: bytes, mask: int, filters: Filters, nbytes: int, itemsize: int) -> bytes:
    """The ``nbytes`` bytes of a chunk.

    Args:
        label: the array, for messages.
        content: what the file holds.
        mask: bit ``i`` is set where filter ``i`` was left out, as HDF5 does with what gzip would enlarge.
        filters: of the array.
        nbytes: size of the chunk, decoded.
        itemsize: size of an element, bytes.

    Raises:
        DatasetError: if the content does not decode to exactly this size.
    """
    if mask >> len(filters):
        raise DatasetError(f"{label}: expected a mask of {len(filters)} filters, found {mask:#x}.")
    for number in reversed(range(len(filters))):
        if mask >> number & 1:
            continue
        if filters[number] == _FLETCHER32:
            content = _checked(label, content)
        elif filters[number] == _DEFLATE:
            # what an inner checksum adds comes on top
            content = _inflated(label, content, nbytes + 4)
        else:
            content = _unshuffled(content, itemsize)
    if len(content) != nbytes:
        raise DatasetError(f"{label}: expected {nbytes} bytes in a chunk, found {len(content)}.")
    return content


def _inflated(label: str, content: bytes, limit: int) -> bytes:
    inflate = zlib.decompressobj()
    try:
        inflated = inflate.decompress(content, limit)
    except zlib.error as error:
        raise DatasetError(f"{label}: expected a chunk compressed by gzip, found {error}.") from error
    if not inflate.eof and len(inflated) == limit:
        # all the numbers are there; what may be left is the checksum of the stream
        inflate.decompress(inflate.unconsumed_tail, 1)
    if not inflate.eof or inflate.unused_data:
        raise DatasetError(f"{label}: expected a whole chunk compressed by gzip, found its end elsewhere.")
    return inflated


def _unshuffled(content: bytes, itemsize: int) -> bytes:
    whole = len(content) // itemsize * itemsize
    planes = np.frombuffer(content, np.uint8, whole).reshape(itemsize, -1)
    return planes.T.tobytes() + content[whole:]


def _checked(label: str, content: bytes) -> bytes:
    if len(content) < 4:
        raise DatasetError(f"{label}: expected a chunk with a checksum, found {len(content)} bytes.")
    content, (stored,) = content[:-4], struct.unpack("<I", content[-4:])
    found = _fletcher32(content)
    # releases of HDF5 before 1.6.3 swapped the bytes of each half
    swapped = (found & 0x00FF00FF) << 8 | found >> 8 & 0x00FF00FF
    if stored not in (found, swapped):
        raise DatasetError(f"{label}: expected a chunk with checksum {stored:#010x}, found {found:#010x}.")
    return content


def _fletcher32(content: bytes) -> int:
    words = np.frombuffer(content + b"\0" * (len(content) % 2), ">u2")
    # blocks are short enough for sums of 64 bits
    low = high = 0
    for first in range(0, len(words), 1 << 16):
        block = words[first : first + (1 << 16)].astype(np.uint64)
        high += low * len(block) + int((block * np.arange(len(block), 0, -1, dtype=np.uint64)).sum())
        low += int(block.sum())
    return _folded(high) << 16 | _folded(low)


def _folded(total: int) -> int:
    """``total`` modulo 65535 as HDF5 folds it: only nothing gives 0."""
    return (total % 65535 or 65535) if total else 0
