"""Updates per second of each formulation, sampling included, beside its FLOP count and the machine's GEMM peak.

    python benchmarks/bench_update.py --threads 1 --blocks 9
    python benchmarks/bench_update.py --threads 1 --compile default

All variants live in one process and take turns (A B C A B C ...), one block of updates each, so a drift of the machine
hits them alike; medians over blocks are printed with their range. FLOPs are counted by PyTorch's registry of operator
formulas, one multiply-add being two; the floor is that count at the peak of a large matrix product timed in the same
turns.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchrl.objectives import SoftUpdate

from torchrl_smore import GoalBatchSampler, SMORELoss, goal_specs, make_networks
from torchrl_smore.trainers import Update, adam

VARIANTS = {
    "in_sample": {"formulation": "in_sample"},
    "dual (Eq. 10)": {"formulation": "dual", "residual_coef": 1.0},
    "dual (Eq. 8)": {"formulation": "dual", "bootstrap": "policy"},
    "official": {"formulation": "official"},
    "official_stable": {"formulation": "official_stable"},
}
OBSERVATION, GOAL, ACTION = 25, 3, 4  # FetchPush


def random_dataset(num_trajectories: int, length: int = 50) -> TensorDict:
    """Random transitions in TED layout with the shape of FetchPush data."""
    rows = num_trajectories * length
    stop = torch.arange(length, rows + 1, length).repeat_interleave(length)
    last = (torch.arange(1, rows + 1) % length == 0).unsqueeze(-1)
    return TensorDict(
        {
            "observation": torch.randn(rows, OBSERVATION),
            "action": torch.rand(rows, ACTION) * 2 - 1,
            "desired_goal": torch.randn(rows, GOAL),
            "next": TensorDict(
                {
                    "observation": torch.randn(rows, OBSERVATION),
                    "achieved_goal": torch.randn(rows, GOAL),
                    "reward": (torch.rand(rows, 1) < 0.1).float(),
                    "truncated": last,
                },
                [rows],
            ),
            "traj_stop": stop,
        },
        [rows],
    )


def make_update(name: str, data: TensorDict, args: argparse.Namespace) -> Update:
    """An update of one variant with its own networks."""
    torch.manual_seed(0)
    networks = make_networks(*goal_specs(OBSERVATION, GOAL, ACTION), hidden=(args.width, args.width))
    loss = SMORELoss(networks.actor, networks.score, networks.value, deactivate_vmap=not args.vmap, **VARIANTS[name])
    optimizer, scheduler = adam(loss, total_steps=1_000_000)
    return Update(
        loss,
        GoalBatchSampler(data, args.batch_size),
        optimizer,
        scheduler=scheduler,
        target_updater=SoftUpdate(loss, tau=0.005),
        compile=args.compile,
    )


class FlopCount(TorchDispatchMode):
    """Adds up the FLOPs of every operator below it (FlopCounterMode trips over TensorDictParams)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Counts one operator and runs it."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def matmul_block(size: int = 1024, repeats: int = 8) -> Callable[[], float]:
    """FLOP/s of a large float32 matrix product."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        return 2.0 * size**3 * repeats / (time.perf_counter() - start)

    return run


def update_block(update: Update, updates: int) -> Callable[[], float]:
    """Updates per second of one block."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(updates):
            update()
        return updates / (time.perf_counter() - start)

    return run


def main() -> None:
    """Runs the blocks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=4000)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--updates", type=int, default=15, help="updates in a block")
    parser.add_argument("--compile", default="off", choices=["off", "default", "max"])
    parser.add_argument("--vmap", action="store_true", help="evaluate the twin scores by vmap")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = random_dataset(args.trajectories)
    updates = {name: make_update(name, data, args) for name in args.variants}
    flops = {}
    for name in args.variants:
        eager = make_update(name, data, argparse.Namespace(**{**vars(args), "compile": "off"}))
        with FlopCount() as counter:
            eager()
        flops[name] = counter.total
        for _ in range(3):
            updates[name]()
    peak = matmul_block()
    blocks = {name: update_block(update, args.updates) for name, update in updates.items()}
    peaks: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(args.blocks):
        peaks.append(peak())
        for name, block in blocks.items():
            rates[name].append(block())
    top = statistics.median(peaks)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrl", "tensordict"))
    print(f"{platform.machine()}, {args.threads} thread(s), batch {args.batch_size}, width {args.width}, {packages}")
    print(f"compile={args.compile}, GEMM peak {top / 1e9:.0f} GFLOP/s [{min(peaks) / 1e9:.0f}, {max(peaks) / 1e9:.0f}]")
    print("\n| formulation | GFLOP | updates/s median [min, max] | fraction of the GEMM floor |\n|---|---|---|---|")
    for name, values in rates.items():
        rate = statistics.median(values)
        print(
            f"| {name} | {flops[name] / 1e9:.3f} | {rate:.1f} [{min(values):.1f}, {max(values):.1f}] | "
            f"{rate * flops[name] / top:.2f} |"
        )


if __name__ == "__main__":
    main()
