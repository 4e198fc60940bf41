"""Experts: memoryless controllers, scripted or trained, that produce the expert share of a dataset."""

from torchrl_smore.envs.experts._base import Expert
from torchrl_smore.envs.experts.actor_file import ActorExpert, write_actor
from torchrl_smore.envs.experts.fetch_pick import FetchPickExpert
from torchrl_smore.envs.experts.fetch_push import FetchPushExpert
from torchrl_smore.envs.experts.fetch_reach import FetchReachExpert
from torchrl_smore.envs.experts.point import PointExpert

__all__ = [
    "ActorExpert",
    "Expert",
    "FetchPickExpert",
    "FetchPushExpert",
    "FetchReachExpert",
    "PointExpert",
    "write_actor",
]
