import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from torchrl_smore import _worker
from torchrl_smore.data.errors import DatasetError
from torchrl_smore.data.trajectories import TrajectoryStore
from torchrl_smore.envs import TASKS, _rollout, collect, get_task
from torchrl_smore.envs import collect as collect_function
from torchrl_smore.envs.experts.actor_file import Actor, write_actor
from torchrl_smore.envs.point import PointBatch, PointWorld

collect_module = sys.modules["torchrl_smore.envs.collect"]


class Beyond:
    """An expert of whose actions some are larger than 1, in float64."""

    def __call__(self, observation):
        return 3.0 * (observation["desired_goal"] - observation["observation"]).astype(np.float64)


def point(**changes):
    arguments = {"expert_episodes": 50, "random_episodes": 70, "seed": 3, "progress": False} | changes
    return collect_function("PointRooms", **arguments)


@pytest.fixture(scope="module")
def reference():
    return point()


def test_the_store_is_the_same_for_any_number_of_workers(reference):
    assert point(workers=3).sha256 == reference.sha256
    assert point(seed=4).sha256 != reference.sha256


def test_a_simulated_task_gives_the_same_store_for_any_number_of_workers():
    stores = [
        collect("FetchReach", expert_episodes=21, random_episodes=3, seed=0, workers=workers, progress=False)
        for workers in (1, 2)
    ]
    assert stores[0].sha256 == stores[1].sha256
    assert stores[0].meta == stores[1].meta


def test_an_episode_depends_on_its_number_and_not_on_how_many_there_are(reference):
    fewer = point(expert_episodes=20, random_episodes=0)
    torch.testing.assert_close(reference.data[: 20 * 50], fewer.data, rtol=0.0, atol=0.0)


def test_experts_come_first_and_meta_says_what_each_part_achieved(reference):
    parts = reference.meta["composition"]
    assert [(part["behaviour"], part["num_trajectories"]) for part in parts] == [("expert", 50), ("random", 70)]
    assert reference.num_trajectories == 120
    reward = reference.data["next", "reward"].reshape(120, 50).numpy().astype(np.float64)
    for part, rows in zip(parts, (reward[:50], reward[50:]), strict=True):
        assert part["success"] == pytest.approx(rows[:, -1].mean())
        assert part["discounted_return"] == pytest.approx((rows * 0.99 ** np.arange(50)).sum(1).mean())
    assert parts[0]["success"] == 1.0
    assert parts[1]["success"] < 0.2
    assert reference.meta["task"] == "PointRooms"
    assert reference.meta["seed"] == 3
    assert set(reference.meta["versions"]) >= {"torch", "gymnasium", "gymnasium-robotics", "mujoco", "torchrl-smore"}


def test_rewards_and_motion_in_the_store_are_those_of_the_task(reference):
    data, task = reference.data, TASKS["PointRooms"]
    reached = task.reached(data["next", "achieved_goal"], data["desired_goal"])
    assert torch.equal(data["next", "reward"].squeeze(-1), reached.float())
    moved = task.make_expert().world.move(data["observation"].double().numpy(), data["action"].double().numpy())
    free = np.abs(moved - data["next", "observation"].numpy()).max(-1) < 1e-5
    assert free.mean() > 0.995  # the rest starts at a face and rounds into the wall


def test_random_actions_are_uniform_and_independent(reference):
    action = reference.data["action"].reshape(120, 50, 2)[50:].reshape(-1)
    # 7,000 draws: the standard error of the mean is 0.0069, of the variance 0.0036
    assert abs(float(action.mean())) < 0.03
    assert float(action.var()) == pytest.approx(1.0 / 3.0, abs=0.015)
    assert abs(float((action[2:] * action[:-2]).mean())) < 0.02


def test_each_noise_changes_what_it_names(reference):
    expert = {"expert_episodes": 20, "random_episodes": 0}
    plain = reference.data[:1000]

    noisy = point(**expert, expert_noise=0.3).data
    assert not torch.equal(noisy["action"][0], plain["action"][0])
    assert noisy["action"].abs().max() <= 1.0

    replaced = point(**expert, expert_random_prob=0.25).data
    start = torch.arange(0, 1000, 50)
    # the first states agree, so the expert's own first actions do too
    share = (replaced["action"][start] != plain["action"][start]).any(-1).float().mean()
    assert 0.0 < float(share) < 0.7

    shaken = point(**expert, action_noise=0.5).data
    assert torch.equal(shaken["action"][start], plain["action"][start])
    assert not torch.equal(shaken["next", "observation"][start], plain["next", "observation"][start])


