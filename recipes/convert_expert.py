"""Makes an expert of a locomotion task from an agent of Stable-Baselines3, and measures it; no code of the agent runs.

python recipes/convert_expert.py task=AntTgtVel-m-e agent=Ant-v3.zip
python recipes/collect_dataset.py task=AntTgtVel-m-e num_trajectories=1030 expert_policy=runs/NAME

The statistics of its observations, where it has some, are looked for in ``Ant-v3/vecnormalize.pkl`` and then in
``vecnormalize.pkl`` beside it. Leaves ``expert.npz`` and ``meta.json`` in a run folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from parts.cli import check_range, option, run_recipe
from parts.experts import repeat_command
from parts.shared import new_run_folder, versions_of, write_json
from train_expert import PACKAGES, RUNNING, measure

from torchrl_smore.envs import Task, get_task, task_actor
from torchrl_smore.envs.experts import ActorExpert, policy_files, write_actor

_MEASURE_SEED = 20_000  # of the first episode


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    task: str = option("AntTgtVel-m-e", ", ".join(RUNNING))
    agent: str | None = option(None, "file of the agent, as model.save of Stable-Baselines3 writes it")
    source: str | None = option(None, "where the agent comes from, for meta.json: repository, file, commit")
    license: str | None = option(None, "the agent's licence, for meta.json")
    measure_episodes: int = option(20, "episodes that measure it")
    run_root: str = option("runs", "where run folders are made")


def main(config: Config) -> None:
    """Runs the recipe."""
    convert(config)


def convert(config: Config) -> dict[str, Any]:
    """Converts and measures an agent.

    Returns:
        What ``meta.json`` holds, and the folder as ``"run_dir"``.

    Raises:
        ValueError: if an option is missing or outside its range, or the file holds no actor for the task.
    """
    task = _checked(config)
    actor = task_actor(task, str(config.agent))
    folder = new_run_folder(
        config.run_root, config.task, "converted", config=yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    )
    path = folder / "expert.npz"
    write_actor(path, actor)
    found = measure(task, ActorExpert(path), config.measure_episodes, _MEASURE_SEED, "target")
    meta: dict[str, Any] = {
        "task": task.name,
        "reward": "target",
        "command": _command(config),
        "source": config.source,
        "license": config.license,
        "source_sha256": {file.name: _sha256(file) for file in policy_files(str(config.agent))},
        "versions": versions_of(PACKAGES),
        "expert": {
            "episodes": config.measure_episodes,
            **{name: float(values.mean()) for name, values in found.items()},
            "return_std": float(found["return"].std()),
            "sha256": _sha256(path),
        },
    }
    write_json(folder / "meta.json", meta)
    print(
        f"expert: return {meta['expert']['return']:.1f} +- {meta['expert']['return_std']:.1f}, "
        f"{meta['expert']['velocity']:.2f} m/s, at the goal {meta['expert']['reached']:.1%} of the steps, "
        f"discounted {meta['expert']['discounted_return']:.1f}\n"
        f"Collect with: python recipes/collect_dataset.py task={task.name} expert_policy={folder}"
    )
    return {**meta, "run_dir": str(folder)}


def _checked(config: Config) -> Task:
    task = get_task(config.task)
    if task.name not in RUNNING:
        raise ValueError(f"task must be one of {', '.join(RUNNING)}, got {task.name}.")
    if config.agent is None:
        raise ValueError("agent must name a file of Stable-Baselines3, got none.")
    check_range("measure_episodes", config.measure_episodes, 1, 10**6)
    return task


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _command(config: Config) -> str:
    """The command that repeats the conversion beside the agent's file."""
    agent = Path(str(config.agent)).name
    return repeat_command("convert_expert.py", config, "task", "agent", agent=agent, source=None, license=None)


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
