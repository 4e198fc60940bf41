"""What commands that leave a run folder share: the device, the folder and its files, Ctrl-C, lines of progress."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import torchrl_smore
from parts.cli import one_line
from torchrl_smore.modules.linear import has_bf16_products
from torchrl_smore.trainers import (
    LockedError,
    OfflineTrainer,
    clear_leftovers,
    locked,
    mean_metrics,
    remove_leftovers,
    write_text,
)
from torchrl_smore.trainers.evaluation import shown_return

log = logging.getLogger("torchrl_smore.recipes")

#: What a run records the versions of.
PACKAGES = ("torchrl-smore", "torch", "torchrl", "tensordict", "numpy", "gymnasium", "gymnasium-robotics", "mujoco")
#: On two cores a compiled update of 256 in float32 took half the time of the eager one, and half a minute to make.
UPDATES_WORTH_COMPILING = 10_000


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Versions by name of distribution.

    That of torch is its own word, which names the build (``2.13.0+cu130``); so is ours where it runs from a checkout
    that is not installed.

    Raises:
        importlib.metadata.PackageNotFoundError: for another one that is not installed.
    """
    found = {}
    for name in packages:
        if name == "torch":
            found[name] = str(torch.__version__)
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name != "torchrl-smore":
                raise
            found[name] = torchrl_smore.__version__
    return found


