"""What acts: a world model that follows the environment, an actor on its state, and the critic beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrl.common.inspection import Look
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v1 import DreamerV1Config
from xrl.nn.distributions import one_hot, uniform
from xrl.nn.heads import MultiOneHotActor, OneHotActor, ScalarHead, TanhNormalActor, make_discrete_actor
from xrl.policies import views
from xrl.world_models.dreamer_v1 import DreamerV1Model
from xrl.world_models.rssm import State


class DreamerV1Policy(nn.Module):
    """World model, actor and critic."""

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: DreamerV1Config) -> None:
        super().__init__()
        self.world_model = DreamerV1Model(obs_spec, action_spec, config.world_model)
        self.gamma, self.exploration = config.gamma, config.exploration
        # Where the one-hot vectors of an action lie; none of a continuous one.
        self.parts = {"discrete": (action_spec.size,), "continuous": ()}.get(action_spec.kind, action_spec.choices)
        feat, actor = self.world_model.rssm.feat_size, config.actor
        self.actor: TanhNormalActor | OneHotActor | MultiOneHotActor = (
            make_discrete_actor(feat, action_spec, actor.layers, actor.units) if self.parts else
            TanhNormalActor(feat, action_spec.size, actor.layers, actor.units, actor.init_std, actor.mean_scale))
        self.critic = ScalarHead(feat, config.critic.layers, config.critic.units)

    def initial(self, batch: int) -> State:
        """The state before an episode's first row: zeros."""
        return self.world_model.rssm.initial(batch)

    @torch.no_grad()
    def act(self, state: State, obs: dict[str, Tensor], action: Tensor, is_first: Tensor, generator: torch.Generator,
            explore: bool) -> tuple[Tensor, State]:
        """Take in one row of E environments and choose the next action.

        Args:
            state: after the row before, (E, ...); masked here where ``is_first``.
            obs: name -> (E, *shape), raw; action: the action that led to it, (E, A); is_first: (E,) bool.
            explore: sample the action and vary it; otherwise its mode. The latent is sampled in either case.

        Returns:
            Action (E, A), as the networks see it, and the state to pass next time.
        """
        state = views.follow(self.world_model, state, obs, action, is_first, generator)
        law = self.actor(state.feat)
        if not explore:
            return law.mode(), state
        chosen = law.sample(uniform(len(is_first), *self.actor.noise_shape, generator=generator))
        return self.varied(chosen, generator), state

    def varied(self, action: Tensor, generator: torch.Generator) -> Tensor:
        """Actions (E, A) with noise: what is added to continuous ones is N(0, noise^2), and the sum is clipped; a
        discrete one (each of several) is replaced, with probability epsilon, by any of its choices."""
        if not self.parts:
            noise = torch.randn(action.shape, generator=generator, device=generator.device)
            return (action + self.exploration.noise * noise).clamp(-1, 1)
        varied = []
        for part in action.split(self.parts, -1):
            change, which = uniform(2, len(action), generator=generator)
            count = part.shape[-1]
            other = one_hot((which * count).long().clamp(max=count - 1), count)  # the product may round up to count
            varied.append(other.where((change < self.exploration.epsilon).unsqueeze(-1), part))
        return torch.cat(varied, -1)

    def dream(self, state: State, action: Tensor, generator: torch.Generator) -> State:
        """One imagined step of N states (N, ...) with action (N, A)."""
        return views.dream(self.world_model, state, action, generator)

    def cont(self, feat: Tensor) -> Tensor:
        """Probability that the episode goes on, (..., F) -> (...): the discount head's mean without gamma; 1 without
        that head."""
        head = self.world_model.discount
        return torch.ones_like(feat[..., 0]) if head is None else (head(feat) / self.gamma).clamp(max=1.0)

    def value(self, feat: Tensor) -> Tensor:
        """What the critic expects from here on, the reward of arriving included, (..., F) -> (...)."""
        value: Tensor = self.critic(feat)
        return value

    def look(self, state: State) -> Look:
        """Decode N states (N, ...)."""
        return views.look(self, state)
