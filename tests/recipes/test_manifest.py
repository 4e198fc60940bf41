"""The manifest of a benchmark: run in stages, gone on with, looked at."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from torchrl_smore.data import TrajectoryStore, split_by_behaviour
from torchrl_smore.reports import Result, read_results, write_curves, write_results
from torchrl_smore.trainers import locked

ROOT = Path(__file__).parents[2]
TINY = {
    "out": "out",
    "options": {
        **{"preset": "quick", "steps": 4, "batch_size": 8, "num_trajectories": 20},
        **{"eval_episodes": 1, "eval_interval": 4},
    },
    "tasks": {"PointRooms": {"steps": 6}},
    "differs": {"PointReach": "a point"},
    "stages": [
        {"name": "first", "tasks": ["PointReach"], "methods": ["gcsl"], "seeds": 1, "first_seed": 100},
        {"name": "more", "tasks": ["PointReach", "PointRooms"], "methods": ["gcsl"], "seeds": 2, "first_seed": 100},
    ],
}


@pytest.fixture
def benchmark(import_recipe):
    return import_recipe("benchmark")


@pytest.fixture
def planning(import_recipe):
    return import_recipe("parts.benchmark_plan")


@pytest.fixture
def write(tmp_path):
    """Writes a manifest that differs from :data:`TINY` and returns its path."""

    def make(**changes):
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump({**TINY, **changes}))
        return str(path)

    return make


def test_stages_are_run_in_their_order_gone_on_with_and_looked_at(recipe, write, tmp_path):
    options = (f"manifest={write()}", "jobs=0")
    before = recipe("benchmark.py", *options, "status", cwd=tmp_path)
    assert before.status == 0, before.stderr
    assert "0 of 4 runs done" in before.stdout
    assert "left: nobody knows how long yet" in before.stdout
    assert not (tmp_path / "out").exists()
    done = recipe("benchmark.py", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith(("stage", "["))]
    assert [line.split(":")[0] for line in told] == [
        *("stage first", "[1 of 1] PointReach, GCSL, expert=0.1, seed 100"),
        *("stage more", "[1 of 3] PointRooms, GCSL, expert=0.1, seed 100"),
        *("[2 of 3] PointReach, GCSL, expert=0.1, seed 101", "[3 of 3] PointRooms, GCSL, expert=0.1, seed 101"),
    ]
    rows = read_results(tmp_path / "out" / "results.csv")
    assert {(row.task, row.seed, row.steps) for row in rows} == {
        *(("PointReach", seed, 4) for seed in (100, 101)),
        *(("PointRooms", seed, 6) for seed in (100, 101)),
    }
    grid = json.loads((tmp_path / "out" / "grid.json").read_text())
    assert [
        (cell["task"], cell["steps"], cell["batch_size"], cell["num_trajectories"], cell["seeds"])
        for cell in grid["cells"]
    ] == [("PointReach", 4, 8, 20, [100, 101]), ("PointRooms", 6, 8, 20, [100, 101])]
    assert grid["differs"] == {"PointReach": "a point"}
    for cell in grid["cells"]:
        (place,) = tmp_path.rglob(cell["dataset"])
        store = TrajectoryStore.load(place)
        parts, told = split_by_behaviour(store), grid["datasets"][cell["dataset"]]
        assert [part["behaviour"] for part in told] == list(parts) == ["expert", "random"]
        for part in told:
            mean = float(parts[part["behaviour"]].discounted_returns(0.99).mean())
            assert part["discounted_return"] == pytest.approx(mean)
    assert {row.commit for row in rows} == {grid["commit"]}
    (lost,) = (tmp_path / "out" / "cells").glob("PointRooms*/seed101/result.json")
    lost.unlink()
    after = recipe("benchmark.py", *options, "status=true", cwd=tmp_path)
    assert "3 of 4 runs done" in after.stdout
    assert "  first: 1 of 1 done, 0 running, 0 missing; nothing left" in after.stdout
    assert "  more: 2 of 3 done, 0 running, 1 missing; about 1 min" in after.stdout
    assert "missing: PointRooms, GCSL, expert=0.1, seed 101" in after.stdout
    assert f"commits: {grid['commit'] or 'unknown'} (3)" in after.stdout
    again = recipe("benchmark.py", *options, cwd=tmp_path)
    assert again.status == 0, again.stderr
    assert "stage first" not in again.stdout
    assert "stage more: 1 of 3 runs to do" in again.stdout


def test_a_second_request_in_a_folder_keeps_what_is_told_of_the_runs_of_the_first(recipe, write, tmp_path):
    def asked(*options):
        done = recipe("benchmark.py", *options, "jobs=0", cwd=tmp_path)
        assert done.status == 0, done.stderr
        return json.loads((tmp_path / "out" / "grid.json").read_text())

    sizes = [f"{name}={value}" for name, value in TINY["options"].items()]
    before = asked(f"manifest={write()}")
    more = ("methods=[gcsl]", "seeds=1", *sizes, "out=out")
    after = asked("tasks=[PointReach]", "settings=['expert=0.2']", *more)
    assert [(cell["task"], cell["setting"]) for cell in after["cells"]] == [
        *(("PointReach", "expert=0.2"), ("PointReach", "expert=0.1"), ("PointRooms", "expert=0.1")),
    ]
    assert after["cells"][1:] == before["cells"]
    assert before["datasets"].items() < after["datasets"].items()
    assert after["differs"] == before["differs"] == {"PointReach": "a point"}
    # fewer seeds of a cell; and a cell that has no run any more
    for folder in (tmp_path / "out" / "cells").glob("PointRooms*"):
        shutil.rmtree(folder)
    last = asked("tasks=[PointReach]", *more, "first_seed=100")
    assert [(cell["setting"], cell["seeds"]) for cell in last["cells"]] == [
        *(("expert=0.1", [100, 101]), ("expert=0.2", [0])),
    ]
    assert last["differs"] == before["differs"]
    assert len(last["datasets"]) == 2
    # a manifest has the last word on its tasks
    assert asked(f"manifest={write(differs={})}")["differs"] == {}


def test_what_an_earlier_benchmark_finished_is_not_run_again(recipe, write, tmp_path):
    options = (f"manifest={write(differs={})}", "jobs=0")
    done = recipe("benchmark.py", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    kept, out = tmp_path / "kept", tmp_path / "out"
    kept.mkdir()
    for name in ("results.csv", "curves.csv", "grid.json"):
        (out / name).rename(kept / name)
    shutil.rmtree(out)
    shutil.rmtree(tmp_path / "datasets")
    again = recipe("benchmark.py", *options, "earlier=kept", cwd=tmp_path)
    assert again.status == 0, again.stderr
    assert "kept: 4 runs taken over" in again.stdout
    assert not [*out.glob("cells/*/*/run"), *tmp_path.glob("datasets/*")]
    for name in ("results.csv", "curves.csv"):
        assert (out / name).read_bytes() == (kept / name).read_bytes()
    told = [json.loads((folder / "grid.json").read_text())["datasets"] for folder in (out, kept)]
    assert told[0] == told[1]
    assert len(told[0]) == 2
    # and the next call, without it, still knows of the data
    assert recipe("benchmark.py", *options, cwd=tmp_path).status == 0
    assert json.loads((out / "grid.json").read_text())["datasets"] == told[0]


@pytest.fixture
def earlier(import_recipe, tmp_path):
    """Tables of one cell of two seeds, and a function that makes a job of some seeds of it."""
    kept = tmp_path / "kept"
    kept.mkdir()
    rows = [
        Result("1", "PointReach", "GCSL", "default", seed, metric, seed / 8, 4, 1, "abc", "torch=1")
        for seed in (0, 1)
        for metric in ("discounted_return_0.99", "success_last")
    ]
    write_results(kept / "results.csv", rows)
    write_curves(kept / "curves.csv", rows)
    (kept / "grid.json").write_text(json.dumps({"cells": [{"id": "cell_1"}], "datasets": {}, "differs": {"a": "b"}}))

    def make(seeds, *, cell="cell_1", steps=4):
        words = SimpleNamespace(task="PointReach", method="gcsl", setting="expert=0.1")
        folder = tmp_path / "out" / f"{cell}-{seeds}"
        return SimpleNamespace(folder=folder, cell_folder=Path(cell), cell=words, seeds=seeds, options={"steps": steps})

    return kept, make


def test_what_is_taken_over_has_all_seeds_equal_options_and_as_many_updates(import_recipe, earlier):
    kept, make = earlier
    read, jobs = import_recipe("parts.earlier").read_earlier, import_recipe("parts.benchmark_jobs")
    whole = make((0, 1))
    others = [make((0, 2)), make((1,), cell="cell_2"), make((1,), steps=5)]
    assert read(kept).take_over([*others, whole]) == [whole]
    assert not any(job.folder.exists() for job in others)
    result = jobs.read_result(whole.folder)
    assert [(row["seed"], row["value"], row["commit"]) for row in result["results"]] == [
        *[(0, 0.0, "abc")] * 2,
        *[(1, 0.125, "abc")] * 2,
    ]
    assert [row["seed"] for row in result["curves"]] == [0, 0, 1, 1]
    assert read(kept).differs == {"a": "b"}
    # what is finished here is left alone
    jobs.keep_result(whole.folder, [], [])
    assert read(kept).take_over([whole]) == []
    assert jobs.read_result(whole.folder)["results"] == []


@pytest.mark.parametrize(
    ("file", "left"),
    [
        ("results.csv", lambda row: row.metric != "discounted_return_0.99"),
        ("results.csv", lambda row: row.metric != "success_last" or row.seed),
        ("curves.csv", lambda row: row.seed == 0),
    ],
    ids=["no return", "no success of one", "no curve of one"],
)
def test_a_run_of_which_something_is_missing_is_not_taken_over(import_recipe, earlier, file, left):
    kept, make = earlier
    write = write_results if file == "results.csv" else write_curves
    write(kept / file, [row for row in read_results(kept / file) if left(row)])
    assert import_recipe("parts.earlier").read_earlier(kept).take_over([make((0, 1))]) == []


def test_a_stage_of_several_tables_may_name_tasks_that_not_all_of_them_have(planning, write):
    # of the two, Table 1 alone has the Ant
    stage = {"name": "both", "seeds": 1, "tables": [1, 13], "methods": ["smore"]}

    def cells(**changes):
        options = {**TINY["options"], "num_trajectories": 100}
        path = write(options=options, tasks={}, differs={}, stages=[{**stage, **changes}])
        return {cell.task for made in planning.read_plan(planning.Config(manifest=path))[3] for cell in made.plan.cells}

    assert cells(tasks=["AntTgtVel-m-e"]) == {"AntTgtVel-m-e"}
    assert cells(tasks=["AntTgtVel-m-e", "FetchPush"]) == {"AntTgtVel-m-e", "FetchPush"}
    with pytest.raises(ValueError, match="no cell"):
        cells(tables=[13], tasks=["AntTgtVel-m-e"])


def test_faults_of_earlier_tables_are_named_before_anything_is_written(recipe, import_recipe, earlier, write, tmp_path):
    kept, _ = earlier
    read = import_recipe("parts.earlier").read_earlier
    (kept / "grid.json").write_text('{"cells": [{"name": 1}]}')
    with pytest.raises(ValueError, match=r"grid\.json is damaged, or of no benchmark: KeyError\('id'\)"):
        read(kept)
    (kept / "curves.csv").unlink()
    with pytest.raises(ValueError, match=r"earlier=.*kept: expected results\.csv, .*; found no curves\.csv"):
        read(kept)
    done = recipe("benchmark.py", f"manifest={write()}", "jobs=0", "earlier=kept", cwd=tmp_path)
    assert done.status != 0
    assert "found no curves.csv" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_task_of_a_manifest_has_a_dataset_of_its_own_and_another_is_collected_for(
    recipe, write, store_path, tmp_path
):
    changes = {"tasks": {"PointReach": {"dataset": str(store_path)}}, "stages": TINY["stages"][1:]}
    done = recipe("benchmark.py", f"manifest={write(**changes)}", "jobs=0", cwd=tmp_path)
    assert done.status == 0, done.stderr
    rows = read_results(tmp_path / "out" / "results.csv")
    assert {(row.task, row.setting, row.seed) for row in rows} == {
        *(("PointReach", "data=store", seed) for seed in (100, 101)),
        *(("PointRooms", "expert=0.1", seed) for seed in (100, 101)),
    }
    grid = json.loads((tmp_path / "out" / "grid.json").read_text())
    own, collected = grid["cells"]
    assert (own["data"]["dataset"], collected["num_trajectories"]) == (str(store_path), 20)
    assert [path.name for path in (tmp_path / "datasets").iterdir() if path.is_dir()] == [collected["dataset"]]
    assert grid["datasets"].keys() == {own["dataset"], collected["dataset"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tasks": {"PointReach": {"dataset": "nowhere"}}},
            r"manifest\.yaml: tasks: PointReach: dataset=nowhere: nowhere does not exist; .* the working directory\.",
        ),
        (
            {"options": {"dataset": "nowhere"}, "tasks": {"PointRooms": {"dataset": "{store}"}}},
            r"manifest\.yaml: options: dataset=nowhere: nowhere does not exist",
        ),
        ({"options": {"dataset": "{store}"}}, "is of one task, and the grid has PointReach, PointRooms: "),
        (
            {"tasks": {"PointReach": {"dataset": "{store}", "num_trajectories": 3}}},
            "num_trajectories: of no use with dataset=",
        ),
        ({"tasks": {"PointReach": {"goal_columns": [0]}}}, "goal_columns: of no use without dataset="),
        ({"tasks": {"PointReach": {"dataset": 3.5, "goal_columns": "x"}}}, "tasks: PointReach: goal_columns: "),
    ],
    ids=str,
)
def test_faults_of_datasets_in_a_manifest_are_named(planning, write, monkeypatch, store_path, tmp_path, changes, said):
    monkeypatch.chdir(tmp_path)
    text = yaml.safe_dump(changes).replace("{store}", str(store_path))
    with pytest.raises(ValueError, match=said):
        planning.read_plan(planning.Config(manifest=write(**yaml.safe_load(text))))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.yaml"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outt": "x"}, r"unknown 'outt': expected out, .* Did you mean out\?"),
        ({"stages": []}, r"stages: expected a list of at least one stage, got \[\]"),
        ({"stages": [{"name": "a"}]}, r"stage 1 lacks seeds"),
        ({"stages": [{"name": "a", "seeds": 0}]}, r"stage 1: expected seeds from 1"),
        ({"stages": [{"name": "a", "seeds": "many"}]}, r"stage 1: seeds: .*many"),
        ({"stages": [{"name": "a", "seeds": 1, "tables": 1}]}, r"stage 1: tables: "),
        ({"options": {"stepz": 1}}, r"options: unknown 'stepz': .* Did you mean steps\?"),
        ({"options": {"steps": "long"}}, r"options: steps: .*long"),
        ({"options": {"out": "x"}}, r"options: unknown 'out'"),
        ({"tasks": {"PointReach": {"seeds": 1}}}, r"tasks: PointReach: unknown 'seeds'"),
        ({"differs": {"PointReach": 1}}, r"PointReach: expected a text, got 1"),
        ({"out": ""}, r"out: expected a text, got ''"),
        ({"commit": "e1a4"}, r"commit: expected 7 to 40 hexadecimal digits, got 'e1a4'"),
        ({"commit": "e1a4b8b-dirty"}, r"commit: expected 7 to 40 hexadecimal digits, got 'e1a4b8b-dirty'"),
    ],
)
def test_faults_of_a_manifest_are_named(import_recipe, planning, write, changes, said):
    read = import_recipe("parts.manifest").read_manifest
    with pytest.raises(ValueError, match=said) as caught:
        read(write(**changes), planning.Config, planning._OF_RUNS)
    assert "manifest.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "papr"}, r"unknown preset 'papr': expected smoke, quick, paper\. Did you mean paper\?"),
        ({"data_seed": -3}, "data_seed must be at least 0 and at most .*, got -3"),
        ({"preset": "smoke"}, "preset smoke is of a whole benchmark, not of a task"),
    ],
)
def test_options_of_a_task_are_checked_as_those_of_all(planning, write, options, said):
    path = write(tasks={"PointReach": options})
    with pytest.raises(ValueError, match=rf"manifest\.yaml: tasks: PointReach: {said}"):
        planning.read_plan(planning.Config(manifest=path))


def test_a_fault_of_all_options_is_not_called_one_of_a_task(planning, write):
    path = write(options={"steps": 0}, tasks={"PointReach": {"batch_size": 64}})
    with pytest.raises(ValueError, match=r"^steps must be at least 1"):
        planning.read_plan(planning.Config(manifest=path))


@pytest.mark.parametrize("asked", ["e1a4b8b", "e1a4b8bcd", "E1A4B8BCD" + "0" * 31])
@pytest.mark.parametrize(
    ("commit", "said"),
    [
        ("e1a4b8b", None),
        ("e1a4b8bcd" + "0" * 31, None),
        ("e1a4b8b-dirty", r"of commit e1a4b8b\w*, and this code was changed since \(e1a4b8b-dirty\)"),
        ("e1a4b8c", r"of commit e1a4b8b\w*, and this code of e1a4b8c: "),
        ("e1a4b8c-dirty", r"and this code of e1a4b8c-dirty: "),
        ("", "and this code of none: "),
    ],
)
def test_a_manifest_of_a_commit_is_run_by_that_code_unchanged(import_recipe, planning, write, asked, commit, said):
    manifest = import_recipe("parts.manifest").read_manifest(write(commit=asked), planning.Config, planning._OF_RUNS)
    if said is None:
        return manifest.check_commit(commit)
    with pytest.raises(ValueError, match=said):
        manifest.check_commit(commit)


def test_what_is_no_mapping_or_no_yaml_is_named(import_recipe, planning, tmp_path):
    read = import_recipe("parts.manifest").read_manifest
    twice = "out: a\nstages: [{tasks: [PointReach], methods: [smore]}]\ntasks:\n  PointReach: {steps: 3, steps: 5}\n"
    for text, said in (
        (twice, r"manifest.yaml is not YAML: found the key 'steps' a second time in .*line 4, column 26"),
        ("[1", "manifest.yaml is not YAML"),
        ("- a", "manifest.yaml: expected names with values"),
    ):
        (tmp_path / "manifest.yaml").write_text(text)
        with pytest.raises(ValueError, match=said):
            read(tmp_path / "manifest.yaml", planning.Config, ())


def test_the_command_line_says_where_and_not_what(benchmark, planning, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"expected manifest, status, .* beside it, got steps\."):
        benchmark.main(planning.Config(manifest=write(), steps=3))
    with pytest.raises(ValueError, match=r"says something of PointRoms, which is no task .*Did you mean PointRooms\?"):
        benchmark.main(planning.Config(manifest=write(differs={"PointRoms": "x"})))
    with pytest.raises(ValueError, match=r"the manifest is of commit 0123abc, and this code of "):
        benchmark.main(planning.Config(manifest=write(commit="0123abc")))
    assert not (tmp_path / "out").exists()


def job(folder, task="A", method="m", steps=100, seeds=(0,)):
    cell = SimpleNamespace(task=task, method=method)
    return SimpleNamespace(folder=folder, cell=cell, seeds=seeds, options={"steps": steps}, words=f"{task}, {method}")


def finish(job, seconds, starts=1):
    (job.folder / "run" / "x").mkdir(parents=True)
    (job.folder / "run" / "x" / "summary.json").write_text(json.dumps({"seconds": seconds, "steps": 100}))
    (job.folder / "starts.txt").write_text("session 1\n" * starts)


def test_the_rest_takes_as_long_as_the_nearest_that_was_measured(import_recipe, tmp_path):
    status = import_recipe("parts.status")
    done = [job(tmp_path / "a", "A", "m"), job(tmp_path / "b", "A", "n"), job(tmp_path / "c", "B", "m", seeds=(0, 1))]
    for each, seconds in zip(done, (10.0, 30.0, 100.0)):
        finish(each, seconds)
    interrupted = job(tmp_path / "d", "A", "m")
    finish(interrupted, 1.0, starts=2)
    damaged = job(tmp_path / "e", "A", "m")
    finish(damaged, 1.0)
    (damaged.folder / "run" / "x" / "summary.json").write_text('{"seconds": 1.0, "st')
    measured = status.seconds_per_update([*done, interrupted, damaged])
    assert measured == pytest.approx({("A", "m"): 0.1, ("A", "n"): 0.3, ("B", "m"): 0.5})

    def left(*missing, running=()):
        return status.seconds_left(status.Status("", (), running, tuple((each, 0) for each in missing)), measured)

    assert left() == 0.0
    assert left(job(tmp_path, "A", "m", 1000)) == pytest.approx(100.0)
    # others of the task, of the method, of any
    assert left(job(tmp_path, "A", "o")) == pytest.approx(20.0)
    assert left(job(tmp_path, "C", "m")) == pytest.approx(30.0)
    assert left(job(tmp_path, "C", "o")) == pytest.approx(30.0)
    assert left(job(tmp_path, "A", "m", seeds=(0, 1, 2))) == pytest.approx(30.0)
    assert left(running=((job(tmp_path, "A", "m", 100), 75),)) == pytest.approx(2.5)
    # of what was killed at update 40 of 100, the 60 that are left, for each of two seeds
    killed = job(tmp_path, "A", "m", 100, seeds=(0, 1))
    assert status.seconds_left(status.Status("", (), (), ((killed, 40),)), measured) == pytest.approx(12.0)
    assert status.seconds_left(status.Status("", (), (), ((done[0], 0),)), {}) is None


def test_a_run_whose_folder_is_held_is_running(import_recipe, tmp_path):
    status = import_recipe("parts.status")
    held, free = job(tmp_path / "held"), job(tmp_path / "free")
    for each in (held, free):
        (each.folder / "run" / "x").mkdir(parents=True)
        (each.folder / "run" / "x" / "metrics.csv").write_text("step,loss\n10,1\n60,1\n")
        (each.folder / ".lock").touch()
    for step in ("step_000000030", "step_000000050", "step_half"):
        (free.folder / "run" / "x" / "checkpoint" / step).mkdir(parents=True)
    holding, end = threading.Event(), threading.Event()

    def hold():
        with locked(held.folder / ".lock", "run"):
            holding.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    found = status.status_of("stage", [held, free, job(tmp_path / "absent")], {})
    end.set()
    thread.join()
    assert found.running == ((held, 60),)
    # what was killed goes on from its newest checkpoint, not from its last row
    assert [(each.folder.name, updates) for each, updates in found.missing] == [("free", 50), ("absent", 0)]
    assert "running: A, m: update 60 of 100" in status.describe_status([found], {}, 2)


def test_the_manifest_of_table_1_holds_what_it_says(planning, tmp_path):
    config = planning.Config(manifest=str(ROOT / "benchmarks" / "table1.yaml"), data_dir=str(tmp_path))
    manifest = planning.read_manifest(config.manifest, planning.Config, planning._OF_RUNS)
    stages = planning.make_stages(planning.of_manifest(config, manifest), manifest, tmp_path)
    *(ours, long_ours, two, long_two, others, long_others, last), _ = [stage.jobs for stage in stages]
    # three seeds at a time, on the 8 short tasks and then on the 4 of locomotion; and all, the last two
    sizes = [len(jobs) for jobs in (ours, long_ours, two, long_two, others, long_others, last)]
    assert sizes == [8 * 2, 4 * 2, 8 * 2, 4 * 2, 8 * 7, 4 * 7, 12 * 11]
    for short, long in ((ours, long_ours), (two, long_two), (others, long_others)):
        assert {job.cell.method for job in short} == {job.cell.method for job in long}
        assert not {job.cell.task for job in short} & {job.cell.task for job in long}
    assert {job.cell.method for job in ours} == {"smore", "hindsight_bc"}
    assert {job.cell.method for job in two} == {"gc_iql", "gcsl"}
    assert not {job.cell.method for job in others} & {"smore", "hindsight_bc", "gc_iql", "gcsl"}
    assert {job.seeds for job in ours + long_ours + two + long_two + others + long_others} == {(10, 11, 12)}
    assert {job.seeds for job in last} == {(13, 14)}
    steps = {(job.cell.task, job.options["steps"]) for job in ours + long_ours + last}
    assert steps == {(task, 40_000 if "TgtVel" in task else 20_000) for task, _ in steps}
    assert len(steps) == 12
    every = [job for stage in stages for job in stage.jobs]
    assert {(job.options["precision"], job.options["compile"], job.options["batch_size"]) for job in every} == {
        ("bf16", "default", 256)
    }
    assert len({job.folder for job in every}) == len(every)
    assert {table for job in every for table in job.cell.tables} >= {"1", "2", "9", "12", "13", "14", "16", "figure 2"}
    # what the page shows is what would be run: a cell goes by its options, and another default is another cell
    page = ROOT / "docs" / "results" / "table1"
    ran = {(row.task, row.method, row.setting) for row in read_results(page / "results.csv")}
    cells = json.loads((page / "grid.json").read_text())["cells"]
    shown = {cell["id"] for cell in cells if (cell["task"], cell["method"], cell["setting"]) in ran}
    assert len(shown) == len(ran)
    assert shown <= {job.cell_folder.name for job in every}


def test_a_damaged_dataset_fails_its_runs_and_no_others(benchmark, planning, tmp_path, monkeypatch, capsys):
    from parts.datasets import dataset_folder

    config = planning.Config(
        **{"tasks": ["PointReach", "PointRooms"], "methods": ["smore"], "seeds": 1, "preset": "quick", "jobs": 0},
        **{"num_trajectories": 4, "data_dir": str(tmp_path), "out": str(tmp_path / "out")},
    )
    *_, (stage,) = planning.read_plan(config)
    damaged = dataset_folder(config.data_dir, **stage.jobs[0].dataset)
    damaged.mkdir()
    (damaged / "meta.json").write_text("{")
    ran = []
    monkeypatch.setattr(benchmark, "run", lambda config, jobs, *rest: ran.extend(job.cell.task for job in jobs))
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed"):
        benchmark.main(config)
    assert ran == ["PointRooms"]
    # of runs that have ended the dataset is not needed
    assert benchmark.describe_datasets(config, stage.jobs[:1]) == {}
    assert f"warning: {damaged.name} cannot be read, finished runs that learned from it are kept: " in (
        capsys.readouterr().out
    )


def test_a_dataset_of_a_task_as_it_was_fails_the_runs_that_would_read_it(benchmark, planning, tmp_path):
    from parts.datasets import dataset_folder

    from torchrl_smore.envs import collect

    request = planning.Config(tasks=["PointReach"], methods=["smore"], seeds=1, preset="quick", data_dir=str(tmp_path))
    config, plan = planning.read_request(request)
    jobs = planning.make_jobs(config, plan, tmp_path)
    made = collect("PointReach", expert_episodes=1, random_episodes=1, seed=0, workers=1, progress=False)
    out = dataset_folder(config.data_dir, **jobs[0].dataset)
    type(made)(made.data, {**made.meta, "threshold": 2.0}).save(out)
    failures = benchmark.make_datasets(config, jobs)
    assert failures.keys() == {job.folder for job in jobs}
    assert "no dataset: " in failures[jobs[0].folder]
    assert "was collected when PointReach had threshold 2.0, it now has 1.0" in failures[jobs[0].folder]


@pytest.mark.parametrize("what", [{"table": "1"}, {"figure": "2"}, {"figure": "3"}], ids=str)
def test_a_run_reads_the_dataset_that_is_collected_for_it(benchmark, planning, monkeypatch, tmp_path, what):
    from parts import datasets

    collected = []
    monkeypatch.setattr(datasets, "collect", lambda task, *, out, **given: collected.append((out, task.name, given)))
    config, plan = planning.read_request(
        planning.Config(**what, methods=["smore"], seeds=1, preset="quick", data_dir=str(tmp_path))
    )
    jobs = planning.make_jobs(config, plan, tmp_path)
    assert not benchmark.make_datasets(config, jobs)
    read = {benchmark.order(config, job, "commit", "session")["options"]["dataset"] for job in jobs}
    assert read == {str(out) for out, _, _ in collected}
    by_task = {name: given for _, name, given in collected}
    if what == {"figure": "3"}:
        # four tasks learn from the primitives of one scene, with noise on their actions (stable contrastive RL)
        assert by_task.keys() == {"Tabletop", "Tabletop-fresh"}
        assert {given["expert_noise"] for given in by_task.values()} == {0.1}


def test_a_tilde_in_a_manifest_is_the_home_directory_and_cells_keep_their_names(
    planning, write, tmp_path, store_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(store_path, tmp_path / "mine")
    folders = []
    for place in ("~", str(tmp_path)):
        stage = {"name": "one", "seeds": 1, "tasks": ["PointReach"], "methods": ["gcsl"]}
        named = {"tasks": {"PointReach": {"dataset": f"{place}/mine"}}, "options": {}, "differs": {}}
        path = write(out=f"{place}/out", stages=[stage], **named)
        _, _, out, stages = planning.read_plan(planning.Config(manifest=path))
        assert out == tmp_path / "out"
        (job,) = stages[0].jobs
        assert job.options["dataset"] == str(tmp_path / "mine")
        folders.append(job.folder)
    assert folders[0] == folders[1]


def test_the_time_that_is_left_is_by_updates_and_of_the_stage(benchmark, planning, monkeypatch, capsys, tmp_path):
    # runs of 100 and 3,000 updates: after the first, which took 10 s, thirty times as long is left
    jobs = [job(tmp_path / str(steps), steps=steps) for steps in (100, 3000)]
    monkeypatch.setattr(benchmark, "order", lambda config, job, *_: job)
    monkeypatch.setattr(benchmark, "run_here", lambda orders: ((i, ValueError("x")) for i, _ in enumerate(orders)))
    for manifest, said in (("a.yaml", " of this stage"), (None, "")):
        clock = iter([0.0, 10.0, 310.0])
        monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=clock.__next__))
        benchmark.run(planning.Config(manifest=manifest, jobs=0), jobs, tmp_path, "", (jobs, {}, {}))
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(" (")[2] for line in lines] == [f"about 5 min left{said})", f"about 0 s left{said})"]
