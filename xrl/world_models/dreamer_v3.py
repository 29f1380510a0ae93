"""DreamerV3's world model: the shared parts, as this method puts them together."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v3 import ModelConfig, Size
from xrl.nn.encoders import ObsDecoder, ObsEncoder, names_of
from xrl.nn.heads import DiscountHead
from xrl.nn.pool_conv import BlockDecoder, PoolEncoder
from xrl.nn.two_hot import TwoHotHead, symexp, symlog
from xrl.world_models.latents import CategoricalLatent
from xrl.world_models.rssm import RSSM


class DreamerV3Model(nn.Module):
    """Encoder, RSSM and heads. ``size``: the four numbers that a model's name stands for."""

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: ModelConfig, size: Size) -> None:
        super().__init__()
        self.obs_spec, self.vectors = obs_spec, names_of(obs_spec, "vector")
        self.latent = CategoricalLatent(config.stoch, size.classes, config.unimix)
        self.encoder = ObsEncoder(obs_spec, size.depth, config.vector_layers, size.units, "rms", PoolEncoder)
        self.rssm = RSSM(self.encoder.size, action_spec.size, self.latent, size.deter, size.units, "rms", "block_gru",
                         prior_layers=2)
        feat = self.rssm.feat_size
        images = partial(BlockDecoder, deter=size.deter, units=size.units)
        self.decoder = ObsDecoder(feat, obs_spec, size.depth, config.vector_layers, size.units, "rms", images)
        self.reward = TwoHotHead(feat, 1, size.units, config.bins)
        self.discount = DiscountHead(feat, 1, size.units, "rms")

    def preprocess(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images uint8 -> [-0.5, 0.5]; vectors -> symlog."""
        return {name: tensor.float() / 255 - 0.5 if self.obs_spec[name].kind == "image" else symlog(tensor)
                for name, tensor in obs.items()}

    def unprocess(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of ``preprocess``, for what the decoder gives: images uint8, vectors float32."""
        return {name: ((mean + 0.5) * 255).round().clamp(0, 255).byte() if self.obs_spec[name].kind == "image"
                else symexp(mean) for name, mean in means.items()}
