"""The card of a dataset: everything that its user must know, from the store and the task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import Task

_HOW: dict[str, tuple[str, ...]] = {
    "minari": (
        "import minari  # with MINARI_DATASETS_PATH set to the folder that holds this dataset",
        "",
        'dataset = minari.load_dataset("{name}")',
    ),
    "d4rl": ("import h5py", "", 'observations = h5py.File("{name}")["observations"][:]'),
    "ogbench": ("from ogbench.utils import load_dataset", "", 'dataset = load_dataset("{name}")'),
    "wgcsl": ("import pickle", "", 'buffer = pickle.load(open("{name}", "rb"))  # o, ag, u, g'),
}
_KNOWN = (
    *("task", "composition", "observation_columns", "goal_columns", "action_columns"),
    *("success_rule", "threshold", "goal_parts", "goal_range"),
)
_PURPOSE = "for offline goal-conditioned reinforcement learning"


def dataset_card(
    store: TrajectoryStore, task: Task, format: str, name: str, *, author: str | None = None, license: str | None = None
) -> str:
    """The card in Markdown.

    Args:
        store: the trajectories.
        task: their task.
        format: one of the formats of ``export_dataset.py``.
        name: file or id of the dataset.
        author: who publishes it.
        license: under what terms.
    """
    start, stop = store.trajectory_bounds
    length = stop - start
    reward = store.data.get(("next", "reward")).squeeze(-1)
    action = store.data.get("action")
    lines = [
        f"# {name}",
        "",
        f"Trajectories of {task.name} {_PURPOSE}. {task.description}",
        "",
        f"- {store.num_trajectories:,} trajectories of {int(length.min())} to {int(length.max())} transitions, "
        f"{store.num_transitions:,} in all.",
        f"- Success: {task.success_rule}; at the goal in the last step: {reward[stop - 1].mean():.1%} of trajectories.",
        "- Reward: 1 where the goal is reached after the step, else 0. Success never ends an episode: "
        f"`terminated` in {store.data['next', 'terminated'].sum().item():,} of them, the others are truncated.",
        f"- Simulator: {task.paper_note}",
        f"- Actions lie in [{action.min():g}, {action.max():g}].",
        f"- SHA-256 of the columns: `{store.sha256}`.",
        *([f"- Author: {author}"] if author else []),
        *([f"- License: {license}"] if license else []),
        "",
        "## How to load it",
        "",
        "```python",
        *(line.format(name=name) for line in _HOW[format]),
        "```",
        "",
        "## Columns",
        "",
        *_columns("observation", task.observation_columns),
        *_columns("achieved_goal, desired_goal", task.goal_columns),
        *_columns("action", task.action_columns),
    ]
    composition = store.meta.get("composition")
    if composition:
        lines += ["", "## Behaviour", "", *_parts(composition)]
    rest = {key: value for key, value in store.meta.items() if key not in _KNOWN}
    if rest:
        lines += ["", "## How it was made", "", *(f"- {key}: {value}" for key, value in rest.items())]
    return "\n".join(lines) + "\n"


def is_card(path: Path, name: str) -> bool:
    """Whether a file is the card of a dataset of that name."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False
    return lines[:2] == [f"# {name}", ""] and len(lines) > 2 and _PURPOSE in lines[2]


def _columns(name: str, columns: Sequence[str]) -> list[str]:
    return [f"- `{name}` [{len(columns)}]: {'; '.join(columns)}"]


def _parts(composition: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each behaviour with what is known of it."""
    return [
        f"- {part['num_trajectories']:,} of {part.get('behaviour', 'one behaviour')}: "
        + ", ".join(f"{key} {_text(part[key])}" for key in part if key not in ("behaviour", "num_trajectories"))
        for part in composition
    ]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
