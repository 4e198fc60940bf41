"""The vmap rule that operators over ``[K, ...]`` share: the mapped axis joins the ``K`` seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def joins_seeds(operator: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Any, tuple[int, ...]]]:
    """Vmap rule of an operator of which every tensor, in and out, has a leading axis of seeds."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, tuple[int, ...]]:
        def joined(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            arg = arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            return arg.flatten(0, 1)

        outputs = operator(*(joined(arg, dim) for arg, dim in zip(args, in_dims)))
        return tuple(output.unflatten(0, (info.batch_size, -1)) for output in outputs), (0,) * len(outputs)

    return rule
