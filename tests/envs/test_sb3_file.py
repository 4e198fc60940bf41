"""Agents of Stable-Baselines3, written here in its layout by plain torch.save, pickle and zipfile."""

import collections
import contextlib
import io
import itertools
import json
import os
import pickle
import re
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from torchrl_smore.envs import collect, get_task, task_actor
from torchrl_smore.envs.experts import ActorExpert, policy_files, read_policy

ANT = get_task("AntTgtVel-m-e")
VEC_NORMALIZE, STATISTICS = (
    "stable_baselines3.common.vec_env.vec_normalize",
    "stable_baselines3.common.running_mean_std",
)


def box(low, high):
    text = {"low": f"[{' '.join(low)}]", "high": f"[{' '.join(high)}]"}
    return {":type:": "<class 'gymnasium.spaces.box.Box'>", ":serialized:": "gASV", **text}


def dict_of(text):
    return {":type:": "<class 'gymnasium.spaces.dict.Dict'>", ":serialized:": "gASV", "spaces": text, "_shape": None}


def data_of(observation_dim=5, action_dim=2, **changes):
    return {
        "policy_kwargs": {},
        "observation_space": box(["-inf"] * observation_dim, ["inf"] * observation_dim),
        "action_space": box(["-1."] * action_dim, ["1."] * action_dim),
        "_last_original_obs": None,
    } | changes


def write_agent(path, policy, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps(data))
        weights = io.BytesIO()
        torch.save(policy.state_dict(), weights)
        archive.writestr("policy.pth", weights.getvalue())
        archive.writestr("_stable_baselines3_version", "2.3.0")


def perceptron(*widths, activation=nn.Tanh):
    layers = [(nn.Linear(a, b), activation()) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*(module for pair in layers for module in pair))


def on_policy(observation_dim=5, action_dim=2, hidden=(7, 6)):
    """The modules of ActorCriticPolicy, and its mean action before it is clipped."""
    policy = nn.Module()
    policy.log_std = nn.Parameter(torch.zeros(action_dim))
    policy.mlp_extractor = nn.Module()
    policy.mlp_extractor.policy_net = perceptron(observation_dim, *hidden)
    policy.mlp_extractor.value_net = perceptron(observation_dim, 9)
    policy.action_net, policy.value_net = nn.Linear(hidden[-1], action_dim), nn.Linear(9, 1)
    nn.init.normal_(policy.action_net.weight, std=2.0)
    return policy, lambda x: policy.action_net(policy.mlp_extractor.policy_net(x))


def sac(observation_dim=5, action_dim=2):
    policy = nn.Module()
    policy.actor = nn.Module()
    policy.actor.latent_pi = perceptron(observation_dim, 7, 6, activation=nn.ReLU)
    policy.actor.mu, policy.actor.log_std = nn.Linear(6, action_dim), nn.Linear(6, action_dim)
    policy.critic = perceptron(observation_dim + action_dim, 7, 1)
    return policy, lambda x: policy.actor.mu(policy.actor.latent_pi(x))


def td3(observation_dim=5, action_dim=2):
    policy = nn.Module()
    policy.actor, policy.actor_target = nn.Module(), nn.Module()
    net = [*perceptron(observation_dim, 7, 6, activation=nn.ReLU), nn.Linear(6, action_dim), nn.Tanh()]
    policy.actor.mu, policy.actor_target.mu = nn.Sequential(*net), perceptron(observation_dim, 7)
    return policy, lambda x: policy.actor.mu[:-1](x)


def clip(x):
    return x.clamp(-1.0, 1.0)


RELU = {":type:": "<class 'dict'>", "activation_fn": "<class 'torch.nn.modules.activation.ReLU'>"}


def relu_on_policy():
    policy, _ = on_policy()
    net = policy.mlp_extractor.policy_net
    return policy, lambda x: policy.action_net(net[2](net[0](x).relu()).relu())


