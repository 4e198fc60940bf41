"""Evaluation in a process of its own: the numbers of the same evaluator here, in the rows where they belong."""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.envs import EnvPool
from torchrl_smore.trainers import (
    ActorPolicy,
    BackgroundEvaluator,
    CheckpointError,
    DivergedError,
    Evaluator,
    FusedUpdate,
    KeepBest,
    OfflineTrainer,
    latest_checkpoint,
    load_checkpoint,
)

TIMING = "updates_per_second"
STEPS = 13


COUNTS = {"episodes": 3, "horizon": 4}
make_pool = functools.partial(EnvPool, "PointReach", 2)


def make_evaluator():
    """The same evaluator in this process."""
    return Evaluator(make_pool(), **COUNTS)


def note_threads(path):
    Path(path).write_text(str(torch.get_num_threads()))
    return make_pool()


def fail():
    raise ValueError("no such simulator")


class ThreeColumns:
    """An actor that wants three columns of an observation that has two."""

    def __init__(self, loss):
        self.policy = ActorPolicy(loss)

    def __call__(self, observation):
        state = observation["observation"]
        return self.policy({**observation, "observation": np.concatenate([state, state[:, :1]], 1)})


class Gated:
    """The same, once a file is there."""

    def __init__(self, loss, gate):
        self.policy, self.gate = ThreeColumns(loss), gate

    def __call__(self, observation):
        deadline = time.monotonic() + 120.0
        while not self.gate.exists():
            assert time.monotonic() < deadline, "the gate stays shut"
            time.sleep(0.01)
        return self.policy(observation)


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors sees it."""


def interrupt_once(monkeypatch, worker, after):
    """The worker's next wait but so many is interrupted, as by Ctrl-C."""
    wait, calls = worker._wait, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        wait(*args)

    monkeypatch.setattr(worker, "_wait", interrupted)


@pytest.fixture(scope="module")
def background():
    """One process for the tests that leave it as it was."""
    with BackgroundEvaluator(make_pool, **COUNTS) as evaluator:
        yield evaluator


@pytest.fixture
def gate(tmp_path):
    """The file that opens the policies."""
    return tmp_path / "gate"


@pytest.fixture
def make_run(make_loss, data, gate):
    """Returns a factory of runs of two seeds: ``make(evaluator, run_dir, **options)``."""

    def make(evaluator, run_dir, **options):
        losses = [make_loss(seed) for seed in (3, 8)]
        update = FusedUpdate(losses, GoalBatchSampler(data, 16), seeds=(3, 8), lr=0.05, total_steps=STEPS, tau=0.05)
        options = {"log_interval": 1, "eval_interval": 4, "save_interval": 100, "progress_bar": False, **options}
        policy = [Gated(loss, gate) for loss in losses]
        trainer = OfflineTrainer(
            update=update, total_steps=STEPS, run_dir=run_dir, evaluator=evaluator, policy=policy, **options
        )
        trainer.register_op("post_steps", KeepBest(trainer))
        return trainer

    return make


@pytest.fixture
def whole(make_run, tmp_path, gate):
    """The folder of a run that evaluates in this process, and its trainer."""
    gate.touch()
    trainer = make_run(make_evaluator(), tmp_path / "whole")
    trainer.train()
    gate.unlink()
    return tmp_path / "whole", trainer


def rows_of(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != TIMING} for row in csv.DictReader(file)]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs):
        assert own.metrics == other.metrics
        assert own.intervals == other.intervals
        for key, values in other.per_episode.items():
            np.testing.assert_array_equal(own.per_episode[key], values)


def assert_same_run(run_dir, whole_dir):
    """Rows, last checkpoint and best networks."""
    assert rows_of(run_dir) == rows_of(whole_dir)
    for folder in ("checkpoint", "best/seed_3", "best/seed_8"):
        paths = [latest_checkpoint(root / folder) for root in (run_dir, whole_dir)]
        assert paths[0].name == paths[1].name
        (ours, meta), (theirs, other_meta) = map(load_checkpoint, paths)
        # a digest is of the file's bytes, and not of what they mean
        assert {**meta, "sha256": "", "meta_sha256": ""} == {**other_meta, "sha256": "", "meta_sha256": ""}
        for own, other in zip(ours["update"]["losses"], theirs["update"]["losses"], strict=True):
            assert all(torch.equal(own[key], other[key]) for key in other)


