"""Laws of latents and actions. Samples are pure functions of their parameters and of noise drawn beforehand.

Noise as an argument keeps randomness out of the time loop (one draw per sequence), makes a step reproducible
and lets a finite difference hold it fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), on the generator's device."""
    return torch.rand(*shape, generator=generator, device=generator.device)


def normal_loss(mean: Tensor, target: Tensor, dims: int = 0) -> Tensor:
    """-log N(target; mean, 1) = 1/2 (target - mean)^2 + 0.918939, summed over the last ``dims`` axes."""
    loss = 0.5 * (target - mean).square() + LOG_SQRT_2PI
    return loss.sum(tuple(range(-dims, 0))) if dims else loss


def mixed(logits: Tensor, unimix: float) -> Tensor:
    """Logits of (1 - unimix) softmax(logits) + unimix / K, over the last axis (DreamerV3): no class is ever impossible.
    """
    return torch.log(mixed_probs(logits, unimix)) if unimix else logits


def mixed_probs(logits: Tensor, unimix: float) -> Tensor:
    """The probabilities that ``mixed`` takes the logarithm of."""
    probs = logits.softmax(-1)
    return probs * (1 - unimix) + unimix / logits.shape[-1] if unimix else probs


def straight_through(hard: Tensor, probs: Tensor) -> Tensor:
    """``hard`` forwards, the gradient of ``probs`` backwards. Grouped so that the value is exactly ``hard``."""
    return hard + (probs - probs.detach()) if probs.requires_grad else hard


def one_hot_sample(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw one class each from one uniform number each.

    ``logits``: (..., K); ``noise``: uniform, (...) in [0, 1). Returns one-hot (..., K) with straight-through gradient.
    """
    return one_hot_draw(logits.softmax(-1), noise)


def one_hot_draw(probs: Tensor, noise: Tensor) -> Tensor:
    """``one_hot_sample`` from probabilities (..., K)."""
    return straight_through(_one_hot(category(probs.detach(), noise).unsqueeze(-1), probs), probs)


def category(probs: Tensor, noise: Tensor) -> Tensor:
    """Draw one class each by inverting the cumulative distribution: probs (..., K), noise (...) -> int64 (...)."""
    cumulative = probs.cumsum(-1)
    # Rounding leaves the last entry a little off 1: scaling by it keeps every draw inside.
    below = noise.unsqueeze(-1) * cumulative[..., -1:] >= cumulative
    return below.sum(-1).clamp_(max=probs.shape[-1] - 1)


def one_hot_mode(logits: Tensor) -> Tensor:
    """The likeliest class as one-hot (..., K), with straight-through gradient."""
    return straight_through(_one_hot(logits.argmax(-1, keepdim=True), logits), logits.softmax(-1))


def one_hot(index: Tensor, classes: int) -> Tensor:
    """int64 (...) -> (..., classes), without a look at the values, for which a device would have to be waited for."""
    return torch.zeros(*index.shape, classes, device=index.device).scatter_(-1, index.unsqueeze(-1), 1.0)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(-1, index, 1.0)


@dataclass(frozen=True)
class OneHot:
    """A categorical over one-hot vectors; ``logits``: (..., A)."""

    logits: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``noise``: uniform, (...)."""
        return one_hot_sample(self.logits, noise)

    def mode(self) -> Tensor:
        return one_hot_mode(self.logits)

    def log_prob(self, action: Tensor) -> Tensor:
        return (action * self.logits.log_softmax(-1)).sum(-1)

    def entropy(self) -> Tensor:
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)