@pytest.mark.parametrize(
    ("make", "data", "output"),
    [
        (on_policy, data_of(), clip),
        (relu_on_policy, data_of(policy_kwargs=RELU), clip),
        (on_policy, data_of(policy_kwargs={"squash_output": True}), torch.tanh),
        (on_policy, data_of(policy_kwargs={":type:": "<class 'dict'>", "squash_output": "True"}), torch.tanh),
        (sac, data_of(), torch.tanh),
        (td3, data_of(), torch.tanh),
    ],
    ids=["PPO", "PPO, ReLU", "PPO, squashed", "PPO, squashed in words", "SAC", "TD3"],
)
@torch.no_grad()
def test_an_agent_acts_as_its_network_does(tmp_path, make, data, output):
    policy, mean = make()
    write_agent(tmp_path / "agent.zip", policy, data)
    observation = 2.0 * torch.randn(30, 5)
    actions = ActorExpert(read_policy(tmp_path / "agent.zip"))({"observation": observation.numpy()})
    expected = output(mean(observation))
    assert (expected.abs() == 1.0).any() == (output is clip)
    np.testing.assert_allclose(actions, expected.numpy(), atol=2e-6)


BOUNDS = box(["-0.5", "2."], ["3.5", " 4.e+00"])
LOW, HIGH = np.array([-0.5, 2.0]), np.array([3.5, 4.0])


@pytest.mark.parametrize("make", [on_policy, sac, td3])
@torch.no_grad()
def test_actions_of_other_bounds_are_scaled_from_them(tmp_path, make):
    policy, mean = make()
    write_agent(tmp_path / "agent.zip", policy, data_of(action_space=BOUNDS))
    actor = read_policy(tmp_path / "agent.zip")
    observation = 2.0 * torch.randn(30, 5)
    actions = ActorExpert(actor)({"observation": observation.numpy()})
    np.testing.assert_array_equal(actor.bounds, (LOW, HIGH))
    # what the environment gets, as Stable-Baselines3 documents it: clipped to its bounds, or stretched to them
    if make is on_policy:
        expected = np.minimum(np.maximum(mean(observation).numpy(), LOW), HIGH)
        assert ((expected == LOW) | (expected == HIGH)).any()
    else:
        expected = LOW + (mean(observation).tanh().numpy() + 1.0) * (HIGH - LOW) / 2.0
    np.testing.assert_allclose(LOW + (actions + 1.0) * (HIGH - LOW) / 2.0, expected, atol=1e-5)


WIDTHS = {"achieved_goal": 2, "desired_goal": 2, "observation": 3}
SPACES = (
    "{'achieved_goal': Box(-inf, inf, (2,), float64), 'desired_goal': Box(-inf, inf, (2,), float64), "
    "'observation': Box([-inf -1. -2.], [inf  1.  2.], (3,), float64)}",
    "OrderedDict([('achieved_goal', Box(-inf, inf, (2,), float32)), ('desired_goal', Box(-inf, inf, (2,), float32)), "
    "('observation', Box(-inf, inf, (3,), float32))])",
)


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("make", [on_policy, sac, td3])
@pytest.mark.parametrize("normalized", [False, True])
@torch.no_grad()
def test_an_agent_of_goals_sees_each_part_in_its_own_place(tmp_path, packages, spaces, make, normalized):
    policy, mean = make(7)
    used = {"_last_original_obs": {":type:": "<class 'dict'>"}} if normalized else {}
    write_agent(tmp_path / "agent.zip", policy, data_of(observation_space=dict_of(spaces), **used))
    rng = np.random.default_rng(0)
    parts = {key: rng.normal(size=(20, width)).astype(np.float32) for key, width in WIDTHS.items()}
    seen = dict(parts)
    if normalized:
        means = {key: rng.normal(size=width) for key, width in WIDTHS.items()}
        variances = {key: rng.uniform(0.01, 2.0, size=width) for key, width in WIDTHS.items()}
        whole = vec_normalize(packages, np.zeros(1), np.ones(1), clip_obs=1.5)
        whole.obs_rms = {key: running(packages, means[key], variances[key]) for key in WIDTHS}
        (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(whole))
        seen = {k: np.clip((v - means[k]) / np.sqrt(variances[k] + 1e-8), -1.5, 1.5) for k, v in parts.items()}
    actor = ActorExpert(read_policy(tmp_path / "agent.zip"))
    assert (actor.observation_dim, actor.goal_dim, actor.achieved_dim) == (3, 2, 2)
    expected = mean(torch.from_numpy(np.concatenate([seen[key] for key in sorted(WIDTHS)], -1)).float())
    expected = clip(expected) if make is on_policy else expected.tanh()
    np.testing.assert_allclose(actor(parts), expected.numpy(), atol=1e-5)


