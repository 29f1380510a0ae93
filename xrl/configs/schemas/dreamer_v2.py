"""Schema of DreamerV2. The defaults are those of the official code (its main branch, `defaults`)."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from xrl.configs.schemas.fields import Float, Int, Section, param
from xrl.configs.schemas.replayed import ReplayedConfig

Norm = Literal["none", "layer"]


class RSSMConfig(Section):
    deter: Int = param(1024, "deterministic state h, D", "units", ge=1)
    hidden: Int = param(1024, "hidden layers around the recurrent cell", "units", ge=1)
    latent: Literal["categorical", "gaussian"] = param("categorical", "law of the stochastic state z")
    stoch: Int = param(32, "latent variables, S", "variables", ge=1)
    classes: Int = param(32, "classes of each categorical latent, K; without meaning for gaussian", "classes", ge=2)


class ConvConfig(Section):
    depth: Int = param(48, "channels of the first encoder layer; the others are multiples", "channels", ge=1)


class MLPConfig(Section):
    layers: Int = param(4, "hidden layers", "layers", ge=1)
    units: Int = param(400, "width of a hidden layer", "units", ge=1)


class KLConfig(Section):
    scale: Float = param(1.0, "beta: weight of the KL loss", ge=0)
    balance: Float = param(0.8, "alpha: share that trains the prior towards the posterior", ge=0, le=1)
    free_nats: Float = param(0.0, "a KL below this is not trained", "nats", ge=0)
    free_avg: bool = param(True, "clip the mean over the batch at free_nats, instead of every entry")


class LossScales(Section):
    image: Float = param(1.0, "weight of the image log-likelihood, summed over pixels", ge=0)
    vector: Float = param(1.0, "weight of the vector log-likelihood, summed over entries", ge=0)
    reward: Float = param(1.0, "weight of the reward log-likelihood", ge=0)
    discount: Float = param(1.0, "weight of the discount log-likelihood", ge=0)


class WorldModelConfig(Section):
    rssm: RSSMConfig = param(RSSMConfig(), "recurrent state-space model")
    conv: ConvConfig = param(ConvConfig(), "image encoder and decoder")
    encoder: MLPConfig = param(MLPConfig(), "vector encoder")
    decoder: MLPConfig = param(MLPConfig(), "vector decoder")
    reward: MLPConfig = param(MLPConfig(), "reward head")
    discount: MLPConfig = param(MLPConfig(), "discount head")
    norm: Norm = param("none", "LayerNorm after the dense and convolutional layers of the world model")
    predict_discount: bool = param(True, "learn when episodes end; without it every step is worth gamma")
    grad_heads: tuple[Literal["decoder", "reward", "discount"], ...] = param(
        ("decoder", "reward", "discount"), "heads whose gradient shapes the representation")
    reward_transform: Literal["tanh", "sign", "identity"] = param(
        "tanh", "applied when a batch is read; rewards are stored and logged raw")
    reward_scale: Float = param(1.0, "factor on the reward before the transform", gt=0)
    obs_scale: tuple[Float, ...] | Float = param(
        1.0, "vector observations are divided by this: one number, or one per entry (all vectors, in key order)")
    kl: KLConfig = param(KLConfig(), "KL balancing")
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
    drop_last: bool = param(False, "the last row of every sequence is no start state (paper)")


class ActorConfig(Section):
    layers: Int = param(4, "hidden layers", "layers", ge=1)
    units: Int = param(400, "width of a hidden layer", "units", ge=1)
    norm: Norm = param("none", "LayerNorm after the hidden layers")
    grad: Literal["auto", "reinforce", "dynamics", "mix"] = param(
        "auto", "gradient estimator; auto: reinforce for discrete actions, dynamics for continuous ones")
    mix: Float = param(0.1, "weight of dynamics in grad: mix", ge=0, le=1)
    entropy: Float = param(2e-3, "eta: weight of the policy's entropy", "per nat", ge=0)
    advantage: Literal["offset", "centered"] = param(
        "offset", "reinforce weight: V_{k+1} - v_k (official) or V_k - v_k (paper)")
    baseline: Literal["slow", "fast"] = param("slow", "critic that gives v_k in the advantage")


class CriticConfig(Section):
    layers: Int = param(4, "hidden layers", "layers", ge=1)
    units: Int = param(400, "width of a hidden layer", "units", ge=1)
    norm: Norm = param("none", "LayerNorm after the hidden layers")
    slow_every: Int = param(100, "the slow critic becomes a copy of the critic this often", "updates", ge=1)


class OptimizerConfig(Section):
    lr: Float = param(1e-4, "learning rate", "per update", gt=0)
    eps: Float = param(1e-5, "epsilon of Adam, added to the square root as in TensorFlow", gt=0)
    clip: Float = param(100.0, "largest global norm of a gradient", gt=0)
    weight_decay: Float = param(1e-6, "every weight shrinks by this, whatever the learning rate", "per update",
                                ge=0, lt=1)


class DreamerV2Config(ReplayedConfig):
    horizon: Int = param(15, "imagined steps, H", "agent steps", ge=2)
    lambda_: Float = param(0.95, "mixing of n-step returns", ge=0, le=1)
    world_model: WorldModelConfig = param(WorldModelConfig(), "world model")
    imagination: ImaginationConfig = param(ImaginationConfig(), "where imagined trajectories start")
    actor: ActorConfig = param(ActorConfig(), "actor")
    critic: CriticConfig = param(CriticConfig(), "critic")
    model_opt: OptimizerConfig = param(OptimizerConfig(lr=1e-4), "optimiser of the world model")
    actor_opt: OptimizerConfig = param(OptimizerConfig(lr=8e-5), "optimiser of the actor")
    critic_opt: OptimizerConfig = param(OptimizerConfig(lr=2e-4), "optimiser of the critic")
