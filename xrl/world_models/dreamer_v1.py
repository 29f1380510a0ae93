"""DreamerV1's world model: a textbook GRU, normal latents, ReLU in the convolutions and ELU everywhere else."""

from __future__ import annotations

from functools import partial

from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v1 import WorldModelConfig
from xrl.nn.conv import ConvDecoder, ConvEncoder
from xrl.nn.encoders import ObsDecoder, ObsEncoder
from xrl.nn.heads import DiscountHead, ScalarHead
from xrl.world_models.latents import GaussianLatent
from xrl.world_models.observations import ScaledObservations
from xrl.world_models.rssm import RSSM


class DreamerV1Model(ScaledObservations):
    """What DreamerV1 learns about its environment.

    Raises:
        ConfigError: ``obs_scale`` has another length than the vector observations together.
    """

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: WorldModelConfig) -> None:
        super().__init__(obs_spec, config.obs_scale)
        depth, rssm = config.conv.depth, config.rssm
        self.latent = GaussianLatent(rssm.stoch, std="softplus")
        self.encoder = ObsEncoder(obs_spec, depth, config.encoder.layers, config.encoder.units,
                                  conv=partial(ConvEncoder, act="relu"))
        self.rssm = RSSM(self.encoder.size, action_spec.size, self.latent, rssm.deter, rssm.hidden, cell="gru")
        feat = self.rssm.feat_size
        self.decoder = ObsDecoder(feat, obs_spec, depth, config.decoder.layers, config.decoder.units,
                                  conv=partial(ConvDecoder, act="relu"))
        self.reward = ScalarHead(feat, config.reward.layers, config.reward.units)
        self.discount = (DiscountHead(feat, config.discount.layers, config.discount.units)
                         if config.predict_discount else None)