def test_it_gives_the_numbers_of_the_same_evaluator_here_for_the_policies_as_they_were(background, make_loss, data):
    losses = [make_loss(seed) for seed in (0, 1)]
    update = FusedUpdate(losses, GoalBatchSampler(data, 16), seeds=(0, 1), lr=0.1, total_steps=9, tau=0.05)
    policies = [ThreeColumns(loss) for loss in losses]
    expected = make_evaluator().run_all(policies)
    background.start(policies)
    for _ in range(3):
        update()
    assert_equal(background.result(), expected)
    changed = make_evaluator().run_all(policies)
    assert changed[0].metrics != expected[0].metrics
    assert_equal(background.run_all(policies), changed)


def test_updates_go_on_meanwhile_and_rows_wait_for_those_of_the_evaluation(background, make_run, whole, gate, tmp_path):
    trainer = make_run(background, tmp_path / "run")
    seen = []

    def look():
        seen.append((trainer.step, trainer.evaluated_step, rows_of(tmp_path / "run")[-1]["step"]))
        if trainer.step == 7:
            gate.touch()

    trainer.register_op("post_steps", look)
    trainer.train()
    # updates 5 to 7 were done while the gate was shut
    assert seen[:7] == [(1, 0, "1"), (2, 0, "2"), (3, 0, "3"), *((step, 0, "4") for step in range(4, 8))]
    assert [step for step, _, _ in seen[8:]] == [*range(9, 13), 13, 13]
    # hooks are called once more, for the evaluation at the end
    assert [evaluated for _, evaluated, _ in seen[-2:]] == [12, 13]
    assert_same_run(tmp_path / "run", whole[0])
    assert_equal(trainer.evaluations, whole[1].evaluations)


def test_the_best_networks_are_those_that_were_evaluated(background, make_run, gate, tmp_path):
    trainer = make_run(background, tmp_path / "run", eval_interval=5)
    key = next(key for key, value in trainer.update.losses[0].state_dict().items() if value.ndim == 2)
    states, kept = {}, {}

    def look():
        states[trainer.step] = trainer.update.losses[0].state_dict()[key].clone()
        if trainer.step == 8:
            gate.touch()
        with contextlib.suppress(CheckpointError):  # nothing is kept so far
            state, meta = load_checkpoint(latest_checkpoint(tmp_path / "run" / "best" / "seed_3"))
            kept[state["step"]] = state["update"]["losses"][0][key]
            assert meta["evaluation"]["episodes"] == 3

    trainer.register_op("post_steps", look)
    trainer.train()
    # it was kept after update 8 or later
    assert min(kept) == 5
    assert all(torch.equal(found, states[step]) for step, found in kept.items())
    assert not torch.equal(states[5], states[6])


def test_a_checkpoint_of_a_later_update_waits(background, make_run, whole, gate, tmp_path):
    trainer = make_run(background, tmp_path / "run", save_interval=6)
    trainer.register_op("post_optim", lambda: gate.touch() if trainer._optim_count == 6 else None)
    saved = []
    save = trainer.save

    def note():
        path = save()
        saved.append((trainer.step, trainer.evaluated_step, rows_of(tmp_path / "run")[-1]["step"]))
        return path

    trainer.save = note
    trainer.train()
    assert saved[:2] == [(6, 4, "6"), (12, 8, "12")]
    assert rows_of(tmp_path / "run") == rows_of(whole[0])


