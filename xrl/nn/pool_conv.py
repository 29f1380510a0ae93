"""DreamerV3's convolutions: kernel 5, stride 1, then half the size by pooling, or twice the size by repetition."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrl.nn.conv import IMAGE_SIZE, channels_last
from xrl.nn.layers import MLP, RMSNorm, dense, fan_in
from xrl.nn.recurrent import BLOCKS, BlockLinear

MULTIPLES = (2, 3, 4, 4)
SMALLEST = IMAGE_SIZE // 2 ** len(MULTIPLES)


class ChannelRMSNorm(RMSNorm):
    """Over the channel axis of (N, C, H, W)."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PoolEncoder(nn.Module):
    """Four times: convolution, 2x2 max-pool, RMSNorm over channels, SiLU; 64 -> 4, channels depth x (2, 3, 4, 4)."""

    def __init__(self, channels: int, depth: int, norm: str = "rms") -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise([channels, *(depth * multiple for multiple in MULTIPLES)]):
            conv = _begun(nn.Conv2d(inputs, outputs, kernel_size=5, padding=2))
            blocks += [conv, nn.MaxPool2d(2), ChannelRMSNorm(outputs), nn.SiLU()]
        self.layers = nn.Sequential(*blocks)
        channels_last(self.layers)
        self.size = SMALLEST * SMALLEST * depth * MULTIPLES[-1]

    def forward(self, image: Tensor) -> Tensor:
        """(..., 64, 64, C) -> (..., 64 depth)."""
        flat = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2)
        return cast(Tensor, self.layers(flat)).permute(0, 2, 3, 1).reshape(*image.shape[:-3], self.size)


class DoublingConv(nn.Conv2d):
    """A convolution, kernel 5, of an image that was doubled in size by repeating each pixel: (N, I, H, W) ->
    (N, O, 2H, 2W).

    Each of the four pixels that one becomes sees no more than 3x3 of the small image: an ordinary convolution of that,
    with sums of weights, to 4 O channels, which are then laid out as 2x2 pixels. A third of the arithmetic, and the
    large image of many channels is never made.
    """

    _taps: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=5, padding=2)
        taps = torch.zeros(2, 3, 5)  # pixel p of the two, input a of the three: which of the five weights meet it
        for p in range(2):
            for k in range(5):
                taps[p, (p + k) // 2, k] = 1.0
        self.register_buffer("_taps", taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        weight = torch.einsum("pak,qbl,oikl->pqoiab", self._taps, self._taps, self.weight).flatten(0, 2)
        y = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), self.bias.repeat(4), padding=1)
        pixels = y.permute(0, 2, 3, 1).unflatten(-1, (2, 2, self.out_channels)).transpose(2, 3)
        height, width = x.shape[2:]
        return pixels.reshape(-1, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)


class BlockDecoder(nn.Module):
    """z and h each become a 4x4 image, h block by block; their sum is doubled in size four times, each time followed
    by a convolution.

    ``inputs``: the length of [z; h]; ``deter``: that of h; ``units``: half the width of the layer on z.
    """

    def __init__(self, inputs: int, channels: int, depth: int, norm: str = "rms", *, deter: int, units: int) -> None:
        super().__init__()
        sizes = [depth * multiple for multiple in reversed(MULTIPLES)]
        self.shape = (SMALLEST, SMALLEST, sizes[0])
        pixels = SMALLEST * SMALLEST * sizes[0]
        self.deter_in = BlockLinear(deter, pixels, BLOCKS)
        self.stoch_in = nn.Sequential(MLP(inputs - deter, 1, 2 * units, norm), dense(2 * units, pixels, norm))
        self.norm = RMSNorm(sizes[0])
        blocks: list[nn.Module] = []
        for size, outputs in pairwise(sizes):
            blocks += [_begun(DoublingConv(size, outputs)), ChannelRMSNorm(outputs), nn.SiLU()]
        self.layers = nn.Sequential(*blocks, _begun(DoublingConv(sizes[-1], channels)))
        channels_last(self.layers)
        self._stoch = inputs - deter

    def forward(self, feat: Tensor) -> Tensor:
        """(..., F) -> the mean of the preprocessed image, in [-0.5, 0.5], (..., 64, 64, C)."""
        stoch, deter = feat.reshape(-1, feat.shape[-1]).split([self._stoch, feat.shape[-1] - self._stoch], -1)
        height, width, channels = self.shape
        blocks = self.deter_in(deter).view(-1, BLOCKS, height, width, channels // BLOCKS)
        own = blocks.permute(0, 2, 3, 1, 4).flatten(3)
        x = F.silu(self.norm(own + self.stoch_in(stoch).view(-1, *self.shape)))
        image = cast(Tensor, self.layers(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return torch.sigmoid(image.float()).sub(0.5).reshape(*feat.shape[:-1], IMAGE_SIZE, IMAGE_SIZE, -1)


def _begun(layer: nn.Conv2d) -> nn.Conv2d:
    """With DreamerV3's initial weights."""
    fan_in(layer.weight.data, 25 * layer.in_channels)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer
