"""DreamerV2's update of one batch, written as plainly as its specification: what the fast one must agree with.

Loops over time, a concatenation before every dense layer, one-hot latents, ``autograd`` for everything, and nothing
shared with xrl but the configuration and the names of the parameters. It computes in the dtype of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.plain_layers import (
    HALF_LOG_2PI,
    OneHotLaw,
    TruncatedLaw,
    Weights,
    checked_one_hot,
    gaussian,
    layer_norm,
    linear,
    mlp,
    next_index,
    over_channels,
)
from xrl.common.row import ActionSpec, ObsSpec
from xrl.configs.schemas.dreamer_v2 import DreamerV2Config


class State(NamedTuple):
    deter: Tensor
    stoch: Tensor

    @property
    def feat(self) -> Tensor:
        return torch.cat([self.stoch, self.deter], -1)


@dataclass
class Noise:
    """The random numbers of one update: posteriors (T, B, S), the order of the starts, actions (H, N, ...), priors."""

    post: Tensor
    order: Tensor | None
    action: Tensor
    prior: Tensor


@dataclass
class Drawn:
    """The one-hot samples of the implementation under test, each with the interval of its class, widened by
    ``slack``, that must hold the uniform number it was drawn with. (Rounding may move a number across a boundary;
    then both are right, but everything after it differs.) None where the law is continuous."""

    post: Tensor | None
    prior: Tensor | None
    action: Tensor | None
    slack: float


@dataclass
class Plain:
    """The specification, for one kind of observations and actions."""

    config: DreamerV2Config
    obs_spec: dict[str, ObsSpec]
    action_spec: ActionSpec

    # Randomness ------------------------------------------------------------------------------------------------

    def noise(self, generator: torch.Generator, lead: tuple[int, int]) -> Noise:
        """What an update draws, in its order: latents, then starts, actions and latents of the imagination."""
        config, rssm = self.config, self.config.world_model.rssm
        draw = torch.rand if self.categorical else torch.randn
        rows, batch = lead
        post = draw(rows, batch, rssm.stoch, generator=generator)
        starts = (rows - 1 if config.imagination.drop_last else rows) * batch
        order = None
        if 0 < config.imagination.starts < starts:
            order = torch.rand(starts, generator=generator).argsort()[:config.imagination.starts]
            starts = config.imagination.starts
        shape = () if self.discrete else (self.action_spec.size,)
        action = torch.rand(config.horizon, starts, *shape, generator=generator)
        return Noise(post, order, action, draw(config.horizon, starts, rssm.stoch, generator=generator))

    @property
    def categorical(self) -> bool:
        return self.config.world_model.rssm.latent == "categorical"

    @property
    def discrete(self) -> bool:
        return self.action_spec.kind == "discrete"

    @property
    def estimator(self) -> str:
        grad = self.config.actor.grad
        return ("reinforce" if self.discrete else "dynamics") if grad == "auto" else grad

    # Networks --------------------------------------------------------------------------------------------------

    def names(self, kind: str) -> list[str]:
        return sorted(name for name, spec in self.obs_spec.items() if spec.kind == kind)

    def preprocess(self, obs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        scale, at, result = self.config.world_model.obs_scale, 0, {}
        for name in self.names("image"):
            result[name] = obs[name].to(dtype) / 255 - 0.5
        for name in self.names("vector"):
            size = self.obs_spec[name].shape[0]
            part = scale[at:at + size] if isinstance(scale, tuple) else [scale] * size
            result[name] = obs[name].to(dtype) / torch.tensor(part, dtype=dtype)
            at += size
        return result

    def encode(self, w: Weights, obs: dict[str, Tensor]) -> Tensor:
        """One row of observations (B, ...) -> embed (B, M)."""
        norm, parts = self.config.world_model.norm, []
        if self.names("image"):
            x = torch.cat([obs[name] for name in self.names("image")], -1).permute(0, 3, 1, 2)
            for i in range(4):
                at = f"world_model.encoder.conv.layers.{(3 if norm == 'layer' else 2) * i}"
                x = F.conv2d(x, w[f"{at}.weight"], w[f"{at}.bias"], stride=2)
                x = F.elu(over_channels(w, next_index(at), x) if norm == "layer" else x)
            parts.append(x.reshape(len(x), -1))
        if self.names("vector"):
            x = torch.cat([obs[name] for name in self.names("vector")], -1)
            parts.append(mlp(w, "world_model.encoder.mlp", x, norm))
        return torch.cat(parts, -1)

    def decode(self, w: Weights, feat: Tensor) -> dict[str, Tensor]:
        """(B, F) -> name -> mean (B, *shape)."""
        norm, at, means = self.config.world_model.norm, "world_model.decoder", {}
        if self.names("image"):
            x = linear(w, f"{at}.conv.dense", feat)[:, :, None, None]
            for i in range(4):
                layer = f"{at}.conv.layers.{i}"
                x = F.conv_transpose2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], stride=2)
                if i < 3:
                    x = F.elu(over_channels(w, f"{at}.conv.norms.{i}", x) if norm == "layer" else x)
            first = 0
            for name in self.names("image"):
                channels = self.obs_spec[name].shape[-1]
                means[name] = x[:, first:first + channels].permute(0, 2, 3, 1)
                first += channels
        if self.names("vector"):
            x = mlp(w, f"{at}.mlp", feat, norm)
            means |= {name: linear(w, f"{at}.out.{i}", x) for i, name in enumerate(self.names("vector"))}
        return means

    def next_deter(self, w: Weights, state: State, action: Tensor) -> Tensor:
        x = mlp(w, "world_model.rssm.img_in", torch.cat([state.stoch, action], -1), self.config.world_model.norm)
        gates = linear(w, "world_model.rssm.cell.gates", torch.cat([x, state.deter], -1))
        reset, candidate, update = layer_norm(w, "world_model.rssm.cell.norm", gates).chunk(3, -1)
        keep = 1 - torch.sigmoid(update - 1)
        return (1 - keep) * torch.tanh(torch.sigmoid(reset) * candidate) + keep * state.deter

    def prior(self, w: Weights, deter: Tensor) -> Tensor:
        hidden = mlp(w, "world_model.rssm.img_out", deter, self.config.world_model.norm)
        return linear(w, "world_model.rssm.img_stats", hidden)

    def posterior(self, w: Weights, deter: Tensor, embed: Tensor) -> Tensor:
        hidden = mlp(w, "world_model.rssm.obs_out", torch.cat([deter, embed], -1), self.config.world_model.norm)
        return linear(w, "world_model.rssm.obs_stats", hidden)

    def sample(self, stats: Tensor, noise: Tensor, drawn: Tensor | None, slack: float) -> Tensor:
        """Statistics of z -> z, flattened."""
        if not self.categorical:
            mean, std = gaussian(stats)
            return mean + std * noise
        assert drawn is not None
        logits = self.logits(stats)
        return checked_one_hot(logits, noise, drawn.reshape(logits.shape), slack).flatten(-2)

    def logits(self, stats: Tensor) -> Tensor:
        rssm = self.config.world_model.rssm
        return stats.reshape(*stats.shape[:-1], rssm.stoch, rssm.classes)

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        """KL(q || p), summed over the latents, (B,)."""
        if self.categorical:
            log_q, log_p = self.logits(q).log_softmax(-1), self.logits(p).log_softmax(-1)
            return (log_q.exp() * (log_q - log_p)).sum((-2, -1))
        (mean_q, std_q), (mean_p, std_p) = gaussian(q), gaussian(p)
        each = (std_p / std_q).log() + (std_q**2 + (mean_q - mean_p)**2) / (2 * std_p**2) - 0.5
        return each.sum(-1)

    def scalar(self, w: Weights, at: str, feat: Tensor) -> Tensor:
        norm = self.config.world_model.norm if at.startswith("world_model") else self.config.critic.norm
        return linear(w, f"{at}.out", mlp(w, f"{at}.mlp", feat, norm))[..., 0]

    def policy(self, w: Weights, feat: Tensor) -> OneHotLaw | TruncatedLaw:
        x = mlp(w, "actor.mlp", feat, self.config.actor.norm)
        if self.discrete:
            return OneHotLaw(linear(w, "actor.out", x))
        scale = 2 * torch.sigmoid(linear(w, "actor.scale", x) / 2) + 0.1
        return TruncatedLaw(torch.tanh(linear(w, "actor.loc", x)), scale)

    # World model -----------------------------------------------------------------------------------------------

    def model_loss(self, w: Weights, batch: Any, noise: Noise, drawn: Drawn) -> tuple[dict[str, Tensor], list[State]]:
        """Losses by their metric's name, "model/loss" the total, and the posteriors of every row."""
        config, dtype = self.config.world_model, w["world_model.reward.out.weight"].dtype
        obs = self.preprocess(batch.obs, dtype)
        action, reward = batch.action.to(dtype), batch.reward.to(dtype) * config.reward_scale
        reward = {"tanh": torch.tanh(reward), "sign": torch.sign(reward), "identity": reward}[config.reward_transform]
        rows, count = batch.reward.shape
        state = State(torch.zeros(count, config.rssm.deter, dtype=dtype),
                      torch.zeros(count, len(w["world_model.rssm.img_in.0.weight"][0]) - action.shape[-1], dtype=dtype))
        states, terms = [], {}
        for t in range(rows):
            going = 1 - batch.is_first[t].to(dtype)[:, None]
            deter = self.next_deter(w, State(state.deter * going, state.stoch * going), action[t] * going)
            here = {name: value[t] for name, value in obs.items()}
            post, prior = self.posterior(w, deter, self.encode(w, here)), self.prior(w, deter)
            state = State(deter, self.sample(post, noise.post[t], at_step(drawn.post, t), drawn.slack))
            states.append(state)
            label = true_discount(self.config, batch.is_terminal[t], dtype)
            for name, value in self.row_losses(w, state.feat, here, reward[t], label, post, prior).items():
                terms.setdefault(name, []).append(value)
        return self.total({name: torch.stack(values) for name, values in terms.items()}), states

    def row_losses(self, w: Weights, feat: Tensor, obs: dict[str, Tensor], reward: Tensor, label: Tensor, post: Tensor,
                   prior: Tensor) -> dict[str, Tensor]:
        """Every term of one row, (B,)."""
        config, losses = self.config.world_model, {}
        heads = {head: feat if head in config.grad_heads else feat.detach()
                 for head in ("decoder", "reward", "discount")}
        for name, mean in self.decode(w, heads["decoder"]).items():
            loss = minus_log_normal(obs[name], mean).flatten(1).sum(1)
            kind = f"model/{self.obs_spec[name].kind}_loss"
            losses[kind] = losses[kind] + loss if kind in losses else loss
        losses["model/reward_loss"] = minus_log_normal(reward, self.scalar(w, "world_model.reward", heads["reward"]))
        if config.predict_discount:
            logit = self.scalar(w, "world_model.discount", heads["discount"])
            losses["model/discount_loss"] = -(label * F.logsigmoid(logit) + (1 - label) * F.logsigmoid(-logit))
        return losses | {"dyn_kl": self.kl(post.detach(), prior), "rep_kl": self.kl(post, prior.detach())}

    def total(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms (T, B) -> scalars, with "model/kl_loss" and the sum of all, "model/loss"."""
        config = self.config.world_model
        free = torch.tensor(config.kl.free_nats, dtype=terms["dyn_kl"].dtype)
        sides = [terms.pop("dyn_kl"), terms.pop("rep_kl")]
        clipped = [torch.maximum(side.mean(), free) if config.kl.free_avg else torch.maximum(side, free).mean()
                   for side in sides]
        losses = {name: value.mean() for name, value in terms.items()}
        loss = sum(getattr(config.loss_scales, name.removeprefix("model/").removesuffix("_loss")) * value
                   for name, value in losses.items())
        kl_loss = config.kl.balance * clipped[0] + (1 - config.kl.balance) * clipped[1]
        return losses | {"model/kl": sides[0].mean(), "model/kl_loss": kl_loss,
                         "model/loss": loss + config.kl.scale * kl_loss}

    # Behaviour -------------------------------------------------------------------------------------------------

    def starts(self, states: list[State], batch: Any, noise: Noise) -> tuple[State, Tensor]:
        """Posteriors of all rows -> N start states, detached, and whether each is terminal."""
        rows = states[:-1] if self.config.imagination.drop_last else states
        deter, stoch = (torch.cat([state[i].detach() for state in rows]) for i in (0, 1))
        terminal = torch.cat([batch.is_terminal[t] for t in range(len(rows))])
        if noise.order is not None:
            deter, stoch, terminal = deter[noise.order], stoch[noise.order], terminal[noise.order]
        return State(deter, stoch), terminal

    def behaviour_losses(self, w: Weights, start: State, terminal: Tensor, noise: Noise, drawn: Drawn
                         ) -> dict[str, Tensor]:
        """"actor/loss" and "critic/loss" of trajectories imagined with the weights as they are."""
        config, horizon = self.config, self.config.horizon
        states, actions, label = [start], [], true_discount(config, terminal, start.deter.dtype)
        for k in range(horizon):
            law = self.policy(w, states[k].feat.detach())
            actions.append(law.sample(noise.action[k], at_step(drawn.action, k), drawn.slack))
            deter = self.next_deter(w, states[k], actions[k])
            stoch = self.sample(self.prior(w, deter), noise.prior[k], at_step(drawn.prior, k), drawn.slack)
            states.append(State(deter, stoch))
        reward = [self.scalar(w, "world_model.reward", state.feat) for state in states]
        slow = [self.scalar(w, "slow_critic", state.feat) for state in states]
        discount = [label]
        for k in range(1, horizon):
            discount.append(torch.sigmoid(self.scalar(w, "world_model.discount", states[k].feat))
                            if config.world_model.predict_discount else torch.full_like(label, config.gamma))
        if not config.world_model.predict_discount:
            discount[0] = torch.full_like(label, config.gamma)
        target, weight = lambda_targets(reward, slow, discount, config.lambda_), [torch.ones_like(label)]
        for k in range(1, horizon):
            weight.append(weight[k - 1] * discount[k - 1].detach())
        critic = [weight[k] * minus_log_normal(target[k].detach(), self.scalar(w, "critic", states[k].feat.detach()))
                  for k in range(horizon)]
        actor = [-weight[k] * self.objective(w, k, states, actions, target, slow) for k in range(horizon - 1)]
        return {"actor/loss": torch.stack(actor).mean(), "critic/loss": torch.stack(critic).mean(),
                "critic/target": torch.stack(target).mean()}

    def objective(self, w: Weights, k: int, states: list[State], actions: list[Tensor], target: list[Tensor],
                  slow: list[Tensor]) -> Tensor:
        """J_k + eta H(pi(feat_k)), (N,); ``actions[k]`` was chosen at feat_k."""
        config, feat = self.config.actor, states[k].feat.detach()
        law = self.policy(w, feat)
        baseline = slow[k] if config.baseline == "slow" else self.scalar(w, "critic", feat)
        gain = target[k + 1] if config.advantage == "offset" else target[k]
        reinforce = law.log_prob(actions[k].detach()) * (gain - baseline).detach()
        share = {"reinforce": 0.0, "dynamics": 1.0, "mix": config.mix}[self.estimator]
        return share * target[k + 1] + (1 - share) * reinforce + config.entropy * law.entropy()


# Small equations -----------------------------------------------------------------------------------------------


def minus_log_normal(x: Tensor, mean: Tensor) -> Tensor:
    return 0.5 * (x - mean)**2 + HALF_LOG_2PI


def true_discount(config: DreamerV2Config, is_terminal: Tensor, dtype: torch.dtype) -> Tensor:
    """gamma (1 - is_terminal)."""
    return config.gamma * (1 - is_terminal.to(dtype))


def lambda_targets(reward: list[Tensor], value: list[Tensor], discount: list[Tensor], lambda_: float) -> list[Tensor]:
    """V_k = r_k + d_k [(1 - lambda) v_{k+1} + lambda V_{k+1}], backwards from V_H = v_H."""
    targets = [value[-1]]
    for k in reversed(range(len(discount))):
        targets.insert(0, reward[k] + discount[k] * ((1 - lambda_) * value[k + 1] + lambda_ * targets[0]))
    return targets[:-1]


def at_step(sequence: Tensor | None, t: int) -> Tensor | None:
    return None if sequence is None else sequence[t]


def leaves(state: dict[str, Tensor], dtype: torch.dtype) -> Weights:
    """Copies of all weights to differentiate by."""
    return {name: tensor.detach().to(dtype, memory_format=torch.contiguous_format, copy=True).requires_grad_()
            for name, tensor in state.items()}


def gradients(loss: Tensor, w: Weights, prefix: str) -> dict[str, Tensor]:
    """Of ``loss`` by the parameters of one network; zero where it does not depend on one."""
    own = {name: weight for name, weight in w.items() if name.startswith(prefix + ".")}
    found = torch.autograd.grad(loss, list(own.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros_like(weight) if grad is None else grad
            for (name, weight), grad in zip(own.items(), found, strict=True)}


def adam_first_step(w: Weights, grads: dict[str, Tensor], opt: Any) -> Weights:
    """Weights after the first step of TensorFlow's Adam, with the gradient clipped and the decay free of lr."""
    norm = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
    after = {}
    for name, grad in grads.items():
        grad = grad * min(1.0, opt.clip / norm)
        rate = opt.lr * math.sqrt(1 - 0.999) / (1 - 0.9)
        after[name] = (1 - opt.weight_decay) * w[name] - rate * 0.1 * grad / ((0.001 * grad**2).sqrt() + opt.eps)
    return after
