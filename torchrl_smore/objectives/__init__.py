"""TorchRL loss modules."""

from torchrl_smore.objectives.action_free import ActionFreeSMORELoss
from torchrl_smore.objectives.actionable import ActionableModelsLoss
from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.contrastive import ContrastiveRLLoss
from torchrl_smore.objectives.contrastive_td import ContrastiveTDLoss
from torchrl_smore.objectives.gcsl import GCSLLoss
from torchrl_smore.objectives.gofar import GoFARLoss
from torchrl_smore.objectives.iql import GCIQLLoss
from torchrl_smore.objectives.regularized import GCEQLLoss, GCSQLLoss, GCXQLLoss
from torchrl_smore.objectives.score import ScoreLoss
from torchrl_smore.objectives.smore import SMORELoss
from torchrl_smore.objectives.value import ExpectileValueLoss
from torchrl_smore.objectives.wgcsl import WGCSLLoss

__all__ = [
    "AWRActorLoss",
    "ActionFreeSMORELoss",
    "ActionableModelsLoss",
    "ContrastiveRLLoss",
    "ContrastiveTDLoss",
    "ExpectileValueLoss",
    "GCEQLLoss",
    "GCIQLLoss",
    "GCSLLoss",
    "GCSQLLoss",
    "GCXQLLoss",
    "GoFARLoss",
    "SMORELoss",
    "ScoreLoss",
    "WGCSLLoss",
]
