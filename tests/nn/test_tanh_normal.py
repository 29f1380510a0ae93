"""DreamerV1's law of continuous actions, and the actor that gives it, against torch.distributions and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from tests.builders import parameter_count
from xrl.nn.distributions import TanhNormal
from xrl.nn.heads import TanhNormalActor

LAWS = [(0.0, 1.0), (0.7, 0.3), (-4.8, 5.0001), (2.5, 0.05), (0.0, 5.0)]


def law(loc, scale, grad=False):
    return TanhNormal(*(torch.tensor([value], dtype=torch.float64, requires_grad=grad) for value in (loc, scale)))


def test_golden_log_prob():
    assert law(0.0, 1.0).log_prob(torch.tensor([math.tanh(0.5)])).item() == pytest.approx(-0.8037095, abs=1e-6)


@pytest.mark.parametrize(("loc", "scale"), LAWS)
@pytest.mark.parametrize("action", [-0.999, -0.3, 0.0, 0.8])
def test_log_prob_equals_torch_distributions(loc, scale, action):
    expected = TransformedDistribution(Normal(loc, scale), TanhTransform()).log_prob(torch.tensor(action).double())
    assert law(loc, scale).log_prob(torch.tensor([action]).double()).item() == pytest.approx(expected.item(), rel=1e-6)


def test_log_prob_at_the_edge_is_finite():
    assert law(0.0, 1.0).log_prob(torch.tensor([1.0])).isfinite()


@pytest.mark.parametrize(("loc", "scale"), LAWS)
def test_samples_follow_the_law(loc, scale):
    noise = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = law(loc, scale).sample(noise).squeeze(-1).numpy()
    assert np.abs(samples).max() <= 1
    with np.errstate(divide="ignore"):  # tanh may round to 1
        assert stats.kstest(np.arctanh(samples), stats.norm(loc, scale).cdf).statistic < 0.02


def test_the_gradient_of_a_sample_is_pathwise():
    one, noise = law(0.4, 0.6, grad=True), torch.tensor([0.8], dtype=torch.float64)
    z = stats.norm.ppf(0.8)
    slope = 1 - math.tanh(0.4 + 0.6 * z)**2
    found = torch.autograd.grad(one.sample(noise), [one.loc, one.scale])
    assert [grad.item() for grad in found] == pytest.approx([slope, slope * z], rel=1e-6)


@pytest.mark.parametrize(("loc", "scale"), LAWS)
def test_entropy_equals_the_integral(loc, scale):
    """-E[log p]: p of the action is the normal's density divided by tanh' = 1 / cosh^2."""
    def integrand(x):
        return stats.norm.pdf(x, loc, scale) * (-stats.norm.logpdf(x, loc, scale)
                                                - 2 * (np.logaddexp(x, -x) - math.log(2)))

    expected = integrate.quad(integrand, loc - 9 * scale, loc + 9 * scale, limit=400)[0]
    assert law(loc, scale).entropy().item() == pytest.approx(expected, abs=0.02)


def test_the_mode_is_the_median():
    noise = torch.full((2,), 0.5, dtype=torch.float64)
    one = TanhNormal(torch.tensor([0.3, -2.0]).double(), torch.tensor([0.5, 4.0]).double())
    torch.testing.assert_close(one.mode(), one.sample(noise))
    assert one.mode().tolist() == pytest.approx([math.tanh(0.3), math.tanh(-2.0)])


def test_dimensions_are_independent():
    both = TanhNormal(torch.tensor([0.0, 0.7]).double(), torch.tensor([1.0, 0.3]).double())
    action = torch.tensor([0.2, -0.5]).double()
    parts = [law(0.0, 1.0).log_prob(action[:1]), law(0.7, 0.3).log_prob(action[1:])]
    assert both.log_prob(action).item() == pytest.approx(sum(part.item() for part in parts))
    assert both.entropy().item() == pytest.approx(law(0.0, 1.0).entropy().item() + law(0.7, 0.3).entropy().item())


# Actor -------------------------------------------------------------------------------------------------------------


def constant(mean, raw, **keywords):
    torch.manual_seed(0)
    actor = TanhNormalActor(6, 2, layers=2, units=16, **keywords)
    nn.init.zeros_(actor.out.weight)
    with torch.no_grad():
        actor.out.bias.copy_(torch.tensor([mean, mean, raw, raw]))
    return actor(torch.randn(3, 6))


@pytest.mark.parametrize(("raw", "std"), [(0.0, 5.0001), (2.0, 6.99423), (-5.0, 0.689873), (-1e3, 1e-4)])
def test_scale_begins_at_5(raw, std):
    assert constant(0.0, raw).scale.flatten().tolist() == pytest.approx([std] * 6, abs=1e-4)


@pytest.mark.parametrize("init_std", [0.1, 1.0, 20.0])
def test_scale_begins_where_it_is_told(init_std):
    assert constant(0.0, 0.0, init_std=init_std).scale.flatten().tolist() == pytest.approx([init_std + 1e-4] * 6)


@pytest.mark.parametrize(("mean", "loc"), [(0.0, 0.0), (10.0, 4.8201379), (-10.0, -4.8201379), (0.5, 0.49833997)])
def test_location_is_squashed_to_5(mean, loc):
    assert constant(mean, 0.0).loc.flatten().tolist() == pytest.approx([loc] * 6, abs=1e-6)


def test_location_is_squashed_to_what_it_is_told():
    assert constant(3.0, 0.0, mean_scale=2.0).loc.flatten().tolist() == pytest.approx([2 * math.tanh(1.5)] * 6)


def test_parameters_and_noise():
    actor = TanhNormalActor(230, 6, layers=4, units=400)
    assert parameter_count(actor) == 578_412 and actor.noise_shape == (6,)
