"""Convolutional encoder and decoder for 64x64 images. Channels are last in memory, here as everywhere else: a
convolution on a CPU is up to twice as fast so."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from xrl.nn.layers import ChannelNorm, dense, glorot

IMAGE_SIZE = 64


def channels_last(layers: nn.Module) -> None:
    """Lay the weights of convolutions in memory as the images lie."""
    for weight in layers.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


class FrugalELU(nn.Module):
    """ELU between two convolutions, and nowhere else: overwrites its input and, backwards, the gradient it is given.

    Their activations are the largest tensors there are. The gradient may be overwritten because the convolution that
    reads the output, its only reader, made it for nobody else.
    """

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _FrugalELU.apply(x) if x.requires_grad else F.elu(x, inplace=True)
        return y


class _FrugalELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        F.elu(x, inplace=True)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, = ctx.saved_tensors
        torch.ops.aten.elu_backward.grad_input(grad, 1.0, 1.0, 1.0, True, y, grad_input=grad)
        return grad


def between(act: str) -> nn.Module:
    """The activation between two convolutions, in place."""
    return FrugalELU() if act == "elu" else nn.ReLU(inplace=True)


class ConvEncoder(nn.Module):
    """Four convolutions, kernel 4, stride 2, no padding: 64 -> 31 -> 14 -> 6 -> 2, channels depth x (1, 2, 4, 8).

    ``act``: "elu" (DreamerV2) or "relu" (V1).
    """

    def __init__(self, channels: int, depth: int, norm: str = "none", act: str = "elu") -> None:
        super().__init__()
        sizes = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            blocks.append(nn.Conv2d(inputs, outputs, kernel_size=4, stride=2))
            if norm == "layer":
                blocks.append(ChannelNorm(outputs))
            blocks.append(between(act))
        blocks[-1] = nn.ELU(inplace=True) if act == "elu" else nn.ReLU(inplace=True)  # who reads it is not known here
        self.layers = nn.Sequential(*blocks).apply(glorot)
        channels_last(self.layers)
        self.size = 2 * 2 * 8 * depth

    def forward(self, image: Tensor) -> Tensor:
        """(..., 64, 64, C) -> (..., 32 depth)."""
        batch = image.shape[:-3]
        image = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2)
        # Channels first in the vector, as the dense layers behind it have always counted.
        return self.layers(image).contiguous().view(*batch, self.size)


class TransposedConv(nn.ConvTranspose2d):
    """Adds its bias apart: with it, a CPU takes three times as long for one of these in bfloat16."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W')."""
        assert self.bias is not None
        return F.conv_transpose2d(x, self.weight, stride=self.stride).add_(self.bias[:, None, None])


class ConvDecoder(nn.Module):
    """A dense layer, then four transposed convolutions, kernels 5, 5, 6, 6, stride 2: 1 -> 5 -> 13 -> 30 -> 64.

    ``act``: as in ``ConvEncoder``.
    """

    kernels = (5, 5, 6, 6)

    def __init__(self, inputs: int, channels: int, depth: int, norm: str = "none", act: str = "elu") -> None:
        super().__init__()
        self.dense = dense(inputs, 32 * depth)
        sizes = [32 * depth, 4 * depth, 2 * depth, depth, channels]
        self.layers = nn.ModuleList(
            TransposedConv(size, outputs, kernel, stride=2)
            for (size, outputs), kernel in zip(pairwise(sizes), self.kernels, strict=True))
        self.norms = nn.ModuleList(
            ChannelNorm(size) if norm == "layer" else nn.Identity() for size in sizes[1:-1])
        self.act = between(act)
        channels_last(self.layers.apply(glorot))

    def forward(self, feat: Tensor) -> Tensor:
        """(..., F) -> the mean of a unit normal over pixels, (..., 64, 64, C)."""
        first, *middle, last = self.layers
        *norms, last_norm = self.norms
        x = self._from_one_pixel(first, self.dense(feat.reshape(-1, feat.shape[-1])))
        for norm, layer in zip(norms, middle, strict=True):
            x = layer(self.act(norm(x)))
        x = _LastLayer.apply(self.act(last_norm(x)), last.weight.to(x.dtype), last.bias.to(x.dtype))
        return x.reshape(*feat.shape[:-1], IMAGE_SIZE, IMAGE_SIZE, -1)

    @staticmethod
    def _from_one_pixel(layer: Any, x: Tensor) -> Tensor:
        """From one pixel a transposed convolution is a matrix product, and several times faster as one."""
        weight = layer.weight.permute(0, 2, 3, 1)  # inputs, height, width, outputs: as it lies in memory
        image = (x @ weight.flatten(1)).unflatten(1, weight.shape[1:]) + layer.bias
        return image.permute(0, 3, 1, 2)


class _LastLayer(torch.autograd.Function):
    """A transposed convolution, kernel 6, stride 2, to few channels: (N, I, H, W) -> (N, 2H + 4, 2W + 4, O).

    Each of the four pixels that one input pixel becomes sees 3x3 inputs: an ordinary convolution to 4 O channels,
    which are then laid out as 2x2 pixels. That takes a third of the time of the transposed one, whose kernels are
    made for many channels. Backwards the ordinary form is as fast.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        inputs, outputs = weight.shape[:2]
        taps = weight.view(inputs, outputs, 3, 2, 3, 2).flip(2, 4)  # out[2i + p] = sum_a in[i - a] weight[2a + p]
        phases = taps.permute(3, 5, 1, 0, 2, 4).reshape(4 * outputs, inputs, 3, 3)
        y = F.conv2d(x, phases.contiguous(memory_format=torch.channels_last), bias.repeat(4), padding=2)
        height, width = y.shape[2:]
        pixels = y.permute(0, 2, 3, 1).reshape(-1, height, width, 2, 2, outputs)
        return pixels.transpose(2, 3).reshape(-1, 2 * height, 2 * width, outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        image = grad.permute(0, 3, 1, 2)
        # The transposed convolution is the adjoint of a convolution with the same weight.
        return (F.conv2d(image, weight, stride=2), conv2d_weight(image, weight.shape, x, stride=2),
                grad.sum((0, 1, 2)))
