"""Training from pictures, run as a user runs it."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from torchrl_smore.data import TrajectoryStore

SMALL = (
    *("task=PointReach", "pixels=36", "num_trajectories=20", "batch_size=8", "steps=4", "log_interval=2"),
    *("eval_interval=2", "save_interval=2", "eval_episodes=2", "threads=1", "device=cpu", "rollout=false"),
)


@pytest.mark.parametrize("method", ["hindsight_bc", "smore"])
def test_points_are_learnt_from_pictures(recipe, tmp_path, method):
    done = recipe("smore_offline.py", *SMALL, f"method={method}", cwd=tmp_path)
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("task=FetchReach",), "FetchReach has no pictures"),
        (("method=gofar",), "pixels=36 goes with method=smore, gc_iql, gcsl, hindsight_bc, got gofar"),
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
