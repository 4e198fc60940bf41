"""The offline trainer: step accounting, hooks, logs, schedule, target, foreign losses and several trainers at once."""

from __future__ import annotations

import copy
import csv
from collections import Counter

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch._dynamo.testing import CompileCounterWithBackend
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.objectives import HardUpdate, IQLLoss, SoftUpdate
from torchrl.record import CSVLogger

from torchrl_smore.data import GoalBatchSampler, GoalTransition, HindsightGoalTransform
from torchrl_smore.envs import EnvPool
from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.trainers import Evaluator, FusedUpdate, OfflineTrainer, Update, adam, latest_checkpoint
from torchrl_smore.trainers._steps import OfflineSteps
from torchrl_smore.trainers.offline import _ABSENT_STAGES

TIMING = {"updates_per_second"}


def read_rows(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v and k not in TIMING} for row in csv.DictReader(file)]


class StillPool:
    """Two environments whose reward is always 1 and whose policy input is constant; counts its resets."""

    num_envs = 2
    resets = 0

    def reset(self, seeds):
        self.resets += 1
        return self.observe()

    def step(self, actions):
        return self.observe(), np.ones(2, dtype=np.float32)

    def observe(self):
        zero = np.zeros((2, 2), dtype=np.float32)
        return {"observation": np.zeros((2, 3), dtype=np.float32), "achieved_goal": zero, "desired_goal": zero}


@pytest.mark.parametrize("intervals", [(1, 1, 1), (3, 4, 5), (7, 7, 100), (100, 100, 100)])
@pytest.mark.parametrize("total", [1, 12, 23])
def test_chunks_of_steps_stop_at_every_multiple_of_every_interval_and_at_the_end(total, intervals):
    ends = np.cumsum([chunk.numel() for chunk in OfflineSteps(total, intervals)]).tolist()
    assert ends == [n for n in range(1, total + 1) if n == total or any(n % i == 0 for i in intervals)]


@pytest.mark.parametrize(("total", "log", "evaluate", "save"), [(23, 3, 4, 5), (10, 10, 5, 20), (6, 7, 8, 9)])
def test_rows_evaluations_and_checkpoints_come_when_they_are_due_and_at_the_end(
    make_trainer, tmp_path, total, log, evaluate, save
):
    pool = StillPool()
    trainer = make_trainer(
        total,
        run_dir=tmp_path,
        evaluator=Evaluator(pool, episodes=2, horizon=2),
        log_interval=log,
        eval_interval=evaluate,
        save_interval=save,
        keep_checkpoints=100,
    )
    updates = Counter()
    trainer.register_op("post_optim", lambda: updates.update(n=1))
    trainer.train()

    def due(interval):
        return [n for n in range(1, total + 1) if n % interval == 0 or n == total]

    rows = read_rows(tmp_path)
    assert [int(row["step"]) for row in rows if "loss_score" in row] == due(log)
    assert [int(row["step"]) for row in rows if "eval/success_last" in row] == due(evaluate)
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == [f"step_{n:09d}" for n in due(save)]
    assert pool.resets == len(due(evaluate))
    assert updates["n"] == trainer.step == trainer._optim_count == total
    assert trainer.evaluation.metrics["success_last"] == 1.0
    assert trainer.updates_per_second > 0


def test_hooks_fire_where_torchrl_fires_them(make_trainer):
    trainer = make_trainer(10, log_interval=4, eval_interval=100, save_interval=100)
    calls, losses = Counter(), []
    for name in ("setup", "pre_optim_steps", "post_optim", "post_steps", "shutdown"):
        trainer.register_op(name, lambda name=name: calls.update([name]))
    trainer.register_op("post_optim_log", lambda out: losses.append(out["loss_score"]))
    trainer.register_op("post_steps_log", lambda batch: calls.update(["post_steps_log"]))
    trainer.train()
    # chunks of 4, 4 and 2 updates
    assert calls == {
        "setup": 1, "pre_optim_steps": 3, "post_optim": 10, "post_steps": 3, "post_steps_log": 3, "shutdown": 1
    }  # fmt: skip
    assert len(losses) == 10
    assert not any(loss.requires_grad for loss in losses)


@pytest.mark.parametrize("stage", _ABSENT_STAGES)
def test_a_hook_that_would_never_fire_is_refused(make_trainer, stage):
    with pytest.raises(ValueError, match=f"never reaches the hook stage '{stage}'; it has setup"):
        make_trainer(1).register_op(stage, lambda *args: None)


