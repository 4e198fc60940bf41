from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_smore.functional.divergences import DIVERGENCES, Divergence, get_divergence

INF = math.inf
LOG2 = math.log(2.0)
FAR = [-1e30, -1e4, -50.0, -2.0, -0.5, 0.0, 0.5, LOG2, 1.0, 1.5, 50.0, 1e4, 1e30]

every_divergence = pytest.mark.parametrize("divergence", list(DIVERGENCES.values()), ids=lambda d: d.name)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(actual, f64(*expected), atol=1e-12, rtol=1e-12)


# x, f(x), f'(x), each worked by hand
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("pearson_chi2", [(0, 1, -2), (0.5, 0.25, -1), (1, 0, 0), (4, 9, 6)]),
        ("kl", [(0, 0, -INF), (0.5, -0.5 * LOG2, 1 - LOG2), (1, 0, 1), (math.e, math.e, 2)]),
        ("squared_hellinger", [(0, 1, -INF), (0.25, 0.25, -1), (1, 0, 0), (4, 1, 0.5), (9, 4, 2 / 3)]),
        ("total_variation", [(0, 0.5, -0.5), (0.5, 0.25, -0.5), (1, 0, 0), (4, 1.5, 0.5)]),
        # f(3) = -4 log 2 + 3 log 3; f(1/3) = f(3) / 3, since x f(1/x) = f(x); f'(3) = log(6/4)
        (
            "jensen_shannon",
            [
                (0, LOG2, -INF),
                (1 / 3, math.log(3) - 4 / 3 * LOG2, -LOG2),
                (1, 0, 0),
                (3, 3 * math.log(3) - 4 * LOG2, math.log(1.5)),
            ],
        ),
    ],
)
def test_generator_and_derivative_match_numbers_worked_by_hand(name, rows):
    x, f, slope = (list(column) for column in zip(*rows))
    close(DIVERGENCES[name].f(f64(*x)), *f)
    close(DIVERGENCES[name].derivative(f64(*x)), *slope)


# y, f*(y), argmax over x >= 0
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("pearson_chi2", [(-5, -1, 0), (-2, -1, 0), (-1, -0.75, 0.5), (0, 0, 1), (1, 1.25, 1.5), (4, 8, 3)]),
        ("kl", [(-5, math.exp(-6), math.exp(-6)), (1, 1, 1), (1 + LOG2, 2, 2)]),
        ("squared_hellinger", [(-3, -0.75, 1 / 16), (0, 0, 1), (0.5, 1, 4), (1, INF, INF), (3, INF, INF)]),
        ("total_variation", [(-5, -0.5, 0), (-0.5, -0.5, 1), (0.25, 0.25, 1), (0.5, 0.5, 1), (0.6, INF, INF)]),
        (
            "jensen_shannon",
            [(-LOG2, -math.log(1.5), 1 / 3), (0, 0, 1), (math.log(1.5), LOG2, 3), (0.7, INF, INF), (90, INF, INF)],
        ),
    ],
)
def test_conjugate_and_maximiser_match_numbers_worked_by_hand(name, rows):
    y, value, ratio = (list(column) for column in zip(*rows))
    close(DIVERGENCES[name].conjugate(f64(*y)), *value)
    close(DIVERGENCES[name].maximiser(f64(*y)), *ratio)


@pytest.mark.parametrize(
    ("name", "y", "value", "ratio"),
    # cap 4: below it the conjugate is unchanged, from f'(4) on it is 4 y - f(4)
    [
        ("pearson_chi2", 10.0, 40 - 9, 4),
        ("kl", 5.0, 20 - 4 * math.log(4), 4),
        ("squared_hellinger", 2.0, 8 - 1, 4),
        ("squared_hellinger", 0.0, 0, 1),
        ("total_variation", 2.0, 8 - 1.5, 4),
        ("total_variation", 0.5, 0.5, 1),
        ("jensen_shannon", 1.0, 4 - 4 * math.log(4) + 5 * math.log(2.5), 4),
        ("jensen_shannon", -LOG2, -math.log(1.5), 1 / 3),
    ],
)
def test_a_capped_ratio_gives_the_conjugate_over_the_capped_range(name, y, value, ratio):
    close(DIVERGENCES[name].conjugate(f64(y), max_ratio=4.0), value)
    close(DIVERGENCES[name].maximiser(f64(y), max_ratio=4.0), ratio)


