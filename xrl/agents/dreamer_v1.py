"""DreamerV1 put together: its networks, its learner, and what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xrl.agents.inspection import Inspector
from xrl.agents.replayed import ReplayedAgent
from xrl.common.inspection import Inspection, Look
from xrl.common.row import Row
from xrl.common.seeding import torch_generator
from xrl.configs.schemas.dreamer_v1 import DreamerV1Config
from xrl.learners.dreamer_v1 import DreamerV1Learner
from xrl.policies.dreamer_v1 import DreamerV1Policy
from xrl.world_models.rssm import State


class DreamerV1Agent(ReplayedAgent[DreamerV1Config]):
    """Random actions, first updates, then one update per ``train_every`` agent steps; see ``ReplayedAgent``."""

    policy: DreamerV1Policy
    learner: DreamerV1Learner

    def build(self, noise: torch.Generator) -> None:
        self.policy = DreamerV1Policy(self.envs.obs_spec, self.envs.action_spec, self.config).to(self.device)
        self.learner = DreamerV1Learner(self.policy, self.config, noise)

    def dream(self, state: State, action: np.ndarray, generator: torch.Generator) -> State:
        return self.policy.dream(state, torch.from_numpy(action).to(self.device), generator)

    def look(self, state: State) -> Look:
        return self.policy.look(state)

    def inspect(self, episodes: Sequence[Row]) -> Inspection:
        generator = torch_generator(self.config.seed, "inspection", self.device)
        return Inspector(self.policy, episodes, self.learner.transform_reward, self.config.horizon, generator).inspect()
