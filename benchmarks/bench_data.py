"""Speed of building, saving and loading a store and of reading a ``buffer.pkl``; peak memory of loading and training.

    python benchmarks/bench_data.py                       40,000 x 50 transitions of FetchPush shapes, random numbers

Reading is compared with reading the bytes of the same files, cached by the system as ours are. Memory is the largest
resident set of a process of its own that loads the dataset, builds the sampler and trains.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import ACTION, GOAL, OBSERVATION

from torchrl_smore import GoalBatchSampler, TrajectoryStore
from torchrl_smore.data.readers import wgcsl

LENGTH, BAR_GB = 50, 6.0


def reached(achieved: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Success rule of the random data."""
    return ((achieved - goal) ** 2).sum(-1) < 1.0


def arrays(num_trajectories: int) -> dict[str, np.ndarray]:
    """A ``buffer.pkl`` in float64, as published."""
    rng = np.random.default_rng(0)
    shapes = {"o": (LENGTH + 1, OBSERVATION), "ag": (LENGTH + 1, GOAL), "u": (LENGTH, ACTION), "g": (LENGTH, GOAL)}
    return {key: rng.standard_normal((num_trajectories, *shape)) for key, shape in shapes.items()}


def episodes(columns: dict[str, np.ndarray]) -> Any:
    """The episodes of those arrays."""
    reward = reached(columns["ag"][:, 1:], columns["g"]).astype(np.float32)
    names = {"o": "observation", "ag": "achieved_goal", "u": "action", "g": "desired_goal"}
    return (
        {names[key]: array[number] for key, array in columns.items()} | {"reward": reward[number]}
        for number in range(len(reward))
    )


def read_bytes(*files: Path) -> int:
    """Reads files in pieces, as a copy would; returns their size."""
    buffer, size = bytearray(1 << 22), 0
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                size += count
    return size


def child(source: str, path: str, updates: int) -> None:
    """Loads, samples and trains; prints the peak memory in GB after each part."""
    peaks: dict[str, float] = {}

    def note(part: str) -> None:
        # not ru_maxrss, in which a child process keeps what its parent held when it was forked
        status = Path("/proc/self/status").read_text()
        peaks[part] = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9

    from bench_update import make_loss, make_update

    note("imports")
    store = TrajectoryStore.load(path) if source == "store" else wgcsl.read(path, reached=reached)
    note("loading")
    GoalBatchSampler(store.data, 512)()
    note("sampler")
    update = make_update(make_loss("in_sample"), store.data, 512, "off")
    for _ in range(updates):
        update()
    note("training")
    print(json.dumps(peaks))


def peak_memory(source: str, path: Path, updates: int) -> dict[str, float]:
    """Peak memory in GB after each part, in a process of its own."""
    command = [sys.executable, __file__, "--child", source, str(path), str(updates)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"training on the {source} failed: {done.stderr.strip()}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Times everything in a folder, whose files stay for the processes that measure memory; reports."""
    columns = arrays(args.trajectories)
    file, saved = folder / "buffer.pkl", folder / "store"
    with file.open("wb") as handle:
        pickle.dump(columns, handle, protocol=4)
    store = TrajectoryStore.from_episodes(episodes(columns))
    store.save(saved)
    parts = [path for path in saved.rglob("*") if path.is_file()]
    blocks = {
        "bytes of buffer.pkl": lambda: read_bytes(file),
        "read buffer.pkl": lambda: wgcsl.read(file, reached=reached),
        "bytes of the store": lambda: read_bytes(*parts),
        "load, with checksums": lambda: TrajectoryStore.load(saved),
        "load, unverified": lambda: TrajectoryStore.load(saved, verify=False),
        "build from episodes": lambda: TrajectoryStore.from_episodes(episodes(columns)),
        "save": lambda: store.save(saved, overwrite=True),
    }
    found = harness.interleave({name: harness.timed(call) for name, call in blocks.items()}, args.blocks)
    sizes = {name: read_bytes(file) if "buffer.pkl" in name else read_bytes(*parts) for name in blocks}
    rows = [
        [name, harness.spread(values), harness.spread([sizes[name] / 1e6 / value for value in values])]
        for name, values in found.items()
    ]
    print(f"\nbuffer.pkl {file.stat().st_size / 1e6:.0f} MB, store {sizes['save'] / 1e6:.0f} MB")
    print("\n" + harness.markdown(["", "seconds median [min, max]", "MB/s"], rows))
    peaks = {source: peak_memory(source, path, args.updates) for source, path in (("store", saved), ("pkl", file))}
    rows = [[name, *(f"{value:.2f}" for value in parts.values())] for name, parts in peaks.items()]
    header = ["peak memory in GB after", "imports", "loading", "sampler", "training"]
    print(f"\nbar: {BAR_GB} GB\n\n" + harness.markdown(header, rows))
    common = {"trajectories": args.trajectories}
    memory = {f"memory of {name} after {part}": [v] for name, p in peaks.items() for part, v in p.items()}
    table = harness.long_rows(found, "s", **common) + harness.long_rows(memory, "GB", **common)
    harness.write_csv(Path(args.out + ".csv"), table)
    title = f"{harness.machine(args.threads)}\n{args.trajectories:,} x {LENGTH} transitions"
    harness.plot_bars(Path(args.out + ".png"), found, title, "seconds (median, range)")
    print(f"{args.out}.csv, {args.out}.png")


def main() -> None:
    """Makes the files in a temporary folder and measures."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = harness.parser(__doc__, "data", blocks=3)
    parser.add_argument("--trajectories", type=int, default=40_000)
    parser.add_argument("--updates", type=int, default=50, help="updates of the process whose memory is measured")
    parser.add_argument("--folder", default=None, help="where the temporary files go; needs about 2 GB")
    args = parser.parse_args()
    if args.smoke:
        args.trajectories, args.updates, args.blocks = 20, 1, 1
    harness.begin(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(args, Path(folder))


if __name__ == "__main__":
    main()
