"""Training from pictures, run as a user runs it."""

from __future__ import annotations

import contextlib
import json
import re

import imageio.v3 as iio
import pytest
import torch
import yaml

from torchrl_smore.data import DatasetError, TrajectoryStore
from torchrl_smore.envs import collect, get_task, paint

SMALL = (
    *("task=PointReach", "pixels=36", "num_trajectories=20", "batch_size=8", "steps=4", "log_interval=2"),
    *("eval_interval=2", "save_interval=2", "eval_episodes=2", "threads=1", "device=cpu", "rollout=false"),
)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hindsight_bc", ()),
        ("hindsight_bc", ("encoder=joint",)),
        ("smore", ("encoder=critics", "precision=bf16", "seeds=2", "compile=off")),
        ("smore", ("encoder=shared",)),
        ("crl", ("encoder=shared", "pixel_norm=false", "pixel_cold=false", "crop_prob=0")),
        ("crl_td", ("encoder=shared",)),
        ("crl_td", ()),
        ("gc_iql", ("encoder_size=medium", "precision=bf16")),
    ],
)
def test_points_are_learnt_from_pictures(recipe, tmp_path, method, options):
    done = recipe("smore_offline.py", *SMALL, f"method={method}", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    found = json.loads((run_dir / "summary.json").read_text())
    assert found["method"] == method
    assert 0.0 <= found["eval"]["success_last"] <= 1.0
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["pixels"] == 36
    (pictures,) = (tmp_path / "datasets").glob("pictures_36_*")
    store = TrajectoryStore.load(pictures)
    assert store.frames.shape == (20 * 51, 36, 36, 3)
    # painted once, and by nothing that is left behind
    assert re.search("frames of 36 x 36 pixels", done.stdout)
    assert [path.name for path in (tmp_path / "datasets").glob(".*") if not path.name.endswith(".lock")] == []


def test_what_a_killed_process_was_painting_is_removed(import_recipe, tmp_path):
    store = collect("PointReach", expert_episodes=1, random_episodes=1, seed=0, progress=False)
    left = tmp_path / f".pictures_36_{store.sha256[:16]}.abcdefgh"
    left.mkdir()
    (left / "frames").write_bytes(b"half")
    with contextlib.closing(get_task("PointReach").painter(36)) as painter:
        import_recipe("parts.pixels").with_pictures(store, painter, tmp_path)
    assert not left.exists()


def test_pictures_that_are_kept_are_painted_anew_where_the_task_now_looks_otherwise(import_recipe, tmp_path, caplog):
    store = collect("PointReach", expert_episodes=1, random_episodes=1, seed=0, progress=False)
    with_pictures = import_recipe("parts.pixels").with_pictures
    with contextlib.closing(get_task("PointReach").painter(36)) as painter:
        first = with_pictures(store, painter, tmp_path).frames.clone()
        (kept,) = tmp_path.glob("pictures_*")
        written = kept.stat().st_ino
        assert torch.equal(with_pictures(store, painter, tmp_path).frames, first)
        assert kept.stat().st_ino == written
        assert not caplog.records
        # a darker scene, as after a change of the library
        states = painter.states
        painter.states = lambda observation: states(observation) // 2
        assert torch.equal(with_pictures(store, painter, tmp_path).frames, first // 2)
    assert "painted anew" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("task=FetchPush",), "FetchPush has no pictures"),
        (("method=gofar",), "pixels=36 goes with method=smore, gc_iql, gcsl, hindsight_bc, crl, crl_td, got gofar"),
        (("method=hindsight_bc", "encoder=shared"), "GCSLLoss has an actor alone"),
        (("method=crl_td", "encoder=critics"), "ContrastiveTDLoss asks its actor about other states or goals"),
        (("encoder=both",), "unknown encoder 'both': expected separate, shared, joint, critics."),
        (("pixels=0", "encoder=shared"), "encoder: of no use without pixels="),
        (("her_ratio=0.8",), "goals are pictures of the data, so her_ratio must be 1, got 0.8"),
        (("pixels=20",), "pixels"),
        (("crop_prob=2",), "crop_prob must be in [0, 1], got 2"),
    ],
)
def test_what_cannot_be_learnt_from_pictures_is_refused(recipe, tmp_path, options, said):
    done = recipe("smore_offline.py", *SMALL, *options, cwd=tmp_path)
    assert done.status != 0
    assert said in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module", params=["separate", "critics"])
