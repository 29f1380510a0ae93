"""DreamerV3's convolutions: shapes, parameter counts, and the way from blocks to pixels."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.builders import parameter_count
from xrl.nn.pool_conv import BlockDecoder, DoublingConv, PoolEncoder


def test_encoder_halves_four_times():
    encoder = PoolEncoder(3, 4)
    sizes = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    assert encoder(torch.zeros(2, 5, 64, 64, 3)).shape == (2, 5, encoder.size) == (2, 5, 4 * 4 * 16)
    assert sorted(set(sizes), reverse=True) == [64, 32, 16, 8, 4]


@pytest.mark.parametrize(("depth", "deter", "units", "stoch", "encoder", "decoder"), [
    (4, 512, 64, 128, 14_304, 80_595), (16, 2048, 256, 512, 220_416, 1_272_003)])
def test_parameters_at_published_sizes(depth, deter, units, stoch, encoder, decoder):
    assert parameter_count(PoolEncoder(3, depth)) == encoder
    assert parameter_count(BlockDecoder(deter + stoch, 3, depth, deter=deter, units=units)) == decoder


def test_encoder_layer_is_convolution_pool_norm_silu():
    torch.manual_seed(0)
    encoder = PoolEncoder(1, 2)
    image = torch.rand(1, 64, 64, 1)
    conv = encoder.layers[0]
    x = F.conv2d(image.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=2)
    x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    x = x / (x.square().mean(1, keepdim=True) + 1e-4).sqrt()
    assert torch.allclose(encoder.layers[:4](image.permute(0, 3, 1, 2)), x * torch.sigmoid(x), atol=1e-5)


def test_each_block_of_h_has_channels_of_its_own_and_z_reaches_all():
    torch.manual_seed(0)
    decoder = BlockDecoder(24, 1, 8, deter=16, units=3)
    seen = []
    decoder.norm.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0]))
    feat = torch.zeros(1, 24)
    decoder(feat)
    for block in range(8):
        changed = feat.clone()
        changed[0, 8 + 2 * block] = 1.0  # z first, then h
        decoder(changed)
        difference = (seen[-1] - seen[0]).abs().sum((0, 1, 2)).reshape(8, -1).sum(-1)
        assert np.flatnonzero(difference.detach().numpy()).tolist() == [block]
    changed = feat.clone()
    changed[0, 3] = 1.0
    decoder(changed)
    assert ((seen[-1] - seen[0]).abs().sum((0, 1, 2)) > 0).all()


def test_pixels_lie_between_minus_and_plus_a_half():
    image = BlockDecoder(24, 3, 2, deter=16, units=3)(50 * torch.randn(2, 3, 24))
    assert image.shape == (2, 3, 64, 64, 3) and image.dtype == torch.float32
    assert -0.5 <= float(image.min()) < float(image.max()) <= 0.5


def test_doubling_convolution_is_repetition_and_convolution():
    torch.manual_seed(0)
    layer = DoublingConv(3, 2).double()
    x, other = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(2))
    x.requires_grad_()
    found = layer(x)
    expected = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), layer.weight, layer.bias, padding=2)
    assert torch.allclose(found, expected)
    wanted = [x, layer.weight, layer.bias]
    for one, two in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in (found, expected)), strict=True):
        assert torch.allclose(one, two)
    assert layer(other).shape == (2, 2, 10, 8)
