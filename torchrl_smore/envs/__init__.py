"""Tasks, their environments and scripted experts, and the collection of datasets.

Importing this needs gymnasium only; the simulators are imported when an environment is built.
"""

from torchrl_smore.envs.collect import collect
from torchrl_smore.envs.experts import Expert, PlanningExpert, begin_episodes
from torchrl_smore.envs.mixtures import ACTION_NOISES, MIXTURES, mixture_counts
from torchrl_smore.envs.pool import EnvPool
from torchrl_smore.envs.render import RenderError, render_episode
from torchrl_smore.envs.tasks import TASKS, Task, get_task, task_names

__all__ = [
    "ACTION_NOISES",
    "MIXTURES",
    "TASKS",
    "EnvPool",
    "Expert",
    "PlanningExpert",
    "RenderError",
    "Task",
    "begin_episodes",
    "collect",
    "get_task",
    "mixture_counts",
    "render_episode",
    "task_names",
]