def test_a_row_is_the_mean_over_its_interval(make_trainer, tmp_path):
    trainer = make_trainer(10, run_dir=tmp_path, log_interval=4, save_interval=3)
    single = []
    trainer.register_op("post_optim_log", lambda out: single.append({k: v.item() for k, v in out.items()}))
    trainer.train()
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows] == ["4", "8", "10"]
    for row, part in zip(rows, (single[:4], single[4:8], single[8:])):
        for key in single[0]:
            assert float(row[key]) == pytest.approx(np.mean([values[key] for values in part]), rel=1e-5, abs=1e-7)


class Records:
    """A logger that remembers names and steps."""

    def __init__(self):
        self.rows = []

    def log_scalar(self, name, value, step=None):
        self.rows.append((name, step))


def test_a_trainer_logs_every_row_though_another_has_logged_later_steps(make_trainer):
    loggers = Records(), Records()
    for trainer in [make_trainer(4, logger=logger, log_interval=2) for logger in loggers]:
        trainer.train()
    assert loggers[0].rows == loggers[1].rows
    assert ("loss_value", 2) in loggers[1].rows


def test_a_logger_gets_every_row(make_trainer):
    logger = Records()
    make_trainer(6, logger=logger, log_interval=2, evaluator=Evaluator(StillPool(), episodes=2, horizon=1)).train()
    assert [step for name, step in logger.rows if name == "loss_value"] == [2, 4, 6]
    assert ("eval/success_last", 6) in logger.rows
    assert len(logger.rows) == len(set(logger.rows))


def test_only_the_rate_of_the_actor_falls_to_zero_and_only_at_the_end(make_loss, data):
    loss = make_loss()
    optimizer, scheduler = adam(loss, lr=0.01, total_steps=8)
    update = Update(
        loss, GoalBatchSampler(data, 8), optimizer, scheduler=scheduler, target_updater=SoftUpdate(loss, tau=0.5)
    )
    seen = []
    for _ in range(8):
        seen.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        update()
    half_cosine = [0.005 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
    np.testing.assert_allclose([rates["actor_network"] for rates in seen], half_cosine)
    assert all(rates["score_network"] == rates["value_network"] == 0.01 for rates in seen)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "actor_network": 0.0, "score_network": 0.01, "value_network": 0.01
    }  # fmt: skip
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    update()
    moved = {name.split("_params")[0] for name, p in loss.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"score_network", "value_network"}


def test_every_trained_parameter_is_in_one_group_and_rates_stay_without_a_length(make_loss):
    loss = make_loss()
    optimizer, scheduler = adam(loss, lr=0.01)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in loss.parameters()}
    assert len(grouped) == len(list(loss.parameters()))
    optimizer.step()
    scheduler.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_the_target_follows_by_the_polyak_rate_after_each_step(make_loss, data):
    loss = make_loss()
    optimizer, _ = adam(loss, lr=0.01)
    update = Update(loss, GoalBatchSampler(data, 8), optimizer, target_updater=SoftUpdate(loss, tau=0.25))
    target = loss.target_score_network_params
    before = target.clone()
    update()
    # the rate is applied to the parameters that the step has just made
    expected = 0.75 * before.data + 0.25 * loss.score_network_params.data
    for key, value in target.items(True, True):
        torch.testing.assert_close(value, expected[key])
    assert any(not torch.equal(value, before[key]) for key, value in target.items(True, True))


def test_losses_are_summed_and_diagnostics_are_not(data):
    class TwoLosses(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, batch):
            return TensorDict({"loss_a": self.weight, "loss_b": 2 * self.weight, "score": 100 * self.weight})

    loss = TwoLosses()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    out = Update(loss, GoalBatchSampler(data, 2), optimizer)()
    assert loss.weight.item() == pytest.approx(1.0 - 0.1 * 3)
    assert not any(value.requires_grad for value in out.values())


def make_iql():
    torch.manual_seed(0)
    networks = make_networks(*goal_specs(3, 2, 2), hidden=(8,))
    qvalue = TensorDictModule(networks.score[0].module, networks.score[0].in_keys, ["state_action_value"])
    return IQLLoss(networks.actor, qvalue, networks.value)


