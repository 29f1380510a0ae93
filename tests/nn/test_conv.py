"""Convolutional encoder and decoder against chains of torch functions on the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.builders import parameter_count
from xrl.nn.conv import ConvDecoder, ConvEncoder, FrugalELU, _LastLayer


def filled(module):
    """Random parameters everywhere, so that no bias and no norm hides."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def over_channels(x, norm):
    """LayerNorm over axis 1 of (N, C, H, W)."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-3).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("channels", [1, 3])
def test_encoder_is_four_strided_convolutions(channels, norm):
    encoder = filled(ConvEncoder(channels, 2, norm))
    image = torch.rand(2, 64, 64, channels) - 0.5
    convs = [layer for layer in encoder.layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in encoder.layers if isinstance(layer, nn.LayerNorm)]
    x, shapes = image.permute(0, 3, 1, 2), []
    for i, conv in enumerate(convs):
        x = F.conv2d(x, conv.weight, conv.bias, stride=2)
        x = F.elu(over_channels(x, norms[i]) if norms else x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(2, 31, 31), (4, 14, 14), (8, 6, 6), (16, 2, 2)]
    torch.testing.assert_close(encoder(image), x.flatten(1))
    assert encoder.size == 64


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoder_is_a_dense_layer_and_four_transposed_convolutions(channels, norm):
    decoder = filled(ConvDecoder(7, channels, 2, norm))
    feat = torch.randn(3, 7)
    x = F.linear(feat, decoder.dense.weight, decoder.dense.bias)[:, :, None, None]  # no activation here
    shapes = []
    for i, layer in enumerate(decoder.layers):
        x = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
        shapes.append(tuple(x.shape[1:]))
        if i < 3:
            x = F.elu(over_channels(x, decoder.norms[i]) if norm == "layer" else x)
    assert shapes == [(8, 5, 5), (4, 13, 13), (2, 30, 30), (channels, 64, 64)]
    torch.testing.assert_close(decoder(feat), x.permute(0, 2, 3, 1), atol=1e-4, rtol=1e-4)


def test_relu_instead_of_elu():
    """Between the same layers, and behind the encoder's last one (DreamerV1)."""
    encoder, decoder = filled(ConvEncoder(3, 2, act="relu")), filled(ConvDecoder(7, 3, 2, act="relu"))
    image, feat = torch.rand(2, 64, 64, 3) - 0.5, torch.randn(3, 7)
    x = image.permute(0, 3, 1, 2)
    for layer in encoder.layers:
        if isinstance(layer, nn.Conv2d):
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, stride=2))
    torch.testing.assert_close(encoder(image), x.flatten(1))
    y = F.linear(feat, decoder.dense.weight, decoder.dense.bias)[:, :, None, None]
    for i, layer in enumerate(decoder.layers):
        y = F.conv_transpose2d(y, layer.weight, layer.bias, stride=2)
        y = F.relu(y) if i < 3 else y
    torch.testing.assert_close(decoder(feat), y.permute(0, 2, 3, 1), atol=1e-4, rtol=1e-4)
    for module, inputs in ((encoder, image), (decoder, feat)):
        grads = torch.autograd.grad(module(inputs).square().sum(), list(module.parameters()))
        assert all(grad.any() for grad in grads)


def test_first_decoder_layer_as_a_matrix_product_is_the_transposed_convolution():
    decoder = filled(ConvDecoder(7, 1, 2)).double()
    pixel = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    ours, theirs = decoder._from_one_pixel(decoder.layers[0], pixel), decoder.layers[0](pixel[:, :, None, None])
    torch.testing.assert_close(ours, theirs)
    weights = list(decoder.layers[0].parameters())
    direction = torch.randn_like(ours)
    for mine, other in zip(torch.autograd.grad((ours * direction).sum(), [pixel, *weights]),
                           torch.autograd.grad((theirs * direction).sum(), [pixel, *weights]), strict=True):
        torch.testing.assert_close(mine, other)


def test_leading_axes_are_kept():
    encoder, decoder = filled(ConvEncoder(1, 2)), filled(ConvDecoder(7, 1, 2))
    image, feat = torch.rand(2, 3, 64, 64, 1), torch.randn(2, 3, 7)
    torch.testing.assert_close(encoder(image)[1, 2], encoder(image[1, 2]))
    torch.testing.assert_close(decoder(feat)[1, 2], decoder(feat[1, 2]), atol=1e-5, rtol=1e-5)
    assert encoder(image).shape == (2, 3, 64) and decoder(feat).shape == (2, 3, 64, 64, 1)


def test_rows_and_columns_are_not_swapped():
    """A change in the top right corner moves only the features that see it: row 0, column 1."""
    encoder = filled(ConvEncoder(1, 2))
    image = torch.rand(64, 64, 1)
    changed = image.clone()
    changed[0, 50] += 1.0
    moved = (encoder(image) != encoder(changed)).reshape(16, 2, 2).any(0)
    assert moved.tolist() == [[False, True], [False, False]]


