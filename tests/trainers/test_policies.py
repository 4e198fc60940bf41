"""Policies and values loaded from run folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torchrl.data import Bounded
from torchrl.modules import IndependentNormal, TanhNormal

import torchrl_smore
from torchrl_smore.data import GoalBatchSampler
from torchrl_smore.modules import ConcatMLP, GaussianHead, goal_specs, make_contrastive_networks, make_networks
from torchrl_smore.objectives import ContrastiveRLLoss, GCSLLoss, SMORELoss
from torchrl_smore.reports import read_metrics
from torchrl_smore.trainers import (
    CheckpointError,
    FusedUpdate,
    KeepBest,
    OfflineTrainer,
    latest_checkpoint,
    load_checkpoint,
    load_policy,
    load_value,
    record_policy,
    run_seeds,
    save_checkpoint,
)

COLUMNS = {"observation": ["x [m]", "y [m]", "speed [m/s]"], "desired_goal": ["x [m]", "y [m]"], "action": ["u", "v"]}
GOALS = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])


@pytest.fixture
def run(tmp_path, make_trainer):
    """A run folder of one seed, and its loss."""
    trainer = make_trainer(3, run_dir=tmp_path / "run", meta={"task": "walk", "method": "smore"})
    trainer.train()
    about = {"task": "walk", "method": "smore"}
    record_policy(trainer.run_dir, trainer.loss_module, columns=COLUMNS, goal_range=GOALS, about=about)
    return trainer.run_dir, trainer.loss_module


@pytest.fixture
def rows():
    """Observations, goals and actions, eight rows of each."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 3)) * 30, rng.uniform(-1, 1, (8, 2)), rng.uniform(-1, 1, (8, 2))


def arrays(loss, prefix):
    return {k.removeprefix(prefix): v.numpy() for k, v in loss.state_dict().items() if k.startswith(prefix)}


def forward(state, inputs, prefix, last):
    """The layers of a ConcatMLP of two hidden layers, by hand."""
    parts = [np.clip((x - state[f"mean_{i}"]) / state[f"std_{i}"], -5, 5) for i, x in enumerate(inputs[:2])]
    hidden = np.concatenate([*parts, *inputs[2:]], -1)
    for number in (0, 2):
        weight, bias = (state[f"{prefix}layers.{number}.{name}"] for name in ("weight", "bias"))
        hidden = np.maximum(hidden @ weight.T + bias, 0)
    return hidden @ state[f"{prefix}layers.{last}.weight"].T + state[f"{prefix}layers.{last}.bias"]


def test_the_policy_is_the_standardised_network_of_the_newest_checkpoint(run, rows):
    policy = load_policy(run[0])
    expected = np.tanh(forward(arrays(run[1], "actor_network_params.module.0.module."), rows[:2], "network.trunk.", 4))
    np.testing.assert_allclose(policy(*rows[:2]), expected, atol=1e-5)
    assert (policy.record.task, policy.record.seed, policy.record.step) == ("walk", 0, 3)
    assert repr(policy) == "TrainedPolicy(task='walk', method='smore', seed=0, step=3)"


def test_value_and_score_are_those_of_the_loss_the_score_the_smallest_of_its_members(run, rows):
    value = load_value(run[0])
    expected = forward(arrays(run[1], "value_network_params.module."), rows[:2], "network.", 4)[:, 0]
    np.testing.assert_allclose(value(*rows[:2]), expected, atol=1e-5)
    members = arrays(run[1], "score_network_params.module.")
    scores = [forward({k: v[m] for k, v in members.items()}, rows, "network.", 4)[:, 0] for m in (0, 1)]
    np.testing.assert_allclose(value.score(*rows), np.minimum(*scores), atol=1e-5)
    assert not np.allclose(scores[0], scores[1])


