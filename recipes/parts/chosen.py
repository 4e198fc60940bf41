"""Which networks of a run a recipe has read, in a word."""

from __future__ import annotations

from pathlib import Path

from torchrl_smore.trainers import RunRecord


def name_of_choice(given: str, which: str, record: RunRecord) -> str:
    """What was read, as part of a file's name: ``which`` of a run, or the folder of a checkpoint that was given itself.

    Args:
        given: the folder of a run or of a checkpoint.
        which: ``"last"`` or ``"best"``, which names nothing of a checkpoint.
        record: of what was loaded from ``given``.

    Returns:
        For example ``"last"``, ``"step_000000150"``, or of a seed's best evaluation ``"best_seed_0_step_000000150"``.
    """
    checkpoint = record.checkpoint.resolve()
    if Path(given).resolve() != checkpoint:
        return which
    return "_".join(part for part in checkpoint.relative_to(record.path.resolve()).parts if part != "checkpoint")
