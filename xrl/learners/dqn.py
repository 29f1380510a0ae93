"""DQN's update: move the value of what was done towards the reward and the value of what can be done next.

Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015; with double Q-learning, duels,
n-step returns and prioritised replay as options. docs/methods/dqn.md maps every equation to its function and test.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xrl.common.accelerate import Feed, autocast, captured, compile_methods
from xrl.common.health import Health, raise_if_sick
from xrl.common.optimizer import Adam
from xrl.common.schedule import linear
from xrl.configs.schemas.dqn import DQNConfig
from xrl.learners.base import Learner
from xrl.memory import Draw
from xrl.ops.frames import stack
from xrl.ops.returns import NStep, n_step
from xrl.ops.targets import copy_parameters
from xrl.policies.dqn import DQNPolicy

Metrics = dict[str, Tensor]


class Batch(NamedTuple):
    """Windows on the device, raw, K = frame_stack: obs name -> (K - 1 + n + 1, B, *shape), action (.., B, A), reward
    and flags (.., B); ``weight`` (B,) of each transition in the loss."""

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_terminal: Tensor
    weight: Tensor


class Transitions(NamedTuple):
    """x_t and x_{t+m}, name -> (B, *shape), stacked; a_{t+1} (B, A); and what lay between."""

    obs: dict[str, Tensor]
    action: Tensor
    then: NStep
    next_obs: dict[str, Tensor]


class DQNLearner(Learner):
    """Owns the optimiser; the networks belong to the policy. ``error``: the TD errors (B,) of the last update."""

    profile_parts = {"loss, forward": ("loss",), "backward": ("optimizer.differentiate", "optimizer.apply")}

    def __init__(self, policy: DQNPolicy, config: DQNConfig, generator: torch.Generator) -> None:
        self.policy, self.config, self.device = policy, config, generator.device
        opt = config.optimizer
        named = ((f"q.{name}", parameter) for name, parameter in policy.q.named_parameters())
        self.optimizer = Adam(named, lr=opt.lr, eps=opt.eps, clip=opt.clip, weight_decay=0.0)
        self.health = Health([self.optimizer], config.skip_nonfinite)
        self.metrics: Metrics = {}  # of the last update
        self.error = torch.zeros(0)
        self.beta = config.replay.beta
        if config.compile == "on":
            compile_methods((policy.q, "forward"), (policy.target_q, "forward"))
        self._feed = Feed(self.device)
        self._step = captured(self._witnessed_step, config.cuda_graph, generator)

    # The update ------------------------------------------------------------------------------------------------

    def update(self, batch: Draw) -> Metrics:
        """``step`` on transitions from the replay; then the target network's turn: after updates n, 2n, ..."""
        self.metrics, self.error, good = self._step(self.to_device(batch))
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            copy_parameters(self.policy.q, self.policy.target_q, when=good)
        return self.metrics

    def step(self, batch: Batch) -> Metrics:
        """One gradient step. A loss or gradient that is not finite leaves it out, see ``Health``."""
        with self.precision():
            loss, metrics = self.loss(batch)
        metrics["q/grad_norm"] = self.optimizer.differentiate(loss)
        self.health.note(self.health.step(self.health.well, self.optimizer))
        return {name: value.detach() for name, value in metrics.items()} | {
            "update/skipped": self.health.skipped.clone()}

    def _witnessed_step(self, batch: Batch) -> tuple[Metrics, Tensor, Tensor]:
        """``step``, its TD errors, and whether it was applied."""
        return self.step(batch), self.error, self.health.in_a_row == 0

    # Losses ----------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """E[w huber(Q(x_t, a_{t+1}) - y)]: a square whose slope is limited to 1 (Nature paper, "error clipping")."""
        transitions = self.transitions(batch)
        value = (self.policy.q(transitions.obs) * transitions.action).sum(-1)
        target = self.target(transitions)
        self.error = (value - target).detach()
        loss = (batch.weight * F.huber_loss(value, target, reduction="none")).mean()
        return loss, {"q/loss": loss, "q/value": value.mean(), "q/target": target.mean(),
                      "q/error": self.error.abs().mean()}

    @torch.no_grad()
    def target(self, transitions: Transitions) -> Tensor:
        """y = r + gamma^m (1 - is_terminal) Q'(x_{t+m}, a*), (B,), where r sums m rewards and a* is the best action by
        the target network Q' itself, or by the network Q (``double``; van Hasselt et al. 2016, eq. 4)."""
        then, next_obs = transitions.then, transitions.next_obs
        slow = self.policy.target_q(next_obs)
        best = (self.policy.q(next_obs) if self.config.double else slow).argmax(-1, keepdim=True)
        return then.reward + then.discount * slow.gather(-1, best).squeeze(-1)

    def transitions(self, batch: Batch) -> Transitions:
        """What lies between row t and the row t + m that a value is taken from::

            window    t-K+1  ..  t      t+1         ..   t+m   ..   t+n
                      x_t is seen       a_{t+1}, r_{t+1} .. r_{t+m}             m < n where the episode ends before

        The row t + m is the last of its episode in the window: its observation is the final one even where the
        episode was truncated there, and only ``is_terminal`` makes it worth nothing.
        """
        frames = self.config.frame_stack
        then = n_step(batch.reward[frames:], batch.is_first[frames:], batch.is_terminal[frames:], self.config.gamma)
        seen = {name: stack(value, batch.is_first, frames) for name, value in batch.obs.items()}
        place = torch.arange(len(then.steps), device=self.device)
        return Transitions({name: value[0] for name, value in seen.items()}, batch.action[frames], then,
                           {name: value[then.steps, place] for name, value in seen.items()})

    # Shell -----------------------------------------------------------------------------------------------------

    def anneal(self, fraction: float) -> None:
        """Set how far prioritised replay is corrected for, for this fraction of the run."""
        self.beta = linear(self.config.replay.beta, 1.0, fraction)

    def precision(self) -> torch.autocast:
        return autocast(self.config.precision, self.device)

    def to_device(self, batch: Draw) -> Batch:
        """Images cross as uint8."""
        rows = batch.rows
        arrays = {f"obs.{name}": array for name, array in rows.obs.items()}
        arrays |= {name: getattr(rows, name) for name in Batch._fields[1:-1]}
        tensors = self._feed(arrays | {"weight": batch.weights(self.beta)})
        return Batch({name: tensors.pop(f"obs.{name}") for name in rows.obs}, **tensors)

    def check(self) -> None:
        raise_if_sick(self.health, self.updates, self.metrics, {"optimizer": self.optimizer})

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "health": self.health.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.health.load_state_dict(state["health"])