def test_conjugate_over_all_real_ratios_is_the_printed_table_for_chi2_and_total_variation():
    close(DIVERGENCES["pearson_chi2"].conjugate_real(f64(-6, -2, 1)), 3, -1, 1.25)
    close(DIVERGENCES["total_variation"].conjugate_real(f64(-0.6, -0.5, 0.1, 0.5, 0.6)), INF, -0.5, 0.1, 0.5, INF)
    for name in ("kl", "squared_hellinger", "jensen_shannon"):
        y = f64(-4, 0.3, 0.6, 2)
        torch.testing.assert_close(DIVERGENCES[name].conjugate_real(y), DIVERGENCES[name].conjugate(y))


@every_divergence
def test_inverse_derivative_undoes_the_derivative(divergence):
    if divergence.name == "total_variation":
        pytest.skip("total variation has no inverse derivative")
    x = torch.logspace(-3, 3, 25, dtype=torch.float64)
    torch.testing.assert_close(divergence.inverse_derivative(divergence.derivative(x)), x, rtol=1e-9, atol=0)


@every_divergence
@pytest.mark.parametrize("max_ratio", [1.0, 3.0, 50.0])
def test_capped_conjugate_is_the_supremum_over_a_fine_grid(divergence, max_ratio):
    y = torch.linspace(-5, 1.5, 66, dtype=torch.float64)
    x = torch.cat([f64(0.0), torch.logspace(-6, 0, 20001, dtype=torch.float64) * max_ratio, f64(1.0)])
    supremum = (y[:, None] * x - divergence.f(x)).amax(-1)
    torch.testing.assert_close(divergence.conjugate(y, max_ratio=max_ratio), supremum, atol=2e-6, rtol=2e-6)


@every_divergence
def test_uncapped_conjugate_is_the_supremum_over_a_growing_grid_or_infinite_where_that_diverges(divergence):
    y = torch.linspace(-5, 1.5, 66, dtype=torch.float64)
    conjugate = divergence.conjugate(y)
    outside = y >= divergence.supremum if divergence.name != "total_variation" else y > 0.5
    assert torch.equal(conjugate == INF, outside)
    x = torch.cat([f64(0.0), torch.logspace(-8, 8, 100001, dtype=torch.float64)])
    supremum = (y[:, None] * x - divergence.f(x)).amax(-1)
    inside = ~outside
    torch.testing.assert_close(conjugate[inside], supremum[inside], atol=2e-6, rtol=2e-6)
    assert (supremum[outside] > 20).all()


@every_divergence
@settings(max_examples=60)
@given(y=st.floats(-20, 20), x=st.floats(0, 20), cap=st.sampled_from([20.0, 1e3, INF]))
def test_fenchel_young_inequality_holds_and_is_tight_at_the_maximiser(divergence, y, x, cap):
    y, x = f64(y), f64(x)
    conjugate, ratio = divergence.conjugate(y, max_ratio=cap), divergence.maximiser(y, max_ratio=cap)
    assert conjugate + 1e-9 >= x * y - divergence.f(x)
    if conjugate < INF and ratio < INF:
        torch.testing.assert_close(conjugate, ratio * y - divergence.f(ratio), atol=1e-8, rtol=1e-8)


@every_divergence
def test_capping_never_raises_the_conjugate_and_keeps_it_convex_with_slope_at_most_the_cap(divergence):
    y = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    capped = divergence.conjugate(y, max_ratio=7.0)
    slope = capped.diff() / y.diff()
    assert (capped <= divergence.conjugate(y) + 1e-12).all()
    assert (slope >= -1e-9).all()
    assert (slope <= 7.0 + 1e-9).all()
    assert (slope.diff() >= -1e-9).all()


@every_divergence
@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("max_ratio", [1.0, 20.0, INF])
def test_gradient_is_the_maximiser_and_never_nan_however_far_outside_the_domain(divergence, dtype, tol, max_ratio):
    y = torch.tensor([*FAR, divergence.derivative_at_zero], dtype=dtype).requires_grad_()
    value = divergence.conjugate(y, max_ratio=max_ratio)
    (grad,) = torch.autograd.grad(value.sum(), y)
    assert value.dtype == grad.dtype == dtype
    assert not value.isnan().any()
    assert max_ratio == INF or grad.isfinite().all()
    torch.testing.assert_close(grad, divergence.maximiser(y.detach(), max_ratio=max_ratio), atol=0, rtol=tol)


