"""Laws of latents and actions against torch.distributions and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal, OneHotCategorical, OneHotCategoricalStraightThrough

from xrl.nn.distributions import OneHot, TruncatedNormal, normal_loss, one_hot_mode, one_hot_sample, straight_through

LAWS = [(0.0, 1.1), (math.tanh(3), 0.1), (-0.9, 2.1), (0.4, 0.6)]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def truncated(loc, scale, grad=False):
    return TruncatedNormal(double(loc).requires_grad_(grad), double(scale).requires_grad_(grad))


def oracle(loc, scale):
    return stats.truncnorm((-1 - loc) / scale, (1 - loc) / scale, loc, scale)


# One-hot ---------------------------------------------------------------------------------------------------------


def test_straight_through_has_the_value_of_the_sample_and_the_gradient_of_the_probabilities():
    logits = double(1, 2, 3).log().requires_grad_()
    weight = double(1, 2, 3)
    for uniform, drawn in [(0.1, 0), (0.4, 1), (0.9, 2)]:
        value = (one_hot_sample(logits, torch.tensor(uniform).double()) * weight).sum()
        assert value.item() == weight[drawn].item(), "exactly"
        (grad,) = torch.autograd.grad(value, logits)
        assert grad.tolist() == pytest.approx([-0.222222, -0.111111, 0.333333], abs=1e-6)


@pytest.mark.parametrize("draw", [lambda x: one_hot_sample(x, torch.tensor(0.6).double()), one_hot_mode])
def test_straight_through_jacobian(draw):
    jacobian = torch.autograd.functional.jacobian(draw, double(1, 2, 3).log())
    expected = double([0.138889, -0.055556, -0.083333], [-0.055556, 0.222222, -0.166667], [-0.083333, -0.166667, 0.25])
    torch.testing.assert_close(jacobian, expected, atol=1e-6, rtol=0)


def test_gradient_equals_that_of_torch_distributions():
    torch.manual_seed(0)
    logits, weight = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    theirs = OneHotCategoricalStraightThrough(logits=logits).rsample()
    (expected,) = torch.autograd.grad((theirs * weight).sum(), logits)
    (ours,) = torch.autograd.grad((one_hot_sample(logits, torch.rand(5)) * weight).sum(), logits)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_samples_are_exactly_one_hot_in_every_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2000, 32, generator=generator)).to(dtype).requires_grad_()
    sample = one_hot_sample(logits, torch.rand(2000, generator=generator))
    assert sample.requires_grad and sample.dtype == dtype
    assert ((sample == 0) | (sample == 1)).all() and sample.float().sum(-1).eq(1).all()
    mode = one_hot_mode(logits)
    assert torch.equal(mode.argmax(-1), logits.argmax(-1)) and mode.float().sum(-1).eq(1).all()


def test_straight_through_without_gradient_is_the_sample():
    hard = torch.tensor([0.0, 1.0])
    assert straight_through(hard, torch.tensor([0.5, 0.5])) is hard


def test_frequencies_match_the_softmax():
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, 2.0])
    count = 200_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0))
    observed = one_hot_sample(logits.expand(count, 5), uniform).sum(0).double().numpy()
    expected = count * logits.double().softmax(-1).numpy()
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.01


def test_thresholds_are_the_cumulative_probabilities():
    logits = double(1, 2, 5).log()
    for uniform, drawn in [(0.0, 0), (0.124, 0), (0.126, 1), (0.374, 1), (0.376, 2), (0.999999, 2)]:
        assert one_hot_sample(logits, double(uniform)[0]).argmax().item() == drawn


@pytest.mark.parametrize("classes", [2, 32, 1000])
def test_extreme_uniform_numbers_draw_a_class_that_exists(classes):
    logits = torch.randn(300, classes, generator=torch.Generator().manual_seed(0))
    last = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).expand(300)
    assert one_hot_sample(logits, last).sum(-1).eq(1).all()
    assert one_hot_sample(logits, torch.ones(300))[:, -1].eq(1).all(), "1 itself, should rounding ever reach it"
    assert one_hot_sample(logits, torch.zeros(300))[:, 0].eq(1).all()


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_a_class_without_probability_is_never_drawn(dead):
    logits = torch.zeros(4)
    logits[dead] = -torch.inf
    uniform = torch.cat([torch.linspace(0, 1, 10_000)[:-1], torch.tensor([1 - 2**-24]), torch.arange(4) / 3 - 1e-9])
    uniform = uniform.clamp(0, 1 - 2**-24)
    drawn = one_hot_sample(logits.expand(len(uniform), 4), uniform).sum(0)
    assert drawn[dead] == 0 and (drawn > 0).sum() == 3


@pytest.mark.parametrize("classes", [32, 1000])
def test_rounding_of_the_cumulative_sum_draws_no_class_without_probability(classes):
    logits = torch.randn(2000, classes, generator=torch.Generator().manual_seed(0))
    logits[:, -1] = -torch.inf
    assert logits.softmax(-1).cumsum(-1)[:, -1].min() < 1 - 2**-24, "otherwise this tests nothing"
    assert not one_hot_sample(logits, torch.full((2000,), 1 - 2**-24))[:, -1].any()


def test_one_hot_log_prob_and_entropy_equal_torch_distributions():
    torch.manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64)
    ours, theirs = OneHot(logits), OneHotCategorical(logits=logits)
    action = theirs.sample()
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), torch.nn.functional.one_hot(logits.argmax(-1), 5).double())
    assert torch.equal(ours.sample(torch.full((7,), 0.3)), one_hot_sample(logits, torch.full((7,), 0.3)))


@pytest.mark.parametrize(("actions", "expected"), [(18, 2.890372), (6, 1.791759)])
def test_entropy_of_a_uniform_policy(actions, expected):
    assert OneHot(torch.zeros(actions)).entropy().item() == pytest.approx(expected, abs=1e-6)


# Normal ----------------------------------------------------------------------------------------------------------


def test_normal_loss_equals_torch_distributions():
    torch.manual_seed(0)
    mean, target = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = -Normal(mean, 1.0).log_prob(target)
    torch.testing.assert_close(normal_loss(mean, target), expected)
    torch.testing.assert_close(normal_loss(mean, target, dims=2), expected.sum((-2, -1)))


@pytest.mark.parametrize(("channels", "error", "expected"), [
    (1, 0.0, 3763.972232), (3, 0.0, 11291.916697), (1, 0.1, 3784.452232)])
def test_loss_of_an_image_is_summed_over_pixels(channels, error, expected):
    target = torch.rand(2, 64, 64, channels).double() - 0.5
    loss = normal_loss(target + error, target, dims=3)
    assert loss.tolist() == pytest.approx([expected] * 2, abs=1e-5)


# Truncated normal ------------------------------------------------------------------------------------------------


def test_truncated_normal_golden_numbers():
    law = truncated(0.0, 1.1)
    assert law.entropy().item() == pytest.approx(0.685978, abs=1e-6)
    assert law.log_prob(double(0.0)).item() == pytest.approx(-0.562789, abs=1e-6)
    assert law.log_prob(double(0.7)).item() == pytest.approx(-0.765268, abs=1e-6)
    assert law.sample(double(0.25)).item() == pytest.approx(-0.451232, abs=1e-6)


def test_truncated_normal_far_in_a_corner():
    for law in (truncated(math.tanh(3), 0.1), TruncatedNormal(torch.tensor([math.tanh(3)]), torch.tensor([0.1]))):
        assert law.entropy().item() == pytest.approx(-1.557067, abs=1e-5)
        assert law.log_prob(torch.zeros(1)).item() == pytest.approx(-47.468588, abs=1e-4)


@pytest.mark.parametrize(("loc", "scale"), LAWS)
def test_truncated_normal_equals_scipy(loc, scale):
    law, expected = truncated(loc, scale), oracle(loc, scale)
    assert law.entropy().item() == pytest.approx(expected.entropy(), abs=1e-9)
    assert law.mode().item() == loc
    for x in (-0.99, -0.3, 0.0, 0.7, 1.0):
        assert law.log_prob(double(x)).item() == pytest.approx(expected.logpdf(x), abs=1e-8)
    for u in (0.001, 0.25, 0.5, 0.9):
        assert law.sample(double(u)).item() == pytest.approx(expected.ppf(u), abs=1e-6)


@pytest.mark.parametrize(("loc", "scale"), LAWS)
def test_truncated_normal_samples_follow_the_law(loc, scale):
    noise = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    law = TruncatedNormal(torch.full_like(noise, loc), torch.full_like(noise, scale))
    sample = law.sample(noise).squeeze(-1).double().numpy()
    assert stats.kstest(sample, oracle(loc, scale).cdf).pvalue > 0.01
    assert sample.mean() == pytest.approx(oracle(loc, scale).mean(), abs=0.015)
    assert sample.var() == pytest.approx(oracle(loc, scale).var(), rel=0.03)


def test_moments_of_the_oracle_are_those_of_the_equations():
    assert oracle(0.0, 1.1).var() == pytest.approx(0.298118, abs=1e-6)
    assert oracle(math.tanh(3), 0.1).mean() == pytest.approx(0.918388, abs=1e-6)


@pytest.mark.parametrize(("loc", "scale"), [*LAWS, (1.0, 0.1), (-1.0, 0.1), (1.0, 2.1)])
def test_samples_keep_off_the_edges(loc, scale):
    noise = torch.cat([torch.tensor([0.0, 1e-12, 2**-24, 1 - 2**-24]), torch.rand(1000)]).requires_grad_(False)
    law = TruncatedNormal(torch.full((1004,), loc), torch.full((1004,), scale))
    sample = law.sample(noise)
    assert sample.isfinite().all()
    assert sample.min() >= -1 + 0.9e-6 and sample.max() <= 1 - 0.9e-6  # 1e-6, rounded to float32
    assert law.log_prob(sample.unsqueeze(-1)).isfinite().all()


@pytest.mark.parametrize(("loc", "scale"), LAWS)
@pytest.mark.parametrize("noise", [0.03, 0.5, 0.8])
def test_sample_gradient_is_pathwise(loc, scale, noise):
    """d sample / d (loc, scale) with the noise held fixed, by a difference of scipy's inverse CDF."""
    law, step = truncated(loc, scale, grad=True), 1e-6
    ours = torch.autograd.grad(law.sample(double(noise)), [law.loc, law.scale])
    by_loc = (oracle(loc + step, scale).ppf(noise) - oracle(loc - step, scale).ppf(noise)) / (2 * step)
    by_scale = (oracle(loc, scale + step).ppf(noise) - oracle(loc, scale - step).ppf(noise)) / (2 * step)
    assert [grad.item() for grad in ours] == pytest.approx([by_loc, by_scale], rel=1e-3, abs=1e-4)


