"""Schema of SAC. The defaults are those of its second paper and of its reference code."""

from __future__ import annotations

from xrl.configs.schemas.base import RunConfig
from xrl.configs.schemas.fields import Float, Int, Section, param
from xrl.configs.schemas.model_free import AdamConfig, NetworkConfig, StorageConfig


class TemperatureConfig(Section):
    automatic: bool = param(True, "learned, so that the policy's entropy meets target_entropy; otherwise start stays")
    start: Float = param(1.0, "alpha at first: what a nat of entropy is worth in reward", "reward per nat", gt=0)
    target_entropy: Float | None = param(None, "null: minus the number of action entries", "nats")


class SACConfig(RunConfig):
    start_training: Int = param(10_000, "random actions before the first update", "agent steps", ge=1)
    buffer_size: Int = param(1_000_000, "capacity of the replay", "agent steps", ge=1)
    batch_size: Int = param(256, "transitions per update", "transitions", ge=1)
    train_every: Int = param(1, "one update per this many", "agent steps", ge=1)
    target_rate: Float = param(0.005, "tau: how far the target critics move towards the critics", "per update", gt=0,
                               le=1)
    frame_stack: Int = param(1, "so many of the last observations are seen as one", "observations", ge=1)
    reward_scale: Float = param(1.0, "factor on the reward where it is learned from", gt=0)
    temperature: TemperatureConfig = param(TemperatureConfig(), "how much entropy is worth")
    replay: StorageConfig = param(StorageConfig(), "where transitions lie")
    network: NetworkConfig = param(NetworkConfig(layers=2, units=256), "networks of the actor and of each critic")
    actor_opt: AdamConfig = param(AdamConfig(lr=3e-4), "optimiser of the actor")
    critic_opt: AdamConfig = param(AdamConfig(lr=3e-4), "optimiser of the critics")
    temperature_opt: AdamConfig = param(AdamConfig(lr=3e-4), "optimiser of the temperature's logarithm")