def test_parameters_at_full_size():
    with torch.device("meta"):
        encoder, decoder, colour = ConvEncoder(1, 48), ConvDecoder(1624, 1, 48), ConvDecoder(1224, 3, 48)
    convs = [layer for layer in encoder.layers if isinstance(layer, nn.Conv2d)]
    assert [parameter_count(layer) for layer in convs] == [816, 73_824, 295_104, 1_180_032]
    assert parameter_count(decoder.dense) == 2_496_000
    assert [parameter_count(layer) for layer in decoder.layers] == [7_372_992, 460_896, 165_936, 1_729]
    assert (parameter_count(encoder), parameter_count(decoder)) == (1_549_776, 10_497_553)
    assert parameter_count(colour) == 9_886_611
    assert encoder.size == 1536


def test_initialisation_is_glorot_everywhere():
    torch.manual_seed(0)
    for module in (ConvEncoder(3, 16), ConvDecoder(100, 3, 16)):
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                area = layer.weight[0, 0].numel()
                fans = sum(layer.weight.shape[:2]) * area
                assert layer.weight.std().item() == pytest.approx((2 / fans)**0.5, rel=0.06)
                assert not layer.bias.any()


# Faster forms of the same layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_last_decoder_layer_as_an_ordinary_convolution_is_the_transposed_one(channels, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4).double().to(memory_format=layout).requires_grad_()
    weight = torch.randn(3, channels, 6, 6).double().to(memory_format=layout).requires_grad_()
    bias = torch.randn(channels).double().requires_grad_()
    ours = _LastLayer.apply(x, weight, bias)
    theirs = F.conv_transpose2d(x, weight, bias, stride=2).permute(0, 2, 3, 1)
    assert ours.shape == (2, 14, 12, channels)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    for mine, other in zip(torch.autograd.grad((ours * direction).sum(), [x, weight, bias]),
                           torch.autograd.grad((theirs * direction).sum(), [x, weight, bias]), strict=True):
        torch.testing.assert_close(mine, other)


def between_convolutions(elu):
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3).double(), nn.ConvTranspose2d(3, 2, 3).double()
    return [first, second], lambda x: second(elu(first(x)))


@pytest.mark.parametrize("grad", [True, False], ids=["inner", "image"])
def test_frugal_elu_between_two_convolutions_is_the_elu(grad):
    (ours, run), (theirs, reference) = between_convolutions(FrugalELU()), between_convolutions(F.elu)
    x = torch.randn(2, 2, 6, 6).double().requires_grad_(grad)
    kept, direction = x.detach().clone(), torch.randn(2, 2, 6, 6).double()
    torch.testing.assert_close(run(x), reference(x))

    def gradients(layers, output, keep=False):
        inputs = [p for layer in layers for p in layer.parameters()] + ([x] if grad else [])
        return torch.autograd.grad((output * direction).sum(), inputs, retain_graph=keep)

    expected = gradients(theirs, reference(x))
    output, original = run(x), direction.clone()
    for again in (True, False):  # what a backward pass overwrites was made for it alone
        for mine, other in zip(gradients(ours, output, again), expected, strict=True):
            torch.testing.assert_close(mine, other)
    assert torch.equal(x, kept) and torch.equal(direction, original)


def test_frugal_elu_without_a_gradient_is_the_elu():
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(FrugalELU()(x.clone()), F.elu(x))


@pytest.mark.parametrize("make", [lambda: ConvEncoder(3, 2, "layer"), lambda: ConvDecoder(7, 3, 2, "layer")],
                         ids=["encoder", "decoder"])
def test_weights_may_come_from_any_memory_layout(make):
    """A file knows nothing of channels-last: contiguous weights load, keep the layout here, and compute the same."""
    torch.manual_seed(0)
    first, second = make(), make()
    plain = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in first.state_dict().items()}
    second.load_state_dict(plain)
    x = torch.randn(2, 64, 64, 3) if isinstance(first, ConvEncoder) else torch.randn(2, 7)
    assert torch.equal(first(x), second(x))
    for (name, weight), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, other) and weight.stride() == other.stride(), name
        if weight.dim() == 4:
            assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_gradients_in_bfloat16_are_near(norm):
    """Also those of norms, which sum over all pixels."""
    encoder, decoder = filled(ConvEncoder(1, 8, norm)), filled(ConvDecoder(256, 1, 8, norm))
    own = [*encoder.parameters(), *decoder.parameters()]
    image, target = torch.rand(3, 64, 64, 1) - 0.5, torch.rand(3, 64, 64, 1)

    def gradients(bf16):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            mean = decoder(encoder(image)).float()
        return torch.autograd.grad((mean - target).square().sum(), own)

    for low, exact in zip(gradients(True), gradients(False), strict=True):
        assert low.dtype == torch.float32
        assert ((low - exact).norm() / exact.norm()).item() < 0.1
