"""A run that diverges stops at once, says where, and keeps its last good checkpoint."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch

from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.trainers import (
    DivergedError,
    Evaluator,
    FusedUpdate,
    KeepBest,
    OfflineTrainer,
    latest_checkpoint,
    load_checkpoint,
)


def poison(trainer, step, name="value_network", number=0):
    """Makes a parameter NaN after an update: the next one is the first whose loss is not finite."""

    def poison():
        if trainer._optim_count == step:
            for key, parameter in trainer.update.losses[number].named_parameters():
                if key.startswith(name):
                    parameter.data.fill_(float("nan"))

    trainer.register_op("post_optim", poison)


@pytest.mark.parametrize(("step", "kept"), [(6, 5), (7, 5), (11, 10)])
def test_the_first_loss_that_is_not_finite_is_named_with_its_update_and_the_last_good_checkpoint(
    make_trainer, tmp_path, step, kept
):
    trainer = make_trainer(40, run_dir=tmp_path, log_interval=4, save_interval=5)
    poison(trainer, step)
    with pytest.raises(DivergedError, match="diverged") as caught:
        trainer.train()
    error = caught.value
    assert (error.step, error.seed) == (step + 1, None)
    assert error.name.startswith("loss_")
    assert error.checkpoint == latest_checkpoint(tmp_path / "checkpoint")
    assert f"{error.name} is not finite at update {step + 1}" in str(error)
    assert str(error.checkpoint) in str(error)
    state, _ = load_checkpoint(error.checkpoint)
    assert state["step"] == kept
    assert all(value.isfinite().all() for value in state["update"]["loss"].values())
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) <= step + 4


def test_a_parameter_that_no_loss_has_shown_yet_is_not_saved(make_trainer, tmp_path):
    trainer = make_trainer(40, run_dir=tmp_path, log_interval=50, save_interval=5)
    poison(trainer, 10)
    with pytest.raises(DivergedError, match=r"value_network_params\S* is not finite at update 10"):
        trainer.train()
    assert latest_checkpoint(tmp_path / "checkpoint").name == "step_000000005"


def test_of_several_seeds_the_one_that_diverged_is_named(make_loss, data):
    losses = [make_loss(seed) for seed in (0, 4)]
    update = FusedUpdate(losses, GoalBatchSampler(data, 16), seeds=(0, 4), tau=0.05)
    trainer = OfflineTrainer(update=update, total_steps=20, log_interval=5, progress_bar=False)
    poison(trainer, 7, number=1)
    with pytest.raises(DivergedError, match="of seed 4 is not finite at update 8; there is no checkpoint"):
        trainer.train()
    assert trainer.step == 10


def test_it_can_go_on_and_says_so_once(make_trainer, tmp_path):
    trainer = make_trainer(20, run_dir=tmp_path, log_interval=5, save_interval=5, on_divergence="continue")
    poison(trainer, 6)
    with pytest.warns(UserWarning, match="not finite at update 7.*Training continues") as caught:
        trainer.train()
    assert sum("Training continues" in str(warning.message) for warning in caught) == 1
    assert (trainer.step, trainer.diverged.step) == (20, 7)
    # what was saved before it diverged is still there, and nothing after
    assert [path.name for path in sorted((tmp_path / "checkpoint").glob("step_*"))] == ["step_000000005"]
    assert trainer.save() is None
    with pytest.raises(ValueError, match="on_divergence"):
        make_trainer(20, on_divergence="ignore")


class Line:
    """A place on a line that follows the first action, as strict as :class:`EnvPool`."""

    num_envs = 2

    def reset(self, seeds):
        self.place = np.zeros((2, 2), np.float32)
        return self.observe()

    def step(self, actions):
        assert np.isfinite(actions).all()
        self.place += actions
        return self.observe(), np.ones(2, np.float32)

    def observe(self):
        observation = np.concatenate([self.place, self.place[:, :1]], 1)
        return {"observation": observation, "achieved_goal": self.place, "desired_goal": self.place + 1.0}


def test_what_diverged_and_goes_on_has_no_numbers_and_leaves_the_best_networks_alone(make_trainer, tmp_path):
    options = {"log_interval": 5, "eval_interval": 5, "evaluator": Evaluator(Line(), episodes=2, horizon=3)}
    for step, kept in ((0, []), (6, ["step_000000005"])):
        trainer = make_trainer(15, run_dir=tmp_path / f"{step}", on_divergence="continue", **options)
        trainer.register_op("post_steps", KeepBest(trainer))
        if step:
            poison(trainer, step, "actor_network")
        else:
            for parameter in trainer.update.losses[0].parameters():
                parameter.data.fill_(float("nan"))
        with pytest.warns(UserWarning, match="Training continues"):
            trainer.train()
        assert all(math.isnan(value) for value in trainer.evaluation.metrics.values())
        best = tmp_path / f"{step}" / "best" / "seed_0"
        assert [path.name for path in best.glob("step_*")] == kept


def test_the_count_goes_on_over_a_resumption(make_trainer, tmp_path):
    first = make_trainer(20, run_dir=tmp_path, log_interval=10, save_interval=4)
    first.register_op("post_steps", lambda: first.stop_with(KeyboardInterrupt()) if first.step == 4 else None)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = make_trainer(20, run_dir=tmp_path, log_interval=10, save_interval=100)
    second.resume()
    assert second.step == 5
    poison(second, 7)
    with pytest.raises(DivergedError, match="at update 8"):
        second.train()


@pytest.mark.parametrize("steps", [1, 7, 10])
def test_a_requested_stop_saves_after_the_update_in_progress_and_resumes_to_the_same_end(make_trainer, tmp_path, steps):
    options = {"log_interval": 4, "save_interval": 10}
    make_trainer(13, run_dir=tmp_path / "whole", **options).train()
    first = make_trainer(13, run_dir=tmp_path / "stopped", **options)
    first.register_op(
        "post_optim", lambda: first.stop_with(KeyboardInterrupt("now")) if first._optim_count == steps else None
    )
    with pytest.raises(KeyboardInterrupt, match="now"):
        first.train()
    assert latest_checkpoint(tmp_path / "stopped" / "checkpoint").name == f"step_{steps:09d}"
    second = make_trainer(13, run_dir=tmp_path / "stopped", **options)
    torch.manual_seed(99)
    second.resume()
    assert second.step == steps
    second.train()
    states = [load_checkpoint(latest_checkpoint(tmp_path / n / "checkpoint"))[0] for n in ("whole", "stopped")]
    for name, value in states[0]["update"]["loss"].items():
        assert torch.equal(value, states[1]["update"]["loss"][name]), name
    tables = []
    for name in ("whole", "stopped"):
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            tables.append([{k: v for k, v in row.items() if k != "updates_per_second"} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
