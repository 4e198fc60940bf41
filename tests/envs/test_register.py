"""Tasks of one's own."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from torchrl_smore.envs import TASKS, EnvPool, collect, get_task, register_task
from torchrl_smore.envs.tasks._source import source_sha256


@pytest.fixture(autouse=True)
def registry():
    """Whatever is registered in a test is gone after it."""
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


class Cart(gymnasium.Env):
    """A place on a line, moved by a command in [0, 4]: 2 stands still. Says that it ends all the time."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(np.float32(0), np.float32(4), (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1)
        return np.array([7.0, self.place]), {}

    def step(self, action):
        self.place += float(action[0]) - 2.0
        return np.array([7.0, self.place]), 99.0, True, True, {}


class GoalCart(Cart):
    observation_space = spaces.Dict(
        {key: spaces.Box(-np.inf, np.inf, (1,)) for key in ("observation", "achieved_goal", "desired_goal")}
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action):
        super().step(action)
        return self.seen(), 0.0, False, False, {}

    def seen(self):
        return {"observation": [self.place], "achieved_goal": np.array([self.place]), "desired_goal": np.array([1.5])}


class Forgetful(Cart):
    """Draws from a generator that no seed reaches."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return observation + np.random.default_rng().normal(), info


class Noisy(Cart):
    """Draws in each step from a generator that no seed reaches."""

    def step(self, action):
        self.place += np.random.default_rng().normal()
        return super().step(action)


class Worn(Cart):
    """Remembers the episodes before: a command does less in each."""

    wear = 1.0

    def reset(self, *, seed=None, options=None):
        self.wear /= 2
        return super().reset(seed=seed)

    def step(self, action):
        return super().step(2.0 + self.wear * (action - 2.0))


class Wandering(GoalCart):
    """Draws a goal in each step."""

    def seen(self):
        return {**super().seen(), "desired_goal": self.np_random.uniform(-1, 1, 1)}


def sometimes_nan(generator):
    return [np.nan]


class Old(Cart):
    """Draws from a generator that takes seeds of 32 bits."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=0)
        self.place = np.random.RandomState(seed).uniform(-1, 1)
        return np.array([7.0, self.place]), {}


class Discrete(Cart):
    action_space = spaces.Discrete(3)


class Unbounded(Cart):
    action_space = spaces.Box(-np.inf, np.inf, (1,))


class Image(Cart):
    observation_space = spaces.Box(0, 255, (4, 4), np.uint8)


class Broken(Cart):
    def step(self, action):
        return np.array([np.nan, 0.0]), 0.0, False, False, {}


def near_three(generator):
    return [3.0 + generator.uniform(-0.1, 0.1)]


def beyond_two(observation):
    return np.abs(observation[..., 1]) > 2.0


OPTIONS = {"threshold": 0.5, "horizon": 6, "goal_columns": [1], "goals": ([-2.0], [2.0])}


def test_columns_become_goals_rewards_follow_the_threshold_and_ends_are_passed_over():
    task = register_task("Cart", Cart, **OPTIONS, observation_names=["label [1]", "place [m]"])
    assert get_task("Cart") is task
    assert (task.observation_dim, task.goal_dim, task.action_dim, task.horizon) == (2, 1, 1, 6)
    assert task.goal_columns == ("place [m]",)
    env = task.make_env()
    observation, _ = env.reset(seed=3)
    place = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3))).uniform(-1, 1)
    np.testing.assert_allclose(observation["achieved_goal"], [place], rtol=1e-6)
    assert observation["observation"][1] == observation["achieved_goal"][0]
    goal = observation["desired_goal"].copy()
    assert -2 <= goal[0] <= 2
    # -1 is a command of 0, so two to the left; 0.5 is a command of 3
    # beyond what there is, as much as there is
    for action, moved in ((-1.0, -2.0), (0.5, 1.0), (1.0, 2.0), (5.0, 2.0), (-1.5, -2.0)):
        place += moved
        observation, reward, terminated, truncated, info = env.step(np.array([action], np.float32))
        np.testing.assert_allclose(observation["achieved_goal"], [place], rtol=1e-5)
        assert reward == info["is_success"] == (abs(place - goal[0]) <= 0.5)
        assert (terminated, truncated) == (False, False)
        np.testing.assert_array_equal(observation["desired_goal"], goal)


