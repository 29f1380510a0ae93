"""PPO put together: rollouts, actor and critic, learner."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xrl.agents.base import Agent
from xrl.common.accelerate import Feed, captured
from xrl.common.callback import Callback
from xrl.common.checkpoint import REPLAY
from xrl.common.row import Row
from xrl.common.seeding import torch_generator
from xrl.configs.schemas.ppo import PPOConfig
from xrl.environment import RowEnvs
from xrl.learners.ppo import PPOLearner
from xrl.memory import Rollouts
from xrl.ops.frames import Frames, restored
from xrl.policies.ppo import PPOPolicy


class PPOAgent(Agent[PPOConfig]):
    """Acts with the policy from the first step on, and learns from every rollout as soon as it is there. An update is
    all that is learned from one rollout: epochs x buffer_size / batch_size gradient steps."""

    def __init__(self, config: PPOConfig | Mapping[str, Any] | Namespace, envs: RowEnvs,
                 callbacks: Sequence[Callback] = ()) -> None:
        super().__init__(config, envs, callbacks)
        self.policy: PPOPolicy = PPOPolicy(envs.obs_spec, envs.action_spec, self.config).to(self.device)
        noise = torch_generator(self.config.seed, "learning", self.device)
        self.learner: PPOLearner = PPOLearner(self.policy, self.config, noise)
        acting_step = partial(self.policy.act, generator=self.generator, explore=True)
        self.acting_step = captured(acting_step, self.config.cuda_graph, self.generator)
        self.feed = Feed(self.device)
        self.rollouts = self.make_rollouts()

    def initial_state(self, num_envs: int) -> Frames:
        return self.policy.initial(num_envs, self.device)

    def act(self, row: Row, state: Frames, generator: torch.Generator, explore: bool) -> tuple[np.ndarray, Frames]:
        action, state = self.policy.act(state, *self.to_device(row), generator=generator, explore=explore)
        return action.cpu().numpy(), state

    def training_action(self) -> np.ndarray:
        assert self.row is not None
        action, self.state = self.acting_step(self.state, *self.to_device(self.row))
        return action.cpu().numpy()

    def to_device(self, row: Row) -> tuple[dict[str, Tensor], Tensor]:
        """Observations and is_first of a row."""
        tensors = self.feed({**row.obs, "is_first": row.is_first})
        is_first = tensors.pop("is_first")
        return tensors, is_first

    def observe(self, row: Row) -> None:
        self.rollouts.insert(row)

    def update(self, new_steps: int) -> None:
        if not self.rollouts.full:
            return
        rollout = self.rollouts.take()
        if self.agent_steps >= self.config.start_training:
            self.learner.anneal((self.agent_steps - new_steps) / self.config.running_steps)
            self.updated(self.learner.update(rollout))

    def first_update(self) -> str:
        return (f"the first rollout of buffer_size = {self.config.buffer_size} steps that ends after start_training = "
                f"{self.config.start_training} is learned from")

    def make_rollouts(self) -> Rollouts:
        return Rollouts(self.envs.obs_spec, self.envs.action_spec, num_envs=self.envs.num_envs,
                        steps=self.config.buffer_size // self.config.parallels, frames=self.config.frame_stack)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Weights and counters; a rollout under way was made by other weights, and is dropped."""
        super().load_state_dict(state)
        self.rollouts = self.make_rollouts()

    def run_state(self) -> dict[str, Any]:
        """And what this method adds: the rollout under way, and what acting carries along."""
        return super().run_state() | {"replay": self.rollouts.save(self.folder / REPLAY), "frames": self.state}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError or ValueError where the rollout or the frames do not fit."""
        super().load_run_state(state)
        self.rollouts.load(state["replay"], self.folder / REPLAY)
        self.state = restored(state["frames"], self.initial_state(self.envs.num_envs), self.device)
