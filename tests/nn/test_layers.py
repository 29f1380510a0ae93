"""Dense layers: initialisation, order of norm and activation, and the norm's epsilon."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from xrl.nn.layers import MLP, ChannelNorm, dense, glorot, norm_layer


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def layer_norm(x, weight=1.0, bias=0.0):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * weight + bias


@pytest.mark.parametrize(("layer", "fan_in", "fan_out"), [
    (nn.Linear(300, 200), 300, 200),
    (nn.Conv2d(16, 32, 4, stride=2), 16 * 4 * 4, 32 * 4 * 4),
    (nn.ConvTranspose2d(32, 16, 5, stride=2), 32 * 5 * 5, 16 * 5 * 5),
])
def test_kernels_are_glorot_uniform_and_biases_zero(layer, fan_in, fan_out):
    torch.manual_seed(0)
    glorot(layer)
    bound = math.sqrt(6 / (fan_in + fan_out))
    kernel = layer.weight.detach()
    assert kernel.abs().max() <= bound
    assert kernel.abs().max() > 0.99 * bound
    assert kernel.std().item() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.02)
    assert not layer.bias.any()


def test_dense_is_initialised():
    torch.manual_seed(0)
    layer = dense(300, 200)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert not layer.bias.any()


def test_a_norm_is_left_as_it_is():
    norm = nn.LayerNorm(4)
    glorot(norm)
    assert norm.weight.eq(1).all() and not norm.bias.any()


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_mlp_is_dense_norm_elu_repeated(norm):
    torch.manual_seed(0)
    mlp = MLP(3, 2, 5, norm)
    for parameter in mlp.parameters():
        nn.init.normal_(parameter)
    denses = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    norms = [layer for layer in mlp if isinstance(layer, nn.LayerNorm)]
    assert (len(denses), len(norms)) == (2, 2 if norm == "layer" else 0)
    assert all(layer.bias is not None for layer in denses), "kept even where a norm follows"
    x = torch.randn(4, 2, 3)
    expected = array(x)
    for i, layer in enumerate(denses):
        expected = expected @ array(layer.weight).T + array(layer.bias)
        if norms:
            expected = layer_norm(expected, array(norms[i].weight), array(norms[i].bias))
        expected = elu(expected)
    np.testing.assert_allclose(array(mlp(x)), expected, atol=1e-5)


def test_layer_norm_has_the_epsilon_of_keras():
    x = torch.tensor([[0.01, -0.01]])  # variance 1e-4, a tenth of epsilon
    assert norm_layer("layer", 2)(x)[0, 0].item() == pytest.approx(0.01 / math.sqrt(1.1e-3), rel=1e-5)
    assert norm_layer("none", 2)(x) is x


def test_channel_norm_normalises_every_pixel_over_channels():
    torch.manual_seed(0)
    norm = ChannelNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = torch.randn(2, 6, 3, 4) * 0.05
    pixels = np.moveaxis(array(image), 1, -1)
    expected = np.moveaxis(layer_norm(pixels, array(norm.weight), array(norm.bias)), -1, 1)
    np.testing.assert_allclose(array(norm(image)), expected, atol=1e-5)
