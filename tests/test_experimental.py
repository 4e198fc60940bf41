"""The experimental score network against the module, numbers worked by hand, and its kernel."""

from __future__ import annotations

import pytest
import torch

from torchrl_smore._dispatch import score_objective
from torchrl_smore._experimental import score_mlp, score_mlp_objective
from torchrl_smore.functional.score import ScoreObjective
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


@pytest.fixture
def interpreted_triton():
    if torch.cuda.is_available():
        pytest.skip("triton compiles for the GPU here")
    pytest.importorskip("triton")


@pytest.mark.parametrize("formulation", ["in_sample", "official"])
def test_the_score_network_agrees_with_the_reference_and_with_its_scores_alone(formulation, interpreted_triton):
    objective = ScoreObjective(formulation, "kl", beta=0.3, max_ratio=3.0)
    rows = {
        "x": torch.randn(5, 3),
        "next_value": torch.randn(5),
        "q_x": torch.randn(4, 3),
        "q_next_value": torch.randn(4),
    }
    shapes = [(2, 16, 3), (2, 16), (2, 16, 16), (2, 16), (2, 1, 16), (2, 1)]
    weights, results = [0.3 * torch.randn(shape) for shape in shapes], []
    for kernels in ("reference", "triton"):
        leaves = [weight.clone().requires_grad_() for weight in weights]
        layers = list(zip(leaves[::2], leaves[1::2]))
        loss, score, q_score = score_mlp_objective(
            objective, **rows, layers=layers, bounds=(-0.5, 0.5), precision="fp32", kernels=kernels
        )
        (3.0 * loss).backward()
        results.append((loss.detach(), score, q_score, [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    of_scores = score_objective(
        objective, score=score, q_score=q_score, next_value=rows["next_value"], q_next_value=rows["q_next_value"],
        bounds=(-0.5, 0.5), kernels="reference",
    )  # fmt: skip
    torch.testing.assert_close(of_scores, loss.detach())


def test_the_score_network_refuses_the_formulation_that_asks_for_the_policy():
    row, value = torch.zeros(1, 3), torch.zeros(1)
    with pytest.raises(ValueError, match="formulation='dual' needs scores at the policy's actions"):
        score_mlp_objective(
            ScoreObjective("dual"), x=row, next_value=value, q_x=row, q_next_value=value, layers=[], kernels="reference"
        )
