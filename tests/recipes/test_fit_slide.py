import dataclasses
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
import yaml

from torchrl_smore.envs.experts import LandingModel

SMALL = ("first_episodes=4", "rounds=1", "episodes=2", "updates=50", "final_updates=50", "hidden=16")


@pytest.fixture(scope="module")
def fit_slide(import_recipe):
    return import_recipe("fit_slide")


def trials(n, generator):
    """Strikes after which the puck glides 12 times its velocity."""
    state, after = generator.normal(size=(2, n, 25)).astype(np.float32) * 0.01
    velocity = generator.uniform(0.01, 0.04, (n, 2))
    after[:, 14:16], after[:, 20:22] = velocity, 0.0
    rest = np.concatenate([after[:, 3:5] + 12.0 * velocity, np.full((n, 1), 0.414)], -1)
    return {"state": state, "action": generator.uniform(-1, 1, (n, 2)), "after": after, "rest": rest}


def test_trials_that_were_cut_off_land_where_whole_ones_tell(fit_slide):
    made = trials(400, np.random.default_rng(0))
    expected = made["rest"][:, :2] - made["state"][:, 3:5]
    made["rest"][200:] = np.nan
    made["rest"][:3, 2] = 0.2  # pucks that fell from the table say nothing
    made["rest"][:3, :2] = 100.0
    np.testing.assert_allclose(fit_slide.landing(made), expected, atol=1e-4)


def test_the_model_learns_the_mean_and_the_spread_of_a_known_law(fit_slide, tmp_path):
    generator = np.random.default_rng(0)
    made = trials(3000, generator)
    noise = 0.05 * generator.standard_normal((3000, 2))
    made["after"][:, 14:16] = 0.02
    made["rest"][:, :2] = made["after"][:, 3:5] + 0.24
    made["after"][:, 3:5] = made["state"][:, 3:5] + 0.3 * made["action"] + noise
    made["rest"][:, :2] = made["after"][:, 3:5] + 0.24
    torch.manual_seed(0)
    model, error = fit_slide.fit(made, fit_slide.Config(hidden=16, batch_size=256), 1500)
    # the median distance of a point of a normal distribution in the plane is 1.177 standard deviations
    assert error == pytest.approx(1.177 * 0.05, rel=0.25)
    fit_slide.write_actor(tmp_path / "model.npz", model)
    strikes = np.array([[0.5, -0.5], [0.0, 0.8]])
    chance, mean = LandingModel(tmp_path / "model.npz").success(np.zeros(25), strikes, np.array([0.39, 0.09]))
    np.testing.assert_allclose(mean, 0.3 * strikes + 0.24, atol=0.03)
    assert chance[0] == pytest.approx(1.0 - np.exp(-0.5), abs=0.1)  # a disc of one standard deviation


def test_the_recipe_tries_strikes_and_a_resumed_run_repeats_none(recipe, tmp_path):
    done = recipe("fit_slide.py", *SMALL, cwd=tmp_path)
    assert done.status == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["command"] == f"python recipes/fit_slide.py {' '.join(SMALL)} seed=0"
    LandingModel(folder / "landing.npz")
    parts = {path.name: np.load(path) for path in (folder / "trials").iterdir()}
    assert sorted(parts) == ["00_00000.npz", "01_00000.npz"]
    assert len(parts["00_00000.npz"]["state"]) + len(parts["01_00000.npz"]["state"]) == meta["strikes"]
    kept = {path: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()}
    (folder / "meta.json").unlink()
    done = recipe("fit_slide.py", f"resume={folder}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()} == kept
    assert json.loads((folder / "meta.json").read_text())["strikes"] == meta["strikes"]


def test_a_file_of_episodes_without_a_strike_is_one_of_no_trials(fit_slide, tmp_path):
    made = trials(3, np.random.default_rng(0))
    fit_slide.save(tmp_path / "00_00000.npz", [{key: made[key][row] for key in made} for row in range(3)])
    fit_slide.save(tmp_path / "00_00050.npz", [])
    loaded = fit_slide.load(tmp_path, 0)
    assert {key: rows.shape for key, rows in loaded.items()} == {
        **{"state": (3, 25), "action": (3, 2), "after": (3, 25), "rest": (3, 3)}
    }
    np.testing.assert_array_equal(loaded["state"], made["state"])


@pytest.fixture(scope="module")
def whole(import_recipe, tmp_path_factory):
    """The run folder of a run that nobody stopped, whose files of trials hold one episode each."""
    module, root = import_recipe("fit_slide"), tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SHARE", 1)
        module.fit_slide(tiny(module, root))
    (folder,) = root.iterdir()
    return folder


def tiny(module, root, **changes):
    options = {"first_episodes": 2, "rounds": 2, "episodes": 2, "updates": 30, "final_updates": 30, "hidden": 16}
    return module.Config(**(options | {"seed": 1, "run_root": str(root)} | changes))


class Killed(BaseException):
    """Stands for the end of a process."""


def ends_at(module, monkeypatch, name, number):
    """Lets the ``number``-th call of a function end the run before it does anything."""
    function, calls = getattr(module, name), []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, call)


