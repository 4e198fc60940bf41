"""Tasks, their environments and scripted experts, and the collection of datasets.

Importing this needs numpy only, and so do the point tasks, :class:`EnvPool` and collection on them; gymnasium and the
simulators of the other tasks, of the extra ``envs``, are asked for when an environment is built.
"""

from torchrl_smore.envs._rollout import quality, task_actor
from torchrl_smore.envs.collect import SCRIPTED, collect, decisive_versions, expert_behaviour, medium_behaviour
from torchrl_smore.envs.experts import Expert, PlanningExpert, begin_episodes
from torchrl_smore.envs.mixtures import ACTION_NOISES, MIXTURES, mixture_counts
from torchrl_smore.envs.pixels import Painter, PixelPolicy, paint
from torchrl_smore.envs.pool import EnvPool
from torchrl_smore.envs.register import register_task
from torchrl_smore.envs.render import RenderError, render_episode
from torchrl_smore.envs.tasks import TASKS, Task, get_task, task_names

__all__ = [
    "ACTION_NOISES",
    "MIXTURES",
    "SCRIPTED",
    "TASKS",
    "EnvPool",
    "Expert",
    "Painter",
    "PixelPolicy",
    "PlanningExpert",
    "RenderError",
    "Task",
    "begin_episodes",
    "collect",
    "decisive_versions",
    "expert_behaviour",
    "get_task",
    "medium_behaviour",
    "mixture_counts",
    "paint",
    "quality",
    "register_task",
    "render_episode",
    "task_actor",
    "task_names",
]
