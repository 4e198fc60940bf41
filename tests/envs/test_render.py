from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from torchrl_smore.envs import RenderError, get_task, render_episode
from torchrl_smore.envs._stages import STAGES
from torchrl_smore.envs.locomotion import make_half_cheetah

RED, GREEN, BLUE = (0, 1, 2)


def film(*args, **kwargs):
    try:
        return render_episode(*args, **kwargs)
    except RenderError as error:
        pytest.skip(str(error))


def position(episode_seed, actions):
    """Positions and goal of the episode, from the environment itself."""
    env = get_task("PointReach").make_env()
    observation, _ = env.reset(seed=episode_seed)
    states = [observation["achieved_goal"]]
    states += [env.step(action)[0]["achieved_goal"] for action in actions]
    return np.stack(states), observation["desired_goal"]


def pixel(at, size):
    """Row and column of a position, with the box of half-width 5 and its margin of 0.4 filling the picture."""
    return int((5.4 - at[1]) / 10.8 * size), int((at[0] + 5.4) / 10.8 * size)


def colour_at(frame, at):
    return frame[pixel(at, len(frame))].astype(int)


def test_frames_show_the_point_where_the_environment_puts_it():
    actions = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    states, goal = position(5, actions)
    assert min(np.linalg.norm(states - goal, axis=-1)) > 1.3  # else the goal's disc hides what is looked at
    frames = render_episode("PointReach", 5, actions, size=128)
    assert frames.shape == (4, 128, 128, 3)
    assert frames.dtype == np.uint8
    for frame, state in zip(frames, states):
        red, green, blue = colour_at(frame, state)
        assert blue > green + 50 > red + 50
        assert colour_at(frame, goal)[RED] > 180 > colour_at(frame, goal)[BLUE]


def test_the_trail_stays_and_nothing_of_the_future_is_seen():
    actions = np.array([[0.0, -1.0], [0.0, -1.0], [0.0, -1.0]])
    states, _ = position(5, actions)
    frames = render_episode("PointReach", 5, actions, size=128)
    assert not np.array_equal(colour_at(frames[-1], states[0]), [255, 255, 255])
    assert np.array_equal(colour_at(frames[0], states[2]), [255, 255, 255])


def test_the_goal_turns_green_when_it_is_reached():
    states, goal = position(5, [])
    steps = int(np.ceil(np.abs(goal - states[0]).max()))
    actions = np.repeat((goal - states[0])[None] / steps, steps, 0)
    frames = render_episode("PointReach", 5, actions, size=128)
    beside = goal + np.array([0.6, 0.6]) * np.sign(-goal)  # inside the goal's disc, off the point
    assert colour_at(frames[0], beside)[RED] > colour_at(frames[0], beside)[GREEN]
    assert colour_at(frames[-1], beside)[GREEN] > colour_at(frames[-1], beside)[RED]


def test_walls_are_dark_and_free_space_is_white():
    frame = render_episode("PointRooms", 0, np.zeros((0, 2)), size=128)[0]
    for wall in ([0.0, 0.0], [1.5, 0.0], [0.0, -1.5], [4.7, 0.0]):
        assert colour_at(frame, wall).max() < 130
    corner = render_episode("PointReach", 5, np.zeros((0, 2)), size=128)[0]
    assert np.array_equal(colour_at(corner, [0.0, 0.0]), [255, 255, 255])


@pytest.mark.parametrize("task", ["FetchReach", "FetchPush", "FetchPick", "FetchSlide"])
def test_fetch_is_filmed_with_goal_and_robot_in_sight(task):
    target = film(task, 3, np.zeros((1, 4)), size=96)[0].astype(int)
    other = film(task, 4, np.zeros((1, 4)), size=96)[0].astype(int)
    assert target.shape == (96, 96, 3)
    reddish = (target[..., RED] > target[..., GREEN] + 40) & (target[..., RED] > target[..., BLUE] + 40)
    greenish = (target[..., GREEN] > target[..., RED] + 20) & (target[..., GREEN] > target[..., BLUE] + 20)
    bluish = target[..., BLUE] > target[..., RED] + 60  # the robot's arm
    assert reddish.sum() + greenish.sum() > 20
    assert bluish.sum() > 100
    assert (target != other).any()


