"""What every recipe shares."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import io
import os
import signal
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from torchrl_smore import TrajectoryStore
from torchrl_smore.envs import get_task
from torchrl_smore.trainers.evaluation import shown_return

RECIPES = Path(__file__).parents[2] / "recipes"
COMMANDS = sorted(path for path in RECIPES.glob("*.py") if path.name != "torchrl_trainer.py")


def imported(path):
    """Modules that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_recipe_puts_the_opengl_library_aside_before_it_imports_what_needs_it(path):
    # torchrl imports mujoco, which needs a library that MUJOCO_GL names to be there
    found = [name.partition(".")[0] for name in imported(path)]
    needing = [name for name in found if name in ("parts", "mujoco", "torchrl", "torchrl_smore", "smore_offline")]
    assert needing[0] == "parts"


def test_no_part_imports_a_command():
    commands = {path.stem for path in COMMANDS}
    parts = sorted((RECIPES / "parts").glob("*.py"))
    assert len(parts) > 15
    assert [(path.name, name) for path in parts for name in imported(path) if name in commands] == []


def test_every_file_at_the_top_is_a_command():
    for path in COMMANDS:
        assert 'if __name__ == "__main__":' in path.read_text(), path


@pytest.mark.parametrize(("given", "kept"), [("bogus", "bogus"), (None, "None")])
def test_a_library_that_is_not_there_does_not_keep_a_recipe_from_starting(given, kept):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("MUJOCO_GL")}
    environment |= {} if given is None else {"MUJOCO_GL": given}
    code = "import os, parts, mujoco; print(parts.OPENGL, 'MUJOCO_GL' in os.environ)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=RECIPES, env=environment, check=False
    )
    assert done.stdout == f"{kept} False\n", done.stderr


def test_a_process_that_a_recipe_starts_knows_the_library_too():
    code = "import subprocess, sys, parts; subprocess.run([sys.executable, '-c', 'import parts; print(parts.OPENGL)'])"
    environment = {**os.environ, "MUJOCO_GL": "osmesa"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=RECIPES, env=environment, check=False
    )
    assert done.stdout == "osmesa\n", done.stderr


def test_a_held_run_folder_is_cleared_of_what_killed_processes_left_and_of_nothing_else(import_recipe, tmp_path):
    from torchrl_smore.trainers import LockedError, locked

    shared = import_recipe("parts.shared")
    # of a process that cannot be: the largest number of one has seven digits
    (tmp_path / ".summary.json.99999999.partial").touch()
    (tmp_path / ".actor.99999999.partial" / "data").mkdir(parents=True)
    (tmp_path / "checkpoint" / ".partial_x").mkdir(parents=True)
    live = tmp_path / f".evaluation.json.{os.getppid()}.partial"
    live.touch()
    with shared.hold(tmp_path):
        assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([".lock", "checkpoint", live.name])
        with pytest.raises(LockedError, match=f"run folder {tmp_path} is in use by process {os.getpid()}"):
            in_thread(lambda: locked(tmp_path / ".lock", f"run folder {tmp_path}").__enter__())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["checkpoint", live.name])
    with shared.hold(tmp_path / "absent"):
        assert not (tmp_path / "absent").exists()


