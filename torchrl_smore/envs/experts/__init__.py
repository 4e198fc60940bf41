"""Scripted experts: memoryless controllers that produce the expert share of a dataset."""

from torchrl_smore.envs.experts._base import Expert
from torchrl_smore.envs.experts.fetch_pick import FetchPickExpert
from torchrl_smore.envs.experts.fetch_push import FetchPushExpert
from torchrl_smore.envs.experts.fetch_reach import FetchReachExpert
from torchrl_smore.envs.experts.point import PointExpert
from torchrl_smore.envs.experts.reacher import ReacherExpert
from torchrl_smore.envs.experts.sawyer import SawyerDoorExpert, SawyerReachExpert

__all__ = [
    "Expert",
    "FetchPickExpert",
    "FetchPushExpert",
    "FetchReachExpert",
    "PointExpert",
    "ReacherExpert",
    "SawyerDoorExpert",
    "SawyerReachExpert",
]
