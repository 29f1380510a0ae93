"""Schema of DQN. The defaults are those of the Nature paper and of Dopamine, for Atari."""

from __future__ import annotations

from xrl.configs.schemas.base import RunConfig
from xrl.configs.schemas.fields import Float, Int, Section, param
from xrl.configs.schemas.model_free import AdamConfig, NetworkConfig, StorageConfig


class ExplorationConfig(Section):
    start: Float = param(1.0, "probability of a random action at first", ge=0, le=1)
    end: Float = param(0.01, "and in the end", ge=0, le=1)
    steps: Int = param(250_000, "agent steps in which it falls from the one to the other", "agent steps", ge=1)


class DQNReplayConfig(StorageConfig):
    prioritized: bool = param(False, "transitions are drawn by their TD error, not uniformly")
    alpha: Float = param(0.5, "prioritized: 0 would be uniform, 1 in proportion to the error", ge=0, le=1)
    beta: Float = param(0.4, "prioritized: how far weights undo that at first; at running_steps it is 1, fully", ge=0,
                        le=1)


class DQNConfig(RunConfig):
    start_training: Int = param(20_000, "random actions before the first update", "agent steps", ge=1)
    buffer_size: Int = param(1_000_000, "capacity of the replay", "agent steps", ge=1)
    batch_size: Int = param(32, "transitions per update", "transitions", ge=1)
    train_every: Int = param(4, "one update per this many", "agent steps", ge=1)
    target_every: Int = param(2_000, "the target network becomes a copy of the network this often", "updates", ge=1)
    frame_stack: Int = param(1, "so many of the last observations are seen as one", "observations", ge=1)
    n_step: Int = param(1, "rewards that are counted before a value stands for the rest", "agent steps", ge=1)
    double: bool = param(False, "the network chooses the next action, the target network values it")
    dueling: bool = param(False, "a state's value and the actions' advantages are added to their values")
    exploration: ExplorationConfig = param(ExplorationConfig(), "random actions in training")
    replay: DQNReplayConfig = param(DQNReplayConfig(), "where transitions lie and how they are drawn")
    network: NetworkConfig = param(NetworkConfig(layers=1, units=512), "network of action values")
    optimizer: AdamConfig = param(AdamConfig(lr=6.25e-5, eps=1.5e-4, clip=10.0), "its optimiser")
