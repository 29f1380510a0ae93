"""SAC's update: critics towards the soft value of what comes next, the actor towards what they value, the temperature
towards the entropy that is wanted.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905. docs/methods/sac.md maps every
equation to its function and test.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xrl.common.accelerate import Feed, autocast, captured, compile_methods
from xrl.common.health import Health, raise_if_sick
from xrl.common.optimizer import Adam
from xrl.configs.schemas.model_free import AdamConfig
from xrl.configs.schemas.sac import SACConfig
from xrl.learners.base import Learner
from xrl.memory import Draw
from xrl.ops.frames import stack
from xrl.ops.targets import move_parameters
from xrl.policies.sac import SACPolicy

Metrics = dict[str, Tensor]


class Batch(NamedTuple):
    """Windows on the device, raw, K = frame_stack: obs name -> (K + 1, B, *shape), action (K + 1, B, A), reward and
    flags (K + 1, B)."""

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_terminal: Tensor


class Transitions(NamedTuple):
    """x_t and x_{t+1}, name -> (B, *shape), stacked; a_{t+1} (B, A), r_{t+1} scaled and is_terminal_{t+1} (B,)."""

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_terminal: Tensor
    next_obs: dict[str, Tensor]


class SACLearner(Learner):
    """Owns three optimisers and the generator of the update's noise; the networks belong to the policy.

    ``generator`` lives on the policy's device.
    """

    profile_parts = {"critics": ("critic_loss", "critic_opt.differentiate", "critic_opt.apply"),
                     "actor": ("actor_loss", "actor_opt.differentiate", "actor_opt.apply"),
                     "temperature": ("temperature_loss", "temperature_opt.differentiate", "temperature_opt.apply")}

    def __init__(self, policy: SACPolicy, config: SACConfig, generator: torch.Generator) -> None:
        self.policy, self.config, self.generator = policy, config, generator
        wanted = config.temperature.target_entropy
        self.target_entropy = -float(policy.actions) if wanted is None else wanted
        self.critic_opt = _adam(policy.critics, "critics", config.critic_opt)
        self.actor_opt = _adam(policy.actor, "actor", config.actor_opt)
        self.temperature_opt = Adam([("log_alpha", policy.log_alpha)], lr=config.temperature_opt.lr, weight_decay=0.0,
                                    eps=config.temperature_opt.eps, clip=config.temperature_opt.clip)
        self.optimizers = {"critic_opt": self.critic_opt, "actor_opt": self.actor_opt,
                           "temperature_opt": self.temperature_opt}
        self.health = Health([*self.optimizers.values()], config.skip_nonfinite)
        self.metrics: Metrics = {}  # of the last update
        if config.compile == "on":
            compile_methods(*((network, "forward") for network in (policy.actor, policy.critics, policy.target_q)))
        self._feed = Feed(generator.device)
        self._step = captured(self._witnessed_step, config.cuda_graph, generator)

    # The update ------------------------------------------------------------------------------------------------

    def update(self, batch: Draw) -> Metrics:
        """``step`` on transitions from the replay; then the target critics move, unless something was left out."""
        self.metrics, good = self._step(self.to_device(batch))
        move_parameters(self.policy.critics, self.policy.target_q, self.config.target_rate, when=good)
        self.updates += 1
        return self.metrics

    def step(self, batch: Batch) -> Metrics:
        """Critics, then the actor by the critics as they are now, then the temperature (SAC, algorithm 1). What is not
        finite leaves out its own step and all that would follow, see ``Health``."""
        transitions = self.transitions(batch)
        with self.precision():
            loss, metrics = self.critic_loss(transitions)
        metrics["critic/grad_norm"] = self.critic_opt.differentiate(loss)
        good = self.health.step(self.health.well, self.critic_opt)
        with self.precision():
            loss, log_prob, actor_metrics = self.actor_loss(transitions)
        metrics |= actor_metrics | {"actor/grad_norm": self.actor_opt.differentiate(loss)}
        followers = [self.actor_opt]
        if self.config.temperature.automatic:
            metrics["temperature/loss"] = loss = self.temperature_loss(log_prob)
            self.temperature_opt.differentiate(loss)
            followers.append(self.temperature_opt)
        metrics["temperature/alpha"] = self.alpha.clone()
        self.health.note(self.health.step(good, *followers))
        return {name: value.detach() for name, value in metrics.items()} | {
            "update/skipped": self.health.skipped.clone()}

    def _witnessed_step(self, batch: Batch) -> tuple[Metrics, Tensor]:
        """``step``, and whether all of it was applied."""
        return self.step(batch), self.health.in_a_row == 0

    # Losses ----------------------------------------------------------------------------------------------------

    @property
    def alpha(self) -> Tensor:
        """The temperature, a scalar without a gradient."""
        return self.policy.log_alpha.detach().exp().squeeze(0)

    def critic_loss(self, transitions: Transitions) -> tuple[Tensor, Metrics]:
        """E[sum_i 1/2 (Q_i(x_t, a_{t+1}) - y)^2] (SAC, eq. 5)."""
        value = self.policy.critics(transitions.obs, transitions.action)
        target = self.target(transitions)
        loss = 0.5 * (value - target).square().sum(0).mean()
        return loss, {"critic/loss": loss, "critic/value": value.mean(), "critic/target": target.mean()}

    @torch.no_grad()
    def target(self, transitions: Transitions) -> Tensor:
        """y = r + gamma (1 - is_terminal) [min_i Q'_i(x_{t+1}, a) - alpha ln pi(a | x_{t+1})], a ~ pi, (B,) (eq. 2, 3).

        The observation x_{t+1} is the final one where the episode was truncated there: what would have come is valued.
        """
        action, log_prob = self.sample(transitions.next_obs)
        slow = self.policy.target_q(transitions.next_obs, action).amin(0)
        discount = self.config.gamma * (~transitions.is_terminal).float()
        return transitions.reward + discount * (slow - self.alpha * log_prob)

    def actor_loss(self, transitions: Transitions) -> tuple[Tensor, Tensor, Metrics]:
        """E[alpha ln pi(a | x_t) - min_i Q_i(x_t, a)], a ~ pi, through the sample (eq. 9). Returns the loss,
        ln pi (B,) and metrics."""
        action, log_prob = self.sample(transitions.obs)
        value = self.policy.critics(transitions.obs, action).amin(0)
        loss = (self.alpha * log_prob - value).mean()
        return loss, log_prob.detach(), {"actor/loss": loss, "actor/entropy": -log_prob.mean()}

    def temperature_loss(self, log_prob: Tensor) -> Tensor:
        """E[-ln alpha (ln pi + target entropy)]: eq. 18 with ln alpha for alpha, as the reference code has it."""
        return -(self.policy.log_alpha * (log_prob + self.target_entropy)).mean()

    def sample(self, obs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """An action of the policy, (B, A), and its log-probability, (B,)."""
        law = self.policy.actor(obs)
        return law.sample_with_log_prob(self.policy.noise(len(law.mean), generator=self.generator))

    def transitions(self, batch: Batch) -> Transitions:
        """::

            window    t-K+1  ..  t        t+1            K = frame_stack
                      x_t is seen         a_{t+1}, r_{t+1} arrived with x_{t+1}
        """
        frames = self.config.frame_stack
        seen = {name: stack(value, batch.is_first, frames) for name, value in batch.obs.items()}
        return Transitions({name: value[0] for name, value in seen.items()}, batch.action[-1],
                           self.config.reward_scale * batch.reward[-1], batch.is_terminal[-1],
                           {name: value[1] for name, value in seen.items()})

    # Shell -----------------------------------------------------------------------------------------------------

    def precision(self) -> torch.autocast:
        """A context for one loss; see ``autocast`` for why there are several."""
        return autocast(self.config.precision, self.generator.device)

    def to_device(self, batch: Draw) -> Batch:
        """Images cross as uint8."""
        rows = batch.rows
        arrays = {f"obs.{name}": array for name, array in rows.obs.items()}
        tensors = self._feed(arrays | {name: getattr(rows, name) for name in Batch._fields[1:]})
        return Batch({name: tensors.pop(f"obs.{name}") for name in rows.obs}, **tensors)

    def check(self) -> None:
        raise_if_sick(self.health, self.updates, self.metrics, self.optimizers)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "generator": self.generator.get_state(), "health": self.health.state_dict(),
                **{name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        self.generator.set_state(state["generator"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        self.health.load_state_dict(state["health"])


def _adam(module: torch.nn.Module, prefix: str, config: AdamConfig) -> Adam:
    named = ((f"{prefix}.{name}", parameter) for name, parameter in module.named_parameters())
    return Adam(named, lr=config.lr, eps=config.eps, clip=config.clip, weight_decay=0.0)
