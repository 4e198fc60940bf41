"""The command for a GPU, without one: a dry run from a clean folder, items that crash or hang, wheels, the page."""

from __future__ import annotations

import ast
import csv
import importlib
import importlib.machinery
import importlib.util
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import time
import types
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore")
#: What a machine without our package looks like to Python: no metadata, and no finder of an editable install.
NOT_INSTALLED = """
import importlib.metadata, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(getattr(finder, "__module__", finder))]
found = importlib.metadata.Distribution.from_name.__func__
def from_name(cls, name):
    if name.lower().replace("_", "-") == "torchrl-smore":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(cls, name)
importlib.metadata.Distribution.from_name = classmethod(from_name)
"""


@pytest.fixture
def load(monkeypatch):
    """``load(name) -> module`` of a benchmark script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def clean(tmp_path):
    """Runs a command in a copy of the sources, in a Python that has no package of ours."""
    root = tmp_path / "clean"
    for name in ("benchmarks", "kernels", "recipes", "tests", "torchrl_smore"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    site = tmp_path / "no_package"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NOT_INSTALLED)

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


EXPECTED = {
    "check": {
        "check/machine",
        *(f"check/kernel/{name}" for name in ("bellman_residual", "expectile_awr", "adam_polyak", "score_mlp")),
        *("check/step/graph", "check/seeds/2", "check/tests/test_adam_polyak"),
    },
    "bench": {
        *("bench/peak", "bench/update/eager", "bench/update/graph", "bench/update/compiled", "bench/update/captured"),
        *("bench/kernel/bellman_residual", "bench/profile", "bench/peer/torchrl_iql", "bench/peer/jax"),
    },
    "learn": {"learn/FetchReach/data", "learn/FetchReach/2_seeds", "learn/Tabletop-drawer/smore/seed0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", EXPECTED)
def test_a_dry_run_of_a_stage_works_from_a_clean_folder_without_the_package(stage, clean, tmp_path):
    out = tmp_path / "out"
    done = clean("benchmarks/gpu.py", "--dry-run", "--out", out, "--stages", stage)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert all(row["dry_run"] and row["device"] == "dry run on a CPU" for row in rows)
    assert {row["status"] for row in rows} <= {"ok", "skipped"}
    keys = {row["key"] for row in rows}
    assert all(any(key.startswith(prefix) for key in keys) for prefix in EXPECTED[stage])
    assert (out / f"{stage}.png").read_bytes().startswith(b"\x89PNG")
    if stage == "learn":
        with tarfile.open(out / "learn.tar.gz") as archive:
            archive.extractall(tmp_path / "learn", filter="data")
        from torchrl_smore.reports import read_files

        source = read_files([tmp_path / "learn" / "results.csv"], [tmp_path / "learn" / "curves.csv"])
        assert {(result.method, result.steps, result.seed) for result in source.results} == {
            ("SMORe", 4, 0),
            ("SMORe", 4, 1),
        }
        assert {result.task for result in source.results} == {"FetchReach", "Tabletop-drawer"}
    else:
        table = list(csv.DictReader((out / f"{stage}.csv").open(newline="")))
        assert {row["key"] for row in table} == keys
    # few files, small, and with names that any tool carries
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert all(path.parent == out and path.stat().st_size < 2**24 for path in files)
    report = clean("benchmarks/gpu_report.py", out)
    assert report.returncode == 0, report.stderr
    text = (out / "report.md").read_text()
    assert text.startswith("# GPU\n\n> **This is a dry run.**")
    # nothing is left to do
    again = clean("benchmarks/gpu.py", "--dry-run", "--out", out, "--stages", stage)
    assert f"{len(rows)} items, {len(rows)} of them done before" in again.stdout


FAULTY = """
import os, signal, time

def fine(device):
    return {"answer": 1.5, "device": device}

def fails(device):
    raise RuntimeError("said so\\nand more")

def wrong(device):
    from gpu_rows import Wrong
    raise Wrong({"error": float("nan")}, "it is off")

def skips(device):
    from gpu_rows import Skipped
    raise Skipped("not here")

def dies(device):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)

def slow(device):
    time.sleep(1.0)
    return {}

def trains(device):
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("left a checkpoint", flush=True)
        raise

