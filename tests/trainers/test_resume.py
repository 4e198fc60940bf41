"""A resumed run equals an uninterrupted one bit for bit."""

from __future__ import annotations

import csv
import importlib.util
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import SamplerWithoutReplacement
from torchrl.record.loggers import Logger

from torchrl_smore.data import GoalBatchSampler, GoalTransition, HindsightGoalTransform
from torchrl_smore.envs import EnvPool
from torchrl_smore.trainers import (
    CheckpointError,
    CheckpointWarning,
    Evaluator,
    FusedUpdate,
    KeepBest,
    OfflineTrainer,
    Update,
    adam,
    latest_checkpoint,
    load_checkpoint,
)

TIMING = "updates_per_second"


def metrics(run_dir):
    """The whole file but for its columns of times."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != TIMING} for row in csv.DictReader(file)]


def assert_same(a, b, where=""):
    """Nested values equal in every bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}/{number}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


class Stop(Exception):
    """Stands for a crash."""


def crash_at(trainer, step):
    def crash():
        if trainer._optim_count == step:
            raise Stop

    trainer.register_op("post_optim", crash)


@pytest.fixture
def make_run(make_trainer, data):
    """Returns a factory of equal trainers, by source of batches."""

    def make(run_dir, source, pool, **options):
        if source == "buffer":
            rb = TensorDictReplayBuffer(
                storage=LazyTensorStorage(len(data)),
                sample_unit=GoalTransition(),
                transform=HindsightGoalTransform(),
                batch_size=16,
            )
            rb.extend(data)
            options["sampler"] = rb.sample
        evaluator = Evaluator(pool, episodes=3, horizon=4)
        intervals = {"log_interval": 3, "eval_interval": 4, "save_interval": 5}
        policy = lambda observation: np.zeros((pool.num_envs, 2))  # noqa: E731 - the networks have other widths
        return make_trainer(
            13, run_dir=run_dir, evaluator=evaluator, policy=policy, meta={"task": "walk"}, **intervals, **options
        )

    return make


