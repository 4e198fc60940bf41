import dataclasses

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from torchrl_smore.envs import TASKS, collect
from torchrl_smore.envs._rollout import Behaviour, run_episodes
from torchrl_smore.envs._stages import STAGES
from torchrl_smore.envs.experts import TabletopExpert
from torchrl_smore.envs.tabletop import HANDLE, TabletopEnv, blocks_drawer, draw_episode, goal_of

KINDS = ("primitives", "fresh", "drawer", "pick", "pick-close", "push-open")
NAMES = tuple("Tabletop" if kind == "primitives" else f"Tabletop-{kind}" for kind in KINDS)
RIGHT, AWAY, UP, OPEN = np.eye(4)
GRIPPER, FINGERS, DRAWER, CAN, CUBE = slice(0, 3), 3, 4, slice(5, 7), slice(7, 10)


@pytest.fixture(scope="module")
def env():
    built = TabletopEnv("primitives")
    built.reset(seed=0)
    return built


def scene(gripper=(0.0, -0.1, 0.24), fingers=0.035, drawer=0.0, can=(0.2, -0.1), cube=(0.1, -0.24, 0.02)):
    return np.array([*gripper, fingers, drawer, *can, *cube])


def after(env, start, actions):
    env.set_state(start)
    for action in actions:
        env.step(action)
    return env.state


@pytest.mark.parametrize("kind", KINDS)
def test_the_gymnasium_checker_accepts_the_environment(kind):
    check_env(TabletopEnv(kind), skip_render_check=True)


def test_every_start_is_at_rest_and_every_goal_stays_where_it_is(env):
    for kind in KINDS:
        for seed in range(6):
            for drawn in draw_episode(kind, np.random.default_rng(seed)):
                moved = after(env, drawn.state, np.zeros((3, 4))) - drawn.state
                np.testing.assert_allclose(moved, 0.0, atol=2e-3)


def test_an_action_moves_the_gripper_by_four_centimetres_times_itself(env):
    for action in ([1.0, 0.0, 0.0, 0.0], [0.5, -1.0, -0.25, 0.0], [7.0, 0.0, -7.0, 0.0]):
        moved = after(env, scene(), [np.array(action)]) - scene()
        np.testing.assert_allclose(moved[GRIPPER], 0.04 * np.clip(action[:3], -1.0, 1.0), atol=2e-3)
        np.testing.assert_allclose(moved[DRAWER:], 0.0, atol=1e-3)


def test_the_fingers_close_by_three_centimetres_and_part_again(env):
    assert after(env, scene(), [-OPEN])[FINGERS] == pytest.approx(0.005, abs=1e-3)
    assert after(env, scene(), [-0.5 * OPEN])[FINGERS] == pytest.approx(0.02, abs=1e-3)
    assert after(env, scene(), [-OPEN, -OPEN, OPEN, OPEN])[FINGERS] == pytest.approx(0.035, abs=1e-3)


def test_closed_fingers_lift_the_cube_and_let_it_fall_when_they_part(env):
    grip = scene(gripper=(0.1, -0.24, 0.02))
    lifted = after(env, grip, [-OPEN, *[UP - OPEN] * 4])
    assert 0.015 < lifted[FINGERS] < 0.0225  # half the cube is 0.02, and contacts give way
    np.testing.assert_allclose(lifted[CUBE] - lifted[GRIPPER], 0.0, atol=5e-3)
    assert lifted[9] > 0.15
    dropped = after(env, grip, [-OPEN, *[UP - OPEN] * 4, *[OPEN] * 4])
    assert dropped[9] == pytest.approx(0.02, abs=2e-3)
    assert after(env, grip, [UP] * 4)[9] == pytest.approx(0.02, abs=2e-3)


def test_the_handle_pulls_the_drawer_open_and_pushes_it_shut(env):
    # between the fingers, which reach down on both sides of it
    pulled = after(env, scene(gripper=(-0.17, 0.02, 0.05)), [*[-OPEN] * 2, *[-AWAY - OPEN] * 3])
    assert pulled[DRAWER] == pytest.approx(0.12, abs=0.01)
    pushed = after(env, pulled, [AWAY - OPEN] * 4)
    assert pushed[DRAWER] == pytest.approx(0.0, abs=3e-3)


