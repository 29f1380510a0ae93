"""Encoder and decoder for observations of any number of images and vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xrl.common.row import ObsSpec
from xrl.nn.conv import ConvDecoder, ConvEncoder
from xrl.nn.layers import MLP, dense


def names_of(obs_spec: dict[str, ObsSpec], kind: str) -> list[str]:
    """Names of the entries of one kind ("image" or "vector"), in sorted order."""
    return sorted(name for name, spec in obs_spec.items() if spec.kind == kind)


class ObsEncoder(nn.Module):
    """All images joined on channels into one convolutional encoder, all vectors joined into one MLP.

    ``conv``: makes the former, with a ``size``, from channels, depth and style.
    """

    def __init__(self, obs_spec: dict[str, ObsSpec], depth: int, layers: int, units: int, norm: str = "none",
                 conv: Callable[[int, int, str], Any] = ConvEncoder) -> None:
        super().__init__()
        self.images, self.vectors = names_of(obs_spec, "image"), names_of(obs_spec, "vector")
        self.size = 0
        if self.images:
            self.conv = conv(sum(obs_spec[name].shape[-1] for name in self.images), depth, norm)
            self.size += self.conv.size
        if self.vectors:
            self.mlp = MLP(sum(obs_spec[name].shape[0] for name in self.vectors), layers, units, norm)
            self.size += units

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """name -> (..., *shape), preprocessed -> ``embed``, (..., M)."""
        parts = []
        if self.images:
            parts.append(self.conv(torch.cat([obs[name] for name in self.images], -1)))
        if self.vectors:
            parts.append(self.mlp(torch.cat([obs[name] for name in self.vectors], -1)))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class ObsDecoder(nn.Module):
    """The mirror image of ObsEncoder: means of unit normals, one per observation entry.

    ``conv``: makes the decoder of images from inputs, channels, depth and style.
    """

    def __init__(self, inputs: int, obs_spec: dict[str, ObsSpec], depth: int, layers: int, units: int,
                 norm: str = "none", conv: Callable[[int, int, int, str], nn.Module] = ConvDecoder) -> None:
        super().__init__()
        self.images, self.vectors = names_of(obs_spec, "image"), names_of(obs_spec, "vector")
        self.channels = [obs_spec[name].shape[-1] for name in self.images]
        if self.images:
            self.conv = conv(inputs, sum(self.channels), depth, norm)
        if self.vectors:
            self.mlp = MLP(inputs, layers, units, norm)
            self.out = nn.ModuleList(dense(units, obs_spec[name].shape[0], norm) for name in self.vectors)

    def forward(self, feat: Tensor) -> dict[str, Tensor]:
        """(..., F) -> name -> (..., *shape), on the scale of the preprocessed observation, float32."""
        means: dict[str, Tensor] = {}
        if self.images:
            images = self.conv(feat).float().split(self.channels, -1)
            means.update(zip(self.images, images, strict=True))
        if self.vectors:
            x = self.mlp(feat)
            means.update({name: out(x).float() for name, out in zip(self.vectors, self.out, strict=True)})
        return means
