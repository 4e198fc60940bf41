"""Where collected datasets are kept, when they are taken again, and how many experts are taken of one."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import pytest

from torchrl_smore.envs import collect, get_task


@pytest.fixture
def datasets(import_recipe):
    return import_recipe("parts.datasets")


FEW = {"num_trajectories": 4, "expert_fraction": 0.5, "seed": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 0.5}, "threshold 1.0, it now has 0.5: delete it, or pass it as dataset=."),
        ({"horizon": 20, "threshold": 2.0}, "horizon 50 and threshold 1.0, it now has 20 and 2.0: delete it"),
        (
            {"strict": True},
            "success_rule 'Euclidean distance between achieved and desired goal of at most 1', it now has",
        ),
        ({"goal_parts": (("x", 0, 1), ("y", 1, 2))}, " and [['x', 0, 1], ['y', 1, 2]]: delete it"),
        ({"goal_columns": ("a", "b")}, "it now has ['a', 'b']: delete it"),
        ({"observation_columns": ("position x [1]",)}, "it now has ['position x [1]']: delete it"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_store_of_the_task_as_it_was_is_refused_and_stays(datasets, tmp_path, change, said):
    task = get_task("PointReach")
    store = datasets.collect_or_load(task, str(tmp_path), **FEW)
    assert datasets.collect_or_load(task, str(tmp_path), **FEW).sha256 == store.sha256
    (out,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match=re.escape(f"{out} was collected when PointReach had ")) as caught:
        datasets.collect_or_load(dataclasses.replace(task, **change), str(tmp_path), **FEW)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_store_of_other_versions_of_a_simulator_is_taken_with_a_warning(datasets, tmp_path, caplog, monkeypatch):
    task = get_task("PointReach")
    store = datasets.collect_or_load(task, str(tmp_path), **FEW)
    (out,) = tmp_path.iterdir()
    here = datasets.decisive_versions()
    caplog.clear()
    for other in (here, {**here, "mujoco": None}):
        monkeypatch.setattr(datasets, "decisive_versions", lambda other=other: other)
        datasets.collect_or_load(task, str(tmp_path), **FEW)
        assert not caplog.messages
    monkeypatch.setattr(datasets, "decisive_versions", lambda: {**here, "mujoco": "99.0", "gymnasium": "98.0"})
    assert datasets.collect_or_load(task, str(tmp_path), **FEW).sha256 == store.sha256
    assert caplog.messages == [
        f"{out} was collected with gymnasium {here['gymnasium']} (now 98.0) and mujoco {here['mujoco']} (now 99.0). "
        "Delete it to collect it anew"
    ]


def test_a_store_whose_columns_have_other_names_by_now_is_read_with_a_warning(datasets, tmp_path, caplog):
    task = get_task("PointReach")
    store = datasets.collect_or_load(task, str(tmp_path), **FEW)
    (out,) = tmp_path.iterdir()
    caplog.clear()
    assert datasets.load_dataset(str(out), task, None).sha256 == store.sha256
    assert not caplog.records
    other = dataclasses.replace(task, goal_columns=("a", "b"))
    assert datasets.load_dataset(str(out), other, None).sha256 == store.sha256
    (said,) = caplog.messages
    assert said == (
        f"dataset={out} was collected when PointReach had goal_columns {list(task.goal_columns)}, it now has "
        "['a', 'b']: collect it anew, unless these are other names for the same"
    )


def test_a_store_that_says_less_is_judged_by_what_it_says_and_by_its_widths(datasets, tmp_path, caplog):
    task = get_task("PointReach")
    out = datasets.dataset_folder(str(tmp_path), task, **FEW)
    options = {"random_episodes": 2, "seed": 0, "workers": 1, "progress": False}
    made = collect(task, expert_episodes=2, **options)
    type(made)(made.data, {"task": "PointReach", "threshold": 1.0}).save(out)
    assert datasets.collect_or_load(task, str(tmp_path), **FEW).sha256 == made.sha256
    with pytest.raises(ValueError, match=r"had threshold 1\.0, it now has 0\.5"):
        datasets.collect_or_load(dataclasses.replace(task, threshold=0.5), str(tmp_path), **FEW)
    wider = dataclasses.replace(task, observation_columns=(*task.observation_columns, "more"))
    with pytest.raises(ValueError, match=r"does not fit the task 'PointReach'"):
        datasets.collect_or_load(wider, str(tmp_path), **FEW)
    assert not caplog.messages


def test_a_task_takes_datasets_of_its_own_and_of_each_of_its_data_tasks(datasets, tmp_path):
    rooms = get_task("PointRooms")
    of_both = dataclasses.replace(rooms, data_tasks=("Tabletop", "PointReach"))
    for collected, task in (("PointReach", of_both), ("PointRooms", of_both), ("PointRooms", rooms)):
        out = tmp_path / collected
        store = datasets.collect_or_load(get_task(collected), str(out), **FEW)
        assert datasets.load_dataset(str(next(out.iterdir())), task, None).sha256 == store.sha256
    (out,) = (tmp_path / "PointReach").iterdir()
    with pytest.raises(ValueError, match=r"was collected on PointReach, not on PointRooms\."):
        datasets.load_dataset(str(out), rooms, None)
    neither = dataclasses.replace(rooms, data_tasks=("Tabletop", "Tabletop-fresh"))
    with pytest.raises(ValueError, match="not on PointRooms or Tabletop or Tabletop-fresh"):
        datasets.load_dataset(str(out), neither, None)


def test_a_store_under_its_own_share_keeps_everything(datasets):
    for experts in range(60):
        for rest in range(60):
            if experts + rest:
                fraction = experts / (experts + rest)
                assert datasets.largest_mixture(experts, rest, fraction) == (experts, rest)


@pytest.mark.parametrize(
    ("held", "fraction", "expected"),
    [
        ((7, 3), 0.7, (7, 3)),
        ((7, 3), 0.5, (3, 3)),
        ((7, 3), 0.0, (0, 3)),
        ((7, 3), 1.0, (7, 0)),
        ((1, 100), 0.1, (1, 9)),
    ],
)
def test_a_share_takes_the_most_that_there_is(datasets, held, fraction, expected):
    assert datasets.largest_mixture(*held, fraction) == expected
    store = collect("PointReach", expert_episodes=held[0], random_episodes=held[1], seed=0, workers=1, progress=False)
    parts = datasets.with_expert_fraction(store, fraction).meta["composition"]
    found = {part["behaviour"]: part["num_trajectories"] for part in parts}
    assert (found.get("expert", 0), found.get("random", 0)) == expected


def test_every_noise_has_a_folder_of_its_own_and_usual_ones_keep_theirs(datasets):
    def name(**options):
        request = {"num_trajectories": 10, "expert_fraction": 0.1, "seed": 0}
        return datasets.dataset_folder("data", "PointReach", **request, **options).name

    assert name(action_noise=0.5) == "PointReach_expert1_random9_seed0_noise0.5"
    assert name(action_noise=1.0) == "PointReach_expert1_random9_seed0_noise1"
    assert name(expert_noise=0.2, expert_random_prob=1.0).endswith("_seed0_expertnoise0.2_expertrandom1")
    for option in ("action_noise", "expert_noise", "expert_random_prob"):
        assert name(**{option: 0.1234567}) != name(**{option: 0.12345674}), option
        assert name(**{option: 1e-05}).endswith("1e-05")


def test_every_noise_of_an_evaluation_has_a_folder_of_its_own(import_recipe, tmp_path):
    evaluate = import_recipe("evaluate")
    record = SimpleNamespace(path=tmp_path, checkpoint=tmp_path / "checkpoint" / "step_000000004")
    groups = [[SimpleNamespace(record=record)]]

    def name(noise):
        return evaluate.folder_name(evaluate.Config(run=str(tmp_path), noise=noise), get_task("PointReach"), groups)

    assert name(1.5).endswith("_noise1.5")
    assert name(1.0).endswith("_noise1")
    assert name(0.1234567) != name(0.12345674)
