"""The trunk of a model-free network: observations in, features out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from xrl.common.row import ObsSpec
from xrl.nn.conv import channels_last
from xrl.nn.encoders import names_of

Activation = Literal["relu", "tanh"]


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> None:
    """Initialise a layer in place: orthogonal weights times ``gain``, zero bias."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def orthogonal_linear(inputs: int, outputs: int, gain: float = math.sqrt(2)) -> nn.Linear:
    """A dense layer with orthogonal weights, as every dense layer of the model-free methods is."""
    layer = nn.Linear(inputs, outputs)
    orthogonal(layer, gain)
    return layer


class MiniConv(nn.Module):
    """Three convolutions without padding, kernels 8, 4, 3 and strides 4, 2, 1, each with a ReLU (Mnih et al. 2015):
    64 -> 15 -> 6 -> 4, channels depth x (1, 2, 2)."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        sizes = [channels, depth, 2 * depth, 2 * depth]
        blocks: list[nn.Module] = []
        for (inputs, outputs), (kernel, stride) in zip(pairwise(sizes), ((8, 4), (4, 2), (3, 1)), strict=True):
            conv = nn.Conv2d(inputs, outputs, kernel, stride)
            orthogonal(conv)
            blocks += [conv, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*blocks)
        channels_last(self.layers)
        self.size = 4 * 4 * 2 * depth

    def forward(self, image: Tensor) -> Tensor:
        """(..., 64, 64, C), of uint8 -> (..., size)."""
        batch = image.shape[:-3]
        x = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2)
        return self.layers(x.float() / 255).flatten(1).view(*batch, self.size)


class Trunk(nn.Module):
    """Images, joined on channels, through convolutions; what comes out and the vectors, joined, through dense layers.

    Args:
        obs_spec: of single observations.
        frames: how many of them are joined on the last axis (``xrl.ops.frames``).
        extra: length of one more vector, an action say.
        depth: channels of the first convolution.
        layers, units: dense layers, none if 0, and their width.
    """

    def __init__(self, obs_spec: dict[str, ObsSpec], *, frames: int = 1, extra: int = 0, depth: int, layers: int,
                 units: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.images, self.vectors = names_of(obs_spec, "image"), names_of(obs_spec, "vector")
        inputs = extra + frames * sum(obs_spec[name].shape[0] for name in self.vectors)
        if self.images:
            self.conv = MiniConv(frames * sum(obs_spec[name].shape[-1] for name in self.images), depth)
            inputs += self.conv.size
        blocks: list[nn.Module] = []
        for size in ([inputs] + [units] * layers)[:layers]:
            blocks += [orthogonal_linear(size, units), nn.ReLU() if activation == "relu" else nn.Tanh()]
        self.dense = nn.Sequential(*blocks)
        self.size = units if layers else inputs

    def forward(self, obs: dict[str, Tensor], extra: Tensor | None = None) -> Tensor:
        """name -> (..., *shape), raw; ``extra`` (..., X) -> (..., size)."""
        parts = [obs[name] for name in self.vectors]
        if self.images:
            parts.append(self.conv(torch.cat([obs[name] for name in self.images], -1)))
        if extra is not None:
            parts.append(extra)
        x: Tensor = self.dense(torch.cat(parts, -1) if len(parts) > 1 else parts[0])
        return x
