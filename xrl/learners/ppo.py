"""PPO's update: estimate advantages once, then ascend the clipped objective over shuffled minibatches.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347. docs/methods/ppo.md maps every equation
to its function and test, and says where paper and reference code differ.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from xrl.common.accelerate import Feed, autocast, captured, compile_methods
from xrl.common.health import Health, raise_if_sick
from xrl.common.optimizer import Adam
from xrl.common.row import Row
from xrl.common.schedule import linear
from xrl.configs.schemas.ppo import PPOConfig
from xrl.learners.base import Learner
from xrl.ops.frames import stack
from xrl.ops.returns import gae
from xrl.policies.ppo import PPOPolicy

Metrics = dict[str, Tensor]


class Rollout(NamedTuple):
    """Rows on the device, raw, K = frame_stack: obs name -> (K - 1 + T + 1, E, *shape), action (.., E, A), the rest
    (.., E)."""

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_terminal: Tensor


class Minibatch(NamedTuple):
    """Transitions (B, ...). What the policy was when it acted: ``log_prob`` of the action, ``value``. What it made of
    it: ``advantage``, ``target`` of the value. ``valid``: 1, and 0 for what is no transition but a reset."""

    obs: dict[str, Tensor]
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    valid: Tensor


class PPOLearner(Learner):
    """Owns the optimiser and the generator that shuffles; the networks belong to the policy.

    ``generator`` lives on the policy's device.
    """

    profile_parts = {"advantages": ("estimate",), "loss, forward": ("loss",),
                     "backward": ("optimizer.differentiate", "optimizer.apply")}

    def __init__(self, policy: PPOPolicy, config: PPOConfig, generator: torch.Generator) -> None:
        self.policy, self.config, self.generator = policy, config, generator
        opt = config.optimizer
        self.optimizer = Adam(policy.named_parameters(), lr=opt.lr, eps=opt.eps, clip=opt.clip, weight_decay=0.0)
        self.optimizer.lr = self.lr = torch.tensor(opt.lr, device=generator.device)
        self.health = Health([self.optimizer], config.skip_nonfinite)
        self.metrics: Metrics = {}  # of the last gradient step
        if config.compile == "on":
            compile_methods(*((trunk, "forward") for trunk in policy.trunks))
        self._feed = Feed(generator.device)
        self._step = captured(self.step, config.cuda_graph, generator)

    # The update ------------------------------------------------------------------------------------------------

    def update(self, batch: Row) -> Metrics:
        """Learn from a rollout: ``epochs`` times all its minibatches, each time in another order."""
        transitions = self.estimate(self.to_device(batch))
        history = []
        for _ in range(self.config.epochs):
            order = torch.randperm(len(transitions.valid), generator=self.generator, device=self.generator.device)
            for index in order.split(self.config.batch_size):
                self.metrics = self._step(tree_map(itemgetter(index), transitions))
                history.append(torch.stack(list(self.metrics.values())))
        self.updates += 1
        return dict(zip(self.metrics, torch.stack(history).mean(0).unbind(), strict=True))

    @torch.no_grad()
    def estimate(self, rollout: Rollout) -> Minibatch:
        """All transitions of the rollout, flat (T * E, ...), with what the policy that made them thinks of them::

            row           t           t+1         t+2         a_{t+1}, r_{t+1} arrived with x_{t+1}; chosen at x_t
            transition    |-----t-----|----t+1----|           none where row t + 1 is_first
            v_t           V(x_t)      v'_t = V(x_{t+1})       x_{t+1} is the final observation where t was the last
            d_t           gamma, or 0 where row t + 1 is_terminal: a time limit does not end what would have come
            f_t           transition t + 1 is one: row t + 2 is not is_first

        The weights are those that acted, so that probabilities and values need not have been stored with the rows.
        """
        seen = self.config.frame_stack - 1
        obs = {name: stack(value, rollout.is_first, self.config.frame_stack) for name, value in rollout.obs.items()}
        action, reward = rollout.action[seen + 1:], rollout.reward[seen + 1:]
        valid, is_terminal = ~rollout.is_first[seen + 1:], rollout.is_terminal[seen + 1:]
        with self.precision():
            law, value = self.policy(obs)
        log_prob = law.log_prob(torch.cat([action, action[-1:]]))[:-1]  # nothing was done at the last row yet
        follows = torch.cat([valid[1:], valid[:1]])
        discount = self.config.gamma * (~is_terminal).float()
        advantage = gae(reward, value[:-1], value[1:], discount, follows, self.config.lambda_)
        transitions = Minibatch({name: entry[:-1] for name, entry in obs.items()}, action, log_prob, value[:-1],
                                advantage, advantage + value[:-1], valid.float())
        flat: Minibatch = tree_map(lambda entry: entry.flatten(0, 1), transitions)
        return flat

    def step(self, batch: Minibatch) -> Metrics:
        """One gradient step. A loss or gradient that is not finite leaves it out, see ``Health``."""
        with self.precision():
            loss, metrics = self.loss(batch)
        metrics["update/grad_norm"] = self.optimizer.differentiate(loss)
        self.health.note(self.health.step(self.health.well, self.optimizer))
        return {name: value.detach() for name, value in metrics.items()} | {
            "update/skipped": self.health.skipped.clone()}

    # The objective ---------------------------------------------------------------------------------------------

    def loss(self, batch: Minibatch) -> tuple[Tensor, Metrics]:
        """-L, with L = E[L_clip - c1 L_value + c2 H] (PPO, eq. 9)."""
        config = self.config
        law, value = self.policy(batch.obs)
        log_ratio = law.log_prob(batch.action) - batch.log_prob
        actor = mean(self.clipped_loss(log_ratio.exp(), self.normalized(batch)), batch.valid)
        critic = mean(self.value_loss(value, batch), batch.valid)
        entropy = mean(law.entropy(), batch.valid)
        loss = actor + config.value_scale * critic - config.entropy * entropy
        with torch.no_grad():
            outside = ((log_ratio.exp() - 1).abs() > config.clip).float()
            metrics = {"actor/kl": mean(log_ratio.exp() - 1 - log_ratio, batch.valid),
                       "actor/clipped": mean(outside, batch.valid), "critic/value": mean(value, batch.valid),
                       "critic/target": mean(batch.target, batch.valid)}
        return loss, {"update/loss": loss, "actor/loss": actor, "actor/entropy": entropy, "critic/loss": critic,
                      **metrics}

    def normalized(self, batch: Minibatch) -> Tensor:
        """Advantages (B,), of mean 0 and deviation 1 where ``normalize_advantage`` says so."""
        if not self.config.normalize_advantage:
            return batch.advantage
        centred = batch.advantage - mean(batch.advantage, batch.valid)
        return centred / (mean(centred.square(), batch.valid).sqrt() + 1e-8)

    def clipped_loss(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) (PPO, eq. 7), (B,)."""
        limited = ratio.clamp(1 - self.config.clip, 1 + self.config.clip)
        return -torch.minimum(ratio * advantage, limited * advantage)

    def value_loss(self, value: Tensor, batch: Minibatch) -> Tensor:
        """1/2 (v - R)^2, (B,); with ``value_clip`` the larger of that and of the same for v kept near the old value."""
        loss = (value - batch.target).square()
        if self.config.value_clip > 0:
            near = batch.value + (value - batch.value).clamp(-self.config.value_clip, self.config.value_clip)
            loss = torch.maximum(loss, (near - batch.target).square())
        return 0.5 * loss

    # Shell -----------------------------------------------------------------------------------------------------

    def anneal(self, fraction: float) -> None:
        """Set the learning rate for this fraction of the run."""
        if self.config.anneal:
            self.lr.fill_(linear(self.config.optimizer.lr, 0.0, fraction))

    def precision(self) -> torch.autocast:
        return autocast(self.config.precision, self.generator.device)

    def to_device(self, batch: Row) -> Rollout:
        """Images cross as uint8."""
        arrays = {f"obs.{name}": array for name, array in batch.obs.items()}
        arrays |= {name: getattr(batch, name) for name in Rollout._fields[1:]}
        tensors = self._feed(arrays)
        return Rollout({name: tensors.pop(f"obs.{name}") for name in batch.obs}, **tensors)

    def check(self) -> None:
        raise_if_sick(self.health, self.updates, self.metrics, {"optimizer": self.optimizer})

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "generator": self.generator.get_state(), "health": self.health.state_dict(),
                "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        self.generator.set_state(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.health.load_state_dict(state["health"])


def mean(x: Tensor, valid: Tensor) -> Tensor:
    """The mean over what is valid; both (B,)."""
    return (x * valid).sum() / valid.sum().clamp(min=1)
