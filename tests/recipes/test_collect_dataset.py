"""The collection recipe, run as a user runs it."""

from __future__ import annotations

import dataclasses

import pytest

from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import get_task


def test_a_store_of_the_promised_composition_is_left_and_nothing_else(recipe, tmp_path):
    options = ("task=PointReach", "num_trajectories=10", "expert_fraction=0.3", "seed=2", "workers=1")
    done = recipe("collect_dataset.py", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    (path,) = (tmp_path / "datasets").iterdir()
    assert path.name == "PointReach_expert3_random7_seed2"
    assert [entry.name for entry in tmp_path.iterdir()] == ["datasets"]
    store = TrajectoryStore.load(path)
    assert (store.num_trajectories, store.num_transitions) == (10, 500)
    assert [(part["behaviour"], part["num_trajectories"]) for part in store.meta["composition"]] == [
        ("expert", 3),
        ("random", 7),
    ]
    assert f"sha256: {store.sha256}" in done.stdout
    assert "\r" not in done.stdout + done.stderr


def test_a_mixture_of_the_paper_sets_the_share_of_experts(recipe, tmp_path):
    options = ("task=PointReach", "num_trajectories=40", "mixture=expert2.5", "out=store")
    assert recipe("collect_dataset.py", *options, cwd=tmp_path).status == 0
    assert TrajectoryStore.load(tmp_path / "store").meta["expert_fraction"] == 0.025


def test_where_nothing_is_asked_for_it_collects_what_training_would(recipe, tmp_path):
    done = recipe("collect_dataset.py", "task=Tabletop-drawer", "num_trajectories=3", cwd=tmp_path)
    assert done.status == 0, done.stderr
    # the folder that smore_offline.py looks for
    store = TrajectoryStore.load(tmp_path / "datasets" / "Tabletop-fresh_expert3_random0_seed0_expertnoise0.1")
    assert [(part["behaviour"], part["noise"]) for part in store.meta["composition"]] == [("expert", 0.1)]
    options = ("task=Tabletop", "num_trajectories=4", "expert_fraction=0.5", "expert_noise=0", "out=store")
    assert recipe("collect_dataset.py", *options, cwd=tmp_path).status == 0
    expert, other = TrajectoryStore.load(tmp_path / "store").meta["composition"]
    assert (expert["num_trajectories"], expert["noise"], other["num_trajectories"]) == (2, 0.0, 2)


def test_an_expert_of_ones_own_has_no_noise_that_nobody_asked_for(import_recipe):
    module, options = import_recipe("collect_dataset"), import_recipe("parts.options")
    for policy, noise in ((None, 0.1), ("scripted", 0.1), ("runs/NAME", None)):
        assert module._with_defaults(module.Config(task="Tabletop-pick", expert_policy=policy)).expert_noise == noise
        # the same of training, whose dataset is then the same
        assert options.with_defaults(options.Config(task="Tabletop-pick", expert_policy=policy)).expert_noise == noise
    given = options.Config(task="Tabletop-pick", expert_policy="runs/NAME", expert_noise=0.3)
    assert options.with_defaults(given).expert_noise == 0.3


def test_noise_of_expert_and_environment_and_the_folder_can_be_chosen(recipe, tmp_path):
    options = ("task=PointReach", "num_trajectories=4", "expert_fraction=0.5", "expert_noise=0.2", "action_noise=0.5")
    done = recipe("collect_dataset.py", *options, "out=here/noisy", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert TrajectoryStore.load(tmp_path / "here" / "noisy").meta["action_noise"] == 0.5


def test_a_store_that_is_there_is_replaced_only_on_demand(recipe, tmp_path):
    options = ("task=PointReach", "num_trajectories=4", "out=store")
    assert recipe("collect_dataset.py", *options, cwd=tmp_path).status == 0
    first = TrajectoryStore.load(tmp_path / "store").sha256
    refused = recipe("collect_dataset.py", *options, "seed=1", cwd=tmp_path)
    assert (refused.status, len(refused.stderr.splitlines())) == (2, 1)
    assert "overwrite=True" in refused.stderr
    assert TrajectoryStore.load(tmp_path / "store").sha256 == first
    assert recipe("collect_dataset.py", *options, "seed=1", "overwrite=true", cwd=tmp_path).status == 0
    assert TrajectoryStore.load(tmp_path / "store").sha256 != first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["task=FetchPull"], ["'FetchPull'", "Did you mean 'FetchPush'?"]),
        (["num_trajectories=0"], ["num_trajectories", "0"]),
        (["expert_fraction=2"], ["expert_fraction", "[0, 1]"]),
        (["mixture=expert20"], ["mixture", "'expert20'", "expert10"]),
        (["size=small"], ["size and num_trajectories", "one of them"]),
        (["mixture=expert1", "expert_fraction=0.5"], ["mixture and expert_fraction", "one of them"]),
        (["action_noise=-1"], ["action_noise", "-1"]),
        (["action_noise=nan"], ["action_noise", "nan"]),
        (["seed=-1"], ["seed", "-1"]),
        (["expert_fraction=0", "expert_policy=nowhere"], ["expert_policy: of no use", "no episode of PointReach"]),
        (["mixture=expert5", "expert_noise=0"], ["expert_noise: of no use", "no episode of PointReach"]),
        (["workers=-1"], ["workers", "-1"]),
        (["wokers=2"], ["wokers", "Did you mean workers?"]),
        (["num_trajectories=many"], ["num_trajectories=many", "Integer"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else None,
)
def test_a_bad_option_is_refused_in_one_line_before_anything_is_written(recipe, tmp_path, options, said):
    done = recipe("collect_dataset.py", "task=PointReach", "num_trajectories=4", *options, cwd=tmp_path)
    assert done.status == 2, done.stdout + done.stderr
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert all(text in error for text in said), error
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_is_not_known_is_refused(recipe, tmp_path):
    done = recipe("collect_dataset.py", "task=PointReach", "size=paper", cwd=tmp_path)
    assert done.status == 2
    assert "got PointReach; give num_trajectories" in done.stderr


def test_a_full_disk_is_told_in_one_line_and_leaves_no_store(recipe, tmp_path):
    options = ("task=PointReach", "num_trajectories=4", "out=store")
    done = recipe("collect_dataset.py", *options, cwd=tmp_path, file_limit=1000)
    assert done.status == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_share_that_is_less_than_one_expert_is_said(recipe, tmp_path):
    options = ("task=PointReach", "num_trajectories=3", "workers=1")
    done = recipe("collect_dataset.py", *options, "mixture=expert5", "out=store", cwd=tmp_path)
    assert done.status == 0, done.stderr
    said = "no trajectory is an expert's: their share of num_trajectories=3 rounds to 0"
    assert said in done.stdout
    done = recipe("collect_dataset.py", *options, "expert_fraction=0", "out=none", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert said not in done.stdout


def test_nothing_is_said_of_experts_where_a_task_has_none(import_recipe, caplog):
    datasets = import_recipe("parts.datasets")
    task = get_task("PointReach")
    datasets.note_experts(dataclasses.replace(task, expert_episodes=0), 50, None)
    assert not caplog.records
    datasets.note_experts(task, 3, None)
    assert "rounds to 0" in caplog.text
