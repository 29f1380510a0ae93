"""The world model: encoder, RSSM and heads, as verbs a learner and a policy use."""

from __future__ import annotations

from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v2 import WorldModelConfig
from xrl.nn.encoders import ObsDecoder, ObsEncoder
from xrl.nn.heads import DiscountHead, ScalarHead
from xrl.world_models.latents import make_latent
from xrl.world_models.observations import ScaledObservations
from xrl.world_models.rssm import RSSM


class WorldModel(ScaledObservations):
    """What DreamerV2 learns about its environment.

    Raises:
        ConfigError: ``obs_scale`` has another length than the vector observations together.
    """

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: WorldModelConfig) -> None:
        super().__init__(obs_spec, config.obs_scale)
        self.latent = make_latent(config.rssm.latent, config.rssm.stoch, config.rssm.classes)
        depth, norm = config.conv.depth, config.norm
        self.encoder = ObsEncoder(obs_spec, depth, config.encoder.layers, config.encoder.units, norm)
        self.rssm = RSSM(self.encoder.size, action_spec.size, self.latent, config.rssm.deter, config.rssm.hidden, norm)
        feat = self.rssm.feat_size
        self.decoder = ObsDecoder(feat, obs_spec, depth, config.decoder.layers, config.decoder.units, norm)
        self.reward = ScalarHead(feat, config.reward.layers, config.reward.units, norm)
        self.discount = (DiscountHead(feat, config.discount.layers, config.discount.units, norm)
                         if config.predict_discount else None)
