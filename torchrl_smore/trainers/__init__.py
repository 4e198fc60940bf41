"""Offline training, evaluation and checkpoints."""

from torchrl_smore.trainers.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint
from torchrl_smore.trainers.evaluation import ActorPolicy, Evaluation, Evaluator, mean_metrics
from torchrl_smore.trainers.fused import FusedUpdate
from torchrl_smore.trainers.offline import OfflineTrainer
from torchrl_smore.trainers.update import Compile, Update, UpdateStep, adam

__all__ = [
    "ActorPolicy",
    "CheckpointError",
    "Compile",
    "Evaluation",
    "Evaluator",
    "FusedUpdate",
    "OfflineTrainer",
    "Update",
    "UpdateStep",
    "adam",
    "latest_checkpoint",
    "load_checkpoint",
    "mean_metrics",
    "save_checkpoint",
]
