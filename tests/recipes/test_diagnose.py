"""The recipe that says why a run learns or does not."""

from __future__ import annotations

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_smore import SMORELoss, TrajectoryStore, goal_specs, make_networks
from torchrl_smore.envs import EnvPool, get_task
from torchrl_smore.objectives import GCEQLLoss, GCIQLLoss, GCSQLLoss

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def diagnosis(import_recipe):
    return import_recipe("parts.diagnosis")


def trajectory(positions, rewards, goal=9.0):
    """An episode of one column along ``positions``, one more than steps."""
    place = torch.tensor(positions)[:, None]
    steps = len(positions) - 1
    return {
        "observation": place,
        "achieved_goal": place,
        "action": torch.zeros(steps, 1),
        "desired_goal": torch.tensor([goal]),
        "reward": torch.tensor(rewards),
    }


def parts(**counts):
    return {"composition": [{"behaviour": name, "num_trajectories": count} for name, count in counts.items()]}


def test_a_row_moves_once_the_achieved_goal_has_left_its_start_or_leaves_its_place(diagnosis):
    # threshold 1, share 0.1: steps of 0.05 count from the third on, when 0.15 from the start; 0.2 counts at once
    store = TrajectoryStore.from_episodes(
        [
            trajectory([0.0, 0.05, 0.1, 0.15, 0.15], [0.0] * 4),
            trajectory([0.0, 0.0, 0.2, 0.0], [0.0] * 3),
        ]
    )
    moving = diagnosis.moving_mask(store.data, 1.0, 0.1)
    assert moving.tolist() == [False, False, False, True, False, True, True]


def test_phases_are_before_moving_and_at_the_goal_which_comes_first(diagnosis):
    phase = diagnosis.phase_of(torch.tensor([False, False, True, True]), torch.tensor([False, True, False, True]))
    assert [diagnosis.PHASES[number] for number in phase] == ["before", "moving", "at_goal", "at_goal"]


def test_steps_to_the_goal_count_down_to_the_first_step_that_reaches_it(diagnosis):
    store = TrajectoryStore.from_episodes(
        [
            trajectory([0.0] * 6, [0.0, 0.0, 1.0, 0.0, 1.0]),
            trajectory([0.0] * 3, [0.0, 0.0]),
            trajectory([0.0] * 3, [1.0, 0.0]),
        ]
    )
    assert diagnosis.steps_to_goal(store.data).tolist() == [3, 2, 1, 0, 0, 0, 0, 1, 0]


def test_experts_are_those_that_the_data_name_or_the_best_by_return(diagnosis):
    early, late, never = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
    episodes = [trajectory([0.0] * 3, rewards) for rewards in (late, never, early, *[never] * 17)]
    named = diagnosis.find_groups(TrajectoryStore.from_episodes(episodes, parts(random=2, expert=18)), 0.9)
    assert (named.names, named.expert, named.known) == (("random", "expert"), 1, True)
    assert named.of.tolist() == [0] * 2 + [1] * 18

    # a tenth of 20: both that reach their goal
    for meta in ({}, parts(medium=20)):
        best = diagnosis.find_groups(TrajectoryStore.from_episodes(episodes, meta), 0.9)
        assert (best.names, best.expert, best.known) == (("best", "others"), 0, False)
        assert (best.of == 0).nonzero().squeeze(-1).tolist() == [0, 2]
    # of ten one, the earlier one: its return is not discounted
    best = diagnosis.find_groups(TrajectoryStore.from_episodes(episodes[:10]), 0.9)
    assert (best.of == 0).nonzero().squeeze(-1).tolist() == [2]
    # a trajectory that never reaches its goal is not the best of anything
    none = diagnosis.find_groups(TrajectoryStore.from_episodes(episodes[3:]), 0.9)
    assert (none.of == 1).all()