def test_the_drawer_does_not_move_while_the_can_stands_before_it(env):
    pull = [*[-OPEN] * 2, *[-AWAY - OPEN] * 4]
    for can, moves in (((-0.17, -0.1), False), ((0.05, -0.1), True)):
        assert blocks_drawer(np.array(can)) == (not moves)
        opened = after(env, scene(gripper=(-0.17, 0.02, 0.05), can=can), pull)[DRAWER]
        assert opened > 0.1 if moves else abs(opened) < 5e-3


def test_what_lies_in_the_drawer_comes_along(env):
    start = scene(gripper=(-0.17, -0.13, 0.05), drawer=0.15, cube=(-0.17, 0.02, 0.03))
    shut = after(env, start, [*[-OPEN] * 2, *[0.5 * AWAY - OPEN] * 9])
    assert shut[DRAWER] == pytest.approx(0.0, abs=3e-3)
    assert shut[8] - start[8] == pytest.approx(0.15, abs=0.03)


def test_the_can_is_pushed_aside_and_stops(env):
    pushed = after(env, scene(gripper=(0.1, -0.1, 0.03), fingers=0.016), [RIGHT] * 3)
    assert pushed[5] > 0.22
    assert pushed[6] == pytest.approx(-0.1, abs=5e-3)
    resting = after(env, pushed, np.zeros((3, 4)))
    np.testing.assert_allclose(resting[CAN], pushed[CAN], atol=2e-2)


