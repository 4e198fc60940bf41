"""Runs items of ``gpu.py`` in a process of its own, which a broken kernel may take down: one row for each.

``python benchmarks/gpu_worker.py ITEMS.json OUT PROGRESS DEVICE [--dry-run]``; meant for ``gpu.py``, which watches it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gpu_rows
import pages

#: Exit status of a process whose device is of no more use after an error.
LOST_DEVICE = 3


def run(kind: str, params: dict[str, Any], device: str) -> tuple[str, dict[str, Any], str]:
    """Runs one item; returns status, values and detail."""
    try:
        module, _, function = kind.rpartition(".")
        values = getattr(importlib.import_module(module), function)(device=device, **params)
    except gpu_rows.Skipped as reason:
        return "skipped", {}, str(reason)
    except gpu_rows.Wrong as fault:
        return "wrong", fault.values, str(fault)
    except Exception as error:
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        return "error", {}, f"{type(error).__name__}: {lines[0]}"[:500]
    return "ok", values, ""


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numbers that are not finite become text."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def lost(device: str) -> bool:
    """Whether the device answers no more, as after an illegal memory access."""
    if device == "cpu":
        return False
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def main() -> int:
    """Runs the items in turn; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("progress", type=Path)
    parser.add_argument("device", help="its name, for the rows")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    # a command in the background of a shell is deaf to it, and so is what it starts: this is how a training is stopped
    signal.signal(signal.SIGINT, signal.default_int_handler)
    device = "cpu" if args.dry_run else "cuda"
    for item in json.loads(args.items.read_text()):
        started = time.time()
        pages.write_text(args.progress, json.dumps({"key": item["key"], "started": started}))
        status, values, detail = run(item["kind"], item["params"], device)
        row = {"key": item["key"], "kind": item["kind"], "params": item["params"], "status": status}
        row |= {"seconds": round(time.time() - started, 2), "device": args.device, "dry_run": args.dry_run}
        row |= {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)), "values": values, "detail": detail}
        gpu_rows.append(args.out, plain(row))
        if status == "error" and lost(device):
            return LOST_DEVICE
    return 0


if __name__ == "__main__":
    sys.exit(main())