@pytest.mark.parametrize("fused", [False, True])
def test_a_torchrl_loss_as_it_is_made_goes_on_from_its_state(data, success, fused):
    def update():
        loss, sampler = make_iql(), GoalBatchSampler(data, 8, success=success, q=False)
        if fused:
            return FusedUpdate(loss, sampler, tau=0.05)
        return Update(loss, sampler, adam(loss)[0], target_updater=SoftUpdate(loss, tau=0.05))

    first, second = update(), update()
    first()
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(), first(), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", [Update, OfflineTrainer])
def test_a_buffer_in_place_of_its_method_is_refused_when_it_is_given(make_loss, kind):
    loss, rb = make_loss(), ReplayBuffer(storage=LazyTensorStorage(10), batch_size=2)
    options = {} if kind is Update else {"total_steps": 3}
    with pytest.raises(TypeError, match=r"sampler must be callable .* got a ReplayBuffer: its method sample is one"):
        kind(loss, rb, adam(loss)[0], **options)


def test_gradients_are_clipped_by_a_hook_of_the_optimiser(make_loss, data):
    loss, norms = make_loss(), []
    optimizer, _ = adam(loss, lr=1e-3)
    before = [parameter.detach().clone() for parameter in loss.parameters()]

    def clip(*_):
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 1e-12)
        norms.append(torch.stack([p.grad.norm() for p in loss.parameters() if p.grad is not None]).norm())

    optimizer.register_step_pre_hook(clip)
    options = {"target_updater": SoftUpdate(loss, tau=0.05), "total_steps": 3, "progress_bar": False}
    OfflineTrainer(loss, GoalBatchSampler(data, 16), optimizer, **options).train()
    assert len(norms) == 3
    assert max(norms) <= 1.001e-12
    # Adam's epsilon of 1e-8 is far above such gradients: a step of 1e-3 * 1e-12 / 1e-8 at most
    moved = max(float((a - b.detach()).abs().max()) for a, b in zip(before, loss.parameters()))
    assert moved < 1e-6


def test_what_no_checkpoint_can_hold_is_refused_before_the_first_update(make_trainer, data, tmp_path):
    sampler = GoalBatchSampler(data, 16)
    state = sampler.state_dict
    sampler.state_dict = lambda: {**state(), "order": np.arange(3)}
    with pytest.raises(TypeError, match=r"update\.sampler\.order is a numpy\.ndarray"):
        make_trainer(3, sampler=sampler, run_dir=tmp_path)
    make_trainer(3, sampler=sampler).train()  # which keeps none
    with pytest.raises(TypeError, match="meta must be expressible in JSON"):
        make_trainer(3, meta={"data": data})
    for key in ("step", "total_steps", "torch", "device", "sha256"):
        with pytest.raises(ValueError, match=f"meta must not have {key}"):
            make_trainer(3, meta={key: 1})


def test_a_hook_of_any_stage_sees_the_updates_that_are_done(make_trainer):
    trainer, seen = make_trainer(7, log_interval=3), {}
    for stage in ("batch_process", "pre_steps_log", "pre_optim_steps", "post_optim", "post_steps", "post_steps_log"):

        def look(batch=None, stage=stage):
            seen.setdefault(stage, []).append(trainer.step)
            return batch if stage == "batch_process" else {} if stage.endswith("log") else None

        trainer.register_op(stage, look)
    trainer.train()
    before, after = [0, 3, 6], [3, 6, 7]
    assert seen == {
        **dict.fromkeys(("batch_process", "pre_steps_log", "pre_optim_steps"), before),
        "post_optim": list(range(1, 8)),
        **dict.fromkeys(("post_steps", "post_steps_log"), after),
    }


def test_an_error_that_the_last_hook_asks_for_is_raised_after_everything_is_saved(make_trainer, tmp_path):
    trainer = make_trainer(4, run_dir=tmp_path, log_interval=2)
    trainer.register_op("post_steps", lambda: trainer.stop_with(KeyboardInterrupt()) if trainer.step == 4 else None)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step_000000004"
    assert [row["step"] for row in read_rows(tmp_path)] == ["2", "4"]
    trainer.train()  # which has nothing left to do
    assert trainer.step == 4


def test_a_discount_that_was_chosen_stays(data, success):
    loss, sampler = make_iql(), GoalBatchSampler(data, 8, success=success, q=False)
    loss.make_value_estimator(gamma=0.9)
    FusedUpdate(loss, sampler, tau=0.05)()
    Update(loss, sampler, adam(loss)[0])
    assert float(loss.value_estimator.gamma) == pytest.approx(0.9)