@torch.no_grad()
def test_an_agent_need_not_see_what_is_achieved(tmp_path):
    policy, mean = sac(5)
    spaces = "{'desired_goal': Box(-inf, inf, (2,), float64), 'observation': Box(-inf, inf, (3,), float64)}"
    write_agent(tmp_path / "agent.zip", policy, data_of(observation_space=dict_of(spaces)))
    actor = ActorExpert(read_policy(tmp_path / "agent.zip"))
    goal, observation = torch.randn(6, 2), torch.randn(6, 3)
    actions = actor({"observation": observation.numpy(), "desired_goal": goal.numpy()})
    np.testing.assert_allclose(actions, mean(torch.cat([goal, observation], -1)).tanh().numpy(), atol=2e-6)


FILES = Path(__file__).parent / "sb3_files"


@pytest.mark.parametrize("name", ["ppo", "trpo", "td3", "sac", "tqc"])
def test_files_that_stable_baselines3_wrote_act_as_there(name):
    """Files and actions are those of ``sb3_files/make.py``: predict(..., deterministic=True)."""
    with np.load(FILES / "expected.npz") as file:
        arrays = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    expected = arrays.pop("action")
    actor = ActorExpert(read_policy(FILES / f"{name}.zip"))
    assert actor.achieved_dim == arrays.get("achieved_goal", np.zeros((1, 0))).shape[1]
    actions = actor(arrays)
    if name in ("trpo", "td3"):
        low, high = {"trpo": ([-0.5, -2.0], [3.5, 4.0]), "td3": ([-2.0] * 2, [2.0] * 2)}[name]
        np.testing.assert_array_equal(actor.actor.bounds, (low, high))
        actions = low + (actions + 1.0) * (np.array(high) - low) / 2.0
    else:
        assert actor.actor.bounds is None
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    assert expected.std(0).min() > 1e-3


def reach_agent(path, **changes):
    policy, mean = sac(16, 4)
    spaces = (
        "{{'achieved_goal': {0}(3,), float64), 'desired_goal': {0}(3,), float64), 'observation': {0}(10,), float64)}}"
    )
    data = data_of(16, 4, observation_space=dict_of(spaces.format("Box(-inf, inf, ")), **changes)
    write_agent(path, policy, data)
    return mean


def test_data_of_a_goal_task_are_collected_from_an_agent(tmp_path):
    mean = reach_agent(tmp_path / "agent.zip")
    store = collect(
        "FetchReach",
        **{"expert_episodes": 1, "random_episodes": 0, "seed": 0, "progress": False, "workers": 1},
        expert_policy=tmp_path / "agent.zip",
    )
    seen = torch.cat([store.data[key] for key in ("achieved_goal", "desired_goal", "observation")], -1)
    with torch.no_grad():
        torch.testing.assert_close(store.data["action"], mean(seen).tanh(), rtol=0.0, atol=1e-5)


def test_an_agent_of_another_range_of_actions_than_the_task_s_is_refused(tmp_path):
    reach_agent(tmp_path / "agent.zip", action_space=box(["-2."] * 4, ["2."] * 4))
    with pytest.raises(ValueError, match=r"no actor for FetchReach, whose actions go from \[-1.0.* to \[1.0.*\[-2.0"):
        task_actor(get_task("FetchReach"), tmp_path / "agent.zip")


