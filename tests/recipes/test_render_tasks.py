"""The recipe that draws the tasks, run as a user runs it."""

from __future__ import annotations

import imageio.v3 as imageio
import numpy as np
import pytest

from torchrl_smore.envs import EnvPool, get_task


@pytest.fixture
def render_tasks(import_recipe):
    return import_recipe("render_tasks")


def test_a_task_is_drawn_as_three_frames_and_as_a_film_of_the_expert(recipe, tmp_path):
    options = ("task=PointRooms", "out=pictures", "size=48", "steps=20", "gif=true")
    done = recipe("render_tasks.py", *options, cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert done.stdout == "1 tasks: pictures\n"
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["PointRooms.gif", "PointRooms.png"]

    strip = imageio.imread(tmp_path / "pictures" / "PointRooms.png").astype(int)[..., :3]
    assert strip.shape == (48, 144, 3)
    # the goal is red before it is reached and green when the expert is there; the point itself is blue
    red, green = (strip[..., c] - strip[..., [i for i in (0, 1, 2) if i != c]].max(-1) > 15 for c in (0, 1))
    assert [red[:, :48].any(), green[:, :48].any()] == [True, False]
    assert [red[:, 96:].any(), green[:, 96:].any()] == [False, True]
    film = imageio.imread(tmp_path / "pictures" / "PointRooms.gif")
    assert len(film) > 5  # a GIF keeps no two equal frames in a row
    assert np.ptp(film.astype(int), axis=0).max() > 100


def test_what_a_policy_of_pictures_sees_is_drawn_beside_its_goal(recipe, tmp_path):
    done = recipe("render_tasks.py", "task=PointReach", "out=.", "size=48", "steps=20", "pictures=true", cwd=tmp_path)
    assert done.status == 0, done.stderr
    strip = imageio.imread(tmp_path / "PointReach_pictures.png")[..., :3]
    assert strip.shape == (48, 3 * 100, 3)
    start, goal, end = strip[:, :48], strip[:, 252:], strip[:, 200:248]
    assert not np.array_equal(start, goal)
    # the expert has arrived: a disc of 3 pixels that may lie a pixel beside
    assert (np.abs(end.astype(int) - goal).max(-1) > 60).sum() < 10
    assert (np.abs(start.astype(int) - goal).max(-1) > 60).sum() > 10


def test_only_a_task_that_has_pictures_is_drawn_as_pictures(recipe, tmp_path):
    for task in ("all", "FetchPush"):
        done = recipe("render_tasks.py", f"task={task}", "pictures=true", cwd=tmp_path)
        assert done.status != 0
        assert "pictures=true goes with one task that has pictures: FetchReach, " in done.stderr
        assert f"got {task}." in done.stderr


def test_an_unknown_task_is_refused_before_anything_is_written(recipe, tmp_path):
    done = recipe("render_tasks.py", "task=PointRoom", cwd=tmp_path)
    assert (done.status, len(done.stderr.splitlines())) == (2, 1)
    assert "Did you mean 'PointRooms'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_expert_that_never_arrives_is_shown_half_way_of_what_it_does(render_tasks):
    actions, arrival = render_tasks.expert_episode(get_task("AntTgtVel-m-e"), 4, 10)
    assert (actions.shape, arrival) == ((10, 8), 10)
    task = get_task("PointReach")
    actions, arrival = render_tasks.expert_episode(task, 3, 50)
    with EnvPool(task, 1) as pool:
        pool.reset([3])
        rewards = [pool.step(action[None])[1][0] for action in actions]
    assert rewards[arrival - 1] == 1.0
    assert not any(rewards[: arrival - 1])