@pytest.mark.parametrize("direction", [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
def test_what_is_flung_away_stays_on_the_table(env, direction):
    env.set_state(scene(can=(-0.2, -0.25), cube=(0.1, -0.1, 0.06)))
    for thing in ("cube", "can"):
        for axis, part in zip("xy", direction):
            env.data.joint(f"{thing}_{axis}").qvel = 4.0 * part
    for _ in range(60):
        env.step(np.zeros(4))
    for place in (env.state[CAN], env.state[CUBE][:2]):
        assert (np.abs(place - (0.0, 0.02)) < (0.40, 0.36)).all()
    assert env.state[CUBE][2] > 0.0


def test_a_goal_is_reached_when_drawer_can_and_cube_are_each_within_five_centimetres():
    task = TASKS["Tabletop"]
    goal = np.zeros(6)
    near = np.array([0.049, 0.03, 0.039, 0.02, 0.02, 0.04])  # 0.049 each, 0.085 together
    assert task.reached(near, goal)
    assert task.reached(torch.from_numpy(near), torch.from_numpy(goal))
    far = {"drawer": 0, "can": 2, "cube": 5}
    for name, column in far.items():
        one = near.copy()
        one[column] = 0.06
        assert not task.reached(one, goal)
        assert task.parts_reached(one, goal) == {part: part != name for part in far}
    assert task.reached(np.stack([near, 2 * near]), goal).tolist() == [True, False]
    assert "drawer, can, cube each" in task.success_rule


def test_a_task_without_parts_is_judged_as_a_whole():
    task = TASKS["PointReach"]
    assert task.parts_reached(np.array([0.6, 0.8]), np.zeros(2)) == {"goal": True}


def test_evaluation_goals_are_what_the_tasks_are_called():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        for kind in KINDS[2:]:
            start, goal = draw_episode(kind, rng)
            moved = goal.state[4:] - start.state[4:]
            toggled, pushed = abs(moved[0]) > 0.1, abs(moved[1]) > 0.08
            carried = start.place != goal.place
            assert (toggled, pushed, carried) == {
                "drawer": (True, False, False),
                "pick": (False, False, True),
                "pick-close": (True, False, True),
                "push-open": (True, True, False),
            }[kind]
            assert blocks_drawer(start.can) == (kind == "push-open")
            assert not blocks_drawer(goal.can)
            if kind == "pick-close":
                assert (start.opened > 0.1, goal.opened, goal.place) == (True, 0.0, "drawer")
            if kind == "push-open":
                assert (start.opened, goal.opened) == (0.0, 0.15)
    both = {draw_episode("drawer", np.random.default_rng(seed))[0].opened > 0.0 for seed in range(20)}
    assert both == {False, True}


def ends(kind, episodes):
    """Where starts have the gripper: share above the table with open fingers, of the others the state ``[n, 10]``."""
    states = np.array([draw_episode(kind, np.random.default_rng(seed))[0].state for seed in range(episodes)])
    above = (states[:, 2] >= 0.2) & (states[:, FINGERS] == 0.035)
    return above.mean(), states[~above]


def test_three_of_four_episodes_of_the_data_begin_where_a_primitive_ends():
    share, states = ends("primitives", 800)
    assert share == pytest.approx(0.25, abs=0.05)
    beside_can = np.abs(states[:, 1] - states[:, CAN][:, 1]) < 1e-9
    around_cube = np.abs(states[:, :3] - states[:, CUBE]).max(-1) < 0.003
    on_handle = np.abs(states[:, :3] - HANDLE + np.outer(states[:, DRAWER], [0, 1, 0])).max(-1) < 1e-9
    assert (beside_can.astype(int) + around_cube + on_handle == 1).all()
    for one in (beside_can, around_cube, on_handle):
        assert one.mean() > 0.2
    for kind in KINDS[1:]:
        assert ends(kind, 40)[0] == 1.0


def test_a_cube_in_the_drawer_is_where_it_would_be_with_the_drawer_shut():
    shut = scene(cube=(-0.17, 0.17, 0.03))
    pulled = scene(drawer=0.15, cube=(-0.17, 0.02, 0.03))
    np.testing.assert_allclose(goal_of(np.stack([shut, pulled])), [[0.0, *shut[5:]], [0.15, *shut[5:]]])
    # on the table, on the cabinet and in the hand it is where it is
    for cube in ((0.1, -0.24, 0.02), (-0.17, 0.02, 0.12), (-0.17, -0.1, 0.03), (-0.02, 0.02, 0.03)):
        state = scene(drawer=0.15, cube=cube)
        np.testing.assert_array_equal(goal_of(state), state[4:])


@pytest.mark.parametrize("opened", [0.0, 0.15])
def test_moving_a_drawer_does_not_change_the_goal_of_the_cube_in_it(env, opened):
    env.set_state(scene(drawer=0.15 - opened, cube=(-0.17, 0.02 + opened, 0.03)))
    observation, expert = env._observe(), TabletopExpert()
    goal = np.array([opened, *observation["achieved_goal"][1:]])
    for _ in range(30):
        action = expert({key: value[None] for key, value in (observation | {"desired_goal": goal}).items()})[0]
        observation = env.step(action)[0]
        np.testing.assert_allclose(observation["achieved_goal"][1:], goal[1:], atol=0.01)
    np.testing.assert_allclose(observation["achieved_goal"], goal, atol=0.01)
    np.testing.assert_allclose(observation["observation"][CUBE], [-0.17, 0.17 - opened, 0.03], atol=0.01)


def first_there(name, columns, near):
    """States of an expert's episodes, ``[6, 10]``, when what is named has first come near to where it ends."""
    states = run(name, 6)["observation"].astype(np.float64)
    there = np.linalg.norm(states[:, :, columns] - states[:, -1:, columns], axis=-1) < near
    return states[np.arange(len(states)), there.argmax(1)]


def test_primitives_end_where_episodes_of_the_data_begin():
    _, starts = ends("primitives", 200)
    drawn = starts[np.abs(starts[:, 1] - starts[:, CAN][:, 1]) < 1e-9][0]
    pushed = first_there("Tabletop-push-open", CAN, 0.02)
    gap = np.abs(pushed[:, 0] - pushed[:, CAN][:, 0])
    np.testing.assert_allclose(gap, abs(drawn[0] - drawn[CAN][0]), atol=0.02)
    np.testing.assert_allclose(pushed[:, [2, FINGERS]], [drawn[[2, FINGERS]]] * 6, atol=0.015)
    pulled = first_there("Tabletop-drawer", slice(DRAWER, DRAWER + 1), 0.01)
    np.testing.assert_allclose(pulled[:, :3] + np.outer(pulled[:, DRAWER], [0, 1, 0]), [HANDLE] * 6, atol=0.01)
    np.testing.assert_allclose(pulled[:, FINGERS], 0.008, atol=2e-3)


def test_data_of_an_evaluation_task_are_episodes_of_primitives():
    stores = [
        collect(name, expert_episodes=2, random_episodes=0, seed=0, expert_noise=0.1, progress=False, workers=1)
        for name in ("Tabletop", "Tabletop-push-open", "Tabletop-fresh", "Tabletop-pick")
    ]
    assert [store.meta["task"] for store in stores] == [*["Tabletop"] * 2, *["Tabletop-fresh"] * 2]
    assert stores[0].sha256 == stores[1].sha256 != stores[2].sha256 == stores[3].sha256
    assert TASKS["Tabletop-push-open"].data_source is TASKS["Tabletop"]
    assert TASKS["Tabletop-drawer"].data_source is TASKS["Tabletop-fresh"]
    assert TASKS["FetchPush"].data_source is TASKS["FetchPush"]


def primitives_of(states):
    """What happened in trajectories ``[k, T+1, 10]``: drawer moved, can moved, cube lifted, ``[k]`` each."""
    moved = np.abs(states - states[:, :1])
    drawer = moved[..., DRAWER].max(1) > 0.05
    can = moved[..., CAN].max((1, 2)) > 0.05
    lifted = (states[..., 9] - states[:, :1, 9]).max(1) > 0.05
    return drawer, can, lifted


def run(name, episodes, seed=0):
    # long enough for the expert, and for what it leaves behind to show that it stays
    task = dataclasses.replace(TASKS[name], horizon=min(TASKS[name].horizon, 120))
    batch = task.make_batch_env(2)
    out = run_episodes(task, batch, Behaviour("expert", noise=0.1), seed, range(episodes))
    batch.close()
    return out


def test_no_trajectory_of_the_data_holds_what_two_evaluation_tasks_need_together():
    for name in ("Tabletop", "Tabletop-fresh"):
        drawer, can, lifted = primitives_of(run(name, 24)["observation"])
        for one in (drawer, can, lifted):
            assert one.sum() >= 3
        assert (drawer.astype(int) + can + lifted == 1).all()
    # the two tasks do need them together
    drawer, _, lifted = primitives_of(run("Tabletop-pick-close", 2)["observation"])
    assert (drawer & lifted).all()
    drawer, can, _ = primitives_of(run("Tabletop-push-open", 2)["observation"])
    assert (drawer & can).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), zip(NAMES, (0.97, 0.97, 0.98, 0.98, 0.95, 0.95)))
