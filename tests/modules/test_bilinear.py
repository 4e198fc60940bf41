"""Separable critics and the networks of contrastive RL."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_smore.modules import (
    GELUMLP,
    BilinearScore,
    ConcatMLP,
    FixedStdHead,
    PairEmbedding,
    goal_specs,
    make_contrastive_networks,
)

SPECS = goal_specs(5, 3, 4)


def test_the_mlp_has_gelu_then_layer_norm_on_hidden_layers_only():
    kinds = [type(layer) for layer in GELUMLP(3, 2, (4, 4), layer_norm=True).layers]
    assert kinds == [nn.Linear, nn.GELU, nn.LayerNorm] * 2 + [nn.Linear]
    assert [type(layer) for layer in GELUMLP(3, 2, (4,)).layers] == [nn.Linear, nn.GELU, nn.Linear]


def test_weights_are_uniform_by_fan_average_and_the_last_layer_is_scaled():
    mlp = GELUMLP(20, 10, (50,), output_scale=0.01)
    first, last = mlp.layers[0], mlp.layers[-1]
    bound = math.sqrt(6.0 / 70)
    assert 0.9 * bound < first.weight.abs().max() <= bound
    bound = math.sqrt(0.06 / 60)
    assert 0.9 * bound < last.weight.abs().max() <= bound
    assert (first.bias == 0.0).all()
    assert (last.bias == 0.0).all()


def test_the_pair_embeds_the_last_input_by_psi_and_the_others_by_phi():
    pair = PairEmbedding(ConcatMLP(7, 6, (4,)), ConcatMLP(2, 6, (4,)))
    s, a, g = torch.randn(3, 5), torch.randn(3, 2), torch.randn(3, 2)
    out = pair(s, a, g)
    assert out.shape == (3, 2, 6)
    torch.testing.assert_close(out[:, 0], pair.phi(s, a))
    torch.testing.assert_close(out[:, 1], pair.psi(g))


@pytest.mark.parametrize("scaled", [False, True])
def test_the_bilinear_score_is_the_inner_product(scaled):
    pair = PairEmbedding(ConcatMLP(7, 6, (4,)), ConcatMLP(2, 6, (4,)))
    s, a, g = torch.randn(3, 5), torch.randn(3, 2), torch.randn(3, 2)
    expected = (pair.phi(s, a) * pair.psi(g)).sum(-1, keepdim=True) / (6**0.5 if scaled else 1.0)
    torch.testing.assert_close(BilinearScore(pair, scaled=scaled)(s, a, g), expected)


def test_the_actor_head_is_linear_with_a_constant_deviation():
    head = FixedStdHead(nn.Linear(5, 4), 0.15)
    x = 100.0 * torch.randn(6, 5)
    loc, scale = head(x)
    torch.testing.assert_close(loc, head.trunk(x))
    torch.testing.assert_close(scale, torch.full((6, 4), 0.15))


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deviation_that_is_none_is_refused(std):
    with pytest.raises(ValueError, match=f"std must be positive and finite, got {std}"):
        make_contrastive_networks(*SPECS, std=std)


def test_the_networks_are_those_of_ogbench():
    networks = make_contrastive_networks(*SPECS)
    for critic in networks.critic:
        assert critic.in_keys == ["observation", "action", "desired_goal"]
        widths = [layer.out_features for layer in critic.module.phi.modules() if isinstance(layer, nn.Linear)]
        assert widths == [512, 512, 512, 512]
    assert networks.value.in_keys == ["observation", "desired_goal"]
    assert len(networks.critic) == 2
    first, second = (critic.module.psi.layers[0].weight for critic in networks.critic)
    assert not torch.equal(first, second)
    batch = TensorDict({"observation": torch.randn(2, 5), "desired_goal": torch.randn(2, 3)}, [2])
    dist = networks.actor.get_dist(batch)
    assert dist.mean.abs().max() < 0.5
    assert (dist.stddev == 1.0).all()
    assert networks.value(batch)["embedding"].shape == (2, 2, 512)
    assert not any(isinstance(m, nn.LayerNorm) for m in networks.actor.modules())


def test_a_reset_draws_each_member_of_a_stacked_ensemble_for_itself():
    mlp = GELUMLP(4, 2, (6,))
    for layer in (layer for layer in mlp.layers if isinstance(layer, nn.Linear)):
        layer.weight = nn.Parameter(torch.zeros(2, *layer.weight.shape))
    mlp.reset_parameters()
    weight = mlp.layers[0].weight
    assert not torch.equal(weight[0], weight[1])
    assert 0.4 < weight.abs().max() <= math.sqrt(6.0 / 10)
