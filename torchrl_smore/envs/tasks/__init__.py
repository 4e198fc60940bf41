"""The tasks, declared family by family; the registry has them in this order."""

from torchrl_smore.envs.tasks import fetch, hand, locomotion, point, reacher, sawyer, tabletop
from torchrl_smore.envs.tasks._base import TASKS as TASKS
from torchrl_smore.envs.tasks._base import Task as Task
from torchrl_smore.envs.tasks._base import get_task as get_task
from torchrl_smore.envs.tasks._base import task_names as task_names

for _family in (fetch, hand, point, reacher, sawyer, locomotion, tabletop):
    TASKS.update({task.name: task for task in _family.TASKS})
