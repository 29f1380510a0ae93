"""Following held-out episodes with open and with closed eyes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from xrl.world_models.latents import Latent
from xrl.world_models.rssm import RSSM, State


class ViewedModel(Protocol):
    """A world model as far as one can look into it, whichever method trains it; networks read feats (..., F)."""

    @property
    def latent(self) -> Latent: ...

    @property
    def rssm(self) -> RSSM: ...

    @property
    def encoder(self) -> Callable[..., Any]:
        """Preprocessed observations -> ``embed``."""

    @property
    def decoder(self) -> Callable[..., Any]:
        """Gives name -> (..., *shape), on the scale of preprocessed observations."""

    @property
    def reward(self) -> Callable[..., Any]:
        """Gives the expected reward of arriving in the state, (...)."""

    def preprocess(self, obs: dict[str, Tensor]) -> dict[str, Tensor]: ...

    def unprocess(self, means: dict[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Episodes:
    """B episodes of at most T rows on the device, padded: obs (T, B, *shape) preprocessed, action (T, B, A), reward
    (T, B) transformed, the flags (T, B); ``valid``: (T, B), False on padding."""

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    is_first: Tensor
    is_terminal: Tensor
    valid: Tensor


@dataclass(frozen=True)
class OpenLoop:
    """N dreams of up to H steps, begun at rows ``time`` of episodes ``episode``, (N,) both.

    ``state``: H states (N, ...); ``valid``: (H, N), whether the episode has a row to compare it with. Errors, (H, N):
    ``error``, squared, of the imagined observation; ``still``, of the last one seen, repeated; both the mean over all
    numbers of the preprocessed observation; ``reward``, absolute.
    """

    time: Tensor
    episode: Tensor
    state: list[State]
    valid: Tensor
    error: Tensor
    still: Tensor
    reward: Tensor


def starts(episodes: Episodes, context: int, most: int) -> tuple[Tensor, Tensor]:
    """At most ``most`` rows to dream on from, spread evenly: time and episode, (N,) both. Each comes after ``context``
    rows, or as many as leave one row to dream. The first is the earliest one of the first episode."""
    lengths = episodes.valid.sum(0)
    first = torch.minimum(torch.full_like(lengths, context), lengths - 1) - 1
    rows = torch.arange(len(episodes.valid), device=lengths.device).unsqueeze(1)
    episode, time = ((rows >= first) & (rows < lengths - 1)).T.nonzero(as_tuple=True)
    kept = torch.arange(min(most, len(time)), device=time.device) * len(time) // max(min(most, len(time)), 1)
    return time[kept], episode[kept]


@torch.no_grad()
def open_loop(model: ViewedModel, post: State, episodes: Episodes, begin: tuple[Tensor, Tensor], horizon: int,
              generator: torch.Generator) -> OpenLoop:
    """Dream with the true actions from posteriors ``post`` (T, B, ...) at ``begin`` (see ``starts``)::

        k:          0        1          2     ..  H
        row         t        t+1        t+2
        state_k     post_t   *          *         state_{k+1} from img_step(state_k, action of row t+k+1)
        compared    -        obs_{t+1}  obs_{t+2}

    Once an episode has ended its dreams go on unseen.
    """
    time, episode = begin
    state = State(post.deter[time, episode], post.stoch[time, episode])
    seen = {name: value[time, episode] for name, value in episodes.obs.items()}
    noise = model.latent.noise(horizon, len(time), generator=generator)
    states, parts = [], []
    for k in range(1, horizon + 1):
        row, inside = (time + k).clamp(max=len(episodes.valid) - 1), time + k < len(episodes.valid)
        state = model.rssm.img_step(state, episodes.action[row, episode], noise[k - 1])
        true = {name: value[row, episode] for name, value in episodes.obs.items()}
        reward = (model.reward(state.feat) - episodes.reward[row, episode]).abs()
        states.append(state)
        parts.append((inside & episodes.valid[row, episode], squared_error(model.decoder(state.feat), true),
                      squared_error(seen, true), reward))
    return OpenLoop(time, episode, states, *(torch.stack(part) for part in zip(*parts, strict=True)))


def squared_error(left: dict[str, Tensor], right: dict[str, Tensor]) -> Tensor:
    """Of two observations (N, *shape) by name: the mean over all their numbers, (N,)."""
    return torch.cat([(left[name] - right[name]).square().flatten(1) for name in right], 1).mean(1)
