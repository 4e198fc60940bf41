"""The compositions of the paper's datasets by name, and how many trajectories they have."""

from __future__ import annotations

from torchrl_smore._errors import unknown_name
from torchrl_smore.envs.tasks import Task, get_task

MIXTURES = {"expert10": 0.1, "expert5": 0.05, "expert2.5": 0.025, "expert1": 0.01, "expert0": 0.0}
"""Share of expert trajectories, the rest being random: Tables 1 (``expert10``), 2, 6 to 8 and 14 (``expert0``)."""

ACTION_NOISES = (0.5, 1.0, 1.5)
"""Standard deviations of the environment's action noise in the paper's Fig. 2, in units of the action."""

SIZES = ("small", "paper")
_SMALL = 4_000  # trajectories: minutes of collection on a laptop
_PAPER = dict.fromkeys(("FetchPush", "FetchPick", "FetchSlide", "HandReach"), 2_000_000)  # transitions


def mixture_counts(task: str | Task, mixture: str = "expert10", size: str = "small") -> tuple[int, int]:
    """Numbers of expert and random trajectories, as :func:`~torchrl_smore.envs.collect` takes them.

    Args:
        task: the task or its name.
        mixture: a name of ``MIXTURES``.
        size: ``"small"`` (4,000 trajectories) or ``"paper"`` (the published 2 million transitions of the hard Fetch
            tasks and the hand, in trajectories of the task's horizon).

    Returns:
        How many expert and how many random ones.

    Raises:
        ValueError: for an unknown name, or for ``size="paper"`` with a task whose published size is not known.
    """
    task = get_task(task)
    if mixture not in MIXTURES:
        raise unknown_name("mixture", mixture, MIXTURES)
    if size not in SIZES:
        raise unknown_name("size", size, SIZES)
    if size == "paper" and task.name not in _PAPER:
        raise ValueError(f'size="paper" is known for {", ".join(_PAPER)}, got {task.name}; give num_trajectories.')
    total = _SMALL if size == "small" else _PAPER[task.name] // task.horizon
    experts = round(total * MIXTURES[mixture])
    return experts, total - experts