def test_the_goal_depends_on_the_seed_alone_and_covers_its_box():
    env = register_task("Cart", Cart, **OPTIONS).make_env()
    goals = [env.reset(seed=seed)[0]["desired_goal"][0] for seed in range(200)]
    assert goals[17] == env.reset(seed=17)[0]["desired_goal"][0]
    assert min(goals) < -1.8
    assert max(goals) > 1.8
    drawn = register_task("Drawn", Cart, **{**OPTIONS, "goals": near_three}).make_env()
    assert 2.9 <= drawn.reset(seed=0)[0]["desired_goal"][0] <= 3.1


def test_a_dict_observation_has_goals_of_its_own():
    task = register_task("GoalCart", GoalCart, threshold=0.1, horizon=4)
    assert task.make_env().reset(seed=0)[0]["desired_goal"].tolist() == [1.5]
    assert task.goal_columns == ("goal 0",)


def test_gymnasium_ids_lose_their_time_limit():
    task = register_task("Car", "MountainCarContinuous-v0", **{**OPTIONS, "goal_columns": [0], "horizon": 3})
    env, names = task.make_base_env(), []
    while hasattr(env, "env"):
        names.append(type(env).__name__)
        env = env.env
    assert "TimeLimit" not in names
    assert register_task("Reach", "FetchReach-v4", threshold=0.05, horizon=50).observation_dim == 10


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")  # the wrapped one is what is used
@pytest.mark.filterwarnings("ignore:.*A Box observation space (min|max)imum value is")
def test_the_gymnasium_checker_accepts_a_task_of_a_gymnasium_id():
    task = register_task("Car", "MountainCarContinuous-v0", **{**OPTIONS, "goal_columns": [0]})
    check_env(task.make_env(), skip_render_check=True)


def test_an_environment_whose_seeds_have_32_bits_gets_such():
    task = register_task("Old", Old, **OPTIONS)
    store = collect(task, expert_episodes=0, random_episodes=6, seed=0, workers=1, progress=False)
    firsts = store.data["observation"][::6, 1]
    assert len(set(firsts.tolist())) == 6
    env = task.make_env()
    for seed in (3, 3 + 2**32, 3 + 5 * 2**32):
        assert env.reset(seed=seed)[0]["observation"][1] == np.float32(np.random.RandomState(3).uniform(-1, 1))


def beyond_one(observation):
    # of torch, max is something else, and a tensor has no astype
    return (np.abs(observation[..., 1:]).max(axis=-1) > 1.0).astype(bool)


def test_a_rule_of_falls_may_be_of_numpy_alone():
    task = register_task("Cart", Cart, **OPTIONS, has_fallen=beyond_one)
    store = collect(task, expert_episodes=0, random_episodes=20, seed=0, workers=1, progress=False)
    places = store.data["next", "observation"][:, 1].reshape(20, 6).abs()
    fallen = places > 1.0
    assert fallen.any(1).sum() > 0
    for row in range(20):
        first = int(fallen[row].int().argmax()) if fallen[row].any() else 5
        assert (places[row, first:] == places[row, first]).all()
    assert store.meta["composition"][0]["fallen"] == pytest.approx(float(fallen[:, -1].float().mean()))


def test_after_a_fall_nothing_changes_and_nothing_is_earned():
    task = register_task("Cart", Cart, **{**OPTIONS, "goals": ([3.0], [3.0])}, has_fallen=beyond_two)
    env = task.make_env()
    env.reset(seed=0)
    steps = [env.step(np.array([action], np.float32)) for action in (1.0, 1.0, -1.0)]
    places = [step[0]["achieved_goal"][0] for step in steps]
    assert places[2] == places[1] > 2
    assert [step[2] for step in steps] == [abs(place) > 2 for place in places]
    assert steps[-1][1] == 0.0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_of_ones_own_reaches_other_processes(tmp_path, monkeypatch, workers):
    (tmp_path / "own_module.py").write_text(
        "from torchrl_smore.envs import register_task\n"
        "MyTask = register_task('MyTask', 'MountainCarContinuous-v0', goal_columns=[0], goals=([-1.0], [0.4]),\n"
        "                       threshold=0.05, horizon=5)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    task = get_task("own_module:MyTask")
    assert task.name == "MyTask"
    assert get_task("own_module:MyTask") is task
    store = collect(task, expert_episodes=0, random_episodes=4, seed=0, workers=workers, progress=False)
    assert (store.num_transitions, store.meta["task"]) == (20, "MyTask")
    with EnvPool(task, 2, num_workers=workers - 1) as pool:
        assert pool.reset([0, 1])["observation"].shape == (2, 2)
    with pytest.raises(ValueError, match=r"MyTask has no scripted expert. Give register_task make_expert"):
        collect(task, expert_episodes=1, random_episodes=0, seed=0, progress=False)
    monkeypatch.delitem(sys.modules, "own_module")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Task", "task 'no_such_module:Task': there is no module 'no_such_module' in"),
        ("math:Task", "unknown task of math 'Task'"),
        ("math:", "expected MODULE:NAME"),
        (":Task", "expected MODULE:NAME"),
        ("a b:Task", "expected MODULE:NAME"),
        ("/tmp/x.py:Task", "expected MODULE:NAME"),
    ],
)
def test_what_names_no_task_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        get_task(name)


