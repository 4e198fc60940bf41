"""Losses as TorchRL's ``LossModule``: SMORe whole and in its three parts, and the methods that it is compared with.

Each reads one TensorDict, to which nothing is written, and returns another with a ``loss_<part>`` for each part and,
detached, what is logged beside them. The entries that it reads are its ``in_keys``; ``set_keys`` renames them. What all
losses share is in :class:`~torchrl_smore.objectives.base.OfflineLoss`.
"""

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