def test_the_hand_is_filmed_with_the_goal_of_every_finger_in_sight():
    target, other = (film("HandReach", seed, np.zeros((1, 20)), size=128)[0].astype(int) for seed in (0, 2))
    reddish = (target[..., RED] > target[..., GREEN] + 40) & (target[..., RED] > target[..., BLUE] + 40)
    background = (target == target[0, 0]).all(-1)
    assert reddish.sum() > 100
    assert not reddish[[0, -1]].any()  # none cut off by the edge
    assert not reddish[:, [0, -1]].any()
    assert (~background & ~reddish).mean() > 0.1  # the hand
    assert (target != other).any()


def test_a_task_of_our_own_shows_its_goal_turn_green():
    task = get_task("SawyerReach")
    expert, batch = task.make_expert(), task.make_batch_env(1)
    observation, actions = batch.reset([3]), []
    for _ in range(15):
        actions.append(expert(observation)[0])
        observation = batch.step(actions[-1][None])
    first, *_, last = film("SawyerReach", 3, np.stack(actions), size=96).astype(int)
    # the ball of 6 cm covers about 200 pixels; the hand's own red is dark
    for frame, seen, other in ((first, RED, GREEN), (last, GREEN, RED)):
        surplus = np.where(frame.min(-1) > 90, frame[..., seen] - frame[..., other], 0)
        assert (surplus > 25).sum() > 50 + (surplus < -25).sum()


@pytest.mark.parametrize(("name", "action_dim"), [("CheetahTgtVel-m-e", 6), ("AntTgtVel-r-e", 8)])
def test_a_running_robot_stays_in_sight_below_a_ball_that_says_whether_it_is_at_its_speed(name, action_dim):
    task = get_task(name)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, action_dim))
    slow = film(task, 0, actions, size=96)[[0, -1]].astype(int)
    fast = film(dataclasses.replace(task, threshold=100.0), 0, actions, size=96)[[0, -1]].astype(int)
    for frames, seen, other in ((slow, RED, GREEN), (fast, GREEN, RED)):
        for frame in frames:
            ball = (frame[..., seen] > frame[..., other] + 40) & (np.arange(96) < 48)[:, None]
            rows, columns = np.nonzero(ball)
            assert ball.sum() > 20
            assert abs(columns.mean() - 47.5) < 6.0
            # the ball hangs above the torso, which is in the middle
            assert 15 < rows.mean() < 45
    assert (np.abs(slow[1] - slow[0]).max(-1) > 40).sum() > 50


def far_away():
    env = make_half_cheetah()
    reset = env.reset

    def reset_far_away(**options):
        out = reset(**options)
        env.unwrapped.set_state(env.unwrapped.data.qpos + np.eye(9)[0] * 300.0, env.unwrapped.data.qvel)
        return out

    env.reset = reset_far_away
    return env


def test_there_is_floor_under_a_robot_that_has_run_300_metres():
    near = get_task("CheetahTgtVel-m-e")
    far = dataclasses.replace(near, make_base_env=far_away)
    here, there = (film(task, 0, np.zeros((0, 6)), size=96)[0].astype(int) for task in (near, far))
    for frame in (here, there):
        assert (np.abs(frame[60:] - frame[0, 0]).max(-1) > 20).mean() > 0.9
    # the robot, above the floor
    assert (np.abs(there[:30] - here[:30]).max(-1) > 40).mean() < 0.1