def test_rows_and_batches_numpy_and_torch_all_widths_of_numbers(run, rows):
    policy = load_policy(run[0])
    observation, goal, _ = rows
    expected = policy(observation, goal)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(policy(observation[3], goal[3]), expected[3], atol=1e-6)
    np.testing.assert_allclose(policy(observation, goal[0])[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(policy(observation.reshape(2, 4, 3), goal.reshape(2, 4, 2)).reshape(8, 2), expected)
    out = policy(torch.from_numpy(observation).float(), torch.from_numpy(goal))
    assert isinstance(out, torch.Tensor)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)
    assert policy(np.zeros(3, dtype=np.int64), np.zeros(2, dtype=np.float16)).shape == (2,)
    assert policy(np.zeros((0, 3)), np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    "kept",
    [
        *(lambda a: np.flip(np.flip(a, 0).copy(), 0), lambda a: np.flip(np.flip(a, -1).copy(), -1)),
        *(lambda a: a.astype(">f8"), lambda a: np.asfortranarray(a), lambda a: a.repeat(2, 0)[::2]),
        *(lambda a: np.repeat(a, 2, -1)[:, ::2], lambda a: np.frombuffer(a.tobytes()).reshape(a.shape)),
    ],
    ids=[
        "rows turned",
        "columns turned",
        "byte order",
        "Fortran",
        "each second row",
        "each second column",
        "read-only",
    ],
)
@pytest.mark.filterwarnings("error")
def test_arrays_are_taken_however_they_lie_in_memory(run, rows, kept):
    policy = load_policy(run[0])
    found = policy(kept(rows[0]), kept(rows[1]))
    np.testing.assert_allclose(found, policy(*rows[:2]), atol=1e-6)


def test_numbers_too_large_for_float32_are_refused(run):
    with pytest.raises(ValueError, match=r"observation: expected finite numbers.*'y \[m\]'"):
        load_policy(run[0])(np.array([0.0, 1e300, 0.0]), np.zeros(2))


def test_the_module_takes_a_tensordict_as_environments_give_it(run, rows):
    policy = load_policy(run[0])
    batch = TensorDict({"observation": torch.from_numpy(rows[0]), "desired_goal": torch.from_numpy(rows[1])}, [8])
    np.testing.assert_allclose(policy.module(batch)["action"].numpy(), policy(*rows[:2]), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in policy.module.parameters())


@pytest.mark.parametrize(
    ("observation", "goal", "error", "message"),
    [
        (np.zeros(2), np.zeros(2), ValueError, r"observation: expected numbers of shape \[..., 3\] \(x \[m\], y"),
        (np.zeros(3), np.zeros((4, 1)), ValueError, r"desired_goal: expected numbers of shape \[..., 2\]"),
        (np.float64(1), np.zeros(2), TypeError, "observation: .* got float64"),
        (np.zeros((4, 3)), np.zeros((3, 2)), ValueError, r"got desired_goal \[3\] beside \[4\]"),
        (np.array([0, np.nan, 0]), np.zeros(2), ValueError, r"observation: expected finite numbers.*'y \[m\]'"),
        (np.zeros(3), np.array([np.inf, 0]), ValueError, r"desired_goal: expected finite numbers.*'x \[m\]'"),
        (np.array(["a", "b", "c"]), np.zeros(2), TypeError, "got dtype <U1"),
        (torch.ones(3, dtype=torch.bool), np.zeros(2), TypeError, "got dtype torch.bool"),
        ([0.0, 0.0, 0.0], np.zeros(2), TypeError, "got list"),
        # the widest column of the data's goals is 4 wide
        (np.zeros(3), np.array([0.0, 5.1]), ValueError, r"column 'y \[m\]' is 5.1, far outside the data's \[0, 1\]"),
        (np.zeros(3), np.array([-6.1, 0.0]), ValueError, r"column 'x \[m\]' is -6.1"),
    ],
)
def test_bad_input_is_refused_by_name(run, observation, goal, error, message):
    policy = load_policy(run[0])
    policy(np.zeros(3), np.array([0.0, 4.9]))
    with pytest.raises(error, match=message):
        policy(observation, goal)


def test_without_a_margin_any_goal_is_taken(run):
    assert load_policy(run[0], goal_margin=None)(np.zeros(3), np.array([1e6, 0.0])).shape == (2,)


def linear(*weights):
    """A ConcatMLP of one output: the sum of its inputs, each times its weight."""
    network = ConcatMLP(len(weights), 1, hidden=())
    network.load_state_dict({"layers.0.weight": torch.tensor([weights]), "layers.0.bias": torch.zeros(1)})
    return network


def make_actor(network, in_keys, out_key="action"):
    """A stochastic actor of one component, ``tanh`` of a network."""
    return ProbabilisticTensorDictSequential(
        TensorDictModule(GaussianHead(network, 1), in_keys, ["loc", "scale"]),
        ProbabilisticTensorDictModule(["loc", "scale"], [out_key], distribution_class=IndependentNormal),
    )


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"desired_goal": "goal", "action": "act"},
        {"desired_goal": ("task", "goal"), "action": ("task", "act")},
    ],
)
@pytest.mark.parametrize("observation", ["observation", ("state", "observation")])
def test_networks_are_fed_by_what_their_keys_mean_whatever_their_order_and_names(tmp_path, rows, keys, observation):
    goal, action = keys.get("desired_goal", "desired_goal"), keys.get("action", "action")
    loss = SMORELoss(
        make_actor(linear(0.1, 0.2, 0.01, 0.02, 0.03), [goal, observation], action),
        TensorDictModule(linear(1.0, 2.0, 3.0, 4.0, 5.0, 6.0), [action, observation, goal], ["score"]),
        TensorDictModule(linear(1.0, 2.0, 3.0, 4.0, 5.0), [goal, observation], ["state_value"]),
        num_score_nets=1,
    )
    loss.set_keys(**keys)
    record_policy(tmp_path, loss, columns=COLUMNS | {"action": ["u"]})
    save_checkpoint(tmp_path / "checkpoint", 1, {"update": {"loss": loss.state_dict()}}, {})
    (x, y, speed), (to_x, to_y), u = rows[0].T, rows[1].T, rows[2][:, 0]

    policy, value = load_policy(tmp_path), load_value(tmp_path)
    act = np.tanh(0.1 * to_x + 0.2 * to_y + 0.01 * x + 0.02 * y + 0.03 * speed)
    np.testing.assert_allclose(policy(*rows[:2])[:, 0], act, atol=1e-5)
    given = [torch.from_numpy(row).float() for row in rows[:2]]
    np.testing.assert_allclose(policy.module.module(*given)[:, 0], act, atol=1e-5)
    state_value = to_x + 2 * to_y + 3 * x + 4 * y + 5 * speed
    np.testing.assert_allclose(value(*rows[:2]), state_value, atol=1e-3)
    score = u + 2 * x + 3 * y + 4 * speed + 5 * to_x + 6 * to_y
    np.testing.assert_allclose(value.score(*rows[:2], u[:, None]), score, atol=1e-3)


