import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from torchrl_smore.envs import TASKS
from torchrl_smore.envs.sawyer import DOOR, HANDLE_TOP, HOOK_OFFSET, REACH, SawyerEnv, handle_point

RIGHT, BACK, UP = np.eye(3)


@pytest.fixture(scope="module")
def reach():
    return SawyerEnv(REACH)


@pytest.fixture(scope="module")
def door():
    return SawyerEnv(DOOR)


def state_after(env, actions, seed=0):
    observation, _ = env.reset(seed=seed)
    for action in actions:
        observation, *_ = env.step(action)
    return observation["observation"]


@pytest.mark.parametrize("world", [REACH, DOOR], ids=["reach", "door"])
def test_the_gymnasium_checker_accepts_the_environment(world):
    check_env(SawyerEnv(world), skip_render_check=True)


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize("name", ["SawyerReach", "SawyerDoor"])
def test_the_gymnasium_checker_accepts_the_task(name):
    check_env(TASKS[name].make_env(), skip_render_check=True)


def test_an_action_moves_the_hand_by_two_centimetres_times_itself(reach):
    start = state_after(reach, [])
    np.testing.assert_allclose(start, [0.0, 0.65, 0.175])
    for action in ([1.0, 0.0, 0.0], [0.5, -1.0, 0.25], [7.0, 0.0, -7.0]):
        moved = state_after(reach, [np.array(action)]) - start
        np.testing.assert_allclose(moved, 0.02 * np.clip(action, -1.0, 1.0), atol=3e-4)


def test_the_hand_stays_where_it_is_without_an_action(reach):
    moving = state_after(reach, [RIGHT])
    np.testing.assert_allclose(state_after(reach, [RIGHT, *np.zeros((10, 3))]), moving, atol=1e-6)