def test_classes_of_rows_add_up_to_numbers_worked_by_hand(diagnosis):
    classes = {"behaviour": ["expert", "expert", "random", "random"], "at_goal": [False] * 4}
    advantage, weight = torch.tensor([1.0, 3.0, -1.0, 0.0]), torch.tensor([1.0, 3.0, 0.0, 4.0])
    expert, other = diagnosis.weight_classes(classes, advantage, weight, 4.0)
    assert (expert["behaviour"], other["behaviour"], expert["at_goal"]) == ("expert", "random", False)
    assert (expert["rows"], expert["advantage"], expert["advantage_std"], expert["positive"]) == (0.5, 2.0, 1.0, 1.0)
    # (1 + 3)^2 / (1 + 9) = 1.6 of 2 rows
    assert expert["effective"] == pytest.approx(0.8)
    assert other["effective"] == pytest.approx(0.5)
    assert (expert["weight"], expert["weight_share"], expert["clipped"]) == (2.0, 0.5, 0.0)
    assert (other["positive"], other["clipped"], other["advantage"]) == (0.0, 0.5, -0.5)
    assert expert["advantage_p95"] == pytest.approx(2.9)
    # an actor without any weight is told as one, not as a division by zero
    (nothing,) = diagnosis.weight_classes({"behaviour": ["random"] * 4}, advantage, torch.zeros(4), 4.0)
    assert (nothing["weight_share"], nothing["effective"]) == (0.0, 0.0)


# nothing is trained here, so nothing updates the target network
@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize(
    ("loss_class", "options"),
    [
        (SMORELoss, {"temperature": 5.0}),
        (SMORELoss, {"temperature": 50.0, "advantage_unit": "horizon", "gamma": 0.9}),
        (GCIQLLoss, {"temperature": 50.0, "advantage_unit": "horizon", "gamma": 0.8}),
        (GCSQLLoss, {}),
        (GCEQLLoss, {}),
    ],
)
def test_weights_of_rows_are_those_of_the_regression(diagnosis, loss_class, options):
    networks = make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=1))
    loss = loss_class(networks.actor, networks.score, networks.value, **options)
    batch = {"observation": torch.randn(50, 3), "action": torch.rand(50, 1), "desired_goal": torch.randn(50, 2)}
    batch = TensorDict({**batch, "q": TensorDict({}, [50])}, [50])
    weight = diagnosis.row_weights(loss, loss.advantage(batch))
    assert weight.std() > 1e-3
    # what the loss logs is the mean of what it weighs with
    _, metadata = loss.actor_loss(batch)
    torch.testing.assert_close(weight.mean(), metadata["awr_weight"])
    torch.testing.assert_close((weight >= loss.weight_clip).float().mean(), metadata["weight_clipped"])


def test_an_actor_without_weights_has_none(diagnosis):
    networks = make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=1))
    loss = SMORELoss(networks.actor, networks.score, networks.value, actor="score")
    assert diagnosis.row_weights(loss, torch.zeros(3)) is None


def test_score_along_trajectories_is_that_worked_by_hand(diagnosis):
    remaining = torch.tensor([1, 1, 2, 2])
    rows, numbers = diagnosis.along_trajectories(
        remaining, torch.tensor([4.0, 6.0, 2.0, 2.0]), torch.tensor([5.0, 5.0, 2.0, 2.0])
    )
    assert [(row["remaining"], row["rows"]) for row in rows] == [(1, 2), (2, 2)]
    assert (rows[0]["score_mean"], rows[0]["score_std"], rows[1]["value_mean"]) == (5.0, 1.0, 2.0)
    assert numbers["value_slope"] == pytest.approx(3.0)
    # variances 1 and 0, two rows each
    assert numbers["score_noise"] == pytest.approx(math.sqrt(0.5))
    assert numbers["value_rank_correlation"] == pytest.approx(1.0)
    # scores rank 2, 3, 0.5, 0.5 from 0, nearness 2.5, 2.5, 0.5, 0.5: 4 / sqrt(4.5 * 4)
    assert numbers["score_rank_correlation"] == pytest.approx(4 / math.sqrt(18))
    _, numbers = diagnosis.along_trajectories(torch.ones(2, dtype=torch.long), torch.rand(2), torch.rand(2))
    assert math.isnan(numbers["value_slope"])


