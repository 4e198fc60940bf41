"""Keeps the networks of the best evaluation of each seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from torchrl_smore.trainers.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from torchrl_smore.trainers.evaluation import Evaluation
from torchrl_smore.trainers.offline import OfflineTrainer
from torchrl_smore.trainers.policies import BEST_FOLDER


class KeepBest:
    """A ``post_steps`` hook: after an evaluation, saves the networks of each seed that has not done better before.

    Better is a higher ``success_last`` and, where that is equal, a higher ``return_over_max``. Networks are kept in
    ``run_dir/best/seed_<seed>``, a checkpoint without what only training needs; a resumed run continues from there.

    Args:
        trainer: has a ``run_dir`` and an evaluator.

    Raises:
        ValueError: if it has no ``run_dir``.
    """

    def __init__(self, trainer: OfflineTrainer) -> None:
        if trainer.run_dir is None:
            raise ValueError("a trainer without run_dir keeps no networks.")
        self.trainer = trainer
        self._last = trainer.evaluations
        self._folders = [trainer.run_dir / BEST_FOLDER / f"seed_{seed}" for seed in trainer.seeds]
        self._best = [_rank_in(folder) for folder in self._folders]

    def __call__(self) -> None:
        """Looks at the newest evaluation."""
        trainer = self.trainer
        if trainer.evaluations is self._last:
            return
        self._last = trainer.evaluations
        for number, evaluation in enumerate(trainer.evaluations):
            rank = _rank(evaluation.metrics)
            best = self._best[number]
            if best is None or rank > best:
                self._save(number, evaluation)
                self._best[number] = rank

    def _save(self, number: int, evaluation: Evaluation) -> None:
        trainer, seed = self.trainer, self.trainer.seeds[number]
        # copies: parameters may be views of one buffer of all seeds
        loss: dict[str, Any] = {
            key: value.detach().cpu().clone() if isinstance(value, Tensor) else value
            for key, value in trainer.update.losses[number].state_dict().items()
        }
        state = {"step": trainer.step, "update": {"seeds": [seed], "losses": [loss]}}
        meta = {**trainer.meta, "evaluation": evaluation.summary()}
        save_checkpoint(self._folders[number], trainer.step, state, meta, keep=1)


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["success_last"], metrics["return_over_max"]


def _rank_in(folder: Path) -> tuple[float, float] | None:
    """Of the networks that a run before this one has kept."""
    try:
        _, meta = load_checkpoint(latest_checkpoint(folder))
        return _rank(meta["evaluation"])
    except (CheckpointError, KeyError):
        return None