@pytest.mark.parametrize("source", ["buffer", "packed"])
def test_torchrl_losses_train_on_goal_conditioned_batches(data, success, tmp_path, source):
    loss = make_iql()
    if source == "packed":
        sampler = GoalBatchSampler(data, 32, success=success, q=False)
    else:
        rb = ReplayBuffer(
            storage=LazyTensorStorage(len(data)),
            sample_unit=GoalTransition(),
            transform=HindsightGoalTransform(success=success),
            batch_size=32,
        )
        rb.extend(data)
        sampler = rb.sample
    optimizer, scheduler = adam(loss, lr=1e-3, total_steps=20)
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    trainer = OfflineTrainer(
        loss,
        sampler,
        optimizer,
        total_steps=20,
        run_dir=tmp_path,
        scheduler=scheduler,
        target_updater=SoftUpdate(loss, tau=0.05),
        evaluator=Evaluator(StillPool(), episodes=2, horizon=2),
        log_interval=5,
        progress_bar=False,
    )
    trainer.train()
    assert all(not torch.equal(old, new) for old, new in zip(before, loss.parameters()))
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows if "loss_qvalue" in row] == ["5", "10", "15", "20"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())


def test_trainers_in_one_process_do_not_disturb_each_other(make_trainer, tmp_path):
    make_trainer(12, run_dir=tmp_path / "alone", log_interval=3, save_interval=6).train()
    first = make_trainer(12, run_dir=tmp_path / "first", log_interval=3, save_interval=6)
    second = {}

    def interfere():
        # built and run between two updates of the first
        if first._optim_count == 5:
            second["trainer"] = make_trainer(4, run_dir=tmp_path / "second", seed=1, log_interval=2)
            second["trainer"].train()

    first.register_op("post_optim", interfere)
    first.train()
    assert read_rows(tmp_path / "first") == read_rows(tmp_path / "alone")
    assert [row["step"] for row in read_rows(tmp_path / "second")] == ["2", "4"]
    assert (first.step, second["trainer"].step) == (12, 4)


def test_training_again_goes_on_in_the_same_file(make_trainer, tmp_path):
    trainer = make_trainer(4, run_dir=tmp_path, log_interval=2)
    trainer.train()
    before = read_rows(tmp_path)
    trainer.train()
    assert read_rows(tmp_path) == before
    assert trainer.step == 4


@pytest.fixture
def evaluator():
    """One that has nothing to find out."""
    return Evaluator(StillPool(), episodes=2, horizon=1)


class InterruptedOnce:
    """A sampler whose draw of a number is interrupted, once."""

    def __init__(self, sampler, number):
        self.sampler, self.number, self.draws = sampler, number, 0

    def __call__(self):
        self.draws += 1
        if self.draws == self.number:
            raise KeyboardInterrupt
        return self.sampler()


def test_after_an_interrupt_within_an_interval_the_rest_is_done_and_no_more(make_trainer, data, tmp_path):
    whole = make_trainer(20, run_dir=tmp_path / "whole", log_interval=8, save_interval=100)
    whole.train()
    sampler = InterruptedOnce(GoalBatchSampler(data, 16, seed=0), 14)
    trainer = make_trainer(20, run_dir=tmp_path / "own", sampler=sampler, log_interval=8, save_interval=100)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.step == 13
    trainer.train()
    assert trainer.step == 20
    assert sampler.draws == 21
    rows = [[{**row, "updates_per_second": ""} for row in read_rows(tmp_path / name)] for name in ("whole", "own")]
    assert rows[0] == rows[1]
    for ours, theirs in zip(trainer.loss_module.parameters(), whole.loss_module.parameters()):
        assert torch.equal(ours, theirs)
    assert latest_checkpoint(tmp_path / "own" / "checkpoint").name == "step_000000020"


