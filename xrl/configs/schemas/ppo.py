"""Schema of PPO. The defaults are those of the paper and its reference code for Atari."""

from __future__ import annotations

from pydantic import model_validator

from xrl.configs.schemas.base import RunConfig
from xrl.configs.schemas.fields import Float, Int, param
from xrl.configs.schemas.model_free import AdamConfig, NetworkConfig


class PPONetworkConfig(NetworkConfig):
    shared: bool = param(True, "actor and critic share all but their last layer; otherwise they share nothing")


class PPOConfig(RunConfig):
    parallels: Int = param(8, "environments stepped side by side", "environments", ge=1)
    start_training: Int = param(1, "no update before this; what was done until then is not learned from",
                                "agent steps", ge=1)
    buffer_size: Int = param(1024, "a rollout, learned from as soon as it is there: steps of all environments, resets "
                                   "among them", "agent steps", ge=2)
    batch_size: Int = param(256, "a minibatch of the rollout", "transitions", ge=1)
    frame_stack: Int = param(1, "so many of the last observations are seen as one", "observations", ge=1)
    epochs: Int = param(4, "times that each transition of a rollout is learned from", "epochs", ge=1)
    lambda_: Float = param(0.95, "mixing of n-step advantages (GAE)", ge=0, le=1)
    clip: Float = param(0.1, "epsilon: how far the ratio of new to old probability may leave 1 and still pay", gt=0)
    value_clip: Float = param(0.0, "how far a value may leave the old one and still pay; 0 for no such limit", ge=0)
    value_scale: Float = param(0.5, "c1: weight of the critic's loss", gt=0)
    entropy: Float = param(0.01, "c2: weight of the policy's entropy", "per nat", ge=0)
    normalize_advantage: bool = param(True, "advantages of a minibatch are brought to mean 0 and deviation 1")
    anneal: bool = param(True, "the learning rate falls in a straight line to 0 at running_steps")
    network: PPONetworkConfig = param(PPONetworkConfig(layers=1, units=512), "trunks of actor and critic")
    optimizer: AdamConfig = param(AdamConfig(lr=2.5e-4, eps=1e-5, clip=0.5), "optimiser of everything")

    @model_validator(mode="after")
    def _divides(self) -> PPOConfig:
        steps, rest = divmod(self.buffer_size, self.parallels)
        if rest or steps == 0:
            fits = max(1, round(self.buffer_size / self.parallels)) * self.parallels
            raise ValueError(f"buffer_size: {self.buffer_size} steps cannot be shared by parallels = {self.parallels} "
                             f"environments; use buffer_size={fits}, say, or other parallels")
        if self.buffer_size % self.batch_size:
            fits = next(size for size in range(min(self.batch_size, self.buffer_size), 0, -1)
                        if self.buffer_size % size == 0)
            raise ValueError(f"batch_size: a rollout of buffer_size = {self.buffer_size} steps cannot be shared out in "
                             f"minibatches of {self.batch_size}; use batch_size={fits}, or a buffer_size that is a "
                             f"multiple of batch_size and of parallels = {self.parallels}")
        return self
