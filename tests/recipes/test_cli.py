"""The command line: options alone are read without Hydra's composition, and come to what it composes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs" / "cli"
GIVEN = [
    [],
    ["task=FetchPush", "steps=1000", "beta=0.3", "normalize=false", "score_bounds=null"],
    ["steps=1000", "steps=2000", "expectile=null", "learning_rate=1e-4", "goal_columns=[0,1]", "desired_goal=[3,-4.5]"],
    ['dataset="a=b, c.pkl"', "run_root='with space'", "data_dir=a/b", "threads=1"],
    ["columns={observation:[x,y],action:[u],achieved_goal:[x],episode:e}", "clip_actions=True", "seed=-1"],
    ["score_bounds=none", "logger=tensorboard", "task=my_module:NAME", "resume=runs/20260101-000000_x"],
]


@pytest.mark.parametrize("given", GIVEN, ids=lambda given: " ".join(given) or "nothing")
def test_options_alone_are_those_that_hydra_composes(import_recipe, given, monkeypatch):
    cli, config = import_recipe("parts.cli"), import_recipe("parts.options").Config
    # Hydra's own alone: another test may have registered TorchRL's groups, of which one is called logger
    store = ConfigStore.instance()
    own = {name: node for name, node in store.repo.items() if name.startswith(("hydra", "_"))}
    monkeypatch.setattr(store, "repo", own)
    store.store(name="schema", node=config)
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        expected = OmegaConf.to_object(hydra.compose("recipe", given))
    found = OmegaConf.to_object(cli._composed(config, given))
    assert type(found) is type(expected) is config
    assert found == expected
    assert (found == config()) == (not given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["steps=7", "--cfg", "job"], "\nsteps: 7\n"),
        (["steps=7", "hydra.job.name=mine", "task=PointReech"], "'PointReech'"),
        (["task=PointReech${now:%s}", "steps=7"], "'PointReech1"),
    ],
)
def test_flags_options_of_hydra_and_interpolations_are_left_to_hydra(recipe, tmp_path, given, said):
    done = recipe("smore_offline.py", *given, cwd=tmp_path)
    assert said in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe_name", ["smore_offline", "benchmark", "train_expert"])
def test_help_fits_the_terminal_and_shows_defaults_that_can_be_given(import_recipe, monkeypatch, recipe_name):
    cli, config = import_recipe("parts.cli"), import_recipe(recipe_name).Config
    fields = dataclasses.fields(config)

    def options(columns):
        monkeypatch.setenv("COLUMNS", columns)
        return cli._help(config, "What it does.").split("defaults:\n\n")[1].split("\n\nHydra")[0].splitlines()

    lines = options("80")
    assert len(lines) > len(fields)
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(options("100000")).split())
    # where nothing is known of a terminal, a line for each option
    monkeypatch.setattr(cli.shutil, "get_terminal_size", os.terminal_size)
    lines = options("80")
    assert [line.split(maxsplit=1)[1] for line in lines] == [field.metadata["help"] for field in fields]
    given = [line.split(maxsplit=1)[0] for line in lines]
    assert OmegaConf.to_object(cli._composed(config, given)) == config()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["task=PointReach", "--steps=5"], "error: --steps=5: options have no dashes before them: steps=5.\n"),
        (["--eval-episodes", "5"], ": options have no dashes before them: eval_episodes=VALUE.\n"),
        (["goal_columns=3"], "; a list is written 'goal_columns=[3]'.\n"),
    ],
)
def test_an_option_in_the_writing_of_another_command_line_is_shown_in_ours(import_recipe, capsys, given, said):
    cli, config = import_recipe("parts.cli"), import_recipe("parts.options").Config
    with pytest.raises(SystemExit) as exited:
        cli._check_options(config, given)
    assert exited.value.code == 2
    assert capsys.readouterr().err.endswith(said)


def test_a_flag_of_hydra_that_is_named_like_an_option_stays_one(import_recipe, capsys):
    cli, config = import_recipe("parts.cli"), import_recipe("evaluate").Config
    cli._check_options(config, ["--run", "run=runs/NAME"])
    with pytest.raises(SystemExit):
        cli._check_options(config, ["--run=runs/NAME"])
    assert capsys.readouterr().err == "error: --run=runs/NAME: options have no dashes before them: run=runs/NAME.\n"


def taken(cli, config, *given):
    return cli._taken(OmegaConf.to_object(cli._composed(config, given)), given)


def test_a_resumed_run_takes_what_stands_beside_it_also_if_that_is_the_default(import_recipe, tmp_path):
    cli, config = import_recipe("parts.cli"), import_recipe("parts.options").Config
    (tmp_path / "config.yaml").write_text("rollout: false\nthreads: 3\nseed: 3\nlogger: wandb\n")
    free = ("rollout", "threads", "logger")
    asked = taken(cli, config, f"resume={tmp_path}", "rollout=true", "logger=null")
    own = cli.resumed_config(asked, *free)
    assert (own.rollout, own.logger, own.threads, own.seed, own.resume) == (True, None, 3, 3, str(tmp_path))
    with pytest.raises(ValueError, match=r"a resumed run keeps its own options; drop seed\.$"):
        cli.resumed_config(taken(cli, config, f"resume={tmp_path}", "seed=0"), *free)
    # as when the command that began it is typed again
    assert cli.resumed_config(taken(cli, config, f"resume={tmp_path}", "seed=3"), *free).seed == 3
    # made in Python, where nothing stands on a command line
    own = cli.resumed_config(config(resume=str(tmp_path), threads=1), *free)
    assert (own.rollout, own.threads) == (False, 1)


def test_a_tilde_is_the_home_directory(import_recipe, monkeypatch, tmp_path):
    cli, benchmark = import_recipe("parts.cli"), import_recipe("benchmark").Config
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ("out=~/here", "expert_policy=['~/a','b/~']", "tasks=[PointReach]", "data_dir=x~")
    found = taken(cli, benchmark, *(cli._quoted(benchmark, argument) for argument in given))
    assert (found.out, found.expert_policy) == (f"{tmp_path}/here", [f"{tmp_path}/a", "b/~"])
    assert (found.tasks, found.data_dir, found.address) == (["PointReach"], "x~", None)


def test_a_tilde_that_no_shell_has_read_makes_no_folder_of_that_name(recipe, tmp_path):
    (tmp_path / "home").mkdir()
    options = ("task=PointReach", "num_trajectories=2", "expert_fraction=0.5", "workers=1", "out=~/data")
    done = recipe("collect_dataset.py", *options, cwd=tmp_path, env={"HOME": str(tmp_path / "home")})
    assert done.status == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home" / "data" / "meta.json").is_file()
