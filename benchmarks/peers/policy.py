"""What the peers of the training recipe share: its data, its episodes, its clock; see ``bench_time_to_policy.py``.

A peer is a learner: a function of the run's options, the task and the data that returns what one update does and how
the policy acts. Rewards are -1, and 0 at the goal; four fifths of the goals are later ones of the trajectory. Discount,
expectile and temperature are those of GC-IQL in the recipe, in the unit of the value.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT / "benchmarks")]

if TYPE_CHECKING:
    import numpy as np
    from parts.options import Config

    from torchrl_smore import TrajectoryStore
    from torchrl_smore.envs import Task

GAMMA, EXPECTILE, TEMPERATURE = 0.9, 0.7, 1.0
HINDSIGHT, POLYAK = 0.8, 0.005

Policy = Callable[[dict[str, "np.ndarray"]], "np.ndarray"]
Learner = Callable[["Config", "Task", "TrajectoryStore"], tuple[Callable[[], Any], Policy]]


def run(learner: Learner) -> None:
    """Trains, evaluates, and writes what :meth:`Clock.finished` gives; arguments ``OUT BEGUN OPTION=VALUE ...``."""
    out, begun, options = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    import torch
    from bench_time_to_policy import Clock
    from parts.build import make_dataset
    from parts.cli import typed
    from parts.options import Config, with_defaults

    from torchrl_smore.envs import EnvPool, get_task
    from torchrl_smore.trainers import Evaluator

    clock = Clock(begun)
    clock.parts["imports"] = time.time() - begun
    given = {name: json.loads(text) if text[0].isdigit() else text for name, _, text in map(_split, options)}
    for name, value in given.items():
        typed(Config, name, value, "options")
    config = with_defaults(Config(method="gc_iql", **given))
    task = get_task(config.task)
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    with clock.part("data"):
        store = make_dataset(config, task)
    update, policy = learner(config, task, store)
    with EnvPool(task, min(config.eval_episodes, 50), num_workers=config.env_workers) as pool:
        evaluator = Evaluator(pool, episodes=config.eval_episodes, horizon=task.horizon, gammas=task.gammas)
        for number in range(1, config.steps + 1):
            with clock.part("updates" if number > 1 else "compilation"):
                update()
            if number % config.eval_interval == 0:
                with clock.part("evaluations"):
                    found = evaluator.run(policy).metrics
                clock.successes.append((time.time() - begun, found["success_last"]))
                print(f"update {number:,}: {found}", flush=True)
    Path(out).write_text(json.dumps(clock.finished()))


def _split(option: str) -> tuple[str, str, str]:
    return option.partition("=")
