"""The weights that know the expert: their values by hand, and a run of a few updates."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensordict import TensorDict

from torchrl_smore.envs import collect, get_task
from torchrl_smore.envs.experts import Actor, ActorExpert, read_actor

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("bound_weights")


def test_the_expert_acts_as_in_the_environments(bench):
    actor = read_actor(Path(get_task("FetchPush").bundled_actors) / "expert.npz")
    rng = np.random.default_rng(0)
    observation, goal = rng.normal(1.0, 0.5, (20, 25)).astype(np.float32), rng.normal(1.0, 0.5, (20, 3))
    expected = ActorExpert(actor)({"observation": observation, "desired_goal": goal.astype(np.float32)})
    actions = bench.expert_actions(actor, torch.from_numpy(observation), torch.from_numpy(goal).float())
    torch.testing.assert_close(actions, torch.from_numpy(expected), atol=1e-4, rtol=0.0)


def test_a_row_weighs_by_its_distance_from_the_experts_action(bench):
    # the expert's action is tanh(0) = 0 everywhere
    actor = Actor(layers=((np.zeros((1, 2), np.float32), np.zeros(1, np.float32)),), goal_dim=1)
    batch = TensorDict(
        {"observation": torch.ones(2, 1), "desired_goal": torch.ones(2, 1), "action": torch.tensor([[0.0], [1.0]])}, [2]
    )
    batches = bench.ExpertWeighted(lambda: batch, actor, sharpness=float(np.log(3.0)))
    # exp(0) and exp(-ln 3): 1 and 1/3, of mean 2/3
    torch.testing.assert_close(batches()["priority_weight"], torch.tensor([1.5, 0.5]))
    # (1.5 + 0.5)^2 / (1.5^2 + 0.5^2) rows of two
    assert batches.shares == [pytest.approx(0.8)]
    torch.testing.assert_close(bench.ExpertWeighted(lambda: batch, actor, 0.0)()["priority_weight"], torch.ones(2))


def test_runs_are_kept_and_not_repeated(bench, monkeypatch, tmp_path, capsys):
    collect("FetchPush", expert_episodes=2, random_episodes=2, seed=0, workers=1, out=tmp_path / "data", progress=False)
    out = tmp_path / "out.csv"
    command = ["bound_weights.py", str(tmp_path / "data"), "--steps=2", "--episodes=2", f"--out={out}", "--seeds"]
    monkeypatch.setattr(sys, "argv", [*command, "4"])
    bench.main()
    first = list(csv.DictReader(out.open(newline="")))
    assert [(row["weights"], row["seed"], row["steps"]) for row in first] == [("none", "4", "2"), ("expert", "4", "2")]
    assert first[0]["effective_batch"] == "1.000"
    assert 0.0 < float(first[1]["effective_batch"]) < 1.0
    assert "exp(-3.0 d)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "4", "5"])
    bench.main()
    rows = list(csv.DictReader(out.open(newline="")))
    assert rows[:2] == first
    assert [row["seed"] for row in rows] == ["4", "4", "5", "5"]
    # what was found with other episodes, or on other data, is not this
    monkeypatch.setattr(sys, "argv", [*command, "4", "--episodes=1"])
    bench.main()
    rows = list(csv.DictReader(out.open(newline="")))
    assert [row["episodes"] for row in rows] == ["2"] * 4 + ["1"] * 2
    assert len({row["dataset"] for row in rows}) == 1


def test_its_constants_are_those_of_the_recipe(bench):
    configs = Path(__file__).parents[2] / "recipes" / "configs"
    preset, method = (
        yaml.safe_load((configs / name).read_text()) for name in ("preset/quick.yaml", "method/hindsight_bc.yaml")
    )
    assert (preset["batch_size"], preset["contamination"]) == (bench.BATCH_SIZE, bench.CONTAMINATION)
    assert (method["learning_rate"], method["her_ratio"]) == (bench.LEARNING_RATE, 1.0)


def test_a_task_without_a_network_expert_is_refused(bench, monkeypatch, tmp_path, capsys):
    data = tmp_path / "data"
    collect("PointReach", expert_episodes=2, random_episodes=2, seed=0, workers=1, out=data, progress=False)
    monkeypatch.setattr(sys, "argv", ["bound_weights.py", str(data)])
    with pytest.raises(SystemExit):
        bench.main()
    assert "expert is a network that sees goals, got PointReach" in capsys.readouterr().err
