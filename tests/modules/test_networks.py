"""Shapes, presets, initialisation and statistics of the networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded

from torchrl_smore.modules import (
    ConcatMLP,
    GaussianHead,
    Standardize,
    goal_specs,
    make_discriminator,
    make_networks,
    make_pixel_networks,
)

OBSERVATION, G, A = 5, 3, 4
SPECS = goal_specs(OBSERVATION, G, A)


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def test_the_mlp_concatenates_its_inputs_and_keeps_batch_dimensions():
    mlp = ConcatMLP(OBSERVATION + G, 2, (7, 6))
    x, g = torch.randn(3, 4, OBSERVATION), torch.randn(3, 4, G)
    first, second, last = linears(mlp)
    expected = last(second(first(torch.cat([x, g], -1)).relu()).relu())
    torch.testing.assert_close(mlp(x, g), expected)
    assert [layer.weight.shape for layer in (first, second, last)] == [(7, OBSERVATION + G), (6, 7), (2, 6)]


def test_layer_norm_stands_before_each_relu_of_the_hidden_layers_only():
    kinds = [type(layer) for layer in ConcatMLP(3, 1, (4, 4), layer_norm=True).layers]
    hidden = [nn.Linear, nn.LayerNorm, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Linear]


def test_no_hidden_layer_is_a_linear_map():
    assert [type(layer) for layer in ConcatMLP(3, 1, ()).layers] == [nn.Linear]


def test_orthogonal_weights_have_gain_sqrt_two_and_zero_biases():
    for layer in linears(ConcatMLP(6, 2, (8, 8), orthogonal=True)):
        w = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        torch.testing.assert_close(w @ w.T, 2.0 * torch.eye(len(w)), atol=1e-5, rtol=0.0)
        assert (layer.bias == 0.0).all()


@pytest.mark.parametrize("orthogonal", [False, True])
def test_a_reset_draws_each_member_of_a_stacked_ensemble_for_itself(orthogonal):
    mlp = ConcatMLP(6, 2, (8,), orthogonal=orthogonal)
    for layer in linears(mlp):
        layer.weight = nn.Parameter(torch.zeros(3, *layer.weight.shape))
        layer.bias = nn.Parameter(torch.ones(3, *layer.bias.shape))
    mlp.reset_parameters()
    for layer in linears(mlp):
        bound = 1.0 / math.sqrt(layer.weight.shape[-1])
        for member in layer.weight:
            if orthogonal:
                w = member if member.shape[0] <= member.shape[1] else member.T
                torch.testing.assert_close(w @ w.T, 2.0 * torch.eye(len(w)), atol=1e-5, rtol=0.0)
            else:
                assert 0.5 * bound < member.abs().max() <= bound
        assert not torch.equal(layer.weight[0], layer.weight[1])
        assert (layer.bias == 0.0).all() if orthogonal else layer.bias.abs().max() <= bound


def test_the_gaussian_head_has_a_tanh_mean_and_a_clipped_log_std():
    head = GaussianHead(nn.Linear(OBSERVATION, A), A)
    x = 10.0 * torch.randn(6, OBSERVATION)
    loc, scale = head(x)
    torch.testing.assert_close(loc, head.trunk(x).tanh())
    assert loc.abs().max() <= 1.0
    assert scale.shape == loc.shape
    assert (scale == 1.0).all()
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([-100.0, 100.0, 1.0, -5.0]))
    expected = torch.tensor([-5.0, 2.0, 1.0, -5.0]).exp()
    torch.testing.assert_close(head(x)[1], expected.expand(6, A))
    head.reset_parameters()
    assert (head.log_std == 0.0).all()


def test_the_smallest_deviation_of_the_gaussian_head_is_in_the_unit_of_its_actions():
    head = GaussianHead(nn.Linear(OBSERVATION, 2), 2, torch.tensor([-4.0, 0.0]), torch.tensor([4.0, 1.0]), min_std=0.1)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([-3.0, -2.0]))
    # half ranges 4 and 0.5; e^-3 lies below 0.1, e^-2 above
    expected = torch.tensor([4.0 * 0.1, 0.5 * math.exp(-2.0)])
    torch.testing.assert_close(head(torch.zeros(3, OBSERVATION))[1], expected.expand(3, 2))


@pytest.mark.parametrize("min_std", [0.0, -0.1, 7.4, math.nan])
def test_a_smallest_deviation_outside_its_range_is_refused(min_std):
    with pytest.raises(ValueError, match=r"min_std must lie in \(0, 7.39\)"):
        make_networks(*goal_specs(OBSERVATION, 2, A), min_std=min_std)


def test_every_maker_of_networks_hands_the_smallest_deviation_to_its_actor():
    specs = goal_specs(OBSERVATION, 2, A)
    for made in (make_networks(*specs, min_std=0.3), make_pixel_networks(specs[1], pixels=36, min_std=0.3)):
        heads = [module for module in made.actor.modules() if isinstance(module, GaussianHead)]
        assert [head.min_std for head in heads] == [0.3]


def test_standardize_applies_its_statistics_and_leaves_other_inputs_alone():
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])
    module = Standardize(ConcatMLP(4, 1, ()), [(mean, std), None])
    x, g = torch.randn(3, 2), torch.randn(3, 2)
    torch.testing.assert_close(module(x, g), module.network((x - mean) / std, g))
    mean.zero_()  # the statistics were copied
    assert module.mean_0.tolist() == [1.0, -2.0]


def test_statistics_are_part_of_the_state_and_are_not_trained():
    statistics = {"observation": (torch.full((OBSERVATION,), 3.0), torch.full((OBSERVATION,), 2.0))}
    with_statistics = make_networks(*SPECS, hidden=(6,), statistics=statistics)
    other = make_networks(
        *SPECS,
        hidden=(6,),
        statistics={"observation": (torch.zeros(OBSERVATION), torch.ones(OBSERVATION))},
        num_score_nets=2,
    )
    for network, fresh in zip(
        [with_statistics.actor, with_statistics.value, *with_statistics.score], [other.actor, other.value, *other.score]
    ):
        state = network.state_dict()
        assert sum(name.endswith(("mean_0", "std_0")) for name in state) == 2
        assert not any("mean" in name or "std_0" in name for name, _ in network.named_parameters())
        fresh.load_state_dict(state)
        assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())
    x, g = torch.randn(4, OBSERVATION), torch.randn(4, G)
    module = with_statistics.value.module
    torch.testing.assert_close(module(x, g), module.network((x - 3.0) / 2.0, g))


def test_action_statistics_reach_the_score_alone():
    statistics = {"action": (torch.zeros(A), torch.full((A,), 2.0))}
    networks = make_networks(*SPECS, hidden=(6,), statistics=statistics)
    assert all("module.std_2" in score.state_dict() for score in networks.score)
    assert not any("std_" in name for name in networks.value.state_dict())


def test_the_specs_have_the_sizes_and_bounds_of_the_task():
    observation, action = SPECS
    assert {key: spec.shape for key, spec in observation.items()} == {
        "observation": (OBSERVATION,),
        "achieved_goal": (G,),
        "desired_goal": (G,),
    }
    assert action.shape == (A,)
    assert (action.space.low == -1.0).all()
    assert (action.space.high == 1.0).all()


@pytest.mark.parametrize("batch", [(), (7,), (2, 7)], ids=str)
def test_networks_read_and_write_the_documented_keys_and_shapes(batch):
    networks = make_networks(*SPECS, hidden=(6,))
    state = {"observation": torch.randn(*batch, OBSERVATION), "desired_goal": torch.randn(*batch, G)}
    assert networks.value(**state).shape == (*batch, 1)
    for score in networks.score:
        assert score.in_keys == ["observation", "desired_goal", "action"]
        assert score.out_keys == ["score"]
        assert score(**state, action=torch.randn(*batch, A)).shape == (*batch, 1)
    assert networks.value.out_keys == ["state_value"]
    assert networks.actor.in_keys == ["observation", "desired_goal"]
    distribution = networks.actor.get_dist(TensorDict(state, batch_size=batch))
    assert distribution.log_prob(torch.zeros(*batch, A)).shape == batch
    assert distribution.batch_shape == batch


@pytest.mark.parametrize(
    ("preset", "depth", "norm", "orthogonal"), [("paper", 2, False, False), ("official", 3, True, True)]
)
def test_the_presets_are_those_of_the_paper_and_of_the_official_code(preset, depth, norm, orthogonal):
    networks = make_networks(*SPECS, preset=preset)
    for network in (networks.actor, networks.value, *networks.score):
        layers = linears(network)
        assert len(layers) == depth + 1
        assert [layer.out_features for layer in layers[:-1]] == [256] * depth
        assert all((layer.bias == 0.0).all() for layer in layers) == orthogonal
        has_norm = any(isinstance(layer, nn.LayerNorm) for layer in network.modules())
        assert has_norm == (norm and network is networks.value)
    assert len(networks.score) == 2


def test_preset_values_can_be_overridden():
    networks = make_networks(*SPECS, preset="official", hidden=(9,), value_layer_norm=False, num_score_nets=3)
    assert len(networks.score) == 3
    assert [layer.out_features for layer in linears(networks.value)] == [9, 1]
    assert not any(isinstance(layer, nn.LayerNorm) for layer in networks.value.modules())
    networks = make_networks(*SPECS, hidden=(9,), value_layer_norm=True)
    assert any(isinstance(layer, nn.LayerNorm) for layer in networks.value.modules())


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("part", ["score", "value", "actor"])
def test_layer_norm_can_be_had_in_each_network_alone(preset, part):
    # official has it in the value network unless told otherwise
    options = {"value_layer_norm": False, f"{part}_layer_norm": True}
    networks = make_networks(*SPECS, preset=preset, hidden=(9, 8), **options)
    every = {"first": networks.score[0], "second": networks.score[1], "value": networks.value, "actor": networks.actor}
    norms = {
        name: [layer.normalized_shape for layer in network.modules() if isinstance(layer, nn.LayerNorm)]
        for name, network in every.items()
    }
    having = {"score": {"first", "second"}}.get(part, {part})
    assert norms == {name: [(9,), (8,)] if name in having else [] for name in norms}


def test_twins_are_initialised_differently():
    for preset in ("paper", "official"):
        first, second = make_networks(*SPECS, preset=preset, hidden=(6,)).score
        for mine, other in zip(linears(first), linears(second)):
            assert not torch.equal(mine.weight, other.weight)


def test_an_unknown_preset_and_a_missing_entry_are_refused():
    with pytest.raises(ValueError, match=r"unknown preset 'papers'.*Did you mean 'paper'"):
        make_networks(*SPECS, preset="papers")
    observation, action = goal_specs(OBSERVATION, G, A)
    del observation["desired_goal"]
    with pytest.raises(KeyError, match="desired_goal"):
        make_networks(observation, action)


def test_the_mean_covers_the_box_of_the_action_spec_and_the_score_sees_it_scaled():
    observation, _ = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)
    low, high = torch.tensor([-2.0, 1.0]), torch.tensor([2.0, 5.0])
    built = make_networks(observation, Bounded(low, high, (2,)), hidden=(4,))
    head = built.actor.module[0].module
    state = (torch.zeros(1, 3), torch.zeros(1, 2))
    last = head.trunk.layers[-1]
    for bias, expected in ((-50.0, low), (0.0, torch.tensor([0.0, 3.0])), (50.0, high)):
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(bias)
        loc, scale = head(*state)
        torch.testing.assert_close(loc[0], expected)
        torch.testing.assert_close(scale[0], torch.tensor([2.0, 2.0]))  # half of the range at log std 0
    score, network = built.score[0].module, built.score[0].module.network
    torch.testing.assert_close(score(*state, high[None]), network(*state, torch.ones(1, 2)))
    torch.testing.assert_close(score(*state, low[None]), network(*state, -torch.ones(1, 2)))


def test_actions_in_the_unit_box_cost_nothing_more():
    built = make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=2), hidden=(4,))
    assert isinstance(built.score[0].module, ConcatMLP)
    assert not list(built.actor.buffers())


@pytest.mark.parametrize(("low", "high"), [(-1.0, math.inf), (1.0, 1.0), (2.0, 1.0)], ids=str)
def test_bounds_that_are_no_box_are_refused(low, high):
    observation, _ = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)
    with pytest.raises(ValueError, match="finite bounds"):
        make_networks(observation, Bounded(torch.full((2,), low), torch.full((2,), high), (2,)))


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"observations": (torch.zeros(3), torch.ones(3))}, "Did you mean 'observation'"),
        ({"observation": (torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))}, "positive deviations"),
        ({"observation": (torch.zeros(3), torch.tensor([1.0, math.nan, 1.0]))}, "finite"),
        ({"desired_goal": (torch.zeros(1), torch.ones(1))}, r"shape \[2\] each, got mean \[1\]"),
        ({"desired_goal": torch.zeros(3)}, "of 'desired_goal' must be a mean and a deviation, got tensor"),
        ({"desired_goal": torch.zeros(2)}, r"shape \[2\] each, got mean \[\]"),
        ({"desired_goal": 3.0}, "must be a mean and a deviation, got 3.0"),
        ({"desired_goal": {"mean": [0.0] * 2, "std": [1.0] * 2}}, "must be a mean and a deviation, got {"),
        ({"desired_goal": [[0.0, 0.0]]}, "must be a mean and a deviation"),
    ],
    ids=["key", "zero", "nan", "width", "no pair", "two numbers", "one number", "by name", "one alone"],
)
def test_statistics_that_do_not_fit_are_refused(statistics, message):
    with pytest.raises(ValueError, match=message):
        make_networks(*goal_specs(observation_dim=3, goal_dim=2, action_dim=2), statistics=statistics)


@pytest.mark.parametrize(
    "pair",
    [
        [[0.0, 1.0, 2.0], [1.0, 2.0, 4.0]],
        tuple(torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 4.0]]).double()),
        torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 4.0]]),
        np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 4.0]]),
    ],
    ids=["lists", "tensors of float64", "one tensor", "one array"],
)
def test_statistics_of_a_file_or_of_another_dtype_become_float32(pair):
    networks = make_networks(*SPECS, hidden=(6,), statistics={"desired_goal": pair})
    torch.testing.assert_close(networks.value.module.mean_1, torch.tensor([0.0, 1.0, 2.0]), rtol=0.0, atol=0.0)
    torch.testing.assert_close(networks.value.module.std_1, torch.tensor([1.0, 2.0, 4.0]), rtol=0.0, atol=0.0)
    batch = TensorDict({"observation": torch.zeros(3, OBSERVATION), "desired_goal": torch.zeros(3, G)}, [3])
    assert networks.value(batch)["state_value"].dtype == torch.float32
    discriminator = make_discriminator(SPECS[0], hidden=(6,), statistics={"desired_goal": pair})
    assert discriminator.module.mean_0.dtype == torch.float32


def test_a_clip_that_would_cut_scaled_actions_is_refused():
    observation, _ = SPECS
    wide = Bounded(-2.0, 2.0, (A,))
    with pytest.raises(ValueError, match=r"clip=0.5 would cut actions, .*: expected 1 or more"):
        make_networks(observation, wide, clip=0.5)
    make_networks(observation, Bounded(-1.0, 1.0, (A,)), clip=0.5)
    score = make_networks(observation, wide, hidden=(6,), clip=1.0).score[0]
    rows = TensorDict({"observation": torch.zeros(2, OBSERVATION), "desired_goal": torch.zeros(2, G)}, [2])
    one, other = score(rows.set("action", torch.tensor([[1.2], [2.0]]).expand(2, A)))["score"]
    assert one != other


def test_standardised_inputs_are_clipped_unless_told_not_to():
    mean, std = torch.tensor([1.0]), torch.tensor([2.0])
    inputs = torch.tensor([[1.0], [9.0], [100.0], [-100.0]])
    seen = []
    network = ConcatMLP(1, 1, ())
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for clip in (5.0, 1.5, None):
        Standardize(network, [(mean, std)], clip)(inputs)
    assert [rows.flatten().tolist() for rows in seen] == [
        [0.0, 4.0, 5.0, -5.0],
        [0.0, 1.5, 1.5, -1.5],
        [0.0, 4.0, 49.5, -50.5],
    ]
    with pytest.raises(ValueError, match="clip must be positive or None, got 0"):
        Standardize(network, [(mean, std)], 0.0)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_an_input_of_another_width_than_its_statistics_is_refused(width):
    module = Standardize(ConcatMLP(3, 1, ()), [(torch.zeros(3), torch.ones(3))])
    with pytest.raises(ValueError, match=rf"expected input 0 of 3 columns, got \[5, {width}\]"):
        module(torch.zeros(5, width))


def test_an_action_spec_may_be_the_only_leaf_of_a_composite_one_and_is_never_discrete():
    observation = Composite(observation=Unbounded([3]), desired_goal=Unbounded([2]))
    actor = make_networks(observation, Composite(action=Bounded(-2.0, 2.0, [2]))).actor
    assert actor[0].module.high.tolist() == [2.0, 2.0]
    for spec in (OneHot(4), Categorical(4), Composite(agents=Composite(action=OneHot(4)))):
        with pytest.raises(ValueError, match="expected an action_spec of continuous actions"):
            make_networks(observation, spec)
    with pytest.raises(ValueError, match=r"expected one action_spec, got one of \['a', 'b'\]"):
        make_networks(observation, Composite(a=Bounded(-1, 1, [1]), b=Bounded(-1, 1, [1])))
