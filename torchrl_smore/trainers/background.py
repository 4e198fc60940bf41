"""Evaluation in a process of its own, while training goes on."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch

from torchrl_smore._worker import HAS_WORKERS, Worker
from torchrl_smore.trainers.evaluation import Evaluation, Evaluator, Policy, Pool, check_plan

_TIMEOUT_S = 86_400.0


class BackgroundEvaluator:
    """An :class:`Evaluator` in a process of its own: what it is asked for is computed while the caller goes on.

    It gets copies of the policies as they are when :meth:`start` is called, and computes with as many threads as this
    process, so that results are those of the same evaluator here (but for what a policy multiplies in NumPy, see
    :class:`~torchrl_smore.envs.EnvPool`). :class:`OfflineTrainer` waits for one evaluation only
    where the next is due, at the end, and before it saves a checkpoint of a later update.

    The process imports PyTorch and TorchRL once more: some seconds of another core, and 0.5 GB of memory. Use it as a
    context manager, or call :meth:`close`.

    Args:
        make_pool: makes the environments there: a function without arguments that can be pickled, such as
            ``functools.partial(EnvPool, "FetchReach", 50)``.
        episodes: as of :class:`Evaluator`.
        horizon: as of :class:`Evaluator`.
        first_seed: as of :class:`Evaluator`.
        gammas: as of :class:`Evaluator`.
        timeout_s: seconds, positive, within which an evaluation must be done; a day by default.

    Raises:
        ValueError: if ``timeout_s`` is not positive, and see :class:`Evaluator`.
        TypeError: if ``make_pool`` cannot be pickled, and see :class:`Evaluator`.
        NotImplementedError: on a system without ``select.poll``, which is Windows; see :attr:`SUPPORTED`.
    """

    #: Whether this system can run one.
    SUPPORTED = HAS_WORKERS

    def __init__(
        self,
        make_pool: Callable[[], Pool],
        *,
        episodes: int = 50,
        horizon: int | None = None,
        first_seed: int = 10_000,
        gammas: Sequence[float] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self.episodes = episodes
        self.horizon = horizon
        self.first_seed = first_seed
        self.gammas = None if gammas is None else tuple(gammas)
        check_plan(episodes, horizon, first_seed, self.gammas)
        request = _pickled(make_pool, "the function that makes environments for an evaluation process")
        options = {"episodes": episodes, "horizon": horizon, "first_seed": first_seed, "gammas": self.gammas}
        self._worker = Worker("the evaluation process", timeout_s)
        self._worker.send(_make, request, options, torch.get_num_threads())
        self._made = False
        self._running = False
        self._forgotten = False

    def start(self, policies: Sequence[Policy]) -> None:
        """Begins an evaluation of policies as they are now.

        Args:
            policies: as of :meth:`Evaluator.run_all`; they must be picklable, which an
                :class:`~torchrl_smore.trainers.ActorPolicy` is.

        Raises:
            RuntimeError: if one is running whose result was not asked for, or the process has failed.
            TypeError: if a policy cannot be pickled.
        """
        if self._running and self._forgotten:
            # of a run_all that was interrupted
            with contextlib.suppress(RuntimeError):
                self.result()
        if self._running:
            raise RuntimeError("an evaluation is running; ask for its result first.")
        self._forgotten = False
        self._worker.send(_run, _pickled(list(policies), "what an evaluation process shall evaluate"))
        self._running = True

    def is_done(self) -> bool:
        """Whether :meth:`result` would not have to wait.

        Raises:
            RuntimeError: if the environments could not be made.
        """
        if not self._made and self._worker.has_answered():
            self._wait_until_made()
        return self._made and self._running and self._worker.has_answered()

    def result(self) -> list[Evaluation]:
        """Waits for the evaluation that was started: one for each policy; interrupted, it can be called again.

        Raises:
            RuntimeError: if none was started, or the process has failed or does not answer in time.
        """
        if not self._running:
            raise RuntimeError("no evaluation was started.")
        try:
            self._wait_until_made()
            evaluations: list[Evaluation] = self._worker.receive()
        except Exception:
            # one that fails is not waited for again; one whose wait was interrupted is
            self._running = False
            raise
        self._running = False
        return evaluations

    def run_all(self, policies: Sequence[Policy]) -> list[Evaluation]:
        """Evaluates policies and waits; see :meth:`start` and :meth:`result`."""
        self.start(policies)
        self._forgotten = True
        return self.result()

    def close(self) -> None:
        """Releases the environments and ends the process. Safe to call twice."""
        # not of one that is dead
        with contextlib.suppress(RuntimeError):
            self._worker.send(_close)
        self._worker.close()

    def __enter__(self) -> BackgroundEvaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_until_made(self) -> None:
        if not self._made:
            self._worker.receive()
            self._made = True


def _pickled(value: Any, what: str) -> bytes:
    """``value`` by PyTorch's pickle, in which views of one buffer keep it once."""
    content = io.BytesIO()
    try:
        torch.save(value, content)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"{what} must be picklable, for it is sent to another process: {error}") from error
    return content.getvalue()


def _unpickled(content: bytes) -> Any:
    # from the parent's pipe, and from nowhere else
    return torch.load(io.BytesIO(content), weights_only=False)


def _make(state: dict[str, Any], make_pool: bytes, options: dict[str, Any], threads: int) -> None:
    torch.set_num_threads(threads)
    state["evaluator"] = Evaluator(_unpickled(make_pool)(), **options)


def _close(state: dict[str, Any]) -> None:
    evaluator = state.pop("evaluator", None)
    if hasattr(getattr(evaluator, "pool", None), "close"):
        evaluator.pool.close()


def _run(state: dict[str, Any], policies: bytes) -> list[Evaluation]:
    evaluator: Evaluator = state["evaluator"]
    return evaluator.run_all(_unpickled(policies))
