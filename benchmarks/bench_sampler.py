"""Batches per second of goal-transition sampling beside TorchRL's buffers, and its share of an update.

    python benchmarks/bench_sampler.py

A batch of ours is B offline rows with hindsight goals and B goal transitions; ``HERReplayBuffer`` and the uniform
buffers give B rows. No buffer prefetches. Variants take turns, one active at a time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from bench_update import MODES, make_loss, make_update
from tensordict import TensorDict
from torchrl.data import HERReplayBuffer, LazyTensorStorage, TensorDictReplayBuffer

from torchrl_smore import GoalBatchSampler
from torchrl_smore.data import GoalTransition, HindsightGoalTransform


def reward(rows: TensorDict) -> torch.Tensor:
    """0/1 reward of relabelled rows."""
    distance = (rows["achieved_goal"] - rows["desired_goal"]).norm(dim=-1, keepdim=True)
    return (distance < 0.05).float()


def samplers(data: TensorDict, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Name -> one batch."""
    packed = GoalBatchSampler(data, batch_size)

    def filled(kind: type, **options: Any) -> Callable[[], Any]:
        buffer = kind(storage=LazyTensorStorage(len(data)), batch_size=batch_size, **options)
        buffer.extend(data)
        return buffer.sample

    unit = {"sample_unit": GoalTransition(), "transform": HindsightGoalTransform()}
    return {
        "GoalBatchSampler (rho and q)": packed,
        "replay buffer with GoalTransition (rho and q)": filled(TensorDictReplayBuffer, **unit),
        "HERReplayBuffer (rho)": filled(HERReplayBuffer, reward_fn=reward),
        "TensorDictReplayBuffer, no goals": filled(TensorDictReplayBuffer),
    }


def main() -> None:
    """Times samplers and updates and reports."""
    parser = harness.parser(__doc__, "sampler", blocks=9)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--trajectories", type=int, default=4000)
    parser.add_argument("--batches", type=int, default=100, help="batches in a block")
    parser.add_argument("--compile", default="off", choices=MODES, help="of the update")
    args = parser.parse_args()
    if args.smoke:
        args.batch_size, args.trajectories, args.batches, args.blocks = 8, 4, 2, 1
    harness.begin(args)
    data = harness.random_dataset(args.trajectories)
    update = make_update(make_loss("in_sample"), data, args.batch_size, args.compile)
    found = harness.interleave(
        {
            **{name: harness.rate(call, args.batches) for name, call in samplers(data, args.batch_size).items()},
            "update (in_sample)": harness.rate(update, max(1, args.batches // 10)),
        },
        args.blocks,
        warm_up=2 if args.compile != "off" else 1,
    )
    updates, ours = found.pop("update (in_sample)"), found["GoalBatchSampler (rho and q)"]
    rows = [[name, harness.spread(values), harness.ratio(ours, values)] for name, values in found.items()]
    print("\n" + harness.markdown(["sampler", "batches/s median [min, max]", "ours is so many times as fast"], rows))
    share = [1e2 * update / sample for update, sample in zip(updates, ours)]
    print(f"\nupdate, compile={args.compile}: {harness.spread(updates)}/s; share of sampling {harness.spread(share)}%")
    common = {"batch": args.batch_size, "threads": args.threads}
    everything = {**found, "update (in_sample)": updates}
    harness.write_csv(Path(args.out + ".csv"), harness.long_rows(everything, "1/s", **common))
    title = f"{harness.machine(args.threads)}\nsampling is {statistics.median(share):.1f}% of an update"
    harness.plot_bars(Path(args.out + ".png"), found, title, f"batches/s of {args.batch_size} rows (median, range)")
    print(f"{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
