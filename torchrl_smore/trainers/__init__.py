"""Training of a loss on a fixed dataset, evaluation, checkpoints, and loading of what was trained.

:class:`OfflineTrainer` runs an update, :class:`Update` or :class:`FusedUpdate`, which is one compiled graph;
:class:`Evaluator` plays episodes, :class:`BackgroundEvaluator` does while training goes on; :func:`load_policy` and
:func:`load_value` read the run folder that is left.
"""

from torchrl_smore._files import remove_leftovers, replacing, write_text
from torchrl_smore._lock import LockedError, locked
from torchrl_smore.trainers.background import BackgroundEvaluator
from torchrl_smore.trainers.best import KeepBest
from torchrl_smore.trainers.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    clear_leftovers,
    latest_checkpoint,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from torchrl_smore.trainers.evaluation import ActorPolicy, Evaluation, Evaluator, mean_interval, mean_metrics
from torchrl_smore.trainers.fused import FusedUpdate
from torchrl_smore.trainers.held_out import HeldOut, held_out_distance
from torchrl_smore.trainers.logging import MetricsFile
from torchrl_smore.trainers.modes import in_mode
from torchrl_smore.trainers.offline import DivergedError, EvaluationHook, OfflineTrainer
from torchrl_smore.trainers.policies import TrainedPolicy, TrainedValue, load_policy, load_value, run_seeds
from torchrl_smore.trainers.policy_file import record_policy
from torchrl_smore.trainers.run_record import RunRecord
from torchrl_smore.trainers.update import Compile, Update, UpdateStep, adam

__all__ = [
    "ActorPolicy",
    "BackgroundEvaluator",
    "CheckpointError",
    "CheckpointWarning",
    "Compile",
    "DivergedError",
    "Evaluation",
    "EvaluationHook",
    "Evaluator",
    "FusedUpdate",
    "HeldOut",
    "KeepBest",
    "LockedError",
    "MetricsFile",
    "OfflineTrainer",
    "RunRecord",
    "TrainedPolicy",
    "TrainedValue",
    "Update",
    "UpdateStep",
    "adam",
    "clear_leftovers",
    "held_out_distance",
    "in_mode",
    "latest_checkpoint",
    "load_checkpoint",
    "load_policy",
    "load_value",
    "locked",
    "mean_interval",
    "mean_metrics",
    "record_policy",
    "remove_leftovers",
    "replacing",
    "rng_state",
    "run_seeds",
    "save_checkpoint",
    "set_rng_state",
    "write_text",
]
