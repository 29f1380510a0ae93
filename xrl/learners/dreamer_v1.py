"""DreamerV1's update: learn the world model from replay, and actor and critic from imagination.

Hafner et al., "Dream to Control: Learning Behaviors by Latent Imagination", arXiv 1912.01603. Where paper and official
code differ, docs/methods/dreamer_v1.md says what stands here; it maps every equation to its function and test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from xrl.common.accelerate import Feed, autocast, captured, compile_methods
from xrl.common.health import Flags, Health
from xrl.common.optimizer import Adam
from xrl.common.row import Row
from xrl.configs.schemas.dreamer_v1 import DreamerV1Config, OptimizerConfig
from xrl.learners.base import Postmortem
from xrl.learners.replayed import Batch, SequenceLearner, fed
from xrl.nn.distributions import normal_loss, uniform
from xrl.ops.returns import cumulative_weight, lambda_return
from xrl.policies.dreamer_v1 import DreamerV1Policy
from xrl.world_models.imagination import imagine
from xrl.world_models.rssm import State

Metrics = dict[str, Tensor]
Start = tuple[State, Tensor]  # of imagination: states (N, ...) and is_terminal (N,)


class Evidence(NamedTuple):
    """What runs an update again: its number, from 1, its batch and the generator's state before it; and the metrics it
    gave."""

    update: int
    batch: Batch
    generator: Tensor
    metrics: Metrics


@dataclass
class Dream:
    """Imagined trajectories of H steps from N start states; the start itself is left out.

    feat feat_1..feat_H, (H, N, F), and for k = 1..H-1, each (H-1, N): target V_k, weight w_k (no gradient).
    """

    feat: Tensor
    target: Tensor
    weight: Tensor


class DreamerV1Learner(SequenceLearner):
    """Owns the three optimisers and the generator of the update's noise; the networks belong to the policy.

    ``generator`` lives on the policy's device.
    """

    profile_parts = {"world model, forward": ("model_loss",),
                     "world model, backward": ("model_opt.differentiate", "model_opt.apply"),
                     "imagination": ("start_states", "imagine"),
                     "actor": ("actor_loss", "actor_opt.differentiate", "actor_opt.apply"),
                     "critic": ("critic_loss", "critic_opt.differentiate", "critic_opt.apply")}

    def __init__(self, policy: DreamerV1Policy, config: DreamerV1Config, generator: torch.Generator) -> None:
        self.policy, self.config, self.generator = policy, config, generator
        self.model, self.actor, self.critic = policy.world_model, policy.actor, policy.critic
        self.model_opt = _adam(self.model, "world_model", config.model_opt)
        self.actor_opt = _adam(self.actor, "actor", config.actor_opt)
        self.critic_opt = _adam(self.critic, "critic", config.critic_opt)
        self.optimizers = {"model_opt": self.model_opt, "actor_opt": self.actor_opt, "critic_opt": self.critic_opt}
        self.health = Health([*self.optimizers.values()], config.skip_nonfinite)
        self.flags: Flags[Evidence] = Flags()
        if config.compile == "on":
            compile_methods((self.model.rssm, "img_step"))
        self._feed = Feed(generator.device)
        self._step = captured(self._witnessed_step, config.cuda_graph, generator)

    # The update ------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Metrics:
        """One update (Dreamer, algorithm 1): three gradients, all taken at the weights from before it; then the steps.

        A loss or gradient that is not finite leaves out all three, see ``Health``.
        """
        with self.precision():
            model_loss, post, metrics = self.model_loss(batch)
        metrics["model/grad_norm"] = self.model_opt.differentiate(model_loss)
        with self.precision():
            dream = self.imagine(*self.start_states(post, batch.is_terminal))
        with self.precision():
            actor_loss, actor_metrics = self.actor_loss(dream)
            critic_loss, critic_metrics = self.critic_loss(dream)
        actor_metrics["actor/grad_norm"] = self.actor_opt.differentiate(actor_loss)
        critic_metrics["critic/grad_norm"] = self.critic_opt.differentiate(critic_loss)
        self.health.note(self.health.step(self.health.well, self.model_opt, self.actor_opt, self.critic_opt))
        metrics |= {**actor_metrics, **critic_metrics, "update/skipped": self.health.skipped.clone()}
        return {name: value.detach() for name, value in metrics.items()}

    def update(self, batch: Row | Batch) -> Metrics:
        """``step`` on a batch from the replay.

        Raises NumericalError if an update before is known to be one bad update too many; see ``check``.
        """
        self._stop_if_sick(wait=False)
        if isinstance(batch, Row):
            batch = self.to_device(batch)
        before = self.generator.get_state()
        metrics, sick = self._step(batch)
        self.updates += 1
        if self.generator.device.type == "cuda":
            batch = Batch(*tree_map(torch.clone, tuple(batch)))  # what came from the feed will be written over
        self.flags.add(sick, Evidence(self.updates, batch, before, metrics))
        return metrics

    def _witnessed_step(self, batch: Batch) -> tuple[Metrics, Tensor]:
        """``step``, and whether the learner is sick after it."""
        metrics = self.step(batch)
        return metrics, ~self.health.well

    def precision(self) -> torch.autocast:
        """A context for one pass over the networks; see ``autocast`` for why there are several."""
        return autocast(self.config.precision, self.generator.device)

    # World model -----------------------------------------------------------------------------------------------

    def model_loss(self, batch: Batch) -> tuple[Tensor, State, Metrics]:
        """The variational bound, as a loss (Dreamer, eq. 10)::

            L = E_{T,B}[-ln q(x|s) - ln q(r|s) - 10 ln q(gamma|s)] + beta max(f, E_{T,B}[KL(q || p)])

        Log-likelihoods are summed over pixels, the KL over variables; all are averaged over T and B before the mean KL
        meets its floor f. The gradient of the KL flows into posterior and prior alike. Returns the loss, the posterior
        states (T, B, ...) and metrics.
        """
        model, config = self.model, self.config.world_model
        obs = model.preprocess(batch.obs)
        noise = model.latent.noise(*batch.reward.shape, generator=self.generator)
        post, post_stats, prior_stats = model.rssm.observe(
            model.encoder(obs), batch.action, batch.is_first, noise)
        losses = self.head_losses(post.feat, obs, batch)
        kl = model.latent.kl_each(post_stats, prior_stats).sum(-1).mean()
        kl_loss = kl.clamp(min=config.kl.free_nats)
        scales = {f"{name}_loss": scale for name, scale in config.loss_scales}
        loss = config.kl.scale * kl_loss + sum(scales[name] * value for name, value in losses.items())
        metrics = {f"model/{name}": value for name, value in losses.items()}
        with torch.no_grad():
            metrics |= {"model/loss": loss, "model/kl": kl, "model/kl_loss": kl_loss,
                        "model/prior_entropy": model.latent.entropy(prior_stats).mean(),
                        "model/post_entropy": model.latent.entropy(post_stats).mean()}
        return loss, post.detach(), metrics

    def head_losses(self, feat: Tensor, obs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Scalar loss of each head; all of them shape the features."""
        model = self.model
        losses: dict[str, Tensor] = {}
        for name, mean in model.decoder(feat).items():
            key = f"{model.obs_spec[name].kind}_loss"
            loss = normal_loss(mean, obs[name], dims=len(model.obs_spec[name].shape)).mean()
            losses[key] = losses.get(key, 0.0) + loss
        losses["reward_loss"] = model.reward.loss(feat, self.transform_reward(batch.reward)).mean()
        if model.discount is not None:
            losses["discount_loss"] = model.discount.loss(
                feat, self.config.gamma * (~batch.is_terminal).float()).mean()
        return losses

    def transform_reward(self, reward: Tensor) -> Tensor:
        """Only here: the replay and every log hold raw rewards."""
        config = self.config.world_model
        scaled = reward * config.reward_scale
        return torch.tanh(scaled) if config.reward_transform == "tanh" else scaled

    # Imagination -----------------------------------------------------------------------------------------------

    def start_states(self, post: State, is_terminal: Tensor) -> Start:
        """Posteriors (T, B, ...) and their flags, flattened alike to (N, ...), detached. With a discount head those of
        each sequence's last row are left out: it could be terminal (official code)."""
        if self.model.discount is not None:
            post, is_terminal = State(post.deter[:-1], post.stoch[:-1]), is_terminal[:-1]
        start, is_terminal = State(post.deter.flatten(0, 1), post.stoch.flatten(0, 1)).detach(), is_terminal.flatten()
        if 0 < (wanted := self.config.imagination.starts) < len(is_terminal):
            drawn = uniform(len(is_terminal), generator=self.generator).argsort()[:wanted]
            start, is_terminal = State(start.deter[drawn], start.stoch[drawn]), is_terminal[drawn]
        return start, is_terminal

    def imagine(self, start: State, is_terminal: Tensor) -> Dream:
        """Dream H steps from every start state and value what happens after it (Dreamer, eq. 4 to 6)::

            k:       0        1          2        ..  H-1           H
            feat_k   (start)  *          *            *             *     a_{k+1} is chosen at feat_k
            r_k      -        r(feat_1)  *            *             -     reward *on arriving at* feat_k
            d_k      -        d(feat_1)  *            *             -     all gamma without the head
            v_k      -        *          *            *             *     v_k includes r_k
            V_k      -        V_1        V_2      ..  V_{H-1}       v_H   V_k = r_k + d_k [(1-l) v_{k+1} + l V_{k+1}]
            w_k      -        1          d_1      ..  d_1..d_{H-2}  -     all 0 where the start is terminal

        The targets keep their gradient, which reaches the actor through rewards, values, discounts and the world model
        into the actions a_1 .. a_H. There is no slow critic: the values are those of the critic that is trained.
        """
        model, horizon, count = self.model, self.config.horizon, len(is_terminal)
        action_noise = uniform(horizon, count, *self.actor.noise_shape, generator=self.generator)
        latent_noise = model.latent.noise(horizon, count, generator=self.generator)
        feat, _ = imagine(model.rssm, self.actor, start, action_noise, latent_noise)
        assert isinstance(feat, Tensor)
        feat = feat[1:]
        reward, value = model.reward(feat[:-1]), self.critic(feat)
        discount = torch.full_like(reward, self.config.gamma) if model.discount is None else model.discount(feat[:-1])
        target = lambda_return(reward, value[1:], discount, self.config.lambda_)
        alive = torch.ones_like(is_terminal) if model.discount is None else ~is_terminal
        return Dream(feat, target, cumulative_weight(discount) * alive)

    # Behaviour -------------------------------------------------------------------------------------------------

    def actor_loss(self, dream: Dream) -> tuple[Tensor, Metrics]:
        """-E[w_k V_k] over k = 1..H-1 (Dreamer, eq. 7): the analytic gradient alone; no entropy, no baseline."""
        loss = -(dream.weight * dream.target).mean()
        return loss, {"actor/loss": loss}

    def critic_loss(self, dream: Dream) -> tuple[Tensor, Metrics]:
        """E[w_k (1/2 (v(feat_k) - sg V_k)^2 + const)] over k = 1..H-1 (Dreamer, eq. 8)."""
        value = self.critic(dream.feat[:-1].detach())
        loss = (dream.weight * normal_loss(value, dream.target.detach())).mean()
        return loss, {"critic/loss": loss, "critic/value": value.mean(), "critic/target": dream.target.mean()}

    # Shell -----------------------------------------------------------------------------------------------------

    def to_device(self, batch: Row) -> Batch:
        return fed(self._feed, batch)

    def check(self) -> None:
        self._stop_if_sick(wait=True)

    def _stop_if_sick(self, *, wait: bool) -> None:
        evidence = self.flags.first(wait=wait)
        if evidence is None:
            return
        self.postmortem = self._examine(evidence)
        raise self.postmortem.error(self.optimizers, self.health.patience, "all weights were")

    def _examine(self, evidence: Evidence) -> Postmortem:
        """Look at an update on the host; the optimisers still hold the norms of its gradients if it was bad."""
        batch, metrics = evidence.batch, {name: float(value) for name, value in evidence.metrics.items()}
        bad = [name for name in self.optimizers if not all(
            math.isfinite(metrics[f"{name.removesuffix('_opt')}/{key}"]) for key in ("loss", "grad_norm"))]
        entries = {**batch.obs, "action": batch.action, "reward": batch.reward}
        return Postmortem(
            evidence.update, bad[0].removesuffix("_opt") if bad else None, metrics,
            next(filter(None, (self.optimizers[name].culprit() for name in bad)), None),
            tuple(name for name, entry in entries.items() if not bool(entry.isfinite().all())),
            {**{f"obs/{name}": entry for name, entry in batch.obs.items()},
             **{name: getattr(batch, name) for name in Batch._fields[1:]}, "generator": evidence.generator})

    def rerun(self, update: int, stage: str, tensors: dict[str, Tensor]) -> Postmortem:
        """The whole update, whichever part of it went bad: no part was applied."""
        generator = tensors["generator"]
        if generator.shape == self.generator.get_state().shape:  # else of another kind of device
            self.generator.set_state(generator)
        tensors = {name: tensor.to(self.generator.device) for name, tensor in tensors.items()}
        batch = Batch({name: tensors[f"obs/{name}"] for name in self.model.obs_spec},
                      *(tensors[name] for name in Batch._fields[1:]))
        return self._examine(Evidence(update, batch, generator, self._witnessed_step(batch)[0]))

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "generator": self.generator.get_state(), "health": self.health.state_dict(),
                **{name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        self.generator.set_state(state["generator"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        self.health.load_state_dict(state.get("health", {}))
        self.flags.clear()
        self.postmortem = None


def _adam(module: torch.nn.Module, prefix: str, config: OptimizerConfig) -> Adam:
    named = ((f"{prefix}.{name}", parameter) for name, parameter in module.named_parameters())
    return Adam(named, lr=config.lr, eps=config.eps, clip=config.clip, weight_decay=0.0)
