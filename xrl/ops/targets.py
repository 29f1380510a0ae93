"""Slow copies of networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_parameters(source: nn.Module, target: nn.Module, rate: float, when: Tensor | None = None) -> None:
    """An exponential moving average, in place: target <- (1 - rate) target + rate source; or leave it as it is where
    ``when``, a bool on the device, is False."""
    for moved, original in zip(target.parameters(), source.parameters(), strict=True):
        moved.lerp_(original, rate) if when is None else moved.lerp_(original, rate * when.to(moved.dtype))


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module, when: Tensor | None = None) -> None:
    """Make ``target`` an exact copy of ``source``, in place; or leave it as it is where ``when``, a bool on the
    device, is False."""
    for copied, original in zip(target.parameters(), source.parameters(), strict=True):
        copied.copy_(original if when is None else original.where(when, copied))