@pytest.fixture
def packages(monkeypatch):
    """What a VecNormalize is pickled from; gone before it is read."""
    found = {}
    for module, name in ((VEC_NORMALIZE, "VecNormalize"), (STATISTICS, "RunningMeanStd")):
        kind = type(name, (), {"__module__": module})
        found[name] = kind
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(parts[count - 1]))
        setattr(sys.modules[module], name, kind)
    return found


def running(packages, mean, var):
    statistics = packages["RunningMeanStd"]()
    statistics.__dict__ |= {"mean": mean, "var": var, "count": 1000.0001}
    return statistics


def vec_normalize(packages, mean, var, **changes):
    statistics, whole = running(packages, mean, var), packages["VecNormalize"]()
    whole.__dict__ |= {
        "num_envs": 2,
        "spaces": collections.deque([np.random.RandomState(0), {1, 2}, frozenset({3})]),
        "returns": np.zeros(2),
        "obs_rms": statistics,
        "ret_rms": statistics,
        "clip_obs": 10.0,
        "epsilon": np.float64(1e-8),
        "norm_obs": True,
    } | changes
    return whole


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("place", ["agent/vecnormalize.pkl", "vecnormalize.pkl"])
@torch.no_grad()
def test_observations_are_standardized_as_by_vec_normalize(tmp_path, packages, monkeypatch, protocol, place):
    policy, output = on_policy()
    write_agent(tmp_path / "agent.zip", policy, data_of(_last_original_obs={":type:": "<class 'numpy.ndarray'>"}))
    mean, var = np.array([1.0, -2.0, 0.0, 3.0, 0.5]), np.array([4.0, 0.25, 1e-8, 9.0, 1.0])
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(pickle.dumps(vec_normalize(packages, mean, var), protocol))
    monkeypatch.delitem(sys.modules, "stable_baselines3")

    observation = 3.0 * np.random.default_rng(0).normal(size=(50, 5))
    actions = ActorExpert(read_policy(tmp_path / "agent.zip"))({"observation": observation})

    # the documented rule of VecNormalize; its third column is nearly constant, so that most values are clipped
    seen = np.clip((observation - mean) / np.sqrt(var + 1e-8), -10.0, 10.0)
    assert (np.abs(seen) == 10.0).any()
    expected = clip(output(torch.from_numpy(seen).float()))
    np.testing.assert_allclose(actions, expected.numpy(), atol=2e-5)
    assert policy_files(tmp_path / "agent.zip") == [tmp_path / "agent.zip", tmp_path / place]


@torch.no_grad()
def test_statistics_that_were_not_used_are_not_used(tmp_path, packages):
    policy, output = on_policy()
    used = data_of(_last_original_obs={":type:": "<class 'numpy.ndarray'>"})
    statistics = vec_normalize(packages, np.ones(5), np.ones(5))
    observation = torch.randn(5, 5)
    for data, changes in ((data_of(), {}), (used, {"norm_obs": False})):
        statistics.__dict__ |= changes
        (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(statistics))
        write_agent(tmp_path / "agent.zip", policy, data)
        actions = ActorExpert(read_policy(tmp_path / "agent.zip"))({"observation": observation.numpy()})
        np.testing.assert_allclose(actions, clip(output(observation)).numpy(), atol=2e-6)


@torch.no_grad()
def test_an_agent_that_cannot_tell_was_standardized_if_there_are_statistics(tmp_path, packages):
    policy, output = sac()
    write_agent(tmp_path / "agent.zip", policy, data_of(_last_original_obs=[0.0]))
    observation = torch.randn(5, 5)
    for seen in (observation, (observation - 1.0) / 2.0):
        actions = ActorExpert(read_policy(tmp_path / "agent.zip"))({"observation": observation.numpy()})
        np.testing.assert_allclose(actions, output(seen).tanh().numpy(), atol=1e-5)
        statistics = vec_normalize(packages, np.ones(5), np.full(5, 4.0))
        (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(statistics))


