"""docs/iql_offline.md: the lines it counts, the changed script where a clone is at hand, and a loop of its shape."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers import SamplerWithoutReplacement
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SoftUpdate, group_optimizers

from torchrl_smore import GoalTransition, HindsightGoalTransform, SMORELoss
from torchrl_smore.envs import collect

PAGE = Path(__file__).parents[2] / "docs" / "iql_offline.md"
HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


def changes():
    """By file: its blob, and ``(line, number of lines that go, lines that come)`` of each hunk."""
    (block,) = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found = {}
    for line in block.splitlines():
        if line.startswith("--- "):
            name, blob = re.fullmatch(r"--- (\S+) \(blob ([0-9a-f]{40})\)", line).groups()
            hunks = found.setdefault(name, (blob, []))[1]
        elif line.startswith("@@"):
            start, gone, _, new = HUNK.fullmatch(line).groups()
            hunks.append((int(start), 1 if gone is None else int(gone), []))
            expected = 1 if new is None else int(new)
        else:
            assert line.startswith("+"), line
            hunks[-1][2].append(line[1:])
            assert len(hunks[-1][2]) <= expected
    return found


def applied(text, hunks):
    lines = text.splitlines()
    for start, gone, new in reversed(hunks):
        # of no lines, diff names the line before
        first = start - 1 if gone else start
        lines[first : first + gone] = new
    return "\n".join(lines) + "\n"


def test_the_page_counts_its_lines():
    found = changes()
    python = [hunk for name, (_, hunks) in found.items() if name.endswith(".py") for hunk in hunks]
    yaml = [hunk for name, (_, hunks) in found.items() if name.endswith(".yaml") for hunk in hunks]
    text = PAGE.read_text()
    assert sum(len(new) for *_, new in python) == 21
    assert "Twenty-one lines of\nPython are new" in text
    assert sum(gone for _, gone, _ in python) == 23
    assert "and 23 are gone" in text
    assert [(gone, len(new)) for _, gone, new in yaml] == [(1, 1)] * 4
    assert "four values of the YAML file change" in text


def test_hunks_replace_insert_and_delete():
    text = "a\nb\nc\nd\n"
    assert applied(text, [(1, 0, ["x"]), (3, 2, ["y", "z"])]) == "a\nx\nb\ny\nz\n"
    assert applied(text, [(2, 1, [])]) == "a\nc\nd\n"


@pytest.mark.slow
def test_the_changed_script_trains(tmp_path):
    clone = os.environ.get("TORCHRL_CLONE")
    if not clone:
        pytest.skip("TORCHRL_CLONE is not set to a clone of pytorch/rl")
    if importlib.util.find_spec("gymnasium_robotics") is None:
        pytest.skip("the script's environment needs the extra [envs]")
    for name, (blob, hunks) in changes().items():
        path = Path(clone) / name
        git = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=False)
        if git.stdout.strip() != blob:
            pytest.skip(f"{path} is another version of the script than that of docs/iql_offline.md")
        (tmp_path / path.name).write_text(applied(path.read_text(), hunks))
    collect("FetchReach", expert_episodes=10, random_episodes=10, seed=0, workers=1, out=tmp_path / "store")
    options = [
        *(f"replay_buffer.dataset={tmp_path / 'store'}", "optim.gradient_steps=200", "optim.device=cpu"),
        # no logger: the script's first line has no speed, which its CSV logger cannot write
        *("logger.backend=", "logger.eval_iter=1000", "logger.eval_steps=50", "logger.eval_envs=1"),
        *("replay_buffer.batch_size=64", "model.hidden_sizes=[32,32]", f"hydra.run.dir={tmp_path / 'run'}"),
    ]
    done = subprocess.run(
        [sys.executable, "iql_offline.py", *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "200/200" in done.stderr


def test_a_loop_of_its_shape_trains():
    """The model, buffer, optimisers and update of TorchRL's script, with the page's changes, on a point task."""
    torch.manual_seed(0)
    store = collect("PointReach", expert_episodes=10, random_episodes=10, seed=0)
    buffer = TensorDictReplayBuffer(
        storage=store.to_storage(),
        sampler=SamplerWithoutReplacement(drop_last=True),
        sample_unit=GoalTransition(),
        transform=HindsightGoalTransform(),
        batch_size=64,
    )
    width = store.data["action"].shape[-1]

    def mlp(out):
        return MLP(num_cells=[32, 32], out_features=out, activation_class=torch.nn.ReLU)

    actor = ProbabilisticActor(
        TensorDictSequential(
            TensorDictModule(mlp(2 * width), ["observation", "desired_goal"], ["param"]),
            TensorDictModule(NormalParamExtractor(scale_lb=0.1), ["param"], ["loc", "scale"]),
        ),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    score = ValueOperator(mlp(1), in_keys=["observation", "action", "desired_goal"], out_keys=["score"])
    value = ValueOperator(mlp(1), in_keys=["observation", "desired_goal"], out_keys=["state_value"])
    # lazy layers get their widths
    for network in (actor, score, value):
        network(buffer.sample())

    loss = SMORELoss(actor, score, value, gamma=0.9, temperature=1.0, expectile=0.7)
    target = SoftUpdate(loss, tau=0.005)
    optimizer = group_optimizers(
        *(
            torch.optim.Adam(list(getattr(loss, f"{name}_network_params").flatten_keys().values()), lr=3e-4)
            for name in ("actor", "score", "value")
        )
    )

    def update(data):
        optimizer.zero_grad(set_to_none=True)
        info = loss(data)
        (info["loss_actor"] + info["loss_value"] + info["loss_score"]).backward()
        optimizer.step()
        target.step()
        return info.detach()

    history = torch.stack([update(buffer.sample()) for _ in range(200)])
    for key in ("loss_score", "loss_value", "loss_actor"):
        assert bool(history[key].isfinite().all()), key
    for key in ("loss_score", "loss_actor"):
        assert history[key][-50:].mean() < history[key][:50].mean(), key
