import dataclasses
import functools
import os
import signal
import time
from typing import ClassVar

import gymnasium
import numpy as np
import pytest

from torchrl_smore._worker import Worker
from torchrl_smore.envs import TASKS, EnvPool
from torchrl_smore.envs.pool import _reset
from torchrl_smore.trainers import BackgroundEvaluator


def rollout(pool, seeds, steps):
    rng = np.random.default_rng(0)
    trace = [np.concatenate(list(pool.reset(seeds).values()), axis=1)]
    for _ in range(steps):
        observation, reward = pool.step(rng.uniform(-1.0, 1.0, (pool.num_envs, pool.task.action_dim)))
        trace.append(np.concatenate(list(observation.values()), axis=1))
        assert reward.shape == (pool.num_envs,)
        np.testing.assert_array_equal(
            reward, pool.task.reached(observation["achieved_goal"], observation["desired_goal"])
        )
    return np.stack(trace)


@pytest.mark.parametrize(
    ("name", "noise"),
    [("FetchPush", 0.0), ("FetchReach", 0.5), ("HandReach", 0.0), ("PointRooms", 0.5), ("SawyerDoor", 0.5)],
)
def test_the_same_seeds_give_the_same_episodes_for_any_number_of_workers(name, noise):
    seeds = [1, 2**63, 7]
    with EnvPool(name, 3, action_noise=noise) as here, EnvPool(name, 3, num_workers=2, action_noise=noise) as spread:
        rollout(here, [4, 5, 6], 2)  # what ran before must not matter
        expected = rollout(here, seeds, 8)
        np.testing.assert_array_equal(rollout(spread, seeds, 8), expected)
    assert np.ptp(expected, axis=1).max() > 0.0


def test_environments_that_do_not_divide_evenly_keep_their_order():
    with EnvPool("PointReach", 5) as here, EnvPool("PointReach", 5, num_workers=3) as spread:
        np.testing.assert_array_equal(here.reset(range(5))["observation"], spread.reset(range(5))["observation"])


def test_more_workers_than_environments_are_not_started():
    with EnvPool("PointReach", 2, num_workers=8) as pool:
        assert pool.reset([0, 1])["observation"].shape == (2, 2)
        assert len(pool._workers) == 2


def test_action_noise_changes_what_happens_and_nothing_else():
    with EnvPool("PointReach", 2) as quiet, EnvPool("PointReach", 2, action_noise=0.5) as noisy:
        for key, value in quiet.reset([0, 1]).items():
            np.testing.assert_array_equal(noisy.reset([0, 1])[key], value)
        still = np.zeros((2, 2), dtype=np.float32)
        before = quiet.step(still)[0]["observation"]
        assert not np.array_equal(noisy.step(still)[0]["observation"], before)


def test_a_dead_worker_is_named_with_its_cause_and_all_are_collected():
    pool = EnvPool("PointReach", 2, num_workers=2)
    pids = [worker.pid for worker in pool._workers]
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"environment worker 1 of PointReach \(process \d+\) was killed by SIGKILL"):
        pool.reset([0, 1])
    for pid in pids:
        with pytest.raises(ChildProcessError):  # no child of that id: neither running nor a zombie
            os.waitpid(pid, os.WNOHANG)
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.reset([0, 1])


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["answering", "taking the request"])
def test_a_stopped_worker_times_out_by_its_name(size):
    worker = Worker("environment worker 3 of PointReach", timeout_s=1.0)
    os.kill(worker.pid, signal.SIGSTOP)
    started = time.monotonic()
    said = r"environment worker 3 of PointReach \(process \d+\) has not answered for 1 s"
    with pytest.raises(RuntimeError, match=said):
        # a pipe holds about 64,000 bytes
        _ask(worker, _count, b"x" * size)
    assert 0.9 < time.monotonic() - started < 30.0
    worker.close()


def _ask(worker, *request):
    worker.send(*request)
    return worker.receive()


def _count(state, content):
    return len(content)


def test_a_pool_passes_its_timeout_on_and_closes_when_it_runs_out():
    pool = EnvPool("PointReach", 2, num_workers=2, timeout_s=90.0)
    pids = [worker.pid for worker in pool._workers]
    for worker in pool._workers:
        assert worker.timeout_s == 90.0
        worker.timeout_s = 1.0
    os.kill(pids[1], signal.SIGSTOP)
    with pytest.raises(RuntimeError, match=r"environment worker 1 of PointReach .* has not answered for 1 s"):
        pool.reset([0, 1])
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    with pytest.raises(ValueError, match="timeout_s must be positive, got 0"):
        EnvPool("PointReach", 1, num_workers=1, timeout_s=0)


