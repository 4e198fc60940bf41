"""ScoreLoss alone: bounds of the bootstrap, its diagnostics, and the policy's actions."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_smore.functional.score import ScoreObjective
from torchrl_smore.objectives import ScoreLoss


class Table(nn.Module):
    """S(s, a, g) = weight * s + a: hand-sized."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, observation, action):
        return self.weight * observation + action


def table(*weights):
    return [TensorDictModule(Table(w), ["observation", "action"], ["score"]) for w in weights]


def rows(observation, action, after, **extra):
    def column(values):
        return torch.tensor(values)[:, None]

    batch = TensorDict(
        {"observation": column(observation), "action": column(action), ("next", "state_value"): column(after)},
        [len(observation)],
    )
    for key, value in extra.items():
        batch.set(tuple(key.split("__")), column(value))
    return batch


def example():
    # S = [1, 2] and y = 0.5 M - S = [1, -2]; under q S = [3, -1] and y = [-2, 2]: the rows of tests/functional
    return rows([1.0, 1.0], [0.0, 1.0], [4.0, 0.0]).set("q", rows([3.0, -2.0], [0.0, 1.0], [2.0, 2.0]))


def one(**kwargs):
    return ScoreLoss(table(1.0), num_score_nets=1, **{"beta": 0.25, "gamma": 0.5, "score_bounds": None, **kwargs})


def test_the_loss_and_every_diagnostic_match_numbers_worked_by_hand():
    out = one()(example())
    # mean of [0.3125, 1] and of [-0.5, 0.5]
    assert out["loss_score"].item() == pytest.approx(0.65625)
    assert out["score"].item() == 1.5
    assert out["q_score"].item() == 1.0
    assert out["residual"].item() == pytest.approx(math.sqrt(2.5))
    assert out["bound_clipped"].item() == 0.0
    # the range for beta 0.25, gamma 0.5, c 0.25: [-0.25 * 2 / 0.75, 4] contains 1 and 2
    assert out["score_outside"].item() == 0.0


def test_the_gradient_matches_numbers_worked_by_hand():
    loss = one()
    loss(example())["loss_score"].backward()
    # d/dw = mean(s (1/8 - 3/4 y / 2)) + mean(s (-1/4) (y / 2 + 1)) with s = [1, 1] and [3, -2], y = [1, -2] and [-2, 2]
    rho = (1 / 8 - 3 / 8 + 1 / 8 + 6 / 8) / 2
    q = (3 * -1 / 4 * 0 + -2 * -1 / 4 * 2) / 2
    assert loss.score_network_params["module", "weight"].grad.item() == pytest.approx(rho + q)


def test_the_losses_of_an_ensemble_are_added():
    batch = example()
    twin = ScoreLoss(table(1.0, 0.5), beta=0.25, gamma=0.5, score_bounds=None)
    alone = [ScoreLoss(table(w), num_score_nets=1, beta=0.25, gamma=0.5, score_bounds=None)(batch) for w in (1.0, 0.5)]
    out = twin(batch)
    torch.testing.assert_close(out["loss_score"], alone[0]["loss_score"] + alone[1]["loss_score"])
    torch.testing.assert_close(out["score"], (alone[0]["score"] + alone[1]["score"]) / 2)


def test_bounds_clip_the_bootstrap_and_are_counted():
    batch = example()
    clipped = example()
    clipped["next", "state_value"].clamp_(-1.0, 3.0)
    clipped["q", "next", "state_value"].clamp_(-1.0, 3.0)
    out = one(score_bounds=(-1.0, 3.0))(batch)
    torch.testing.assert_close(out["loss_score"], one()(clipped)["loss_score"])
    assert out["bound_clipped"].item() == 0.25  # 4 of [4, 0] and [2, 2]
    assert one(score_bounds=(0.5, 3.0))(batch)["bound_clipped"].item() == 0.5
    assert one(score_bounds=(0.0, 2.5))(batch)["loss_score"] != one()(batch)["loss_score"]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, (-2.0, 200.0)),
        ({"residual_coef": 1.0}, (-0.5, 50.0)),
        ({"formulation": "official_stable"}, None),
        ({"formulation": "official"}, None),
        ({"formulation": "dual"}, None),
        ({"score_bounds": None}, None),
        ({"score_bounds": (-3, 4)}, (-3.0, 4.0)),
        ({"score_bounds": (-math.inf, 4.0)}, (-math.inf, 4.0)),
    ],
    ids=str,
)
def test_automatic_bounds_are_the_range_of_the_closed_form_and_none_where_the_released_code_has_none(kwargs, expected):
    loss = ScoreLoss(table(1.0), num_score_nets=1, **kwargs)
    assert loss.score_bounds == (expected if expected is None else pytest.approx(expected))