@torch.no_grad()
def test_an_ant_with_contact_forces_acts_as_if_it_felt_none(tmp_path, packages):
    policy, output = on_policy(111, 8)
    data = data_of(111, 8, _last_original_obs={":type:": "<class 'numpy.ndarray'>"})
    write_agent(tmp_path / "agent.zip", policy, data)
    rng = np.random.default_rng(0)
    mean, var = rng.normal(size=111), rng.uniform(0.1, 2.0, size=111)
    mean[30], var[30] = 4.0, 0.01  # -40 before the clip
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(vec_normalize(packages, mean, var)))

    actor = task_actor(ANT, tmp_path / "agent.zip")
    observation = rng.normal(size=(20, 27))
    actions = ActorExpert(actor)({"observation": observation})

    felt = np.concatenate([observation, np.zeros((20, 84))], -1)
    seen = np.clip((felt - mean) / np.sqrt(var + 1e-8), -10.0, 10.0)
    assert seen[0, 30] == -10.0
    np.testing.assert_allclose(actions, clip(output(torch.from_numpy(seen).float())).numpy(), atol=2e-5)
    with pytest.raises(ValueError, match=r"agent.zip is no actor for CheetahTgtVel-m-e: expected 17 .*found 111"):
        task_actor(get_task("CheetahTgtVel-m-e"), tmp_path / "agent.zip")


def test_data_are_collected_from_an_agent_and_name_it(tmp_path):
    policy, _ = on_policy(27, 8)
    write_agent(tmp_path / "agent.zip", policy, data_of(27, 8))
    stores = [
        collect(
            "AntTgtVel-m-e",
            **{"expert_episodes": 1, "random_episodes": 0, "medium_episodes": 1, "seed": 0, "progress": False},
            expert_policy=tmp_path / "agent.zip",
            workers=workers,
        )
        for workers in (1, 2)
    ]
    assert stores[0].sha256 == stores[1].sha256
    expert, medium = stores[0].meta["composition"]
    assert len(expert["policy_sha256"]) == 64
    # the medium actor is the package's, where an expert comes alone
    meta = json.loads((ANT.bundled_actors / "meta.json").read_text())
    assert medium["policy_sha256"] == meta["medium"]["sha256"]


