"""What acts: the value of each action, and now and then chance."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dqn import DQNConfig
from xrl.nn.distributions import uniform
from xrl.nn.trunk import Trunk, orthogonal_linear
from xrl.ops.frames import Frames, no_frames, push_all


class QNetwork(nn.Module):
    """Q(x, .): observations to one value for each of A actions.

    ``dueling`` (Wang et al. 2016, eq. 9): two streams of one hidden layer each, a value V and advantages A, make
    Q = V + A - mean A.
    """

    def __init__(self, obs_spec: dict[str, ObsSpec], actions: int, config: DQNConfig) -> None:
        super().__init__()
        net, streams = config.network, int(config.dueling)
        self.trunk = Trunk(obs_spec, frames=config.frame_stack, depth=net.depth, layers=net.layers - streams,
                           units=net.units)

        def head(outputs: int) -> nn.Sequential:
            hidden = [orthogonal_linear(self.trunk.size, net.units), nn.ReLU()] if config.dueling else []
            return nn.Sequential(*hidden, orthogonal_linear(net.units, outputs, gain=1.0))

        self.out = head(actions)
        self.value = head(1) if config.dueling else None

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """name -> (..., *shape), stacked -> (..., A)."""
        feat = self.trunk(obs)
        out: Tensor = self.out(feat).float()
        if self.value is None:
            return out
        value: Tensor = self.value(feat).float()
        return value + out - out.mean(-1, keepdim=True)


class DQNPolicy(nn.Module):
    """The network, its slow copy ``target_q``, and ``epsilon``, the probability of a random action in training."""

    epsilon: Tensor

    def __init__(self, obs_spec: dict[str, ObsSpec], action_spec: ActionSpec, config: DQNConfig) -> None:
        super().__init__()
        self.obs_spec, self.actions, self.frames = obs_spec, action_spec.size, config.frame_stack
        self.q = QNetwork(obs_spec, action_spec.size, config)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.register_buffer("epsilon", torch.tensor(config.exploration.start))

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
            explore: with probability epsilon any action, all alike; otherwise the one of the largest value.

        Returns:
            Action (E, A), one-hot, and the state to pass next time.
        """
        seen, state = push_all(state, obs, is_first, self.frames)
        index = self.q(seen).argmax(-1)
        if explore:
            noise = uniform(2, len(is_first), generator=generator)
            index = torch.where(noise[0] < self.epsilon, (noise[1] * self.actions).long(), index)
        return F.one_hot(index, self.actions).float(), state