def test_an_interrupted_collection_goes_on_where_it_stopped(reference, tmp_path, monkeypatch):
    out, run, done = tmp_path / "deep" / "store", _rollout.run_episodes, []

    def full_disk_at_the_fourth(*arguments):
        if len(done) == 3:
            raise OSError("No space left on device")
        done.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(collect_module, "run_episodes", full_disk_at_the_fourth)
    with pytest.raises(OSError, match="No space left"):
        point(out=out)
    assert not out.exists()
    partial = out.with_name("store.partial")
    assert len(list(partial.glob("chunk_*.npz"))) == 3

    (partial / "chunk_000001.npz").write_bytes(b"torn")
    again = []
    monkeypatch.setattr(collect_module, "run_episodes", lambda *a: again.append(a[-1]) or run(*a))
    store = point(out=out)
    assert [episodes.start for episodes in again] == [20, 50, 70, 90, 110]  # chunk 1 was torn, 3 to 6 were missing
    assert store.sha256 == reference.sha256 == TrajectoryStore.load(out).sha256
    assert store.meta == reference.meta
    assert not partial.exists()


def test_an_actor_that_is_replaced_meanwhile_is_told_of_and_no_episode_of_the_new_one_is_kept(tmp_path, monkeypatch):
    file, run, done = tmp_path / "act.npz", _rollout.run_episodes, []

    def write(mean):
        # acts alike everywhere
        write_actor(file, Actor(((np.zeros((2, 4), np.float32), np.full(2, mean, np.float32)),), goal_dim=2))

    def replaced_in_the_second(*arguments):
        if done:
            write(-1.0)
        done.append(arguments)
        return run(*arguments)

    write(1.0)
    monkeypatch.setattr(collect_module, "_wants_worker", lambda request: False)
    monkeypatch.setattr(collect_module, "run_episodes", replaced_in_the_second)
    with pytest.raises(ValueError, match=r"act\.npz was replaced while episodes of it were collected"):
        point(expert_episodes=60, expert_policy=file, out=tmp_path / "store")
    assert [path.name for path in (tmp_path / "store.partial").glob("chunk_*")] == ["chunk_000000.npz"]


def wide_actor(path):
    generator = np.random.default_rng(0)
    widths = [4, 105, 105, 2]  # kernels for AVX-512 differ where inputs are not a multiple of 4
    layers = [
        (generator.normal(0.0, inputs**-0.5, (outputs, inputs)), np.zeros(outputs))
        for inputs, outputs in itertools.pairwise(widths)
    ]
    write_actor(path, Actor(tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in layers), goal_dim=2))
    return path


def core_type(state):
    return os.environ.get("OPENBLAS_CORETYPE")


def test_a_trained_actor_gives_the_same_store_on_processors_that_multiply_otherwise(tmp_path, monkeypatch):
    options = {"expert_episodes": 21, "random_episodes": 0, "expert_policy": wide_actor(tmp_path / "actor.npz")}
    stores = [point(**options, workers=workers) for workers in (1, 2)]
    # one without AVX-512, as far as NumPy itself chooses
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_ICL")
    stores.append(point(**options))
    assert len({store.sha256 for store in stores}) == 1


@pytest.mark.parametrize(
    ("flags", "own", "expected"),
    [
        ("sse2 avx2 fma avx512f", None, "Haswell"),
        ("sse2 avx2 fma", "Zen", "Zen"),
        ("sse2 avx fma", None, None),
        ("sse2 avx2", None, None),
        (None, None, None),
    ],
    ids=["has them", "said by the user", "no avx2", "no fma", "no such file"],
)
def test_workers_multiply_as_haswell_does_where_the_processor_can(tmp_path, monkeypatch, flags, own, expected):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name\t: any\nflags\t\t: {flags}\nbugs\t\t: none\n")
    monkeypatch.setattr(_worker, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    if own:
        monkeypatch.setenv("OPENBLAS_CORETYPE", own)
    _worker._rounding.cache_clear()
    try:
        worker = _worker.Worker("a worker")
    finally:
        _worker._rounding.cache_clear()
    with contextlib.closing(worker):
        worker.send(core_type)
        assert worker.receive() == expected


def test_an_actor_of_a_task_that_a_script_defines_acts_in_its_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import dataclasses, sys\n"
        "from torchrl_smore.envs import collect, get_task\n"
        "task = get_task('PointRooms')\n"
        "def make_batch(*arguments):\n"
        "    return task.make_batch(*arguments)\n"
        "own = dataclasses.replace(task, name='Own', make_batch=make_batch)\n"
        "collect(own, expert_episodes=2, random_episodes=0, seed=0, expert_policy=sys.argv[1], progress=False)\n"
    )
    command = [sys.executable, str(script), str(wide_actor(tmp_path / "actor.npz"))]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


