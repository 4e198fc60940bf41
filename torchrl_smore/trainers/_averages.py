"""Means of losses and diagnostics over the updates between two rows of metrics."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase


class Averages:
    """Adds up what updates return, on their device, and knows the first loss that was not finite.

    Nothing here waits for the device but :meth:`rows` and :meth:`first_not_finite`.

    Args:
        num_seeds: seeds that an update trains; what it returns has this batch size, or none.
    """

    def __init__(self, num_seeds: int) -> None:
        self.num_seeds = num_seeds
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self.count = 0
        self._totals: TensorDict | None = None
        # by loss: updates before the first that was not finite
        self._num_finite: dict[str, torch.Tensor] = {}

    def add(self, out: TensorDictBase) -> None:
        """Counts one update; ``out`` may be overwritten afterwards."""
        self.count += 1
        if self._totals is None:
            self._totals = out.clone()
        else:
            self._totals.add_(out)
        for name, total in self._losses():
            # a sum is not finite from the first such loss on
            self._num_finite[name] = self._num_finite.get(name, 0) + total.isfinite()

    def rows(self) -> list[dict[str, float]]:
        """Means by name, of each seed."""
        assert self._totals is not None
        # one copy to the host for all of it
        by_seed = self._totals.to("cpu").reshape(-1).unbind(0)
        return [{key: value.float().mean().item() / self.count for key, value in row.items()} for row in by_seed]

    def first_not_finite(self) -> tuple[int, str, int] | None:
        """Updates before it, the name of the loss and the number of the seed; ``None`` if all are finite."""
        bad = [
            (int(count), name, number)
            for name, counts in self._num_finite.items()
            for number, count in enumerate(counts.to("cpu").reshape(self.num_seeds, -1).min(1).values)
            if count < self.count
        ]
        return min(bad, default=None)

    def state_dict(self) -> dict[str, Any]:
        """The totals, under names of checkpoints."""
        totals = None if self._totals is None else (self._totals.to_dict(), list(self._totals.batch_size))
        return {"totals": totals, "num_totalled": self.count}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restores :meth:`state_dict`, on ``device``."""
        self.count = state["num_totalled"]
        self._totals = state["totals"] and TensorDict(*state["totals"]).to(device)
        # of a total that is not finite, which on_divergence="continue" saves, the update is not known any more
        self._num_finite = {name: self.count * total.isfinite().long() for name, total in self._losses()}

    def _losses(self) -> list[tuple[str, torch.Tensor]]:
        items = () if self._totals is None else self._totals.items()
        return [(name, total) for name, total in items if name.startswith("loss_")]
