"""The tasks, declared family by family; :data:`TASKS` has them in this order."""

from torchrl_smore.envs.tasks import fetch, hand, locomotion, point, reacher, sawyer, tabletop
from torchrl_smore.envs.tasks._base import TASKS, Task, get_task, task_names

for _family in (fetch, hand, point, reacher, sawyer, locomotion, tabletop):
    TASKS.update({task.name: task for task in _family.TASKS})

__all__ = ["TASKS", "Task", "get_task", "task_names"]
