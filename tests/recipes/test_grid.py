"""Which cells a benchmark is made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from torchrl_smore.envs import MIXTURES, TASKS, get_task, task_names
from torchrl_smore.envs.experts import write_actor
from torchrl_smore.reports import IMAGE_SETTING, Paper, canonical_setting


@pytest.fixture(scope="module")
def grid(import_recipe):
    return import_recipe("parts.grid")


@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("default", {"expert_fraction": 0.1}),
        ("expert=0.025", {"expert_fraction": 0.025}),
        ("expert=0.10;noise=1.5", {"expert_fraction": 0.1, "action_noise": 1.5}),
        ("beta=0.7", {"expert_fraction": 0.1, "beta": 0.7}),
        ("no_her", {"expert_fraction": 0.1, "her_ratio": 0.0}),
        ("her_ratio=0.8", {"expert_fraction": 0.1, "her_ratio": 0.8}),
        ("no_awr", {"expert_fraction": 0.1, "actor": "score"}),
        ("gofar_binary", {"expert_fraction": 0.1, "reward": "binary"}),
        ("expertile=0.9", None),
        ("no_hre", None),
        ("beta=lots", None),
        ("colour=red", None),
    ],
)
def test_a_setting_is_options_of_the_recipe_or_refused(grid, setting, options):
    if options is not None:
        assert grid.setting_options(setting) == options
        return
    with pytest.raises(ValueError, match=setting.split("=")[0]) as error:
        grid.setting_options(setting)
    proposed = {"expertile=0.9": "expert", "no_hre": "no_her"}.get(setting, "")
    assert proposed in str(error.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate=0.00001", 1e-5),
        ("learning_rate=0.00012345678", 0.00012345678),
        ("expectile=0.70000001", 0.70000001),
        ("weight_clip=100000000", 100_000_000),
        ("weight_clip=inf", float("inf")),
        ("num_trajectories=1e6", 1_000_000),
        ("steps=1234567", 1_234_567),
    ],
)
def test_numbers_of_a_setting_stay_what_they_are_in_every_spelling(grid, setting, value):
    name = setting.split("=")[0]
    for spelling in (setting, canonical_setting(setting)):
        found = grid.setting_options(spelling)[name]
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("preset", ["quick", "paper"])
@pytest.mark.parametrize(("option", "value"), [("her_ratio", 0.8), ("her_ratio", 1.0), ("beta", 0.5)])
def test_a_run_has_what_its_setting_says_whatever_the_default_is(grid, import_recipe, preset, option, value):
    planning, methods = import_recipe("parts.benchmark_plan"), import_recipe("parts.methods").METHODS
    setting = f"{option}={value}"
    takers = [name for name in methods if option != "beta" or "beta" in methods[name].accepts]
    cells = grid.free_plan(["FetchReach", "PointReach"], takers, [setting]).cells
    assert {cell.method for cell in cells} == set(takers)
    config = planning.Config(preset=preset, device="cpu")
    assert {getattr(planning.run_options(config, cell), option) for cell in cells} == {value}


@pytest.mark.parametrize("option", ["mapped=/tmp", "compile_cache=/x", "compile=off", "kernels=triton", "dataset=a"])
def test_where_and_how_a_run_runs_is_no_setting(grid, option):
    with pytest.raises(ValueError, match=f"{option.partition('=')[0]} is no part of a setting"):
        grid.setting_options(option)


def test_the_unspelled_ablation_drops_the_expectile_too(grid):
    options = grid.setting_options("no_awr_no_expectile")
    assert {"actor": "score", "value_target": "policy", "expectile": 0.5}.items() <= options.items()


@pytest.mark.parametrize("number", Paper().tables)
def test_every_printed_cell_of_a_table_is_planned_or_named_as_unavailable(grid, number):
    plan = grid.table_plan(number)
    planned = {(cell.task, grid.paper_name(cell.method), cell.setting) for cell in plan.cells}
    for entry in Paper().table(number):
        if entry.mean is None:
            continue
        cell = entry.cell
        setting = canonical_setting(cell.setting.replace("r_gofar", "gofar"))
        named = [
            text
            for text in plan.unavailable
            if text.startswith((f"{cell.task}, every", f"{cell.task}, {cell.method}, "))
        ]
        if cell.task not in task_names():
            assert named, cell
        else:
            assert (cell.task, cell.method, setting) in planned, cell
    assert all(cell.tables == (number,) for cell in plan.cells)


def test_a_running_task_needs_a_trained_actor_and_gets_the_composition_of_its_name(grid, tmp_path, monkeypatch):
    own = "expert=30_episodes;mix=m-e"
    plan = grid.free_plan(["PointReach", "CheetahTgtVel-m-e"], ["gcsl"], [own, f"no_her;{own}", "default"])
    assert plan.unavailable == tuple(
        f"PointReach, GCSL, {setting}: no dataset of this composition can be collected"
        for setting in (own, f"{own};no_her")
    )
    other = grid.free_plan(["CheetahTgtVel-m-e"], ["gcsl"], ["expert=30_episodes;mix=r-e", "mix=m-e"])
    assert (other.cells, len(other.unavailable)) == ((), 2)

    # the package has actors for both robots
    found = grid.with_actors(plan, [])
    assert found == plan
    assert not any("expert_policy" in dict(cell.options) for cell in found.cells)
    bare = dataclasses.replace(get_task("AntTgtVel-m-e"), actors=None)
    with monkeypatch.context() as patch:
        patch.setattr(grid, "get_task", lambda name: bare)
        ant = grid.with_actors(grid.free_plan(["AntTgtVel-m-e"], ["gcsl"], ["default"]), [])
    assert not ant.cells
    assert "python recipes/train_expert.py task=AntTgtVel-m-e" in ant.unavailable[-1]

    folders = {"ant": (27, 8), "cheetah": (17, 6)}
    for folder, (width, actions) in folders.items():
        (tmp_path / folder).mkdir()
        write_actor(tmp_path / folder / "expert.npz", [(np.zeros((actions, width)), np.zeros(actions))])
    found = grid.with_actors(plan, [str(tmp_path / folder) for folder in folders])
    assert found.unavailable == plan.unavailable
    policy = {"expert_policy": str(tmp_path / "cheetah")}
    assert {cell.setting: dict(cell.options) for cell in found.cells if cell.task == "CheetahTgtVel-m-e"} == {
        own: {"expert_fraction": None} | policy,
        f"{own};no_her": {"expert_fraction": None, "her_ratio": 0.0} | policy,
        "expert=0.1": {"expert_fraction": 0.1} | policy,
    }
    with pytest.raises(ValueError, match=r"expert\.npz: expected the file of a trained actor, found none"):
        grid.with_actors(plan, [str(tmp_path)])


def test_the_second_attempt_at_a_variant_is_the_first_and_not_run_twice(grid):
    cells = [cell for cell in grid.table_plan("13").cells if cell.task == "FetchReach"]
    assert sorted((cell.method, cell.setting) for cell in cells) == [
        *[("gofar", f"expert=0.1{variant}") for variant in ("", ";gofar_binary", ";gofar_expectile_awr")],
        ("smore", "expert=0.1"),
    ]


def test_a_setting_is_chosen_by_either_of_its_names_and_what_a_table_lacks_is_refused(grid, import_recipe):
    chosen = grid.select(grid.table_plan("13"), [], [], ["r_gofar_binary"])
    assert {cell.setting for cell in chosen.cells} == {"expert=0.1;gofar_binary"}
    planning = import_recipe("parts.benchmark_plan")
    for asked, said in (
        ({"table": "1", "tasks": ["FetchReach", "PointReach"]}, "no cell of PointReach is in what is asked for"),
        ({"table": "9", "tasks": ["FetchReach", "HandReach"]}, "no cell of HandReach is in what is asked for"),
        ({"table": "9", "tasks": ["FetchReach"], "settings": ["beta=0.7", "beta=0.75"]}, "setting 'beta=0.75' is"),
    ):
        with pytest.raises(ValueError, match=said):
            planning.read_plan(planning.Config(**asked, methods=["smore"]))
    # in the words of the plan: with the name of one's own data, and in the order of canonical settings
    named = grid.free_plan(["FetchReach"], ["smore"], ["default", "no_her"], {"FetchReach": "mine"})
    grid.check_selected(named, ["FetchReach"], ["default", "no_her"])
    with pytest.raises(
        ValueError, match=r"'gamma=0\.5' is in what is asked for, which has data=mine, data=mine;no_her"
    ):
        grid.check_selected(named, [], ["gamma=0.5"])
    grid.check_selected(grid.table_plan("1"), [], ["mix=m-e;expert=30_episodes"])


def test_a_cell_says_which_task_its_data_are_of_where_that_is_another(import_recipe, monkeypatch, tmp_path):
    planning = import_recipe("parts.benchmark_plan")
    config = planning.Config(tasks=["Tabletop-drawer", "PointReach"], methods=["smore"], seeds=1, preset="quick")

    def folders():
        return {
            job.cell.task: job.cell_folder.name for job in planning.make_jobs(*planning.read_request(config), tmp_path)
        }

    now = folders()
    monkeypatch.setitem(
        TASKS, "Tabletop-drawer", dataclasses.replace(TASKS["Tabletop-drawer"], data_tasks=("Tabletop",))
    )
    before = folders()
    assert now["Tabletop-drawer"] != before["Tabletop-drawer"]
    assert now["PointReach"] == before["PointReach"]


def test_figure_2_is_seven_methods_at_three_noises(grid):
    plan = grid.figure_plan("2")
    assert {cell.task for cell in plan.cells} == {"FetchReach"}
    assert len(plan.cells) == 21
    assert {dict(cell.options)["action_noise"] for cell in plan.cells} == {0.5, 1.0, 1.5}
    with pytest.raises(ValueError, match="figure=1"):
        grid.figure_plan("1")


def test_figure_3_is_four_methods_on_four_tasks_from_pictures_of_primitives_alone(grid):
    plan = grid.figure_plan("3")
    assert len({(cell.task, cell.method) for cell in plan.cells}) == len(plan.cells) == 16
    assert {cell.method for cell in plan.cells} == {"smore", "crl", "gc_iql", "hindsight_bc"}
    assert {cell.setting for cell in plan.cells} == {IMAGE_SETTING}
    for cell in plan.cells:
        assert dict(cell.options) == {"expert_fraction": 1.0, "pixels": 48}


def test_the_tables_shares_of_experts_are_the_named_mixtures(grid):
    shares = {
        dict(cell.options)["expert_fraction"] for number in Paper().tables for cell in grid.table_plan(number).cells
    }
    # None: the locomotion tasks, whose names stand for a number of expert episodes
    assert shares == {*MIXTURES.values(), None}


def test_the_smoke_plan_has_every_table_and_the_figure_and_shares_cells(grid):
    plan = grid.smoke_plan()
    assert {table for cell in plan.cells for table in cell.tables} == {*Paper().tables, "figure 2"}
    assert len({(cell.task, cell.method, cell.setting) for cell in plan.cells}) == len(plan.cells)
    (default,) = (c for c in plan.cells if (c.task, c.method, c.setting) == ("FetchReach", "smore", "expert=0.1"))
    assert set(default.tables) >= {"1", "9", "10", "11", "12", "13", "15", "16"}
    assert {cell.task for cell in plan.cells} <= set(task_names())


def test_a_free_grid_leaves_out_what_a_method_has_no_option_for(grid):
    plan = grid.free_plan(["PointReach"], ["smore", "GC-IQL", "gcsl"], ["default", "beta=0.7", "no_her"])
    found = sorted((cell.method, cell.setting) for cell in plan.cells)
    everywhere = [(m, s) for m in ("gc_iql", "gcsl", "smore") for s in ("expert=0.1", "expert=0.1;no_her")]
    assert found == sorted([*everywhere, ("smore", "beta=0.7;expert=0.1")])
    with pytest.raises(ValueError, match="applies to none"):
        grid.free_plan(["PointReach"], ["gcsl"], ["beta=0.7"])
    assert grid.free_plan(["SawyerDour"], ["gcsl"], ["default"]).unavailable


def test_an_option_that_comes_later_leaves_the_folders_of_cells_that_have_no_use_for_it(
    grid, import_recipe, monkeypatch
):
    planning = import_recipe("parts.benchmark_plan")
    sizes = {"steps": 4, "batch_size": 8, "num_trajectories": 20, "eval_episodes": 1, "seeds": 1}
    config = planning.Config(preset="quick", device="cpu", **sizes)
    plan = grid.Plan((grid.GridCell("PointReach", "gcsl", "default"),))

    def folder(given):
        later = dataclasses.make_dataclass("Later", [("later", str | None, given)], bases=(planning.RunConfig,))
        with monkeypatch.context() as patch:
            patch.setattr(planning, "RunConfig", later)
            (job,) = planning.make_jobs(config, plan, Path("out"))
        return job.folder

    (job,) = planning.make_jobs(config, plan, Path("out"))
    assert folder(None) == job.folder
    assert folder("given") != job.folder


def test_what_one_task_cannot_have_is_refused_beside_one_that_can(grid, import_recipe):
    planning = import_recipe("parts.benchmark_plan")
    config = planning.Config(preset="quick", seeds=1, steps=4, eval_episodes=1)
    cells = [grid.GridCell(task, "smore", "images", options=(("pixels", 48),)) for task in ("FetchReach", "FetchPush")]
    assert len(planning.make_jobs(config, grid.Plan((cells[0],)), Path("out"))) == 1
    with pytest.raises(ValueError, match="pixels=48: FetchPush has no pictures"):
        planning.make_jobs(config, grid.Plan(tuple(cells)), Path("out"))
    plain = grid.Plan(tuple(grid.GridCell(task, "smore", "default") for task in ("FetchReach", "FetchPush")))
    with pytest.raises(ValueError, match="unknown device 'cdua'"):
        planning.make_jobs(config, plain, Path("out"), {"FetchPush": {"device": "cdua"}})


@pytest.mark.parametrize(
    ("device", "gpu", "address", "cpu"),
    [
        ("cpu", True, None, True),
        ("auto", False, None, True),
        ("auto", True, None, False),
        ("auto", False, "a.cluster", False),
        ("cuda", True, None, False),
    ],
)
def test_seeds_are_trained_together_where_there_is_a_gpu(grid, import_recipe, monkeypatch, device, gpu, address, cpu):
    planning = import_recipe("parts.benchmark_plan")
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    config = planning.Config(preset="quick", device=device, address=address, seeds=3, steps=4, eval_episodes=1)
    jobs = planning.make_jobs(config, grid.Plan((grid.GridCell("PointReach", "gcsl", "default"),)), Path("out"))
    assert [job.seeds for job in jobs] == ([(0,), (1,), (2,)] if cpu else [(0, 1, 2)])
    assert {job.options["threads"] for job in jobs} == {1 if cpu else 0}


def test_a_dataset_of_other_parts_or_returns_is_told_from_the_same_one(import_recipe):
    changed = import_recipe("parts.grid").changed_datasets

    def data(**returns):
        return [{"behaviour": name, "discounted_return": value} for name, value in returns.items()]

    before = {"a": data(expert=30.0, random=0.0), "b": data(expert=30.0), "c": data(expert=30.0)}
    now = {
        "a": data(expert=30.0 + 1e-9, random=0.0),
        "b": data(expert=30.1),
        "c": data(medium=30.0),
        "d": data(expert=1.0),
    }
    assert changed(before, now) == ["b", "c"]
    assert changed({}, now) == []