def in_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_the_command_that_repeats_a_run_has_what_was_chosen_and_not_where_it_ran(import_recipe):
    @dataclasses.dataclass
    class Config:
        task: str = "FetchPush"
        model: str | None = None
        steps: int | None = None
        seed: int = 0
        run_root: str = "runs"
        resume: str | None = None

    repeat_command = import_recipe("parts.experts").repeat_command
    config = Config(model="my models/a.npz", run_root="elsewhere", resume="runs/NAME")
    assert repeat_command("a.py", config, "seed", resume=None) == "python recipes/a.py 'model=my models/a.npz' seed=0"
    found = repeat_command("a.py", config, "task", steps=7, model=None, resume=None)
    assert found == "python recipes/a.py task=FetchPush steps=7"
    assert config.resume == "runs/NAME"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_error_after_a_signal_is_a_stop_and_one_without_it_is_an_error(import_recipe, capsys, signum):
    shared = import_recipe("parts.shared")
    # what a session without a terminal may have otherwise
    usual = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(signum, usual)
    try:
        error = RuntimeError("the compiler was killed\n  by a signal")
        with pytest.raises(shared.Stopped, match="go on so") as raised:  # noqa: PT012, SIM117
            with shared.stopping_on_signals(lambda _: None, "go on so"):
                signal.raise_signal(signum)
                raise error
        assert (raised.value.signum, raised.value.__cause__) == (signum, error)
        assert "RuntimeError: the compiler was killed [...] by a signal\n" in capsys.readouterr().err
        with pytest.raises(RuntimeError, match="of its own"):  # noqa: SIM117
            with shared.stopping_on_signals(lambda _: None, "go on so"):
                raise RuntimeError("of its own")
        assert signal.getsignal(signum) is usual
    finally:
        signal.signal(signum, before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_loses_nothing_at_once_and_closes_what_is_open(import_recipe, signum):
    shared = import_recipe("parts.shared")
    usual = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(signum, usual)
    closed = []
    try:
        with pytest.raises(shared.Stopped, match="go on so") as raised:  # noqa: PT012, SIM117
            with shared.ending_on_signals("go on so"), contextlib.ExitStack() as stack:
                stack.callback(closed.append, "closed")
                signal.raise_signal(signum)
                pytest.fail("went on")
        assert (raised.value.signum, closed) == (signum, ["closed"])
        with pytest.raises(shared.Stopped, match="go on so") as raised:  # noqa: PT012, SIM117
            with shared.ending_on_signals("go on so"):
                with contextlib.suppress(shared.Stopped):
                    signal.raise_signal(signum)
                # as Ray does
                raise KeyboardInterrupt
        assert raised.value.signum == signum
        assert signal.getsignal(signum) is usual
    finally:
        signal.signal(signum, before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_within_a_benchmark_saves_a_checkpoint_first(import_recipe, signum):
    shared, asked = import_recipe("parts.shared"), []
    usual = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(signum, usual)
    try:
        with pytest.raises(shared.Stopped, match="resume so"), shared.ending_on_signals("go on so"):  # noqa: PT012
            with shared.stopping_on_signals(asked.append, "resume so"):
                signal.raise_signal(signum)
            pytest.fail("went on")
        assert [stopped.signum for stopped in asked] == [signum]
    finally:
        signal.signal(signum, before)


def test_signals_that_follow_leave_the_closing_alone_and_a_second_ctrl_c_ends_it(import_recipe):
    shared, closed = import_recipe("parts.shared"), []
    before = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(shared.Stopped) as raised, shared.ending_on_signals("go on so"):  # noqa: PT012
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGHUP)
                closed.append("one")
                signal.raise_signal(signal.SIGINT)
                closed.append("two")
        assert (raised.value.signum, closed) == (signal.SIGTERM, ["one"])
    finally:
        for each, usual in before.items():
            signal.signal(each, usual)


def test_a_thread_runs_what_signals_would_end(import_recipe):
    shared = import_recipe("parts.shared")

    def work():
        with shared.ending_on_signals("go on so"):
            return "done"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == "done"


def test_an_interrupt_without_a_signal_passes(import_recipe):
    shared = import_recipe("parts.shared")
    with pytest.raises(KeyboardInterrupt) as raised, shared.ending_on_signals("go on so"):
        raise KeyboardInterrupt
    assert type(raised.value) is KeyboardInterrupt


def test_ray_leaves_the_signal_that_ends_a_benchmark_to_it(import_recipe, monkeypatch):
    shared, on_ray = import_recipe("parts.shared"), import_recipe("parts.benchmark_ray")
    calls = []

    def wait(pending):
        signal.raise_signal(signal.SIGTERM)

    remote = types.SimpleNamespace(remote=lambda job: job)
    ray = types.ModuleType("ray")
    # its own handler, which aborts
    ray.init = lambda **options: signal.signal(signal.SIGTERM, lambda *_: calls.append("aborted"))
    ray.remote = lambda function: types.SimpleNamespace(options=lambda **options: remote)
    ray.wait, ray.shutdown = wait, lambda: calls.append("shut down")
    exceptions = types.ModuleType("ray.exceptions")
    exceptions.RayError = exceptions.RayTaskError = RuntimeError
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    monkeypatch.setattr(on_ray, "_connect", lambda ray, *_: ray.init())
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(shared.Stopped, match="go on so"), shared.ending_on_signals("go on so"):
            list(on_ray.run_on_ray(["a job"], address=None, num_jobs=1, gpu_share=0.0))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == ["shut down"]


def test_a_stopped_run_is_the_last_of_a_benchmark_and_a_failed_one_is_not(import_recipe, monkeypatch):
    benchmark, shared = import_recipe("benchmark"), import_recipe("parts.shared")
    begun = []

    def run_job(job):
        begun.append(job)
        raise job

    monkeypatch.setattr(benchmark, "run_job", run_job)
    failed, stopped, next_one = RuntimeError("failed"), shared.Stopped("go on so", signal.SIGTERM), ValueError()
    with pytest.raises(shared.Stopped):
        list(benchmark.run_here([failed, stopped, next_one]))
    assert begun == [failed, stopped]


def test_an_error_after_a_signal_is_a_stop_also_where_the_terminal_is_gone(import_recipe, monkeypatch):
    shared = import_recipe("parts.shared")

    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(shared.Stopped):  # noqa: PT012, SIM117
        with shared.stopping_on_signals(lambda _: monkeypatch.setattr(sys, "stderr", Gone()), "go on so"):
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("the compiler was killed")


def test_layers_of_a_network_are_copied_in_their_order(import_recipe):
    inner = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), inner, torch.nn.Linear(3, 1))
    arrays = import_recipe("parts.experts").linear_arrays(network)
    assert [(weight.shape, bias.shape) for weight, bias in arrays] == [((4, 2), (4,)), ((3, 4), (3,)), ((1, 3), (1,))]
    before = network[2].weight.detach().clone()
    torch.nn.init.zeros_(network[2].weight)
    assert torch.equal(torch.from_numpy(arrays[2][0]), before)