def test_phases_tell_agreement_and_preference_worked_by_hand(diagnosis):
    action = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    policy = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    before, at_goal = diagnosis.phase_rows(torch.tensor([0, 0, 2]), action, policy, torch.tensor([2.0, 0.0, -1.0]))
    assert (before["phase"], before["rows"], at_goal["phase"]) == ("before", 2, "at_goal")
    assert (before["cosine"], at_goal["cosine"]) == (0.5, -1.0)
    # squared errors 0 and (1 + 1) / 2
    assert before["error"] == pytest.approx(math.sqrt(0.5))
    assert (before["preferred"], before["gap"], before["gap_std"], at_goal["preferred"]) == (0.5, 1.0, 1.0, 0.0)
    (without, _) = diagnosis.phase_rows(torch.tensor([0, 0, 2]), action, policy)
    assert "preferred" not in without
    assert "noise" not in without
    taken = diagnosis.phase_rows(torch.tensor([0, 0, 2]), action, policy, noise=torch.tensor([0.5, 1.0, 0.0]))
    assert [row["noise"] for row in taken] == [0.75, 0.0]


def test_only_a_likelihood_that_knows_noise_takes_actions_for_it(diagnosis):
    specs = goal_specs(observation_dim=3, goal_dim=2, action_dim=1)
    inputs = {"observation": torch.zeros(2, 3), "desired_goal": torch.zeros(2, 2)}
    batch = TensorDict({**inputs, "action": torch.tensor([[0.0], [1.0]])}, [2])
    for contamination in (0.0, 0.3):
        networks = make_networks(*specs, contamination=contamination, min_std=0.01)
        for name, parameter in networks.actor.named_parameters():
            torch.nn.init.constant_(parameter, -9.0 if "log_std" in name else 0.0)
        found = diagnosis.noise_shares(SMORELoss(networks.actor, networks.score, networks.value), batch)
        if contamination == 0.0:
            assert found is None
        else:
            # mean 0, deviation 0.01: the density of 0 is 39.9, that of noise 1/2
            own = 0.7 / (0.01 * math.sqrt(2 * math.pi))
            torch.testing.assert_close(found, torch.tensor([0.15 / (0.15 + own), 1.0]))


def test_inputs_are_told_by_column_in_standard_deviations(diagnosis):
    task = get_task("PointReach")
    column = torch.zeros(50, 2)
    column[0, 1] = 10.0
    data = TensorDict({"observation": column, "desired_goal": torch.zeros(50, 2)}, [50])
    data["next", "achieved_goal"] = torch.randn(50, 2)
    rows = diagnosis.input_rows(task, data)
    assert [row["column"] for row in rows] == [*task.observation_columns, *task.goal_columns]
    # mean 0.2, variance 100/50 - 0.04
    assert rows[1]["largest"] == pytest.approx(9.8 / math.sqrt(1.96))
    assert (rows[1]["beyond"], rows[0]["largest"]) == (0.02, 0.0)


@pytest.mark.parametrize(
    ("reached", "moved", "final", "outcome"),
    [
        ([False, True], True, 0.1, "reached"),
        ([True, True], False, 0.1, "reached"),
        ([False, False], False, 1.0, "never moved"),
        ([True, False], True, 2.0, "reached and left"),
        ([False, False], True, 2.0, "farther than at the start"),
        ([False, False], True, 0.5, "short of the goal"),
    ],
)
def test_an_episode_ends_in_one_way(diagnosis, reached, moved, final, outcome):
    assert diagnosis.outcome_of(reached, moved, 1.0, final) == outcome


