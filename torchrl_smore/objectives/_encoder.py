"""Pictures of a batch as vectors: each distinct picture is encoded once, whatever reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor


def encode_pictures(
    rows: TensorDictBase, keys: Iterable[NestedKey], encode: Callable[[Tensor], Tensor], later: Iterable[NestedKey]
) -> None:
    """Writes vectors in the place of pictures, which are the entries of uint8.

    What is one tensor under several keys is encoded once. There are two calls, of which the second is for what a loss
    mostly takes as a constant: as far as it does, nothing of that call is differentiated.

    Args:
        rows: written to; a shallow copy of a batch.
        keys: entries that are read; those that are missing or no pictures stay as they are.
        encode: from pictures ``[n, H, W, C]`` to vectors ``[n, D]``, each for itself.
        later: keys of the second call, unless the same picture is in the first.
    """
    later = set(later)
    found: list[tuple[NestedKey, Tensor]] = []
    for key in sorted(keys, key=lambda key: key in later):
        entry = rows.get(key, None)
        if isinstance(entry, Tensor) and entry.dtype == torch.uint8:
            found.append((key, entry))
    parts: list[list[Tensor]] = [[], []]
    for key, entry in found:
        if not any(entry is other for part in parts for other in part):
            parts[key in later].append(entry)
    for part in parts:
        if not part:
            continue
        flat = [entry.flatten(0, -4) for entry in part]
        vectors = encode(flat[0] if len(flat) == 1 else torch.cat(flat, 0)).split([len(entry) for entry in flat])
        for entry, vector in zip(part, vectors):
            latent = vector.reshape(*entry.shape[:-3], -1)
            for key, own in found:
                if own is entry:
                    rows.set(key, latent)
