"""What stands where a :class:`~torchrl.trainers.Trainer` expects a collector and an optimisation step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torchrl.trainers import OptimizationStepper, Trainer

from torchrl_smore.trainers.update import UpdateStep


class OfflineSteps:
    """Stands where a :class:`~torchrl.trainers.Trainer` expects a collector: yields step counts, no data.

    Each item is an empty TensorDict whose batch size is the number of updates up to the next multiple of one of the
    intervals, so one "frame" is one update.

    Args:
        total_steps: updates in all.
        intervals: numbers of updates, positive, at whose multiples the trainer has something to do.
    """

    init_random_frames = 0

    def __init__(self, total_steps: int, intervals: tuple[int, ...]) -> None:
        self.total_steps = total_steps
        self.intervals = intervals
        self.done = 0

    def __iter__(self) -> Iterator[TensorDict]:
        while self.done < self.total_steps:
            stops = [interval * (self.done // interval + 1) for interval in self.intervals]
            steps = min(*stops, self.total_steps) - self.done
            yield TensorDict({}, batch_size=[steps])
            self.done += steps

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Part of the interface; there is nothing to seed."""
        return seed

    def shutdown(self) -> None:
        """Part of the interface."""

    def state_dict(self) -> dict[str, Any]:
        """Updates whose results were taken: of those handed out last, none."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`."""
        self.done = state["done"]

    def update_policy_weights_(self, *args: Any, **kwargs: Any) -> None:
        """Part of the interface; there is no policy here."""


class UpdateStepper(OptimizationStepper):
    """Lets a :class:`~torchrl.trainers.Trainer` run an :class:`UpdateStep`."""

    def __init__(self, update: UpdateStep) -> None:
        self.update = update

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """One update; the batch is drawn by the update itself."""
        return self.update()