@pytest.mark.parametrize("stage", ["pre_steps_log", "post_optim", "post_steps", "logger", "evaluation"])
def test_an_interrupt_anywhere_leaves_no_update_out_and_repeats_none(make_trainer, data, evaluator, tmp_path, stage):
    sampler, logger = InterruptedOnce(GoalBatchSampler(data, 16, seed=0), 0), CSVLogger("log", log_dir=str(tmp_path))
    options = {"evaluator": evaluator, "logger": logger, "log_interval": 8, "eval_interval": 8, "save_interval": 8}
    trainer = make_trainer(20, run_dir=tmp_path / "run", sampler=sampler, **options)
    calls = []

    def interrupt(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    if stage == "logger":
        trainer._log, log = lambda *a, **k: (interrupt(), log(*a, **k)), trainer._log
    elif stage == "evaluation":
        evaluator.run_all, run = lambda policies: (interrupt(), run(policies))[1], evaluator.run_all
    else:
        trainer.register_op(stage, interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert sampler.draws == trainer.step == trainer.evaluated_step == 20
    assert latest_checkpoint(tmp_path / "run" / "checkpoint").name == "step_000000020"


def test_a_run_that_was_stopped_goes_on_in_the_same_process(make_trainer, evaluator, tmp_path):
    trainer = make_trainer(20, run_dir=tmp_path, evaluator=evaluator, log_interval=8, save_interval=100)
    trainer.register_op("post_optim", lambda: trainer.step == 5 and trainer.stop_with(KeyError("stop")))
    with pytest.raises(KeyError, match="stop"):
        trainer.train()
    assert trainer.step == 5
    trainer.train()
    assert trainer.step == trainer.evaluated_step == 20
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step_000000020"


def test_a_hook_sees_how_many_updates_are_done(make_trainer):
    trainer, seen = make_trainer(5, log_interval=3), []
    trainer.register_op("post_optim", lambda: seen.append(trainer.step))
    trainer.train()
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("due", ["log_interval", "eval_interval", "save_interval"])
def test_what_torchrl_ends_early_is_evaluated_logged_and_saved(make_trainer, evaluator, tmp_path, due):
    intervals = {"log_interval": 100, "eval_interval": 100, "save_interval": 100} | {due: 4}
    trainer = make_trainer(20, run_dir=tmp_path, evaluator=evaluator, **intervals)
    trainer.register_op("post_steps", lambda: trainer.step < 8 or trainer.request_stop("enough"))
    trainer.train()
    assert trainer.step == trainer.evaluated_step == 8
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step_000000008"
    last = [row for row in read_rows(tmp_path) if row["step"] == "8"]
    for column in ("loss_score", "eval/success_last"):
        assert len([row for row in last if row.get(column)]) == 1
    # and continues if it is asked to
    trainer.train()
    assert trainer.step == 12


def test_a_new_run_in_the_folder_of_another_is_refused_and_a_resumed_one_is_not(make_trainer, tmp_path):
    make_trainer(4, run_dir=tmp_path, save_interval=2).train()
    held = sorted(path.name for path in tmp_path.rglob("*"))
    rows = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(FileExistsError, match=r"holds a run already, with step_000000004: resume\(\) continues it"):
        make_trainer(2, run_dir=tmp_path).train()
    assert sorted(path.name for path in tmp_path.rglob("*")) == held
    assert (tmp_path / "metrics.csv").read_bytes() == rows
    again = make_trainer(6, run_dir=tmp_path)
    again.resume()
    again.train()
    assert again.step == 6


def test_a_trainer_without_a_folder_writes_nothing_and_says_so_when_asked_to(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(3)
    trainer.train()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="keeps no checkpoints"):
        trainer.save()
    with pytest.raises(ValueError, match="needs the path of a checkpoint"):
        trainer.resume()


@pytest.mark.parametrize("name", ["total_steps", "log_interval", "eval_interval", "save_interval", "keep_checkpoints"])
def test_a_count_that_is_not_positive_is_refused_by_name(make_loss, data, name):
    loss = make_loss()
    options = {"total_steps": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        OfflineTrainer(loss, GoalBatchSampler(data, 2), adam(loss)[0], **options)


def test_an_unknown_compile_mode_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"defalt.*default"):
        make_trainer(1, compile="defalt")


@pytest.mark.parametrize("updater", [SoftUpdate, HardUpdate])
def test_the_state_of_an_update_goes_round(make_loss, data, updater):
    options = {"tau": 0.1} if updater is SoftUpdate else {"value_network_update_interval": 3}

    def make():
        loss = make_loss()
        optimizer, scheduler = adam(loss, lr=0.01, total_steps=20)
        return Update(
            loss,
            GoalBatchSampler(data, 8),
            optimizer,
            scheduler=scheduler,
            target_updater=updater(loss, **options),
        )

    first, second = make(), make()
    for _ in range(5):
        first()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(4):
        expected, found = first(), second()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    for key, value in first.loss.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, second.loss.state_dict()[key])


@pytest.mark.slow
def test_compiled_updates_are_one_graph_and_equal_eager_ones_with_schedule_and_target(make_trainer, monkeypatch):
    torch._dynamo.reset()
    counter, compile_ = CompileCounterWithBackend("inductor"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode: compile_(f, backend=counter, fullgraph=True))
    trainers = [make_trainer(6, compile=mode) for mode in ("off", "default")]
    monkeypatch.undo()
    for trainer in trainers:
        trainer.train()
    # neither the schedule nor the target's update compiles again
    assert counter.frame_count == 1
    eager, compiled = (trainer.loss_module.state_dict() for trainer in trainers)
    assert eager.keys() == compiled.keys()
    start = make_trainer(6).loss_module.state_dict()
    for key, value in eager.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            # six steps of Adam: rounding differences of a gradient near 0 are magnified to some lr * 1e-2
            torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4)
    moved = [key for key in eager if "target_score" in key and isinstance(eager[key], torch.Tensor)]
    assert any(not torch.equal(eager[key], start[key]) for key in moved)


