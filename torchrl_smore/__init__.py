"""Offline goal-conditioned RL with score models (SMORe, arXiv:2311.02013) as TorchRL components."""

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
    "make_networks",
]