@pytest.mark.parametrize("in_background", [True, False], ids=["background", "here"])
def test_an_evaluation_that_a_kill_took_is_repeated_when_the_run_is_resumed(
    background, make_run, gate, tmp_path, in_background
):
    intervals = {"eval_interval": 8, "save_interval": 8}
    first = make_run(background, tmp_path / "run", **intervals)

    def kill():
        if first._optim_count == 10:
            raise Killed

    first.register_op("post_optim", kill)
    with pytest.raises(Killed):
        first.train()
    assert first.evaluated_step == 0
    gate.touch()
    # what the killed process has asked for is answered, and thrown away
    background.result()
    second = make_run(background if in_background else make_evaluator(), tmp_path / "run", **intervals)
    second.resume()
    assert second.step == 8
    second.train()
    make_run(make_evaluator(), tmp_path / "whole", **intervals).train()
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_one_that_is_missing_at_the_end_is_made_up_for(background, make_run, whole, gate, tmp_path):
    gate.touch()
    first = make_run(background, tmp_path / "run")
    first.train()
    path = tmp_path / "run" / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    assert lines[-1].startswith("13,8")
    # the kill came between the rows of the two seeds, and before the best networks were looked for
    path.write_text("".join(lines[:-1]))
    second = make_run(background, tmp_path / "run")
    shown = []
    second.register_op("post_steps", lambda: shown.append(second.evaluated_step))
    second.resume()
    second.train()
    assert shown == [13]
    assert_same_run(tmp_path / "run", whole[0])
    assert_equal(second.evaluations, whole[1].evaluations)


def test_a_run_that_ends_by_an_error_keeps_the_evaluation_in_progress(background, make_run, gate, tmp_path):
    trainer = make_run(background, tmp_path / "run")

    def spoil():
        if trainer._optim_count == 6:
            gate.touch()
            with torch.no_grad():
                next(iter(trainer.update.losses[1].parameters())).fill_(float("nan"))

    trainer.register_op("post_optim", spoil)
    with pytest.raises(DivergedError):
        trainer.train()
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows if row["eval/success_last"]] == ["4", "4"]
    assert rows[-1]["step"] == "7"


@pytest.mark.parametrize("in_background", [True, False], ids=["background", "here"])
def test_a_stop_while_policies_are_evaluated_keeps_the_best_of_them(
    background, make_run, whole, gate, tmp_path, in_background
):
    first = make_run(background if in_background else make_evaluator(), tmp_path / "run")
    if in_background:
        # update 4 is evaluated until the checkpoint of update 6 waits for it
        first.register_op("post_optim", lambda: first._optim_count == 6 and (gate.touch(), first.stop_with(Killed())))
    else:
        gate.touch()
        run_all = first.evaluator.run_all
        first.evaluator.run_all = lambda policies: (first.stop_with(Killed()), run_all(policies))[1]
    with pytest.raises(Killed):
        first.train()
    for seed in (3, 8):
        assert latest_checkpoint(tmp_path / "run" / "best" / f"seed_{seed}").name == "step_000000004"
    second = make_run(background, tmp_path / "run")
    second.resume()
    assert second.step == (6 if in_background else 4)
    second.train()
    assert_same_run(tmp_path / "run", whole[0])


def test_signals_for_a_group_of_processes_do_not_end_it(background, make_loss):
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(background._worker.pid, signum)
    assert background.run_all([ThreeColumns(make_loss())])[0].episodes == 3


def test_it_computes_with_as_many_threads_as_this_process(tmp_path, make_loss):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with BackgroundEvaluator(functools.partial(note_threads, tmp_path / "threads"), **COUNTS) as evaluator:
            evaluator.run_all([ThreeColumns(make_loss())])
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "threads").read_text() == "3"


def test_a_process_that_dies_is_named(make_run, tmp_path):
    with BackgroundEvaluator(make_pool, **COUNTS) as evaluator:
        trainer = make_run(evaluator, tmp_path / "run")

        def kill():
            if trainer.step == 6:
                os.kill(evaluator._worker.pid, signal.SIGKILL)

        trainer.register_op("post_steps", kill)
        with pytest.raises(RuntimeError, match=r"the evaluation process \(process \d+\) was killed by SIGKILL"):
            trainer.train()


def test_an_evaluator_that_cannot_be_made_gives_its_reason_before_an_evaluation_is_due(make_run, tmp_path):
    with BackgroundEvaluator(fail) as evaluator:
        trainer = make_run(evaluator, tmp_path / "run", eval_interval=1000)
        while not evaluator._worker.has_answered():
            time.sleep(0.05)
        with pytest.raises(RuntimeError, match="no such simulator"):
            trainer.train()
    assert trainer.step == 1


