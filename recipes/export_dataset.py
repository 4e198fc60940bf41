"""Writes a dataset in a format that other programs read, with a card to publish it.

python recipes/export_dataset.py dataset=datasets/NAME format=minari
python recipes/export_dataset.py dataset=buffer.pkl task=FetchPush format=ogbench out=shared
MINARI_DATASETS_PATH=exports python -c "import minari; minari.load_dataset('FetchReach/smore-v0')"

Every number is that of the dataset, but for rewards, which follow the task's rule, and for two columns of Reacher's
published files, which are 0 here (docs/tasks.md). minari, ogbench and wgcsl hold sequences of states; d4rl holds any
rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env, spaces
from parts.cli import nearest, option, run_recipe
from parts.dataset_card import dataset_card, is_card
from parts.datasets import load_dataset, recognise_dataset

from torchrl_smore import TrajectoryStore
from torchrl_smore.data import writers
from torchrl_smore.data.readers import Goals
from torchrl_smore.envs import Task, get_task, task_names
from torchrl_smore.trainers import write_text

FILES: dict[str, tuple[str, Callable[[TrajectoryStore, Path], None]]] = {
    "d4rl": ("hdf5", writers.d4rl.write),
    "ogbench": ("npz", writers.ogbench.write),
    "wgcsl": ("pkl", writers.wgcsl.write),
}
FORMATS = ("minari", *FILES)


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    dataset: str | None = option(None, "a store, or a file or folder of any format that smore_offline.py takes")
    format: str | None = option(None, ", ".join(FORMATS))
    task: str | None = option(None, f"{', '.join(task_names())}; default: the store's")
    dataset_format: str | None = option(None, "of the dataset; default: recognised")
    goal_columns: tuple[int, ...] | None = option(None, "as in smore_offline.py")
    columns: Any = option(None, "as in smore_offline.py")  # noqa: RUF009 - nobody changes it
    out: str = option("exports", "folder that the dataset is written to")
    name: str | None = option(None, "of the dataset, for minari its id; default: TASK/smore-v0, or TASK")
    author: str | None = option(None, "for card and metadata")
    license: str | None = option(None, "for card and metadata")


def main(config: Config) -> None:
    """Runs the recipe."""
    if config.dataset is None:
        raise ValueError("give the dataset as dataset=....")
    if config.format not in FORMATS:
        near = nearest(config.format or "", FORMATS)
        raise ValueError(f"give format as one of {', '.join(FORMATS)}, got {config.format}.{near}")
    store, task = read(config)
    if config.format == "minari":
        name = config.name or f"{task.name}/smore-v0"
        card = dataset_card(store, task, config.format, name, author=config.author, license=config.license)
        low, high = action_range(store)
        metadata = minari_metadata(config, store, task)
        place = writers.minari.write(
            store, config.out, name, action_low=low, action_high=high, metadata=metadata, card=card
        )
        card_path = place / "README.md"
    else:
        suffix, write = FILES[config.format]
        name = config.name or task.name
        place = Path(config.out) / f"{name}.{suffix}"
        card = dataset_card(store, task, config.format, place.name, author=config.author, license=config.license)
        card_path = write_with_card(store, write, place, card)
    print(f"{store.summary()}\n{config.format}: {place}\ncard: {card_path}")


def read(config: Config) -> tuple[TrajectoryStore, Task]:
    """The dataset and its task."""
    assert config.dataset is not None
    format = config.dataset_format or recognise_dataset(config.dataset)
    name = config.task
    if name is None and format == "store":
        name = TrajectoryStore.load(config.dataset, verify=False).meta.get("task")
    if name is None:
        raise ValueError(f"dataset={config.dataset} does not say what task it is of: give it as task=....")
    task = get_task(name)
    goals = None if config.goal_columns is None else Goals(config.goal_columns)
    return load_dataset(config.dataset, task, format=format, goals=goals, columns=config.columns), task


def write_with_card(
    store: TrajectoryStore, write: Callable[[TrajectoryStore, Path], None], place: Path, card: str
) -> Path:
    """Writes a file and its card, which is there first: a file without a card would look finished.

    Returns:
        Where the card is. What a killed export left there to describe a file that never came is replaced.

    Raises:
        FileExistsError: if either is there.
    """
    card_path = place.with_name(f"{place.name}.md")
    free_of_card = not card_path.exists() or is_card(card_path, place.name)
    for path, is_free in ((place, not place.exists()), (card_path, free_of_card)):
        if not is_free:
            raise FileExistsError(f"{path} exists; move it, or write to another place.")
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        write_text(card_path, card)
        write(store, place)
    except BaseException:
        if not place.exists():
            card_path.unlink(missing_ok=True)
            for folder in made:  # innermost first
                with contextlib.suppress(OSError):
                    folder.rmdir()
        raise
    return card_path


def action_range(store: TrajectoryStore) -> tuple[float, float]:
    """Smallest and largest number in a dataset's action space: -1 and 1, or more where actions leave that."""
    action = store.data["action"]
    return min(-1.0, float(action.min())), max(1.0, float(action.max()))


def minari_metadata(config: Config, store: TrajectoryStore, task: Task) -> dict[str, Any]:
    """What minari shows of a dataset, and the environment that it can build again, if that is the dataset's."""
    metadata: dict[str, Any] = {"description": f"{task.description} {task.success_rule}: reward 1, else 0."}
    given = {"author": config.author, "license": config.license}
    metadata |= {key: value for key, value in given.items() if value is not None}
    with contextlib.closing(task.make_env()) as env:
        base = env.unwrapped
        # minari builds it from its id alone, without what a task wraps round it
        if base.spec is None or not has_spaces_of(base, store):
            return metadata
        spec = dataclasses.replace(base.spec, max_episode_steps=task.horizon)
    # a function or an object that it is made of is in no file
    with contextlib.suppress(TypeError, ValueError):
        metadata["env_spec"] = spec.to_json()
        if type(base).__module__.partition(".")[0] == "gymnasium_robotics":
            metadata["requirements"] = ["gymnasium-robotics", "mujoco"]
    return metadata


def has_spaces_of(env: Env, store: TrajectoryStore) -> bool:
    """Whether an environment has the spaces of a dataset's observations, goals and actions."""
    low, high = action_range(store)
    widths = {"observation": store.observation_dim, "achieved_goal": store.goal_dim, "desired_goal": store.goal_dim}
    observation = env.observation_space
    return (
        isinstance(observation, spaces.Dict)
        and {key: space.shape for key, space in observation.items()} == {key: (n,) for key, n in widths.items()}
        and env.action_space == spaces.Box(low, high, (store.action_dim,), np.float32)
    )


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
