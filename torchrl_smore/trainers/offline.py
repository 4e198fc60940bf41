"""A TorchRL trainer without a collector."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.objectives import LossModule, TargetNetUpdater
from torchrl.record.loggers import Logger
from torchrl.trainers import Trainer

from torchrl_smore._errors import unknown_name
from torchrl_smore._lock import locked
from torchrl_smore.trainers._averages import Averages
from torchrl_smore.trainers._steps import OfflineSteps, UpdateStepper
from torchrl_smore.trainers.background import BackgroundEvaluator
from torchrl_smore.trainers.checkpoint import (
    RESERVED,
    CheckpointError,
    CheckpointWarning,
    check_meta,
    check_storable,
    clear_leftovers,
    drop_later,
    latest_checkpoint,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from torchrl_smore.trainers.evaluation import ActorPolicy, Evaluation, Evaluator, Policy, shown_return
from torchrl_smore.trainers.logging import MetricsFile
from torchrl_smore.trainers.modes import in_mode
from torchrl_smore.trainers.policies import BEST_FOLDER
from torchrl_smore.trainers.update import Compile, Update, UpdateStep

_STAGES = (
    "setup",
    "batch_process",
    "pre_steps_log",
    "pre_optim_steps",
    "post_optim",
    "post_optim_log",
    "post_steps",
    "post_steps_log",
    "shutdown",
)
_ABSENT_STAGES = (
    "pre_epoch",
    "pre_epoch_log",
    "process_optim_batch",
    "post_loss",
    "process_loss",
    "optimizer",
    "post_epoch",
    "post_epoch_log",
    "post_optim_complete_log",
)

OnDivergence = Literal["stop", "continue"]
#: What a checkpoint says of the trainer that wrote it, beside ``seeds``.
_OF_TRAINER = ("total_steps", "torch", "device")


class DivergedError(RuntimeError):
    """A loss or a parameter of a run is no finite number any more.

    Attributes:
        name: the first loss or parameter that was not finite.
        step: the update in which it was.
        seed: of several seeds that one which diverged.
        checkpoint: the newest checkpoint, saved before that; ``None`` without one.
    """

    def __init__(self, name: str, step: int, seed: int | None, checkpoint: Path | None) -> None:
        super().__init__(name, step, seed, checkpoint)
        self.name, self.step, self.seed, self.checkpoint = name, step, seed, checkpoint

    def __str__(self) -> str:
        whose = "" if self.seed is None else f" of seed {self.seed}"
        kept = "there is no checkpoint" if self.checkpoint is None else f"the last good checkpoint is {self.checkpoint}"
        return f"the run diverged: {self.name}{whose} is not finite at update {self.step:,}; {kept}."


_Rows = Sequence[Mapping[str, float]]
_State = dict[str, Any]


@dataclass(eq=False)
class _Pending:
    """An evaluation in progress: of which update, of which states of the losses, and the rows that wait for it."""

    step: int
    states: list[_State]
    rows: list[tuple[int, _Rows]] = field(default_factory=list)


class EvaluationHook(ABC):
    """A ``post_steps`` hook that is called with every new evaluation too, before the rows of that are written.

    A run that is killed in between repeats the evaluation when it is resumed, so that the hook misses none. It may see
    one twice.
    """

    @abstractmethod
    def __call__(self) -> None:
        """Looks at the newest evaluation of the trainer."""


class OfflineTrainer(Trainer):
    """Trains any TorchRL loss, or several seeds of one, on a fixed dataset.

    What one update is comes either from ``loss``, ``sampler``, ``optimizer``, ``scheduler``, ``target_updater`` and
    ``compile``, which make an :class:`~torchrl_smore.trainers.Update`, or ready as ``update``; a
    :class:`~torchrl_smore.trainers.FusedUpdate` of several seeds gives each its rows in ``metrics.csv`` (then with a
    column ``seed``), its evaluation and its part of the checkpoints, while logger and progress bar show means over
    seeds.

    A :class:`~torchrl.trainers.Trainer` whose hooks work as usual (``post_optim``, ``post_steps``, ``post_steps_log``,
    ...; a "frame" is an update); ``post_optim_log`` gets the losses of the update, there being no batch to give. What a
    hook remembers is not in the checkpoints: one that counts or compares begins anew where a run is resumed. It
    evaluates, logs to ``run_dir/metrics.csv`` and, if given, a TorchRL logger, keeps checkpoints in
    ``run_dir/checkpoint`` and resumes from them: on a CPU a resumed run equals an uninterrupted one bit for bit. While
    it trains, ``run_dir`` is locked: two processes never write to one folder.

    With a :class:`BackgroundEvaluator` updates go on while policies are evaluated. Rows that come meanwhile wait for
    those of the evaluation: files, loggers and checkpoints are the same as with an :class:`Evaluator` here.

    Everything of the losses is in training mode while they are trained and in evaluation mode while the policy acts,
    functional networks included; afterwards it has the mode that it had before. The device is asked whether all losses
    are finite whenever something is logged or saved, and not in every update.

    Args:
        loss: any TorchRL loss with ``loss_*`` outputs.
        sampler: returns a batch, for example ``replay_buffer.sample`` or a
            :class:`~torchrl_smore.data.GoalBatchSampler`; what of its state a checkpoint has, and when it resumes
            exactly, see :class:`~torchrl_smore.trainers.Update`.
        optimizer: over ``loss.parameters()``; see :func:`~torchrl_smore.trainers.adam`.
        total_steps: updates, positive.
        update: a ready update, instead of everything that one is made from.
        run_dir: folder for metrics and checkpoints; ``None`` writes nothing.
        scheduler: stepped after every update.
        target_updater: stepped after every update.
        evaluator: runs the policies, all seeds' in one pool on the same episodes, here or in a process of its own;
            ``None`` never evaluates.
        policy: what is evaluated, one for each seed; ``None`` is the loss's ``actor_network``, deterministic.
        log_interval: updates between two rows of metrics, averaged over the interval.
        eval_interval: updates between two evaluations; the end is always evaluated.
        save_interval: updates between two checkpoints; the end is always saved.
        keep_checkpoints: newest checkpoints to keep.
        compile: see :class:`~torchrl_smore.trainers.update.Update`.
        meta: identifies the run in its checkpoints (JSON, without the keys that these have themselves); a checkpoint
            with another ``meta`` is refused.
        on_divergence: what is done when a loss or a parameter is not finite: ``"stop"`` raises a
            :class:`DivergedError`, ``"continue"`` warns once. Parameters that are not finite are never saved.
        logger: a TorchRL logger that gets every row too.
        progress_bar: whether to show one.

    Raises:
        TypeError: if ``meta`` is no JSON, or, with a ``run_dir``, the state of the update is nothing that a checkpoint
            can hold.
        ValueError: if a count is not positive, ``update`` is given beside what makes one, or neither is complete, or
            ``meta`` has a key that checkpoints use.
    """

    _optim_count: int

    def __init__(
        self,
        loss: LossModule | None = None,
        sampler: Callable[[], TensorDictBase] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        total_steps: int,
        update: UpdateStep | None = None,
        run_dir: str | Path | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        target_updater: TargetNetUpdater | None = None,
        evaluator: Evaluator | BackgroundEvaluator | None = None,
        policy: Policy | Sequence[Policy] | None = None,
        log_interval: int = 100,
        eval_interval: int = 1000,
        save_interval: int = 1000,
        keep_checkpoints: int = 2,
        compile: Compile = "off",
        meta: Mapping[str, Any] | None = None,
        on_divergence: OnDivergence = "stop",
        logger: Logger | None = None,
        progress_bar: bool = True,
    ) -> None:
        counts = {
            "total_steps": total_steps,
            "log_interval": log_interval,
            "eval_interval": eval_interval,
            "save_interval": save_interval,
            "keep_checkpoints": keep_checkpoints,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be positive, got {count}.")
        if on_divergence not in get_args(OnDivergence):
            raise unknown_name("on_divergence", on_divergence, get_args(OnDivergence))
        self.update = _given_or_built(
            update, loss, sampler, optimizer, scheduler=scheduler, target_updater=target_updater, compile=compile
        )
        self.seeds = self.update.seeds
        self.meta = dict(meta or {})
        check_meta(self.meta)
        if taken := [key for key in (*RESERVED, *_OF_TRAINER) if key in self.meta]:
            raise ValueError(f"meta must not have {', '.join(taken)}, which every checkpoint has of its own.")
        if run_dir is not None:
            # and not at the first save, after all the updates before it
            check_storable(self.update.state_dict(), "update")
        super().__init__(
            collector=OfflineSteps(total_steps, (log_interval, eval_interval, save_interval)),
            total_frames=total_steps,
            frame_skip=1,
            optim_steps_per_batch=1,
            loss_module=self.update.losses[0],
            optimizer=optimizer,
            optimization_stepper=UpdateStepper(self.update),
            target_net_updater=target_updater,
            logger=logger,
            progress_bar=progress_bar,
            # every call of _log writes: the intervals are those of the step source
            log_interval=0,
        )
        # TorchRL keeps this dictionary on the class, where a second trainer would empty it
        self._last_log: dict[str, int] = {}
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.evaluator = evaluator
        self.policies = self._policies(policy)
        self.eval_interval = eval_interval
        self.log_interval = log_interval
        self.save_interval = save_interval
        self.keep_checkpoints = keep_checkpoints
        self.on_divergence = on_divergence
        self.evaluations: list[Evaluation] = []
        self.evaluated_step = 0
        self.resumed = False
        self.update_seconds = 0.0
        self._updates_timed = 0
        self._averages = Averages(len(self.seeds))
        self.diverged: DivergedError | None = None
        self._stop: BaseException | None = None
        self._saved_step = 0
        self._metrics: MetricsFile | None = None
        self._pending: _Pending | None = None
        self._evaluated_states: list[_State] | None = None
        self._evaluation_hooks: list[EvaluationHook] = []

    def _policies(self, policy: Policy | Sequence[Policy] | None) -> list[Policy]:
        if policy is None:
            return [] if self.evaluator is None else [ActorPolicy(loss) for loss in self.update.losses]
        policies = [policy] if callable(policy) else list(policy)
        if len(policies) != len(self.seeds):
            raise ValueError(f"expected a policy for each of {len(self.seeds)} seeds, got {len(policies)}.")
        return policies

    @property
    def evaluation(self) -> Evaluation | None:
        """The newest evaluation of the first seed; ``evaluations`` has those of all, ``evaluated_step`` its update."""
        return self.evaluations[0] if self.evaluations else None

    def evaluated_states(self) -> list[dict[str, Any]]:
        """State of each seed's loss, as copies on the CPU, that the newest evaluation was of.

        It is of this moment where the evaluator works in this process.
        """
        return self._loss_states() if self._evaluated_states is None else self._evaluated_states

    def _loss_states(self) -> list[_State]:
        # copies: parameters may be views of one buffer of all seeds
        return [
            {
                key: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
                for key, value in loss.state_dict().items()
            }
            for loss in self.update.losses
        ]

    @property
    def step(self) -> int:
        """Updates done."""
        # not collected_frames, where TorchRL counts those that are about to be done
        return self._optim_count

    @property
    def _device(self) -> torch.device:
        return next(self.loss_module.parameters()).device

    @property
    def updates_per_second(self) -> float:
        """Rate of updates in this process, sampling included, evaluation and logging excluded."""
        return self._updates_timed / self.update_seconds if self.update_seconds > 0 else float("nan")

    def train(self) -> None:
        """Runs the remaining updates: after an interruption or :meth:`stop_with` it can be called again and goes on.

        What a hook ends early (:meth:`torchrl.trainers.Trainer.request_stop`) is evaluated and saved as it is then.
        A run that resumed an older checkpoint leaves what came after it: those checkpoints and rows are removed.

        Raises:
            DivergedError: see ``on_divergence``.
            FileExistsError: if ``run_dir`` has checkpoints of a run that was not resumed.
            LockedError: if another process trains in ``run_dir``.
        """
        with contextlib.ExitStack() as stack:
            if self.run_dir is not None:
                stack.enter_context(self.locked())
                self._check_folder()
                for root in (self.run_dir / "checkpoint", *(self.run_dir / BEST_FOLDER).glob("seed_*")):
                    clear_leftovers(root)
                # before the rows: a checkpoint whose rows are gone would leave a hole where it is resumed
                drop_later(self.run_dir / "checkpoint", self.step)
                self._metrics = MetricsFile(self.run_dir / "metrics.csv", self.step or None)
            stack.enter_context(in_mode(True, *self.update.losses))
            # after an interrupt TorchRL has counted updates that were not done
            self.collected_frames = self._optim_count
            self.collector.load_state_dict({"done": self.step})
            try:
                super().train()
            except Exception:
                self._finish_evaluation()
                raise
            finally:
                self._stop_training = False
            self._finish_evaluation()
        if self.progress_bar:
            self._pbar.close()
        if self._stop is not None:
            # asked for after the last update, when everything is saved
            error, self._stop = self._stop, None
            raise error
        if not self.evaluations and self.evaluator is not None:
            # resumed at its end: the row is there, the evaluation itself is not
            self.evaluations, self.evaluated_step = self.evaluator.run_all(self.policies), self.step

    def _check_folder(self) -> None:
        """Refuses a folder whose run would be overwritten bit by bit."""
        if not self.resumed and self.step == 0:
            self._refuse_folder("resume() continues it; a new run needs a folder of its own.")

    def _refuse_folder(self, why: str) -> None:
        assert self.run_dir is not None
        with contextlib.suppress(CheckpointError):
            found = latest_checkpoint(self.run_dir / "checkpoint")
            raise FileExistsError(f"{self.run_dir} holds a run already, with {found.name}: {why}")

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """The lock of ``run_dir``, which :meth:`train` holds: for what else must not be done by two processes.

        Raises:
            LockedError: on entering, if another process has it.
            ValueError: if the trainer has no ``run_dir``.
        """
        if self.run_dir is None:
            raise ValueError("a trainer without run_dir has nothing to lock.")
        return locked(self.run_dir / ".lock", f"run folder {self.run_dir}")

    def stop_with(self, error: BaseException) -> None:
        """Makes :meth:`train` save a checkpoint after the update in progress and raise ``error``.

        After the last update it ends as it would have and raises ``error`` then.
        May be called from a signal handler.
        """
        self._stop = error

    def register_op(self, dest: Any, op: Callable[..., Any], **kwargs: Any) -> None:
        """Registers a hook; see :meth:`torchrl.trainers.Trainer.register_op`.

        Raises:
            ValueError: for a stage that has no place here: an update draws its own batch, and there are no epochs.
        """
        if dest in _ABSENT_STAGES:
            raise ValueError(f"OfflineTrainer never reaches the hook stage {dest!r}; it has {', '.join(_STAGES)}.")
        super().register_op(dest, op, **kwargs)
        if isinstance(op, EvaluationHook):
            self._evaluation_hooks.append(op)

    def _setup_hook(self) -> None:
        super()._setup_hook()
        if self.progress_bar:
            self._pbar.update(self.step)
        # where an interrupt came between an update and what it is followed by
        self._finish_evaluation()
        if self._averages.count and self._is_due(self.log_interval):
            self._log_averages()
        self._repeat_lost_evaluation()
        if self.run_dir is not None and self.step not in (0, self._saved_step) and self._is_due(self.save_interval):
            self.save()

    def _shutdown_hook(self) -> None:
        if self._stop_training and self.step < self.total_frames:
            self._end_early()
        super()._shutdown_hook()

    def _is_due(self, interval: int) -> bool:
        return self.step >= self.total_frames or self.step % interval == 0

    def optim_steps(self, batch: TensorDictBase) -> None:
        """Runs ``batch.numel()`` updates, then logs, evaluates and saves what is due."""
        # the trainer has counted the whole interval; here each update counts once it is done
        self.collected_frames = self.step
        self._pre_optim_hook()
        start = time.perf_counter()
        before = self.step
        for _ in range(batch.numel()):
            out = self.optimization_stepper.step(self, batch)
            self._optim_count += 1
            self.collected_frames = self.step
            self._averages.add(out)
            self._post_optim_hook()
            self._post_optim_log(out)
            if self._stop is not None:
                break
        done = self.step - before
        device = self._device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.update_seconds += time.perf_counter() - start
        self._updates_timed += done
        last = self.step >= self.total_frames
        if isinstance(self.evaluator, BackgroundEvaluator) and self.evaluator.is_done() and not last:
            self._finish_evaluation()
        if self._is_due(self.log_interval):
            self._log_averages()
        elif self.step % self.eval_interval == 0:
            self._check_finite()
        if last and self._pending is not None:
            # another evaluation ends before hooks are called for the last time
            self._finish_evaluation()
            self._show_to_hooks(batch)
        if self._evaluates():
            self._evaluate()
        if self.run_dir is not None and (self._is_due(self.save_interval) or self._stop is not None):
            self.save()
        if last:
            self._finish_evaluation()
        if self._stop is not None:
            # of an evaluation whose rows are written, nothing would tell them when the run is resumed
            self._show_to_hooks(batch)
            error, self._stop = self._stop, None
            raise error

    def _end_early(self) -> None:
        """Evaluates, logs and saves what :meth:`optim_steps` has left for a later update, as at the end."""
        seen = self.evaluated_step
        self._finish_evaluation()
        if self._averages.count:
            self._log_averages()
        if self.evaluator is not None and self.evaluated_step < self.step:
            self._evaluate()
            self._finish_evaluation()
        if self.evaluated_step != seen:
            self._show_to_hooks(TensorDict({}, batch_size=[0]))
        if self.run_dir is not None and self._saved_step != self.step:
            self.save()

    def _show_to_hooks(self, batch: TensorDictBase) -> None:
        """Calls those that come after updates, which look at the newest evaluation."""
        self._post_steps_hook()
        self._post_steps_log_hook(batch)

    def _evaluates(self) -> bool:
        return self.evaluator is not None and self._is_due(self.eval_interval)

    def _evaluate(self) -> None:
        """Evaluates the policies as they are now; an evaluator beside training only begins to."""
        assert self.evaluator is not None
        self._finish_evaluation()
        if isinstance(self.evaluator, BackgroundEvaluator):
            pending = _Pending(self.step, self._loss_states())
            self.evaluator.start(self.policies)
            self._pending = pending
        else:
            self._take(self.evaluator.run_all(self.policies), self.step)

    def _finish_evaluation(self) -> None:
        """Waits for the evaluation in progress, if there is one, and writes its rows and then those that waited."""
        pending = self._pending
        if pending is None:
            return
        assert isinstance(self.evaluator, BackgroundEvaluator)
        try:
            evaluations = self.evaluator.result()
        except Exception:
            # one that fails is not waited for again; one whose wait was interrupted is
            self._pending = None
            raise
        self._pending = None
        self._evaluated_states = pending.states
        self._take(evaluations, pending.step)
        for step, rows in pending.rows:
            self._record(step, rows)

    def _take(self, evaluations: list[Evaluation], step: int) -> None:
        self.evaluations, self.evaluated_step = evaluations, step
        for hook in self._evaluation_hooks:
            hook()
        # last: by these rows a resumed run tells that nothing of the evaluation is missing
        self._record(step, [{f"eval/{key}": value for key, value in own.metrics.items()} for own in evaluations])

    def _repeat_lost_evaluation(self) -> None:
        """Repeats the evaluation at the checkpoint resumed from, if its process was killed before it was written."""
        if self.step == 0 or not self._evaluates():
            return
        if self._metrics is None:
            lost = not self.resumed and self.evaluated_step != self.step
        else:
            lost = not self._metrics.has(self.step, "eval/", len(self.seeds))
        if lost:
            if self._metrics is not None:
                self._metrics.drop(self.step, "eval/")
            self._evaluate()
            if self.step >= self.total_frames:
                self._finish_evaluation()
            if self._pending is None:
                # before the networks change, or where no update is left after which hooks are called
                self._show_to_hooks(TensorDict({}, batch_size=[0]))

    def _log_averages(self) -> None:
        rows = self._averages.rows()
        self._write([{**row, "updates_per_second": self.updates_per_second} for row in rows])
        if not all(math.isfinite(value) for row in rows for key, value in row.items() if key.startswith("loss_")):
            self._check_finite()
        self._averages.clear()

    def _check_finite(self) -> None:
        """Looks for the first loss of the interval that was not finite; waits for the device."""
        bad = self._averages.first_not_finite()
        if bad is not None:
            num_finite, name, number = bad
            self._diverged(name, self.step - self._averages.count + num_finite + 1, number)

    def _has_finite_parameters(self) -> bool:
        """Looks for a parameter that is not finite, which no loss has shown yet."""
        for number, loss in enumerate(self.update.losses):
            for name, parameter in loss.named_parameters():
                if not parameter.isfinite().all():
                    self._diverged(name, self.step, number)
                    return False
        return True

    def _diverged(self, name: str, step: int, number: int) -> None:
        seed = self.seeds[number] if len(self.seeds) > 1 else None
        try:
            checkpoint = None if self.run_dir is None else latest_checkpoint(self.run_dir / "checkpoint")
        except CheckpointError:
            checkpoint = None
        error = DivergedError(name, step, seed, checkpoint)
        if self.on_divergence == "stop":
            raise error
        if self.diverged is None:
            warnings.warn(f"{error} Training continues.", stacklevel=2)
            self.diverged = error

    def _write(self, rows: _Rows) -> None:
        """Writes the values of each seed now, or once the evaluation in progress is written: rows stay in order."""
        if self._pending is not None:
            self._pending.rows.append((self.step, rows))
        else:
            self._record(self.step, rows)

    def _record(self, step: int, rows: _Rows) -> None:
        """Writes the values of each seed to the file, and their means to progress bar and logger."""
        rows = [{key: float(value) for key, value in row.items()} for row in rows]
        means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        returned = shown_return(means)
        shown = [key for key in means if key.startswith(("loss_", "eval/success_last")) or key == returned]
        # TorchRL's logging knows no other update than that which the trainer is at
        now = self.collected_frames
        self.collected_frames = step
        try:
            self._log(log_pbar=False, **{key: value for key, value in means.items() if key not in shown})
            self._log(log_pbar=True, **{key: means[key] for key in shown})
        finally:
            self.collected_frames = now
        if self._metrics is not None:
            for seed, row in zip(self.seeds, rows):
                self._metrics.write(step, row, seed if len(rows) > 1 else None)

    def save(self) -> Path | None:
        """Writes a checkpoint; see :func:`~torchrl_smore.trainers.checkpoint.save_checkpoint`.

        Returns:
            Its folder, or ``None`` where a parameter is not finite and training continues; the good ones stay then.

        Raises:
            DivergedError: instead of a checkpoint that is not finite, see ``on_divergence``.
            ValueError: if the trainer has no ``run_dir``.
        """
        if self.run_dir is None:
            raise ValueError("a trainer without run_dir keeps no checkpoints.")
        if self._pending is not None and self._pending.step < self.step:
            # a run resumed from here cannot repeat it: the networks of that update are gone then
            self._finish_evaluation()
        self._check_finite()
        if not self._has_finite_parameters():
            return None
        state = {
            "step": self.step,
            "update": self.update.state_dict(),
            "rng": rng_state(),
            **self._averages.state_dict(),
        }
        device = self._device
        meta = {"seeds": list(self.seeds), **self.meta}
        meta.update(zip(_OF_TRAINER, (int(self.total_frames), torch.__version__, device.type)))
        path = save_checkpoint(self.run_dir / "checkpoint", self.step, state, meta, self.keep_checkpoints)
        self._saved_step = self.step
        return path

    def resume(self, checkpoint: str | Path | None = None) -> None:
        """Continues from a checkpoint, by default the newest of ``run_dir``.

        Evaluations of before, in this process, are forgotten.

        Args:
            checkpoint: its folder, of this run or, where ``run_dir`` has no checkpoint so far, of another.

        Raises:
            CheckpointError: if there is none, it is damaged, or it belongs to another run; nothing has changed then.
            FileExistsError: for a checkpoint from elsewhere, if ``run_dir`` has some of its own: they would be lost.
            ValueError: if the trainer has neither a ``run_dir`` nor was given a checkpoint.
        """
        if checkpoint is None:
            if self.run_dir is None:
                raise ValueError("a trainer without run_dir needs the path of a checkpoint to resume from.")
            checkpoint = latest_checkpoint(self.run_dir / "checkpoint")
        if self.run_dir is not None and Path(checkpoint).resolve().parent != (self.run_dir / "checkpoint").resolve():
            self._refuse_folder(f"{checkpoint} is not of it; continue that in a folder of its own.")
        state, meta = load_checkpoint(checkpoint, self.meta)
        step = state.get("step")
        if step != meta["step"] or not isinstance(step, int) or not 0 <= step <= self.total_frames:
            raise CheckpointError(
                f"{checkpoint} has step={step!r} of {meta['step']!r}; expected an update between 0 and total_steps="
                f"{self.total_frames}."
            )
        self._tell_what_differs(meta)
        # checks all of it before it overwrites anything
        self.update.load_state_dict(state["update"])
        pending, self._pending = self._pending, None
        if pending is not None:
            # of a course that is left
            assert isinstance(self.evaluator, BackgroundEvaluator)
            with contextlib.suppress(RuntimeError):
                self.evaluator.result()
        set_rng_state(state["rng"])
        self._averages.load_state_dict(state, self._device)
        self.resumed, self._stop, self._saved_step = True, None, step
        self.evaluations, self.evaluated_step, self._evaluated_states = [], 0, None
        self.diverged = None
        # of updates that are done again: a logger would take none of their rows
        self._last_log.clear()
        self.collected_frames = self._optim_count = step
        self.collector.load_state_dict({"done": step})

    def _tell_what_differs(self, meta: Mapping[str, Any]) -> None:
        """Warns of circumstances that keep a resumed run from being the same bit for bit."""
        here = {"torch": torch.__version__, "device": self._device.type}
        differing = [f"{name} {meta[name]} (now {now})" for name, now in here.items() if meta.get(name, now) != now]
        if differing:
            warnings.warn(
                f"the checkpoint was saved under {' and '.join(differing)}: the run continues, not bit for bit.",
                CheckpointWarning,
                stacklevel=3,
            )


def _given_or_built(
    update: UpdateStep | None,
    loss: LossModule | None,
    sampler: Callable[[], TensorDictBase] | None,
    optimizer: torch.optim.Optimizer | None,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    target_updater: TargetNetUpdater | None,
    compile: Compile,
) -> UpdateStep:
    parts = {"loss": loss, "sampler": sampler, "optimizer": optimizer}
    parts.update(scheduler=scheduler, target_updater=target_updater, compile=None if compile == "off" else compile)
    given = [name for name, value in parts.items() if value is not None]
    if update is not None:
        if given:
            raise ValueError(f"a ready update has its own parts; drop {', '.join(given)}.")
        return update
    if loss is None or sampler is None or optimizer is None:
        missing = [name for name in ("loss", "sampler", "optimizer") if parts[name] is None]
        raise ValueError(f"expected an update, or loss, sampler and optimizer; missing: {', '.join(missing)}.")
    return Update(loss, sampler, optimizer, scheduler=scheduler, target_updater=target_updater, compile=compile)
