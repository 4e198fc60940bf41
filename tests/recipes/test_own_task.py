"""The example of docs/howto/task.md: a task of one's own through the recipes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from torchrl_smore import TrajectoryStore, load_policy
from torchrl_smore.reports import read_results

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "task.md"
TASK = "task=my_module:MyTask"
TINY = ("steps=3", "batch_size=8", "eval_interval=3", "eval_episodes=2", "threads=1", "device=cpu")


@pytest.fixture(scope="module")
def cwd(recipe, tmp_path_factory):
    """A working directory with the module of the page and data of its expert."""
    folder = tmp_path_factory.mktemp("own")
    (code,) = re.findall(r"```python\n(# my_module.py.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "my_module.py").write_text(code)
    own = code.replace("MyTask", "Discounted").replace("horizon=150,", "horizon=150, gammas=(0.9, 0.95),")
    (folder / "discounted.py").write_text(own)
    options = ("num_trajectories=20", "expert_fraction=0.5", "workers=2", "out=data")
    done = recipe("collect_dataset.py", TASK, *options, cwd=folder)
    assert done.status == 0, done.stderr
    return folder


def test_the_expert_of_the_page_does_what_random_actions_do_not(cwd):
    store = TrajectoryStore.load(cwd / "data")
    expert, random = store.meta["composition"]
    assert (expert["behaviour"], random["behaviour"]) == ("expert", "random")
    reached = store.data["next", "reward"].reshape(20, 150).amax(1)
    assert reached[:10].mean() > 0.5 > reached[10:].mean()
    assert store.meta["horizon"] == 150
    assert float(store.data["action"].abs().max()) <= 1.0


def test_a_task_of_ones_own_is_trained_resumed_evaluated_and_exported(recipe, cwd):
    done = recipe("smore_offline.py", TASK, "dataset=data", *TINY, cwd=cwd)
    assert done.status == 0, done.stderr
    (run,) = (cwd / "runs").iterdir()
    assert ":" not in run.name
    assert "no rollout.gif" in done.stdout  # it is no MuJoCo simulation
    assert recipe("smore_offline.py", f"resume=runs/{run.name}", cwd=cwd).status == 0
    done = recipe("evaluate.py", f"run=runs/{run.name}", "episodes=3", "workers=2", f"out={cwd / 'found'}", cwd=cwd)
    assert done.status == 0, done.stderr
    assert json.loads((cwd / "found" / "evaluation.json").read_text())["task"] == "MyTask"
    done = recipe("export_dataset.py", TASK, "dataset=data", "format=wgcsl", cwd=cwd)
    assert done.status == 0, done.stderr
    # loading asks for no task
    assert load_policy(run).record.task == "my_module:MyTask"


def test_a_benchmark_takes_a_task_of_ones_own_with_data_of_ones_own(recipe, cwd):
    options = ("methods=[gcsl]", "seeds=1", "steps=3", "batch_size=8", "eval_episodes=2", "jobs=0")
    done = recipe("benchmark.py", f"tasks=[{TASK[5:]}]", "dataset=data", *options, "out=of_data", cwd=cwd)
    assert done.status == 0, done.stderr
    rows = read_results(cwd / "of_data" / "results.csv")
    assert {(row.task, row.setting, row.steps) for row in rows} == {("my_module:MyTask", "data=data", 3)}
    grid = json.loads((cwd / "of_data" / "grid.json").read_text())
    ((name, parts),) = grid["datasets"].items()
    assert grid["cells"][0]["dataset"] == name
    # what collect_dataset.py has told of them
    told = TrajectoryStore.load(cwd / "data").meta["composition"]
    for key in ("behaviour", "num_trajectories"):
        assert [part[key] for part in parts] == [part[key] for part in told]
    for key in ("discounted_return", "return_over_max"):
        assert [part[key] for part in parts] == pytest.approx([part[key] for part in told], rel=1e-5)


def test_a_benchmark_collects_for_a_task_of_ones_own_and_keeps_the_returns_at_its_discounts(recipe, cwd):
    options = ("methods=[gcsl]", "seeds=1", "steps=3", "batch_size=8", "eval_episodes=2", "num_trajectories=20")
    done = recipe("benchmark.py", "tasks=[discounted:Discounted]", *options, "jobs=0", "out=collected", cwd=cwd)
    assert done.status == 0, done.stderr
    assert "return at 0.95 " in done.stdout
    rows = read_results(cwd / "collected" / "results.csv")
    assert {(row.task, row.setting) for row in rows} == {("discounted:Discounted", "expert=0.1")}
    returns = {row.metric for row in rows if row.metric.startswith("discounted_return")}
    assert returns == {"discounted_return_0.9", "discounted_return_0.95"}
    done = recipe("report.py", "benchmark=collected", "out=report", cwd=cwd)
    assert done.status == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smore_offline.py", ("task=my_modul:MyTask",), "there is no module 'my_modul'"),
        ("smore_offline.py", ("task=my_module:MyTsk",), "unknown task of my_module 'MyTsk'"),
        ("smore_offline.py", (TASK, "dataset={store}"), "does not fit the task 'MyTask'"),
        ("train_expert.py", (TASK,), "has a scripted expert; this recipe trains"),
        ("evaluate.py", ("run=none", TASK), "none is no folder"),
    ],
)
def test_a_task_that_is_not_there_is_refused_in_one_line(recipe, cwd, store_path, name, options, message):
    done = recipe(name, *(text.format(store=store_path) for text in options), cwd=cwd)
    assert (done.status, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr


CHANGED = """
import os

