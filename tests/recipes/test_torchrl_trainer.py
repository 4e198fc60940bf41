"""The commands and the file that are documented of TorchRL's config system, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from torchrl_smore import load_policy
from torchrl_smore.data import TrajectoryStore
from torchrl_smore.trainers import latest_checkpoint, load_checkpoint

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
    own, schedule = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "own.yaml").write_text(own)
    (folder,) = re.findall(r"path: (\S+?)}", own)
    for path in (folder, "FOLDER"):
        TrajectoryStore.from_episodes([episode] * 2, {"task": "FetchReach"}).save(tmp_path / path)
    short = [*SHORT["own" if "own" in command else "smore"]]
    if "loss" in command:
        # what the page says of a schedule, as an override
        (found,) = re.findall(r"scheduler: (\{.*\})", schedule)
        short.append(f"+trainer.scheduler={found}".replace('"', ""))
    done = recipe("torchrl_trainer.py", *shlex.split(command), *short, cwd=tmp_path)
    assert done.status == 0, done.stderr
    (written,) = (tmp_path / "runs").rglob("config.yaml")
    before = written.read_text()
    assert "total_frames" in before
    again = recipe("torchrl_trainer.py", *shlex.split(command), *short, "+seed_of_data=7", cwd=tmp_path)
    assert again.status != 0
    assert "holds a run already" in again.stderr
    assert written.read_text() == before
    if "own" in command:
        # which names no dataset: the recipe does not look for it in the parts of a config
        assert not (written.parent / "policy.json").exists()
        return
    policy = load_policy(written.parent, goal_margin=None)
    assert (policy.record.task, policy.record.columns["desired_goal"]) == ("FetchReach", ["goal 0", "goal 1", "goal 2"])
    state = load_checkpoint(latest_checkpoint(written.parent / "checkpoint"))[0]["update"]["loss"]
    # one hidden layer of 4
    (w0, b0), (w1, b1) = (
        [state[f"actor_network_params.module.0.module.trunk.layers.{n}.{part}"].numpy() for part in ("weight", "bias")]
        for n in (0, 2)
    )
    row = rng.normal(size=13).astype(np.float32)
    expected = np.tanh(w1 @ np.maximum(w0 @ row + b0, 0.0) + b1)
    np.testing.assert_allclose(policy(row[:10], row[10:]), expected, atol=1e-6)