def test_a_checkpoint_is_loaded_by_its_own_path(run, rows):
    newest = max((run[0] / "checkpoint").iterdir())
    np.testing.assert_array_equal(load_policy(newest)(*rows[:2]), load_policy(run[0])(*rows[:2]))


class Invented:
    """Stands where an evaluator does."""

    def __init__(self, *by_time):
        self.by_time = iter(by_time)

    def run_all(self, policies):
        pairs = next(self.by_time)
        assert len(policies) == len(pairs)
        return [Result({"success_last": success, "return_over_max": share}) for success, share in pairs]


class Result:
    def __init__(self, metrics):
        self.metrics = metrics

    def summary(self):
        return self.metrics


@pytest.fixture
def best(tmp_path, data, make_loss):
    """A finished run of seeds 3 and 5 with three evaluations, and the states of the losses at each."""
    losses = [make_loss(seed) for seed in (3, 5)]
    update = FusedUpdate(losses, GoalBatchSampler(data, 8, q=True), seeds=(3, 5), tau=0.05)
    # seed 3: best first; seed 5: equal success, then a higher return, then the same again
    evaluator = Invented([(0.5, 0.1), (0.5, 0.1)], [(0.4, 0.9), (0.5, 0.2)], [(0.5, 0.1), (0.5, 0.2)])
    trainer = OfflineTrainer(
        update=update,
        total_steps=3,
        run_dir=tmp_path / "best_run",
        progress_bar=False,
        evaluator=evaluator,
        eval_interval=1,
    )
    trainer.run_dir.mkdir()
    record_policy(trainer.run_dir, losses[0], columns=COLUMNS)
    states = []
    trainer.register_op("post_steps", KeepBest(trainer))
    trainer.register_op("post_steps", lambda: states.append([copied(loss) for loss in losses]))
    trainer.train()
    return trainer, states


def copied(loss):
    return {key: value.clone() for key, value in loss.state_dict().items() if isinstance(value, torch.Tensor)}


