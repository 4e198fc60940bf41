"""Updates from a table in a file beside updates from a table in memory, and the memory that each takes.

    python benchmarks/bench_scale.py --folder FOLDER        20 million transitions; 10 GB in FOLDER while it runs
    python benchmarks/bench_scale.py --folder FOLDER --rows 2000000 --limit 0.8
    python benchmarks/bench_scale.py --folder FOLDER --kinds "in memory" "in passing"

Random transitions of FetchPush shapes are written block by block, so no process ever holds them. Processes train on
them in turns, one active at a time: from memory, on as many of them as ``--memory-rows`` says; from a table in a file
of which ``--memory-rows`` pass through memory in order (``GoalBatchSampler(mapped=, resident=)``); from a table in a
file (``mapped=`` alone), of which the system keeps in memory what it likes; and from such a table of which every ten
updates pages are taken out of memory again, so that what the process has for itself and what is kept of the table stay
below ``--limit``. The clock stands still meanwhile.

RssAnon is what a process has for itself, RssFile what it has mapped of files, its libraries among them. Of the table
all pages in memory count, whether they are mapped or not.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from bench_update import STEPS, make_loss
from tensordict import TensorDict

from torchrl_smore import GoalBatchSampler
from torchrl_smore.trainers import FusedUpdate

BLOCK, LENGTH = 1000, 50  # trajectories of a block, steps of a trajectory
MEMORY, PASSING, MAPPED, LIMITED = KINDS = "in memory", "in passing", "mapped", "mapped, limited"
_PIECE = 1 << 25  # bytes
_GB = 1e9


def write_rows(folder: Path, trajectories: int) -> None:
    """Writes the columns of random transitions, each to a file of its own."""
    files: dict[str, Any] = {}
    layout = {}
    for first in range(0, trajectories, BLOCK):
        block = harness.random_dataset(min(BLOCK, trajectories - first)).exclude("traj_stop")
        for key, value in block.items(True, True):
            name = ".".join([key] if isinstance(key, str) else key)
            layout[name] = [str(value.dtype).removeprefix("torch."), value.shape[1]]
            if name not in files:
                files[name] = (folder / name).open("wb")
            files[name].write(value.contiguous().numpy().data)
    for file in files.values():
        file.close()
    (folder / "layout.json").write_text(json.dumps({"rows": trajectories * LENGTH, "columns": layout}))


def read_rows(folder: Path, limit: int | None = None) -> TensorDict:
    """The columns, mapped, and of them the first ``limit`` rows."""
    layout = json.loads((folder / "layout.json").read_text())
    rows = layout["rows"]
    data = TensorDict({"next": TensorDict({}, [rows])}, [rows])
    for name, (dtype, width) in layout["columns"].items():
        kind = getattr(torch, dtype)
        column = torch.from_file(str(folder / name), shared=False, size=rows * width, dtype=kind)
        data.set(tuple(name.split(".")), column.view(rows, width))
    return data if limit is None else data[:limit]


class Pages:
    """The pages of a mapped tensor, and a hand that goes round and takes them out of memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._start, self._size = tensor.data_ptr(), tensor.numel() * tensor.itemsize
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._in_memory = np.zeros(-(-self._size // mmap.PAGESIZE), dtype=np.uint8)
        self._file, self._hand = self._open_file(), 0
        # what is not yet on the disk cannot be taken out of memory
        os.fsync(self._file)

    def _open_file(self) -> int:
        """The descriptor, which the mapping keeps, of a file without a name."""
        for number in map(int, os.listdir("/proc/self/fd")):
            try:
                found = os.fstat(number)
            except OSError:  # that of the listing itself
                continue
            if found.st_nlink == 0 and found.st_size == self._size:
                return number
        raise OSError(f"no file without a name of {self._size:,} bytes is open.")

    def _call(self, name: str, start: int, size: int, argument: Any) -> None:
        if getattr(self._libc, name)(ctypes.c_void_p(start), ctypes.c_size_t(size), argument) != 0:
            raise OSError(ctypes.get_errno(), f"{name} failed")

    def in_memory(self) -> int:
        """Bytes of the pages that are in memory."""
        self._call("mincore", self._start, self._size, ctypes.c_void_p(self._in_memory.ctypes.data))
        return int((self._in_memory & 1).sum()) * mmap.PAGESIZE

    def keep(self, limit: int) -> None:
        """Takes out pages until no more than ``limit`` bytes are in memory.

        Raises:
            OSError: if the system does not take them out.
        """
        found, pieces = self.in_memory(), -(-self._size // _PIECE)
        for _ in range(pieces):
            if found <= limit:
                return
            offset = self._hand * _PIECE
            size = min(_PIECE, self._size - offset)
            # out of the process, whose copy of them is as they are in the file, and out of the system's cache
            self._call("madvise", self._start + offset, size, ctypes.c_int(mmap.MADV_DONTNEED))
            os.posix_fadvise(self._file, offset, size, os.POSIX_FADV_DONTNEED)
            self._hand = (self._hand + 1) % pieces
            found = self.in_memory()
        if found > limit:
            raise OSError(f"{found:,} bytes of the table stay in memory, {limit:,} are allowed.")


def own_memory() -> dict[str, int]:
    """Bytes of this process: RssAnon, RssFile and the largest of their sum so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "VmHWM"))}
    return {name: int(found[name]) * 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


def child(kind: str, folder: str, args: argparse.Namespace) -> None:
    """Answers ``run N`` with the seconds of N updates and ``memory`` with bytes; see :class:`harness.Peer`."""
    torch.set_num_threads(args.threads)
    data = read_rows(Path(folder), args.memory_rows if kind == MEMORY else None)
    start = time.perf_counter()
    resident = args.memory_rows if kind == PASSING else None
    sampler = GoalBatchSampler(data, args.batch_size, mapped=None if kind == MEMORY else folder, resident=resident)
    seconds = time.perf_counter() - start
    del data
    update = FusedUpdate(make_loss("in_sample"), sampler, total_steps=STEPS, tau=0.005, compile=args.compile)
    table = Pages(sampler._table) if kind in (MAPPED, LIMITED) else None
    print("ok", json.dumps({"rows": len(sampler), "seconds": seconds}), flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print("ok", json.dumps({**own_memory(), "table": 0 if table is None else table.in_memory()}), flush=True)
            continue
        spent = 0.0
        for number in range(int(line.split()[1])):
            if kind == LIMITED and table is not None and number % 10 == 0:
                table.keep(int(args.limit * _GB) - own_memory()["RssAnon"])
            start = time.perf_counter()
            update()
            spent += time.perf_counter() - start
        print("ok", spent, flush=True)


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Writes the rows, lets the processes take turns, and reports."""
    start = time.perf_counter()
    write_rows(folder, -(-args.rows // LENGTH))
    print(f"{args.rows:,} rows written in {time.perf_counter() - start:.0f} s", flush=True)
    names = ("rows", "memory_rows", "batch_size", "compile", "limit")
    options = {name: getattr(args, name) for name in names}
    peers = {
        kind: harness.Peer(
            sys.executable, str(Path(__file__).resolve()), args.threads, child=kind, folder=folder, **options
        )
        for kind in args.kinds
    }
    try:
        found = harness.interleave({kind: peer.block(args.updates) for kind, peer in peers.items()}, args.blocks)
        hello = {kind: json.loads(peer.hello) for kind, peer in peers.items()}
        memory = {kind: json.loads(peer.ask("memory")) for kind, peer in peers.items()}
    finally:
        for peer in peers.values():
            peer.close()
    rows = [
        [
            kind,
            f"{hello[kind]['rows']:,}",
            f"{hello[kind]['seconds']:.1f}",
            harness.spread(rates),
            harness.ratio(rates, found[args.kinds[0]]),
            *(f"{memory[kind][name] / _GB:.2f}" for name in ("RssAnon", "RssFile", "table", "VmHWM")),
        ]
        for kind, rates in found.items()
    ]
    header = ["table", "rows", "s to make it", "updates/s", f"over {args.kinds[0]}"]
    print("\n" + harness.markdown([*header, "RssAnon, GB", "RssFile", "of the table in memory", "largest Rss"], rows))
    common = {"rows": args.rows, "batch": args.batch_size, "compile": args.compile, "limit": args.limit}
    table = harness.long_rows(found, "updates/s", **common)
    for kind, values in memory.items():
        for name, value in values.items():
            table += harness.long_rows({f"{kind}: {name}": [value / _GB]}, "GB", **common)
    harness.write_csv(Path(args.out + ".csv"), table)
    limit = f", held to {args.limit} GB" if LIMITED in args.kinds else ""
    title = (
        f"{harness.machine(args.threads)}\n{args.rows:,} transitions in a file{limit}, {args.memory_rows:,} in memory"
    )
    harness.plot_bars(Path(args.out + ".png"), found, title, "updates per second (median, range)")
    print(f"{args.out}.csv, {args.out}.png")


def main() -> None:
    """Makes the rows in a temporary folder and measures."""
    parser = harness.parser(__doc__, "scale", blocks=5)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument(
        "--memory-rows", type=int, default=2_000_000, help="that are in memory: the first, or those in passing"
    )
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--updates", type=int, default=100, help="updates in a block")
    parser.add_argument("--compile", default="default", choices=["off", "default"])
    parser.add_argument("--limit", type=float, default=2.0, help="GB of the limited process")
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.child, args.folder, args)
        return
    if args.smoke:
        args.rows, args.memory_rows, args.batch_size, args.updates, args.blocks = 400, 200, 8, 1, 1
        args.compile = "off"
    harness.begin(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(Path(folder), args)


if __name__ == "__main__":
    main()