@pytest.mark.parametrize(("task", "moved"), [("Reacher", [1.0, -1.0]), ("SawyerDoor", [0.0, -1.0, 0.0])])
def test_pictures_of_an_arm_change_with_its_motion_and_its_goal(task, moved):
    frames = film(task, 3, np.array([moved] * 5), size=96).astype(int)
    assert (np.abs(frames[-1] - frames[0]).max(-1) > 40).sum() > 50
    assert (np.abs(film(task, 4, np.array([moved]), size=96)[0] - frames[0]).max(-1) > 40).sum() > 10


@pytest.mark.parametrize(
    ("task", "goal", "marks"),
    [
        ("FetchReach", [1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]]),
        ("Reacher", [0.1, -0.05], [[0.1, -0.05, 0.01]]),
        # the shut door: 0.29 along it from the hinge at (0.13, 0.725), 0.06 before its panel
        ("SawyerDoor", [0.0], [[-0.16, 0.665, 0.20]]),
        # a quarter turn brings the handle's end to 0.29 in front of the hinge and 0.06 beside it
        ("SawyerDoor", [np.pi / 2], [[0.19, 0.435, 0.20]]),
    ],
)
def test_a_goal_is_marked_where_it_is(task, goal, marks):
    np.testing.assert_allclose(STAGES[task].marks(np.array(goal)), marks, atol=1e-12)


def test_the_ball_at_the_door_is_as_wide_as_the_angle_that_counts_as_reached():
    """Its mark is 0.29 m along the door and 0.06 m across from the hinge, the threshold 0.06 rad."""
    assert STAGES["SawyerDoor"].radius == pytest.approx(np.hypot(0.29, 0.06) * 0.06, rel=0.03)


def test_a_process_of_its_own_draws_the_same_frames():
    actions = np.full((3, 2), 0.5)
    np.testing.assert_array_equal(
        render_episode("PointReach", 1, actions, own_process=True), render_episode("PointReach", 1, actions)
    )


def test_fetch_frames_are_the_same_in_a_process_of_its_own():
    actions = np.full((3, 4), 0.5)
    np.testing.assert_array_equal(
        film("FetchReach", 1, actions, size=64, own_process=True), film("FetchReach", 1, actions, size=64)
    )


@pytest.mark.parametrize("own_process", [False, True])
def test_missing_opengl_is_one_error_that_says_what_to_install(monkeypatch, own_process):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RenderError, match=r"DISPLAY.*libegl1.*libosmesa6") as caught:
        render_episode("FetchReach", 0, np.zeros((1, 4)), opengl="glfw", own_process=own_process)
    assert len(str(caught.value).splitlines()) == 1


def test_the_environment_variable_chooses_the_library(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "elg")
    with pytest.raises(ValueError, match=r"'elg'.*Did you mean 'egl'"):
        render_episode("FetchReach", 0, np.zeros((1, 4)))
    assert render_episode("PointReach", 0, np.zeros((1, 2))).shape == (2, 256, 256, 3)


def test_a_crash_of_the_filming_process_is_an_error_of_ours(monkeypatch):
    from torchrl_smore.envs import render

    class Dead(render.Worker):
        def send(self, function, *args):
            super().send(_die)

    monkeypatch.setattr(render, "Worker", Dead)
    with pytest.raises(RenderError, match="failed"):
        render_episode("PointReach", 0, np.zeros((1, 2)), own_process=True)


_die = exit


