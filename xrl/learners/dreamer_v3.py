"""DreamerV3's update: world model, actor and critic, one loss and one optimiser.

Hafner et al., "Mastering Diverse Domains through World Models", arXiv 2301.04104, as the official code has it since
December 2024. docs/methods/dreamer_v3.md maps every part to its function and test, and says where the paper differs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from xrl.common.accelerate import Feed, autocast, captured, compile_methods
from xrl.common.health import Flags, Health
from xrl.common.optimizer import LaProp
from xrl.common.row import Row
from xrl.configs.schemas.dreamer_v3 import DreamerV3Config
from xrl.learners.base import Learner, Postmortem
from xrl.learners.replayed import named_tensors
from xrl.nn.distributions import one_hot, uniform
from xrl.nn.layers import OneHots
from xrl.ops.kl import weighted_kl
from xrl.ops.percentiles import percentiles
from xrl.ops.returns import lambda_return
from xrl.ops.targets import move_parameters
from xrl.policies.dreamer_v3 import DreamerV3Policy
from xrl.world_models.imagination import imagine
from xrl.world_models.rssm import State

Metrics = dict[str, Tensor]
Losses = dict[str, Tensor]


class Batch(NamedTuple):
    """Replayed sequences on the device, raw: obs name -> (T, B, *shape), action (T, B, A), the rest (T, B); and the
    latent state before their first row, deter (B, D) and the classes of z (B, S)."""

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    deter: Tensor
    stoch: Tensor


class Evidence(NamedTuple):
    """What runs an update again: its number, from 1, its batch, the generator's state and the range of returns before
    it; and the metrics it gave."""

    update: int
    batch: Batch
    generator: Tensor
    range: Tensor
    metrics: Metrics


class Dream(NamedTuple):
    """Imagined trajectories of H steps from N start states, all without a gradient (see ``DreamerV3Learner.imagine``).

    feat (H+1, N, F); and for k = 0..H-1, (H, N): action a_k (H, N, A), value v_k, weight w_k, target R_k.
    """

    feat: Tensor | OneHots
    action: Tensor
    value: Tensor
    weight: Tensor
    target: Tensor


class DreamerV3Learner(Learner):
    """Owns the optimiser, the range of returns and the generator of the update's noise; the networks are the policy's.

    ``generator`` lives on the policy's device. ``posterior``: of the last update, what ``Batch`` calls deter and stoch,
    (T, B, D) and (T, B, S), for the replay.
    """

    profile_parts = {"world model, forward": ("model_losses",),
                     "imagination": ("imagine",),
                     "actor": ("actor_loss",),
                     "critic": ("critic_loss", "replay_critic_loss"),
                     "backward and optimiser": ("opt.differentiate", "opt.apply")}

    def __init__(self, policy: DreamerV3Policy, config: DreamerV3Config, generator: torch.Generator) -> None:
        self.policy, self.config, self.generator = policy, config, generator
        self.model, self.actor, self.critic = policy.world_model, policy.actor, policy.critic
        trained = ((name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad)
        self.opt = LaProp(trained, lr=config.opt.lr, clip=config.opt.clip, warmup=config.opt.warmup)
        self.health = Health([self.opt], config.skip_nonfinite)
        self.flags: Flags[Evidence] = Flags()
        self.range = torch.zeros(2, device=generator.device)  # moving averages of two percentiles of returns
        self.posterior: tuple[Tensor, Tensor] | None = None
        if config.compile == "on":
            # Only what has no gradient: PyTorch 2.13 compiles the cell's backward pass to another gradient.
            compile_methods((self.model.rssm, "img_step"))
        self._feed = Feed(generator.device)
        self._step = captured(self._whole_step, config.cuda_graph, generator)

    # The update ------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Metrics:
        return self._whole_step(batch)[0]

    def _whole_step(self, batch: Batch) -> tuple[Metrics, Tensor, Tensor, Tensor]:
        """One update: every loss with the same weights, one gradient, one step, then the slow critic's.

        Returns metrics, the posteriors' deter and classes, and whether the learner is sick.
        """
        with self.precision():
            losses, post, metrics = self.model_losses(batch)
        with self.precision(), torch.no_grad():
            dream = self.imagine(self.start_states(post))
        with self.precision():
            losses["actor"], actor_metrics = self.actor_loss(dream)
            losses["critic"], critic_metrics = self.critic_loss(dream)
            losses["replay_critic"] = self.replay_critic_loss(post, batch, dream.target[0])
        loss = self.total(losses)
        metrics |= {**actor_metrics, **critic_metrics, "model/loss": loss,
                    "model/grad_norm": self.opt.differentiate(loss)}
        good = self.health.step(self.health.well, self.opt)
        self.health.note(good)
        move_parameters(self.critic, self.policy.slow_critic, self.config.critic.slow_rate, when=good)
        metrics |= {"update/skipped": self.health.skipped.clone()}
        classes = post.stoch.detach().unflatten(-1, (self.model.latent.stoch, -1)).argmax(-1)
        return ({name: value.detach() for name, value in metrics.items()}, post.deter.detach(), classes,
                ~self.health.well)

    def update(self, batch: Row | Batch, start: tuple[np.ndarray, np.ndarray] | None = None) -> Metrics:
        """``step`` on a batch from the replay; ``start``: see ``to_device``.

        Raises NumericalError if an update before is known to be one bad update too many; see ``check``.
        """
        self._stop_if_sick(wait=False)
        if isinstance(batch, Row):
            batch = self.to_device(batch, start)
        before = self.generator.get_state(), self.range.clone()
        metrics, deter, classes, sick = self._step(batch)
        self.posterior = deter, classes
        self.updates += 1
        if self.generator.device.type == "cuda":
            batch = Batch(*tree_map(torch.clone, tuple(batch)))  # what came from the feed will be written over
        self.flags.add(sick, Evidence(self.updates, batch, *before, metrics))
        return metrics

    def precision(self) -> torch.autocast:
        """A context for one pass over the networks; see ``autocast`` for why there are several."""
        return autocast(self.config.precision, self.generator.device)

    def total(self, losses: Losses) -> Tensor:
        """The sum of all losses, each the mean of its entries times its weight."""
        weights = dict(self.config.loss)
        assert losses.keys() | {"free_bits"} == weights.keys(), "every loss has a weight, and every weight a loss"
        return torch.stack([weights[name] * value.mean() for name, value in losses.items()]).sum()

    # World model -----------------------------------------------------------------------------------------------

    def model_losses(self, batch: Batch) -> tuple[Losses, State, Metrics]:
        """The world model's losses (DreamerV3, eq. 4 and 5), each (T, B)::

            reconstruction   sum of squared errors of every entry, images and vectors (no 1/2 and no constant)
            reward           cross-entropy with the two-hot code of the raw reward
            discount         binary cross-entropy with gamma (1 - is_terminal): gamma enters here and nowhere else
            dyn, rep         max(free bits, KL), row by row

        All rows count, reset rows too. Returns the losses, the posterior states (T, B, ...) and metrics.
        """
        model, config = self.model, self.config.loss
        obs = model.preprocess(batch.obs)
        noise = model.latent.noise(*batch.reward.shape, generator=self.generator)
        post, post_stats, prior_stats = model.rssm.observe(
            model.encoder(obs), batch.action, batch.is_first, noise, self.before(batch))
        feat = post.feat
        errors = {name: (mean - obs[name]).square().flatten(2).sum(-1) for name, mean in model.decoder(feat).items()}
        dyn_kl, rep_kl = model.latent.kl(post_stats, prior_stats)
        losses = {"reconstruction": torch.stack([*errors.values()]).sum(0),
                  "reward": model.reward.loss(feat, batch.reward),
                  "discount": model.discount.loss(feat, self.config.gamma * (~batch.is_terminal).float()),
                  "dyn": weighted_kl(dyn_kl, rep_kl, 1.0, 0.0, config.free_bits),
                  "rep": weighted_kl(dyn_kl, rep_kl, 0.0, 1.0, config.free_bits)}
        assert all(loss.shape == batch.reward.shape for loss in losses.values())
        with torch.no_grad():
            metrics = {f"model/{kind}_loss": torch.stack([error.mean() for name, error in errors.items()
                                                          if model.obs_spec[name].kind == kind]).sum()
                       for kind in sorted({spec.kind for spec in model.obs_spec.values()})}
            metrics |= {"model/reward_loss": losses["reward"].mean(),
                        "model/discount_loss": losses["discount"].mean(), "model/kl": dyn_kl.mean(),
                        "model/prior_entropy": model.latent.entropy(prior_stats).mean(),
                        "model/post_entropy": model.latent.entropy(post_stats).mean()}
        return losses, post, metrics

    def before(self, batch: Batch) -> State:
        """The state before the first row, as the networks see it."""
        return State(batch.deter, one_hot(batch.stoch, self.model.latent.classes).flatten(-2))

    # Imagination -----------------------------------------------------------------------------------------------

    def start_states(self, post: State) -> State:
        """Posteriors (T, B, ...) of the sequences that imagination starts from, flattened to (N, ...), detached."""
        count = self.config.imagination.sequences or post.deter.shape[1]
        start = State(post.deter[:, :count].flatten(0, 1), post.stoch[:, :count].flatten(0, 1)).detach()
        return self.model.rssm.compact(start)

    def imagine(self, start: State) -> Dream:
        """Dream H steps from every start state with the weights from before the update, and value what happens::

            k:       0           1           ..   H-1         H
            feat_k   start       *                *           *
            a_k      a_0         a_1         ..   a_{H-1}     -       chosen at feat_k, leads to feat_{k+1}
            r_k      -           r(feat_1)   ..   *           *       reward *on arriving at* feat_k
            c_k      c(feat_0)   c(feat_1)   ..   *           *       predicted, gamma inside; c_0 too, unlike V2
            v_k      *           *                *           *       critic; v_k does *not* include r_k, unlike V2
            R_k      R_0         R_1         ..   R_{H-1}     v_H
            w_k      c_0         c_0 c_1     ..   c_0..c_{H-1}

            R_k = r_{k+1} + c_{k+1} [(1 - l) v_{k+1} + l R_{k+1}]                    (DreamerV3, eq. 9)
        """
        model, count = self.model, len(start.deter)
        action_noise = uniform(self.config.horizon, count, *self.actor.noise_shape, generator=self.generator)
        latent_noise = model.latent.noise(self.config.horizon, count, generator=self.generator)
        feat, action = imagine(model.rssm, self.actor, start, action_noise, latent_noise)
        reward, cont, value = model.reward(feat[1:]), model.discount(feat), self.critic(feat)
        target = lambda_return(reward, value[1:], cont[1:], self.config.lambda_)
        return Dream(feat, action, value[:-1], cont[:-1].cumprod(0), target)

    # Behaviour -------------------------------------------------------------------------------------------------

    def actor_loss(self, dream: Dream) -> tuple[Tensor, Metrics]:
        """-w_k [ln pi(a_k | feat_k) sg((R_k - v_k) / S) + eta H(pi(feat_k))], (H, N) (DreamerV3, eq. 11)."""
        law = self.actor(dream.feat[:-1])
        entropy = law.entropy()
        advantage = (dream.target - dream.value) / self.scale(dream.target)
        gain = law.log_prob(dream.action) * advantage + self.config.actor.entropy * entropy
        loss = -dream.weight * gain
        return loss, {"actor/loss": loss.mean(), "actor/entropy": entropy.mean(), "actor/advantage": advantage.mean(),
                      "actor/advantage_std": advantage.std(correction=0), "actor/return_range": self.range.diff()[0]}

    @torch.no_grad()
    def scale(self, target: Tensor) -> Tensor:
        """S = max(limit, high - low), moving averages of two percentiles of all targets that begin at 0 and are not
        debiased (DreamerV3, eq. 12). Takes these targets in first, unless they are not finite."""
        config = self.config.returns
        moved = self.range.lerp(percentiles(target, (config.low, config.high)), config.rate)
        self.range.copy_(moved.where(moved.isfinite(), self.range))
        return self.range.diff()[0].clamp(min=config.limit)

    def critic_loss(self, dream: Dream) -> tuple[Tensor, Metrics]:
        """w_k [CE(v(feat_k), R_k) + CE(v(feat_k), slow critic's prediction)], (H, N) (DreamerV3, eq. 10)."""
        feat = dream.feat[:-1]
        loss, slow = self._two_targets(feat, dream.target)
        loss = dream.weight * loss
        return loss, {"critic/loss": loss.mean(), "critic/value": dream.value.mean(), "critic/slow_value": slow.mean(),
                      "critic/target": dream.target.mean()}

    def replay_critic_loss(self, post: State, batch: Batch, first_target: Tensor) -> Tensor:
        """The critic on replayed rows, (T-1, B'), with targets from their rewards and the dreams that begin there::

            t:        0       1       ..  T-2         T-1
            boot_t    R_0 of the imagination that began at row t
            G_t       G_0     G_1     ..  G_{T-2}     boot_{T-1}

            G_t = r_{t+1} + gamma (1 - terminal_{t+1}) [(1 - l_{t+1}) boot_{t+1} + l_{t+1} G_{t+1}]
            l_t = l (1 - last_t)

        Where an episode ends the recursion is cut, and bootstrapped unless the end is terminal. What follows row t when
        it is the last of its episode is another episode: it is masked, but counts in the mean. The features keep their
        gradient: this loss shapes the representation. B': the sequences that imagination started from.
        """
        length, count = batch.reward.shape[0], len(first_target) // len(batch.reward)
        boot = first_target.view(length, count)
        reward, is_first, is_last, is_terminal = (
            part[:, :count] for part in (batch.reward, batch.is_first, batch.is_last, batch.is_terminal))
        is_last = is_last | torch.cat([is_first[1:], torch.zeros_like(is_first[:1])])  # a cut episode has no last row
        target = lambda_return(reward[1:], boot[1:], self.config.gamma * (~is_terminal[1:]).float(),
                               self.config.lambda_ * (~is_last[1:]).float())
        feat = State(post.deter[:-1, :count], post.stoch[:-1, :count]).feat
        loss, _ = self._two_targets(feat, target)
        return loss * ~is_last[:-1]

    def _two_targets(self, feat: Tensor | OneHots, target: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's cross-entropy with ``target`` and with the slow critic's prediction, and that prediction, all
        (...)."""
        law = self.critic.law(feat)
        with torch.no_grad():
            slow = self.policy.slow_critic(feat.detach())
        return law.loss(target) + self.config.critic.slow_weight * law.loss(slow), slow

    # Shell -----------------------------------------------------------------------------------------------------

    def to_device(self, batch: Row, start: tuple[np.ndarray, np.ndarray] | None = None) -> Batch:
        """Images cross as uint8. ``start``: deter (B, D) and classes (B, S) of the row before; None for zeros, where
        the first row of each sequence must be ``is_first``."""
        if start is None:
            width, size = batch.reward.shape[1], self.model.latent
            start = np.zeros((width, self.model.rssm.deter), np.float32), np.zeros((width, size.stoch), np.int64)
        arrays = {f"obs.{name}": array for name, array in batch.obs.items()}
        arrays |= {name: getattr(batch, name) for name in Batch._fields[1:-2]}
        tensors = self._feed(arrays | {"deter": start[0], "stoch": start[1]})
        obs = {name: tensors.pop(f"obs.{name}") for name in batch.obs}
        return Batch(obs, **tensors)

    def check(self) -> None:
        self._stop_if_sick(wait=True)

    def _stop_if_sick(self, *, wait: bool) -> None:
        evidence = self.flags.first(wait=wait)
        if evidence is None:
            return
        self.postmortem = self._examine(evidence)
        raise self.postmortem.error({"opt": self.opt}, self.health.patience, "all weights were")

    def _examine(self, evidence: Evidence) -> Postmortem:
        """Look at an update on the host; the optimiser still holds the norms of its gradients if it was bad."""
        metrics = {name: float(value) for name, value in evidence.metrics.items()}
        bad = not (math.isfinite(metrics["model/loss"]) and math.isfinite(metrics["model/grad_norm"]))
        tensors = named_tensors(evidence.batch)
        return Postmortem(
            evidence.update, "model" if bad else None, metrics, self.opt.culprit() if bad else None,
            tuple(name.removeprefix("obs/") for name, entry in tensors.items() if not bool(entry.isfinite().all())),
            {**tensors, "range": evidence.range, "generator": evidence.generator})

    def rerun(self, update: int, stage: str, tensors: dict[str, Tensor]) -> Postmortem:
        """The whole update: no part of it was applied but the range of returns, which is put back first."""
        generator = tensors["generator"]
        if generator.shape == self.generator.get_state().shape:  # else of another kind of device
            self.generator.set_state(generator)
        tensors = {name: tensor.to(self.generator.device) for name, tensor in tensors.items()}
        self.range.copy_(tensors["range"])
        batch = Batch({name: tensors[f"obs/{name}"] for name in self.model.obs_spec},
                      *(tensors[name] for name in Batch._fields[1:]))
        return self._examine(Evidence(update, batch, generator, tensors["range"], self.step(batch)))

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "generator": self.generator.get_state(), "range": self.range.clone(),
                "health": self.health.state_dict(), "opt": self.opt.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        self.generator.set_state(state["generator"])
        self.range.copy_(state["range"])
        self.opt.load_state_dict(state["opt"])
        self.health.load_state_dict(state.get("health", {}))
        self.flags.clear()
        self.postmortem = None
