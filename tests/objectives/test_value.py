"""ExpectileValueLoss and AWRActorLoss alone, on hand-sized examples."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Normal
from torchrl.modules import IndependentNormal, ProbabilisticActor

from torchrl_smore.objectives import AWRActorLoss, ExpectileValueLoss


class Constant(nn.Module):
    def __init__(self, size=1):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size))

    def forward(self, observation):
        return self.value.expand(*observation.shape[:-1], -1)


def value_loss(**kwargs):
    return ExpectileValueLoss(TensorDictModule(Constant(), ["observation"], ["state_value"]), **kwargs)


def test_the_value_loss_and_its_gradient_match_numbers_worked_by_hand():
    loss = value_loss(expectile=0.9)
    score = torch.tensor([[-2.0], [0.0], [3.0]], requires_grad=True)
    out = loss(TensorDict({"observation": torch.zeros(3, 1), "target_score": score}, [3]))
    out["loss_value"].backward()
    assert out["loss_value"].item() == pytest.approx((0.4 + 8.1) / 3)  # value 0: u = score
    # d/dv of weight (score - v)^2 = -2 weight u = 0.4 and -5.4
    assert loss.value_network_params["module", "value"].grad.item() == pytest.approx(-5.0 / 3)
    assert score.grad is None
    assert out["value"].item() == 0.0


def test_a_network_may_read_another_dtype_than_its_own():
    batch = TensorDict({"observation": torch.zeros(3, 1).double(), "target_score": torch.ones(3, 1)}, [3])
    assert value_loss(expectile=0.5)(batch)["loss_value"].item() == 0.5


@pytest.mark.parametrize("expectile", [0.0, 1.0, math.nan])
def test_a_bad_expectile_is_refused(expectile):
    with pytest.raises(ValueError, match=r"expectile must lie in \(0, 1\), got"):
        value_loss(expectile=expectile)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def forward(self, observation):
        loc = self.loc.expand(*observation.shape[:-1], 2)
        return loc, torch.ones_like(loc)


def actor(distribution=IndependentNormal):
    return ProbabilisticActor(
        TensorDictModule(Head(), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=distribution,
    )


def actor_batch():
    advantage = torch.tensor([[0.0], [math.log(2.0)], [1e6]], requires_grad=True)
    action = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    return TensorDict({"observation": torch.zeros(3, 1), "action": action, "advantage": advantage}, [3])


def test_the_actor_loss_its_gradient_and_diagnostics_match_numbers_worked_by_hand():
    loss, batch = AWRActorLoss(actor(), temperature=2.0, weight_clip=20.0), actor_batch()
    out = loss(batch)
    out["loss_actor"].backward()
    # weights 1, 4, 20; log-probabilities -log(2 pi) - |a|^2 / 2 with |a|^2 = 0, 2, 4
    constant = math.log(2 * math.pi)
    assert out["loss_actor"].item() == pytest.approx((1 * constant + 4 * (constant + 1) + 20 * (constant + 2)) / 3)
    assert out["awr_weight"].item() == pytest.approx(25 / 3)
    assert out["weight_clipped"].item() == pytest.approx(1 / 3)
    assert out["log_prob"].item() == pytest.approx(-constant - 1.0)
    assert out["mean_advantage"].item() == pytest.approx((math.log(2.0) + 1e6) / 3)
    # d/dloc = -weight (a - loc)
    grad = loss.actor_network_params["module", "0", "module", "loc"].grad
    torch.testing.assert_close(grad, torch.tensor([-(4.0 + 40.0) / 3, -4.0 / 3]))
    assert batch["advantage"].grad is None


def test_a_temperature_of_zero_is_behaviour_cloning():
    loss, batch = AWRActorLoss(actor(), temperature=0.0), actor_batch()
    out = loss(batch)
    torch.testing.assert_close(out["loss_actor"], -out["log_prob"])
    assert out["weight_clipped"].item() == 0.0


def test_a_distribution_without_event_dimensions_is_refused():
    loss = AWRActorLoss(actor(Normal))
    with pytest.raises(ValueError, match="one log-probability for each row"):
        loss(actor_batch())


def test_a_deterministic_actor_and_bad_constants_are_refused():
    with pytest.raises(TypeError, match=r"actor_network must be stochastic .* got TensorDictModule"):
        AWRActorLoss(TensorDictModule(Constant(), ["observation"], ["action"]))
    with pytest.raises(ValueError, match="weight_clip must be positive"):
        AWRActorLoss(actor(), weight_clip=0.0)
    with pytest.raises(ValueError, match="temperature must not be negative"):
        AWRActorLoss(actor(), temperature=-0.1)
    with pytest.raises(ValueError, match=r"'horizon' needs the gamma .* got None"):
        AWRActorLoss(actor(), advantage_unit="horizon")
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\), got 1.0"):
        AWRActorLoss(actor(), advantage_unit="horizon", gamma=1.0)