@pytest.mark.parametrize("world", [REACH, DOOR], ids=["reach", "door"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_hand_ends_at_the_published_box(world, sign, reach, door):
    env = {REACH: reach, DOOR: door}[world]
    corner = world.low if sign < 0 else world.high
    # up first: in the slot, the door would have to come along
    path = [UP] * 20 + [np.array([sign, sign, 1.0])] * 20 + [np.array([0.0, 0.0, sign])] * 20
    np.testing.assert_allclose(state_after(env, path)[:3], corner, atol=1e-3)


def test_goals_fill_the_published_ranges_and_nothing_else(reach, door):
    hand = np.stack([reach.reset(seed=seed)[0]["desired_goal"] for seed in range(300)])
    angle = np.stack([door.reset(seed=seed)[0]["desired_goal"] for seed in range(300)])
    for goals, low, high in ((hand, (-0.2, 0.55, 0.05), (0.2, 0.75, 0.3)), (angle, (0.0,), (0.83,))):
        width = np.subtract(high, low)
        assert (goals >= low).all()
        assert (goals <= high).all()
        # of 300 uniform draws the extremes lie within 5% of the ends but once in 5 million
        assert (goals.min(0) < low + 0.05 * width).all()
        assert (goals.max(0) > high - 0.05 * width).all()
        np.testing.assert_allclose(goals.mean(0), np.add(low, high) / 2, atol=0.08 * width.max())


def test_the_slot_is_where_the_simulator_has_it(door):
    door.reset(seed=0)
    # middle of both bars and of both ends is the middle of the slot, 0.175 along the door
    geoms = ("inner bar", "outer bar", "near end", "far end")
    for angle in (0.0, 0.4, 0.83):
        door.data.qpos[3] = angle
        door._mujoco.mj_forward(door.model, door.data)
        middle = np.mean([door.data.geom(name).xpos[:2] for name in geoms], axis=0)
        np.testing.assert_allclose(middle, handle_point(np.array(angle), np.array(0.175)), atol=1e-12)
    bar, hook = door.data.geom("inner bar"), door.data.geom("hook")
    np.testing.assert_allclose(hook.xpos[:2] - door.data.qpos[:2], [0.0, HOOK_OFFSET], atol=1e-12)
    bar_top = bar.xpos[2] + door.model.geom("inner bar").size[2]
    radius, half_length, _ = door.model.geom("hook").size
    assert HANDLE_TOP + (hook.xpos[2] - half_length - radius - door.data.qpos[2]) == pytest.approx(bar_top)


def test_every_goal_can_be_held_from_within_the_hands_box():
    angles = np.linspace(0.0, 0.83, 84)
    places = handle_point(angles[:, None], np.linspace(0.075, 0.275, 41)) - (0.0, HOOK_OFFSET)
    inside = (places >= np.array(DOOR.low[:2])) & (places <= np.array(DOOR.high[:2]))
    assert inside.all(-1).any(-1).all()


def test_the_episode_starts_with_the_hook_in_the_slot_of_a_shut_door(door):
    start = state_after(door, [])
    np.testing.assert_allclose(start, [-0.05, 0.635, 0.225, 0.0])
    np.testing.assert_allclose(start[:2] + np.array((0.0, HOOK_OFFSET)), handle_point(np.array(0.0), np.array(0.18)))
    assert door.data.ncon == 0


def test_pulling_opens_the_door_and_pushing_shuts_it(door):
    opened = state_after(door, [-BACK] * 4)
    # the hook 8 cm nearer to the robot, 0.18 from the hinge: between asin(0.08 / 0.18) and a radius grown by sliding
    assert 0.35 < opened[3] < 0.5
    np.testing.assert_allclose(state_after(door, [-BACK] * 4 + [BACK] * 4)[3], 0.0, atol=0.02)


def test_the_door_stays_where_it_was_left_and_within_its_range(door):
    opened = state_after(door, [-BACK] * 3)
    np.testing.assert_allclose(state_after(door, [-BACK] * 3 + [np.zeros(3)] * 10)[3], opened[3], atol=2e-3)
    assert state_after(door, [BACK] * 10)[3] > -0.01


def test_a_lifted_hand_leaves_the_door_alone(door):
    opened = state_after(door, [-BACK] * 3)[3]
    lifted = [-BACK] * 3 + [UP] * 3
    away = state_after(door, lifted + [BACK] * 5)
    assert away[2] > HANDLE_TOP
    np.testing.assert_allclose(away[3], opened, atol=5e-3)
    assert state_after(door, [-BACK] * 3 + [BACK] * 5)[3] < 0.02  # the same way without lifting


def test_hand_position_and_angle_are_all_there_is_to_know(door):
    """A state put together from an observation goes on as the one that was simulated."""
    rng = np.random.default_rng(0)
    observation, _ = door.reset(seed=0)
    errors = []
    for _ in range(100):
        before, action = observation["observation"], rng.uniform(-1.0, 1.0, 3)
        kept = door.data.qpos.copy(), door.data.qvel.copy(), door.data.qacc_warmstart.copy()
        door._mujoco.mj_resetData(door.model, door.data)
        door.data.qpos[:] = before
        again, *_ = door.step(action)
        door.data.qpos[:], door.data.qvel[:], door.data.qacc_warmstart[:] = kept
        observation, *_ = door.step(action)
        errors.append(np.abs(again["observation"] - observation["observation"]))
    # a door that still swings, after contact was lost, is the exception
    assert np.quantile(errors, 0.95, axis=0).max() < 5e-3


@pytest.mark.parametrize("name", ["SawyerReach", "SawyerDoor"])
def test_episodes_of_a_seed_do_not_depend_on_what_was_simulated_before(name):
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 3)).astype(np.float32)
    used, fresh = TASKS[name].make_env(), TASKS[name].make_env()
    state_after(used, actions[::-1], seed=5)
    np.testing.assert_array_equal(state_after(used, actions, seed=7), state_after(fresh, actions, seed=7))


def test_a_missing_simulator_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mujoco", None)
    with pytest.raises(ImportError, match=r'SawyerEnv needs mujoco.*pip install "torchrl-smore\[envs\]"'):
        SawyerEnv(REACH)