class Harmful:
    """Unpickled by the pickle module, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def harmful_weights(folder, policy, packages):
    content = io.BytesIO()
    torch.save({"action_net.weight": Harmful(folder / "harm")}, content)
    with zipfile.ZipFile(folder / "agent.zip", "w") as archive:
        archive.writestr("data", json.dumps(data_of()))
        archive.writestr("policy.pth", content.getvalue())


def harmful_statistics(folder, policy, packages):
    write_agent(folder / "agent.zip", policy, data_of(_last_original_obs=[0.0]))
    statistics = vec_normalize(packages, np.zeros(5), np.ones(5), obs_rms=Harmful(folder / "harm"))
    (folder / "vecnormalize.pkl").write_bytes(pickle.dumps(statistics))


def only_harm(folder, policy, packages):
    write_agent(folder / "agent.zip", policy, data_of(_last_original_obs=[0.0]))
    (folder / "vecnormalize.pkl").write_bytes(pickle.dumps(Harmful(folder / "harm")))


def no_statistics(folder, policy, packages):
    write_agent(folder / "agent.zip", policy, data_of(_last_original_obs=[0.0]))


def other_width(folder, policy, packages):
    write_agent(folder / "agent.zip", policy, data_of(_last_original_obs=[0.0]))
    (folder / "vecnormalize.pkl").write_bytes(pickle.dumps(vec_normalize(packages, np.zeros(4), np.ones(4))))


def objects_in_an_array(folder, policy, packages):
    write_agent(folder / "agent.zip", policy, data_of(_last_original_obs=[0.0]))
    mean = np.array([Harmful(folder / "harm")] * 5, dtype=object)
    (folder / "vecnormalize.pkl").write_bytes(pickle.dumps(vec_normalize(packages, mean, np.ones(5))))


def negative_variance(folder, policy, packages):
    write_agent(folder / "agent.zip", policy, data_of(_last_original_obs=[0.0]))
    (folder / "vecnormalize.pkl").write_bytes(pickle.dumps(vec_normalize(packages, np.zeros(5), -np.ones(5))))


def truncated_statistics(folder, policy, packages):
    write_agent(folder / "agent.zip", policy, data_of(_last_original_obs=[0.0]))
    whole = pickle.dumps(vec_normalize(packages, np.zeros(5), np.ones(5)))
    (folder / "vecnormalize.pkl").write_bytes(whole[:-30])


def statistics_of_some_parts(folder, policy, packages):
    used = data_of(observation_space=dict_of(GOALS), _last_original_obs=[0.0])
    write_agent(folder / "agent.zip", on_policy(6)[0], used)
    whole = vec_normalize(packages, np.zeros(1), np.ones(1))
    whole.obs_rms = {"observation": running(packages, np.zeros(3), np.ones(3))}
    (folder / "vecnormalize.pkl").write_bytes(pickle.dumps(whole))


GOALS = "{'desired_goal': Box(-1.0, 1.0, (3,), float32), 'observation': Box(-1.0, 1.0, (3,), float32)}"


def other_data(**changes):
    return lambda folder, policy, packages: write_agent(folder / "agent.zip", policy, data_of(**changes))


def no_zip(folder, policy, packages):
    (folder / "agent.zip").write_text("not an archive")


def damaged(folder, policy, packages):
    write_agent(folder / "agent.zip", policy, data_of())
    whole = bytearray((folder / "agent.zip").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (folder / "agent.zip").write_bytes(whole)


def no_weights(folder, policy, packages):
    with zipfile.ZipFile(folder / "agent.zip", "w") as archive:
        archive.writestr("data", json.dumps(data_of()))


def old_torch(folder, policy, packages):
    content = io.BytesIO()
    torch.save(policy.state_dict(), content, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "agent.zip", "w") as archive:
        archive.writestr("data", json.dumps(data_of()))
        archive.writestr("policy.pth", content.getvalue())


def not_finite(folder, policy, packages):
    policy.action_net.bias.data[0] = float("nan")
    write_agent(folder / "agent.zip", policy, data_of())


def features(folder, policy, packages):
    policy.features_extractor = perceptron(5, 5)
    write_agent(folder / "agent.zip", policy, data_of())


def discrete_sde(folder, policy, packages):
    policy = nn.Module()
    policy.q_net = perceptron(5, 3)
    write_agent(folder / "agent.zip", policy, data_of())


def transposed(folder, policy, packages):
    weights = policy.state_dict()
    weights["action_net.weight"] = torch.randn(6, 2).T
    policy.state_dict = lambda: weights
    write_agent(folder / "agent.zip", policy, data_of())


def storage_of_many_layers(folder, policy, packages):
    """A file of 4 MB that describes actors as large as one likes."""
    weights, square = policy.state_dict(), torch.zeros(1024, 1024)
    for number in range(0, 40, 2):
        weights[f"mlp_extractor.policy_net.{number}.weight"] = square
        weights[f"mlp_extractor.policy_net.{number}.bias"] = square[0]
    weights["action_net.weight"] = torch.zeros(2, 1024)
    policy.state_dict = lambda: weights
    write_agent(folder / "agent.zip", policy, data_of(1024))


GELU = {"activation_fn": "<class 'torch.nn.modules.activation.GELU'>"}
HOSTILE = [
    (lambda *_: None, r"agent.zip: expected a file of Stable-Baselines3, found none"),
    (harmful_weights, r"agent.zip is no agent .*: policy.pth: expected a tensor action_net.weight"),
    (harmful_statistics, r"vecnormalize.pkl is no VecNormalize of .*agent.zip .*: expected statistics of one"),
    (only_harm, r"vecnormalize.pkl is no VecNormalize of .*: expected a VecNormalize"),
    (no_statistics, r"agent.zip: its agent saw standardised observations: expected .*vecnormalize.pkl, too"),
    (other_width, r"vecnormalize.pkl .*: expected 5 columns, found \[4\] and \[4\]"),
    (objects_in_an_array, r"vecnormalize.pkl .*: expected an array of numbers, found one of something else"),
    (negative_variance, r"vecnormalize.pkl .*: expected finite means, positive variances"),
    (truncated_statistics, r"vecnormalize.pkl is no VecNormalize"),
    (other_data(action_space=box(["-inf"] * 2, ["inf"] * 2)), r"its actions have no bounds: low is \[-inf -inf\]"),
    (other_data(action_space=box(["1."] * 2, ["-1."] * 2)), r"its actions have no bounds: low is \[1. 1.\], high is"),
    (other_data(action_space=box(["-1."] * 3, ["1."] * 3)), "its action_space has 3 components, its actor 2"),
    (other_data(action_space={":type:": "<class 'gym.spaces.discrete.Discrete'>"}), "its action_space is no Box"),
    (other_data(observation_space=dict_of("{}")), "expected a Box or a Dict of observation, .* found keys none"),
    (other_data(observation_space=dict_of(GOALS.replace("observation", "state"))), "found keys desired_goal, state"),
    (
        other_data(observation_space=dict_of(GOALS.replace("(3,)", "(3, 8, 8)"))),
        "expected vectors, found 'desired_goal'",
    ),
    (
        other_data(
            observation_space=dict_of("{'observation': Discrete(3), 'desired_goal': Box(-1.0, 1.0, (3,), float32)}")
        ),
        "expected vectors, found 'observation' of Discrete",
    ),
    (other_data(observation_space=dict_of(GOALS)), "its observation_space has 6 columns, its actor 5"),
    (statistics_of_some_parts, "expected statistics of desired_goal, observation, found those of observation"),
    (other_data(policy_kwargs=GELU), "its activation is 'GELU'; expected one of ReLU, Tanh"),
    (no_zip, "agent.zip is no agent of Stable-Baselines3 that can be read: File is not a zip file"),
    (damaged, "agent.zip is no agent of Stable-Baselines3 that can be read"),
    (no_weights, "expected a member policy.pth"),
    (old_torch, "agent.zip is no agent of Stable-Baselines3 that can be read"),
    (not_finite, "a layer holds numbers that are not finite"),
    (features, "it has a features extractor of its own"),
    (discrete_sde, "expected an actor of PPO, A2C, TRPO, SAC, TQC, TD3 or DDPG"),
    (storage_of_many_layers, "expected an actor of at most 67108864 bytes, found more"),
    (transposed, r"action_net.weight: expected a whole, contiguous tensor of 2 dimensions"),
]


@pytest.mark.parametrize(("spoil", "said"), HOSTILE, ids=[getattr(spoil, "__name__", "") for spoil, _ in HOSTILE])
def test_a_file_that_is_no_agent_is_refused_and_nothing_in_it_runs(tmp_path, packages, spoil, said):
    spoil(tmp_path, on_policy()[0], packages)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}.*{said}"):
        read_policy(tmp_path / "agent.zip")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("size", [0, 1, 30, 200, 400])
def test_any_damage_to_the_pickles_is_one_clear_error_or_harmless(tmp_path, packages, size):
    policy, _ = on_policy()
    write_agent(tmp_path / "agent.zip", policy, data_of(_last_original_obs=[0.0]))
    whole = pickle.dumps(vec_normalize(packages, np.zeros(5), np.ones(5)))
    rng = np.random.default_rng(size)
    for _ in range(100):
        content = bytearray(whole[: len(whole) - size])
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(0, 256)
        (tmp_path / "vecnormalize.pkl").write_bytes(content)
        with contextlib.suppress(ValueError):  # and nothing else
            read_policy(tmp_path / "agent.zip")
