"""The recurrent state-space model: a deterministic path h, a stochastic state z, a prior and a posterior for z."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xrl.nn.layers import MLP, dense
from xrl.nn.recurrent import LayerNormGRUCell
from xrl.world_models.latents import Latent


class State(NamedTuple):
    """``deter``: h, (..., D); ``stoch``: z, flattened, (..., Z)."""

    deter: Tensor
    stoch: Tensor

    @property
    def feat(self) -> Tensor:
        """What heads read: z first, then h, (..., F)."""
        return torch.cat([self.stoch, self.deter], -1)

    def detach(self) -> State:
        return State(self.deter.detach(), self.stoch.detach())

    def masked(self, keep: Tensor) -> State:
        """``keep``: (..., 1) bool, False where the state starts afresh; a product would let a NaN live on."""
        return State(self.deter.where(keep, 0.0), self.stoch.where(keep, 0.0))


class RSSM(nn.Module):
    """DreamerV2, eq. 1::

        h_t = f(h_{t-1}, z_{t-1}, a_{t-1})      recurrent cell, after one dense layer on [z; a]
        z_t ~ q(z_t | h_t, x_t)                 posterior, one hidden layer on [h; embed]
        z_t ~ p(z_t | h_t)                      prior, one hidden layer on h

    Indices follow the rows: ``action[t]`` is the action that led to ``embed[t]``.
    """

    def __init__(self, embed_size: int, action_size: int, latent: Latent, deter: int, hidden: int,
                 norm: str = "none") -> None:
        super().__init__()
        self.latent, self.deter = latent, deter
        self.feat_size = latent.size + deter
        self.img_in = MLP(latent.size + action_size, 1, hidden, norm)
        self.cell = LayerNormGRUCell(hidden, deter)
        self.img_out = MLP(deter, 1, hidden, norm)
        self.img_stats = dense(hidden, latent.stats_size)
        self.obs_out = MLP(deter + embed_size, 1, hidden, norm)
        self.obs_stats = dense(hidden, latent.stats_size)

    def initial(self, batch: int) -> State:
        """All zeros."""
        like = self.img_stats.weight
        return State(like.new_zeros(batch, self.deter), like.new_zeros(batch, self.latent.size))

    def img_step(self, state: State, action: Tensor, noise: Tensor) -> State:
        """Imagine one step: (N, ...) state and action (N, A) -> the next state, z from the prior."""
        deter = self._recur(state, action)
        return State(deter, self.latent.sample(self.prior_stats(deter), noise))

    def obs_step(self, state: State, action: Tensor, embed: Tensor, is_first: Tensor, noise: Tensor
                 ) -> tuple[State, Tensor]:
        """One step with an observation. Where ``is_first``, state *and* action count as zero.

        ``action``: (N, A), ``embed``: (N, M), ``is_first``: (N,), ``noise``: as latent.noise(N).
        Returns the posterior state and its stats.
        """
        keep = ~is_first.unsqueeze(-1)
        deter = self._recur(state.masked(keep), action.where(keep, 0.0))
        stats = self.obs_stats(self.obs_out(torch.cat([deter, embed], -1)))
        return State(deter, self.latent.sample(stats, noise)), stats

    def prior_stats(self, deter: Tensor) -> Tensor:
        return self.img_stats(self.img_out(deter))

    def observe(self, embed: Tensor, action: Tensor, is_first: Tensor, noise: Tensor) -> tuple[State, Tensor, Tensor]:
        """Filter a batch of sequences; the recurrence consumes the posterior.

        Args:
            embed: (T, B, M); action: (T, B, A); is_first: (T, B) bool; noise: latent.noise(T, B).

        Returns:
            Posterior states (T, B, ...), posterior stats and prior stats (T, B, stats_size). The prior needs no
            sample here, so it is computed for all steps at once, outside the time loop.
        """
        state = self.initial(embed.shape[1])
        deters, stochs, posts = [], [], []
        for t in range(len(embed)):
            state, stats = self.obs_step(state, action[t], embed[t], is_first[t], noise[t])
            deters.append(state.deter)
            stochs.append(state.stoch)
            posts.append(stats)
        states = State(torch.stack(deters), torch.stack(stochs))
        return states, torch.stack(posts), self.prior_stats(states.deter)

    def _recur(self, state: State, action: Tensor) -> Tensor:
        return self.cell(self.img_in(torch.cat([state.stoch, action], -1)), state.deter)
