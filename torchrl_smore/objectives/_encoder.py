"""Pictures of a batch as vectors: each distinct picture is encoded once, whatever reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor


def encode_pictures(
    rows: TensorDictBase, groups: Sequence[Sequence[NestedKey]], encode: Callable[[Tensor], Tensor]
) -> None:
    """Writes vectors in the place of pictures, which are the entries of uint8.

    What is one tensor under several keys is encoded once, with the first of them. Each group is one call: what a loss
    takes as a constant belongs into another group than what it differentiates, and nothing of its call is then
    differentiated.

    Args:
        rows: written to; a shallow copy of a batch.
        groups: keys of the entries that are read; those that are missing or no pictures stay as they are.
        encode: from pictures ``[n, H, W, C]`` to vectors ``[n, D]``, each for itself.
    """
    pictures: list[Tensor] = []
    places: list[list[NestedKey]] = []
    ends: list[int] = []
    for group in groups:
        for key in group:
            entry = rows.get(key, None)
            if entry is None or entry.dtype != torch.uint8:
                continue
            known = False
            for number, other in enumerate(pictures):
                if other is entry:
                    places[number].append(key)
                    known = True
            if not known:
                pictures.append(entry)
                places.append([key])
        ends.append(len(pictures))
    first = 0
    for end in ends:
        if end > first:
            flat = [entry.flatten(0, -4) for entry in pictures[first:end]]
            vectors = torch.split(encode(torch.cat(flat, 0)), [entry.shape[0] for entry in flat])
            for number, vector in enumerate(vectors):
                shape = pictures[first + number].shape[:-3]
                for key in places[first + number]:
                    rows.set(key, vector.reshape(*shape, vector.shape[-1]))
        first = end
