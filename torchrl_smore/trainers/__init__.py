"""Offline training, evaluation and checkpoints."""

from torchrl_smore._lock import LockedError, locked
from torchrl_smore.trainers.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    clear_leftovers,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from torchrl_smore.trainers.evaluation import ActorPolicy, Evaluation, Evaluator, mean_metrics
from torchrl_smore.trainers.fused import FusedUpdate
from torchrl_smore.trainers.modes import in_mode
from torchrl_smore.trainers.offline import DivergedError, OfflineTrainer
from torchrl_smore.trainers.update import Compile, Update, UpdateStep, adam

__all__ = [
    "ActorPolicy",
    "CheckpointError",
    "CheckpointWarning",
    "Compile",
    "DivergedError",
    "Evaluation",
    "Evaluator",
    "FusedUpdate",
    "LockedError",
    "OfflineTrainer",
    "Update",
    "UpdateStep",
    "adam",
    "clear_leftovers",
    "in_mode",
    "latest_checkpoint",
    "load_checkpoint",
    "locked",
    "mean_metrics",
    "save_checkpoint",
]