@pytest.mark.parametrize("crash", [6, 9, 12])
@pytest.mark.parametrize("source", ["packed", "buffer"])
def test_a_run_resumed_from_its_checkpoint_equals_one_that_was_never_stopped(make_run, tmp_path, source, crash):
    with EnvPool("PointReach", 2) as pool:
        make_run(tmp_path / "whole", source, pool).train()
        first = make_run(tmp_path / "stopped", source, pool)
        crash_at(first, crash)
        with pytest.raises(Stop):
            first.train()
        second = make_run(tmp_path / "stopped", source, pool)
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(1234)
        second.resume()
        assert second.step == 5 * (crash // 5)
        second.train()
    whole = load_checkpoint(latest_checkpoint(tmp_path / "whole" / "checkpoint"))[0]
    stopped = load_checkpoint(latest_checkpoint(tmp_path / "stopped" / "checkpoint"))[0]
    assert_same(whole, stopped)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")
    assert whole.keys() == {"step", "update", "rng", "totals", "num_totalled"}
    assert {"loss", "optimizer", "scheduler"} <= whole["update"].keys()
    assert whole["rng"].keys() == {"torch", "cuda", "numpy", "python"}


@pytest.mark.parametrize("quick", [False, True], ids=["paper", "quick"])
@pytest.mark.parametrize("crash", [6, 9])
def test_several_seeds_resume_as_one_does(make_loss, make_quick_update, data, tmp_path, crash, quick):
    def make(run_dir):
        if quick:
            update = make_quick_update(0, 4, total_steps=11)
        else:
            losses, sampler = [make_loss(seed) for seed in (0, 4)], GoalBatchSampler(data, 16)
            update = FusedUpdate(losses, sampler, seeds=(0, 4), lr=1e-3, total_steps=11, tau=0.05)
        intervals = {"log_interval": 3, "save_interval": 5}
        return OfflineTrainer(update=update, total_steps=11, run_dir=run_dir, progress_bar=False, **intervals)

    make(tmp_path / "whole").train()
    first = make(tmp_path / "stopped")
    crash_at(first, crash)
    with pytest.raises(Stop):
        first.train()
    second = make(tmp_path / "stopped")
    # networks and generators other than those of the start
    second.update()
    second.resume()
    second.train()
    (whole, _), (stopped, _) = (
        load_checkpoint(latest_checkpoint(tmp_path / name / "checkpoint")) for name in ("whole", "stopped")
    )
    assert_same(whole, stopped)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")
    assert whole["update"].keys() == {"seeds", "losses", "exp_avg", "exp_avg_sq", "step", "samplers"}
    assert (len(whole["update"]["losses"]), len(whole["update"]["samplers"])) == (2, 2)


def load_killed_run():
    spec = importlib.util.spec_from_file_location("killed_run", Path(__file__).with_name("killed_run.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("when", ["update", "save"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(python, tmp_path, when):
    script = load_killed_run()
    script.make_trainer(tmp_path / "whole").train()
    done = python(script.__file__, tmp_path / "killed", when)
    assert done.status == -signal.SIGKILL, done.stderr
    assert latest_checkpoint(tmp_path / "killed" / "checkpoint").name == "step_000000005"
    assert metrics(tmp_path / "killed")[-1]["step"] in ("8", "10")
    trainer = script.make_trainer(tmp_path / "killed")
    torch.manual_seed(1234)
    trainer.resume()
    assert trainer.step == 5
    trainer.train()
    state, _ = load_checkpoint(latest_checkpoint(tmp_path / "whole" / "checkpoint"))
    other, _ = load_checkpoint(latest_checkpoint(tmp_path / "killed" / "checkpoint"))
    assert_same(state["update"], other["update"])
    assert_same(state["rng"]["torch"], other["rng"]["torch"])
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoint").iterdir()) == [
        "step_000000010",
        "step_000000012",
    ]


def test_a_finished_run_can_be_resumed_and_is_evaluated(make_run, tmp_path):
    with EnvPool("PointReach", 2) as pool:
        first = make_run(tmp_path, "packed", pool)
        first.train()
        before = metrics(tmp_path)
        second = make_run(tmp_path, "packed", pool)
        second.resume()
        second.train()
    assert metrics(tmp_path) == before
    assert second.step == 13
    assert second.evaluation.metrics == first.evaluation.metrics


def test_an_older_checkpoint_can_be_chosen_and_the_later_ones_go(make_run, tmp_path):
    with EnvPool("PointReach", 2) as pool:
        make_run(tmp_path, "packed", pool, keep_checkpoints=9).train()
        whole = metrics(tmp_path)
        second = make_run(tmp_path, "packed", pool, keep_checkpoints=9)
        second.resume(tmp_path / "checkpoint" / "step_000000005")
        crash_at(second, 11)
        with pytest.raises(Stop):
            second.train()
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step_000000010"
    assert metrics(tmp_path) == [row for row in whole if int(row["step"]) <= 9 or int(row["step"]) == 10]


def test_a_run_that_is_killed_after_an_older_checkpoint_was_resumed_has_no_hole_in_its_metrics(make_run, tmp_path):
    with EnvPool("PointReach", 2) as pool:
        make_run(tmp_path, "packed", pool, keep_checkpoints=9).train()
        whole = metrics(tmp_path)
        second = make_run(tmp_path, "packed", pool, keep_checkpoints=9)
        second.resume(tmp_path / "checkpoint" / "step_000000005")
        crash_at(second, 7)
        with pytest.raises(Stop):
            second.train()
        third = make_run(tmp_path, "packed", pool, keep_checkpoints=9)
        third.resume()
        assert third.step == 5
        third.train()
    assert metrics(tmp_path) == whole


def test_a_checkpoint_from_elsewhere_is_not_resumed_over_a_run(make_trainer, tmp_path):
    for name in ("one", "other"):
        make_trainer(4, run_dir=tmp_path / name).train()
    before = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
    trainer = make_trainer(6, run_dir=tmp_path / "other")
    elsewhere = tmp_path / "one" / "checkpoint" / "step_000000004"
    with pytest.raises(FileExistsError, match=r"other holds a run already, with step_000000004: .*one.* is not of it"):
        trainer.resume(elsewhere)
    assert (trainer.step, trainer.resumed) == (0, False)
    assert before == {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
    # by another name of its folder it is the run's own
    (tmp_path / "link").symlink_to(tmp_path / "other")
    trainer.resume(tmp_path / "link" / "checkpoint" / "step_000000004")
    new = make_trainer(6, run_dir=tmp_path / "new")
    new.resume(elsewhere)
    new.train()
    assert latest_checkpoint(tmp_path / "new" / "checkpoint").name == "step_000000006"


def test_a_logger_gets_the_rows_of_updates_that_are_done_again(make_trainer, tmp_path):
    class Kept(Logger):
        def __init__(self):
            self.steps = []
            super().__init__("kept", "")

        def _create_experiment(self):
            return self

        def log_scalar(self, name, value, step=None):
            if name == "loss_actor":
                self.steps.append(step)

        def log_video(self, *args, **options):
            raise NotImplementedError

        log_hparams = log_histogram = log_video

        def __repr__(self):
            return "Kept()"

    logger = Kept()
    trainer = make_trainer(4, run_dir=tmp_path, logger=logger, log_interval=1, save_interval=2)
    trainer.train()
    trainer.resume(tmp_path / "checkpoint" / "step_000000002")
    trainer.train()
    assert logger.steps == [1, 2, 3, 4, 3, 4]


def test_what_was_evaluated_before_is_forgotten_where_an_earlier_update_is_resumed(make_run, tmp_path):
    with EnvPool("PointReach", 2) as pool:
        trainer = make_run(tmp_path, "packed", pool, keep_checkpoints=9)
        trainer.register_op("post_steps", KeepBest(trainer))
        trainer.train()
        assert trainer.evaluated_step == 13
        trainer.resume(tmp_path / "checkpoint" / "step_000000005")
        assert (trainer.evaluation, trainer.evaluated_step) == (None, 0)
        seen = []
        trainer.register_op("post_steps", lambda: seen.append((trainer.step, trainer.evaluated_step)))
        trainer.train()
    assert seen == [(6, 0), (8, 8), (9, 8), (10, 8), (12, 12), (13, 13)]


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_buffer_that_goes_through_its_rows_resumes_where_it_was(make_trainer, data, tmp_path, drop_last):
    def make(name):
        rb = TensorDictReplayBuffer(
            storage=LazyTensorStorage(len(data)),
            sampler=SamplerWithoutReplacement(drop_last=drop_last),
            sample_unit=GoalTransition(),
            transform=HindsightGoalTransform(),
            batch_size=16,
            generator=torch.Generator().manual_seed(4),
        )
        rb.extend(data)
        # 76 rows: a permutation ends within the run, and not where a checkpoint is
        return make_trainer(9, run_dir=tmp_path / name, sampler=rb.sample, save_interval=4)

    torch.manual_seed(2)
    make("whole").train()
    torch.manual_seed(2)
    first = make("stopped")
    crash_at(first, 6)
    with pytest.raises(Stop):
        first.train()
    second = make("stopped")
    torch.manual_seed(1234)
    second.resume()
    second.train()
    whole, stopped = (
        load_checkpoint(latest_checkpoint(tmp_path / name / "checkpoint"))[0] for name in ("whole", "stopped")
    )
    assert len(whole["update"]["sampler"]["_sample_list"]) < len(data)
    assert_same(whole, stopped)


def without_replacement(data):
    rb = TensorDictReplayBuffer(
        storage=LazyTensorStorage(len(data)), sampler=SamplerWithoutReplacement(), batch_size=16
    )
    rb.extend(data)
    return rb


def test_a_state_without_that_of_its_buffer_is_of_before_and_loaded_with_a_warning(make_loss, data):
    update = make_update(make_loss, without_replacement(data).sample)
    state = update.state_dict()
    del state["sampler"]
    with pytest.warns(CheckpointWarning, match="without the state of its replay buffer's sampler"):
        update.load_state_dict(state)


def test_a_buffer_whose_state_no_checkpoint_can_hold_is_told(make_loss, data, monkeypatch):
    rb = without_replacement(data)
    monkeypatch.setattr(rb.sampler, "state_dict", lambda: {"tree": object()})
    with pytest.warns(CheckpointWarning, match="cannot hold the state of a SamplerWithoutReplacement"):
        state = make_update(make_loss, rb.sample).state_dict()
    assert "sampler" not in state


def make_update(make_loss, sampler):
    loss = make_loss()
    return Update(loss, sampler, adam(loss)[0])


def test_a_checkpoint_of_another_task_is_refused_before_anything_changes(make_run, make_trainer, tmp_path):
    with EnvPool("PointReach", 2) as pool:
        make_run(tmp_path, "packed", pool).train()
    other = make_trainer(13, run_dir=tmp_path, meta={"task": "run"}, seed=3)
    before = [parameter.detach().clone() for parameter in other.loss_module.parameters()]
    with pytest.raises(CheckpointError, match="task='walk'; expected 'run'"):
        other.resume()
    assert all(torch.equal(*pair) for pair in zip(before, other.loss_module.parameters()))
    assert other.step == 0


def test_there_must_be_a_checkpoint(make_trainer, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        make_trainer(3, run_dir=tmp_path).resume()


def test_the_progress_bar_of_a_resumed_run_starts_where_the_run_was(make_trainer, tmp_path):
    pytest.importorskip("tqdm")
    make_trainer(6, run_dir=tmp_path, save_interval=4, keep_checkpoints=9).train()
    trainer = make_trainer(6, run_dir=tmp_path, save_interval=4, progress_bar=True)
    trainer.resume(tmp_path / "checkpoint" / "step_000000004")
    shown = []
    trainer.register_op("pre_optim_steps", lambda: shown.append(trainer._pbar.n))
    trainer.train()
    assert shown == [4]
    assert trainer._pbar.n == trainer._pbar.total == 6
