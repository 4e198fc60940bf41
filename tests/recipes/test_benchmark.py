"""The benchmark, run as a user runs it, interrupted as users do not mean to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
import types
from pathlib import Path

import pytest

from torchrl_smore.data import TrajectoryStore, split_by_behaviour
from torchrl_smore.reports import read_curves, read_results

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmark.py"
TINY = (
    *("tasks=[PointReach]", "methods=[smore,gcsl]", "seeds=2", "batch_size=8", "num_trajectories=20"),
    *("eval_episodes=2", "eval_interval=4", "out=out"),
)
QUICK = (*TINY, "steps=12", "jobs=0")

#: Runs a recipe that says when it asks for compilation, and goes on without.
EAGER = """
import os, runpy, sys, torch
def compile(function=None, **options):
    print("asked to compile")
    return function if function is not None else compile
torch.compile = compile
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""

#: Runs a recipe that gives Ray's health check, which begins with seconds of imports, one second in all.
IMPATIENT = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import parts.benchmark_ray
parts.benchmark_ray._HEALTH_CHECK_S = 1.0
runpy.run_path(sys.argv[0], run_name="__main__")
"""


#: Runs a recipe as if it were of another commit.
OTHER_COMMIT = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import parts.shared
parts.shared.commit_of_library = lambda: "bbbbbbb"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def tables(cwd):
    return [(cwd / "out" / name).read_bytes() for name in ("results.csv", "curves.csv")]


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """Working directory and output of an uninterrupted benchmark without Ray."""
    cwd = tmp_path_factory.mktemp("benchmark")
    done = recipe("benchmark.py", *QUICK, cwd=cwd)
    assert done.status == 0, done.stderr
    return cwd, done


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_benchmark_leaves_results_curves_and_what_was_asked(finished):
    cwd, done = finished
    results = read_results(cwd / "out" / "results.csv")
    runs = {("SMORe", 0), ("SMORe", 1), ("GCSL", 0), ("GCSL", 1)}
    assert {(row.method, row.seed) for row in results} == runs
    assert {row.metric for row in results} == {
        *("discounted_return_0.98", "discounted_return_0.99", "return_over_max"),
        *("success_last", "success_any", "final_distance"),
    }
    assert len(results) == 4 * 6
    assert {(row.task, row.setting, row.steps, row.episodes) for row in results} == {
        ("PointReach", "expert=0.1", 12, 2)
    }
    curves = read_curves(cwd / "out" / "curves.csv")
    assert {(row.method, row.seed, row.steps) for row in curves} == {
        (*run, step) for run in runs for step in (4, 8, 12)
    }
    last = {row.key: row.value for row in curves if row.steps == 12}
    assert {row.key: row.value for row in results} == pytest.approx(last, rel=1e-6)
    grid = json.loads((cwd / "out" / "grid.json").read_text())
    assert [(cell["method"], cell["seeds"], cell["steps"]) for cell in grid["cells"]] == [
        ("SMORe", [0, 1], 12),
        ("GCSL", [0, 1], 12),
    ]
    assert {path.name for path in (cwd / "out" / "cells").iterdir()} == {cell["id"] for cell in grid["cells"]}
    assert "4 runs, 0 of them finished" in done.stdout
    assert "4 of 4 runs finished" in done.stdout
    assert "[4 of 4] " in done.stdout


def test_seeds_differ_and_methods_differ(finished):
    results = read_results(finished[0] / "out" / "results.csv")
    distances = [row.value for row in results if row.metric == "final_distance"]
    assert len(set(distances)) == 4


def test_compilation_and_precision_are_those_of_every_run(python, tmp_path):
    import yaml

    one = ("tasks=[PointReach]", "methods=[gcsl]", "steps=2", "num_trajectories=20", "batch_size=8", "eval_episodes=1")
    options = (*one, "seeds=1", "jobs=0", "precision=bf16", "compile=default", "out=out")
    # what a compiled run computes is another test's subject
    done = python("-c", EAGER, RECIPE, *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    (run,) = (tmp_path / "out" / "cells").glob("*/seed0/run/*/config.yaml")
    assert "asked to compile" in (run.parents[2] / "log.txt").read_text()
    own = yaml.safe_load(run.read_text())
    assert (own["precision"], own["compile"]) == ("bf16", "default")


def test_the_same_command_again_trains_nothing(recipe, copy):
    runs = files(copy / "out" / "cells")
    before = tables(copy)
    done = recipe("benchmark.py", *QUICK, cwd=copy)
    assert done.status == 0, done.stderr
    assert "4 runs, 4 of them finished" in done.stdout
    assert files(copy / "out" / "cells") == runs
    assert tables(copy) == before


def test_a_run_killed_at_any_point_goes_on_and_gives_the_same_tables(recipe, copy):
    before = tables(copy)
    first, second, third, fourth = sorted((copy / "out" / "cells").glob("*/seed*"))
    for folder in (first, second, third, fourth):
        (folder / "result.json").unlink()
    # at its second checkpoint; after its last update; before its first checkpoint; before its configuration
    (run,) = (first / "run").iterdir()
    shutil.rmtree(run / "checkpoint" / "step_000000012")
    (run / "summary.json").unlink()
    (run,) = (third / "run").iterdir()
    shutil.rmtree(run / "checkpoint")
    (run / "summary.json").unlink()
    (run,) = (fourth / "run").iterdir()
    shutil.rmtree(run)
    run.mkdir()
    # what a file manager leaves
    (run.parent / ".DS_Store").touch()
    (copy / "out" / "results.csv").unlink()

    done = recipe("benchmark.py", *QUICK, cwd=copy)
    assert done.status == 0, done.stderr
    assert tables(copy) == before


def test_every_row_says_which_commits_trained_its_run(python, copy):
    first = next(iter(read_results(copy / "out" / "results.csv"))).commit
    (actor,) = (copy / "out" / "cells").glob("*gcsl*")
    (smore,) = (copy / "out" / "cells").glob("*smore*")
    # one goes on from a checkpoint, one begins anew, one has only its result left to write, one is finished
    for folder in (smore / "seed0", actor / "seed0", actor / "seed1"):
        (folder / "result.json").unlink()
    shutil.rmtree(next(smore.glob("seed0/run/*/checkpoint/step_000000012")))
    shutil.rmtree(next(actor.glob("seed0/run/*/checkpoint")))
    for folder in (smore / "seed0", actor / "seed0"):
        next(folder.glob("run/*/summary.json")).unlink()
    done = python("-c", OTHER_COMMIT, RECIPE, *QUICK, cwd=copy)
    assert done.status == 0, done.stderr
    known = first or "unknown"
    found = {(row.method, row.seed): row.commit for row in read_results(copy / "out" / "results.csv")}
    assert found == {
        **{("SMORe", 0): f"{known}+bbbbbbb", ("SMORe", 1): first},
        **{("GCSL", 0): "bbbbbbb", ("GCSL", 1): first},
    }
    curves = {(row.method, row.seed): row.commit for row in read_curves(copy / "out" / "curves.csv")}
    assert curves == found
    # a policy has the commit that it was begun at
    for folder, commit in ((smore / "seed0", first), (actor / "seed0", "bbbbbbb"), (actor / "seed1", first)):
        (about,) = folder.glob("run/*/policy.json")
        assert json.loads(about.read_text())["commit"] == commit


def test_a_run_killed_while_its_curves_were_drawn_has_them_in_the_end(recipe, copy):
    before = tables(copy)
    (run,) = (min((copy / "out" / "cells").glob("*/seed*")) / "run").iterdir()
    kept = sorted(path.name for path in run.iterdir())
    (run.parents[1] / "result.json").unlink()
    # of a process that cannot be: the largest number of one has seven digits
    (run / "curves.png").rename(run / ".curves.png.99999999.partial")

    done = recipe("benchmark.py", *QUICK, cwd=copy)
    assert done.status == 0, done.stderr
    assert sorted(path.name for path in run.iterdir()) == kept
    assert tables(copy) == before


def test_more_seeds_are_added_and_fewer_lose_nothing(recipe, copy):
    runs = files(copy / "out" / "cells")
    more = [option for option in QUICK if not option.startswith("seeds=")]
    done = recipe("benchmark.py", *more, "seeds=3", "methods=[gcsl]", cwd=copy)
    assert done.status == 0, done.stderr
    assert {path: time for path, time in files(copy / "out" / "cells").items() if path in runs} == runs
    found = {(row.method, row.seed) for row in read_results(copy / "out" / "results.csv")}
    assert found == {("SMORe", 0), ("SMORe", 1), ("GCSL", 0), ("GCSL", 1), ("GCSL", 2)}


def test_seeds_that_are_there_are_not_trained_again_in_other_groups(recipe, copy):
    runs, before = files(copy / "out" / "cells"), tables(copy)
    done = recipe("benchmark.py", *QUICK, "seeds_together=2", cwd=copy)
    assert done.status == 0, done.stderr
    assert "4 runs, 4 of them finished" in done.stdout
    assert files(copy / "out" / "cells") == runs
    assert tables(copy) == before
    more = [option for option in QUICK if not option.startswith(("seeds=", "methods="))]
    for seeds, folders in ((4, ["seed2-3"]), (5, ["seed2-3", "seed4"])):
        done = recipe("benchmark.py", *more, "methods=[gcsl]", f"seeds={seeds}", "seeds_together=2", cwd=copy)
        assert done.status == 0, done.stderr
        (cell,) = (copy / "out" / "cells").glob("*gcsl*")
        assert sorted(path.name for path in cell.iterdir()) == ["seed0", "seed1", *folders]
    assert {path: time for path, time in files(copy / "out" / "cells").items() if path in runs} == runs


def test_the_seeds_of_a_cell_are_grouped_around_the_runs_that_are_there(import_recipe, tmp_path):
    planning, jobs = import_recipe("parts.benchmark_plan"), import_recipe("parts.benchmark_jobs")
    sizes = {"steps": 4, "batch_size": 8, "num_trajectories": 20, "eval_episodes": 1}
    plan = planning.Plan((planning.GridCell("PointReach", "gcsl", "default"),))

    def groups(seeds, together, first=0, taken=None):
        config = planning.Config(
            preset="quick", device="cpu", seeds=seeds, seeds_together=together, first_seed=first, **sizes
        )
        return [job.seeds for job in planning.make_jobs(config, plan, tmp_path, taken=taken)]

    (job,) = planning.make_jobs(planning.Config(preset="quick", seeds=1, **sizes), plan, tmp_path)
    cell = job.cell_folder
    assert groups(5, 2) == [(0, 1), (2, 3), (4,)]
    # a run counts on from its first seed
    assert groups(4, 3, taken={cell: {1}}) == [(0,), (2, 3)]

    # one that has no checkpoint leaves nothing behind; one that has goes on as it was begun
    (cell / "seed0-4" / "run" / "x" / "checkpoint").mkdir(parents=True)
    assert groups(5, 2) == [(0, 1), (2, 3), (4,)]
    (cell / "seed1-2" / "run" / "x" / "checkpoint" / "step_1").mkdir(parents=True)
    assert groups(5, 2) == [(0,), (1, 2), (3, 4)]
    assert groups(1, 1, first=2) == [(1, 2)]
    assert groups(1, 1) == [(0,)]

    # unless its seeds have been finished by others since
    jobs.keep_result(cell / "seed2-3", [], [])
    assert groups(5, 2) == [(0, 1), (2, 3), (4,)]
    jobs.keep_result(cell / "seed3", [], [])
    with pytest.raises(ValueError, match=r"seed3 and seed2-3 beside it both hold seed 3: remove one of them"):
        groups(1, 1)


def test_a_run_that_fails_is_told_and_the_others_are_kept(recipe, copy):
    broken = next((copy / "out" / "cells").glob("*gcsl*/seed1"))
    (broken / "result.json").unlink()
    (run,) = (broken / "run").iterdir()
    (run / "summary.json").unlink()
    for state in run.glob("checkpoint/*/state.pt"):
        state.write_bytes(b"torn")
    done = recipe("benchmark.py", *QUICK, cwd=copy)
    assert done.status == 2
    assert "PointReach, GCSL, expert=0.1, seed 1: CheckpointError" in done.stderr
    assert "1 of 4 runs failed" in done.stderr.splitlines()[-1]
    assert len({row.key[:4] for row in read_results(copy / "out" / "results.csv")}) == 3


def test_a_dataset_of_ones_own_is_what_every_run_learns_from(recipe, store_path, tmp_path):
    sizes = ("steps=4", "batch_size=8", "eval_episodes=2", "eval_interval=2", "jobs=0", "out=out")
    options = ("tasks=[PointReach]", "methods=[smore,gcsl]", "seeds=1", *sizes)
    mine = tmp_path / "mine"
    shutil.copytree(store_path, mine)
    done = recipe("benchmark.py", *options, "dataset=mine", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert not (tmp_path / "datasets").exists()
    rows = read_results(tmp_path / "out" / "results.csv")
    assert {(row.task, row.method, row.setting) for row in rows} == {
        *(("PointReach", method, "data=mine") for method in ("SMORe", "GCSL")),
    }
    store = TrajectoryStore.load(store_path)
    checkpoints = [*(tmp_path / "out").glob("cells/*/seed0/run/*/checkpoint/step_*/meta.json")]
    assert checkpoints
    assert all(f'"dataset_sha256": "{store.sha256}"' in path.read_text() for path in checkpoints)
    grid = json.loads((tmp_path / "out" / "grid.json").read_text())
    assert [cell["data"] for cell in grid["cells"]] == [
        {"dataset": str(mine), "dataset_format": "store", "sha256": store.sha256}
    ] * 2
    parts = grid["datasets"][grid["cells"][0]["dataset"]]
    assert [(part["behaviour"], part["num_trajectories"]) for part in parts] == [("expert", 4), ("random", 16)]

    # it was moved, under its name, while one run had not ended
    before = tables(tmp_path)
    (first,) = (tmp_path / "out").glob("cells/*smore*/seed0")
    (run,) = (first / "run").iterdir()
    shutil.rmtree(run / "checkpoint" / "step_000000004")
    for file in (run / "summary.json", first / "result.json"):
        file.unlink()
    (tmp_path / "there").mkdir()
    mine.rename(tmp_path / "there" / "mine")
    again = recipe("benchmark.py", *options, "dataset=there/mine", cwd=tmp_path)
    assert again.status == 0, again.stderr
    assert "2 runs, 1 of them finished" in again.stdout
    assert [line.split()[-1] for line in (first / "starts.txt").read_text().splitlines()] == ["anew", "resumed"]
    assert tables(tmp_path) == before

    # another one of that name is not mixed with it
    split_by_behaviour(store)["random"].save(mine)
    before = files(tmp_path)
    refused = recipe("benchmark.py", *options, "dataset=mine", cwd=tmp_path)
    assert_refused(refused, tmp_path, before, "PointReach_", "or another dataset", "another out=")

    # report.py has a line of its own for it, and none of the paper's
    done = recipe("report.py", "benchmark=out", cwd=tmp_path)
    assert done.status == 0, done.stderr
    table = (tmp_path / "out" / "report" / "tables" / "table_own_data.md").read_text()
    assert "| PointReach, data=mine | ours |" in table
    assert "20 trajectories" in table


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "nowhere"}, r"^dataset=nowhere: nowhere does not exist; expected a trajectory store"),
        ({"dataset": "nowhere", "dataset_format": "d4rl"}, r"^dataset=nowhere: No such file"),
        ({"dataset": "{store}", "dataset_format": "d4r"}, r"unknown dataset_format 'd4r': .* Did you mean d4rl\?"),
        ({"dataset": "{store}", "tasks": ["PointReach", "PointRooms"]}, "of one task, .* PointReach, PointRooms"),
        ({"dataset": "{store}", "num_trajectories": 20}, "num_trajectories: of no use with dataset="),
        ({"dataset": "{store}", "data_seed": 1}, "data_seed: of no use with dataset="),
        ({"dataset": "{store}", "expert_policy": ["a"]}, "expert_policy: of no use with dataset="),
        ({"dataset": "{store}", "tasks": ["FetchReach"], "table": "1"}, "paper's tables and figures are of data that"),
        ({"dataset": "{store}", "settings": ["mix=m-e"]}, "no dataset of this composition"),
        ({"settings": ["data=x"]}, "the dataset is no part of a setting, give dataset="),
        ({"clip_actions": True}, "clip_actions: of no use without dataset="),
        ({"dataset": "{store}", "goal_columns": None, "desired_goal": (1.0, 2.0)}, "desired_goal needs goal_columns"),
    ],
    ids=str,
)
def test_a_dataset_that_cannot_be_meant_is_refused_before_anything_is_run(
    import_recipe, monkeypatch, store_path, tmp_path, options, said
):
    planning = import_recipe("parts.benchmark_plan")
    monkeypatch.chdir(tmp_path)
    given = {"tasks": ["PointReach"], "methods": ["gcsl"], "seeds": 1, **options}
    if "dataset" in given:
        given["dataset"] = given["dataset"].format(store=store_path)
    with pytest.raises(ValueError, match=said):
        planning.read_plan(planning.Config(**given))
    assert not list(tmp_path.iterdir())


def test_the_smallest_preset_reads_a_dataset_as_it_is(import_recipe, store_path):
    planning = import_recipe("parts.benchmark_plan")
    config = planning.Config(tasks=["PointReach"], methods=["gcsl"], preset="smoke", dataset=str(store_path))
    *_, (stage,) = planning.read_plan(config)
    assert {(job.options["steps"], job.options["dataset"]) for job in stage.jobs} == {(20, str(store_path))}


def assert_refused(done, cwd, before, *said):
    assert done.status == 2, done.stdout + done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert all(text in errors[0] for text in said), errors[0]
    assert files(cwd) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["nothing to run", "table="]),
        (["preset=smok"], ["'smok'", "Did you mean smoke?"]),
        (["tasks=[PointReech]"], ["'PointReech'", "Did you mean 'PointReach'?"]),
        (["tasks=[PointReach]", "methods=[GC-IQK]"], ["'GC-IQK'", "Did you mean gc_iql?"]),
        (["tasks=[PointReach]", "settings=[no_hre]"], ["no_hre", "Did you mean no_her?"]),
        (["tasks=[PointReach]", "settings=['beta=2']"], ["beta", "2"]),
        (["table=3"], ["table", "'3'"]),
        (["figure=1"], ["figure=1"]),
        (["table=1", "tasks=[PointReach]"], ["no cell"]),
        (["tasks=[PointReach]", "seeds=0"], ["seeds", "at least 1"]),
        (["tasks=[PointReach]", "seeds=99999999999"], ["seeds", "at most 1,000"]),
        (["tasks=[PointReach]", "num_trajectories=99999999999999"], ["num_trajectories", "at most 10,000,000"]),
        (["tasks=[PointReach]", "settings=['run_root=/tmp/x']"], ["run_root", "no part of a setting"]),
        (["tasks=[PointReach]", "settings=['data_dir=/tmp/x']"], ["data_dir", "no part of a setting"]),
        (["tasks=[PointReach]", "precision=fp16"], ["precision", "'fp16'"]),
        (["tasks=[PointReach]", "compile=on"], ["compile", "'on'"]),
        (["tasks=[PointReach]", "address=nowhere", "jobs=2"], ["jobs="]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_bad_request_is_refused_in_one_line_before_anything_is_written(recipe, tmp_path, options, said):
    assert_refused(recipe("benchmark.py", *options, cwd=tmp_path), tmp_path, {}, *said)


def test_a_folder_with_other_results_is_refused_and_left_alone(recipe, copy):
    before = files(copy)
    done = recipe("benchmark.py", *[o for o in QUICK if not o.startswith("steps=")], "steps=8", cwd=copy)
    assert_refused(done, copy, before, "other steps or options", "(steps 12, now 8", "another out=")
    table = copy / "out" / "results.csv"
    table.write_text(table.read_text().replace("\n1,", "\n2,"))
    before = files(copy)
    assert_refused(recipe("benchmark.py", *QUICK, cwd=copy), copy, before, "schema 1", "'2'", "remove it")


def test_two_drivers_in_one_folder_are_refused(recipe, copy):
    with (copy / "out" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = files(copy)
        assert_refused(recipe("benchmark.py", *QUICK, cwd=copy), copy, before, "benchmark folder", "in use by")
    assert recipe("benchmark.py", *QUICK, cwd=copy).status == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1"])
def test_a_cluster_that_cannot_be_reached_is_told_within_seconds_and_loses_nothing(recipe, copy, address):
    (next((copy / "out" / "cells").glob("*/seed0")) / "result.json").unlink()
    options = [option for option in QUICK if option != "jobs=0"]
    started = time.monotonic()
    done = recipe("benchmark.py", *options, f"address={address}", cwd=copy)
    # 10 s of patience and the imports; Ray itself would take minutes
    assert time.monotonic() - started < 60.0
    assert done.status == 2
    assert address in done.stderr.splitlines()[-1]
    assert len({row.key[:4] for row in read_results(copy / "out" / "results.csv")}) == 3


def test_a_server_that_is_no_cluster_is_told_apart(python, copy):
    (next((copy / "out" / "cells").glob("*/seed0")) / "result.json").unlink()
    options = [option for option in QUICK if option != "jobs=0"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = python("-c", IMPATIENT, RECIPE, *options, f"address={address}", cwd=copy)
    assert done.status == 2
    assert "no Ray cluster" in done.stderr.splitlines()[-1]


def wait_for(condition, seconds=240.0):  # a new worker imports for half a minute on a busy machine
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_driver_lose_nothing_and_count_nothing_twice(recipe, tmp_path):
    """One Ray session; what it leaves is finished without Ray, and equals a benchmark that nobody disturbed."""
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    options = (*TINY, "methods=[smore]", "steps=200", "eval_interval=40")
    options = [option for option in options if option not in ("methods=[smore,gcsl]", "eval_interval=4")]
    for cwd in (calm, rough):
        cwd.mkdir()
    done = recipe("benchmark.py", *options, "jobs=0", cwd=calm)
    assert done.status == 0, done.stderr

    def starts():
        return [(path.parent, path.read_text().splitlines()) for path in rough.glob("out/cells/*/seed*/starts.txt")]

    def has_checkpoint(folder):
        return any(folder.glob("run/*/checkpoint/step_*/meta.json")) and not (folder / "result.json").exists()

    with recipe.started("benchmark.py", *options, "jobs=1", cwd=rough) as driver:
        folder, (line,) = wait_for(lambda: next((s for s in starts() if has_checkpoint(s[0])), None))
        os.kill(int(line.split()[1]), signal.SIGKILL)
        wait_for(lambda: len(dict(starts())[folder]) == 2)
        os.kill(driver.pid, signal.SIGKILL)
        # Ray ends the orphan within a second or two, in which a fast machine finishes the run
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(dict(starts())[folder][1].split()[1]), signal.SIGKILL)
        assert driver.wait(60).status == -signal.SIGKILL
    done = recipe("benchmark.py", *options, "jobs=0", cwd=rough)
    assert done.status == 0, done.stderr
    assert tables(rough) == tables(calm)
    lines = dict(starts())[folder]
    assert len({line.split()[0] for line in lines}) == 2, "two drivers began it"
    assert len(lines) == 3, "and the first one twice"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpu_share": float("nan")}, r"gpu_share must be a finite number from 0, got nan\.$"),
        ({"gpu_share": float("inf")}, r"gpu_share must be a finite number from 0, got inf\.$"),
        ({"gpu_share": -1.0}, r"gpu_share must be a finite number from 0, got -1\.0\.$"),
        ({"gpu_share": 0.5, "jobs": 0}, r"gpu_share=0\.5: of no use with jobs=0"),
    ],
    ids=str,
)
def test_a_share_of_a_gpu_that_cannot_be_is_refused(import_recipe, options, said):
    planning = import_recipe("parts.benchmark_plan")
    with pytest.raises(ValueError, match=said):
        planning.check_options(planning.Config(tasks=["PointReach"], **options))


def test_a_share_that_no_machine_of_the_cluster_has_ends_with_both_numbers(import_recipe, monkeypatch):
    on_ray, calls = import_recipe("parts.benchmark_ray"), []
    ray, exceptions = types.ModuleType("ray"), types.ModuleType("ray.exceptions")
    exceptions.RayError = exceptions.RayTaskError = RuntimeError
    # two machines of one GPU each, and one of eight that has left
    resources = [(True, {"CPU": 4.0, "GPU": 1.0}), (True, {"CPU": 4.0, "GPU": 1.0}), (False, {"GPU": 8.0})]
    ray.nodes = lambda: [{"Alive": alive, "Resources": own} for alive, own in resources]
    ray.remote = lambda function: types.SimpleNamespace(
        options=lambda **options: types.SimpleNamespace(remote=lambda job: calls.append((job, options["num_gpus"])))
    )
    ray.wait = lambda pending: (pending, [])
    ray.get, ray.shutdown = lambda reference: "done", lambda: calls.append("shut down")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    monkeypatch.setattr(on_ray, "_connect", lambda *_: None)
    with pytest.raises(ValueError, match="gpu_share=2: expected at most the GPUs of one machine, and Ray finds 1 of"):
        list(on_ray.run_on_ray(["a job"], address="auto", num_jobs=0, gpu_share=2.0))
    assert calls == ["shut down"]
    assert list(on_ray.run_on_ray(["a job"], address="auto", num_jobs=0, gpu_share=1.0)) == [(0, "done")]
    resources.clear()
    with pytest.raises(ValueError, match=r"gpu_share=0\.5: .* Ray finds 0 of them"):
        list(on_ray.run_on_ray(["a job"], address="auto", num_jobs=0, gpu_share=0.5))


def test_runs_on_a_cluster_have_their_device_there(import_recipe, monkeypatch, tmp_path):
    planning = import_recipe("parts.benchmark_plan")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning.torch.cuda, "is_available", lambda: False)
    asked = {"tasks": ["PointReach"], "methods": ["gcsl"], "seeds": 2, "gpu_share": 1.0, "device": "cuda"}
    *_, (stage,) = planning.read_plan(planning.Config(**asked, address="host:6379"))
    # all seeds of a cell in one run, as on any GPU
    assert [(job.options["device"], job.seeds) for job in stage.jobs] == [("cuda", (0, 1))]
    # nor need they be where one only looks at what is done
    assert planning.read_plan(planning.Config(**asked, status=True))[-1][0].jobs[0].options["device"] == "cuda"
    with pytest.raises(RuntimeError, match="device=cuda was asked for, but this PyTorch"):
        planning.read_plan(planning.Config(**asked))
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        planning.read_plan(planning.Config(**{**asked, "device": "gpu"}, address="host:6379"))


def test_the_next_command_names_this_benchmark(import_recipe, capsys, tmp_path):
    benchmark = import_recipe("benchmark")
    benchmark.summarise(tmp_path / "a b", [], {}, {}, 1.0)
    assert f"next: python recipes/report.py 'benchmark={tmp_path}/a b'\n" in capsys.readouterr().out