SCRIPT = """
import gymnasium, numpy as np
from gymnasium import spaces
from torchrl_smore.envs import collect, register_task

class Line(gymnasium.Env):
    observation_space = spaces.Box(-9, 9, (1,))
    action_space = spaces.Box(np.float32(-1), np.float32(1), (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 1)
        return self.place.copy(), {}

    def step(self, action):
        self.place = np.clip(self.place + action, -9, 9)
        return self.place.copy(), 0.0, False, False, {}

OPTIONS = dict(threshold=0.5, horizon=3, goal_columns=[0], goals=([-2.0], [2.0]))
"""


def test_a_task_that_a_script_defines_is_collected_in_its_process_unless_workers_are_asked_for(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT + "register_task('Line', Line, **OPTIONS)\n"
        "import logging, sys\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "workers = {} if len(sys.argv) == 1 else {'workers': int(sys.argv[1])}\n"
        "collect('Line', expert_episodes=0, random_episodes=50, seed=0, progress=False, **workers)\n"
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert "Line is defined in the running script: it is collected in this process." in done.stderr
    done = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "use no worker processes (workers=1)" in done.stderr


def test_an_id_that_a_script_has_registered_is_known_to_workers(tmp_path):
    (tmp_path / "line_module.py").write_text(SCRIPT)
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium\n"
        "from torchrl_smore.envs import EnvPool, collect, register_task\n"
        "gymnasium.register(id='Line-v3', entry_point='line_module:Line')\n"
        "task = register_task('Line', 'Line-v3', threshold=0.5, horizon=3, goal_columns=[0], goals=([-2.0], [2.0]))\n"
        "stores = [collect('Line', expert_episodes=0, random_episodes=30, seed=0, progress=False, workers=workers)\n"
        "          for workers in (1, 2)]\n"
        "assert stores[0].sha256 == stores[1].sha256\n"
        "with EnvPool(task, 2, num_workers=1) as pool:\n"
        "    assert pool.reset([0, 1])['observation'].shape == (2, 1)\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True, timeout=120)


def matrices(observation):
    """Actions that depend on how a long sum of products is rounded."""
    weights = np.random.default_rng(0).normal(size=(105, 2))
    hidden = np.tanh(observation["observation"] @ weights.T)
    for _ in range(30):
        hidden = np.tanh(3.0 * hidden @ np.random.default_rng(1).normal(size=(105, 105)))
    return hidden[:, :2]


def test_an_expert_of_ones_own_multiplies_alike_whatever_the_number_of_workers():
    own = dataclasses.replace(TASKS["PointRooms"], name="Own", make_expert=partial(partial, matrices))
    assert collect_module._wants_worker(request_of(own))
    assert not collect_module._wants_worker(request_of(TASKS["PointRooms"]))
    options = {"expert_episodes": 21, "random_episodes": 0, "seed": 0, "progress": False}
    assert len({collect(own, **options, workers=workers).sha256 for workers in (1, 2)}) == 1


def request_of(task):
    behaviours = collect_module.Behaviour("expert"), 0.0, 0, collect_module.Behaviour("medium")
    return collect_module._checked_request(task, 1, 0, 0, *behaviours)


@pytest.mark.parametrize("module", ["numpy.random", "torchrl_smore.envs.collect", "json.decoder", "zlib"])
def test_modules_that_another_process_finds_are_told_from_others(module, monkeypatch):
    # some packages leave finders of another protocol there
    monkeypatch.setattr(sys, "meta_path", [object(), *sys.meta_path])
    assert _worker._is_found(module)
    for name in ("not_there", f"{module}.not_there"):
        monkeypatch.setitem(sys.modules, name, sys)
        assert not _worker._is_found(name)


class Normalising:
    """An expert that works in what it is given."""

    def __call__(self, observation):
        observation["observation"] -= observation["desired_goal"]
        observation["desired_goal"] = np.zeros_like(observation["desired_goal"])
        return -observation["observation"]


class Scaling(PointBatch):
    """Points whose simulator scales the actions that it is given, in place."""

    def step(self, actions):
        actions *= 0.5
        return super().step(actions)


def test_neither_an_expert_nor_a_simulator_changes_what_is_stored():
    options = {"expert_episodes": 5, "random_episodes": 5, "seed": 0, "workers": 1, "progress": False}
    task = dataclasses.replace(TASKS["PointReach"], make_expert=Normalising)
    assert torch.equal(
        collect(task, **options).data["observation"], other := collect(task, **options).data["achieved_goal"]
    )
    assert other.abs().sum() > 0
    scaling = dataclasses.replace(TASKS["PointReach"], make_batch=partial(Scaling, PointWorld()))
    given = collect(scaling, **options).data["action"]
    assert torch.equal(given[-1], collect("PointReach", **options).data["action"][-1])


class Held(PointBatch):
    """Points that hold a file until they are closed."""

    def __init__(self, file, *arguments):
        super().__init__(*arguments)
        self.file = file
        self.file.with_suffix(f".{os.getpid()}.{id(self)}").touch()

    def close(self):
        self.file.with_suffix(f".{os.getpid()}.{id(self)}").unlink()


@pytest.mark.parametrize("workers", [1, 2])
def test_simulators_are_closed(tmp_path, monkeypatch, workers):
    task = dataclasses.replace(TASKS["PointReach"], make_batch=partial(Held, tmp_path / "held", PointWorld()))
    for wanted in (False, True) if workers == 1 else (True,):
        monkeypatch.setattr(collect_module, "_wants_worker", lambda request, wanted=wanted: wanted)
        collect(task, expert_episodes=0, random_episodes=50, seed=0, workers=workers, progress=False)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_unfinished_collection_is_left_alone(tmp_path):
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match=r"store\.partial.* is no unfinished collection: it has thesis\.txt"):
        point(expert_episodes=0, random_episodes=3, out=tmp_path / "store")
    assert (tmp_path / "store.partial" / "thesis.txt").read_text() == "years"