TINY = ("task=PointReach", "anchors=uniform", "batch_size=8", "eval_episodes=1", "eval_interval=2", "rollout=false")
FEW = ("rows=500", "episodes=3")


def test_episodes_are_the_same_however_many_run_at_a_time(diagnosis, monkeypatch):
    made = []

    class Pool(EnvPool):
        def __init__(self, task, num_envs, **options):
            made.append(num_envs)
            super().__init__(task, num_envs, **options)

    def towards(observation):
        return np.clip(observation["desired_goal"] - observation["achieved_goal"], -1.0, 1.0)

    monkeypatch.setattr(diagnosis, "EnvPool", Pool)

    def run(seeds):
        return diagnosis.run_episodes(get_task("PointReach"), towards, seeds, action_noise=0.3, share=0.1)

    together, alone = run(range(70, 73)), [run(range(seed, seed + 1)) for seed in range(70, 73)]
    monkeypatch.setattr(diagnosis, "_MOST_ENVS", 2)
    assert run(range(70, 73)) == together
    assert together == tuple([row for one in alone for row in one[table]] for table in (0, 1))
    assert made == [3, 1, 1, 1, 2]


def trained(recipe, folder, *options):
    done = recipe("smore_offline.py", *TINY, *options, cwd=folder)
    assert done.status == 0, done.stderr
    return max((folder / "runs").iterdir())


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refusal(recipe, folder, *options):
    done = recipe("diagnose.py", *options, cwd=folder)
    assert (done.status, len(done.stderr.splitlines())) == (2, 1), done.stderr
    return done.stderr


