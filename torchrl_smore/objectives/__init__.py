"""TorchRL loss modules."""

from torchrl_smore.objectives.action_free import ActionFreeSMORELoss
from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.baselines.actionable import ActionableModelsLoss
from torchrl_smore.objectives.baselines.contrastive import ContrastiveRLLoss
from torchrl_smore.objectives.baselines.contrastive_td import ContrastiveTDLoss
from torchrl_smore.objectives.baselines.eql import GCEQLLoss
from torchrl_smore.objectives.baselines.gcsl import GCSLLoss
from torchrl_smore.objectives.baselines.gofar import GoFARLoss
from torchrl_smore.objectives.baselines.iql import GCIQLLoss
from torchrl_smore.objectives.baselines.sql import GCSQLLoss
from torchrl_smore.objectives.baselines.wgcsl import WGCSLLoss
from torchrl_smore.objectives.baselines.xql import GCXQLLoss
from torchrl_smore.objectives.score import ScoreLoss
from torchrl_smore.objectives.smore import SMORELoss
from torchrl_smore.objectives.value import ExpectileValueLoss

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
