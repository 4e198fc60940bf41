"""Steps per second of collection beside the bare simulator on all cores, and of batched evaluation.

    python benchmarks/bench_collect.py --task FetchPush

The bare simulator is the environment without any wrapper of ours under random actions, reset every ``horizon`` steps,
in one process for each core; starting the processes is not counted. Collection starts its own processes: its rate is
that of the episodes by which a large collection exceeds a small one.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import harness

from torchrl_smore import SMORELoss, goal_specs, make_networks
from torchrl_smore.envs import EnvPool, collect, get_task
from torchrl_smore.trainers import ActorPolicy, Evaluator


def bare_worker(name: str, pipe: Connection) -> None:
    """Runs as many episodes as it is told to and answers when they are done."""
    task = get_task(name)
    env = task.make_base_env()
    env.action_space.seed(0)
    env.reset(seed=0)
    pipe.send("ready")
    for episodes in iter(pipe.recv, None):
        for episode in range(episodes):
            env.reset(seed=episode)
            for _ in range(task.horizon):
                env.step(env.action_space.sample())
        pipe.send("done")


class BareSimulator:
    """The bare simulator in several processes."""

    def __init__(self, task: str, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            self.processes.append(context.Process(target=bare_worker, args=(task, theirs), daemon=True))
            self.processes[-1].start()
            self.pipes.append(ours)
        for pipe in self.pipes:
            pipe.recv()

    def run(self, episodes: int) -> None:
        """Runs ``episodes`` in every process."""
        for pipe in self.pipes:
            pipe.send(episodes)
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self.pipes, self.processes):
            pipe.send(None)
            process.join()


def seconds(task: str, episodes: int, workers: int) -> float:
    """Seconds to collect that many random episodes."""
    start = time.perf_counter()
    collect(task, expert_episodes=0, random_episodes=episodes, seed=0, workers=workers, progress=False)
    return time.perf_counter() - start


def main() -> None:
    """Times simulator, collection and evaluation and reports."""
    parser = harness.parser(__doc__, "collect", blocks=3)
    parser.add_argument("--task", default="FetchPush", help="one that gymnasium simulates")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--episodes", type=int, default=100, help="episodes of each process in a block")
    args = parser.parse_args()
    if args.smoke:
        args.task, args.episodes, args.blocks, args.workers = "PointReach", 2, 1, 1
    harness.begin(args)
    task = get_task(args.task)
    whole = args.episodes * args.workers
    small, steps = max(args.workers, whole // 5), task.horizon * whole
    bare = BareSimulator(args.task, args.workers)

    def collection() -> float:
        first, second = seconds(args.task, small, args.workers), seconds(args.task, small + whole, args.workers)
        return steps / max(second - first, 1e-9)

    networks = make_networks(*goal_specs(task.observation_dim, task.goal_dim, task.action_dim))
    policy = ActorPolicy(SMORELoss(networks.actor, networks.score, networks.value))
    count = 2 if args.smoke else 20
    with EnvPool(task, count) as together, EnvPool(task, 1) as alone:
        evaluators = [Evaluator(pool, episodes=count, horizon=task.horizon) for pool in (together, alone)]
        evaluations = [harness.rate(lambda e=e: e.run(policy), 1) for e in evaluators]
        found = harness.interleave(
            {
                "bare simulator": lambda: steps * harness.rate(lambda: bare.run(args.episodes), 1)(),
                "collection": collection,
                "evaluation, one process, batched": lambda: count * task.horizon * evaluations[0](),
                "evaluation, one process, one by one": lambda: count * task.horizon * evaluations[1](),
            },
            args.blocks,
        )
    bare.close()
    rows = [[name, harness.spread(values)] for name, values in found.items()]
    print("\n" + harness.markdown([args.task, "steps/s median [min, max]"], rows))
    share = harness.ratio(found["collection"], found["bare simulator"])
    print(f"\ncollection at {share} of the bare simulator, {args.workers} processes")
    harness.write_csv(
        Path(args.out + ".csv"), harness.long_rows(found, "steps/s", task=args.task, workers=args.workers)
    )
    title = f"{harness.machine(args.threads)}\n{args.task}, {args.workers} processes"
    harness.plot_bars(Path(args.out + ".png"), found, title, "steps/s (median, range)")
    print(f"{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