def test_large_messages_go_both_ways():
    worker = Worker("worker")
    content = os.urandom(3_000_000)
    worker.send(_echo, content)
    assert worker.receive() == content
    worker.close()


def _echo(state, content):
    return content


def test_a_task_of_the_users_own_script_is_explained(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import dataclasses\n"
        "from torchrl_smore.envs import EnvPool, get_task\n"
        "def mine(observation):\n"
        "    return observation[..., 0] > 4\n"
        "EnvPool(dataclasses.replace(get_task('PointReach'), has_fallen=mine), 1, num_workers=1)\n"
    )
    done = python(script)
    assert done.status == 1
    assert "does not run the script that started it" in done.stderr
    assert "module of their own" in done.stderr


def test_an_exception_in_a_worker_comes_back_with_its_traceback():
    pool = EnvPool("PointReach", 2, num_workers=1)
    # what the pool itself lets through, and the worker cannot use
    with pytest.raises(RuntimeError, match=r"(?s)environment worker 0 of PointReach failed.*non-negative"):
        pool._call(_reset, [0, -5])


def test_a_worker_knows_that_its_parent_is_gone_even_if_it_died_before_the_worker_served(python, tmp_path):
    (tmp_path / "late.py").write_text(
        "from torchrl_smore._worker import PARENT_IS_GONE\n"
        "def note(state, path):\n"
        "    open(path, 'w').write(str(state[PARENT_IS_GONE]()))\n"
    )
    script = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from late import note\n"
        "from torchrl_smore._worker import Worker\n"
        "worker = Worker('one')\n"
        "if sys.argv[1:] == ['stay']:\n"
        f"    worker.send(note, {str(tmp_path / 'stay')!r}); worker.receive(); worker.close()\n"
        "else:\n"
        f"    worker.send(note, {str(tmp_path / 'go')!r}); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for how, gone in (("stay", "False"), ("go", "True")):
        python("-c", script, how)
        deadline = time.monotonic() + 60
        while not (tmp_path / how).exists() or not (tmp_path / how).read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (tmp_path / how).read_text() == gone


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_negative_seed_is_refused_and_the_pool_goes_on(num_workers):
    with EnvPool("PointReach", 2, num_workers=num_workers) as pool:
        with pytest.raises(ValueError, match="seeds must be at least 0, got -5"):
            pool.reset([0, -5])
        assert pool.reset([0, 5])["observation"].shape == (2, 2)


def test_workers_leave_when_their_parent_is_killed(python):
    code = (
        "import os, signal\n"
        "from torchrl_smore.envs import EnvPool\n"
        "pool = EnvPool('PointReach', 2, num_workers=2)\n"
        "print(*[worker.pid for worker in pool._workers], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pids = [int(pid) for pid in python("-c", code).stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        _wait_until_gone(pid)


def _wait_until_gone(pid):
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return  # ended; its new parent has not asked for it yet
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"num_envs": 2, "num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"num_envs": 2, "action_noise": -0.5}, "action_noise must be a finite number of at least 0, got -0.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EnvPool("PointReach", **arguments)


def test_an_unknown_task_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'PointReach'"):
        EnvPool("PointReech", 1)


def test_wrong_shapes_are_refused():
    with EnvPool(TASKS["PointReach"], 2) as pool:
        with pytest.raises(ValueError, match="one seed for each of 2 environments, got 3"):
            pool.reset([0, 1, 2])
        pool.reset([0, 1])
        with pytest.raises(ValueError, match=r"expected actions of shape \(2, 2\), got \(2,\)"):
            pool.step(np.zeros(2))
        with pytest.raises(TypeError, match=r"a seed must be a whole number, got 1\.7"):
            pool.reset([1.7, 2])


@pytest.mark.parametrize(("name", "value"), [("PointReach", np.inf), ("SawyerReach", np.nan)])
def test_actions_that_are_not_finite_are_refused_by_their_environments(name, value):
    # MuJoCo would begin its simulation anew, and say so in a file of its own
    with EnvPool(name, 12) as pool:
        pool.reset(range(12))
        actions = np.zeros((12, pool.task.action_dim))
        before = pool.step(actions)[0]["observation"]
        actions[1, 0] = actions[3] = value
        with pytest.raises(ValueError, match=r"expected finite actions, got .* for environments 1, 3\.$"):
            pool.step(actions)
        actions[1:] = value
        with pytest.raises(ValueError, match=r"for environments 1, 2, 3, 4, 5, 6, 7, 8 and 3 more\.$"):
            pool.step(actions)
        np.testing.assert_allclose(pool.step(0 * np.nan_to_num(actions))[0]["observation"], before, atol=1e-6)


def test_a_worker_imports_torch_only_when_the_package_is_asked_for_a_name():
    worker = Worker("worker")
    imported = functools.partial(eval, "'torch' in __import__('sys').modules")
    worker.send(imported)
    assert worker.receive() is False
    worker.send(functools.partial(eval, "__import__('torchrl_smore').TrajectoryStore.__name__"))
    worker.send(imported)
    assert [worker.receive(), worker.receive()] == ["TrajectoryStore", True]
    worker.close()
    worker.close()


class Logged(gymnasium.Env):
    """A place on a line that writes when it is opened and closed; the third one that is built fails if told to."""

    observation_space = gymnasium.spaces.Dict(
        {key: gymnasium.spaces.Box(-9, 9, (1,)) for key in ("observation", "achieved_goal", "desired_goal")}
    )
    action_space = gymnasium.spaces.Box(np.float32(-1), np.float32(1), (1,))
    built: ClassVar[list] = []

    def __init__(self, log, fails=""):
        self.log, self.fails = log, fails
        if fails == "opening" and len(self.built) == 2:
            raise OSError("no licence left")
        self.built.append(self)
        self.write("open")

    def write(self, word):
        with self.log.open("a") as file:
            file.write(f"{word}\n")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 1)
        return dict.fromkeys(self.observation_space, self.place), {}

    def step(self, action):
        return dict.fromkeys(self.observation_space, self.place), 0.0, False, False, {}

    def close(self):
        self.write("close")
        if self.fails == "closing" and self is self.built[0]:
            raise OSError("gone already")


