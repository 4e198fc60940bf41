"""Where policies are evaluated: in the process that trains, or in one of its own."""

from __future__ import annotations

import logging
import os

import torch

from torchrl_smore.trainers import BackgroundEvaluator

log = logging.getLogger("torchrl_smore.recipes")

EVALUATION = ("auto", "here", "background")
#: A process of its own takes seconds to start, which few updates are over before.
UPDATES_WORTH_A_PROCESS = 1000


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
    elif torch.get_num_threads() >= cores:
        reason = f"training has every core ({cores})"
    else:
        chosen, reason = "background", "updates go on meanwhile, on another core"
    log.info("evaluation=auto chose %s: %s", chosen, reason)
    return chosen


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
