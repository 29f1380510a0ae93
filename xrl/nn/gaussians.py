"""Normal laws of actions for model-free methods. As in ``xrl.nn.distributions``, noise is an argument, uniform."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from xrl.nn.distributions import LOG_SQRT_2PI


def standard_normal(noise: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) to standard normal ones, by the inverse CDF; no farther out than 5.5 in float32."""
    return torch.special.ndtri(noise.clamp(2.0 ** -25, 1 - 2.0 ** -24))


@dataclass(frozen=True)
class DiagonalNormal:
    """Independent normals over the last axis; ``mean``, ``log_std``: (..., A). Not bounded: an environment takes what
    lies outside its bounds for the nearest one."""

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``noise``: uniform, the shape of ``mean``."""
        return self.mean + self.log_std.exp() * standard_normal(noise)

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - LOG_SQRT_2PI).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 + LOG_SQRT_2PI).expand_as(self.mean).sum(-1)


@dataclass(frozen=True)
class SquashedNormal:
    """tanh of independent normals, in (-1, 1); ``mean``, ``log_std`` of the normals: (..., A)."""

    mean: Tensor
    log_std: Tensor

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """An action tanh(u) and its log-density, (..., A) and (...), differentiable in mean and log_std::

            ln p(tanh u) = sum [ ln N(u) - ln(1 - tanh^2 u) ],    ln(1 - tanh^2 u) = 2 (ln 2 - u - softplus(-2u))

        (SAC, appendix C; the right-hand form is exact where 1 - tanh^2 rounds to 0.) ``noise``: uniform.
        """
        normal = standard_normal(noise)
        u = self.mean + self.log_std.exp() * normal
        log_normal = -0.5 * normal.square() - self.log_std - LOG_SQRT_2PI
        log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return u.tanh(), (log_normal - log_slope).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """``noise``: uniform, the shape of ``mean``."""
        return (self.mean + self.log_std.exp() * standard_normal(noise)).tanh()

    def mode(self) -> Tensor:
        """tanh of the mean: the median, which is what SAC evaluates."""
        return self.mean.tanh()
