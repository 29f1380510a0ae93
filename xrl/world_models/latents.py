"""Laws of the stochastic state z. A law reads raw network outputs ("stats") and knows how to sample and compare.

Stats are flat, (..., ``stats_size``), so that an RSSM need not know which law it carries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from xrl.nn.distributions import LOG_SQRT_2PI, category, mixed, mixed_probs, one_hot_draw, uniform
from xrl.ops.kl import categorical_kl, categorical_kl_each, gaussian_kl, gaussian_kl_each


@dataclass(frozen=True)
class CategoricalLatent:
    """S independent categoricals of K classes, straight-through gradients (DreamerV2, algorithm 1). Stats: logits.

    ``unimix``: the share of a uniform law in every law of z, prior and posterior (DreamerV3): samples, KL and entropy
    are all those of the mixture, so no class is ever impossible and the KL is bounded.
    """

    stoch: int
    classes: int
    unimix: float = 0.0

    @property
    def size(self) -> int:
        """Length of the flattened sample, S * K."""
        return self.stoch * self.classes

    @property
    def stats_size(self) -> int:
        return self.size

    def noise(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers for ``sample``: (*shape, S), on the generator's device."""
        return uniform(*shape, self.stoch, generator=generator)

    def sample(self, stats: Tensor, noise: Tensor) -> Tensor:
        """Exactly one-hot, (..., S * K)."""
        return one_hot_draw(self.probs(stats), noise).flatten(-2)

    def sample_places(self, stats: Tensor, noise: Tensor) -> Tensor:
        """``sample`` without a gradient: the places of its ones, (..., S)."""
        return category(self.probs(stats), noise) + self._offsets(stats.device)

    def places(self, stoch: Tensor) -> Tensor:
        """One-hot (..., S * K) -> the places of its ones, (..., S)."""
        return stoch.unflatten(-1, (self.stoch, self.classes)).argmax(-1) + self._offsets(stoch.device)

    def _offsets(self, device: torch.device) -> Tensor:
        return torch.arange(0, self.size, self.classes, device=device)

    def kl(self, post: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """``dyn_kl`` and ``rep_kl`` of the posterior from the prior, (...), nats (see ops/kl.py)."""
        return categorical_kl(self._logits(post), self._logits(prior))

    def kl_each(self, post: Tensor, prior: Tensor) -> Tensor:
        """KL of each variable's posterior from its prior, (..., S), nats."""
        return categorical_kl_each(self._logits(post), self._logits(prior))

    def probs(self, stats: Tensor) -> Tensor:
        """(..., S, K)."""
        return mixed_probs(stats.unflatten(-1, (self.stoch, self.classes)).float(), self.unimix)

    def entropy(self, stats: Tensor) -> Tensor:
        """Summed over the S variables, (...), nats."""
        log_p = self._logits(stats).log_softmax(-1)
        return -(log_p.exp() * log_p).sum((-2, -1))

    def _logits(self, stats: Tensor) -> Tensor:
        return mixed(stats.unflatten(-1, (self.stoch, self.classes)).float(), self.unimix)


@dataclass(frozen=True)
class GaussianLatent:
    """S independent normals; stats: means, then raw deviations; std = 2 sigmoid(raw / 2) + 0.1 (DreamerV2's code), or
    softplus(raw) + 0.1 (DreamerV1: ``std`` "softplus")."""

    stoch: int
    std: str = "sigmoid"
    min_std = 0.1

    @property
    def size(self) -> int:
        return self.stoch

    @property
    def stats_size(self) -> int:
        return 2 * self.stoch

    def noise(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Standard normal numbers for ``sample``: (*shape, S), on the generator's device."""
        return torch.randn(*shape, self.stoch, generator=generator, device=generator.device)

    def sample(self, stats: Tensor, noise: Tensor) -> Tensor:
        mean, std = self._law(stats)
        return mean + std * noise

    def kl(self, post: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        return gaussian_kl(self._law(post), self._law(prior))

    def kl_each(self, post: Tensor, prior: Tensor) -> Tensor:
        return gaussian_kl_each(self._law(post), self._law(prior))

    def entropy(self, stats: Tensor) -> Tensor:
        return (self._law(stats)[1].log() + 0.5 + LOG_SQRT_2PI).sum(-1)

    def _law(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = stats.float().chunk(2, -1)
        std = functional.softplus(raw) if self.std == "softplus" else 2 * torch.sigmoid(raw / 2)
        return mean, std + self.min_std


Latent = CategoricalLatent | GaussianLatent


def make_latent(kind: str, stoch: int, classes: int) -> Latent:
    return CategoricalLatent(stoch, classes) if kind == "categorical" else GaussianLatent(stoch)
