"""Agents, by name; each loads when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xrl.common.registry import load

if TYPE_CHECKING:
    from xrl.agents.base import Agent
    from xrl.agents.dreamer_v2 import DreamerV2Agent

__all__ = ["Agent", "DreamerV2Agent"]

_LAZY = {"Agent": "xrl.agents.base:Agent", "DreamerV2Agent": "xrl.agents.dreamer_v2:DreamerV2Agent"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return load(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
