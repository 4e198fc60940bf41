"""What must hold off Linux, tried on Linux: no import needs what only POSIX has, and locks and workers say so."""

from __future__ import annotations

import ast
import fcntl
import subprocess
import sys
import types
from pathlib import Path

import pytest

from torchrl_smore import _lock
from torchrl_smore._lock import LockedError, locked
from torchrl_smore.envs import EnvPool, RenderError, get_task, render_episode
from torchrl_smore.envs.collect import _num_workers

ROOT = Path(__file__).parents[1]
# https://docs.python.org/3/library: modules and names that Windows lacks
MODULES = ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty", "pty", "curses", "readline", "posix")
SIGNALS = ("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2")
NAMES = {
    "os": (
        *("fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "mkfifo", "nice", "register_at_fork", "setsid"),
        *("sched_getaffinity", "sched_setaffinity", "statvfs", "uname", "wait", "O_NONBLOCK", "O_DIRECTORY", "kill"),
        *("sysconf", "getloadavg", "chown", "posix_fadvise"),
    ),
    "signal": (*SIGNALS, "alarm", "setitimer", "pause", "sigwait"),
    "socket": ("AF_UNIX", "socketpair"),
    "select": ("poll", "epoll"),
}
IMPORT_ALL = """
import importlib, pkgutil, sys
import numpy, tensordict.nn, torch, torchrl.data, torchrl.envs, torchrl.modules, torchrl.objectives, torchrl.trainers
import torchrl.record.loggers, triton.language, yaml
modules, names, recipes = {modules!r}, {names!r}, {recipes!r}
for module in modules:
    sys.modules[module] = None
for module, gone in names.items():
    for name in gone:
        vars(importlib.import_module(module)).pop(name, None)
done = []
for package in ("torchrl_smore", "smore_kernels"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(found.name)
        done.append(found.name)
sys.path.insert(0, recipes)
for recipe in {scripts!r}:
    importlib.import_module(recipe)
print("\\n".join(done))
"""
IMPORT_COST = """
import sys, time
begin = time.process_time()
import torchrl.data, torchrl.objectives
before = set(sys.modules)
start = time.process_time()
from torchrl_smore import SMORELoss
share = (time.process_time() - start) / (start - begin)
print(share, *sorted(name for name in set(sys.modules) - before))
"""


def python(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_and_recipe_imports_without_what_only_posix_has(tmp_path):
    recipes = ROOT / "recipes"
    scripts = [".".join(path.relative_to(recipes).with_suffix("").parts) for path in recipes.rglob("*.py")]
    assert "parts.shared" in scripts
    code = IMPORT_ALL.format(modules=MODULES, names=NAMES, recipes=str(ROOT / "recipes"), scripts=scripts)
    done = set(python(code, tmp_path).split())
    files = [
        path.relative_to(root)
        for root, package in ((ROOT, "torchrl_smore"), (ROOT / "kernels", "smore_kernels"))
        for path in (root / package).rglob("*.py")
    ]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert names - {"torchrl_smore", "smore_kernels"} == done


def test_a_loss_costs_little_more_to_import_than_torchrl_itself(tmp_path):
    shares = []
    for _ in range(3):
        share, *new = python(IMPORT_COST, tmp_path).split()
        shares.append(float(share))
        # what torchrl has not imported yet costs where nobody looks for it
        assert {name.split(".")[0] for name in new} <= {"torchrl_smore", *sys.stdlib_module_names}
        if shares[-1] < 0.1:
            break
    assert min(shares) < 0.1


def test_recipes_ask_for_signals_that_windows_lacks_by_name_only():
    for path in (ROOT / "recipes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.attr not in NAMES.get(node.value.id, ()), f"{path.name}:{node.lineno}: {node.attr}"


@pytest.fixture
def windows_locks(monkeypatch):
    """``msvcrt`` on top of ``flock``, in place of ``fcntl``: a refusal is a PermissionError, as there."""

    def locking(descriptor, mode, count):
        assert count == 1
        if mode != module.LK_NBLCK:
            raise AssertionError(mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(13, "Permission denied") from None

    module = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setattr(_lock, "fcntl", None)
    monkeypatch.setattr(_lock, "msvcrt", module)
    monkeypatch.setattr(_lock, "_PAUSE_S", 0.0)
    return module


def test_locks_of_windows_keep_others_out_and_name_the_holder(tmp_path, windows_locks):
    path = tmp_path / ".lock"
    with locked(path, "the place"):
        with path.open("a+") as other:
            assert not _lock._take(other, wait=False)
            assert _lock._holder(other).startswith("process ")
        # another thread's view of it
        _lock._held.pop(path.resolve())
        with pytest.raises(LockedError, match="the place is in use by process"), locked(path, "the place"):
            pass
        _lock._held[path.resolve()] = 0
    assert not path.exists()
    with locked(path, "the place"):
        assert path.read_text().startswith("process ")


def test_locks_of_windows_are_waited_for(tmp_path, windows_locks):
    path = tmp_path / ".lock"
    first = path.open("a+")
    assert _lock._take(first, wait=False)
    lines = []

    def leave(line):
        lines.append(line)
        first.close()

    with locked(path, "the place", wait=True, on_wait=leave):
        assert lines == ["the place is in use by another process; waiting for it"]


def test_a_file_that_another_has_open_stays_when_its_lock_is_given_back(tmp_path, windows_locks, monkeypatch):
    def refused(self, missing_ok=False):
        raise PermissionError(13, "The process cannot access the file", str(self))

    monkeypatch.setattr(Path, "unlink", refused)
    with locked(tmp_path / ".lock", "the place"):
        pass
    assert (tmp_path / ".lock").exists()


def test_a_system_without_locks_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_lock, "fcntl", None)
    monkeypatch.setattr(_lock, "msvcrt", None)
    with pytest.raises(NotImplementedError, match="neither fcntl nor msvcrt"), locked(tmp_path / ".lock", "the place"):
        pass


def test_without_poll_workers_are_refused_by_name_and_automatic_ones_stay_away(monkeypatch):
    monkeypatch.setattr("torchrl_smore._worker.HAS_WORKERS", False)
    # the package exports a function of the same name
    monkeypatch.setattr(sys.modules["torchrl_smore.envs.collect"], "HAS_WORKERS", False)
    with pytest.raises(NotImplementedError, match=r"workers need select\.poll"):
        EnvPool("PointReach", 2, num_workers=2)
    with pytest.raises(RenderError, match=r"workers need select\.poll"):
        render_episode("PointReach", 0, [[0.0, 0.0]], own_process=True)
    assert _num_workers("auto", types.SimpleNamespace(task=get_task("FetchReach"))) == 1
