"""Numbers of any size as a distribution over exponentially spaced bins (DreamerV3, section "Robust predictions")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xrl.nn.layers import MLP, OneHots, dense

LARGEST = 20.0  # of the bins, in symlog space: 485 million


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(|x| + 1)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of ``symlog``: sign(x) (exp(|x|) - 1)."""
    return x.sign() * x.abs().expm1()


def make_bins(count: int) -> Tensor:
    """symexp(-20) .. 0 .. symexp(20), ``count`` of them, an odd number; the upper half mirrors the lower exactly."""
    lower = symexp(torch.linspace(-LARGEST, 0.0, count // 2 + 1, dtype=torch.float64)).float()
    return torch.cat([lower, -lower[:-1].flip(0)])


@dataclass(frozen=True)
class TwoHot:
    """A categorical over ``bins`` (K,) by ``logits`` (..., K)."""

    logits: Tensor
    bins: Tensor

    def mean(self) -> Tensor:
        """Sum of p_i b_i, (...). Bins of equal size and other sign are paired: rounding would make of a uniform law,
        which every head begins with, anything but the 0 that it is."""
        probs, half = self.logits.softmax(-1), len(self.bins) // 2
        return ((probs[..., half + 1:] - probs[..., :half].flip(-1)) * self.bins[half + 1:]).sum(-1)

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy with the two-hot code of ``target`` (...), which is raw: weights on the two bins around it,
        such that their mean is the target; beyond the last bin that one alone. Returns (...)."""
        low = (torch.searchsorted(self.bins, target.contiguous(), right=True) - 1).clamp(0, len(self.bins) - 2)
        left, right = self.bins[low], self.bins[low + 1]
        upper = ((target - left) / (right - left)).clamp(0.0, 1.0)
        log_probs = self.logits.log_softmax(-1).gather(-1, torch.stack([low, low + 1], -1))
        return -((1 - upper) * log_probs[..., 0] + upper * log_probs[..., 1])


class TwoHotHead(nn.Module):
    """One number as a TwoHot law: an MLP and a layer that begins at zero. The prediction is its mean."""

    bins: Tensor

    def __init__(self, inputs: int, layers: int, units: int, bins: int = 255) -> None:
        super().__init__()
        self.mlp = MLP(inputs, layers, units, "rms")
        self.out = dense(units, bins, "rms", scale=0.0)
        self.register_buffer("bins", make_bins(bins), persistent=False)

    def law(self, feat: Tensor | OneHots) -> TwoHot:
        return TwoHot(self.out(self.mlp(feat)).float(), self.bins)

    def forward(self, feat: Tensor | OneHots) -> Tensor:
        """(..., F) -> the prediction, (...)."""
        return self.law(feat).mean()

    def loss(self, feat: Tensor | OneHots, target: Tensor) -> Tensor:
        """See ``TwoHot.loss``."""
        return self.law(feat).loss(target)
