"""Bookkeeping of what ``meta`` says of a store's rows: which behaviour gave which trajectories, in their order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_smore.data._files import quoted, shortened
from torchrl_smore.data.errors import DatasetError

#: Entries of ``meta`` that count rows of one store, and so are not true of a part of it, or of several.
ROW_COUNTS = ("clipped_actions", "dropped_rows")


def check_composition(meta: dict[str, Any], num_trajectories: int) -> None:
    """Checks that the composition, if ``meta`` has one, accounts for every trajectory.

    Raises:
        DatasetError: if it is no list of parts with a ``"num_trajectories"`` each, or these do not add up.
    """
    if "composition" not in meta:
        return
    parts = meta["composition"]
    if not isinstance(parts, list) or not all(_is_part(part) for part in parts):
        expected = "a list of {'behaviour': str, 'num_trajectories': int, ...}"
        raise DatasetError(f"meta['composition']: expected {expected}, found {quoted(parts)}.")
    counts = [part["num_trajectories"] for part in parts]
    if sum(counts) != num_trajectories:
        raise DatasetError(
            f"meta['composition']: expected parts that add up to {num_trajectories} trajectories, "
            f"found {shortened(' + '.join(map(quoted, counts)) or '0')} = {quoted(sum(counts))}."
        )


def select_meta(meta: dict[str, Any], index: Tensor) -> dict[str, Any]:
    """Returns ``meta`` without counts of rows, with a composition that is true of the trajectories, or with none.

    Args:
        meta: a store's meta data; its ``"composition"``, if any, lists parts with ``"num_trajectories"`` each.
        index: numbers of the selected trajectories, int64, shape ``[M]``.
    """
    kept = {key: value for key, value in meta.items() if key not in ("composition", *ROW_COUNTS)}
    if "composition" not in meta:
        return kept
    parts = meta["composition"]
    stop = torch.tensor([part["num_trajectories"] for part in parts]).cumsum(0)
    owner = torch.bucketize(index.cpu(), stop, right=True)
    if (owner[1:] < owner[:-1]).any():
        return kept
    count = torch.bincount(owner, minlength=len(parts)).tolist()
    selected = [
        part | {"num_trajectories": number} | ({"fraction": number / index.numel()} if "fraction" in part else {})
        for part, number in zip(parts, count)
        if number > 0
    ]
    return kept | {"composition": selected}


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and type(part.get("num_trajectories")) is int and part["num_trajectories"] >= 0