def test_the_expert_succeeds_over_60_noisy_episodes_and_stays_at_the_goal(name, least):
    # without a miss they are a success of at least 0.95 with 95% confidence
    reward = run(name, 60, seed=5)["reward"]
    assert reward[:, -1].mean() >= least


def test_the_expert_ends_with_the_gripper_at_home(env):
    env.reset(seed=3)
    observation, expert = env._observe(), TabletopExpert()
    for _ in range(60):
        action = expert({key: value[None] for key, value in observation.items()})[0]
        observation, *_ = env.step(action)
    np.testing.assert_allclose(observation["observation"][:4], [0.0, -0.1, 0.24, 0.035], atol=3e-3)
    assert TASKS["Tabletop"].reached(observation["achieved_goal"], observation["desired_goal"])


@pytest.mark.parametrize("fingers", [0.018, 0.026, 0.035])
def test_the_expert_lets_go_of_a_cube_before_it_pushes(env, fingers):
    cube = (0.1, -0.24, 0.02)
    env.set_state(scene(gripper=(0.1, -0.24, 0.022), fingers=fingers, cube=cube))
    goal = np.array([0.0, scene()[CAN][0] - 0.12, scene()[CAN][1], *cube])
    observation, expert = env._observe() | {"desired_goal": goal}, TabletopExpert()
    for _ in range(50):
        action = expert({key: value[None] for key, value in observation.items()})[0]
        observation = env.step(action)[0] | {"desired_goal": goal}
    np.testing.assert_allclose(observation["achieved_goal"][3:], cube, atol=0.006)
    np.testing.assert_allclose(observation["achieved_goal"][1:3], goal[1:3], atol=0.03)


def test_the_expert_leaves_a_cube_alone_that_is_shut_in(env):
    env.set_state(scene(gripper=(-0.17, 0.16, 0.2), cube=(-0.17, 0.16, 0.03)))
    goal = np.array([0.0, 0.2, -0.1, -0.17, 0.2, 0.03])
    observation = env._observe() | {"desired_goal": goal}
    action = TabletopExpert()({key: value[None] for key, value in observation.items()})[0]
    assert action[2] >= 0.0  # it goes home, not down onto the cabinet
    assert action[0] > 0.5


def test_goals_are_marked_at_the_handle_the_can_and_the_cube():
    marks = STAGES["Tabletop-drawer"].marks(np.array([0.15, 0.2, -0.1, 0.1, -0.2, 0.02]))
    np.testing.assert_allclose(marks, [[-0.17, -0.13, 0.05], [0.2, -0.1, 0.092], [0.1, -0.2, 0.02]])
    # what is in the drawer goes along with it
    marks = STAGES["Tabletop-drawer"].marks(goal_of(scene(drawer=0.15, cube=(-0.17, 0.02, 0.03))))
    np.testing.assert_allclose(marks[2], [-0.17, 0.02, 0.03])
