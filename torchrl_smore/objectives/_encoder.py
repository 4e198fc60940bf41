"""An encoder that the networks of a loss share: each distinct picture of a batch is encoded once, whatever reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.objectives._networks import ActorSight, Networks


def check_encoder(encoder: TensorDictModule, loss: Networks, actor: str) -> None:
    """Raises ``ValueError`` if an encoder cannot be shared by the networks of a loss."""
    if actor not in get_args(ActorSight):
        raise unknown_name("sight of the actor", actor, get_args(ActorSight))
    if loss.encoder_network is not None:
        raise ValueError(f"this {type(loss).__name__} has an encoder already.")
    if actor == "own" and loss.asks_actor_elsewhere:
        raise ValueError(
            f"{type(loss).__name__} asks its actor about other states or goals than those of the rows, of which no "
            'pictures are kept: an actor with an encoder of its own (actor="own") cannot answer.'
        )
    own = [name for name in loss._modules if name.endswith("_params") and not name.startswith("target_")]
    if own == ["actor_network_params"] and actor != "trained":
        raise ValueError(
            f"{type(loss).__name__} has an actor alone, whose gradient would not train a shared encoder: give the "
            'actor an encoder of its own, or pass actor="trained".'
        )
    if (len(encoder.in_keys), len(encoder.out_keys)) != (1, 1):
        raise ValueError(
            f"expected an encoder of one in key and one out key, got {encoder.in_keys} and {encoder.out_keys}."
        )


def encode_pictures(
    batch: TensorDictBase, groups: Sequence[Sequence[NestedKey]], encoder: TensorDictModule
) -> TensorDictBase:
    """A shallow copy with vectors in the place of pictures, which are the entries of uint8.

    What is one tensor under several keys is encoded once, with the first of them. Each group is one call: what a loss
    takes as a constant belongs into another group than what it differentiates, and nothing of its call is then
    differentiated.

    Args:
        batch: of at least one dimension.
        groups: keys of the entries that are read; those that are missing or no pictures stay as they are.
        encoder: from pictures ``[n, H, W, C]`` to vectors ``[n, D]``, each for itself; one key in, one key out.
    """
    rows = batch.copy()
    (in_key,), (out_key,) = encoder.in_keys, encoder.out_keys
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
            joined = torch.cat(flat, 0)
            latent = encoder(TensorDict({in_key: joined}, batch_size=joined.shape[:1]))[out_key]
            vectors = torch.split(latent, [entry.shape[0] for entry in flat])
            for number, vector in enumerate(vectors):
                shape = pictures[first + number].shape[:-3]
                for key in places[first + number]:
                    rows.set(key, vector.reshape(*shape, vector.shape[-1]))
        first = end
    return rows
