"""``kernels=``: the fused objective inside the loss, under the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_smore.modules import goal_specs, make_networks
from torchrl_smore.objectives import SMORELoss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    {},
    {"divergence": "kl", "score_bounds": (-0.01, 0.01)},
    {"formulation": "dual", "residual_coef": 1.0},
    {"formulation": "dual", "bootstrap": "policy"},
    {"formulation": "official"},
    {"formulation": "official_stable", "num_score_nets": 1},
]


def _batch(rows=5):
    def draw():
        entries = {"observation": torch.randn(rows, 3), "desired_goal": torch.randn(rows, 2)}
        after = TensorDict({"observation": torch.randn(rows, 3)}, [rows])
        return TensorDict({**entries, "action": torch.randn(rows, 1), "next": after}, [rows], device=DEVICE)

    return draw().set("q", draw())


def _loss(kernels, **options):
    torch.manual_seed(1)
    number = options.get("num_score_nets", 2)
    networks = make_networks(*goal_specs(3, 2, 1), hidden=(8,), num_score_nets=number)
    # no target network: its updater is not what is tested
    options = {"delay_score": False, **options}
    return SMORELoss(networks.actor, networks.score, networks.value, kernels=kernels, **options).to(DEVICE)


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("deactivate_vmap", [False, True])
def test_the_kernel_gives_the_losses_gradients_and_diagnostics_of_the_reference(options, deactivate_vmap):
    batch = _batch()
    outs, grads = [], []
    for kernels in ("reference", "triton"):
        loss = _loss(kernels, deactivate_vmap=deactivate_vmap, **options)
        out = loss(batch)
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        outs.append(out.detach())
        grads.append([p.grad for p in loss.parameters()])
    torch.testing.assert_close(outs[1].to_dict(), outs[0].to_dict())
    torch.testing.assert_close(grads[1], grads[0])


def test_a_mask_or_another_reduction_is_refused_by_the_kernel_and_left_to_the_reference_by_auto():
    batch = _batch()
    masked = batch.clone().set(("collector", "mask"), torch.ones(5, 1, dtype=torch.bool, device=DEVICE))
    with pytest.raises(ValueError, match="averages over all rows"):
        _loss("triton")(masked)
    with pytest.raises(ValueError, match="reduction='mean', got 'sum'"):
        _loss("triton", reduction="sum")(batch)
    torch.testing.assert_close(_loss("auto")(masked)["loss_score"], _loss("reference")(batch)["loss_score"])


def test_an_unknown_kernel_choice_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown kernels 'tritn'.*'triton'"):
        _loss("tritn")
