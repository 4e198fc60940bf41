"""Datasets made of other datasets: so many trajectories of the expert, so many of the random policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_smore._errors import unknown_name
from torchrl_smore.data._composition import ROW_COUNTS
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.trajectories import TrajectoryStore

_ORDERS = ("first", "random")


def mix(
    stores: Sequence[TrajectoryStore],
    num_trajectories: Sequence[int] | None = None,
    *,
    fractions: Sequence[float] | None = None,
    total: int | None = None,
    order: Literal["first", "random"] = "first",
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> TrajectoryStore:
    """Joins trajectories of several stores, one store after the other.

    The published offline goal-conditioned sets are 10% expert and 90% random trajectories, the first ones of each file:
    ``mix([expert, random], fractions=[0.1, 0.9], total=40_000, names=["expert", "random"])``.

    ``meta["composition"]`` of the result lists, in the order of the trajectories, ``source``, ``behaviour``,
    ``num_trajectories``, ``fraction`` and the ``sha256`` of the source; a source that has a composition of its own is
    listed part by part. Of the other meta data, what all sources agree on is kept, but for counts of rows.

    Args:
        stores: the sources, with equal dimensions and, where their meta data name one, the same task.
        num_trajectories: how many trajectories to take of each source, ``>= 0``. Either this, or the next two.
        fractions: share of each source in the result, dimensionless, in ``[0, 1]``, adding up to 1.
        total: trajectories in the result; shares are rounded so that the counts add up to it (largest remainder).
        order: ``"first"`` takes the first ones of each source, ``"random"`` a random subset in the source's order.
        seed: of the random subsets; unused for ``"first"``.
        names: of the sources, in the composition; by default ``meta["behaviour"]`` or ``"source_0"``, ``"source_1"``.

    Raises:
        DatasetError: if the sources do not fit together or hold too few trajectories.
        ValueError: if counts, fractions, names or order make no sense.
    """
    if order not in _ORDERS:
        raise unknown_name("order", order, _ORDERS)
    if not stores:
        raise ValueError("expected at least one store, got none.")
    counts = _counts(len(stores), num_trajectories, fractions, total)
    names = _names(stores, names)
    _check_compatible(stores, names)
    for name, store, count in zip(names, stores, counts):
        if count > store.num_trajectories:
            raise DatasetError(f"{name!r} holds {store.num_trajectories} trajectories, asked for {count}.")
    generator = torch.Generator().manual_seed(seed)
    parts, composition = [], []
    for name, store, count in zip(names, stores, counts):
        part = store.select_trajectories(_chosen(store, count, order, generator)) if count else None
        parts += [part] if part else []
        composition += _entries(name, store, part, sum(counts))
    meta = _common_meta(stores) | {"composition": composition, "mixing": {"order": order}}
    if order == "random":
        meta["mixing"]["seed"] = seed
    return _concatenated(parts, meta)


def hold_out(store: TrajectoryStore, share: float = 0.1, *, seed: int = 0) -> tuple[TrajectoryStore, TrajectoryStore]:
    """Splits a store at random, by trajectory: what is trained on, and what is kept to compare policies on.

    Args:
        store: of K trajectories.
        share: of the trajectories that are held out, rounded to a whole number; in ``(0, 1)``.
        seed: of the choice.

    Returns:
        The trajectories that are left and those held out, each in the order of ``store``.

    Raises:
        ValueError: if ``share`` is outside its range, or leaves one of the two without a trajectory.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must lie in (0, 1), got {share}.")
    count = round(share * store.num_trajectories)
    if not 0 < count < store.num_trajectories:
        raise ValueError(
            f"share={share} of {store.num_trajectories} trajectories are {count}: one part would be empty."
        )
    order = torch.randperm(store.num_trajectories, generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[:count].sort().values, order[count:].sort().values
    return store.select_trajectories(rest), store.select_trajectories(held_out)


def split_by_behaviour(store: TrajectoryStore) -> dict[str, TrajectoryStore]:
    """Takes a store apart along ``meta["composition"]``, so that its parts can be mixed anew.

    Returns:
        For each behaviour, in order of appearance, a store of its trajectories. Parts without any are left out.

    Raises:
        DatasetError: if the store has no composition, or a part of it does not name its behaviour.
    """
    if "composition" not in store.meta:
        raise DatasetError("expected meta['composition'], found none: the behaviours of this store are not known.")
    index: dict[str, list[Tensor]] = {}
    start = 0
    for part in store.meta["composition"]:
        if "behaviour" not in part:
            raise DatasetError(f"meta['composition']: expected a 'behaviour' in every part, found {part}.")
        stop = start + part["num_trajectories"]
        if stop > start:
            index.setdefault(part["behaviour"], []).append(torch.arange(start, stop))
        start = stop
    return {behaviour: store.select_trajectories(torch.cat(pieces)) for behaviour, pieces in index.items()}


def _counts(
    num_stores: int, num_trajectories: Sequence[int] | None, fractions: Sequence[float] | None, total: int | None
) -> list[int]:
    if (num_trajectories is None) == (fractions is None) or (fractions is None) != (total is None):
        raise ValueError("expected either num_trajectories, or fractions and total together.")
    given = num_trajectories if fractions is None else fractions
    if len(given or ()) != num_stores:
        raise ValueError(f"expected one number for each of the {num_stores} stores, got {given}.")
    if num_trajectories is not None:
        counts = list(num_trajectories)
    elif fractions is not None and total is not None:
        counts = _rounded(fractions, total)
    if any(isinstance(count, bool) or int(count) != count or count < 0 for count in counts) or sum(counts) == 0:
        raise ValueError(f"expected numbers of trajectories >= 0 and not all 0, got {counts}.")
    return [int(count) for count in counts]


def _rounded(fractions: Sequence[float], total: int) -> list[int]:
    """Counts that add up to ``total``, by the method of the largest remainder."""
    if any(not 0.0 <= fraction <= 1.0 for fraction in fractions) or abs(sum(fractions) - 1.0) > 1e-6:
        raise ValueError(f"fractions must lie in [0, 1] and add up to 1, got {list(fractions)} = {sum(fractions)}.")
    # rounded, lest floating-point noise decide between equal remainders: 0.07 * 50 is a little more than 3.5
    exact = [round(fraction / sum(fractions) * total, 6) for fraction in fractions]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _names(stores: Sequence[TrajectoryStore], names: Sequence[str] | None) -> list[str]:
    if names is None:
        return [str(store.meta.get("behaviour", f"source_{i}")) for i, store in enumerate(stores)]
    if len(names) != len(stores):
        raise ValueError(f"expected one name for each of the {len(stores)} stores, got {list(names)}.")
    return list(names)


def _check_compatible(stores: Sequence[TrajectoryStore], names: Sequence[str]) -> None:
    for name, store in zip(names[1:], stores[1:]):
        for dim in ("observation_dim", "goal_dim", "action_dim"):
            expected, found = getattr(stores[0], dim), getattr(store, dim)
            if found != expected:
                raise DatasetError(f"{dim} of {name!r}: expected {expected} as in {names[0]!r}, found {found}.")
    pictured = [None if store.frames is None else list(store.frames.shape[1:]) for store in stores]
    if any(shape != pictured[0] for shape in pictured):
        raise DatasetError(f"expected frames of one size, or none, in all stores, found {dict(zip(names, pictured))}.")
    tasks = [(store.meta["task"], name) for name, store in zip(names, stores) if "task" in store.meta]
    if any(task != tasks[0][0] for task, _ in tasks):
        found = ", ".join(f"{task!r} in {name!r}" for task, name in tasks)
        raise DatasetError(f"expected stores of one task, found {found}.")


def _chosen(store: TrajectoryStore, count: int, order: str, generator: torch.Generator) -> Tensor:
    if order == "first":
        return torch.arange(count)
    # sorted, so that the parts of a source keep their order and its composition stays true
    return torch.randperm(store.num_trajectories, generator=generator)[:count].sort().values


def _entries(name: str, store: TrajectoryStore, part: TrajectoryStore | None, total: int) -> list[dict[str, Any]]:
    count = part.num_trajectories if part else 0
    behaviour = store.meta.get("behaviour", name)
    listed = [{"behaviour": behaviour, "num_trajectories": count}]
    if part and "composition" in part.meta:
        listed = [{"behaviour": behaviour} | entry for entry in part.meta["composition"]]
    source = {"source": name, "sha256": store.sha256}
    return [entry | source | {"fraction": entry["num_trajectories"] / total} for entry in listed]


def _common_meta(stores: Sequence[TrajectoryStore]) -> dict[str, Any]:
    first, *others = (store.meta for store in stores)
    left_out = ("composition", "mixing", *ROW_COUNTS)
    return {
        key: value
        for key, value in first.items()
        if key not in left_out and all(key in meta and meta[key] == value for meta in others)
    }


def _concatenated(parts: Sequence[TrajectoryStore], meta: dict[str, Any]) -> TrajectoryStore:
    data = TensorDict.cat([part.data for part in parts])
    rows = torch.tensor([part.num_transitions for part in parts], device=data.get("traj_start").device)
    shift = (rows.cumsum(0) - rows).repeat_interleave(rows)
    data.set("traj_start", data.get("traj_start") + shift)
    data.set("traj_stop", data.get("traj_stop") + shift)
    frames = [part.frames for part in parts if part.frames is not None]
    return TrajectoryStore(data, meta, frames=torch.cat(frames) if frames else None)
