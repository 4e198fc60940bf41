"""Checkpoints of another device, another number of GPUs, another torch: simulated, there is none here."""

from __future__ import annotations

import json

import pytest
import torch

from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.trainers import (
    CheckpointError,
    CheckpointWarning,
    FusedUpdate,
    OfflineTrainer,
    latest_checkpoint,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from torchrl_smore.trainers.checkpoint import check_fits

#: Of a CUDA generator: seed and offset, 64 bits each.
CUDA_GENERATOR = torch.tensor([7, 40], dtype=torch.int64).view(torch.uint8)


@pytest.fixture
def make(make_loss, data):
    """Returns a factory of trainers of two seeds."""

    def make(run_dir):
        losses = [make_loss(seed) for seed in (0, 4)]
        update = FusedUpdate(losses, GoalBatchSampler(data, 8), seeds=(0, 4), tau=0.05)
        return OfflineTrainer(update=update, total_steps=8, save_interval=4, run_dir=run_dir, progress_bar=False)

    return make


def resave(run_dir, change_state=lambda state: None, **meta):
    """Writes the newest checkpoint of a run again, as another machine would have written it."""
    state, old = load_checkpoint(latest_checkpoint(run_dir / "checkpoint"))
    change_state(state)
    kept = {key: value for key, value in old.items() if key not in ("sha256", "meta_sha256", "format_version")}
    save_checkpoint(run_dir / "checkpoint", old["step"], state, {**kept, **meta})


def test_a_run_of_two_gpus_goes_on_without_one_and_says_so(make, tmp_path):
    make(tmp_path).train()
    want = load_checkpoint(latest_checkpoint(tmp_path / "checkpoint"))[0]["update"]["losses"][1]

    def as_on_a_gpu(state):
        state["rng"]["cuda"] = [CUDA_GENERATOR.clone(), CUDA_GENERATOR.clone()]
        state["update"]["samplers"] = [{"generator": CUDA_GENERATOR.clone()} for _ in range(2)]

    resave(tmp_path, as_on_a_gpu, device="cuda", torch="2.99.0")
    trainer = make(tmp_path)
    with pytest.warns(CheckpointWarning) as caught:
        trainer.resume()
    said = " ".join(str(warning.message) for warning in caught)
    assert "torch 2.99.0" in said
    assert "device cuda (now cpu)" in said
    assert "2 GPUs, this process sees 0" in said
    assert said.count("another kind of device") == 2
    own = trainer.update.losses[1].state_dict()
    assert all(torch.equal(own[name], value) for name, value in want.items())
    first, second = (sampler.draw() for sampler in trainer.update.samplers)
    assert not torch.equal(first, second)


def test_a_checkpoint_of_here_goes_on_without_a_warning(make, tmp_path, recwarn):
    make(tmp_path).train()
    make(tmp_path).resume()
    assert not [warning for warning in recwarn if issubclass(warning.category, CheckpointWarning)]


def test_generators_of_more_gpus_than_the_checkpoint_has_stay_as_they_are(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: set_to.append(device))
    state = {**rng_state(), "cuda": [CUDA_GENERATOR]}
    with pytest.warns(CheckpointWarning, match="1 GPUs, this process sees 2"):
        set_rng_state(state)
    assert set_to == [0]


def drop_a_parameter(state):
    state["update"]["losses"][1].popitem()


def another_width(state):
    name = next(iter(state["update"]["losses"][1]))
    state["update"]["losses"][1][name] = torch.zeros(3, 3)


def fewer_moments(state):
    group = next(iter(state["update"]["exp_avg"]))
    state["update"]["exp_avg"][group] = state["update"]["exp_avg"][group][:1]


def another_kind_of_update(state):
    state["update"] = {"seeds": [0, 4], "loss": {}, "optimizer": {}}


@pytest.mark.parametrize("change", [drop_a_parameter, another_width, fewer_moments, another_kind_of_update])
def test_what_does_not_fit_is_refused_by_name_before_anything_is_overwritten(make, tmp_path, change):
    make(tmp_path).train()
    resave(tmp_path, change)
    trainer = make(tmp_path)
    before = [value.clone() for loss in trainer.update.losses for value in loss.state_dict().values()]
    random = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=r"does not fit this run: update"):
        trainer.resume()
    after = [value for loss in trainer.update.losses for value in loss.state_dict().values()]
    assert all(torch.equal(*pair) for pair in zip(before, after))
    assert torch.equal(torch.get_rng_state(), random)
    assert trainer.step == 0