@pytest.fixture
def logged(tmp_path):
    """A function that makes a task of logged environments, and one that says what was written."""
    log = tmp_path / "log"
    Logged.built.clear()

    def make(fails=""):
        own = functools.partial(Logged, log, fails)
        return dataclasses.replace(TASKS["PointReach"], name="Logged", make_batch=None, make_base_env=own)

    return make, lambda: log.read_text().split()


@pytest.mark.parametrize("workers", [0, 2])
def test_environments_are_closed_wherever_they_are(logged, workers):
    make, written = logged
    pool = EnvPool(make(), 2, num_workers=workers)
    pool.close()
    pool.close()
    assert sorted(written()) == ["close", "close", "open", "open"]


def test_environments_of_another_process_that_evaluates_are_closed(logged):
    make, written = logged
    with BackgroundEvaluator(functools.partial(EnvPool, make(), 2), episodes=2, horizon=2) as background:
        background.run_all([still])
    assert sorted(written()) == ["close", "close", "open", "open"]


def still(observation):
    return np.zeros((len(observation["observation"]), 2))


def test_those_that_are_open_are_closed_where_one_cannot_be_opened_or_closed(logged):
    make, written = logged
    with pytest.raises(OSError, match="no licence left"):
        EnvPool(make("opening"), 4)
    assert written() == ["open", "open", "close", "close"]
    Logged.built.clear()
    pool = EnvPool(make("closing"), 3)
    with pytest.raises(OSError, match="gone already"):
        pool.close()
    assert written()[4:] == ["open"] * 3 + ["close"] * 3


def test_one_environment_in_two_places_is_refused(logged):
    make, _ = logged
    one = make().make_base_env()
    shared = dataclasses.replace(make(), make_base_env=lambda: one)
    with pytest.raises(ValueError, match="the same environment was built twice"):
        EnvPool(shared, 2)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("task", ["PointReach", "FetchReach", "Tabletop"])
def test_a_step_before_the_first_episode_is_refused(task, noise):
    with EnvPool(task, 1, action_noise=noise) as pool:
        action = np.zeros((1, pool.task.action_dim))
        with pytest.raises(RuntimeError, match="no episodes: reset it before the first step"):
            pool.step(action)
        pool.reset([0])
        pool.step(action)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_envs": 2.5}, TypeError, "num_envs must be a whole number, got 2.5"),
        ({"num_workers": 1.5}, TypeError, "num_workers must be a whole number, got 1.5"),
        ({"timeout_s": -1.0}, ValueError, "timeout_s must be positive, got -1"),
    ],
)
def test_numbers_that_no_pool_can_have_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        EnvPool("PointReach", **{"num_envs": 2, **options})
