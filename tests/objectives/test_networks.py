"""Parameters lent to a functional network for a call: results as by TensorDict.to_module, and no traces left."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictParams, TensorDictSequential
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.modules import (
    IndependentNormal,
    NormalParamExtractor,
    ProbabilisticActor,
    SafeModule,
    TanhModule,
    TanhNormal,
)
from torchrl.objectives import DDPGLoss, TD3BCLoss

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import AWRActorLoss, ExpectileValueLoss, ScoreLoss, SMORELoss
from torchrl_smore.objectives._networks import action_bounds, lent, members, output_of
from torchrl_smore.trainers import ActorPolicy
from torchrl_smore.trainers.evaluation import action_range_of


class Scaled(nn.Module):
    """A layer below a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.layer(x * self.scale)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return TensorDictModule(Scaled(), ["x"], ["y"])


def parameters_of(network, factor):
    return TensorDictParams(TensorDict.from_module(network).clone().apply(lambda p: nn.Parameter(p.detach() * factor)))


def run(network, x):
    return network(TensorDict({"x": x}, [len(x)]))["y"]


def test_the_network_computes_with_what_it_is_lent_and_then_has_its_own_again(network):
    x, own = torch.randn(5, 3), dict(network.named_parameters())
    params = parameters_of(network, 3.0)
    layer = network.module.layer
    # scale 2 * 3, weight and bias thrice
    expected = (6.0 * x) @ (3.0 * layer.weight.T) + 3.0 * layer.bias
    before = run(network, x)
    with lent(network, params):
        torch.testing.assert_close(run(network, x), expected)
        run(network, x).sum().backward()
    assert torch.equal(run(network, x), before)
    assert all(found is own[name] for name, found in network.named_parameters())
    assert all(p.grad is None for p in own.values())
    assert params["module", "layer", "weight"].grad.abs().sum() > 0


def test_they_are_given_back_after_an_error(network):
    own = dict(network.named_parameters())
    with pytest.raises(KeyError), lent(network, parameters_of(network, 2.0)):
        raise KeyError
    assert all(found is own[name] for name, found in network.named_parameters())


def test_members_of_an_ensemble_get_their_own_gradients(network):
    x = torch.randn(5, 3)
    stacked = torch.stack([TensorDict.from_module(network).data.clone() * factor for factor in (1.0, 2.0)])
    params = TensorDictParams(stacked.apply(nn.Parameter))
    outs = []
    for member in members(params):
        with lent(network, member):
            outs.append(run(network, x))
    weight, bias = network.module.layer.weight, network.module.layer.bias
    torch.testing.assert_close(outs[0], (2.0 * x) @ weight.T + bias)
    torch.testing.assert_close(outs[1], (4.0 * x) @ (2.0 * weight.T) + 2.0 * bias)
    outs[1].sum().backward()
    gradient = params["module", "layer", "weight"].grad
    assert gradient[0].abs().sum() == 0.0
    assert gradient[1].abs().sum() > 0.0


def test_a_copy_of_a_network_has_places_of_its_own(network):
    x, params = torch.randn(5, 3), parameters_of(network, 3.0)
    with lent(network, params):
        expected = run(network, x)
    other = copy.deepcopy(network)
    with lent(other, params):
        torch.testing.assert_close(run(other, x), expected)
        assert not torch.equal(run(network, x), expected)


def test_what_does_not_match_is_left_to_tensordict(network):
    x = torch.randn(5, 3)
    # as many entries, one of them elsewhere than the cached places say
    with lent(network, parameters_of(network, 1.0)):
        pass
    network.module.layer = nn.Sequential(nn.Linear(3, 2))
    params = parameters_of(network, 3.0)
    layer = network.module.layer[0]
    expected = (6.0 * x) @ (3.0 * layer.weight.T) + 3.0 * layer.bias
    with lent(network, params):
        torch.testing.assert_close(run(network, x), expected)
    (member,) = members(TensorDictParams(TensorDict.stack([params.data]).apply(nn.Parameter)))
    assert isinstance(member, dict)
    with lent(network, member):
        torch.testing.assert_close(run(network, x), expected)


class Tied(Scaled):
    """The same layer under two names, of which a walk over modules finds one and a TensorDict both."""

    def __init__(self):
        super().__init__()
        self.again = self.layer

    def forward(self, x):
        return self.again(x * self.scale)