@pytest.mark.parametrize("step", [-5, 9, "4", None])
def test_a_step_that_cannot_be_is_refused(make, tmp_path, step):
    make(tmp_path).train()

    def move(state):
        state["step"] = step

    resave(tmp_path, move)
    with pytest.raises(CheckpointError, match=f"step={step!r}"):
        make(tmp_path).resume()


@pytest.mark.parametrize(("key", "value"), [("step", -5), ("total_steps", 99), ("task", "run"), ("torch", "1.0")])
def test_a_meta_that_was_edited_is_refused(make, tmp_path, key, value):
    make(tmp_path).train()
    path = latest_checkpoint(tmp_path / "checkpoint") / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match="was edited"):
        make(tmp_path).resume()


def test_options_are_compared_name_by_name(tmp_path):
    path = save_checkpoint(tmp_path, 1, {}, {"options": {"batch_size": 8, "lr": 0.1, "old": 1}})
    load_checkpoint(path, {"options": {"batch_size": 8, "lr": 0.1, "new": 2}})
    with pytest.raises(CheckpointError, match=r"with batch_size=8; expected 16, lr=0\.1; expected 0\.2\."):
        load_checkpoint(path, {"options": {"batch_size": 16, "lr": 0.2, "new": 2}})


def test_a_checkpoint_of_the_version_before_is_still_read(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"step": 1}, {"task": "walk"}) / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({"task": "walk", "step": 1, "sha256": meta["sha256"], "format_version": 2}))
    assert load_checkpoint(path.parent, {"task": "walk", "options": {"lr": 0.1}})[0] == {"step": 1}
    with pytest.raises(CheckpointError, match="task='walk'; expected 'run'"):
        load_checkpoint(path.parent, {"task": "run"})


def test_dtypes_are_compared_too():
    with pytest.raises(CheckpointError, match=r"a\.b is .*float64.*, expected .*float32"):
        check_fits({"b": torch.zeros(2, dtype=torch.float64)}, {"b": torch.zeros(2)}, "a")


def fewer_groups(update):
    update["optimizer"]["param_groups"].pop()


def another_moment(update):
    update["optimizer"]["state"][0]["exp_avg_sq"] = torch.zeros(3, 3)


def no_generator(update):
    del update["sampler"]["generator"]


def of_sgd(update):
    for moments in update["optimizer"]["state"].values():
        moments["momentum_buffer"] = moments.pop("exp_avg")


def no_schedule(update):
    del update["scheduler"]["lr_lambdas"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (fewer_groups, r"update.optimizer has groups of \[\d+, \d+\] parameters, expected \[\d+, \d+, \d+\]"),
        (another_moment, r"update\.optimizer\.0\.exp_avg_sq is \(\(3, 3\)"),
        (of_sgd, r"update\.optimizer\.0 differs in exp_avg"),
        (no_generator, "KeyError: 'generator'"),
        (no_schedule, "KeyError: 'lr_lambdas'"),
    ],
)
def test_a_plain_update_overwrites_nothing_either_with_what_does_not_fit(make_trainer, tmp_path, change, named):
    make_trainer(4, run_dir=tmp_path).train()
    resave(tmp_path, lambda state: change(state["update"]))
    trainer = make_trainer(4, run_dir=tmp_path)
    trainer.update()  # so that there are moments to lose
    before = trainer.update.state_dict()
    before = [tensor.clone() for part in ("loss", "sampler") for tensor in before[part].values()]
    moments = [tensor.clone() for each in trainer.update.optimizer.state.values() for tensor in each.values()]
    with pytest.raises(CheckpointError, match=f"does not fit this run: .*{named}"):
        trainer.resume()
    after = trainer.update.state_dict()
    after = [tensor for part in ("loss", "sampler") for tensor in after[part].values()]
    assert all(torch.equal(*pair) for pair in zip(before, after))
    found = [tensor for each in trainer.update.optimizer.state.values() for tensor in each.values()]
    assert all(torch.equal(*pair) for pair in zip(moments, found))
    assert trainer.step == 0
