"""The score objective: terms worked by hand, the closed form of its minimiser, its range and its errors."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_smore.functional.divergences import DIVERGENCES, get_divergence
from torchrl_smore.functional.score import (
    ScoreObjective,
    action_free_objective,
    bellman_residual,
    conjugate_excess,
    dual_objective,
    in_sample_objective,
    in_sample_reward_range,
    official_objective,
    official_stable_objective,
    score_rows,
)

F64 = torch.float64
GAMMA, BETA = 0.5, 0.25
SCORE, NEXT = [1.0, 2.0], [4.0, 0.0]  # y = 0.5 * next - score = [1, -2]
Q_SCORE, Q_NEXT = [3.0, -1.0], [2.0, 2.0]  # y = [-2, 2]
POLICY, Q_NEXT_POLICY = [2.0, -2.0], [8.0, 4.0]

# The capped conjugate over 0 <= x <= 100, less y, at y = 1, -2, 2: where the cap binds, 100 y - f(100).
EXCESS = {
    "pearson_chi2": {1.0: 0.25, -2.0: 1.0, 2.0: 1.0},  # y^2/4
    "kl": {1.0: 0.0, -2.0: math.exp(-3) + 2, 2.0: math.e - 2},  # e^(y-1) - y
    "squared_hellinger": {1.0: 100 - 81 - 1, -2.0: -2 / 3 + 2, 2.0: 200 - 81 - 2},  # f(100) = 81
    "total_variation": {1.0: 100 - 49.5 - 1, -2.0: -0.5 + 2, 2.0: 200 - 49.5 - 2},  # f(100) = 49.5
    "jensen_shannon": {
        1.0: 100 - (100 * math.log(100) - 101 * math.log(50.5)) - 1,
        -2.0: -math.log(2 - math.exp(-2)) + 2,
        2.0: 200 - (100 * math.log(100) - 101 * math.log(50.5)) - 2,
    },
}


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def terms(objective, score, next_value, q_score, q_next_value, policy_score=None, q_next_policy_score=None):
    """Terms of the rows of one score, which is an ensemble of one."""
    ensemble = {"score": score, "q_score": q_score, "policy_score": policy_score}
    ensemble["q_next_policy_score"] = q_next_policy_score
    members = {name: None if rows is None else rows.unsqueeze(0) for name, rows in ensemble.items()}
    return score_rows(objective, next_value=next_value, q_next_value=q_next_value, **members)


def residuals() -> tuple[torch.Tensor, torch.Tensor]:
    return bellman_residual(t(*SCORE), t(*NEXT), GAMMA), bellman_residual(t(*Q_SCORE), t(*Q_NEXT), GAMMA)


def test_the_bellman_residual_is_discounted_next_value_minus_score():
    y, q_y = residuals()
    assert y.tolist() == [1.0, -2.0]
    assert q_y.tolist() == [-2.0, 2.0]
    # one value for both members of an ensemble
    assert bellman_residual(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([4.0, 0.0]), 0.5).tolist() == [
        [1.0, -2.0],
        [2.0, -1.0],
    ]


def test_a_residual_of_another_shape_than_its_score_is_refused():
    with pytest.raises(ValueError, match=r"shape of score, got shapes \(3, 1\) and \(3,\)"):
        bellman_residual(torch.zeros(3), torch.zeros(3, 1), 0.5)
    # the shapes are those of one seed where seeds are mapped
    mapped = torch.vmap(lambda score, value: bellman_residual(score, value, 0.5))(torch.ones(2, 4, 3), torch.ones(2, 3))
    assert mapped.tolist() == torch.full((2, 4, 3), -0.5).tolist()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_in_sample_terms_match_numbers_worked_by_hand(name):
    y, q_y = residuals()
    rho, q = in_sample_objective(
        t(*SCORE), y, t(*Q_SCORE), q_y, divergence=get_divergence(name), beta=BETA, gamma=GAMMA
    )
    h = EXCESS[name]
    # beta (1 - gamma) = 1/8; 1 - beta = 3/4
    torch.testing.assert_close(rho, t(0.125 * 1 + 0.75 * h[1.0], 0.125 * 2 + 0.75 * h[-2.0]))
    torch.testing.assert_close(q, t(0.25 * (h[-2.0] - 3.0), 0.25 * (h[2.0] + 1.0)))
    if name == "pearson_chi2":
        assert rho.tolist() == [0.3125, 1.0]
        assert q.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_dual_terms_match_numbers_worked_by_hand(name):
    y, q_y = residuals()
    rho, q = dual_objective(
        t(*POLICY), y, t(*Q_SCORE), q_y, t(*Q_NEXT_POLICY), divergence=get_divergence(name), beta=BETA, gamma=GAMMA
    )
    h = EXCESS[name]
    torch.testing.assert_close(rho, t(0.125 * 2 + 0.75 * h[1.0], -0.125 * 2 + 0.75 * h[-2.0]))
    # beta gamma next = [1, 0.5]
    torch.testing.assert_close(q, t(0.25 * (h[-2.0] - 3.0) + 1.0, 0.25 * (h[2.0] + 1.0) + 0.5))
    if name == "pearson_chi2":
        assert rho.tolist() == [0.4375, 0.5]
        assert q.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_dual_with_policy_bootstrap_is_theorem_1(name):
    beta, gamma, divergence = 0.3, 0.9, get_divergence(name)
    policy, score, next_policy, q_score, q_next_policy = 0.1 * torch.randn(5, 7, dtype=F64)
    y, q_y = gamma * next_policy - score, gamma * q_next_policy - q_score
    rho, q = dual_objective(policy, y, q_score, q_y, q_next_policy, divergence=divergence, beta=beta, gamma=gamma)
    conjugate = divergence.conjugate_real
    theorem = (
        beta * (1 - gamma) * policy.mean()
        + (1 - beta) * conjugate(y).mean()
        + beta * conjugate(q_y).mean()
        - (1 - beta) * y.mean()
    )
    torch.testing.assert_close(rho.mean() + q.mean(), theorem)


@pytest.mark.parametrize("coef", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_excess_scales_the_conjugate_by_kappa(name, coef):
    y = torch.linspace(-1.0, 1.0, 9, dtype=F64) * 0.1 / coef
    kappa = 1 / (4 * coef)
    x = torch.linspace(0.0, 100.0, 400_001, dtype=F64)
    best = torch.stack([(x * point / kappa - get_divergence(name).f(x)).max() for point in y])
    expected = coef * y**2 if name == "pearson_chi2" else kappa * best - y
    torch.testing.assert_close(conjugate_excess(y, get_divergence(name), coef), expected, atol=1e-6, rtol=1e-5)


def test_chi_squared_excess_is_quadratic_over_all_reals():
    y = t(-1000.0, -3.0, 0.0, 5.0)
    for coef in (0.25, 1.0):
        torch.testing.assert_close(conjugate_excess(y, get_divergence("pearson_chi2"), coef), coef * y * y)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_terms_and_gradients_are_finite_for_extreme_residuals(name, dtype):
    y = torch.tensor([-1e6, -50.0, 0.0, 50.0, 1e6], dtype=dtype, requires_grad=True)
    q_y = y.detach().clone().requires_grad_()
    constants = {"divergence": get_divergence(name), "beta": BETA, "gamma": GAMMA}
    pairs = [
        in_sample_objective(-y, y, -q_y, q_y, **constants),
        dual_objective(-y, y, -q_y, q_y, q_y, **constants),
        action_free_objective(-y, y, q_y, **constants),
    ]
    total = sum(term.sum() for pair in pairs for term in pair)
    total.backward()
    assert total.isfinite()
    assert y.grad.isfinite().all()
    assert q_y.grad.isfinite().all()


def tabular(beta: float, gamma: float, n: int = 6) -> tuple[torch.Tensor, ...]:
    """Densities of rho and q with a point of rho alone and one of q alone, their mixture, and M."""
    rho, q = torch.rand(2, n, dtype=F64)
    rho[0], q[1] = 0.0, 0.0
    rho, q = rho / rho.sum(), q / q.sum()
    return rho, q, beta * q + (1 - beta) * rho, torch.randn(n, dtype=F64)


@pytest.mark.parametrize(("beta", "gamma", "coef"), [(0.5, 0.99, 0.25), (0.2, 0.9, 1.0), (0.8, 0.5, 0.1)])
def test_the_tabular_minimiser_for_chi_squared_is_the_closed_form(beta, gamma, coef):
    rho, q, mix, m = tabular(beta, gamma)
    score = torch.zeros_like(m, requires_grad=True)
    objective = ScoreObjective(beta=beta, gamma=gamma, residual_coef=coef)
    optimiser = torch.optim.LBFGS(
        [score], max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        rho_term, q_term = terms(objective, score, m, score, m)
        loss = (rho * rho_term).sum() + (q * q_term).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    closed = gamma * m + (beta * q - beta * (1 - gamma) * rho) / (2 * coef * mix)
    torch.testing.assert_close(score.detach(), closed, atol=1e-6, rtol=1e-6)
    reward = closed - gamma * m
    lower, upper = objective.range
    # the extreme rewards are those of pure rho (row 1) and pure q (row 0)
    torch.testing.assert_close(reward[1] / (1 - gamma), t(lower)[0])
    torch.testing.assert_close(reward[0] / (1 - gamma), t(upper)[0])
    assert reward.min() == reward[1]
    assert reward.max() == reward[0]


@pytest.mark.parametrize("coef", [0.25, 1.0])
@pytest.mark.parametrize("name", ["kl", "squared_hellinger", "jensen_shannon"])
def test_the_objective_is_stationary_where_the_ratio_is_the_derivative_of_the_conjugate(name, coef):
    beta, gamma = 0.5, 0.9
    rho, q, mix, m = tabular(beta, gamma)
    divergence, kappa = get_divergence(name), 1 / (4 * coef)
    y = kappa * divergence.derivative((1 - beta * gamma) * rho / mix)
    score = (gamma * m - y)[1:].requires_grad_()  # row 0 has no rho: its minimiser is at infinity
    objective = ScoreObjective(divergence=name, beta=beta, gamma=gamma, residual_coef=coef)
    rho_term, q_term = terms(objective, score, m[1:], score, m[1:])
    (grad,) = torch.autograd.grad((rho[1:] * rho_term).sum() + (q[1:] * q_term).sum(), score)
    torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-12, rtol=0.0)
    torch.testing.assert_close((score - gamma * m[1:]).min().item() / (1 - gamma), objective.range[0])


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, (-2.0, 200.0)),
        ({"residual_coef": 1.0}, (-0.5, 50.0)),
        ({"beta": 0.8, "gamma": 0.98}, (-8.0, 100.0)),
        ({"beta": 1.0}, (-math.inf, 200.0)),
        ({"max_ratio": 1.0}, (-2.0, 200.0)),  # chi-squared has no cap
        ({"divergence": "kl"}, (-(math.log(1.01) + 1) * 100, math.inf)),
        ({"divergence": "kl", "residual_coef": 1.0}, (-(math.log(1.01) + 1) * 25, math.inf)),
        ({"divergence": "kl", "max_ratio": 1.0}, (-math.inf, math.inf)),
        ({"divergence": "kl", "beta": 1.0}, (-math.inf, math.inf)),
        ({"divergence": "squared_hellinger"}, (-(1 - 1 / math.sqrt(1.01)) * 100, math.inf)),
        ({"divergence": "total_variation"}, (-50.0, 50.0)),
        ({"divergence": "jensen_shannon"}, (-math.log(2.02 / 2.01) * 100, math.inf)),
        ({"formulation": "official"}, (-0.01, math.inf)),
        ({"formulation": "official_stable"}, (-200.0, 200.0)),
        ({"formulation": "dual"}, (-math.inf, math.inf)),
    ],
    ids=str,
)
def test_the_range_matches_numbers_worked_by_hand(kwargs, expected):
    assert ScoreObjective(**kwargs).range == pytest.approx(expected, rel=1e-9)


def test_the_reward_range_is_that_of_the_score_times_one_minus_gamma():
    rewards = in_sample_reward_range(get_divergence("pearson_chi2"), 0.5, 0.99, 0.25)
    assert rewards == pytest.approx((-0.02, 2.0))


def test_a_cap_below_the_largest_ratio_makes_the_objective_unbounded_as_the_range_says():
    objective = ScoreObjective(divergence="kl", max_ratio=1.0)
    # at a point of rho alone, the loss goes on falling as the score sinks
    score = t(-1e2, -1e4, -1e6)
    rho_term, _ = terms(objective, score, torch.zeros_like(score), score, torch.zeros_like(score))
    assert (rho_term.diff() < 0).all()


@pytest.mark.parametrize(
    # density of q, where that of rho is 0.5, and (1 - beta gamma) rho / Mix, at gamma = 0.5
    ("beta", "q", "ratio"),
    [(0.995, 0.0, 100.5), (0.5, 0.1, 1.25), (1.0, 0.1, 2.5)],
)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_objective_is_bounded_below_if_the_cap_is_at_least_the_ratio_that_its_minimum_asks_for(
    name, beta, q, ratio
):
    far = t(1e4, 1e6, 1e8)

    def objective(score: torch.Tensor, max_ratio: float) -> torch.Tensor:
        rho_term, q_term = terms(
            ScoreObjective(divergence=name, beta=beta, gamma=0.5, max_ratio=max_ratio), score, 0 * far, score, 0 * far
        )
        return 0.5 * rho_term + q * q_term

    for max_ratio, bounded in ((1.01 * ratio, True), (max(0.99 * ratio, 1.0), name == "pearson_chi2")):
        assert bool((objective(-far, max_ratio).diff() > 0).all()) == bounded
        assert (objective(far, max_ratio).diff() >= 0).all()


def test_without_goal_transitions_nothing_opposes_a_falling_score_at_beta_one():
    far = t(1e2, 1e4, 1e6)
    rho_term, _ = terms(ScoreObjective(beta=1.0, gamma=0.5), -far, 0 * far, -far, 0 * far)
    assert rho_term.tolist() == [-50.0, -5000.0, -500000.0]  # (1 - gamma) S


@pytest.mark.parametrize("name", ["kl", "squared_hellinger", "total_variation", "jensen_shannon"])
def test_at_beta_one_an_infinite_conjugate_on_the_offline_data_has_no_part_in_the_objective(name):
    # y = 2000 lies beyond what float64 holds of KL's conjugate, and outside the domain of the others
    score = t(-2000.0).requires_grad_()
    objective = ScoreObjective(divergence=name, beta=1.0, gamma=0.5, max_ratio=math.inf)
    rho_term, _ = terms(objective, score, t(0.0), t(0.0), t(0.0))
    (grad,) = torch.autograd.grad(rho_term.sum(), score)
    assert (rho_term.item(), grad.item()) == (-1000.0, 0.5)
    rho_term, _ = action_free_objective(score, -score, t(0.0), **objective.constants)
    (grad,) = torch.autograd.grad(rho_term.sum(), score)
    assert (rho_term.item(), grad.item()) == (-1000.0, 0.5)


def test_every_reward_from_the_upper_end_on_minimises_total_variation_where_q_is_alone():
    divergence = get_divergence("total_variation")
    kappa = 1 / (4 * 0.5)
    assert in_sample_reward_range(divergence, 0.5, 0.9, 0.5)[1] == kappa / 2
    reward = kappa * t(-1.0, 0.0, 0.49, 0.5, 0.6, 1.0, 100.0)
    # with M = 0 the score is the reward, which the conjugate max(y / kappa, -1/2) brings to max(-r, -kappa / 2)
    _, q_term = in_sample_objective(
        reward, -reward, reward, -reward, divergence=divergence, beta=0.5, gamma=0.9, residual_coef=0.5
    )
    assert (q_term[:4].diff() < 0).all()
    torch.testing.assert_close(q_term[3:], torch.full((4,), -0.5 * kappa / 2, dtype=F64))


def test_official_terms_match_numbers_worked_by_hand():
    y, _ = residuals()
    rho, q = official_objective(t(*SCORE), y, t(*Q_SCORE))
    torch.testing.assert_close(rho, t(0.0001 + 0.5, 0.0002 + 2.0))
    assert q.tolist() == [-3.0, 1.0]


def test_official_stable_terms_match_numbers_worked_by_hand():
    y, _ = residuals()
    rho, q = official_stable_objective(t(*SCORE), y, t(*Q_SCORE), gamma=GAMMA)
    # S - (-2 + gamma M) = 1 and 4; (1 - gamma) 1e-4 S^2 = 0.5e-4 and 2e-4; goals are regressed to 2 / 0.5 = 4
    torch.testing.assert_close(rho, t(0.5 + 0.5e-4, 8.0 + 2e-4))
    assert q.tolist() == [1.0, 25.0]


@pytest.mark.parametrize(
    ("formulation", "rho", "q"),
    [
        ("in_sample", [0.3125, 1.0], [-0.5, 0.5]),
        ("dual", [0.4375, 0.5], [0.5, 1.0]),
        ("official", [0.5001, 2.0002], [-3.0, 1.0]),
        ("official_stable", [0.50005, 8.0002], [1.0, 25.0]),
    ],
)
def test_score_objective_dispatches_to_the_formulation(formulation, rho, q):
    objective = ScoreObjective(formulation, beta=BETA, gamma=GAMMA)
    found = terms(objective, *(t(*rows) for rows in (SCORE, NEXT, Q_SCORE, Q_NEXT, POLICY, Q_NEXT_POLICY)))
    torch.testing.assert_close(found, (t(*rho), t(*q)))
    assert objective.needs_policy == (formulation == "dual")


def test_action_free_terms_as_printed_match_numbers_worked_by_hand():
    y, q_y = t(1.0, -4.0).requires_grad_(), t(2.0, -3.0).requires_grad_()
    rho, q = action_free_objective(
        t(1.0, 2.0), y, q_y, divergence=get_divergence("pearson_chi2"), beta=BETA, gamma=GAMMA
    )
    # w = max(0, 1 + y/2) = [1.5, 0] and [2, 0]; w y - (w - 1)^2 = [1.25, -1] and [3, -1]
    assert rho.tolist() == [0.125 + 0.75 * 0.25, 0.25 + 0.75 * 3.0]
    assert q.tolist() == [0.75, -0.25]
    (rho.sum() + q.sum()).backward()
    assert y.grad.tolist() == [0.75 * 0.5, -0.75]  # (1 - beta) (w - 1)
    assert q_y.grad.tolist() == [0.5, 0.0]  # beta w


def test_action_free_terms_with_the_corrected_constraint_match_numbers_worked_by_hand():
    y, q_y = t(1.0, -4.0).requires_grad_(), t(2.0, -3.0).requires_grad_()
    rho, q = action_free_objective(
        t(1.0, 2.0),
        y,
        q_y,
        divergence=get_divergence("pearson_chi2"),
        beta=BETA,
        gamma=GAMMA,
        ratio=t(4 / 3, 4 / 3),
        q_ratio=t(0.0, 2 / 3),
    )
    # bounds (1 - beta) ratio = [1, 1] and [0, 0.5]: w = [1.5, 1] and [2, 0.5]; brackets [1.25, -4] and [3, -1.75]
    torch.testing.assert_close(rho, t(0.3125, 0.25))
    torch.testing.assert_close(q, t(0.75, -0.4375))
    (rho.sum() + q.sum()).backward()
    torch.testing.assert_close(y.grad, t(0.375, 0.0))
    torch.testing.assert_close(q_y.grad, t(0.5, 0.125))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_printed_action_free_bracket_is_the_capped_conjugate(name):
    y = t(-3.0, -0.3, 0.2, 0.4, 3.0)
    divergence = get_divergence(name)
    _, q = action_free_objective(y, y, y, divergence=divergence, beta=1.0, gamma=0.9, residual_coef=1.0)
    torch.testing.assert_close(q, 0.25 * divergence.conjugate(4.0 * y, max_ratio=100.0))


@pytest.mark.parametrize(("name", "supremum"), [("squared_hellinger", 1.0), ("total_variation", 0.5)])
def test_without_a_largest_ratio_the_action_free_bracket_is_infinite_beyond_the_conjugates_range(name, supremum):
    y = t(supremum - 0.25, supremum + 1.0)
    divergence = get_divergence(name)
    constants = {"beta": 1.0, "gamma": 0.9, "residual_coef": 0.25, "max_ratio": math.inf}
    _, q = action_free_objective(y, y, y, divergence=divergence, **constants)
    torch.testing.assert_close(q, divergence.conjugate(y))
    assert q[0].isfinite()
    assert q[1] == math.inf


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"formulation": "in_sampel"}, "unknown formulation 'in_sampel'.*Did you mean 'in_sample'"),
        ({"divergence": "chi2"}, "unknown divergence 'chi2'"),
        ({"beta": 0.0}, r"beta must lie in \(0, 1\], got 0.0"),
        ({"beta": 1.1}, "beta must lie"),
        ({"beta": math.nan}, "beta must lie"),
        ({"gamma": 1.0}, r"gamma must lie in \(0, 1\), got 1.0"),
        ({"gamma": 0.0}, "gamma must lie"),
        ({"residual_coef": 0.0}, "residual_coef must be positive and finite, got 0.0"),
        ({"residual_coef": math.inf}, "residual_coef must be positive"),
        ({"formulation": "official", "residual_coef": math.nan}, "residual_coef must be positive"),
        ({"max_ratio": 0.5}, "max_ratio must be at least 1, got 0.5"),
    ],
    ids=str,
)
def test_bad_constants_are_refused_with_what_was_expected(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ScoreObjective(**kwargs)


@pytest.mark.parametrize("coef", [-1.0, 0.0, math.inf, math.nan])
def test_a_bad_residual_coef_is_refused_by_the_functions_too(coef):
    zero, divergence = torch.zeros(1), get_divergence("kl")
    message = rf"residual_coef must be positive and finite, got {coef}\."
    with pytest.raises(ValueError, match=message):
        conjugate_excess(zero, divergence, coef)
    with pytest.raises(ValueError, match=message):
        in_sample_reward_range(divergence, 0.5, 0.9, coef)
    with pytest.raises(ValueError, match=message):
        action_free_objective(zero, zero, zero, divergence=divergence, beta=0.5, gamma=0.9, residual_coef=coef)


@pytest.mark.parametrize("formulation", ["official", "official_stable"])
def test_the_official_formulations_ignore_the_constants_that_they_lack(formulation):
    rows = [t(*values) for values in (SCORE, NEXT, Q_SCORE, Q_NEXT)]
    others = {"divergence": "kl", "beta": 0.9, "residual_coef": 3.0, "max_ratio": 2.0}
    found = terms(ScoreObjective(formulation, gamma=GAMMA, **others), *rows)
    torch.testing.assert_close(found, terms(ScoreObjective(formulation, gamma=GAMMA), *rows), rtol=0, atol=0)


def test_the_dual_refuses_to_run_without_policy_scores():
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match="needs policy_score and q_next_policy_score"):
        terms(ScoreObjective("dual"), zero, zero, zero, zero, policy_score=zero)


@pytest.mark.parametrize("formulation", ["in_sample", "dual"])
def test_a_formulation_with_a_residual_on_goal_transitions_refuses_to_run_without_their_next_values(formulation):
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match=rf"formulation='{formulation}' needs q_next_value"):
        terms(ScoreObjective(formulation), zero, zero, zero, None)
