"""Keeps the networks of the best evaluation of each seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torchrl_smore.trainers.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from torchrl_smore.trainers.evaluation import Evaluation
from torchrl_smore.trainers.offline import EvaluationHook, OfflineTrainer
from torchrl_smore.trainers.policies import BEST_FOLDER

_WORST = (-math.inf, -math.inf)


class KeepBest(EvaluationHook):
    """A ``post_steps`` hook: after an evaluation, saves the networks of each seed that has not done better before.

    Better is a higher ``success_last`` and, where that is equal, a higher ``return_over_max``. Networks are kept in
    ``run_dir/best/seed_<seed>``, a checkpoint without what only training needs; a resumed run continues from there.
    They are on the disk before the evaluation's rows and the next checkpoint are, so that a kill loses none.

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
        self._best: list[tuple[float, float] | None] | None = None

    def __call__(self) -> None:
        """Looks at the newest evaluation."""
        trainer = self.trainer
        if not trainer.evaluations or trainer.evaluations is self._last:
            return
        self._last = trainer.evaluations
        if self._best is None:
            # what lies in the folder of a run that was not resumed is another's
            self._best = [_rank_in(folder) if trainer.resumed else None for folder in self._folders]
        ranks = [_rank(evaluation.metrics) for evaluation in trainer.evaluations]
        # NaN, of what diverged, is never better
        better = [number for number, best in enumerate(self._best) if ranks[number] > (best or _WORST)]
        states = trainer.evaluated_states() if better else []
        for number in better:
            self._save(number, trainer.evaluations[number], states[number])
            self._best[number] = ranks[number]

    def _save(self, number: int, evaluation: Evaluation, loss: dict[str, Any]) -> None:
        trainer, step = self.trainer, self.trainer.evaluated_step
        state = {"step": step, "update": {"seeds": [trainer.seeds[number]], "losses": [loss]}}
        meta = {"seeds": list(trainer.seeds), **trainer.meta, "evaluation": evaluation.summary()}
        save_checkpoint(self._folders[number], step, state, meta, keep=1)


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["success_last"], metrics["return_over_max"]


def _rank_in(folder: Path) -> tuple[float, float] | None:
    """Of the networks that a run before this one has kept."""
    try:
        _, meta = load_checkpoint(latest_checkpoint(folder))
        return _rank(meta["evaluation"])
    except (CheckpointError, KeyError):
        return None
