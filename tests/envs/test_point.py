import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from torchrl_smore.envs import TASKS
from torchrl_smore.envs.point import FOUR_ROOMS, PointBatch, PointEnv, PointWorld

OPEN, ROOMS = PointWorld(), PointWorld(FOUR_ROOMS)


def move(world, start, action):
    return world.move(np.array([start]), np.array([action]))[0].tolist()


@pytest.mark.parametrize("world", [OPEN, ROOMS], ids=["open", "rooms"])
def test_the_gymnasium_checker_accepts_the_environment(world):
    check_env(PointEnv(world), skip_render_check=True)


@pytest.mark.parametrize(
    ("start", "action", "stop"),
    [
        ((0.0, 0.0), (0.5, -0.25), (0.5, -0.25)),
        ((0.0, 0.0), (7.0, -7.0), (1.0, -1.0)),  # at most 1 per axis
        ((4.5, -4.75), (1.0, -1.0), (5.0, -5.0)),  # the box ends at 5
    ],
)
def test_a_free_step_adds_the_clipped_action_and_stays_in_the_box(start, action, stop):
    assert move(OPEN, start, action) == list(stop)


@pytest.mark.parametrize(
    ("start", "action", "stop"),
    [
        ((2.0, 0.0), (-1.0, 0.0), (1.65, 0.0)),  # right end of the horizontal arm
        ((1.0, 1.5), (0.0, -1.0), (1.0, 0.8)),  # its upper face
        ((1.0, 1.5), (1.0, -1.0), (2.0, 0.5)),  # x first: past the arm's end, so free
        ((1.65, 0.0), (0.0, 1.0), (1.65, 1.0)),  # sliding along a face
        ((4.0, 0.5), (1.0, 0.0), (4.45, 0.5)),  # the stub at the right wall
        ((3.0, 0.0), (0.0, 1.0), (3.0, 1.0)),  # through a door
        ((0.0, -2.0), (0.5, 1.0), (0.5, -1.65)),  # lower end of the vertical arm
    ],
)
def test_walls_stop_a_point_at_their_face_and_doors_let_it_through(start, action, stop):
    assert move(ROOMS, start, action) == pytest.approx(list(stop))


def test_no_random_walk_ever_enters_a_wall():
    batch = PointBatch(ROOMS, 200)
    batch.reset(range(200))
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (200, 200, 2))
    # a position at a face may round into the wall in float32, by less than 1e-6
    core = PointWorld(tuple((w[0] + 1e-6, w[1] - 1e-6, w[2] + 1e-6, w[3] - 1e-6) for w in FOUR_ROOMS))
    assert not any(core.blocked(batch.step(action)["observation"]).any() for action in actions)


def test_rooms_are_where_the_published_walls_leave_space():
    inside = np.array([[0.0, 0.0], [1.6, 0.7], [0.7, -1.6], [4.5, 0.0], [-4.5, 0.7], [0.0, -4.5], [0.0, 4.5]])
    outside = np.array(
        [[1.7, 0.0], [1.0, 0.9], [3.0, 0.0], [0.0, 3.0], [4.4, 0.0], [-4.4, 0.0], [-4.5, 0.9], [-3.0, -3.0]]
    )
    assert ROOMS.blocked(inside).all()
    assert not ROOMS.blocked(outside).any()


def test_starts_and_goals_are_spread_over_all_rooms_and_never_in_a_wall():
    observation = PointBatch(ROOMS, 400).reset(range(400))
    for key in ("achieved_goal", "desired_goal"):
        assert not ROOMS.blocked(observation[key].astype(np.float64)).any()
        quadrant = (observation[key] > 0.0) @ np.array([1, 2])
        assert np.bincount(quadrant, minlength=4).min() > 60  # 100 expected in each


@pytest.mark.parametrize("name", ["PointReach", "PointRooms"])
@pytest.mark.parametrize("action_noise", [0.0, 0.5])
def test_many_points_at_once_follow_the_same_paths_as_single_environments(name, action_noise):
    from torchrl_smore.envs.batch import GymBatch

    task, seeds = TASKS[name], [3, 11, 2**40]
    together, apart = task.make_batch_env(3, action_noise), GymBatch(task.make_env, 3, action_noise)
    expected, found = apart.reset(seeds), together.reset(seeds)
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (40, 3, 2)).astype(np.float32):
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
            assert found[key].dtype == np.float32
        expected, found = apart.step(action), together.step(action)
