"""Runs recipes as a user does: own process, own working directory, exit status."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from torchrl_smore.envs import collect

RECIPES = Path(__file__).parents[2] / "recipes"
# Imports what recipes import, which takes seconds, once; then each run is a fork of this process.
_SERVER = """
import json, os, resource, runpy, sys, traceback
import hydra, omegaconf, yaml, torchrl_smore.envs, torchrl_smore.reports, torchrl_smore.trainers
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(job["cwd"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(job["stdout"], os.O_WRONLY), 1)
        os.dup2(os.open(job["stderr"], os.O_WRONLY), 2)
        os.environ.update(job["env"])
        sys.argv = job["argv"]
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        if job["file_limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], job["file_limit"]))
        status = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as exit:
            status = exit.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    status: int
    stdout: str
    stderr: str


Recipe = Callable[..., Run]


@pytest.fixture(scope="session")
def recipe():
    """``recipe(name, *options, cwd, env, file_limit) -> Run``; ``file_limit`` (bytes) acts as a full disk."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )

    def run(name: str, *options: str, cwd: Path, env: dict[str, str] | None = None, file_limit: int = 0) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            files = {key: Path(folder) / key for key in ("stdout", "stderr")}
            for file in files.values():
                file.touch()
            job = {"argv": [str(RECIPES / name), *options], "cwd": str(cwd), "env": env or {}, "file_limit": file_limit}
            server.stdin.write(json.dumps({**job, **{key: str(file) for key, file in files.items()}}) + "\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            return Run(status, **{key: file.read_text() for key, file in files.items()})

    yield run
    server.stdin.close()
    server.wait(10)
    server.stdout.close()


@pytest.fixture(scope="session")
def store_path(tmp_path_factory):
    """A PointReach store of 4 expert and 16 random trajectories."""
    path = tmp_path_factory.mktemp("data") / "store"
    collect("PointReach", expert_episodes=4, random_episodes=16, seed=0, out=path, progress=False)
    return path


@pytest.fixture
def buffer():
    """Arrays of a WGCSL ``buffer.pkl`` for PointReach: 6 trajectories of 50 steps."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (6, 50, 2))
    position = np.clip(np.concatenate([np.zeros((6, 1, 2)), action.cumsum(1)], 1), -5, 5)
    goal = np.repeat(rng.uniform(-5, 5, (6, 1, 2)), 50, 1)
    return {"o": position, "ag": position.copy(), "u": action, "g": goal}


@pytest.fixture(scope="module")
def import_recipe() -> Iterator[Callable[[str], object]]:
    """Imports a module of the recipes by its name; the environment variables that it sets are gone afterwards."""
    environment = dict(os.environ)
    sys.path.insert(0, str(RECIPES))
    yield importlib.import_module
    sys.path.remove(str(RECIPES))
    os.environ.clear()
    os.environ.update(environment)