def test_workers_start_whatever_else_the_path_of_modules_has(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    assert point(expert_episodes=0, random_episodes=30, workers=2).num_trajectories == 30


def test_a_worker_whose_parent_is_gone_writes_nothing(tmp_path):
    request = collect_module._checked_request(
        get_task("PointReach"), 1, 0, 0, collect_module.Behaviour("expert"), 0.0, 0, collect_module.Behaviour("medium")
    )
    for gone in (True, False):
        collect_module._run_chunk({collect_module.PARENT_IS_GONE: lambda gone=gone: gone}, request, tmp_path, 0)
        assert bool(list(tmp_path.iterdir())) is not gone


def test_an_unfinished_collection_of_something_else_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "store"
    run_chunks = collect_module._run_chunks

    def interrupted(*args, chunks):
        done = run_chunks(*args)
        for _ in range(chunks):
            yield next(done)
        raise KeyboardInterrupt

    for chunks in (0, 1):
        with monkeypatch.context() as broken:
            broken.setattr(collect_module, "_run_chunks", partial(interrupted, chunks=chunks))
            with pytest.raises(KeyboardInterrupt):
                point(out=out, seed=5 * (1 - chunks) + 3 * chunks)
        # before its first unit of work is done there is nothing to go on with
        assert (tmp_path / "store.partial").exists() == (chunks > 0)
    with pytest.raises(ValueError, match=r"unfinished collection of something else \(seed: 3 there, 4 now\)"):
        point(out=out, seed=4)
    assert point(out=out).num_trajectories == 120


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threshold": 0.5}, r"threshold: 1.0 there, 0.5 now"),
        ({"strict": True}, r"success_rule: '.* at most 1' there, '.* less than 1' now"),
        ({"goal_parts": (("x", 0, 1), ("y", 1, 2))}, r"goal_parts: .*success_rule: "),
        ({"goal_range": ((-1.0, -1.0), (1.0, 1.0))}, r"goal_range: "),
        ({"make_expert": Beyond}, r"source_sha256: "),
        ({"gymnasium": "0.1"}, r"gymnasium: '.*' there, '0.1' now"),
        ({"torchrl-smore": "0.0.1"}, r"torchrl-smore: .* there, '0.0.1' now"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unfinished_collection_of_a_task_that_has_changed_is_refused(tmp_path, monkeypatch, change, named):
    out, run, task = tmp_path / "store", _rollout.run_episodes, TASKS["PointRooms"]

    def full_disk_at_the_second(*arguments):
        if list(tmp_path.rglob("chunk_*")):
            raise OSError("No space left on device")
        return run(*arguments)

    options = {"expert_episodes": 40, "random_episodes": 0, "seed": 0, "workers": 1, "progress": False, "out": out}
    with monkeypatch.context() as broken:
        broken.setattr(collect_module, "run_episodes", full_disk_at_the_second)
        with pytest.raises(OSError, match="No space"):
            collect(task, **options)
    field = next(iter(change))
    if field in {each.name for each in dataclasses.fields(task)}:
        task = dataclasses.replace(task, **change)
    else:
        known = collect_module._version
        monkeypatch.setattr(collect_module, "_version", lambda name: change.get(name) or known(name))
    with pytest.raises(ValueError, match=rf"unfinished collection of something else \(.*{named}"):
        collect(task, **options)
    # of nothing nothing is kept
    shutil.rmtree(out.with_name("store.partial"))
    assert collect(task, **options).num_trajectories == 40


@pytest.mark.slow
def test_a_killed_collection_is_resumed_to_the_same_store(python, tmp_path):
    out = tmp_path / "store"
    request = "'FetchReach', expert_episodes=0, random_episodes=40, seed=1, workers=1, progress=False"
    code = f"from torchrl_smore.envs import collect; collect({request}, out={str(out)!r})"
    with python.started("-c", code) as running:
        deadline = time.monotonic() + 60.0
        while not list(tmp_path.glob("store.partial/chunk_*.npz")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
    survived = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("store.partial/chunk_*.npz")}
    assert len(survived) == 1
    assert not out.exists()

    arguments = {"expert_episodes": 0, "random_episodes": 40, "seed": 1, "progress": False}
    resumed = collect("FetchReach", **arguments, workers=2, out=out)
    assert resumed.sha256 == collect("FetchReach", **arguments, workers=1).sha256


def test_what_is_no_store_is_not_replaced_and_nothing_is_collected_for_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    monkeypatch.setattr(sys.modules["torchrl_smore.envs.collect"], "_fill", None)
    with pytest.raises(DatasetError, match="mine"):
        point(out=tmp_path / "mine", expert_episodes=1, random_episodes=1, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_existing_store_is_kept_unless_told_otherwise(tmp_path):
    out = tmp_path / "store"
    first = point(out=out, expert_episodes=1, random_episodes=1)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        point(out=out, expert_episodes=2, random_episodes=1)
    assert TrajectoryStore.load(out).sha256 == first.sha256
    assert point(out=out, expert_episodes=2, random_episodes=1, overwrite=True).num_trajectories == 3
    assert json.loads((out / "meta.json").read_text())


LOCKED = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs file locks")
def test_what_a_living_process_saves_at_the_same_place_stays_and_what_a_killed_one_left_goes(tmp_path):
    out, few = tmp_path / "store", {"expert_episodes": 1, "random_episodes": 1}
    names = (".store.partial-aaaaaaaaaaaa", ".store.replaced-aaaaaaaaaaaa", ".store.partial-bbbbbbbbbbbb")
    live, moved_aside, left = (tmp_path / name for name in names)
    for folder in (live, moved_aside, left):
        folder.mkdir()
        (folder / "meta.json").write_text("{}")
    (tmp_path / ".store.partial-notes").mkdir()
    command = [sys.executable, "-S", "-c", LOCKED, str(live)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        point(out=out, **few)
        assert sorted(os.listdir(tmp_path)) == sorted([live.name, moved_aside.name, ".store.partial-notes", "store"])
        assert (live / "meta.json").exists()
        process.stdin.close()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        point(out=out, **few)
    assert sorted(os.listdir(tmp_path)) == [".store.partial-notes", "store"]


@pytest.mark.skipif(os.name != "posix", reason="needs file locks")
def test_what_an_overwrite_was_killed_over_is_there_again(tmp_path):
    out, few = tmp_path / "store", {"expert_episodes": 1, "random_episodes": 1}
    first = point(out=out, **few)
    out.rename(tmp_path / ".store.replaced-aaaaaaaaaaaa")
    (tmp_path / ".store.partial-aaaaaaaaaaaa").mkdir()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        point(out=out, **few)
    assert os.listdir(tmp_path) == ["store"]
    assert TrajectoryStore.load(out).sha256 == first.sha256


def test_progress_and_a_line_on_quality_are_shown_when_asked_for(capsys):
    point(progress=True, expert_episodes=2, random_episodes=1)
    captured = capsys.readouterr()
    assert "3/3" in captured.err
    assert captured.out.startswith("PointRooms: 2 expert (success 1.000, discounted return ")
    point(progress=False, expert_episodes=2, random_episodes=1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, ["20 of 50", "40 of 50", "50 of 50"]), (1e9, [])])
def test_a_collection_without_a_progress_bar_says_now_and_then_how_far_it_is(monkeypatch, caplog, seconds, lines):
    monkeypatch.setattr(collect_module, "SECONDS_BETWEEN_LINES", seconds)
    with caplog.at_level("INFO", logger="torchrl_smore"):
        point(expert_episodes=50, random_episodes=0, workers=1)
    said = [record.message for record in caplog.records if record.message.startswith("collecting")]
    assert said == [f"collecting PointRooms: {line} episodes" for line in lines]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_actions_of_an_expert_are_stored_as_they_are_executed(noise):
    task = dataclasses.replace(TASKS["PointReach"], make_expert=Beyond)
    options = {"expert_episodes": 3, "random_episodes": 0, "seed": 0, "workers": 1, "progress": False}
    data = collect(task, **options, expert_noise=noise).data
    assert float(data["action"].abs().max()) == 1.0
    moved = data["next", "observation"] - data["observation"]
    free = data["next", "observation"].abs().amax(-1) < 5.0
    torch.testing.assert_close(moved[free], data["action"][free], atol=2e-6, rtol=0.0)


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda rows: np.zeros((len(rows), 3)), r"got \[3, 3\]"),
        (lambda rows: np.zeros(2), r"got \[2\]"),
        (lambda rows: np.zeros((1, 2)), r"got \[1, 2\]"),
        (lambda rows: None, r"got \[\]"),
        (lambda rows: np.where(rows[:, :1] > rows[0, 0], np.nan, rows), r"got \[nan, nan\]"),
        (lambda rows: rows + np.inf, r"got \[inf, inf\]"),
    ],
)
def test_what_an_expert_does_wrong_is_told_before_anything_is_kept(tmp_path, act, found):
    task = dataclasses.replace(TASKS["PointReach"], make_expert=lambda: lambda seen: act(seen["observation"]))
    options = {"expert_episodes": 3, "random_episodes": 0, "seed": 0, "workers": 1, "progress": False}
    with pytest.raises(ValueError, match=rf"the expert of PointReach: expected finite actions \[3, 2\], {found}"):
        collect(task, **options, out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


class Altered(PointBatch):
    """Points whose simulator does something wrong from its third step on."""

    def __init__(self, key, value, *arguments):
        super().__init__(*arguments)
        self.key, self.value = key, value

    def reset(self, seeds):
        self.steps = 0
        return super().reset(seeds)

    def step(self, actions):
        observation = super().step(actions)
        self.steps += 1
        if self.steps == 3:
            observation[self.key][1] += self.value
        return observation


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "desired_goal",
            0.5,
            r"the goal of episode 1 changes in step 3, from \[.*\] to \[.*\]: it must stay",
        ),
        ("observation", np.nan, r"PointReach: observation of episode 1 is not finite after step 3"),
        ("achieved_goal", np.inf, r"PointReach: achieved_goal of episode 1 is not finite after step 3"),
    ],
)
def test_what_a_simulator_does_wrong_is_told_before_anything_is_kept(tmp_path, key, value, message):
    task = dataclasses.replace(TASKS["PointReach"], make_batch=partial(Altered, key, value, PointWorld()))
    options = {"expert_episodes": 0, "random_episodes": 3, "seed": 0, "workers": 1, "progress": False}
    # of a worker, as of every task of one's own that it can import
    with pytest.raises((RuntimeError, ValueError), match=message):
        collect(task, **options, out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_collection_has_all_the_time_it_needs_and_notices_a_dead_worker_at_once(monkeypatch):
    monkeypatch.setattr(_worker.Worker.__init__, "__defaults__", (0.1,))
    assert point(expert_episodes=0, random_episodes=40, workers=2).num_trajectories == 40
    killed = dataclasses.replace(TASKS["FetchReach"], name="Killed", make_base_env=partial(os._exit, 3))
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"collection worker \d of Killed \(process \d+\) ended with exit status 3"):
        collect(killed, expert_episodes=0, random_episodes=30, seed=0, workers=2, progress=False)
    assert time.monotonic() - started < 60.0


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path):
    counts = {"expert_episodes": np.int64(1), "random_episodes": np.int32(1), "medium_episodes": np.uint8(0)}
    noise = {"expert_random_prob": np.float32(0.5), "expert_noise": np.float32(0.25), "action_noise": np.float64(0.5)}
    found = point(**counts, **noise, seed=np.int64(3), workers=np.int64(1), out=tmp_path / "a")
    plain = {"expert_random_prob": 0.5, "expert_noise": 0.25, "action_noise": 0.5}
    assert found.meta == point(expert_episodes=1, random_episodes=1, **plain).meta


