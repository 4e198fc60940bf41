"""The likelihood of actions of which some are noise."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torchrl.data import Bounded
from torchrl.modules import IndependentNormal

from torchrl_smore.modules import ContaminatedNormal, goal_specs, make_networks


def contaminated(contamination=0.2):
    loc, scale = torch.tensor([[0.3, -0.2], [0.0, 0.9]]), torch.tensor([[0.1, 0.5], [1.0, 0.05]])
    return ContaminatedNormal(loc, scale, contamination=contamination, log_volume=math.log(4.0))


def test_the_density_is_that_of_a_mixture_with_the_uniform_one():
    action = torch.tensor([[0.35, -0.9], [0.8, -1.0]])
    # by hand: two normal densities a row, and a box of area 4
    first = 0.8 * normal(0.35, 0.3, 0.1) * normal(-0.9, -0.2, 0.5) + 0.2 / 4
    second = 0.8 * normal(0.8, 0.0, 1.0) * normal(-1.0, 0.9, 0.05) + 0.2 / 4
    expected = torch.tensor([first, second]).log()
    torch.testing.assert_close(contaminated().log_prob(action), expected, rtol=1e-5, atol=1e-6)


def test_an_action_is_noise_by_as_much_as_the_noise_explains_it():
    action = torch.tensor([[0.35, -0.9], [0.8, -1.0]])
    first = 0.8 * normal(0.35, 0.3, 0.1) * normal(-0.9, -0.2, 0.5)
    # thirty-eight deviations away: certainly noise
    expected = torch.tensor([0.05 / (first + 0.05), 1.0])
    torch.testing.assert_close(contaminated().noise_share(action), expected, rtol=1e-5, atol=1e-6)


def normal(x, mean, std):
    return math.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def test_the_density_has_mass_one_over_the_box():
    side = torch.linspace(-1.0, 1.0, 401)
    points = torch.cartesian_prod(side, side)
    loc, scale = torch.zeros(2).expand_as(points), torch.full((2,), 0.1).expand_as(points)
    density = ContaminatedNormal(loc, scale, contamination=0.3, log_volume=math.log(4.0)).log_prob(points).exp()
    grid = density.reshape(401, 401)
    assert float(torch.trapezoid(torch.trapezoid(grid, side), side)) == pytest.approx(1.0, abs=1e-4)


def test_an_outlier_does_not_pull_at_the_mean():
    loc = torch.zeros(2, 1, requires_grad=True)
    action = torch.tensor([[0.1], [1.0]])
    dist = ContaminatedNormal(loc, torch.full((2, 1), 0.05), contamination=0.1, log_volume=math.log(2.0))
    (pull,) = torch.autograd.grad(dist.log_prob(action).sum(), loc)
    own, noise = 0.9 * normal(0.1, 0.0, 0.05), 0.1 / 2
    assert float(pull[0]) == pytest.approx(own / (own + noise) * 0.1 / 0.05**2, rel=1e-4)
    assert abs(float(pull[1])) < 1e-30


def test_a_location_is_found_in_spite_of_uniform_noise():
    generator = torch.Generator().manual_seed(0)
    action = 0.5 + 0.05 * torch.randn(4000, 1, generator=generator)
    noisy = torch.rand(4000, 1, generator=generator) < 0.3
    action = torch.where(noisy, 2 * torch.rand(4000, 1, generator=generator) - 1, action)
    found = {}
    for name, share in (("normal", 0.0), ("contaminated", 0.3)):
        loc, log_std = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.Adam([loc, log_std], lr=0.02)
        for _ in range(400):
            parts = (loc.expand(4000, 1), log_std.exp().expand(4000, 1))
            dist = (
                ContaminatedNormal(*parts, contamination=share, log_volume=math.log(2.0))
                if share
                else IndependentNormal(*parts)
            )
            optimizer.zero_grad()
            (-dist.log_prob(action).mean()).backward()
            optimizer.step()
        found[name] = (float(loc.detach()), float(log_std.detach().exp()))
    # of the normal the mean of all, 0.7 * 0.5; of the other the location and deviation of what is no noise
    assert found["normal"][0] == pytest.approx(0.35, abs=0.03)
    assert found["contaminated"] == (pytest.approx(0.5, abs=0.01), pytest.approx(0.05, abs=0.01))


def test_mean_mode_and_samples_are_those_of_the_policy():
    torch.manual_seed(0)
    dist = contaminated()
    torch.testing.assert_close(dist.mode, dist.base_dist.loc)
    torch.testing.assert_close(dist.mean, dist.base_dist.loc)
    samples = dist.sample((20_000,))
    torch.testing.assert_close(samples.std(0), dist.base_dist.scale, rtol=0.03, atol=0.0)
    with pytest.raises(NotImplementedError, match="closed form"):
        dist.entropy()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_is_more_than_nothing_and_less_than_all(share):
    with pytest.raises(ValueError, match=r"contamination must lie in \(0, 1\)"):
        contaminated(contamination=share)


def test_networks_have_it_with_the_volume_of_their_actions():
    specs = goal_specs(observation_dim=3, goal_dim=2, action_dim=2)
    plain, robust = make_networks(*specs), make_networks(*specs, contamination=0.2)
    batch = specs[0].rand((5,))
    assert type(plain.actor.get_dist(batch)) is IndependentNormal
    dist = robust.actor.get_dist(batch)
    assert type(dist) is ContaminatedNormal
    far = torch.full((5, 2), 1e4)
    torch.testing.assert_close(dist.log_prob(far), torch.full((5,), math.log(0.2 / 4)))
    wide = make_networks(specs[0], Bounded(-2.0, torch.tensor([3.0, 1.0])), contamination=0.2)
    torch.testing.assert_close(wide.actor.get_dist(batch).log_prob(far), torch.full((5,), math.log(0.2 / (5 * 3))))
    with pytest.raises(ValueError, match="contamination"):
        make_networks(*specs, contamination=1.0)


def test_an_actor_with_it_can_be_sent_to_another_process():
    specs = goal_specs(observation_dim=3, goal_dim=2, action_dim=1)
    actor = make_networks(*specs, contamination=0.2).actor
    batch = specs[0].rand((4,))
    copy = pickle.loads(pickle.dumps(actor))
    torch.testing.assert_close(copy(batch)["action"], actor(batch)["action"])


def test_there_is_no_divergence_from_it_and_not_that_of_its_normal():
    own = ContaminatedNormal(torch.zeros(2, 3), torch.ones(2, 3), contamination=0.1, log_volume=1.0)
    normal = IndependentNormal(torch.zeros(2, 3), torch.ones(2, 3))
    for pair in ((own, own), (own, normal), (normal, own)):
        with pytest.raises(NotImplementedError, match="KL divergence of a contaminated normal"):
            torch.distributions.kl_divergence(*pair)
