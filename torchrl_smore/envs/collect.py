"""Collects a dataset with scripted experts and random actions, on all cores, resumable after a kill."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import math
import operator
import os
import queue
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from torchrl_smore._errors import check_whole
from torchrl_smore._lock import locked
from torchrl_smore._worker import HAS_WORKERS, PARENT_IS_GONE, Worker, can_be_sent
from torchrl_smore.envs._partial import PartialFolder, write_chunk
from torchrl_smore.envs._rollout import Behaviour, quality, run_episodes
from torchrl_smore.envs.batch import close_batch
from torchrl_smore.envs.experts import policy_files
from torchrl_smore.envs.tasks import Task, get_task
from torchrl_smore.envs.wrappers import check_noise

if TYPE_CHECKING:
    from torchrl_smore.data.trajectories import TrajectoryStore

#: What ``expert_policy`` calls the scripted expert of a task.
SCRIPTED = "scripted"
_CHUNK = 20  # episodes in one unit of work and of resumption: about a second of a Fetch task
_LOCKSTEP = 2  # simulators stepped together in a worker: more of them no longer share the cache
#: Of a collection without a progress bar.
SECONDS_BETWEEN_LINES = 30.0
_PACKAGES = ("torchrl-smore", "torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco")
# of those, the ones whose versions decide the data
_DECISIVE = ("torchrl-smore", "gymnasium", "gymnasium-robotics", "mujoco")
_logger = logging.getLogger("torchrl_smore")


@dataclass(frozen=True)
class _Request:
    """What is collected; the part of the arguments that decides the data."""

    task: Task
    expert_episodes: int
    random_episodes: int
    seed: int
    expert: Behaviour
    action_noise: float
    medium_episodes: int = 0
    medium: Behaviour = field(default_factory=lambda: Behaviour("medium"))
    # of the task as it was imported: its files may be edited before the collection ends
    source_sha256: str | None = None
    # of each behaviour's actor as it was when this was asked for: its run may go on and write another
    policy_sha256: Mapping[str, str] = field(default_factory=dict)

    def parts(self) -> list[tuple[Behaviour, range]]:
        """The behaviours that have episodes, and their episodes' numbers, in the order of the store."""
        stop = self.expert_episodes + self.medium_episodes
        parts = [
            (self.expert, range(self.expert_episodes)),
            (self.medium, range(self.expert_episodes, stop)),
            (Behaviour("random"), range(stop, stop + self.random_episodes)),
        ]
        return [(behaviour, part) for behaviour, part in parts if part]

    def chunks(self) -> list[tuple[Behaviour, range]]:
        """Units of work in the order of the store; none mixes behaviours."""
        return [
            (behaviour, range(first, min(first + _CHUNK, part.stop)))
            for behaviour, part in self.parts()
            for first in range(part.start, part.stop, _CHUNK)
        ]

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for chunks to belong to the same collection."""
        # what only some tasks have is named only there
        trained = {f"{kind}_policy": digest for kind, digest in self.policy_sha256.items()}
        medium = {"medium_episodes": self.medium_episodes} if self.medium_episodes else {}
        source = {} if self.source_sha256 is None else {"source_sha256": self.source_sha256}
        return {
            "task": self.task.name,
            **self.task.definition,
            **source,
            "expert_episodes": self.expert_episodes,
            "random_episodes": self.random_episodes,
            "seed": self.seed,
            "expert_noise": self.expert.noise,
            "expert_random_prob": self.expert.random_prob,
            "action_noise": self.action_noise,
            "chunk": _CHUNK,
            **trained,
            **medium,
            **decisive_versions(),
        }


def collect(
    task: str | Task,
    *,
    expert_episodes: int,
    random_episodes: int,
    seed: int,
    medium_episodes: int = 0,
    expert_policy: str | Path | None = None,
    medium_policy: str | Path | None = None,
    workers: int | Literal["auto"] = "auto",
    expert_noise: float | None = None,
    expert_random_prob: float | None = None,
    action_noise: float = 0.0,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> TrajectoryStore:
    """Collects trajectories of an expert, of a half-trained policy, and of random actions.

    Episode ``e`` depends only on the arguments and ``(seed, e)``: the store is the same for any number of workers.
    Trained actors multiply alike on every x86-64 processor with AVX2 (Linux, NumPy's wheels), so that with the same
    versions of the packages their stores are the same there too; ``docs/tasks.md`` has what was compared.
    Expert trajectories come first, then medium, then random ones; ``meta["composition"]`` lists the parts in this order
    with their numbers and measured quality. Random actions are uniform in ``[-1, 1]``, independent in each step. An
    episode that ends early, by a fall, repeats its last transition up to the horizon, as the paper's code does.

    Stored actions lie in ``[-1, 1]``: those of an expert that lie beyond are clipped before they are executed.

    With ``out``, finished chunks of 20 episodes are kept in the folder ``<out>.partial``; after a kill, the same call
    resumes from there, and collects damaged chunks anew, with a warning. (Of a task of one's own, the files that define
    its functions must be the same then; what these import is not looked at, and what was typed into an interpreter has
    no file.) When all are there, the store is saved at ``out`` and the folder removed. A second process with the same
    ``out`` waits until the first has ended; a line of the log says so.

    Args:
        task: the task or its name; where it has :attr:`Task.data_tasks`, episodes of the first are collected.
        expert_episodes: number of expert trajectories, at least 0.
        random_episodes: number of random trajectories, at least 0; at least one trajectory in all.
        seed: at least 0.
        medium_episodes: number of trajectories of ``medium_policy``, at least 0.
        expert_policy: file of a trained actor, of this package or of Stable-Baselines3, or a folder with
            ``expert.npz`` (of a run of ``recipes/train_expert.py``, ``distill_expert.py`` or ``convert_expert.py``).
            ``None``: the actor that comes with this package (:attr:`Task.bundled_actors`), or for a task without one
            the scripted expert, which ``"scripted"`` names for every task that has it.
        medium_policy: the same for the medium trajectories (``medium.npz`` of the folder); ``None``: the folder that
            ``expert_policy`` is, and if that is none with a ``medium.npz``, the actor that comes with this package.
        workers: number of processes, at least 1; 1 runs in this process, or with a trained actor or a task of one's own
            in a worker, where products round alike on every processor. ``"auto"`` takes every core for simulators, one
            process for tasks that are vectorised already, and this one for a task that a script or a notebook defines
            in itself, which workers do not find.
        expert_noise: standard deviation of Gaussian noise on the expert's actions, which are clipped afterwards; the
            stored actions contain it. ``None``: :attr:`Task.expert_noise` for the actor of this package, else 0.
        expert_random_prob: probability in each step that a uniform action replaces the expert's; ``None``:
            :attr:`Task.expert_random_prob` for the actor of this package, else 0.
        action_noise: standard deviation of the environment's own noise on every executed action; the stored actions
            do not contain it.
        out: folder of the store; its parents are made. ``None`` keeps it in memory only.
        overwrite: whether a store at ``out`` may be replaced.
        progress: whether to show a progress bar, and a line about the measured quality at the end; without it a long
            collection logs a line from time to time.

    Returns:
        The store; memory-mapped from ``out`` if given.

    Raises:
        ValueError: for an argument outside its range, a policy that is missing or is not for this task, an expert
            whose actions have another shape or are not finite, a simulator whose observations are not finite or whose
            goal does not stay for the episode, or if ``<out>.partial`` was begun for another request or task, or is no
            unfinished collection.
        TypeError: for a number of episodes, or a seed, that is no whole number, or a noise that is no number.
        FileExistsError: if ``out`` exists and ``overwrite`` is False.
        DatasetError: if ``out`` is something else than a store, which is not replaced.
        ImportError: if a package of the ``envs`` extra is missing.
        RuntimeError: if a worker fails, naming it and the reason, also where that is a simulator or an expert which in
            this process would be a ValueError. Finished chunks are kept.
        NotImplementedError: for several workers on a system without ``select.poll``, which is Windows.
        OSError: if the disk is full (with several workers a RuntimeError that says so). Finished chunks are kept.
    """
    task = get_task(task).data_source
    behaviour = expert_behaviour(task, expert_policy, expert_noise, expert_random_prob)
    if medium_policy is not None and not medium_episodes:
        raise ValueError(f"medium_policy={medium_policy}: of no use, as no episode is one of it (medium_episodes=0).")
    if expert_policy is not None and not (expert_episodes or medium_episodes):
        raise ValueError(f"expert_policy={expert_policy}: of no use, as no episode is one of it (expert_episodes=0).")
    request = _checked_request(
        task,
        expert_episodes,
        random_episodes,
        seed,
        behaviour,
        check_noise("action_noise", action_noise),
        medium_episodes,
        medium_behaviour(task, expert_policy, medium_policy),
    )
    num_workers = _num_workers(workers, request)
    # "." and ".." have no name of their own, beside which there could be something
    target = None if out is None else Path(os.path.abspath(out))
    with _reserved(target, overwrite), _partial_folder(target, request) as partial:
        _fill(request, partial, num_workers, progress)
        store = _assemble(request, partial)
        if target is not None:
            store.save(target, overwrite=overwrite)
            partial.remove()
    if progress:
        print(_summary(store.meta))
    return store if target is None else type(store).load(target, verify=False)


def expert_behaviour(
    task: Task,
    policy: str | Path | None = None,
    noise: float | None = None,
    random_prob: float | None = None,
) -> Behaviour:
    """The expert of a dataset, with the task's defaults; see :func:`collect` for the arguments.

    Raises:
        ValueError: for ``"scripted"`` where there is no scripted expert, or a noise outside its range.
    """
    own = policy is None and task.bundled_actors is not None
    if policy == SCRIPTED and not task.scripted:
        raise ValueError(f"{task.name} has no scripted expert; leave expert_policy out, or name a trained actor.")
    file = task.bundled_actors if policy is None else None if policy == SCRIPTED else policy
    if noise is None:
        noise = task.expert_noise if own else 0.0
    if random_prob is None:
        random_prob = task.expert_random_prob if own else 0.0
    noise, random_prob = check_noise("expert_noise", noise), check_noise("expert_random_prob", random_prob)
    return Behaviour("expert", noise, random_prob, _actor_file(file, "expert"))


def medium_behaviour(
    task: Task, expert_policy: str | Path | None = None, medium_policy: str | Path | None = None
) -> Behaviour:
    """The half-trained policy of a dataset; see :func:`collect` for the arguments."""
    if medium_policy is None:
        has_both = expert_policy is not None and (Path(expert_policy) / "medium.npz").is_file()
        medium_policy = expert_policy if has_both else task.bundled_actors
    return Behaviour("medium", policy=_actor_file(medium_policy, "medium"))


def _checked_request(
    task: Task,
    expert_episodes: int,
    random_episodes: int,
    seed: int,
    expert: Behaviour,
    action_noise: float,
    medium_episodes: int,
    medium: Behaviour,
) -> _Request:
    numbers = {
        "expert_episodes": expert_episodes,
        "random_episodes": random_episodes,
        "medium_episodes": medium_episodes,
        "seed": seed,
    }
    whole = {name: check_whole(name, number) for name, number in numbers.items()}
    for name, number in whole.items():
        if number < 0:
            raise ValueError(f"{name} must be at least 0, got {number}.")
    decided: dict[str, Any] = {**whole, "source_sha256": task.source_sha256}
    request = _Request(task, expert=expert, action_noise=action_noise, medium=medium, **decided)
    if not request.parts():
        raise ValueError("one of expert_episodes, medium_episodes and random_episodes must be positive.")
    if not 0.0 <= expert.random_prob <= 1.0:
        raise ValueError(f"expert_random_prob must lie in [0, 1], got {expert.random_prob}.")
    for behaviour, _ in request.parts():
        behaviour.controller(task)  # which refuses what it cannot use
    digests: dict[str, str] = {each.kind: _digest(each) for each, _ in request.parts() if each.policy}
    return replace(request, policy_sha256=digests)


def _actor_file(policy: str | Path | None, name: str) -> str | None:
    """The file of an actor; in the folder of a training run that of the given name."""
    if policy is None:
        return None
    path = Path(policy)
    return str(path / f"{name}.npz" if path.is_dir() else path)


def _digest(behaviour: Behaviour) -> str:
    assert behaviour.policy is not None
    return hashlib.sha256(b"".join(file.read_bytes() for file in policy_files(behaviour.policy))).hexdigest()


def _num_workers(workers: int | str, request: _Request) -> int:
    if workers == "auto":
        if request.task.make_batch is not None or not HAS_WORKERS:
            return 1
        if not can_be_sent(request):
            _logger.info("%s is defined in the running script: it is collected in this process.", request.task.name)
            return 1
        return _num_cores()
    number = operator.index(workers) if isinstance(workers, SupportsIndex) and not isinstance(workers, bool) else 0
    if number < 1:
        raise ValueError(f'workers must be "auto" or an integer of at least 1, got {workers!r}.')
    return number


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _reserved(target: Path | None, overwrite: bool) -> Iterator[None]:
    """Keeps other collections from ``target``; puts back or clears away what a killed process left beside it."""
    if target is None:
        yield
        return
    # here and not above, so that workers, which never need it, start without importing torch
    from torchrl_smore.data._disk import check_place, recover

    with locked(target.with_name(f".{target.name}.lock"), f"dataset {target}", wait=True, on_wait=_logger.warning):
        recover(target)
        # before anything is collected for it
        check_place(target, overwrite=overwrite)
        yield


@contextlib.contextmanager
def _partial_folder(target: Path | None, request: _Request) -> Iterator[PartialFolder]:
    if target is not None:
        partial = PartialFolder(target.with_name(target.name + ".partial"), request.fingerprint())
        try:
            yield partial
        except BaseException:
            partial.remove_if_empty()
            raise
        return
    with tempfile.TemporaryDirectory(prefix="torchrl_smore_") as folder:
        yield PartialFolder(Path(folder), request.fingerprint())


def _fill(request: _Request, partial: PartialFolder, num_workers: int, progress: bool) -> None:
    chunks = request.chunks()
    missing = partial.missing(len(chunks))
    total = sum(len(episodes) for _, episodes in chunks)
    done, said = total - sum(len(chunks[number][1]) for number in missing), time.monotonic()
    with _progress_bar(request, progress) as bar:
        bar.update(done)
        for number in _run_chunks(request, partial.path, missing, min(num_workers, len(missing))):
            done += len(chunks[number][1])
            bar.update(len(chunks[number][1]))
            if not progress and time.monotonic() - said >= SECONDS_BETWEEN_LINES:
                _logger.info("collecting %s: %s of %s episodes", request.task.name, f"{done:,}", f"{total:,}")
                said = time.monotonic()


def _progress_bar(request: _Request, progress: bool) -> Any:
    # here, since a loss does not need it
    from tqdm import tqdm

    total = sum(len(part) for _, part in request.parts())
    return tqdm(total=total, desc=f"collecting {request.task.name}", unit=" episodes", disable=not progress)


def _run_chunks(request: _Request, folder: Path, numbers: list[int], num_workers: int) -> Iterator[int]:
    """Runs the chunks of the given numbers and yields each number when its chunk is on disk."""
    if num_workers <= 1 and not _wants_worker(request):
        state: dict[str, Any] = {}
        try:
            for number in numbers:
                _run_chunk(state, request, folder, number)
                yield number
        finally:
            close_batch(state)
        return
    # however long a chunk takes: one that dies is noticed, and its episodes are as long as their task says
    pool = [Worker(f"collection worker {n} of {request.task.name}", math.inf) for n in range(max(1, num_workers))]
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in pool:
        idle.put(worker)

    def run(number: int) -> int:
        worker = idle.get()
        try:
            worker.send(_run_chunk, request, folder, number)
            worker.receive()
        finally:
            # also one that is dead, which then says so: a thread that waits here for ever keeps the process alive
            idle.put(worker)
        return number

    threads = ThreadPoolExecutor(len(pool))
    try:
        for future in as_completed([threads.submit(run, number) for number in numbers]):
            yield future.result()
        for worker in pool:
            # what simulators hold beside their process, a server for example, they let go of when they are closed
            worker.send(close_batch)
        for worker in pool:
            worker.close()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in pool:
            # without waiting: finished chunks are on disk, and an interrupted one nobody will take
            worker.close(wait_s=0.0)


def _wants_worker(request: _Request) -> bool:
    """Whether a single process is a worker all the same, in which products round as they do elsewhere.

    Those of an actor, and whatever a task of one's own may multiply.
    """
    rounds = request.policy_sha256 or request.source_sha256 is not None
    return HAS_WORKERS and bool(rounds) and can_be_sent(request)


def _run_chunk(state: dict[str, Any], request: _Request, folder: Path, number: int) -> None:
    behaviour, episodes = request.chunks()[number]
    if "batch" not in state:
        width = _LOCKSTEP if request.task.make_batch is None else _CHUNK
        state["batch"] = request.task.make_batch_env(width, request.action_noise)
    found = run_episodes(request.task, state["batch"], behaviour, request.seed, episodes)
    if behaviour.policy is not None and _digest(behaviour) != request.policy_sha256[behaviour.kind]:
        raise ValueError(
            f"{behaviour.policy} was replaced while episodes of it were collected: name a file that stays as it is."
        )
    # or another collection may be writing there by now
    if PARENT_IS_GONE not in state or not state[PARENT_IS_GONE]():
        write_chunk(folder, number, found)


def _assemble(request: _Request, partial: PartialFolder) -> TrajectoryStore:
    # here and not above, so that workers, which never need it, start without importing torch
    import torch

    from torchrl_smore.data.padding import repeat_last_transition
    from torchrl_smore.data.trajectories import TrajectoryStore

    chunks = [partial.read(number) for number in range(len(request.chunks()))]
    episodes = (
        {key: values[row] for key, values in chunk.items()} for chunk in chunks for row in range(len(chunk["reward"]))
    )
    last = np.concatenate([chunk["observation"][:, -1] for chunk in chunks])
    meta = _meta(request, np.concatenate([chunk["reward"] for chunk in chunks]), last)
    store = TrajectoryStore.from_episodes(episodes, meta)
    if request.task.has_fallen is not None:
        # a rule of one's own may be NumPy's
        fallen = request.task.has_fallen(store.data["next", "observation"].numpy())
        repeat_last_transition(store.data, torch.from_numpy(np.asarray(fallen)))
    return store


def _meta(request: _Request, reward: np.ndarray, last: np.ndarray) -> dict[str, Any]:
    """What is told about the store, from rewards ``[k, T]`` and last observations ``[k, ds]``."""
    task = request.task
    gamma = float(max(task.gammas))
    composition = [
        {"behaviour": behaviour.kind, "num_trajectories": len(part), "fraction": len(part) / len(reward)}
        | {key: value for key, value in asdict(behaviour).items() if key not in ("kind", "policy")}
        | ({} if behaviour.policy is None else {"policy_sha256": request.policy_sha256[behaviour.kind]})
        | quality(reward[part.start : part.stop], gamma)
        | ({} if task.has_fallen is None else {"fallen": float(task.has_fallen(last[part.start : part.stop]).mean())})
        for behaviour, part in request.parts()
    ]
    return {
        "task": task.name,
        "seed": request.seed,
        **task.definition,
        **({} if request.source_sha256 is None else {"source_sha256": request.source_sha256}),
        "composition": composition,
        "expert_fraction": request.expert_episodes / len(reward),
        "action_noise": request.action_noise,
        "gamma": gamma,
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _PACKAGES}


def decisive_versions() -> dict[str, str | None]:
    """Versions of the packages on which data depend, as they are here; ``None`` where one is missing."""
    return {name: _version(name) for name in _DECISIVE}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _summary(meta: dict[str, Any]) -> str:
    parts = [
        f"{part['num_trajectories']} {part['behaviour']} (success {part['success']:.3f}, "
        f"discounted return {part['discounted_return']:.2f})"
        for part in meta["composition"]
    ]
    return f"{meta['task']}: " + ", ".join(parts)
