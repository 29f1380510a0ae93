"""Slow copies of networks."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Make ``target`` an exact copy of ``source``, in place."""
    for copied, original in zip(target.parameters(), source.parameters(), strict=True):
        copied.copy_(original)