def test_the_version_of_torch_names_its_build(import_recipe, monkeypatch):
    shared = import_recipe("parts.shared")
    monkeypatch.setattr("importlib.metadata.version", {"numpy": "2.2.6", "torch": "2.13.0"}.__getitem__)
    monkeypatch.setattr(shared.torch, "__version__", "2.13.0+cu130")
    assert shared.versions_of(["numpy", "torch"]) == {"numpy": "2.2.6", "torch": "2.13.0+cu130"}


@pytest.mark.parametrize(
    ("device", "updates", "compilers", "chosen", "reason"),
    [
        ("cpu", 10_000, {"g++"}, "default", "10,000 updates"),
        ("cpu", 9_999, {"g++"}, "off", "from 10,000"),
        ("cpu", 10_000, {"clang++"}, "default", "10,000 updates"),
        ("cpu", 10_000, {"my-c++"}, "default", "10,000 updates"),
        ("cpu", 10_000, set(), "off", "C++ compiler"),
        ("cuda", 10_000, {"g++"}, "off", "CPUs"),
    ],
)
def test_auto_compiles_where_it_pays_and_says_why(
    import_recipe, monkeypatch, caplog, device, updates, compilers, chosen, reason
):
    monkeypatch.setenv("CXX", "my-c++")
    monkeypatch.setattr("shutil.which", lambda name: name if name in compilers else None)
    with caplog.at_level("INFO", logger="torchrl_smore.recipes"):
        assert import_recipe("parts.shared").resolve_compile("auto", torch.device(device), updates) == chosen
    assert f"compile=auto chose {chosen}" in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("threads", "pictures", "variable", "expected"),
    [
        (None, False, None, [1]),
        (None, True, None, []),
        (None, False, "3", []),
        (0, False, None, []),
        (4, True, "3", [4]),
    ],
)
def test_one_thread_is_the_default_but_with_pictures_and_where_the_environment_says(
    import_recipe, monkeypatch, threads, pictures, variable, expected
):
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    import_recipe("parts.shared").use_threads(threads, pictures=pictures)
    assert taken == expected


