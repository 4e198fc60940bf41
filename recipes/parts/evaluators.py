"""Where policies are evaluated: in the process that trains, or in one of its own."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch

from torchrl_smore.trainers import BackgroundEvaluator

log = logging.getLogger("torchrl_smore.recipes")

EVALUATION = ("auto", "here", "background")
#: A process of its own takes seconds to start, which few updates are over before.
UPDATES_WORTH_A_PROCESS = 1000
_ENOUGH_OF_A_CORE = 0.5
_STAT = Path("/proc/stat")  # Linux


def resolve_evaluation(mode: str, device: torch.device, updates: int, *, pictures: bool = False) -> str:
    """Where to evaluate; ``"auto"`` chooses and says why.

    Args:
        mode: one of :data:`EVALUATION`.
        device: where training computes.
        updates: of the run.
        pictures: whether policies see pictures, which are drawn in this process.
    """
    if mode != "auto":
        return mode
    chosen, cores = "here", _cores()
    if not BackgroundEvaluator.SUPPORTED:
        reason = "this system has no process that could be waited for"
    elif device.type != "cpu":
        reason = "a process of its own has been timed on CPUs alone"
    elif pictures:
        reason = "pictures are drawn in this process"
    elif updates < UPDATES_WORTH_A_PROCESS:
        reason = f"a process of its own pays from {UPDATES_WORTH_A_PROCESS:,} updates on"
    elif torch.get_num_threads() >= len(cores):
        reason = f"training has every core ({len(cores)})"
    elif (idle := _idle(cores)) < torch.get_num_threads() + _ENOUGH_OF_A_CORE:
        reason = f"other work leaves {idle:.1f} of {len(cores)} cores"
    else:
        chosen, reason = "background", "updates go on meanwhile, on another core"
    log.info("evaluation=auto chose %s: %s", chosen, reason)
    return chosen


def _cores() -> set[int]:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return set(range(os.cpu_count() or 1)) if affinity is None else set(affinity(0))


def _idle(cores: set[int], seconds: float = 0.25) -> float:
    """How many of the cores nobody used for a moment in which this process slept; all where the system does not say."""
    before = _times(cores)
    time.sleep(seconds if before else 0.0)
    after = _times(cores)
    shares = [
        (after[core][0] - idle) / max(after[core][1] - whole, 1)
        for core, (idle, whole) in before.items()
        if core in after  # it may have been switched off
    ]
    return sum(shares) if shares else float(len(cores))


def _times(cores: set[int]) -> dict[int, tuple[int, int]]:
    """Idle time of each core, and all of its time, in units of the system."""
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return {}
    rows = [line.split() for line in lines if line.startswith("cpu") and not line.startswith("cpu ")]
    times = {int(name[3:]): list(map(int, numbers)) for name, *numbers in rows}
    # user, nice, system, idle, waiting for a disk, interrupts, soft interrupts, stolen
    return {core: (own[3] + own[4], sum(own[:8])) for core, own in times.items() if core in cores}