def test_a_module_that_fails_says_what_it_lacks_itself(tmp_path, monkeypatch):
    (tmp_path / "failing_module.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        get_task("failing_module:Task")


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (Cart, {"threshold": 0.0}, "threshold must be positive, got 0"),
        (Cart, {"threshold": float("nan")}, "threshold must be positive"),
        (Cart, {"horizon": 1}, "horizon must be at least 2, got 1"),
        (Cart, {"gammas": ()}, r"gammas must be one or more discounts in \(0, 1\], got \(\)"),
        (Cart, {"gammas": (0.9, 1.5)}, r"gammas must be .* got \(0\.9, 1\.5\)"),
        (Cart, {"name": "my task"}, "expected a name of letters"),
        (Cart, {"name": "FetchReach"}, "there is a task 'FetchReach' already"),
        (Cart, {"goals": None}, "has no goals: give goal_columns and goals"),
        (Cart, {"goal_columns": None}, "has no goals: give goal_columns and goals"),
        (Cart, {"goal_columns": [2]}, r"goal_columns must lie in \[0, 2\), got \[2\]"),
        (Cart, {"goal_columns": [-1]}, r"goal_columns must lie in"),
        (Cart, {"goals": ([0.0, 0.0], [1.0, 1.0])}, "goals must be 1 smallest and as many largest"),
        (Cart, {"goals": ((0, 0),)}, r"goals must be a function, or smallest and largest numbers, got \(\(0, 0\),\)"),
        (Cart, {"goals": 5}, "goals must be a function, or smallest and largest numbers, got 5"),
        (Cart, {"goal_columns": 0}, "goal_columns must be numbers of columns, got 0"),
        (Cart, {"goals": ([1.0], [0.0])}, "goals must be 1 smallest"),
        (Cart, {"goals": ([0.0], [np.inf])}, "goals must be 1 smallest"),
        (Cart, {"goals": lambda generator: [0.0]}, r"imported by name in other processes \(no lambdas\)"),
        (lambda: Cart(), {}, "no lambdas"),
        (Cart, {"observation_names": ["a"]}, "observation_names: expected 2 names"),
        (GoalCart, {}, "has its own goals: drop goal_columns and goals"),
        (Forgetful, {}, "observation: two resets with one seed differ"),
        (Noisy, {}, "observation: two episodes with one seed and the same actions differ after step 1"),
        (Worn, {}, "observation: two episodes with one seed and the same actions differ after step 1"),
        (
            Cart,
            {
                "has_fallen": lambda rows: (
                    rows.max(axis=min(1, rows.ndim - 1)) > 2 if rows.ndim < 3 else rows[:, 0, 0] > 2
                )
            },
            r"booleans of shape \[1, 2\] for observations \[1, 2, 2\], got bool \[1\]",
        ),
        (
            Wandering,
            {"goals": None, "goal_columns": None},
            r"the goal changes in step 1 of an episode, from \[.*\] to \[.*\]: it must stay",
        ),
        (Cart, {"goals": sometimes_nan}, r"goals: expected a goal of finite numbers, got \[nan\]"),
        (Cart, {"make_expert": 5}, "make_expert must be what builds an expert, got 5"),
        (Discrete, {}, "expected an action space of vectors with bounds, got Discrete"),
        (Unbounded, {}, "expected an action space of vectors with bounds"),
        (Image, {}, "expected an observation that is a vector"),
        (Broken, {}, "expected a vector of finite numbers"),
        ("NoSuchEnv-v0", {}, "gymnasium cannot make 'NoSuchEnv-v0'"),
        (
            Cart,
            {"has_fallen": lambda rows: rows[..., :1] > 2},
            r"booleans of shape \[\] for observations \[2\], got bool \[1\]",
        ),
        (
            Cart,
            {"has_fallen": lambda rows: rows[..., 0]},
            r"has_fallen: expected booleans of shape \[\] .*, got float32 \[\]",
        ),
        (Cart, {"has_fallen": lambda rows: rows[:, 0] > 2}, r"observations \[2\], failed with IndexError"),
    ],
)
def test_what_makes_no_task_is_refused_and_not_registered(env, options, message):
    before = set(TASKS)
    with pytest.raises(ValueError, match=message):
        register_task(**{"name": "Cart", "env": env, **OPTIONS, **options})
    assert set(TASKS) == before


