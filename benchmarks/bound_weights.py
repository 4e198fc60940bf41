"""What perfect weights of the actor's regression would be worth: each row by how near its action is to the expert's.

    python benchmarks/bound_weights.py datasets/NAME --steps 20000 --seeds 10 11 12

SMORe weighs the likelihood of dataset actions by an advantage that it has learnt. Here the weight is
``exp(-sharpness d)``, with d the squared distance from the action that the network expert of the task would take for
the relabelled goal: it knows what a critic would have to learn. Beside it stands the same regression without weights,
``method=hindsight_bc``. Networks, batches and rates are those of ``preset=quick``. For tasks whose expert is a network
of this package.

Writes ``--out``, a CSV with a row for each run, and prints a Markdown table. Runs that the CSV already holds are not
repeated.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch
from harness import machine
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_smore import GoalBatchSampler, TrajectoryStore, goal_specs, make_networks
from torchrl_smore.data import anchor_weights, standardization
from torchrl_smore.envs import EnvPool, get_task
from torchrl_smore.envs.experts import Actor, read_actor
from torchrl_smore.objectives import GCSLLoss
from torchrl_smore.trainers import Evaluator, OfflineTrainer, adam

# the first six say which run a row is of
COLUMNS = (
    *("task", "dataset", "sharpness", "steps", "episodes", "seed"),
    *("weights", "effective_batch", "success", "return"),
)
LEARNING_RATE, BATCH_SIZE, CONTAMINATION = 1e-3, 256, 0.2  # of preset=quick


class ExpertWeighted:
    """Batches of a sampler, weighted by the expert; a sharpness of 0 leaves all rows alike.

    Args:
        sampler: gives the batches.
        expert: sees observation and goal.
        sharpness: of ``exp(-sharpness d)``, non-negative, in one over squared units of the action.
    """

    def __init__(self, sampler: GoalBatchSampler, expert: Actor, sharpness: float) -> None:
        self.sampler, self.expert, self.sharpness = sampler, expert, sharpness
        self.shares: list[float] = []  # effective sample size over batch size, of each batch

    def __call__(self) -> TensorDictBase:
        """The next batch, with ``priority_weight`` ``[B]`` of mean 1."""
        batch = self.sampler()
        best = expert_actions(self.expert, batch["observation"], batch["desired_goal"])
        weight = torch.exp(-self.sharpness * (batch["action"] - best).square().sum(-1))
        weight = weight / weight.mean()
        self.shares.append(float(1.0 / weight.square().mean()))
        batch["priority_weight"] = weight
        return batch


def expert_actions(expert: Actor, observation: Tensor, goal: Tensor) -> Tensor:
    """Actions ``[B, A]`` of a network with hidden ReLU that sees observation and goal.

    ``ActorExpert`` computes row by row, so that its bits do not depend on the batch; training takes too long with that.
    """
    x = torch.cat([observation, goal], -1)
    if expert.mean is not None and expert.std is not None:
        x = ((x - torch.from_numpy(expert.mean)) / torch.from_numpy(expert.std)).clamp(-expert.clip, expert.clip)
    *hidden, (last, bias) = expert.layers
    for weight, offset in hidden:
        x = torch.nn.functional.linear(x, torch.from_numpy(weight), torch.from_numpy(offset)).relu()
    return torch.nn.functional.linear(x, torch.from_numpy(last), torch.from_numpy(bias)).tanh()


def run(args: argparse.Namespace, store: TrajectoryStore, expert: Actor, sharpness: float, seed: int) -> dict[str, Any]:
    """Trains one actor; returns its row."""
    task = get_task(store.meta["task"])
    torch.manual_seed(seed)
    specs = goal_specs(task.observation_dim, task.goal_dim, task.action_dim)
    networks = make_networks(*specs, statistics=standardization(store.data), contamination=CONTAMINATION)
    loss = GCSLLoss(networks.actor, regression="nll")
    optimizer, scheduler = adam(loss, lr=LEARNING_RATE, total_steps=args.steps)
    anchors = anchor_weights("arriving", store.data, threshold=task.threshold)
    sampler = GoalBatchSampler(store.data, BATCH_SIZE, her_ratio=1.0, anchors=anchors, q=False, seed=seed)
    batches = ExpertWeighted(sampler, expert, sharpness)
    with EnvPool(task, min(args.episodes, 50)) as pool, tempfile.TemporaryDirectory() as run_dir:
        trainer = OfflineTrainer(
            loss,
            batches,
            optimizer,
            total_steps=args.steps,
            run_dir=run_dir,
            scheduler=scheduler,
            evaluator=Evaluator(pool, episodes=args.episodes, horizon=task.horizon),
            eval_interval=args.steps,
            log_interval=args.steps,
            save_interval=args.steps,
        )
        trainer.train()
        metrics = trainer.evaluations[0].metrics
    return {
        "task": task.name,
        "dataset": store.sha256[:8],
        "sharpness": sharpness,
        "steps": args.steps,
        "episodes": args.episodes,
        "seed": seed,
        "weights": "expert" if sharpness else "none",
        "effective_batch": f"{np.mean(batches.shares):.3f}",
        "success": f"{metrics['success_last']:.2f}",
        "return": f"{metrics['discounted_return_0.99']:.2f}",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each kind of weight, its seeds, their mean and standard deviation."""
    lines = []
    for sharpness in dict.fromkeys(str(row["sharpness"]) for row in rows):
        own = [row for row in rows if str(row["sharpness"]) == sharpness]
        returns = [float(row["return"]) for row in own]
        spread = f" ± {statistics.stdev(returns):.1f}" if len(returns) > 1 else ""
        by_seed = [", ".join(row[name] for row in own) for name in ("effective_batch", "success", "return")]
        weights = f"exp(-{sharpness} d)" if float(sharpness) else "none (the control)"
        lines.append((weights, *by_seed, f"{statistics.mean(returns):.1f}{spread}"))
    return pages.markdown(("weights", "effective share of a batch", "success", "return", "mean"), lines)


def main() -> None:
    """Runs what is missing, then prints everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--out", default="outputs/benchmarks/bound_weights.csv")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--sharpness", type=float, default=3.0)
    parser.add_argument("--episodes", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = TrajectoryStore.load(args.dataset)
    task = get_task(store.meta["task"])
    expert = None if task.bundled_actors is None else read_actor(Path(task.bundled_actors) / "expert.npz")
    if expert is None or (expert.activation, expert.output, expert.goal_dim) != ("relu", "tanh", task.goal_dim):
        parser.error(f"expected data of a task whose expert is a network that sees goals, got {task.name}.")
    file = Path(args.out)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = list(csv.DictReader(file.open(newline=""))) if file.exists() else []
    done = {tuple(str(row[name]) for name in COLUMNS[:6]) for row in rows}
    asked = {"task": task.name, "dataset": store.sha256[:8], "steps": args.steps, "episodes": args.episodes}
    print(machine(1), flush=True)
    for sharpness in (0.0, args.sharpness):
        for seed in args.seeds:
            own = {**asked, "sharpness": sharpness, "seed": seed}
            if tuple(str(own[name]) for name in COLUMNS[:6]) in done:
                continue
            rows.append(run(args, store, expert, sharpness, seed))
            with pages.replacing(file) as beside, beside.open("w", newline="") as handle:
                writer = csv.DictWriter(handle, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print("\n" + table([row for row in rows if all(str(row[name]) == str(value) for name, value in asked.items())]))


if __name__ == "__main__":
    main()
