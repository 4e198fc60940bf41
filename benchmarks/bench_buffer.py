"""Milliseconds of a batch out of a TorchRL buffer: our unit and transform beside ``HERReplayBuffer``, and both growing.

    python benchmarks/bench_buffer.py

A batch of ours is B offline rows with hindsight goals and B goal transitions; ``HERReplayBuffer`` gives B rows.
Growing buffers get ``--added`` trajectories before every batch. No buffer prefetches. Variants take turns, one active
at a time. ``--cpu-time`` counts the time of the processor alone, for a machine that does other work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from tensordict import TensorDict
from torchrl.data import HERReplayBuffer, LazyTensorStorage, TensorDictReplayBuffer

from torchrl_smore.data import GoalTransition, GrowingRowStorage, HindsightGoalTransform

PEER, PEER_ON_OURS = "HERReplayBuffer (rho)", "HERReplayBuffer, GrowingRowStorage (rho)"
KINDS = {
    "ours, LazyTensorStorage (rho and q)": LazyTensorStorage,
    "ours, GrowingRowStorage (rho and q)": GrowingRowStorage,
    PEER: LazyTensorStorage,
    PEER_ON_OURS: GrowingRowStorage,
}
GROWING = ", growing"


def reward(rows: TensorDict) -> torch.Tensor:
    """0/1 reward of relabelled rows."""
    distance = (rows["achieved_goal"] - rows["desired_goal"]).norm(dim=-1, keepdim=True)
    return (distance < 0.05).float()


def make_buffer(kind: str, data: TensorDict, batch_size: int, room: int) -> Any:
    """A buffer of a kind that holds ``data`` and has room for so many rows more."""
    common = {"storage": KINDS[kind](len(data) + room), "batch_size": batch_size}
    if kind in (PEER, PEER_ON_OURS):
        buffer = HERReplayBuffer(reward_fn=reward, **common)
    else:
        buffer = TensorDictReplayBuffer(sample_unit=GoalTransition(), transform=HindsightGoalTransform(), **common)
    buffer.extend(data)
    return buffer


def growing(buffer: Any, added: TensorDict) -> Callable[[], None]:
    """One write and one batch."""

    def step() -> None:
        buffer.extend(added)
        buffer.sample()

    return step


def main() -> None:
    """Times buffers and reports."""
    parser = harness.parser(__doc__, "buffer", blocks=9)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--trajectories", type=int, default=10_000)
    parser.add_argument("--added", type=int, default=10, help="trajectories written before a batch of a growing buffer")
    parser.add_argument("--batches", type=int, default=50, help="batches in a block")
    parser.add_argument("--cpu-time", action="store_true", help="count the time of the processor")
    args = parser.parse_args()
    if args.smoke:
        args.batch_size, args.trajectories, args.added, args.batches, args.blocks = 8, 4, 1, 2, 1
    harness.begin(args)
    data, added = harness.random_dataset(args.trajectories), harness.random_dataset(args.added)
    # one turn more, which warms up, and one row more, so that no buffer is ever full
    room = len(added) * args.batches * (args.blocks + 1) + 1
    calls: dict[str, Callable[[], Any]] = {}
    for kind in KINDS:
        calls[kind] = make_buffer(kind, data, args.batch_size, 0).sample
        calls[kind + GROWING] = growing(make_buffer(kind, data, args.batch_size, room), added)
    clock = time.process_time if args.cpu_time else time.perf_counter
    blocks = {name: harness.rate(call, args.batches, clock) for name, call in calls.items()}
    found = harness.interleave(blocks, args.blocks)
    found = {name: [1e3 / value for value in rates] for name, rates in found.items()}
    unit, rows = "CPU ms" if args.cpu_time else "ms", []
    for name, values in found.items():
        peer = PEER + GROWING if name.endswith(GROWING) else PEER
        rows.append([name, harness.spread(values), harness.ratio(values, found[peer])])
    print("\n" + harness.markdown(["buffer", f"{unit} a batch, median [min, max]", "over HERReplayBuffer"], rows))
    common = {"batch": args.batch_size, "threads": args.threads, "rows": len(data)}
    harness.write_csv(Path(args.out + ".csv"), harness.long_rows(found, unit, **common))
    title = f"{harness.machine(args.threads)}\n{len(data):,} rows, batches of {args.batch_size}"
    harness.plot_bars(Path(args.out + ".png"), found, title, f"{unit} a batch (median, range)")
    print(f"{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
