"""Networks as plain values."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from torchrl_smore.modules import (
    BilinearScore,
    ConcatMLP,
    FixedStdHead,
    GaussianHead,
    PairEmbedding,
    Standardize,
    TanhMLP,
    build_network,
    describe_network,
)
from torchrl_smore.modules.bilinear import GELUMLP


def statistics():
    return [(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.5, 1.0])), None]


def mlp(outputs=2, **options):
    return ConcatMLP(5, outputs, (7, 6), **options)


NETWORKS = {
    "plain": lambda: mlp(),
    "layer norm, orthogonal, bf16": lambda: mlp(layer_norm=True, orthogonal=True, precision="bf16"),
    "actor": lambda: Standardize(GaussianHead(mlp(), 2), statistics()),
    "tanh": lambda: TanhMLP(5, 2, (7, 6), precision="bf16"),
    "least deviation": lambda: GaussianHead(mlp(), 2, min_std=2.0),
    "another clip": lambda: Standardize(mlp(), statistics(), 2.0),
    "no clip": lambda: Standardize(mlp(), statistics(), None),
    "fixed": lambda: FixedStdHead(GELUMLP(5, 2, (4,), output_scale=0.01), 0.15),
    "score": lambda: BilinearScore(PairEmbedding(GELUMLP(3, 4, (4,), layer_norm=True), GELUMLP(2, 4, ())), scaled=True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_built_from_its_description_with_its_state_computes_the_same(name):
    network = NETWORKS[name]()
    built = build_network(json.loads(json.dumps(describe_network(network))))
    built.load_state_dict(network.state_dict())
    inputs = 20 * torch.randn(8, 3), torch.randn(8, 2)
    for ours, theirs in zip(torch.utils._pytree.tree_leaves(built(*inputs)), as_leaves(network(*inputs))):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def as_leaves(out):
    return list(out) if isinstance(out, tuple) else [out]


def test_replaced_options_reach_every_part_that_has_them():
    built = build_network(describe_network(NETWORKS["actor"]()), matmul="torch")
    assert built.network.trunk.matmul == "torch"
    assert built.clip == 5.0


def test_a_module_of_another_class_is_refused_by_name_and_so_is_one_of_the_same_name():
    class ConcatMLP(nn.Module):
        pass

    for module in (nn.Linear(2, 2), ConcatMLP(), Standardize(nn.Linear(2, 2), [None])):
        with pytest.raises(TypeError, match=r"a (Linear|ConcatMLP) cannot be described"):
            describe_network(module)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class": "ConcatMLPs", "options": {}}, "unknown class of networks 'ConcatMLPs'.*Did you mean 'ConcatMLP'"),
        ({"class": "ConcatMLP", "options": {"depth": 3}}, "a ConcatMLP cannot be built from the options .'depth'."),
        ({"class": "ConcatMLP"}, "expected the description of a network"),
        (3, "expected the description of a network"),
    ],
)
def test_what_is_no_description_is_refused(description, message):
    with pytest.raises(ValueError, match=message):
        build_network(description)