@dataclass(frozen=True)
class MultiOneHot:
    """Independent categoricals whose one-hot vectors stand one after the other, (..., A)."""

    parts: tuple[OneHot, ...]

    def sample(self, noise: Tensor) -> Tensor:
        """``noise``: uniform, (..., parts)."""
        return torch.cat([part.sample(noise[..., i]) for i, part in enumerate(self.parts)], -1)

    def mode(self) -> Tensor:
        return torch.cat([part.mode() for part in self.parts], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        sizes = [part.logits.shape[-1] for part in self.parts]
        own = zip(self.parts, action.split(sizes, -1), strict=True)
        return torch.stack([part.log_prob(chosen) for part, chosen in own]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


@dataclass(frozen=True)
class Normal:
    """A normal, independent over the last axis, of no bounds: an environment clips what it is given."""

    loc: Tensor
    scale: Tensor

    margin = 1.2e-7  # the inverse CDF is infinite at 0 and 1

    def sample(self, noise: Tensor) -> Tensor:
        """``noise``: uniform, the shape of ``loc``."""
        return self.loc + self.scale * torch.special.ndtri(noise.clamp(self.margin, 1 - self.margin))

    def mode(self) -> Tensor:
        return self.loc

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action - self.loc) / self.scale
        return (-0.5 * z.square() - self.scale.log() - LOG_SQRT_2PI).sum(-1)

    def entropy(self) -> Tensor:
        return (self.scale.log() + 0.5 + LOG_SQRT_2PI).sum(-1)


@dataclass(frozen=True)
class TruncatedNormal:
    """A normal cut to [-1, 1] and renormalised, independent over the last axis; ``loc`` in [-1, 1].

    Neither a clipped nor a squashed normal: entropy and log-probability are those of the truncated law, and a
    sample is the exact pathwise reparameterisation by the inverse CDF (spec of the official code's TruncNormalDist).
    """

    loc: Tensor
    scale: Tensor

    # Samples keep off the edges, where the log-probability's support ends; and probabilities keep off
    # 0 and 1, where the inverse CDF is infinite in float32.
    edge = 1e-6
    margin = 1.2e-7

    def _bounds(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        low, high = (-1 - self.loc) / self.scale, (1 - self.loc) / self.scale
        cdf_low = torch.special.ndtr(low)
        return low, high, cdf_low, torch.special.ndtr(high) - cdf_low

    def sample(self, noise: Tensor) -> Tensor:
        """``noise``: uniform, the shape of ``loc``."""
        _, _, cdf_low, mass = self._bounds()
        quantile = (cdf_low + noise * mass).clamp(self.margin, 1 - self.margin)
        value = self.loc + self.scale * torch.special.ndtri(quantile)
        clamped = value.detach().clamp(-1 + self.edge, 1 - self.edge)
        return value + (clamped - value.detach())

    def mode(self) -> Tensor:
        return self.loc

    def log_prob(self, action: Tensor) -> Tensor:
        _, _, _, mass = self._bounds()
        z = (action - self.loc) / self.scale
        return (-0.5 * z.square() - self.scale.log() - LOG_SQRT_2PI - mass.log()).sum(-1)

    def entropy(self) -> Tensor:
        low, high, _, mass = self._bounds()

        def moment(x: Tensor) -> Tensor:
            return x * torch.exp(-0.5 * x.square() - LOG_SQRT_2PI)

        entropy = LOG_SQRT_2PI + 0.5 + (self.scale * mass).log() + (moment(low) - moment(high)) / (2 * mass)
        return entropy.sum(-1)


@dataclass(frozen=True)
class TanhNormal:
    """tanh of a normal, independent over the last axis: a law on (-1, 1)^A (DreamerV1). ``loc`` and ``scale`` are those
    of the normal inside."""

    loc: Tensor
    scale: Tensor

    edge = 1e-6  # tanh rounds to 1 where the density has no value

    def sample(self, noise: Tensor) -> Tensor:
        """``noise``: uniform, the shape of ``loc``."""
        return Normal(self.loc, self.scale).sample(noise).tanh()

    def mode(self) -> Tensor:
        """The median, tanh(loc). The density has no mode to speak of: where ``scale`` is above 1 it grows towards both
        ends of the interval."""
        return self.loc.tanh()

    def log_prob(self, action: Tensor) -> Tensor:
        inside = torch.atanh(action.clamp(-1 + self.edge, 1 - self.edge))
        return Normal(self.loc, self.scale).log_prob(inside) - _log_slope(inside).sum(-1)

    def entropy(self) -> Tensor:
        """H(normal) + E[log tanh'], the expectation by Gauss's and Hermite's rule."""
        points, weights = (torch.as_tensor(part, dtype=self.loc.dtype, device=self.loc.device) for part in _HERMITE)
        inside = self.loc.unsqueeze(-1) + self.scale.unsqueeze(-1) * points
        return Normal(self.loc, self.scale).entropy() + (weights * _log_slope(inside)).sum((-2, -1))


def _log_slope(x: Tensor) -> Tensor:
    """log tanh'(x) = 2 (log 2 - x - softplus(-2x)), which no large x makes infinite."""
    return 2 * (math.log(2) - x - functional.softplus(-2 * x))


_points, _weights = np.polynomial.hermite_e.hermegauss(40)
_HERMITE = _points, _weights / math.sqrt(2 * math.pi)
