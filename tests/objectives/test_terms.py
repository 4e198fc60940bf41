"""Terms that losses share, by numbers worked by hand; each takes the reduction as an argument."""

from __future__ import annotations

import pytest
import torch
from torchrl.modules import IndependentNormal

from torchrl_smore.functional.losses import actor_weight
from torchrl_smore.functional.score import ScoreObjective
from torchrl_smore.objectives.terms import energy_term, imitation_term, regression_term, score_term, td_term


def test_the_score_term_adds_members_clips_what_it_bootstraps_and_counts_that():
    # values clipped to [-1, 1]; rho: y = 0.5 * 1 - 2 = -1.5 and 0.5 * 0 - 1 = -1, q: y = 0.5 * -1 - 3 = -3.5
    # rho terms 0.25 * score + 0.5 * 0.25 * y^2 = 0.78125, 0.375; q term 0.5 * (0.25 * 12.25 - 3) = 0.03125
    loss, metadata = score_term(
        ScoreObjective("in_sample", beta=0.5, gamma=0.5),
        torch.tensor([[2.0, 1.0]] * 2),
        torch.tensor([[3.0]] * 2),
        next_value=torch.tensor([4.0, 0.0]),
        q_next_value=torch.tensor([-9.0]),
        bounds=(-1.0, 1.0),
        reduce=(torch.sum, torch.mean),
        kernels="auto",
    )
    torch.testing.assert_close(loss, torch.tensor(2 * (0.78125 + 0.375) + 2 * 0.03125))
    found = {name: value.item() for name, value in metadata.items()}
    assert found["score"] == 1.5
    assert found["q_score"] == 3.0
    assert found["residual"] == pytest.approx(((1.5**2 + 1.0) / 2) ** 0.5)
    assert found["bound_clipped"] == pytest.approx(2 / 3)
    # the closed form lies in [-0.5 * 0.5 / (0.5 * 0.5), 2 / 0.5] = [-1, 4]
    assert found["score_outside"] == 0.0


def test_kernels_are_refused_any_reduction_but_the_mean():
    rows = {"next_value": torch.zeros(2), "q_next_value": torch.zeros(2), "bounds": None}
    score = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="averages over all rows"):
        score_term(ScoreObjective(), score, score, **rows, reduce=(torch.mean, torch.sum), kernels="triton")


def test_the_regression_term_weighs_log_probabilities_and_wants_one_of_each():
    weight = actor_weight(torch.tensor([0.0, 1e3]), 1.0, 4.0)
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss, metadata = regression_term(log_prob, weight, torch.mean)
    loss.backward()
    assert loss.item() == pytest.approx((1 * 1 + 4 * 2) / 2)
    assert log_prob.grad.tolist() == [-0.5, -2.0]
    expected = {"mean_advantage": 500.0, "awr_weight": 2.5, "weight_clipped": 0.5, "log_prob": -1.5}
    assert {name: value.item() for name, value in metadata.items()} == expected
    with pytest.raises(ValueError, match=r"one log-probability for each row, got shape \(2, 1\) for rows \(2,\)"):
        regression_term(log_prob[:, None], weight, torch.mean)


def test_the_td_term_adds_members_and_may_be_hubers():
    qvalue = torch.tensor([[1.0, 4.0], [0.0, 0.0]])
    target = torch.tensor([0.0, 1.0])
    loss, metadata = td_term(qvalue, target, torch.sum)
    # errors 1, 3 and 0, -1
    assert loss.item() == 11.0
    assert metadata["td_error"].item() == pytest.approx((11 / 4) ** 0.5)
    assert metadata["qvalue"].item() == 1.25
    assert td_term(qvalue, target, torch.sum, huber_delta=2.0)[0].item() == pytest.approx(0.5 + 2 * (3 - 1) + 0.5)


def test_the_imitation_term_takes_actions_or_a_distribution():
    own, action = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    loss, metadata = imitation_term(own, action, torch.mean, torch.tensor([3.0, 1.0]))
    # squared errors averaged over action dimensions: 1 and 2
    assert (loss.item(), metadata["action_error"].item()) == (2.5, 1.5)
    dist = IndependentNormal(own, torch.ones(2, 2))
    loss, metadata = imitation_term(dist, action, torch.sum)
    assert loss.item() == pytest.approx(-2 * metadata["log_prob"].item())
    assert loss.item() == pytest.approx(0.5 * (2 + 4) + 2 * 1.8378770664)


@pytest.mark.parametrize("weight", [None, torch.ones(3)], ids=["alike", "weighted"])
def test_imitation_wants_one_log_probability_for_each_row_and_actions_of_one_shape(weight):
    action = torch.zeros(3, 1)
    # a normal that takes each component for an event: [3, 1], which against weights [3] would broadcast to [3, 3]
    parts = torch.distributions.Normal(torch.zeros(3, 1), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"for each row, got shape \(3, 1\) for rows \(3,\)"):
        imitation_term(parts, action, torch.mean, weight)
    for policy in (IndependentNormal(action, torch.ones(3, 1)), action):
        with pytest.raises(ValueError, match=r"\[\*B, A\]"):
            imitation_term(policy, action[:, 0], torch.mean, weight)


def test_the_energy_term_wants_one_log_probability_for_each_row():
    options = {"q_coef": 2.0, "bc_coef": 0.5, "normalize_q": False}
    energy, log_prob, ones = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0]), torch.ones(2)
    loss, _ = energy_term(energy, log_prob, ones, torch.sum, **options)
    # -2 (1 + 3) + 0.5 (1 + 2)
    assert loss.item() == -6.5
    with pytest.raises(ValueError, match=r"for each row, got shape \(2, 1\) for rows \(2,\)"):
        energy_term(energy, log_prob[:, None], ones, torch.sum, **options)