#: Which call of what ends each of a run's processes, the files of trials that it leaves, and its last round saved:
#: between two files of the first round and of a later one, before a model is written, and between model and checkpoint.
ENDS = (
    ("save", 2, 1, None),
    ("save_checkpoint", 1, 2, None),
    ("save", 2, 3, "step_000000001"),
    ("write_actor", 1, 4, "step_000000001"),
    ("save_checkpoint", 1, 4, "step_000000001"),
)


def test_a_run_that_ends_anywhere_resumes_and_makes_the_same_model_bit_for_bit(fit_slide, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_slide, "_SHARE", 1)
    config = tiny(fit_slide, tmp_path)
    for name, number, trials_left, saved in ENDS:
        with monkeypatch.context() as patch:
            ends_at(fit_slide, patch, name, number)
            with pytest.raises(Killed):
                fit_slide.fit_slide(config)
        (folder,) = tmp_path.iterdir()
        assert len(list((folder / "trials").iterdir())) == trials_left
        assert [path.name for path in folder.glob("checkpoint/*")] == ([] if saved is None else [saved])
        config = fit_slide.Config(resume=str(folder))
    fit_slide.fit_slide(config)
    files = {path.relative_to(whole) for path in whole.rglob("*.npz")}
    assert {path.relative_to(folder) for path in folder.rglob("*.npz")} == files
    assert len(files) == 1 + 3 * 2
    for file in sorted(files):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    assert (folder / "meta.json").read_text() == (whole / "meta.json").read_text()


def test_a_run_without_a_checkpoint_fits_the_models_of_its_rounds_to_the_trials_of_these_alone(
    fit_slide, whole, tmp_path, monkeypatch
):
    # as a run of an earlier version is, which kept its trials and nothing else
    monkeypatch.setattr(fit_slide, "_SHARE", 1)
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoint")
    (folder / "landing.npz").unlink()
    last = max((folder / "trials").iterdir())
    held = last.read_bytes()
    last.unlink()  # tried again, by the model of the round before
    fit_slide.fit_slide(fit_slide.Config(resume=str(folder)))
    assert last.read_bytes() == held
    assert (folder / "landing.npz").read_bytes() == (whole / "landing.npz").read_bytes()


def test_a_killed_process_resumes(recipe, tmp_path):
    options = (*SMALL, "updates=200000")
    with recipe.started("fit_slide.py", *options, cwd=tmp_path) as run:
        for _ in range(6000):
            if list(tmp_path.glob("runs/*/trials/00_00000.npz")) or run.status() is not None:
                break
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait().status == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "landing.npz").exists()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("updates: 200000", "updates: 50"))
    done = recipe("fit_slide.py", f"resume={folder}", cwd=tmp_path)
    assert done.status == 0, done.stderr
    LandingModel(folder / "landing.npz")
    assert [path.name for path in folder.glob(".*")] == []


def test_a_strike_tried_again_from_a_state_ends_the_same_and_does_not_disturb_the_episode(fit_slide):
    table = fit_slide.Table()
    state = table._reset(5)["observation"][0]
    start = table._save()
    ends = []
    for _ in range(2):
        table._restore(start)
        last = state
        for _ in range(8):
            last = table._step(last, np.array([0.5, 0.2]))
        ends.append(last)
        table._reset(6)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda made: {key: values[:0] for key, values in made.items()},
            "seen at rest on the table, found none among 0:",
        ),
        (lambda made: {**made, "rest": np.full((8, 3), np.nan)}, "seen at rest on the table, found none among 8:"),
        (
            lambda made: {**made, "state": made["state"] + 5.0},
            "two strikes or more .*less than 1.3 m, .* found 0 among 8:",
        ),
        (lambda made: {key: values[:2] for key, values in made.items()}, "two strikes or more .* found 1 among 2:"),
    ],
    ids=["none", "cut off", "far", "two"],
)
def test_trials_from_which_nothing_can_be_learnt_are_refused_with_what_was_expected(fit_slide, change, said):
    made = change(trials(8, np.random.default_rng(0)))
    with pytest.raises(ValueError, match=f"expected .*{said} start a run with more first_episodes"):
        fit_slide.fit(made, fit_slide.Config(hidden=16), 2)


def test_three_strikes_are_two_to_learn_from_and_one_to_hold_out(fit_slide):
    _, error = fit_slide.fit(trials(3, np.random.default_rng(0)), fit_slide.Config(hidden=16), 2)
    assert np.isfinite(error)


def test_a_run_whose_episodes_have_no_strike_says_so_in_one_line(import_recipe, recipe, tmp_path):
    fit_slide = import_recipe("fit_slide")
    folder = tmp_path / "runs" / "none"
    (folder / "trials").mkdir(parents=True)
    config = fit_slide.Config(first_episodes=4, rounds=0, run_root="runs")
    (folder / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    fit_slide.save(folder / "trials" / "00_00000.npz", [])
    done = recipe("fit_slide.py", "resume=runs/none", cwd=tmp_path)
    assert (done.status, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "found none among 0" in done.stderr


@pytest.mark.parametrize("option", ["first_episodes=0", "rounds=-1", "learning_rate=0", "clip=inf"])
def test_options_out_of_range_are_refused_before_anything_is_written(recipe, option, tmp_path):
    done = recipe("fit_slide.py", option, cwd=tmp_path)
    assert done.status != 0
    assert f"{option.split('=')[0]} must be" in done.stderr
    assert not (tmp_path / "runs").exists()
