"""The recipe that says where the weights of a regression go."""

from __future__ import annotations

import csv
import math
from types import SimpleNamespace

import pytest

from torchrl_smore.envs import collect, get_task


@pytest.fixture
def explain_weights(import_recipe):
    return import_recipe("explain_weights")


def test_shares_and_weights_are_those_of_the_advantages(explain_weights):
    task = get_task("PointReach")
    store = collect(task, expert_episodes=3, random_episodes=9, seed=0, progress=False)
    # advantage 2 away from the goal and -1 at it
    advantage = {False: 2.0, True: -1.0}

    def advantages(batch):
        at_goal = task.reached(batch["achieved_goal"], batch["desired_goal"])
        return at_goal.double() * (advantage[True] - advantage[False]) + advantage[False]

    loss = SimpleNamespace(advantage=advantages, temperature=1.5, weight_clip=10.0)
    groups = explain_weights.explain(loss, task, store, 0.8, 4000)
    assert {group["behaviour"] for group in groups} == {"expert", "random"}
    assert {(group["goal"], group["at_goal"]) for group in groups} >= {("hindsight", True), ("stored", False)}
    weight = {False: 10.0, True: math.exp(-1.5)}  # exp(3) is beyond the clip
    total = sum(group["rows"] * weight[group["at_goal"]] for group in groups)
    for group in groups:
        place = group["at_goal"]
        assert (group["advantage"], group["advantage_std"]) == (advantage[place], 0.0)
        assert group["weight"] == pytest.approx(weight[place], abs=1e-4)
        assert group["clipped"] == float(not place)
        assert group["weight_share"] == pytest.approx(group["rows"] * weight[place] / total, abs=2e-4)
    for name in ("rows", "weight_share"):
        assert sum(group[name] for group in groups) == pytest.approx(1.0, abs=1e-3)
    expert = sum(group["rows"] for group in groups if group["behaviour"] == "expert")
    stored = sum(group["rows"] for group in groups if group["goal"] == "stored")
    assert expert == pytest.approx(0.25, abs=1e-3)
    assert stored == pytest.approx(0.2, abs=0.03)


TINY = ("task=PointReach", "num_trajectories=20", "batch_size=8", "eval_episodes=1", "eval_interval=2", "rollout=false")


@pytest.mark.parametrize("method", ["smore", "gc_iql", "gofar"])
def test_a_run_is_explained_where_its_method_weighs_by_an_advantage(recipe, tmp_path, method):
    done = recipe("smore_offline.py", *TINY, f"method={method}", "steps=2", "seeds=2", cwd=tmp_path)
    assert done.status == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    done = recipe("explain_weights.py", f"run=runs/{run.name}", "position=1", "rows=500", cwd=tmp_path)
    if method == "gofar":
        assert (done.status, len(done.stderr.splitlines())) == (2, 1)
        assert "method=gofar does not weigh its regression" in done.stderr
        assert not (run / "weights.csv").exists()
        return
    assert done.status == 0, done.stderr
    assert f"PointReach, {method}, update 2: temperature 3" in done.stdout
    assert "Warning" not in done.stderr
    with (run / "weights.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["rows"]) for row in rows) == pytest.approx(1.0, abs=1e-3)
    if method != "smore":
        return
    for options, said in (
        ([], "give the run folder"),
        (["run=runs"], "run=runs is no run folder"),
        ([f"run=runs/{run.name}", "position=2"], "position must be in [0, 1], got 2"),
    ):
        done = recipe("explain_weights.py", *options, cwd=tmp_path)
        assert (done.status, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert said in done.stderr