def test_half_open_bounds_clip_on_one_side():
    batch = example()
    batch["next", "state_value"][1] = -5.0
    out = one(formulation="official", score_bounds=(-1.0, math.inf))(batch)
    # one of the two values on rho: the official objectives bootstrap none on q
    assert out["bound_clipped"].item() == 0.5
    batch["next", "state_value"][1] = -1.0
    torch.testing.assert_close(out["loss_score"], one(formulation="official")(batch)["loss_score"])


@pytest.mark.parametrize(
    ("formulation", "after", "expected"),
    [
        # S = [1, 2] on rho and [3, -1] on q, y = M / 2 - S = [-3, -2]: -1 + 1e-4 * 1.5 + 0.5 * (9 + 4) / 2
        ("official", -4.0, 2.25015),
        # y = [4, -2] and 2 / (1 - gamma) = 4: (1 + 25) / 2 + 0.5e-4 * (1 + 4) / 2 + 0.5 * (2^2 + (-4)^2) / 2
        ("official_stable", 10.0, 18.000125),
    ],
)
def test_an_official_formulation_is_by_default_the_released_codes_loss(formulation, after, expected):
    batch = example()
    batch["next", "state_value"][0] = after
    out = ScoreLoss(table(1.0), num_score_nets=1, formulation=formulation, beta=0.25, gamma=0.5)(batch)
    assert out["loss_score"].item() == pytest.approx(expected, rel=1e-6)
    assert out["bound_clipped"].item() == 0.0


def test_scores_outside_the_range_are_counted_whether_or_not_it_is_enforced():
    batch = example()
    batch["observation"][0] = 100.0
    assert one()(batch)["score_outside"].item() == 0.5
    assert one(score_bounds=(-1.0, 1.0))(batch)["score_outside"].item() == 0.5
    assert one(formulation="dual").objective.range == (-math.inf, math.inf)


@pytest.mark.parametrize("bounds", [(2.0, 1.0), (0.0, 0.0), (math.nan, 1.0), "auot"])
def test_bad_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="score_bounds must be 'auto', None or"):
        ScoreLoss(table(1.0), num_score_nets=1, score_bounds=bounds)


def test_the_dual_reads_the_policy_action_at_the_root_and_after_q():
    # policy scores s + a = [2, -2]; q at the next state 8 and 4
    rho = rows([1.0, 1.0], [0.0, 1.0], [4.0, 0.0], policy_action=[1.0, -3.0])
    q = rows([3.0, -2.0], [0.0, 1.0], [2.0, 2.0], next__observation=[6.0, 3.0], next__policy_action=[2.0, 1.0])
    out = one(formulation="dual")(rho.set("q", q))
    # mean of [0.4375, 0.5] and of [0.5, 1]
    assert out["loss_score"].item() == pytest.approx(0.46875 + 0.75)


def test_the_bootstrapped_value_is_a_constant():
    batch = example()
    batch["next", "state_value"].requires_grad_()
    one()(batch)["loss_score"].backward()
    assert batch["next", "state_value"].grad is None


def test_the_goal_after_the_step_is_the_goal_at_the_root(build, batch_for):
    loss = build("smore")
    batch = batch_for(loss)
    expected = loss(batch)
    batch["next", "desired_goal"] = torch.full_like(batch["desired_goal"], 1e6)
    batch["q", "next", "desired_goal"] = torch.full_like(batch["desired_goal"], 1e6)
    for key, value in loss(batch).items():
        assert torch.equal(value, expected[key])


def test_the_objective_is_kept_with_its_constants(build):
    objective = build("smore", gamma=0.9, beta=0.4, residual_coef=1.0).objective
    assert objective == ScoreObjective(gamma=0.9, beta=0.4, residual_coef=1.0)