@pytest.mark.parametrize("options", [{"goals": None}, {"goal_columns": [7]}])
def test_an_environment_of_which_no_task_can_be_made_is_closed(options):
    closed = []

    class Closing(Cart):
        def close(self):
            closed.append(self)

    with pytest.raises(ValueError, match="goal_columns"):
        register_task("Cart", Closing, **{**OPTIONS, **options})
    assert len(closed) == 1


def test_a_registered_task_survives_pickling():
    task = register_task("Cart", partial(Cart), **OPTIONS)
    again = pickle.loads(pickle.dumps(task))
    np.testing.assert_array_equal(
        again.make_env().reset(seed=1)[0]["desired_goal"], task.make_env().reset(seed=1)[0]["desired_goal"]
    )


def test_a_task_of_numpys_numbers_is_collected_like_one_of_plain_ones(tmp_path):
    numbers = {**OPTIONS, "horizon": np.int64(4), "threshold": np.float32(0.5), "goal_columns": np.array([1])}
    task = register_task("Cart", Cart, **numbers, gammas=(np.float32(0.5),))
    options = {"expert_episodes": 0, "random_episodes": 2, "seed": 0, "workers": 1, "progress": False}
    meta = collect(task, **options, out=tmp_path / "store").meta
    assert (meta["horizon"], meta["threshold"], meta["gamma"]) == (4, 0.5, 0.5)
    with pytest.raises(TypeError, match=r"horizon must be a whole number, got 4\.5"):
        register_task("Other", Cart, **{**OPTIONS, "horizon": 4.5})


MODULE = """
import gymnasium
from mine_base import Base
from torchrl_smore.envs import register_task

class Own(Base):
    pass

class Expert:
    def __call__(self, seen):
        return 0 * seen["observation"][:, :1]

if "Own-v0" not in gymnasium.registry:
    gymnasium.register("Own-v0", entry_point="mine_entry:Own")
OPTIONS = dict(threshold=0.5, horizon=4)
"""


