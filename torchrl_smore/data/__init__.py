"""The trajectory store, readers and writers of dataset files, and sampling of goal transitions.

:class:`TrajectoryStore` holds a dataset. :class:`GoalBatchSampler` draws batches of it; in a replay buffer of TorchRL
:class:`GoalTransition` and :class:`HindsightGoalTransform` do.
"""

from torchrl_smore.data import readers, writers
from torchrl_smore.data.anchors import ANCHOR_RULES, anchor_weights, check_anchor_rule
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.mixing import hold_out, mix, split_by_behaviour
from torchrl_smore.data.packed import GoalBatchSampler
from torchrl_smore.data.pixels import PixelBatchSampler
from torchrl_smore.data.samplers import GoalTransition, GoalTransitionSampler, stored_goal_reached
from torchrl_smore.data.statistics import standardization
from torchrl_smore.data.storages import GrowingRowStorage, RowStorage
from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.data.transforms import HindsightGoalTransform

__all__ = [
    "ANCHOR_RULES",
    "DatasetError",
    "GoalBatchSampler",
    "GoalTransition",
    "GoalTransitionSampler",
    "GrowingRowStorage",
    "HindsightGoalTransform",
    "PixelBatchSampler",
    "RowStorage",
    "TrajectoryStore",
    "anchor_weights",
    "check_anchor_rule",
    "hold_out",
    "mix",
    "readers",
    "split_by_behaviour",
    "standardization",
    "stored_goal_reached",
    "writers",
]
