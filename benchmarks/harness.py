"""What the benchmarks share: interleaved blocks, peers in their own processes, tables, CSV files and plots."""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pages import markdown, replacing, subplots
from tensordict import TensorDict
from tqdm import tqdm

from torchrl_smore.modules.linear import has_bf16_products, linear

__all__ = ["markdown", "subplots"]  # of pages, which imports no package

Block = Callable[[], float]
OBSERVATION, GOAL, ACTION = 25, 3, 4  # FetchPush
PEERS = Path(__file__).parent / "peers"


def parser(doc: str | None, name: str, *, blocks: int) -> argparse.ArgumentParser:
    """Options that every benchmark has; ``--smoke`` is a run of seconds that only shows that it works."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    made.add_argument("--blocks", type=int, default=blocks, help="turns of every variant; medians are over them")
    made.add_argument("--out", default=f"outputs/benchmarks/{name}", help="path of the CSV and PNG, without suffix")
    made.add_argument("--smoke", action="store_true", help="tiny sizes: seconds, and meaningless numbers")
    return made


def begin(args: argparse.Namespace) -> None:
    """Sets threads, and prints machine, versions and load."""
    torch.set_num_threads(args.threads)
    print(machine(args.threads), flush=True)


def machine(threads: int) -> str:
    """One line: processor, cores, threads, versions, load."""
    others = (f"{name} {importlib.metadata.version(name)}" for name in ("torchrl", "tensordict", "numpy"))
    versions = ", ".join([f"torch {torch.__version__}", *others])
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    where = f"{_processor()}, {os.cpu_count()} cores, {threads} thread(s)"
    return f"{where}, Python {platform.python_version()}, {versions}, {load}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    family = f" (family {found['cpu family']}, model {found['model']})" if "cpu family" in found else ""
    return found.get("model name", platform.processor() or platform.machine()) + family


def interleave(blocks: Mapping[str, Block], turns: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Runs the blocks A B C A B C, one at a time, so that a drift of the machine hits all alike.

    Returns:
        What each turn of each block returned; the first ``warm_up`` turns are dropped.
    """
    found: dict[str, list[float]] = {name: [] for name in blocks}
    with tqdm(total=(turns + warm_up) * len(blocks), desc="blocks", disable=not sys.stderr.isatty()) as progress:
        for turn in range(turns + warm_up):
            for name, block in blocks.items():
                value = block()
                if turn >= warm_up:
                    found[name].append(value)
                progress.update()
    return found


def rate(call: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> Block:
    """A block that returns calls per second of a clock."""

    def run() -> float:
        start = clock()
        for _ in range(repeats):
            call()
        return repeats / (clock() - start)

    return run


def timed(call: Callable[[], Any]) -> Block:
    """A block that returns the seconds of one call."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def spread(values: Sequence[float]) -> str:
    """Median and range, four digits."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.4g} [{low:.4g}, {high:.4g}]"


def ratio(ours: Sequence[float], others: Sequence[float]) -> str:
    """Median and range over turns of the ratio within a turn, which a drift of the machine leaves alone."""
    return spread([a / b for a, b in zip(ours, others)])


def matmul_peak(dtype: torch.dtype = torch.float32, size: int = 1024, repeats: int = 4) -> Block:
    """FLOP/s of a large matrix product, of MKL and of oneDNN the faster, or of what stands in for bfloat16's."""
    a, b, zero = (torch.randn(shape).to(dtype) for shape in ((size, size), (size, size), (size,)))
    own = dtype != torch.bfloat16 or has_bf16_products()
    products = [lambda: a @ b if own else linear(a, b, zero)]
    if own and torch.backends.mkldnn.is_available():
        products.append(lambda: linear(a, b, zero, matmul="onednn"))
    runs = [rate(product, repeats) for product in products]
    return lambda: max(run() for run in runs) * 2.0 * size**3


class Peer:
    """A peer in a process of its own that runs a block when told to and waits otherwise.

    Protocol, one line each: ``run N`` answers with the seconds of N updates; anything else is the peer's own.

    Raises:
        RuntimeError: if the process ends or answers with an error; carries what it said.
    """

    def __init__(self, python: str, script: str, threads: int, **options: Any) -> None:
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self.name = script
        self._process = subprocess.Popen(
            [python, str(PEERS / script), f"--threads={threads}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.hello = self._answer()

    def ask(self, line: str) -> str:
        """Sends a line and returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def block(self, updates: int) -> Block:
        """A block of updates, in updates per second."""
        return lambda: updates / float(self.ask(f"run {updates}"))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ok "):
            self._process.kill()  # or it would wait for a command, and we for the rest of what it says
            rest = line + self._process.stdout.read() if line else "its error is printed above"
            self.close()
            raise RuntimeError(f"{self.name} stopped: {rest.strip()}.")
        return line[3:].strip()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of equal keys, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside, beside.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot_bars(path: Path, found: Mapping[str, Sequence[float]], title: str, unit: str) -> None:
    """Medians as bars, ranges as whiskers."""
    middle = [statistics.median(values) for values in found.values()]
    reach = [
        [m - min(values) for m, values in zip(middle, found.values())],
        [max(values) - m for m, values in zip(middle, found.values())],
    ]
    figure, axis = subplots(figsize=(9, 0.4 * len(found) + 1.5))
    axis.barh(list(found), middle, xerr=reach, color="tab:blue", ecolor="black", capsize=3)
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.set_title("\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, 100)), fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def long_rows(found: Mapping[str, Sequence[float]], unit: str, **common: Any) -> list[dict[str, Any]]:
    """One CSV row for each turn of each variant."""
    return [
        {"variant": name, "turn": turn, "value": f"{value:.6g}", "unit": unit, **common}
        for name, values in found.items()
        for turn, value in enumerate(values)
    ]


def random_dataset(num_trajectories: int, length: int = 50) -> TensorDict:
    """Random transitions in TED layout with the shape of FetchPush data."""
    rows = num_trajectories * length
    stop = torch.arange(length, rows + 1, length).repeat_interleave(length)
    last = (torch.arange(1, rows + 1) % length == 0).unsqueeze(-1)
    return TensorDict(
        {
            "observation": torch.randn(rows, OBSERVATION),
            "action": torch.rand(rows, ACTION) * 2 - 1,
            "achieved_goal": torch.randn(rows, GOAL),
            "desired_goal": torch.randn(rows, GOAL),
            "next": TensorDict(
                {
                    "observation": torch.randn(rows, OBSERVATION),
                    "achieved_goal": torch.randn(rows, GOAL),
                    "reward": (torch.rand(rows, 1) < 0.1).float(),
                    "done": last,
                    "terminated": torch.zeros_like(last),
                    "truncated": last,
                },
                [rows],
            ),
            "traj_stop": stop,
        },
        [rows],
    )