def resolve_device(device: str) -> torch.device:
    """The device to train on; ``"auto"`` chooses and says what.

    Raises:
        ValueError: for another kind of device than ``"cpu"`` and ``"cuda"``.
        RuntimeError: if a GPU is asked for and there is none.
    """
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("device=auto chose %s", device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(
            f"device={device} was asked for, but this PyTorch ({torch.__version__}) sees no CUDA device: install a "
            "CUDA build of torch and a driver, or use device=cpu."
        )
    return torch.device(device)


def check_device(device: str) -> None:
    """Refuses what names no device, whether this machine has it or not.

    Raises:
        ValueError: naming what is expected.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"unknown device {device!r}: expected auto, cpu, cuda or the like of cuda:1.")


def use_threads(threads: int | None, *, pictures: bool = False) -> None:
    """Sets the CPU threads of PyTorch.

    Threads that share a small product wait for each other many times per update, and do so at full load: where another
    process has one of the cores, two threads are ten times slower than one, and where none has, a quarter faster.

    Args:
        threads: how many; 0 is PyTorch's default. ``None`` is 1, but PyTorch's default with pictures, whose
            convolutions are long, and where ``OMP_NUM_THREADS`` says how many.
        pictures: whether networks see pictures.
    """
    if threads is None:
        threads = 0 if pictures or "OMP_NUM_THREADS" in os.environ else 1
        if threads:
            log.info("one CPU thread, safe beside other work; where there is none, OMP_NUM_THREADS=2 can be faster")
    if threads:
        torch.set_num_threads(threads)


def resolve_compile(
    mode: str, device: torch.device, updates: int, *, pictures: bool = False, writes_buffers: bool = False
) -> str:
    """How to compile the update; ``"auto"`` chooses and says why.

    Args:
        mode: one of :data:`~torchrl_smore.trainers.Compile`, or ``"auto"``.
        device: to train on.
        updates: of all seeds.
        pictures: whether networks see pictures.
        writes_buffers: whether the loss does, in each update, which cannot be compiled.
    """
    if mode != "auto":
        return mode
    chosen = "off"
    if device.type != "cpu":
        reason = "compilation has been timed on CPUs alone"
    elif writes_buffers:
        reason = "the loss writes buffers of its own in each update"
    elif pictures:
        reason = "compilation has not been timed where networks see pictures"
    elif updates < UPDATES_WORTH_COMPILING:
        reason = f"it pays from {UPDATES_WORTH_COMPILING:,} updates on"
    elif not _has_compiler():
        reason = "no C++ compiler was found (g++, clang++ or the one that CXX names)"
    else:
        chosen, reason = "default", f"{updates:,} updates are worth the time that it takes"
    log.info("compile=auto chose %s: %s", chosen, reason)
    return chosen


def note_precision(precision: str, device: torch.device) -> None:
    """Says so where ``precision=bf16`` saves no time: on a CPU without products of bfloat16."""
    if precision == "bf16" and device.type == "cpu" and not has_bf16_products():
        log.info(
            "precision=bf16: this CPU has no products of bfloat16; the same rounded numbers are multiplied in float32, "
            "which is no faster than precision=float32"
        )


def _has_compiler() -> bool:
    """Whether PyTorch would find a C++ compiler."""
    return any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++"))))


def new_run_folder(root: str, *parts: object, config: str) -> Path:
    """A folder of its own below ``root``, named by time and ``parts``, with ``config`` as its ``config.yaml``."""
    # a task of one's own has a colon in its name, which not every file system takes
    name = "_".join([time.strftime("%Y%m%d-%H%M%S"), *map(str, parts)]).replace(":", ".")
    for number in range(1000):
        path = Path(root) / (name if number == 0 else f"{name}.{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        try:
            write_text(path / "config.yaml", config)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return path
    raise FileExistsError(f"{root} holds a thousand runs of this second.")


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder, and clears away what a killed one left there half written.

    Args:
        run_dir: where there is no such folder, nothing is held: what asked for it is refused elsewhere.

    Raises:
        LockedError: if another process holds it; names that one.
    """
    if not run_dir.is_dir():
        yield
        return
    with locked(run_dir / ".lock", f"run folder {run_dir}"):
        remove_leftovers(run_dir)
        clear_leftovers(run_dir / "checkpoint")
        yield


@contextlib.contextmanager
def results_folder(out: Path) -> Iterator[None]:
    """Makes the folder ``out`` of a recipe's results and keeps other processes out of it, before anything long is done.

    Where nothing comes of it, the folder that it has made is gone again.

    Raises:
        LockedError: if another process holds it; names that one.
        OSError: if it cannot be made or written; names the option.
    """
    made = not out.exists()
    with contextlib.ExitStack() as stack:
        if made:
            stack.callback(_remove_empty, out)
        try:
            stack.enter_context(locked(out / ".lock", f"folder {out}"))
        except LockedError:
            raise
        except OSError as error:
            raise OSError(
                f"expected a folder that can be written, got {out} ({error.strerror or error}): name one as out=FOLDER."
            ) from error
        yield


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def without_nan(value: Any) -> Any:
    """Nested plain values with ``None`` in place of every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class Stopped(KeyboardInterrupt):
    """A signal has ended a run, which goes on from its last checkpoint; ``signum`` says which."""

    def __init__(self, advice: str, signum: int) -> None:
        super().__init__(advice)
        self.signum = signum


@contextlib.contextmanager
def stopping_on_signals(request_stop: Callable[[Stopped], None], advice: str) -> Iterator[None]:
    """Within it, SIGINT (Ctrl-C), SIGTERM and SIGHUP ask for a stop with a checkpoint; a second one stops at once.

    SIGTERM and SIGHUP are left to whoever has a handler of his own for them or ignores them, as ``nohup`` does.

    Args:
        request_stop: called by the signal handler; saves and raises what it is given as soon as it can.
        advice: message of that.

    Raises:
        Stopped: at its end, if a signal came too late for anything to be stopped; and from an error that comes after a
            signal, which is told: a signal to a whole group of processes also ends a compiler that is waited for.
    """
    stopped: Stopped | None = None

    def note(signum: int, _: object) -> None:
        nonlocal stopped
        error = Stopped(advice, signum)
        if stopped is not None:
            raise error
        stopped = error
        request_stop(error)
        with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
            print(f"\n{signal.Signals(signum).name}: stopping with a checkpoint; again stops at once", file=sys.stderr)

    with _handling(note):
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            if stopped is None:
                raise
            with contextlib.suppress(OSError):  # as above
                print(f"after the signal: {one_line(error)}", file=sys.stderr)
            raise stopped from error
    if stopped is not None:
        raise stopped


@contextlib.contextmanager
def ending_on_signals(advice: str) -> Iterator[None]:
    """Within it, SIGINT (Ctrl-C), SIGTERM and SIGHUP raise :class:`Stopped`, so that what is open is closed on the way.

    For what loses nothing by ending anywhere; a :func:`stopping_on_signals` within it takes them over. After the first
    signal SIGTERM and SIGHUP are passed over, as schedulers and terminals send several; SIGINT raises again. SIGTERM
    and SIGHUP are left to others as there, and all in a thread that is not the main one.

    Args:
        advice: its message.
    """
    stopped: Stopped | None = None

    def end(signum: int, _: object) -> None:
        nonlocal stopped
        if stopped is not None and signum != signal.SIGINT:
            return
        stopped = stopped or Stopped(advice, signum)
        raise stopped

    with _handling(end):
        try:
            yield
        except KeyboardInterrupt:
            if stopped is None:
                raise
            # Ray raises an interrupt of its own in place of what the handler has raised
            raise stopped from None


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGINT: signal.signal(signal.SIGINT, handler)}
    ends = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))  # Windows has no SIGHUP
    for each in filter(None, ends):
        found = signal.getsignal(each)
        # or one of these here, further out
        if found is signal.SIG_DFL or getattr(found, "__module__", None) == __name__:
            before[each] = signal.signal(each, handler)
    try:
        yield
    finally:
        for each, usual in before.items():
            signal.signal(each, usual)


class ProgressLines:
    """Prints one line for each evaluation of a trainer: what a log file gets instead of a progress bar."""

    def __init__(self, trainer: OfflineTrainer) -> None:
        self.trainer = trainer
        self.last = trainer.evaluations

    def __call__(self, _: Any) -> None:
        """Runs as a ``post_steps_log`` hook."""
        trainer = self.trainer
        if trainer.evaluations is self.last:
            return
        self.last = trainer.evaluations
        means = mean_metrics(trainer.evaluations)
        shown = ("success_last", shown_return(means), "final_distance")
        metrics = ", ".join(f"{name} {means[name]:.3f}" for name in shown if name is not None)
        step, steps, rate = trainer.evaluated_step, trainer.total_frames, trainer.updates_per_second
        print(f"update {step:,} of {steps:,}: {metrics} ({rate:.0f}/s)", flush=True)


def commit_of_library() -> str:
    """The commit that this code is of, with ``-dirty`` if it was changed since; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def finite_or_none(value: float, digits: int) -> float | None:
    """``value`` rounded, or ``None`` where JSON has no number for it."""
    return round(value, digits) if math.isfinite(value) else None
