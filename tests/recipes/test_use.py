"""Evaluating, exporting and describing a finished run, as a user does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper

from torchrl_smore import load_policy, load_value
from torchrl_smore.envs import EnvPool, collect, get_task
from torchrl_smore.envs.experts import ActorExpert
from torchrl_smore.modules import goal_specs
from torchrl_smore.trainers import (
    ActorPolicy,
    Evaluator,
    latest_checkpoint,
    load_checkpoint,
    locked,
    record_policy,
    save_checkpoint,
)

TINY = ("task=PointReach", "num_trajectories=20", "batch_size=8", "eval_episodes=2", "eval_interval=2", "threads=1")
# the anchors are named because these runs have too few rows for a rule to matter
QUICK = (*TINY, "steps=4", "save_interval=2", "rollout=false", "device=cpu", "anchors=uniform")


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """Working directory and run folder of two seeds."""
    cwd = tmp_path_factory.mktemp("trained")
    done = recipe("smore_offline.py", *QUICK, "seeds=2", cwd=cwd)
    assert done.status == 0, done.stderr
    (run,) = (cwd / "runs").iterdir()
    return cwd, run


def rows(count=50):
    rng = np.random.default_rng(3)
    return tuple(rng.uniform(-5, 5, (count, 2)).astype(np.float32) for _ in range(2))


METHODS = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes" / "configs" / "method").glob("*.yaml"))


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_policy_of_every_method_is_loaded_as_it_was_trained(import_recipe, tmp_path, method, normalize):
    methods = import_recipe("parts.methods")
    assert set(METHODS) == set(methods.METHODS)
    statistics = {"observation": (torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0.5, 2.0, 1.0]))}
    statistics["desired_goal"] = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.1])
    options = {"actor": "awr"} if method == "crl" else {}
    setting = methods.Setting(
        goal_specs(3, 2, 2), "official", statistics if normalize else None, True, options, clip=2.5
    )
    loss = methods.METHODS[method].build(setting)
    columns = {"observation": ["a", "b", "c"], "desired_goal": ["d", "e"], "action": ["f", "g"]}
    record_policy(tmp_path, loss, columns=columns, about={"method": method})
    save_checkpoint(tmp_path / "checkpoint", 1, {"update": {"seeds": [7], "losses": [loss.state_dict()]}}, {})
    rng = np.random.default_rng(0)
    observation, goal, action = (rng.normal(size=(16, n)).astype(np.float32) * 4 for n in (3, 2, 2))
    expected = ActorPolicy(loss)({"observation": observation, "desired_goal": goal})
    np.testing.assert_allclose(load_policy(tmp_path)(observation, goal), expected, atol=1e-6)
    if method in ("gcsl", "hindsight_bc", "gc_bc"):
        with pytest.raises(ValueError, match="has neither value nor score"):
            load_value(tmp_path)
        return
    value = load_value(tmp_path)
    if method in ("wgcsl", "wgcsl_original", "am", "crl_td"):
        with pytest.raises(ValueError, match=f"method '{method}' .* has no state value"):
            value(observation, goal)
    else:
        assert np.isfinite(value(observation, goal)).all()
        assert value(observation, goal).std() > 0
    if method == "gofar":
        with pytest.raises(ValueError, match="has no score"):
            value.score(observation, goal, action)
    else:
        assert value.score(observation, goal, action).shape == (16,)
    if method == "crl":
        batch = {"observation": observation, "action": action, "desired_goal": goal}
        expected = loss._energy("critic_network", as_batch(batch), loss.critic_network_params)
        np.testing.assert_allclose(value.score(observation, goal, action), expected.detach(), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_network_of_every_method_has_the_precision_that_is_asked_for(import_recipe, method):
    methods = import_recipe("parts.methods")
    setting = methods.Setting(goal_specs(3, 2, 2), "paper", None, True, {}, precision="bf16")
    loss = methods.METHODS[method].build(setting)
    kinds = ("actor", "score", "value", "qvalue", "critic", "discriminator")
    networks = [getattr(loss, f"{kind}_network", None) for kind in kinds]
    parts = [part for network in networks if network is not None for part in network.modules()]
    # a head that scales its trunk's output has none of its own
    assert {part.precision for part in parts if hasattr(part, "precision")} == {"bf16"}


def test_the_card_of_a_run_on_given_data_names_no_place_and_nothing_that_was_not_collected(import_recipe):
    card = import_recipe("parts.model_card")
    config = import_recipe("parts.options").Config(dataset="/home/me/store", num_trajectories=1000, compile_cache="/c")
    about = {"success_rule": "near", "data": {"composition": [], "trajectories": 3, "transitions": 9, "sha256": "d"}}
    about |= {"columns": {}, "action_range": [-1, 1], "commit": None}
    evaluation = {"episodes": 1, "intervals": {}}
    summary = {"task": "PointReach", "method": "smore", "formulation": None, "steps": 4, "seeds": [0], "versions": {}}
    summary |= {"eval": evaluation, "runs": [{"eval": evaluation}]}
    given = "\n".join(card._card("run", summary, about, vars(config)))
    assert "/home/me" not in given
    assert "/c" not in given
    assert "`num_trajectories`" not in given
    assert "- `num_trajectories`: 1000" in "\n".join(
        card._card("run", summary, about, {**vars(config), "dataset": None})
    )


def as_batch(arrays):
    from tensordict import TensorDict

    return TensorDict({key: torch.from_numpy(value) for key, value in arrays.items()}, [16])


def test_a_run_has_a_card_that_says_what_it_is_what_it_achieves_and_how_to_load_it(trained):
    run = trained[1]
    card = (run / "model_card.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert card.startswith("# PointReach, smore (in_sample)\n")
    for text in (
        *("4 updates", "seeds 0, 1", "20 trajectories, 1,000 transitions (2 expert, 18 random)"),
        *(f'load_policy("{run.name}")', "position x [1]; position y [1]", "- `batch_size`: 8", "torchrl-smore 0.1.0"),
        *("distance between achieved and desired goal of at most 1", f"torch {torch.__version__}"),
    ):
        assert text in card
    seeds = ", ".join(f"{own['eval']['final_distance']:.3f}" for own in summary["runs"])
    assert f"| final_distance | {summary['eval']['final_distance']:.3f} | {seeds} |" in card
    sha = json.loads((run / "policy.json").read_text())["data"]["sha256"]
    assert sha in card
    store = collect("PointReach", expert_episodes=2, random_episodes=18, seed=0, progress=False)
    assert sha == store.sha256


def test_an_evaluation_equals_the_evaluator_on_the_loaded_policies(recipe, trained):
    cwd, run = trained
    done = recipe("evaluate.py", f"run=runs/{run.name}", "episodes=6", "noise=0.3", "first_seed=500", cwd=cwd)
    assert done.status == 0, done.stderr
    (out,) = run.glob("evaluation_*")
    result = json.loads((out / "evaluation.json").read_text())
    task = get_task("PointReach")
    policies = [load_policy(run, seed=seed) for seed in (0, 1)]
    with EnvPool(task, 4, action_noise=0.3) as pool:
        evaluator = Evaluator(pool, episodes=6, first_seed=500, gammas=task.gammas)
        expected = evaluator.run_all([lambda o, p=p: p(o["observation"], o["desired_goal"]) for p in policies])
    for own, evaluation in zip(result["runs"], expected):
        assert own["eval"] == evaluation.summary()
    success = np.mean([evaluation.per_episode["success_last"] for evaluation in expected], 0)
    assert result["failed_seeds"] == [500 + int(e) for e in np.flatnonzero(success < 1)]
    assert result["versions"]["torch"] == torch.__version__
    assert (out / "goals.png").read_bytes().startswith(b"\x89PNG")
    assert f"success {success.mean():.3f} over 6 episodes, action noise 0.3" in done.stdout.splitlines()[-3]


def test_torchrl_takes_the_module_as_it_is(trained):
    policy = load_policy(trained[1])
    env = GymWrapper(get_task("PointReach").make_env())
    rollout = env.rollout(5, policy=policy.module)
    assert rollout.shape == (5,)
    torch.testing.assert_close(rollout["action"], policy(rollout["observation"], rollout["desired_goal"]))
    # of that argument TorchRL 0.14 wants to be told something, whatever the policy
    options = {"frames_per_batch": 10, "total_frames": 20, "auto_register_policy_transforms": False}
    collector = Collector(env, policy.module, **options)
    batches = list(collector)
    collector.shutdown()
    assert len(batches) == 2
    for batch in batches:
        torch.testing.assert_close(batch["action"], policy(batch["observation"], batch["desired_goal"]))


def test_another_run_is_compared_on_the_same_episodes(recipe, trained, tmp_path):
    cwd, run = trained
    earlier = f"runs/{run.name}/checkpoint/step_000000002"
    options = ("episodes=6", "first_seed=700", "noise=0.3", f"out={tmp_path / 'out'}")
    done = recipe("evaluate.py", f"run=runs/{run.name}", f"versus={earlier}", *options, cwd=cwd)
    assert done.status == 0, done.stderr
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    places = [run, run / "checkpoint" / "step_000000002"]
    distances = []
    with EnvPool("PointReach", 4, action_noise=0.3) as pool:
        evaluator = Evaluator(pool, episodes=6, first_seed=700, gammas=get_task("PointReach").gammas)
        for place in places:
            policies = [load_policy(place, seed=seed) for seed in (0, 1)]
            found = evaluator.run_all([lambda o, p=p: p(o["observation"], o["desired_goal"]) for p in policies])
            distances.append(np.mean([each.per_episode["final_distance"] for each in found], 0))
    own = result["paired"]["final_distance"]
    assert own["mean"] == pytest.approx(float((distances[0] - distances[1]).mean()))
    assert own["mean"] != 0.0
    low, high = own["interval"]
    assert low <= own["mean"] <= high
    assert [each["step"] for each in result["versus"]["runs"]] == [2, 2]
    assert f"against {earlier}, 95% interval" in done.stdout


def test_two_runs_are_compared_episode_by_episode_and_filmed(recipe, trained, tmp_path):
    cwd, run = trained
    options = ("episodes=5", "film=1", f"out={tmp_path / 'out'}", "which=best")
    done = recipe("evaluate.py", f"run=runs/{run.name}", f"versus=runs/{run.name}", *options, "seed=1", cwd=cwd)
    assert done.status == 0, done.stderr
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert all(own == {"mean": 0.0, "interval": [0.0, 0.0]} for own in result["paired"].values())
    assert result["versus"]["eval"] == result["eval"]
    success = result["eval"]["success_last"]
    films = {path.name.partition("_")[0] for path in (tmp_path / "out").glob("*.gif")}
    assert films == ({"success"} if success else set()) | ({"failure"} if success < 1 else set())


def test_an_evaluation_takes_the_place_of_an_earlier_one_and_leaves_other_files_alone(recipe, trained, tmp_path):
    cwd, run = trained
    out = tmp_path / "out"
    options = (f"run=runs/{run.name}", "episodes=3", "seed=0", f"out={out}")
    assert recipe("evaluate.py", *options, "first_seed=40", "film=1", cwd=cwd).status == 0
    films = {path.name for path in out.glob("*.gif")}
    assert films
    # an earlier film whose process was killed, and what nobody but the user can have made
    (out / ".failure_41.gif.99999999.partial").write_bytes(b"GIF")
    own = [out / name for name in ("notes.txt", "success_story.gif", "failure_1.gif.txt")]
    for path in own:
        path.write_text("mine")

    assert recipe("evaluate.py", *options, "first_seed=90", cwd=cwd).status == 0
    assert json.loads((out / "evaluation.json").read_text())["first_seed"] == 90
    assert {path.name for path in out.iterdir()} == {"evaluation.json", "goals.png", *(path.name for path in own)}


def test_evaluations_of_different_checkpoints_are_kept_apart(recipe, trained):
    cwd, run = trained
    place = f"runs/{run.name}"
    for name, steps in (("", 4), ("/checkpoint/step_000000002", 2)):
        done = recipe("evaluate.py", f"run={place}{name}", "episodes=3", "first_seed=60", cwd=cwd)
        assert done.status == 0, done.stderr
        named = "checkpoint step_000000002" if name else "last"
        assert f", {named}, after {steps} updates, seed 0, 1: success" in done.stdout
    found = {path.name: json.loads((path / "evaluation.json").read_text()) for path in run.glob("evaluation_*_3from60")}
    assert {name: (held["which"], held["runs"][0]["step"]) for name, held in found.items()} == {
        "evaluation_last_PointReach_3from60": ("last", 4),
        "evaluation_step_000000002_PointReach_3from60": ("step_000000002", 2),
    }


def test_a_checkpoint_of_the_best_is_told_from_one_of_the_same_step(import_recipe, trained):
    name = import_recipe("parts.chosen").name_of_choice
    run = trained[1]
    policy = load_policy(run, "best", seed=1)
    given = policy.record.checkpoint
    assert name(str(run), "best", policy.record) == "best"
    own = load_policy(given, seed=1).record
    assert name(f"{given}/", "last", own) == f"best_seed_1_{given.name}"


def test_an_evaluation_against_another_run_of_the_same_name_does_not_take_the_place(recipe, trained, tmp_path):
    cwd, run = trained
    for folder in "ab":
        shutil.copytree(run, tmp_path / folder / "x", ignore=shutil.ignore_patterns("evaluation_*"))
    options = (f"run={tmp_path / 'a' / 'x'}", "episodes=2", "seed=0")
    assert recipe("evaluate.py", *options, f"versus={tmp_path / 'a' / 'x'}", cwd=cwd).status == 0
    (file,) = tmp_path.rglob("evaluation.json")
    before = file.read_bytes()
    done = recipe("evaluate.py", *options, f"versus={tmp_path / 'b' / 'x'}", cwd=cwd)
    assert (done.status, len(done.stderr.splitlines()), file.read_bytes()) == (2, 1, before)
    for name, then in (("a", ", and"), ("b", ": out=FOLDER")):
        assert f"against {tmp_path}/{name}/x (seed 0) at 4 updates{then}" in done.stderr
    # a checkpoint of the other run is told from its newest by the folder, and the same again replaces what was there
    earlier = f"versus={tmp_path / 'a' / 'x' / 'checkpoint' / 'step_000000002'}"
    for _ in range(2):
        done = recipe("evaluate.py", *options, earlier, cwd=cwd)
        assert done.status == 0, done.stderr
    assert file.read_bytes() == before
    assert len(list(tmp_path.rglob("evaluation.json"))) == 2


@pytest.mark.parametrize("held", ['{"mine": 1}', "half", '["a"]'])
def test_a_file_that_is_no_evaluation_is_not_replaced(import_recipe, trained, tmp_path, held):
    evaluate = import_recipe("evaluate")
    config = evaluate.Config(run=str(trained[1]), out=str(tmp_path), episodes=2)
    (tmp_path / "evaluation.json").write_text(held)
    with pytest.raises(FileExistsError, match="is not of an evaluation, and is not replaced"):
        evaluate.main(config)
    assert (tmp_path / "evaluation.json").read_text() == held


def test_the_place_of_an_evaluation_of_another_run_or_step_is_not_taken(import_recipe, trained, tmp_path):
    evaluate = import_recipe("evaluate")
    run = trained[1]
    config = evaluate.Config(run=str(run), out=str(tmp_path))
    groups = [[load_policy(run, seed=0)]]

    def check(name, step, seed=0, **more):
        held = {"run": name, "runs": [{"seed": seed, "step": step}], **more}
        (tmp_path / "evaluation.json").write_text(json.dumps(held))
        evaluate.check_replaces(tmp_path, config, groups)

    check(f"{run}/", 4)  # the same in other words
    other = {"run": "other", "runs": [{"seed": 0, "step": 4}]}
    for name, step, more in (
        *(("elsewhere", 4, {}), (str(run), 2, {}), (str(run), 4, {"versus": other})),
        (str(run), 4, {"seed": 1}),
    ):
        with pytest.raises(FileExistsError, match=rf"is of {name} \(seed {more.get('seed', 0)}\) at {step} updates"):
            check(name, step, **more)
    # below the run itself the name of a run that was moved does not matter
    config.out = None
    check("elsewhere", 4)


def test_films_in_a_folder_without_an_evaluation_are_not_taken_for_an_earlier_ones(recipe, trained, tmp_path):
    cwd, run = trained
    (tmp_path / "failure_7.gif").write_text("mine")
    done = recipe("evaluate.py", f"run=runs/{run.name}", "episodes=2", f"out={tmp_path}", cwd=cwd)
    assert done.status == 0, done.stderr
    assert (tmp_path / "failure_7.gif").read_text() == "mine"


def test_a_policy_without_finite_actions_has_no_numbers_and_every_episode_failed(recipe, trained, tmp_path):
    cwd, run = trained
    shutil.copytree(run, tmp_path / "run")
    state, meta = load_checkpoint(latest_checkpoint(run / "checkpoint"))
    for loss in state["update"]["losses"]:
        for key, value in loss.items():
            if key.startswith("actor_network_params") and key.endswith("weight"):
                value.mul_(1e30)
    save_checkpoint(tmp_path / "run" / "checkpoint", state["step"], state, meta)
    options = (f"run={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "episodes=3", "first_seed=7")
    done = recipe("evaluate.py", *options, cwd=cwd)
    assert done.status == 0, done.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["eval"]["success_last"] is None
    assert found["failed_seeds"] == [7, 8, 9]


def test_paired_differences_are_first_minus_second_by_episode(import_recipe):
    evaluate = import_recipe("evaluate")

    class Of:
        def __init__(self, *values):
            self.per_episode = {"final_distance": np.array(values)}

    found = evaluate.paired([Of(1.0, 2.0), Of(3.0, 4.0)], [Of(0.5, 0.5)])["final_distance"]
    assert found["mean"] == pytest.approx(2.0)  # (2 + 3) / 2 - 0.5
    assert found["interval"] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give the run folder as run=runs/NAME"),
        (("run=runs/none",), "is no folder"),
        (("run=runs",), "runs has no policy.json: it is no run folder"),
        (("run={run}", "task=FetchReach"), "is of PointReach, with {'observation': 2, .* does not fit FetchReach"),
        (("run={run}", "episodes=0"), "episodes must be at least 1 and at most 1,000,000, got 0"),
        (("run={run}", "noise=-1"), "noise must be at least 0 and at most 1,000.0, got -1"),
        (("run={run}", "seed=4"), "has no seed 4; it has 0, 1"),
        (("run={run}", "which=bets"), "unknown which 'bets'"),
        (("run={run}/checkpoint/step_000000002", "which=best"), "which=best .*step_000000002 is one checkpoint of it"),
        (("run={run}", "versus={run}/checkpoint/step_000000002", "which=best"), "step_000000002 is one checkpoint"),
        (("run={run}", "out={run}/policy.json"), "out must be a folder, got the file .*policy.json"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_in_one_line(recipe, trained, tmp_path, options, message):
    cwd, run = trained
    before = sorted(run.iterdir())
    done = recipe("evaluate.py", *(text.format(run=f"runs/{run.name}") for text in options), cwd=cwd)
    assert (done.status, len(done.stderr.splitlines())) == (2, 1)
    assert re.search(message, done.stderr), done.stderr
    assert sorted(run.iterdir()) == before


ONNX = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
rows = np.load(sys.argv[2])
print([(i.name, i.type, i.shape[1]) for i in session.get_inputs()])
np.save(sys.argv[3], session.run(["action"], {"observation": rows["o"], "desired_goal": rows["g"]})[0])
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("format", ["onnx", "torchscript", "torch_export", "npz"])
def test_an_exported_file_acts_as_the_run_and_says_what_it_takes(recipe, trained, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    cwd, run = trained
    out = tmp_path / "policy.bin"
    done = recipe("export.py", f"run=runs/{run.name}", f"format={format}", "seed=1", f"out={out}", cwd=cwd)
    assert done.status == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    observation, goal = rows()
    expected = load_policy(run, seed=1, goal_margin=None)(observation, goal)
    if format == "onnx":
        np.savez(tmp_path / "rows.npz", o=observation, g=goal)
        files = [str(out), str(tmp_path / "rows.npz"), str(tmp_path / "action.npy")]
        alone = subprocess.run([sys.executable, "-c", ONNX, *files], capture_output=True, text=True)
        assert alone.stdout == "[('observation', 'tensor(float)', 2), ('desired_goal', 'tensor(float)', 2)]\n"
        found = np.load(files[2])
    elif format == "npz":
        found = ActorExpert(out)({"observation": observation, "desired_goal": goal})
    else:
        tensors = torch.from_numpy(observation), torch.from_numpy(goal)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.jit.load(out) if format == "torchscript" else torch.export.load(out).module()
        found = loaded(*tensors).numpy()
        assert loaded(*(x[:1] for x in tensors)).shape == (1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    says = json.loads((tmp_path / "policy.bin.json").read_text())
    assert [own["shape"] for own in says["inputs"]] == [["batch", 2], ["batch", 2]]
    assert says["output"]["range"] == [-1.0, 1.0]
    # PointReach observes its position, and a goal is one; goals are drawn, and reached or not, anywhere in its box
    assert says["inputs"][1]["range_in_data"] == [[-5.0, -5.0], [5.0, 5.0]]
    assert says["inputs"][0]["range_in_data"] == [[-5.0, -5.0], [5.0, 5.0]]
    assert (says["task"], says["seed"], says["format"], says["rows_checked"]) == ("PointReach", 1, format, 1000)
    assert says["largest_difference"] <= 1e-5
    assert {path.name for path in tmp_path.iterdir()} >= {"policy.bin", "policy.bin.json"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give the run folder"),
        (("run={run}",), "give format as one of onnx, torchscript, torch_export, npz, got None.\n"),
        (("run={run}", "format=onxx"), "got onxx. Did you mean onnx"),
        (("run={run}", "format=npz", "seed=9"), "has no seed 9"),
        (("run={run}", "format=npz", "out={there}"), "exists; overwrite=true replaces it"),
        (("run={run}", "format=npz", "out={there}/"), "out must be a file, got the folder"),
        (("run={run}", "format=npz", "out={new}/"), "out must be a file, got the folder"),
        (("run={run}", "format=npz", "out={run}", "overwrite=true"), "out must be a file, got the folder"),
    ],
)
def test_an_export_that_cannot_be_is_refused_and_leaves_nothing(recipe, trained, tmp_path, options, message):
    cwd, run = trained
    there = tmp_path / "there.npz"
    there.write_text("mine")
    given = (text.format(run=f"runs/{run.name}", there=there, new=tmp_path / "new") for text in options)
    before = sorted(path.name for path in (*cwd.iterdir(), *(cwd / "runs").iterdir()))
    done = recipe("export.py", *given, cwd=cwd)
    assert (done.status, len(done.stderr.splitlines())) == (2, 1)
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]
    assert there.read_text() == "mine"
    assert not list(run.glob("policy_*"))
    assert sorted(path.name for path in (*cwd.iterdir(), *(cwd / "runs").iterdir())) == before


def test_a_folder_where_the_description_goes_is_refused_before_anything_is_written(import_recipe, trained, tmp_path):
    export = import_recipe("export")
    (tmp_path / "policy.npz.json").mkdir()
    config = export.Config(run=str(trained[1]), format="npz", out=str(tmp_path / "policy.npz"), overwrite=True)
    with pytest.raises(IsADirectoryError, match=r"policy\.npz\.json is a folder"):
        export.main(config)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.npz.json"]


def test_a_checkpoint_is_exported_to_a_file_of_its_own(import_recipe, trained, tmp_path):
    export = import_recipe("export")
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    for place, step in ((run, 4), (run / "checkpoint" / "step_000000002", 2)):
        export.main(export.Config(run=str(place), format="npz"))
        (file,) = run.glob("policy_last_seed0.npz.json" if step == 4 else "policy_step_000000002_seed0.npz.json")
        assert json.loads(file.read_text())["checkpoint"] == f"step_{step:09}"


def test_a_description_that_a_killed_export_left_is_no_obstacle_and_one_of_something_else_is(recipe, trained, tmp_path):
    cwd, run = trained
    options = (f"run=runs/{run.name}", "format=npz", f"out={tmp_path / 'policy.npz'}")
    beside = tmp_path / "policy.npz.json"
    assert recipe("export.py", *options, cwd=cwd).status == 0
    said = beside.read_text()
    (tmp_path / "policy.npz").unlink()
    assert recipe("export.py", *options, cwd=cwd).status == 0
    assert json.loads(beside.read_text()) == json.loads(said)
    (tmp_path / "policy.npz").unlink()
    beside.write_text('{"mine": 1}')
    done = recipe("export.py", *options, cwd=cwd)
    assert (done.status, beside.read_text()) == (2, '{"mine": 1}')
    assert "policy.npz.json is there, and no export's: give another out=" in done.stderr


@pytest.mark.parametrize("name", ["policy", "policy.json", "config.yaml"])
def test_files_of_the_run_are_not_replaced(import_recipe, trained, tmp_path, monkeypatch, name):
    export = import_recipe("export")
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(export, "largest_difference", lambda *given: pytest.fail("too late"))
    config = export.Config(run=str(run), format="npz", out=str(run / name), overwrite=True)
    with pytest.raises(FileExistsError, match="is there, and no export's: give another out="):
        export.main(config)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_export_whose_description_is_lost_is_replaced_on_request(import_recipe, trained, tmp_path):
    export = import_recipe("export")
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    config = export.Config(run=str(run), format="npz", seed=0)
    export.main(config)
    (sidecar,) = run.glob("policy_*.npz.json")
    said = sidecar.read_text()
    for damaged in (None, "[" * 10_000):
        sidecar.unlink() if damaged is None else sidecar.write_text(damaged)
        config.overwrite = True
        export.main(config)
        assert json.loads(sidecar.read_text()) == json.loads(said)


def test_an_export_replaces_a_file_on_request_and_its_description_with_it(recipe, trained, tmp_path):
    cwd, run = trained
    out, beside = tmp_path / "policy.npz", tmp_path / "policy.npz.json"
    options = (f"run=runs/{run.name}", "format=npz", f"out={out}")
    assert recipe("export.py", *options, "seed=0", cwd=cwd).status == 0
    first = out.read_bytes()
    done = recipe("export.py", *options, "seed=1", cwd=cwd)
    assert (done.status, out.read_bytes()) == (2, first)
    assert json.loads(beside.read_text())["seed"] == 0
    done = recipe("export.py", *options, "seed=1", "overwrite=true", cwd=cwd)
    assert done.status == 0, done.stderr
    said = json.loads(beside.read_text())
    assert (said["seed"], said["sha256"]) == (1, hashlib.sha256(out.read_bytes()).hexdigest())
    observation, goal = rows()
    expected = load_policy(run, seed=1, goal_margin=None)(observation, goal)
    found = ActorExpert(out)({"observation": observation, "desired_goal": goal})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.npz", "policy.npz.json"}


def test_an_export_that_fails_leaves_what_it_was_to_replace(import_recipe, trained, tmp_path, monkeypatch):
    export = import_recipe("export")
    options = {"run": str(trained[1]), "format": "npz", "out": str(tmp_path / "policy.npz")}
    export.main(export.Config(**options))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(export, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        export.main(export.Config(**options, overwrite=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_export_whose_file_does_not_come_leaves_the_description_of_the_one_that_is_there(
    import_recipe, trained, tmp_path, monkeypatch
):
    export = import_recipe("export")
    options = {"run": str(trained[1]), "format": "npz", "out": str(tmp_path / "policy.npz")}
    export.main(export.Config(**options, seed=0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = os.replace

    def full(source, target):
        if str(target).endswith("policy.npz"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    sidecar = tmp_path / "policy.npz.json"
    for description in (None, before[sidecar.name]):
        sidecar.unlink() if description is None else sidecar.write_bytes(description)
        with monkeypatch.context() as patch:
            patch.setattr("torchrl_smore._files.os.replace", full)
            with pytest.raises(OSError, match="No space left"):
                export.main(export.Config(**options, seed=1, overwrite=True))
        assert (tmp_path / "policy.npz").read_bytes() == before["policy.npz"]
        assert (sidecar.read_bytes() if sidecar.exists() else None) == description


def test_an_export_that_does_not_act_as_the_run_is_not_written(import_recipe, trained, tmp_path, monkeypatch):
    export = import_recipe("export")

    def shifted(policy, path):
        path.write_bytes(b"half")
        return lambda *rows: policy(*rows) + 2e-5

    monkeypatch.setitem(export.FORMATS, "npz", ("npz", shifted))
    config = export.Config(run=str(trained[1]), format="npz", out=str(tmp_path / "policy.npz"))
    with pytest.raises(RuntimeError, match=r"differs by 2\.0e-05 from the run, more than 1e-05: nothing written"):
        export.main(config)
    assert not list(tmp_path.iterdir())


def test_a_policy_that_npz_cannot_hold_is_refused(recipe, tmp_path):
    done = recipe("smore_offline.py", *QUICK, "method=crl_td", cwd=tmp_path)
    assert done.status == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    done = recipe("export.py", f"run=runs/{run.name}", "format=npz", cwd=tmp_path)
    assert done.status == 2
    assert "holds float32 layers with ReLU" in done.stderr
    done = recipe("export.py", f"run=runs/{run.name}", "format=torchscript", cwd=tmp_path)
    assert done.status == 0, done.stderr


def test_a_run_from_before_policies_were_recorded_gets_its_file_when_it_is_resumed(recipe, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    (run,) = (tmp_path / "copy" / "runs").iterdir()
    expected = load_policy(run, seed=1)(*rows())
    (run / "policy.json").unlink()
    done = recipe("smore_offline.py", f"resume=runs/{run.name}", cwd=tmp_path / "copy")
    assert done.status == 0, done.stderr
    np.testing.assert_array_equal(load_policy(run, seed=1)(*rows()), expected)


@pytest.mark.parametrize("name", ["evaluate", "diagnose"])
def test_a_folder_that_cannot_be_written_is_told_before_any_episode_is_run(
    import_recipe, trained, tmp_path, monkeypatch, name
):
    cwd, run = trained
    module = import_recipe(name)
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(module, {"evaluate": "EnvPool", "diagnose": "open_subject"}[name], None)  # not to be called
    (tmp_path / "file").touch()
    said = rf"expected a folder that can be written, got {tmp_path}/file/x \(.*\): name one as out=FOLDER\.$"
    with pytest.raises(OSError, match=said):
        module.main(module.Config(run=str(run), out=str(tmp_path / "file" / "x"), episodes=2))
    with locked(tmp_path / "held" / ".lock", "folder"), ThreadPoolExecutor(1) as other:
        work = other.submit(module.main, module.Config(run=str(run), out=str(tmp_path / "held"), episodes=2))
        assert f"folder {tmp_path}/held is in use by" in str(work.exception())
    # a folder of which nothing comes is gone again
    with pytest.raises(TypeError):
        module.main(module.Config(run=str(run), out=str(tmp_path / "new"), episodes=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "held"]


def test_a_diagnosis_is_left_where_it_is_asked_for_and_not_among_other_files(recipe, trained, tmp_path):
    cwd, run = trained
    options = (f"run=runs/{run.name}", "rows=50", "episodes=1", f"out={tmp_path / 'out'}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inputs.csv").write_text("mine")
    done = recipe("diagnose.py", *options, cwd=cwd)
    assert done.status == 2
    assert "has inputs.csv, but is of no diagnosis: give out= another folder" in done.stderr
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "out" / "inputs.csv").unlink()
    for _ in range(2):
        done = recipe("diagnose.py", *options, cwd=cwd)
        assert done.status == 0, done.stderr
    assert (tmp_path / "out" / "diagnosis.json").is_file()
    assert not list(run.glob("diagnosis*"))
