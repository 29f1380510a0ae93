"""DQN put together: replay, network, learner, and how much is left to chance."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xrl.agents.base import Agent
from xrl.agents.replaying import Replaying
from xrl.common.accelerate import Feed, captured
from xrl.common.callback import Callback
from xrl.common.row import Row
from xrl.common.schedule import linear
from xrl.configs.schemas.dqn import DQNConfig
from xrl.environment import RowEnvs
from xrl.learners.dqn import DQNLearner
from xrl.memory import Priorities
from xrl.ops.frames import Frames, restored
from xrl.policies.dqn import DQNPolicy


class DQNAgent(Agent[DQNConfig]):
    """Random actions until ``start_training``, then the best ones but for a share of chance that shrinks; one update
    per ``train_every`` agent steps.

    Raises:
        ConfigError: the replay does not fit.
    """

    def __init__(self, config: DQNConfig | Mapping[str, Any] | Namespace, envs: RowEnvs,
                 callbacks: Sequence[Callback] = ()) -> None:
        super().__init__(config, envs, callbacks)
        self.policy: DQNPolicy = DQNPolicy(envs.obs_spec, envs.action_spec, self.config).to(self.device)
        self.learner: DQNLearner = DQNLearner(self.policy, self.config, self.generator)
        acting_step = partial(self.policy.act, generator=self.generator, explore=True)
        self.acting_step = captured(acting_step, self.config.cuda_graph, self.generator)
        self.feed = Feed(self.device)
        replay = self.config.replay
        self.replay = Replaying(
            self, on_disk=replay.storage == "disk", train_every=self.config.train_every, n_step=self.config.n_step,
            frames=self.config.frame_stack, priorities=Priorities(replay.alpha) if replay.prioritized else None)

    def initial_state(self, num_envs: int) -> Frames:
        return self.policy.initial(num_envs, self.device)

    def act(self, row: Row, state: Frames, generator: torch.Generator, explore: bool) -> tuple[np.ndarray, Frames]:
        action, state = self.policy.act(state, *self.to_device(row), generator=generator, explore=explore)
        return action.cpu().numpy(), state

    def training_action(self) -> np.ndarray:
        """Chance alone until ``start_training``; from then on the policy, with its share of chance."""
        assert self.row is not None
        exploration = self.config.exploration
        since = (self.agent_steps - self.config.start_training) / exploration.steps
        self.policy.epsilon.fill_(linear(exploration.start, exploration.end, since))
        action, self.state = self.acting_step(self.state, *self.to_device(self.row))
        if self.agent_steps < self.config.start_training:
            return self.envs.action_spec.random(self.rng, self.envs.num_envs)
        return action.cpu().numpy()

    def to_device(self, row: Row) -> tuple[dict[str, Tensor], Tensor]:
        """Observations and is_first of a row."""
        tensors = self.feed({**row.obs, "is_first": row.is_first})
        is_first = tensors.pop("is_first")
        return tensors, is_first

    def observe(self, row: Row) -> None:
        self.replay.insert(row)

    def update(self, new_steps: int) -> None:
        for _ in range(self.replay.updates_due(new_steps)):
            self.learner.anneal(self.agent_steps / self.config.running_steps)
            draw = self.replay.sample(self.config.batch_size, self.rng)
            metrics = self.learner.update(draw)
            if self.config.replay.prioritized:
                self.replay.reprioritise(draw.places, self.learner.error.cpu().numpy())
            self.updated(metrics)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Weights and counters; the replay starts empty and fills before learning goes on."""
        super().load_state_dict(state)
        self.replay.begin()

    def run_state(self) -> dict[str, Any]:
        """And what this method adds: the replay and its cadence, and what acting carries along."""
        return super().run_state() | {"replay": self.replay.save(), "frames": self.state}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError or ValueError where the replay or the frames do not fit."""
        super().load_run_state(state)
        self.replay.load(state["replay"])
        self.state = restored(state["frames"], self.initial_state(self.envs.num_envs), self.device)