def test_the_best_networks_of_each_seed_are_those_of_its_best_evaluation(best, rows):
    trainer, states = best
    run_dir = trainer.run_dir
    assert run_seeds(run_dir, "best") == run_seeds(run_dir) == (3, 5)
    prefix = "actor_network_params.module.0.module."
    for seed, position, time in ((3, 0, 0), (5, 1, 1)):
        policy = load_policy(run_dir, "best", seed=seed)
        assert (policy.record.seed, policy.record.step) == (seed, time + 1)
        found = policy.module.module.head.state_dict()
        for key, value in states[time][position].items():
            if key.startswith(prefix):
                torch.testing.assert_close(found[key.removeprefix(prefix)], value, rtol=0, atol=0)
        last = load_policy(run_dir, seed=seed).module.module.head.state_dict()
        key = "network.trunk.layers.0.weight"
        torch.testing.assert_close(last[key], states[2][position][prefix + key], rtol=0, atol=0)
        assert not torch.equal(last[key], found[key])


def test_the_seed_that_is_loaded_by_default_is_the_first_of_the_run_also_of_its_best_networks(
    data, make_loss, tmp_path
):
    losses = [make_loss(seed) for seed in (5, 3, 11)]
    update = FusedUpdate(losses, GoalBatchSampler(data, 8, q=True), seeds=(5, 3, 11), tau=0.05)
    options = {"evaluator": Invented([(0.5, 0.1)] * 3), "run_dir": tmp_path, "progress_bar": False}
    trainer = OfflineTrainer(update=update, total_steps=1, **options)
    record_policy(tmp_path, losses[0], columns=COLUMNS)
    trainer.register_op("post_steps", KeepBest(trainer))
    trainer.train()
    for which in ("best", "last"):
        assert run_seeds(tmp_path, which) == (5, 3, 11)
        assert load_policy(tmp_path, which).record.seed == 5
    # as a version wrote them that did not say in which order they were
    for file in (tmp_path / "best").rglob("meta.json"):
        meta = json.loads(file.read_text())
        del meta["seeds"]
        file.write_text(json.dumps(meta))
    assert run_seeds(tmp_path, "best") == (3, 5, 11)


