"""What acts: a world model that follows the environment, an actor on its state, and the critics beside it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from xrl.common.inspection import Look
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v3 import DreamerV3Config
from xrl.nn.distributions import uniform
from xrl.nn.heads import Actor, BoundedNormalActor, make_discrete_actor
from xrl.nn.two_hot import TwoHotHead
from xrl.policies import views
from xrl.world_models.dreamer_v3 import DreamerV3Model
from xrl.world_models.rssm import State

ACTOR_SCALE = 0.01  # of the actor's initial output weights: it begins nearly uniform


class DreamerV3Policy(nn.Module):
    """World model, actor, critic, and the critic's moving average, which no gradient trains."""

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: DreamerV3Config) -> None:
        super().__init__()
        size = config.widths
        self.gamma, self.samples_always = config.gamma, config.eval_mode == "sample"
        self.world_model = DreamerV3Model(obs_spec, action_spec, config.model, size)
        feat, layers, unimix = self.world_model.rssm.feat_size, config.actor.layers, config.actor.unimix
        self.actor: Actor = (
            BoundedNormalActor(feat, action_spec.size, layers, size.units, "rms", ACTOR_SCALE)
            if action_spec.kind == "continuous"
            else make_discrete_actor(feat, action_spec, layers, size.units, "rms", ACTOR_SCALE, unimix))
        self.critic = TwoHotHead(feat, config.critic.layers, size.units, config.model.bins)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def initial(self, batch: int) -> State:
        """The state before an episode's first row: zeros."""
        return self.world_model.rssm.initial(batch)

    @torch.no_grad()
    def act(self, state: State, obs: dict[str, Tensor], action: Tensor, is_first: Tensor, generator: torch.Generator,
            explore: bool) -> tuple[Tensor, State]:
        """Take in one row of E environments and choose the next action.

        Args:
            state: after the row before, (E, ...); masked here where ``is_first``.
            obs: name -> (E, *shape), raw; action: the action that led to it, (E, A), as it was chosen, not as the
                environment clipped it; is_first: (E,) bool.
            explore: in evaluations, where False, the action is sampled all the same unless ``eval_mode`` says mode.

        Returns:
            Action (E, A), for continuous ones beyond [-1, 1] too, and the state to pass next time.
        """
        state = views.follow(self.world_model, state, obs, action, is_first, generator)
        law = self.actor(state.feat)
        if not (explore or self.samples_always):
            return law.mode(), state
        return law.sample(uniform(len(is_first), *self.actor.noise_shape, generator=generator)), state

    def dream(self, state: State, action: Tensor, generator: torch.Generator) -> State:
        """One imagined step of N states (N, ...) with action (N, A)."""
        return views.dream(self.world_model, state, action, generator)

    def cont(self, feat: Tensor) -> Tensor:
        """Probability that the episode goes on, (..., F) -> (...): the discount head's mean without gamma."""
        return (self.world_model.discount(feat) / self.gamma).clamp(max=1.0)

    def value(self, feat: Tensor) -> Tensor:
        """What is expected from here on, the reward of arriving included, (..., F) -> (...): r + c v, since the critic
        counts from the next reward on."""
        value: Tensor = self.world_model.reward(feat) + self.world_model.discount(feat) * self.critic(feat)
        return value

    def look(self, state: State) -> Look:
        """Decode N states (N, ...)."""
        return views.look(self, state)
