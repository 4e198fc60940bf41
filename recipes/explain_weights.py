"""Where the weights of a run's advantage-weighted regression go: by behaviour, kind of goal, and distance from it.

python recipes/explain_weights.py run=runs/NAME

A policy that does not learn may be a regression whose weight lies on rows that do not matter. Writes ``weights.csv``
into the run folder and prints it as a table.
"""

from __future__ import annotations

import csv
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recipe_cli import option, read_config, run_recipe
from recipe_utils import write_text
from smore_offline import Config as RunConfig
from smore_offline import identity, make_dataset, make_loss
from torch import Tensor

from torchrl_smore import GoalBatchSampler, TrajectoryStore
from torchrl_smore.data import split_by_behaviour
from torchrl_smore.envs import Task, get_task
from torchrl_smore.functional.losses import awr_weight
from torchrl_smore.trainers import latest_checkpoint, load_checkpoint

METHODS = ("smore", "gc_iql")
COLUMNS = ("behaviour", "goal", "at_goal", "rows", "advantage", "advantage_std", "weight", "weight_share", "clipped")


@dataclass
class Config:
    """Every option of the recipe, its default and its text in ``--help``."""

    run: str | None = option(None, "run folder of smore_offline.py")
    position: int = option(0, "which of the seeds that were trained together")
    rows: int = option(50_000, "rows that are drawn, in all")
    seed: int = option(0, "of the drawing")


def main(config: Config) -> None:
    """Runs the recipe."""
    if config.run is None:
        raise ValueError("give the run folder as run=runs/NAME.")
    if config.rows < 1:
        raise ValueError(f"rows must be at least 1, got {config.rows}.")
    folder = Path(config.run)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"run={config.run} is no run folder: it has no config.yaml.")
    run = read_config(RunConfig, folder / "config.yaml")
    if run.method not in METHODS or run.actor == "score":
        raise ValueError(
            f"method={run.method} does not weigh its regression by exp(temperature * advantage); explained are "
            f"{', '.join(METHODS)}, with actor=awr."
        )
    task = get_task(run.task)
    state, _ = load_checkpoint(latest_checkpoint(folder / "checkpoint"), identity(run))
    states = state["update"]["losses"]
    if not 0 <= config.position < len(states):
        raise ValueError(f"position must be in [0, {len(states) - 1}], got {config.position}.")
    store = make_dataset(run, task)
    loss = make_loss(run, task, store, torch.device("cpu"))
    loss.load_state_dict(states[config.position])
    with warnings.catch_warnings():
        # nothing is trained here, so nothing updates the target network
        warnings.filterwarnings("ignore", "No target network updater", UserWarning)
        groups = explain(loss, task, store, run.her_ratio, config.rows, config.seed)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(groups)
    write_text(folder / "weights.csv", text.getvalue())
    print(f"{run.task}, {run.method}, update {state['step']:,}: temperature {float(loss.temperature):g}")
    print("\n".join(table(groups)))
    print(f"\n{folder / 'weights.csv'}")


def explain(
    loss: Any, task: Task, store: TrajectoryStore, her_ratio: float, rows: int, seed: int = 0
) -> list[dict[str, Any]]:
    """What the weights of each group of rows add up to.

    Args:
        loss: has ``advantage``, ``temperature`` and ``weight_clip``.
        task: says when a goal is reached.
        store: the data, with the behaviours that they are of.
        her_ratio: probability of relabelling, in ``[0, 1]``.
        rows: drawn in all, of each behaviour as many as it has a share of the transitions.
        seed: of the drawing.

    Returns:
        For each behaviour, ``goal`` (``hindsight`` or ``stored``) and ``at_goal`` (whether the row begins where its
        goal is reached) that was drawn: ``rows``, its share of all; mean ``advantage`` and its standard deviation; mean
        ``weight``; ``weight_share``, its share of the sum of weights; ``clipped``, the share of its weights at the
        clip.
    """
    parts = []
    for behaviour, part in split_by_behaviour(store).items():
        count = round(rows * part.num_transitions / store.num_transitions)
        if count:
            parts.append((behaviour, *_weights(loss, task, part, her_ratio, count, seed)))
    total = sum(float(weight.sum()) for *_, weight in parts)
    drawn = sum(len(weight) for *_, weight in parts)
    groups = []
    for behaviour, stored, at_goal, advantage, weight in parts:
        for goal, kept in (("hindsight", ~stored), ("stored", stored)):
            for place in (False, True):
                chosen = kept & (at_goal == place)
                if chosen.any():
                    found = {
                        "rows": chosen.sum() / drawn,
                        "advantage": advantage[chosen].mean(),
                        "advantage_std": advantage[chosen].std(correction=0),
                        "weight": weight[chosen].mean(),
                        "weight_share": weight[chosen].sum() / total,
                        "clipped": (weight[chosen] >= loss.weight_clip).double().mean(),
                    }
                    numbers = {name: round(float(value), 4) for name, value in found.items()}
                    groups.append({"behaviour": behaviour, "goal": goal, "at_goal": place, **numbers})
    return groups


def _weights(
    loss: Any, task: Task, store: TrajectoryStore, her_ratio: float, rows: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of some rows whether the goal is the stored one, whether they are there, advantage and weight."""
    extras = ("achieved_goal", "goal_offset")
    batch = GoalBatchSampler(store.data, rows, her_ratio=her_ratio, extras=extras, seed=seed)()
    advantage = loss.advantage(batch).double()
    weight = awr_weight(advantage, float(loss.temperature), loss.weight_clip)
    at_goal = task.reached(batch["achieved_goal"], batch["desired_goal"])
    return batch["goal_offset"].squeeze(-1) == -1, at_goal, advantage, weight


def table(groups: list[dict[str, Any]]) -> list[str]:
    """The groups as lines of Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return lines + [f"| {' | '.join(str(group[name]) for name in COLUMNS)} |" for group in groups]


if __name__ == "__main__":
    run_recipe(Config, main, __doc__ or "")
