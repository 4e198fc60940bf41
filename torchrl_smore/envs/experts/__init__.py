"""Experts: controllers, scripted or trained and nearly all memoryless, that produce the expert share of a dataset."""

from torchrl_smore.envs.experts._base import Expert, PlanningExpert, begin_episodes
from torchrl_smore.envs.experts.actor_file import Actor, ActorExpert, read_actor, write_actor
from torchrl_smore.envs.experts.fetch_pick import FetchPickExpert
from torchrl_smore.envs.experts.fetch_push import FetchPushExpert
from torchrl_smore.envs.experts.fetch_reach import FetchReachExpert
from torchrl_smore.envs.experts.fetch_slide import FetchSlideExpert
from torchrl_smore.envs.experts.hand_reach import HandReachExpert
from torchrl_smore.envs.experts.point import PointExpert
from torchrl_smore.envs.experts.policy import policy_files, read_policy
from torchrl_smore.envs.experts.reacher import ReacherExpert
from torchrl_smore.envs.experts.sawyer import SawyerDoorExpert, SawyerReachExpert

__all__ = [
    "Actor",
    "ActorExpert",
    "Expert",
    "FetchPickExpert",
    "FetchPushExpert",
    "FetchReachExpert",
    "FetchSlideExpert",
    "HandReachExpert",
    "PlanningExpert",
    "PointExpert",
    "ReacherExpert",
    "SawyerDoorExpert",
    "SawyerReachExpert",
    "begin_episodes",
    "policy_files",
    "read_actor",
    "read_policy",
    "write_actor",
]