@every_divergence
def test_second_derivative_is_the_slope_of_the_maximiser(divergence):
    y = f64(-3.0, -1.0, 0.2, 0.45, 3.0, 40.0).requires_grad_()
    (grad,) = torch.autograd.grad(divergence.conjugate(y, max_ratio=5.0).sum(), y, create_graph=True)
    (curvature,) = torch.autograd.grad((grad + 0.0 * y).sum(), y)
    step = 1e-6
    up, down = (divergence.maximiser(y.detach() + e, max_ratio=5.0) for e in (step, -step))
    torch.testing.assert_close(curvature, (up - down) / (2 * step), atol=1e-6, rtol=1e-6)


def test_gradient_outside_the_real_domain_of_total_variation_points_away_from_it():
    y = f64(-0.6, 0.2, 0.6).requires_grad_()
    (grad,) = torch.autograd.grad(DIVERGENCES["total_variation"].conjugate_real(y).sum(), y)
    close(grad, -INF, 1, INF)


@every_divergence
@pytest.mark.parametrize("max_ratio", [3.0, INF])
def test_the_maximiser_of_nan_is_nan(divergence, max_ratio):
    assert divergence.maximiser(f64(math.nan, 0.0), max_ratio=max_ratio).isnan().tolist() == [True, False]


def test_only_kl_and_chi2_dominate_kl_on_random_distributions():
    p, q = torch.distributions.Dirichlet(torch.full((6,), 0.3, dtype=torch.float64)).sample((2, 400)) + 1e-9
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    kl = (p * (p / q).log()).sum(-1)
    for divergence in DIVERGENCES.values():
        dominates = ((q * divergence.f(p / q)).sum(-1) >= kl - 1e-9).all()
        assert bool(dominates) == divergence.dominates_kl


def test_bounded_divergences_reach_their_bound_on_disjoint_supports():
    # f(0) + lim f(x)/x is the value for distributions without common support: 2, 1 and 2 log 2
    far = f64(1e14)
    for name, bound in (("squared_hellinger", 2.0), ("total_variation", 1.0), ("jensen_shannon", 2 * LOG2)):
        value = DIVERGENCES[name].f(f64(0.0)) + DIVERGENCES[name].f(far) / far
        torch.testing.assert_close(value, f64(bound), atol=1e-6, rtol=0)


def test_compiled_value_and_gradient_equal_eager_ones_in_one_graph():
    def both(y):
        parts = [d.conjugate(y, max_ratio=9.0) + d.maximiser(y, max_ratio=3.0) for d in DIVERGENCES.values()]
        return torch.stack(parts)

    y = torch.tensor(FAR[1:-1], requires_grad=True)
    compiled, eager = torch.compile(both, fullgraph=True)(y), both(y)
    torch.testing.assert_close(compiled, eager)
    (ours,), (expected,) = torch.autograd.grad(compiled.sum(), y), torch.autograd.grad(eager.sum(), y)
    torch.testing.assert_close(ours, expected)


def test_lookup_takes_names_and_instances_and_names_the_nearest_on_a_typo():
    assert get_divergence("kl") is DIVERGENCES["kl"]
    assert get_divergence(DIVERGENCES["kl"]) is DIVERGENCES["kl"]
    with pytest.raises(ValueError, match=r"unknown divergence 'pearson_chi'.*pearson_chi2"):
        get_divergence("pearson_chi")


def test_a_cap_below_one_is_refused():
    with pytest.raises(ValueError, match=r"max_ratio must be at least 1.*got 0\.5"):
        DIVERGENCES["kl"].conjugate(f64(0.0), max_ratio=0.5)
    with pytest.raises(ValueError, match="max_ratio"):
        DIVERGENCES["kl"].maximiser(f64(0.0), max_ratio=math.nan)


@every_divergence
def test_divergences_survive_pickling_and_copying(divergence):
    assert pickle.loads(pickle.dumps(divergence)) == divergence
    assert copy.deepcopy(divergence) == divergence
    assert isinstance(divergence, Divergence)
