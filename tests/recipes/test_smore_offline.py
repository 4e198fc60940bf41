"""The training recipe, run as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from torchrl_smore.data import TrajectoryStore
from torchrl_smore.envs import get_task
from torchrl_smore.reports.figures.style import goal_unit

SIZES = (
    "task=PointReach",
    "batch_size=8",
    "steps=12",
    "log_interval=2",
    "eval_interval=6",
    "save_interval=4",
    "eval_episodes=3",
    "threads=1",
    "device=cpu",
)
SMALL = (*SIZES, "num_trajectories=20")
QUICK = (*SMALL, "steps=3", "rollout=false")
READING = (*SIZES, "steps=3", "rollout=false")


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """Working directory, run folder and output of one uninterrupted run."""
    cwd = tmp_path_factory.mktemp("finished")
    done = recipe("smore_offline.py", *SMALL, cwd=cwd, draw=True)
    assert done.status == 0, done.stderr
    return cwd, only_run(cwd), done


def only_run(cwd):
    (run_dir,) = (cwd / "runs").iterdir()
    return run_dir


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def config(run_dir):
    return yaml.safe_load((run_dir / "config.yaml").read_text())


def metrics(run_dir):
    """Rows of metrics.csv without the one column that is a matter of time."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "updates_per_second"} for row in csv.DictReader(file)
        ]


def files(folder):
    return {path: path.stat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize(("task", "unit"), [("FetchReach", "m"), ("CheetahTgtVel-m-e", "m/s")])
def test_the_curves_of_a_run_are_told_the_unit_of_its_goal(import_recipe, monkeypatch, tmp_path, task, unit):
    module, drawn = import_recipe("smore_offline"), []
    monkeypatch.setattr(module, "plot_curves", lambda *paths, **options: drawn.append(options["goal_columns"]))
    for name in ("write_summary", "write_model_card", "table_lines"):
        monkeypatch.setattr(module, name, lambda *args: {})
    trainer = SimpleNamespace(evaluator=object(), evaluations=[], step=1, updates_per_second=1.0)
    module.report(module.Config(task=task, rollout=False), get_task(task), tmp_path, trainer, 1.0)
    assert [goal_unit(columns) for columns in drawn] == [unit]


def test_a_run_folder_holds_config_metrics_summary_curves_checkpoint_and_rollout(finished):
    cwd, run_dir, _ = finished
    assert {path.name for path in run_dir.iterdir()} == {
        *("config.yaml", "metrics.csv", "summary.json", "curves.png", "checkpoint", "rollout.gif"),
        *("policy.json", "model_card.md", "best"),
    }
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run_dir / "rollout.gif").read_bytes().startswith(b"GIF8")
    assert sorted(path.name for path in (run_dir / "checkpoint").iterdir()) == ["step_000000008", "step_000000012"]
    assert sorted({int(row["step"]) for row in metrics(run_dir)}) == [2, 4, 6, 8, 10, 12]
    assert {path.name for path in cwd.iterdir()} == {"runs", "datasets"}
    assert [path.name for path in (cwd / "datasets").iterdir()] == ["PointReach_expert2_random18_seed0"]


def test_the_summary_has_exactly_the_promised_keys(finished):
    found = summary(finished[1])
    metrics = {
        *("success_last", "success_any", "discounted_return_0.98", "discounted_return_0.99"),
        *("return_over_max", "final_distance"),
    }
    assert list(found) == [
        *("task", "method", "formulation", "seeds", "steps", "updates_per_second", "seconds", "versions"),
        *("diverged", "eval", "runs"),
    ]
    assert found["diverged"] is None
    assert found["runs"] == [{"seed": 0, "eval": found["eval"]}]
    assert set(found["eval"]) == metrics | {"episodes", "intervals"}
    assert set(found["eval"]["intervals"]) == metrics
    assert all(
        low - 1e-9 <= found["eval"][key] <= high + 1e-9 for key, (low, high) in found["eval"]["intervals"].items()
    )
    assert (found["task"], found["method"], found["formulation"]) == ("PointReach", "smore", "in_sample")
    assert (found["seeds"], found["steps"], found["eval"]["episodes"]) == ([0], 12, 3)
    assert found["updates_per_second"] > 0
    assert {"torch", "torchrl", "mujoco", "gymnasium-robotics"} <= set(found["versions"])


def test_without_a_terminal_progress_is_one_line_for_each_evaluation(finished):
    _, run_dir, done = finished
    lines = [line for line in done.stdout.splitlines() if line.startswith("update ")]
    assert [line.split(":")[0] for line in lines] == ["update 6 of 12", "update 12 of 12"]
    assert f"success_last {summary(run_dir)['eval']['success_last']:.3f}" in lines[-1]
    assert "it/s" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    assert str(run_dir.name) in done.stdout


def test_the_next_run_takes_the_collected_dataset_from_its_folder(recipe, finished, tmp_path):
    shutil.copytree(finished[0] / "datasets", tmp_path / "datasets")
    before = files(tmp_path / "datasets")
    assert recipe("smore_offline.py", *QUICK, cwd=tmp_path).status == 0
    assert files(tmp_path / "datasets") == before