@pytest.mark.parametrize("seeds", [3, {"a": 1}, "3", [9], None])
def test_another_meaning_of_seeds_in_a_runs_meta_is_passed_over(best, seeds):
    run_dir = best[0].run_dir
    for file in (run_dir / "best").rglob("meta.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "seeds": seeds}))
    assert run_seeds(run_dir, "best") == (3, 5)


def test_best_networks_hold_their_own_seed_alone(best):
    size = sum(value.numel() * value.element_size() for value in best[1][0][0].values())
    (file,) = (best[0].run_dir / "best" / "seed_3").rglob("state.pt")
    assert file.stat().st_size < size + 20_000


def test_a_resumed_run_does_not_replace_better_networks_of_before(best):
    trainer, _ = best
    trainer.resumed = True
    again = KeepBest(trainer)
    trainer.evaluations = [Result({"success_last": s, "return_over_max": 0.15}) for s in (0.5, 0.5)]
    again()
    steps = {seed: load_policy(trainer.run_dir, "best", seed=seed).record.step for seed in (3, 5)}
    assert steps == {3: 3, 5: 2}


class KilledError(BaseException):
    """What nothing in a trainer catches: after it comes what a killed process would have left."""


@pytest.mark.parametrize("moment", ["before the rows", "after the rows", "after the checkpoint"])
def test_a_run_that_is_killed_loses_no_best_networks(data, make_loss, tmp_path, moment):
    def start(run_dir):
        loss = make_loss(3)
        update = FusedUpdate([loss], GoalBatchSampler(data, 8, q=True), seeds=(3,), tau=0.05)
        # the second evaluation is the best of all
        evaluator = SimpleNamespace(
            run_all=lambda _: [Result({"success_last": 0.9 if trainer.step == 2 else 0.4, "return_over_max": 0.1})]
        )
        options = {"total_steps": 4, "evaluator": evaluator, "eval_interval": 1, "save_interval": 1}
        trainer = OfflineTrainer(update=update, run_dir=run_dir, progress_bar=False, **options)
        trainer.register_op("post_steps", KeepBest(trainer))
        return trainer

    start(tmp_path / "whole").train()
    trainer = start(tmp_path / "killed")
    record, save = trainer._record, trainer.save

    def killed_at_rows(step, rows):
        now = step == 2 and "eval/success_last" in rows[0]
        if moment == "after the rows" or not now:
            record(step, rows)
        if now:
            raise KilledError

    def killed_after_checkpoint():
        save()
        if trainer.step == 2:
            raise KilledError

    if moment == "after the checkpoint":
        trainer.save = killed_after_checkpoint
    else:
        trainer._record = killed_at_rows
    with pytest.raises(KilledError):
        trainer.train()
    again = start(tmp_path / "killed")
    again.resume()
    assert again.step == (2 if moment == "after the checkpoint" else 1)
    again.train()

    kept = [load_checkpoint(latest_checkpoint(tmp_path / run / "best" / "seed_3")) for run in ("killed", "whole")]
    assert [meta["evaluation"]["success_last"] for _, meta in kept] == [0.9, 0.9]
    ours, theirs = (state["update"]["losses"][0] for state, _ in kept)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    steps = [read_metrics(tmp_path / run / "metrics.csv")["eval/success_last"][0] for run in ("killed", "whole")]
    assert steps[0].tolist() == steps[1].tolist() == [1, 2, 3, 4]


def test_a_run_that_was_not_resumed_takes_nothing_for_its_own_best(best):
    trainer, _ = best
    again = KeepBest(trainer)
    trainer.evaluations = [Result({"success_last": 0.0, "return_over_max": 0.0}) for _ in trainer.seeds]
    trainer.evaluated_step = 1
    again()
    assert {load_policy(trainer.run_dir, "best", seed=seed).record.step for seed in (3, 5)} == {1}


@pytest.mark.parametrize(
    ("key", "columns", "said"),
    [
        ("observation", ["x"], "1 of observation, 2 of desired_goal, 2 of action are not what the actor reads"),
        ("action", ["u"], "1 of action, but the actor's actions have 2"),
    ],
)
def test_columns_that_the_actor_has_not_are_refused_before_anything_is_written(run, tmp_path, key, columns, said):
    with pytest.raises(ValueError, match=said):
        record_policy(tmp_path / "other", run[1], columns={**COLUMNS, key: columns})
    assert not (tmp_path / "other").exists()


def test_a_key_that_is_no_input_is_refused_before_anything_is_written(tmp_path):
    loss = GCSLLoss(make_actor(linear(0.1, 0.2, 0.3, 0.4, 0.5), ["observation", "achieved_goal"]))
    with pytest.raises(ValueError, match="actor_network reads 'achieved_goal', which is none of observation, desired"):
        record_policy(tmp_path / "run", loss, columns=COLUMNS | {"action": ["u"]})
    assert not (tmp_path / "run").exists()


def test_a_goal_range_of_another_width_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(ValueError, match=r"goal_range: expected null or two lists of 2 numbers.*\[\[0.0\], \[1.0\]\]"):
        record_policy(tmp_path / "other", run[1], columns=COLUMNS, goal_range=(torch.zeros(1), torch.ones(1)))
    assert not (tmp_path / "other").exists()


def rewrite(run_dir, change):
    """Changes what a run's policy.json says."""
    path = run_dir / "policy.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


@pytest.mark.parametrize("observation", ["observation", "obs", ["state", "observation"]])
def test_files_with_keys_as_older_versions_wrote_them_are_read(run, rows, observation):
    expected = load_policy(run[0])(*rows[:2]), load_value(run[0])(*rows[:2]), load_value(run[0]).score(*rows)

    def with_old_keys(about):
        for name in ("actor", "value"):
            about["networks"][name]["in_keys"] = [observation, "goal"]
        about["networks"]["score"]["in_keys"] = [observation, "goal", "act"]

    rewrite(run[0], with_old_keys)
    value = load_value(run[0])
    found = load_policy(run[0])(*rows[:2]), value(*rows[:2]), value.score(*rows)
    np.testing.assert_equal(found, expected)


def test_unknown_seeds_and_names_are_refused(best, run):
    for which in ("best", "last"):
        with pytest.raises(ValueError, match="has no seed 4; it has 3, 5"):
            load_policy(best[0].run_dir, which, seed=4)
    with pytest.raises(ValueError, match=r"unknown which 'bets'.*Did you mean 'best'"):
        load_policy(best[0].run_dir, "bets")
    with pytest.raises(ValueError, match="has no seed 1; it has 0"):
        load_policy(run[0], seed=1)
    with pytest.raises(ValueError, match="has no seed '0'; it has 0"):
        load_policy(run[0], seed="0")


@pytest.mark.parametrize("load", [load_policy, load_value, run_seeds])
def test_the_best_of_a_checkpoint_is_refused_unless_it_is_one(best, load):
    run_dir = best[0].run_dir
    given = run_dir / "checkpoint" / "step_000000003"
    load(given)
    said = rf"which=best .*step_000000003 is one checkpoint of it: give .*{run_dir.name},"
    for place in (given, f"{given}/"):
        with pytest.raises(ValueError, match=said):
            load(place, "best")
    (kept,) = (run_dir / "best" / "seed_5").glob("step_*")
    load(kept, "best")


@pytest.mark.parametrize("margin", [-0.5, float("nan")])
@pytest.mark.parametrize("load", [load_policy, load_value])
def test_a_margin_below_zero_is_refused(run, load, margin):
    with pytest.raises(ValueError, match=f"goal_margin must not be negative, got {margin}"):
        load(run[0], goal_margin=margin)


def test_folders_that_are_no_run_are_refused_by_what_they_lack(run, tmp_path):
    run_dir, _ = run
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no policy.json: it is no run folder"):
        load_policy(tmp_path)
    with pytest.raises(CheckpointError, match="has not been evaluated so far"):
        load_policy(run_dir, "best")
    (tmp_path / "empty").mkdir()
    shutil.copy(run_dir / "policy.json", tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_policy(tmp_path / "empty")
    lone = tmp_path / "a" / "b" / "c" / "step_000000003"
    shutil.copytree(run_dir / "checkpoint" / "step_000000003", lone)
    with pytest.raises(CheckpointError, match=r"no policy.json above the checkpoint"):
        load_policy(lone)
    (run_dir / "policy.json").unlink()
    (run_dir / "config.yaml").touch()
    with pytest.raises(
        CheckpointError, match=r"resume=.* of an earlier version, and record_policy to one of another script"
    ):
        load_policy(run_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(format_version=2), "has format 2; this version reads 1"),
        (lambda about: about.pop("columns"), "is incomplete: it lacks columns"),
        (lambda about: about.update(task="run"), "is of task walk, its policy.json of run"),
        (lambda about: about["networks"].pop("actor"), "describes no actor"),
        (lambda about: about["networks"]["actor"].update(unknown="Mine"), "is a Mine, which is not of this package"),
        (lambda about: network(about)["options"].update(clip=-1.0), "does not fit policy.json: clip must be positive"),
        (lambda about: network(about).update({"class": "X"}), "does not fit policy.json: unknown class"),
        (
            lambda about: network(about)["options"]["network"]["options"]["trunk"]["options"].update(hidden=[9, 8]),
            "does not fit policy.json: .*size mismatch",
        ),
        (
            lambda about: network(about)["options"]["network"]["options"]["trunk"]["options"].update(hidden=[8]),
            "does not fit policy.json: expected .*found",
        ),
        (lambda about: network(about).update({"class": []}), "does not fit policy.json: .*unhashable"),
        (lambda about: network(about)["options"].update(statistics=3), "does not fit policy.json: .*not iterable"),
    ],
)
def test_a_policy_file_that_does_not_fit_is_refused(run, change, message):
    rewrite(run[0], change)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_policy(run[0])


