"""Observations as a world model reads and writes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrl.common.errors import ConfigError
from xrl.common.row import ObsSpec
from xrl.nn.encoders import names_of


class ScaledObservations(nn.Module):
    """The part of a world model that knows which observations there are, and on which scale. Holds no weight.

    Args:
        scale: vector observations are divided by this: one number, or one per entry of all of them in sorted order.

    Raises:
        ConfigError: ``scale`` (obs_scale) has another length than the vector observations together.
    """

    def __init__(self, obs_spec: dict[str, ObsSpec], scale: tuple[float, ...] | float) -> None:
        super().__init__()
        self.obs_spec = obs_spec
        self.vectors = names_of(self.obs_spec, "vector")
        sizes = [self.obs_spec[name].shape[0] for name in self.vectors]
        entries = list(scale) if isinstance(scale, tuple) else [scale] * sum(sizes)
        if len(entries) != sum(sizes):
            raise ConfigError(f"world_model.obs_scale: {len(entries)} numbers for {sum(sizes)} vector entries "
                              f"({', '.join(self.vectors) or 'no vector'}); give one per entry, or a single number")
        for i, part in enumerate(torch.tensor(entries).split(sizes) if sizes else ()):
            self.register_buffer(f"scale_{i}", part.clone(), persistent=False)

    def preprocess(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images uint8 -> [-0.5, 0.5]; vectors are divided by ``obs_scale``."""
        return {name: tensor.float() / 255 - 0.5 if self.obs_spec[name].kind == "image"
                else tensor / self.get_buffer(f"scale_{self.vectors.index(name)}")
                for name, tensor in obs.items()}

    def unprocess(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of ``preprocess``, for what the decoder gives: images uint8, vectors float32."""
        return {name: ((mean + 0.5) * 255).round().clamp(0, 255).byte() if self.obs_spec[name].kind == "image"
                else mean * self.get_buffer(f"scale_{self.vectors.index(name)}")
                for name, mean in means.items()}
