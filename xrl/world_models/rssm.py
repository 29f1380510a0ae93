"""The recurrent state-space model: a deterministic path h, a stochastic state z, a prior and a posterior for z."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xrl.nn.layers import MLP, LoopLinear, OneHots, dense
from xrl.nn.recurrent import make_cell
from xrl.world_models.latents import CategoricalLatent, Latent


class State(NamedTuple):
    """``deter``: h, (..., D); ``stoch``: z, flattened, (..., Z).

    Where no gradient flows and z is one-hot, ``stoch`` may also hold the places of its ones: integers (..., S), see
    ``CategoricalLatent.places``. A CPU then adds where it had to multiply.
    """

    deter: Tensor
    stoch: Tensor

    @property
    def feat(self) -> Tensor:
        """What heads read: z first, then h, (..., F). Of a state that holds places, see ``RSSM.join``."""
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
        z_t ~ p(z_t | h_t)                      prior, ``prior_layers`` hidden layers on h

    Indices follow the rows: ``action[t]`` is the action that led to ``embed[t]``. ``cell``: see ``make_cell``.
    """

    def __init__(self, embed_size: int, action_size: int, latent: Latent, deter: int, hidden: int,
                 norm: str = "none", cell: str = "layer_norm_gru", prior_layers: int = 1) -> None:
        super().__init__()
        self.latent, self.deter = latent, deter
        self.feat_size = latent.size + deter
        self.img_in, self.cell = make_cell(cell, latent.size, action_size, deter, hidden, norm)
        self.img_out = MLP(deter, prior_layers, hidden, norm)
        self.img_stats = dense(hidden, latent.stats_size, norm)
        self.obs_out = MLP(deter + embed_size, 1, hidden, norm)
        self.obs_stats = dense(hidden, latent.stats_size, norm)

    def initial(self, batch: int) -> State:
        """All zeros."""
        like = self.img_stats.weight
        return State(like.new_zeros(batch, self.deter), like.new_zeros(batch, self.latent.size))

    def compact(self, state: State) -> State:
        """``state`` with the places of the ones instead of one-hot z, where that pays: a GPU multiplies faster than
        it gathers, and a Gaussian has none."""
        if state.stoch.device.type == "cpu" and isinstance(self.latent, CategoricalLatent):
            return State(state.deter, self.latent.places(state.stoch))
        return state

    def img_step(self, state: State, action: Tensor, noise: Tensor) -> State:
        """Imagine one step: (N, ...) state and action (N, A) -> the next state, z from the prior."""
        deter = self.cell(self.img_in(self.join(state.stoch, action)), state.deter)
        stats = self.prior_stats(deter)
        if state.stoch.is_floating_point():
            return State(deter, self.latent.sample(stats, noise))
        assert isinstance(self.latent, CategoricalLatent)
        return State(deter, self.latent.sample_places(stats, noise))

    def obs_step(self, state: State, action: Tensor, embed: Tensor, is_first: Tensor, noise: Tensor
                 ) -> tuple[State, Tensor]:
        """``observe_from`` for a single row: no axis T."""
        states, stats = self.observe_from(state, action[None], embed[None], is_first[None], noise[None])
        return State(states.deter[0], states.stoch[0]), stats[0]

    def observe_from(self, state: State, action: Tensor, embed: Tensor, is_first: Tensor, noise: Tensor
                     ) -> tuple[State, Tensor]:
        """Follow T rows from ``state`` (B, ...). Where ``is_first``, state *and* action count as zero.

        Args:
            action: (T, B, A); embed: (T, B, M); is_first: (T, B) bool; noise: latent.noise(T, B).

        Returns:
            Posterior states (T, B, ...) and their stats (T, B, stats_size).
        """
        keep, lead = ~is_first.unsqueeze(-1), is_first.shape
        img_in = self.img_in.loop(action.where(keep, 0.0))
        cell = self.cell.loop(lead)
        obs_out = self.obs_out.loop(embed)
        obs_stats = LoopLinear(self.obs_stats, shape=lead)
        deters, stochs, stats = [], [], []
        for t, (kept, drawn) in enumerate(zip(keep.unbind(0), noise.unbind(0), strict=True)):
            state = state.masked(kept)
            deter = cell(t, img_in(t, state.stoch), state.deter)
            stat = obs_stats(t, obs_out(t, deter))
            state = State(deter, self.latent.sample(stat, drawn))
            deters.append(deter)
            stochs.append(state.stoch)
            stats.append(stat)
        return State(torch.stack(deters), torch.stack(stochs)), torch.stack(stats)

    def prior_stats(self, deter: Tensor) -> Tensor:
        return self.img_stats(self.img_out(deter))

    def observe(self, embed: Tensor, action: Tensor, is_first: Tensor, noise: Tensor, start: State | None = None
                ) -> tuple[State, Tensor, Tensor]:
        """Filter a batch of sequences; the recurrence consumes the posterior.

        Args:
            embed: (T, B, M); action: (T, B, A); is_first: (T, B) bool; noise: latent.noise(T, B).
            start: the state before the first row, (B, ...); None for zeros.

        Returns:
            Posterior states (T, B, ...), posterior stats and prior stats (T, B, stats_size). The prior needs no
            sample here, so it is computed for all steps at once, outside the time loop.
        """
        start = self.initial(embed.shape[1]) if start is None else start
        states, post_stats = self.observe_from(start, action, embed, is_first, noise)
        return states, post_stats, self.prior_stats(states.deter)

    def join(self, stoch: Tensor, rest: Tensor) -> Tensor | OneHots:
        """[z; x] as the input of a dense layer, from either form of z."""
        if stoch.is_floating_point():
            return torch.cat([stoch, rest], -1)
        return OneHots(stoch, rest, self.latent.size)