@pytest.mark.parametrize(
    ("changed", "chosen", "reason"),
    [
        ({}, "background", "updates go on meanwhile"),
        ({"supported": False}, "here", "this system has no process"),
        ({"device": "cuda"}, "here", "timed on CPUs alone"),
        ({"pictures": True}, "here", "pictures are drawn in this process"),
        ({"updates": 999}, "here", "from 1,000 updates on"),
        ({"threads": 2}, "here", r"training has every core (2)"),
        ({"threads": 2, "cores": 3, "idle": 3.0}, "background", "updates go on meanwhile"),
        ({"threads": 2, "cores": 3, "idle": 2.4}, "here", "other work leaves 2.4 of 3 cores"),
        ({"idle": 1.0}, "here", "other work leaves 1.0 of 2 cores"),
        ({"idle": 1.5}, "background", "updates go on meanwhile"),
    ],
)
def test_auto_evaluates_beside_training_where_there_is_a_core_and_says_why(
    import_recipe, monkeypatch, caplog, changed, chosen, reason
):
    evaluators = import_recipe("parts.evaluators")
    case = {"supported": True, "device": "cpu", "pictures": False, "updates": 1000, "threads": 1, "cores": 2}
    case |= {"idle": 2.0} | changed
    monkeypatch.setattr(evaluators.BackgroundEvaluator, "SUPPORTED", case["supported"])
    monkeypatch.setattr(evaluators, "_cores", lambda: set(range(case["cores"])))
    monkeypatch.setattr(evaluators, "_idle", lambda cores: case["idle"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: case["threads"])
    arguments = torch.device(case["device"]), case["updates"]
    with caplog.at_level("INFO", logger="torchrl_smore.recipes"):
        assert evaluators.resolve_evaluation("auto", *arguments, pictures=case["pictures"]) == chosen
    assert f"evaluation=auto chose {chosen}: " in caplog.text
    assert reason in caplog.text
    for mode in ("here", "background"):
        assert evaluators.resolve_evaluation(mode, *arguments) == mode


def test_idle_cores_are_counted_among_those_that_this_process_may_use(import_recipe, monkeypatch, tmp_path):
    evaluators = import_recipe("parts.evaluators")
    monkeypatch.setattr(evaluators, "_STAT", tmp_path / "stat")
    assert evaluators._idle({0, 1, 2}) == 3.0  # a system that does not say
    # core 0 is idle for 60 of 100 units and waits for a disk for 20, core 1 is stolen; guests are part of user time
    before = "cpu  9 9 9 9\ncpu0 10 0 0 100 50 0 0 0 5 0\ncpu1 0 0 0 7 0 0 0 0 0 0\ncpu2 1 1 1 1 1 1 1 1 1 1\n"
    after = "cpu  9 9 9 9\ncpu0 20 5 5 160 70 0 0 0 99 0\ncpu1 0 0 0 7 0 0 0 100 0 0\ncpu2 1 1 1 2 1 1 1 1 1 1\n"
    evaluators._STAT.write_text(before)
    monkeypatch.setattr("time.sleep", lambda seconds: evaluators._STAT.write_text(after))
    assert evaluators._idle({0, 1}) == pytest.approx(0.8)
    evaluators._STAT.write_text(before)
    assert evaluators._idle({0, 1, 2}) == pytest.approx(1.8)
    evaluators._STAT.write_text(before)
    monkeypatch.setattr("time.sleep", lambda seconds: evaluators._STAT.write_text(after.replace("cpu2", "cpu3")))
    assert evaluators._idle({0, 1, 2}) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("precision", "device", "has", "said"),
    [
        ("bf16", "cpu", False, True),
        ("bf16", "cpu", True, False),
        ("bf16", "cuda", False, False),
        ("float32", "cpu", False, False),
    ],
)
def test_bf16_says_where_it_saves_no_time(import_recipe, monkeypatch, caplog, precision, device, has, said):
    shared = import_recipe("parts.shared")
    monkeypatch.setattr(shared, "has_bf16_products", lambda: has)
    with caplog.at_level("INFO", logger="torchrl_smore.recipes"):
        shared.note_precision(precision, torch.device(device))
    assert ("no products of bfloat16" in caplog.text) is said


@pytest.mark.parametrize("mode", ["off", "default", "max"])
def test_a_compilation_that_was_asked_for_is_not_questioned(import_recipe, mode):
    assert import_recipe("parts.shared").resolve_compile(mode, torch.device("cuda"), 1) == mode


def test_auto_does_not_compile_where_networks_see_pictures(import_recipe, monkeypatch, caplog):
    monkeypatch.setattr("shutil.which", lambda name: name)
    resolve = import_recipe("parts.shared").resolve_compile
    with caplog.at_level("INFO", logger="torchrl_smore.recipes"):
        assert resolve("auto", torch.device("cpu"), 10**6, pictures=True) == "off"
    assert "has not been timed where networks see pictures" in caplog.text
    assert resolve("auto", torch.device("cpu"), 10**6) == "default"
    assert resolve("default", torch.device("cpu"), 10**6, pictures=True) == "default"


def test_auto_does_not_compile_a_loss_that_keeps_a_memory(import_recipe, monkeypatch, caplog, store_path):
    monkeypatch.setattr("shutil.which", lambda name: name)
    options, build = import_recipe("parts.options"), import_recipe("parts.build")
    given = {"dataset": str(store_path), "device": "cpu", "batch_size": 8, "steps": 10_000}
    config = options.with_defaults(options.Config(task="PointReach", method="wgcsl_original", **given))
    with caplog.at_level("INFO", logger="torchrl_smore.recipes"):
        update = build.make_update(
            config, get_task("PointReach"), TrajectoryStore.load(store_path), torch.device("cpu")
        )
    assert "compile=auto chose off: the loss writes buffers of its own" in caplog.text
    for _ in range(2):
        update()
    (loss,) = update.losses
    assert int(loss.num_updates) == 2
    assert int(loss.advantage_memory.isfinite().sum()) == 16


def test_the_return_that_people_see_is_that_at_099_or_at_the_tasks_largest_discount(import_recipe):
    is_kept = import_recipe("parts.metrics").is_kept
    names = ["success_last", "discounted_return_0.98", "discounted_return_0.99", "discounted_return_0.999"]
    assert shown_return(names) == "discounted_return_0.99"
    assert shown_return(["eval/discounted_return_0.5", "success_last", "eval/discounted_return_1"]) == (
        "eval/discounted_return_1"
    )
    assert shown_return(["success_last"]) is None
    assert [name for name in (*names, "episodes", "intervals") if is_kept(name)] == names
