"""The world model: encoder, RSSM and heads, as verbs a learner and a policy use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrl.common.errors import ConfigError
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v2 import WorldModelConfig
from xrl.nn.encoders import ObsDecoder, ObsEncoder, names_of
from xrl.nn.heads import DiscountHead, ScalarHead
from xrl.world_models.latents import make_latent
from xrl.world_models.rssm import RSSM


class WorldModel(nn.Module):
    """What DreamerV2 learns about its environment.

    Raises:
        ConfigError: ``obs_scale`` has another length than the vector observations together.
    """

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: WorldModelConfig) -> None:
        super().__init__()
        self.obs_spec, self.latent = obs_spec, make_latent(
            config.rssm.latent, config.rssm.stoch, config.rssm.classes)
        depth, norm = config.conv.depth, config.norm
        self.encoder = ObsEncoder(obs_spec, depth, config.encoder.layers, config.encoder.units, norm)
        self.rssm = RSSM(self.encoder.size, action_spec.size, self.latent, config.rssm.deter, config.rssm.hidden, norm)
        feat = self.rssm.feat_size
        self.decoder = ObsDecoder(feat, obs_spec, depth, config.decoder.layers, config.decoder.units, norm)
        self.reward = ScalarHead(feat, config.reward.layers, config.reward.units, norm)
        self.discount = (DiscountHead(feat, config.discount.layers, config.discount.units, norm)
                         if config.predict_discount else None)
        self._register_scales(config.obs_scale)

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

    def _register_scales(self, scale: tuple[float, ...] | float) -> None:
        self.vectors = names_of(self.obs_spec, "vector")
        sizes = [self.obs_spec[name].shape[0] for name in self.vectors]
        entries = list(scale) if isinstance(scale, tuple) else [scale] * sum(sizes)
        if len(entries) != sum(sizes):
            raise ConfigError(f"world_model.obs_scale: {len(entries)} numbers for {sum(sizes)} vector entries "
                              f"({', '.join(self.vectors) or 'no vector'}); give one per entry, or a single number")
        for i, part in enumerate(torch.tensor(entries).split(sizes) if sizes else ()):
            self.register_buffer(f"scale_{i}", part.clone(), persistent=False)
