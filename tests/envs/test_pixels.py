import dataclasses

import numpy as np
import pytest
import torch

from torchrl_smore.data import DatasetError
from torchrl_smore.envs import PixelPolicy, RenderError, collect, get_task, paint
from torchrl_smore.envs.pixels import PointPainter
from torchrl_smore.envs.point import FOUR_ROOMS, PointWorld
from torchrl_smore.envs.tabletop import draw_episode, goal_of

RED, GREEN, BLUE = np.eye(3, dtype=bool)


@pytest.fixture(scope="module")
def table():
    try:
        painter = get_task("Tabletop-drawer").painter(48)
    except RenderError as error:
        pytest.skip(str(error))
    yield painter
    painter.close()


def place(frame, primary):
    """Mean row and column of the pixels in which one channel outweighs the others by far, and how many there are."""
    values = frame.astype(int)
    mask = (values[..., primary].min(-1) - values[..., ~primary].max(-1)) > 60
    rows, columns = np.nonzero(mask)
    return (rows.mean(), columns.mean(), len(rows)) if len(rows) else (None, None, 0)


def test_a_point_is_drawn_where_it_is_and_walls_where_they_are():
    painter = PointPainter(PointWorld(), 50)
    frames = painter.states(np.array([[2.05, -3.05], [-4.95, 4.95]]))
    assert frames.shape == (2, 50, 50, 3)
    assert frames.dtype == np.uint8
    # 5 pixels to a unit, the first row at the top
    row, column, count = place(frames[0], BLUE)
    assert (row, column) == (pytest.approx(39.75, abs=0.6), pytest.approx(34.75, abs=0.6))
    assert count == pytest.approx(np.pi * 3.0**2, abs=4)
    assert place(frames[1], BLUE)[:2] == (pytest.approx(1, abs=1), pytest.approx(1, abs=1))
    np.testing.assert_array_equal(painter.goals(np.array([[2.05, -3.05]]))[0], frames[0])
    rooms = PointPainter(PointWorld(FOUR_ROOMS), 50).states(np.array([[3.0, 3.0]]))[0]
    assert (rooms[25, 25] < 120).all()
    assert (rooms[10, 10] > 200).all()


def test_the_cube_is_seen_where_it_is(table):
    state = draw_episode("pick", np.random.default_rng(0))[0].state
    moved = np.stack([state] * 3)
    moved[:, 7:] = [[-0.1, -0.25, 0.02], [0.25, -0.25, 0.02], [0.25, 0.2, 0.02]]
    frames = table.states(moved)
    left, right, far = (place(frame, BLUE) for frame in frames)
    assert min(left[2], right[2], far[2]) >= 4
    assert right[1] - left[1] > 10  # to the right is to the right
    assert far[0] < right[0] - 8  # away is up


def test_a_painter_that_is_closed_takes_nothing_from_another(table):
    state = draw_episode("pick", np.random.default_rng(0))[0].state[None]
    before = table.states(state)
    other = get_task("Tabletop-drawer").painter(48)
    other.states(state)
    table.states(state)
    other.close()
    np.testing.assert_array_equal(table.states(state), before)


def test_a_painter_that_is_closed_draws_no_more():
    try:
        painter = get_task("Tabletop").painter(32)
    except RenderError as error:
        pytest.skip(str(error))
    state = np.zeros((1, 10))
    assert painter.states(state).shape == (1, 32, 32, 3)
    painter.close()
    painter.close()
    with pytest.raises(RuntimeError, match="the TabletopPainter is closed"):
        painter.states(state)


def test_drawer_can_and_gripper_are_seen(table):
    state = draw_episode("drawer", np.random.default_rng(0))[0].state
    states = np.stack([state] * 4)
    states[1, 4] = 0.15 - states[0, 4] if states[0, 4] > 0.1 else 0.15
    states[2, 5] -= 0.05
    states[3, 0] += 0.1
    first, *others = table.states(states).astype(int)
    for other in others:
        assert (np.abs(other - first).max(-1) > 40).sum() >= 10
    np.testing.assert_array_equal(table.states(states[:1])[0], first)


def test_a_goal_is_drawn_with_the_gripper_at_home_and_the_cube_in_its_drawer(table):
    goals = [draw_episode("primitives", np.random.default_rng(seed))[1] for seed in range(40)]
    # in an open drawer, in a shut one, and elsewhere
    for opened, in_it in ((True, True), (False, True), (True, False)):
        state = next(goal.state for goal in goals if (goal.opened > 0, goal.place == "drawer") == (opened, in_it))
        np.testing.assert_array_equal(table.goals(goal_of(state)[None]), table.states(state[None]))


