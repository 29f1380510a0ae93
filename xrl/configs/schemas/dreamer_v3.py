"""Schema of DreamerV3. The defaults are those of the official code; one set serves every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from xrl.configs.schemas.base import RunConfig
from xrl.configs.schemas.fields import Float, Int, Section, param


@dataclass(frozen=True)
class Size:
    """What a model's name stands for: D = 8 U, and the classes and the depth of convolutions are U / 16."""

    deter: int
    units: int
    classes: int
    depth: int


SIZES = {name: Size(8 * units, units, units // 16, units // 16) for name, units in (
    ("1m", 64), ("12m", 256), ("25m", 384), ("50m", 512), ("100m", 768), ("200m", 1024), ("400m", 1536))}


class ModelConfig(Section):
    """Widths are those of ``size`` unless given here."""

    deter: Int | None = param(None, "deterministic state h, D, a multiple of 8; null: that of the size", "units", ge=8,
                              multiple_of=8)
    units: Int | None = param(None, "width of every hidden layer, U; null: that of the size", "units", ge=1)
    classes: Int | None = param(None, "classes of each latent, K; null: that of the size", "classes", ge=2)
    depth: Int | None = param(None, "channels of the first convolution are twice this; null: that of the size",
                              "channels", ge=2, multiple_of=2)
    stoch: Int = param(32, "latent variables, S", "variables", ge=1)
    unimix: Float = param(0.01, "share of the uniform law in prior and posterior", ge=0, lt=1)
    vector_layers: Int = param(3, "hidden layers of the encoder and decoder of vectors", "layers", ge=1)
    bins: Int = param(255, "of reward and value, an odd number", "bins", ge=3)

    @model_validator(mode="after")
    def _odd(self) -> ModelConfig:
        if self.bins % 2 == 0:
            raise ValueError(f"model.bins: {self.bins} is even, which leaves no bin at 0; use {self.bins + 1}")
        return self


class LossConfig(Section):
    """Weights of the losses, which are summed and share one optimiser."""

    reconstruction: Float = param(1.0, "of every observation entry, squared errors summed over its numbers", ge=0)
    reward: Float = param(1.0, "of the reward", ge=0)
    discount: Float = param(1.0, "of the discount", ge=0)
    dyn: Float = param(1.0, "of the KL that trains the prior", ge=0)
    rep: Float = param(0.1, "of the KL that trains the posterior", ge=0)
    free_bits: Float = param(1.0, "a row whose KL is below this does not train it", "nats", ge=0)
    actor: Float = param(1.0, "of the actor", ge=0)
    critic: Float = param(1.0, "of the critic in imagination", ge=0)
    replay_critic: Float = param(0.3, "of the critic on replayed rows, which shapes the representation too", ge=0)


class ImaginationConfig(Section):
    sequences: Int = param(0, "imagination starts at every row of so many of a batch's sequences; 0: of all",
                           "sequences", ge=0)


class ActorConfig(Section):
    layers: Int = param(3, "hidden layers", "layers", ge=1)
    entropy: Float = param(3e-4, "eta: weight of the policy's entropy", "per nat", ge=0)
    unimix: Float = param(0.0, "share of the uniform law in a discrete policy (paper: 0.01)", ge=0, lt=1)


class CriticConfig(Section):
    layers: Int = param(3, "hidden layers", "layers", ge=1)
    slow_rate: Float = param(0.02, "the slow critic moves so far towards the critic", "per update", gt=0, le=1)
    slow_weight: Float = param(1.0, "weight of the slow critic's prediction as a second target", ge=0)


class ReturnsConfig(Section):
    """Advantages are divided by the range of returns, where it is larger than ``limit``."""

    rate: Float = param(0.01, "of the moving average of both percentiles", "per update", gt=0, le=1)
    low: Float = param(0.05, "lower percentile", ge=0, le=1)
    high: Float = param(0.95, "upper percentile", ge=0, le=1)
    limit: Float = param(1.0, "smallest divisor", gt=0)


class ReplayConfig(Section):
    storage: Literal["disk", "memory"] = param(
        "disk", "disk: rows lie in the run folder and are read through the system's cache; memory: all of them in RAM")
    context: Int = param(1, "1: a sequence goes on from the latent state stored with the row before it, which updates "
                            "refresh; 0: from zeros", "rows", ge=0, le=1)
    online: bool = param(True, "new sequences are trained on once before any is drawn at random")


class OptimizerConfig(Section):
    lr: Float = param(4e-5, "learning rate", "per update", gt=0)
    clip: Float = param(0.3, "largest norm of a gradient, in norms of its weights", gt=0)
    warmup: Int = param(1000, "the learning rate rises from 0 over so many", "updates", ge=1)


class DreamerV3Config(RunConfig):
    gamma: Float = param(1 - 1 / 333, "discount factor of one agent step", gt=0, le=1)
    start_training: Int = param(1, "no update before this many; the untrained policy acts", "agent steps", ge=1)
    size: Literal["1m", "12m", "25m", "50m", "100m", "200m", "400m"] = param(
        "200m", "name of the model's size: about its number of parameters on Atari")
    seq_len: Int = param(64, "rows of a replayed sequence, T", "rows", ge=2)
    horizon: Int = param(15, "imagined steps, H", "agent steps", ge=1)
    lambda_: Float = param(0.95, "mixing of n-step returns", ge=0, le=1)
    train_ratio: Float = param(32.0, "replayed rows per row of the environments, reset rows included", gt=0)
    eval_mode: Literal["sample", "mode"] = param("sample", "action in evaluations: drawn from the policy, or its mode")
    model: ModelConfig = param(ModelConfig(), "world model")
    loss: LossConfig = param(LossConfig(), "weights of the losses")
    imagination: ImaginationConfig = param(ImaginationConfig(), "where imagined trajectories start")
    actor: ActorConfig = param(ActorConfig(), "actor")
    critic: CriticConfig = param(CriticConfig(), "critic")
    returns: ReturnsConfig = param(ReturnsConfig(), "normalisation of returns")
    replay: ReplayConfig = param(ReplayConfig(), "how sequences are drawn")
    opt: OptimizerConfig = param(OptimizerConfig(), "the optimiser, of everything")

    @property
    def widths(self) -> Size:
        """The four numbers of ``size``, or those given instead."""
        named, own = SIZES[self.size], self.model
        return Size(own.deter or named.deter, own.units or named.units, own.classes or named.classes,
                    own.depth or named.depth)

    @property
    def rows_to_begin(self) -> int:
        """Windows that the replay holds before the first update, as many as a batch has rows."""
        return self.batch_size * self.seq_len

    @model_validator(mode="after")
    def _consistent(self) -> DreamerV3Config:
        needed = self.rows_to_begin + (self.seq_len + self.replay.context) * self.parallels
        if self.buffer_size < needed:
            raise ValueError(
                f"buffer_size: {self.buffer_size} never holds the batch_size x seq_len = {self.rows_to_begin} "
                f"sequences that an update waits for; use at least {needed}, or a smaller batch_size or seq_len")
        if self.train_ratio > self.buffer_size:
            raise ValueError(
                f"train_ratio: {self.train_ratio:g} asks for more rows at every step than the replay holds "
                f"(buffer_size = {self.buffer_size}); use a smaller train_ratio")
        if self.imagination.sequences > self.batch_size:
            raise ValueError(f"imagination.sequences: {self.imagination.sequences} is more than a batch has "
                             f"(batch_size = {self.batch_size})")
        if self.returns.low >= self.returns.high:
            raise ValueError(f"returns.low: {self.returns.low} must be below returns.high = {self.returns.high}")
        return self
