"""The functional score network against the module and numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from torchrl_smore.functional.mlp import score_mlp
from torchrl_smore.modules.networks import ConcatMLP


def test_numbers_worked_by_hand():
    x = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    # hidden 1: relu(x0 + x1), relu(-x1 + 1) = (0, 3), (3, 0); hidden 2: relu(h0 - h1 + 2) = 0, 5
    layers = [
        (torch.tensor([[[1.0, 1.0], [0.0, -1.0]]]), torch.tensor([[0.0, 1.0]])),
        (torch.tensor([[[1.0, -1.0]]]), torch.tensor([[2.0]])),
        (torch.tensor([[[3.0]]]), torch.tensor([[-1.0]])),
    ]
    torch.testing.assert_close(score_mlp(x, layers), torch.tensor([[-1.0, 14.0]]))


@pytest.mark.parametrize("seeds", [(), (3,)], ids=str)
def test_an_ensemble_of_stacked_weights_equals_its_modules(seeds):
    members = [ConcatMLP(4, 1, (8, 6)) for _ in range(2 * (seeds or (1,))[0])]
    linear = [[layer for layer in member.layers if isinstance(layer, torch.nn.Linear)] for member in members]
    layers = [
        tuple(
            torch.stack([getattr(layer, name) for layer in stack]).unflatten(0, (*seeds, 2))
            for name in ("weight", "bias")
        )
        for stack in zip(*linear)
    ]
    x = torch.randn(*seeds, 5, 4)
    expected = [member(x[at // 2] if seeds else x).squeeze(-1) for at, member in enumerate(members)]
    torch.testing.assert_close(score_mlp(x, layers), torch.stack(expected).reshape(*seeds, 2, 5))


def test_hidden_layers_in_bfloat16_round_and_the_last_layer_is_float32():
    x = torch.randn(5, 4)
    layers = [(torch.randn(1, *shape), torch.randn(1, shape[0])) for shape in ((8, 4), (8, 8), (1, 8))]
    low, full = score_mlp(x, layers, torch.bfloat16), score_mlp(x, layers)
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    # some eps of 2^-8 of the largest term
    torch.testing.assert_close(low, full, rtol=0.05, atol=0.05 * full.abs().max().item())
