"""CPU seconds that PyTorch takes to trace a loss into one graph, as the first call of a compiled loop does.

    python benchmarks/bench_trace.py --blocks 5

Variants take turns (A B C A B C ...); ratios are taken within a turn. Nothing is generated from the graph: what
Inductor takes beside it is the same for equal graphs. Peer: TorchRL's ``IQLLoss`` of the same networks. Floor: the
``in_sample`` losses of SMORe in plain PyTorch (``functional_update.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import functional_update
import harness
import torch
from harness import ACTION, GOAL, OBSERVATION
from torchrl.objectives import IQLLoss, LossModule, SoftUpdate

from torchrl_smore import GoalBatchSampler, SMORELoss, goal_specs, make_networks
from torchrl_smore.objectives import GCIQLLoss

BATCH = 8
PEER, FLOOR = "TorchRL's IQLLoss", "SMORe by hand"


def make_calls() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """What is traced, by name, each with the arguments of its call."""
    data = harness.random_dataset(4)
    goals: dict[str, Any] = {"success": lambda achieved, desired: (achieved - desired).norm(dim=-1) < 1.0}
    sampled, rewarded = GoalBatchSampler(data, BATCH)(), GoalBatchSampler(data, BATCH, q=False, **goals)()
    smore = make_loss(SMORELoss, deactivate_vmap=True)
    lower, upper = smore.score_bounds
    by_hand = (functional_update.parameters(smore), functional_update.as_batch(sampled), lower, upper)
    mapped, iql = make_loss(SMORELoss), make_loss(GCIQLLoss, deactivate_vmap=True)
    return {
        "SMORELoss": (smore, (sampled,)),
        "SMORELoss, torch.vmap": (mapped, (sampled,)),
        "GCIQLLoss": (iql, (rewarded,)),
        PEER: (make_iql(), (rewarded,)),
        FLOOR: (functional_update.losses, by_hand),
    }


def make_loss(kind: type[SMORELoss | GCIQLLoss], **options: Any) -> LossModule:
    """A loss of two scores or Qs."""
    torch.manual_seed(0)
    networks = make_networks(*goal_specs(OBSERVATION, GOAL, ACTION))
    loss = kind(networks.actor, networks.score, networks.value, **options)
    SoftUpdate(loss, tau=0.005)
    return loss


def make_iql() -> IQLLoss:
    """TorchRL's."""
    torch.manual_seed(0)
    networks = make_networks(*goal_specs(OBSERVATION, GOAL, ACTION))
    loss = IQLLoss(networks.actor, networks.score[0], networks.value)
    loss.set_keys(state_action_value="score")
    loss.make_value_estimator(gamma=0.99)
    SoftUpdate(loss, tau=0.005)
    return loss


def tracing(function: Callable[..., Any], arguments: tuple[Any, ...]) -> harness.Block:
    """A block that returns the CPU seconds of the first call of a compiled function, whose graph is run as it is."""

    def run() -> float:
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        start = time.process_time()
        compiled(*arguments)
        return time.process_time() - start

    return run


def main() -> None:
    """Times tracing and reports."""
    parser = harness.parser(__doc__, "trace", blocks=5)
    args = parser.parse_args()
    if args.smoke:
        args.blocks = 1
    harness.begin(args)
    calls = make_calls()
    if args.smoke:
        calls = {name: calls[name] for name in ("SMORELoss", FLOOR)}
    found = harness.interleave({name: tracing(*call) for name, call in calls.items()}, args.blocks)
    rows = [[name, harness.spread(values), harness.ratio(values, found[FLOOR])] for name, values in found.items()]
    print("\n" + harness.markdown(["traced", "CPU seconds, median [min, max]", "over the floor"], rows))
    harness.write_csv(Path(args.out + ".csv"), harness.long_rows(found, "CPU seconds", threads=args.threads))
    title = f"{harness.machine(args.threads)}\ntracing a loss, batch {BATCH}"
    harness.plot_bars(Path(args.out + ".png"), found, title, "CPU seconds (median, range)")
    print(f"{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
