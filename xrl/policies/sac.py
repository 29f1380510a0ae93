"""What acts: a squashed normal law, with two critics, their slow copies and a temperature beside it."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.sac import SACConfig
from xrl.nn.distributions import uniform
from xrl.nn.gaussians import SquashedNormal
from xrl.nn.trunk import Trunk, orthogonal_linear
from xrl.ops.frames import Frames, no_frames, push_all

LOG_STD = (-20.0, 2.0)  # bounds of the reference code


class SquashedActor(nn.Module):
    """Observations to the law of the action, in (-1, 1)^A."""

    def __init__(self, obs_spec: dict[str, ObsSpec], actions: int, config: SACConfig) -> None:
        super().__init__()
        net = config.network
        self.trunk = Trunk(obs_spec, frames=config.frame_stack, depth=net.depth, layers=net.layers, units=net.units)
        self.out = orthogonal_linear(net.units, 2 * actions, gain=1.0)

    def forward(self, obs: dict[str, Tensor]) -> SquashedNormal:
        """name -> (..., *shape), stacked."""
        mean, log_std = self.out(self.trunk(obs)).float().chunk(2, -1)
        return SquashedNormal(mean, log_std.clamp(*LOG_STD))


class Critic(nn.Module):
    """Q(x, a): observations and an action to one number."""

    def __init__(self, obs_spec: dict[str, ObsSpec], actions: int, config: SACConfig) -> None:
        super().__init__()
        net = config.network
        self.trunk = Trunk(obs_spec, frames=config.frame_stack, extra=actions, depth=net.depth, layers=net.layers,
                           units=net.units)
        self.out = orthogonal_linear(net.units, 1, gain=1.0)

    def forward(self, obs: dict[str, Tensor], action: Tensor) -> Tensor:
        """name -> (..., *shape), stacked; (..., A) -> (...)."""
        value: Tensor = self.out(self.trunk(obs, action)).squeeze(-1).float()
        return value


class Critics(nn.Module):
    """Two critics that begin apart."""

    def __init__(self, obs_spec: dict[str, ObsSpec], actions: int, config: SACConfig) -> None:
        super().__init__()
        self.first, self.second = (Critic(obs_spec, actions, config) for _ in range(2))

    def forward(self, obs: dict[str, Tensor], action: Tensor) -> Tensor:
        """As ``Critic``; the values of both, (2, ...)."""
        return torch.stack([self.first(obs, action), self.second(obs, action)])


class SACPolicy(nn.Module):
    """Actor, critics, ``target_q``, their slow copies, and the logarithm of the temperature."""

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: SACConfig) -> None:
        super().__init__()
        self.obs_spec, self.actions, self.frames = obs_spec, action_spec.size, config.frame_stack
        self.actor = SquashedActor(obs_spec, action_spec.size, config)
        self.critics = Critics(obs_spec, action_spec.size, config)
        self.target_q = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor([math.log(config.temperature.start)]))

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        """What the actor's law needs for a sample."""
        return uniform(*lead, self.actions, generator=generator)

    def initial(self, batch: int, device: torch.device) -> Frames:
        """What is carried before an episode's first row."""
        return no_frames(self.obs_spec, self.frames, batch, device)

    @torch.no_grad()
    def act(self, state: Frames, obs: dict[str, Tensor], is_first: Tensor, generator: torch.Generator,
            explore: bool) -> tuple[Tensor, Frames]:
        """Choose an action after one row of E environments.

        Args:
            state: the observations before it, where several are seen as one.
            obs: name -> (E, *shape), raw; is_first: (E,) bool.
            explore: sample; otherwise tanh of the mean.

        Returns:
            Action (E, A), and the state to pass next time.
        """
        seen, state = push_all(state, obs, is_first, self.frames)
        law = self.actor(seen)
        if not explore:
            return law.mode(), state
        return law.sample(self.noise(len(is_first), generator=generator)), state
