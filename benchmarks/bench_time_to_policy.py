"""Seconds from the command to a policy that succeeds, by part: what a user of the training recipe waits for.

    python benchmarks/bench_time_to_policy.py
    python benchmarks/bench_time_to_policy.py --again compile=default
    python benchmarks/bench_time_to_policy.py --peer --jax-python /path/to/venv-with-jax-and-this-library/bin/python
    python benchmarks/bench_time_to_policy.py task=FetchPush steps=100000 batch_size=512 num_trajectories=4000

Runs ``recipes/smore_offline.py`` with the options given in a new process and an empty folder. Parts: imports; data,
which are collected; compilation, which is the first update; the other updates; evaluations, of those in a process of
their own what training waits for; pictures (curves and film); the rest. A policy succeeds from the first evaluation on
whose success in the last step is at least ``--success``. ``--again`` times a second run, which finds the data and the
compiled code of the first. ``--peer`` times the same work by TorchRL's ``IQLLoss`` and ``HERReplayBuffer``
(``peers/torchrl_iql_policy.py``), ``--jax-python`` by goal-conditioned IQL in JAX (``peers/jax_gciql_policy.py``), each
in a folder of its own and in turns with ours. Peers evaluate in the process that trains, and beside one so does ours
unless ``evaluation=`` says otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[1] / "recipes" / "smore_offline.py"
PEERS = Path(__file__).parent / "peers"
PARTS = ("imports", "data", "compilation", "updates", "evaluations", "pictures", "rest")


class Clock:
    """Seconds by part since ``begun``, in seconds since the epoch; what is timed within a part is no part of that."""

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.successes: list[tuple[float, float]] = []
        self._inner = [0.0]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time within it."""
        start = time.time()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.time() - start
            self.parts[name] += whole - self._inner.pop()
            self._inner[-1] += whole

    def timing(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed as a part."""

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*args, **options)

        return timed

    def finished(self) -> dict[str, Any]:
        """Seconds by part, in all, and of every evaluation with its success."""
        whole = time.time() - self.begun
        self.parts["rest"] = whole - sum(self.parts.values())
        return {"parts": self.parts, "seconds": whole, "successes": self.successes}


def run_recipe(options: list[str], begun: float) -> dict[str, Any]:
    """Runs the recipe in this process, with the library's functions timed; see :meth:`Clock.finished`."""
    import torchrl_smore.envs
    import torchrl_smore.reports
    import torchrl_smore.trainers

    clock = Clock(begun)
    clock.parts["imports"] = time.time() - begun
    envs, reports, trainers = torchrl_smore.envs, torchrl_smore.reports, torchrl_smore.trainers
    envs.collect = clock.timing("data", envs.collect)
    for name in ("plot_curves", "write_gif"):
        setattr(reports, name, clock.timing("pictures", getattr(reports, name)))
    envs.render_episode = clock.timing("pictures", envs.render_episode)
    update = trainers.FusedUpdate.__call__
    begun_updates: list[bool] = []

    def timed_update(self: Any) -> Any:
        with clock.part("updates" if begun_updates else "compilation"):
            begun_updates.append(True)
            return update(self)

    def timed_evaluation(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(evaluate)
        def timed(*args: Any) -> Any:
            with clock.part("evaluations"):
                found = evaluate(*args)
            success = sum(own.metrics["success_last"] for own in found) / len(found)
            clock.successes.append((time.time() - begun, success))
            return found

        return timed

    trainers.FusedUpdate.__call__ = timed_update  # type: ignore[method-assign]
    for kind, method in ((trainers.Evaluator, "run_all"), (trainers.BackgroundEvaluator, "result")):
        setattr(kind, method, timed_evaluation(getattr(kind, method)))
    sys.argv = [str(RECIPE), *options]
    sys.path.insert(0, str(RECIPE.parent))
    runpy.run_path(str(RECIPE), run_name="__main__")
    return clock.finished()


def seconds_to(successes: list[tuple[float, float]], bar: float) -> float | None:
    """Seconds of the first evaluation that reaches the bar; ``None`` if none does."""
    return next((seconds for seconds, success in successes if success >= bar), None)


def own_options(options: list[str], *, peers: bool) -> list[str]:
    """Options of our run: beside peers, which evaluate between their updates, it does not choose another core."""
    named = any(option.startswith("evaluation=") for option in options)
    return [*options, "evaluation=here"] if peers and not named else options


def timed_run(program: list[str], options: list[str], cwd: Path, threads: int) -> dict[str, Any]:
    """Runs the recipe or a peer in a process of its own, and reads what it has noted."""
    out = cwd / "times.json"
    command = [*program, str(out), str(time.time()), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(cwd / "compiled")}
    subprocess.run(command, cwd=cwd, env=environment, check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Runs, prints and writes seconds by part."""
    if sys.argv[1:2] == ["--child"]:
        out, begun, *options = sys.argv[2:]
        Path(out).write_text(json.dumps(run_recipe(options, float(begun))))
        return
    import harness

    parser = harness.parser(__doc__, "time_to_policy", blocks=1)
    parser.add_argument("--success", type=float, default=0.9, help="in the last step, of a policy that succeeds")
    parser.add_argument("--again", action="store_true", help="time a second run, which finds data and compiled code")
    parser.add_argument("--peer", action="store_true", help="time TorchRL's IQLLoss and HERReplayBuffer as well")
    parser.add_argument("--jax-python", default=None, help="a Python that has jax beside this library: adds its GCIQL")
    parser.add_argument("options", nargs="*", help="of recipes/smore_offline.py; of a peer the sizes alone")
    args = parser.parse_args()
    if args.smoke:
        args.blocks = 1
        args.options = ["task=PointReach", "num_trajectories=20", "batch_size=8", "steps=4", "eval_episodes=2"]
    harness.begin(args)
    found: dict[str, list[float]] = {}
    ours = [sys.executable, __file__, "--child"]
    own = own_options(args.options, peers=args.peer or args.jax_python is not None)
    runs = {"first run": ours, **({"second run": ours} if args.again else {})}
    if args.peer:
        runs["TorchRL"] = [sys.executable, str(PEERS / "torchrl_iql_policy.py")]
    if args.jax_python:
        runs["JAX"] = [args.jax_python, str(PEERS / "jax_gciql_policy.py")]
    for _ in range(args.blocks):
        with contextlib.ExitStack() as stack:
            folder = {program[1]: Path(stack.enter_context(tempfile.TemporaryDirectory())) for program in runs.values()}
            for name, program in runs.items():
                options = own if program is ours else args.options
                times = timed_run(program, options, folder[program[1]], args.threads)
                reached = seconds_to(times["successes"], args.success)
                times["parts"] |= {"in all": times["seconds"], f"to success {args.success:g}": reached or float("nan")}
                for part, seconds in times["parts"].items():
                    found.setdefault(f"{name}, {part}", []).append(seconds)
    rows = [[name, harness.spread(values)] for name, values in found.items()]
    print("\n" + harness.markdown(["part", "seconds, median [min, max]"], rows))
    harness.write_csv(Path(args.out + ".csv"), harness.long_rows(found, "s", threads=args.threads))
    harness.plot_bars(Path(args.out + ".png"), found, f"{harness.machine(args.threads)}\n{args.options}", "seconds")
    print(f"{args.out}.csv, {args.out}.png")


if __name__ == "__main__":
    main()
