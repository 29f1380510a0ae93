"""Schema of DreamerV1. The defaults are those of the official code for DMC, its frames counted in agent steps."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from xrl.configs.schemas.fields import Float, Int, Section, param
from xrl.configs.schemas.replayed import ReplayConfig, ReplayedConfig


class RSSMConfig(Section):
    deter: Int = param(200, "deterministic state h, D", "units", ge=1)
    hidden: Int = param(200, "hidden layers around the recurrent cell", "units", ge=1)
    stoch: Int = param(30, "normal latent variables, S", "variables", ge=1)


class ConvConfig(Section):
    depth: Int = param(32, "channels of the first encoder layer; the others are multiples", "channels", ge=1)


class MLPConfig(Section):
    layers: Int = param(3, "hidden layers", "layers", ge=1)
    units: Int = param(400, "width of a hidden layer", "units", ge=1)


class ActorConfig(MLPConfig):
    layers: Int = param(4, "hidden layers", "layers", ge=1)
    init_std: Float = param(5.0, "standard deviation with which the normal inside the tanh begins, continuous actions",
                            gt=0.001, le=100)
    mean_scale: Float = param(5.0, "bound of the mean of that normal; far out, where tanh is flat, no gradient is left",
                              gt=0)


class KLConfig(Section):
    scale: Float = param(1.0, "beta: weight of the KL", ge=0)
    free_nats: Float = param(3.0, "while the mean KL of a batch is below this it is not trained", "nats", ge=0)


class LossScales(Section):
    image: Float = param(1.0, "weight of the image log-likelihood, summed over pixels", ge=0)
    vector: Float = param(1.0, "weight of the vector log-likelihood, summed over entries", ge=0)
    reward: Float = param(1.0, "weight of the reward log-likelihood", ge=0)
    discount: Float = param(10.0, "weight of the discount log-likelihood", ge=0)


class WorldModelConfig(Section):
    rssm: RSSMConfig = param(RSSMConfig(), "recurrent state-space model")
    conv: ConvConfig = param(ConvConfig(), "image encoder and decoder")
    encoder: MLPConfig = param(MLPConfig(), "vector encoder")
    decoder: MLPConfig = param(MLPConfig(), "vector decoder")
    reward: MLPConfig = param(MLPConfig(layers=2), "reward head")
    discount: MLPConfig = param(MLPConfig(), "discount head")
    predict_discount: bool = param(False, "learn when episodes end; without it every step is worth gamma")
    reward_transform: Literal["identity", "tanh"] = param(
        "identity", "applied when a batch is read; rewards are stored and logged raw")
    reward_scale: Float = param(1.0, "factor on the reward before the transform", gt=0)
    obs_scale: tuple[Float, ...] | Float = param(
        1.0, "vector observations are divided by this: one number, or one per entry (all vectors, in key order)")
    kl: KLConfig = param(KLConfig(), "Kullback-Leibler divergence of posterior from prior")
    loss_scales: LossScales = param(LossScales(), "weights of the reconstruction losses")

    @field_validator("obs_scale")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | float) -> tuple[float, ...] | float:
        if any(entry <= 0 for entry in (value if isinstance(value, tuple) else (value,))):
            raise ValueError("every scale must be positive")
        return value


class ImaginationConfig(Section):
    starts: Int = param(0, "start states drawn at random from the batch x length posteriors; 0 takes all", "states",
                        ge=0)


class ExplorationConfig(Section):
    noise: Float = param(0.3, "standard deviation of what is added to continuous actions in training", ge=0)
    epsilon: Float = param(0.1, "probability that a discrete action is a random one in training", ge=0, le=1)


class OptimizerConfig(Section):
    lr: Float = param(8e-5, "learning rate", "per update", gt=0)
    eps: Float = param(1e-7, "epsilon of Adam, added to the square root as in TensorFlow", gt=0)
    clip: Float = param(100.0, "largest global norm of a gradient", gt=0)


class DreamerV1Config(ReplayedConfig):
    running_steps: Int = param(2_500_000, "length of a training run", "agent steps", ge=1)
    start_training: Int = param(2_500, "random actions before the first update", "agent steps", ge=1)
    buffer_size: Int = param(2_500_000, "capacity of the replay", "agent steps", ge=1)
    batch_size: Int = param(50, "sequences per update", "sequences", ge=1)
    pretrain: Int = param(100, "updates after the random actions, before the policy acts", "updates", ge=0)
    replay: ReplayConfig = param(ReplayConfig(sampling="episodes", prioritize_ends=False), "how sequences are drawn")
    eval_interval: Int = param(5_000, "training between evaluations; 0 for none", "agent steps", ge=0)
    horizon: Int = param(15, "imagined steps, H", "agent steps", ge=3)
    lambda_: Float = param(0.95, "mixing of n-step returns", ge=0, le=1)
    world_model: WorldModelConfig = param(WorldModelConfig(), "world model")
    imagination: ImaginationConfig = param(ImaginationConfig(), "where imagined trajectories start")
    exploration: ExplorationConfig = param(ExplorationConfig(), "how actions are varied in training")
    actor: ActorConfig = param(ActorConfig(), "actor")
    critic: MLPConfig = param(MLPConfig(), "critic: the value model of the paper")
    model_opt: OptimizerConfig = param(OptimizerConfig(lr=6e-4), "optimiser of the world model")
    actor_opt: OptimizerConfig = param(OptimizerConfig(), "optimiser of the actor")
    critic_opt: OptimizerConfig = param(OptimizerConfig(), "optimiser of the critic")