@pytest.fixture
def make_seeds(make_loss, data):
    """Returns a factory of trainers of several seeds: ``make(*seeds, **options of OfflineTrainer)``."""

    def make(*seeds, **options):
        losses = [make_loss(seed) for seed in seeds]
        sampler = GoalBatchSampler(data, 16)
        update = FusedUpdate(losses, sampler, seeds=seeds, lr=1e-3, total_steps=6, tau=0.05)
        return OfflineTrainer(update=update, total_steps=6, progress_bar=False, **options)

    return make


def walk(observation):
    return np.ones((len(observation["observation"]), 2), dtype=np.float32)


def test_every_seed_gets_the_rows_that_it_gets_alone(make_seeds, tmp_path):
    with EnvPool("PointReach", 5) as pool:
        # 3 + 3 episodes in 5 environments
        evaluator = Evaluator(pool, episodes=3, horizon=2)
        options = {"evaluator": evaluator, "log_interval": 3, "eval_interval": 4}
        together = make_seeds(3, 8, run_dir=tmp_path / "both", policy=[walk, StillPolicy()], **options)
        together.train()
        alone = make_seeds(8, run_dir=tmp_path / "alone", policy=StillPolicy(), **options)
        alone.train()
    rows = read_rows(tmp_path / "both")
    assert [(row["step"], row["seed"]) for row in rows] == [
        (step, seed) for step in ("3", "4", "6", "6") for seed in ("3", "8")
    ]
    assert [{k: v for k, v in row.items() if k != "seed"} for row in rows if row["seed"] == "8"] == read_rows(
        tmp_path / "alone"
    )
    assert "seed" not in read_rows(tmp_path / "alone")[0]
    assert together.evaluation is together.evaluations[0]
    assert together.evaluations[1].metrics == alone.evaluation.metrics
    assert together.evaluations[0].metrics != together.evaluations[1].metrics


class StillPolicy:
    """Does nothing."""

    def __call__(self, observation):
        return np.zeros((len(observation["observation"]), 2), dtype=np.float32)


def test_a_logger_gets_the_mean_over_seeds(make_seeds, tmp_path):
    class Values(Records):
        def log_scalar(self, name, value, step=None):
            self.rows.append((name, step, value))

    logger = Values()
    make_seeds(0, 1, logger=logger, run_dir=tmp_path, log_interval=6).train()
    (value,) = [value for name, step, value in logger.rows if name == "loss_value"]
    assert value == pytest.approx(np.mean([float(row["loss_value"]) for row in read_rows(tmp_path)]))


def test_a_policy_for_each_seed_is_wanted(make_seeds):
    with pytest.raises(ValueError, match="a policy for each of 2 seeds, got 1"):
        make_seeds(0, 1, policy=walk)


def test_an_update_is_ready_or_made_from_its_parts_and_never_both(make_seeds, make_loss, make_trainer):
    ready = make_seeds(0).update
    with pytest.raises(ValueError, match=r"a ready update has its own parts; drop loss, compile\."):
        OfflineTrainer(make_loss(), update=ready, total_steps=1, compile="default")
    with pytest.raises(ValueError, match=r"expected an update, or loss, sampler and optimizer; missing: sampler, opt"):
        OfflineTrainer(make_loss(), total_steps=1)
    assert isinstance(make_trainer(1).update, Update)
    assert OfflineTrainer(update=ready, total_steps=1, progress_bar=False).loss_module is ready.loss


def test_the_pair_that_adam_returns_is_no_optimizer(make_loss, data):
    loss = make_loss()
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got tuple: adam\(\) returns"):
        OfflineTrainer(loss, GoalBatchSampler(data, 2), adam(loss), total_steps=1, progress_bar=False)
