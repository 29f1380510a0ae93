"""Laws and layers of tests/plain.py: as their equations say, sharing nothing with xrl."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


# Laws ----------------------------------------------------------------------------------------------------------


@dataclass
class OneHotLaw:
    logits: Tensor

    def sample(self, noise: Tensor, drawn: Tensor | None, slack: float) -> Tensor:
        assert drawn is not None
        return checked_one_hot(self.logits, noise, drawn, slack)

    def log_prob(self, action: Tensor) -> Tensor:
        return (action * self.logits.log_softmax(-1)).sum(-1)

    def entropy(self) -> Tensor:
        return -(self.logits.softmax(-1) * self.logits.log_softmax(-1)).sum(-1)


@dataclass
class TruncatedLaw:
    """A normal of ``loc`` and ``scale`` cut to [-1, 1], with Phi from the error function."""

    loc: Tensor
    scale: Tensor

    def bounds(self) -> tuple[Tensor, Tensor]:
        return (-1 - self.loc) / self.scale, (1 - self.loc) / self.scale

    def sample(self, noise: Tensor, drawn: Tensor | None, slack: float) -> Tensor:
        low, high = self.bounds()
        quantile = phi(low) + noise * (phi(high) - phi(low))
        action = self.loc + self.scale * math.sqrt(2) * torch.erfinv(2 * quantile - 1)
        inside = action.detach().clamp(-1 + 1e-6, 1 - 1e-6)
        return action + (inside - action.detach())

    def log_prob(self, action: Tensor) -> Tensor:
        low, high = self.bounds()
        log_density = -0.5 * ((action - self.loc) / self.scale)**2 - HALF_LOG_2PI - self.scale.log()
        return (log_density - (phi(high) - phi(low)).log()).sum(-1)

    def entropy(self) -> Tensor:
        """-E[ln p], with E[z^2] = 1 + (low n(low) - high n(high)) / mass."""
        low, high = self.bounds()
        mass = phi(high) - phi(low)
        square = 1 + (low * density(low) - high * density(high)) / mass
        return (0.5 * square + HALF_LOG_2PI + self.scale.log() + mass.log()).sum(-1)


def checked_one_hot(logits: Tensor, uniform: Tensor, drawn: Tensor, slack: float) -> Tensor:
    """``drawn`` with straight-through gradient; ``uniform`` must lie where the classes before ``drawn`` end."""
    probs = logits.softmax(-1)
    upper = (drawn * probs.detach().cumsum(-1)).sum(-1)
    lower = upper - (drawn * probs.detach()).sum(-1)
    assert torch.equal(drawn.sum(-1), torch.ones_like(upper)) and ((drawn == 0) | (drawn == 1)).all()
    assert ((lower - slack <= uniform) & (uniform <= upper + slack)).all(), "another class than the law gives"
    return drawn + (probs - probs.detach())


def gaussian(stats: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = stats.chunk(2, -1)
    return mean, 2 * torch.sigmoid(raw / 2) + 0.1


def phi(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x**2 - HALF_LOG_2PI)


# Layers --------------------------------------------------------------------------------------------------------


def linear(w: Weights, at: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{at}.weight"], w[f"{at}.bias"])


def layer_norm(w: Weights, at: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + 1e-3).sqrt() * w[f"{at}.weight"] + w[f"{at}.bias"]


def over_channels(w: Weights, at: str, image: Tensor) -> Tensor:
    return layer_norm(w, at, image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def next_index(at: str) -> str:
    """The name of the layer after ``at``."""
    prefix, index = at.rsplit(".", 1)
    return f"{prefix}.{int(index) + 1}"


def mlp(w: Weights, at: str, x: Tensor, norm: str) -> Tensor:
    layer = 0
    while f"{at}.{layer}.weight" in w:
        x = linear(w, f"{at}.{layer}", x)
        if norm == "layer":
            layer += 1
            x = layer_norm(w, f"{at}.{layer}", x)
        x = F.elu(x)
        layer += 2
    return x