import numpy as np

from torchrl_smore.envs import register_task


def expert(seen):
    return np.full((len(seen["observation"]), 1), 0.5, np.float32)


def make_expert():
    return expert


OPTIONS = {"threshold": 0.3, "horizon": 5, "goal_columns": [0], "goals": ([-1.0], [0.4])}
MyTask = register_task("MyTask", "MountainCarContinuous-v0", make_expert=make_expert, **{**OPTIONS, **{}})
"""


FEW = (TASK, "num_trajectories=4", "expert_fraction=0.5", "rollout=false")


@pytest.fixture(scope="module")
def collected(recipe, tmp_path_factory):
    """A working directory with a module of a task, and with data that a run has collected for it."""
    folder = tmp_path_factory.mktemp("changed")
    (folder / "my_module.py").write_text(CHANGED)
    done = recipe("smore_offline.py", *FEW, *TINY, cwd=folder)
    assert done.status == 0, done.stderr
    assert "was collected" not in done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('{"threshold": 0.5}', "when MyTask had threshold 0.3, it now has 0.5: delete it, or pass it as dataset="),
        (
            '{"horizon": 7, "threshold": 0.2}',
            "when MyTask had horizon 5 and threshold 0.3, it now has 7 and 0.2: delete",
        ),
        (
            '{"goals": ([-0.5], [0.4])}',
            "when MyTask had goal_range [[-1.0], [0.4]], it now has [[-0.5], [0.4]]: delete",
        ),
        (
            '{"goal_columns": [1]}',
            "when MyTask had goal_columns ['observation 0'], it now has ['observation 1']: delete",
        ),
        ("{}", None),
    ],
)
def test_a_dataset_of_a_task_that_has_changed_is_not_taken_for_its_own(recipe, collected, tmp_path, change, message):
    cwd = tmp_path / "cwd"
    shutil.copytree(collected, cwd)
    (out,) = (cwd / "datasets").iterdir()
    (cwd / "my_module.py").write_text(CHANGED.replace("**{}", f"**{change}").replace("0.5, np", "-0.5, np"))
    done = recipe("smore_offline.py", *FEW, *TINY, cwd=cwd)
    said = f"datasets/{out.name} was collected "
    if message is None:
        assert done.status == 0, done.stderr
        assert f"{said}with other code of MyTask" in done.stdout + done.stderr
        return
    assert (done.status, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert said + message in done.stderr
    given = (TASK, f"dataset={out}", "rollout=false")
    assert recipe("smore_offline.py", *given, *TINY, cwd=cwd).status == 0
