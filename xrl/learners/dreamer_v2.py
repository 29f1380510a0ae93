"""DreamerV2's update: learn the world model from replay, then actor and critic from imagination.

Hafner et al., "Mastering Atari with Discrete World Models", arXiv 2010.02193. Where paper and official code
differ, the configuration names both; docs/methods/dreamer_v2.md maps every equation to its function and test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from xrl.common.accelerate import Feed, autocast, captured, compile_methods
from xrl.common.health import Flags, Health
from xrl.common.optimizer import Adam
from xrl.common.row import Row
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config, OptimizerConfig
from xrl.learners.base import Postmortem
from xrl.learners.replayed import Batch, SequenceLearner, fed
from xrl.nn.distributions import normal_loss, uniform
from xrl.nn.heads import TruncatedNormalActor
from xrl.nn.layers import OneHots
from xrl.ops.kl import balanced_kl
from xrl.ops.returns import cumulative_weight, lambda_return
from xrl.ops.targets import copy_parameters
from xrl.policies.dreamer_v2 import DreamerV2Policy
from xrl.world_models.imagination import imagine
from xrl.world_models.rssm import State

Metrics = dict[str, Tensor]


Start = tuple[State, Tensor]  # of imagination: states (N, ...) and is_terminal (N,)


class Evidence(NamedTuple):
    """What runs an update again: its number, from 1, its batch, where imagination started, and the generator's state
    before it; and the metrics it gave."""

    update: int
    batch: Batch
    start: Start
    generator: Tensor
    metrics: Metrics


@dataclass
class Dream:
    """Imagined trajectories; H steps from N start states (see ``imagine`` for what feat_k and a_{k+1} mean).

    feat (H+1, N, F), action a_1..a_H (H, N, A), and for k = 0..H-1, each (H, N): discount d_k, weight w_k
    (no gradient), target V_k; ``value`` is v_0..v_{H-1} of the slow critic. ``hidden``: what the actor's layers gave
    at k = 0..H-1, each (H, N, units), where it acted without a gradient.
    """

    feat: Tensor | OneHots
    action: Tensor
    discount: Tensor
    weight: Tensor
    value: Tensor
    target: Tensor
    hidden: Sequence[Tensor] = ()


class DreamerV2Learner(SequenceLearner):
    """Owns the three optimisers and the generator of the update's noise; the networks belong to the policy.

    ``generator`` lives on the policy's device.
    """

    profile_parts = {"world model, forward": ("model_loss",),
                     "world model, backward": ("model_opt.differentiate", "model_opt.apply"),
                     "imagination": ("start_states", "imagine"),
                     "actor": ("actor_loss", "actor_opt.differentiate", "actor_opt.apply"),
                     "critic": ("critic_loss", "critic_opt.differentiate", "critic_opt.apply")}

    def __init__(self, policy: DreamerV2Policy, config: DreamerV2Config, generator: torch.Generator) -> None:
        self.policy, self.config, self.generator = policy, config, generator
        self.model, self.actor, self.critic = policy.world_model, policy.actor, policy.critic
        auto = "dynamics" if isinstance(self.actor, TruncatedNormalActor) else "reinforce"
        self.actor_grad = auto if config.actor.grad == "auto" else config.actor.grad
        self.model_opt = _adam(self.model, "world_model", config.model_opt)
        self.actor_opt = _adam(self.actor, "actor", config.actor_opt)
        self.critic_opt = _adam(self.critic, "critic", config.critic_opt)
        self.optimizers = {"model_opt": self.model_opt, "actor_opt": self.actor_opt, "critic_opt": self.critic_opt}
        self.health = Health([*self.optimizers.values()], config.skip_nonfinite)
        self.flags: Flags[Evidence] = Flags()
        self.start: Start | None = None  # of the update under way
        if config.compile == "on":
            compile_methods((self.model.rssm, "img_step"), (self.model.rssm.cell, "gated"))
        self._feed = Feed(generator.device)
        self._step = captured(self._witnessed_step, config.cuda_graph, generator)

    # The update ------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Metrics:
        """One update (DreamerV2, algorithm of section 2): model step, then imagination with the updated model.

        A loss or gradient that is not finite leaves out its own step and all that would follow, see ``Health``.
        """
        self.start, good, metrics = self.model_step(batch)
        metrics |= self.behaviour_step(self.start, good)
        return {name: value.detach() for name, value in metrics.items()}

    def model_step(self, batch: Batch) -> tuple[Start, Tensor, Metrics]:
        """Returns where imagination starts, whether the step was applied, and metrics."""
        with self.precision():
            loss, post, metrics = self.model_loss(batch)
        metrics["model/grad_norm"] = self.model_opt.differentiate(loss)
        good = self.health.step(self.health.well, self.model_opt)
        return self.start_states(post, batch.is_terminal), good, metrics

    def behaviour_step(self, start: Start, good: Tensor) -> Metrics:
        """Actor and critic, both or neither, and not unless the model's step was ``good``."""
        with self.precision():
            dream = self.imagine(*start)
        with self.precision():
            actor_loss, actor_metrics = self.actor_loss(dream)
        with self.precision():
            critic_loss, critic_metrics = self.critic_loss(dream)
        actor_metrics["actor/grad_norm"] = self.actor_opt.differentiate(actor_loss)
        critic_metrics["critic/grad_norm"] = self.critic_opt.differentiate(critic_loss)
        self.health.note(self.health.step(good, self.actor_opt, self.critic_opt))
        return {**actor_metrics, **critic_metrics, "update/skipped": self.health.skipped.clone()}

    def update(self, batch: Row | Batch) -> Metrics:
        """``step`` on a batch from the replay; then the slow critic's turn: after updates 1, 101, 201, ...

        Raises NumericalError if an update before is known to be one bad update too many; see ``check``.
        """
        self._stop_if_sick(wait=False)
        if isinstance(batch, Row):
            batch = self.to_device(batch)
        before = self.generator.get_state()
        metrics, start, good, sick = self._step(batch)
        if self.updates % self.config.critic.slow_every == 0:
            copy_parameters(self.critic, self.policy.slow_critic, when=good)
        self.updates += 1
        if self.generator.device.type == "cuda":
            batch = Batch(*tree_map(torch.clone, tuple(batch)))  # what came from the feed will be written over
        self.flags.add(sick, Evidence(self.updates, batch, start, before, metrics))
        return metrics

    def _witnessed_step(self, batch: Batch) -> tuple[Metrics, Start, Tensor, Tensor]:
        """``step``, and what else is known after it: where imagination started, whether all was applied, whether the
        learner is sick."""
        metrics = self.step(batch)
        start, self.start = self.start, None  # not held longer than the evidence is: an update needs the memory
        assert start is not None
        return metrics, start, self.health.in_a_row == 0, ~self.health.well

    def precision(self) -> torch.autocast:
        """A context for one pass over the networks; see ``autocast`` for why there are several."""
        return autocast(self.config.precision, self.generator.device)

    # World model -----------------------------------------------------------------------------------------------

    def model_loss(self, batch: Batch) -> tuple[Tensor, State, Metrics]:
        """The negative ELBO with KL balancing (DreamerV2, eq. 2 and algorithm 2)::

            L = E_{T,B}[ -ln p(x|h,z) - ln p(r|h,z) - ln p(gamma|h,z) ] + beta KL(q || p)

        Log-likelihoods are summed over pixels and averaged over T and B. Returns the loss, the posterior
        states (T, B, ...) and metrics.
        """
        model, config = self.model, self.config.world_model
        obs = model.preprocess(batch.obs)
        embed = model.encoder(obs)
        noise = model.latent.noise(*batch.reward.shape, generator=self.generator)
        post, post_stats, prior_stats = model.rssm.observe(embed, batch.action, batch.is_first, noise)
        losses = self.head_losses(post.feat, obs, batch)
        dyn_kl, rep_kl = model.latent.kl(post_stats, prior_stats)
        kl = config.kl
        kl_loss = balanced_kl(dyn_kl, rep_kl, kl.balance, kl.free_nats, kl.free_avg)
        scales = {f"{name}_loss": scale for name, scale in config.loss_scales}
        loss = kl.scale * kl_loss + sum(scales[name] * value for name, value in losses.items())
        metrics = {f"model/{name}": value for name, value in losses.items()}
        with torch.no_grad():
            metrics |= {"model/loss": loss, "model/kl": dyn_kl.mean(), "model/kl_loss": kl_loss,
                        "model/prior_entropy": model.latent.entropy(prior_stats).mean(),
                        "model/post_entropy": model.latent.entropy(post_stats).mean()}
        return loss, post.detach(), metrics

    def head_losses(self, feat: Tensor, obs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Scalar loss of each head. A head not in ``grad_heads`` is trained without shaping the features."""
        model, config = self.model, self.config.world_model
        inputs = {head: feat if head in config.grad_heads else feat.detach()
                  for head in ("decoder", "reward", "discount")}
        losses: dict[str, Tensor] = {}
        for name, mean in model.decoder(inputs["decoder"]).items():
            kind = model.obs_spec[name].kind
            loss = normal_loss(mean, obs[name], dims=len(model.obs_spec[name].shape)).mean()
            losses[f"{kind}_loss"] = losses.get(f"{kind}_loss", 0.0) + loss
        losses["reward_loss"] = model.reward.loss(inputs["reward"], self.transform_reward(batch.reward)).mean()
        if model.discount is not None:
            losses["discount_loss"] = model.discount.loss(
                inputs["discount"], self.true_discount(batch.is_terminal)).mean()
        return losses

    def transform_reward(self, reward: Tensor) -> Tensor:
        """Only here: the replay and every log hold raw rewards."""
        config = self.config.world_model
        transform = {"tanh": torch.tanh, "sign": torch.sign, "identity": lambda x: x}[config.reward_transform]
        return transform(reward * config.reward_scale)

    def true_discount(self, is_terminal: Tensor) -> Tensor:
        """gamma (1 - is_terminal): the discount head's soft label. Gamma enters nowhere else."""
        return self.config.gamma * (~is_terminal).float()

    # Imagination -----------------------------------------------------------------------------------------------

    def start_states(self, post: State, is_terminal: Tensor) -> Start:
        """Posteriors (T, B, ...) and their flags, flattened alike to (N, ...), detached."""
        config = self.config.imagination
        if config.drop_last:
            post, is_terminal = State(post.deter[:-1], post.stoch[:-1]), is_terminal[:-1]
        start = State(post.deter.flatten(0, 1), post.stoch.flatten(0, 1)).detach()
        is_terminal = is_terminal.flatten()
        if 0 < config.starts < len(is_terminal):
            drawn = uniform(len(is_terminal), generator=self.generator).argsort()[:config.starts]
            start, is_terminal = State(start.deter[drawn], start.stoch[drawn]), is_terminal[drawn]
        return self.model.rssm.compact(start) if self.actor_grad == "reinforce" else start, is_terminal

    def imagine(self, start: State, is_terminal: Tensor) -> Dream:
        """Dream H steps from every start state and value what happens::

            k:         0            1          2    ..  H
            feat_k     start        *          *        *
            r_k        r(feat_0)    r(feat_1)  *        -      reward *on arriving at* feat_k
            d_k        gamma(1-T)   d(feat_1)  *        -      d_0 is known from data; all gamma without the head
            v_k        *            *          *        *      slow critic; v_k includes r_k
            V_k        V_0          V_1        ..  V_{H-1}     V_k = r_k + d_k [(1-l) v_{k+1} + l V_{k+1}]

        With reinforce nothing here needs a gradient; with dynamics and mix the targets keep theirs, which reaches
        the actor *through* the world model and the slow critic (their own weights are never differentiated).
        """
        horizon, count = self.config.horizon, len(is_terminal)
        model = self.model
        with torch.set_grad_enabled(self.actor_grad != "reinforce"):
            action_noise = uniform(horizon, count, *self.actor.noise_shape, generator=self.generator)
            latent_noise = model.latent.noise(horizon, count, generator=self.generator)
            with self.actor.mlp.recording() as record:
                feat, action = imagine(model.rssm, self.actor, start, action_noise, latent_noise)
            reward = model.reward(feat[:-1])
            discount = self.imagined_discount(feat, is_terminal)
            value = self.policy.slow_critic(feat)
            target = lambda_return(reward, value[1:], discount, self.config.lambda_)
        hidden = [torch.stack(layer) for layer in zip(*record, strict=True)]
        return Dream(feat, action, discount, cumulative_weight(discount), value[:-1].detach(), target, hidden)

    def imagined_discount(self, feat: Tensor | OneHots, is_terminal: Tensor) -> Tensor:
        """d_0 .. d_{H-1}, (H, N), from features (H+1, N, F) and the start rows' flags (N,)."""
        if self.model.discount is None:
            return torch.full((self.config.horizon, len(is_terminal)), self.config.gamma, device=is_terminal.device)
        return torch.cat([self.true_discount(is_terminal).unsqueeze(0), self.model.discount(feat[1:-1])])

    # Behaviour -------------------------------------------------------------------------------------------------

    def actor_loss(self, dream: Dream) -> tuple[Tensor, Metrics]:
        """-E[w_k (J_k + eta H(pi(feat_k)))] over k = 0..H-2 (DreamerV2, eq. 6)::

            k:          0       1     ..   H-2           a_{k+1} was chosen at feat_k
            reinforce   ln pi(a_{k+1} | feat_k) sg(V_{k+1} - v_k)       or V_k - v_k (advantage: centered)
            dynamics    V_{k+1}, the gradient flows through a_1 .. a_{k+1}
        """
        config, last = self.config.actor, len(dream.weight) - 1
        law = self.actor(dream.feat[:last].detach(), [layer[:last] for layer in dream.hidden])
        entropy = law.entropy()
        dynamics = dream.target[1:]
        gain = dynamics
        advantage = self.advantage(dream)
        if self.actor_grad != "dynamics":
            reinforce = law.log_prob(dream.action[:last].detach()) * advantage
            mix = config.mix if self.actor_grad == "mix" else 0.0
            gain = mix * dynamics + (1 - mix) * reinforce if mix else reinforce
        loss = -(dream.weight[:last] * (gain + config.entropy * entropy)).mean()
        return loss, {"actor/loss": loss, "actor/entropy": entropy.mean(), "actor/advantage": advantage.mean(),
                      "actor/advantage_std": advantage.std(correction=0)}

    @torch.no_grad()
    def advantage(self, dream: Dream) -> Tensor:
        """What the sampled action was better than expected, (H-1, N). Paper: V_k - v_k with the fast critic;
        official code, and the default: V_{k+1} - v_k with the slow one."""
        config, last = self.config.actor, len(dream.weight) - 1
        target = dream.target[1:] if config.advantage == "offset" else dream.target[:-1]
        baseline = dream.value if config.baseline == "slow" else self.critic(dream.feat[:last])
        return target.detach() - baseline[:last]

    def critic_loss(self, dream: Dream) -> tuple[Tensor, Metrics]:
        """E[w_k (1/2 (v(feat_k) - sg V_k)^2 + const)] over k = 0..H-1 (DreamerV2, eq. 5)."""
        value = self.critic(dream.feat[:-1].detach())
        loss = (dream.weight * normal_loss(value, dream.target.detach())).mean()
        return loss, {"critic/loss": loss, "critic/value": value.mean(), "critic/slow_value": dream.value.mean(),
                      "critic/target": dream.target.mean()}

    # Shell -----------------------------------------------------------------------------------------------------

    def to_device(self, batch: Row) -> Batch:
        return fed(self._feed, batch)

    def check(self) -> None:
        self._stop_if_sick(wait=True)

    def _stop_if_sick(self, *, wait: bool) -> None:
        evidence = self.flags.first(wait=wait)
        if evidence is None:
            return
        self.postmortem = found = self._examine(evidence)
        kept = "its weights were" if found.stage == "model" else "actor and critic were"
        raise found.error(self.optimizers, self.health.patience, kept)

    def _examine(self, evidence: Evidence) -> Postmortem:
        """Look at an update on the host; the optimisers still hold the norms of its gradients if it was bad."""
        batch, (state, is_terminal) = evidence.batch, evidence.start
        metrics = {name: float(value.detach()) for name, value in evidence.metrics.items()}
        bad = [name for name in self.optimizers if not all(
            math.isfinite(metrics.get(f"{name.removesuffix('_opt')}/{key}", 0.0)) for key in ("loss", "grad_norm"))]
        entries = {**batch.obs, "action": batch.action, "reward": batch.reward}
        return Postmortem(
            evidence.update, None if not bad else "model" if "model_opt" in bad else "behaviour", metrics,
            next(filter(None, (self.optimizers[name].culprit() for name in bad)), None),
            tuple(name for name, entry in entries.items() if not bool(entry.isfinite().all())),
            {**{f"obs/{name}": entry for name, entry in batch.obs.items()},
             **{name: getattr(batch, name) for name in Batch._fields[1:]},
             "start/deter": state.deter, "start/stoch": state.stoch, "start/is_terminal": is_terminal,
             "generator": evidence.generator})

    def rerun(self, update: int, stage: str, tensors: dict[str, Tensor]) -> Postmortem:
        """From its beginning if the model's step was left out. Else that step has been applied: imagination starts
        where it did, and what the model drew before is drawn again."""
        generator = tensors["generator"]
        if generator.shape == self.generator.get_state().shape:  # else of another kind of device
            self.generator.set_state(generator)
        tensors = {name: tensor.to(self.generator.device) for name, tensor in tensors.items()}
        batch = Batch({name: tensors[f"obs/{name}"] for name in self.model.obs_spec},
                      *(tensors[name] for name in Batch._fields[1:]))
        start = State(tensors["start/deter"], tensors["start/stoch"]), tensors["start/is_terminal"]
        if stage == "model":
            metrics, start, *_ = self._witnessed_step(batch)
        else:
            with torch.no_grad(), self.precision():
                self.start_states(self.model_loss(batch)[1], batch.is_terminal)
            metrics = self.behaviour_step(start, self.health.well)
        return self._examine(Evidence(update, batch, start, generator, metrics))

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
    return Adam(named, lr=config.lr, eps=config.eps, clip=config.clip, weight_decay=config.weight_decay)
