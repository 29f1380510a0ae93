"""Trunks: shapes, what they read, and how they begin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.builders import BOTH, IMAGE, VECTOR, parameter_count
from xrl.nn.trunk import MiniConv, Trunk, orthogonal_linear


def obs_of(spec, *lead, frames=1):
    torch.manual_seed(0)
    return {name: torch.randint(0, 256, (*lead, *entry.shape[:-1], frames * entry.shape[-1]), dtype=torch.uint8)
            if entry.kind == "image" else torch.randn(*lead, frames * entry.shape[-1]) for name, entry in spec.items()}


@pytest.mark.parametrize("spec", [IMAGE, VECTOR, BOTH])
@pytest.mark.parametrize("frames", [1, 3])
def test_every_entry_matters_and_leading_axes_are_free(spec, frames):
    trunk = Trunk(spec, frames=frames, extra=2, depth=2, layers=2, units=8)
    obs, extra = obs_of(spec, 3, 2, frames=frames), torch.randn(3, 2, 2)
    out = trunk(obs, extra)
    assert out.shape == (3, 2, 8) and trunk.size == 8
    torch.testing.assert_close(trunk({name: value[1] for name, value in obs.items()}, extra[1]), out[1])
    for name, value in obs.items():
        assert not torch.allclose(trunk({**obs, name: torch.zeros_like(value)}, extra), out), name
    assert not torch.allclose(trunk(obs, torch.zeros_like(extra)), out)


def test_convolutions_are_those_of_the_dqn_paper_on_64_pixels():
    conv = MiniConv(4, 32)
    kernels = [(layer.kernel_size, layer.stride, layer.out_channels) for layer in conv.layers
               if isinstance(layer, nn.Conv2d)]
    assert kernels == [((8, 8), (4, 4), 32), ((4, 4), (2, 2), 64), ((3, 3), (1, 1), 64)]
    assert conv.size == 1024
    assert parameter_count(conv) == (4 * 64 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 9 + 1) * 64
    image = torch.randint(0, 256, (2, 64, 64, 4), dtype=torch.uint8)
    expected = conv.layers(image.permute(0, 3, 1, 2).float() / 255).flatten(1)
    torch.testing.assert_close(conv(image), expected)


@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_dense_layers_begin_orthogonal(gain):
    layer = orthogonal_linear(8, 4, gain)
    torch.testing.assert_close(layer.weight @ layer.weight.t(), gain**2 * torch.eye(4), atol=1e-6, rtol=1e-5)
    assert not layer.bias.any()


def test_activations():
    obs = obs_of(VECTOR, 50)
    relu, tanh = (Trunk(VECTOR, depth=2, layers=1, units=8, activation=name)(obs) for name in ("relu", "tanh"))
    assert relu.min() == 0 and relu.max() > 1
    assert tanh.min() < 0 and tanh.abs().max() < 1