def hangs(device):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
"""


@pytest.fixture
def run_items(load, monkeypatch, tmp_path):
    """``run_items(names, **options) -> rows`` of items that misbehave as their names say."""
    gpu, gpu_plan, gpu_rows = load("gpu"), load("gpu_plan"), load("gpu_rows")
    (tmp_path / "faulty.py").write_text(FAULTY)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()

    def run(names, *options, limits=None, seconds=60.0, stage="check"):
        limits = limits or {}
        items = [
            gpu_plan.Item(f"{stage}/{at}/{name}", f"faulty.{name}", {}, limits.get(name, 30.0))
            for at, name in enumerate(names)
        ]
        args = gpu.parse(["--dry-run", f"--out={out}", f"--work={work}", *options])
        environment = gpu.environment_of(args)
        environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
        gpu.Runner(args, environment, "a card", time.monotonic() + seconds).run(stage, items)
        return {key.rpartition("/")[2]: row for key, row in gpu_rows.read(out).items()}

    run.out = out
    return run


def test_an_item_that_crashes_or_hangs_costs_its_own_row_and_no_other(run_items, capsys):
    names = ["fine", "fails", "wrong", "dies", "skips", "hangs"]
    rows = run_items([*names, "fine"], limits={"hangs": 1.0})
    lines = [json.loads(line) for line in (run_items.out / "rows.jsonl").read_text().splitlines()]
    statuses = ["ok", "error", "wrong", "crashed", "skipped", "timeout", "ok"]
    assert [row["status"] for row in lines] == statuses
    assert [row["key"] for row in lines] == [f"check/{at}/{name}" for at, name in enumerate([*names, "fine"])]
    assert rows["fine"]["values"] == {"answer": 1.5, "device": "cpu"}
    assert rows["fails"]["detail"] == "RuntimeError: said so"
    assert rows["wrong"]["values"] == {"error": "nan"}
    assert rows["dies"]["detail"] == "its process died of SIGSEGV: last words"
    assert rows["hangs"]["detail"] == "took longer than 1 s"
    assert "timeout" in capsys.readouterr().out
    assert {row["device"] for row in lines} == {"a card"}


def test_what_is_done_is_not_repeated_unless_asked_for(run_items):
    def count():
        return len((run_items.out / "rows.jsonl").read_text().splitlines())

    run_items(["fine", "fails"])
    run_items(["fine", "fails"])
    assert count() == 2
    run_items(["fine", "fails"], "--again=failed")
    assert count() == 3
    run_items(["fine", "fails"], "--again=all")
    assert count() == 5


def test_a_training_done_again_begins_without_its_run_and_one_cut_off_goes_on(load, monkeypatch, tmp_path):
    gpu, gpu_plan, gpu_rows = load("gpu"), load("gpu_plan"), load("gpu_rows")
    options = gpu_plan.Options(tasks=("FetchReach", "FetchPush", "FetchPick"), folder=str(tmp_path / "learn"))
    items = gpu_plan.plan(["learn"], options, dry_run=False)
    data, trainings = items[0], items[1::2]
    runs = {item.key: gpu_plan.run_folder(item.params) / "run" for item in trainings}
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()

    def call(*options, cut_off=None):
        """Which items found no run of theirs, and which found one; as if all trainings came to an end but one."""
        seen = {"anew": [], "there": []}

        def run_process(self, todo):
            for key in todo:
                run = runs[key]
                seen["there" if run.exists() else "anew"].append(key)
                run.mkdir(parents=True, exist_ok=True)
                if key == cut_off:
                    self.deadline = 0.0
                    return []
                self._enter(todo[key], "ok", 1.0, "")
            return list(todo)

        monkeypatch.setattr(gpu.Runner, "_run_process", run_process)
        args = gpu.parse(["--dry-run", f"--out={tmp_path / 'out'}", f"--work={tmp_path / 'work'}", *options])
        gpu.Runner(args, {}, "a card", time.monotonic() + 60).run("learn", trainings)
        return seen

    reach, push, pick = runs
    assert call() == {"anew": [reach, push, pick], "there": []}
    assert call() == {"anew": [], "there": []}
    assert call("--again=all", cut_off=push) == {"anew": [reach, push], "there": []}
    # what was not reached has its run, and what was cut off no row that says it is finished
    assert runs[pick].exists()
    assert [gpu_rows.read(tmp_path / "out")[key]["status"] for key in runs] == ["ok", "timeout", "ok"]
    assert call("--again=failed") == {"anew": [], "there": [push]}
    assert call("--again=all", cut_off=reach) == {"anew": [reach], "there": []}
    assert call("--again=all") == {"anew": [push, pick], "there": [reach]}
    assert list((tmp_path / "work").iterdir()) == []
    assert data.kind not in gpu_plan.TRAININGS


def test_when_the_time_is_up_the_rest_is_left_without_a_row(run_items, load, monkeypatch):
    monkeypatch.setattr(load("gpu"), "GRACE", 0.5)
    assert set(run_items(["fine", "hangs", "fine"], seconds=3.0)) == {"fine"}
    assert len((run_items.out / "rows.jsonl").read_text().splitlines()) == 1


def test_the_first_item_of_a_process_has_time_for_imports_above_its_own(run_items, load, monkeypatch):
    monkeypatch.setattr(load("gpu"), "START", 60.0)
    assert run_items(["slow", "fine"], limits={"slow": 0.1})["slow"]["status"] == "ok"
    # and the second has not
    assert run_items(["fine", "slow"], "--again=all", limits={"slow": 0.1})["slow"]["status"] == "timeout"


def test_a_training_over_its_limit_is_stopped_gently_and_goes_on_with_the_next_call(run_items, load, monkeypatch):
    monkeypatch.setattr(load("gpu"), "START", 20.0)
    monkeypatch.setattr(load("gpu"), "GRACE", 20.0)
    # the item before it is the one that has time for imports
    for times, first in enumerate(("fine", "fails"), 1):
        rows = run_items([first, "trains"], limits={"trains": 1.0}, stage="learn")
        assert rows["trains"]["status"] == "timeout"
        assert (run_items.out / "log.txt").read_text().count("left a checkpoint") == times
    assert len((run_items.out / "rows.jsonl").read_text().splitlines()) == 4


def test_what_came_before_an_interrupt_is_packed_and_drawn(load, monkeypatch, tmp_path):
    gpu, gpu_rows = load("gpu"), load("gpu_rows")
    concluded = []

    def interrupted(self, stage, items):
        if stage == "check":
            row = {"key": "check/machine", "status": "ok", "dry_run": True, "values": {}}
            gpu_rows.append(self.args.out, {**dict.fromkeys(gpu_rows.COLUMNS, ""), **row})
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu.Runner, "run", interrupted)
    monkeypatch.setattr(gpu, "install", lambda *asked: None)
    monkeypatch.setattr(gpu, "conclude", lambda *asked: concluded.append(asked[2]))
    for stage in ("check", "learn"):
        run = tmp_path / stage / "learn_dry_run" / "FetchReach" / "run" / "a"
        run.mkdir(parents=True)
        (run / "metrics.csv").write_text("step\n1\n")
        with pytest.raises(KeyboardInterrupt):
            gpu.main(["--dry-run", f"--out={tmp_path / 'out'}", f"--work={tmp_path / stage}", "--stages", stage])
    # of the training that was cut off there is no row, and how far it came
    assert concluded == ["check"]
    with tarfile.open(tmp_path / "out" / "learn.tar.gz") as archive:
        assert archive.getnames() == ["FetchReach/run/a/metrics.csv"]


def test_a_process_that_never_begins_is_given_up_with_what_it_said(run_items, load, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    shutil.copy(BENCHMARKS / "gpu_rows.py", tmp_path / "bin")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_worker.py").write_text("raise SystemExit('no driver')")
    monkeypatch.setattr(load("gpu"), "ROOT", tmp_path)
    row = run_items(["fine", "fails"])["fine"]
    assert (row["status"], row["detail"]) == ("crashed", "no process came as far as this: no driver")


def test_a_row_cut_off_is_left_out_and_the_next_one_is_whole(load, tmp_path):
    gpu_rows = load("gpu_rows")
    row = {"key": "check/a", "status": "ok", "values": {}}
    gpu_rows.append(tmp_path, row)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"key": "check/b", "sta')
    gpu_rows.append(tmp_path, {**row, "key": "bench/c"})
    gpu_rows.append(tmp_path, {**row, "status": "error"})
    assert {key: found["status"] for key, found in gpu_rows.read(tmp_path).items()} == {
        "check/a": "error",
        "bench/c": "ok",
    }
    with pytest.raises(ValueError, match=r"expected a status among ok, .* got 'fine'"):
        gpu_rows.append(tmp_path, {**row, "status": "fine"})


@pytest.mark.parametrize("name", ["gpu", "gpu_plan", "gpu_rows", "gpu_worker", "gpu_wheels", "gpu_report"])
def test_what_runs_before_anything_is_installed_imports_the_standard_library_alone(name):
    tree = ast.parse((BENCHMARKS / f"{name}.py").read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} <= {
        *sys.stdlib_module_names,
        "gpu",
        "gpu_plan",
        "gpu_rows",
        "pages",
    }


def test_the_plan_holds_the_sizes_that_are_asked_for(load):
    gpu_plan = load("gpu_plan")
    items = gpu_plan.plan(gpu_plan.STAGES, gpu_plan.Options(), dry_run=False)
    kernels = [item.params for item in items if item.kind == "gpu_checks.kernel"]
    assert {params["kernel"] for params in kernels} == set(load("gpu_checks").CASES)
    for name in {params["kernel"] for params in kernels}:
        rows = {params["rows"] for params in kernels if params["kernel"] == name}
        assert {1, 65536} <= rows
        assert any(count % 2 for count in rows - {1})
    assert {params.get("dtype", params.get("precision")) for params in kernels} == {
        *("float32", "bf16", "fp32", "tf32", None)
    }
    updates = [item.params for item in items if item.kind == "gpu_bench.update"]
    assert {(params["mode"], params["precision"]) for params in updates} == {
        (mode, precision) for mode in gpu_plan.MODES for precision in gpu_plan.PRECISIONS
    }
    assert {params["batch_size"] for params in updates} == {2**power for power in range(8, 14)}
    assert {params["seeds"] for params in updates} == {2**power for power in range(8)}
    together = [item.params for item in items if item.kind == "gpu_checks.seeds_together"]
    assert {(params["seeds"], params["updates"]) for params in together} == {(16, 50)}
    assert [item.params["task"] for item in items if item.kind == "gpu_learn.learn"] == [
        *("FetchReach", "FetchPush", "FetchPick", "FetchSlide", "HandReach")
    ]
    assert all((ROOT / path).is_file() for path in gpu_plan.TEST_FILES)
    with pytest.raises(ValueError, match="expected stages among check, bench, learn, got play"):
        gpu_plan.plan(["play"], gpu_plan.Options(), dry_run=True)


def test_the_learning_is_the_papers_budget(load, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    # the recipes set a variable when they are imported
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gpu_plan, gpu_learn = load("gpu_plan"), load("gpu_learn")
    items = gpu_plan.plan(["learn"], gpu_plan.Options(), dry_run=False)
    (push,) = [item.params for item in items if item.key == "learn/FetchPush/5_seeds"]
    config = gpu_learn.options_of("cuda", **{name: value for name, value in push.items() if name != "folder"})
    assert (config.steps, config.batch_size, config.seeds, config.num_trajectories) == (1_000_000, 512, 5, 40_000)
    assert (config.device, config.compile) == ("cuda", "default")


def test_the_learning_ends_with_figure_3(load, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gpu_plan, gpu_learn = load("gpu_plan"), load("gpu_learn")
    from parts import grid

    cells = {(cell.task, cell.method) for cell in grid.figure_plan("3").cells}
    items = gpu_plan.plan(["learn"], gpu_plan.Options(), dry_run=False)
    pictures = items[-80:]
    assert {item.kind for item in items[:-80]} == {"gpu_learn.data", "gpu_learn.learn"}
    found = [(item.params["task"], item.params["method"], item.params["seed"]) for item in pictures]
    assert set(found) == {(*cell, seed) for cell in cells for seed in range(5)}
    assert found[:5] == [("Tabletop-drawer", "smore", seed) for seed in range(5)]
    begun = []
    monkeypatch.setattr(gpu_learn, "make_datasets", lambda config, jobs: {})
    monkeypatch.setattr(gpu_learn, "_outcome", lambda job: begun.append(job) or {})
    params = {**pictures[2].params, "folder": str(tmp_path), "data_dir": str(tmp_path)}
    learnt = gpu_learn.learn_pictures("cpu", **params)
    assert learnt == {"task": "Tabletop-drawer", "method": "SMORe", "batch_size": 2048, "seeds": 1}
    (job,) = begun
    expected = {
        "steps": 300_000,
        "seed": 2,
        "seeds": 1,
        "pixels": 48,
        "device": "cpu",
        "compile": "default",
        "precision": "bf16",
    }
    assert expected.items() <= job["options"].items()
    assert job["folder"] == str(tmp_path / "Tabletop-drawer_smore_seed2")


def test_a_training_of_other_sizes_has_a_row_a_folder_and_a_setting_of_its_own(load, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gpu_plan, gpu_learn = load("gpu_plan"), load("gpu_learn")

    def names(dry_run=False, **options):
        chosen = gpu_plan.Options(tasks=("FetchPush", "Tabletop-drawer"), seeds=1, folder="learn", **options)
        items = gpu_plan.plan(["learn"], chosen, dry_run=dry_run)
        trained = [item for item in items if item.kind in gpu_plan.TRAININGS][:2]
        job = {"identity": {"table": "1", "setting": "default"}}
        placed = [gpu_learn.placed(job, item.params) for item in trained]
        told = [(Path(own["folder"]).name, own["identity"]["table"], own["identity"]["setting"]) for own in placed]
        return [items[0].key, *(item.key for item in trained)], told

    assert names() == (
        ["learn/FetchPush/data", "learn/FetchPush/1_seeds", "learn/Tabletop-drawer/smore/seed0"],
        [("FetchPush_1", "1", "default"), ("Tabletop-drawer_smore_seed0", "1", "default")],
    )
    words = "steps=1000/num_trajectories=50"
    keys, told = names(steps=1000, num_trajectories=50)
    assert keys == [
        *("learn/FetchPush/data/num_trajectories=50", f"learn/FetchPush/1_seeds/{words}"),
        f"learn/Tabletop-drawer/smore/seed0/{words}",
    ]
    assert told == [
        ("FetchPush_1_steps=1000_num_trajectories=50", "", "default;steps=1000;num_trajectories=50"),
        ("Tabletop-drawer_smore_seed0_steps=1000_num_trajectories=50", "", "default;steps=1000;num_trajectories=50"),
    ]
    # data are of no number of updates, and a dry run has sizes of its own
    assert names(steps=1000)[0][0] == "learn/FetchPush/data"
    assert names(dry_run=True, steps=1000)[0] == [
        *("learn/FetchPush/data", "learn/FetchPush/2_seeds", "learn/Tabletop-drawer/smore/seed0")
    ]


def test_a_training_that_was_cut_off_goes_on_and_its_row_says_what_it_came_to(load, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gpu_learn, smore_offline = load("gpu_learn"), load("smore_offline")
    params = {"task": "PointReach", "seeds": 2, "steps": 4, "num_trajectories": 20, "tiny": True}
    params |= {"folder": str(tmp_path / "learn"), "data_dir": str(tmp_path / "data")}
    train = smore_offline.OfflineTrainer.train

    def cut_off(trainer):
        trainer.register_op("post_optim", lambda: trainer.step == 2 and trainer.stop_with(KeyboardInterrupt()))
        train(trainer)

    monkeypatch.setattr(smore_offline.OfflineTrainer, "train", cut_off)
    with pytest.raises(KeyboardInterrupt):
        gpu_learn.learn("cpu", **params)
    monkeypatch.setattr(smore_offline.OfflineTrainer, "train", train)
    folder = tmp_path / "learn" / "PointReach_2"
    assert float((folder / "seconds.txt").read_text()) > 0.0
    (folder / "seconds.txt").write_text("7200.0\n")  # as if it had taken two hours
    learnt = gpu_learn.learn("cpu", **params)
    starts = [line.split()[-1] for line in (folder / "starts.txt").read_text().splitlines()]
    assert starts == ["anew", "resumed"]
    assert (learnt["steps"], learnt["batch_size"], learnt["seeds"]) == (4, 8, 2)
    assert 7200.0 < learnt["training_seconds"] < 7260.0
    # found finished, it is as long as it was
    assert gpu_learn.learn("cpu", **params) == learnt
    # of a run that ended early the row has what it came to
    (folder / "result.json").write_text((folder / "result.json").read_text().replace('"steps": 4', '"steps": 3'))
    assert gpu_learn.learn("cpu", **params)["steps"] == 3
    # a run of fewer updates is not taken for the one asked for, nor is one on other data
    for name, words in (("steps", "steps 4, not 6"), ("num_trajectories", "num_trajectories 20, not 6")):
        with pytest.raises(ValueError, match=rf"PointReach_2 holds a run of {words}: move it away"):
            gpu_learn.learn("cpu", **{**params, name: 6})


def test_the_time_of_a_run_that_was_lost_is_not_counted(load, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gpu_learn = load("gpu_learn")
    monkeypatch.setattr(gpu_learn, "run_job", lambda job: {})
    record, checkpoint = tmp_path / "seconds.txt", tmp_path / "run" / "a" / "checkpoint" / "step_2"
    for kept, expected in ((False, 0.0), (True, 7200.0)):
        record.write_text("7200.0\n")
        if kept:
            checkpoint.mkdir(parents=True)
        gpu_learn._run({"folder": str(tmp_path)})
        assert sum(map(float, record.read_text().split())) == pytest.approx(expected, abs=1.0)
    # without a record there is what the run says of its last call
    record.unlink()
    (tmp_path / "run" / "a" / "summary.json").write_text('{"seconds": 30.5}')
    assert gpu_learn._seconds(tmp_path) == 30.5


def test_a_run_on_other_data_is_not_taken_for_the_one_asked_for_wherever_they_lie(load, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gpu_learn = load("gpu_learn")
    (tmp_path / "run" / "a").mkdir(parents=True)
    (tmp_path / "run" / "a" / "config.yaml").write_text("steps: 4\ndataset: there/drawer_expert10\n")
    job = {"folder": str(tmp_path), "options": {"steps": 4, "dataset": "here/drawer_expert10", "device": "cuda"}}
    gpu_learn.check_begun(job)
    with pytest.raises(ValueError, match=r"holds a run of dataset drawer_expert10, not drawer_expert5: move it away"):
        gpu_learn.check_begun({**job, "options": {**job["options"], "dataset": "there/drawer_expert5"}})


@pytest.mark.parametrize("backend", ["gpu", "cpu"])
def test_the_peer_in_jax_is_timed_where_jax_has_the_gpu_and_nowhere_else(load, backend, monkeypatch, capsys):
    gpu_bench, gpu_rows = load("gpu_bench"), load("gpu_rows")
    # as much of JAX as the peer asks for before its first update
    jax = types.ModuleType("jax")
    jax.__spec__ = importlib.machinery.ModuleSpec("jax", None)
    jax.__version__, jax.default_backend = "0.9.0", lambda: backend
    jax.numpy = types.ModuleType("jax.numpy")
    jax.random = types.SimpleNamespace(key=lambda seed: seed)
    step = types.SimpleNamespace(cost_analysis=lambda: {"flops": 2.35e9}, compile=lambda: step)
    jax.jit = lambda *_, **__: types.SimpleNamespace(lower=lambda *_: step)
    for name, module in (("jax", jax), ("jax.numpy", jax.numpy)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["smore_jax.py", "--threads=2", "--batch-size=2", "--trajectories=4"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    script = runpy.run_path(str(BENCHMARKS / "peers" / "smore_jax.py"))
    script["main"].__globals__["new_state"] = lambda key, width: None
    script["main"]()
    hello = capsys.readouterr().out.removeprefix("ok ").strip()
    assert hello == f"jax 0.9.0 on {backend}, 2.350 GFLOP per update by XLA's count"

    rates = iter([1.0, 9.0, 5.0, 7.0, 8.0, 6.0, 4.0, 3.0])  # the first warms up; the others have a median of 6
    peer = types.SimpleNamespace(hello=hello, block=lambda updates: lambda: next(rates), close=lambda: None)
    monkeypatch.setattr(gpu_bench.harness, "Peer", lambda *_, **__: peer)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    size = {"batch_size": 512, "width": 256, "trajectories": 4000, "updates": 200}
    if backend == "cpu":
        with pytest.raises(gpu_rows.Skipped, match=r"jax sees no GPU: jax 0\.9\.0 on cpu"):
            gpu_bench.peer("cuda", "smore_jax.py", **size)
    else:
        assert gpu_bench.peer("cuda", "smore_jax.py", **size)["updates_per_s_median"] == 6.0


def wheel(folder, name, module):
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{module}.py,,\n")


def test_wheels_of_what_is_missing_are_installed_and_nothing_is_replaced(load, monkeypatch, tmp_path):
    gpu = load("gpu")
    wheels, site = tmp_path / "wheels", tmp_path / "work" / "site"
    wheels.mkdir()
    brought = ("gpu_lacks_this", "numpy", "torch", "nvidia_cublas_cu13", "cuda_bindings", "jax_cuda13_plugin")
    for name in brought:
        wheel(wheels, name, name)
    args = gpu.parse(["--dry-run", f"--work={tmp_path / 'work'}"])
    environment = gpu.environment_of(args)
    monkeypatch.setattr(gpu, "MODULES", {"check": ("gpu_lacks_this",)})
    gpu.install(["check"], wheels, site, environment)
    assert {path.name for path in site.iterdir()} == {"gpu_lacks_this.py", "gpu_lacks_this-1.0.dist-info"}
    monkeypatch.setattr(gpu, "MODULES", {"check": ("gpu_lacks_that",)})
    with pytest.raises(RuntimeError, match=r"has no gpu_lacks_that, and .*wheels brings none: gather them"):
        gpu.install(["check"], wheels, site, environment)


def test_without_a_gpu_it_says_so_and_what_can_be_tried(load, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    status = load("gpu").main([f"--out={tmp_path / 'out'}", f"--work={tmp_path / 'work'}"])
    assert status == 2
    assert "sees no CUDA device. `make gpu-dry-run` tries everything" in capsys.readouterr().err


def test_rows_of_a_dry_run_and_of_a_gpu_are_kept_apart(load, tmp_path, capsys):
    gpu, gpu_rows = load("gpu"), load("gpu_rows")
    gpu_rows.append(tmp_path, {"key": "check/machine", "status": "ok", "dry_run": False})
    assert gpu.main(["--dry-run", f"--out={tmp_path}", f"--work={tmp_path / 'work'}"]) == 2
    assert "holds rows of a GPU (check/machine): give another one for a dry run" in capsys.readouterr().err


def test_the_versions_of_the_wheels_are_those_tested_together(load):
    gpu_wheels = load("gpu_wheels")
    versions = gpu_wheels.pinned("# x\nTorchRL==0.14.1\nnumpy==2.4.6; python_version >= '3.11'\nnumpy==2.2.6\na_b==1\n")
    assert versions == {"torchrl": "0.14.1", "numpy": "2.4.6", "a-b": "1"}
    pinned = gpu_wheels.pinned((ROOT / "constraints.txt").read_text())
    assert [name for name in gpu_wheels.PACKAGES if name not in pinned] == []
    assert not any(map(load("gpu").of_the_machine, gpu_wheels.PACKAGES))
    for name in ("torch", "nvidia-cublas", "NVIDIA_cudnn.cu13"):
        assert gpu_wheels.main(["--with", name]) == 1


def test_of_a_package_one_wheel_is_left(load, tmp_path):
    gpu_wheels = load("gpu_wheels")
    names = ("a_b-1.0-py3-none-any.whl", "a_b-2.0-py3-none-any.whl", "a_b_c-1.0-py3-none-any.whl")
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))

    def left():
        return sorted(path.name for path in tmp_path.iterdir())

    gpu_wheels.remove_others("A.b", None, tmp_path)  # the newest, where no version is pinned
    assert left() == [names[0], names[2]]
    (tmp_path / names[1]).touch()
    gpu_wheels.remove_others("a-b", "1.0", tmp_path)
    assert left() == [names[0], names[2]]


def card_rows(load, folder):
    """Rows as a card would leave them, with numbers of no card."""
    gpu_plan, gpu_rows = load("gpu_plan"), load("gpu_rows")
    items = {item.key: item for item in gpu_plan.plan(gpu_plan.STAGES, gpu_plan.Options(), dry_run=False)}
    rates = {"updates_per_s_median": 1234.5, "updates_per_s_min": 1200.0, "updates_per_s_max": 1300.0}
    over = {"over_floor": 1.5, "floor": "launches", "launches": 70, "memory_mib": 100.0}
    times = {"triton_median_us": 10.0, "triton_min_us": 9.0, "triton_max_us": 11.0}
    ratios = {"over_compile": 1.25, "over_eager": 2.0, "triton_fraction_of_copy_bandwidth": 0.75, "triton_tflops": 3.0}
    learnt = {
        "task": "FetchPush",
        "method": "SMORe",
        "steps": 1_000_000,
        "batch_size": 512,
        "seeds": 5,
        "success_last": 0.875,
        "training_seconds": 5400.0,
    }
    drawn = {
        **learnt,
        "task": "Tabletop-drawer",
        "steps": 300_000,
        "batch_size": 2048,
        "seeds": 1,
        "success_last": 0.75,
    }
    # as rows were before they had them: their own seconds are shown
    del drawn["training_seconds"]
    found = {
        "check/machine": ("ok", {"card": "Card X", "torch": "2.11.0", "driver": "1.2"}, ""),
        "check/seeds/16/float32": ("wrong", {"error": 7.5}, "it is off"),
        "check/step/graph/vmap": ("ok", {"error": 0.25}, ""),
        "check/tests/test_fused": ("timeout", {}, "took longer than 300 s"),
        "bench/peak": ("ok", {"copy_gb_per_s": 2000.0}, ""),
        "bench/update/graph/float32/batch=512/seeds=16": ("ok", {**rates, **over, "seed_updates_per_s": 19752.0}, ""),
        "bench/kernel/bellman_residual/rows=65536/seeds=1": ("ok", {**times, **ratios}, ""),
        "bench/peer/torchrl_iql": ("ok", {**rates, "hello": "torchrl IQLLoss"}, ""),
        "bench/profile": ("ok", {"eager_kernels": [{"name": "gemm", "share": 0.5, "calls": 3.0}]}, ""),
        "learn/FetchPush/5_seeds": ("ok", {**learnt, "discounted_return_0.98": 21.5, "final_distance": 0.02}, ""),
        "learn/Tabletop-drawer/smore/seed3": (
            "ok",
            {**drawn, "discounted_return_0.98": 9.0, "final_distance": None},
            "",
        ),
    }
    for key, (status, values, detail) in found.items():
        row = {"key": key, "kind": items[key].kind, "params": items[key].params, "status": status, "seconds": 60.0}
        more = {"device": "Card X", "dry_run": False, "time": "", "values": values, "detail": detail}
        gpu_rows.append(folder, {**row, **more})


def test_the_page_names_the_card_and_holds_numbers_and_failures(load, tmp_path):
    card_rows(load, tmp_path)
    page = tmp_path / "docs" / "gpu.md"
    assert load("gpu_report").main([str(tmp_path), "--out", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# GPU\n\nCard X; driver 1.2, torch 2.11.0.")
    assert "dry run" not in text.lower()
    for expected in (
        "| seeds/16 | 1 | 0 | 7.5 | 1 wrong |",
        "- `check/tests/test_fused`: timeout, took longer than 300 s",
        "| graph/float32/batch=512/seeds=16 | 1234 [1200, 1300] | 1.975e+04 | 1.5 | launches | 70 | 100 |",
        "| bellman_residual/rows=65536/seeds=1 | 10 [9, 11] | 1.25 | 2.00 | 75% | 3 |",
        "| `gemm` | 50.0% | 3 |",
        "| FetchPush | SMORe | 1,000,000 of 512 | 5 | 0.875 | 21.500 | 0.020 | 90.0 |",
        "| Tabletop-drawer | SMORe | 300,000 of 2048 | seed 3 | 0.750 | 9.000 |  | 1.0 |",
    ):
        assert expected in text, text
    for stage in ("check", "bench", "learn"):
        assert (page.parent / f"gpu_{stage}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_other_sizes_have_a_panel_of_their_own(load, tmp_path):
    card_rows(load, tmp_path)
    lines = ["task,method,setting,seed,metric,value,steps"]
    lines += [f"FetchPush,SMORe,expert=0.1{more},0,success_last,0.5,1000" for more in ("", ";steps=1000")]
    content = "\n".join(lines).encode()
    with tarfile.open(tmp_path / "learn.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("curves.csv")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    gpu_report = load("gpu_report")
    figure = gpu_report._draw_learn(gpu_report.Results(tmp_path))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["FetchPush, SMORe, expert=0.1", "FetchPush, SMORe, expert=0.1;steps=1000"]


def test_a_dry_run_has_no_place_in_the_docs_and_cards_are_not_mixed(load, tmp_path, capsys):
    gpu_report, gpu_rows = load("gpu_report"), load("gpu_rows")
    row = {"key": "check/machine", "kind": "", "params": {}, "status": "ok", "seconds": 0.0, "values": {}, "detail": ""}
    gpu_rows.append(tmp_path, {**row, "device": "dry run on a CPU", "dry_run": True})
    assert gpu_report.main([str(tmp_path), "--out", str(gpu_report.PAGE)]) == 2
    assert "is a dry run, which has no place in the docs" in capsys.readouterr().err
    gpu_rows.append(tmp_path, {**row, "key": "bench/peak", "device": "Card X", "dry_run": False})
    assert gpu_report.main([str(tmp_path)]) == 2
    assert "expected rows of one card, found Card X, dry run on a CPU" in capsys.readouterr().err
    assert not gpu_report.PAGE.exists()


def test_finished_runs_come_back_from_a_pack_and_unfinished_ones_begin_anew(load, tmp_path):
    gpu = load("gpu")
    out, folder, other = tmp_path / "out", tmp_path / "learn", tmp_path / "other" / "learn"
    for name in ("done", "begun"):
        (folder / name / "run" / "x").mkdir(parents=True)
        (folder / name / "run" / "x" / "config.yaml").write_text("steps: 1")
    (folder / "done" / "result.json").write_text("{}")
    (folder / "done" / "seconds.txt").write_text("60.0")
    (folder / "results.csv").write_text("a")
    out.mkdir()
    other.parent.mkdir()
    gpu.pack_learning(out, folder)
    gpu.unpack_learning(out, other)
    assert sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()) == [
        *("done/result.json", "done/run/x/config.yaml", "done/seconds.txt", "results.csv")
    ]
    # what is there is newer than the pack
    (other / "results.csv").write_text("b")
    gpu.unpack_learning(out, other)
    assert (other / "results.csv").read_text() == "b"
