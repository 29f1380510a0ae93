"""Convolutional encoder and decoder for 64x64 images, channels last outside, first inside."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrl.nn.layers import ChannelNorm, glorot

IMAGE_SIZE = 64


class ConvEncoder(nn.Module):
    """Four convolutions, kernel 4, stride 2, no padding: 64 -> 31 -> 14 -> 6 -> 2, channels depth x (1, 2, 4, 8)."""

    def __init__(self, channels: int, depth: int, norm: str = "none") -> None:
        super().__init__()
        sizes = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            blocks.append(nn.Conv2d(inputs, outputs, kernel_size=4, stride=2))
            if norm == "layer":
                blocks.append(ChannelNorm(outputs))
            blocks.append(nn.ELU())
        self.layers = nn.Sequential(*blocks).apply(glorot)
        self.size = 2 * 2 * 8 * depth

    def forward(self, image: Tensor) -> Tensor:
        """(..., 64, 64, C) -> (..., 32 depth)."""
        batch = image.shape[:-3]
        image = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2)
        return self.layers(image).reshape(*batch, self.size)


class ConvDecoder(nn.Module):
    """A dense layer, then four transposed convolutions, kernels 5, 5, 6, 6, stride 2: 1 -> 5 -> 13 -> 30 -> 64."""

    kernels = (5, 5, 6, 6)

    def __init__(self, inputs: int, channels: int, depth: int, norm: str = "none") -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, 32 * depth)
        sizes = [32 * depth, 4 * depth, 2 * depth, depth, channels]
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(size, outputs, kernel, stride=2)
            for (size, outputs), kernel in zip(pairwise(sizes), self.kernels, strict=True))
        self.norms = nn.ModuleList(
            ChannelNorm(size) if norm == "layer" else nn.Identity() for size in sizes[1:-1])
        self.apply(glorot)

    def forward(self, feat: Tensor) -> Tensor:
        """(..., F) -> the mean of a unit normal over pixels, (..., 64, 64, C)."""
        batch = feat.shape[:-1]
        x = self._first(self.dense(feat.reshape(-1, feat.shape[-1])))
        for norm, layer in zip(self.norms, list(self.layers)[1:], strict=True):
            x = layer(F.elu(norm(x)))
        return x.permute(0, 2, 3, 1).reshape(*batch, IMAGE_SIZE, IMAGE_SIZE, -1)

    def _first(self, x: Tensor) -> Tensor:
        """From one pixel a transposed convolution is a matrix product, and several times faster as one."""
        layer = self.layers[0]
        assert isinstance(layer, nn.ConvTranspose2d) and layer.bias is not None
        kernel = self.kernels[0]
        x = x @ layer.weight.flatten(1)
        return torch.unflatten(x, 1, (layer.out_channels, kernel, kernel)) + layer.bias[:, None, None]
