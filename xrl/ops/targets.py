"""Slow copies of networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module, when: Tensor | None = None) -> None:
    """Make ``target`` an exact copy of ``source``, in place; or leave it as it is where ``when``, a bool on the
    device, is False."""
    for copied, original in zip(target.parameters(), source.parameters(), strict=True):
        copied.copy_(original if when is None else original.where(when, copied))