def test_a_clamped_sample_keeps_its_gradient():
    law = TruncatedNormal(torch.tensor([0.99], requires_grad=True), torch.tensor([0.1]))
    sample = law.sample(torch.tensor([1 - 2**-24]))
    assert sample.item() == pytest.approx(1 - 1e-6, abs=1e-7)
    assert torch.autograd.grad(sample, law.loc)[0].isfinite().all()


@pytest.mark.parametrize("method", ["log_prob", "entropy"])
def test_gradients_of_log_prob_and_entropy(method):
    loc, scale = double(0.3, -0.7).requires_grad_(), double(0.5, 1.7).requires_grad_()
    inputs = (loc, scale)

    def value(*parameters):
        law = TruncatedNormal(*parameters)
        return law.log_prob(double(0.1, -0.9)) if method == "log_prob" else law.entropy()

    assert torch.autograd.gradcheck(value, inputs)


def test_actions_of_several_dimensions_are_independent():
    law = TruncatedNormal(double(0.0, 0.4), double(1.1, 0.6))
    action = double(0.7, 0.2)
    expected = oracle(0.0, 1.1).logpdf(0.7) + oracle(0.4, 0.6).logpdf(0.2)
    assert law.log_prob(action).item() == pytest.approx(expected)
    assert law.entropy().item() == pytest.approx(oracle(0.0, 1.1).entropy() + oracle(0.4, 0.6).entropy())
    assert law.log_prob(action).shape == law.entropy().shape == ()


def test_entropy_of_a_flat_law_is_below_the_uniform():
    widest = TruncatedNormal(double(0.0), double(2.1)).entropy().item()
    assert 0.67 < widest < math.log(2)
    assert np.isclose(TruncatedNormal(double(0.0), double(1e3)).entropy().item(), math.log(2), atol=1e-5)
