"""The discriminator network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchrl_smore.modules import TanhMLP, goal_specs, make_discriminator

SPEC, _ = goal_specs(5, 3, 4)


def test_the_mlp_concatenates_its_inputs_and_is_tanh_between_layers():
    mlp = TanhMLP(6, 2, (7, 5))
    a, b = torch.randn(3, 4, 2), torch.randn(3, 4, 4)
    first, second, last = (layer for layer in mlp.layers if isinstance(layer, nn.Linear))
    expected = last(second(first(torch.cat([a, b], -1)).tanh()).tanh())
    torch.testing.assert_close(mlp(a, b), expected)


def test_a_reset_draws_each_member_of_a_stacked_ensemble_for_itself():
    mlp = TanhMLP(4, 1, (6,))
    for layer in (layer for layer in mlp.layers if isinstance(layer, nn.Linear)):
        layer.weight = nn.Parameter(torch.zeros(2, *layer.weight.shape))
    mlp.reset_parameters()
    weight = mlp.layers[0].weight
    assert not torch.equal(weight[0], weight[1])
    assert 0.25 < weight.abs().max() <= 0.5


def test_the_discriminator_has_the_layers_and_keys_of_the_code():
    network = make_discriminator(SPEC)
    assert network.in_keys == ["achieved_goal", "desired_goal"]
    assert network.out_keys == ["logit"]
    widths = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert widths == [256, 256, 256, 1]
    assert network(achieved_goal=torch.randn(2, 3), desired_goal=torch.randn(2, 3)).shape == (2, 1)


@pytest.mark.parametrize(("options", "bound"), [({}, 5.0), ({"clip": 0.5}, 0.5), ({"clip": None}, math.inf)], ids=str)
def test_goal_statistics_standardise_both_inputs(options, bound):
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 1.0, 0.5])
    network = make_discriminator(SPEC, hidden=(4,), statistics={"desired_goal": (mean, std)}, **options)
    a, g = 9.0 * torch.randn(2, 3), torch.randn(2, 3)
    expected = network.module.network(*(((x - mean) / std).clamp(-bound, bound) for x in (a, g)))
    torch.testing.assert_close(network(achieved_goal=a, desired_goal=g), expected)


def test_statistics_of_other_entries_are_not_looked_at():
    assert isinstance(make_discriminator(SPEC, hidden=(4,), statistics={"actions seen": 3}).module, TanhMLP)
