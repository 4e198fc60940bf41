"""SMORELoss without AWR and without the expectile of dataset actions (Table 16), by numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor
from torchrl.objectives import SoftUpdate

from torchrl_smore.objectives import SMORELoss


class Parabola(nn.Module):
    """A score of ``-(a - top)^2``, whatever state and goal."""

    def __init__(self, top):
        super().__init__()
        self.top = nn.Parameter(torch.tensor(top))

    def forward(self, observation, goal, action):
        return -(action - self.top).square()


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, observation, goal):
        return self.value.expand(*observation.shape[:-1], 1)


class Policy(Constant):
    def forward(self, observation, goal):
        loc = super().forward(observation, goal)
        return loc, torch.ones_like(loc)


def make_loss(action=0.25, tops=(0.5, 1.0), value=-1.0, **options):
    """The policy's action is 0.25, where the scores are -0.0625 and -0.5625."""
    score = [TensorDictModule(Parabola(top), ["observation", "desired_goal", "action"], ["score"]) for top in tops]
    policy = TensorDictModule(Policy(action), ["observation", "desired_goal"], ["loc", "scale"])
    actor = ProbabilisticActor(
        policy, in_keys=["loc", "scale"], out_keys=["action"], distribution_class=IndependentNormal
    )
    network = TensorDictModule(Constant(value), ["observation", "desired_goal"], ["state_value"])
    loss = SMORELoss(actor, score, network, **options)
    SoftUpdate(loss, tau=0.5)
    return loss


def batch(action=0.0, n=3):
    def rows():
        zeros = torch.zeros(n, 2)
        return TensorDict(
            {"observation": zeros, "desired_goal": zeros, ("next", "observation"): zeros}
            | {"action": torch.full((n, 1), action)},
            [n],
        )

    return rows().set("q", rows())


def gradients(output, loss, name):
    params = list(getattr(loss, f"{name}_network_params").parameters())
    found = torch.autograd.grad(output, params, allow_unused=True, retain_graph=True)
    return [None if gradient is None else gradient.flatten().tolist() for gradient in found]


def test_without_awr_the_actor_climbs_the_smallest_score_at_its_own_action():
    loss = make_loss(actor="score")
    out = loss(batch())
    # the smallest is -(0.25 - 1)^2; its slope at 0.25 is 1.5
    torch.testing.assert_close(out["loss_actor"], torch.tensor(0.5625))
    torch.testing.assert_close(out["policy_score"], torch.tensor(-0.5625))
    assert gradients(out["loss_actor"], loss, "actor") == [[-1.5]]
    assert gradients(out["loss_actor"], loss, "score") == [None]
    assert gradients(out["loss_actor"], loss, "value") == [None]
    assert set(out.keys()) == set(loss.out_keys)
    assert not {"awr_weight", "mean_advantage", "weight_clipped", "log_prob"} & set(out.keys())
    alone, metadata = loss.actor_loss(batch())
    torch.testing.assert_close(alone, out["loss_actor"])
    torch.testing.assert_close(metadata["policy_score"], out["policy_score"])


def test_without_awr_alone_the_value_still_fits_the_dataset_actions():
    out = make_loss(actor="score", expectile=0.75)(batch(action=0.5))
    # dataset action 0.5: scores 0 and -0.25; above the value of -1 by 0.75, weight 0.75
    torch.testing.assert_close(out["loss_value"], torch.tensor(0.75 * 0.75**2))


def test_without_the_expectile_the_value_is_fitted_to_the_score_of_the_policys_action():
    loss = make_loss(actor="score", value_target="policy", expectile=0.5)
    out = loss(batch(action=0.5))
    # policy action 0.25: -0.5625, above -1 by 0.4375, weight one half
    torch.testing.assert_close(out["loss_value"], torch.tensor(0.5 * 0.4375**2))
    assert gradients(out["loss_value"], loss, "value") == [[pytest.approx(-0.4375)]]
    assert gradients(out["loss_value"], loss, "actor") == [None]
    alone, _ = loss.value_loss(batch(action=0.5))
    torch.testing.assert_close(alone, out["loss_value"])


def test_the_scores_loss_is_the_same_with_and_without_awr():
    with_awr, without = make_loss()(batch(0.3)), make_loss(actor="score")(batch(0.3))
    torch.testing.assert_close(with_awr["loss_score"], without["loss_score"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"actor": "arw"}, "unknown actor 'arw'.*Did you mean 'awr'"),
        ({"actor": "score", "value_target": "polcy"}, "unknown value_target 'polcy'"),
        ({"value_target": "policy"}, "needs actor='score'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make_loss(**options)


def test_the_advantage_is_that_of_the_datasets_actions_whatever_the_value_is_fitted_to():
    loss = make_loss(actor="score", value_target="policy", expectile=0.5)
    # the smaller score of action 0 is -1, as is the value; that of the policy's action is -0.5625
    torch.testing.assert_close(loss.advantage(batch()), torch.zeros(3))
