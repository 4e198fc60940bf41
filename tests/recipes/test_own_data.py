"""What a benchmark knows of a dataset of one's own."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from torchrl_smore.data import split_by_behaviour


@pytest.fixture
def own_data(import_recipe):
    return import_recipe("parts.own_data")


@pytest.fixture
def config_of(import_recipe):
    return import_recipe("parts.benchmark_plan").Config


@pytest.fixture
def look(own_data, config_of):
    """What is known of a dataset of PointReach."""

    def make(path, **given):
        return own_data.read_own_data(config_of(dataset=str(path), **given), "PointReach")

    return make


def test_a_file_that_does_not_say_who_acted_has_one_part_with_what_it_returns(look, buffer, tmp_path):
    path = tmp_path / "buffer.pkl"
    path.write_bytes(pickle.dumps(buffer))
    # PointReach: within 1 of the goal after the step, 50 steps, discounts 0.98 and 0.99
    reached = np.linalg.norm(buffer["ag"][:, 1:] - buffer["g"], axis=-1) <= 1
    returns = (reached * 0.99 ** np.arange(50)).sum(1)
    assert returns.max() > 0
    (part,) = look(path).parts
    assert (part["behaviour"], part["num_trajectories"]) == ("unknown", 6)
    assert part["discounted_return"] == pytest.approx(returns.mean(), rel=1e-5)
    assert part["return_over_max"] == pytest.approx(returns.mean() / ((1 - 0.99**50) / 0.01), rel=1e-5)


def test_what_it_is_known_by_is_its_content_and_how_it_is_read(own_data, config_of, look, buffer, tmp_path):
    def written(name, arrays):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(arrays))
        return path

    first = look(written("buffer.pkl", buffer))
    moved = look(written("there/buffer.pkl", buffer))
    assert (first.identity, first.name) == (moved.identity, moved.name)
    assert first.path != moved.path
    # what it returns is another number for each task
    rooms = own_data.read_own_data(config_of(dataset=first.path), "PointRooms")
    assert (rooms.identity, rooms.name.rpartition("_")[0]) == (first.identity, "buffer.pkl")
    assert rooms.name != first.name
    other = look(written("other/buffer.pkl", {**buffer, "u": -buffer["u"]}))
    assert first.identity != other.identity
    assert first.name != other.name
    clipped = look(written("buffer.pkl", buffer), clip_actions=True)
    assert clipped.identity == {**first.identity, "clip_actions": True}
    # said or recognised, it is the same
    assert look(written("buffer.pkl", buffer), dataset_format="wgcsl").identity == first.identity


def test_of_a_store_the_content_is_what_it_says_and_its_experts_can_be_fewer(look, store_path, tmp_path):
    data = look(store_path)
    store = data.load()
    assert data.sha256 == store.sha256
    assert [(part["behaviour"], part["num_trajectories"]) for part in data.parts] == [("expert", 4), ("random", 16)]
    parts = split_by_behaviour(store)
    for part in data.parts:
        mean = float(parts[part["behaviour"]].discounted_returns(0.99).mean())
        assert part["discounted_return"] == pytest.approx(mean)
    assert data.load(0.5).num_trajectories == 8
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dataset=.*: meta.json is damaged, or no store's: KeyError"):
        look(tmp_path)


def test_a_dataset_without_the_share_of_experts_that_a_setting_asks_for_fails_its_runs_alone(
    import_recipe, look, store_path, tmp_path
):
    split_by_behaviour(look(store_path).load())["random"].save(tmp_path / "random")
    data, cell = look(tmp_path / "random"), SimpleNamespace(task="PointReach")
    jobs = [
        SimpleNamespace(folder=folder, cell=cell, own_data=data, options={"expert_fraction": fraction})
        for folder, fraction in (("a", None), ("b", 0.25), ("c", 0.0))
    ]
    failures = import_recipe("benchmark").read_datasets(jobs)
    assert failures.keys() == {"b"}
    assert "no dataset: the dataset holds too few trajectories for expert_fraction=0.25" in failures["b"]


def test_a_run_does_not_begin_on_data_that_were_changed_meanwhile(import_recipe, look, buffer, tmp_path):
    path = tmp_path / "buffer.pkl"
    path.write_bytes(pickle.dumps(buffer))
    data = look(path)
    data.check_unchanged()
    path.write_bytes(pickle.dumps({**buffer, "u": -buffer["u"]}))
    job = {"folder": str(tmp_path / "cell"), "session": "a", "options": {}, "identity": {"commit": ""}}
    with pytest.raises(ValueError, match=r"buffer.pkl was changed since this benchmark was begun"):
        import_recipe("parts.benchmark_jobs").run_job({**job, "own_data": data})
    assert not [*(tmp_path / "cell").iterdir()]


def test_a_dataset_of_another_task_fails_its_runs(import_recipe, own_data, config_of, store_path):
    data = own_data.read_own_data(config_of(dataset=str(store_path)), "FetchReach")
    job = SimpleNamespace(
        folder="a", cell=SimpleNamespace(task="FetchReach"), own_data=data, options={"expert_fraction": None}
    )
    (told,) = import_recipe("benchmark").read_datasets([job]).values()
    assert "does not fit the task 'FetchReach'" in told


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b.pkl", "b.pkl"), ("a/b/", "b"), ("a/b/.", "b"), ("fetch/reach-v0", "reach-v0"), ("a/b;c=d e", "b_c_d_e")],
)
def test_a_setting_calls_it_by_the_name_of_its_file(own_data, path, name):
    assert own_data.data_name(path) == name


def test_a_minari_dataset_is_known_by_its_files(own_data, look, monkeypatch, tmp_path):
    folder = tmp_path / "fetch" / "reach-v0" / "data"
    folder.mkdir(parents=True)
    (folder / "main_data.hdf5").write_bytes(b"x" * 3_000_000)
    (folder / "metadata.json").write_text("{}")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    first = look("fetch/reach-v0")
    assert (first.path, first.format, own_data.data_name(first.path)) == ("fetch/reach-v0", "minari", "reach-v0")
    (folder / "metadata.json").write_text("{ }")
    assert look("fetch/reach-v0").sha256 != first.sha256
