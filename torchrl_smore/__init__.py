"""Offline goal-conditioned RL with score models (SMORe, arXiv:2311.02013) as TorchRL components."""

from typing import TYPE_CHECKING, Any

from torchrl_smore import _source  # noqa: F401 - notes when the package was imported
from torchrl_smore.data import (
    DatasetError,
    GoalBatchSampler,
    GoalTransition,
    GoalTransitionSampler,
    HindsightGoalTransform,
    TrajectoryStore,
)
from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import ActionFreeSMORELoss, AWRActorLoss, ExpectileValueLoss, ScoreLoss, SMORELoss

if TYPE_CHECKING:
    from torchrl_smore.trainers import load_policy, load_value

__version__ = "0.1.0"

__all__ = [
    "AWRActorLoss",
    "ActionFreeSMORELoss",
    "DatasetError",
    "ExpectileValueLoss",
    "GoalBatchSampler",
    "GoalTransition",
    "GoalTransitionSampler",
    "HindsightGoalTransform",
    "SMORELoss",
    "ScoreLoss",
    "TrajectoryStore",
    "goal_specs",
    "load_policy",
    "load_value",
    "make_networks",
]


def __getattr__(name: str) -> Any:
    """Imports what loads a run when it is asked for: a loss does not need the trainers."""
    if name in ("load_policy", "load_value"):
        from torchrl_smore import trainers

        return getattr(trainers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
