"""What works without the extras, in a process where their packages cannot be imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

BLOCK = """
import sys

EXTRAS = {"gymnasium", "gymnasium_robotics", "mujoco", "matplotlib", "imageio", "PIL", "hydra"}


class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in EXTRAS else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
POINTS = """
from torchrl_smore.envs import collect, get_task
store = collect("PointReach", expert_episodes=2, random_episodes=2, seed=0)
print(store.num_trajectories)
batch = get_task("PointRooms").make_batch_env(2, 0.5)
print(batch.reset([0, 1])["observation"].round(4).tolist())
for name in ("FetchReach", "PointReach", "SawyerReach", "Reacher", "AntTgtVel-r-e"):
    try:
        get_task(name).make_env()
    except ImportError as error:
        assert "torchrl-smore[envs]" in str(error), error
    else:
        raise AssertionError(name)
"""
PLOTS = """
import numpy as np
from torchrl_smore.reports.figures.plots import plot_curves, write_gif
for call in (lambda: write_gif(np.zeros((1, 2, 2, 3)), "a.gif"), lambda: plot_curves("metrics.csv", "a.png")):
    try:
        call()
    except ImportError as error:
        assert "torchrl-smore[plots]" in str(error), error
    else:
        raise AssertionError("nothing said")
"""


def run(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code, str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_point_tasks_need_no_simulator_and_the_others_and_pictures_say_what_to_install(tmp_path):
    from torchrl_smore.envs import get_task

    out = run(POINTS + PLOTS, tmp_path).splitlines()
    assert out[-2] == "4"
    env = get_task("PointRooms").make_env()
    starts = [env.reset(seed=seed)[0]["observation"].round(4).tolist() for seed in (0, 1)]
    assert out[-1] == str(starts)


def test_the_core_imports_nothing_but_what_it_declares_and_what_an_extra_brings():
    root = Path(__file__).parents[1]
    (core,) = re.findall(r"\ndependencies = \[\n(.*?)\n\]", (root / "pyproject.toml").read_text(), re.DOTALL)
    declared = set(re.findall(r'"([a-z]+)', core))
    assert declared == {"numpy", "tensordict", "torch", "torchrl", "tqdm"}
    extras = {"gymnasium", "gymnasium_robotics", "mujoco", "h5py", "pyarrow", "smore_kernels", "hydra", "omegaconf"}
    layers = ("_dispatch.py", "data", "envs", "functional", "modules", "objectives", "trainers")
    files = [path for layer in layers for path in (root / "torchrl_smore").rglob("*.py") if layer in path.parts]
    assert len(files) > 50
    for path in files:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
        unknown = names - declared - extras - {"torchrl_smore"} - set(sys.stdlib_module_names)
        assert unknown <= {"msvcrt"}, f"{path}: {unknown}"