@pytest.mark.parametrize(
    ("made", "decisive"),
    [
        ("register_task('A', Own, **OPTIONS)", ["mine_module", "mine_base"]),
        ("register_task('A', 'mine_entry:Own-v0', **OPTIONS)", ["mine_entry"]),
        ("register_task('A', 'FetchReach-v4', make_expert=Expert, **OPTIONS)", ["mine_module"]),
        ("register_task('A', 'FetchReach-v4', **OPTIONS)", []),
    ],
)
def test_a_task_of_ones_own_is_known_by_the_files_that_define_it(tmp_path, monkeypatch, made, decisive):
    base = (
        "import gymnasium\n"
        "from torchrl_smore.envs._robotics import make_robotics_env\n"
        "class Base(gymnasium.Wrapper):\n"
        "    metadata = {'render_modes': []}\n"  # before 1.4 gymnasium takes a wrapper's property for it
        "    def __init__(self):\n"
        "        super().__init__(make_robotics_env('FetchReach-v4'))\n"
    )
    files = {
        "mine_base": base,
        "mine_module": MODULE + f"Task = {made}\n",
        "mine_entry": base + "class Own(Base): pass\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        task = get_task("mine_module:Task")
        first = task.source_sha256
        assert len(first) == 64
        assert dataclasses.replace(task, threshold=1.0).source_sha256 == first
        for name in files:
            content = (tmp_path / f"{name}.py").read_text()
            (tmp_path / f"{name}.py").write_text(content + "# edited\n")
            assert (task.source_sha256 != first) == (name in decisive), name
            (tmp_path / f"{name}.py").write_text(content)
        options = {"expert_episodes": 0, "random_episodes": 1, "seed": 0, "workers": 1, "progress": False}
        assert collect(task, **options).meta["source_sha256"] == first
    finally:
        gymnasium.registry.pop("Own-v0", None)
        for name in files:
            sys.modules.pop(name, None)


def test_another_environment_of_the_same_words_is_another_source():
    first = register_task("A", "FetchPush-v4", threshold=0.05, horizon=4)
    second = register_task("B", "FetchPickAndPlace-v4", threshold=0.05, horizon=4)
    assert first.definition == second.definition
    assert first.source_sha256 != second.source_sha256


class Tuned(Cart):
    """A cart that comes with values."""

    def __init__(self, *values, **named):
        super().__init__()
        self.values = values, named


@dataclasses.dataclass(frozen=True)
class Tuning:
    gain: float

    def made(self):
        return Tuned(self.gain)


class Mode(enum.Enum):
    SLOW = 1
    FAST = 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(Tuned, {"gain": 1.0}), partial(Tuned, {"gain": 0.1})),
        (partial(Tuned, gravity=1.0), partial(Tuned, wind=1.0)),
        (partial(Tuned, np.ones(2)), partial(Tuned, np.zeros(2))),
        (partial(Tuned, np.float32(1)), partial(Tuned, np.float32(2))),
        (partial(Tuned, {"a", "b"}), partial(Tuned, {"a", "c"})),
        (partial(Tuned, {1: {"a": (2, 3)}}), partial(Tuned, {1: {"a": (2, 4)}})),
        (partial(Tuned, {"a": (), "b": 1}), partial(Tuned, {"a": ("b", 1)})),
        (partial(Tuned, {(1, 2), (3,)}), partial(Tuned, {(1,), (2, 3)})),
        (partial(Tuned, {1: 2, 3: 4}), partial(Tuned, {(1, 2), (3, 4)})),
        (partial(Tuned, [[1, 2], 3]), partial(Tuned, [1, [2, 3]])),
        (partial(Tuned, Mode.SLOW), partial(Tuned, Mode.FAST)),
        (partial(Tuned, Path("a")), partial(Tuned, Path("b"))),
        (partial(Tuned, b"a", 1j, slice(2)), partial(Tuned, b"a", 1j, slice(3))),
        (Tuning(1.0).made, Tuning(2.0).made),
        (partial(Tuned, Tuning(1.0)), partial(Tuned, Tuning(2.0))),
    ],
)
def test_an_environment_is_known_by_the_values_that_it_is_made_with(one, other):
    first, second, again = (source_sha256([made]) for made in (one, other, pickle.loads(pickle.dumps(one))))
    assert first == again
    assert first != second


def test_functions_in_a_set_are_known_by_their_names_in_every_process():
    code = (
        "import os, shutil; from torchrl_smore.envs.register import register_task; "
        "from torchrl_smore.envs.tasks._source import source_sha256; "
        "print(source_sha256([register_task, {shutil.copy, os.walk, shutil.move}, {shutil.copy: 1, os.walk: 2}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    parts = [register_task, {shutil.copy, os.walk, shutil.move}, {shutil.copy: 1, os.walk: 2}]
    assert done.stdout.strip() == source_sha256(parts)


def test_an_environment_of_gymnasiums_registry_is_known_by_its_arguments():
    digests = []
    try:
        for gain in (1.0, 2.0, 1.0):
            # an id may be among its own arguments
            kwargs = {"gain": gain, "base": "Tuned-v0"}
            gymnasium.register("Tuned-v0", entry_point=f"{__name__}:Tuned", kwargs=kwargs)
            digests.append(source_sha256(["Tuned-v0", Cart]))
            gymnasium.registry.pop("Tuned-v0")
    finally:
        gymnasium.registry.pop("Tuned-v0", None)
    assert digests[0] == digests[2] != digests[1]


def test_a_task_may_have_the_name_of_its_class(tmp_path, monkeypatch):
    (tmp_path / "named_module.py").write_text(
        "import gymnasium\n"
        "from torchrl_smore.envs import register_task\n"
        "class Maze(gymnasium.Wrapper):\n"
        "    def __init__(self):\n"
        "        super().__init__(gymnasium.make('MountainCarContinuous-v0').unwrapped)\n"
        "register_task('Maze', Maze, goal_columns=[0], goals=([-1.0], [0.4]), threshold=0.05, horizon=5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert get_task("named_module:Maze") is get_task("Maze")
    monkeypatch.delitem(sys.modules, "named_module")


def test_tasks_of_the_package_have_versions_and_no_source():
    assert {task.source_sha256 for task in TASKS.values()} == {None}
    assert all(json.loads(json.dumps(task.definition)) == task.definition for task in TASKS.values())
