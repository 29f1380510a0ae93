"""Laws of the stochastic state against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from tests.builders import generator
from xrl.world_models.latents import CategoricalLatent, GaussianLatent, make_latent

CATEGORICAL, GAUSSIAN = CategoricalLatent(4, 5), GaussianLatent(6)


def stats_of(latent, lead=(2, 3), seed=0):
    return torch.randn(*lead, latent.stats_size, generator=generator(seed)).double()


def law_of(latent, stats):
    if latent is CATEGORICAL:
        return Independent(Categorical(logits=stats.reshape(*stats.shape[:-1], 4, 5)), 1)
    mean, raw = stats[..., :6], stats[..., 6:]
    return Independent(Normal(mean, 2 / (1 + torch.exp(-raw / 2)) + 0.1), 1)


def test_kinds_and_sizes():
    categorical, gaussian = make_latent("categorical", 32, 32), make_latent("gaussian", 30, 32)
    assert (categorical.size, categorical.stats_size) == (1024, 1024)
    assert (gaussian.size, gaussian.stats_size) == (30, 60)


@pytest.mark.parametrize("latent", [CATEGORICAL, GAUSSIAN])
def test_kl_and_entropy_equal_torch_distributions(latent):
    post, prior = stats_of(latent, seed=1), stats_of(latent, seed=2)
    expected = kl_divergence(law_of(latent, post), law_of(latent, prior))
    for kl in latent.kl(post, prior):
        assert kl.shape == (2, 3)
        torch.testing.assert_close(kl.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(latent.entropy(post).double(), law_of(latent, post).entropy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("latent", [CATEGORICAL, GAUSSIAN])
def test_noise_is_the_generators_and_fits_the_sample(latent):
    noise = latent.noise(2, 3, generator=generator(7))
    assert torch.equal(noise, latent.noise(2, 3, generator=generator(7)))
    assert not torch.equal(noise, latent.noise(2, 3, generator=generator(8)))
    assert latent.sample(stats_of(latent), noise).shape == (2, 3, latent.size)


def test_noise_has_the_right_law():
    uniform = CATEGORICAL.noise(5000, generator=generator())
    assert uniform.min() >= 0 and uniform.max() < 1 and uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    normal = GAUSSIAN.noise(5000, generator=generator())
    assert normal.mean().item() == pytest.approx(0, abs=0.02) and normal.std().item() == pytest.approx(1, abs=0.02)


def test_categorical_sample_is_one_class_per_variable():
    stats = stats_of(CATEGORICAL)
    sample = CATEGORICAL.sample(stats, CATEGORICAL.noise(2, 3, generator=generator())).unflatten(-1, (4, 5))
    assert ((sample == 0) | (sample == 1)).all() and sample.sum(-1).eq(1).all()


def test_categorical_entropy_without_preference():
    assert CategoricalLatent(32, 32).entropy(torch.zeros(1024)).item() == pytest.approx(110.903549, abs=1e-4)


def test_categorical_kl_of_32_variables():
    post = torch.tensor([0.7, 0.2, 0.1]).log().repeat(32)
    for kl in CategoricalLatent(32, 3).kl(post, torch.zeros(96)):
        assert kl.item() == pytest.approx(9.497400, abs=1e-5)


def test_gaussian_sample_is_reparameterised():
    stats = stats_of(GAUSSIAN).requires_grad_()
    noise = GAUSSIAN.noise(2, 3, generator=generator())
    law = law_of(GAUSSIAN, stats).base_dist
    torch.testing.assert_close(GAUSSIAN.sample(stats, noise).double(), law.mean + law.stddev * noise, atol=1e-5, rtol=0)
    (grad,) = torch.autograd.grad(GAUSSIAN.sample(stats, noise).sum(), stats)
    assert grad[..., :6].eq(1).all() and grad[..., 6:].ne(0).all()


@pytest.mark.parametrize(("raw", "std"), [(0.0, 1.1), (2.0, 1.562117), (-4.0, 0.338406)])
def test_gaussian_deviation(raw, std):
    stats = torch.cat([torch.zeros(6), torch.full((6,), raw)])
    assert GAUSSIAN.sample(stats, torch.ones(6)).tolist() == pytest.approx([std] * 6, abs=1e-6)
    expected = 6 * (math.log(std) + 0.5 * math.log(2 * math.pi * math.e))
    assert GAUSSIAN.entropy(stats).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("latent", [CATEGORICAL, GAUSSIAN])
def test_laws_are_float32_whatever_the_stats(latent):
    low = stats_of(latent).to(torch.bfloat16)
    noise = latent.noise(2, 3, generator=generator())
    results = [latent.sample(low, noise), latent.entropy(low), *latent.kl(low, low)]
    assert {result.dtype for result in results} == {torch.float32}


def test_softplus_deviation_and_its_divergence():
    """DreamerV1's: golden numbers of its specification."""
    latent = GaussianLatent(30, std="softplus")
    stats = torch.zeros(60)
    assert latent.sample(stats, torch.ones(30)).tolist() == pytest.approx([0.7931472] * 30, abs=1e-6)

    def law_of(mean, std):
        return torch.cat([torch.full((30,), mean), torch.full((30,), math.log(math.expm1(std - 0.1)))])

    each = latent.kl_each(law_of(0.5, 0.8), law_of(0.0, 1.0))
    assert each.tolist() == pytest.approx([0.1681436] * 30, abs=1e-6)
    dyn_kl, rep_kl = latent.kl(law_of(0.5, 0.8), law_of(0.0, 1.0))
    assert dyn_kl.item() == rep_kl.item() == pytest.approx(5.0443065, abs=1e-5)
