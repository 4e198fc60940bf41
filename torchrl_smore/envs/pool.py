"""Steps many environments of one task at once, in this process or in several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_smore._errors import check_whole
from torchrl_smore._worker import TIMEOUT_S, Worker
from torchrl_smore.envs.batch import BatchEnv, Observation, close_batch
from torchrl_smore.envs.tasks import Task, get_task
from torchrl_smore.envs.wrappers import GOAL_KEYS, check_noise

_NAMED = 8  # environments, at most, in an error


class EnvPool:
    """``num_envs`` environments of a task behind one ``reset`` and one ``step``.

    An episode depends on its seed alone: neither on the number of workers nor on what ran before. (Workers ask NumPy's
    OpenBLAS for one kernel on all processors, see ``docs/tasks.md``: a task of one's own that multiplies matrices may
    round otherwise in this process, unless that has ``OPENBLAS_CORETYPE=Haswell`` too.) Episodes do not end by
    themselves; the caller steps ``task.horizon`` times and resets. Use it as a context manager, or call :meth:`close`.

    Args:
        task: the task or its name.
        num_envs: number of environments n, at least 1.
        num_workers: processes to spread them over, at most one for each environment; 0 steps them in this process.
        action_noise: standard deviation of Gaussian noise on the executed action, at least 0;
            see :class:`~torchrl_smore.envs.wrappers.ActionNoiseWrapper`.
        timeout_s: seconds in which a worker must answer, positive.

    A task of one's own and its functions must lie in a module that workers can import: they do not run the script that
    made the pool (``__main__``).

    Raises:
        ValueError: for an unknown task, a count below its minimum, a negative noise or a ``timeout_s`` that is not
            positive.
        ImportError: if a package the simulator needs is missing and ``num_workers`` is 0.
        TypeError: for a count that is no whole number.
        RuntimeError: if a worker fails or does not answer in time, naming it and the reason. The pool is then closed.
        NotImplementedError: for workers on a system without ``select.poll``, which is Windows.
    """

    def __init__(
        self,
        task: str | Task,
        num_envs: int,
        *,
        num_workers: int = 0,
        action_noise: float = 0.0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.task = get_task(task)
        num_envs, num_workers = check_whole("num_envs", num_envs), check_whole("num_workers", num_workers)
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
        if not timeout_s > 0.0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}.")
        self.num_envs = num_envs
        sigma = check_noise("action_noise", action_noise)
        self._here: dict[str, Any] = {}
        self._workers: list[Worker] = []
        self._closed = self._begun = False
        if num_workers == 0:
            _open(self._here, self.task, num_envs, sigma)
            return
        self._slices = _split(num_envs, num_workers)
        try:
            for number, part in enumerate(self._slices):
                self._workers.append(Worker(f"environment worker {number} of {self.task.name}", timeout_s))
                self._workers[-1].send(_open, self.task, part.stop - part.start, sigma)
        except BaseException:
            self.close()
            raise
        self._gather()

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Starts one episode per seed.

        Args:
            seeds: n integers, at least 0.

        Returns:
            ``observation [n, ds]``, ``achieved_goal [n, dg]`` and ``desired_goal [n, dg]``, float32.

        Raises:
            ValueError: for another number of seeds than environments, or a negative one.
            TypeError: for a seed that is no whole number.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"expected one seed for each of {self.num_envs} environments, got {len(seeds)}.")
        whole = [check_whole("a seed", seed) for seed in seeds]
        if whole and min(whole) < 0:
            raise ValueError(f"seeds must be at least 0, got {min(whole)}.")
        observation = self._call(_reset, whole)
        self._begun = True
        return observation

    def step(self, actions: NDArray[Any]) -> tuple[Observation, NDArray[np.float32]]:
        """Steps every environment.

        Args:
            actions: shape ``[n, da]``, in ``[-1, 1]``.

        Returns:
            The observations, as in :meth:`reset`, and the rewards ``[n]``, 1 where the goal is now reached, else 0.

        Raises:
            ValueError: for actions of another shape, or that are not finite, naming their environments.
            RuntimeError: before the first :meth:`reset`.
        """
        if not self._begun and not self._closed:
            raise RuntimeError("the pool has no episodes: reset it before the first step.")
        actions = np.asarray(actions, dtype=np.float32)
        expected = (self.num_envs, self.task.action_dim)
        if actions.shape != expected:
            raise ValueError(f"expected actions of shape {expected}, got {actions.shape}.")
        _check_finite(actions)
        observation = self._call(_step, actions)
        reward = self.task.succeeded(*(observation[key] for key in GOAL_KEYS))
        return observation, reward.astype(np.float32)

    def close(self) -> None:
        """Ends the workers and releases the environments. Safe to call twice."""
        self._closed = True
        for worker in self._workers:
            # not of one that is dead
            with contextlib.suppress(RuntimeError):
                worker.send(close_batch)
        for worker in self._workers:
            worker.close()
        self._workers = []
        close_batch(self._here)

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, function: Callable[[dict[str, Any], Any], Observation], values: Any) -> Observation:
        if self._closed:
            raise RuntimeError("the pool is closed.")
        if self._here:
            return function(self._here, values)
        try:
            for worker, part in zip(self._workers, self._slices, strict=True):
                worker.send(function, values[part])
        except BaseException:
            self.close()
            raise
        parts = self._gather()
        return {key: np.concatenate([part[key] for part in parts]) for key in GOAL_KEYS}

    def _gather(self) -> list[Any]:
        try:
            return [worker.receive() for worker in self._workers]
        except BaseException:
            self.close()
            raise


def _check_finite(actions: NDArray[Any]) -> None:
    """Refuses actions ``[n, da]`` by which a simulator would begin anew, and not say so.

    Raises:
        ValueError: naming the environments whose actions are not finite.
    """
    broken = np.flatnonzero(~np.isfinite(actions).all(-1)).tolist()
    if broken:
        named = ", ".join(map(str, broken[:_NAMED])) + (f" and {len(broken) - _NAMED} more" if broken[_NAMED:] else "")
        raise ValueError(f"expected finite actions, got {actions[broken[0]].tolist()} for environments {named}.")


def _split(num_envs: int, num_workers: int) -> list[slice]:
    edges = np.linspace(0, num_envs, min(num_workers, num_envs) + 1).round().astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _open(state: dict[str, Any], task: Task, num_envs: int, sigma: float) -> None:
    state["batch"] = task.make_batch_env(num_envs, sigma)


def _reset(state: dict[str, Any], seeds: Sequence[int]) -> Observation:
    batch: BatchEnv = state["batch"]
    return batch.reset(seeds)


def _step(state: dict[str, Any], actions: NDArray[Any]) -> Observation:
    batch: BatchEnv = state["batch"]
    return batch.step(actions)
