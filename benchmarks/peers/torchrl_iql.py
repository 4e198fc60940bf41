"""TorchRL's ``IQLLoss`` with the prefetching replay buffer of its recipe: what a TorchRL user would otherwise run.

In a process of its own, because the threads of a prefetching buffer slow down whatever else its process runs. Reads
commands from its standard input; see ``harness.Peer``. Networks, optimiser and target rate are those of the update
that it is compared with; the goal is part of the observation, and no goal is relabelled.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl import logger as torchrl_logger
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import IQLLoss, SoftUpdate

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import ACTION, GOAL, OBSERVATION, random_dataset


class Head(nn.Module):
    """Tanh mean and state-independent standard deviation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = MLP(OBSERVATION + GOAL, ACTION, num_cells=[width, width], activation_class=nn.ReLU)
        self.log_std = nn.Parameter(torch.zeros(ACTION))

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Location and scale."""
        loc = self.trunk(observation).tanh()
        return loc, self.log_std.exp().expand_as(loc)


def main() -> None:
    """Answers commands until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 1), ("batch-size", 512), ("width", 256), ("trajectories", 4000), ("prefetch", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", default="off", choices=["off", "default"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torchrl_logger.setLevel("WARNING")  # it writes to the standard output, which is for answers
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cells = [args.width, args.width]
    qvalue = ValueOperator(
        MLP(OBSERVATION + GOAL + ACTION, 1, num_cells=cells, activation_class=nn.ReLU), ["observation", "action"]
    )
    value = ValueOperator(MLP(OBSERVATION + GOAL, 1, num_cells=cells, activation_class=nn.ReLU), ["observation"])
    actor = ProbabilisticActor(
        TensorDictModule(Head(args.width), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
    )
    loss = IQLLoss(actor, qvalue, value, num_qvalue_nets=2, loss_function="l2", temperature=3.0, expectile=0.8)
    loss.make_value_estimator(gamma=0.99)
    loss.to(args.device)
    target = SoftUpdate(loss, tau=0.005)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4)
    data = random_dataset(args.trajectories)
    for part in (data, data["next"]):
        part["observation"] = torch.cat([part["observation"], data["desired_goal"]], -1)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(len(data), device=args.device),
        sampler=RandomSampler(),
        batch_size=args.batch_size,
        prefetch=args.prefetch or None,
    )
    buffer.extend(data)

    def losses(batch):
        out = loss(batch)
        return out["loss_actor"] + out["loss_qvalue"] + out["loss_value"]

    run = torch.compile(losses) if args.compile == "default" else losses

    def update() -> None:
        optimizer.zero_grad()
        run(buffer.sample()).backward()
        optimizer.step()
        target.step()

    for _ in range(3):
        update()
    print(f"ok torchrl IQLLoss, prefetch={args.prefetch}, compile={args.compile}", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line.split()[1])):
            update()
        if args.device != "cpu":
            torch.cuda.synchronize()
        print("ok", time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