def test_a_long_film_has_more_time_than_a_short_one(monkeypatch):
    from torchrl_smore.envs import render

    given = []

    class Timed(render.Worker):
        def __init__(self, name, timeout_s):
            given.append(timeout_s)
            super().__init__(name, timeout_s)

    monkeypatch.setattr(render, "Worker", Timed)
    for length in (1, 31):
        render_episode("PointReach", 0, np.zeros((length, 2)), size=16, own_process=True)
    assert given[1] - given[0] >= 30 * 5.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("PointReech", 0, np.zeros((1, 2))), "Did you mean 'PointReach'"),
        (("PointReach", 0, np.zeros((1, 4))), r"\[T, 2\], got \[1, 4\]"),
        (("PointReach", 0, np.zeros(2)), r"\[T, 2\], got \[2\]"),
        (("SawyerReach", 0, np.array([[0.0] * 3, [0.5, np.nan, 0.0]])), r"finite actions, got \[0.5, nan, 0.0\]"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        render_episode(*arguments)


def test_a_tiny_picture_is_refused():
    with pytest.raises(ValueError, match="at least 16 pixels, got 8"):
        render_episode("PointReach", 0, np.zeros((1, 2)), size=8)


def test_beside_the_goal_a_film_shows_what_a_policy_of_pictures_sees():
    actions = np.array([[1.0, 0.0], [0.0, -1.0]])
    states, goal = position(5, actions)
    frames = render_episode("PointReach", 5, actions, size=64, goal_beside=True)
    assert frames.shape == (3, 64, 64 + 4 + 64, 3)
    painter = get_task("PointReach").painter(64)
    for frame, state in zip(frames, painter.states(states)):
        np.testing.assert_array_equal(frame[:, :64], state)
        np.testing.assert_array_equal(frame[:, 68:], painter.goals(goal[None])[0])
        assert (frame[:, 64:68] == 255).all()
    with pytest.raises(ValueError, match="FetchPush has no pictures"):
        render_episode("FetchPush", 5, np.zeros((1, 4)), goal_beside=True)


@pytest.mark.parametrize(("camera", "columns"), [("track", (0, 1, 2)), (None, (4, 5)), (None, (0, 1, 2))])
def test_a_mujoco_task_of_ones_own_is_seen_whole(monkeypatch, camera, columns):
    from torchrl_smore.envs import TASKS, register_task

    monkeypatch.setattr("torchrl_smore.envs.register.TASKS", dict(TASKS))
    env, action = ("HalfCheetah-v5", 6) if camera else ("Reacher-v5", 2)
    goals = ([-0.1] * len(columns), [0.1] * len(columns))
    task = register_task("Own", env, threshold=0.02, horizon=3, goal_columns=columns, goals=goals)
    frames = film(task, 0, np.ones((8, action)), size=64)
    # the robot, which moves, takes a good part of the picture
    moved = np.abs(frames[0].astype(int) - frames[-1].astype(int)).sum(-1) > 30
    assert moved.mean() > 0.005
    assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 20


def test_what_a_film_in_another_process_lacks_is_said_and_is_not_opengl():
    task = dataclasses.replace(get_task("PointReach"), name="Mine", make_base_env=Undrawable)
    with pytest.raises(RuntimeError, match=r"Mine could not be filmed: OSError: no licence") as caught:
        render_episode(task, 0, np.zeros((1, 2)), own_process=True)
    assert not isinstance(caught.value, RenderError)
    unknown = dataclasses.replace(get_task("PointReach"), name="Mine", make_base_env=NotThere())
    with pytest.raises(RuntimeError, match=r"the process that films Mine failed:(.|\n)*not to be found here") as caught:
        render_episode(unknown, 0, np.zeros((1, 2)), own_process=True)
    assert not isinstance(caught.value, RenderError)


class Undrawable:
    def __init__(self):
        raise OSError("no licence")


def refuse():
    raise AttributeError("not to be found here")


class NotThere:
    """What cannot be unpickled, as what a script defines cannot in another process."""

    def __reduce__(self):
        return refuse, ()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": None}, TypeError, "seed must be a whole number, got None"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"size": 20.5}, TypeError, "size must be a whole number, got 20.5"),
        ({"opengl": "bogus"}, ValueError, "unknown OpenGL library 'bogus'"),
    ],
)
def test_what_no_film_can_be_of_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        render_episode("PointReach", **{"seed": 0, "actions": np.zeros((1, 2)), **options})