def run(request, recipe, tmp_path_factory):
    """A run folder of a policy that sees pictures."""
    folder = tmp_path_factory.mktemp(request.param)
    options = (f"encoder={request.param}", "method=gc_iql", "rollout=true")
    done = recipe("smore_offline.py", *SMALL, *options, cwd=folder)
    assert done.status == 0, done.stderr
    (run_dir,) = (folder / "runs").iterdir()
    return run_dir


def test_a_run_from_pictures_is_evaluated_like_any_other_on_the_episodes_of_training(recipe, run):
    options = (f"run={run}", "episodes=2", "first_seed=10000", "film=1")
    done = recipe("evaluate.py", *options, cwd=run.parent)
    assert done.status == 0, done.stderr
    (found,) = run.glob("evaluation_*/evaluation.json")
    trained = json.loads((run / "summary.json").read_text())["eval"]
    own = json.loads(found.read_text())["eval"]
    for key in ("success_last", "final_distance"):
        assert own[key] == pytest.approx(trained[key], abs=1e-5)
    films = list(found.parent.glob("*.gif"))
    assert films
    for path in (*films, run / "rollout.gif"):
        height, width = iio.imread(path)[0].shape[:2]
        # scene and goal side by side
        assert (height, width) == (256, 2 * 256 + 4)
    assert "uint8 [36, 36, 3]" in (run / "model_card.md").read_text()


@pytest.mark.parametrize("form", ["torchscript", "torch_export"])
def test_a_policy_of_pictures_is_exported_with_its_encoder(recipe, run, form):
    done = recipe("export.py", f"run={run}", f"format={form}", cwd=run.parent)
    assert done.status == 0, done.stderr
    (sidecar,) = run.glob(f"policy_last_seed0.{'pt' if form == 'torchscript' else 'pt2'}.json")
    said = json.loads(sidecar.read_text())
    assert said["inputs"][0]["shape"] == ["batch", 36, 36, 3]
    assert said["inputs"][1]["dtype"] == "uint8"
    assert said["largest_difference"] <= 1e-5


def test_a_format_without_encoders_is_refused(recipe, run):
    done = recipe("export.py", f"run={run}", "format=npz", cwd=run.parent)
    assert done.status != 0
    assert "format=npz holds no encoder of pictures" in done.stderr
    assert not list(run.glob("policy_last_seed0.npz*"))


def test_frames_of_another_size_than_asked_for_are_refused(import_recipe, tmp_path):
    store = collect("PointReach", expert_episodes=2, random_episodes=0, seed=0, progress=False)
    painter = get_task("PointReach").painter(36)
    framed = paint(store, painter)
    with_pictures = import_recipe("parts.pixels").with_pictures
    assert with_pictures(framed, painter, tmp_path) is framed
    with pytest.raises(DatasetError, match="frames of 36 x 48 pixels, expected 36 x 36"):
        with_pictures(store.with_frames(torch.zeros(102, 36, 48, 3, dtype=torch.uint8)), painter, tmp_path)
    assert not list(tmp_path.iterdir())


def test_frames_that_the_task_would_paint_otherwise_are_warned_of(import_recipe, tmp_path, caplog):
    store = collect("PointReach", expert_episodes=2, random_episodes=0, seed=0, progress=False)
    painter = get_task("PointReach").painter(36)
    with_pictures = import_recipe("parts.pixels").with_pictures
    framed = paint(store, painter)
    with_pictures(framed, painter, tmp_path)
    assert not caplog.records
    with_pictures(store.with_frames(255 - framed.frames), painter, tmp_path)
    assert "the dataset's pictures are not those that the task paints of the same states" in caplog.text


def test_a_diagnosis_of_a_run_from_pictures_is_refused(recipe, run):
    done = recipe("diagnose.py", f"run={run}", cwd=run.parent)
    assert done.status != 0
    assert "sees pictures (pixels=36): only what sees states is diagnosed" in done.stderr