def network(about):
    return about["networks"]["actor"]["network"]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("columns", {}, "expected an object of observation, desired_goal, action, found {}"),
        ("columns.action", [0, 1], r"expected a list of names, found \[0, 1\]"),
        ("action_range", [-1], r"expected two numbers or two lists of 2, as there are columns, found \[-1\]"),
        ("action_range", ["a", "b"], r"two numbers or .*found \['a', 'b'\]"),
        ("action_range", [[-1], [1]], r"two lists of 2, as there are columns, found \[\[-1\], \[1\]\]"),
        ("action_range", [float("nan"), 1], r"two numbers or .*found \[nan, 1\]"),
        ("action_range", [-(10**400), 1], "two numbers or"),
        ("goal_range", [1], r"expected null or two lists of 2 numbers, as there are columns, found \[1\]"),
        ("goal_range", [[0, 0, 0], [1, 1, 1]], "null or two lists of 2 numbers"),
        ("pixels", "36", "expected null or a positive number, found '36'"),
        ("networks", [], r"expected an object of networks, found \[\]"),
        ("networks.actor", [], r"expected an object of state, network, in_keys, found \[\]"),
        ("networks.actor", {"network": {}, "in_keys": []}, "expected an object of state, network, in_keys, found {"),
        ("networks.actor", {"network": {}, "state": ""}, "expected an object of state, network, in_keys, found {"),
        ("networks.actor.state", None, "expected a string, found None"),
        ("networks.actor.in_keys", [], r"expected a list of keys, found \[\]"),
        ("networks.actor.in_keys", ["observation", 1], "expected a list of keys"),
        ("networks.actor.in_keys", ["a", "b", "c"], r"keys of observation, desired_goal, found \['a', 'b', 'c'\]"),
        ("networks.value", {"state": "", "network": {}, "in_keys": []}, "an object of state, network, in_keys, energy"),
    ],
)
def test_a_part_of_a_policy_file_that_is_none_is_refused_by_its_name(run, place, value, message):
    def change(about):
        *path, last = place.split(".")
        for name in path:
            about = about[name]
        about[last] = value

    rewrite(run[0], change)
    with pytest.raises(CheckpointError, match=rf"policy\.json: {place}: .*{message}"):
        load_policy(run[0])