@pytest.mark.parametrize(("module", "walks"), [(Scaled, False), (Tied, True)], ids=["found", "left to tensordict"])
def test_a_traced_call_computes_with_what_it_is_lent(module, walks, monkeypatch):
    torch.manual_seed(0)
    network, x = TensorDictModule(module(), ["x"], ["y"]), torch.randn(5, 3)
    params, layer = parameters_of(network, 3.0), network.module.layer
    expected, own = (6.0 * x) @ (3.0 * layer.weight.T) + 3.0 * layer.bias, dict(network.named_parameters())
    walked, to_module = [], TensorDictParams.to_module

    def noted(*args, **options):
        walked.append(True)
        return to_module(*args, **options)

    monkeypatch.setattr(TensorDictParams, "to_module", noted)

    def function(x):
        with lent(network, params):
            return network(TensorDict({"x": x}, [5]))

    torch._dynamo.reset()
    out = torch.compile(function, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(out["y"], expected)
    assert bool(walked) == walks
    if not walks:
        assert all(found is own[name] for name, found in network.named_parameters())


class Named(nn.Module):
    """Gives its output by name."""

    def forward(self, x):
        return {"y": 3.0 * x}


@pytest.mark.parametrize(
    "made",
    [
        lambda: TensorDictModule(Named(), ["x"], ["y"]),
        lambda: TensorDictModule(lambda x: (3.0 * x,), ["x"], ["y"]),
        lambda: TensorDictModule(lambda x: (0.0 * x, 3.0 * x), ["x"], ["other", "y"]),
        lambda: TensorDictModule(lambda *, of: 3.0 * of, {"of": "x"}, ["y"]),
        lambda: TensorDictModule(lambda x, factor: factor * x, ["x"], ["y"], method_kwargs={"factor": 3.0}),
    ],
    ids=["by name", "a tuple", "two outputs", "by keyword", "with arguments"],
)
def test_an_output_is_that_of_the_call_with_a_tensordict(made):
    x, network = torch.randn(5, 3), made()
    rows = TensorDict({"x": x, "beside": x}, [5])
    assert torch.equal(output_of(network, rows, "y"), 3.0 * x)
    assert torch.equal(network(rows.clone())["y"], 3.0 * x)
    assert list(rows.keys()) == ["x", "beside"]


def test_hooks_of_a_network_are_called_and_a_missing_input_is_named(network):
    rows, seen = TensorDict({"x": torch.randn(5, 3)}, [5]), []
    network.register_forward_hook(lambda module, args, out: seen.append(list(out.keys())))
    plain = TensorDictModule(network.module, ["x"], ["y"])
    assert torch.equal(output_of(network, rows, "y"), output_of(plain, rows, "y"))
    assert len(seen) == 1
    with pytest.raises(KeyError, match="x"):
        output_of(plain, TensorDict({}, [5]), "y")


class Dropped(nn.Module):
    """Half of its input at random, summed with the weight, which is alike in all members."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return (self.weight * self.dropout(x)).sum(-1, keepdim=True)


@pytest.mark.parametrize("randomness", [None, "same", "different"])
def test_members_draw_apart_or_alike_as_torchrl_is_told(randomness):
    torch.manual_seed(0)
    loss = ScoreLoss([TensorDictModule(Dropped(), ["x"], ["score"]) for _ in range(2)])
    assert not loss.deactivate_vmap
    if randomness is not None:
        loss.set_vmap_randomness(randomness)
    first, second = loss._call("score_network", TensorDict({"x": torch.rand(8, 64)}, [8]), "score")
    assert torch.equal(first, second) == (randomness == "same")


def test_score_networks_that_share_parameters_are_refused():
    networks = make_networks(*goal_specs(3, 2, 2), hidden=(4,))
    trunk = TensorDictModule(nn.Linear(3, 4), ["observation"], ["h"])
    scores = [TensorDictSequential(trunk, TensorDictModule(nn.Linear(4, 1), ["h"], ["score"])) for _ in range(2)]
    with pytest.raises(ValueError, match=r"the 2 networks of score_network share parameters.*share_encoder"):
        SMORELoss(networks.actor, scores, networks.value)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(self.first(x)))


def test_a_score_network_with_one_parameter_in_two_places_stands_alone():
    networks = make_networks(*goal_specs(3, 2, 2), hidden=(4,))
    tied = [TensorDictModule(Tied(), ["observation"], ["score"]) for _ in range(2)]
    for score in (tied, tied[0]):
        with pytest.raises(ValueError, match="a network of score_network has one parameter in two places"):
            SMORELoss(networks.actor, score, networks.value, num_score_nets=2)
    assert SMORELoss(networks.actor, tied[0], networks.value, num_score_nets=1) is not None


def test_of_what_is_no_ensemble_one_network_is_taken_and_not_several():
    networks = make_networks(*goal_specs(3, 2, 2), hidden=(4,))
    values = [networks.value, make_networks(*goal_specs(3, 2, 2), hidden=(4,)).value]
    with pytest.raises(ValueError, match="ExpectileValueLoss takes one value_network, got a sequence of 2"):
        ExpectileValueLoss(values)
    with pytest.raises(ValueError, match="SMORELoss takes one value_network, got a sequence of 2"):
        SMORELoss(networks.actor, networks.score, values)
    assert ExpectileValueLoss(values[:1]).value_network_params.ndim == 0


def test_members_made_of_one_network_are_drawn_as_it_draws_itself():
    networks = make_networks(*goal_specs(3, 2, 2), preset="official", hidden=(32, 32), num_score_nets=1)
    given = copy.deepcopy(networks.score[0])
    params = ScoreLoss(networks.score[0], num_score_nets=2).score_network_params
    weight, bias = params["module", "layers", "2", "weight"], params["module", "layers", "2", "bias"]
    # orthogonal with gain sqrt(2): w w^T = 2, and no bias
    torch.testing.assert_close(weight @ weight.mT, 2.0 * torch.eye(32).expand(2, 32, 32), rtol=0.0, atol=1e-4)
    assert (bias == 0.0).all()
    assert not torch.equal(weight[0], weight[1])
    # what was given is left as it was
    for own, before in zip(networks.score[0].parameters(), given.parameters()):
        assert torch.equal(own, before)


def test_members_made_of_pytorchs_layers_are_drawn_over_the_range_of_the_one_given():
    network = TensorDictModule(nn.Linear(400, 1), ["observation"], ["score"])
    # PyTorch's own draw is within 1 / 20 of 0
    nn.init.uniform_(network.module.weight, 0.3, 0.5)
    weight = ScoreLoss(network, num_score_nets=2).score_network_params["module", "weight"]
    assert weight.min() >= 0.3
    assert weight.max() <= 0.5
    assert not torch.equal(weight[0], weight[1])


def bounded_actor(name="action", **options):
    trunk = TensorDictModule(nn.Linear(3, 4), ["observation"], ["both"])
    split = TensorDictModule(lambda both: (both[..., :2], both[..., 2:].exp()), ["both"], ["loc", "scale"])
    return ProbabilisticActor(TensorDictSequential(trunk, split), in_keys=["loc", "scale"], out_keys=[name], **options)


def test_bounds_of_a_scale_are_not_those_of_actions():
    parts = Composite(loc=Unbounded((2,)), scale=Bounded(1e-4, 10.0, (2,)))
    network = nn.Sequential(nn.Linear(3, 4), NormalParamExtractor())
    head = SafeModule(network, ["observation"], ["loc", "scale"], spec=parts)
    keys = ["loc", "scale"]
    actor = ProbabilisticActor(head, keys, distribution_class=TanhNormal, spec=Bounded(-2.0, 3.0, (2,)))
    low, high = AWRActorLoss(actor)._action_range(torch.zeros(2))
    assert (low.tolist(), high.tolist()) == ([-2.0] * 2, [3.0] * 2)


def test_bounds_of_a_spec_are_those_of_the_key_that_the_loss_reads_as_its_action():
    loss = AWRActorLoss(bounded_actor(distribution_class=TanhNormal, spec=Bounded(-2.0, 3.0, (2,)), name="moved"))
    assert loss._action_range(torch.zeros(2)) == (-1.0, 1.0)
    loss.set_keys(action="moved")
    assert [bound.tolist() for bound in loss._action_range(torch.zeros(2))] == [[-2.0] * 2, [3.0] * 2]
    assert action_range_of(loss) == ([-2.0] * 2, [3.0] * 2)


@pytest.mark.parametrize(
    ("kind", "key"),
    # of TorchRL's DDPG the key of actions cannot be chosen
    [(TD3BCLoss, "action"), (TD3BCLoss, ("agent", "action")), (DDPGLoss, "action")],
    ids=["TD3+BC", "nested key", "DDPG"],
)
def test_the_bounds_of_a_squashed_deterministic_actor_are_those_of_its_module(kind, key):
    low, high = torch.tensor([-2.0, 0.0]), torch.tensor([3.0, 0.5])
    head = TensorDictModule(nn.Linear(3, 2), ["observation"], [key])
    actor = TensorDictSequential(head, TanhModule(in_keys=[key], low=low, high=high))
    value = TensorDictModule(nn.Linear(2, 1), [key], ["state_action_value"])
    if kind is DDPGLoss:
        loss = DDPGLoss(actor, value)
    else:
        loss = TD3BCLoss(actor, value, bounds=(-2.0, 3.0))
        loss.set_keys(action=key)
    assert action_range_of(loss) == ([-2.0, 0.0], [3.0, 0.5])
    policy = ActorPolicy(loss)
    with torch.no_grad():
        for parameter in loss.actor_network_params.parameters():
            parameter.fill_(50.0)
    np.testing.assert_allclose(policy({"observation": np.ones((4, 3))}), np.tile(high.numpy(), (4, 1)))


def test_the_bounds_of_a_module_that_squashes_something_else_are_not_those_of_actions():
    trunk = TensorDictModule(nn.Linear(3, 2), ["observation"], ["hidden"])
    squashed = TensorDictSequential(trunk, TanhModule(in_keys=["hidden"], low=-9.0, high=9.0))
    split = TensorDictModule(lambda hidden: (hidden, hidden.exp()), ["hidden"], ["loc", "scale"])
    parts = TensorDictSequential(squashed, split)
    actor = ProbabilisticActor(parts, ["loc", "scale"], distribution_class=IndependentNormal)
    assert AWRActorLoss(actor)._action_range(torch.zeros(2)) == (-1.0, 1.0)


@pytest.mark.parametrize("moved", [False, True], ids=["made there", "moved there"])
def test_bounds_that_an_actor_states_are_where_the_loss_is(moved):
    actor = bounded_actor(distribution_class=TanhNormal, distribution_kwargs={"low": -2.0, "high": 3.0})
    # another dtype is as much of a copy as another device is
    loss = AWRActorLoss(actor).double() if moved else AWRActorLoss(actor.double())
    with torch.profiler.profile() as recorded:
        loss._action_range(torch.zeros(2, dtype=torch.float64))
    assert not [event.key for event in recorded.key_averages() if "copy" in event.key]
    assert not [name for name in loss.state_dict() if name.endswith("_action")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"distribution_class": TanhNormal}, None),
        (
            {"distribution_class": TanhNormal, "distribution_kwargs": {"low": -2.0, "high": 3.0}},
            ([-2.0] * 2, [3.0] * 2),
        ),
        (
            {
                "distribution_class": TanhNormal,
                "distribution_kwargs": {"low": torch.tensor([-2.0, 0.0]), "high": torch.tensor([3.0, 9.0])},
                "spec": Bounded(-7.0, 7.0, (2,)),
            },
            ([-2.0, 0.0], [3.0, 9.0]),
        ),
        ({"distribution_class": IndependentNormal, "spec": Bounded(-7.0, 5.0, (2,))}, ([-7.0] * 2, [5.0] * 2)),
        ({"distribution_class": IndependentNormal, "spec": Bounded(-torch.inf, torch.inf, (2,))}, None),
        ({"distribution_class": IndependentNormal, "spec": Unbounded((2,))}, None),
    ],
    ids=["none", "numbers", "tensors before the spec", "spec", "infinite", "unbounded"],
)
def test_the_bounds_of_an_actor_are_those_of_its_distribution_or_of_its_spec(options, expected):
    actor = bounded_actor(**options)
    loss = AWRActorLoss(actor)
    low, high = ([-1.0] * 2, [1.0] * 2) if expected is None else expected
    found = loss._action_range(torch.zeros(2, dtype=torch.float64))
    for bound, value in zip(found, (low, high)):
        assert torch.as_tensor(bound).expand(2).tolist() == value
    if expected is not None:
        # as actions are
        assert {bound.dtype for bound in found} == {torch.float64}
    told = action_bounds(loss.actor_network, loss.actor_network_params)
    assert (told is None) == (expected is None)
    assert told is None or [bound.expand(2).tolist() for bound in told] == [low, high]
