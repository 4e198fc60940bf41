import hashlib
import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from torchrl_smore.envs.experts import ActorExpert


@pytest.fixture
def agent(tmp_path):
    """A linear agent of PPO for the HalfCheetah, without hidden layers."""
    layer, weights = nn.Linear(17, 6), io.BytesIO()
    torch.save({f"action_net.{name}": tensor for name, tensor in layer.state_dict().items()}, weights)
    box = {":type:": "<class 'gymnasium.spaces.box.Box'>", "low": "[-1. -1. -1. -1. -1. -1.]"}
    box |= {"high": "[1. 1. 1. 1. 1. 1.]"}
    data = {"policy_kwargs": {}, "observation_space": box, "action_space": box, "_last_original_obs": None}
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", weights.getvalue())
    return layer


def test_an_agent_becomes_an_expert_with_its_source_and_what_it_reaches(tmp_path, recipe, agent):
    options = ("task=CheetahTgtVel-m-e", f"agent={tmp_path / 'agent.zip'}", "source='a place, a commit'", "license=MIT")
    done = recipe("convert_expert.py", *options, "measure_episodes=1", cwd=tmp_path)
    assert done.status == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["command"] == (
        "python recipes/convert_expert.py task=CheetahTgtVel-m-e agent=agent.zip measure_episodes=1"
    )
    assert (meta["source"], meta["license"]) == ("a place, a commit", "MIT")
    assert meta["source_sha256"] == {"agent.zip": hashlib.sha256((tmp_path / "agent.zip").read_bytes()).hexdigest()}
    assert meta["expert"]["sha256"] == hashlib.sha256((folder / "expert.npz").read_bytes()).hexdigest()
    assert {"return", "velocity", "reached", "discounted_return", "return_std"} <= set(meta["expert"])
    assert str(tmp_path) not in (folder / "meta.json").read_text()
    observation = torch.randn(9, 17)
    actions = ActorExpert(folder / "expert.npz")({"observation": observation.numpy()})
    np.testing.assert_allclose(actions, agent(observation).clamp(-1.0, 1.0).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "agent must name a file of Stable-Baselines3, got none"),
        (("agent=absent.zip",), "absent.zip: expected a file of Stable-Baselines3, found none"),
        (("agent=agent.zip", "task=AntTgtVel-m-e"), "agent.zip is no actor for AntTgtVel-m-e: expected 27 observation"),
        (("agent=agent.zip", "task=FetchPush"), "task must be one of CheetahTgtVel-m-e, .*got FetchPush"),
        (("agent=agent.zip", "measure_episodes=0"), "measure_episodes must be at least 1 and at most 1,000,000, got 0"),
    ],
    ids=["none", "absent", "other task", "no locomotion task", "no episode"],
)
def test_what_cannot_be_converted_is_refused_before_a_folder_is_made(tmp_path, recipe, agent, options, said):
    done = recipe("convert_expert.py", *options, cwd=tmp_path)
    assert (done.status, done.stderr.count("\n")) == (2, 1)
    assert re.search(said, done.stderr)
    assert not (tmp_path / "runs").exists()
