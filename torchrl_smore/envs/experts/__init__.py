"""Experts: controllers, scripted or trained and nearly all memoryless, that produce the expert share of a dataset."""

from torchrl_smore.envs.experts._base import Expert, PlanningExpert, begin_episodes
from torchrl_smore.envs.experts.actor_file import Actor, ActorExpert, read_actor, write_actor
from torchrl_smore.envs.experts.fetch_pick import FetchPickExpert
from torchrl_smore.envs.experts.fetch_push import FetchPushExpert
from torchrl_smore.envs.experts.fetch_reach import FetchReachExpert
from torchrl_smore.envs.experts.fetch_slide import FetchSlideExpert
from torchrl_smore.envs.experts.fetch_slide_reactive import (
    FetchSlideReactiveExpert,
    LandingModel,
    is_landing_model,
    puck_velocity,
    strike_inputs,
)
from torchrl_smore.envs.experts.hand_reach import HandReachExpert
from torchrl_smore.envs.experts.point import PointExpert
from torchrl_smore.envs.experts.policy import policy_files, read_policy
from torchrl_smore.envs.experts.reacher import ReacherExpert
from torchrl_smore.envs.experts.sawyer import SawyerDoorExpert, SawyerReachExpert
from torchrl_smore.envs.experts.tabletop import TabletopExpert

__all__ = [
    "Actor",
    "ActorExpert",
    "Expert",
    "FetchPickExpert",
    "FetchPushExpert",
    "FetchReachExpert",
    "FetchSlideExpert",
    "FetchSlideReactiveExpert",
    "HandReachExpert",
    "LandingModel",
    "PlanningExpert",
    "PointExpert",
    "ReacherExpert",
    "SawyerDoorExpert",
    "SawyerReachExpert",
    "TabletopExpert",
    "begin_episodes",
    "is_landing_model",
    "policy_files",
    "puck_velocity",
    "read_actor",
    "read_policy",
    "strike_inputs",
    "write_actor",
]
