"""Runs the jobs of a benchmark on Ray: on this machine, or on a cluster by its address."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parts.benchmark_jobs import run_job

#: Times that a run is begun again after its worker was lost.
RETRIES = 3
_PATIENCE_S = 10.0
# of Ray's own health check, which imports Ray first
_HEALTH_CHECK_S = 15.0
_RECIPES = Path(__file__).resolve().parents[1]


def worker_environment() -> dict[str, str]:
    """Environment of a worker: one thread, and the same code as the driver."""
    path = os.pathsep.join(
        [str(_RECIPES), str(_RECIPES.parent), str(_RECIPES.parent / "kernels"), os.environ.get("PYTHONPATH", "")]
    )
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path.rstrip(os.pathsep)}


def run_on_ray(
    jobs: Sequence[dict[str, Any]], *, address: str | None, num_jobs: int, gpu_share: float
) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Yields the number of each job, and its result or why it failed, in the order in which they end.

    Args:
        jobs: see :func:`parts.benchmark_jobs.run_job`.
        address: of a running cluster; ``None`` starts Ray on this machine.
        num_jobs: runs at a time on this machine; 0: one for each core.
        gpu_share: GPUs that a run takes.

    Raises:
        ConnectionError: if no cluster answers at ``address``.
        ImportError: without Ray.
        ValueError: if no machine there has as many GPUs as a run is to take.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ImportError(f'the benchmark needs Ray ({error}): pip install "torchrl-smore[ray]", or jobs=0') from error
    try:
        with _keeping_the_handler_of_sigterm():
            _connect(ray, address, num_jobs)
        if gpu_share:
            _check_gpus(ray, gpu_share)
        remote = ray.remote(run_job).options(num_cpus=1, num_gpus=gpu_share, max_retries=RETRIES)
        pending = {remote.remote(job): number for number, job in enumerate(jobs)}
        while pending:
            done, _ = ray.wait(list(pending))
            for reference in done:
                number = pending.pop(reference)
                try:
                    yield number, ray.get(reference)
                except RayTaskError as error:
                    yield number, error.cause if isinstance(error.cause, Exception) else error
                except RayError as error:
                    lost = f"its worker was lost {RETRIES + 1} times ({type(error).__name__})"
                    yield number, RuntimeError(lost)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _keeping_the_handler_of_sigterm() -> Iterator[None]:
    """Ray sets one that aborts, with a trace and without ending its processes; not in a thread, where none is set."""
    usual = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if usual is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, usual)


def _connect(ray: Any, address: str | None, num_jobs: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        os.environ.update(worker_environment())
        allowed = getattr(os, "sched_getaffinity", None)  # which macOS and Windows lack: there Ray counts cores itself
        cores = None if allowed is None else len(allowed(0))
        # by its name, since Ray would otherwise look into RAY_ADDRESS for a cluster, which has other files
        ray.init(address="local", num_cpus=num_jobs or cores, include_dashboard=False, **quiet)
        return
    _check_reachable(address)
    try:
        ray.init(address=address, runtime_env={"env_vars": worker_environment()}, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ConnectionError(f"no Ray cluster at address={address}: {str(error).splitlines()[0]}") from error


def _check_gpus(ray: Any, gpu_share: float) -> None:
    """Refuses a share that no machine has, for which Ray would wait for ever without a word."""
    found = [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]
    most = max(found, default=0.0)
    if gpu_share > most:
        raise ValueError(
            f"gpu_share={gpu_share:g}: expected at most the GPUs of one machine, and Ray finds {most:g} of them."
        )


def _check_reachable(address: str) -> None:
    """Finds out within seconds what Ray itself takes minutes to find out."""
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"address must be HOST:PORT, ray://HOST:PORT or auto, got {address!r}.")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at address={address}: {error}.") from error
    if address.startswith("ray://"):
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    try:
        healthy = subprocess.run(command, capture_output=True, timeout=_HEALTH_CHECK_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise ConnectionError(f"something answers at address={address}, but it is no Ray cluster.")
