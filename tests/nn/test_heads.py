"""Heads: losses against torch.distributions, and which law an action space gets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from tests.builders import CONTINUOUS, DISCRETE, parameter_count
from xrl.common.row import ActionSpec
from xrl.nn.distributions import OneHot, TruncatedNormal
from xrl.nn.heads import DiscountHead, OneHotActor, ScalarHead, TruncatedNormalActor, make_actor


def head(kind, **kwargs):
    torch.manual_seed(0)
    return kind(6, layers=2, units=16, **kwargs)


def constant(module, bias):
    """The output layer gives ``bias`` whatever it reads."""
    nn.init.zeros_(module.weight)
    nn.init.constant_(module.bias, bias)


def test_scalar_head_is_a_unit_normal():
    scalar, feat, target = head(ScalarHead), torch.randn(4, 3, 6), torch.randn(4, 3)
    mean = scalar(feat)
    assert mean.shape == (4, 3)
    torch.testing.assert_close(mean, scalar.out(scalar.mlp(feat))[..., 0])
    torch.testing.assert_close(scalar.loss(feat, target), -Normal(mean, 1.0).log_prob(target))


def test_scalar_loss_at_its_target():
    scalar = head(ScalarHead)
    constant(scalar.out, 0.3)
    assert scalar.loss(torch.randn(2, 6), torch.full((2,), 0.3)).tolist() == pytest.approx([0.918939] * 2, abs=1e-6)


@pytest.mark.parametrize(("logit", "loss", "grad", "mean"), [
    (0.0, 0.693147, -0.499, 0.5), (6.906755, 0.0079073, 0.0, 0.999)])
def test_discount_head_learns_a_soft_label(logit, loss, grad, mean):
    discount = head(DiscountHead).double()
    constant(discount.out, logit)
    feat = torch.randn(2, 6, dtype=torch.float64)
    target = torch.full((2,), 0.999)
    values = discount.loss(feat, target)
    assert values.tolist() == pytest.approx([loss] * 2, abs=1e-6)
    (received,) = torch.autograd.grad(values.mean(), discount.out.bias)
    assert received.item() == pytest.approx(grad, abs=1e-6)
    assert discount(feat).tolist() == pytest.approx([mean] * 2, abs=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.3, 0.99, 1.0])
def test_discount_loss_is_the_cross_entropy(target):
    discount, feat = head(DiscountHead), torch.randn(5, 6)
    mean = discount(feat).detach()
    expected = [-(target * math.log(p) + (1 - target) * math.log(1 - p)) for p in mean.tolist()]
    assert discount.loss(feat, torch.full((5,), target)).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("raw", "std"), [(0.0, 1.1), (2.0, 1.562117), (-4.0, 0.338406), (-1e3, 0.1), (1e3, 2.1)])
def test_continuous_actor_scale(raw, std):
    actor = head(TruncatedNormalActor, action_size=2)
    constant(actor.scale, raw)
    assert actor(torch.randn(3, 6)).scale.flatten().tolist() == pytest.approx([std] * 6, abs=1e-6)


@pytest.mark.parametrize("raw", [0.0, 0.7, -3.0])
def test_continuous_actor_loc(raw):
    actor = head(TruncatedNormalActor, action_size=2)
    constant(actor.loc, raw)
    law = actor(torch.randn(3, 6))
    assert law.loc.flatten().tolist() == pytest.approx([math.tanh(raw)] * 6, abs=1e-6)
    assert law.mode() is law.loc


def test_discrete_actor_gives_logits():
    actor, feat = head(OneHotActor, action_size=3), torch.randn(4, 6)
    torch.testing.assert_close(actor(feat).logits, actor.out(actor.mlp(feat)))


def test_action_space_decides():
    discrete, continuous = make_actor(6, DISCRETE, 2, 16), make_actor(6, CONTINUOUS, 2, 16)
    feat = torch.randn(5, 6)
    assert isinstance(discrete(feat), OneHot) and isinstance(continuous(feat), TruncatedNormal)
    assert (discrete.noise_shape, continuous.noise_shape) == ((), (2,))
    assert discrete(feat).sample(torch.rand(5, *discrete.noise_shape)).shape == (5, 3)
    assert continuous(feat).sample(torch.rand(5, *continuous.noise_shape)).shape == (5, 2)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_a_fresh_actor_is_near_its_widest(kind):
    torch.manual_seed(0)
    law = make_actor(30, ActionSpec(kind, 4), 4, 400)(0.1 * torch.randn(50, 30))
    widest = math.log(4) if kind == "discrete" else 4 * 0.685978
    assert law.entropy().mean().item() == pytest.approx(widest, rel=0.03)


def test_outputs_are_float32_in_low_precision():
    feat = torch.randn(2, 6, dtype=torch.bfloat16)
    for kind in (ScalarHead, DiscountHead):
        assert head(kind).to(torch.bfloat16)(feat).dtype == torch.float32
    assert head(OneHotActor, action_size=3).to(torch.bfloat16)(feat).logits.dtype == torch.float32
    law = head(TruncatedNormalActor, action_size=3).to(torch.bfloat16)(feat)
    assert law.loc.dtype == law.scale.dtype == torch.float32


@pytest.mark.parametrize("kind", [ScalarHead, DiscountHead])
def test_norm_option(kind):
    normed = head(kind, norm="layer")
    assert sum(isinstance(layer, nn.LayerNorm) for layer in normed.modules()) == 2
    assert parameter_count(normed) == parameter_count(head(kind)) + 2 * 2 * 16
    for actor in (DISCRETE, CONTINUOUS):
        added = parameter_count(make_actor(6, actor, 2, 16, "layer")) - parameter_count(make_actor(6, actor, 2, 16))
        assert added == 2 * 2 * 16


def test_parameters_at_full_size():
    with torch.device("meta"):
        sizes = [ScalarHead(1624, 4, 400), make_actor(1624, ActionSpec("discrete", 18), 4, 400),
                 make_actor(1624, ActionSpec("discrete", 6), 4, 400)]
        dmc = make_actor(1224, ActionSpec("continuous", 6), 4, 400)
    assert [parameter_count(module) for module in sizes] == [1_131_601, 1_138_418, 1_133_606]
    assert parameter_count(dmc) == 976_012, "two separate output layers"
