"""What acts: an actor, and a critic beside it, on observations as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.ppo import PPOConfig
from xrl.nn.distributions import MultiOneHot, OneHot, uniform
from xrl.nn.gaussians import DiagonalNormal
from xrl.nn.trunk import Trunk, orthogonal_linear
from xrl.ops.frames import Frames, no_frames, push_all

Law = OneHot | MultiOneHot | DiagonalNormal


class PPOPolicy(nn.Module):
    """Actor and critic, with one trunk or one each (``network.shared``).

    The actor's last layer begins a hundred times smaller, so that all actions are about as likely. The deviation of
    continuous actions is a parameter, the same everywhere.
    """

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: PPOConfig) -> None:
        super().__init__()
        net = config.network
        self.obs_spec, self.action_spec, self.frames = obs_spec, action_spec, config.frame_stack
        self.trunks = nn.ModuleList(
            Trunk(obs_spec, frames=config.frame_stack, depth=net.depth, layers=net.layers, units=net.units,
                  activation="relu" if net.shared else "tanh") for _ in range(1 if net.shared else 2))
        self.actor = orthogonal_linear(net.units, action_spec.size, gain=0.01)
        self.critic = orthogonal_linear(net.units, 1, gain=1.0)
        if action_spec.kind == "continuous":
            self.log_std = nn.Parameter(torch.zeros(action_spec.size))

    def forward(self, obs: dict[str, Tensor]) -> tuple[Law, Tensor]:
        """name -> (..., *shape), stacked -> the law of the action, and the value (...)."""
        actor_trunk, critic_trunk = self.trunks[0], self.trunks[-1]
        feat = actor_trunk(obs)
        critic_feat = feat if critic_trunk is actor_trunk else critic_trunk(obs)
        return self.law(feat), self.critic(critic_feat).squeeze(-1).float()

    def value(self, obs: dict[str, Tensor]) -> Tensor:
        """The value alone, (...)."""
        value: Tensor = self.critic(self.trunks[-1](obs)).squeeze(-1).float()
        return value

    def law(self, feat: Tensor) -> Law:
        """The law of the action from the actor's features (..., units)."""
        out = self.actor(feat).float()
        if self.action_spec.kind == "continuous":
            return DiagonalNormal(out, self.log_std)
        if self.action_spec.kind == "multi_discrete":
            return MultiOneHot(tuple(OneHot(part) for part in out.split(list(self.action_spec.choices), -1)))
        return OneHot(out)

    def noise(self, *lead: int, generator: torch.Generator) -> Tensor:
        """What ``law.sample`` needs."""
        spec = self.action_spec
        sizes = {"continuous": (spec.size,), "multi_discrete": (len(spec.choices),), "discrete": ()}
        return uniform(*lead, *sizes[spec.kind], generator=generator)

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
            explore: sample; otherwise the law's mode.

        Returns:
            Action (E, A), and the state to pass next time. A continuous one may leave [-1, 1]: the environment takes
            the nearest bound for it, while its probability is that of the normal law.
        """
        seen, state = push_all(state, obs, is_first, self.frames)
        law = self.law(self.trunks[0](seen))
        if not explore:
            return law.mode(), state
        return law.sample(self.noise(len(is_first), generator=generator)), state