@pytest.mark.parametrize("energy", [None, "l3", ["l2"]])
def test_a_critic_of_pairs_with_an_energy_that_is_none_is_refused(tmp_path, energy):
    networks = make_contrastive_networks(*goal_specs(3, 2, 2), hidden=(8,), latent=4)
    loss = ContrastiveRLLoss(networks.actor, networks.critic)
    record_policy(tmp_path, loss, columns=COLUMNS)
    save_checkpoint(tmp_path / "checkpoint", 1, {"update": {"loss": loss.state_dict()}}, {})
    rewrite(tmp_path, lambda about: about["networks"]["score"].update(energy=energy))
    with pytest.raises(
        CheckpointError, match=r"policy\.json: networks.score.energy: expected one of inner, dot, l2, found"
    ):
        load_value(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "[" * 100_000])
def test_a_damaged_policy_file_is_refused(run, text):
    (run[0] / "policy.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"policy.json (cannot be read|has format)"):
        load_policy(run[0])


def test_an_actor_of_another_distribution_is_named(run):
    run_dir, loss = run
    loss.actor_network[-1].distribution_class = TanhNormal
    with pytest.warns(UserWarning, match="the actor is a TanhNormal, which is not of this package"):
        record_policy(run_dir, loss, columns=COLUMNS)
    with pytest.raises(CheckpointError, match="is a TanhNormal, which is not of this package"):
        load_policy(run_dir)
    with pytest.raises(ValueError, match="expected columns of observation, desired_goal, action"):
        record_policy(run_dir, loss, columns={"observation": []})


def test_the_package_imports_no_trainers_and_loading_a_policy_nothing_that_an_extra_brings(run):
    blocked = [
        *("gymnasium", "mujoco", "matplotlib", "hydra", "omegaconf", "imageio", "h5py", "pyarrow", "tqdm"),
        *("wandb", "tensorboard", "smore_kernels"),
    ]
    code = (
        f"import sys, warnings; sys.modules.update(dict.fromkeys({blocked})); "
        "warnings.simplefilter('error'); import numpy as np, torchrl_smore; warnings.resetwarnings(); "
        "print('torchrl_smore.trainers' in sys.modules); "
        f"print(torchrl_smore.load_policy({str(run[0])!r})(np.zeros(3), np.zeros(2)).shape); "
        f"print(torchrl_smore.load_value({str(run[0])!r})(np.zeros(3), np.zeros(2)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n(2,)\n()\n", done.stderr
    assert torchrl_smore.load_policy is load_policy


def test_actions_of_a_stretched_actor_lie_in_its_own_bounds(tmp_path, data, rows):
    action = Bounded(torch.tensor([-2.0, 0.0]), torch.tensor([4.0, 0.5]), (2,))
    networks = make_networks(goal_specs(3, 2, 2)[0], action, hidden=(8, 8))
    loss = GCSLLoss(networks.actor)
    record_policy(tmp_path, loss, columns=COLUMNS)
    assert json.loads((tmp_path / "policy.json").read_text())["action_range"] == [[-2.0, 0.0], [4.0, 0.5]]
    save_checkpoint(tmp_path / "checkpoint", 1, {"update": {"loss": loss.state_dict()}}, {})
    batch = TensorDict(
        {"observation": torch.from_numpy(rows[0]).float(), "desired_goal": torch.from_numpy(rows[1]).float()}, [8]
    )
    expected = networks.actor[0](batch)["loc"].detach()
    assert expected.abs().max() > 1
    np.testing.assert_allclose(load_policy(tmp_path)(*rows[:2]), expected, atol=1e-6)
