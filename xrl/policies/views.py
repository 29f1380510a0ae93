"""Following, dreaming and looking: what a policy does with its world model, whichever method trains the two.

A policy that offers these as methods (``WorldModelPolicy``) can be inspected and played with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from xrl.common.inspection import Look
from xrl.nn.distributions import MultiOneHot, OneHot
from xrl.world_models.open_loop import ViewedModel
from xrl.world_models.rssm import State


class Networks(Protocol):
    """What ``look`` looks with; networks read feats (..., F)."""

    @property
    def world_model(self) -> ViewedModel: ...

    @property
    def actor(self) -> Callable[..., Any]:
        """Gives a law that has ``mode`` and ``entropy``."""

    def value(self, feat: Tensor) -> Tensor:
        """What is expected from here on, the reward of arriving included, (...)."""

    def cont(self, feat: Tensor) -> Tensor:
        """Probability that the episode goes on, (...)."""


class WorldModelPolicy(Networks, Protocol):
    """A policy as those see it who look into its world model."""

    @property
    def gamma(self) -> float: ...

    def dream(self, state: State, action: Tensor, generator: torch.Generator) -> State: ...

    def look(self, state: State) -> Look: ...


@torch.no_grad()
def follow(model: ViewedModel, state: State, obs: dict[str, Tensor], action: Tensor, is_first: Tensor,
           generator: torch.Generator) -> State:
    """Take in one row of E environments; the latent is sampled.

    Args:
        state: after the row before, (E, ...); masked here where ``is_first``.
        obs: name -> (E, *shape), raw; action: the action that led to it, (E, A); is_first: (E,) bool.
    """
    noise = model.latent.noise(len(is_first), generator=generator)
    return model.rssm.obs_step(state, action, model.encoder(model.preprocess(obs)), is_first, noise)[0]


@torch.no_grad()
def dream(model: ViewedModel, state: State, action: Tensor, generator: torch.Generator) -> State:
    """One imagined step of N states (N, ...) with action (N, A)."""
    return model.rssm.img_step(state, action, model.latent.noise(len(action), generator=generator))


@torch.no_grad()
def look(networks: Networks, state: State) -> Look:
    """Decode N states (N, ...), and ask every head about them."""
    model, feat = networks.world_model, state.feat
    law = networks.actor(feat)
    obs = {name: value.cpu().numpy() for name, value in model.unprocess(model.decoder(feat)).items()}
    return Look(obs, *(part.cpu().numpy() for part in (
        model.reward(feat), networks.cont(feat), networks.value(feat), _shown(law), law.entropy())))


def _shown(law: Any) -> Tensor:
    """What ``Look.action`` holds of a policy, (..., A)."""
    if not isinstance(law, OneHot | MultiOneHot):
        mode: Tensor = law.mode()
        return mode
    parts = law.parts if isinstance(law, MultiOneHot) else (law,)
    return torch.cat([part.logits.softmax(-1) for part in parts], -1)
