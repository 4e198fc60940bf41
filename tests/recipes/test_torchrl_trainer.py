"""The commands and the file that are documented of TorchRL's config system, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from torchrl_smore.data import TrajectoryStore

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "torchrl_configs.md").read_text()
RECIPE = (ROOT / "recipes" / "torchrl_trainer.py").read_text()
COMMANDS = sorted(
    {found.strip() for found in re.findall(r"python recipes/torchrl_trainer.py((?: \S+)+)", PAGE + RECIPE)}
)
SHORT = {"own": ["trainer.total_frames=2"], "smore": ["steps=2", "models.actor.hidden=[4]", "widths.hidden=[4]"]}


def test_the_page_and_the_recipe_name_commands():
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "--help"])
def test_a_documented_command_trains(recipe, tmp_path, command):
    rng = np.random.default_rng(0)
    episode = {
        # as wide as FetchReach's
        "observation": rng.normal(size=(11, 10)),
        "achieved_goal": rng.normal(size=(11, 3)),
        "action": rng.uniform(-1, 1, (10, 4)),
        "desired_goal": np.zeros(3),
        "reward": np.zeros(10),
    }
    (own,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "own.yaml").write_text(own)
    (folder,) = re.findall(r"path: (\S+?)}", own)
    for path in (folder, "FOLDER"):
        TrajectoryStore.from_episodes([episode] * 2).save(tmp_path / path)
    short = SHORT["own" if "own" in command else "smore"]
    done = recipe("torchrl_trainer.py", *shlex.split(command), *short, cwd=tmp_path)
    assert done.status == 0, done.stderr
    if "own" in command:
        return  # without a folder
    (written,) = (tmp_path / "runs").rglob("config.yaml")
    before = written.read_text()
    assert "total_frames" in before
    again = recipe("torchrl_trainer.py", *shlex.split(command), *short, "+seed_of_data=7", cwd=tmp_path)
    assert again.status != 0
    assert "holds a run already" in again.stderr
    assert written.read_text() == before
