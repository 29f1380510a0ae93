"""Is the world model healthy? What it makes of episodes that no learner has seen; docs/health.md explains every number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xrl.common.inspection import Dream, Inspection
from xrl.common.row import Row
from xrl.policies.views import WorldModelPolicy
from xrl.world_models.latents import CategoricalLatent
from xrl.world_models.open_loop import Episodes, OpenLoop, open_loop, squared_error, starts
from xrl.world_models.rssm import State

CONTEXT = 5          # rows that a dream begins with
HORIZON = 50         # steps of a dream
STARTS = 64          # dreams side by side, at most
SHOWN = (1, 5, 15, 50)  # steps whose errors are metrics
ALIVE = 0.01         # nats of KL below which a latent says nothing
IN_USE = 0.01        # mean probability above which a category is in use
BINS = 10
PAIRS = 64           # points of a scatter plot


class Inspector:
    """Looks at one policy with the episodes of one evaluation. ``transform``: of rewards, as the model learns them;
    ``horizon``: steps of imagined returns."""

    def __init__(self, policy: WorldModelPolicy, episodes: Sequence[Row], transform: Callable[[Tensor], Tensor],
                 horizon: int, generator: torch.Generator) -> None:
        self.policy, self.model, self.horizon, self.generator = policy, policy.world_model, horizon, generator
        self.rows, self.episodes = episodes[0], stacked(episodes, self.model.preprocess, transform, generator.device)
        with torch.no_grad():
            noise = self.model.latent.noise(*self.episodes.valid.shape, generator=generator)
            embed = self.model.encoder(self.episodes.obs)
            self.post, self.post_stats, self.prior_stats = self.model.rssm.observe(
                embed, self.episodes.action, self.episodes.is_first, noise)

    @torch.no_grad()
    def inspect(self) -> Inspection:
        begin = starts(self.episodes, CONTEXT, STARTS)
        longest = min(HORIZON, int((self.episodes.valid.sum(0)[begin[1]] - 1 - begin[0]).max()))
        dreams = open_loop(self.model, self.post, self.episodes, begin, longest, self.generator)
        parts = [self.horizons(dreams), self.latents(), self.heads(), self.values(), self.returns(begin)]
        metrics = {name: value for part in parts for name, value in part[0].items() if np.isfinite(value)}
        return Inspection({f"health/{name}": float(value) for name, value in metrics.items()},
                          {name: value for part in parts for name, value in part[1].items()}, self.dream(dreams))

    def horizons(self, dreams: OpenLoop) -> tuple[dict[str, float], dict[str, Any]]:
        """Errors against the steps dreamt, and how they compare with a picture that stands still."""
        count = dreams.valid.sum(1)
        error, still, reward = (masked_mean(part, dreams.valid) for part in (
            dreams.error, dreams.still, dreams.reward))
        metrics: dict[str, float] = {"reconstruction": self._reconstruction()}
        for k in SHOWN:
            if k <= len(count) and count[k - 1]:
                metrics[f"open_loop_{k}"] = error[k - 1] / max(still[k - 1], 1e-9)
                metrics[f"reward_error_{k}"] = reward[k - 1]
        return metrics, {"horizon": list(range(1, len(error) + 1)), "open_loop": numbers(error),
                         "still": numbers(still), "reward_error": numbers(reward)}

    def _reconstruction(self) -> float:
        valid = self.episodes.valid
        means = self.model.decoder(self.post.feat[valid])
        return float(squared_error(means, {name: value[valid] for name, value in self.episodes.obs.items()}).mean())

    def latents(self) -> tuple[dict[str, float], dict[str, Any]]:
        """What each latent variable tells beyond the prediction, and how many of its categories it does it with."""
        latent, valid = self.model.latent, self.episodes.valid
        kl = latent.kl_each(self.post_stats[valid], self.prior_stats[valid]).mean(0)
        metrics = {"kl": float(kl.sum()), "latents_alive": float((kl > ALIVE).sum())}
        curves: dict[str, Any] = {"kl": numbers(kl.cpu().numpy())}
        if isinstance(latent, CategoricalLatent):
            used = (latent.probs(self.post_stats[valid]).mean(0) > IN_USE).sum(-1)
            metrics["categories"] = float(used.float().mean())
            curves |= {"categories": used.tolist(), "classes": latent.classes}
        return metrics, curves

    def heads(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Do the heads' predictions come true, of states that have seen their row?"""
        valid, episodes = self.episodes.valid, self.episodes
        look = self._looks(valid)
        true, goes_on = (part[valid].float().cpu().numpy() for part in (episodes.reward, ~episodes.is_terminal))
        reward, discount = calibration(look["reward"], true), calibration(look["cont"], goes_on)
        metrics = {"reward_bias": float((look["reward"] - true).mean()), "reward_calibration": miss(reward),
                   "discount_calibration": miss(discount), "policy_entropy": float(look["entropy"].mean())}
        return metrics, {"reward_calibration": reward, "discount_calibration": discount}

    def _looks(self, valid: Tensor) -> dict[str, np.ndarray]:
        """Scalars of the networks at the valid posteriors, (n,) each."""
        feat, policy = self.post.feat[valid], self.policy
        parts = {"reward": self.model.reward(feat), "cont": policy.cont(feat), "value": policy.value(feat),
                 "entropy": policy.actor(feat).entropy()}
        return {name: value.cpu().numpy() for name, value in parts.items()}

    def values(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Values beside what the episodes then paid::

            G_t = r_t + gamma (1 - terminal_t) G_{t+1},     G at the last row: its value, or r if it is terminal
        """
        episodes, value = self.episodes, self.policy.value(self.post.feat)
        last = episodes.valid & ~torch.cat([episodes.valid[1:], torch.zeros_like(episodes.valid[:1])])
        gain, gains = torch.zeros_like(value[0]), []
        for t in reversed(range(len(value))):
            further = episodes.reward[t] + self.policy.gamma * gain * (~episodes.is_terminal[t])
            gain = torch.where(last[t] & ~episodes.is_terminal[t], value[t], further)
            gains.append(gain)
        known = episodes.valid & ~(last & ~episodes.is_terminal)
        expected, realised = value[known].cpu().numpy(), torch.stack(gains[::-1])[known].cpu().numpy()
        return ({"value": float(expected.mean()), "value_bias": float((expected - realised).mean())},
                {"values": pairs(expected, realised)})

    def returns(self, begin: tuple[Tensor, Tensor]) -> tuple[dict[str, float], dict[str, Any]]:
        """What the policy dreams that it will get in ``horizon`` steps from ``begin``, and what it got. Both act by the
        mode. Where the rows are cut before, nobody knows; where the episode ends, nothing follows."""
        policy, (time, episode) = self.policy, begin
        state = State(self.post.deter[time, episode], self.post.stoch[time, episode])
        imagined, goes_on = torch.zeros_like(time, dtype=torch.float32), torch.ones_like(time, dtype=torch.float32)
        for _ in range(self.horizon):
            state = policy.dream(state, policy.actor(state.feat).mode(), self.generator)
            imagined = imagined + goes_on * self.model.reward(state.feat)
            goes_on = goes_on * policy.cont(state.feat)
        ahead = time + torch.arange(1, self.horizon + 1, device=time.device).unsqueeze(1)
        rows = ahead.clamp(max=len(self.episodes.valid) - 1)
        valid = (ahead == rows) & self.episodes.valid[rows, episode]
        realised = self.episodes.reward[rows, episode].where(valid, 0.0).sum(0)
        ended = (self.episodes.is_terminal[rows, episode] & valid).any(0)
        whole = (valid.all(0) | ended).cpu().numpy()
        left, right = imagined.cpu().numpy()[whole], realised.cpu().numpy()[whole]
        metrics = {} if not len(left) else {"imagined_return": float(left.mean()),
                                            "realised_return": float(right.mean())}
        return metrics, {"returns": pairs(left, right)}

    def dream(self, dreams: OpenLoop) -> Dream:
        """Of the first episode: posteriors up to where the first dream begins, from there on that dream."""
        begin, length = int(dreams.time[0]), int(dreams.valid[:, 0].sum())
        states = [State(self.post.deter[t, :1], self.post.stoch[t, :1]) for t in range(begin + 1)]
        states += [State(state.deter[:1], state.stoch[:1]) for state in dreams.state[:length]]
        look = self.policy.look(State(*(torch.cat(parts) for parts in zip(*states, strict=True))))
        rows = slice_rows(self.rows, len(states))
        return Dream(begin + 1, rows, look, self.episodes.reward[:len(states), 0].cpu().numpy())


def stacked(episodes: Sequence[Row], preprocess: Callable[[dict[str, Tensor]], dict[str, Tensor]],
            transform: Callable[[Tensor], Tensor], device: torch.device) -> Episodes:
    """Episodes of leading shape (T_i,) -> padded to (T, B). What follows an episode's end is a reset row of zeros."""
    length = max(len(rows.reward) for rows in episodes)

    def together(read: Callable[[Row], np.ndarray]) -> Tensor:
        arrays = [read(rows) for rows in episodes]
        padded = np.zeros((length, len(arrays), *arrays[0].shape[1:]), arrays[0].dtype)
        for index, array in enumerate(arrays):
            padded[:len(array), index] = array
        return torch.from_numpy(padded).to(device)

    obs = {name: together(lambda rows, name=name: rows.obs[name]) for name in episodes[0].obs}  # type: ignore[misc]
    valid = together(lambda rows: np.ones(len(rows.reward), np.bool_))
    return Episodes(preprocess(obs), together(lambda rows: rows.action), transform(together(lambda rows: rows.reward)),
                    together(lambda rows: rows.is_first) | ~valid, together(lambda rows: rows.is_terminal), valid)


def slice_rows(rows: Row, count: int) -> Row:
    """The first ``count``."""
    parts = {name: value[:count] for name, value in vars(rows).items() if name != "obs"}
    return Row({name: value[:count] for name, value in rows.obs.items()}, **parts)


def masked_mean(values: Tensor, valid: Tensor) -> np.ndarray:
    """(H, N) -> (H,); NaN where nothing is valid."""
    return (values.where(valid, 0.0).sum(1) / valid.sum(1)).cpu().numpy()


def calibration(predicted: np.ndarray, true: np.ndarray) -> list[list[float]]:
    """[mean prediction, mean truth, count] of bins of about equal size, by prediction; equal predictions share one."""
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, BINS + 1)))
    place = np.searchsorted(edges[1:-1], predicted, side="left")
    return [[float(predicted[place == bin_].mean()), float(true[place == bin_].mean()), int((place == bin_).sum())]
            for bin_ in np.unique(place)]


def miss(bins: Sequence[Sequence[float]]) -> float:
    """By how much predictions miss in the mean of the bins: 0 when calibrated."""
    return sum(abs(predicted - true) * count for predicted, true, count in bins) / sum(count for *_, count in bins)


def numbers(values: np.ndarray) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()]


def pairs(left: np.ndarray, right: np.ndarray) -> list[list[float | None]]:
    """At most PAIRS points (left, right), spread evenly."""
    kept = np.linspace(0, len(left) - 1, min(PAIRS, len(left))).astype(int)
    return [numbers(np.array([x, y])) for x, y in zip(left[kept], right[kept], strict=True)]