def test_a_store_may_be_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    few = {"expert_episodes": 1, "random_episodes": 1}
    for out, place in ((".", "below"), ("..", "here")):
        with pytest.raises(FileExistsError, match=rf"{place} exists: pass overwrite=True"):
            point(out=out, **few)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "here"]


def test_a_worker_that_fails_is_named():
    broken = dataclasses.replace(TASKS["FetchReach"], name="Broken", make_base_env=dict)
    with pytest.raises(RuntimeError, match=r"(?s)collection worker \d of Broken failed.*Expected env to be a"):
        collect(broken, expert_episodes=0, random_episodes=30, seed=0, workers=2, progress=False)


FAILING = """
import dataclasses
from torchrl_smore.envs import collect
from torchrl_smore.envs.tasks import TASKS
broken = dataclasses.replace(TASKS["PointReach"], name="Broken", make_batch=None, make_base_env=dict)
collect(broken, expert_episodes=0, random_episodes=200, seed=0, workers=2, progress=False)
"""


def test_a_process_whose_workers_fail_ends():
    # ten units of work: more than two workers have taken when the first fails
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "of Broken failed" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 1.5}, "workers must be"),
        ({"workers": True}, "workers must be"),
        ({"workers": 0}, 'workers must be "auto" or an integer of at least 1, got 0'),
        ({"workers": "all"}, "workers must be"),
        ({"expert_episodes": -1}, "expert_episodes must be at least 0, got -1"),
        (
            {"expert_episodes": 0, "random_episodes": 0},
            "one of expert_episodes, medium_episodes and random_episodes must",
        ),
        ({"medium_policy": "typo.npz"}, "medium_policy=typo.npz: of no use, as no episode is one of it"),
        ({"expert_policy": "typo.npz", "expert_episodes": 0}, "expert_policy=typo.npz: of no use, as no episode is"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"expert_noise": -0.1}, "expert_noise must be a finite number of at least 0"),
        ({"action_noise": float("nan")}, "action_noise must be a finite number of at least 0"),
        ({"expert_random_prob": 1.5}, r"expert_random_prob must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        point(**changes)


@pytest.mark.parametrize("name", ["action_noise", "expert_noise", "expert_random_prob"])
@pytest.mark.parametrize("value", ["0.5", [0.5]])
def test_a_noise_that_is_no_number_is_refused_by_its_name(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a number, got {re.escape(repr(value))}"):
        point(**{name: value})


@pytest.mark.parametrize("name", ["seed", "expert_episodes", "random_episodes", "medium_episodes"])
@pytest.mark.parametrize("value", [2.5, 2.0, "2", None])
def test_what_is_no_whole_number_is_refused_before_anything_is_written(tmp_path, name, value):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got {value!r}"):
        point(**{name: value}, out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