def test_the_gripper_of_fetch_reach_and_its_shadow_are_seen_where_they_are():
    try:
        painter = get_task("FetchReach").painter(128)
    except RenderError as error:
        pytest.skip(str(error))
    # in metres, the simulator's axes: x to the right, y away, z up
    middle = (1.34, 0.75, 0.53)
    moved = np.array([middle, (1.44, *middle[1:]), (middle[0], 0.85, middle[2]), (*middle[:2], 0.63)])
    frames = painter.goals(moved)
    observation = np.random.default_rng(0).normal(size=(4, 10))  # fingers and velocities are not seen
    observation[:, :3] = moved
    np.testing.assert_array_equal(painter.states(observation), frames)
    painter.close()

    start, right, away, up = (place(frame, BLUE) for frame in frames)
    assert right[1] - start[1] > 8
    assert start[0] - away[0] > 3
    assert start[0] - up[0] > 8
    shadows = [np.argwhere((frame.astype(int).max(-1) < 125) & (frame[..., 0] > frame[..., 2])) for frame in frames]
    assert min(len(shadow) for shadow in shadows) > 20
    start, right, away, up = (shadow.mean(0) for shadow in shadows)
    assert right[1] - start[1] > 8
    assert start[0] - away[0] > 3
    np.testing.assert_array_equal(up, start)  # straight below


def test_a_task_that_cannot_be_drawn_from_its_state_says_so():
    with pytest.raises(ValueError, match="FetchPush has no pictures"):
        get_task("FetchPush").painter(48)
    with pytest.raises(ValueError, match="from 16 to 512 pixels in each direction, got 8"):
        get_task("PointReach").painter(8)


def test_without_opengl_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RenderError, match="apt-get install libegl1"):
        get_task("Tabletop").painter(48)


@pytest.fixture(scope="module")
def store():
    return collect("PointReach", expert_episodes=3, random_episodes=2, seed=0, progress=False)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_store_is_painted_state_by_state(store, mapped, tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_smore.envs.pixels._CHUNK", 100)  # several, the last one shorter
    painter = get_task("PointReach").painter(16)
    painted = paint(store, painter, folder=tmp_path if mapped else None)
    assert painted.frames.shape == (5 * 51, 16, 16, 3)
    for row in (0, 49, 50, 173, 249):
        for key, offset in (("observation", 0), (("next", "observation"), 1)):
            expected = painter.states(store.data[key][row : row + 1].numpy())[0]
            np.testing.assert_array_equal(painted.frames[painted.frame_index[row] + offset].numpy(), expected)
    assert torch.equal(painted.data["action"], store.data["action"])
    assert len(list(tmp_path.iterdir())) == int(mapped)


def test_a_folder_that_is_not_there_is_said_before_anything_is_painted(store, tmp_path):
    painter = get_task("PointReach").painter(16)
    painter.states = None
    with pytest.raises(DatasetError, match=rf"folder .* to keep frames in, found none at {tmp_path}/none\."):
        paint(store, painter, folder=tmp_path / "none")


def test_a_painter_that_fails_leaves_no_file(store, tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_smore.envs.pixels._CHUNK", 100)
    painter, there = get_task("PointReach").painter(16), []
    draw = painter.states

    def fail_at_the_second(observation):
        there.append(len(list(tmp_path.iterdir())))
        if len(there) == 2:
            raise RenderError("the window is gone")
        return draw(observation)

    painter.states = fail_at_the_second
    with pytest.raises(RenderError, match="the window is gone"):
        paint(store, painter, folder=tmp_path)
    assert there == [1, 1]
    assert not list(tmp_path.iterdir())


def test_a_policy_sees_states_and_goals_as_pictures_and_a_goal_is_drawn_once():
    painter, goals = get_task("PointReach").painter(16), []
    drawn = painter.goals
    painter.goals = lambda goal: goals.append(goal) or drawn(goal)
    seen = []
    policy = PixelPolicy(lambda observation: seen.append(observation) or np.zeros((2, 2)), painter)
    observation = {"observation": np.ones((2, 2)), "achieved_goal": np.ones((2, 2)), "desired_goal": np.zeros((2, 2))}
    policy(observation)
    policy(observation | {"observation": np.full((2, 2), 2.0)})
    assert len(goals) == 1
    np.testing.assert_array_equal(seen[1]["observation"], painter.states(np.full((2, 2), 2.0)))
    np.testing.assert_array_equal(seen[1]["desired_goal"], drawn(np.zeros((2, 2))))
    policy(observation | {"desired_goal": np.ones((2, 2))})
    assert len(goals) == 2
    np.testing.assert_array_equal(seen[2]["desired_goal"], drawn(np.ones((2, 2))))


def test_painters_reach_other_processes_by_name():
    import pickle

    task = pickle.loads(pickle.dumps(get_task("PointReach")))
    assert dataclasses.asdict(task)["name"] == "PointReach"
    assert task.painter(16).size == 16


def test_the_opengl_library_is_the_one_that_was_asked_for():
    with pytest.raises(ValueError, match="unknown OpenGL library 'elg'"):
        get_task("Tabletop-drawer").painter(48, "elg")
    assert get_task("PointReach").painter(16, "glfw").size == 16
