"""Normal laws against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from xrl.nn.gaussians import DiagonalNormal, SquashedNormal, standard_normal

MEAN, LOG_STD = torch.tensor([[0.3, -1.0], [2.0, 0.0]]), torch.tensor([-0.5, 0.4])


def test_uniform_noise_becomes_standard_normal():
    noise = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    normal = standard_normal(noise)
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01
    probe = torch.tensor([0.5, 0.841344746])
    assert standard_normal(probe).tolist() == pytest.approx([0, 1], abs=1e-5)
    assert standard_normal(torch.tensor([0.0, 1 - 2**-24])).isfinite().all()


def test_diagonal_normal_is_torchs():
    law, theirs = DiagonalNormal(MEAN, LOG_STD), Normal(MEAN, LOG_STD.exp())
    action = torch.tensor([[0.1, 5.0], [-3.0, 0.2]])
    torch.testing.assert_close(law.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(law.entropy(), theirs.entropy().sum(-1))
    noise = torch.rand(100_000, 2, 2, generator=torch.Generator().manual_seed(0))
    sample = law.sample(noise)
    assert (sample.mean(0) - MEAN).abs().max() < 0.02 and (sample.std(0) - LOG_STD.exp()).abs().max() < 0.02
    assert law.mode() is MEAN


def test_squashed_normal_is_torchs():
    law = SquashedNormal(MEAN.double(), LOG_STD.double().expand(2, 2))
    theirs = TransformedDistribution(Normal(MEAN.double(), LOG_STD.double().exp()), TanhTransform())
    noise = torch.rand(1000, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    action, log_prob = law.sample_with_log_prob(noise)
    torch.testing.assert_close(log_prob, theirs.log_prob(action).sum(-1), rtol=1e-6, atol=1e-6)
    assert torch.equal(law.sample(noise), action) and (action.abs() < 1).all()
    torch.testing.assert_close(law.mode(), MEAN.double().tanh())


def test_the_density_of_one_dimension_integrates_to_one():
    """Over the noise's quantiles: the mean of 1 / p(a) is the length of (-1, 1)."""
    law = SquashedNormal(torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[-0.7]], dtype=torch.float64))
    noise = (torch.arange(200_000, dtype=torch.float64)[:, None, None] + 0.5) / 200_000
    action, log_prob = law.sample_with_log_prob(noise)
    width = action[1:, 0, 0] - action[:-1, 0, 0]
    middle = 0.5 * (log_prob[1:, 0].exp() + log_prob[:-1, 0].exp())
    assert (width * middle).sum().item() == pytest.approx(1, abs=1e-3)


def test_far_out_the_correction_stays_exact():
    """tanh(20) is 1 in float32, and 1 - tanh^2 would be 0: by hand ln(1 - tanh^2 20) = ln 4 - 40."""
    law = SquashedNormal(torch.tensor([[20.0]]), torch.tensor([[0.0]]))
    _, log_prob = law.sample_with_log_prob(torch.tensor([[0.5]]))
    expected = -0.5 * math.log(2 * math.pi) - (math.log(4) - 40)
    assert log_prob.item() == pytest.approx(expected, rel=1e-6)


def test_gradients_reach_mean_and_scale():
    mean, log_std = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    _, log_prob = SquashedNormal(mean, log_std).sample_with_log_prob(torch.tensor([[0.3, 0.9]]))
    for gradient in torch.autograd.grad(log_prob.sum(), [mean, log_std]):
        assert (gradient != 0).all()
