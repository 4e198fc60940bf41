"""Seeded damage to the bytes of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

#: What can be done to a file; ``inner`` is damage below checksums that are then made right again.
KINDS = ("flip", "truncate", "splice", "field", "inner")
_FIELDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def mutated(
    rng: np.random.Generator, content: bytes, donors: Sequence[bytes], *, kind: str | None = None, header: int = 4096
) -> bytes:
    """A damaged copy.

    Args:
        rng: decides everything.
        content: the file.
        donors: files that splices are taken from.
        kind: one of the first four of :data:`KINDS`; drawn by default.
        header: bytes at the beginning that are hit as often as all others.
    """
    kind = kind or KINDS[int(rng.integers(4))]
    data = bytearray(content)

    def place() -> int:
        limit = min(header, len(data)) if rng.random() < 0.5 else len(data)
        return int(rng.integers(max(limit, 1)))

    if kind == "flip":
        for _ in range(int(rng.integers(1, 9))):
            data[place()] ^= 1 << int(rng.integers(8))
    elif kind == "truncate":
        cut = int(rng.integers(len(data)))
        # with or without zeros in place of what is gone, as after a crash
        data[cut:] = bytes(len(data) - cut) if rng.random() < 0.5 else b""
    elif kind == "splice":
        donor = donors[int(rng.integers(len(donors)))]
        first, length = int(rng.integers(len(donor))), int(rng.integers(1, 64 if rng.random() < 0.7 else 2048))
        at, part = place(), donor[first : first + length]
        data[at : at + (len(part) if rng.random() < 0.5 else int(rng.integers(0, 64)))] = part
    else:
        size = int(rng.choice([1, 2, 4, 8]))
        at = place() // size * size
        value = _FIELDS[int(rng.integers(len(_FIELDS)))] % 256**size
        data[at : at + size] = value.to_bytes(size, "big" if rng.random() < 0.2 else "little")
    return bytes(data)


_HOSTILE_VALUES: list[Any] = [None, True, -1, 0, 10**400, 1.5, "", "x" * 5000, [], {}, [[[[]]]], 2**63, [1] * 3000]


def edited(rng: np.random.Generator, content: Any) -> Any:
    """A JSON value with one part replaced by something that does not belong there."""
    places = list(_places(content))
    parent, key = places[int(rng.integers(len(places)))]
    parent[key] = _HOSTILE_VALUES[int(rng.integers(len(_HOSTILE_VALUES)))]
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])
