"""What acts: a world model that follows the environment, an actor on its state, and the critics beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrl.common.inspection import Look
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config
from xrl.nn.distributions import MultiOneHot, OneHot, TruncatedNormal, uniform
from xrl.nn.heads import ScalarHead, make_actor
from xrl.world_models.rssm import State
from xrl.world_models.world_model import WorldModel


class DreamerV2Policy(nn.Module):
    """World model, actor, critic and slow critic. Only the first three are trained by gradient."""

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: DreamerV2Config) -> None:
        super().__init__()
        self.world_model = WorldModel(obs_spec, action_spec, config.world_model)
        self.gamma = config.gamma
        feat = self.world_model.rssm.feat_size
        actor, critic = config.actor, config.critic
        self.actor = make_actor(feat, action_spec, actor.layers, actor.units, actor.norm)
        self.critic = ScalarHead(feat, critic.layers, critic.units, critic.norm)
        # The official code's very first update meets an unrelated random slow critic; so does ours.
        self.slow_critic = ScalarHead(feat, critic.layers, critic.units, critic.norm).requires_grad_(False)

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
            explore: sample the action; otherwise its mode. The latent is sampled in either case
                (the official code's ``eval_state_mean: False``).

        Returns:
            Action (E, A), as the networks see it, and the state to pass next time.
        """
        model, batch = self.world_model, len(is_first)
        embed = model.encoder(model.preprocess(obs))
        noise = model.latent.noise(batch, generator=generator)
        state, _ = model.rssm.obs_step(state, action, embed, is_first, noise)
        law = self.actor(state.feat)
        if not explore:
            return law.mode(), state
        return law.sample(uniform(batch, *self.actor.noise_shape, generator=generator)), state

    @torch.no_grad()
    def dream(self, state: State, action: Tensor, generator: torch.Generator) -> State:
        """One imagined step of N states (N, ...) with action (N, A)."""
        noise = self.world_model.latent.noise(len(action), generator=generator)
        return self.world_model.rssm.img_step(state, action, noise)

    def cont(self, feat: Tensor) -> Tensor:
        """Probability that the episode goes on, (..., F) -> (...): the discount head's mean without gamma; 1 without
        that head."""
        head = self.world_model.discount
        return torch.ones_like(feat[..., 0]) if head is None else (head(feat) / self.gamma).clamp(max=1.0)

    @torch.no_grad()
    def look(self, state: State) -> Look:
        """Decode N states (N, ...)."""
        model, feat = self.world_model, state.feat
        law = self.actor(feat)
        obs = {name: value.cpu().numpy() for name, value in model.unprocess(model.decoder(feat)).items()}
        return Look(obs, *(part.cpu().numpy() for part in (
            model.reward(feat), self.cont(feat), self.critic(feat), _shown(law), law.entropy())))


def _shown(law: OneHot | MultiOneHot | TruncatedNormal) -> Tensor:
    """What ``Look.action`` holds of a policy, (..., A)."""
    if isinstance(law, TruncatedNormal):
        return law.mode()
    parts = law.parts if isinstance(law, MultiOneHot) else (law,)
    return torch.cat([part.logits.softmax(-1) for part in parts], -1)
