"""TorchRL loss modules."""

from torchrl_smore.objectives.action_free import ActionFreeSMORELoss
from torchrl_smore.objectives.actor import AWRActorLoss
from torchrl_smore.objectives.score import ScoreLoss
from torchrl_smore.objectives.smore import SMORELoss
from torchrl_smore.objectives.value import ExpectileValueLoss

__all__ = ["AWRActorLoss", "ActionFreeSMORELoss", "ExpectileValueLoss", "SMORELoss", "ScoreLoss"]