def test_weights_on_few_rows_are_found_and_said_on_the_terminal_and_on_the_page(recipe, tmp_path):
    # advantages of a fresh network, some .1 apart, times 100: few rows outweigh all others, none at the clip
    options = ("temperature=100", "advantage_unit=score", "weight_clip=1e30", "her_ratio=0.8")
    options += ("num_trajectories=20", "steps=2", "seeds=2")
    run = trained(recipe, tmp_path, *options)
    done = recipe("diagnose.py", f"run=runs/{run.name}", "position=1", *FEW, cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "PointReach, smore, in_sample, update 2" in done.stdout
    effective = json.loads((run / "diagnosis_seed1" / "diagnosis.json").read_text())["numbers"]["effective"]
    assert effective < 0.2
    said = f"The weights leave {effective:.0%} of the rows to the regression"
    assert f"! {said}" in done.stdout
    assert "Try: weight_clip=1" in done.stdout
    out = run / "diagnosis_seed1"
    page = (out / "index.html").read_text()
    assert page.index(said) < page.index("<nav>")
    assert "at least 20% of the rows" in page
    weights = read(out / "weights.csv")
    for name in ("rows", "weight_share"):
        assert sum(float(row[name]) for row in weights) == pytest.approx(1.0, abs=1e-4)
    assert {row["behaviour"] for row in weights} == {"expert", "random"}
    assert {row["goal"] for row in weights} == {"hindsight", "stored"}
    assert len(read(out / "episodes.csv")) == 3
    assert len(read(out / "distances.csv")) == 3 * 51
    assert json.loads((out / "diagnosis.json").read_text())["about"]["seed"] == 1

    # that of another seed has a folder of its own
    done = recipe("diagnose.py", f"run=runs/{run.name}", *FEW, cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert sorted(path.name for path in run.glob("diagnosis*")) == ["diagnosis_seed0", "diagnosis_seed1"]
    found = [json.loads((run / f"diagnosis_seed{seed}" / "diagnosis.json").read_text()) for seed in (0, 1)]
    assert [each["about"]["seed"] for each in found] == [0, 1]
    assert found[1]["numbers"]["effective"] == effective != found[0]["numbers"]["effective"]
    assert (out / "index.html").read_text() == page

    for options, said in (
        ([], "give the run folder as run=runs/NAME"),
        (["run=runs"], "run=runs is no run folder"),
        ([f"run=runs/{run.name}", "position=2"], "position must be in [0, 1], got 2"),
        ([f"run=runs/{run.name}", "episodes=0"], "episodes must be at least 1 and at most 1,000,000, got 0"),
        ([f"run=runs/{run.name}", "moved=-1"], "moved must be at least 0 and at most"),
    ):
        assert said in refusal(recipe, tmp_path, *options)
    shutil.rmtree(tmp_path / "datasets")
    assert "the dataset of the run is gone: datasets/PointReach" in refusal(recipe, tmp_path, f"run=runs/{run.name}")
    assert not (tmp_path / "datasets").exists()
    shutil.rmtree(run / "checkpoint")
    assert "has not come to its first checkpoint" in refusal(recipe, tmp_path, f"run=runs/{run.name}")


@pytest.mark.parametrize("method", ["gc_iql", "gc_sql", "gofar", "crl", "wgcsl"])
def test_of_every_method_is_shown_what_applies(recipe, tmp_path, store_path, method):
    gamma = ["gamma=0.95"] if method != "crl" else []
    run = trained(recipe, tmp_path, f"method={method}", f"dataset={store_path}", "steps=2", *gamma)
    done = recipe("diagnose.py", f"run=runs/{run.name}", *FEW, cwd=tmp_path)
    assert done.status == 0, done.stderr
    out = run / "diagnosis"
    scored = method in ("gc_iql", "gc_sql")
    for name in ("weights", "quantiles"):
        assert (out / f"{name}.csv").exists() == scored
    assert all((out / f"{name}.png").exists() for name in ("phases", "inputs", "episodes"))
    said = f"Not shown: weights, score and preference: method={method} has no score and value of dataset actions."
    assert (said in done.stdout) == (not scored)
    numbers = json.loads((out / "diagnosis.json").read_text())["numbers"]
    # rewards of -1 and 0, over 1 - gamma
    assert (numbers.get("lower"), numbers.get("upper")) == ((pytest.approx(-20.0), 0.0) if scored else (None, None))


def test_a_run_whose_rows_were_never_all_in_memory_is_diagnosed_as_one_whose_were(recipe, tmp_path, store_path):
    (tmp_path / "rows").mkdir()
    found = []
    for own in ((), (f"mapped={tmp_path / 'rows'}", "resident=400")):
        run = trained(recipe, tmp_path, f"dataset={store_path}", "steps=2", *own)
        done = recipe("diagnose.py", f"run=runs/{run.name}", *FEW, cwd=tmp_path)
        assert done.status == 0, done.stderr
        found.append(json.loads((run / "diagnosis" / "diagnosis.json").read_text())["numbers"]["expert_rows"])
    # which rows are drawn does not depend on the networks
    assert found[0] == found[1] > 0


def test_best_trajectories_stand_in_for_experts_and_another_dataset_is_refused(recipe, tmp_path, store_path):
    store = TrajectoryStore.load(store_path)
    place = tmp_path / "unnamed"
    TrajectoryStore(store.data, {"task": "PointReach"}).save(place)
    run = trained(recipe, tmp_path, f"dataset={place}", "steps=2")
    moved = tmp_path / "moved"
    place.rename(moved)
    assert "unnamed" in refusal(recipe, tmp_path, f"run=runs/{run.name}")
    done = recipe("diagnose.py", f"run=runs/{run.name}", f"dataset={moved}", *FEW, cwd=tmp_path)
    assert done.status == 0, done.stderr
    page = (run / "diagnosis" / "index.html").read_text()
    assert "The data do not say which trajectories are an expert" in page
    assert {row["behaviour"] for row in read(run / "diagnosis" / "weights.csv")} == {"best", "others"}

    other = tmp_path / "other"
    store.select_trajectories(torch.arange(19)).save(other)
    assert "trained on another dataset" in refusal(recipe, tmp_path, f"run=runs/{run.name}", f"dataset={other}")
    assert (run / "diagnosis" / "index.html").read_text() == page