def test_help_lists_every_option(recipe, finished, tmp_path):
    for name, options in (
        ("smore_offline.py", config(finished[1])),
        ("collect_dataset.py", ["task", "out", "workers"]),
    ):
        shown = recipe(name, "--help", cwd=tmp_path)
        assert shown.status == 0
        assert all(re.search(rf"^  {option}=", shown.stdout, re.MULTILINE) for option in options)


@pytest.mark.parametrize("env_workers", [0, 2])
def test_a_run_that_evaluates_in_the_background_is_the_same_run(recipe, finished, tmp_path, env_workers):
    done = recipe("smore_offline.py", *SMALL, "evaluation=background", f"env_workers={env_workers}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    _, expected, _ = finished
    run_dir = only_run(tmp_path)
    assert metrics(run_dir) == metrics(expected)
    assert summary(run_dir)["eval"] == summary(expected)["eval"]
    assert re.findall(r"^update (\d+) of 12: success_last", done.stdout, re.MULTILINE) == ["6", "12"]


#: Several options to a run where they do not exclude each other, each with a value that is not its default.
TAKEN = (
    {"task": "PointRooms", "formulation": "official", "seed": 3, "env_workers": 2},
    {"formulation": "official_stable", "steps": 2, "batch_size": 5, "device": "auto"},
    {"formulation": "dual", "her_ratio": 0.5, "expert_fraction": 0.2, "networks": "official"},
    {"beta": 0.3, "expectile": 0.9, "temperature": 1.5, "normalize": False, "score_bounds": None},
    *({"formulation": "dual", "divergence": name} for name in ("kl", "squared_hellinger")),
    *({"formulation": "dual", "divergence": name} for name in ("jensen_shannon", "total_variation")),
)


@pytest.mark.parametrize("options", TAKEN, ids=lambda options: ", ".join(f"{k}={v}" for k, v in options.items()))
def test_options_are_taken_and_written_to_the_config(recipe, tmp_path, options):
    given = [f"{name}={'null' if value is None else value}" for name, value in options.items()]
    done = recipe("smore_offline.py", *QUICK, *given, cwd=tmp_path)
    assert done.status == 0, done.stderr
    run_dir = only_run(tmp_path)
    assert {name: config(run_dir)[name] for name in options} == options
    assert summary(run_dir)["steps"] == options.get("steps", 3)


def test_a_path_may_hold_signs_of_the_command_line(recipe, tmp_path):
    # as the folders of a grid do
    folder = 'expert=0.1 (a "quoted" name), [b]'
    done = recipe("smore_offline.py", *QUICK, f"run_root={folder}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    (run_dir,) = (tmp_path / folder).iterdir()
    done = recipe("evaluate.py", f"run={folder}/{run_dir.name}", "episodes=2", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert config(run_dir)["run_root"] == folder


@pytest.mark.parametrize(
    "method", ["gc_iql", "gc_sql", "gc_eql", "gc_xql", "gcsl", "gc_bc", "wgcsl", "gofar", "crl", "am"]
)
def test_every_baseline_trains_evaluates_and_resumes(recipe, tmp_path, store_path, method):
    options = (*READING, f"dataset={store_path}", f"method={method}", "save_interval=2")
    done = recipe("smore_offline.py", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    run_dir = only_run(tmp_path)
    first = summary(run_dir)
    assert (first["method"], first["formulation"], first["steps"]) == (method, None, 3)
    assert run_dir.name.endswith(f"PointReach_{method}_seed0")
    # back to the checkpoint before the last: the same result comes out again
    shutil.rmtree(run_dir / "checkpoint" / "step_000000003")
    done = recipe("smore_offline.py", f"resume={run_dir}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert summary(run_dir)["eval"] == first["eval"]


def test_rows_in_a_file_pass_through_memory_and_a_resumed_run_has_them_where_they_were(recipe, tmp_path, store_path):
    options = [*READING, f"dataset={store_path}", "mapped=.", "resident=700", "steps=12", "save_interval=6"]
    done = recipe("smore_offline.py", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    run_dir = only_run(tmp_path)
    whole = (run_dir / "metrics.csv").read_text()
    # as a kill after the first checkpoint leaves it
    shutil.rmtree(run_dir / "checkpoint" / "step_000000012")
    done = recipe("smore_offline.py", f"resume={run_dir}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    timed = ("seconds", "updates_per_second")
    before, after = (
        [
            {name: text for name, text in row.items() if not any(part in name for part in timed)}
            for row in csv.DictReader(text.splitlines())
        ]
        for text in (whole, (run_dir / "metrics.csv").read_text())
    )
    assert before == after
    assert before


def test_seeds_train_together_resume_and_are_summed_up(recipe, tmp_path, store_path):
    options = (*READING, f"dataset={store_path}", "seed=5", "save_interval=2", "log_interval=1")
    assert recipe("smore_offline.py", *options, "run_root=alone", cwd=tmp_path).status == 0
    done = recipe("smore_offline.py", *options, "seeds=2", cwd=tmp_path)
    assert done.status == 0, done.stderr
    run_dir = only_run(tmp_path)
    assert run_dir.name.endswith("PointReach_smore_in_sample_seeds5-6")
    first = summary(run_dir)
    assert first["seeds"] == [run["seed"] for run in first["runs"]] == [5, 6]
    one, two = (run["eval"]["final_distance"] for run in first["runs"])
    assert one != two
    assert first["eval"]["final_distance"] == pytest.approx((one + two) / 2)
    assert first["eval"]["std_over_seeds"]["final_distance"] == pytest.approx(abs(one - two) / 2**0.5)
    assert [(row["step"], row["seed"]) for row in metrics(run_dir) if row["loss_value"]] == [
        (step, seed) for step in "123" for seed in "56"
    ]
    assert f"by seed: {one:.3f}, {two:.3f}" in done.stdout
    # the first seed trains as it does without the second
    (alone,) = (tmp_path / "alone").iterdir()
    own = [row for row in metrics(run_dir) if row.pop("seed") == "5"]
    shared = {key for key in own[0] if not key.startswith("eval/")}
    for ours, reference in zip(own, metrics(alone), strict=True):
        assert {key: ours[key] for key in shared} == {key: reference[key] for key in shared}
    shutil.rmtree(run_dir / "checkpoint" / "step_000000003")
    done = recipe("smore_offline.py", f"resume={run_dir}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert summary(run_dir)["runs"] == first["runs"]


@pytest.mark.slow
def test_a_compiled_run_trains(recipe, tmp_path):
    # the loss that compiles fastest
    done = recipe("smore_offline.py", *QUICK, "method=gcsl", "compile=default", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert config(only_run(tmp_path))["compile"] == "default"


@pytest.mark.slow
def test_the_default_task_trains_and_is_filmed_or_says_why_not(recipe, tmp_path):
    options = [option for option in SMALL if not option.startswith(("task=", "num_trajectories="))]
    done = recipe("smore_offline.py", *options, "num_trajectories=4", "expert_fraction=0.5", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert summary(only_run(tmp_path))["task"] == "FetchReach"
    last = done.stdout.splitlines()[-1]
    assert last.startswith("rollout: ") if (only_run(tmp_path) / "rollout.gif").exists() else "libegl1" in last


@pytest.mark.parametrize("library", ["glfw", "bogus"])
@pytest.mark.slow
def test_a_run_without_opengl_ends_well_and_says_what_to_install(recipe, tmp_path, library):
    options = [option for option in SMALL if not option.startswith(("task=", "num_trajectories="))]
    done = recipe(
        *("smore_offline.py", *options, "num_trajectories=4", "steps=2"),
        cwd=tmp_path,
        env={"MUJOCO_GL": library, "DISPLAY": "", "WAYLAND_DISPLAY": ""},
    )
    assert done.status == 0, done.stderr
    assert not (only_run(tmp_path) / "rollout.gif").exists()
    last = done.stdout.splitlines()[-1]
    assert last.startswith("no rollout.gif: ")
    assert ("libegl1" if library == "glfw" else "egl, osmesa") in last


def test_a_store_and_a_buffer_pkl_are_trained_on(recipe, tmp_path, store_path, buffer):
    import pickle

    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(buffer))
    for dataset, counted in ((store_path, "trajectories 20 "), (tmp_path / "buffer.pkl", "trajectories 6 ")):
        done = recipe("smore_offline.py", *READING, f"dataset={dataset}", f"run_root={dataset.name}_runs", cwd=tmp_path)
        assert done.status == 0, done.stderr
        assert counted in done.stdout
    assert not (tmp_path / "datasets").exists()


@pytest.fixture
def foreign(tmp_path, buffer):
    """The trajectories of ``buffer`` as a D4RL and an OGBench file, which hold no goals."""
    import h5py

    action = np.concatenate([buffer["u"], np.zeros((6, 1, 2))], 1).reshape(-1, 2)
    held = {"observations": buffer["o"].reshape(-1, 2), "actions": action}
    ends = np.tile(np.arange(51) == 50, 6)
    np.savez(tmp_path / "a.npz", **held, terminals=ends)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, array in {**held, "timeouts": ends, "terminals": np.zeros(306)}.items():
            file[name] = array
    return tmp_path


@pytest.mark.parametrize("name", ["a.hdf5", "a.npz"])
def test_files_without_goals_are_trained_on_with_the_goals_that_options_name(recipe, foreign, name):
    options = (*READING, f"dataset={name}", "goal_columns=[0,1]", "desired_goal=[3,-4]")
    done = recipe("smore_offline.py", *options, cwd=foreign)
    assert done.status == 0, done.stderr
    assert "trajectories 6 of 50 to 50 transitions" in done.stdout
    config = yaml.safe_load((only_run(foreign) / "config.yaml").read_text())
    assert (config["goal_columns"], config["desired_goal"]) == ([0, 1], [3.0, -4.0])


def test_actions_and_goals_outside_of_the_spaces_are_said_and_clipped_on_request(recipe, foreign):
    with np.load(foreign / "a.npz") as held:
        arrays = dict(held)
    arrays["actions"][60, 0] = 7.0
    np.savez(foreign / "a.npz", **arrays)
    options = (*READING, "dataset=a.npz", "goal_columns=[0,1]", "desired_goal=[30,-4]")
    done = recipe("smore_offline.py", *options, cwd=foreign)
    assert done.status == 0, done.stderr
    # 51 states an episode: row 60 of the file is transition 59
    said = done.stdout + done.stderr
    assert "'action' lies outside of what PointReach allows, [-1.0, 1.0], in 1 of 300 rows" in said
    assert "the first is row 59 with [7, " in said
    assert "'desired_goal' lies outside" in said
    done = recipe("smore_offline.py", *options, "clip_actions=true", cwd=foreign)
    assert done.status == 0, done.stderr
    digests = {json.loads(path.read_text())["dataset_sha256"] for path in foreign.glob("runs/*/checkpoint/*/meta.json")}
    assert len(digests) == 2
    before = files(foreign)
    refused = recipe("smore_offline.py", *QUICK, "clip_actions=true", cwd=foreign)
    assert_refused(refused, foreign, before, "clip_actions", "of no use without dataset=")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["dataset=a.hdf5"], ["dataset=a.hdf5", "no goals", "position x [1], position y [1]", "goal_columns"]),
        (["dataset=a.hdf5", "goal_columns=[0]"], ["a.hdf5", "'goal_dim': 2", "'goal_dim': 1"]),
        (["dataset=a.hdf5", "desired_goal=[1,2]"], ["desired_goal needs goal_columns"]),
        (["dataset=a.hdf5", "dataset_format=d4r"], ["dataset_format", "'d4r'", "d4rl"]),
        (
            ["dataset=a.npz", "task=FetchReach"],
            ["a.npz", "'FetchReach'", "'observation_dim': 10", "'observation_dim': 2"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_file_that_does_not_fit_the_task_or_the_options_is_refused(recipe, foreign, options, said):
    before = files(foreign)
    given = [option for option in READING if not (option.startswith("task=") and options[-1].startswith("task="))]
    assert_refused(recipe("smore_offline.py", *given, *options, cwd=foreign), foreign, before, *said)


def test_what_a_task_leaves_blank_is_left_out_of_a_file_too(recipe, tmp_path):
    """A buffer of the paper's Reacher holds the original target in columns 4 and 5, ours holds 0."""
    import pickle

    from torchrl_smore.data import readers
    from torchrl_smore.envs import TASKS

    rng, path = np.random.default_rng(0), tmp_path / "buffer.pkl"
    buffer = {"o": rng.normal(size=(6, 51, 11)), "u": rng.uniform(-1, 1, (6, 50, 2))}
    buffer |= {"ag": buffer["o"][..., 8:10], "g": rng.uniform(-0.1, 0.1, (6, 50, 2))}
    path.write_bytes(pickle.dumps(buffer))
    done = recipe("smore_offline.py", *READING, "task=Reacher", f"dataset={path}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    (meta,) = (only_run(tmp_path) / "checkpoint").glob("step_*/meta.json")
    trained_on = json.loads(meta.read_text())["dataset_sha256"]

    as_it_is = readers.wgcsl.read(path, reached=TASKS["Reacher"].reached).sha256
    buffer["o"][..., [4, 5, 10]] = 0.0
    path.write_bytes(pickle.dumps(buffer))
    assert trained_on == readers.wgcsl.read(path, reached=TASKS["Reacher"].reached).sha256 != as_it_is


def test_expert_fraction_thins_a_given_dataset(recipe, tmp_path, store_path):
    done = recipe("smore_offline.py", *READING, f"dataset={store_path}", "expert_fraction=0.5", cwd=tmp_path)
    assert "trajectories 8 " in done.stdout  # 4 experts and as many random ones


def test_a_run_killed_in_the_middle_resumes_to_the_same_result(recipe, finished, tmp_path):
    shutil.copytree(finished[0] / "datasets", tmp_path / "datasets")
    # slow enough to be hit: there is a checkpoint every 4 updates and an evaluation after each
    options = (*SMALL, "steps=60", "eval_interval=4", "eval_episodes=50", "rollout=false")
    with recipe.started("smore_offline.py", *options, cwd=tmp_path) as run:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/*/checkpoint/step_*8")):
            assert run.status() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait(60).status == -signal.SIGKILL
    killed = only_run(tmp_path)
    assert not (killed / "summary.json").exists()
    at = max(int(path.name.removeprefix("step_")) for path in (killed / "checkpoint").glob("step_*"))

    resumed = recipe("smore_offline.py", f"resume={killed}", cwd=tmp_path)
    straight = recipe("smore_offline.py", *options, "run_root=straight", cwd=tmp_path)

    assert resumed.status == straight.status == 0, resumed.stderr
    assert f"at update {at:,} of 60" in resumed.stdout
    (other,) = (tmp_path / "straight").iterdir()
    assert summary(killed)["eval"] == summary(other)["eval"]
    assert metrics(killed) == metrics(other)


def test_a_run_resumes_where_its_dataset_has_gone_and_only_on_that_content(recipe, tmp_path, store_path):
    shutil.copytree(store_path, tmp_path / "store")
    options = (*READING, "save_interval=2", "dataset=store")
    assert recipe("smore_offline.py", *options, cwd=tmp_path).status == 0
    run_dir = only_run(tmp_path)
    shutil.rmtree(run_dir / "checkpoint" / "step_000000003")
    (tmp_path / "store").rename(tmp_path / "moved")
    gone = recipe("smore_offline.py", f"resume={run_dir}", cwd=tmp_path)
    assert gone.status != 0
    assert "dataset=store: store does not exist" in gone.stderr
    done = recipe("smore_offline.py", f"resume={run_dir}", "dataset=moved", "threads=2", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert "at update 2 of 3" in done.stdout
    other = TrajectoryStore.load(tmp_path / "moved")
    other.data["action"] *= 0.5
    other.save(tmp_path / "other")
    policy = (tmp_path / run_dir / "policy.json").read_bytes()
    refused = recipe("smore_offline.py", f"resume={run_dir}", "dataset=other", cwd=tmp_path)
    assert refused.status != 0
    assert "dataset_sha256" in refused.stderr
    assert (tmp_path / run_dir / "policy.json").read_bytes() == policy


def test_what_a_run_has_collected_is_read_whole_where_it_lies_now(recipe, import_recipe, tmp_path):
    # 45 x 0.1 rounds to 4 experts: a share of 0.1 of what there is would be 4 of 40
    options = ("steps=2", "save_interval=1", "num_trajectories=45", "expert_fraction=0.1")
    done = recipe("smore_offline.py", *READING, *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    run_dir = only_run(tmp_path)
    shutil.rmtree(run_dir / "checkpoint" / "step_000000002")
    (tmp_path / "datasets" / "PointReach_expert4_random41_seed0").rename(tmp_path / "moved")
    (tmp_path / "datasets").rmdir()
    done = recipe("smore_offline.py", f"resume={run_dir}", "dataset=moved", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert "trajectories 45 " in done.stdout
    assert "at update 1 of 2" in done.stdout
    assert config(run_dir)["expert_fraction"] == 0.1
    diagnose = import_recipe("diagnose")
    run, _, meta = diagnose.read_run(run_dir, str(tmp_path / "moved"))
    assert diagnose.find_dataset(run, get_task("PointReach")).sha256 == meta["dataset_sha256"]


def test_stored_rewards_that_contradict_the_task_are_said_and_not_used(recipe, tmp_path, store_path):
    store = TrajectoryStore.load(store_path)
    truth = store.data["next", "reward"].clone()
    store.data["next", "reward"][:] = 1.0
    store.save(tmp_path / "store")
    done = recipe("smore_offline.py", *READING, "dataset=store", cwd=tmp_path)
    assert done.status == 0, done.stderr
    wrong = int((truth != 1.0).sum())
    said = f"store: {wrong} of 1000 rewards contradict the rule of the task, the first in row"
    assert said in done.stdout + done.stderr
    assert store.summary() not in done.stdout
    assert TrajectoryStore.load(store_path).summary() in done.stdout


def test_a_file_without_timeouts_is_cut_at_the_horizon_of_the_task(recipe, foreign):
    import h5py

    options = (*READING, "dataset=a.hdf5", "goal_columns=[0,1]")
    with h5py.File(foreign / "a.hdf5", "a") as file:
        file["timeouts"][:] = 0
    done = recipe("smore_offline.py", *options, cwd=foreign)
    assert done.status == 0, done.stderr
    said = "a trajectory of 305 transitions, and an episode of PointReach has 50"
    assert said in done.stdout + done.stderr
    with h5py.File(foreign / "a.hdf5", "a") as file:
        del file["timeouts"]
    done = recipe("smore_offline.py", *options, cwd=foreign)
    assert done.status == 0, done.stderr
    assert "has no timeouts: its episodes are cut after 50 steps" in done.stdout + done.stderr
    # 306 rows, the last of each 50 gives only a state
    assert "trajectories 7 of 5 to 49 transitions" in done.stdout
    assert "7 transitions of a.hdf5 left out" in done.stdout


def test_a_finished_run_resumes_to_its_own_summary(recipe, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    run_dir = only_run(tmp_path)
    before = summary(run_dir)
    (run_dir / "summary.json").unlink()
    done = recipe("smore_offline.py", f"resume={run_dir}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    found = summary(run_dir)
    assert found["eval"] == before["eval"]
    assert found["updates_per_second"] is None
    assert "nan" not in done.stdout


def test_a_finished_run_that_is_resumed_keeps_its_times_and_is_filmed_on_request(recipe, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    run_dir = only_run(tmp_path)
    before = {**summary(run_dir), "updates_per_second": 123.25, "seconds": 4567.5}
    (run_dir / "summary.json").write_text(json.dumps(before))
    (run_dir / "config.yaml").write_text(
        (run_dir / "config.yaml").read_text().replace("rollout: true", "rollout: false")
    )
    (run_dir / "rollout.gif").unlink()
    done = recipe("smore_offline.py", f"resume={run_dir}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert summary(run_dir) == before
    assert not (run_dir / "rollout.gif").exists()
    # the option's default, and another value than the run's
    done = recipe("smore_offline.py", f"resume={run_dir}", "rollout=true", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert (run_dir / "rollout.gif").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(recipe, tmp_path, finished, signum):
    shutil.copytree(finished[0] / "datasets", tmp_path / "datasets")
    # a run as long as this would be compiled
    options = (*SMALL, "steps=1000000", "save_interval=1000000", "eval_interval=1000000", "compile=off")
    with recipe.started("smore_offline.py", *options, cwd=tmp_path) as run:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in tmp_path.glob("runs/*/metrics.csv")):
            assert run.status() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(run.pid, signum)
        done = run.wait(60)
    assert done.status == 128 + signum
    assert "Traceback" not in done.stderr
    run_dir = only_run(tmp_path)
    assert f"resume={run_dir.relative_to(tmp_path)}" in done.stderr.splitlines()[-1]
    assert len(list((run_dir / "checkpoint").glob("step_*"))) == 1


def assert_refused(done, cwd, before, *said):
    assert done.status == 2, done.stdout + done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    for text in said:
        assert text in errors[0], errors[0]
    assert files(cwd) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["task=PointReech"], ["'PointReech'", "Did you mean 'PointReach'?"]),
        (["method=smoer"], ["'smoer'", "smore"]),
        (["method=gc_iql", "beta=0.3"], ["method=gc_iql has no option beta", "expectile, temperature, gamma"]),
        (["method=gcsl", "target_rate=0.1"], ["method=gcsl has no target network"]),
        (["method=gofar", "ensemble=3"], ["method=gofar has no score, Q or critic, so no ensemble"]),
        (["ensemble=0"], ["ensemble", "[1, 100]", "0"]),
        (["method=crl", "layer_norm=all"], ["method=crl has LayerNorm by option in actor", "layer_norm=all"]),
        (["method=crl_td", "layer_norm=actor"], ["method=crl_td has LayerNorm by option in no network"]),
        (["layer_norm=critcs"], ["critics, actor, all", "layer_norm=critcs"]),
        (["task=FetchReach", "pixels=48", "layer_norm=all"], ["layer_norm", "not with pixels=", "pixel_norm"]),
        (["actor_weight_decay=-1"], ["actor_weight_decay", "[0, 1000]", "-1"]),
        (["taks=PointReach"], ["taks", "Did you mean task?"]),
        (["nonsense"], ["nonsense", "name=value"]),
        (["formulation=in_smaple"], ["'in_smaple'", "Did you mean 'in_sample'?"]),
        (["divergence=pearson_chi"], ["'pearson_chi'", "Did you mean 'pearson_chi2'?"]),
        (["networks=papr"], ["'papr'", "paper"]),
        (["precision=bf61"], ["'bf61'", "bf16"]),
        (["compile=maxi"], ["'maxi'", "max"]),
        (["logger=wanbd"], ["'wanbd'", "wandb"]),
        (["device=gpu"], ["'gpu'", "cuda"]),
        (["steps=0"], ["steps", "at least 1", "0"]),
        (["seed=-1"], ["seed", "-1"]),
        (["her_ratio=2"], ["her_ratio", "[0, 1]", "2"]),
        (["her_ratio=nan"], ["her_ratio", "nan"]),
        (["expert_fraction=1.5"], ["expert_fraction", "1.5"]),
        (["expectile=1"], ["expectile", "(0, 1)", "1"]),
        (["beta=0"], ["beta", "0"]),
        (["gamma=1"], ["gamma", "1"]),
        (["temperature=-1"], ["temperature", "-1"]),
        (["target_rate=0"], ["target_rate", "(0, 1]"]),
        (["learning_rate=-1"], ["learning_rate", "-1"]),
        (["learning_rate=1e30"], ["learning_rate", "(0, 1]", "1e+30"]),
        (["num_trajectories=99999999999999"], ["num_trajectories", "at most 10,000,000", "99999999999999"]),
        (["steps=" + "9" * 60], ["steps", "at most 1,000,000,000", "999..."]),
        (["seed=99999999999999999999"], ["seed", "at most 2,147,482,647"]),
        (["batch_size=99999999999"], ["batch_size", "at most 1,000,000"]),
        (["action_noise=1e30"], ["action_noise", "[0, 1000]"]),
        (["goal_columns=[0,1]"], ["goal_columns", "dataset="]),
        (["dataset_format=d4rl", "desired_goal=[1.0]"], ["dataset_format, desired_goal", "dataset="]),
        (["on_divergence=ignore"], ["'ignore'", "stop, continue"]),
        (["steps=many"], ["steps=many", "Integer"]),
        (["seed=1.5"], ["seed=1.5", "Integer"]),
        (["seed=0,1"], ["seed=0,1", "--multirun"]),
        (["dataset=/tmp/a=b"], ["/tmp/a=b does not exist"]),
        (["dataset=nowhere"], ["dataset=nowhere", "does not exist"]),
        (["dataset=x", "num_trajectories=5", "expert_noise=0.7"], ["num_trajectories, expert_noise", "with dataset="]),
        (
            ["method=crl_td", "min_std=0.1"],
            ["method=crl_td", "read the likelihood of its actor, so it has no min_std"],
        ),
        (["resume=nowhere"], ["resume=nowhere", "config.yaml"]),
        (["resident=100"], ["resident", "without mapped="]),
        (["mapped=nowhere"], ["mapped=nowhere", "expected an existing folder"]),
        (["mapped=.", "resident=0"], ["resident must be at least 1", "got 0"]),
        (["compile=off", "compile_cache=kept"], ["compile_cache", "of no use with compile=off"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_bad_option_is_refused_in_one_line_before_anything_is_written(recipe, tmp_path, options, said):
    sizes = READING if options[0].startswith("dataset=") else QUICK
    given = [option for option in sizes if not options[0].startswith((option.split("=")[0] + "=", "resume"))]
    assert_refused(recipe("smore_offline.py", *given, *options, cwd=tmp_path), tmp_path, {}, *said)


def test_a_gpu_that_is_not_there_is_refused(recipe, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert_refused(recipe("smore_offline.py", *QUICK, "device=cuda", cwd=tmp_path), tmp_path, {}, "device=cuda", "cpu")


def test_a_rule_that_chooses_no_row_ends_before_training_and_auto_says_what_it_does_instead(recipe, tmp_path):
    still = {"observation": np.zeros((6, 2)), "achieved_goal": np.zeros((6, 2)), "action": np.zeros((5, 2))}
    episodes = [{**still, "desired_goal": np.full(2, 0.9), "reward": np.zeros(5)} for _ in range(4)]
    TrajectoryStore.from_episodes(episodes).save(tmp_path / "still")
    command = (*READING, f"dataset={tmp_path / 'still'}")
    for rule, needs in (("moving", "moves by more than the threshold"), ("reaching", "positive reward")):
        done = recipe("smore_offline.py", *command, f"anchors={rule}", cwd=tmp_path)
        assert done.status == 2
        assert f"the anchor rule '{rule}' chooses none of 20 rows: it needs" in done.stderr
        assert needs in done.stderr
        assert not (tmp_path / "runs").exists()
    done = recipe("smore_offline.py", *command, cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert "all draws are from all rows, in place of 20% of them" in done.stdout


def test_a_dataset_of_another_task_is_refused(recipe, tmp_path, store_path):
    for task, said in (("PointRooms", ["PointReach", "PointRooms"]), ("FetchReach", ["FetchReach", "10", "2"])):
        done = recipe("smore_offline.py", *READING, f"task={task}", f"dataset={store_path}", cwd=tmp_path)
        assert_refused(done, tmp_path, {}, *said)


def test_a_damaged_store_is_refused(recipe, tmp_path, store_path):
    path = tmp_path / "store"
    shutil.copytree(store_path, path)
    column = path / "data" / "action.memmap"
    content = bytearray(column.read_bytes())
    content[17] ^= 1
    column.write_bytes(content)
    before = files(tmp_path)
    done = recipe("smore_offline.py", *READING, f"dataset={path}", cwd=tmp_path)
    assert_refused(done, tmp_path, before, "action.memmap")


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


@pytest.mark.parametrize("fault", ["truncated", "code", "nan", "dimensions", "goals", "text"])
def test_a_bad_buffer_pkl_is_refused_and_runs_no_code(recipe, tmp_path, buffer, fault):
    import pickle

    if fault == "code":
        buffer["o"] = Evil()
    if fault == "nan":
        buffer["o"][1, 2, 0] = np.nan
    if fault == "dimensions":
        buffer["o"] = np.concatenate([buffer["o"], buffer["o"]], -1)
    if fault == "goals":
        buffer["g"] = buffer["g"][..., :1]
    content = pickle.dumps(buffer)
    content = {"truncated": content[:1000], "text": b"not a pickle"}.get(fault, content)
    path = tmp_path / "buffer.pkl"
    path.write_bytes(content)
    before = files(tmp_path)
    said = {"nan": "nan", "dimensions": "observation_dim", "goals": "'g'"}.get(fault, "buffer.pkl")
    done = recipe("smore_offline.py", *READING, f"dataset={path}", cwd=tmp_path)
    assert_refused(done, tmp_path, before, said)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("other options", ["drop steps, batch_size"]),
        ("another task", ["task='PointReach'", "'PointRooms'"]),
        ("an unknown option in config.yaml", ["config.yaml", "colour"]),
        ("a wrong type in config.yaml", ["config.yaml", "many"]),
        ("no YAML", ["config.yaml"]),
        ("another batch size", ["batch_size=8", "expected 9"]),
        ("another precision", ["precision='float32'", "expected 'bf16'"]),
        ("more steps", ["steps=12", "expected 24"]),
        ("aliases", ["config.yaml", "alias"]),
        ("an interpolation", ["config.yaml", "threads"]),
        ("an interpolation in a text", ["${oc.env:HOME}"]),
        ("a checkpoint with an edited meta", ["was edited"]),
        ("a damaged checkpoint", ["damaged"]),
        ("a checkpoint without its meta", ["checkpoint"]),
    ],
)
def test_a_run_that_cannot_be_resumed_is_refused_and_left_alone(recipe, tmp_path, finished, fault, said):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    run_dir = only_run(tmp_path)
    latest = run_dir / "checkpoint" / "step_000000012"
    text = (run_dir / "config.yaml").read_text()
    more = {
        "another task": text.replace("PointReach", "PointRooms"),
        "an unknown option in config.yaml": text + "colour: red\n",
        "a wrong type in config.yaml": text.replace("steps: 12", "steps: many"),
        "no YAML": "{[",
        "another batch size": text.replace("batch_size: 8", "batch_size: 9"),
        "another precision": text.replace("precision: float32", "precision: bf16"),
        "more steps": text.replace("\nsteps: 12", "\nsteps: 24"),
        "aliases": "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n" + text,
        "an interpolation": text.replace("threads: 1", "threads: ${oc.env:SMORE_NUMBER}"),
        "an interpolation in a text": text.replace("task: PointReach", "task: ${oc.env:HOME}"),
    }
    assert fault not in more or more[fault] != text
    (run_dir / "config.yaml").write_text(more.get(fault, text))
    if fault == "a damaged checkpoint":
        content = bytearray((latest / "state.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (latest / "state.pt").write_bytes(content)
    if fault == "a checkpoint without its meta":
        for step in ("step_000000008", "step_000000012"):
            (run_dir / "checkpoint" / step / "meta.json").unlink()
    if fault == "a checkpoint with an edited meta":
        meta = latest / "meta.json"
        meta.write_text(meta.read_text().replace('"total_steps": 12', '"total_steps": 13'))
    before = files(tmp_path)
    options = ("steps=5", "batch_size=3") if fault == "other options" else ()
    done = recipe("smore_offline.py", f"resume={run_dir}", *options, cwd=tmp_path, env={"SMORE_NUMBER": "1"})
    assert_refused(done, tmp_path, before, *said)


def test_a_second_process_is_kept_out_of_a_run_folder_by_the_name_of_the_first(recipe, tmp_path, finished):
    from torchrl_smore.trainers import locked

    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    run_dir = only_run(tmp_path)
    with locked(run_dir / ".lock", "run folder"):
        before = files(tmp_path)
        done = recipe("smore_offline.py", f"resume={run_dir}", cwd=tmp_path)
        assert_refused(done, tmp_path, before, f"run folder {run_dir} is in use by process {os.getpid()} on ")
    (run_dir / "summary.json").unlink()
    # of a process that cannot be: the largest number of one has seven digits
    (run_dir / ".config.yaml.99999999.partial").write_text("half")
    (run_dir / ".graph.99999999.partial").mkdir()
    (run_dir / "checkpoint" / ".partial_x").mkdir()
    assert recipe("smore_offline.py", f"resume={run_dir}", cwd=tmp_path).status == 0
    assert not list(run_dir.rglob(".*"))


def test_a_second_process_waits_for_a_dataset_and_takes_what_the_first_has_made(import_recipe, tmp_path, store_path):
    from torchrl_smore.envs import get_task
    from torchrl_smore.trainers import locked

    datasets, task = import_recipe("parts.datasets"), get_task("PointReach")
    request = {"num_trajectories": 20, "expert_fraction": 0.2, "seed": 0}
    out = datasets.dataset_folder(str(tmp_path), task, **request)
    holding, found = threading.Event(), []

    def first():
        with locked(out.with_name(f".{out.name}.lock"), "dataset"):
            holding.set()
            time.sleep(1.0)
            shutil.copytree(store_path, out)

    thread = threading.Thread(target=first)
    thread.start()
    holding.wait()
    found.append(datasets.collect_or_load(task, str(tmp_path), **request))
    thread.join()
    assert found[0].num_trajectories == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_a_run_that_diverges_says_where_and_leaves_a_summary_with_null(
    import_recipe, tmp_path, store_path, monkeypatch
):
    smore_offline = import_recipe("smore_offline")

    class Diverging(smore_offline.OfflineTrainer):
        def optim_steps(self, batch):
            if self.step > 8:
                next(self.update.losses[0].parameters()).data.fill_(float("nan"))
            super().optim_steps(batch)

    monkeypatch.setattr(smore_offline, "OfflineTrainer", Diverging)
    options = dict(option.split("=") for option in SMALL if not option.startswith(("num_traj", "rollout")))
    numbers = {key: int(value) for key, value in options.items() if value.isdecimal()}
    config = smore_offline.Config(
        **{**options, **numbers, "dataset": str(store_path), "run_root": str(tmp_path / "runs"), "rollout": False}
    )
    with pytest.raises(smore_offline.DivergedError, match="step_000000008"):
        smore_offline.train(config)
    run_dir = only_run(tmp_path)
    found = summary(run_dir)
    assert found["diverged"]["update"] in (9, 10, 11, 12)
    assert found["diverged"]["loss"].startswith("loss_")
    assert (found["eval"], found["runs"]) == (None, [{"seed": 0, "eval": None}])


def test_a_full_disk_is_told_in_one_line_and_leaves_no_broken_checkpoint(recipe, tmp_path, store_path):
    done = recipe("smore_offline.py", *READING, f"dataset={store_path}", cwd=tmp_path, file_limit=100_000)
    assert done.status == 2, done.stdout + done.stderr
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert "best/seed_0/step_" in error  # the first networks that are written, after the only evaluation
    assert "a checkpoint needs about" in error
    assert not list(only_run(tmp_path).glob("checkpoint/*"))
    assert not list(only_run(tmp_path).glob("best/*/*"))


def test_a_disk_full_from_the_start_leaves_nothing(recipe, tmp_path, store_path):
    # more than what is said, which goes to files too, and less than config.yaml has
    done = recipe("smore_offline.py", *READING, f"dataset={store_path}", cwd=tmp_path, file_limit=1000)
    assert done.status == 2
    assert "config.yaml" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []
