"""Numbers worked by hand, limits and gradients of the value and actor loss terms."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_smore.functional.losses import awr_loss, awr_weight, expectile_awr, expectile_loss


def test_expectile_loss_matches_numbers_worked_by_hand():
    # 0.1 * 4, 0, 0.9 * 9
    torch.testing.assert_close(expectile_loss(torch.tensor([-2.0, 0.0, 3.0]), 0.9), torch.tensor([0.4, 0.0, 8.1]))


def test_expectile_gradient_matches_numbers_worked_by_hand():
    diff = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    expectile_loss(diff, 0.9).sum().backward()
    torch.testing.assert_close(diff.grad, torch.tensor([-0.4, 0.0, 5.4]))


def test_minimiser_is_the_mean_at_one_half_and_grows_with_the_expectile():
    target, grid = torch.tensor([0.0, 1.0, 5.0]), torch.linspace(0.0, 5.0, 5001)
    best = [grid[expectile_loss(target - grid[:, None], e).sum(-1).argmin()] for e in (0.5, 0.9, 0.99)]
    torch.testing.assert_close(best[0], target.mean(), atol=1e-3, rtol=0.0)
    assert best[0] < best[1] < best[2] < target.max()


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_expectile_loss_keeps_the_dtype_and_its_precision(dtype, as_tensor):
    expectile = torch.tensor(0.8, dtype=torch.float64) if as_tensor else 0.8
    loss = expectile_loss(torch.tensor([1.0, -1.0], dtype=dtype), expectile)
    assert loss.dtype == dtype
    exact = torch.tensor([0.8, 0.2], dtype=torch.float64)
    torch.testing.assert_close(loss.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("expectile", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_expectile_outside_the_open_unit_interval_is_refused(expectile):
    with pytest.raises(ValueError, match=r"expectile must lie in \(0, 1\), got"):
        expectile_loss(torch.zeros(1), expectile)


def test_awr_weight_matches_numbers_worked_by_hand():
    advantage = torch.tensor([-math.log(2.0), 0.0, math.log(3.0), math.log(5.0)], dtype=torch.float64)
    expected = torch.tensor([0.25, 1.0, 9.0, 20.0], dtype=torch.float64)  # squares, the last capped from 25
    torch.testing.assert_close(awr_weight(advantage, 2.0, weight_clip=20.0), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_huge_advantage_gives_exactly_the_cap_with_gradient_zero(dtype):
    advantage = torch.tensor([1e4, 50.0, 0.5], dtype=dtype, requires_grad=True)
    weight = awr_weight(advantage, 3.0)
    weight.sum().backward()
    assert weight.dtype == dtype
    assert weight[:2].tolist() == [100.0, 100.0]
    assert advantage.grad[:2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(advantage.grad[2].double().item(), 3.0 * math.exp(1.5), rtol=2e-2, atol=0.0)


def test_no_weight_exceeds_the_cap_around_it():
    advantage = torch.linspace(math.log(100.0) - 1e-5, math.log(100.0) + 1e-5, 1001)
    weight = awr_weight(advantage, 1.0)
    assert weight.max() == 100.0
    assert (weight.diff() >= 0.0).all()


def test_an_infinite_cap_leaves_the_weight_free_and_a_zero_temperature_makes_it_one():
    advantage = torch.tensor([-3.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(awr_weight(advantage, 1.0, math.inf), advantage.exp())
    assert awr_weight(advantage, 0.0).tolist() == [1.0, 1.0]


def test_a_weight_that_underflows_is_zero():
    assert awr_weight(torch.tensor([-1e4]), 1.0).tolist() == [0.0]


def test_a_nan_advantage_is_not_hidden_by_the_cap():
    assert awr_weight(torch.tensor([math.nan]), 3.0).isnan().all()


def test_a_tensor_temperature_gives_the_same_weight():
    advantage = torch.randn(8)
    torch.testing.assert_close(awr_weight(advantage, torch.tensor(2.0)), awr_weight(advantage, 2.0))


def test_bad_awr_constants_are_refused():
    with pytest.raises(ValueError, match="temperature must not be negative, got -1"):
        awr_weight(torch.zeros(1), -1.0)
    for weight_clip in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="weight_clip must be positive, got"):
            awr_weight(torch.zeros(1), 1.0, weight_clip)


def test_awr_loss_matches_numbers_worked_by_hand_and_takes_the_weight_as_a_constant():
    log_prob = torch.tensor([-2.0, 0.5], requires_grad=True)
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    loss = awr_loss(log_prob, weight)
    loss.sum().backward()
    assert loss.tolist() == [6.0, -2.0]
    assert log_prob.grad.tolist() == [-3.0, -4.0]
    assert weight.grad is None
    # one weight of all rows
    assert awr_loss(log_prob, torch.tensor(2.0)).tolist() == [4.0, -1.0]


@pytest.mark.parametrize("shapes", [((3,), (3, 1)), ((3, 1), (3,)), ((3,), (1,))], ids=str)
def test_rows_of_two_shapes_are_refused_and_not_broadcast(shapes):
    first, second = (torch.zeros(shape) for shape in shapes)
    got = " and ".join(map(str, shapes)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"score and value must have the same shape, got {got}"):
        expectile_awr(first, second, expectile=0.8)
    with pytest.raises(ValueError, match=f"log_prob and weight must have the same shape, got {got}"):
        awr_loss(first, second)


def test_checks_of_shapes_are_those_of_one_seed_where_seeds_are_mapped_and_of_no_graph():
    def both(score: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return awr_loss(value, expectile_awr(score, value, expectile=0.8).loss)

    score, value = torch.tensor([1.0, 3.0]), torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    # 0.8 or 0.2 (score - value)^2, times -value
    expected = torch.tensor([[0.0, -3.2], [-0.4, -3.2]])
    torch.testing.assert_close(torch.vmap(both, in_dims=(None, 0))(score, value), expected)
    compiled = torch.compile(both, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(score.expand(2, 2), value), expected)
