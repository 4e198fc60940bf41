"""What a run folder holds for those who use it: ``policy.json``, the best networks, and a model card."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from parts.cli import read_plain
from parts.options import FREE_OPTIONS, OF_COLLECTION
from parts.shared import commit_of_library
from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import Task, get_task
from torchrl_smore.trainers import KeepBest, OfflineTrainer, record_policy, write_text

# what says where a run ran and not what it is
_LOCAL = (*FREE_OPTIONS, "log_interval")


def make_loadable(trainer: OfflineTrainer, task: Task, store: TrajectoryStore, identity: Mapping[str, Any]) -> None:
    """Writes ``policy.json`` into the run folder, and keeps the networks of the best evaluations from now on.

    Args:
        trainer: of the run, before it begins.
        task: the task.
        store: the dataset.
        identity: names of task, method and formulation.
    """
    assert trainer.run_dir is not None
    goals = _range(store.data.get("desired_goal"), store.data.get(("next", "achieved_goal")))
    seen = _range(store.data.get("observation"), store.data.get(("next", "observation")))
    data = {
        "sha256": store.sha256,
        "trajectories": store.num_trajectories,
        "transitions": store.num_transitions,
        "composition": [
            {key: part.get(key) for key in ("behaviour", "num_trajectories")}
            for part in store.meta.get("composition", [])
        ],
    }
    record_policy(
        trainer.run_dir,
        trainer.loss_module,
        columns={
            "observation": task.observation_columns,
            "desired_goal": task.goal_columns,
            "action": task.action_columns,
        },
        goal_range=goals,
        about={
            **identity,
            "success_rule": task.success_rule,
            "data": data,
            "observation_range": [bound.tolist() for bound in seen],
            "commit": _first_commit(trainer.run_dir),
        },
    )
    trainer.register_op("post_steps", KeepBest(trainer))


def _first_commit(run_dir: Path) -> str:
    """The commit that a run was begun at: one that resumes it does not make it its own."""
    if any((run_dir / "checkpoint").glob("step_*")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads((run_dir / "policy.json").read_text(encoding="utf-8"))["commit"])
    return commit_of_library()


def _range(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each column, of two tensors ``[N, C]``."""
    return first.amin(0).minimum(second.amin(0)), first.amax(0).maximum(second.amax(0))


def write_model_card(run_dir: Path) -> None:
    """Writes ``model_card.md`` from the ``summary.json``, ``config.yaml`` and ``policy.json`` of a finished run."""
    summary = json.loads((run_dir / "summary.json").read_text())
    about = json.loads((run_dir / "policy.json").read_text())
    options = read_plain(run_dir / "config.yaml")
    write_text(run_dir / "model_card.md", "\n".join(_card(run_dir.name, summary, about, options)) + "\n")


def _card(name: str, summary: dict[str, Any], about: dict[str, Any], options: dict[str, Any]) -> list[str]:
    task, data = get_task(summary["task"]), about["data"]
    method = summary["method"] + (f" ({summary['formulation']})" if summary["formulation"] else "")
    seeds = ", ".join(map(str, summary["seeds"]))
    parts = ", ".join(f"{part['num_trajectories']:,} {part['behaviour']}" for part in data["composition"])
    hidden = _LOCAL if options["dataset"] is None else (*_LOCAL, *OF_COLLECTION)
    shown = {key: value for key, value in options.items() if value is not None and key not in hidden}
    return [
        f"# {summary['task']}, {method}",
        "",
        f"A goal-conditioned policy, trained offline. {task.description}",
        "",
        f"- Run: `{name}`, {summary['steps']:,} updates, seed{'s' if len(summary['seeds']) > 1 else ''} {seeds}.",
        f"- Success: {about['success_rule']}. Episodes last {task.horizon} steps.",
        f"- Simulator: {task.paper_note}",
        "",
        "## Data",
        "",
        f"{data['trajectories']:,} trajectories, {data['transitions']:,} transitions"
        + (f" ({parts})" if parts else "")
        + f", SHA-256 `{data['sha256']}`.",
        "",
        "## Numbers",
        "",
        *_numbers(summary),
        "",
        "## How to load it",
        "",
        "```python",
        "from torchrl_smore import load_policy",
        "",
        f'policy = load_policy("{name}")  # needs torch and the core of torchrl-smore alone',
        f"action = policy(observation, goal)  # {_inputs(about)}",
        "```",
        "",
        *_columns(about),
        "",
        "## Options",
        "",
        *(f"- `{key}`: {value}" for key, value in shown.items()),
        "",
        "## Made with",
        "",
        ", ".join(f"{package} {version}" for package, version in summary["versions"].items())
        + (f"; commit `{about['commit']}`" if about["commit"] else "")
        + ".",
    ]


def _numbers(summary: dict[str, Any]) -> list[str]:
    """The evaluation at the end, with an interval for each metric of one seed and with each seed's value of several."""
    runs, episodes = summary["runs"], summary["eval"]["episodes"]
    lines = [f"At the end of training, over {episodes} episodes of each seed:", ""]
    if len(runs) == 1:
        intervals = runs[0]["eval"]["intervals"]
        rows = [(key, f"[{_text(low)}, {_text(high)}]") for key, (low, high) in intervals.items()]
        header = "| metric | mean | 95% interval |"
    else:
        keys = runs[0]["eval"]["intervals"]
        rows = [(key, ", ".join(_text(run["eval"][key]) for run in runs)) for key in keys]
        header = "| metric | mean | by seed |"
    return [
        *lines,
        header,
        "|---|---|---|",
        *(f"| {key} | {_text(summary['eval'][key])} | {rest} |" for key, rest in rows),
    ]


def _text(number: float | None) -> str:
    """A number of a summary, which has ``null`` where there is none."""
    return "none" if number is None else f"{number:.3f}"


def _inputs(about: dict[str, Any]) -> str:
    pixels = about.get("pixels")
    pictures = "" if pixels is None else f"pictures, uint8 [{pixels}, {pixels}, 3] each, RGB; "
    return f"{pictures}numpy or torch, one row or a batch"


def _columns(about: dict[str, Any]) -> list[str]:
    seen = [] if about.get("pixels") is None else ["What is painted, and the action:", ""]
    return seen + [
        f"- `{key}` [{len(columns)}]: {'; '.join(columns)}"
        + (f"; each in {about['action_range']}" if key == "action" else "")
        for key, columns in about["columns"].items()
    ]