def test_what_cannot_be_asked_for_is_refused(background, make_loss):
    policy = ThreeColumns(make_loss())
    with pytest.raises(TypeError, match="what an evaluation process shall evaluate must be picklable"):
        background.start([lambda observation: policy(observation)])
    with pytest.raises(TypeError, match="the function that makes environments for an evaluation process must be"):
        BackgroundEvaluator(lambda: None)
    with pytest.raises(RuntimeError, match="no evaluation was started"):
        background.result()
    background.start([policy])
    with pytest.raises(RuntimeError, match="an evaluation is running; ask for its result first"):
        background.start([policy])
    assert background.result()[0].episodes == 3
    with pytest.raises(ValueError, match="timeout_s must be positive, got 0"):
        BackgroundEvaluator(make_pool, timeout_s=0)
    with pytest.raises(ValueError, match="episodes and horizon must be positive, got 3 and 0"):
        BackgroundEvaluator(make_pool, episodes=3, horizon=0)


def test_after_an_interrupt_a_result_is_still_that_of_its_own_policies(background, make_loss, monkeypatch):
    first, second = ([ThreeColumns(make_loss(seed))] for seed in (3, 8))
    expected = [background.run_all(policies)[0].metrics for policies in (first, second)]
    assert expected[0] != expected[1]
    background.start(first)
    with monkeypatch.context() as patch:
        interrupt_once(patch, background._worker, 0)
        with pytest.raises(KeyboardInterrupt):
            background.result()
    with pytest.raises(RuntimeError, match="an evaluation is running; ask for its result first"):
        background.start(second)
    assert background.result()[0].metrics == expected[0]
    assert background.run_all(second)[0].metrics == expected[1]


def test_an_answer_of_which_a_part_has_come_is_received_by_the_next_call(background, make_loss, monkeypatch):
    policies = [ThreeColumns(make_loss(3))]
    expected = background.run_all(policies)[0].metrics
    background.start(policies)
    with monkeypatch.context() as patch:
        read = os.read
        patch.setattr(os, "read", lambda pipe, size: read(pipe, 5))
        interrupt_once(patch, background._worker, 3)
        with pytest.raises(KeyboardInterrupt):
            background.result()
    assert len(background._worker._come) == 15
    assert background.is_done()
    assert background.result()[0].metrics == expected
    assert background.run_all(policies)[0].metrics == expected


def test_a_run_that_waits_for_an_evaluation_is_interrupted_and_goes_on(make_run, whole, background, tmp_path, gate):
    gate.touch()
    trainer, result = make_run(background, tmp_path / "run"), background.result
    calls = []

    def interrupted():
        calls.append(trainer.step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result()

    background.result = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        trainer.train()
    finally:
        del background.result
    assert trainer.step == STEPS
    assert_same_run(tmp_path / "run", whole[0])


def test_a_run_resumed_in_the_same_process_leaves_the_evaluation_in_progress(make_run, background, tmp_path, gate):
    trainer = make_run(background, tmp_path / "run", save_interval=2)

    def interrupt():
        if trainer.step == 7:
            # of update 4 it has ended with the checkpoint of 6; that of 8 shall be in progress
            gate.unlink()
        if trainer.step == 10:
            raise KeyboardInterrupt

    trainer.register_op("post_optim", interrupt)
    gate.touch()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer._pending.step == 8
    trainer._post_optim_ops.pop()
    gate.touch()
    trainer.resume(tmp_path / "run" / "checkpoint" / "step_000000006")
    trainer.train()
    steps = [int(row["step"]) for row in rows_of(tmp_path / "run")]
    assert steps == sorted(steps)
    evaluated = [row["step"] for row in rows_of(tmp_path / "run") if row["eval/success_last"] and row["seed"] == "3"]
    assert evaluated == ["4", "8", "12", "13"]


def test_an_evaluation_that_nobody_waits_for_any_more_is_in_nobodys_way(background, make_loss, monkeypatch):
    first, second = ([ThreeColumns(make_loss(seed))] for seed in (3, 8))
    expected = background.run_all(second)[0].metrics
    with monkeypatch.context() as patch:
        interrupt_once(patch, background._worker, 1)
        with pytest.raises(KeyboardInterrupt):
            background.run_all(first)
    assert background.run_all(second)[0].metrics == expected
